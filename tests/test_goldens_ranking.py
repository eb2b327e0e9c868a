"""Recorded values of a public reference implementation: RD, CD, RRD, DCD, UnKD and HetComp."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import (
    TOLERANCES,
    Check,
    Golden,
    Tolerance,
    Where,
    assert_close,
    assert_frequencies,
    assert_inclusion,
    assert_losses,
    assert_production,
    assert_same_up_to_a_constant,
    cases,
    dots,
    in_both_types,
    in_dtype,
)
from kd_helpers import TinyModel, pad
from torch import Tensor

from recbole_kd.candidates import (
    distinct_outside,
    geometric_positions,
    gumbel_top_k,
    rank_log_weights,
    ranks_in,
    sorted_distinct,
)
from recbole_kd.curriculum import discrepancy, moves_on
from recbole_kd.losses import relaxed_ranking
from recbole_kd.methods import dcd, rrd
from recbole_kd.methods.base import Distiller
from recbole_kd.methods.cd import CD, cd_loss, soft_labels, tournament
from recbole_kd.methods.ce import ce_loss
from recbole_kd.methods.dcd import DCD, correction_log_weights
from recbole_kd.methods.hetcomp import HetComp, overall_loss, rank_loss
from recbole_kd.methods.rd import RD, dynamic_weights, position_weights, rd_loss
from recbole_kd.methods.rrd import RRD
from recbole_kd.methods.unkd import SCALE, UnKD, unkd_loss
from recbole_kd.popularity import group_pairs, popularity_groups, popularity_order

FLOOR = 1e-10
"""What the reference adds inside logarithms."""


def student_scores(student: tuple[Tensor, Tensor], users: Tensor, items: Tensor) -> Tensor:
    """Scores of each row's items, ``[B, K]``."""
    return dots(student[0][users], student[1][items])


# -- random numbers with which the samplers give what was recorded ----------------------------


def feed(
    patch: pytest.MonkeyPatch,
    method: type[Distiller],
    source: str,
    draws: Callable[..., Tensor],
) -> None:
    """Replace a method's random numbers: ``draws(users, width, *more)``, users counted from 0."""

    def given(_: Distiller, users: Tensor, width: int, epoch: int, *more: int) -> Tensor:
        drawn = draws(users - 1, width, *more)
        assert drawn.shape == (len(users), width)
        return drawn

    patch.setattr(method, source, given)


def uniform_for(allowed: Tensor, items: Tensor) -> Tensor:
    """Uniform draws that pick the items, one of the allowed by its rank: ``[U, n]``."""
    assert allowed.gather(1, items).all()
    ranks = allowed.cumsum(1).gather(1, items) - 1
    return (ranks + 0.5) / allowed.sum(1, keepdim=True).double()


def uniform_for_positions(positions: Tensor, lengths: Tensor, scale: Tensor | float) -> Tensor:
    """Uniform draws that pick positions whose weights are ``exp(-r / scale)``."""
    assert (positions < lengths).all()
    within = torch.expm1(-(positions.double() + 0.5) / scale)
    return within / torch.expm1(-lengths.double() / scale)


def noise_for(log_weights: Tensor, drawn: Tensor) -> Tensor:
    """Exponential draws with which the positions ``[U, k]`` come first, in this order."""
    k = drawn.shape[1]
    wins = 50 + torch.arange(k, 0, -1, dtype=torch.float64)
    best = log_weights.amax(1, keepdim=True)
    least = (log_weights.double().gather(1, drawn) - best - wins).exp()
    return torch.ones(log_weights.shape, dtype=torch.float64).scatter(1, drawn, least)


def spread(table: Tensor, width: int) -> Tensor:
    """Each row's draws, filled up with repeats of its first."""
    return torch.cat([table, table[:, :1].expand(-1, width - table.shape[1])], dim=1)


def geometric_law(length: int, scale: float) -> Tensor:
    """The probabilities of ``geometric_positions``, from the draws at which a position begins."""
    targets = torch.arange(1, length)
    low, high = (torch.full((length - 1,), x, dtype=torch.float64) for x in (0.0, 1.0))
    for _ in range(60):
        middle = (low + high) / 2
        reached = geometric_positions(middle, torch.tensor(length), scale) >= targets
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return torch.cat([ends[:1], high, ends[1:]]).diff()


# -- RD ---------------------------------------------------------------------------------------


def rd_is_dynamic(golden: Golden) -> bool:
    return golden["epoch"].item() >= golden.hp("rd_start_epoch")


def rd_functions(golden: Golden, dtype: torch.dtype) -> None:
    users, student = golden["batch_users"], golden.student(dtype)
    scores = student_scores(student, users, golden["T_topk"][users])
    assert_losses(golden, rd_loss(scores, golden["weights"].to(dtype)), student, dtype)


def rd_weights(golden: Golden, dtype: torch.dtype) -> None:
    """Weights from the recorded static ones, as precise as the scores they are made of."""
    users, student = golden["batch_users"], [t.detach() for t in golden.student(dtype)]
    # All scores at once: an item's score is the same number in both sets.
    everything = student[0][users] @ student[1].t()
    scores = everything.gather(1, golden["T_topk"][users])
    sampled = everything.gather(1, golden["dynamic_samples"][users])
    static, mu = golden["static_weights"].to(dtype), golden.hp("rd_mu")
    weights = dynamic_weights(static, scores, sampled, golden.n_items, mu, 1)
    assert weights.dtype == dtype
    assert_close(weights, golden["weights"], TOLERANCES[dtype].loss)


def rd_static(golden: Golden, _: pytest.MonkeyPatch) -> None:
    weights = position_weights(golden.hp("rd_topk"), golden.hp("rd_T"))
    assert_close(weights, golden["static_weights"], 1e-9)


def rd_sampler(golden: Golden, _: pytest.MonkeyPatch) -> None:
    """Exactly the recorded candidates are drawn, each as often."""
    mask, draws = golden["candidate_mask"], 20_000
    distiller = golden.world().distiller(RD, rd_K=golden.hp("rd_topk"), rd_samples=draws)
    distiller.begin_epoch(0, 1)
    drawn = distiller.tables()["sampled"][1:].long() - 1
    counts = torch.zeros(mask.shape, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
    assert torch.equal(counts > 0, mask)
    assert_frequencies(
        (counts / draws)[mask], draws, (mask / mask.sum(1, keepdim=True))[mask].double()
    )


def rd_production(golden: Golden, patch: pytest.MonkeyPatch) -> None:
    table = uniform_for(golden["candidate_mask"], golden["dynamic_samples"])
    feed(patch, RD, "uniform", lambda users, width: table[users])
    distiller = golden.world().distiller(
        RD,
        kd_weight=golden.hp("lmbda"),
        kd_rows="interaction",
        rd_K=golden.hp("rd_topk"),
        rd_T=golden.hp("rd_T"),
        rd_mu=golden.hp("rd_mu"),
        rd_samples=golden.hp("rd_dynamic_sample"),
        rd_start_epoch=golden.hp("rd_start_epoch"),
        rd_ranks="released",
    )
    distiller.begin_epoch(golden["epoch"].item(), 1)
    top = distiller.teacher.top_k(golden.hp("rd_topk"), mask_train=True)[0]
    assert torch.equal(top[1:].long() - 1, golden["T_topk"])
    assert torch.equal(distiller.tables()["sampled"][1:].long() - 1, golden["dynamic_samples"])
    assert_production(golden, distiller)


# -- CD ---------------------------------------------------------------------------------------


def cd_tolerance(golden: Golden, dtype: torch.dtype, scores: Tensor) -> Tolerance:
    """The reference rounds ``1 - sigmoid(s)``, which in float64 shows for scores above 15."""
    tolerance = TOLERANCES[dtype]
    rounding = 2**-52 / (torch.sigmoid(-scores.max().double()).item() + FLOOR)
    loss, grad = (max(x, rounding) for x in (tolerance.loss, tolerance.grad))
    return Tolerance(loss, grad, tolerance.zero_grad)


def cd_functions(golden: Golden, dtype: torch.dtype) -> None:
    users, student = golden["batch_users"], golden.student(dtype)
    items = golden["rank_samples"][users]
    scores = student_scores(student, users, items)
    teacher = golden.teacher_scores(users, items, dtype)
    targets = soft_labels(teacher, golden.hp("cd_t1"), golden.hp("cd_t2"))
    losses = cd_loss(scores, targets, FLOOR)
    assert_losses(golden, losses, student, dtype, cd_tolerance(golden, dtype, scores.detach()))


def cd_law(golden: Golden, _: pytest.MonkeyPatch) -> None:
    length, temperature = golden.hp("cd_sample_num"), golden.hp("cd_T")
    law = geometric_law(length, length * temperature)
    weights = golden["draw_weights"]
    assert_close(law, weights / weights.sum(), 1e-9)
    later = law.sum() - law.cumsum(0)
    assert_close(law**2 + 2 * law * later, golden["pick_prob"], 1e-9)


def cd_frequencies(golden: Golden, _: pytest.MonkeyPatch) -> None:
    """Picks of the sampler against the exact law and against the reference's picks."""
    length, rows, picks = golden.hp("cd_sample_num"), 2000, 200
    generator = torch.Generator().manual_seed(12)
    uniform = torch.rand(rows, picks, 2, generator=generator, dtype=torch.float64)
    drawn = tournament(uniform, torch.full((rows,), length), golden.hp("cd_T"))
    draws = rows * picks
    found = drawn.flatten().bincount(minlength=length).double() / draws
    assert_frequencies(found, draws, golden["pick_prob"])
    recorded = golden["ref_pick_lists"].item() * golden.hp("cd_n_distill")
    assert golden["ref_pick_count"].sum() == recorded
    assert_frequencies(found, draws, golden["ref_pick_count"] / recorded, recorded)


def cd_repeats(golden: Golden, _: pytest.MonkeyPatch) -> None:
    """As many lists with an item twice as the reference has."""
    length, rows = golden.hp("cd_sample_num"), 20_000
    generator = torch.Generator().manual_seed(13)
    shape = rows, golden.hp("cd_n_distill"), 2
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    drawn = tournament(uniform, torch.full((rows,), length), golden.hp("cd_T")).sort(1).values
    found = (drawn[:, 1:] == drawn[:, :-1]).any(1).double().mean()
    lists = golden["ref_pick_lists"].item()
    assert_frequencies(found, rows, golden["ref_lists_with_repeats"] / lists, lists)


def cd_uniform(golden: Golden) -> Tensor:
    """Draws that give the recorded items, ``[U, n]`` or one for both sides of a tournament."""
    items = golden["rank_samples"]
    if not golden.hp("strategy"):
        return uniform_for(torch.ones(golden.n_users, golden.n_items, dtype=torch.bool), items)
    lists = golden["rank_items"]
    positions = ranks_in(lists, items, golden.n_items)
    scale = golden.hp("cd_sample_num") * golden.hp("cd_T")
    uniform = uniform_for_positions(positions, torch.tensor(lists.shape[1]), scale)
    return uniform.repeat_interleave(2, dim=1)


def cd_production(golden: Golden, patch: pytest.MonkeyPatch) -> None:
    table = cd_uniform(golden)
    feed(patch, CD, "uniform", lambda users, width: table[users])
    distiller = golden.world().distiller(
        CD,
        kd_weight=golden.hp("lmbda"),
        kd_rows="interaction",
        memory_budget_gb=golden.chunk_budget(7),
        cd_guide=("random", "student", "teacher")[golden.hp("strategy")],
        cd_M=golden.hp("cd_sample_num"),
        cd_T=golden.hp("cd_T"),
        cd_n=golden.hp("cd_n_distill"),
        cd_t1=golden.hp("cd_t1"),
        cd_t2=golden.hp("cd_t2"),
        cd_floor=FLOOR,
    )
    distiller.begin_epoch(0, 1)
    everyone = torch.arange(golden.n_users)
    items = distiller.items[1:].long() - 1
    assert torch.equal(items, golden["rank_samples"])
    teacher = golden.teacher_scores(everyone, items, torch.float64)
    wanted = soft_labels(teacher, golden.hp("cd_t1"), golden.hp("cd_t2"))
    assert_close(distiller.targets[1:], wanted, 1e-5)
    assert_production(golden, distiller)


def cd_lists(golden: Golden, _: pytest.MonkeyPatch) -> None:
    """The ranking that the sampler goes by."""
    distiller = golden.world().distiller(CD, memory_budget_gb=golden.chunk_budget(5))
    of = distiller.student_lists if golden.hp("strategy") == 1 else distiller.teacher_lists
    with distiller.ranking_mode():
        lists = torch.cat([items for _, items in of(golden.hp("cd_sample_num"), mask_train=True)])
    assert torch.equal(lists - 1, golden["rank_items"])


# -- RRD --------------------------------------------------------------------------------------


def rrd_functions(golden: Golden, dtype: torch.dtype) -> None:
    users, student = golden["row_users"], golden.student(dtype)
    listed, others = (
        student_scores(student, users, golden[name][users])
        for name in ("interesting_items", "uninteresting_items")
    )
    assert_losses(golden, relaxed_ranking(listed, others, 80.0), student, dtype)


def rrd_log_weights(golden: Golden) -> Tensor:
    lists, temperature = golden["T_topmx"], golden.hp("rrd_T")
    if golden.hp("sample_from_score"):
        everyone = torch.arange(golden.n_users)
        return golden.teacher_scores(everyone, lists, torch.float32) / temperature
    return rank_log_weights(golden.hp("rrd_mxK"), temperature).expand(len(lists), -1)


def assert_rrd_weights(log_weights: Tensor, golden: Golden) -> None:
    rounding = 1e-6 * (1 + log_weights.abs().max().item())
    assert_same_up_to_a_constant(log_weights, golden["sample_weights"].log(), rounding)


def rrd_weights(golden: Golden, _: pytest.MonkeyPatch) -> None:
    assert_rrd_weights(rrd_log_weights(golden), golden)


def rrd_frequencies(golden: Golden, _: pytest.MonkeyPatch) -> None:
    assert_inclusion(rrd_log_weights(golden), golden.hp("rrd_K"), golden["inclusion_freq"])


def rrd_uninteresting(golden: Golden, _: pytest.MonkeyPatch) -> None:
    """Distinct items of exactly the recorded set, each as often."""
    mask, size, draws = golden["uninteresting_mask"], golden.hp("rrd_L"), 1000
    excluded = [(~row).nonzero().squeeze(1) for row in mask]
    table = torch.nn.utils.rnn.pad_sequence(excluded, batch_first=True, padding_value=-1)
    table = torch.where(table < 0, table[:, :1], table).repeat_interleave(draws, dim=0)
    generator = torch.Generator().manual_seed(14)

    def uniform(rows: Tensor, width: int) -> Tensor:
        return torch.rand(len(rows), width, generator=generator, dtype=torch.float64)

    table = sorted_distinct(table, golden.n_items)
    drawn = distinct_outside(uniform, table, size, golden.n_items)
    hits = torch.zeros(len(drawn), golden.n_items, dtype=torch.float64).scatter(1, drawn, 1.0)
    assert (hits.sum(1) == size).all()
    found = hits.view(len(mask), draws, -1).mean(1)
    assert torch.equal(found > 0, mask)
    expected = (size / mask.sum(1, keepdim=True)).expand(mask.shape)
    assert_frequencies(found[mask], draws, expected[mask].double())


def rrd_production(golden: Golden, patch: pytest.MonkeyPatch) -> None:
    noise = noise_for(rrd_log_weights(golden), golden["sample_pos"])
    uniform = uniform_for(golden["uninteresting_mask"], golden["uninteresting_items"])
    feed(patch, RRD, "noise", lambda users, width: noise[users])
    feed(patch, RRD, "uniform", lambda users, width, _: spread(uniform[users], width))

    def watched(log_weights: Tensor, k: int, draws: Tensor, ordered: bool = False) -> Tensor:
        assert_rrd_weights(log_weights, golden)
        assert k == golden.hp("rrd_K")
        return gumbel_top_k(log_weights, k, draws, ordered)

    patch.setattr(rrd, "gumbel_top_k", watched)
    distiller = golden.world().distiller(
        RRD,
        kd_weight=golden.hp("lmbda"),
        kd_rows="unique",
        rrd_K=golden.hp("rrd_K"),
        rrd_L=golden.hp("rrd_L"),
        rrd_M=golden.hp("rrd_mxK"),
        rrd_T=golden.hp("rrd_T"),
        rrd_weights="score" if golden.hp("sample_from_score") else "rank",
        rrd_sort=not golden.hp("no_sort"),
        rrd_clamp=80,
    )
    distiller.begin_epoch(0, 1)
    top = distiller.teacher.top_k(golden.hp("rrd_mxK"), mask_train=True)[0]
    assert torch.equal(top[1:].long() - 1, golden["T_topmx"])
    items = distiller.tables()["items"][1:].long() - 1
    assert torch.equal(items[:, : golden.hp("rrd_K")], golden["interesting_items"])
    assert torch.equal(items[:, golden.hp("rrd_K") :], golden["uninteresting_items"])
    assert_production(golden, distiller)


# -- DCD --------------------------------------------------------------------------------------


def dcd_functions(golden: Golden, dtype: torch.dtype) -> None:
    users, student = golden["row_users"], golden.student(dtype)
    items = torch.cat([golden["under_items"], golden["over_items"]], dim=1)
    scores, k = student_scores(student, users, items[users]), golden.hp("dcd_K")
    if golden.hp("ablation"):
        teacher = golden.teacher_scores(users, items[users], dtype)
        losses = ce_loss(scores, teacher, golden.hp("dcd_tau"))
    else:
        losses = relaxed_ranking(scores[:, :k], scores[:, k:], 80.0)
    assert_losses(golden, losses, student, dtype)


def dcd_weights(golden: Golden, _: pytest.MonkeyPatch) -> None:
    found = correction_log_weights(golden["S_rank_of_T_topmx"], golden.hp("dcd_T"))
    for log_weights, side in zip(found, ("under", "over"), strict=True):
        assert_close(log_weights.exp(), golden[f"{side}_weights"], 1e-9)


def dcd_frequencies(golden: Golden, _: pytest.MonkeyPatch) -> None:
    found = correction_log_weights(golden["S_rank_of_T_topmx"], golden.hp("dcd_T"))
    for log_weights, side in zip(found, ("under", "over"), strict=True):
        assert_inclusion(log_weights, golden.hp("dcd_K"), golden[f"{side}_inclusion_freq"])


def dcd_production(golden: Golden, patch: pytest.MonkeyPatch) -> None:
    sides, seen = ("under", "over"), []
    noise = {
        part: noise_for(golden[f"{side}_weights"].log(), golden[f"{side}_pos"])
        for part, side in zip((0, 2), sides, strict=True)
    }
    feed(patch, DCD, "noise", lambda users, width, part: noise[part][users])

    def watched(ranks: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        seen.append(ranks)
        return correction_log_weights(ranks, temperature)

    patch.setattr(dcd, "correction_log_weights", watched)
    distiller = golden.world().distiller(
        DCD,
        kd_weight=golden.hp("lmbda"),
        kd_rows="unique",
        memory_budget_gb=golden.chunk_budget(7),
        dcd_K=golden.hp("dcd_K"),
        dcd_M=golden.hp("dcd_mxK"),
        dcd_T=golden.hp("dcd_T"),
        dcd_tau=golden.hp("dcd_tau"),
        dcd_rank="all",
        dcd_sort=False,
        dcd_clamp=80,
        dcd_loss="ce" if golden.hp("ablation") else "ranking",
    )
    distiller.begin_epoch(0, 1)
    top = distiller.teacher.top_k(golden.hp("dcd_mxK"), mask_train=True)[0]
    assert torch.equal(top[1:].long() - 1, golden["T_topmx"])
    # The student's list may end before all items; its length then stands for what lies beyond.
    ranks = torch.cat(seen)
    assert torch.equal(ranks, golden["S_rank_of_T_topmx"].clamp_max(ranks.max()))
    found = correction_log_weights(ranks, golden.hp("dcd_T"))
    for log_weights, side in zip(found, sides, strict=True):
        assert_close(log_weights.exp(), golden[f"{side}_weights"], 1e-8)
    items = distiller.tables()["corrections"][1:].long() - 1
    assert torch.equal(items[:, : golden.hp("dcd_K")], golden["under_items"])
    assert torch.equal(items[:, golden.hp("dcd_K") :], golden["over_items"])
    assert_production(golden, distiller)


# -- UnKD -------------------------------------------------------------------------------------


def unkd_functions(golden: Golden, dtype: torch.dtype) -> None:
    users, student = golden["batch_users"], golden.student(dtype)
    better, worse = (
        student_scores(student, users, golden[name][users]) for name in ("pos_items", "neg_items")
    )
    valid = torch.ones(better.shape, dtype=torch.bool)
    assert_losses(golden, unkd_loss(better, worse, valid, FLOOR), student, dtype)


def unkd_grouping(golden: Golden) -> tuple[list[Tensor], Tensor]:
    """The groups' items and all items' counts, with ids that start at 0."""
    items = golden["train_pairs"][:, 1]
    order, counts = popularity_order(items, golden.n_items)
    return popularity_groups(order, counts[order], golden.hp("unkd_group_num")), counts


def unkd_groups(golden: Golden, _: pytest.MonkeyPatch) -> None:
    groups, counts = unkd_grouping(golden)
    recorded = [row[row >= 0] for row in golden["item_group"]]
    assert len(groups) == len(recorded)
    assert all(torch.equal(a, b) for a, b in zip(groups, recorded, strict=True))
    power = golden.hp("unkd_lamda")
    found = group_pairs(groups, counts, power, golden.hp("unkd_n_distill"))
    assert found == golden["group_count"].tolist()
    # The share of very many pairs is the recorded ratio.
    many = torch.tensor(group_pairs(groups, counts, power, 10**10), dtype=torch.float64)
    assert_close(many / 10**10, golden["group_ratio"], 1e-9)


def unkd_distiller(golden: Golden, **changes: Any) -> UnKD:
    options = {
        "kd_weight": golden.hp("lmbda"),
        "kd_rows": "interaction",
        "memory_budget_gb": golden.chunk_budget(7),
        "unkd_groups": golden.hp("unkd_group_num"),
        "unkd_power": golden.hp("unkd_lamda"),
        "unkd_n": golden.hp("unkd_n_distill"),
        "unkd_M": len(golden["rank_weights"]),
        "unkd_pairs": "released",
        "unkd_floor": FLOOR,
    }
    return golden.world().distiller(UnKD, **{**options, **changes})


def unkd_candidates(golden: Golden, _: pytest.MonkeyPatch) -> None:
    distiller = unkd_distiller(golden)
    distiller.begin_epoch(0, 1)
    assert len(distiller._candidates) == golden["candidates"].shape[1]
    for group, (items, lengths) in enumerate(
        zip(distiller._candidates, distiller._lengths, strict=True)
    ):
        recorded = golden["candidates"][:, group]
        kept = recorded >= 0
        assert torch.equal(lengths[1:].long(), kept.sum(1))
        width = min(items.shape[1], recorded.shape[1])
        assert torch.equal(torch.arange(width) < lengths[1:, None], kept[:, :width])
        found = items[1:, :width].long() - 1
        assert torch.equal(found[kept[:, :width]], recorded[kept])


def unkd_weights(golden: Golden, _: pytest.MonkeyPatch) -> None:
    for length in {2, 17, len(golden["rank_weights"])}:
        weights = torch.exp(-torch.arange(1, length + 1).double() / SCALE)
        assert_close(golden["rank_weights"][:length], weights, 1e-6)
        assert_close(geometric_law(length, SCALE), weights / weights.sum(), 1e-9)


def unkd_drawn(golden: Golden, pairs: str) -> list[Tensor]:
    """Very many pairs of every user, as positions in the candidates: a group ``[2, U, n]``."""
    distiller = unkd_distiller(golden, unkd_n=3000, unkd_pairs=pairs)
    distiller.begin_epoch(0, 1)
    lists = (golden["candidates"] + 1).unbind(1)  # filled up with padding, which is never drawn
    found = []
    for side in distiller.tables()["items"][1:].long().chunk(2, dim=1):
        parts = side.split(distiller.group_pairs, dim=1)
        both = zip(lists, parts, strict=True)
        found.append([ranks_in(items, part, distiller.n_items) for items, part in both])
    return [torch.stack(group) for group in zip(*found, strict=True)]


def unkd_law(golden: Golden, _: pytest.MonkeyPatch) -> None:
    """Pairs follow ``P(a < b) = 2 w_a w_b / (1 - sum w ** 2)``; users by length of their list."""
    compared = 0
    for group, (better, worse) in enumerate(unkd_drawn(golden, "distinct")):
        lengths = (golden["candidates"][:, group] >= 0).sum(1)
        assert (better < worse).all()
        assert (worse < lengths.unsqueeze(1)).all()
        for length in lengths.unique().tolist():
            weights = golden["rank_weights"][:length].double()
            weights = weights / weights.sum()
            law = 2 * weights.outer(weights).triu(1) / (1 - weights.square().sum())
            codes = (better * length + worse)[lengths == length].flatten()
            found = codes.bincount(minlength=length**2).view(length, length)
            often = law * codes.numel() > 25
            if often.any():
                assert_frequencies((found / codes.numel())[often], codes.numel(), law[often])
                compared += int(often.sum())
    assert compared


def unkd_identical(golden: Golden, _: pytest.MonkeyPatch) -> None:
    """Half of the reference's pairs are an item and itself, as the code's are when asked to."""
    recorded = golden["pos_items"] == golden["neg_items"]
    assert recorded.double().mean().item() == pytest.approx(golden["frac_pairs_identical"].item())
    half = torch.tensor(0.5, dtype=torch.float64)
    assert_frequencies(recorded.double().mean(), recorded.numel(), half)
    drawn = unkd_drawn(golden, "released")
    same = torch.cat([(better == worse).flatten() for better, worse in drawn])
    assert_frequencies(same.double().mean(), same.numel(), half)
    distinct = unkd_drawn(golden, "distinct")
    for with_repeats, without in zip(drawn, distinct, strict=True):
        assert torch.equal(with_repeats[0], without[0])
        mended = with_repeats[0] != with_repeats[1]
        assert torch.equal(with_repeats[1][mended], without[1][mended])


def unkd_uniform(golden: Golden) -> list[Tensor]:
    """Draws that give the recorded pairs, of each group ``[U, 2 * pairs]``.

    Where the reference made both members the better one, its second draw was better: here by one
    place.
    """
    counts, found = golden["group_count"].tolist(), []
    parts = [golden[name].split(counts, dim=1) for name in ("pos_items", "neg_items")]
    for group, (better, worse) in enumerate(zip(*parts, strict=True)):
        lists = golden["candidates"][:, group]
        lengths = (lists >= 0).sum(1, keepdim=True)
        lists = torch.where(lists >= 0, lists, golden.n_items)
        first, second = (
            (lists.unsqueeze(1) == x.unsqueeze(2)).long().argmax(2) for x in (better, worse)
        )
        assert torch.equal(lists.gather(1, first), better)
        assert torch.equal(lists.gather(1, second), worse)
        drawn = torch.stack([first + (first == second), second], dim=2).flatten(1)
        found.append(uniform_for_positions(drawn, lengths, SCALE))
    return found


def unkd_production(golden: Golden, patch: pytest.MonkeyPatch) -> None:
    table = unkd_uniform(golden)
    feed(patch, UnKD, "uniform", lambda users, width, group, attempt: table[group][users])
    distiller = unkd_distiller(golden)
    distiller.begin_epoch(0, 1)
    assert distiller.group_pairs == golden["group_count"].tolist()
    recorded = torch.cat([golden["pos_items"], golden["neg_items"]], dim=1)
    assert torch.equal(distiller.tables()["items"][1:].long() - 1, recorded)
    assert_production(golden, distiller)


def unkd_given_pairs(golden: Golden, _: pytest.MonkeyPatch) -> None:
    """The step alone, on pairs of groups that only the reference makes."""
    distiller = unkd_distiller(golden)
    pairs = torch.cat([golden["pos_items"], golden["neg_items"]], dim=1) + 1
    distiller.items = pad(pairs).int()
    assert_production(golden, distiller)


# -- HetComp ----------------------------------------------------------------------------------


def hetcomp_terms(
    golden: Golden, student: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Scores of positives and list, the log-sum of the rest, and whether all users arrived."""
    users, seen = golden["batch_users"], golden.seen()
    scores = (student[0][users] @ student[1].t()).clamp(-40, 40)
    listed = golden["top_items"][users]
    outside = ~seen[users].scatter(1, listed, True)
    tail = scores.masked_fill(~outside, -torch.inf).logsumexp(1)
    arrived = golden["v_result"].item() >= golden.hp("hetcomp_num_ckpt") - 1
    positives = golden["pos_items"][users]
    return scores.gather(1, positives), scores.gather(1, listed), tail, arrived


def hetcomp_functions(golden: Golden, dtype: torch.dtype) -> None:
    student = golden.student(dtype)
    positives, listed, tail, arrived = hetcomp_terms(golden, student)
    overall = overall_loss(torch.cat([positives, listed], dim=1), tail)
    ranked = rank_loss(positives, listed, tail)
    if "loss_stable" not in golden:  # the other phase was recorded with cancellation only
        assert_close(overall.sum(), golden["loss_overall_undoubled"], TOLERANCES[dtype].loss)
        assert_close(ranked.sum(), golden["loss_rank"], TOLERANCES[dtype].loss)
    assert_losses(golden, ranked if arrived else 2 * overall, student, dtype)


def hetcomp_distiller(golden: Golden) -> HetComp:
    world = golden.world()
    models = [
        TinyModel(pad(users), pad(items))
        for users, items in zip(golden["ckpt_user"], golden["ckpt_item"], strict=True)
    ]
    assert torch.equal(golden["T_user"], golden["ckpt_user"][-1])
    assert torch.equal(golden["T_item"], golden["ckpt_item"][-1])
    world.trajectory = models[:-1]
    return world.distiller(
        HetComp,
        kd_weight=golden.hp("lmbda"),
        kd_rows="interaction",
        memory_budget_gb=golden.chunk_budget(7),
        refresh_every=golden.hp("hetcomp_p"),
        hetcomp_checkpoints=golden.hp("hetcomp_num_ckpt"),
        hetcomp_K=golden.hp("hetcomp_K"),
        hetcomp_alpha=golden.hp("hetcomp_alpha"),
        hetcomp_clamp=40,
    )


def hetcomp_lists(golden: Golden, _: pytest.MonkeyPatch) -> None:
    distiller = hetcomp_distiller(golden)
    assert torch.equal(distiller.curriculum.lists[:, 1:].long() - 1, golden["perms"])
    assert torch.equal(distiller._positives[1:].long() - 1, golden["pos_items"])


def hetcomp_production(golden: Golden, _: pytest.MonkeyPatch) -> None:
    distiller = hetcomp_distiller(golden)
    distiller.begin_epoch(0, 1)
    assert distiller.epoch_log() == {"mean_checkpoint": 0}
    # The earliest checkpoint that has a user's list, or the last where all have arrived.
    same = (golden["perms"] == golden["top_items"]).all(2)
    assert same.any(0).all()
    version = same.long().argmax(0)
    if golden["v_result"].item() >= golden.hp("hetcomp_num_ckpt") - 1:
        version = torch.where(same[-1], len(same) - 1, version)
    distiller.load_tables({**distiller.tables(), "version": pad(version)})
    progress = distiller.curriculum.progress(distiller.users)
    assert progress == pytest.approx(golden["v_result"].item())
    assert_production(golden, distiller)


def hetcomp_set_student(distiller: HetComp, users: Tensor, items: Tensor) -> None:
    student = distiller.student
    with torch.no_grad():
        student.user_embedding.weight.copy_(pad(users))
        student.item_embedding.weight.copy_(pad(items))


def hetcomp_schedule(golden: Golden, _: pytest.MonkeyPatch) -> None:
    """Every user's checkpoint, distance and list, driven by the recorded students."""
    distiller = hetcomp_distiller(golden)
    everyone = torch.arange(1, golden.n_users + 1)
    for epoch in range(len(golden["traj_v"])):
        hetcomp_set_student(distiller, golden["traj_S_user"][epoch], golden["traj_S_item"][epoch])
        distiller.begin_epoch(epoch, 1)
        tables = distiller.tables()
        assert torch.equal(tables["version"][1:], golden["traj_idx"][epoch])
        recorded = golden["traj_dist"][epoch]
        torch.testing.assert_close(
            tables["distance"][1:], recorded, rtol=0, atol=1e-9, equal_nan=True
        )
        found = distiller.epoch_log()["mean_checkpoint"]
        assert found == pytest.approx(golden["traj_v"][epoch].item(), abs=1e-12)
        lists = distiller.curriculum.list_of(everyone)
        assert torch.equal(lists.long() - 1, golden["traj_top_items"][epoch])
    hetcomp_set_student(distiller, golden["S_user"], golden["S_item"])
    assert_production(golden, distiller)


def hetcomp_rule(golden: Golden, _: pytest.MonkeyPatch) -> None:
    """The rule by which users move on, in its own words, on the pure functions."""
    last, p = golden.hp("hetcomp_num_ckpt") - 1, golden.hp("hetcomp_p")
    everyone = torch.arange(golden.n_users)
    for before, epoch in itertools.pairwise(range(0, len(golden["traj_v"]), p)):
        index, distance = golden["traj_idx"][before], golden["traj_dist"][before]
        tables = golden["traj_S_user"][epoch], golden["traj_S_item"][epoch]
        scores = (tables[0] @ tables[1].t()).masked_fill(golden.seen(), -torch.inf)
        student = scores.topk(golden.hp("hetcomp_K"), dim=1).indices
        ahead = golden["perms"][(index + 1).clamp_max(last), everyone]
        now = discrepancy(student, ahead, golden.n_items)
        if distance.isnan().all():
            torch.testing.assert_close(now, golden["traj_dist"][epoch], rtol=0, atol=1e-9)
            assert torch.equal(golden["traj_idx"][epoch], index)
        elif golden["traj_v"][before] < last:
            threshold = golden.hp("hetcomp_alpha") * 0.995 ** (epoch // p)
            moved = moves_on(distance, now, threshold) & (index < last)
            assert torch.equal(golden["traj_idx"][epoch], index + moved)


# ---------------------------------------------------------------------------------------------


def guided(check: Check) -> Check:
    """A check of CD's sampler, which ``random`` does not use."""
    return Where(lambda golden: golden.hp("strategy") != 0, check)


def dynamic(check: Check) -> Check:
    """A check of RD's weights that depend on the student."""
    return Where(rd_is_dynamic, check)


def by_value(check: Check) -> Check:
    """A check of UnKD's groups as they are meant to be."""
    return Where(lambda golden: golden.hp("value_keys") == 1, check)


def by_identity(check: Check) -> Check:
    """A check that takes UnKD's pairs as given."""
    return Where(lambda golden: golden.hp("value_keys") == 0, check)


def with_trajectory(check: Check) -> Check:
    """A check of HetComp's curriculum."""
    return Where(lambda golden: "traj_v" in golden, check)


RUNNERS: dict[str, dict[str, Check]] = {
    "rd": {
        **in_both_types(rd_functions),
        "static-weights": rd_static,
        "weights-float64": dynamic(in_dtype(rd_weights, torch.float64)),
        "weights-float32": dynamic(in_dtype(rd_weights, torch.float32)),
        "sampler": rd_sampler,
        "production": rd_production,
    },
    "cd": {
        **in_both_types(cd_functions),
        "law": guided(cd_law),
        "frequencies": guided(cd_frequencies),
        "repeats": guided(cd_repeats),
        "lists": guided(cd_lists),
        "production": cd_production,
    },
    "rrd": {
        **in_both_types(rrd_functions),
        "weights": rrd_weights,
        "frequencies": rrd_frequencies,
        "uninteresting": rrd_uninteresting,
        "production": rrd_production,
    },
    "dcd": {
        **in_both_types(dcd_functions),
        "weights": dcd_weights,
        "frequencies": dcd_frequencies,
        "production": dcd_production,
    },
    "unkd": {
        **in_both_types(unkd_functions),
        "weights": unkd_weights,
        "groups": by_value(unkd_groups),
        "candidates": by_value(unkd_candidates),
        "law": by_value(unkd_law),
        "identical": by_value(unkd_identical),
        "production": by_value(unkd_production),
        "given-pairs": by_identity(unkd_given_pairs),
    },
    "hetcomp": {
        **in_both_types(hetcomp_functions),
        "lists": hetcomp_lists,
        "schedule": with_trajectory(hetcomp_schedule),
        "rule": with_trajectory(hetcomp_rule),
        "production": hetcomp_production,
    },
}


@pytest.mark.parametrize(("path", "check"), cases("ranking", RUNNERS))
def test_golden(path: Path, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    check(Golden(path), monkeypatch)
