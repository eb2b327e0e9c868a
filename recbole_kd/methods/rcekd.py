"""RCE-KD: rejuvenated cross-entropy for knowledge distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_kd.candidates import gumbel_top_k, list_ndcg, rank_log_weights, ranks_in
from recbole_kd.closure import ClosureSets, closure_log_weights, of_closure
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.losses import soft_cross_entropy, soft_targets
from recbole_kd.methods.base import Distiller, check_list_length
from recbole_kd.rows import Rows


def rcekd_loss(
    student_items: Tensor,
    closure_items: Tensor,
    p: Tensor,
    q: Tensor,
    drop: Tensor,
    g: Tensor,
    tau: float,
) -> Tensor:
    """``(1 - g) * L_S + g * L_T`` of each row: cross-entropies over two sets of items.

    Those are the student's top-K, and the sample with what of the teacher's top-K is in neither.

    Args:
        student_items: Student scores of its top-K ``Q_S``, ``[B, K]``, with gradient.
        closure_items: Student scores of the sample ``A`` and the teacher's top-K ``Q_T``,
            concatenated, ``[B, L + K]``, with gradient.
        p: Teacher probabilities on ``Q_S``, ``[B, K]``.
        q: Teacher probabilities on the closure set, ``[B, L + K]``, 0 where dropped.
        drop: Entries of ``closure_items`` outside the set, ``[B, L + K]``, bool.
        g: Weight of ``L_T``, ``[B]``, between 0 and 1.
        tau: Temperature, above 0.

    Returns:
        One loss a row, ``[B]``.
    """
    loss_s = soft_cross_entropy(student_items, p, tau)
    loss_t = soft_cross_entropy(closure_items, q, tau, drop)
    return (1 - g) * loss_s + g * loss_t


class RCEKD(Distiller):
    """RCE-KD (Zhu and Zhang 2025, arXiv 2509.20989): ``L_1``, ``L_2`` and the adaptive weight.

    The defaults of ``rcekd_overlap``, ``rcekd_target`` and ``rcekd_cap`` are those of the released
    code, which gives the published numbers. It deviates from the paper in that the overlap is
    measured against the sample ``A`` instead of ``Q_S``, that all teacher items count for the
    sampling weights, at their own position too, and that counts are capped at 50;
    ``student_topk``, ``difference`` and a null cap are the paper's. Train items stay in all lists
    (both), unless ``rcekd_mask_train``. Losses and weight are means over rows (docs/rcekd.md).
    """

    kept = ("items", "p", "q", "drop", "g")

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; see :meth:`Distiller.check`."""
        super().check(config, history)
        length = config.positive_int("rcekd_M")
        for key in ("rcekd_K", "rcekd_L"):
            config.positive_int(key)
            config.at_most(key, "rcekd_M")
        for key in ("rcekd_tau", "rcekd_T"):
            config.number(key, low=0, above=True)
        config.number("rcekd_beta", low=0)
        config.choice("rcekd_sampling", ("closure", "rank"))
        config.choice("rcekd_overlap", ("sample", "student_topk"))
        config.choice("rcekd_target", ("topk", "difference"))
        config.choice("rcekd_mask_train", (True, False))
        if config["rcekd_cap"] is not None:
            config.positive_int("rcekd_cap")
        if config["rcekd_const"] is not None and config.number("rcekd_const", low=0) > 1:
            raise KDError(f"--rcekd_const={config['rcekd_const']}: allowed are numbers from 0 to 1")
        check_list_length("rcekd_M", length, history, config["rcekd_mask_train"])

    @classmethod
    def teacher_list(cls, config: Any) -> tuple[int, bool] | None:
        """The teacher's lists; see :meth:`Distiller.teacher_list`."""
        return config["rcekd_K"], config["rcekd_mask_train"]

    def __init__(self, config: Any, *parts: Any, **named: Any):
        super().__init__(config, *parts, **named)
        self.k, self.sample, self.length = (config[f"rcekd_{n}"] for n in "KLM")
        self.tau, self.temperature = config["rcekd_tau"], config["rcekd_T"]
        self.beta, self.const = config["rcekd_beta"], config["rcekd_const"]
        self.sampling, self.overlap = config["rcekd_sampling"], config["rcekd_overlap"]
        self.target, self.cap = config["rcekd_target"], config["rcekd_cap"]
        self.mask_train = config["rcekd_mask_train"]
        self.items = self.table(2 * self.k + self.sample, torch.int32)
        self.p, self.q = self.table(self.k), self.table(self.sample + self.k)
        self.drop, self.g = self.table(self.k, torch.bool), self.table(1).squeeze(1)

    def refresh(self, epoch: int) -> dict[str, float]:
        """One chunked pass over the users: lists, sample, targets and weights."""
        top_items, top_scores = self.teacher.top_k(self.k, self.mask_train)
        sums = torch.zeros(4, dtype=torch.float64)
        buffer = None
        for users, lists in self.student_lists(self.length, self.mask_train):
            if buffer is None:
                shape = (len(users), self.n_items)
                buffer = torch.full(shape, self.length, dtype=torch.int32, device=self.device)
            wanted = top_items[users].long()
            ranks = ranks_in(lists, wanted, self.n_items, buffer)
            noise = self.noise(users, self.length, epoch)
            drawn = gumbel_top_k(self._log_weights(ranks), self.sample, noise)
            sets = ClosureSets.of(lists, wanted, ranks, drawn, self.k)
            self._fill(users, sets, top_scores[users])
            inside, beyond = sets.in_student.float(), (ranks == self.length).float()
            ndcg = list_ndcg(lists, wanted, 10)
            found = (inside.mean(1), self.g[users], beyond.mean(1), ndcg)
            sums += torch.stack([value.double().sum().cpu() for value in found])
        names = ("overlap_topk", "weight_g", "teacher_items_beyond_M", "ndcg@10_vs_teacher")
        return dict(zip(names, (sums / max(1, len(self.users))).tolist(), strict=True))

    def _log_weights(self, ranks: Tensor) -> Tensor:
        if self.sampling == "closure":
            return closure_log_weights(
                ranks, self.length, self.k, self.temperature, self.cap, self.target
            )
        weights = rank_log_weights(self.length, self.temperature).float()
        return weights.to(ranks.device).expand(len(ranks), -1)

    def _fill(self, users: Tensor, sets: ClosureSets, teacher_scores: Tensor) -> None:
        """Fill the tables of a chunk of users."""
        picked = self.teacher.score(users, torch.cat([sets.student, sets.sample], dim=1))
        closure = torch.cat([picked[:, self.k :], teacher_scores], dim=1)
        self.items[users], self.drop[users] = sets.items.int(), sets.drop
        self.p[users] = soft_targets(picked[:, : self.k], self.tau)
        self.q[users] = soft_targets(closure, self.tau, of_closure(sets.drop, self.sample))
        hit = sets.in_sample if self.overlap == "sample" else sets.in_student
        g = torch.exp(-self.beta * hit.float().mean(1))
        self.g[users] = g if self.const is None else torch.full_like(g, self.const)

    def kd_loss(self, rows: Rows) -> Tensor:
        """Mean of :func:`rcekd_loss` over the rows; one student scoring call."""
        users = rows.users
        scores = self.scorer.score(self.scorer.encode(users), self.items[users].long())
        p, q, g = self.p[users], self.q[users], self.g[users]
        drop = of_closure(self.drop[users], self.sample)
        losses = rcekd_loss(scores[:, : self.k], scores[:, self.k :], p, q, drop, g, self.tau)
        return rows.mean(losses)
