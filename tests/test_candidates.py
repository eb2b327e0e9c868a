"""Candidate sets: look-ups and counts against brute force, the sampler against its exact law."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recbole_kd.candidates import (
    chunk_rows,
    distinct_outside,
    draw_outside,
    geometric_positions,
    gumbel_top_k,
    hits_at_or_below,
    ranks_in,
    sorted_distinct,
)


def permutations(rows: int, n_items: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, n_items, generator=generator).argsort(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exponential(shape: torch.Size, seed: int) -> Tensor:
    return torch.empty(shape).exponential_(generator=generator(seed))


# -- ranks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "n_items", "length", "k"), [(6, 40, 12, 9), (1, 1, 1, 1), (3, 7, 7, 7)]
)
def test_ranks_against_brute_force(rows: int, n_items: int, length: int, k: int) -> None:
    lists, items = permutations(rows, n_items)[:, :length], permutations(rows, n_items, 1)[:, :k]
    ranks = ranks_in(lists, items, n_items)
    for row in range(rows):
        where = {item: rank for rank, item in enumerate(lists[row].tolist())}
        assert ranks[row].tolist() == [where.get(item, length) for item in items[row].tolist()]
    assert ranks.dtype == torch.int64


def test_ranks_use_a_buffer_and_hand_it_back() -> None:
    buffer = torch.full((5, 30), 8, dtype=torch.int32)
    untouched = buffer.clone()
    for rows, seed in ((5, 1), (2, 2), (5, 3), (1, 4)):
        lists, items = permutations(rows, 30, seed)[:, :8], permutations(rows, 30, seed + 50)
        found = ranks_in(lists, items, 30, buffer)
        assert torch.equal(buffer, untouched)
        assert torch.equal(found, ranks_in(lists, items, 30))
        assert (found < 8).sum() == 8 * rows


def test_ranks_of_repeated_items() -> None:
    assert ranks_in(torch.tensor([[4, 2]]), torch.tensor([[2, 2, 0, 4]]), 5).tolist() == [
        [1, 1, 2, 0]
    ]


# -- counts -----------------------------------------------------------------------------------


def test_hits_by_hand() -> None:
    ranks = torch.tensor([[0, 3, 4, 4, 1]])  # a list of 4: two items are outside
    assert hits_at_or_below(ranks, 4).tolist() == [[3, 2, 1, 1]]
    assert hits_at_or_below(ranks, 4, cap=2).tolist() == [[2, 2, 1, 1]]
    assert hits_at_or_below(torch.full((2, 3), 4), 4).tolist() == [[0] * 4] * 2


@pytest.mark.parametrize("cap", [None, 50, 3, 1])
def test_hits_against_brute_force(cap: int | None) -> None:
    lists, items = permutations(20, 90)[:, :80], permutations(20, 90, 1)[:, :75]
    ranks = ranks_in(lists, items, 90)
    counts = hits_at_or_below(ranks, 80, cap)
    for row in range(20):
        wanted = set(items[row].tolist())
        for position in range(80):
            count = len(wanted & set(lists[row, position:].tolist()))
            assert counts[row, position] == (count if cap is None else min(count, cap))
    assert (counts.diff(dim=1) <= 0).all()
    assert counts.max() > 50 if cap is None else counts.max() <= cap


# -- sampling ---------------------------------------------------------------------------------


def exact_law(log_weights: list[float], k: int) -> dict[frozenset[int], float]:
    """Probability of every set of ``k`` successive draws without replacement."""
    weights = [math.exp(w - max(log_weights)) for w in log_weights]
    law: dict[frozenset[int], float] = {}
    for order in itertools.permutations(range(len(weights)), k):
        left, probability = sum(weights), 1.0
        for position in order:
            probability *= weights[position] / left if left > 1e-12 else 0.0
            left -= weights[position]
        law[frozenset(order)] = law.get(frozenset(order), 0.0) + probability
    return law


LOG_WEIGHTS = {
    "flat": [0.0] * 5,
    "steep": [2.5, 1.5, 0.5, -0.5, -1.5],
    "mixed": [0.1, 3.0, -2.0, 1.0, 1.0],
    "far-from-zero": [-900.5, -901.0, -900.0, -902.0, -899.5],
    "large": [1201.0, 1200.0, 1199.0, 1200.5, 1198.0],
}


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("log_weights", LOG_WEIGHTS.values(), ids=LOG_WEIGHTS.keys())
def test_draws_follow_the_law_without_replacement(log_weights: list[float], k: int) -> None:
    draws = 20_000
    many = torch.tensor(log_weights).expand(draws, -1)
    drawn = gumbel_top_k(many, k, exponential(many.shape, k))
    codes, counts = (2**drawn).sum(1).unique(return_counts=True)
    found = dict(zip(codes.tolist(), counts.tolist(), strict=True))
    law = exact_law(log_weights, k)
    assert sum(law.values()) == pytest.approx(1)
    for positions, probability in law.items():
        count = found.pop(sum(2**p for p in positions), 0)
        assert abs(count - draws * probability) < 4.5 * math.sqrt(draws * probability) + 1
    assert not found
    marginals = torch.zeros(draws, 5).scatter_(1, drawn, 1.0).mean(0)
    for position in range(5):
        p = sum(q for positions, q in law.items() if position in positions)
        assert abs(marginals[position].item() - p) < 4.5 * math.sqrt(p * (1 - p) / draws) + 1e-4


def test_draws_are_distinct_and_inside() -> None:
    log_weights = torch.randn(300, 12, generator=generator(3))
    for k in (1, 5, 12):
        drawn = gumbel_top_k(log_weights, k, exponential(log_weights.shape, 4))
        assert drawn.shape == (300, k)
        assert drawn.dtype == torch.int64
        assert drawn.min() >= 0
        assert drawn.max() < 12
        assert (drawn.sort(1).values.diff(dim=1) > 0).all()


def test_impossible_positions_are_never_drawn() -> None:
    log_weights = torch.randn(2000, 8, generator=generator(5))
    impossible = torch.rand(2000, 8, generator=generator(6)) < 0.4
    impossible[:, :3] = False
    possible = log_weights.masked_fill(impossible, -torch.inf)
    drawn = gumbel_top_k(possible, 3, exponential(possible.shape, 7))
    assert impossible.any()
    assert not impossible.gather(1, drawn).any()


def test_draws_depend_on_the_noise_alone() -> None:
    log_weights = torch.randn(50, 30, generator=generator(8))
    noise = exponential(log_weights.shape, 9)
    before = torch.get_rng_state()
    first = gumbel_top_k(log_weights, 6, noise)
    assert torch.equal(gumbel_top_k(log_weights, 6, noise), first)
    assert torch.equal(torch.get_rng_state(), before)
    other = exponential(log_weights.shape, 10)
    assert not torch.equal(gumbel_top_k(log_weights, 6, other), first)


def test_equal_rows_are_drawn_independently() -> None:
    shared = torch.zeros(1, 20).expand(200, -1)
    drawn = gumbel_top_k(shared, 4, exponential(shared.shape, 11)).sort(1).values
    assert len(drawn.unique(dim=0)) > 190


def test_ordered_draws_follow_the_law_of_the_order() -> None:
    """The first drawn comes first: the law of successive draws, order and all."""
    log_weights, draws, k = LOG_WEIGHTS["mixed"], 40_000, 2
    many = torch.tensor(log_weights).expand(draws, -1)
    noise = exponential(many.shape, 20)
    drawn = gumbel_top_k(many, k, noise, ordered=True)
    found = {tuple(order): 0 for order in itertools.permutations(range(5), k)}
    codes, counts = drawn.unique(dim=0, return_counts=True)
    found.update(zip(map(tuple, codes.tolist()), counts.tolist(), strict=True))
    weights = [math.exp(w) for w in log_weights]
    for (first, second), count in found.items():
        p = weights[first] / sum(weights) * weights[second] / (sum(weights) - weights[first])
        assert abs(count - draws * p) < 4.5 * math.sqrt(draws * p) + 1
    unordered = gumbel_top_k(many, k, noise)
    assert torch.equal(unordered.sort(1).values, drawn.sort(1).values)


# -- positions --------------------------------------------------------------------------------


def geometric_law(length: int, scale: float) -> list[float]:
    weights = [math.exp(-r / scale) for r in range(length)]
    return [w / sum(weights) for w in weights]


SCALES = [(1, 20.0), (7, 0.3), (12, 5.0), (40, 20.0), (9, 1e6)]


@pytest.mark.parametrize(("length", "scale"), SCALES)
def test_positions_invert_their_law(length: int, scale: float) -> None:
    """A position is drawn for exactly the share of uniform numbers that is its probability."""
    law = geometric_law(length, scale)
    edges = list(itertools.accumulate(law, initial=0.0))
    inside = [
        (a + (b - a) * f, r)
        for r, (a, b) in enumerate(itertools.pairwise(edges))
        for f in (1e-6, 0.5, 1 - 1e-6)
        if b - a > 1e-9
    ]
    uniform = torch.tensor([[u for u, _ in inside]], dtype=torch.float64)
    found = geometric_positions(uniform, torch.tensor([[length]]), scale)
    assert found[0].tolist() == [r for _, r in inside]
    assert found.dtype == torch.int64
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    counts = geometric_positions(grid, torch.tensor(length), scale).bincount(minlength=length)
    for count, probability in zip(counts.tolist(), law, strict=True):
        assert abs(count / 100_000 - probability) <= 2e-5


@pytest.mark.parametrize(("length", "scale"), SCALES)
def test_positions_come_as_often_as_likely(length: int, scale: float) -> None:
    draws = 20_000
    uniform = torch.rand(draws, 1, dtype=torch.float64, generator=generator(12))
    found = geometric_positions(uniform, torch.full((draws, 1), length), scale)
    counts = found.flatten().bincount(minlength=length)
    for count, p in zip(counts.tolist(), geometric_law(length, scale), strict=True):
        assert abs(count - draws * p) < 4.5 * math.sqrt(draws * p) + 1


def test_positions_of_extreme_draws_stay_in_their_list() -> None:
    ends = torch.tensor([0.0, 1e-300, 0.5005, 1 - 2**-53], dtype=torch.float64).expand(4, -1)
    lengths = torch.tensor([1, 2, 30, 1000]).unsqueeze(1)
    for scale in (1e-3, 1.0, 1e9, lengths.double() * 20):
        found = geometric_positions(ends, lengths, scale)
        assert (found >= 0).all()
        assert (found < lengths).all()
        assert not found[:, :2].any()
        assert (found.diff(dim=1) >= 0).all()
    even = geometric_positions(ends, lengths, 1e9)
    assert even[:, 3].tolist() == [0, 1, 29, 999]
    assert even[:, 2].tolist() == [0, 1, 15, 500]


def test_lengths_and_scales_go_by_row() -> None:
    uniform = torch.rand(3, 50, 2, dtype=torch.float64, generator=generator(13))
    lengths, scales = torch.tensor([4, 9, 30]), torch.tensor([2.0, 0.5, 9.0])
    whole = geometric_positions(uniform, lengths.view(-1, 1, 1), scales.view(-1, 1, 1))
    for row in range(3):
        alone = geometric_positions(uniform[row], lengths[row], scales[row].item())
        assert torch.equal(whole[row], alone)


# -- items that are not excluded --------------------------------------------------------------


def excluded_rows(n_items: int) -> list[list[int]]:
    """Every set of items that may be left out, padding always, at least one item left."""
    others = range(1, n_items)
    return [
        [0, *subset]
        for size in range(n_items - 1)
        for subset in itertools.combinations(others, size)
    ]


def padded(rows: list[list[int]], fill: int = 0) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def test_distinct_ids_are_sorted_and_filled_up() -> None:
    ids = torch.tensor([[4, 0, 4, 2, 0], [1, 1, 1, 1, 1], [5, 4, 3, 2, 1]])
    before = ids.clone()
    found = sorted_distinct(ids, 6)
    assert found.tolist() == [[0, 2, 4, 6, 6], [1, 6, 6, 6, 6], [1, 2, 3, 4, 5]]
    assert torch.equal(ids, before)
    many = torch.randint(0, 9, (200, 7), generator=generator(14))
    for row, wanted in zip(sorted_distinct(many, 9).tolist(), many.tolist(), strict=True):
        kept = sorted(set(wanted))
        assert row == kept + [9] * (7 - len(kept))


def test_every_item_outside_is_drawn_equally_often_and_no_other() -> None:
    """All sets that can be left out of seven items, by a grid that each rank meets alike."""
    n_items, times = 7, 60
    rows = excluded_rows(n_items)
    excluded = sorted_distinct(padded(rows), n_items)
    grid = (torch.arange(6 * times, dtype=torch.float64) + 0.5) / (6 * times)
    drawn = draw_outside(grid.expand(len(rows), -1), excluded, n_items)
    for row, found in zip(rows, drawn.tolist(), strict=True):
        allowed = [i for i in range(n_items) if i not in row]
        counts = [found.count(item) for item in range(n_items)]
        each = 6 * times / len(allowed)
        assert [i for i, count in enumerate(counts) if count] == allowed
        assert all(abs(counts[item] - each) <= 1 for item in allowed)


def test_draws_outside_at_the_ends_of_the_unit_interval() -> None:
    excluded = sorted_distinct(padded([[0], [0, 1, 2], [0, 8, 9], [0, *range(2, 10)]]), 10)
    ends = torch.tensor([0.0, 1 - 2**-53, 1.0], dtype=torch.float64).expand(4, -1)
    assert draw_outside(ends, excluded, 10).tolist() == [[1, 9, 9], [3, 9, 9], [1, 7, 7], [1] * 3]


def test_draws_outside_large_exclusions_by_brute_force() -> None:
    n_items = 500
    ids = torch.randint(1, n_items, (20, 300), generator=generator(15))
    ids[:, 0] = 0
    excluded = sorted_distinct(ids, n_items)
    uniform = torch.rand(20, 400, dtype=torch.float64, generator=generator(16))
    drawn = draw_outside(uniform, excluded, n_items)
    for row in range(20):
        left = sorted(set(range(n_items)) - set(ids[row].tolist()))
        wanted = [left[int(u * len(left))] for u in uniform[row].tolist()]
        assert drawn[row].tolist() == wanted
    short = draw_outside(uniform, excluded.int(), n_items)
    assert torch.equal(short, drawn)
    assert short.dtype == drawn.dtype == torch.int64


def keyed_uniform(seed: int) -> Callable[[Tensor, int], Tensor]:
    """Draws that depend on the row and the width alone, as a distiller's do."""

    def draw(rows: Tensor, width: int) -> Tensor:
        parts = [
            torch.rand(width, dtype=torch.float64, generator=generator(seed + 1000 * row + width))
            for row in rows.tolist()
        ]
        return torch.stack(parts)

    return draw


def test_distinct_draws_are_distinct_and_outside() -> None:
    n_items = 60
    ids = torch.randint(1, n_items, (30, 25), generator=generator(17))
    ids[:, 0] = 0
    excluded = sorted_distinct(ids, n_items)
    for k in (1, 10, 34):
        drawn = distinct_outside(keyed_uniform(1), excluded, k, n_items)
        assert drawn.shape == (30, k)
        for row, found in zip(ids.tolist(), drawn.tolist(), strict=True):
            assert len(set(found)) == k
            assert not set(found) & set(row)
            assert all(0 < item < n_items for item in found)


def test_distinct_draws_take_all_that_is_left() -> None:
    for n_items in (2, 7, 40):
        rows = [[0], [0, *range(1, n_items, 2)]] if n_items > 2 else [[0]]
        for row in rows:
            left = [i for i in range(n_items) if i not in row]
            excluded = sorted_distinct(torch.tensor([row]).repeat(5, 1), n_items)
            drawn = distinct_outside(keyed_uniform(2), excluded, len(left), n_items)
            assert [sorted(found) for found in drawn.tolist()] == [left] * 5


@pytest.mark.parametrize(("excluded", "k"), [([0], 2), ([0, 3], 2), ([0, 2, 5], 3), ([0, 1], 1)])
def test_all_sets_of_distinct_draws_are_equally_likely(excluded: list[int], k: int) -> None:
    n_items, rows = 7, 12_000
    source = generator(18)
    table = sorted_distinct(torch.tensor([excluded]).repeat(rows, 1), n_items)

    def uniform(chosen: Tensor, width: int) -> Tensor:
        return torch.rand(len(chosen), width, dtype=torch.float64, generator=source)

    drawn = distinct_outside(uniform, table, k, n_items)
    left = [i for i in range(n_items) if i not in excluded]
    # In order even: the first distinct draws are successive draws without replacement.
    law = {order: 0 for order in itertools.permutations(left, k)}
    for order in drawn.tolist():
        law[tuple(order)] += 1
    expected = rows / len(law)
    assert all(abs(count - expected) < 4.5 * math.sqrt(expected) for count in law.values())


def test_distinct_draws_of_a_row_do_not_depend_on_other_rows() -> None:
    n_items = 30
    rows = [[0], [0, *range(1, 20)], [0, 4, 9], [0, *range(3, 28)]]
    excluded = sorted_distinct(padded(rows), n_items)
    k = 4
    whole = distinct_outside(keyed_uniform(3), excluded, k, n_items)
    for row in range(len(rows)):

        def alone(_: Tensor, width: int, row: int = row) -> Tensor:
            return keyed_uniform(3)(torch.tensor([row]), width)

        assert torch.equal(
            distinct_outside(alone, excluded[row : row + 1], k, n_items)[0], whole[row]
        )


# -- chunks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bytes_per_row", "budget_gb", "at_most", "rows"),
    [
        (2**20, 0.5, 10_000, 512),
        (2**20, 0.5, 100, 100),
        (2**20 + 1, 0.5, 10_000, 511),
        (2**40, 0.5, 10_000, 1),
        (1, 1e-12, 10_000, 1),
        (16, 1.0, 0, 1),
        (0, 2.0**-20, 5000, 1024),
    ],
)
def test_chunk_rows(bytes_per_row: int, budget_gb: float, at_most: int, rows: int) -> None:
    found = chunk_rows(bytes_per_row, budget_gb, at_most)
    assert isinstance(found, int)
    assert found == rows
