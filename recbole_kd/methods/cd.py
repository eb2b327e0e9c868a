"""CD: collaborative distillation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from recbole_kd.candidates import geometric_positions
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.losses import log_sigmoid
from recbole_kd.methods.base import Distiller
from recbole_kd.rows import Rows
from recbole_kd.teacher import UNKNOWN_SCORE


def cd_loss(
    student: Tensor, targets: Tensor, floor: float = 0.0, drop: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy between soft labels and student scores, summed over the items.

    Args:
        student: Student scores, ``[B, n]``, with gradient.
        targets: Soft labels between 0 and 1, ``[B, n]``.
        floor: Added inside the logarithms; 1e-10 in the released code.
        drop: Items that do not count, ``[B, n]``, bool.

    Returns:
        One loss a row, ``[B]``.
    """
    terms = targets * log_sigmoid(student, floor) + (1 - targets) * log_sigmoid(-student, floor)
    return -(terms if drop is None else terms.masked_fill(drop, 0)).sum(1)


def soft_labels(teacher: Tensor, t1: float, t2: float) -> Tensor:
    """``sigmoid((t + t2) / t1)`` of the teacher's scores."""
    return torch.sigmoid((teacher + t2) / t1)


def tournament(uniform: Tensor, lengths: Tensor, temperature: float) -> Tensor:
    """The better of two positions, each drawn with weights ``exp(-r / (N T))`` from a list.

    A position ``r`` wins with ``p_r ** 2 + 2 p_r sum_{j > r} p_j``.

    Args:
        uniform: Uniform draws, ``[C, n, 2]``, float64.
        lengths: Length ``N`` of each row's list, ``[C]``, int64.
        temperature: ``T``; with the released 20 the weights are nearly even.

    Returns:
        Positions, ``[C, n]``, int64; repeats within a row are kept.
    """
    lengths = lengths.view(-1, 1, 1)
    return geometric_positions(uniform, lengths, lengths.double() * temperature).amin(2)


class CD(Distiller):
    """Lee, Choi, Lee and Shim, "Collaborative Distillation" (ICDM 2019, arXiv 1911.05276).

    Soft labels from the teacher on a few sampled items without train interaction. ``cd_guide``:
    whose ranking the sampler goes by: ``student`` (drawn at every refresh), ``teacher`` or
    ``random`` (drawn once; ``random`` from all items, train items included).
    As in the released code an item may be drawn twice, for its sets never find repeats; its
    logarithm's floor of 1e-10, which ends the gradient beyond scores of about 23, is ``cd_floor``,
    and 0 by default.
    """

    kept: tuple[str, ...] = ("items", "targets")

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; see :meth:`Distiller.check`."""
        super().check(config, history)
        config.choice("cd_guide", ("student", "teacher", "random"))
        config.positive_int("cd_M")
        config.positive_int("cd_n")
        for key in ("cd_T", "cd_t1"):
            config.number(key, low=0, above=True)
        config.number("cd_t2")
        config.number("cd_floor", low=0)
        if (
            config["cd_guide"] != "random"
            and int(history.distinct_counts.max()) >= history.n_items - 1
        ):
            raise KDError(
                f"--cd_guide={config['cd_guide']}: a user has every item in the train split; "
                "allowed is random"
            )

    def __init__(self, config: Any, *parts: Any, **named: Any):
        super().__init__(config, *parts, **named)
        self.guide, self.samples = config["cd_guide"], config["cd_n"]
        self.length = min(config["cd_M"], self.n_items - 1)
        self.temperature, self.floor = config["cd_T"], config["cd_floor"]
        self.t1, self.t2 = config["cd_t1"], config["cd_t2"]
        self.items = self.table(self.samples, torch.int32)
        self.targets = self.table(self.samples)
        self._drawn = False
        if self.guide != "student":
            self.kept = ()  # a new process draws the same again

    def refresh(self, epoch: int) -> dict[str, float]:
        """Sampled items and soft labels; drawn once unless the student guides."""
        if self.guide != "student":
            if self._drawn:
                return {}
            epoch, self._drawn = 0, True
        for users, items in self._draws(epoch):
            scores = self.teacher.score(users, items)
            # An item that the teacher does not know points at padding, which marks it for kd_loss.
            self.items[users] = items.masked_fill(scores <= UNKNOWN_SCORE, 0).int()
            self.targets[users] = soft_labels(scores, self.t1, self.t2)
        return {}

    def _draws(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        if self.guide == "random":
            uniform = self.uniform(self.users, self.samples, epoch).to(self.device)
            items = 1 + (uniform * (self.n_items - 1)).long().clamp_max(self.n_items - 2)
            yield self.users.to(self.device), items
            return
        guide = self.student_lists if self.guide == "student" else self.teacher_lists
        for users, lists in guide(self.length, mask_train=True):
            uniform = self.uniform(users, 2 * self.samples, epoch).view(-1, self.samples, 2)
            lengths = self.free_items(users).clamp_max(self.length)
            yield users, lists.gather(1, tournament(uniform, lengths, self.temperature))

    def kd_loss(self, rows: Rows) -> Tensor:
        """Mean of :func:`cd_loss` over the rows."""
        state = self.scorer.encode(rows.users)
        items = self.items[rows.users].long()
        scores = self.scorer.score(state, items)
        return rows.mean(cd_loss(scores, self.targets[rows.users], self.floor, items == 0))
