"""RCE-KD's item sets: the student's top list, a sample that closes it, the teacher's list."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_kd.candidates import hits_at_or_below


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


@dataclass(frozen=True)
class ClosureSets:
    """The sets of ``C`` users.

    Attributes:
        student: The student's top-K ``Q_S``, ``[C, K]``.
        sample: The sample ``A`` of the student's list, ``[C, L]``.
        teacher: The teacher's top-K ``Q_T``, ``[C, K]``.
        in_student: Which of ``Q_T`` are in ``Q_S``, ``[C, K]``, bool.
        in_sample: Which of ``Q_T`` are in ``A``, ``[C, K]``, bool.
    """

    student: Tensor
    sample: Tensor
    teacher: Tensor
    in_student: Tensor
    in_sample: Tensor

    @classmethod
    def of(
        cls, lists: Tensor, teacher: Tensor, ranks: Tensor, drawn: Tensor, k: int
    ) -> ClosureSets:
        """The sets from the student's lists and the positions drawn of them.

        Args:
            lists: The student's items, best first, ``[C, M]``.
            teacher: The teacher's items, ``[C, K]``.
            ranks: Their ranks in ``lists``, ``[C, K]``; ``M`` outside.
            drawn: Positions of the sample, ``[C, L]``.
            k: Length ``K``.
        """
        users, length = lists.shape
        taken = torch.zeros(users, length + 1, dtype=torch.bool, device=lists.device)
        in_sample = taken.scatter_(1, drawn, True).gather(1, ranks)
        return cls(lists[:, :k], lists.gather(1, drawn), teacher, ranks < k, in_sample)

    @property
    def items(self) -> Tensor:
        """``Q_S``, ``A`` and ``Q_T`` side by side, ``[C, 2K + L]``."""
        return torch.cat([self.student, self.sample, self.teacher], dim=1)

    @property
    def drop(self) -> Tensor:
        """Entries of ``Q_T`` that are in one of the other sets, ``[C, K]``, bool."""
        return self.in_student | self.in_sample


def of_closure(drop: Tensor, sample: int) -> Tensor:
    """Which entries of ``A`` and ``Q_T`` side by side are dropped: none of ``A``.

    Args:
        drop: Entries of ``Q_T`` that are dropped, ``[C, K]``, bool.
        sample: Size ``L`` of ``A``.

    Returns:
        ``[C, L + K]``, bool.
    """
    return torch.cat([drop.new_zeros(len(drop), sample), drop], dim=1)
