"""What every distillation method is: a RecBole model that wraps a student and a frozen teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from recbole.model.abstract_recommender import AbstractRecommender
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recbole_kd.candidates import chunk_rows, sorted_distinct
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.noise import keyed_generator, user_noise
from recbole_kd.rows import ROW_KINDS, Rows, RowSchedule
from recbole_kd.scoring import FactorScorer, Scorer, require_factorised
from recbole_kd.teacher import Teacher

NEEDS = {
    "vectors": "a teacher with user and item vectors",
    "trajectory": "a teacher with checkpoints of several epochs",
}
"""What a method may need, in words. Every method needs a student with user and item vectors."""


class TaughtStudent(AbstractRecommender):
    """A student that learns from more than its data, to RecBole one model like any other.

    Args:
        student: The RecBole model to train.
        scorer: Scorer of ``student``.
        device: Where it lies.
    """

    student: Any
    scorer: FactorScorer

    def __init__(self, student: Any, scorer: FactorScorer, device: Any):
        super().__init__()
        self.type = student.type
        self.input_type = getattr(student, "input_type", None)
        self.device = device
        self.student = student
        self.scorer = scorer

    def base_loss(self, interaction: Any) -> Tensor:
        """The student's own loss of a batch, a scalar; called within the scorer's step."""
        loss = self.student.calculate_loss(interaction)
        return torch.stack(loss).sum() if isinstance(loss, tuple) else loss

    def deployed(self) -> nn.Module:
        """The plain RecBole model that is evaluated, saved and shipped."""
        return self.student

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


class Distiller(TaughtStudent):
    """A student with its teacher.

    A method implements :meth:`kd_loss` and, where it keeps per-user tables, :meth:`refresh`.
    The total loss is ``base + kd_weight * kd``, both over rows. The teacher is no submodule:
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

    needs: frozenset[str] = frozenset()
    """What the method asks of a pair beside scores, of :data:`NEEDS`."""

    refreshes = True
    """Whether the method has per-user tables to rebuild."""

    kept: tuple[str, ...] = ()
    """Attributes that hold tables made by :meth:`refresh`, which a resumed run takes back."""

    deals_rows = True
    """Whether the method distils rows, that is :meth:`kd_loss` is called."""

    def __init__(
        self,
        config: Any,
        dataset: Any,
        student: Any,
        scorer: Scorer,
        teacher: Teacher,
        history: UserHistory,
    ):
        self.check(config, history)
        self.check_teacher(config, teacher)
        require_factorised(type(student), config["model"])
        if not isinstance(scorer, FactorScorer):
            raise KDError(
                f"--student={config['model']}: its make_scorer gives a {type(scorer).__name__}, "
                "whose scores have no gradient; allowed is a FactorScorer"
            )
        super().__init__(student, scorer, config["device"])
        self.teacher = teacher
        self.history = history
        self.n_users, self.n_items = history.n_users, history.n_items
        self.user_field = dataset.uid_field
        self.label_field = config["LABEL_FIELD"]
        self.negative_field = f"{config['NEG_PREFIX']}{dataset.iid_field}"
        drawn = config["train_neg_sample_args"] or {"distribution": "none"}
        self.repeats = 1 if drawn["distribution"] == "none" else drawn["sample_num"]
        self.options = config
        self.seed = config["seed"]
        self.kd_weight = float(config["kd_weight"])
        self.refresh_every = config["refresh_every"] if self.refreshes else 1
        self.memory_budget_gb = config["memory_budget_gb"]
        users = history.active_users()
        self.users = users[teacher.knows_user[users].cpu()]
        kind = config["kd_rows"] if self.deals_rows else "interaction"
        self.rows = RowSchedule(kind, self.users.to(self.device), self.n_users, self.seed)
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        self.epoch = 0
        self._diagnostics: dict[str, float] = {}
        self.refreshed = False
        self._excluded: list[tuple[Tensor, Tensor, Tensor]] = []

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
        config.number("memory_budget_gb", low=0, above=True)
        if cls.refreshes:
            config.positive_int("refresh_every")
        if cls.deals_rows:
            config.choice("kd_rows", ROW_KINDS)

    @classmethod
    def check_teacher(cls, config: Any, teacher: Teacher) -> None:
        """Refuse a trained teacher without what the method needs, before a student is trained.

        Args:
            config: The student's configuration.
            teacher: The frozen teacher.

        Raises:
            KDError: Says what is missing.
        """
        if "vectors" in cls.needs and teacher.factors() is None:
            raise KDError(f"--model={cls.__name__}: needs {NEEDS['vectors']}")
        cls.check_checkpoints(config, len(teacher.trajectory))
        asked = cls.teacher_list(config)
        if asked is not None:
            teacher.check_length(*asked)

    @classmethod
    def teacher_list(cls, config: Any) -> tuple[int, bool] | None:
        """The lists that the method asks of the teacher; ``None``: none.

        Args:
            config: The student's configuration.

        Returns:
            Items a user, and whether train items are left out.
        """
        return None

    @classmethod
    def check_checkpoints(cls, config: Any, found: int) -> None:
        """Refuse a trajectory that is too short; asked before the teacher is trained too.

        Args:
            config: The student's configuration.
            found: Checkpoints of the teacher before its best epoch, or how many there can be.

        Raises:
            KDError: Names the option, what was found and what is allowed.
        """

    @classmethod
    def assistant(cls, config: Any, teacher_width: int) -> dict[str, Any] | None:
        """Options of a student between teacher and student, which then teaches; ``None``: none.

        It is distilled from the teacher by the same method, before the student.

        Args:
            config: The student's configuration.
            teacher_width: Dimensions of the teacher's vectors, 0 for a teacher without.
        """
        return None

    def kd_loss(self, rows: Rows) -> Tensor:
        """The raw distillation loss of a step: a mean over ``rows``, with gradient.

        Args:
            rows: Users of the step and how often each counts.
        """
        raise NotImplementedError

    def distil(self, interaction: Any) -> Tensor:
        """The raw distillation loss of a batch; that of its rows, unless a method says otherwise.

        Args:
            interaction: The batch, as the student's own loss reads it.
        """
        return self.kd_loss(self.rows.next(self.interacting(interaction)))

    def interacting(self, interaction: Any) -> Tensor:
        """User of each train interaction of a batch, ``[B]``.

        RecBole gives every negative a row: it repeats the whole batch for the next negative of
        each, or writes negatives below it with a label. Neither makes an interaction more.

        Args:
            interaction: The batch, as the student's own loss reads it.
        """
        users = interaction[self.user_field]
        if self.label_field in interaction:
            return users[interaction[self.label_field] > 0]
        if self.negative_field in interaction:
            return users[: len(users) // self.repeats]
        return users

    def refresh(self, epoch: int) -> dict[str, float]:
        """Rebuild the per-user tables; the student is in eval mode, without gradient.

        Args:
            epoch: 0-based epoch.

        Returns:
            Diagnostics to log.
        """
        return {}

    def tables(self) -> dict[str, Tensor]:
        """Tensors that :meth:`refresh` made and a resumed run needs: those named in ``kept``."""
        return {name: getattr(self, name) for name in self.kept}

    def load_tables(self, tables: dict[str, Tensor]) -> None:
        """Take back what :meth:`tables` gave.

        Raises:
            KDError: They are of a run with other sizes.
        """
        for name in self.kept:
            found, mine = tables[name], getattr(self, name)
            if found.shape != mine.shape:
                raise KDError(
                    f"--resume: found the table {name} of shape {list(found.shape)}; this run's "
                    f"options give {list(mine.shape)}"
                )
            setattr(self, name, found.to(self.device))

    # -- what the trainer calls ----------------------------------------------------------------

    def begin_epoch(self, epoch: int, n_batches: int) -> None:
        """Called before the first batch of every epoch.

        Args:
            epoch: 0-based epoch.
            n_batches: Batches of the epoch.
        """
        self._sums, self._batches, self.epoch = {}, 0, epoch
        self.rows.begin_epoch(epoch, n_batches)
        if self.refreshes and (not self.refreshed or epoch % self.refresh_every == 0):
            with self.ranking_mode():
                self._diagnostics = self.refresh(epoch)
            self.refreshed = True

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Base loss and weighted distillation loss of a batch, both scalars."""
        with self.scorer.step():
            base, kd = self.base_loss(interaction), self.distillation_loss(interaction)
        self.end_step(base_loss=base, kd_loss=kd)
        return base, self.kd_weight * kd

    def distillation_loss(self, interaction: Any) -> Tensor:
        """:meth:`distil` in full precision; called within the scorer's step."""
        # Mixed precision is for the student's own loss: scores of a teacher need float32.
        with torch.autocast(torch.device(self.device).type, enabled=False):
            return self.distil(interaction)

    def end_step(self, **terms: Tensor) -> None:
        """Note the losses of a step for the epoch's log."""
        self._batches += 1
        for name, value in terms.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def epoch_log(self) -> dict[str, float]:
        """Mean losses of the epoch and the diagnostics of its tables."""
        means = {k: v.item() / max(1, self._batches) for k, v in self._sums.items()}
        return {**means, **self._diagnostics}

    def resume_state(self) -> dict[str, Any]:
        """Everything beyond ``state_dict()`` that a resumed run needs, as plain data."""
        return {
            "tables": self.tables(),
            "diagnostics": dict(self._diagnostics),
            "fresh": self.refreshed,
        }

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`resume_state` gave."""
        self.load_tables(state["tables"])
        self._diagnostics = dict(state["diagnostics"])
        # Where nothing was kept, the first epoch makes it.
        self.refreshed = state["fresh"] and bool(state["tables"])

    # -- tools for methods ---------------------------------------------------------------------

    def table(self, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Zeros for every user, ``[n_users, width]``."""
        return torch.zeros(self.n_users, width, dtype=dtype, device=self.device)

    def noise(self, users: Tensor, width: int, epoch: int, *more: int) -> Tensor:
        """The distillation sampler's own random numbers, see :func:`recbole_kd.noise.user_noise`.

        Args:
            users: User ids, ``[C]``.
            width: Draws a user.
            epoch: 0-based epoch.
            *more: Tells several draws of an epoch apart.
        """
        return user_noise(users, width, self.seed, 2, epoch, *more)

    def uniform(self, users: Tensor, width: int, epoch: int, *more: int) -> Tensor:
        """:meth:`noise` as uniform draws between 0 and 1, ``[C, width]``, float64."""
        return torch.exp(-self.noise(users, width, epoch, *more).double())

    def step_generator(self, *more: int) -> torch.Generator:
        """A generator for the random numbers of this step, the same in a resumed run.

        Args:
            *more: Tells several generators of a step apart.
        """
        return keyed_generator(self.seed, 3, self.epoch, self._batches, *more, device=self.device)

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
            length: Items a user; a list with fewer that are not left out ends in others.
            mask_train: Whether train items are left out.

        Yields:
            User ids ``[c]`` and item ids ``[c, length]``, best first, int64.
        """
        yield from self._ranked(
            lambda users: self.scorer.score_all(self.scorer.encode(users)), length, mask_train
        )

    def teacher_lists(self, length: int, mask_train: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """:meth:`student_lists` of the teacher, for lists too long to keep of all users."""
        yield from self._ranked(self.teacher.ranking_scores, length, mask_train)

    def _ranked(
        self, score_all: Callable[[Tensor], Tensor], length: int, mask_train: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        # Scores, the ranking's copy of them and a rank buffer: about 16 bytes an item.
        rows = chunk_rows(16 * self.n_items, self.memory_budget_gb, len(self.users))
        for users in self.users.split(rows):
            users = users.to(self.device)
            scores = score_all(users)
            scores[:, 0] = -torch.inf
            if mask_train:
                self.history.mask_(scores, users)
            yield users, scores.topk(length, dim=1).indices

    def over_all_items(
        self, loss: Callable[[Tensor, Tensor, Tensor], Tensor], rows: Rows
    ) -> Tensor:
        """Mean over the rows of a loss that reads the scores of all items.

        Where the scores of all rows do not fit the memory budget, rows are worked off in chunks
        whose scores are made again in the backward pass.

        Args:
            loss: Gives one loss a row from user vectors ``[c, d]``, item vectors ``[I, d]`` and
                user ids ``[c]``.
            rows: Users of the step.
        """
        state = self.scorer.encode(rows.users)
        # Taken here: the backward pass runs outside the scorer's step, where a graph model would
        # propagate anew.
        items = self.scorer.item_vectors()
        size = chunk_rows(24 * self.n_items, self.memory_budget_gb, len(rows.users))
        if len(rows.users) <= size:
            return rows.mean(loss(state, items, rows.users))
        losses = [
            checkpoint(loss, part, items, users, use_reentrant=False)
            for part, users in zip(state.split(size), rows.users.split(size), strict=True)
        ]
        return rows.mean(torch.cat(losses))

    def free_items(self, users: Tensor) -> Tensor:
        """How many items are no train items of each user, ``[C]``, int64, at least 1."""
        seen = self.history.distinct_counts[users.to(self.history.items.device)].to(users.device)
        return (self.n_items - 1 - seen).clamp_min(1)

    def excluded_items(self, lists: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """What is never sampled for a user: padding, train items and the items of a list.

        It is made at the first call and kept.

        Args:
            lists: Further items of every user, ``[n_users, K]``, the same at every call.

        Yields:
            User ids ``[c]`` and item ids ``[c, X]``, int32, as
            :func:`recbole_kd.candidates.sorted_distinct` gives them.
        """
        if not self._excluded:
            for users in self.users.split(1024):
                longest = 1 + int(self.history.counts[users].max())
                items = self.history.padded(users, longest)[0].to(self.device)
                users = users.to(self.device)
                items = items if lists is None else torch.cat([items, lists[users].long()], 1)
                ids = sorted_distinct(items, self.n_items).int()
                inside = ids < self.n_items
                self._excluded.append((users, inside.sum(1), ids[inside]))
        for users, lengths, kept in self._excluded:
            inside = torch.arange(int(lengths.max()), device=self.device) < lengths.unsqueeze(1)
            padded = torch.full(inside.shape, self.n_items, dtype=torch.int32, device=self.device)
            padded[inside] = kept
            yield users, padded


@dataclass(frozen=True)
class Entities:
    """Distinct users and items of a batch, ascending, that the teacher knows.

    Attributes:
        users: User ids, int64.
        positives: Items of the batch's interactions, int64.
        negatives: Items sampled beside them, int64; none where the student's loss samples none.
        rows: Train interactions of the batch.
    """

    users: Tensor
    positives: Tensor
    negatives: Tensor
    rows: int

    @property
    def items(self) -> Tensor:
        """Positives and negatives together, each once, ascending."""
        return torch.cat([self.positives, self.negatives]).unique()


class EmbeddingDistiller(Distiller):
    """A method that compares user and item vectors instead of scores.

    It implements :meth:`embedding_loss`, or :meth:`distil` where the batch's entities are no
    matter. Vectors are those whose inner product is the score:
    a graph model's after propagation, a sequence model's encoding of the train history.

    The loss is a *sum over entities divided by the interactions of the batch*: the released codes
    sum both base and distillation loss, so that their lambda is ``kd_weight`` here.
    """

    user_projector: nn.Module
    item_projector: nn.Module
    needs = frozenset({"vectors"})
    refreshes = False
    deals_rows = False

    def __init__(self, config: Any, dataset: Any, *parts: Any, **named: Any):
        super().__init__(config, dataset, *parts, **named)
        factors = self.teacher.factors()
        assert factors is not None
        self.teacher_users, self.teacher_items = factors
        with self.ranking_mode():
            self.width = self.scorer.item_vectors().shape[1]
        self.teacher_width = self.teacher_items.shape[1]
        items = self.teacher.knows_item.nonzero().squeeze(1)
        self._drawable = (self.users.to(self.device), items.to(self.device))
        self.item_field = dataset.iid_field
        self.list_field = None
        if getattr(config, "sequential", False) and config["sequence_training"] == "causal":
            self.list_field = self.item_field + config["LIST_SUFFIX"]

    def embedding_loss(self, entities: Entities) -> Tensor:
        """The raw distillation loss of a step, a scalar with gradient.

        Args:
            entities: Users and items of the batch.
        """
        raise NotImplementedError

    def distil(self, interaction: Any) -> Tensor:
        """:meth:`embedding_loss` of the batch's entities."""
        return self.embedding_loss(self.entities(interaction))

    def entities(self, interaction: Any) -> Entities:
        """What a batch holds; every position of a row whose positions are all supervised."""
        items = interaction[self.item_field]
        positives, negatives = items, items[:0]
        if self.negative_field in interaction:
            negatives = interaction[self.negative_field]
        elif self.label_field in interaction:
            clicked = interaction[self.label_field] > 0
            positives, negatives = items[clicked], items[~clicked]
        if self.list_field is not None:
            positives = torch.cat([positives, interaction[self.list_field].flatten()])
        users = self.interacting(interaction)
        return Entities(
            _known(users, self.teacher.knows_user),
            _known(positives, self.teacher.knows_item),
            _known(negatives, self.teacher.knows_item),
            max(1, len(users)),
        )

    def draw_entities(self, number: int) -> tuple[Tensor, Tensor]:
        """That many distilled users and known items, without repeats; all if fewer."""
        drawn, generator = [], self.step_generator(1)
        for ids in self._drawable:
            order = torch.randperm(len(ids), generator=generator, device=ids.device)
            drawn.append(ids[order[:number]])
        return drawn[0], drawn[1]

    def drawn_error(self, interaction: Any, error: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Error of drawn users and items through ``user_projector`` and ``item_projector``.

        Args:
            interaction: A batch: as many users and items are drawn as it has interactions, and the
                sum is over that number.
            error: One loss an entity, of projected student vectors and the teacher's.

        Returns:
            Scalar.
        """
        rows = max(1, len(self.interacting(interaction)))
        users, items = self.draw_entities(rows)
        mine = self.vectors(users, items)
        of_users = error(self.user_projector(mine[0]), self.teacher_users[users])
        of_items = error(self.item_projector(mine[1]), self.teacher_items[items])
        return (of_users.sum() + of_items.sum()) / rows

    def vectors(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """The student's vectors, with gradient, ``[n, d]`` and ``[m, d]``."""
        return self.scorer.user_vectors(users), self.scorer.item_vectors()[items]


def _known(ids: Tensor, known: Tensor) -> Tensor:
    ids = ids.unique()
    return ids[known[ids]]


def check_list_length(
    key: str, length: int, history: UserHistory, mask_train: bool, beside: int = 0
) -> None:
    """Refuse a list longer than the items there are.

    Args:
        key: The option.
        length: Its value.
        history: Train history of every user.
        mask_train: Whether train items are left out.
        beside: Items that another list takes first.

    Raises:
        KDError: Names the option, its value and the limit.
    """
    longest = int(history.distinct_counts.max()) if mask_train else 0
    limit = history.n_items - 1 - longest - beside
    if length > limit:
        used = f", of which a user has up to {longest} in the train split" if longest else ""
        used += f" and {beside} are listed already" if beside else ""
        raise KDError(
            f"--{key}={length}: the data set has {history.n_items - 1} items{used}; "
            f"allowed are values up to {limit}"
        )
