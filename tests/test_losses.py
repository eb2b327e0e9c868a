"""The pure losses: hand numbers, a slow oracle, degenerate and huge scores, and their theory."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from recbole_kd.losses import soft_cross_entropy, soft_targets
from recbole_kd.methods.ce import ce_loss
from recbole_kd.methods.ftd import ftd_loss
from recbole_kd.methods.rcekd import rcekd_loss
from recbole_kd.rows import Rows

TINY = 1e-12


def random(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_drop(rows: int, width: int, seed: int = 1) -> Tensor:
    """A mask that keeps between one entry and all of them."""
    generator = torch.Generator().manual_seed(seed)
    drop = torch.rand(rows, width, generator=generator) < torch.linspace(0, 1, rows).unsqueeze(1)
    drop[torch.arange(rows), torch.arange(rows) % width] = False
    return drop


def slow_softmax(scores: list[float], tau: float) -> list[float]:
    """By the definition: exponentials of raw scores."""
    exps = [math.exp(s / tau) for s in scores]
    return [e / sum(exps) for e in exps]


def slow_cross_entropy(student: dict[int, float], teacher: dict[int, float], tau: float) -> float:
    """Cross-entropy over one item set, given as item -> score."""
    assert student.keys() == teacher.keys()
    p = slow_softmax([teacher[i] for i in teacher], tau)
    q = slow_softmax([student[i] for i in teacher], tau)
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))


# -- softmax and cross-entropy ----------------------------------------------------------------


def test_soft_targets_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]], dtype=torch.float64)
    expected = torch.tensor([[0.25, 0.75], [0.8, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(soft_targets(logits, 1.0), expected, rtol=TINY, atol=TINY)
    halved = torch.tensor([[0.1, 0.9], [16 / 17, 1 / 17]], dtype=torch.float64)
    torch.testing.assert_close(soft_targets(logits, 0.5), halved, rtol=TINY, atol=TINY)


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)
    targets = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    loss = soft_cross_entropy(logits, targets, 1.0)
    assert loss.item() == pytest.approx(math.log(4) - 0.5 * math.log(3), rel=TINY)
    assert soft_cross_entropy(2 * logits, targets, 2.0).item() == pytest.approx(loss.item())


@pytest.mark.parametrize("tau", [0.5, 1.0, 10.0])
@pytest.mark.parametrize("masked", [False, True])
def test_ce_against_the_slow_oracle(tau: float, masked: bool) -> None:
    student, teacher = random(9, 6, seed=1), random(9, 6, seed=2)
    drop = random_drop(9, 6) if masked else None
    losses = ce_loss(student, teacher, tau, drop)
    targets = soft_targets(teacher, tau, drop)
    for row in range(9):
        kept = [k for k in range(6) if drop is None or not drop[row, k]]
        s, t = ({k: x[row, k].item() for k in kept} for x in (student, teacher))
        assert losses[row].item() == pytest.approx(slow_cross_entropy(s, t, tau), rel=1e-10)
        expected = torch.zeros(6, dtype=torch.float64)
        expected[kept] = torch.tensor(slow_softmax(list(t.values()), tau), dtype=torch.float64)
        torch.testing.assert_close(targets[row], expected, rtol=1e-10, atol=TINY)


def test_dropped_entries_have_no_influence() -> None:
    drop = random_drop(7, 5)
    student, teacher = random(7, 5, seed=3).requires_grad_(), random(7, 5, seed=4)
    loss = ce_loss(student, teacher, 1.5, drop)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert (gradient[drop] == 0).all()
    assert (gradient[~drop].abs() > 0).any()
    elsewhere = torch.where(drop, 1e4, student.detach()), torch.where(drop, -1e4, teacher)
    torch.testing.assert_close(ce_loss(*elsewhere, 1.5, drop), loss.detach(), rtol=0, atol=0)


def test_degenerate_sets() -> None:
    one = random(3, 1).requires_grad_()
    loss = ce_loss(one, random(3, 1, seed=5), 0.7)
    assert loss.abs().max() == 0
    assert torch.autograd.grad(loss.sum(), one)[0].abs().max() == 0
    equal = torch.full((2, 8), 3.5, dtype=torch.float64)
    uniform = torch.full((2,), math.log(8), dtype=torch.float64)
    torch.testing.assert_close(ce_loss(equal, random(2, 8), 2.0), uniform, rtol=TINY, atol=0)
    drop = torch.ones(2, 8, dtype=torch.bool)
    drop[:, 3] = False
    scores = random(2, 8, seed=6).requires_grad_()
    loss = ce_loss(scores, random(2, 8, seed=7), 1.0, drop)
    assert loss.abs().max() == 0
    assert torch.autograd.grad(loss.sum(), scores)[0].abs().max() == 0
    assert torch.equal(soft_targets(random(2, 8), 1.0, drop), (~drop).double())


@pytest.mark.parametrize("size", [100.0, 1e4])
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_huge_scores_in_float32(size: float, tau: float) -> None:
    generator = torch.Generator().manual_seed(3)
    for low, high in ((-size, size), (-size, -size + 3), (size - 3, size)):
        pair = [low + (high - low) * torch.rand(6, 9, generator=generator) for _ in range(2)]
        drop = random_drop(6, 9)
        results = []
        for dtype in (torch.float32, torch.float64):
            student = pair[0].to(dtype).requires_grad_()
            loss = ce_loss(student, pair[1].to(dtype), tau, drop)
            results.append((loss.detach(), torch.autograd.grad(loss.sum(), student)[0]))
        (loss, gradient), (exact_loss, exact_gradient) = results
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
        # The sum s / tau is rounded to float32, whatever the form of the loss.
        step = size / tau * 2**-22
        torch.testing.assert_close(loss.double(), exact_loss, rtol=1e-5, atol=2 * step)
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=0, atol=2 * step)


def test_gradients_numerically() -> None:
    drop = random_drop(4, 5)
    student = random(4, 5, seed=8).requires_grad_()
    targets = soft_targets(random(4, 5, seed=9), 1.3, drop)
    assert torch.autograd.gradcheck(lambda s: soft_cross_entropy(s, targets, 1.3, drop), student)
    users, weights = torch.arange(1, 5), torch.tensor([2.0, 1.0, 0.0, 5.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: Rows(users, weights).mean(soft_cross_entropy(s, targets, 1.3, drop)), student
    )
    both = random(3, 3, seed=10).requires_grad_(), random(3, 5, seed=11).requires_grad_()
    q, g = soft_targets(random(3, 5), 0.8, drop[:3]), torch.tensor([0.0, 0.4, 1.0]).double()
    p = soft_targets(random(3, 3, seed=12), 0.8)
    assert torch.autograd.gradcheck(
        lambda s, c: rcekd_loss(s, c, p, q, drop[:3], g, 0.8), both, atol=1e-6
    )


def test_mean_over_counted_rows() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    mean = Rows(torch.tensor([3, 5, 8]), torch.tensor([3.0, 0.0, 1.0])).mean(losses)
    assert mean.item() == pytest.approx(7 / 4)
    (gradient,) = torch.autograd.grad(mean, losses)
    assert gradient.tolist() == [0.75, 0.0, 0.25]
    empty = torch.zeros(0, requires_grad=True)
    nothing = Rows(torch.zeros(0, dtype=torch.int64), torch.zeros(0)).mean(empty)
    assert nothing.item() == 0
    assert torch.autograd.grad(nothing, empty)[0].shape == (0,)


def test_mean_over_a_total() -> None:
    """Each user once, over the rows of the batch, whatever the weights sum to."""
    users, weights = torch.tensor([3, 5, 8]), torch.tensor([1.0, 1.0, 2.0])
    losses = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    mean = Rows(users, weights, torch.tensor(8.0)).mean(losses)
    assert mean.item() == pytest.approx(11 / 8)
    (gradient,) = torch.autograd.grad(mean, losses)
    assert gradient.tolist() == [0.125, 0.125, 0.25]
    summed = Rows(users, weights, weights.sum()).mean(losses)
    assert summed.item() == Rows(users, weights).mean(losses).item()
    # A batch without a user to distil: no division by 0.
    empty = torch.zeros(0, requires_grad=True)
    nothing = Rows(users[:0], weights[:0], torch.tensor(0.0)).mean(empty)
    assert nothing.item() == 0
    assert torch.autograd.grad(nothing, empty)[0].shape == (0,)


# -- cross-entropy distillation ---------------------------------------------------------------


def test_kl_has_the_gradient_of_ce() -> None:
    student, teacher, tau = random(5, 7, seed=1).requires_grad_(), random(5, 7, seed=2), 1.7
    log_q = (student / tau).log_softmax(1)
    kl = torch.nn.functional.kl_div(log_q, (teacher / tau).softmax(1), reduction="sum")
    expected = torch.autograd.grad(kl, student)[0]
    found = torch.autograd.grad(ce_loss(student, teacher, tau).sum(), student)[0]
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=TINY)


def test_gradient_vanishes_at_the_teacher_up_to_a_constant() -> None:
    teacher = random(5, 7, seed=3)
    shifted = (teacher + random(5, 1, seed=4, scale=50)).requires_grad_()
    gradient = torch.autograd.grad(ce_loss(shifted, teacher, 0.9).sum(), shifted)[0]
    assert gradient.abs().max() < 1e-12
    stretched = (1.1 * teacher).requires_grad_()
    gradient = torch.autograd.grad(ce_loss(stretched, teacher, 0.9).sum(), stretched)[0]
    assert gradient.abs().max() > 1e-3


def test_splitting_rows_and_counting_them() -> None:
    student, teacher = random(8, 5, seed=5), random(8, 5, seed=6)
    losses = ce_loss(student, teacher, 1.0)
    parts = [ce_loss(s, t, 1.0) for s, t in zip(student.split(3), teacher.split(3), strict=True)]
    torch.testing.assert_close(torch.cat(parts), losses, rtol=TINY, atol=0)
    rows = torch.tensor([4, 1, 4, 4, 7, 1, 0])
    users, counts = rows.unique(return_counts=True)
    repeated = ce_loss(student[rows], teacher[rows], 1.0).mean()
    counted = Rows(users, counts.double()).mean(losses[users])
    assert counted.item() == pytest.approx(repeated.item(), rel=TINY)


# -- RCE-KD on explicit sets ------------------------------------------------------------------


class Sets:
    """One user with scores for all items, ``Q_S``, the sample ``A`` and ``Q_T``."""

    def __init__(self, student_top: list[int], sample: list[int], teacher_top: list[int]):
        self.student_top, self.sample, self.teacher_top = student_top, sample, teacher_top
        self.student = random(20, seed=21, scale=3).requires_grad_()
        self.teacher = random(20, seed=22, scale=3)

    def drop(self) -> Tensor:
        others = {*self.student_top, *self.sample}
        flags = [False] * len(self.sample) + [i in others for i in self.teacher_top]
        return torch.tensor([flags])

    def loss(self, g: float, tau: float = 1.2, dtype: torch.dtype = torch.float64) -> Tensor:
        drop, closure = self.drop(), self.sample + self.teacher_top
        student, teacher = self.student.to(dtype).unsqueeze(0), self.teacher.to(dtype).unsqueeze(0)
        return rcekd_loss(
            student[:, self.student_top],
            student[:, closure],
            soft_targets(teacher[:, self.student_top], tau),
            soft_targets(teacher[:, closure], tau, drop),
            drop,
            torch.tensor([g], dtype=dtype),
            tau,
        ).squeeze(0)

    def slow(self, g: float, tau: float = 1.2) -> float:
        """By the definition, with Python's sets."""
        closure = set(self.sample) | (set(self.teacher_top) - set(self.student_top))
        terms = []
        for items in (set(self.student_top), closure):
            scores = ({i: s[i].item() for i in items} for s in (self.student, self.teacher))
            terms.append(slow_cross_entropy(*scores, tau))
        return (1 - g) * terms[0] + g * terms[1]

    def slow_tensor(self, g: float, tau: float = 1.2) -> Tensor:
        """The naive form with raw exponentials, which autograd can follow."""
        closure = sorted(set(self.sample) | (set(self.teacher_top) - set(self.student_top)))
        terms = []
        for items in (self.student_top, closure):
            t, s = (self.teacher[items] / tau).exp(), (self.student[items] / tau).exp()
            terms.append(-(t / t.sum() * (s / s.sum()).log()).sum())
        return (1 - g) * terms[0] + g * terms[1]


OVERLAPPING = {
    "disjoint": ([0, 1, 2], [3, 4], [5, 6, 7]),
    "sample-in-both": ([0, 1, 2], [1, 5], [5, 1, 7]),
    "student-and-teacher": ([0, 1, 2], [3, 4], [2, 1, 7]),
    "teacher-in-sample": ([0, 1, 2], [5, 6, 9], [5, 6, 7]),
    "all-the-same": ([3, 1, 2], [2, 3, 1], [1, 2, 3]),
    "nothing-left-of-teacher": ([0, 1, 2], [5, 8], [0, 5, 2]),
    "one-item": ([4], [4], [4]),
}


@pytest.mark.parametrize("sets", OVERLAPPING.values(), ids=OVERLAPPING.keys())
@pytest.mark.parametrize("g", [0.0, 0.3, 1.0])
def test_rcekd_against_the_slow_oracle(sets: tuple[list[int], ...], g: float) -> None:
    case = Sets(*sets)
    loss = case.loss(g)
    assert loss.item() == pytest.approx(case.slow(g), rel=1e-10, abs=1e-12)
    found = torch.autograd.grad(loss, case.student)[0]
    expected = torch.autograd.grad(case.slow_tensor(g), case.student)[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sets", OVERLAPPING.values(), ids=OVERLAPPING.keys())
def test_rcekd_counts_every_item_once(sets: tuple[list[int], ...]) -> None:
    case = Sets(*sets)
    kept = [
        i
        for i, d in zip(case.sample + case.teacher_top, case.drop()[0].tolist(), strict=True)
        if not d
    ]
    assert sorted(kept) == sorted(set(kept))
    # The gradient of L_T lives exactly on the set, whatever the columns.
    gradient = torch.autograd.grad(case.loss(1.0), case.student)[0]
    touched = set(gradient.nonzero().squeeze(1).tolist())
    assert touched == (set(kept) if len(kept) > 1 else set())


@pytest.mark.parametrize("sets", OVERLAPPING.values(), ids=OVERLAPPING.keys())
def test_rcekd_ignores_the_order_of_columns(sets: tuple[list[int], ...]) -> None:
    expected = Sets(*sets).loss(0.4).item()
    for turned in itertools.product([False, True], repeat=3):
        parts = [s[::-1] if t else s for s, t in zip(sets, turned, strict=True)]
        assert Sets(*parts).loss(0.4).item() == pytest.approx(expected, rel=TINY, abs=1e-12)


def test_rcekd_when_all_sets_are_equal() -> None:
    case = Sets(*OVERLAPPING["all-the-same"])
    scores = [{i: s[i].item() for i in (1, 2, 3)} for s in (case.student, case.teacher)]
    expected = slow_cross_entropy(*scores, 1.2)
    for g in (0.0, 0.05, 0.7, 1.0):
        assert case.loss(g).item() == pytest.approx(expected, rel=TINY)


def test_rcekd_weight_at_its_ends() -> None:
    case = Sets(*OVERLAPPING["disjoint"])
    low, high = case.loss(0.0).item(), case.loss(1.0).item()
    assert low != pytest.approx(high, rel=0.05)
    assert case.loss(0.25).item() == pytest.approx(0.75 * low + 0.25 * high, rel=TINY)
    on_student = torch.autograd.grad(case.loss(0.0), case.student)[0].nonzero().squeeze(1)
    assert on_student.tolist() == [0, 1, 2]
    on_closure = torch.autograd.grad(case.loss(1.0), case.student)[0].nonzero().squeeze(1)
    assert on_closure.tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("size", [100.0, 1e4])
@pytest.mark.parametrize("sets", OVERLAPPING.values(), ids=OVERLAPPING.keys())
def test_rcekd_huge_scores_in_float32(sets: tuple[list[int], ...], size: float) -> None:
    generator = torch.Generator().manual_seed(31)
    for low, high in ((-size, size), (-size, -size + 3), (size - 3, size)):
        case = Sets(*sets)
        span = high - low
        student = (low + span * torch.rand(20, generator=generator)).requires_grad_()
        case.student, case.teacher = student, low + span * torch.rand(20, generator=generator)
        loss, exact = case.loss(0.3, dtype=torch.float32), case.loss(0.3)
        step = size * 2**-21
        assert loss.item() == pytest.approx(exact.item(), rel=1e-5, abs=2 * step)
        found, expected = (torch.autograd.grad(x, student)[0] for x in (loss, exact))
        assert found.isfinite().all()
        torch.testing.assert_close(found, expected, rtol=0, atol=2 * step)


# -- what the losses bound --------------------------------------------------------------------


def log_ndcg(student: Tensor, teacher: Tensor, kept: Tensor) -> float:
    """Log NDCG with the teacher's softmax over ``kept`` as gains and ranks among all items."""
    gains = (teacher[kept]).softmax(0)
    ranks = 1 + (student.unsqueeze(0) > student[kept].unsqueeze(1)).sum(1)
    ideal = gains.sort(descending=True).values / torch.arange(2, len(kept) + 2).log2()
    return math.log(((gains / (1 + ranks).log2()).sum() / ideal.sum()).item())


@pytest.mark.parametrize("scale", [0.5, 3.0, 200.0])
def test_cross_entropy_over_all_items_bounds_ndcg(scale: float) -> None:
    for seed in range(60):
        student, teacher = random(15, seed=seed, scale=scale), random(15, seed=seed + 999)
        everything = torch.arange(15)
        bound = -ce_loss(student.unsqueeze(0), teacher.unsqueeze(0), 1.0).item()
        assert log_ndcg(student, teacher, everything) >= bound - 1e-9
        # It is reached where both put all weight on one item.
        sharp = 1e3 * torch.eye(15, dtype=torch.float64)[seed % 15]
        bound = -ce_loss(sharp.unsqueeze(0), sharp.unsqueeze(0), 1.0).item()
        assert log_ndcg(sharp, sharp, everything) == pytest.approx(bound, abs=1e-9)


def test_cross_entropy_over_a_closed_set_bounds_ndcg() -> None:
    for seed in range(40):
        student, teacher = random(12, seed=seed, scale=4), random(12, seed=seed + 999)
        order = student.argsort(descending=True)
        for size in range(1, 13):
            prefix = order[:size]
            pair = student[prefix].unsqueeze(0), teacher[prefix].unsqueeze(0)
            bound = -ce_loss(*pair, 1.0).item()
            assert log_ndcg(student, teacher, prefix) >= bound - 1e-9


def test_cross_entropy_over_an_open_set_bounds_nothing() -> None:
    student, teacher = torch.arange(10).double(), random(10)
    last = torch.tensor([0])
    assert ce_loss(student[last].unsqueeze(0), teacher[last].unsqueeze(0), 1.0).item() == 0
    assert log_ndcg(student, teacher, last) == pytest.approx(math.log(1 / math.log2(11)))
    violations = 0
    for seed in range(60):
        student, teacher = random(30, seed=seed, scale=3), random(30, seed=seed + 999)
        top = teacher.topk(3).indices
        bound = -ce_loss(student[top].unsqueeze(0), teacher[top].unsqueeze(0), 1.0).item()
        violations += log_ndcg(student, teacher, top) < bound
    assert violations > 5


# -- FTD ---------------------------------------------------------------------------------------


def test_ftd_keeps_its_digits_where_all_vectors_are_alike() -> None:
    """The sum over pairs is a small part of the terms it is made of."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(1500, d, generator=generator) + 8.0 for d in (20, 60))
    student.requires_grad_()

    def direct(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        s, t = (torch.nn.functional.normalize(v, dim=1) for v in (s, t))
        return (t @ t.t() - s @ s.t()).square().sum()

    exact_student = student.detach().double().requires_grad_()
    exact = direct(exact_student, teacher.double())
    found = ftd_loss(student, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0.0)
    (gradient,) = torch.autograd.grad(found, student)
    (expected,) = torch.autograd.grad(exact, exact_student)
    scale = expected.abs().max().item()
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-4 * scale)
