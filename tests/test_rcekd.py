"""RCE-KD as it runs: tables against a slow loop over users, schedule, sampler, learning."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from kd_helpers import TinyGraph, TinyModel, World, best_items, exact_scores, make_world
from torch import Tensor

from recbole_kd.candidates import list_ndcg, rank_log_weights
from recbole_kd.closure import closure_log_weights
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.methods import rcekd
from recbole_kd.methods.rcekd import RCEKD
from recbole_kd.rows import Rows, RowSchedule
from recbole_kd.scoring import DenseScorer, Scorer

K, L, M = 8, 6, 20
TAU, BETA, TEMPERATURE = 1.5, 2.0, 3.0


def make(world: World, **changes: Any) -> RCEKD:
    sizes = {"rcekd_K": K, "rcekd_L": L, "rcekd_M": M}
    rates = {"rcekd_tau": TAU, "rcekd_beta": BETA, "rcekd_T": TEMPERATURE}
    return world.distiller(RCEKD, **{**sizes, **rates, **changes})


def refreshed(world: World, epoch: int = 0, **changes: Any) -> RCEKD:
    distiller = make(world, **changes)
    distiller.begin_epoch(epoch, 1)
    return distiller


# -- tables against a slow loop ---------------------------------------------------------------


class SlowUser:
    """Everything of one user, from exact scores and the drawn sample, by the definitions."""

    def __init__(self, world: World, user: int, mask_train: bool):
        hidden = world.train_items(user) if mask_train else set()
        self.student = exact_scores(world.student)[user]
        self.teacher = exact_scores(world.teacher)[user]
        self.list = best_items(self.student, M, hidden)
        self.student_top = self.list[:K]
        self.teacher_top = best_items(self.teacher, K, hidden)

    def log_weights(self, sampling: str, target: str, cap: int | None) -> list[float]:
        if sampling == "rank":
            return [-(r + 1) / TEMPERATURE for r in range(M)]
        counts = []
        for r in range(M):
            if target == "topk":
                count = len(set(self.teacher_top) & set(self.list[r:]))
            else:
                wanted = set(self.teacher_top) - set(self.student_top)
                count = len(wanted & set(self.list[r + 1 :]))
            counts.append(count if cap is None else min(count, cap))
        return [(c + 1) / TEMPERATURE for c in counts]

    def probabilities(self, items: list[int]) -> list[float]:
        exps = [math.exp(self.teacher[i].item() / TAU) for i in items]
        return [e / sum(exps) for e in exps]

    def cross_entropy(self, items: list[int]) -> float:
        total = sum(math.exp(self.student[i].item() / TAU) for i in items)
        p = self.probabilities(items)
        logs = [self.student[i].item() / TAU - math.log(total) for i in items]
        return -sum(a * b for a, b in zip(p, logs, strict=True))


CHOICES = list(
    itertools.product(
        ["sample", "student_topk"],
        ["topk", "difference"],
        [None, 50, 3],
        [False, True],
        ["closure", "rank"],
        [None, 0.3],
    )
)


@pytest.mark.parametrize(("overlap", "target", "cap", "mask", "sampling", "const"), CHOICES)
def test_refresh_against_a_slow_loop(
    overlap: str,
    target: str,
    cap: int | None,
    mask: bool,
    sampling: str,
    const: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = make_world()
    seen: list[tuple[Tensor, Tensor]] = []
    real = rcekd.gumbel_top_k

    def spy(log_weights: Tensor, k: int, noise: Tensor) -> Tensor:
        drawn = real(log_weights, k, noise)
        seen.append((log_weights, drawn))
        return drawn

    monkeypatch.setattr(rcekd, "gumbel_top_k", spy)
    distiller = refreshed(
        world,
        rcekd_overlap=overlap,
        rcekd_target=target,
        rcekd_cap=cap,
        rcekd_mask_train=mask,
        rcekd_sampling=sampling,
        rcekd_const=const,
    )
    ((log_weights, drawn),) = seen
    tables = {name: table.tolist() for name, table in distiller.tables().items()}
    assert distiller.users.tolist() == list(range(1, world.student.n_users - 1))
    total = 0.0
    for row, user in enumerate(distiller.users.tolist()):
        slow = SlowUser(world, user, mask)
        expected = torch.tensor(slow.log_weights(sampling, target, cap))
        torch.testing.assert_close(log_weights[row], expected)
        sample = [slow.list[r] for r in drawn[row].tolist()]
        items = tables["items"][user]
        assert items == [*slow.student_top, *sample, *slow.teacher_top]
        dropped = [i in slow.student_top or i in sample for i in slow.teacher_top]
        assert tables["drop"][user] == dropped
        left = [i for i, d in zip(slow.teacher_top, dropped, strict=True) if not d]
        closure = dict(zip(sample + left, slow.probabilities(sample + left), strict=True))
        assert tables["p"][user] == pytest.approx(slow.probabilities(slow.student_top), rel=1e-4)
        q = [closure[i] for i in sample]
        q += [0 if d else closure[i] for i, d in zip(slow.teacher_top, dropped, strict=True)]
        assert tables["q"][user] == pytest.approx(q, rel=1e-4)
        others = sample if overlap == "sample" else slow.student_top
        g = math.exp(-BETA * len(set(others) & set(slow.teacher_top)) / K)
        g = g if const is None else const
        assert tables["g"][user] == pytest.approx(g, rel=1e-5)
        total += (1 - g) * slow.cross_entropy(slow.student_top)
        total += g * slow.cross_entropy(list(closure))
    rows = distiller.rows.next(distiller.users)
    assert sorted(rows.users.tolist()) == distiller.users.tolist()
    assert distiller.kd_loss(rows).item() == pytest.approx(total / len(distiller.users), rel=1e-4)


def test_the_planted_problem_tells_the_options_apart() -> None:
    """Otherwise the loop above could not notice an option that is ignored."""
    world = make_world()
    users = [SlowUser(world, user, False) for user in range(1, world.student.n_users - 1)]
    for options in itertools.combinations(itertools.product(("topk", "difference"), (50, 3)), 2):
        weights = [[u.log_weights("closure", *o) for u in users] for o in options]
        assert weights[0] != weights[1]
    assert any(set(u.student_top) & set(u.teacher_top) for u in users)
    assert any(set(u.teacher_top) - set(u.list) for u in users)
    masked = [SlowUser(world, user, True) for user in range(1, world.student.n_users - 1)]
    assert all(a.teacher_top != b.teacher_top for a, b in zip(users, masked, strict=True))


def test_closure_weights_by_hand() -> None:
    ranks = torch.tensor([[0, 2, 4, 5]])  # K = 2 of M = 5; one teacher item is outside
    codes = closure_log_weights(ranks, 5, 2, 10.0, 50, "topk")
    torch.testing.assert_close(codes, torch.tensor([[0.4, 0.3, 0.3, 0.2, 0.2]]))
    papers = closure_log_weights(ranks, 5, 2, 10.0, None, "difference")
    torch.testing.assert_close(papers, torch.tensor([[0.3, 0.3, 0.2, 0.2, 0.1]]))
    capped = closure_log_weights(ranks, 5, 2, 10.0, 1, "difference")
    torch.testing.assert_close(capped, torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.1]]))


def test_closure_weights_without_a_hit_are_uniform() -> None:
    nothing = torch.full((3, 4), 9)
    for target in ("topk", "difference"):
        weights = closure_log_weights(nothing, 9, 5, 2.0, 50, target)
        assert torch.equal(weights, torch.full((3, 9), 0.5))


def test_rank_weights() -> None:
    assert rank_log_weights(4, 2.0).tolist() == [-0.5, -1.0, -1.5, -2.0]


def test_rank_sampling_draws_every_user_alone() -> None:
    distiller = refreshed(make_world(), rcekd_sampling="rank", rcekd_T=1000.0)
    ids = distiller.tables()["items"][distiller.users].tolist()
    student = exact_scores(distiller.student)
    drawn = set()
    for user, items in zip(distiller.users.tolist(), ids, strict=True):
        ranking = best_items(student[user], M)
        drawn.add(tuple(sorted(ranking.index(i) for i in items[K : K + L])))
    assert len(drawn) > len(ids) - 2


# -- limits of the weight ---------------------------------------------------------------------


def terms(world: World, distiller: RCEKD, user: int) -> tuple[float, float, float]:
    """``L_S``, ``L_T`` and the overlap of one user, from its sets."""
    items = distiller.tables()["items"][user].tolist()
    top, sample, best = items[:K], items[K : K + L], items[K + L :]
    slow = SlowUser(world, user, False)
    closure = sorted({*sample, *(set(best) - set(top))})
    return slow.cross_entropy(top), slow.cross_entropy(closure), len({*sample} & {*best}) / K


def one(distiller: RCEKD, user: int) -> float:
    return distiller.kd_loss(Rows(torch.tensor([user]), torch.ones(1))).item()


def test_beta_moves_the_weight() -> None:
    world = make_world()
    for beta in (0.0, 1.0, 1e6):
        distiller = refreshed(world, rcekd_beta=beta)
        overlaps = []
        for user in distiller.users.tolist():
            l_s, l_t, overlap = terms(world, distiller, user)
            g = math.exp(-beta * overlap)
            assert one(distiller, user) == pytest.approx((1 - g) * l_s + g * l_t, rel=1e-4)
            assert l_s != pytest.approx(l_t, rel=1e-3)
            overlaps.append(overlap)
        assert 0 < max(overlaps) < 1


def test_equal_models_have_one_loss_for_any_beta() -> None:
    world = make_world()
    world.student = type(world.teacher)(
        world.teacher.user_embedding.weight.detach(), world.teacher.item_embedding.weight.detach()
    )
    for beta in (0.0, 3.0, 50.0):
        distiller = refreshed(world, rcekd_L=K, rcekd_M=K, rcekd_beta=beta)
        assert distiller.epoch_log()["overlap_topk"] == 1
        assert distiller.epoch_log()["weight_g"] == pytest.approx(math.exp(-beta))
        assert distiller.tables()["drop"][distiller.users].all()
        slow = SlowUser(world, 4, False)
        assert one(distiller, 4) == pytest.approx(slow.cross_entropy(slow.teacher_top), rel=1e-5)


def test_disjoint_lists_leave_the_teachers_loss() -> None:
    world = make_world()
    with torch.no_grad():
        users, items = world.teacher.user_embedding.weight, world.teacher.item_embedding.weight
    world.student = type(world.teacher)(-users.detach(), items.detach())
    distiller = refreshed(world, rcekd_beta=9.0)
    assert torch.equal(distiller.tables()["g"][distiller.users], torch.ones(len(distiller.users)))
    assert not distiller.tables()["drop"].any()
    for user in distiller.users.tolist():
        items = distiller.tables()["items"][user, K:].tolist()
        assert len(set(items)) == K + L
        slow = SlowUser(world, user, False)
        assert one(distiller, user) == pytest.approx(slow.cross_entropy(items), rel=1e-4)


# -- chunks, seeds, random streams ------------------------------------------------------------


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_chunks_do_not_change_the_tables() -> None:
    world = make_world()
    whole = refreshed(world)
    for rows in (1, 5):
        parts = refreshed(world, memory_budget_gb=rows * 16 * world.student.n_items / 2**30)
        assert len(list(parts.student_lists(M, False))) == -(-len(parts.users) // rows)
        for name, table in whole.tables().items():
            torch.testing.assert_close(parts.tables()[name], table, rtol=1e-5, atol=1e-6)
        assert parts.epoch_log() == pytest.approx(whole.epoch_log(), rel=1e-5)


def test_a_shard_of_users_is_built_as_in_the_whole() -> None:
    world = make_world()
    whole = refreshed(world)
    shard = make(world)
    shard.users = whole.users[1::3]
    shard.begin_epoch(0, 1)
    for name, table in shard.tables().items():
        wanted = whole.tables()[name][shard.users]
        torch.testing.assert_close(table[shard.users], wanted, rtol=1e-5, atol=1e-6)


def test_seed_and_epoch_decide_the_sample() -> None:
    world = make_world()
    first = refreshed(world, epoch=3)
    assert same(first.tables(), refreshed(world, epoch=3).tables())
    for other in (refreshed(world, epoch=4), refreshed(world, epoch=3, seed=8)):
        tables = other.tables()
        assert torch.equal(tables["items"][:, :K], first.tables()["items"][:, :K])
        assert not torch.equal(tables["items"], first.tables()["items"])


def test_other_random_streams_stay_where_they_are() -> None:
    world = make_world()
    distiller = make(world, kd_rows="user")
    torch.manual_seed(1)
    state = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    distiller.begin_epoch(0, 4)
    distiller.calculate_loss(world.batch())
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert str(np.random.get_state()) == state[2]  # noqa: NPY002
    tables = {name: table.clone() for name, table in distiller.tables().items()}
    torch.manual_seed(2)
    again = refreshed(world)
    assert same(tables, again.tables())


# -- life of a run ----------------------------------------------------------------------------


def watch(distiller: RCEKD, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    epochs: list[int] = []
    real = distiller.refresh

    def refresh(epoch: int) -> dict[str, float]:
        assert not distiller.student.training
        assert not torch.is_grad_enabled()
        epochs.append(epoch)
        return real(epoch)

    monkeypatch.setattr(distiller, "refresh", refresh)
    return epochs


@pytest.mark.parametrize(
    ("every", "start", "expected"),
    [(1, 0, [0, 1, 2, 3, 4, 5, 6]), (3, 0, [0, 3, 6]), (3, 4, [4, 6]), (100, 0, [0])],
)
def test_refresh_every(
    every: int, start: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    distiller = make(make_world(), refresh_every=every)
    epochs = watch(distiller, monkeypatch)
    distiller.train()
    for epoch in range(start, 7):
        distiller.begin_epoch(epoch, 2)
        assert distiller.student.training
    assert epochs == expected


def test_resumed_run_keeps_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world()
    first = refreshed(world, epoch=3, refresh_every=3)
    state = first.resume_state()
    second = make(world, refresh_every=3)
    second.load_resume_state(state)
    epochs = watch(second, monkeypatch)
    second.begin_epoch(4, 1)
    assert epochs == []
    assert same(second.tables(), first.tables())
    assert second.epoch_log() == first.epoch_log()
    first.begin_epoch(4, 1)
    losses = [d.calculate_loss(world.batch())[1].item() for d in (first, second)]
    assert losses[0] == losses[1]


def test_tables_round_trip_through_another_distiller() -> None:
    world = make_world()
    first, second = refreshed(world, epoch=2), make(world)
    stored = {name: table.clone() for name, table in first.tables().items()}
    assert set(stored) == {"items", "p", "q", "drop", "g"}
    second.load_tables(stored)
    rows = Rows(first.users, torch.ones(len(first.users)))
    assert second.kd_loss(rows).item() == first.kd_loss(rows).item()
    assert same(second.tables(), stored)


def test_tables_of_other_sizes_are_refused() -> None:
    world = make_world()
    state = refreshed(world).resume_state()
    with pytest.raises(KDError, match=r"--resume: found the table items of shape \[\d+, 22\]"):
        make(world, rcekd_L=L + 1).load_resume_state(state)


def test_user_rows_visit_everybody_once_an_epoch() -> None:
    world = make_world(n_users=24)
    distiller = make(world, kd_rows="user")
    orders = []
    for epoch, batches in ((0, 5), (1, 5), (2, 1), (3, 22), (4, 40)):
        distiller.begin_epoch(epoch, batches)
        parts = [distiller.rows.next(torch.tensor([1, 1, 2])) for _ in range(batches)]
        users = torch.cat([part.users for part in parts])
        assert sorted(users.tolist()) == distiller.users.tolist()
        sizes = {len(part.users) for part in parts}
        assert max(sizes) - min(sizes) <= 1
        assert all(part.weights.eq(1).all() for part in parts)
        orders.append(users.tolist())
    assert orders[0] != orders[1]


def test_interaction_rows_count_the_batch() -> None:
    world = make_world()
    distiller = refreshed(world, kd_rows="interaction")
    batch = torch.tensor([3, 1, 3, 3, 9, 1, world.student.n_users - 1])
    rows = distiller.rows.next(batch)
    assert rows.users.tolist() == [1, 3, 9]  # the last user has no train interaction
    assert rows.weights.tolist() == [2, 3, 1]
    repeated = distiller.kd_loss(Rows(batch[:-1], torch.ones(6))).item()
    assert distiller.kd_loss(rows).item() == pytest.approx(repeated, rel=1e-5)


def test_a_batch_without_rows_costs_nothing() -> None:
    world = make_world()
    distiller = make(world, kd_rows="user")
    distiller.begin_epoch(0, 100)
    for _ in range(len(distiller.users)):
        distiller.rows.next(torch.tensor([1]))
    base, kd = distiller.calculate_loss(world.batch())
    assert kd.item() == 0
    assert base.item() > 0
    kd.backward()
    gradients = [p.grad for p in distiller.parameters()]
    assert all(g is None or not g.any() for g in gradients)


def test_users_unknown_to_the_teacher_are_not_distilled() -> None:
    world = make_world()
    world.user_ids = torch.arange(world.student.n_users)
    world.user_ids[5] = -1
    for kind in ("user", "interaction", "unique"):
        distiller = refreshed(world, kd_rows=kind)
        assert 5 not in distiller.users.tolist()
        assert 5 not in distiller.rows.next(torch.tensor([5, 6])).users.tolist()
        base, kd = distiller.calculate_loss(world.batch())
        assert torch.isfinite(base + kd)


def test_items_unknown_to_the_teacher_get_no_probability() -> None:
    world = make_world()
    unknown = set(range(2, 60, 3))
    world.item_ids = torch.arange(60)
    world.item_ids[sorted(unknown)] = -1
    distiller = refreshed(world)
    for user in distiller.users.tolist():
        items = distiller.tables()["items"][user].tolist()
        assert not unknown & set(items[K + L :])
        for p, part in (("p", items[:K]), ("q", items[K:])):
            table = distiller.tables()[p][user].tolist()
            assert [v for i, v in zip(part, table, strict=True) if i in unknown].count(0.0) == sum(
                i in unknown for i in part
            )
            assert sum(table) == pytest.approx(1)


def test_ids_of_the_teacher_are_translated() -> None:
    world = make_world()
    plain = refreshed(world).tables()
    users = torch.cat([torch.zeros(1, dtype=torch.int64), torch.arange(13, 0, -1)])
    items = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randperm(59) + 1])
    teacher = world.teacher
    moved_users = torch.zeros_like(teacher.user_embedding.weight)
    moved_users[users] = teacher.user_embedding.weight.detach()
    moved_items = torch.zeros_like(teacher.item_embedding.weight)
    moved_items[items] = teacher.item_embedding.weight.detach()
    world.teacher, world.user_ids, world.item_ids = (
        type(teacher)(moved_users, moved_items),
        users,
        items,
    )
    for name, table in refreshed(world).tables().items():
        torch.testing.assert_close(table, plain[name], rtol=1e-5, atol=1e-6)


def test_a_step_moves_the_student_and_not_the_teacher() -> None:
    world = make_world()
    distiller = refreshed(world, kd_weight=5.0)
    distiller.train()
    assert not world.teacher.training
    teacher = {n: p.clone() for n, p in world.teacher.state_dict().items()}
    student = {n: p.clone() for n, p in world.student.state_dict().items()}
    assert {n.partition(".")[0] for n in distiller.state_dict()} == {"student"}
    assert not any(p.requires_grad for p in world.teacher.parameters())
    optimizer = torch.optim.Adam(distiller.parameters(), lr=0.01, weight_decay=0.1)
    sum(distiller.calculate_loss(world.batch())).backward()
    optimizer.step()
    assert same(world.teacher.state_dict(), teacher)
    assert not any(torch.equal(p, student[n]) for n, p in world.student.state_dict().items())


@pytest.mark.parametrize("model", ["tables", "graph"])
@pytest.mark.parametrize("kd_rows", ["user", "interaction", "unique"])
def test_learning_lowers_the_loss(model: str, kd_rows: str) -> None:
    world = make_world(student=TinyGraph) if model == "graph" else make_world()
    distiller = refreshed(world, kd_rows=kd_rows, rcekd_const=0.5)
    everybody = Rows(distiller.users, torch.ones(len(distiller.users)))
    start = distiller.kd_loss(everybody).item()
    optimizer = torch.optim.Adam(distiller.parameters(), lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        distiller.calculate_loss(world.batch())[1].backward()
        optimizer.step()
    entropy = [
        -(t.clamp_min(1e-30).log() * t).sum(1).mean().item() * 0.5
        for t in (distiller.tables()[n][distiller.users] for n in ("p", "q"))
    ]
    end = distiller.kd_loss(everybody).item()
    assert sum(entropy) < end
    assert end - sum(entropy) < 0.5 * (start - sum(entropy))


def test_a_graph_propagates_once_a_step() -> None:
    world = make_world(student=TinyGraph)
    distiller = make(world)
    distiller.begin_epoch(0, 1)
    assert world.student.calls == 1
    distiller.calculate_loss(world.batch())
    assert world.student.calls == 2


def test_losses_are_weighted_and_logged() -> None:
    world = make_world()
    distiller = refreshed(world, kd_weight=7.0, kd_rows="interaction")
    sums = [0.0, 0.0]
    for seed in (1, 2, 3):
        batch = world.batch(seed=seed)
        base, kd = distiller.calculate_loss(batch)
        raw = distiller.kd_loss(distiller.rows.next(batch["user_id"])).item()
        assert kd.item() == pytest.approx(7 * raw, rel=1e-5)
        assert base.item() == pytest.approx(world.student.calculate_loss(batch).item())
        sums = [sums[0] + base.item(), sums[1] + raw]
    log = distiller.epoch_log()
    assert log["base_loss"] == pytest.approx(sums[0] / 3, rel=1e-5)
    assert log["kd_loss"] == pytest.approx(sums[1] / 3, rel=1e-5)
    distiller.begin_epoch(1, 1)
    assert "kd_loss" not in distiller.epoch_log()


# -- diagnostics ------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [K, 12])
def test_diagnostics_against_brute_force(k: int) -> None:
    world = make_world()
    distiller = refreshed(world, rcekd_K=k)
    student, teacher = exact_scores(world.student), exact_scores(world.teacher)
    overlap, beyond, ndcg = [], [], []
    for user in distiller.users.tolist():
        ours, theirs = best_items(student[user], M), best_items(teacher[user], k)
        overlap.append(len(set(ours[:k]) & set(theirs)) / k)
        beyond.append(len(set(theirs) - set(ours)) / k)
        cut = min(10, k)
        gains = [1 / math.log2(r + 2) for r in range(cut)]
        hits = [g for g, item in zip(gains, ours, strict=False) if item in theirs[:cut]]
        ndcg.append(sum(hits) / sum(gains))
    weights = distiller.tables()["g"][distiller.users]
    expected = {
        "overlap_topk": sum(overlap) / len(overlap),
        "weight_g": weights.mean().item(),
        "teacher_items_beyond_M": sum(beyond) / len(beyond),
        "ndcg@10_vs_teacher": sum(ndcg) / len(ndcg),
    }
    assert distiller.epoch_log() == pytest.approx(expected, rel=1e-5)
    assert all(0 < value < 1 for value in expected.values())


def test_list_ndcg_by_hand() -> None:
    student, teacher = torch.tensor([[5, 6, 7], [1, 2, 3]]), torch.tensor([[7, 9, 5], [3, 2, 1]])
    gain = [1.0, 1 / math.log2(3), 0.5]
    assert list_ndcg(student, teacher, 10).tolist() == pytest.approx(
        [(gain[0] + gain[2]) / sum(gain), 1.0]
    )
    assert list_ndcg(student, teacher, 1).tolist() == [0.0, 0.0]


# -- options ----------------------------------------------------------------------------------

REFUSED = [
    ("kd_weight", -1.0, "numbers from 0"),
    ("kd_weight", "many", "numbers from 0"),
    ("kd_rows", "users", "interaction, unique, user"),
    ("refresh_every", 0, "whole numbers above 0"),
    ("memory_budget_gb", 0, "numbers above 0"),
    ("rcekd_K", 0, "whole numbers above 0"),
    ("rcekd_K", 2.5, "whole numbers above 0"),
    ("rcekd_K", M + 1, f"found rcekd_M={M}"),
    ("rcekd_L", M + 1, f"found rcekd_M={M}"),
    ("rcekd_L", True, "whole numbers above 0"),
    ("rcekd_M", 60, "up to 59"),
    ("rcekd_tau", 0, "numbers above 0"),
    ("rcekd_tau", float("nan"), "numbers above 0"),
    ("rcekd_beta", float("inf"), "numbers from 0"),
    ("rcekd_T", -2.0, "numbers above 0"),
    ("rcekd_beta", -0.1, "numbers from 0"),
    ("rcekd_sampling", "uniform", "closure, rank"),
    ("rcekd_overlap", "student", "sample, student_topk"),
    ("rcekd_target", "all", "topk, difference"),
    ("rcekd_mask_train", "yes", "True, False"),
    ("rcekd_cap", 0, "whole numbers above 0"),
    ("rcekd_const", 1.5, "numbers from 0 to 1"),
    ("rcekd_const", -0.5, "numbers from 0"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), REFUSED)
def test_refused_options(key: str, value: Any, allowed: str) -> None:
    sizes = {"rcekd_K": K, "rcekd_L": L, "rcekd_M": M}
    with pytest.raises(KDError) as refusal:
        make_world().check(RCEKD, **{**sizes, key: value})
    message = str(refusal.value)
    assert message.startswith(f"--{key}={value}: ")
    assert allowed in message
    assert "\n" not in message


class DenseStudent(TinyModel):
    """A student whose own scorer cannot learn."""

    def make_scorer(self, history: UserHistory) -> Scorer:
        return DenseScorer(self, history)


def test_a_student_without_vectors_is_refused() -> None:
    world = make_world(student=DenseStudent)
    with pytest.raises(
        KDError, match=r"^--student=Tiny: .*DenseScorer.* allowed is a FactorScorer$"
    ):
        make(world)


def test_longest_list_depends_on_the_mask() -> None:
    world = make_world()
    most = int(world.history.counts.max())
    short = {"rcekd_K": K, "rcekd_L": L}
    world.check(RCEKD, rcekd_M=59, **short)
    world.check(RCEKD, rcekd_M=59 - most, rcekd_mask_train=True, **short)
    with pytest.raises(KDError, match=rf"--rcekd_M={60 - most}: .* up to {59 - most}$"):
        world.check(RCEKD, rcekd_M=60 - most, rcekd_mask_train=True, **short)
    distiller = refreshed(world, rcekd_M=59 - most, rcekd_mask_train=True)
    for user in distiller.users.tolist():
        assert not world.train_items(user) & set(distiller.tables()["items"][user].tolist())


def test_list_of_all_items() -> None:
    world = make_world()
    distiller = refreshed(world, rcekd_M=59, rcekd_L=20, rcekd_K=15)
    assert distiller.epoch_log()["teacher_items_beyond_M"] == 0
    assert (distiller.tables()["items"][distiller.users] > 0).all()


def test_lists_longer_than_the_data_set_together() -> None:
    """The three sets side by side may be wider than the item table."""
    world = make_world(n_items=30)
    distiller = refreshed(world, rcekd_M=29, rcekd_L=12, rcekd_K=12)
    assert distiller.tables()["items"].shape[1] > world.student.n_items
    _, kd = distiller.calculate_loss(world.batch())
    kd.backward()
    assert torch.isfinite(kd)


def test_row_schedule_of_given_users() -> None:
    users = torch.tensor([2, 5, 6])
    schedule = RowSchedule("interaction", users, 8, seed=0)
    schedule.begin_epoch(0, 3)
    rows = schedule.next(torch.tensor([7, 5, 5, 2]))
    assert (rows.users.tolist(), rows.weights.tolist()) == ([2, 5], [1, 2])
    nobody = schedule.next(torch.tensor([7, 7]))
    assert len(nobody.users) == len(nobody.weights) == 0
