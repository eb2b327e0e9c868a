"""A teacher's scores in a file: read by token, checked, kept compactly and mapped into memory.

A file lists some items of each user, in rows of any order with the columns ``user``, ``item`` and
``score``. It is read in chunks once; what the student's data know of it is kept as three arrays,
which the next run maps instead of reading the file again.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import itertools
import json
import logging
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recbole_kd import checkpoint, optional
from recbole_kd.errors import KDError
from recbole_kd.teacher import UNKNOWN_SCORE

COLUMNS = ("user", "item", "score")
ARRAYS = ("offsets", "items", "scores")
TOKENS = "texts and whole numbers"
CHUNK_ROWS = 2**20
TRAINED_ON = "recbole_kd_trained_on"
"""Where a file that this package wrote keeps hashes of the interactions its model learnt from."""

MOST_HASHES = 2**20
"""Hashes at most, the smallest: a sample that does not depend on order, of 8 MiB. Parquet keeps
them in the part of the file that every reader reads, and refuses one of 100 MB."""

FORM = "1"
"""Form of a cache folder; another one has another name."""

Array = np.ndarray[Any, Any]
Coded = tuple[Array, Array]
"""Tokens of some rows: the place of each in a list of distinct ones (-1: none), and that list."""

Chunk = tuple[Coded, Coded, Array]
"""Users, items and scores of some rows."""


@dataclass
class Found:
    """What a file holds beside what the student's data know of it.

    Attributes:
        rows: Rows of the file.
        user_rows: Rows of users that the student's data do not have.
        user: Token of the first of them.
        item_rows: Rows of items that the student's data do not have.
        item: Token of the first of them.
    """

    rows: int = 0
    user_rows: int = 0
    user: str = ""
    item_rows: int = 0
    item: str = ""


@dataclass
class ScoreLists:
    """The listed items of each user, in the student's ids, on the CPU.

    Attributes:
        offsets: ``[n_users + 1]``, int64; user ``u`` owns ``items[offsets[u]:offsets[u + 1]]``.
        items: Item ids, ascending within a user, int32.
        scores: Their scores, float32.
        found: What else is in the file.
        digest: Digest of the file.
    """

    offsets: Tensor
    items: Tensor
    scores: Tensor
    found: Found
    digest: str

    @property
    def counts(self) -> Tensor:
        """Listed items of each user, ``[n_users]``, int64."""
        return self.offsets.diff()


def open_scores(
    path: str | Path, users: Sequence[str], items: Sequence[str], folder: Path | None
) -> ScoreLists:
    """The lists of a score file, from its cache if it was read before.

    Args:
        path: A ``.parquet``, ``.csv`` or ``.npz`` file.
        users: Token of each student user id; id 0 is padding.
        items: Token of each student item id; id 0 is padding.
        folder: Where caches are kept; ``None``: nowhere.

    Returns:
        The lists, mapped from the cache, or in memory where there is none.

    Raises:
        KDError: The file is missing or unreadable, a column is missing, a token or score is
            missing, a score is not finite, a pair is there twice, or no user or no item is one of
            the student's.
    """
    path = Path(path)
    if not path.is_file():
        state = "a folder" if path.is_dir() else "no such file"
        raise KDError(f"score file {path}: found {state}; allowed is one file")
    digest = checkpoint.digest(path)
    if folder is None:
        return _read_lists(path, users, items, digest)
    tokens = hashlib.blake2b("\n".join([FORM, *users, "", *items]).encode(), digest_size=8)
    cache = folder / f"scores-{digest}-{tokens.hexdigest()}"
    kept = _load(cache, digest)
    if kept is not None:
        return kept
    lists = _read_lists(path, users, items, digest)
    _keep(lists, cache)
    return _load(cache, digest) or lists


def read_trained_on(path: str | Path) -> Array | None:
    """Hashes of the interactions that the model behind a score file was trained on.

    Args:
        path: A score file that :func:`open_scores` has accepted.

    Returns:
        :func:`recbole_kd.data.pair_hashes`, ``[N]``, uint64; ``None`` where the file has none: it
        is a ``.csv``, or was written by other tools.

    Raises:
        KDError: What is in their place is something else.
    """
    path, found = Path(path), None
    try:
        if path.suffix == ".parquet":
            with parquet(path).parquet.ParquetFile(path) as file:
                note = (file.schema_arrow.metadata or {}).get(TRAINED_ON.encode())
            if note is not None:
                found = np.frombuffer(base64.b64decode(note, validate=True), dtype="<u8")
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                if TRAINED_ON in arrays.files:
                    found = arrays[TRAINED_ON]
    except ValueError as error:
        raise KDError(f"score file {path}: its {TRAINED_ON} is damaged ({error})") from error
    if found is not None and (found.dtype != np.uint64 or found.ndim != 1):
        raise KDError(f"score file {path}: its {TRAINED_ON} is no list of 64-bit numbers")
    return found


def _lists(arrays: Iterable[Array], found: Found, digest: str) -> ScoreLists:
    offsets, items, scores = map(torch.from_numpy, arrays)
    return ScoreLists(offsets, items, scores, found, digest)


# -- the cache ---------------------------------------------------------------------------------


def _load(cache: Path, digest: str) -> ScoreLists | None:
    """Map a cache into memory; ``None`` where there is none, or a damaged one."""
    files = {name: cache / f"{name}.npy" for name in ARRAYS}
    try:
        info = json.loads((cache / "info.json").read_text(encoding="utf-8"))
        if {name: checkpoint.digest(file) for name, file in files.items()} != info["digests"]:
            raise ValueError("a checksum")
        # Copy on write, so that torch takes the array as it is; nobody writes.
        arrays = [np.load(files[name], mmap_mode="c", allow_pickle=False) for name in ARRAYS]
        found = Found(**info["found"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logging.getLogger(__name__).warning("%s: damaged (%s); made anew", cache, error)
        return None
    return _lists(arrays, found, digest)


def _keep(lists: ScoreLists, cache: Path) -> None:
    """Write a cache beside its place and move it there whole."""
    arrays = {name: getattr(lists, name).numpy() for name in ARRAYS}
    checkpoint.need_space(cache.parent, sum(a.nbytes for a in arrays.values()) + 2**16)
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")
    try:
        for name, array in arrays.items():
            _write_array(temporary / f"{name}.npy", array)
        digests = {name: checkpoint.digest(temporary / f"{name}.npy") for name in ARRAYS}
        info = json.dumps({"digests": digests, "found": asdict(lists.found)}) + "\n"
        checkpoint.write_text(temporary / "info.json", info)
        # Whoever else reads the same file writes the same cache: the last one stays.
        shutil.rmtree(cache, ignore_errors=True)
        os.replace(temporary, cache)
    except OSError as error:
        if not (cache / "info.json").is_file():
            raise KDError(f"cannot write {cache}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_array(path: Path, array: Array) -> None:
    checkpoint.write_bytes_atomically(
        path, lambda file: np.lib.format.write_array(file, array, allow_pickle=False)
    )


# -- from rows to lists ------------------------------------------------------------------------


def _read_lists(path: Path, users: Sequence[str], items: Sequence[str], digest: str) -> ScoreLists:
    """Read, join and check a file."""
    reader = READERS.get(path.suffix)
    if reader is None:
        raise KDError(f"score file {path}: allowed endings are {', '.join(READERS)}")
    logging.getLogger(__name__).info("Reading score file %s", path)
    indices = pd.Index(np.array(users, dtype=object)), pd.Index(np.array(items, dtype=object))
    found = Found()
    parts = [_join(path, chunk, indices, found) for chunk in reader(path)]
    if not found.rows:
        raise KDError(f"score file {path}: found no row; allowed are one or more")
    if not sum(len(part[0]) for part in parts):
        strangers = {"user": found.user, "item": found.item}
        named = " and ".join(f"the {kind} '{token}'" for kind, token in strangers.items() if token)
        raise KDError(
            f"score file {path}: none of its {found.rows} rows names a user and an item of the "
            f"student's data, unknown are for example {named}; allowed are the tokens of its data"
        )
    offsets, listed, scores = _compress(parts, len(users))
    _sort(path, offsets, listed, scores, users, items)
    return _lists((offsets, listed, scores), found, digest)


def _join(
    path: Path, chunk: Chunk, indices: tuple[pd.Index, pd.Index], found: Found
) -> tuple[Array, Array, Array]:
    """Check the rows of a chunk and put them into the student's ids.

    Args:
        path: The file.
        chunk: The rows.
        indices: Tokens of the student's users and items, by id.
        found: Counts so far; updated.

    Returns:
        Users, items (int32) and scores (float32) of the rows that the student's data know.
    """
    coded, first = chunk[:2], found.rows + 1
    for name, (codes, _) in zip(COLUMNS, coded, strict=False):
        if (codes < 0).any():
            row = first + int(np.argmax(codes < 0))
            raise KDError(f"score file {path} row {row}: found no {name}; allowed are tokens")
    ids = []
    for (codes, tokens), index in zip(coded, indices, strict=True):
        known = index.get_indexer(pd.Index(tokens, dtype=object))
        # Padding is nobody's token, even where a file spells it.
        ids.append(np.where(known > 0, known, -1).astype(np.int32)[codes])
    scores = _check_scores(path, chunk, first)
    unknown = ids[0] < 0, ids[1] < 0
    found.rows += len(scores)
    for name, missing, (codes, tokens) in zip(COLUMNS, unknown, coded, strict=False):
        count = int(missing.sum())
        if count and not getattr(found, f"{name}_rows"):
            setattr(found, name, str(tokens[codes[np.argmax(missing)]]))
        setattr(found, f"{name}_rows", getattr(found, f"{name}_rows") + count)
    kept = ~(unknown[0] | unknown[1])
    return ids[0][kept], ids[1][kept], scores[kept]


def _check_scores(path: Path, chunk: Chunk, first: int) -> Array:
    """Scores in single precision, ``[n]``; one that is not finite is refused, with its row."""
    (users, user_tokens), (items, item_tokens), given = chunk
    with np.errstate(over="ignore"):
        scores = given.astype(np.float32)
    bad = ~(np.isfinite(scores) & (scores > UNKNOWN_SCORE))
    if bad.any():
        row = int(np.argmax(bad))
        raise KDError(
            f"score file {path} row {first + row} (user '{user_tokens[users[row]]}', item "
            f"'{item_tokens[items[row]]}'): found the score {given[row]:g}; allowed are finite "
            f"numbers of single precision above {UNKNOWN_SCORE:g}"
        )
    return scores


def _compress(parts: list[tuple[Array, Array, Array]], n_users: int) -> tuple[Array, Array, Array]:
    """Put all rows in the order of their users; ``parts`` is used up.

    Returns:
        Offsets ``[n_users + 1]``, int64, items, int32, and scores, float32, in no order within a
        user.
    """
    counts = np.zeros(n_users, dtype=np.int64)
    for users, _, _ in parts:
        counts += np.bincount(users, minlength=n_users)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    items, scores = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
    free = offsets[:-1].copy()
    while parts:
        users, part_items, part_scores = parts.pop()
        order = np.argsort(users, kind="stable")
        ranked = users[order]
        within = np.arange(len(ranked)) - np.searchsorted(ranked, ranked)
        places = free[ranked] + within
        items[places], scores[places] = part_items[order], part_scores[order]
        free += np.bincount(users, minlength=n_users)
    return offsets, items, scores


def _sort(
    path: Path,
    offsets: Array,
    items: Array,
    scores: Array,
    user_tokens: Sequence[str],
    item_tokens: Sequence[str],
) -> None:
    """Sort each user's items, in place, and refuse an item that a user has twice."""
    n_items, twice, example = len(item_tokens), 0, 0
    # Blocks of whole users, each of about a chunk's rows.
    steps = np.arange(0, offsets[-1], CHUNK_ROWS)
    bounds = np.unique([0, *np.searchsorted(offsets, steps), len(offsets) - 1])
    for low, high in itertools.pairwise(bounds):
        start, end = offsets[low], offsets[high]
        users = np.repeat(np.arange(low, high), np.diff(offsets[low : high + 1]))
        keys = users * n_items + items[start:end]
        order = np.argsort(keys)
        items[start:end], scores[start:end] = items[start:end][order], scores[start:end][order]
        ranked = keys[order]
        same = ranked[1:][ranked[1:] == ranked[:-1]]
        if len(same) and not twice:
            example = int(same[0])
        twice += len(same)
    if twice:
        user, item = user_tokens[example // n_items], item_tokens[example % n_items]
        raise KDError(
            f"score file {path}: found {twice} rows whose user and item have a row already (first: "
            f"user '{user}', item '{item}'); allowed is one"
        )


# -- the three forms ---------------------------------------------------------------------------


def _coded(path: Path, name: str, values: Array) -> Coded:
    """The tokens of a column of texts or whole numbers."""
    if values.dtype.kind != "O":  # texts of arrow
        _check_type(path, name, values.dtype, ("<U", ">U", "int", "uint"), TOKENS)
    codes, tokens = pd.factorize(values)
    return _without_empty(codes, tokens.astype(str).astype(object))


def _without_empty(codes: Array, tokens: Array) -> Coded:
    """An empty text is no token."""
    empty = tokens == ""
    return (np.where(empty[codes], -1, codes) if empty.any() else codes), tokens


def _check_type(path: Path, name: str, found: Any, kinds: tuple[str, ...], allowed: str) -> None:
    if not str(found).startswith(kinds):
        raise KDError(
            f"score file {path}: found the column {name} of type {found}; allowed are {allowed}"
        )


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if [columns.count(name) for name in COLUMNS] != [1, 1, 1]:
        raise KDError(
            f"score file {path}: found the columns {', '.join(map(str, columns)) or 'none'}; "
            f"needed are {', '.join(COLUMNS)}, each once"
        )


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _read_csv(path: Path) -> Iterator[Chunk]:
    """Rows of a table with a header, separated by commas."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file), [])
        _check_columns(path, header)
        with pd.read_csv(
            path,
            # All columns: with a choice of them, pandas takes rows of any length.
            dtype={**dict.fromkeys(header, "category"), "score": np.float64},
            chunksize=CHUNK_ROWS,
            keep_default_na=False,
            na_values={"score": ["", "nan", "NaN", "NA", "null"]},
            index_col=False,
            encoding="utf-8-sig",
        ) as tables:
            while (table := _next_table(tables)) is not None:
                columns = (table[name].cat for name in COLUMNS[:2])
                users, items = (
                    _without_empty(c.codes.to_numpy(), c.categories.to_numpy()) for c in columns
                )
                yield users, items, table["score"].to_numpy()
    except KDError:
        raise
    except (ValueError, OSError, csv.Error, pd.errors.ParserWarning) as error:
        raise KDError(
            f"score file {path}: not a table of user, item and number ({_reason(error)})"
        ) from error


def _next_table(tables: Iterator[pd.DataFrame]) -> pd.DataFrame | None:
    """The next rows; what pandas would cut, with a warning, to the header's length is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return next(tables, None)


def _read_npz(path: Path) -> Iterator[Chunk]:
    """Rows of three arrays of one length; object arrays, which are pickles, are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            _check_columns(path, list(file.files))
            users, items, scores = (file[name] for name in COLUMNS)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        if isinstance(error, KDError):
            raise
        # NumPy's reason for refusing a pickle is advice to load it all the same.
        reason = "" if "unsafely" in str(error) else f" ({_reason(error)})"
        raise KDError(
            f"score file {path}: cannot be read{reason}; allowed are plain arrays of texts or "
            "numbers in an .npz archive, no objects"
        ) from error
    shapes = [array.shape for array in (users, items, scores)]
    if len({*shapes}) != 1 or scores.ndim != 1 or scores.dtype.kind not in "fiu":
        raise KDError(
            f"score file {path}: found arrays of shapes {', '.join(map(str, shapes))} and scores "
            f"of type {scores.dtype}; allowed is one length, and numbers"
        )
    for start in range(0, len(scores), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        coded = _coded(path, "user", users[rows]), _coded(path, "item", items[rows])
        yield *coded, scores[rows].astype(np.float64)


def parquet(path: str | Path) -> Any:
    """The library that reads and writes parquet files.

    Args:
        path: The file it is wanted for, for the message.

    Raises:
        KDError: It is not installed.
    """
    return optional.parquet(f"score file {path}", ", or take .csv or .npz")


def _read_parquet(path: Path) -> Iterator[Chunk]:
    """Rows of a parquet file, a batch of a row group at a time."""
    arrow = parquet(path)
    try:
        with arrow.parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            for batch in file.iter_batches(CHUNK_ROWS, columns=list(COLUMNS)):
                users, items = (_from_arrow(path, batch, name) for name in COLUMNS[:2])
                yield users, items, _numbers(path, batch.column("score"))
    except (arrow.ArrowException, OSError) as error:
        if isinstance(error, KDError):
            raise
        raise KDError(f"score file {path}: no parquet file ({_reason(error)})") from error


def _from_arrow(path: Path, batch: Any, name: str) -> Coded:
    """The tokens of a column of a batch."""
    column = batch.column(name)
    if not hasattr(column, "dictionary"):
        column = column.dictionary_encode()
    values = column.dictionary
    _check_type(path, name, values.type, ("string", "large_string", "int", "uint"), TOKENS)
    codes = column.indices.cast("int64").fill_null(-1).to_numpy(zero_copy_only=False)
    places, tokens = _coded(path, name, values.to_numpy(zero_copy_only=False))
    return np.append(places, -1)[codes], tokens


def _numbers(path: Path, column: Any) -> Array:
    """The numbers of a column of a batch, float64; NaN where there is none."""
    kinds = ("float", "double", "halffloat", "int", "uint")
    _check_type(path, "score", column.type, kinds, "numbers")
    return column.to_numpy(zero_copy_only=False).astype(np.float64)


READERS: dict[str, Callable[[Path], Iterator[Chunk]]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".npz": _read_npz,
}
