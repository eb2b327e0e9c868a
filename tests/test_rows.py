"""Which users a step distils, and how much each counts, for every kind of row."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from recbole_kd.rows import ROW_KINDS, Rows, RowSchedule

USERS = torch.tensor([2, 3, 5, 6, 9])
BATCH = torch.tensor([5, 3, 5, 8, 5, 2, 8, 2])  # 8 may not be distilled


def schedule(kind: str, batches: int = 1, seed: int = 0, epoch: int = 0) -> RowSchedule:
    made = RowSchedule(kind, USERS, 10, seed)
    made.begin_epoch(epoch, batches)
    return made


def test_kinds() -> None:
    assert set(ROW_KINDS) == {"interaction", "unique", "user"}


def test_interaction_rows_count_each_interaction() -> None:
    rows = schedule("interaction").next(BATCH)
    assert (rows.users.tolist(), rows.weights.tolist()) == ([2, 3, 5], [2, 1, 3])
    losses = torch.tensor([1.0, 10.0, 100.0])
    assert rows.mean(losses).item() == pytest.approx((2 * 1 + 10 + 3 * 100) / 6)


def test_unique_rows_are_each_user_once_over_the_rows_of_the_batch() -> None:
    rows = schedule("unique").next(BATCH)
    assert (rows.users.tolist(), rows.weights.tolist()) == ([2, 3, 5], [1, 1, 1])
    assert rows.total is not None
    losses = torch.tensor([1.0, 10.0, 100.0])
    # Six rows of the batch belong to users that are distilled.
    assert rows.mean(losses).item() == pytest.approx(111 / 6)


def test_unique_and_interaction_rows_agree_where_nobody_is_repeated() -> None:
    batch, losses = torch.tensor([9, 2, 6]), torch.tensor([3.0, 4.0, 8.0])
    means = [schedule(kind).next(batch).mean(losses).item() for kind in ("interaction", "unique")]
    assert means == [5.0, 5.0]


def test_user_rows_have_nothing_to_do_with_the_batch() -> None:
    dealt = schedule("user", batches=2)
    parts = [dealt.next(BATCH), dealt.next(torch.tensor([8]))]
    assert sorted(torch.cat([p.users for p in parts]).tolist()) == USERS.tolist()
    assert sorted(len(p.users) for p in parts) == [2, 3]
    losses = torch.tensor([1.0, 2.0, 6.0])[: len(parts[0].users)]
    assert parts[0].mean(losses).item() == pytest.approx(losses.mean().item())


@pytest.mark.parametrize("kind", ROW_KINDS)
def test_rows_against_a_counter(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        batch = torch.randint(1, 10, (17,), generator=generator)
        rows = schedule(kind).next(batch)
        counts = Counter(u for u in batch.tolist() if u in USERS.tolist())
        losses = torch.rand(len(rows.users), generator=generator)
        of = dict(zip(rows.users.tolist(), losses.tolist(), strict=True))
        if kind == "interaction":
            wanted = sum(of[user] * n for user, n in counts.items()) / counts.total()
        else:
            rows_of = {"unique": counts.total(), "user": len(USERS)}
            wanted = sum(of.values()) / rows_of[kind]
            assert set(of) == (set(counts) if kind == "unique" else set(USERS.tolist()))
        assert rows.mean(losses).item() == pytest.approx(wanted)
        assert rows.weights.dtype == torch.float32


@pytest.mark.parametrize("kind", ROW_KINDS)
def test_a_batch_of_nobody_is_zero_with_a_gradient_of_zero(kind: str) -> None:
    dealt = schedule(kind, batches=9)
    for _ in range(8):
        rows = dealt.next(torch.tensor([8, 8]))
    losses = torch.ones(len(rows.users), requires_grad=True)
    mean = rows.mean(losses * 3)
    assert len(rows.users) == 0
    assert mean.item() == 0
    mean.backward()
    assert not losses.grad.any()


@pytest.mark.parametrize("kind", ROW_KINDS)
def test_gradients_are_the_weights_over_the_total(kind: str) -> None:
    rows = schedule(kind).next(BATCH)
    losses = torch.ones(len(rows.users), requires_grad=True)
    rows.mean(losses).backward()
    total = {"interaction": 6.0, "unique": 6.0, "user": 5.0}[kind]
    torch.testing.assert_close(losses.grad, rows.weights / total)


def orders(seed: int, epoch: int) -> list[list[int]]:
    dealt = schedule("user", 2, seed, epoch)
    return [dealt.next(BATCH).users.tolist() for _ in range(2)]


def test_the_order_of_users_goes_by_seed_and_epoch() -> None:
    before = torch.get_rng_state()
    assert orders(3, 1) == orders(3, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert len({str(orders(seed, epoch)) for seed in range(3) for epoch in range(3)}) > 6


@pytest.mark.parametrize("kind", ["interaction", "unique"])
def test_rows_of_a_batch_depend_on_the_batch_alone(kind: str) -> None:
    def flat(rows: Rows) -> list[Tensor | None]:
        return [rows.users, rows.weights, rows.total]

    first = flat(schedule(kind, 3, seed=1, epoch=4).next(BATCH))
    second = flat(schedule(kind, 1, seed=2, epoch=0).next(BATCH.flip(0)))
    for a, b in zip(first, second, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
