"""DCD: dual correction distillation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from recbole_kd.candidates import gumbel_top_k, ranks_in
from recbole_kd.history import UserHistory
from recbole_kd.losses import relaxed_ranking, soft_cross_entropy, soft_targets
from recbole_kd.methods.base import Distiller, check_list_length
from recbole_kd.rows import Rows

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


class DCD(Distiller):
    """Lee and Kim, "Dual Correction Strategy for Ranking Distillation" (CIKM 2021, 2109.03459).

    Of the teacher's top M without train items, K that the student under-estimates are to be ranked
    above K that it over-estimates. As released beside RCE-KD, which gives the published numbers:
    user side only, the student's rank is among all items, train items included
    (``dcd_rank: list`` ranks within the list, as the original), the under-estimated items keep the
    order in which they were drawn (``dcd_sort: True`` the teacher's, as the original), both lists
    are drawn once a refresh. The original's item side is neither in that code nor here, nor is the
    third term of its paper, RRD's loss. ``dcd_loss: ce`` is the released code's ablation.
    """

    kept = ("items", "targets")

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; see :meth:`Distiller.check`."""
        super().check(config, history)
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
        return config["dcd_M"], True

    def __init__(self, config: Any, *parts: Any, **named: Any):
        super().__init__(config, *parts, **named)
        self.k, self.length, self.temperature = (config[f"dcd_{n}"] for n in "KMT")
        self.rank, self.sort, self.clamp = (config[f"dcd_{n}"] for n in ("rank", "sort", "clamp"))
        self.loss, self.tau = config["dcd_loss"], config["dcd_tau"]
        self.items = self.table(2 * self.k, torch.int32)
        self.targets = self.table(2 * self.k if self.loss == "ce" else 0)

    def refresh(self, epoch: int) -> dict[str, float]:
        """The student's ranks of the teacher's list, and both samples, of every user."""
        top_items = self.teacher.top_k(self.length, mask_train=True)[0]
        if self.rank == "list":
            for users in self.users.split(4096):
                users = users.to(self.device)
                lists = top_items[users].long()
                scores = self.scorer.score(self.scorer.encode(users), lists)
                self._draw(users, lists, scores.argsort(1, descending=True).argsort(1), epoch)
            return {}
        # tanh(10) is 1 in float32: an item beyond this list weighs as much as one at its end.
        seen = min(self.n_items - 1, self.length + math.ceil(10 * self.temperature))
        for users, student in self.student_lists(seen, mask_train=False):
            lists = top_items[users].long()
            self._draw(users, lists, ranks_in(student, lists, self.n_items), epoch)
        return {}

    def _draw(self, users: Tensor, lists: Tensor, ranks: Tensor, epoch: int) -> None:
        under, over = correction_log_weights(ranks, self.temperature)
        noise = [self.noise(users, self.length, epoch, part) for part in (0, 1)]
        low = gumbel_top_k(under, self.k, noise[0], ordered=not self.sort)
        low = low.sort(1).values if self.sort else low
        high = gumbel_top_k(over, self.k, noise[1], ordered=True)
        items = lists.gather(1, torch.cat([low, high], dim=1))
        self.items[users] = items.int()
        if self.loss == "ce":
            self.targets[users] = soft_targets(self.teacher.score(users, items), self.tau)

    def kd_loss(self, rows: Rows) -> Tensor:
        """Mean over the rows; one student scoring call."""
        state = self.scorer.encode(rows.users)
        scores = self.scorer.score(state, self.items[rows.users].long())
        if self.loss == "ce":
            return rows.mean(soft_cross_entropy(scores, self.targets[rows.users], self.tau))
        return rows.mean(relaxed_ranking(scores[:, : self.k], scores[:, self.k :], self.clamp))
