"""UnKD: unbiased distillation inside popularity groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_kd.candidates import chunk_rows, geometric_positions
from recbole_kd.history import UserHistory
from recbole_kd.losses import log_sigmoid
from recbole_kd.methods.base import Distiller
from recbole_kd.popularity import group_pairs, popularity_groups, popularity_order
from recbole_kd.rows import Rows
from recbole_kd.teacher import UNKNOWN_SCORE

SCALE = 20.0
"""Positions over which the weight of a candidate falls by a factor of e."""


def unkd_loss(better: Tensor, worse: Tensor, valid: Tensor, floor: float = 0.0) -> Tensor:
    """Pairwise ranking loss, a mean over a row's pairs.

    Args:
        better: Student scores of the items the teacher ranks higher, ``[B, n]``, with gradient.
        worse: Those of their partners, ``[B, n]``.
        valid: Which pairs there are, ``[B, n]``, bool.
        floor: Added inside the logarithm; 1e-10 in the released code.

    Returns:
        One loss a row, ``[B]``; 0 for a row without pairs.
    """
    losses = -log_sigmoid(better - worse, floor) * valid
    return losses.sum(1) / valid.sum(1).clamp_min(1)


class UnKD(Distiller):
    """Chen et al., "Unbiased Knowledge Distillation for Recommendation" (WSDM 2023, 2211.14729).

    Pairs of items are drawn inside groups of equal popularity, so that the student does not learn
    the teacher's popularity bias; the teacher's order in the pair is the label. The public
    reimplementation does not run; this is its description with integer item ids. Its swap makes
    both items of a pair equal whenever the second draw is the better one: ``unkd_pairs: released``;
    by default the two are exchanged. A group in which a user has fewer than two items without
    train interaction gives no pair.
    """

    kept = ("items",)

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; see :meth:`Distiller.check`."""
        super().check(config, history)
        for key in ("unkd_groups", "unkd_n", "unkd_M"):
            config.positive_int(key)
        for key in ("unkd_power", "unkd_floor"):
            config.number(key, low=0)
        config.choice("unkd_pairs", ("distinct", "released"))

    def __init__(self, config: Any, *parts: Any, **named: Any):
        super().__init__(config, *parts, **named)
        self.length, self.floor, self.pairs = (config[f"unkd_{n}"] for n in ("M", "floor", "pairs"))
        order, counts = popularity_order(self.history.items.long().cpu(), self.n_items)
        groups = popularity_groups(order, counts[order], config["unkd_groups"])
        self.group_pairs = group_pairs(groups, counts, config["unkd_power"], config["unkd_n"])
        self.groups = [g.to(self.device) for g in groups]
        self._candidates: list[Tensor] = []
        self._lengths: list[Tensor] = []
        self.items = self.table(2 * sum(self.group_pairs), torch.int32)

    def refresh(self, epoch: int) -> dict[str, float]:
        """Pairs of every user, drawn anew."""
        if not self._candidates:
            self._rank()
        for users in self.users.split(4096):
            users = users.to(self.device)
            parts = [self._draw(users, group, epoch) for group in range(len(self.groups))]
            pairs = torch.cat([p[..., side] for side in (0, 1) for p in parts], 1)
            self.items[users] = pairs.int()
        return {}

    def _rank(self) -> None:
        """The teacher's best items of each group, once a run."""
        widths = [min(self.length, len(g)) for g in self.groups]
        make = {"dtype": torch.int32, "device": self.device}
        self._candidates = [torch.zeros(self.n_users, w, **make) for w in widths]
        self._lengths = [torch.zeros(self.n_users, **make) for _ in widths]
        for users in self.users.split(
            chunk_rows(16 * self.n_items, self.memory_budget_gb, len(self.users))
        ):
            users = users.to(self.device)
            scores = self.history.mask_(self.teacher.ranking_scores(users), users)
            for group, width in enumerate(widths):
                best = scores[:, self.groups[group]].topk(width, dim=1)
                self._candidates[group][users] = self.groups[group][best.indices].int()
                self._lengths[group][users] = (best.values > UNKNOWN_SCORE).sum(1).int()

    def _draw(self, users: Tensor, group: int, epoch: int) -> Tensor:
        """Pairs of one group as items, better first, ``[C, pairs, 2]``; 0 where there is none."""
        number, lengths = self.group_pairs[group], self._lengths[group][users].long()
        drawn = torch.zeros(len(users), number, 2, dtype=torch.int64, device=users.device)
        tied = (lengths >= 2).unsqueeze(1).expand(-1, number)
        attempt = 0
        while number and (rows := tied.any(1).nonzero().squeeze(1)).numel():
            uniform = self.uniform(users[rows], 2 * number, epoch, group, attempt)
            limits = lengths[rows].view(-1, 1, 1)
            again = geometric_positions(uniform.view(-1, number, 2), limits, SCALE)
            drawn[rows] = torch.where(tied[rows].unsqueeze(2), again, drawn[rows])
            tied = tied & (drawn[..., 0] == drawn[..., 1])
            attempt += 1
        better, worse = drawn.amin(2), drawn.amax(2)
        if self.pairs == "released":
            worse = torch.where(drawn[..., 1] < drawn[..., 0], better, worse)
        pairs = torch.stack([better, worse], 2)
        items = self._candidates[group][users].long().gather(1, pairs.flatten(1)).view_as(pairs)
        return items * (lengths >= 2).view(-1, 1, 1)

    def kd_loss(self, rows: Rows) -> Tensor:
        """Mean of :func:`unkd_loss` over the rows; one student scoring call."""
        items = self.items[rows.users].long()
        scores = self.scorer.score(self.scorer.encode(rows.users), items)
        half = items.shape[1] // 2
        valid = items[:, :half] > 0
        return rows.mean(unkd_loss(scores[:, :half], scores[:, half:], valid, self.floor))
