"""What every distillation method is: a RecBole model that wraps a student and a frozen teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from recbole.model.abstract_recommender import AbstractRecommender
from torch import Tensor, nn

from recbole_kd.candidates import chunk_rows
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.noise import user_noise
from recbole_kd.rows import ROW_KINDS, Rows, RowSchedule
from recbole_kd.scoring import Scorer, require_factorised
from recbole_kd.teacher import FrozenTeacher


class Distiller(AbstractRecommender):
    """A student with its teacher, to RecBole one model like any other.

    A method implements :meth:`kd_loss` and, where it keeps per-user tables, :meth:`refresh`.
    The total loss is ``base + kd_weight * kd``, both means over rows. The teacher is no submodule:
    it is never trained, moved, or saved with the student. ``state_dict()`` holds the student under
    ``student.`` and the method's own modules beside it.

    Args:
        config: The student's configuration; gives ``kd_weight``, ``kd_rows``, ``refresh_every``.
        dataset: The train split, as RecBole hands it to a model.
        student: The RecBole model to train.
        scorer: Scorer of ``student``.
        teacher: The frozen teacher, in the student's ids.
        history: Train history of every user.

    Raises:
        KDError: An option is out of range, or the student has no factorised scorer.
    """

    refreshes = True
    """Whether the method has per-user tables to rebuild."""

    student: Any

    def __init__(
        self,
        config: Any,
        dataset: Any,
        student: Any,
        scorer: Scorer,
        teacher: FrozenTeacher,
        history: UserHistory,
    ):
        super().__init__()
        self.check(config, history)
        require_factorised(type(student), config["model"])
        if not scorer.factorised:
            raise KDError(
                f"--student={config['model']}: its make_scorer gives a {type(scorer).__name__}, "
                "whose scores have no gradient; allowed is a FactorScorer"
            )
        self.type = student.type
        self.input_type = getattr(student, "input_type", None)
        self.device = config["device"]
        self.student = student
        self.scorer = scorer
        self.teacher = teacher
        self.history = history
        self.n_users, self.n_items = history.n_users, history.n_items
        self.user_field = dataset.uid_field
        self.options = config
        self.seed = config["seed"]
        self.kd_weight = float(config["kd_weight"])
        self.refresh_every = config["refresh_every"]
        self.memory_budget_gb = config["memory_budget_gb"]
        users = history.active_users()
        self.users = users[teacher.knows_user[users].cpu()]
        self.rows = RowSchedule(
            config["kd_rows"], self.users.to(self.device), self.n_users, self.seed
        )
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        self._diagnostics: dict[str, float] = {}
        self._fresh = False

    # -- what a method writes ------------------------------------------------------------------

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; called before any training starts.

        Args:
            config: The student's configuration.
            history: Train history of every user.

        Raises:
            KDError: Names the option, what was found and what is allowed.
        """
        config.number("kd_weight", low=0)
        config.positive_int("refresh_every")
        config.number("memory_budget_gb", low=0, above=True)
        config.choice("kd_rows", ROW_KINDS)

    def kd_loss(self, rows: Rows) -> Tensor:
        """The raw distillation loss of a step: a mean over ``rows``, with gradient.

        Args:
            rows: Users of the step and how often each counts.
        """
        raise NotImplementedError

    def refresh(self, epoch: int) -> dict[str, float]:
        """Rebuild the per-user tables; the student is in eval mode, without gradient.

        Args:
            epoch: 0-based epoch.

        Returns:
            Diagnostics to log.
        """
        return {}

    def tables(self) -> dict[str, Tensor]:
        """Tensors that :meth:`refresh` made and a resumed run needs."""
        return {}

    def load_tables(self, tables: dict[str, Tensor]) -> None:
        """Take back what :meth:`tables` gave."""

    # -- what the trainer calls ----------------------------------------------------------------

    def begin_epoch(self, epoch: int, n_batches: int) -> None:
        """Called before the first batch of every epoch.

        Args:
            epoch: 0-based epoch.
            n_batches: Batches of the epoch.
        """
        self._sums, self._batches = {}, 0
        self.rows.begin_epoch(epoch, n_batches)
        if self.refreshes and (not self._fresh or epoch % self.refresh_every == 0):
            with self.ranking_mode():
                self._diagnostics = self.refresh(epoch)
            self._fresh = True

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Base loss and weighted distillation loss of a batch, both scalars."""
        with self.scorer.step():
            base = self.student.calculate_loss(interaction)
            base = torch.stack(base).sum() if isinstance(base, tuple) else base
            kd = self.kd_loss(self.rows.next(interaction[self.user_field]))
        self._add(base_loss=base, kd_loss=kd)
        return base, self.kd_weight * kd

    def epoch_log(self) -> dict[str, float]:
        """Mean losses of the epoch and the diagnostics of its tables."""
        means = {k: v.item() / max(1, self._batches) for k, v in self._sums.items()}
        return {**means, **self._diagnostics}

    def deployed(self) -> nn.Module:
        """The plain RecBole model that is evaluated, saved and shipped."""
        return self.student

    def resume_state(self) -> dict[str, Any]:
        """Everything beyond ``state_dict()`` that a resumed run needs, as plain data."""
        return {
            "tables": self.tables(),
            "diagnostics": dict(self._diagnostics),
            "fresh": self._fresh,
        }

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`resume_state` gave."""
        self.load_tables(state["tables"])
        self._diagnostics = dict(state["diagnostics"])
        self._fresh = state["fresh"]

    # -- RecBole's model interface, answered by the student ------------------------------------

    def predict(self, interaction: Any) -> Tensor:
        """The student's scores of user-item pairs, ``[B]``."""
        return self.student.predict(interaction)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """The student's scores of all items; for evaluation, without gradient."""
        return self.student.full_sort_predict(interaction)

    def other_parameter(self) -> dict[str, Any]:
        """The student's extra state, in RecBole's sense."""
        return self.student.other_parameter()

    def load_other_parameter(self, para: dict[str, Any] | None) -> None:
        """Give the student its extra state."""
        self.student.load_other_parameter(para)

    # -- tools for methods ---------------------------------------------------------------------

    def noise(self, users: Tensor, width: int, epoch: int) -> Tensor:
        """The distillation sampler's own random numbers, see :func:`recbole_kd.noise.user_noise`.

        Args:
            users: User ids, ``[C]``.
            width: Draws a user.
            epoch: 0-based epoch.
        """
        return user_noise(users, width, self.seed, 2, epoch)

    @contextlib.contextmanager
    def ranking_mode(self) -> Iterator[None]:
        """Student in eval mode, no gradient, parameters shared; the mode is put back."""
        training = self.student.training
        self.student.eval()
        try:
            with torch.no_grad(), self.scorer.step():
                yield
        finally:
            self.student.train(training)

    def student_lists(self, length: int, mask_train: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """The student's best items of every distilled user, in chunks under the memory budget.

        Args:
            length: Items a user.
            mask_train: Whether train items are left out.

        Yields:
            User ids ``[c]`` and item ids ``[c, length]``, best first, int64.
        """
        # Scores, the ranking's copy of them and a rank buffer: about 16 bytes an item.
        rows = chunk_rows(16 * self.n_items, self.memory_budget_gb, len(self.users))
        for users in self.users.split(rows):
            users = users.to(self.device)
            scores = self.scorer.score_all(self.scorer.encode(users))
            scores[:, 0] = -torch.inf
            if mask_train:
                self.history.mask_(scores, users)
            yield users, scores.topk(length, dim=1).indices

    def _add(self, **terms: Tensor) -> None:
        self._batches += 1
        for name, value in terms.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value


def check_list_length(key: str, length: int, history: UserHistory, mask_train: bool) -> None:
    """Refuse a list longer than the items there are.

    Raises:
        KDError: Names the option, its value and the limit.
    """
    longest = int(history.counts.max()) if mask_train else 0
    limit = history.n_items - 1 - longest
    if length > limit:
        used = f", of which a user has up to {longest} in the train split" if longest else ""
        raise KDError(
            f"--{key}={length}: the data set has {history.n_items - 1} items{used}; "
            f"allowed are values up to {limit}"
        )


def list_ndcg(student: Tensor, teacher: Tensor, k: int) -> Tensor:
    """NDCG@k of student lists where the teacher's first ``k`` items are the relevant ones.

    Args:
        student: Student's items, best first, ``[C, >= k]``.
        teacher: Teacher's items, best first, ``[C, >= k]``.
        k: Cut-off; cut to the shorter list.

    Returns:
        One value a row, ``[C]``, between 0 and 1.
    """
    k = min(k, student.shape[1], teacher.shape[1])
    hit = (student[:, :k, None] == teacher[:, None, :k]).any(-1)
    discount = 1 / torch.arange(2, k + 2, device=student.device).float().log2()
    return (hit * discount).sum(1) / discount.sum()
