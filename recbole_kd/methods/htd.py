"""HTD: hierarchical topology distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from recbole_kd.errors import KDError
from recbole_kd.experts import Experts, Gate, annealed, gumbel
from recbole_kd.history import UserHistory
from recbole_kd.losses import squared_error
from recbole_kd.methods.base import EmbeddingDistiller, Entities


def inner_topology(student: Tensor, teacher: Tensor, groups: Tensor, positive: bool) -> Tensor:
    """Squared difference of cosines over ordered pairs of one group.

    Args:
        student: Student's vectors, ``[n, d]``, with gradient.
        teacher: Teacher's vectors, ``[n, D]``.
        groups: Group of each, ``[n]``, int64.
        positive: Whether only pairs count whose teacher cosine is above 0.

    Returns:
        Scalar.
    """
    order = groups.argsort(stable=True)
    counts = groups.bincount()
    sizes = counts[counts > 0].tolist()
    s, t = normalize(student, dim=1)[order], normalize(teacher, dim=1)[order]
    total = student.new_zeros(())
    for part, wanted in zip(s.split(sizes), t.split(sizes), strict=True):
        cosines = wanted @ wanted.t()
        gaps = (part @ part.t() - cosines).square()
        total = total + (gaps * (cosines > 0) if positive else gaps).sum()
    return total


def group_topology(
    student: Tensor, teacher: Tensor, groups: Tensor, entities: bool, detached: bool
) -> Tensor:
    """Squared difference of the cosines with the groups' means.

    Args:
        student: Student's vectors, ``[n, d]``, with gradient.
        teacher: Teacher's vectors, ``[n, D]``.
        groups: Group of each, ``[n]``, int64.
        entities: Whether means meet all entities (``second``, the released default), or each other.
        detached: Whether no gradient flows through the student's means.

    Returns:
        Scalar.
    """
    if not len(groups):
        return student.new_zeros(())
    compact = groups.unique(return_inverse=True)[1]
    number = int(compact.max()) + 1
    counts = compact.bincount(minlength=number).unsqueeze(1).to(student.dtype)
    cosines = []
    for vectors in (student, teacher):
        source = vectors.detach() if detached else vectors
        means = source.new_zeros(number, source.shape[1]).index_add(0, compact, source) / counts
        means = normalize(means, dim=1)
        cosines.append(means @ (normalize(vectors, dim=1) if entities else means).t())
    return (cosines[0] - cosines[1]).square().sum()


class HTD(EmbeddingDistiller):
    """Kang, Hwang, Kweon and Yu, "Topology Distillation" (KDD 2021, arXiv 2106.08700): its HTD.

    Entities are grouped by a gate on the teacher's vectors, which learns beside experts that
    rebuild them, as in DE. Similarities inside a group, and those with the groups' means, are
    distilled. Released code: its key for the temperature is dead, for the temperature falls from 1
    to 1e-10 over ``epochs`` (``htd_schedule: annealed``); by default ``htd_T`` holds. Means carry
    no gradient (``htd_prototypes: detached``, both codes), so that ``htd_choice: first``, means
    with means, teaches the student nothing then. Pairs with a teacher cosine of at most 0 are left
    out by both codes (``htd_pairs: positive``).
    """

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; see :meth:`Distiller.check`."""
        super().check(config, history)
        config.whole_number("htd_experts", low=1)
        if config.number("htd_alpha", low=0) > 1:
            raise KDError(f"--htd_alpha={config['htd_alpha']}: allowed are numbers from 0 to 1")
        config.number("htd_T", low=0, above=True)
        config.choice("htd_schedule", ("constant", "annealed"))
        config.choice("htd_choice", ("first", "second"))
        config.choice("htd_prototypes", ("detached", "live"))
        config.choice("htd_pairs", ("positive", "group"))

    def __init__(self, config: Any, *parts: Any, **named: Any):
        super().__init__(config, *parts, **named)
        self.number, self.alpha, self.constant = (
            config[f"htd_{n}"] for n in ("experts", "alpha", "T")
        )
        self.annealed, self.epochs = config["htd_schedule"] == "annealed", config["epochs"]
        self.second, self.positive = (
            config["htd_choice"] == "second",
            config["htd_pairs"] == "positive",
        )
        self.detached = config["htd_prototypes"] == "detached"
        hidden = (self.width + self.teacher_width) // 2
        shape = self.width, self.teacher_width, self.number, hidden
        self.user_experts, self.item_experts = Experts(*shape), Experts(*shape)
        self.user_gate = Gate(self.teacher_width, self.number)
        self.item_gate = Gate(self.teacher_width, self.number)
        self.to(self.device)

    @property
    def temperature(self) -> float:
        """Temperature of this epoch."""
        if not self.annealed:
            return self.constant
        return annealed(1.0, 1e-10, self.epoch, self.epochs)

    def embedding_loss(self, entities: Entities) -> Tensor:
        """Topology and group assignment, over the batch's interactions."""
        items = entities.items
        student = self.vectors(entities.users, items)
        teacher = self.teacher_users[entities.users], self.teacher_items[items]
        generator = self.step_generator()
        gates, experts = (self.user_gate, self.item_gate), (self.user_experts, self.item_experts)
        groups, assignment = [], student[0].new_zeros(())
        for side in (0, 1):
            noise = gumbel(len(teacher[side]), self.number, generator)
            shares = gates[side](teacher[side], noise, self.temperature)
            errors = squared_error(experts[side](student[side], shares), teacher[side])
            assignment = assignment + errors.sum()
            groups.append(gates[side].groups(teacher[side]) + side * self.number)
        mixed, wanted, of = torch.cat(student), torch.cat(teacher), torch.cat(groups)
        topology = inner_topology(mixed, wanted, of, self.positive)
        topology = topology + group_topology(mixed, wanted, of, self.second, self.detached)
        return (self.alpha * topology + (1 - self.alpha) * assignment) / entities.rows
