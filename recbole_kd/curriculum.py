"""A curriculum over a teacher's training: each user learns from a checkpoint within reach."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_kd.candidates import ranks_in


def discrepancy(student: Tensor, teacher: Tensor, n_items: int) -> Tensor:
    """How much of the student's list is not in the teacher's, by place; 0 for the same items.

    Args:
        student: Student's items, best first, ``[C, K]``, int64.
        teacher: Teacher's items, ``[C, K]``, int64.
        n_items: Number of items.

    Returns:
        ``[C]``, float64, in steps of 1e-4.
    """
    places = torch.arange(student.shape[1], dtype=torch.float64, device=student.device)
    gains = (torch.exp2(torch.exp(-places / 10)) - 1) / torch.log2(places + 2)
    hits = ranks_in(teacher, student, n_items) < teacher.shape[1]
    return 1 - ((hits * gains).sum(1) / gains.sum()).round(decimals=4)


def moves_on(before: Tensor, now: Tensor, threshold: float) -> Tensor:
    """Whether a user has come near enough to the next checkpoint, or has moved away from it.

    Args:
        before: Discrepancy when the user arrived at the present checkpoint, ``[C]``.
        now: Discrepancy now, ``[C]``.
        threshold: Ratio of the two that lets a user go on; so does ``now`` 0, where the released
            code divides by it.

    Returns:
        ``[C]``, bool.
    """
    return (before > threshold * now) | (before < now) | (now == 0)


class Curriculum:
    """Where each user is on the teacher's way (Kang et al., HetComp, WWW 2023).

    Args:
        lists: Top items of every checkpoint, oldest first, ``[V, n_users, K]``, int32.
        n_items: Number of items.
        alpha: Ratio of discrepancies that lets a user go on; falls by 0.5% a check.
    """

    def __init__(self, lists: Tensor, n_items: int, alpha: float):
        self.lists, self.n_items, self.alpha = lists, n_items, alpha
        self.last = len(lists) - 1
        n_users, device = lists.shape[1], lists.device
        self.version = torch.zeros(n_users, dtype=torch.int64, device=device)
        self.distance = torch.full((n_users,), torch.nan, dtype=torch.float64, device=device)

    def progress(self, users: Tensor) -> float:
        """Mean checkpoint of some users, 0 for the first, to two digits."""
        return round(float(self.version[users].double().mean()), 2)

    def list_of(self, users: Tensor) -> Tensor:
        """What each user learns from now, ``[C, K]``, int32."""
        return self.lists[self.version[users], users]

    def advance(self, users: Tensor, student: Tensor, check: int) -> None:
        """Move users on that are near enough to the next checkpoint; the first check only measures.

        Args:
            users: User ids, ``[C]``.
            student: The student's items now, best first, ``[C, K]``, int64.
            check: Number of the check, from 1.
        """
        before, now = self.distance[users], self._distance(users, student, 1)
        new = before.isnan()
        near = moves_on(before, now, self.alpha * 0.995**check)
        moved = ~new & (self.version[users] < self.last) & near
        after = torch.where(moved, self._distance(users, student, 2), before)
        self.distance[users] = torch.where(new, now, after)
        self.version[users] += moved

    def _distance(self, users: Tensor, student: Tensor, ahead: int) -> Tensor:
        version = (self.version[users] + ahead).clamp_max(self.last)
        return discrepancy(student, self.lists[version, users].long(), self.n_items)
