"""The interactions of a whole data set: tokens numbered, checked, without repeats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_kd.convert.readers import IntArray, Rows, bad_line, show
from recbole_kd.errors import KDError

PARTS = ("train", "valid", "test")

_TOKEN = re.compile(r"\w[\w.:@/+=-]*")
_TOKEN_RULE = "an id is letters, digits and _ . : @ / + = - and starts with a letter, digit or _"
# pandas, which RecBole reads with, takes these words for a missing value.
_MISSING_WORDS = frozenset({"NA", "N/A", "n/a", "NULL", "null", "NaN", "nan", "None"})


@dataclass(frozen=True)
class Interactions:
    """Interactions of a whole data set in the order they are written.

    Attributes:
        users: Token of each user code.
        items: Token of each item code.
        user: User code, shape [n].
        item: Item code, shape [n].
        part: Index into ``parts``, shape [n].
        position: Place of the interaction in its user's list, counted from 0, shape [n].
        parts: Names of the parts; one empty name if the set is not split.
        ordered: Whether ``position`` is written.
    """

    users: Sequence[str]
    items: Sequence[str]
    user: IntArray
    item: IntArray
    part: IntArray
    position: IntArray
    parts: tuple[str, ...] = PARTS
    ordered: bool = True

    def pair_key(self) -> IntArray:
        """One number per (user, item) pair, shape [n]."""
        return self.user * len(self.items) + self.item


def positions(user: IntArray) -> IntArray:
    """Number the interactions of each user from 0 in their order, shape [n]."""
    order = np.argsort(user, kind="stable")
    counts = np.bincount(user)
    starts = np.cumsum(counts) - counts
    places = np.empty(len(user), dtype=np.int64)
    places[order] = np.arange(len(user)) - starts[user[order]]
    return places


def repeated(key: IntArray) -> npt.NDArray[np.bool_]:
    """Whether each number stood before, shape [n]."""
    return pd.Series(key).duplicated().to_numpy()


def join(rows: Sequence[Rows], parts: tuple[str, ...]) -> Interactions:
    """Number the tokens of all parts together and check them."""
    user, users = pd.factorize(np.concatenate([r.user for r in rows]))
    item, items = pd.factorize(np.concatenate([r.item for r in rows]))
    for codes, tokens in ((user, users), (item, items)):
        _check_tokens(rows, codes, tokens)
    return Interactions(
        users=users,
        items=items,
        user=user.astype(np.int64),
        item=item.astype(np.int64),
        part=np.repeat(np.arange(len(rows)), [len(r.user) for r in rows]),
        position=positions(user),
        parts=parts,
    )


def _is_token(text: str) -> bool:
    """Whether RecBole reads the text back as the same token."""
    return _TOKEN.fullmatch(text) is not None and text not in _MISSING_WORDS


def _check_tokens(rows: Sequence[Rows], codes: IntArray, tokens: Iterable[str]) -> None:
    """Refuse the first token that RecBole would not read back.

    Args:
        rows: The raw files.
        codes: Code of each interaction over all files, shape [n].
        tokens: Token of each code.
    """
    bad = {code: token for code, token in enumerate(tokens) if not _is_token(token)}
    if not bad:
        return
    row = int(np.flatnonzero(np.isin(codes, list(bad)))[0])
    token = bad[int(codes[row])]
    for part in rows:
        if row < len(part.line):
            raise bad_line(
                part.path, int(part.line[row]), f"found {show(token)} as an id", _TOKEN_RULE
            )
        row -= len(part.line)


def drop_repeats(data: Interactions) -> tuple[Interactions, tuple[str, ...]]:
    """Drop a pair that stands again in its part, and renumber the places in the users' lists.

    Returns:
        The interactions that stay, and the note that tells how many were dropped, if any.
    """
    again = repeated(data.part * (len(data.users) * len(data.items)) + data.pair_key())
    if not again.any():
        return data, ()
    user, item, part = (codes[~again] for codes in (data.user, data.item, data.part))
    kept = replace(data, user=user, item=item, part=part, position=positions(user))
    return kept, (f"{again.sum()} repeated (user, item) pairs were dropped",)


def refuse_overlap(data: Interactions, rows: Sequence[Rows]) -> None:
    """Refuse a ready-made split that holds a (user, item) pair in two parts."""
    key = data.pair_key()
    again = repeated(key)
    if not again.any():
        return
    row = int(np.flatnonzero(again)[0])
    first = int(np.flatnonzero(key == key[row])[0])
    names = f"{rows[data.part[first]].path.name} and {rows[data.part[row]].path.name}"
    n_pairs = len(np.unique(key[again]))
    raise KDError(
        f"{rows[0].path.parent}: {n_pairs} (user, item) pairs are in two parts, the first is user "
        f"{show(data.users[data.user[row]])}, item {show(data.items[data.item[row]])} in "
        f"{names}; a pair may be in one part only."
    )
