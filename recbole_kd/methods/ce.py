"""Vanilla cross-entropy distillation on an item set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_kd.candidates import list_ndcg, ranks_in
from recbole_kd.history import UserHistory
from recbole_kd.losses import soft_cross_entropy, soft_targets
from recbole_kd.methods.base import Distiller, check_list_length
from recbole_kd.rows import Rows


def ce_loss(student: Tensor, teacher: Tensor, tau: float, drop: Tensor | None = None) -> Tensor:
    """Cross-entropy between the softmaxes of teacher and student scores on one item set.

    Args:
        student: Student scores, ``[B, K]``, with gradient.
        teacher: Teacher scores of the same items, ``[B, K]``.
        tau: Temperature of both, above 0.
        drop: Entries outside the set, ``[B, K]``, bool.

    Returns:
        One loss a row, ``[B]``.
    """
    return soft_cross_entropy(student, soft_targets(teacher, tau, drop), tau, drop)


class CE(Distiller):
    """Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), on items.

    ``ce_guide`` chooses the set, and with it the ablations of the RCE-KD paper (Figure 3):
    ``teacher``: the teacher's top-K (its "vanilla CE" and "w/o S"); ``student``: the student's
    top-K, taken at every refresh ("w/o T"); ``union``: both, each item once ("w/o sep");
    ``all``: every item ("full-CE"). The names of the ablations are the paper's, their sets are
    inferred from it: the released code has no switch for them.
    """

    kept = ("items", "targets")

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; see :meth:`Distiller.check`."""
        super().check(config, history)
        guide = config.choice("ce_guide", ("teacher", "student", "union", "all"))
        config.number("ce_tau", low=0, above=True)
        length = config.positive_int("ce_K")
        if guide != "all":
            check_list_length("ce_K", length, history, mask_train=False)

    @classmethod
    def teacher_list(cls, config: Any) -> tuple[int, bool] | None:
        """The teacher's lists; see :meth:`Distiller.teacher_list`."""
        return None if config["ce_guide"] == "all" else (config["ce_K"], False)

    def __init__(self, config: Any, *parts: Any, **named: Any):
        super().__init__(config, *parts, **named)
        self.guide, self.k, self.tau = config["ce_guide"], config["ce_K"], config["ce_tau"]
        self.refreshes = self.guide != "all"
        width = {"all": 0, "union": 2 * self.k}.get(self.guide, self.k)
        self.items, self.targets = self.table(width, torch.int32), self.table(width)

    def refresh(self, epoch: int) -> dict[str, float]:
        """Item sets and teacher probabilities of every user; the teacher's own set only once."""
        if self.guide == "teacher" and self.refreshed:
            return {}
        top_items, top_scores = self.teacher.top_k(self.k, mask_train=False)
        if self.guide == "teacher":
            self.items, self.targets = top_items, soft_targets(top_scores, self.tau)
            return {}
        sums = torch.zeros(2, dtype=torch.float64)
        for users, lists in self.student_lists(self.k, mask_train=False):
            teacher_items = top_items[users].long()
            inside = ranks_in(lists, teacher_items, self.n_items) < self.k
            items, scores, drop = lists, self.teacher.score(users, lists), None
            if self.guide == "union":
                items = torch.cat([lists, teacher_items], 1)
                scores = torch.cat([scores, top_scores[users]], 1)
                drop = torch.cat([torch.zeros_like(inside), inside], 1)
            targets = soft_targets(scores, self.tau, drop)
            # A dropped entry points at the padding item, which marks it for kd_loss.
            self.items[users] = (
                items.masked_fill(drop, 0).int() if drop is not None else items.int()
            )
            self.targets[users] = targets
            ndcg = list_ndcg(lists, teacher_items, 10)
            sums += torch.stack([inside.double().mean(1).sum(), ndcg.double().sum()]).cpu()
        overlap, ndcg_mean = (sums / max(1, len(self.users))).tolist()
        return {"overlap_topk": overlap, "ndcg@10_vs_teacher": ndcg_mean}

    def kd_loss(self, rows: Rows) -> Tensor:
        """Mean of the cross-entropy over the rows."""
        if self.guide == "all":
            return self.over_all_items(self._all_items, rows)
        items = self.items[rows.users].long()
        scores = self.scorer.score(self.scorer.encode(rows.users), items)
        losses = soft_cross_entropy(scores, self.targets[rows.users], self.tau, items == 0)
        return rows.mean(losses)

    def _all_items(self, state: Tensor, items: Tensor, users: Tensor) -> Tensor:
        student = (state @ items.t())[:, 1:]
        return ce_loss(student, self.teacher.score_all(users)[:, 1:], self.tau)
