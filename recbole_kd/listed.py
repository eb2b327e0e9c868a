"""A teacher that is a file of scores: some items of each user, and nothing about the others."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from recbole_kd.candidates import chunk_rows
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory, ragged
from recbole_kd.score_file import ScoreLists
from recbole_kd.teacher import UNKNOWN_SCORE, Teacher

MISSING = {
    "floor": "the lowest score of the user's own list",
    "mask": "no probability",
}
"""What an item has that the user's list does not name; whose other list names it is no matter."""


class ListedTeacher(Teacher):
    """Scores from a file, looked up; lists stay on the CPU, mapped, answers go to the device.

    A user with too short a list is one that the teacher does not know; items are known that at
    least one list names. Lists of best items come from the file alone: none holds a missing item.

    Args:
        lists: The file's content in the student's ids.
        history: Train history in the student's ids, to mask train items.
        missing_score: Score of a missing item, of :data:`MISSING`.
        min_listed_items: Least listed items, train items not counted, of a user that is known;
            at least 1.
        device: Where answers go.
        memory_budget_gb: Working memory of a chunk, in GiB.
        origin: The file, for messages.

    Raises:
        KDError: No list is long enough.
    """

    def __init__(
        self,
        lists: ScoreLists,
        history: UserHistory,
        missing_score: str = "floor",
        min_listed_items: int = 1,
        device: Any = "cpu",
        memory_budget_gb: float = 0.1,
        origin: str = "",
    ):
        self.lists, self.origin = lists, origin
        self.history, self.memory_budget_gb = history, memory_budget_gb
        self.counts = lists.counts
        self._longest = int(self.counts.max())
        self._free = self.counts - self._train_counts()
        known = self._free >= min_listed_items
        if not bool(known.any()):
            raise KDError(
                f"score file {origin}: no user has {min_listed_items} listed items that are no "
                f"train items, the most are {int(self._free.max())}; allowed are values of "
                "min_listed_items up to that"
            )
        items = torch.zeros(history.n_items, dtype=torch.bool)
        for part in lists.items.split(2**20):
            items[part.long()] = True
        super().__init__(known.to(device), items.to(device), history, memory_budget_gb)
        self._missing = torch.full((history.n_users,), UNKNOWN_SCORE)
        if missing_score == "floor":
            # Whether anybody's list names an item makes no difference to its floor.
            self.scores_item = torch.arange(history.n_items, device=self.device) > 0
            filled = self.counts.nonzero().squeeze(1)
            lengths = self.counts[filled]
            self._missing[filled] = torch.segment_reduce(lists.scores, "min", lengths=lengths)
        short = int(((self.counts > 0) & ~known)[1:].sum())
        if short:
            logging.getLogger(__name__).warning(
                "score file %s: %d users have fewer than min_listed_items=%d listed items that are "
                "no train items; they are not distilled",
                origin,
                short,
                min_listed_items,
            )

    # -- lists as rows -------------------------------------------------------------------------

    def _chunks(self, users: Tensor, width: int = 0) -> Iterator[Tensor]:
        """Some users in parts, on the CPU, each of which has room for its padded lists."""
        row = 32 * (self._longest + width)
        yield from users.cpu().split(chunk_rows(row, self.memory_budget_gb, len(users)))

    def _padded(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Lists ``[B, W]`` of items, int32, ascending, and scores; the rest is ``-inf``."""
        counts = self.counts[users]
        width = max(1, int(counts.max()))
        inside = torch.arange(width) < counts.unsqueeze(1)
        places = ragged(self.lists.offsets[users], counts)[1]
        items = torch.full(inside.shape, self.history.n_items, dtype=torch.int32)
        scores = torch.full(inside.shape, -torch.inf)
        items[inside], scores[inside] = self.lists.items[places], self.lists.scores[places]
        return items, scores

    def _train(self, users: Tensor, listed: Tensor) -> Tensor:
        """Which listed items are train items of their users, ``[B, W]``, bool."""
        users = users.to(self.history.offsets.device)
        longest = max(1, int(self.history.counts[users].max()))
        train = self.history.padded(users, longest)[0].cpu()
        place, hit = _places(listed, train)
        marked = torch.zeros(listed.shape[0], listed.shape[1] + 1, dtype=torch.bool)
        marked.scatter_(1, place.masked_fill(~hit, listed.shape[1]), True)
        return marked[:, :-1]

    def _train_counts(self) -> Tensor:
        """Listed items of each user that are train items, ``[n_users]``, int64."""
        longest = int(self.history.counts.max())
        everyone = torch.arange(self.history.n_users)
        parts = [
            self._train(users, self._padded(users)[0]).sum(1)
            for users in self._chunks(everyone, longest)
        ]
        return torch.cat(parts)

    # -- what a teacher answers ----------------------------------------------------------------

    @torch.no_grad()
    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of given items; see :meth:`Teacher.score`."""
        parts, start = [], 0
        for chunk in self._chunks(users, items.shape[1]):
            asked = items[start : start + len(chunk)].cpu()
            start += len(chunk)
            listed, scores = self._padded(chunk)
            place, hit = _places(listed, asked)
            missing = self._missing[chunk].unsqueeze(1)
            parts.append(torch.where(hit, scores.gather(1, place), missing))
        return torch.cat(parts).to(self.device)

    @torch.no_grad()
    def score_all(self, users: Tensor) -> Tensor:
        """Scores of all items for given users; see :meth:`Teacher.score_all`."""
        return self._row(users, self._missing[users.cpu()])

    @torch.no_grad()
    def ranking_scores(self, users: Tensor) -> Tensor:
        """Scores without an order of missing items; see :meth:`Teacher.ranking_scores`."""
        return self._row(users, torch.full((len(users),), UNKNOWN_SCORE))

    def _row(self, users: Tensor, missing: Tensor) -> Tensor:
        """All items of given users, those that are not listed at one score a user."""
        users = users.cpu()
        scores = missing.unsqueeze(1).repeat(1, self.history.n_items)
        rows, places = ragged(self.lists.offsets[users], self.counts[users])
        scores[rows, self.lists.items[places].long()] = self.lists.scores[places]
        return scores.to(self.device)

    def check_length(self, k: int, mask_train: bool) -> None:
        """Refuse lists longer than the shortest in the file; see :meth:`Teacher.check_length`.

        Args:
            k: Items a user.
            mask_train: Whether train items are left out.

        Raises:
            KDError: Says how many users have fewer.
        """
        counts = (self._free if mask_train else self.counts)[self.knows_user.cpu()]
        fewer, shortest = int((counts < k).sum()), int(counts.min())
        if fewer:
            beside = " that are no train items" if mask_train else ""
            raise KDError(
                f"score file {self.origin}: a list of {k} items is asked of it, {fewer} of its "
                f"{len(counts)} users have fewer{beside}; allowed are lists up to {shortest}, or "
                f"--min_listed_items={k}, which leaves users with fewer undistilled"
            )

    @torch.no_grad()
    def ranked(self, k: int, mask_train: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The best listed items of the known users, in chunks; see :meth:`Teacher.ranked`."""
        width = int(self.history.counts.max()) if mask_train else 0
        for users in self._chunks(self.knows_user.nonzero().squeeze(1), width):
            items, scores = self._padded(users)
            if mask_train:
                scores.masked_fill_(self._train(users, items), -torch.inf)
            best = scores.topk(k, dim=1)
            found = (users, items.gather(1, best.indices).long(), best.values)
            yield tuple(t.to(self.device) for t in found)  # type: ignore[misc]


def _places(listed: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Where items are in ascending lists.

    Args:
        listed: ``[B, W]``, int32.
        items: ``[B, K]``.

    Returns:
        Place of each, ``[B, K]``, int64, and whether it is there.
    """
    items = items.to(torch.int32)
    places = torch.searchsorted(listed, items).clamp_max(listed.shape[1] - 1)
    return places, listed.gather(1, places) == items


def report_lists(lists: ScoreLists, min_overlap: float, missing_score: str, origin: str) -> None:
    """Log, or refuse, a score file that covers only part of the student's users and items.

    Args:
        lists: The file's content in the student's ids.
        min_overlap: Smallest share of the student's users that must have a list.
        missing_score: What a missing item has.
        origin: The file, for the message.

    Raises:
        KDError: Fewer users have a list.
    """
    counts, found = lists.counts[1:], lists.found
    users = float((counts > 0).float().mean())
    text = f"score file {origin}: lists of {users:.1%} of the student's users"
    if users < min_overlap:
        raise KDError(
            f"{text}; allowed is min_token_overlap={min_overlap:g} or more: are its tokens those "
            "of the student's data?"
        )
    log = logging.getLogger(__name__)
    listed = counts[counts > 0]
    log.info(
        "%s, %d to %d items each; an item that a user's list does not name has %s "
        "(missing_score=%s)",
        text,
        int(listed.min()),
        int(listed.max()),
        MISSING[missing_score],
        missing_score,
    )
    if users < 1:
        log.warning("%s: users without one are not distilled", text)
    strangers = (("users", found.user_rows, found.user), ("items", found.item_rows, found.item))
    for kind, rows, first in strangers:
        if rows:
            log.warning(
                "score file %s: %d of %d rows (%.1f%%) are of %s that the student's data do not "
                "have (first: '%s'); they are left out",
                origin,
                rows,
                found.rows,
                100 * rows / found.rows,
                kind,
                first,
            )
