"""Groups of items that are about as popular as each other."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def popularity_order(items: Tensor, n_items: int) -> tuple[Tensor, Tensor]:
    """Items by their number of interactions; ties in the order of their first appearance.

    Args:
        items: Item of each train interaction, ``[N]``, int64.
        n_items: Number of items, padding included.

    Returns:
        Items with an interaction, most popular first, and the counts by item id, ``[n_items]``.
    """
    counts = torch.bincount(items, minlength=n_items)
    first = torch.full_like(counts, len(items))
    first.scatter_reduce_(0, items, torch.arange(len(items)), "amin")
    order = first.argsort(stable=True)[: int((counts > 0).sum())]
    return order[counts[order].argsort(descending=True, stable=True)], counts


def popularity_groups(order: Tensor, counts: Tensor, number: int) -> list[Tensor]:
    """Cut items into groups of about the same number of interactions.

    A group takes items until the next would lift it above ``total / number``; an item above that
    is a group alone. A remainder of at most half of that joins the group before it.

    Args:
        order: Items, most popular first, ``[I]``, int64.
        counts: Their train interactions, ``[I]``, int64, above 0.
        number: Groups aimed at; there may be more.

    Returns:
        The items of each group, most popular first.
    """
    sums = counts.cumsum(0)
    share = float(sums[-1]) / number
    starts = [0]
    while starts[-1] < len(order):
        start = starts[-1]
        before = float(sums[start - 1]) if start else 0.0
        end = int(torch.searchsorted(sums.double(), before + share, right=True))
        starts.append(max(end, start + 1))
    last = starts[-2]
    rest = float(sums[-1] - sums[last - 1]) if last else share
    if len(starts) > 2 and rest <= share / 2:
        del starts[-2]
    return [order[a:b] for a, b in pairwise(starts)]


def group_pairs(groups: list[Tensor], counts: Tensor, power: float, pairs: int) -> list[int]:
    """How many pairs a user draws from each group.

    Args:
        groups: Result of :func:`popularity_groups`.
        counts: Train interactions by item id.
        power: Exponent of the groups' shares: 0 for equal ones, above for the unpopular.
        pairs: Pairs of a user; rounding may give more.
    """
    mean = torch.stack([counts[g].double().mean() for g in groups])
    share = mean.max() + mean.min() - mean
    kept = [max(0.1, round(x, 2)) for x in (share / share.sum()).tolist()]
    share = torch.tensor(kept, dtype=torch.float64) ** power
    found = [round(x * pairs) for x in (share / share.sum()).tolist()]
    for group in range(max(0, min(len(found), pairs - sum(found)))):
        found[group] += 1
    return found
