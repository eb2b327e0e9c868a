"""HetComp: distillation along the teacher's training trajectory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_kd.curriculum import Curriculum
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.losses import at_least, listwise
from recbole_kd.methods.base import NEEDS, Distiller, check_list_length
from recbole_kd.rows import Rows


def overall_loss(listed: Tensor, tail: Tensor, floor: float = 0.0) -> Tensor:
    """Every listed item above all that are in no list, without order among the listed.

    Args:
        listed: Student scores, ``[B, P + K]``, with gradient.
        tail: Log of the summed exponentials of the other items, ``[B]``, with gradient.
        floor: Least sum of exponentials, see :func:`recbole_kd.losses.listwise`.

    Returns:
        One loss a row, ``[B]``.
    """
    return (at_least(torch.logaddexp(tail.unsqueeze(1), listed), floor) - listed).sum(1)


def rank_loss(positives: Tensor, ordered: Tensor, tail: Tensor, floor: float = 0.0) -> Tensor:
    """The list in its order, its first half and first tenth above all that follow.

    Args:
        positives: Student scores of train items, ``[B, P]``, with gradient.
        ordered: Student scores of the teacher's list, best first, ``[B, K]``, with gradient.
        tail: Log of the summed exponentials of the items in neither, ``[B]``, with gradient.
        floor: Least sum of exponentials, see :func:`recbole_kd.losses.listwise`.

    Returns:
        One loss a row, ``[B]``.
    """
    half, tenth = ordered.shape[1] // 2, ordered.shape[1] // 10
    below_half = torch.logaddexp(tail, ordered[:, half:].logsumexp(1))
    below_tenth = torch.logaddexp(tail, ordered[:, tenth:].logsumexp(1))
    lists = listwise(ordered[:, :half], below_half, floor)
    lists = lists + listwise(ordered[:, :tenth], below_tenth, floor)
    return listwise(positives, below_half, floor) + 0.5 * lists


class HetComp(Distiller):
    """Kang et al., "Distillation from Heterogeneous Models" (WWW 2023, arXiv 2303.01130).

    As released beside RCE-KD: one teacher with checkpoints of its own training in place of six
    teachers, and the student's base loss beside this. Every user starts with the list of an early
    checkpoint and moves on by a :class:`Curriculum`, checked every ``refresh_every`` epochs; when
    all have arrived, the loss is :func:`rank_loss` instead of twice :func:`overall_loss`. The
    released code reads the earliest checkpoints only; here they lie evenly, the best as the last.
    Its cut of scores at 40 and floor of 1e-5 are ``hetcomp_clamp`` and ``hetcomp_floor``, off here.
    """

    needs = frozenset({"trajectory"})

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; see :meth:`Distiller.check`."""
        super().check(config, history)
        config.whole_number("hetcomp_checkpoints", low=2)
        config.number("hetcomp_alpha", low=1)
        config.number("hetcomp_floor", low=0)
        if config["hetcomp_clamp"] is not None:
            config.number("hetcomp_clamp", low=0, above=True)
        check_list_length("hetcomp_K", config.whole_number("hetcomp_K", 2), history, True)

    @classmethod
    def teacher_list(cls, config: Any) -> tuple[int, bool] | None:
        """Of every checkpoint; see :meth:`Distiller.teacher_list`."""
        return config["hetcomp_K"], True

    @classmethod
    def check_checkpoints(cls, config: Any, found: int) -> None:
        """Refuse a teacher with too few; see :meth:`Distiller.check_checkpoints`."""
        asked = config["hetcomp_checkpoints"]
        if found < asked - 1:
            lacks = f"needs {NEEDS['trajectory']}; found {found} before its best epoch; allowed is"
            lacks += (f" {found + 1}, or" if found else "") + " a lower --teacher.save_every"
            raise KDError(f"--hetcomp_checkpoints={asked}: {lacks}")

    def __init__(self, config: Any, *parts: Any, **named: Any):
        super().__init__(config, *parts, **named)
        self.k, self.alpha = config["hetcomp_K"], config["hetcomp_alpha"]
        self.last = config["hetcomp_checkpoints"] - 1
        self.clamp, self.floor = config["hetcomp_clamp"], config["hetcomp_floor"]
        fewest = int(self.history.counts[self.users].min())
        starts = self.history.offsets[self.users].unsqueeze(1) + torch.arange(fewest)
        self._positives = self.table(fewest, torch.int32)
        self._positives[self.users] = self.history.items[starts].to(self.device)
        self._curriculum: Curriculum | None = None
        self.arrived = False
        """Whether the users learn from the best checkpoint, all but half a percent (released)."""

    @property
    def curriculum(self) -> Curriculum:
        """The users' way along the checkpoints; their lists are made at the first call."""
        if self._curriculum is None:
            files = self.teacher.trajectory
            early = [files[i * len(files) // self.last] for i in range(self.last)]
            teachers = (load() for load in [*early, lambda: self.teacher])
            tops = [teacher.top_k(self.k, mask_train=True)[0] for teacher in teachers]
            self._curriculum = Curriculum(torch.stack(tops), self.n_items, self.alpha)
        return self._curriculum

    def refresh(self, epoch: int) -> dict[str, float]:
        """Users that are near enough to the next checkpoint move on to it."""
        if epoch >= self.refresh_every and not self.arrived:
            for users, student in self.student_lists(self.k, mask_train=True):
                self.curriculum.advance(users, student, epoch // self.refresh_every)
        self.arrived = self.curriculum.progress(self.users) >= self.last
        return {"mean_checkpoint": self.curriculum.progress(self.users)}

    def kd_loss(self, rows: Rows) -> Tensor:
        """Mean of twice the overall loss, or of the rank loss once all users have arrived."""
        return self.over_all_items(self._losses, rows)

    def _losses(self, state: Tensor, items: Tensor, users: Tensor) -> Tensor:
        scores = state @ items.t()
        if self.clamp is not None:
            scores = scores.clamp(-self.clamp, self.clamp)
        listed, positives = self.curriculum.list_of(users), self._positives[users]
        both = scores.gather(1, torch.cat([positives, listed], dim=1).long())
        outside = scores.scatter(1, listed.long(), -torch.inf)
        outside[:, 0] = -torch.inf
        tail = self.history.mask_(outside, users).logsumexp(1)
        if not self.arrived:
            return 2 * overall_loss(both, tail, self.floor)
        first, last = both.tensor_split([positives.shape[1]], 1)
        return rank_loss(first, last, tail, self.floor)

    def tables(self) -> dict[str, Tensor]:
        """Where each user is, and how far from the next checkpoint."""
        return {"version": self.curriculum.version, "distance": self.curriculum.distance}

    def load_tables(self, tables: dict[str, Tensor]) -> None:
        """Take back the curriculum's state."""
        if (furthest := int(tables["version"].max())) > self.last:
            raise KDError(f"--resume: found users at checkpoint {furthest + 1} of {self.last + 1}")
        for name, kept in tables.items():
            setattr(self.curriculum, name, kept.to(self.device))
        self.arrived = self.curriculum.progress(self.users) >= self.last
