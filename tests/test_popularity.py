"""Groups of items by popularity: hand numbers and plain loops."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from recbole_kd.popularity import group_pairs, popularity_groups, popularity_order


def drawn_items(n: int, n_items: int, seed: int, skew: float = 1.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(n, generator=generator)
    return 1 + (uniform**skew * (n_items - 1)).long().clamp_max(n_items - 2)


# -- order -------------------------------------------------------------------------------------


def test_items_come_by_popularity_and_then_by_their_first_row() -> None:
    order, counts = popularity_order(torch.tensor([5, 2, 7, 2, 5, 3]), 9)
    assert order.tolist() == [5, 2, 7, 3]
    assert counts.tolist() == [0, 0, 2, 1, 0, 2, 0, 1, 0]


@pytest.mark.parametrize("seed", range(4))
def test_the_order_against_a_counter(seed: int) -> None:
    items = drawn_items(200, 40, seed)
    # A Counter keeps the order of first appearance, and its sort is stable.
    wanted = [item for item, _ in Counter(items.tolist()).most_common()]
    order, counts = popularity_order(items, 45)
    assert order.tolist() == wanted
    assert counts.tolist() == [items.tolist().count(item) for item in range(45)]


# -- groups ------------------------------------------------------------------------------------


def slow_groups(sizes: list[int], number: int) -> list[int]:
    """Number of items of each group, one item at a time and in exact numbers."""
    share = Fraction(sum(sizes), number)
    groups: list[list[int]] = []
    for size in sizes:
        if groups and sum(groups[-1]) + size <= share:
            groups[-1].append(size)
        else:
            groups.append([size])
    if len(groups) > 1 and sum(groups[-1]) <= share / 2:
        last = groups.pop()
        groups[-1] += last
    return [len(group) for group in groups]


@pytest.mark.parametrize(
    ("sizes", "number", "wanted"),
    [
        ([5, 5, 5, 5], 2, [2, 2]),
        ([10, 4, 3, 2, 1], 2, [1, 4]),
        ([12, 4, 2, 1, 1], 2, [1, 4]),  # the first is above the share and alone
        ([4, 4, 4, 3], 2, [1, 1, 2]),  # of 7.5: two fours are too many, a four and a three not
        ([6, 6, 6, 2], 2, [1, 1, 2]),
        ([1], 5, [1]),
        ([3, 2, 1], 1, [3]),
        ([1, 1, 1], 3, [1, 1, 1]),
        ([9, 1], 2, [2]),  # a remainder of at most half of the share joins
    ],
)
def test_groups_by_hand(sizes: list[int], number: int, wanted: list[int]) -> None:
    order = torch.arange(len(sizes)) + 10
    groups = popularity_groups(order, torch.tensor(sizes), number)
    assert [len(group) for group in groups] == wanted == slow_groups(sizes, number)
    assert torch.cat(groups).tolist() == order.tolist()


@pytest.mark.parametrize("number", [1, 2, 3, 5, 10, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_groups_against_a_loop(number: int, seed: int) -> None:
    order, counts = popularity_order(drawn_items(500, 80, seed, 1 + seed), 80)
    sizes = counts[order]
    groups = popularity_groups(order, sizes, number)
    assert [len(group) for group in groups] == slow_groups(sizes.tolist(), number)
    assert torch.cat(groups).tolist() == order.tolist()
    assert all(len(group) for group in groups)
    share = 500 / number
    for group in groups[:-1]:
        assert len(group) == 1 or counts[group].sum() <= share


# -- pairs -------------------------------------------------------------------------------------


def groups_of(means: list[int]) -> tuple[list[Tensor], Tensor]:
    """Groups of two items each, of given mean popularity."""
    counts = torch.zeros(1 + 2 * len(means), dtype=torch.int64)
    counts[1:] = torch.tensor(means).repeat_interleave(2)
    return list(torch.arange(1, len(counts)).split(2)), counts


@pytest.mark.parametrize("pairs", [1, 2, 4, 7, 30])
@pytest.mark.parametrize("means", [[5], [9, 2], [50, 8, 3], [100, 30, 9, 4, 1]])
def test_without_a_power_all_groups_are_alike(means: list[int], pairs: int) -> None:
    found = group_pairs(*groups_of(means), 0.0, pairs)
    assert len(found) == len(means)
    assert max(found) - min(found) <= 1
    assert pairs <= sum(found) <= pairs + len(means)
    if pairs % len(means) == 0:
        assert found == [pairs // len(means)] * len(means)


def test_pairs_by_hand() -> None:
    groups, counts = groups_of([9, 1])
    # Shares 1 and 9 of 10: 0.1 and 0.9.
    assert group_pairs(groups, counts, 1.0, 10) == [1, 9]
    # 0.1 ** 2 and 0.9 ** 2 of 0.82: 0.0122 and 0.9878.
    assert group_pairs(groups, counts, 2.0, 10) == [0, 10]
    assert group_pairs(groups, counts, 2.0, 100) == [1, 99]
    # A share is at least 0.1: 1 of 100 becomes 0.1 beside 0.99.
    assert group_pairs(*groups_of([99, 1]), 1.0, 109) == [10, 99]


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_unpopular_groups_get_more(power: float) -> None:
    groups, counts = groups_of([60, 30, 12, 5])
    found = group_pairs(groups, counts, power, 1000)
    assert found == sorted(found)
    assert found[0] < found[-1]
    assert sum(found) == pytest.approx(1000, abs=4)


@pytest.mark.parametrize("pairs", range(1, 12))
@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_no_pair_is_lost_in_rounding(power: float, pairs: int) -> None:
    for means in ([9, 2], [50, 8, 3], [100, 30, 9, 4, 1], [4, 4, 4, 4, 4, 4, 4]):
        found = group_pairs(*groups_of(means), power, pairs)
        assert sum(found) >= pairs
        assert min(found) >= 0
