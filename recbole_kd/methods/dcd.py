"""DCD: dual correction distillation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from recbole_kd.candidates import ranks_in
from recbole_kd.history import UserHistory
from recbole_kd.losses import relaxed_ranking, soft_cross_entropy, soft_targets
from recbole_kd.methods.base import check_list_length
from recbole_kd.methods.rrd import RRD, draw_places

FLOOR = 1e-5
"""Least weight of an item in both samplers (released code)."""


def correction_log_weights(ranks: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-weights of the items the student ranks too low, and of those it ranks too high.

    Args:
        ranks: Student's 0-based rank of the teacher's list, whose order is the teacher's,
            ``[C, M]``.
        temperature: ``T``: how many ranks make a difference.

    Returns:
        Logs of ``max(tanh(max(0, (r - j) / T)), 1e-5)``, and of the same with ``j - r``: two
        ``[C, M]``.
    """
    gaps = (ranks - torch.arange(ranks.shape[1], device=ranks.device)).double() / temperature
    weights = [torch.tanh(g.clamp_min(0)).clamp_min(FLOOR) for g in (gaps, -gaps)]
    return weights[0].log(), weights[1].log()


class DCD(RRD):
    """Lee and Kim, "Dual Correction Strategy for Ranking Distillation" (CIKM 2021, 2109.03459).

    Of the teacher's top M without train items, K that the student under-estimates are to be ranked
    above K that it over-estimates. As released beside RCE-KD: user side only, the student's rank
    is among all items, train items included (``dcd_rank: list`` ranks within the list, as the
    original), the under-estimated items keep the order in which they were drawn (``dcd_sort:
    True`` the teacher's, as the original), both lists are drawn once a refresh. ``dcd_loss: ce``
    is the released code's ablation.

    The correction orders the teacher's list within itself; what puts the list above all other
    items is, in the original's paper, RRD's loss beside it: ``dcd_ranking_weight``, with the
    options of :class:`recbole_kd.methods.rrd.RRD`. The released code has no such term. The
    original's item side is neither in that code nor here.
    """

    kept = ("items", "corrections", "targets")

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; see :meth:`Distiller.check`."""
        if config.number("dcd_ranking_weight", low=0):
            super().check(config, history)
        else:  # nothing of RRD's is read
            super(RRD, cls).check(config, history)
        length = config.positive_int("dcd_M")
        config.positive_int("dcd_K")
        config.at_most("dcd_K", "dcd_M")
        for key in ("dcd_T", "dcd_tau"):
            config.number(key, low=0, above=True)
        config.choice("dcd_rank", ("all", "list"))
        config.choice("dcd_loss", ("ranking", "ce"))
        config.choice("dcd_sort", (True, False))
        if config["dcd_clamp"] is not None:
            config.number("dcd_clamp")
        check_list_length("dcd_M", length, history, mask_train=True)

    @classmethod
    def teacher_list(cls, config: Any) -> tuple[int, bool] | None:
        """The teacher's lists; see :meth:`Distiller.teacher_list`."""
        lengths = [config["dcd_M"], config["rrd_M"] if config["dcd_ranking_weight"] else 0]
        return max(lengths), True

    def __init__(self, config: Any, *parts: Any, **named: Any):
        super().__init__(config, *parts, **named)
        self.ranking_weight = float(config["dcd_ranking_weight"])
        self.drawn, self.listed, self.ranks = (config[f"dcd_{n}"] for n in "KMT")
        self.among, self.in_order = config["dcd_rank"], config["dcd_sort"]
        self.limit, self.loss, self.tau = (config[f"dcd_{n}"] for n in ("clamp", "loss", "tau"))
        if not self.ranking_weight:
            self.items = self.table(0, torch.int32)
        self.corrections = self.table(2 * self.drawn, torch.int32)
        self.targets = self.table(2 * self.drawn if self.loss == "ce" else 0)

    def refresh(self, epoch: int) -> dict[str, float]:
        """The student's ranks of the teacher's list, and both samples, of every user."""
        if self.ranking_weight:
            super().refresh(epoch)
        top_items = self.teacher.top_k(self.listed, mask_train=True)[0]
        if self.among == "list":
            for users in self.users.split(4096):
                users = users.to(self.device)
                lists = top_items[users].long()
                scores = self.scorer.score(self.scorer.encode(users), lists)
                self._correct(users, lists, scores.argsort(1, descending=True).argsort(1), epoch)
            return {}
        # tanh(10) is 1 in float32: an item beyond this list weighs as much as one at its end.
        seen = min(self.n_items - 1, self.listed + math.ceil(10 * self.ranks))
        buffer = None
        for users, student in self.student_lists(seen, mask_train=False):
            if buffer is None:
                shape = (len(users), self.n_items)
                buffer = torch.full(shape, seen, dtype=torch.int32, device=self.device)
            lists = top_items[users].long()
            self._correct(users, lists, ranks_in(student, lists, self.n_items, buffer), epoch)
        return {}

    def _correct(self, users: Tensor, lists: Tensor, ranks: Tensor, epoch: int) -> None:
        under, over = correction_log_weights(ranks, self.ranks)
        # Part 1 is that of RRD's uninteresting items.
        noise = [self.noise(users, self.listed, epoch, part) for part in (0, 2)]
        low = draw_places(under, self.drawn, noise[0], self.in_order)
        high = draw_places(over, self.drawn, noise[1], in_order=False)
        items = lists.gather(1, torch.cat([low, high], dim=1))
        self.corrections[users] = items.int()
        if self.loss == "ce":
            self.targets[users] = soft_targets(self.teacher.score(users, items), self.tau)

    def losses(self, state: Any, users: Tensor) -> Tensor:
        """The correction's loss of each user, ``[R]``, and RRD's where it has a weight."""
        scores = self.scorer.score(state, self.corrections[users].long())
        if self.loss == "ce":
            losses = soft_cross_entropy(scores, self.targets[users], self.tau)
        else:
            losses = relaxed_ranking(scores[:, : self.drawn], scores[:, self.drawn :], self.limit)
        if self.ranking_weight:
            losses = losses + self.ranking_weight * super().losses(state, users)
        return losses
