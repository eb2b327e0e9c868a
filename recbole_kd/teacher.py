"""Teachers: scores in the student's ids, everything constant computed once."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from recbole_kd.candidates import chunk_rows
from recbole_kd.errors import KDError
from recbole_kd.gather import gather_dot
from recbole_kd.history import UserHistory
from recbole_kd.score_table import ScoreTable, table_bytes
from recbole_kd.scoring import FactorScorer, Scorer

UNKNOWN_SCORE = -1e9
"""Score of an item the teacher does not know: no probability in any softmax, and never NaN."""


def join_tokens(student: Sequence[str], teacher: Sequence[str]) -> Tensor:
    """Teacher id of every student id, joined by token.

    Args:
        student: Token of each student id; id 0 is padding.
        teacher: Token of each teacher id; id 0 is padding.

    Returns:
        ``[len(student)]``, int64; -1 where the teacher has no such token, 0 for padding.
    """
    ids = {token: i for i, token in enumerate(teacher)}
    joined = torch.tensor([ids.get(token, -1) for token in student], dtype=torch.int64)
    joined[0] = 0
    return joined


class Teacher(ABC):
    """What a method learns from: scores, in the ids of the student.

    Args:
        knows_user: Users it can score, ``[n_users]``, bool.
        knows_item: Items it can score, ``[n_items]``, bool.
        history: Train history in the student's ids, to mask train items.
        memory_budget_gb: Working memory of a chunk, in GiB.

    Raises:
        KDError: No user or no item is known to the teacher.
    """

    def __init__(
        self,
        knows_user: Tensor,
        knows_item: Tensor,
        history: UserHistory,
        memory_budget_gb: float = 0.1,
    ):
        self.device = knows_user.device
        self.knows_user, self.knows_item = knows_user, knows_item
        self.history = history
        self.memory_budget_gb = memory_budget_gb
        self.n_known_items = int(knows_item.sum())
        if not self.n_known_items or not bool(knows_user.any()):
            raise KDError("teacher: no user or no item token of the student's data is known to it")
        self.scores_item = knows_item
        """Items it has a score for, ``[n_items]``, bool; it may lack an order of some of them."""
        self.trajectory: Sequence[Callable[[], Teacher]] = ()
        """The teacher at earlier epochs, oldest first; a call loads it."""
        self._top: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of given items.

        Args:
            users: User ids, ``[B]``.
            items: Item ids, ``[B, K]``, int64.

        Returns:
            ``[B, K]``, float32.
        """

    @abstractmethod
    def score_all(self, users: Tensor) -> Tensor:
        """Scores of all items for given users.

        Args:
            users: User ids, ``[B]``.

        Returns:
            ``[B, n_items]``, float32, a fresh tensor; column 0 is padding.
        """

    def ranking_scores(self, users: Tensor) -> Tensor:
        """:meth:`score_all` to rank by, in full precision.

        :data:`UNKNOWN_SCORE` where the teacher has no order.

        Args:
            users: User ids, ``[B]``.

        Returns:
            ``[B, n_items]``, float32, a fresh tensor; column 0 is padding.
        """
        return self.score_all(users)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """User and item vectors, ``[n_users, D]`` and ``[n_items, D]``, of a teacher that has them.

        Scores are their inner products, times a number that is the same for all.
        """
        return None

    @torch.no_grad()
    def top_k(self, k: int, mask_train: bool = False) -> tuple[Tensor, Tensor]:
        """The best items of every user and their scores, computed once for each ``k``.

        Args:
            k: Items a user.
            mask_train: Whether train items are left out.

        Returns:
            Item ids ``[n_users, k]``, int32, best first, and scores ``[n_users, k]``, float32.
            Rows of padding and of users the teacher does not know are 0.

        Raises:
            KDError: ``k`` is above the number of items the teacher knows and may list.
        """
        key = (k, mask_train)
        if key not in self._top:
            self.check_length(k, mask_train)
            self._top[key] = self._compute_top_k(k, mask_train)
        return self._top[key]

    def check_length(self, k: int, mask_train: bool) -> None:
        """Refuse lists that the teacher cannot fill.

        Args:
            k: Items a user.
            mask_train: Whether train items are left out.

        Raises:
            KDError: ``k`` is above the number of items the teacher knows and may list.
        """
        limit, beside = self.n_known_items, ""
        if mask_train and limit < len(self.knows_item) - 1:
            longest = self._most_known_train_items()
            limit, beside = (
                limit - longest,
                f", of which a user has up to {longest} in the train split",
            )
        if k > limit:
            raise KDError(
                f"teacher: a list of {k} items is asked of it, it knows {self.n_known_items} of "
                f"the student's items{beside}; allowed are lists up to {limit}"
            )

    def _most_known_train_items(self) -> int:
        users, items = self.history.pairs()
        known = self.knows_item.to(items.device)[items]
        pairs = (users * self.history.n_items + items)[known].unique()
        return int(torch.bincount(pairs // self.history.n_items, minlength=1).max())

    def _compute_top_k(self, k: int, mask_train: bool) -> tuple[Tensor, Tensor]:
        n_users = len(self.knows_user)
        items = torch.zeros(n_users, k, dtype=torch.int32, device=self.device)
        scores = torch.zeros(n_users, k, device=self.device)
        for users, best, values in self.ranked(k, mask_train):
            items[users], scores[users] = best.int(), values
        return items, scores

    @torch.no_grad()
    def ranked(self, k: int, mask_train: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """:meth:`top_k` of the users the teacher knows, in chunks under the memory budget.

        Args:
            k: Items a user.
            mask_train: Whether train items are left out.

        Yields:
            User ids ``[c]``, item ids ``[c, k]``, best first, int64, and scores ``[c, k]``,
            float32; ``-inf`` where a user has no other items left.
        """
        n_users, n_items = len(self.knows_user), len(self.knows_item)
        rows = chunk_rows(12 * n_items, self.memory_budget_gb, n_users)
        for users in self.knows_user.nonzero().squeeze(1).split(rows):
            all_scores = self.ranking_scores(users)
            all_scores[:, 0] = -torch.inf
            if mask_train:
                self.history.mask_(all_scores, users)
            best = all_scores.topk(k, dim=1)
            yield users, best.indices, best.values


class FrozenTeacher(Teacher):
    """A trained model that only answers.

    It is put in eval mode and its gradients are switched off here, once; it is not part of the
    student's module tree, so no ``train()`` call reaches it. Users and items are given and
    returned as the student's ids.

    Of a model with user and item vectors those are kept. The scores of any other are kept too, as
    a :class:`recbole_kd.score_table.ScoreTable`, if that is within the memory budget; if not, they
    are computed anew, by chunks of users, whenever a method asks. Rankings ask the model itself,
    and what it answers is kept.

    Args:
        scorer: Scorer of the teacher's model, whose history is the *student's* train split in the
            teacher's ids (a sequence teacher must read what the student may know, nothing more).
        user_ids: Teacher id of every student user id, -1 where unknown, ``[n_users]``.
        item_ids: Teacher id of every student item id, -1 where unknown, ``[n_items]``.
        history: Train history in the student's ids, to mask train items.
        memory_budget_gb: Working memory of a chunk, and size of a table of scores, in GiB.
        table_folder: Where such a table lies; ``None``: where temporary files do.
        keeps_scores: Whether scores of a model without vectors are kept at all; it is no use where
            each user is asked for once.

    Raises:
        KDError: No user or no item is known to the teacher.
    """

    def __init__(
        self,
        scorer: Scorer,
        user_ids: Tensor,
        item_ids: Tensor,
        history: UserHistory,
        memory_budget_gb: float = 0.1,
        table_folder: Path | None = None,
        keeps_scores: bool = True,
    ):
        device = scorer.device
        known_users, known_items = user_ids > 0, item_ids > 0
        if scorer.reads_history:
            # Of a user none of whose items it knows, a sequence model has nothing to say.
            known_users &= scorer.history.counts[user_ids.clamp_min(0)] > 0
        super().__init__(known_users.to(device), known_items.to(device), history, memory_budget_gb)
        self.model = scorer.model
        self.model.requires_grad_(False)
        self.model.eval()
        self.scorer = scorer
        self.keeps_scores = keeps_scores
        self._user_ids = user_ids.clamp_min(0).to(device)
        self._item_ids = item_ids.clamp_min(0).to(device)
        same = len(item_ids) == scorer.n_items and bool(
            (item_ids == torch.arange(len(item_ids))).all()
        )
        self._reorder = None if same else self._item_ids
        self._unknown = None if bool(known_items[1:].all()) else (~known_items).to(device)
        self._factors: tuple[Tensor, Tensor] | None = None
        self._kept: ScoreTable | None = None
        self._table_folder = table_folder

    @torch.no_grad()
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """User and item vectors in the student's ids; ``None`` for a teacher without.

        Computed at the first call and kept.
        """
        if self._factors is None and isinstance(self.scorer, FactorScorer):
            self._factors = self._compute_factors(self.scorer)
        return self._factors

    def _compute_factors(self, scorer: FactorScorer) -> tuple[Tensor, Tensor]:
        with scorer.step():
            items = scorer.item_vectors().detach()
            users = torch.cat([scorer.user_vectors(u) for u in self._user_ids.split(1024)])
        items = items.clone() if self._reorder is None else items[self._reorder]
        return users.float().contiguous(), items.float().contiguous()

    def _tempered(self, vectors: Tensor) -> Tensor:
        return self.scorer.tempered(vectors) if isinstance(self.scorer, FactorScorer) else vectors

    @torch.no_grad()
    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of given items; see :meth:`Teacher.score`."""
        factors = self.factors()
        if factors is not None:
            scores = gather_dot(self._tempered(factors[0][users]), factors[1], items)
        elif (table := self._filled_table(users)) is not None:
            scores = table.score(users, items)
        else:
            scores = self._ask(users, items)
        if self._unknown is not None:
            scores = scores.masked_fill(self._unknown[items], UNKNOWN_SCORE)
        return scores

    def _ask(self, users: Tensor, items: Tensor) -> Tensor:
        """The model's own scores of given items; it may have to score all items for that."""
        rows = chunk_rows(16 * len(self._item_ids), self.memory_budget_gb, len(users))
        parts = [
            self.scorer.score(self.scorer.encode(self._user_ids[u]), self._item_ids[i]).float()
            for u, i in zip(users.split(rows), items.split(rows), strict=True)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def score_all(self, users: Tensor) -> Tensor:
        """Scores of all items for given users; see :meth:`Teacher.score_all`."""
        factors = self.factors()
        if factors is not None:
            scores = self._tempered(factors[0][users]) @ factors[1].t()
        elif (table := self._filled_table(users)) is not None:
            scores = table.score_all(users)
        else:
            return self._ask_all(users)
        if self._unknown is not None:
            scores.masked_fill_(self._unknown, UNKNOWN_SCORE)
        return scores

    @torch.no_grad()
    def ranking_scores(self, users: Tensor) -> Tensor:
        """The model's own, whatever is kept of them; see :meth:`Teacher.ranking_scores`."""
        if self.factors() is not None:
            return self.score_all(users)
        return self._ask_all(users)

    def _ask_all(self, users: Tensor) -> Tensor:
        """The model's own scores of all items, in the student's ids; kept if there is room."""
        scores = self.scorer.score_all(self.scorer.encode(self._user_ids[users])).float()
        scores = scores if self._reorder is None else scores[:, self._reorder]
        if (table := self._table()) is not None:
            # Of users it does not know nothing is kept: their scores are 0.
            new = self.knows_user[users] & table.lacks(users).to(users.device)
            if bool(new.any()):
                table.keep(users[new], self._filled(scores[new], -torch.inf))
        return self._filled(scores, UNKNOWN_SCORE)

    def _filled(self, scores: Tensor, unknown: float) -> Tensor:
        """Scores of all items, those that the teacher does not know at one number."""
        return scores if self._unknown is None else scores.masked_fill(self._unknown, unknown)

    @property
    def in_half_precision(self) -> bool:
        """Whether scores are kept in a table; they are if it is within the memory budget."""
        size = table_bytes(len(self._user_ids), len(self._item_ids))
        factorised = isinstance(self.scorer, FactorScorer)
        return self.keeps_scores and not factorised and size <= self.memory_budget_gb * 2**30

    def _table(self) -> ScoreTable | None:
        """Where scores are kept; ``None``: it would exceed the budget."""
        if not self.in_half_precision:
            return None
        if self._kept is None:
            sizes = len(self._user_ids), len(self._item_ids)
            self._kept = ScoreTable(*sizes, self.device, self._table_folder)
        return self._kept

    def _filled_table(self, users: Tensor) -> ScoreTable | None:
        """Where scores are kept, those of the users in it."""
        table = self._table()
        if table is None:
            return None
        known = users[self.knows_user[users]]
        if len(missing := known[table.lacks(known).to(known.device)].unique()):
            rows = chunk_rows(12 * len(self._item_ids), self.memory_budget_gb, len(missing))
            for part in missing.to(self.device).split(rows):
                self._ask_all(part)
        return table


def report_overlap(
    user_ids: Tensor, item_ids: Tensor, min_overlap: float, origin: str
) -> tuple[float, float]:
    """Log, or refuse, a teacher that knows only part of the student's users and items.

    Args:
        user_ids: Result of :func:`join_tokens` for users.
        item_ids: Result of :func:`join_tokens` for items.
        min_overlap: Smallest share of users, and of items, the teacher must know.
        origin: Name of the teacher, for the message.

    Returns:
        Shares of the student's users and items known to the teacher.

    Raises:
        KDError: A share is below ``min_overlap``.
    """
    users = float((user_ids[1:] > 0).float().mean())
    items = float((item_ids[1:] > 0).float().mean())
    found = (
        f"the teacher {origin} knows {users:.1%} of the student's users, {items:.1%} of its items"
    )
    if min(users, items) < min_overlap:
        raise KDError(
            f"{found}; allowed is min_token_overlap={min_overlap:g} or more: "
            "were teacher and student trained on the same data?"
        )
    if min(users, items) < 1:
        logging.getLogger(__name__).warning(
            "%s: unknown items get no probability from it, unknown users are not distilled", found
        )
    return users, items
