"""Runs' tests by user and by item: the files beside their results, joined by token."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import numpy as np

from recbole_kd import per_user
from recbole_kd.benchmark.records import Record
from recbole_kd.optional import parquet
from recbole_kd.reporting.collect import Row
from recbole_kd.statistics import Array, mean_by_user

ITEMS_FILE = "per_item.parquet"
"""A row an item: ``item``, ``train_users``, ``held_out`` and ``hits@K`` for each cut-off."""

ITEM_COLUMNS = ("item", "train_users", "held_out")

TOKENS = ("user", "item")
TEXT = re.compile(r"(large_)?string|string_view|u?int\d+|dictionary<values=string,.*")
NUMBER = re.compile(r"u?int\d+|float|double|halffloat")
"""Columns of tokens, and the types of a column of tokens and of one of numbers."""

TRAIN_ITEMS = "train_items"
"""Column of the file by user: how many train interactions the user has."""

GROUPS = 4
"""Groups of users by activity, and of items by popularity."""


class Absent(Exception):
    """A file or column that a part of the report needs is not there; the text says which."""


@dataclass(frozen=True)
class Grouped:
    """A quantity by groups of users or of items.

    Attributes:
        labels: What each group is, from low to high, such as ``5-12``.
        sizes: How many users, or held-out targets, are in each.
        values: The quantity in each group, by row.
        left_out: One line for each row whose files do not have it.
    """

    labels: list[str]
    sizes: list[int]
    values: dict[str, list[float]]
    left_out: list[str] = field(default_factory=list)


class Rankings:
    """Reads the files of a benchmark's runs, each once until it is cleared.

    Args:
        folder: The benchmark's folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._read: dict[tuple[Path, str], Array] = {}

    def clear(self) -> None:
        """Forget what was read."""
        self._read.clear()

    def column(self, run: Record, file: str, name: str) -> Array:
        """A column of a file in a run's folder.

        Args:
            run: The run.
            file: Name of the file.
            name: Name of the column.

        Raises:
            Absent: There is no such folder, file or column, or the file is damaged.
        """
        whose = f"{run.row}, seed {run.seed}"
        if not run.folder:
            raise Absent(f"{whose} has no folder")
        path = self.folder / run.folder / file
        if (path, name) not in self._read:
            self._read[path, name] = _column(path, name, f"{file} of {whose}")
        return self._read[path, name]

    def by_user(self, row: Row, seeds: Iterable[int], metric: str) -> tuple[Array, Array]:
        """A metric of each user, the mean over some seeds.

        Args:
            row: The row.
            seeds: Which of its runs.
            metric: Name of the metric.

        Returns:
            Tokens of the users that all of the runs have, sorted, ``[n_users]``, and the means,
            ``[n_users]``, float64.

        Raises:
            Absent: A file or column is missing.
        """
        users, values = align([self.of_run(row.runs[seed], metric) for seed in seeds])
        return users, values.mean(axis=0)

    def of_run(self, run: Record, metric: str) -> tuple[Array, Array]:
        """A metric of each user in one run, the mean over the user's rankings.

        Args:
            run: The run.
            metric: Name of the metric.

        Returns:
            Tokens, sorted, ``[n_users]``, and the means, ``[n_users]``, float64.

        Raises:
            Absent: A file or column is missing.
        """
        users = self.column(run, per_user.FILE, "user")
        return mean_by_user(users, self.column(run, per_user.FILE, metric))

    def several(self, run: Record) -> bool:
        """Whether a run has several rankings of a user.

        Args:
            run: The run.

        Raises:
            Absent: A file or column is missing.
        """
        users = self.column(run, per_user.FILE, "user")
        return len(np.unique(users)) < len(users)

    def by_activity(self, rows: Sequence[Row], metric: str) -> Grouped:
        """A metric by groups of users, of few to many train interactions.

        Args:
            rows: Rows with runs.
            metric: Name of the metric.

        Raises:
            Absent: No row has the files and columns.
        """
        names = ("user", TRAIN_ITEMS)
        users, counts = self._first(rows, per_user.FILE, names)
        tokens, counts = mean_by_user(users, counts)
        groups = Groups(tokens, counts, np.ones(len(tokens)))

        def of_row(row: Row) -> Array:
            users, metrics = self.by_user(row, row.runs, metric)
            sizes = groups.sums(users, np.ones(len(users)))
            return groups.sums(users, metrics) / np.maximum(sizes, 1)

        sizes = groups.sums(tokens, np.ones(len(tokens))).astype(int)
        return _grouped(rows, groups, sizes, of_row)

    def _first(self, rows: Sequence[Row], file: str, names: Sequence[str]) -> list[Array]:
        """Columns of the first run that has them."""
        reason = Absent("there is no run")
        for run in (run for row in rows for run in row.runs.values()):
            try:
                return [self.column(run, file, name) for name in names]
            except Absent as absent:
                reason = absent
        raise reason

    def by_popularity(self, rows: Sequence[Row], cutoff: int) -> Grouped:
        """The share of held-out targets that are in the list, by groups of items.

        Args:
            rows: Rows with runs.
            cutoff: Length of the list.

        Raises:
            Absent: No row has the files and columns.
        """
        tokens, popularity, targets = self._first(rows, ITEMS_FILE, ITEM_COLUMNS)
        groups = Groups(tokens, popularity, targets)

        def of_row(row: Row) -> Array:
            shares = []
            for run in row.runs.values():
                items = self.column(run, ITEMS_FILE, "item")
                hits = self.column(run, ITEMS_FILE, f"hits@{cutoff}")
                held_out = self.column(run, ITEMS_FILE, "held_out")
                shares.append(groups.sums(items, hits) / groups.sums(items, held_out).clip(min=1))
            return np.asarray(np.mean(shares, axis=0))

        sizes = groups.sums(tokens, targets).astype(int)
        return _grouped(rows, groups, sizes, of_row)


def _grouped(
    rows: Sequence[Row], groups: Groups, sizes: Array, of_row: Callable[[Row], Array]
) -> Grouped:
    """The groups of each row that has them.

    Raises:
        Absent: None has.
    """
    values: dict[str, list[float]] = {}
    left_out: list[str] = []
    for row in rows:
        try:
            values[row.name] = of_row(row).tolist()
        except Absent as absent:
            left_out.append(str(absent))
    if not values:
        raise Absent("; ".join(left_out))
    return Grouped(groups.labels, sizes.tolist(), values, left_out)


class Groups:
    """Users or items in at most :data:`GROUPS` groups of about the same weight, from low to high.

    Those of one number are in one group.

    Args:
        tokens: Their tokens, ``[n]``.
        numbers: What they are ordered by, ``[n]``.
        weights: What of each is shared out, ``[n]``; those without are in no group.
    """

    def __init__(self, tokens: Array, numbers: Array, weights: Array):
        kept = weights > 0
        order = np.argsort(tokens[kept])
        self.tokens, numbers, weights = (given[kept][order] for given in (tokens, numbers, weights))
        steps, places = np.unique(numbers, return_inverse=True)
        shares = np.bincount(places, weights=weights) / max(weights.sum(), 1)
        middles = np.cumsum(shares) - shares / 2
        _, of_step = np.unique(np.floor(middles * GROUPS), return_inverse=True)
        self.groups = of_step[places]
        self.labels = [_range(steps[of_step == group]) for group in range(len(set(of_step)))]

    def sums(self, tokens: Array, values: Array) -> Array:
        """Sums over each group, ``[n_groups]``, of values ``[n]`` given by token ``[n]``."""
        _, mine, theirs = np.intersect1d(self.tokens, tokens, return_indices=True)
        size = len(self.labels)
        return np.bincount(self.groups[mine], weights=values[theirs], minlength=size)


def _range(numbers: Array) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return str(low) if low == high else f"{low}-{high}"


def align(found: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Values of the same users in the same order.

    Args:
        found: Tokens, sorted and each once, ``[n_i]``, and values, ``[n_i]``.

    Returns:
        The tokens that all have, ``[n]``, and the values, ``[len(found), n]``.
    """
    common = reduce(np.intersect1d, [users for users, _ in found])
    return common, np.stack([v[np.searchsorted(users, common)] for users, v in found])


def all_tokens(found: Sequence[tuple[Array, Array]]) -> Array:
    """The tokens that any has, sorted, ``[n]``; see :func:`align`."""
    return reduce(np.union1d, [users for users, _ in found])


def _column(path: Path, name: str, what: str) -> Array:
    arrow = parquet("report")
    if not path.is_file():
        raise Absent(f"there is no {what}")
    try:
        if name not in arrow.parquet.read_schema(path).names:
            raise Absent(f"{what} has no column {name}")
        found = arrow.parquet.read_table(path, columns=[name])[name]
        kind = str(found.type)
        if found.null_count or not (TEXT if name in TOKENS else NUMBER).fullmatch(kind):
            kind = "gaps" if found.null_count else kind
            needed = "texts" if name in TOKENS else "finite numbers"
            raise Absent(f"{what} has a {name} of {kind}; needed are {needed}")
        values = found.to_numpy()
    except (arrow.ArrowException, OSError, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise Absent(f"{what} cannot be read ({reason})") from error
    if name in TOKENS:
        return values.astype(str)
    if not np.isfinite(values).all():
        raise Absent(f"{what} has a {name} that is no finite number")
    return values
