"""Pure losses that several methods share. Tensors in, tensor out: no model, no ids, no randomness.

Axis order is ``[B, K]``, rows first. Nothing here exponentiates a raw score, so float32 scores of
+-100 and far beyond are safe.
"""

from __future__ import annotations

import torch
from torch import Tensor


def soft_targets(logits: Tensor, tau: float, drop: Tensor | None = None) -> Tensor:
    """Softmax of ``logits / tau`` over the entries that are kept.

    Args:
        logits: Scores, ``[B, K]``, float.
        tau: Temperature, above 0.
        drop: Entries outside the set, ``[B, K]``, bool. A row must keep at least one entry.

    Returns:
        Probabilities, ``[B, K]``; 0 where dropped.
    """
    scaled = logits / tau
    if drop is not None:
        scaled = scaled.masked_fill(drop, -torch.inf)
    return scaled.softmax(dim=-1)


def soft_cross_entropy(
    logits: Tensor, targets: Tensor, tau: float, drop: Tensor | None = None
) -> Tensor:
    """Cross-entropy between given probabilities and the softmax of ``logits / tau``.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), restricted to
    an item set. There is no factor ``tau ** 2``.

    Args:
        logits: Student scores, ``[B, K]``, float.
        targets: Teacher probabilities, ``[B, K]``, without gradient; 0 where dropped.
        tau: Temperature of the student's softmax, above 0.
        drop: Entries outside the set, ``[B, K]``, bool.

    Returns:
        One loss a row, ``[B]``.
    """
    scaled = logits / tau
    if drop is not None:
        scaled = scaled.masked_fill(drop, -torch.inf)
    log_probabilities = scaled.log_softmax(dim=-1)
    if drop is not None:
        # 0 * -inf would be NaN; the target is 0 there in any case.
        log_probabilities = log_probabilities.masked_fill(drop, 0.0)
    return -(targets * log_probabilities).sum(dim=-1)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Mean of per-row losses, a row counting ``weights`` times.

    Args:
        losses: One loss a row, ``[B]``.
        weights: How many rows each stands for, ``[B]``.

    Returns:
        Scalar; 0 with a gradient of 0 where there is no row.
    """
    return (losses * weights).sum() / weights.sum().clamp_min(1)
