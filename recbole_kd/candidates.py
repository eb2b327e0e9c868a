"""Candidate item sets: pure tensor functions, with their random numbers as an argument.

All sets are keyed by user, row first; ranks are 0-based positions, best first.
"""

from __future__ import annotations

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


def gumbel_top_k(log_weights: Tensor, k: int, noise: Tensor) -> Tensor:
    """Draw ``k`` positions a row without replacement, with the given log-weights.

    The ``k`` largest of log-weight plus Gumbel noise have the law of successive draws without
    replacement (Vieira 2014; Kool et al. 2019), and nothing is exponentiated.

    Args:
        log_weights: Unnormalised log-weights, ``[C, M]``; ``-inf`` is never drawn unless a row has
            fewer than ``k`` other positions.
        k: Number of draws, at most ``M``.
        noise: Independent draws of the exponential distribution of mean 1, ``[C, M]``;
            minus their logarithm is Gumbel noise.

    Returns:
        Positions, ``[C, k]``, int64, distinct within a row.
    """
    return (log_weights - noise.log()).topk(k, dim=1, sorted=False).indices


def chunk_rows(bytes_per_row: int, budget_gb: float, at_most: int) -> int:
    """Rows of a chunk that fit a memory budget: at least 1, at most ``at_most``.

    Args:
        bytes_per_row: Working memory of one row, in bytes.
        budget_gb: Budget in GiB.
        at_most: Upper limit.
    """
    return int(min(max(1, budget_gb * 2**30 // max(1, bytes_per_row)), max(1, at_most)))
