"""Each user's train interactions, in order: shared by scoring, masks and sequence models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


def first_rows(users: Tensor) -> Tensor:
    """Row of each user's first appearance, by ascending user, int64.

    Args:
        users: User of each row, ``[N]``.
    """
    order = users.argsort(stable=True)
    ranked = users[order]
    new = torch.ones(len(users), dtype=torch.bool)
    new[1:] = ranked[1:] != ranked[:-1]
    return order[new]


def ragged(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Runs of neighbouring places, one after the other.

    Args:
        starts: First place of each run, ``[B]``, int64.
        counts: Places of each run, ``[B]``, int64.

    Returns:
        Run and place of each, ``[sum(counts)]``, int64.
    """
    runs = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    within = torch.arange(len(runs), device=counts.device) - (
        counts.cumsum(0) - counts
    ).repeat_interleave(counts)
    return runs, starts.repeat_interleave(counts) + within


@dataclass(frozen=True)
class UserHistory:
    """Train interactions by user, compressed.

    Attributes:
        offsets: ``[n_users + 1]``, int64; user ``u`` owns ``items[offsets[u]:offsets[u + 1]]``.
        items: Item ids, ``[n_interactions]``, int32, oldest first.
        n_items: Number of items, padding included.
        times: Time of each interaction in seconds, ``[n_interactions]``, float64; ``None`` where
            no times are known.
    """

    offsets: Tensor
    items: Tensor
    n_items: int
    times: Tensor | None = None

    @classmethod
    def from_pairs(
        cls, users: Tensor, items: Tensor, n_users: int, n_items: int, time: Tensor | None = None
    ) -> UserHistory:
        """Group interactions by user, in time order, or in the order given.

        Args:
            users: User ids, ``[N]``.
            items: Item ids, ``[N]``.
            n_users: Number of users, padding included.
            n_items: Number of items, padding included.
            time: Times, ``[N]``; the sort is stable, and they are kept.
        """
        order = torch.arange(len(users)) if time is None else time.argsort(stable=True)
        order = order[users[order].argsort(stable=True)]
        offsets = torch.zeros(n_users + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(users, minlength=n_users), 0, out=offsets[1:])
        times = None if time is None else time[order].double()
        return cls(offsets, items[order].to(torch.int32), n_items, times)

    @classmethod
    def from_dataset(cls, train: Any) -> UserHistory:
        """Read a RecBole data set that holds the train split only.

        A data set that keeps its train interactions as ``known`` is asked for them. RecBole's
        ``SequentialDataset`` is a row per prefix, oldest first: what a user's first row lists, and
        the targets of all rows, are the history.

        Args:
            train: The first of the parts that ``dataset.build()`` returns.
        """
        feat = train.inter_feat if getattr(train, "known", None) is None else train.known
        users, items = feat[train.uid_field], feat[train.iid_field]
        time = feat[train.time_field] if train.time_field in feat.interaction else None
        lengths = getattr(train, "item_list_length_field", None)
        if lengths is not None and lengths in feat.interaction:
            first = first_rows(users)
            lists = feat[train.iid_field + train.config["LIST_SUFFIX"]][first]
            inside = torch.arange(lists.shape[1]) < feat[lengths][first].unsqueeze(1)
            users = torch.cat([users[first].repeat_interleave(inside.sum(1)), users])
            items = torch.cat([lists[inside], items])
            time = None  # rows are already in order, and the first items now come first
        return cls.from_pairs(users, items, train.user_num, train.item_num, time)

    @property
    def n_users(self) -> int:
        """Number of users, padding included."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> Tensor:
        """Train interactions of each user, ``[n_users]``, int64."""
        return self.offsets.diff()

    @cached_property
    def distinct_counts(self) -> Tensor:
        """Distinct train items of each user, ``[n_users]``, int64."""
        users, items = self.pairs()
        pairs = (users * self.n_items + items).unique()
        return torch.bincount(pairs // self.n_items, minlength=self.n_users)

    def active_users(self) -> Tensor:
        """Ids of the users with at least one train interaction, ascending, int64."""
        return self.counts.nonzero().squeeze(1)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """All interactions as user ids and item ids, ``[N]`` each, int64, user by user."""
        users = torch.arange(self.n_users).repeat_interleave(self.counts)
        return users, self.items.long()

    def padded(self, users: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The latest ``length`` items of each user, padded with 0 on the right, as RecBole does.

        Args:
            users: User ids, ``[B]``.
            length: Width of the result.

        Returns:
            Item ids ``[B, length]`` and lengths ``[B]`` (at least 1), int64.
        """
        where, inside, kept = self._latest(users, length)
        items = self.items[where].long().masked_fill(~inside, 0)
        return items, kept.clamp_min(1)

    def padded_times(self, users: Tensor, length: int) -> Tensor | None:
        """Times of what :meth:`padded` gives, ``[B, length]``, float64, 0 on padding."""
        if self.times is None:
            return None
        where, inside, _ = self._latest(users, length)
        return self.times[where].masked_fill(~inside, 0)

    def _latest(self, users: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        users = users.to(self.offsets.device)
        end = self.offsets[users + 1]
        kept = self.counts[users].clamp_max(length)
        columns = torch.arange(length, device=users.device)
        where = (end - kept).unsqueeze(1) + columns
        where = where.clamp_max(max(len(self.items) - 1, 0))
        return where, columns < kept.unsqueeze(1), kept

    def mask_(self, scores: Tensor, users: Tensor) -> Tensor:
        """Set the scores of train items to ``-inf``, in place.

        Args:
            scores: ``[B, n_items]``, owned by the caller.
            users: User ids, ``[B]``.

        Returns:
            ``scores``.
        """
        users = users.to(self.offsets.device)
        rows, places = ragged(self.offsets[users], self.counts[users])
        columns = self.items[places].long()
        scores[rows.to(scores.device), columns.to(scores.device)] = -torch.inf
        return scores

    def to(self, device: Any) -> UserHistory:
        """A copy on ``device``; masks and sequences are cheapest on the CPU."""
        times = None if self.times is None else self.times.to(device)
        return UserHistory(self.offsets.to(device), self.items.to(device), self.n_items, times)
