"""RD: ranking distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_kd.candidates import draw_outside
from recbole_kd.history import UserHistory
from recbole_kd.losses import log_sigmoid
from recbole_kd.methods.base import Distiller, check_list_length
from recbole_kd.rows import Rows


def rd_loss(student: Tensor, weights: Tensor) -> Tensor:
    """Weighted point-wise loss that lifts the teacher's items.

    Args:
        student: Student scores of the teacher's list, ``[B, K]``, with gradient.
        weights: Weight of each item, ``[B, K]`` or ``[K]``, without gradient.

    Returns:
        One loss a row, ``[B]``.
    """
    return -(weights * log_sigmoid(student)).sum(1)


def position_weights(k: int, temperature: float) -> Tensor:
    """Static weights, proportional to ``exp(-r / T)`` for ``r = 1..K``: ``[K]``, float64."""
    return (-torch.arange(1, k + 1, dtype=torch.float64) / temperature).softmax(0)


def dynamic_weights(
    static: Tensor, student: Tensor, sampled: Tensor, n_items: int, mu: float, offset: int
) -> Tensor:
    """Weights that are high where the student ranks an item lower than the teacher does.

    The student's rank is estimated from a sample of items.

    Args:
        static: Static weights, ``[K]``.
        student: Student scores of the teacher's list, ``[B, K]``.
        sampled: Student scores of the sampled items, ``[B, n]``.
        n_items: Number of items, padding not counted.
        mu: Sharpness, above 0.
        offset: What the teacher's rank ``r = 1..K`` is lowered by: 0, for both ranks count from 1;
            1 in the released code.

    Returns:
        Weights, ``[B, K]``, summing to 1 or all 0, in the type of ``student``.
    """
    size = sampled.shape[1]
    above = size - torch.searchsorted(sampled.sort(1).values, student.contiguous(), right=True)
    rank = (n_items - 1) * above // size + 1
    teacher_rank = torch.arange(1, student.shape[1] + 1, device=student.device) - offset
    lower = torch.tanh(mu * (rank - teacher_rank).to(student.dtype)).clamp_min(0)
    weights = static.to(student.dtype) * lower
    return weights / weights.sum(1, keepdim=True).clamp_min(1e-12)


class RD(Distiller):
    """Tang and Wang, "Ranking Distillation" (KDD 2018).

    The teacher's top-K without train items, weighted by position; from ``rd_start_epoch`` also by
    how much lower the student ranks an item, estimated from items drawn anew at every refresh.
    Ranks are compared as in the paper; the released code, whose shipped configuration does not run,
    lowers the teacher's by 1, so that equal ranks still weigh ``tanh(mu)``: ``rd_ranks: released``.
    The original is a point-wise sequential model, with K = 10 and 10 epochs of warm-up.
    """

    kept = ("sampled",)

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; see :meth:`Distiller.check`."""
        super().check(config, history)
        config.number("rd_T", low=0, above=True)
        config.number("rd_mu", low=0, above=True)
        config.positive_int("rd_samples")
        config.whole_number("rd_start_epoch")
        config.choice("rd_ranks", ("released", "paper"))
        check_list_length("rd_K", config.positive_int("rd_K"), history, mask_train=True)

    @classmethod
    def teacher_list(cls, config: Any) -> tuple[int, bool] | None:
        """The teacher's lists; see :meth:`Distiller.teacher_list`."""
        return config["rd_K"], True

    def __init__(self, config: Any, *parts: Any, **named: Any):
        super().__init__(config, *parts, **named)
        self.k, self.samples, self.mu = config["rd_K"], config["rd_samples"], config["rd_mu"]
        self.start_epoch = config["rd_start_epoch"]
        self.offset = 1 if config["rd_ranks"] == "released" else 0
        self.static = position_weights(self.k, config["rd_T"]).float().to(self.device)
        self.sampled = self.table(self.samples, torch.int32)

    def refresh(self, epoch: int) -> dict[str, float]:
        """Items drawn uniformly from what is no train item of the user, with replacement."""
        for users, excluded in self.excluded_items():
            uniform = self.uniform(users, self.samples, epoch)
            self.sampled[users] = draw_outside(uniform, excluded, self.n_items).int()
        return {}

    def kd_loss(self, rows: Rows) -> Tensor:
        """Mean of :func:`rd_loss` over the rows; one student scoring call."""
        top = self.teacher.top_k(self.k, mask_train=True)[0]
        items = torch.cat([top[rows.users], self.sampled[rows.users]], dim=1).long()
        state = self.scorer.encode(rows.users)
        if self.epoch < self.start_epoch:
            return rows.mean(rd_loss(self.scorer.score(state, items[:, : self.k]), self.static))
        scores = self.scorer.score(state, items)
        student, sampled = scores[:, : self.k], scores[:, self.k :].detach()
        weights = dynamic_weights(
            self.static, student.detach(), sampled, self.n_items - 1, self.mu, self.offset
        )
        return rows.mean(rd_loss(student, weights))
