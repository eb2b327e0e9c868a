"""Which users a training step distils, and how much each counts.

A distillation row is a user with the whole train history. ``interaction`` rows follow the batch,
as in the released RCE-KD code: one row per train interaction, so that active users count more.
``user`` rows follow the paper's mean over users: every user once an epoch, spread evenly over the
batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_kd.noise import keyed_generator

ROW_KINDS = ("interaction", "user")


@dataclass(frozen=True)
class Rows:
    """Distinct users of a step.

    Attributes:
        users: User ids, ``[b]``, int64.
        weights: Rows each user stands for, ``[b]``, float32.
    """

    users: Tensor
    weights: Tensor


class RowSchedule:
    """Deals distillation rows to the batches of an epoch.

    Args:
        kind: ``interaction`` or ``user``.
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
            batch_users: User ids of the batch's base rows, ``[B]``.
        """
        if self.kind == "user":
            users = self._parts[self._batch % len(self._parts)]
            self._batch += 1
            return Rows(users, torch.ones(len(users), device=users.device))
        users, counts = batch_users.unique(return_counts=True)
        known = self._allowed[users]
        return Rows(users[known], counts[known].float())
