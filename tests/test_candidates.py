"""Candidate sets: look-ups and counts against brute force, the sampler against its exact law."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from recbole_kd.candidates import chunk_rows, gumbel_top_k, hits_at_or_below, ranks_in


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
