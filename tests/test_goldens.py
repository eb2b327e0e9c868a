"""Recorded values of a public reference implementation: losses, gradients, lists and samplers.

Every file ``<prefix>_<name>.npz`` of the folder is checked by the runner of its prefix, with
whatever sizes and hyper-parameters it holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kd_helpers import TinyModel, World, pad
from torch import Tensor

from recbole_kd.candidates import gumbel_top_k, ranks_in
from recbole_kd.history import UserHistory
from recbole_kd.losses import soft_cross_entropy, soft_targets
from recbole_kd.methods import rcekd
from recbole_kd.methods.base import Distiller
from recbole_kd.methods.ce import CE, ce_loss
from recbole_kd.methods.rcekd import (
    RCEKD,
    closure_log_weights,
    rank_log_weights,
    rcekd_loss,
)
from recbole_kd.rows import Rows


def golden_folder() -> Path:
    """The folder of recorded values: a shared folder beside the checkout, or a named one."""
    given = os.environ.get("RECBOLE_KD_SHARED")
    root = Path(given) if given else Path(__file__).resolve().parents[2] / "shared"
    return root / "golden" / "kd"


@dataclass(frozen=True)
class Tolerance:
    """Relative deviations allowed; ``zero_grad`` is absolute, for gradients that vanish."""

    loss: float
    grad: float
    zero_grad: float


TOLERANCES = {
    torch.float64: Tolerance(1e-9, 1e-9, 1e-9),
    torch.float32: Tolerance(1e-5, 1e-4, 1e-5),
}


def dots(users: Tensor, items: Tensor) -> Tensor:
    """Scores of the items ``[B, K, d]`` for the users ``[B, d]``, without the code under test."""
    return (items @ users.unsqueeze(2)).squeeze(2)


class Golden:
    """One file, as tensors."""

    def __init__(self, path: Path):
        self.path = path
        with np.load(path, allow_pickle=False) as content:
            self.arrays = {name: torch.from_numpy(content[name]) for name in content.files}

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def hp(self, name: str) -> Any:
        """A hyper-parameter, as a Python number."""
        return self.arrays[f"hp_{name}"].item()

    @property
    def n_items(self) -> int:
        return len(self["S_item"])

    def student(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The student's tables as leaves that collect a gradient."""
        return tuple(self[n].to(dtype).requires_grad_() for n in ("S_user", "S_item"))

    def teacher_scores(self, users: Tensor, items: Tensor, dtype: torch.dtype) -> Tensor:
        return dots(self["T_user"].to(dtype)[users], self["T_item"].to(dtype)[items])

    def world(self) -> World:
        """The same problem in RecBole's ids, which are larger by 1."""
        pairs = torch.stack([self["batch_users"], self["batch_pos"]], dim=1)
        pairs = torch.cat([self["train_pairs"], pairs]).unique(dim=0) + 1
        n_users, n_items = len(self["S_user"]) + 1, self.n_items + 1
        return World(
            TinyModel(pad(self["S_user"]), pad(self["S_item"])),
            TinyModel(pad(self["T_user"]), pad(self["T_item"])),
            UserHistory.from_pairs(pairs[:, 0], pairs[:, 1], n_users, n_items),
        )

    def batch(self) -> dict[str, Tensor]:
        names = {"user_id": "batch_users", "pos": "batch_pos", "neg": "batch_neg"}
        return {key: self[name] + 1 for key, name in names.items()}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Deviations relative to the largest entry."""
    deviation = (actual.double() - expected.double()).abs().max().item()
    assert actual.shape == expected.shape
    assert deviation <= tolerance * max(expected.abs().max().item(), 1e-300)


def assert_gradients(golden: Golden, gradients: list[Tensor], tolerance: Tolerance) -> None:
    for name, gradient in zip(("grad_S_user", "grad_S_item"), gradients, strict=True):
        if golden[name].abs().max() < 1e-9:
            assert gradient.abs().max() <= tolerance.zero_grad
        else:
            assert_close(gradient, golden[name], tolerance.grad)


# -- RCE-KD -----------------------------------------------------------------------------------


@dataclass
class RCEKDTerms:
    """Everything of the loss, a row a user."""

    in_sample: Tensor
    in_student: Tensor
    overlap: Tensor
    g: Tensor
    first: Tensor
    second: Tensor
    losses: Tensor


def rcekd_terms(golden: Golden, users: Tensor, student: tuple[Tensor, Tensor]) -> RCEKDTerms:
    """Recorded sets through the pure functions."""
    dtype = student[0].dtype
    k, tau = golden.hp("mkd_K"), golden.hp("mkd_tau")
    teacher_items, sample = golden["T_topk"][users], golden["sampled_items"][users]
    student_items = golden["S_topmx"][users, :k]
    in_sample = ranks_in(sample, teacher_items, golden.n_items) < sample.shape[1]
    in_student = ranks_in(student_items, teacher_items, golden.n_items) < k
    items = torch.cat([student_items, sample, teacher_items], dim=1)
    drop = torch.cat([torch.zeros_like(sample, dtype=torch.bool), in_sample | in_student], dim=1)
    teacher = golden.teacher_scores(users, items, dtype)
    p, q = soft_targets(teacher[:, :k], tau), soft_targets(teacher[:, k:], tau, drop)
    scores = dots(student[0][users], student[1][items])
    overlap = in_sample.to(dtype).mean(1)
    g = torch.exp(-golden.hp("mkd_beta") * overlap)
    return RCEKDTerms(
        in_sample,
        in_student,
        overlap,
        g,
        soft_cross_entropy(scores[:, :k], p, tau),
        soft_cross_entropy(scores[:, k:], q, tau, drop),
        rcekd_loss(scores[:, :k], scores[:, k:], p, q, drop, g, tau),
    )


def rcekd_functions(golden: Golden, dtype: torch.dtype) -> None:
    tolerance = TOLERANCES[dtype]
    student = golden.student(dtype)
    terms = rcekd_terms(golden, golden["batch_users"], student)
    assert torch.equal(terms.in_sample, golden["T_in_sampled"])
    assert torch.equal(terms.in_student, golden["T_in_S_topk"])
    recorded = {
        "overlap": terms.overlap,
        "w": terms.g,
        "loss_first_term": terms.first,
        "loss_second_term": terms.second,
        "loss_per_row": terms.losses,
    }
    for name, values in recorded.items():
        assert values.dtype == dtype
        assert_close(values, golden[name], tolerance.loss)
    total = terms.losses.sum()
    assert_close(total, golden["loss"], tolerance.loss)
    assert_gradients(golden, list(torch.autograd.grad(total, student)), tolerance)


def rcekd_counted_rows(golden: Golden, _: pytest.MonkeyPatch) -> None:
    """Unique users with counts stand for repeated rows."""
    users, counts = golden["batch_users"].unique(return_counts=True)
    student = golden.student(torch.float64)
    total = (rcekd_terms(golden, users, student).losses * counts).sum()
    assert_close(total, golden["loss"], 1e-9)
    gradients = torch.autograd.grad(total, student)
    assert_gradients(golden, list(gradients), TOLERANCES[torch.float64])


def rcekd_log_weights(golden: Golden) -> Tensor:
    lists, teacher_items = golden["S_topmx"], golden["T_topk"]
    length, temperature = golden.hp("mkd_mxK"), golden.hp("mkd_T")
    if golden.hp("sample_rank"):
        return rank_log_weights(len(lists), length, temperature)
    ranks = ranks_in(lists, teacher_items, golden.n_items)
    return closure_log_weights(ranks, length, golden.hp("mkd_K"), temperature, 50, "topk")


def assert_log_weights(log_weights: Tensor, golden: Golden, users: Tensor) -> None:
    """Log-weights are float32, but are whole numbers over T: those are compared exactly."""
    temperature = golden.hp("mkd_T")
    steps = log_weights.double() * temperature
    assert (steps - steps.round()).abs().max() < 1e-3
    recorded = golden["sample_weights"][users].log()
    known = recorded.isfinite()  # a weight may be too small even for float64
    difference = steps.round() / temperature - recorded
    assert (difference - difference[:, :1])[known].abs().max() < 1e-9
    difference = log_weights.double() - recorded
    rounding = 1e-6 * (1 + log_weights.abs().max())
    assert (difference - difference[:, :1])[known].abs().max() < rounding


def rcekd_weights(golden: Golden, _: pytest.MonkeyPatch) -> None:
    everyone = torch.arange(len(golden["S_topmx"]))
    assert_log_weights(rcekd_log_weights(golden), golden, everyone)


def rcekd_frequencies(golden: Golden, _: pytest.MonkeyPatch) -> None:
    """Inclusion frequencies of the sampler against the recorded ones of 4000 draws."""
    draws, size = 4000, golden.hp("mkd_L")
    log_weights = rcekd_log_weights(golden)
    generator = torch.Generator().manual_seed(11)
    hits = torch.zeros(log_weights.shape, dtype=torch.float64)
    for _ in range(10):
        many = log_weights.repeat(draws // 10, 1)
        drawn = torch.zeros(many.shape, dtype=torch.bool)
        noise = torch.empty(many.shape).exponential_(generator=generator)
        drawn.scatter_(1, gumbel_top_k(many, size, noise), True)
        hits += drawn.view(-1, *log_weights.shape).double().sum(0)
    found, recorded = hits / draws, golden["inclusion_freq"]
    assert torch.allclose(found.sum(1), torch.full((len(found),), float(size), dtype=found.dtype))
    p = ((found + recorded) / 2).clamp(1 / 8000, 1 - 1 / 8000)
    z = (found - recorded) / (p * (1 - p) * (1 / draws + 1 / 4000)).sqrt()
    assert z.abs().max() < 5.2
    # A shift of all lists would hide in single entries. The items drawn from the upper half of a
    # list have a variance of at most a quarter each.
    upper = slice(0, log_weights.shape[1] // 2)
    shift = (found - recorded)[:, upper].sum(1).mean().abs()
    assert shift < 5 * np.sqrt(size / 4 * (1 / draws + 1 / 4000) / len(found))


def rcekd_distiller(golden: Golden, patch: pytest.MonkeyPatch, rows_a_chunk: int) -> RCEKD:
    """A refreshed distiller whose sampler gives the recorded positions."""
    world = golden.world()
    distiller = world.distiller(
        RCEKD,
        kd_weight=golden.hp("lmbda"),
        kd_rows="interaction",
        memory_budget_gb=rows_a_chunk * 16 * (golden.n_items + 1) / 2**30,
        rcekd_K=golden.hp("mkd_K"),
        rcekd_L=golden.hp("mkd_L"),
        rcekd_M=golden.hp("mkd_mxK"),
        rcekd_tau=golden.hp("mkd_tau"),
        rcekd_T=golden.hp("mkd_T"),
        rcekd_beta=golden.hp("mkd_beta"),
        rcekd_sampling="rank" if golden.hp("sample_rank") else "closure",
    )
    waiting = list((distiller.users - 1).split(rows_a_chunk))

    def recorded_draws(log_weights: Tensor, k: int, noise: Tensor) -> Tensor:
        users = waiting.pop(0)
        assert_log_weights(log_weights, golden, users)
        assert k == golden.hp("mkd_L")
        return golden["sample_pos"][users]

    patch.setattr(rcekd, "gumbel_top_k", recorded_draws)
    distiller.begin_epoch(0, 1)
    assert not waiting
    return distiller


def rcekd_tables(golden: Golden, patch: pytest.MonkeyPatch) -> None:
    distiller = rcekd_distiller(golden, patch, rows_a_chunk=5)
    tables, users = distiller.tables(), distiller.users - 1
    k, size, tau = golden.hp("mkd_K"), golden.hp("mkd_L"), golden.hp("mkd_tau")
    items = tables["items"][distiller.users].long() - 1
    assert torch.equal(items[:, :k], golden["S_topmx"][users, :k])
    assert torch.equal(items[:, k : k + size], golden["sampled_items"][users])
    assert torch.equal(items[:, k + size :], golden["T_topk"][users])
    terms = rcekd_terms(golden, users, golden.student(torch.float64))
    drop = terms.in_sample | terms.in_student
    assert torch.equal(tables["drop"][distiller.users], drop)
    batch_drop = golden["T_in_sampled"] | golden["T_in_S_topk"]
    assert torch.equal(tables["drop"][golden["batch_users"] + 1], batch_drop)
    assert_close(tables["g"][golden["batch_users"] + 1], golden["w"], 1e-6)
    teacher = golden.teacher_scores(users, items, torch.float64)
    assert_close(tables["p"][distiller.users], soft_targets(teacher[:, :k], tau), 1e-4)
    closed = torch.cat([torch.zeros_like(items[:, :size], dtype=torch.bool), drop], dim=1)
    assert_close(tables["q"][distiller.users], soft_targets(teacher[:, k:], tau, closed), 1e-4)


def rcekd_production(golden: Golden, patch: pytest.MonkeyPatch) -> None:
    assert_production(golden, rcekd_distiller(golden, patch, rows_a_chunk=7))


def assert_production(golden: Golden, distiller: Distiller) -> None:
    """The distiller's mean loss times its rows is the recorded sum; the same for gradients."""
    tolerance, batch = TOLERANCES[torch.float32], golden.batch()
    n_rows = len(batch["user_id"])
    rows = distiller.rows.next(batch["user_id"])
    users, counts = batch["user_id"].unique(return_counts=True)
    assert torch.equal(rows.users, users)
    assert torch.equal(rows.weights, counts.float())
    loss = distiller.kd_loss(rows)
    assert_close(loss * n_rows, golden["loss"], tolerance.loss)
    loss.backward()
    student = distiller.student
    gradients = [student.user_embedding.weight.grad, student.item_embedding.weight.grad]
    assert not any(gradient[0].any() for gradient in gradients)
    assert_gradients(golden, [gradient[1:] * n_rows for gradient in gradients], tolerance)
    repeated = distiller.kd_loss(Rows(batch["user_id"], torch.ones(n_rows)))
    assert_close(repeated, loss.detach(), 1e-5)
    base, weighted = distiller.calculate_loss(batch)
    assert_close(base * n_rows, golden["base_loss"], tolerance.loss)
    assert_close((base + weighted) * n_rows, golden["total_loss"], tolerance.loss)


# -- KD: one cross-entropy over a top-K -------------------------------------------------------


def kd_functions(golden: Golden, dtype: torch.dtype) -> None:
    tolerance, users = TOLERANCES[dtype], golden["batch_users"]
    student, items = golden.student(dtype), golden["topk"][users]
    scores = dots(student[0][users], student[1][items])
    losses = ce_loss(scores, golden.teacher_scores(users, items, dtype), golden.hp("kd_tau"))
    assert losses.dtype == dtype
    assert_close(losses, golden["loss_per_row"], tolerance.loss)
    assert_close(losses.sum(), golden["loss"], tolerance.loss)
    assert_gradients(golden, list(torch.autograd.grad(losses.sum(), student)), tolerance)


def kd_production(golden: Golden, _: pytest.MonkeyPatch) -> None:
    distiller = golden.world().distiller(
        CE,
        kd_weight=golden.hp("lmbda"),
        kd_rows="interaction",
        ce_guide="student" if golden.hp("guide_is_student") else "teacher",
        ce_K=golden.hp("kd_K"),
        ce_tau=golden.hp("kd_tau"),
    )
    distiller.begin_epoch(0, 1)
    tables, users = distiller.tables(), distiller.users - 1
    items = tables["items"][distiller.users].long() - 1
    assert torch.equal(items, golden["topk"][users])
    teacher = golden.teacher_scores(users, items, torch.float64)
    targets = soft_targets(teacher, golden.hp("kd_tau"))
    assert_close(tables["targets"][distiller.users], targets, 1e-4)
    assert_production(golden, distiller)


# -- discovery --------------------------------------------------------------------------------

Check = Callable[[Golden, pytest.MonkeyPatch], None]


def in_dtype(check: Callable[[Golden, torch.dtype], None], dtype: torch.dtype) -> Check:
    return lambda golden, _: check(golden, dtype)


RUNNERS: dict[str, dict[str, Check]] = {
    "rcekd": {
        "float64": in_dtype(rcekd_functions, torch.float64),
        "float32": in_dtype(rcekd_functions, torch.float32),
        "counted-rows": rcekd_counted_rows,
        "weights": rcekd_weights,
        "frequencies": rcekd_frequencies,
        "tables": rcekd_tables,
        "production": rcekd_production,
    },
    "kd": {
        "float64": in_dtype(kd_functions, torch.float64),
        "float32": in_dtype(kd_functions, torch.float32),
        "production": kd_production,
    },
}


def cases() -> list[Any]:
    """A case a file and check; one that says why, where there is no file or no runner."""
    found: list[Any] = []
    for path in sorted(golden_folder().glob("*.npz")):
        prefix = path.stem.partition("_")[0]
        for name, check in RUNNERS.get(prefix, {}).items():
            found.append(pytest.param(path, check, id=f"{path.stem}-{name}"))
        if prefix not in RUNNERS:
            reason = f"no runner for golden values of '{prefix}'"
            skip = pytest.mark.skip(reason=reason)
            found.append(pytest.param(path, None, id=path.stem, marks=skip))
    if not found:
        reason = f"no golden values in {golden_folder()}; set RECBOLE_KD_SHARED"
        found.append(pytest.param(None, None, id="none", marks=pytest.mark.skip(reason=reason)))
    return found


@pytest.mark.parametrize(("path", "check"), cases())
def test_golden(path: Path, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    check(Golden(path), monkeypatch)
