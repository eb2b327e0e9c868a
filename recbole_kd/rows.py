"""Which users a training step distils, and how much each counts.

A distillation row is a user with the whole train history. ``interaction`` rows follow the batch,
as in the released RCE-KD code: one row per train interaction, so that active users count more.
``user`` rows follow the paper's mean over users: every user once an epoch, spread evenly over the
batches. ``unique`` rows are the users of the batch, each once, over its train interactions: the
sum of RRD and DCD in their released form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_kd.noise import keyed_generator

ROW_KINDS = ("interaction", "unique", "user")


@dataclass(frozen=True)
class Rows:
    """Distinct users of a step.

    Attributes:
        users: User ids, ``[b]``, int64.
        weights: How much each user counts, ``[b]``, float32.
        total: What a sum over the users is divided by, a scalar; ``None``: the sum of the weights.
    """

    users: Tensor
    weights: Tensor
    total: Tensor | None = None

    def mean(self, losses: Tensor) -> Tensor:
        """The losses of the users, ``[b]``, as a mean over rows.

        Returns:
            Scalar; 0 with a gradient of 0 where there is no row.
        """
        total = self.weights.sum() if self.total is None else self.total
        return (losses * self.weights).sum() / total.clamp_min(1)


class RowSchedule:
    """Deals distillation rows to the batches of an epoch.

    Args:
        kind: One of :data:`ROW_KINDS`.
        users: Users that may be distilled, ascending, ``[U']``, int64.
        n_users: Number of users, padding included.
        seed: Seed of the order in which ``user`` rows come.
    """

    stream = 1

    def __init__(self, kind: str, users: Tensor, n_users: int, seed: int):
        self.kind = kind
        self.users = users
        self.seed = seed
        self._allowed = torch.zeros(n_users, dtype=torch.bool, device=users.device)
        self._allowed[users] = True
        self._parts: list[Tensor] = []
        self._batch = 0

    def begin_epoch(self, epoch: int, n_batches: int) -> None:
        """Deal the users of this epoch to its batches, sizes differing by at most 1."""
        self._batch = 0
        if self.kind == "user":
            generator = keyed_generator(self.seed, self.stream, epoch)
            order = torch.randperm(len(self.users), generator=generator).to(self.users.device)
            self._parts = list(self.users[order].tensor_split(max(1, n_batches)))

    def next(self, batch_users: Tensor) -> Rows:
        """Rows of the next batch.

        Args:
            batch_users: User of each train interaction of the batch, ``[B]``.
        """
        if self.kind == "user":
            users = self._parts[self._batch % len(self._parts)]
            self._batch += 1
            return Rows(users, torch.ones(len(users), device=users.device))
        users, counts = batch_users.unique(return_counts=True)
        known = self._allowed[users]
        users, counts = users[known], counts[known].float()
        if self.kind == "unique":
            return Rows(users, torch.ones_like(counts), counts.sum())
        return Rows(users, counts)
