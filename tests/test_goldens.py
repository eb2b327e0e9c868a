"""Recorded values of a public reference implementation: RCE-KD, and one cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from golden import (
    TOLERANCES,
    Check,
    Golden,
    assert_close,
    assert_gradients,
    assert_inclusion,
    assert_losses,
    assert_production,
    assert_same_up_to_a_constant,
    cases,
    dots,
    in_both_types,
)
from torch import Tensor

from recbole_kd.candidates import rank_log_weights, ranks_in
from recbole_kd.closure import closure_log_weights
from recbole_kd.losses import soft_cross_entropy, soft_targets
from recbole_kd.methods import rcekd
from recbole_kd.methods.ce import CE, ce_loss
from recbole_kd.methods.rcekd import RCEKD, rcekd_loss

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
        return rank_log_weights(length, temperature).expand(len(lists), -1)
    ranks = ranks_in(lists, teacher_items, golden.n_items)
    return closure_log_weights(ranks, length, golden.hp("mkd_K"), temperature, 50, "topk")


def assert_log_weights(log_weights: Tensor, golden: Golden, users: Tensor) -> None:
    """Log-weights are float32, but are whole numbers over T: those are compared exactly."""
    temperature = golden.hp("mkd_T")
    steps = log_weights.double() * temperature
    assert (steps - steps.round()).abs().max() < 1e-3
    recorded = golden["sample_weights"][users].log()  # may be too small even for float64
    assert_same_up_to_a_constant(steps.round() / temperature, recorded, 1e-9)
    rounding = 1e-6 * (1 + log_weights.abs().max().item())
    assert_same_up_to_a_constant(log_weights, recorded, rounding)


def rcekd_weights(golden: Golden, _: pytest.MonkeyPatch) -> None:
    everyone = torch.arange(len(golden["S_topmx"]))
    assert_log_weights(rcekd_log_weights(golden), golden, everyone)


def rcekd_frequencies(golden: Golden, _: pytest.MonkeyPatch) -> None:
    assert_inclusion(rcekd_log_weights(golden), golden.hp("mkd_L"), golden["inclusion_freq"])


def rcekd_distiller(golden: Golden, patch: pytest.MonkeyPatch, rows_a_chunk: int) -> RCEKD:
    """A refreshed distiller whose sampler gives the recorded positions."""
    world = golden.world()
    distiller = world.distiller(
        RCEKD,
        kd_weight=golden.hp("lmbda"),
        kd_rows="interaction",
        memory_budget_gb=golden.chunk_budget(rows_a_chunk),
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


# -- KD: one cross-entropy over a top-K -------------------------------------------------------


def kd_functions(golden: Golden, dtype: torch.dtype) -> None:
    users = golden["batch_users"]
    student, items = golden.student(dtype), golden["topk"][users]
    scores = dots(student[0][users], student[1][items])
    losses = ce_loss(scores, golden.teacher_scores(users, items, dtype), golden.hp("kd_tau"))
    assert_losses(golden, losses, student, dtype)


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


RUNNERS: dict[str, dict[str, Check]] = {
    "rcekd": {
        **in_both_types(rcekd_functions),
        "counted-rows": rcekd_counted_rows,
        "weights": rcekd_weights,
        "frequencies": rcekd_frequencies,
        "tables": rcekd_tables,
        "production": rcekd_production,
    },
    "kd": {**in_both_types(kd_functions), "production": kd_production},
}


@pytest.mark.parametrize(("path", "check"), cases("lists", RUNNERS))
def test_golden(path: Path, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    check(Golden(path), monkeypatch)
