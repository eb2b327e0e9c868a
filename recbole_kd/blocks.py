"""Building blocks of sequential models in dense tensors: HSTU's block and bias, groups of rows.

Axis order is ``[B, T, D]``: rows, slots from the oldest item on, features. Rows are padded on the
right, so the causal mask alone keeps padding out of every item's output.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BIAS_KINDS = ("time_and_position", "position", "time", "none")


def time_buckets(
    anchors: Tensor, times: Tensor, n_buckets: int = 128, divisor: float = 0.301
) -> Tensor:
    """Bucket of the time between each query and each key: ``floor(ln |seconds| / divisor)``.

    With the divisor of the reference, the decimal logarithm of 2 under a natural logarithm, a
    bucket is 1.35 times as wide as the one before. The difference is taken exactly; its logarithm
    in float32, as in the reference, whatever the model's precision.

    Args:
        anchors: Time from which a query looks back, ``[B, T]``, int64 or float64 seconds.
        times: Times of the keys, ``[B, T]``, as ``anchors``.
        n_buckets: The last bucket, which takes all longer times.
        divisor: Width of a bucket in natural logarithms, above 0.

    Returns:
        Buckets 0 to ``n_buckets`` of (query, key), ``[B, T, T]``, int64. Differences below a second
        fall into 0.
    """
    difference = anchors.unsqueeze(2) - times.unsqueeze(1)
    logarithm = difference.abs_().clamp_min_(1).float().log_()
    return logarithm.div_(divisor).clamp_max_(n_buckets).long()


class RelativeBias(nn.Module):
    """A number for each (query, key) of a block, added to all its heads' scores.

    Args:
        kind: One of :data:`BIAS_KINDS` but ``none``.
        length: The most slots a row can have, N.
        n_buckets: The last bucket of :func:`time_buckets`.
    """

    pos_w: Tensor
    ts_w: Tensor

    def __init__(self, kind: str, length: int, n_buckets: int = 128):
        super().__init__()
        self.length = length
        self.reads_position, self.reads_time = kind != "time", kind != "position"
        if self.reads_position:
            self.pos_w = nn.Parameter(torch.empty(2 * length - 1).normal_(std=0.02))
        if self.reads_time:
            self.ts_w = nn.Parameter(torch.empty(n_buckets + 1).normal_(std=0.02))

    def forward(self, slots: int, buckets: Tensor | None) -> Tensor:
        """The bias of the first ``slots`` slots.

        Args:
            slots: T, at most N.
            buckets: :func:`time_buckets`, ``[B, T, T]``; only read by a bias of time.

        Returns:
            ``[B, T, T]`` with time, else ``[1, T, T]``.
        """
        if not self.reads_time:
            return self._by_position(slots)
        assert buckets is not None, "a bias of time needs buckets"
        # An embedding look-up of so many single numbers takes nine times as long.
        bias = self.ts_w.index_select(0, buckets.reshape(-1)).view(buckets.shape)
        return bias.add_(self._by_position(slots)) if self.reads_position else bias

    def _by_position(self, slots: int) -> Tensor:
        """``pos_w[(N - 1) + (j - i)]`` at (i, j), ``[1, T, T]``, as windows over the table."""
        near = self.pos_w[self.length - slots : self.length + slots - 1]
        return near.unfold(0, slots, 1).flip(0).unsqueeze(0)


class HSTUBlock(nn.Module):
    """One layer of HSTU, as in the research code of Zhai et al. (ICML 2024, arXiv 2402.17152).

    Attention is pointwise, ``SiLU(q . k + bias) / N``: there is no softmax and no scaling by the
    width of a head, and N is a constant, never the length of a row. Layer norms have no parameters.
    The reference's options for attention dropout, a softmax, and a concatenated output are left
    out: none of its configurations uses them.

    Args:
        width: D.
        n_heads: Heads.
        attention_dim: Width of queries and keys, each head.
        linear_dim: Width of values and of the gate, each head.
        length: N.
        dropout: Of the gated output.
        eps: Of both layer norms. At initialisation outputs are so small that it matters.
        bias: Added to the scores of all heads.
    """

    def __init__(
        self,
        width: int,
        n_heads: int,
        attention_dim: int,
        linear_dim: int,
        length: int,
        dropout: float = 0.0,
        eps: float = 1e-6,
        bias: RelativeBias | None = None,
    ):
        super().__init__()
        self.n_heads, self.length, self.dropout, self.eps = n_heads, length, dropout, eps
        self.sizes = [n_heads * linear_dim] * 2 + [n_heads * attention_dim] * 2
        self.uvqk = nn.Parameter(torch.empty(width, sum(self.sizes)).normal_(std=0.02))
        self.output = nn.Linear(n_heads * linear_dim, width)
        nn.init.xavier_uniform_(self.output.weight)
        self.bias = bias

    def forward(self, x: Tensor, buckets: Tensor | None = None) -> Tensor:
        """The block's output, the residual included.

        Args:
            x: ``[B, T, D]``, float, right padded.
            buckets: :func:`time_buckets`, ``[B, T, T]``; only read by a bias of time.

        Returns:
            ``[B, T, D]``; without meaning on padding.
        """
        projected = F.silu(F.layer_norm(x, x.shape[-1:], eps=self.eps) @ self.uvqk)
        gate, v, q, k = projected.split(self.sizes, dim=-1)
        y = self._attend(self._heads(q), self._heads(k), self._heads(v), buckets)
        y = y.transpose(1, 2).reshape(gate.shape)
        gated = gate * F.layer_norm(y, y.shape[-1:], eps=self.eps)
        return self.output(F.dropout(gated, self.dropout, self.training)) + x

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, T, H * d]`` -> ``[B, H, T, d]``."""
        return x.unflatten(-1, (self.n_heads, x.shape[-1] // self.n_heads)).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, buckets: Tensor | None) -> Tensor:
        """What each query collects, ``[B, H, T, linear_dim]``."""
        scores = q @ k.transpose(-1, -2)
        if self.bias is not None:
            scores += self.bias(scores.shape[-1], buckets).unsqueeze(1)
        # The mask follows the activation; the constant N is divided out of the smaller factor.
        return F.silu(scores).tril_() @ (v / self.length)


def next_values(values: Tensor, lengths: Tensor, last: Tensor) -> Tensor:
    """What follows in each slot of right-padded rows.

    Args:
        values: Values of the rows, ``[B, T]``.
        lengths: Length of each row, ``[B]``, int64.
        last: What follows each row's last value, ``[B]``, as ``values``.

    Returns:
        ``[B, T]``; without meaning on padding.
    """
    following = values.roll(-1, dims=1)
    return following.scatter(1, (lengths - 1).clamp_min(0).unsqueeze(1), last.unsqueeze(1))


def length_groups(lengths: Tensor, least: int = 8) -> list[Tensor]:
    """Rows in groups of similar length, so that little work is spent on padding.

    From the longest row on, a group ends where rows are half as long as its first; a group of fewer
    than ``least`` rows goes on, for small products cost more than their padding.

    Args:
        lengths: Length of each row, ``[B]``, int64.
        least: Rows that make a group of their own.

    Returns:
        Indices of the rows of each group, longest rows first; each row is in one group.
    """
    order = lengths.argsort(descending=True, stable=True)
    ordered = lengths[order].tolist()
    starts = [0]
    for place, length in enumerate(ordered):
        full = place - starts[-1] >= least and len(ordered) - place >= least
        if full and 2 * length <= ordered[starts[-1]]:
            starts.append(place)
    return list(order.tensor_split(starts[1:]))


def columns_of(rows: Tensor, lengths: Tensor) -> int:
    """Columns that hold all of a group's rows, at least one.

    Args:
        rows: Indices of the rows of a group, the longest row first, ``[G]``, int64; may be empty.
        lengths: Length of each row, ``[B]``, int64.
    """
    return max([1, *lengths[rows[:1]].tolist()])


def in_order(groups: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """What was made by groups of rows, in the order of the rows.

    Args:
        groups: Indices of each group's rows, ``[G]``, int64, and what was made of them,
            ``[G, ...]``; each row is in one group.

    Returns:
        ``[B, ...]``.
    """
    rows, parts = zip(*groups, strict=True)
    return torch.cat(parts)[torch.cat(rows).argsort()]
