"""Pure losses that several methods share. Tensors in, tensor out: no model, no ids, no randomness.

Axis order is ``[B, K]``, rows first. Nothing here exponentiates a raw score, so float32 scores of
+-100 and far beyond are safe.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_kd.gather import gather_dot


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


def listwise(ordered: Tensor, tail: Tensor, floor: float = 0.0) -> Tensor:
    """Negative log-likelihood of an order: every item above all later ones and above a tail.

    Plackett-Luce with a tail, the relaxed ranking loss of Kang et al. (DE-RRD, CIKM 2020):
    ``sum_k log(sum_{j >= k} exp(x_j) + exp(tail)) - x_k``.

    Args:
        ordered: Student scores, the one to be ranked first in front, ``[B, K]``.
        tail: Log of the summed exponentials of the items to be ranked below, ``[B]`` or ``[B, 1]``.
        floor: Least value of a sum of exponentials (HetComp's released code: 1e-5); 0: none.

    Returns:
        One loss a row, ``[B]``.
    """
    below = ordered.flip(1).logcumsumexp(1).flip(1)
    below = torch.logaddexp(below, tail.view(-1, 1))
    return (at_least(below, floor) - ordered).sum(1)


def at_least(log_sums: Tensor, floor: float) -> Tensor:
    """Logs of sums, as if no sum were below ``floor``; 0 leaves them as they are."""
    return log_sums if floor == 0 else log_sums.clamp_min(math.log(floor))


def relaxed_ranking(ordered: Tensor, others: Tensor, clamp: float | None = None) -> Tensor:
    """:func:`listwise`, the tail being some items without order among themselves.

    Args:
        ordered: Student scores, the one to be ranked first in front, ``[B, K]``.
        others: Student scores of the items to be ranked below, ``[B, L]``.
        clamp: Upper limit of all scores, above which no gradient flows (the released code: 80).

    Returns:
        One loss a row, ``[B]``.
    """
    if clamp is not None:
        ordered, others = ordered.clamp(max=clamp), others.clamp(max=clamp)
    return listwise(ordered, others.logsumexp(1))


def log_sigmoid(logits: Tensor, floor: float = 0.0) -> Tensor:
    """``log(sigmoid(x) + floor)``, exact for scores of any size.

    Args:
        logits: Scores of any shape.
        floor: What the released codes of CD and UnKD add, 1e-10; 0: nothing.
    """
    plain = torch.nn.functional.logsigmoid(logits)
    if floor == 0:
        return plain
    return torch.logaddexp(plain, plain.new_tensor(math.log(floor)))


def squared_error(found: Tensor, wanted: Tensor, norm: bool = False) -> Tensor:
    """Squared distance of vectors, ``[n, D]`` each, summed over dimensions: ``[n]``.

    Args:
        found: ``[n, D]``.
        wanted: ``[n, D]``.
        norm: Whether both are scaled to length 1 first.
    """
    if norm:
        found, wanted = (torch.nn.functional.normalize(v, dim=1) for v in (found, wanted))
    return (found - wanted).square().sum(1)


def sampled_softmax(
    states: Tensor,
    items: Tensor,
    positives: Tensor,
    negatives: Tensor,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each state's next item against sampled items, averaged.

    Zhai et al., "Actions Speak Louder than Words" (ICML 2024, arXiv 2402.17152); there is no
    correction for the sampling. Scores are inner products: the caller normalises.

    Args:
        states: One row a prediction, ``[N, d]``, float.
        items: Item vectors, ``[I, d]``, float.
        positives: Item to predict, ``[N]``, int64.
        negatives: Sampled items, ``[N, R]``, int64. One that is the row's positive is left out.
        temperature: Divides the scores, above 0.
        weights: How much each row counts, ``[N]``, without gradient; ``None``: all the same.

    Returns:
        Scalar, the weighted mean of the rows' losses.
    """
    positive = positives.unsqueeze(1)
    ids = torch.cat([positive, negatives], dim=1)
    scores = gather_dot(states, items, ids) / temperature
    same = ids == positive
    same[:, 0] = False
    scores = scores.masked_fill(same, -torch.inf)
    losses = scores.logsumexp(dim=1) - scores[:, 0]
    return (losses * _shares(losses, weights)).sum()


def full_softmax(
    states: Tensor,
    items: Tensor,
    positives: Tensor,
    temperature: float = 1.0,
    budget_bytes: int = 2**26,
    weights: Tensor | None = None,
    skipped: int = 1,
) -> Tensor:
    """Cross-entropy of each state's next item against all items but padding, averaged.

    Rows are worked off in chunks, forward and backward, so that the scores of all rows are never in
    memory at once.

    Args:
        states: One row a prediction, ``[N, d]``, float.
        items: Item vectors, ``[I, d]``, float.
        positives: Item to predict, ``[N]``, int64, above 0.
        temperature: Divides the scores, above 0.
        budget_bytes: Memory of the scores of one chunk, which holds at least one row.
        weights: How much each row counts, ``[N]``, without gradient; ``None``: all the same.
        skipped: Rows of ``items`` that take no part: 1 for padding, 0 for RecBole's cross-entropy,
            in which padding is an item.

    Returns:
        Scalar, the weighted mean of the rows' losses.
    """
    # Mixed precision would give products and sums of different types.
    states = states.to(items.dtype)
    shares = _shares(states[:, 0].detach(), weights)
    rows = max(1, int(budget_bytes) // (len(items) * items.element_size()))
    with torch.autocast(states.device.type, enabled=False):
        return _FullSoftmax.apply(states, items, positives, shares, temperature, rows, skipped)


def _shares(like: Tensor, weights: Tensor | None) -> Tensor:
    """Each row's share of a weighted mean, ``[N]``; 0 where all weights are 0."""
    weights = torch.ones_like(like) if weights is None else weights.to(like.dtype).detach()
    return weights / weights.sum().clamp_min(torch.finfo(like.dtype).tiny)


class _FullSoftmax(torch.autograd.Function):
    """The sum of ``shares * cross-entropy`` over all items but the first ``skipped``.

    Gradients are made in the forward pass, while a chunk's probabilities are at hand: that is one
    product with all items less than to make the scores again, and no ``[N, I]`` tensor is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        items: Tensor,
        positives: Tensor,
        shares: Tensor,
        temperature: float,
        rows: int,
        skipped: int,
    ) -> Tensor:
        learns = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_states, grad_items = torch.empty_like(states), torch.zeros_like(items)
        total = states.new_zeros(())
        for start in range(0, len(states), rows):
            part = slice(start, start + rows)
            share, target = shares[part].unsqueeze(1), positives[part].unsqueeze(1)
            scores = (states[part] / temperature) @ items.t()
            scores[:, :skipped] = -torch.inf
            scores -= scores.amax(dim=1, keepdim=True)
            picked = scores.gather(1, target)
            sums = scores.exp_().sum(dim=1, keepdim=True)
            total += ((sums.log() - picked) * share).sum()
            if learns:
                # d loss / d score is share * (probability - 1[target]) / temperature.
                factor = share / temperature
                scores *= factor / sums
                scores.scatter_add_(1, target, -factor)
                torch.mm(scores, items, out=grad_states[part])
                grad_items.addmm_(scores.t(), states[part])
        ctx.save_for_backward(grad_states, grad_items)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [
            tensor * grad if needed else None
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        ]
        return (*gradients, None, None, None, None, None)
