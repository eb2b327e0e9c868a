"""Projectors and gates against plain loops, and what training must not change in them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from recbole_kd.experts import Experts, Gate, Orthogonal, annealed, gumbel


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain_experts(experts: Experts) -> list[nn.Sequential]:
    """The same networks as modules of their own."""
    copies = []
    for e in range(experts.number):
        rows = slice(e * experts.hidden, (e + 1) * experts.hidden)
        first = nn.Linear(experts.weight_in.shape[1], experts.hidden)
        second = nn.Linear(experts.hidden, experts.weight_out.shape[2])
        with torch.no_grad():
            first.weight.copy_(experts.weight_in[rows])
            first.bias.copy_(experts.bias_in[rows])
            second.weight.copy_(experts.weight_out[e].t())
            second.bias.copy_(experts.bias_out[e])
        copies.append(nn.Sequential(first, nn.ReLU(), second))
    return copies


def shares_of(rows: int, number: int) -> Tensor:
    return torch.randn(rows, number, generator=generator(1)).softmax(1)


# -- experts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "hidden"), [(1, 7), (4, 3), (3, 1)])
@pytest.mark.parametrize("mixed", [True, False])
def test_experts_are_a_loop_over_networks(number: int, hidden: int, mixed: bool) -> None:
    torch.manual_seed(0)
    experts = Experts(5, 6, number, hidden)
    inputs = torch.randn(9, 5, requires_grad=True)
    shares = shares_of(9, number) if mixed else None
    weights = torch.full((9, number), 1 / number) if shares is None else shares
    copies = plain_experts(experts)
    wanted = sum(weights[:, e : e + 1] * copies[e](inputs) for e in range(number))
    found = experts(inputs, shares)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)

    (wanted_grad,) = torch.autograd.grad(wanted.square().sum(), inputs, retain_graph=True)
    wanted.square().sum().backward()
    inputs.grad = None
    found.square().sum().backward()
    torch.testing.assert_close(inputs.grad, wanted_grad, rtol=1e-4, atol=1e-5)
    for e, copy in enumerate(copies):
        rows = slice(e * hidden, (e + 1) * hidden)
        for mine, theirs in (
            (experts.weight_in.grad[rows], copy[0].weight.grad),
            (experts.bias_in.grad[rows], copy[0].bias.grad),
            (experts.weight_out.grad[e], copy[2].weight.grad.t()),
            (experts.bias_out.grad[e], copy[2].bias.grad),
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_share_of_one_is_that_expert_alone_and_teaches_it_alone() -> None:
    torch.manual_seed(1)
    experts = Experts(4, 3, 3, 5)
    inputs, shares = torch.randn(6, 4), torch.eye(3)[[0, 0, 2, 2, 0, 2]]
    copies = plain_experts(experts)
    found = experts(inputs, shares)
    for row, e in enumerate([0, 0, 2, 2, 0, 2]):
        torch.testing.assert_close(found[row], copies[e](inputs[row]), rtol=1e-5, atol=1e-6)
    found.sum().backward()
    assert not experts.weight_out.grad[1].any()
    assert not experts.weight_in.grad[5:10].any()
    assert experts.weight_out.grad[0].any()


def test_shares_carry_gradient() -> None:
    torch.manual_seed(2)
    experts = Experts(4, 3, 3, 5)
    inputs, shares = torch.randn(6, 4), shares_of(6, 3).requires_grad_()
    experts(inputs, shares).sum().backward()
    wanted = torch.stack([copy(inputs).sum(1) for copy in plain_experts(experts)], 1)
    torch.testing.assert_close(shares.grad, wanted, rtol=1e-4, atol=1e-5)


def test_no_rows_are_no_rows() -> None:
    experts = Experts(4, 3, 2, 5, dropout=0.5)
    assert experts(torch.zeros(0, 4)).shape == (0, 3)
    assert experts(torch.zeros(0, 4), torch.zeros(0, 2)).shape == (0, 3)


def test_dropout_is_for_training_only_and_keeps_the_mean() -> None:
    torch.manual_seed(3)
    experts, plain = Experts(6, 4, 2, 8, dropout=0.3), Experts(6, 4, 2, 8)
    plain.load_state_dict(experts.state_dict())
    inputs = torch.randn(5, 6)
    assert torch.equal(experts.eval()(inputs), plain(inputs))
    experts.train()
    first, second = experts(inputs), experts(inputs)
    assert not torch.equal(first, second)
    # Inputs before the ReLU and hidden units after it: with positive inner values both are linear.
    with torch.no_grad():
        experts.weight_in.abs_()
        experts.bias_in.fill_(1.0)
        plain.load_state_dict(experts.state_dict())
        inputs = inputs.abs()
        many = torch.stack([experts(inputs) for _ in range(4000)])
        deviation = (many.mean(0) - plain(inputs)) / (many.std(0) / math.sqrt(len(many)))
    assert deviation.abs().max() < 4.5


def test_experts_begin_as_linear_layers_do() -> None:
    torch.manual_seed(4)
    experts = Experts(16, 5, 8, 25)
    for weight, bound in (
        (experts.weight_in, 1 / 4),
        (experts.bias_in, 1 / 4),
        (experts.weight_out, 1 / 5),
        (experts.bias_out, 1 / 5),
    ):
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.8 * bound
        assert abs(weight.mean().item()) < 0.2 * bound
    alike = [experts.weight_in[:25], experts.weight_in[25:50]]
    assert not torch.equal(*alike)


# -- gate --------------------------------------------------------------------------------------


def test_a_gate_is_a_softmax_of_noisy_log_probabilities() -> None:
    torch.manual_seed(5)
    gate = Gate(6, 4)
    teacher, noise = torch.randn(7, 6), gumbel(7, 4, generator(2))
    shares = gate(teacher, noise, 0.5)
    chances = (teacher @ gate.linear.weight.t() + gate.linear.bias).softmax(1)
    wanted = ((chances + 1e-10).log() + noise) / 0.5
    torch.testing.assert_close(shares, wanted.exp() / wanted.exp().sum(1, keepdim=True))
    torch.testing.assert_close(shares.sum(1), torch.ones(7))
    shares.square().sum().backward()
    assert gate.linear.weight.grad.any()


@pytest.mark.parametrize("temperature", [1e-10, 1e-4])
def test_a_cold_gate_chooses_and_stays_finite(temperature: float) -> None:
    torch.manual_seed(6)
    gate = Gate(3, 4)
    with torch.no_grad():
        gate.linear.weight.mul_(100)  # chances of 0 and 1
    teacher, noise = torch.randn(500, 3), gumbel(500, 4, generator(3))
    shares = gate(teacher, noise, temperature)
    assert torch.isfinite(shares).all()
    chosen = ((gate.linear(teacher).softmax(1) + 1e-10).log() + noise).argmax(1)
    assert torch.equal(shares.argmax(1), chosen)
    assert (shares.max(1).values > 0.99).float().mean() > 0.99
    shares.square().sum().backward()
    assert torch.isfinite(gate.linear.weight.grad).all()


def test_a_cold_gate_chooses_as_often_as_likely() -> None:
    torch.manual_seed(7)
    gate, draws = Gate(2, 5), 20_000
    teacher = torch.tensor([[0.7, -1.2]])
    chances = gate.linear(teacher).softmax(1)[0]
    noise = gumbel(draws, 5, generator(4))
    chosen = gate(teacher.expand(draws, -1), noise, 1e-6).argmax(1)
    found = chosen.bincount(minlength=5) / draws
    assert ((found - chances).abs() < 4.5 * (chances * (1 - chances) / draws).sqrt()).all()


def test_groups_are_the_most_likely_experts() -> None:
    torch.manual_seed(8)
    gate = Gate(6, 4)
    teacher = torch.randn(20, 6)
    groups = gate.groups(teacher)
    assert groups.tolist() == [int(row.argmax()) for row in gate.linear(teacher)]
    assert (groups.dtype, groups.requires_grad) == (torch.int64, False)


# -- orthogonal --------------------------------------------------------------------------------

SHAPES = [(4, 9), (9, 4), (5, 5), (1, 6), (6, 1)]


def assert_orthonormal(matrix: Tensor) -> None:
    out, width = matrix.shape
    product = matrix.t() @ matrix if out >= width else matrix @ matrix.t()
    torch.testing.assert_close(product, torch.eye(min(out, width)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("width", "out"), SHAPES)
def test_a_map_stays_orthonormal_under_adam_and_weight_decay(width: int, out: int) -> None:
    torch.manual_seed(9)
    layer, wanted = Orthogonal(width, out), torch.randn(50, out)
    inputs = torch.randn(50, width)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01, weight_decay=0.1)
    assert_orthonormal(layer.matrix())
    losses = []
    for _ in range(200):
        loss = (layer(inputs) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert torch.isfinite(layer.raw.grad).all()
    assert_orthonormal(layer.matrix())
    assert losses[-1] < losses[0]


def test_a_map_can_learn_any_rotation() -> None:
    torch.manual_seed(10)
    layer, target = Orthogonal(3, 6), Orthogonal(3, 6).matrix().detach()
    inputs = torch.randn(100, 3)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02, weight_decay=0.1)
    for _ in range(400):
        loss = (layer(inputs) - inputs @ target.t()).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize(("width", "out"), SHAPES)
def test_a_map_begins_at_its_parameter_and_ignores_its_length(width: int, out: int) -> None:
    torch.manual_seed(11)
    layer = Orthogonal(width, out)
    torch.testing.assert_close(layer.matrix(), layer.raw, rtol=0, atol=1e-5)
    before = layer.matrix().detach()
    with torch.no_grad():
        layer.raw.mul_(1e-3)
    torch.testing.assert_close(layer.matrix(), before, rtol=0, atol=1e-4)
    inputs = torch.randn(8, width)
    torch.testing.assert_close(layer(inputs), inputs @ layer.matrix().t())
    if out >= width:
        lengths = layer(inputs).norm(dim=1)
        torch.testing.assert_close(lengths, inputs.norm(dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "out"), SHAPES)
def test_a_map_moves_a_little_where_its_parameter_does(width: int, out: int) -> None:
    """The sign of a column never jumps."""
    torch.manual_seed(12)
    layer = Orthogonal(width, out)
    for step in range(50):
        before = layer.matrix().detach()
        with torch.no_grad():
            layer.raw.add_(0.01 * torch.randn(out, width, generator=generator(step)))
        assert (layer.matrix() - before).abs().max() < 0.15


# -- noise and temperature ---------------------------------------------------------------------


def test_gumbel_noise_follows_its_law() -> None:
    before = torch.get_rng_state()
    noise = gumbel(20_000, 5, generator(5)).double()
    assert torch.equal(torch.get_rng_state(), before)
    n = noise.numel()
    assert noise.shape == (20_000, 5)
    assert torch.isfinite(noise).all()
    assert abs(noise.mean().item() - 0.57722) < 4.5 * math.pi / math.sqrt(6 * n)
    below = math.exp(-math.exp(-1))  # P(x < 1)
    share = (noise < 1).double().mean().item()
    assert abs(share - below) < 4.5 * math.sqrt(below * (1 - below) / n)
    assert torch.equal(gumbel(3, 2, generator(6)), gumbel(3, 2, generator(6)))


def test_temperatures_fall_geometrically_between_their_ends() -> None:
    start, end, epochs = 1.0, 1e-10, 20
    found = [annealed(start, end, epoch, epochs) for epoch in range(30)]
    assert found[0] == start
    assert found[epochs] == pytest.approx(end, rel=1e-9)
    assert found[epochs:] == [pytest.approx(end, rel=1e-9)] * 10
    ratios = [b / a for a, b in itertools.pairwise(found[: epochs + 1])]
    assert ratios == [pytest.approx((end / start) ** (1 / epochs))] * epochs
    assert min(found) >= end
    assert annealed(0.5, 0.5, 7, 9) == 0.5
    assert annealed(2.0, 1.0, 0, 0) == 2.0
