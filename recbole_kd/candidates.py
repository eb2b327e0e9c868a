"""Candidate item sets: pure tensor functions, with their random numbers as an argument.

All sets are keyed by user, row first; ranks are 0-based positions, best first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def ranks_in(lists: Tensor, items: Tensor, n_items: int, buffer: Tensor | None = None) -> Tensor:
    """Position of each item in its row's list.

    Args:
        lists: Distinct item ids, ``[C, M]``, int64.
        items: Item ids to look up, ``[C, K]``, int64.
        n_items: Number of items; ids are below it.
        buffer: Scratch ``[>= C, n_items]``, int32, all entries equal to ``M``. It is handed back
            in that state, so that one buffer serves a whole pass.

    Returns:
        Ranks, ``[C, K]``, int64; ``M`` where the item is not in the list.
    """
    rows, length = lists.shape
    if buffer is None:
        buffer = torch.full((rows, n_items), length, dtype=torch.int32, device=lists.device)
    view = buffer[:rows]
    positions = torch.arange(length, dtype=torch.int32, device=lists.device).expand(rows, -1)
    view.scatter_(1, lists, positions)
    ranks = view.gather(1, items)
    view.scatter_(1, lists, length)
    return ranks.long()


def hits_at_or_below(ranks: Tensor, length: int, cap: int | None = None) -> Tensor:
    """For each list position, how many looked-up items lie there or further down the list.

    RCE-KD's ``c_r`` (Zhu and Zhang 2025, released code).

    Args:
        ranks: Ranks of the teacher's items in the student's list, ``[C, K]``; ``length`` outside.
        length: Length ``M`` of the list.
        cap: Upper limit of the counts, or ``None``.

    Returns:
        Counts, ``[C, M]``, int64, non-increasing along a row.
    """
    hits = torch.zeros(ranks.shape[0], length + 1, dtype=torch.int64, device=ranks.device)
    hits.scatter_add_(1, ranks, torch.ones_like(ranks))
    counts = hits[:, :length].flip(1).cumsum(1).flip(1)
    return counts if cap is None else counts.clamp_max(cap)


def rank_log_weights(length: int, temperature: float) -> Tensor:
    """Log-weights ``-(r + 1) / T`` of the positions of a list, ``[length]``, float64."""
    return -torch.arange(1, length + 1, dtype=torch.float64) / temperature


def gumbel_top_k(log_weights: Tensor, k: int, noise: Tensor, ordered: bool = False) -> Tensor:
    """Draw ``k`` positions a row without replacement, with the given log-weights.

    The ``k`` largest of log-weight plus Gumbel noise have the law of successive draws without
    replacement (Vieira 2014; Kool et al. 2019), and nothing is exponentiated.

    Args:
        log_weights: Unnormalised log-weights, ``[C, M]``; ``-inf`` is never drawn unless a row has
            fewer than ``k`` other positions.
        k: Number of draws, at most ``M``.
        noise: Independent draws of the exponential distribution of mean 1, ``[C, M]``;
            minus their logarithm is Gumbel noise.
        ordered: Whether the positions come in the order in which they are drawn, or in none.

    Returns:
        Positions, ``[C, k]``, int64, distinct within a row.
    """
    return (log_weights - noise.log()).topk(k, dim=1, sorted=ordered).indices


def geometric_positions(uniform: Tensor, lengths: Tensor, scale: float | Tensor) -> Tensor:
    """Draw positions ``r < lengths`` with weights ``exp(-r / scale)``, by the inverse of their law.

    Args:
        uniform: Independent uniform draws, ``[C, ...]``, float64.
        lengths: Length of each row's list, at least 1; its shape broadcasts with ``uniform``.
        scale: Positions over which a weight falls by a factor of e, above 0.

    Returns:
        Positions in the shape of ``uniform``, int64.
    """
    positions = -scale * torch.log1p(uniform * torch.expm1(-lengths.double() / scale))
    return torch.minimum(positions.floor().long().clamp_min(0), lengths - 1)


def sorted_distinct(ids: Tensor, n_items: int) -> Tensor:
    """Each row's ids ascending and once, filled up with ``n_items``.

    Args:
        ids: Item ids, ``[C, X]``, int64.
        n_items: Number of items; ids are below it.
    """
    ids = ids.sort(1).values
    repeated = torch.zeros_like(ids, dtype=torch.bool)
    repeated[:, 1:] = ids[:, 1:] == ids[:, :-1]
    return ids.masked_fill(repeated, n_items).sort(1).values


def draw_outside(uniform: Tensor, excluded: Tensor, n_items: int) -> Tensor:
    """Draw items that are not excluded, uniformly and with replacement.

    A draw is a rank among the items that remain; the rank becomes an id by stepping over the
    excluded ids below it, so that nothing is rejected and no mask over all items is made.

    Args:
        uniform: Independent uniform draws, ``[C, W]``, float64.
        excluded: Result of :func:`sorted_distinct`, ``[C, X]``, int64 or int32; padding is one of
            them.
        n_items: Number of items. A row must leave at least one.

    Returns:
        Item ids, ``[C, W]``, int64.
    """
    filled = excluded == n_items
    left = n_items - excluded.shape[1] + filled.sum(1, keepdim=True)
    ranks = torch.minimum((uniform * left).to(excluded.dtype), (left - 1).to(excluded.dtype))
    columns = torch.arange(excluded.shape[1], dtype=excluded.dtype, device=excluded.device)
    before = (excluded - columns).masked_fill_(filled, n_items)
    return ranks + torch.searchsorted(before, ranks, right=True)


def distinct_outside(
    uniform: Callable[[Tensor, int], Tensor], excluded: Tensor, k: int, n_items: int
) -> Tensor:
    """Draw ``k`` distinct items a row that are not excluded, all sets being equally likely.

    Args:
        uniform: Gives independent uniform draws ``[R, width]`` for the rows ``[R]`` asked for.
        excluded: Result of :func:`sorted_distinct`, ``[C, X]``. A row must leave ``k`` items.
        k: Number of draws.
        n_items: Number of items.

    Returns:
        Item ids, ``[C, k]``, int64.
    """
    found = torch.zeros(len(excluded), k, dtype=torch.int64, device=excluded.device)
    rows = torch.arange(len(excluded), device=excluded.device)
    width = k + k // 4 + 8
    while len(rows):
        drawn = draw_outside(uniform(rows, width), excluded[rows], n_items)
        places = torch.arange(width, device=drawn.device).expand_as(drawn)
        order = drawn.argsort(dim=1, stable=True)
        ranked = drawn.gather(1, order)
        new = torch.ones_like(ranked, dtype=torch.bool)
        new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
        first = torch.zeros_like(new).scatter_(1, order, new)
        chosen = places.masked_fill(~first, width).sort(1).values[:, :k]
        enough = first.sum(1) >= k
        found[rows[enough]] = drawn[enough].gather(1, chosen[enough])
        rows, width = rows[~enough], 2 * width
    return found


def list_ndcg(student: Tensor, teacher: Tensor, k: int) -> Tensor:
    """NDCG@k of student lists where the teacher's first ``k`` items are the relevant ones.

    Args:
        student: Student's items, best first, ``[C, >= k]``.
        teacher: Teacher's items, best first, ``[C, >= k]``.
        k: Cut-off; cut to the shorter list.

    Returns:
        One value a row, ``[C]``, between 0 and 1.
    """
    k = min(k, student.shape[1], teacher.shape[1])
    hit = (student[:, :k, None] == teacher[:, None, :k]).any(-1)
    discount = 1 / torch.arange(2, k + 2, device=student.device).float().log2()
    return (hit * discount).sum(1) / discount.sum()


def chunk_rows(bytes_per_row: int, budget_gb: float, at_most: int) -> int:
    """Rows of a chunk that fit a memory budget: at least 1, at most ``at_most``.

    Args:
        bytes_per_row: Working memory of one row, in bytes.
        budget_gb: Budget in GiB.
        at_most: Upper limit.
    """
    return int(min(max(1, budget_gb * 2**30 // max(1, bytes_per_row)), max(1, at_most)))
