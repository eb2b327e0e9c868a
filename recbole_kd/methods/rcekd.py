"""RCE-KD: rejuvenated cross-entropy for knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from recbole_kd.candidates import (
    gumbel_top_k,
    hits_at_or_below,
    list_ndcg,
    rank_log_weights,
    ranks_in,
)
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
    """``(1 - g) * L_S + g * L_T`` of each row.

    ``L_S`` is the cross-entropy over the student's top-K; ``L_T`` the one over the closure set,
    which is the sampled items and those of the teacher's top-K in neither other set.

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


def closure_log_weights(
    ranks: Tensor, length: int, k: int, temperature: float, cap: int | None, target: str
) -> Tensor:
    """Log-weights with which positions of the student's list are sampled.

    A position counts how many of the teacher's items the student places there or lower: sampling
    such "blockers" makes the closure set approximately closed.

    Args:
        ranks: Ranks of the teacher's items in the student's list, ``[C, K]``; ``length`` outside.
        length: Length ``M`` of the list.
        k: Length ``K`` of the student's top list.
        temperature: Sampling temperature ``T``.
        cap: Upper limit of the counts (50 in the released code), or ``None``.
        target: ``topk``: all teacher items count (released code); ``difference``: those outside
            the student's top-K only, strictly below a position (paper).

    Returns:
        Log-weights, ``[C, length]``, float32.
    """
    if target == "difference":
        ranks = torch.where(ranks < k, length, ranks)
        counts = hits_at_or_below(ranks, length, None)
        counts = torch.cat([counts[:, 1:], torch.zeros_like(counts[:, :1])], dim=1)
        counts = counts if cap is None else counts.clamp_max(cap)
    else:
        counts = hits_at_or_below(ranks, length, cap)
    return (counts + 1).float() / temperature


@dataclass
class Tables:
    """What is constant between two refreshes; row ``u`` is user ``u``.

    Attributes:
        items: ``Q_S``, ``A`` and ``Q_T`` side by side, ``[U, 2K + L]``, int32.
        p: Teacher probabilities on ``Q_S``, ``[U, K]``.
        q: Teacher probabilities on the closure set, ``[U, L + K]``.
        drop: Entries of ``Q_T`` that are in ``Q_S`` or ``A``, ``[U, K]``, bool.
        g: Weight of ``L_T``, ``[U]``.
    """

    items: Tensor
    p: Tensor
    q: Tensor
    drop: Tensor
    g: Tensor

    @classmethod
    def empty(cls, users: int, k: int, sample: int, device: Any) -> Tables:
        """Tables of the right shapes, to be filled by user."""
        return cls(
            torch.zeros(users, 2 * k + sample, dtype=torch.int32, device=device),
            torch.zeros(users, k, device=device),
            torch.zeros(users, sample + k, device=device),
            torch.zeros(users, k, dtype=torch.bool, device=device),
            torch.zeros(users, device=device),
        )


class RCEKD(Distiller):
    """RCE-KD (Zhu and Zhang 2025, arXiv 2509.20989): ``L_1``, ``L_2`` and the adaptive weight.

    "Rejuvenating Cross-Entropy Loss in Knowledge Distillation for Recommender Systems".
    The defaults of ``rcekd_overlap``, ``rcekd_target`` and ``rcekd_cap`` are those of the released
    code, which gives the published numbers. It deviates from the paper in that the overlap is
    measured against the sample ``A`` instead of ``Q_S``, that all teacher items count for the
    sampling weights, at their own position too, and that counts are capped at 50;
    ``student_topk``, ``difference`` and a null cap are the paper's. Train items stay in all lists
    (both), unless ``rcekd_mask_train``. Unlike the released code, softmaxes stay in log space, and
    loss and weight are means over rows (see ``docs/rcekd.md`` for the conversion).
    """

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; see :meth:`Distiller.check`."""
        super().check(config, history)
        length = config.positive_int("rcekd_M")
        for key in ("rcekd_K", "rcekd_L"):
            config.positive_int(key)
            config.at_most(key, "rcekd_M")
        config.number("rcekd_tau", low=0, above=True)
        config.number("rcekd_T", low=0, above=True)
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
        self._tables: Tables | None = None

    def refresh(self, epoch: int) -> dict[str, float]:
        """One chunked pass over the users: lists, sample, targets and weights."""
        if self._tables is None:
            self._tables = Tables.empty(self.n_users, self.k, self.sample, self.device)
        top_items, top_scores = self.teacher.top_k(self.k, self.mask_train)
        sums = torch.zeros(4, dtype=torch.float64)
        buffer = None
        for users, lists in self.student_lists(self.length, self.mask_train):
            if buffer is None:
                shape = (len(users), self.n_items)
                buffer = torch.full(shape, self.length, dtype=torch.int32, device=self.device)
            teacher_items = top_items[users].long()
            ranks = ranks_in(lists, teacher_items, self.n_items, buffer)
            noise = self.noise(users, self.length, epoch)
            sums += self._fill(users, lists, teacher_items, top_scores[users], ranks, noise)
        overlap, weight, beyond, ndcg = (sums / max(1, len(self.users))).tolist()
        return {
            "overlap_topk": overlap,
            "weight_g": weight,
            "teacher_items_beyond_M": beyond,
            "ndcg@10_vs_teacher": ndcg,
        }

    def _fill(
        self,
        users: Tensor,
        lists: Tensor,
        teacher_items: Tensor,
        teacher_scores: Tensor,
        ranks: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Fill the tables of one chunk; returns the sums of its four diagnostics."""
        tables = self._tables
        assert tables is not None
        if self.sampling == "closure":
            log_weights = closure_log_weights(
                ranks, self.length, self.k, self.temperature, self.cap, self.target
            )
        else:
            log_weights = rank_log_weights(self.length, self.temperature).expand(len(users), -1)
        drawn = gumbel_top_k(log_weights.to(lists.device), self.sample, noise)
        sample, student_items = lists.gather(1, drawn), lists[:, : self.k]
        in_sample = torch.zeros(len(users), self.length + 1, dtype=torch.bool, device=lists.device)
        in_sample = in_sample.scatter_(1, drawn, True).gather(1, ranks)
        in_student = ranks < self.k
        drop = in_sample | in_student
        hit = in_sample if self.overlap == "sample" else in_student
        g = torch.exp(-self.beta * hit.float().mean(1))
        if self.const is not None:
            g = torch.full_like(g, self.const)
        picked = self.teacher.score(users, torch.cat([student_items, sample], dim=1))
        closure = torch.cat([picked[:, self.k :], teacher_scores], dim=1)
        tables.items[users] = torch.cat([student_items, sample, teacher_items], 1).int()
        tables.p[users] = soft_targets(picked[:, : self.k], self.tau)
        tables.q[users] = soft_targets(closure, self.tau, self._closure_drop(drop))
        tables.drop[users], tables.g[users] = drop, g
        diagnostics = (
            in_student.float().mean(1),
            g,
            (ranks == self.length).float().mean(1),
            list_ndcg(lists, teacher_items, 10),
        )
        return torch.stack([d.double().sum().cpu() for d in diagnostics])

    def _closure_drop(self, drop: Tensor) -> Tensor:
        return torch.cat([drop.new_zeros(len(drop), self.sample), drop], dim=1)

    def kd_loss(self, rows: Rows) -> Tensor:
        """Mean of :func:`rcekd_loss` over the rows; one student scoring call."""
        tables, users = self._tables, rows.users
        assert tables is not None
        state = self.scorer.encode(users)
        scores = self.scorer.score(state, tables.items[users].long())
        losses = rcekd_loss(
            scores[:, : self.k],
            scores[:, self.k :],
            tables.p[users],
            tables.q[users],
            self._closure_drop(tables.drop[users]),
            tables.g[users],
            self.tau,
        )
        return rows.mean(losses)

    def tables(self) -> dict[str, Tensor]:
        """The tables of the last refresh."""
        if self._tables is None:
            return {}
        return {f.name: getattr(self._tables, f.name) for f in fields(Tables)}

    def load_tables(self, tables: dict[str, Tensor]) -> None:
        """Take back the tables of a refresh."""
        if tables:
            width = 2 * self.k + self.sample
            if tables["items"].shape != (self.n_users, width):
                raise KDError(
                    f"--resume: found lists of {tables['items'].shape[1]} items a user, "
                    f"allowed is 2 * rcekd_K + rcekd_L = {width}"
                )
            self._tables = Tables(**{k: v.to(self.device) for k, v in tables.items()})
