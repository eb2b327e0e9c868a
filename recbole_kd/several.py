"""Several teachers: how they are combined, and a student that learns from each of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from recbole_kd.errors import KDError
from recbole_kd.methods.base import Distiller, TaughtStudent
from recbole_kd.options import is_positive

COMBINE = ("distributions", "losses")


@dataclass(frozen=True)
class Combination:
    """How the teachers of a run are combined.

    Attributes:
        weights: Weight of each teacher, above 0, with the sum 1.
        combine: One of :data:`COMBINE`.
        tau: Temperature of the softmaxes whose mean teaches, above 0.
    """

    weights: tuple[float, ...]
    combine: str
    tau: float

    @classmethod
    def read(cls, config: Any, teachers: int) -> Combination:
        """What a configuration asks for.

        Args:
            config: The student's configuration.
            teachers: Number of teachers.

        Raises:
            KDError: Names the option, what was found and what is allowed.
        """
        given = config["teacher_weights"]
        weights = [1.0] * teachers if given is None else given
        right = isinstance(weights, list | tuple) and len(weights) == teachers
        if not right or not all(map(is_positive, weights)):
            raise KDError(
                f"--teacher_weights={given}: allowed are {teachers} numbers above 0, one a teacher"
            )
        return cls(
            tuple(weight / sum(weights) for weight in weights),
            config.choice("teacher_combine", COMBINE),
            config.number("teacher_tau", low=0, above=True),
        )

    @property
    def mixes(self) -> bool:
        """Whether the mean of the distributions teaches, not each teacher by itself."""
        return self.combine == "distributions"

    def digest(self, teachers: Sequence[str]) -> str:
        """What tells these teachers, so combined, from others.

        Args:
            teachers: Digest of each teacher.
        """
        options = asdict(self)
        if not self.mixes:
            del options["tau"]
        content = json.dumps([options, list(teachers)], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def taught_by(distillers: Sequence[Distiller], weights: Sequence[float]) -> TaughtStudent:
    """One model to train: the only distiller, or several over the same student.

    Args:
        distillers: One a teacher.
        weights: Weight of each.
    """
    return distillers[0] if len(distillers) == 1 else SeveralDistillers(distillers, weights)


class SeveralDistillers(TaughtStudent):
    """One method, once a teacher, over the same student: the losses are added up by weight.

    The base loss counts once: ``base + kd_weight * sum_k w_k kd_k``. ``state_dict()`` holds the
    student under ``student.`` and the method's own modules for each teacher under ``teacher1.``,
    ``teacher2.`` and so on. A graph student propagates once a step for all of them, and a sequence
    student encodes once where they teach the same users.

    Args:
        distillers: One a teacher, with the same student and scorer. Their student becomes part of
            this module and of none of them.
        weights: Weight of each.
    """

    def __init__(self, distillers: Sequence[Distiller], weights: Sequence[float]):
        first = distillers[0]
        super().__init__(first.student, first.scorer, first.device)
        self.kd_weight, self.weights = first.kd_weight, list(weights)
        self.distillers = tuple(distillers)
        for number, distiller in enumerate(distillers, 1):
            del distiller.student
            object.__setattr__(distiller, "student", self.student)  # at hand, no module of its own
            self.add_module(f"teacher{number}", distiller)

    def begin_epoch(self, epoch: int, n_batches: int) -> None:
        """Called before the first batch of every epoch; see :meth:`Distiller.begin_epoch`."""
        for distiller in self.distillers:
            distiller.begin_epoch(epoch, n_batches)

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Base loss and weighted distillation losses of a batch, both scalars."""
        with self.scorer.step():
            base = self.base_loss(interaction)
            losses = [d.distillation_loss(interaction) for d in self.distillers]
        for distiller, loss in zip(self.distillers, losses, strict=True):
            distiller.end_step(base_loss=base, kd_loss=loss)
        weighted = [w * loss for w, loss in zip(self.weights, losses, strict=True)]
        return base, self.kd_weight * torch.stack(weighted).sum()

    def epoch_log(self) -> dict[str, float]:
        """Mean losses of the epoch, and what each teacher's distiller logs, by its number."""
        logs = [distiller.epoch_log() for distiller in self.distillers]
        total = {key: logs[0][key] for key in ("base_loss",) if key in logs[0]}
        if "kd_loss" in logs[0]:
            pairs = zip(self.weights, logs, strict=True)
            total["kd_loss"] = sum(weight * log["kd_loss"] for weight, log in pairs)
        for number, log in enumerate(logs, 1):
            log.pop("base_loss", None)
            total.update({f"{key}_{number}": value for key, value in log.items()})
        return total

    def resume_state(self) -> dict[str, Any]:
        """Everything beyond ``state_dict()`` that a resumed run needs, as plain data."""
        return {"teachers": [distiller.resume_state() for distiller in self.distillers]}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`resume_state` gave."""
        for distiller, own in zip(self.distillers, state["teachers"], strict=True):
            distiller.load_resume_state(own)
