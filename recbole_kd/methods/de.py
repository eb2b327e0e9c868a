"""DE: distillation experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_kd.experts import Experts, Gate, annealed, gumbel
from recbole_kd.history import UserHistory
from recbole_kd.losses import squared_error
from recbole_kd.methods.base import EmbeddingDistiller, Entities


def de_loss(found: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the teacher's vectors and what the experts make of the student's.

    Args:
        found: The experts' output, ``[n, D]``, with gradient.
        teacher: Teacher's vectors, ``[n, D]``.

    Returns:
        One loss an entity, ``[n]``.
    """
    return squared_error(found, teacher)


class DE(EmbeddingDistiller):
    """Kang, Hwang, Kweon and Yu, "DE-RRD" (CIKM 2020, arXiv 2012.04357): its embedding part.

    Experts rebuild the teacher's vectors from the student's; a gate chooses the expert by the
    teacher's vector, with a Gumbel softmax whose temperature falls from ``de_start_T`` to
    ``de_end_T`` over ``epochs``. Negatives and positives count half, users fully (released code).
    With one expert there is no gate.
    """

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; see :meth:`Distiller.check`."""
        super().check(config, history)
        config.positive_int("de_experts")
        for key in ("de_start_T", "de_end_T"):
            config.number(key, low=0, above=True)
        config.at_most("de_end_T", "de_start_T")

    def __init__(self, config: Any, *parts: Any, **named: Any):
        super().__init__(config, *parts, **named)
        self.number, self.epochs = config["de_experts"], config["epochs"]
        self.start, self.end = config["de_start_T"], config["de_end_T"]
        hidden = (self.width + self.teacher_width) // 2
        shape = self.width, self.teacher_width, self.number, hidden
        self.user_experts, self.item_experts = Experts(*shape), Experts(*shape)
        if self.number > 1:
            self.user_gate = Gate(self.teacher_width, self.number)
            self.item_gate = Gate(self.teacher_width, self.number)
        self.to(self.device)

    @property
    def temperature(self) -> float:
        """Temperature of this epoch."""
        return annealed(self.start, self.end, self.epoch, self.epochs)

    def embedding_loss(self, entities: Entities) -> Tensor:
        """Users' error and half of the items' errors, over the batch's interactions."""
        generator = self.step_generator()
        items = torch.cat([entities.positives, entities.negatives])
        users, found = self.vectors(entities.users, items)
        of_users = self._errors("user", users, self.teacher_users[entities.users], generator)
        of_items = self._errors("item", found, self.teacher_items[items], generator)
        return (of_users.sum() + 0.5 * of_items.sum()) / entities.rows

    def _errors(
        self, side: str, student: Tensor, teacher: Tensor, generator: torch.Generator
    ) -> Tensor:
        shares = None
        if self.number > 1:
            noise = gumbel(len(teacher), self.number, generator)
            shares = getattr(self, f"{side}_gate")(teacher, noise, self.temperature)
        return de_loss(getattr(self, f"{side}_experts")(student, shares), teacher)
