"""Vanilla cross-entropy as it runs: its four item sets, and all items in chunks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from kd_helpers import TinyGraph, TinyModel, World, best_items, exact_scores, make_world
from torch import Tensor

from recbole_kd.errors import KDError
from recbole_kd.methods.ce import CE
from recbole_kd.rows import Rows
from recbole_kd.teacher import FrozenTeacher

K, TAU = 9, 1.5
GUIDES = ["teacher", "student", "union", "all"]


def make(world: World, guide: str, **changes: Any) -> CE:
    return world.distiller(CE, **{"ce_guide": guide, "ce_K": K, "ce_tau": TAU, **changes})


def refreshed(world: World, guide: str, epoch: int = 0, **changes: Any) -> CE:
    distiller = make(world, guide, **changes)
    distiller.begin_epoch(epoch, 1)
    return distiller


def everybody(distiller: CE) -> Rows:
    return Rows(distiller.users, torch.ones(len(distiller.users)))


def item_set(world: World, guide: str, user: int) -> list[int]:
    """The set of a guide by its definition, each item once."""
    student = best_items(exact_scores(world.student)[user], K)
    teacher = best_items(exact_scores(world.teacher)[user], K)
    sets = {
        "teacher": teacher,
        "student": student,
        "union": student + [i for i in teacher if i not in student],
        "all": list(range(1, world.student.n_items)),
    }
    return sets[guide]


def slow_loss(world: World, items: list[int], user: int) -> float:
    """Cross-entropy over a set, by raw exponentials."""
    logs, weights = [], []
    student, teacher = exact_scores(world.student)[user], exact_scores(world.teacher)[user]
    for scores, out in ((student, logs), (teacher, weights)):
        exps = [math.exp(scores[i].item() / TAU) for i in items]
        out += [e / sum(exps) for e in exps]
    return -sum(p * math.log(q) for p, q in zip(weights, logs, strict=True))


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("student", [TinyModel, TinyGraph])
def test_loss_against_a_slow_loop(guide: str, student: type[TinyModel]) -> None:
    world = make_world(student=student)
    distiller = refreshed(world, guide)
    losses = []
    for user in distiller.users.tolist():
        items = item_set(world, guide, user)
        losses.append(slow_loss(world, items, user))
        found = distiller.kd_loss(Rows(torch.tensor([user]), torch.ones(1))).item()
        assert found == pytest.approx(losses[-1], rel=1e-4)
    mean = distiller.kd_loss(everybody(distiller)).item()
    assert mean == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    weights = torch.arange(1.0, len(losses) + 1)
    weighted = sum(w * loss for w, loss in zip(weights.tolist(), losses, strict=True))
    found = distiller.kd_loss(Rows(distiller.users, weights)).item()
    assert found == pytest.approx(weighted / weights.sum().item(), rel=1e-4)


@pytest.mark.parametrize("guide", ["teacher", "student", "union"])
def test_sets_hold_each_item_once(guide: str) -> None:
    world = make_world()
    distiller = refreshed(world, guide)
    tables = distiller.tables()
    shared = 0
    for user in distiller.users.tolist():
        items = tables["items"][user].tolist()
        kept = [i for i in items if i]
        assert kept == item_set(world, guide, user)
        targets = tables["targets"][user].tolist()
        assert sum(targets) == pytest.approx(1)
        assert all((p > 0) == (i > 0) for i, p in zip(items, targets, strict=True))
        shared += len(items) - len(kept)
    assert (shared > 0) == (guide == "union")


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("student", [TinyModel, TinyGraph])
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_gradient_against_autograd(guide: str, student: type[TinyModel], rows: int) -> None:
    """In chunks of rows or not, for a model of tables and one that computes its vectors."""
    world = make_world(student=student)
    n_items = world.student.n_items
    distiller = refreshed(world, guide, memory_budget_gb=rows * 24 * n_items / 2**30)
    _, kd = distiller.calculate_loss(world.batch())
    kd.backward()
    names = ("user_embedding", "item_embedding")
    found = [getattr(world.student, name).weight.grad for name in names]
    assert all(gradient.abs().max() > 0 for gradient in found)

    users, items = (getattr(world.student, n).weight.detach().double() for n in names)
    leaves = [users.requires_grad_(), items.requires_grad_()]
    vectors: tuple[Tensor, Tensor] = (leaves[0], leaves[1])
    if student is TinyGraph:
        vectors = users.tanh() + items.mean(0), items.sin() + 0.5 * users.mean(0)
    scores, teacher = vectors[0] @ vectors[1].t(), exact_scores(world.teacher)
    total = torch.zeros((), dtype=torch.float64)
    for user in distiller.users.tolist():
        kept = item_set(world, guide, user)
        p = (teacher[user, kept] / TAU).softmax(0)
        total = total - (p * (scores[user, kept] / TAU).log_softmax(0)).sum()
    mean = total / len(distiller.users) * distiller.kd_weight
    assert kd.item() == pytest.approx(mean.item(), rel=1e-5)
    for gradient, expected in zip(found, torch.autograd.grad(mean, leaves), strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=1e-5 * scale)


def test_chunks_of_all_items(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world()
    sizes: list[int] = []
    real = FrozenTeacher.score_all

    def spy(self: FrozenTeacher, users: Tensor) -> Tensor:
        sizes.append(len(users))
        return real(self, users)

    monkeypatch.setattr(FrozenTeacher, "score_all", spy)
    losses = []
    for rows in (1, 5, 1000):
        distiller = refreshed(world, "all", memory_budget_gb=rows * 24 * 60 / 2**30)
        sizes.clear()
        losses.append(distiller.kd_loss(everybody(distiller)).item())
        assert max(sizes) == min(rows, len(distiller.users))
        assert sum(sizes) == len(distiller.users)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("guide", GUIDES)
def test_huge_scores_stay_finite(guide: str) -> None:
    for scale in (10.0, 100.0):
        world = make_world(scale=scale)
        assert exact_scores(world.student).abs().max() > scale**2
        _, kd = refreshed(world, guide, ce_tau=0.5).calculate_loss(world.batch())
        assert torch.isfinite(kd)
        kd.backward()
        assert all(p.grad.isfinite().all() for p in world.student.parameters())


def test_all_items_need_no_tables() -> None:
    distiller = refreshed(make_world(), "all")
    assert not distiller.refreshes
    assert distiller.epoch_log() == {}
    assert all(table.numel() == 0 for table in distiller.tables().values())


@pytest.mark.parametrize("guide", ["teacher", "student", "union"])
def test_tables_round_trip_through_another_distiller(guide: str) -> None:
    world = make_world()
    first = refreshed(world, guide)
    state = first.resume_state()
    second = make(world, guide)
    second.load_resume_state(state)
    second.begin_epoch(1, 1)
    rows = everybody(first)
    assert second.kd_loss(rows).item() == first.kd_loss(rows).item()
    assert {n: t.shape for n, t in second.tables().items()} == {
        n: t.shape for n, t in first.tables().items()
    }
    assert second.epoch_log() == first.epoch_log()


@pytest.mark.parametrize("guide", ["student", "union"])
def test_lists_follow_the_student(guide: str) -> None:
    world = make_world()
    distiller = refreshed(world, guide, refresh_every=2)
    before = distiller.tables()["items"].clone()
    with torch.no_grad():
        world.student.item_embedding.weight.copy_(
            world.student.item_embedding.weight.roll(7, dims=0)
        )
    distiller.begin_epoch(1, 1)
    assert torch.equal(distiller.tables()["items"], before)
    distiller.begin_epoch(2, 1)
    assert not torch.equal(distiller.tables()["items"], before)
    for user in distiller.users.tolist():
        kept = [i for i in distiller.tables()["items"][user].tolist() if i]
        assert kept == item_set(world, guide, user)


@pytest.mark.parametrize("guide", ["student", "union"])
def test_chunks_of_users_do_not_change_the_tables(guide: str) -> None:
    world = make_world()
    whole = refreshed(world, guide)
    parts = refreshed(world, guide, memory_budget_gb=2 * 16 * 60 / 2**30)
    for name, table in whole.tables().items():
        torch.testing.assert_close(parts.tables()[name], table, rtol=1e-5, atol=1e-6)
    assert parts.epoch_log() == pytest.approx(whole.epoch_log())


def test_diagnostics_against_brute_force() -> None:
    world = make_world()
    for guide in ("student", "union"):
        distiller = refreshed(world, guide)
        overlap, ndcg = [], []
        for user in distiller.users.tolist():
            ours, theirs = (item_set(world, g, user) for g in ("student", "teacher"))
            overlap.append(len(set(ours) & set(theirs)) / K)
            gains = [1 / math.log2(r + 2) for r in range(K)]
            hits = [g for g, i in zip(gains, ours, strict=True) if i in theirs]
            ndcg.append(sum(hits) / sum(gains))
        expected = {
            "overlap_topk": sum(overlap) / len(overlap),
            "ndcg@10_vs_teacher": sum(ndcg) / len(ndcg),
        }
        assert distiller.epoch_log() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("guide", GUIDES)
def test_learning_lowers_the_loss(guide: str) -> None:
    world = make_world()
    distiller = refreshed(world, guide)
    teacher = {n: p.clone() for n, p in world.teacher.state_dict().items()}
    start = distiller.kd_loss(everybody(distiller)).item()
    optimizer = torch.optim.Adam(distiller.parameters(), lr=0.05, weight_decay=1e-4)
    for _ in range(30):
        optimizer.zero_grad()
        sum(distiller.calculate_loss(world.batch())).backward()
        optimizer.step()
    scores, users = exact_scores(world.teacher), distiller.users.tolist()
    floor = 0.0
    for user in users:
        p = (scores[user, item_set(world, guide, user)] / TAU).softmax(0)
        floor -= (p * p.log()).sum().item() / len(users)
    end = distiller.kd_loss(everybody(distiller)).item()
    if guide in ("teacher", "all"):  # the set is the same as at the start
        assert floor < end
        assert end - floor < 0.5 * (start - floor)
    assert end < start
    assert all(torch.equal(p, teacher[n]) for n, p in world.teacher.state_dict().items())


def test_interaction_rows_count_the_batch() -> None:
    world = make_world()
    for guide in GUIDES:
        distiller = refreshed(world, guide, kd_rows="interaction")
        batch = torch.tensor([3, 1, 3, 3, 9, 1])
        counted = distiller.kd_loss(distiller.rows.next(batch)).item()
        losses = [slow_loss(world, item_set(world, guide, u), u) for u in batch.tolist()]
        assert counted == pytest.approx(sum(losses) / 6, rel=1e-4)


def test_a_batch_without_rows_costs_nothing() -> None:
    world = make_world()
    for guide in GUIDES:
        distiller = refreshed(world, guide, kd_rows="interaction")
        rows = distiller.rows.next(torch.tensor([world.student.n_users - 1]))
        assert len(rows.users) == 0
        loss = distiller.kd_loss(rows)
        assert loss.item() == 0
        loss.backward()
        gradients = [p.grad for p in world.student.parameters()]
        assert all(g is None or not g.any() for g in gradients)


REFUSED = [
    ("ce_guide", "both", "teacher, student, union, all"),
    ("ce_tau", 0, "numbers above 0"),
    ("ce_tau", "hot", "numbers above 0"),
    ("ce_K", 0, "whole numbers above 0"),
    ("ce_K", 60, "up to 59"),
    ("kd_weight", -2, "numbers from 0"),
    ("kd_rows", "all", "interaction, unique, user"),
    ("refresh_every", 1.5, "whole numbers above 0"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), REFUSED)
def test_refused_options(key: str, value: Any, allowed: str) -> None:
    with pytest.raises(KDError) as refusal:
        make_world().check(CE, **{key: value})
    message = str(refusal.value)
    assert message.startswith(f"--{key}={value}: ")
    assert allowed in message
    assert "\n" not in message


def test_the_longest_list() -> None:
    world = make_world()
    for guide in ("teacher", "student"):
        distiller = refreshed(world, guide, ce_K=59)
        found = distiller.kd_loss(everybody(distiller)).item()
        full = refreshed(world, "all")
        assert found == pytest.approx(full.kd_loss(everybody(full)).item(), rel=1e-5)
    world.check(CE, ce_guide="all", ce_K=1000)
    # A union of two whole lists is wider than the item table.
    union = refreshed(world, "union", ce_K=59)
    assert union.kd_loss(everybody(union)).item() == pytest.approx(found, rel=1e-5)


def test_the_teachers_own_set_is_made_once() -> None:
    world = make_world()
    distiller = refreshed(world, "teacher")
    made = distiller.targets
    distiller.begin_epoch(3, 1)
    assert distiller.targets is made
    student = refreshed(world, "student")
    student.targets.zero_()
    student.begin_epoch(3, 1)
    assert bool(student.targets[student.users].any())
