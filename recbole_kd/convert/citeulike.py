"""``users.dat`` of citeulike-t."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recbole_kd.convert.interactions import Interactions, positions, repeated
from recbole_kd.convert.readers import bad_line, find_file, read_text_lines, show
from recbole_kd.convert.result import About
from recbole_kd.errors import KDError

MIN_INTERACTIONS = 5


def read_citeulike(raw: str | Path) -> tuple[Interactions, About]:
    """Read ``users.dat`` of citeulike-t and split it 8:1:1 in list order.

    Users with at least 5 interactions stay and are numbered from 0 in file order; their items are
    numbered from 0 in the order of the raw ids. The first ``n * 8 // 10`` interactions of a user
    with n are train, those up to ``n * 9 // 10`` valid, the rest test.

    Args:
        raw: ``users.dat`` (plain or gzip) or the folder that holds it.

    Returns:
        The interactions, and what the README tells about them.

    Raises:
        KDError: Bad raw data.
    """
    path = _find_users_dat(raw)
    lists, lines, n_users = _read_users_dat(path)
    about = About(
        source="`users.dat` of citeulike-t: line n is user n, the item count, then the item ids",
        rule=(
            "8:1:1 per user in list order: the first n*8//10 of n interactions are train, those up "
            "to n*9//10 valid, the rest test"
        ),
        notes=(
            f"{len(lists)} of {n_users} users have at least {MIN_INTERACTIONS} interactions and "
            "were kept",
            "user k is the k-th kept line, item k the k-th smallest raw id among the kept users' "
            "items, both counted from 0",
            "timestamp is the place in the user's list, an order and not a time",
        ),
    )
    return _split_lists(path, lists, lines), about


def _find_users_dat(raw: str | Path) -> Path:
    """Find ``users.dat``, given itself or its folder."""
    path = Path(raw)
    if path.is_dir():
        return find_file(path, "users.dat")
    if not path.exists():
        raise KDError(f"{path}: does not exist; looked for users.dat or the folder that holds it.")
    return path


def _read_users_dat(path: Path) -> tuple[list[list[int]], list[int], int]:
    """Read the item lists of the users that are kept.

    Returns:
        The raw item ids of each kept user, the line number of each, and the number of all users.
    """
    lists: list[list[int]] = []
    numbers: list[int] = []
    lines = read_text_lines(path)
    for number, line in enumerate(lines, 1):
        fields = line.split()
        for field in fields:
            if not (field.isascii() and field.isdigit() and len(field) <= 18):
                found = f"found {show(field)}"
                raise bad_line(path, number, found, "a line holds whole numbers only")
        if not fields or int(fields[0]) != len(fields) - 1:
            first = f"the first number is {fields[0]}" if fields else "the line is empty"
            found = f"{first} but {max(len(fields) - 1, 0)} item ids follow"
            raise bad_line(path, number, found, "a line is the item count, then the item ids")
        if len(fields) - 1 >= MIN_INTERACTIONS:
            lists.append([int(field) for field in fields[1:]])
            numbers.append(number)
    if not lists:
        raise KDError(
            f"{path}: none of {len(lines)} users has at least {MIN_INTERACTIONS} interactions."
        )
    return lists, numbers, len(lines)


def _split_lists(path: Path, lists: list[list[int]], lines: list[int]) -> Interactions:
    """Number users and items and split each list 8:1:1 in its order."""
    counts = np.array([len(items) for items in lists], dtype=np.int64)
    user = np.repeat(np.arange(len(lists), dtype=np.int64), counts)
    raw_item = np.concatenate([np.array(items, dtype=np.int64) for items in lists])
    raw_ids, item = np.unique(raw_item, return_inverse=True)
    position = positions(user)
    count = counts[user]
    # Whole numbers: 0.8 * n in floating point would cut some lists one too early.
    part = (position >= count * 8 // 10).astype(np.int64) + (position >= count * 9 // 10)
    users = [str(code) for code in range(len(lists))]
    items = [str(code) for code in range(len(raw_ids))]
    data = Interactions(users, items, user, item.astype(np.int64), part, position)
    again = np.flatnonzero(repeated(data.pair_key()))
    if len(again):
        row = int(again[0])
        found = f"item {raw_item[row]} stands there twice"
        raise bad_line(path, lines[user[row]], found, "a user has an item once")
    return data
