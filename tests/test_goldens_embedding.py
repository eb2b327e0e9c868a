"""Recorded values of a public reference implementation: DE, HTD, Fit and VkD."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import ModuleType

import pytest
import torch
from golden import (
    TOLERANCES,
    Check,
    Golden,
    assert_close,
    assert_gradient,
    assert_gradients,
    assert_step,
    cases,
    in_both_types,
)
from torch import Tensor, nn
from torch.nn.functional import normalize

from recbole_kd.experts import Experts, Gate, Orthogonal, annealed
from recbole_kd.losses import squared_error
from recbole_kd.methods import de, htd
from recbole_kd.methods.base import EmbeddingDistiller
from recbole_kd.methods.de import DE, de_loss
from recbole_kd.methods.fit import Fit, fit_loss
from recbole_kd.methods.htd import HTD, group_topology, inner_topology
from recbole_kd.methods.vkd import VkD, vkd_loss

Modules = dict[str, nn.Module]
"""The modules that learn beside the student, by the name under which they are recorded."""

SIDES = ("user", "item")


# -- modules ----------------------------------------------------------------------------------


def recorded_form(name: str, module: nn.Module, grad: bool) -> dict[str, Tensor]:
    """A module's parameters, or their gradients, named and shaped as they are recorded.

    All of them are views: what is written to them is written to the module.
    """
    tensors = {n: p.grad if grad else p.data for n, p in module.named_parameters()}
    if not isinstance(module, Experts):
        return {f"{name}.{n.removeprefix('linear.')}": t for n, t in tensors.items()}
    found = {}
    for expert in range(module.number):
        rows = slice(expert * module.hidden, (expert + 1) * module.hidden)
        found[f"{name}.{expert}.mlp.0.weight"] = tensors["weight_in"][rows]
        found[f"{name}.{expert}.mlp.0.bias"] = tensors["bias_in"][rows]
        found[f"{name}.{expert}.mlp.2.weight"] = tensors["weight_out"][expert].t()
        found[f"{name}.{expert}.mlp.2.bias"] = tensors["bias_out"][expert]
    return found


def load(golden: Golden, modules: Modules) -> None:
    """Set the modules to the recorded parameters."""
    for name, module in modules.items():
        for key, tensor in recorded_form(name, module, grad=False).items():
            assert tensor.shape == golden[f"param__{key}"].shape
            tensor.copy_(golden[f"param__{key}"])


def assert_module_gradients(
    golden: Golden, modules: Modules, dtype: torch.dtype, rows: int = 1
) -> None:
    """Each recorded gradient; that of a parameter which the modules lack is 0."""
    found = {}
    for name, module in modules.items():
        found.update(recorded_form(name, module, grad=True))
    recorded = {k.removeprefix("grad__"): v for k, v in golden.arrays.items() if "grad__" in k}
    assert found.keys() <= recorded.keys()
    for key, gradient in recorded.items():
        if key in found:
            assert_gradient(rows * found[key], gradient, TOLERANCES[dtype])
        else:
            assert not gradient.any()


def assert_sum(
    golden: Golden, loss: Tensor, student: tuple[Tensor, Tensor], dtype: torch.dtype
) -> None:
    """A loss over entities, with the student's gradients."""
    assert loss.dtype == dtype
    assert_close(loss, golden["loss"], TOLERANCES[dtype].loss)
    loss.backward()
    assert_gradients(golden, [table.grad for table in student], TOLERANCES[dtype])


def assert_production(golden: Golden, distiller: EmbeddingDistiller, modules: Modules) -> None:
    """The distiller's loss of a batch, times its rows, with the gradients of all that learns."""
    load(golden, modules)
    batch = golden.batch()
    assert_step(golden, distiller, distiller.distil(batch))
    assert_module_gradients(golden, modules, torch.float32, len(batch["user_id"]))


def give_noise(patch: pytest.MonkeyPatch, module: ModuleType, parts: list[Tensor]) -> None:
    """Gumbel noise as recorded, one part a call and then from the start."""
    waiting = itertools.cycle(parts)

    def recorded(rows: int, number: int, generator: torch.Generator) -> Tensor:
        noise = next(waiting)
        assert noise.shape == (rows, number)
        return noise

    patch.setattr(module, "gumbel", recorded)


def expert_sizes(golden: Golden, number: int) -> tuple[int, int, int, int]:
    """Arguments of :class:`Experts` in DE and HTD."""
    width, out = golden["S_user"].shape[1], golden["T_user"].shape[1]
    return width, out, number, (width + out) // 2


# -- DE ---------------------------------------------------------------------------------------


def de_modules(golden: Golden, dtype: torch.dtype) -> Modules:
    number, modules = golden.hp("de_num_experts"), {}
    for side in SIDES:
        modules[f"{side}_experts"] = Experts(*expert_sizes(golden, number)).to(dtype)
        if number > 1:
            modules[f"{side}_selection_net.0"] = Gate(golden["T_user"].shape[1], number).to(dtype)
    load(golden, modules)
    return modules


def de_error(
    golden: Golden, modules: Modules, student: tuple[Tensor, Tensor], part: str, dtype: torch.dtype
) -> Tensor:
    """Squared error of ``user``, ``pos`` or ``neg``."""
    side = int(part != "user")
    entities = golden["unique_users" if part == "user" else f"unique_{part}"]
    teacher, shares = golden.teacher(dtype)[side][entities], None
    if golden.hp("de_num_experts") > 1:
        noise = golden[f"gumbel_{part}"].to(dtype)
        gate = modules[f"{SIDES[side]}_selection_net.0"]
        shares = gate(teacher, noise, golden["current_T"].item())
    found = modules[f"{SIDES[side]}_experts"](student[side][entities], shares)
    return de_loss(found, teacher).sum()


def de_functions(golden: Golden, dtype: torch.dtype) -> None:
    student, modules = golden.student(dtype), de_modules(golden, dtype)
    parts = {}
    for part in ("user", "pos", "neg"):
        parts[part] = de_error(golden, modules, student, part, dtype)
        assert_close(parts[part], golden[f"loss_{part}"], TOLERANCES[dtype].loss)
    loss = parts["user"] + 0.5 * (parts["pos"] + parts["neg"])
    assert_sum(golden, loss, student, dtype)
    assert_module_gradients(golden, modules, dtype)


def de_temperatures(golden: Golden) -> tuple[float, float]:
    """Temperatures at the start and at the end."""
    end = golden.hp("de_end_T")
    return end * golden.hp("de_anneal_size"), end


def de_temperature(golden: Golden, _: pytest.MonkeyPatch) -> None:
    epoch, epochs = golden["epoch"].item(), golden.hp("epochs")
    found = annealed(*de_temperatures(golden), epoch, epochs)
    assert found == pytest.approx(golden["current_T"].item(), rel=1e-12)


def de_production(golden: Golden, patch: pytest.MonkeyPatch) -> None:
    number = golden.hp("de_num_experts")
    start, end = de_temperatures(golden)
    distiller = golden.world().distiller(
        DE,
        kd_weight=golden.hp("lmbda"),
        epochs=golden.hp("epochs"),
        de_experts=number,
        de_start_T=start,
        de_end_T=end,
    )
    distiller.begin_epoch(golden["epoch"].item(), 1)
    assert distiller.temperature == pytest.approx(golden["current_T"].item(), rel=1e-12)
    entities = distiller.entities(golden.batch())
    assert torch.equal(entities.users - 1, golden["unique_users"])
    assert torch.equal(entities.positives - 1, golden["unique_pos"])
    assert torch.equal(entities.negatives - 1, golden["unique_neg"])
    modules = {f"{side}_experts": getattr(distiller, f"{side}_experts") for side in SIDES}
    if number > 1:
        items = torch.cat([golden["gumbel_pos"], golden["gumbel_neg"]])
        give_noise(patch, de, [golden["gumbel_user"], items])
        for side in SIDES:
            modules[f"{side}_selection_net.0"] = getattr(distiller, f"{side}_gate")
    assert_production(golden, distiller, modules)


# -- HTD --------------------------------------------------------------------------------------


def htd_modules(golden: Golden, dtype: torch.dtype) -> Modules:
    number, modules = golden.hp("htd_num_experts"), {}
    for side in SIDES:
        modules[f"{side}_f"] = Experts(*expert_sizes(golden, number)).to(dtype)
        modules[f"{side}_v.0"] = Gate(golden["T_user"].shape[1], number).to(dtype)
    load(golden, modules)
    return modules


def htd_vectors(tables: tuple[Tensor, Tensor], golden: Golden) -> tuple[Tensor, Tensor]:
    """Vectors of the batch's users, and of its items."""
    return tables[0][golden["unique_users"]], tables[1][golden["unique_items"]]


def htd_assignment(
    golden: Golden,
    modules: Modules,
    vectors: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
) -> Tensor:
    """The group assignment's loss; its parts and the groups themselves are compared here."""
    errors, dtype = [], teacher[0].dtype
    for side, mine, wanted in zip(SIDES, vectors, teacher, strict=True):
        gate = modules[f"{side}_v.0"]
        groups = gate.groups(wanted) + SIDES.index(side) * golden.hp("htd_num_experts")
        assert torch.equal(groups, golden[f"group_{side}"])
        noise = golden[f"gumbel_{side}"].to(dtype)
        shares = gate(wanted, noise, golden["current_T"].item())
        errors.append(squared_error(modules[f"{side}_f"](mine, shares), wanted).sum())
        assert_close(errors[-1], golden[f"loss_GA_{side}"], TOLERANCES[dtype].loss)
    return errors[0] + errors[1]


def htd_functions(golden: Golden, dtype: torch.dtype) -> None:
    student, modules = golden.student(dtype), htd_modules(golden, dtype)
    vectors = htd_vectors(student, golden)
    teacher = htd_vectors(golden.teacher(dtype), golden)
    assignment = htd_assignment(golden, modules, vectors, teacher)
    groups = torch.cat([golden["group_user"], golden["group_item"]])
    mixed, wanted = torch.cat(vectors), torch.cat(teacher)
    second = not golden.hp("choice_is_first")
    topology = inner_topology(mixed, wanted, groups, positive=True)
    topology = topology + group_topology(mixed, wanted, groups, second, detached=True)
    assert_close(topology, golden["loss_TD"], TOLERANCES[dtype].loss)
    alpha = golden.hp("htd_alpha")
    loss = alpha * topology + (1 - alpha) * assignment
    assert_sum(golden, loss, student, dtype)
    assert_module_gradients(golden, modules, dtype)


def htd_pairs(golden: Golden, _: pytest.MonkeyPatch) -> None:
    """The pairs of the entity level are exactly the recorded ones."""
    teacher = torch.cat(htd_vectors(golden.teacher(torch.float64), golden))
    groups = torch.cat([golden["group_user"], golden["group_item"]])
    student = torch.cat(htd_vectors(golden.student(torch.float64), golden)).detach()
    gaps = [normalize(v, dim=1) @ normalize(v, dim=1).t() for v in (student, teacher)]
    squares = (gaps[0] - gaps[1]).square()
    counted = golden["teacher_same_group_positive"]
    found = inner_topology(student, teacher, groups, positive=True)
    assert_close(found, squares[counted].sum(), 1e-9)
    same = groups.unsqueeze(1) == groups
    assert torch.equal(same & (gaps[1] > 0), counted)
    found = inner_topology(student, teacher, groups, positive=False)
    assert_close(found, squares[same].sum(), 1e-9)


def htd_production(golden: Golden, patch: pytest.MonkeyPatch) -> None:
    distiller = golden.world().distiller(
        HTD,
        kd_weight=golden.hp("lmbda"),
        epochs=golden.hp("epochs"),
        htd_experts=golden.hp("htd_num_experts"),
        htd_alpha=golden.hp("htd_alpha"),
        htd_T=golden.hp("htd_T"),
        htd_schedule="annealed",
        htd_pairs="positive",
        htd_prototypes="detached",
        htd_choice="first" if golden.hp("choice_is_first") else "second",
    )
    distiller.begin_epoch(golden["epoch"].item(), 1)
    assert distiller.temperature == pytest.approx(golden["current_T"].item(), rel=1e-12)
    entities = distiller.entities(golden.batch())
    assert torch.equal(entities.users - 1, golden["unique_users"])
    assert torch.equal(entities.items - 1, golden["unique_items"])
    give_noise(patch, htd, [golden["gumbel_user"], golden["gumbel_item"]])
    modules = {f"{side}_f": getattr(distiller, f"{side}_experts") for side in SIDES}
    modules.update({f"{side}_v.0": getattr(distiller, f"{side}_gate") for side in SIDES})
    assert_production(golden, distiller, modules)


# -- Fit --------------------------------------------------------------------------------------


def drawn(tables: tuple[Tensor, Tensor], golden: Golden) -> tuple[Tensor, Tensor]:
    """Vectors of the drawn users, and of the drawn items."""
    return tables[0][golden["drawn_users"]], tables[1][golden["drawn_items"]]


def give_entities(golden: Golden, patch: pytest.MonkeyPatch) -> None:
    """Users and items as recorded, as many as the batch has rows."""
    ids = golden["drawn_users"] + 1, golden["drawn_items"] + 1

    def recorded(_: EmbeddingDistiller, number: int) -> tuple[Tensor, Tensor]:
        assert len(ids[0]) == len(ids[1]) == number
        return ids

    patch.setattr(EmbeddingDistiller, "draw_entities", recorded)


def fit_names(golden: Golden) -> tuple[str, str]:
    """Under which the projectors are recorded."""
    suffix = "" if golden.hp("fit_linear") else ".experts"
    return f"projector_u{suffix}", f"projector_i{suffix}"


def fit_modules(golden: Golden, dtype: torch.dtype) -> Modules:
    width, out = golden["S_user"].shape[1], golden["T_user"].shape[1]
    modules: Modules = {}
    for name in fit_names(golden):
        if golden.hp("fit_linear"):
            modules[name] = nn.Linear(width, out, bias=bool(golden.hp("fit_bias"))).to(dtype)
        else:
            hidden = int(out * golden.hp("hidden_dim_ratio"))
            modules[name] = Experts(width, out, golden.hp("num_experts"), hidden).to(dtype)
    load(golden, modules)
    return modules


def fit_functions(golden: Golden, dtype: torch.dtype) -> None:
    student, modules = golden.student(dtype), fit_modules(golden, dtype)
    pairs = zip(drawn(student, golden), drawn(golden.teacher(dtype), golden), strict=True)
    total = student[0].new_zeros(())
    for side, name, (mine, wanted) in zip(SIDES, fit_names(golden), pairs, strict=True):
        losses = fit_loss(modules[name](mine), wanted, bool(golden.hp("fit_norm")))
        assert losses.shape == mine.shape[:1]
        assert_close(losses.sum(), golden[f"loss_{side}"], TOLERANCES[dtype].loss)
        total = total + losses.sum()
    assert_sum(golden, total, student, dtype)
    assert_module_gradients(golden, modules, dtype)


def fit_production(golden: Golden, patch: pytest.MonkeyPatch) -> None:
    give_entities(golden, patch)
    distiller = golden.world().distiller(
        Fit,
        kd_weight=golden.hp("lmbda"),
        fit_linear=bool(golden.hp("fit_linear")),
        fit_bias=bool(golden.hp("fit_bias")),
        fit_norm=bool(golden.hp("fit_norm")),
        fit_experts=golden.hp("num_experts"),
        fit_hidden_ratio=golden.hp("hidden_dim_ratio"),
        fit_dropout=golden.hp("dropout_rate"),
    )
    distiller.begin_epoch(0, 1)
    projectors = distiller.user_projector, distiller.item_projector
    assert_production(golden, distiller, dict(zip(fit_names(golden), projectors, strict=True)))


# -- VkD --------------------------------------------------------------------------------------


def vkd_functions(golden: Golden, dtype: torch.dtype) -> None:
    student, tolerance = golden.student(dtype), TOLERANCES[dtype]
    center, norm = bool(golden.hp("vkd_center")), bool(golden.hp("vkd_norm"))
    matrices = [golden[f"W_{x}"].to(dtype).requires_grad_() for x in "ui"]
    pairs = zip(drawn(student, golden), drawn(golden.teacher(dtype), golden), strict=True)
    total = student[0].new_zeros(())
    for side, matrix, (mine, wanted) in zip(SIDES, matrices, pairs, strict=True):
        losses = vkd_loss(mine @ matrix.t(), wanted, center, norm)
        assert losses.shape == mine.shape[:1]
        assert_close(losses.sum(), golden[f"loss_{side}"], tolerance.loss)
        total = total + losses.sum()
    assert_sum(golden, total, student, dtype)
    for matrix, name in zip(matrices, "ui", strict=True):
        assert_gradient(matrix.grad, golden[f"grad_W_{name}"], tolerance)


def through_orthogonal(matrix: Tensor, gradient: Tensor) -> Tensor:
    """The gradient by what the QR decomposition is taken of, where that is orthonormal itself.

    Walter, Lehmann and Lamour, "On evaluating higher-order derivatives of the QR decomposition"
    (2012), with R the identity.
    """
    if matrix.shape[0] < matrix.shape[1]:
        return through_orthogonal(matrix.t(), gradient.t()).t()
    product = -gradient.t() @ matrix
    return gradient + matrix @ (product.tril() + product.tril(-1).t())


def projector(matrix: Tensor, dtype: torch.dtype) -> Orthogonal:
    """A projector with a given map."""
    module = Orthogonal(*matrix.t().shape).to(dtype)
    module.raw.data.copy_(matrix)
    return module


def vkd_module(golden: Golden, _: pytest.MonkeyPatch) -> None:
    """The projector gives the recorded maps and takes their gradients."""
    for name in "ui":
        matrix, gradient = golden[f"W_{name}"], golden[f"grad_W_{name}"]
        module = projector(matrix, torch.float64)
        assert_close(module.matrix(), matrix, 1e-9)
        module.matrix().backward(gradient)
        assert_close(module.raw.grad, through_orthogonal(matrix, gradient), 1e-9)


def vkd_orthonormal(golden: Golden, _: pytest.MonkeyPatch) -> None:
    """The map stays orthonormal, and moves, whatever steps are taken and however it decays."""
    student = drawn(golden.student(torch.float32), golden)
    teacher = drawn(golden.teacher(torch.float32), golden)
    for side, name in enumerate("ui"):
        module = projector(golden[f"W_{name}"], torch.float32)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05, weight_decay=0.1)
        for _step in range(30):
            optimizer.zero_grad()
            losses = vkd_loss(module(student[side].detach()), teacher[side], True, False)
            losses.sum().backward()
            optimizer.step()
        matrix = module.matrix().detach()
        small = matrix if matrix.shape[0] < matrix.shape[1] else matrix.t()
        torch.testing.assert_close(small @ small.t(), torch.eye(len(small)), rtol=0, atol=1e-5)
        assert (matrix - golden[f"W_{name}"]).abs().max() > 0.1


def vkd_production(golden: Golden, patch: pytest.MonkeyPatch) -> None:
    give_entities(golden, patch)
    distiller = golden.world().distiller(
        VkD,
        kd_weight=golden.hp("lmbda"),
        vkd_center=bool(golden.hp("vkd_center")),
        vkd_norm=bool(golden.hp("vkd_norm")),
    )
    distiller.begin_epoch(0, 1)
    projectors = {"u": distiller.user_projector, "i": distiller.item_projector}
    for name, module in projectors.items():
        assert module.raw.shape == golden[f"W_{name}"].shape
        module.raw.data.copy_(golden[f"W_{name}"])
    batch = golden.batch()
    assert_step(golden, distiller, distiller.distil(batch))
    for name, module in projectors.items():
        wanted = through_orthogonal(golden[f"W_{name}"], golden[f"grad_W_{name}"])
        gradient = module.raw.grad * len(batch["user_id"])
        assert_gradient(gradient, wanted, TOLERANCES[torch.float32])


# ---------------------------------------------------------------------------------------------


RUNNERS: dict[str, dict[str, Check]] = {
    "de": {
        **in_both_types(de_functions),
        "temperature": de_temperature,
        "production": de_production,
    },
    "htd": {
        **in_both_types(htd_functions),
        "pairs": htd_pairs,
        "production": htd_production,
    },
    "fit": {**in_both_types(fit_functions), "production": fit_production},
    "vkd": {
        **in_both_types(vkd_functions),
        "module": vkd_module,
        "orthonormal": vkd_orthonormal,
        "production": vkd_production,
    },
}


@pytest.mark.parametrize(("path", "check"), cases("embedding", RUNNERS))
def test_golden(path: Path, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    check(Golden(path), monkeypatch)
