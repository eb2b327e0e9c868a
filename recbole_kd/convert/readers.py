"""Raw text files, plain or gzip, as rows of tokens; an error names the file and the line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recbole_kd.errors import KDError

IntArray = npt.NDArray[np.int64]
TextArray = npt.NDArray[np.object_]

_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Rows:
    """Interactions of one raw file, as tokens.

    Attributes:
        path: The file.
        user: User token of each interaction, shape [n].
        item: Item token of each interaction, shape [n].
        line: Line number of each interaction, counted from 1, shape [n].
        n_bare_users: Lines that name a user and no item.
    """

    path: Path
    user: TextArray
    item: TextArray
    line: IntArray
    n_bare_users: int = 0


def bad_line(path: Path, line: int, found: str, allowed: str) -> KDError:
    """The error for one line of a raw file."""
    return KDError(f"{path}, line {line}: {found}; {allowed}.")


def show(text: str) -> str:
    """Quote raw text for a one-line message."""
    return repr(text if len(text) <= 40 else text[:40] + "...")


def find_file(folder: Path, name: str) -> Path:
    """Find a file, plain or gzip, in a folder."""
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise KDError(f"{folder}: no file {name}; looked for {name} and {name}.gz.")


def find_parts(raw: str | Path, parts: Sequence[str]) -> list[Path]:
    """Find ``<part>.txt`` of each part in the raw folder."""
    folder = Path(raw)
    names = " and ".join(f"{part}.txt" for part in parts)
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise KDError(f"{folder}: {state}; expected a folder with {names} (plain or .gz).")
    return [find_file(folder, f"{part}.txt") for part in parts]


def _decompress(path: Path, data: bytes) -> bytes:
    """Undo gzip if the bytes are gzip."""
    if data[:2] == _GZIP_MAGIC:
        try:
            return gzip.decompress(data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise KDError(f"{path}: broken or truncated gzip file ({error}).") from error
    if path.suffix == ".gz" and data:
        raise KDError(f"{path}: the name ends in .gz but the content is not gzip.")
    return data


def read_text_lines(path: Path) -> list[str]:
    """Read the lines of a text file, plain or gzip, without the empty ones at its end."""
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise KDError(f"{path}: {state}; expected a text file, plain or gzip.")
    try:
        text = _decompress(path, path.read_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise KDError(f"{path}: byte {error.start} is not UTF-8 text.") from error
    except OSError as error:
        raise KDError(f"{path}: cannot be read ({error.strerror}).") from error
    text = text.replace("\r\n", "\n").rstrip()
    if not text:
        raise KDError(f"{path}: the file is empty.")
    # Not splitlines(): it also breaks at form feeds, and line numbers would be off.
    return text.split("\n")


def read_lists(path: Path) -> Rows:
    """Read ``user item item ...`` lines."""
    users: list[str] = []
    items: list[str] = []
    counts: list[int] = []
    numbers: list[int] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(read_text_lines(path), 1):
        fields = line.split()
        if not fields:
            continue
        first = seen.setdefault(fields[0], number)
        if first != number:
            found = f"user {show(fields[0])} already has line {first}"
            raise bad_line(path, number, found, "a user has one line")
        users.append(fields[0])
        items.extend(fields[1:])
        counts.append(len(fields) - 1)
        numbers.append(number)
    if not items:
        found = f"{len(users)} users and no item"
        raise KDError(f"{path}: {found}; a line is 'user item item ...', separated by spaces.")
    return Rows(
        path=path,
        user=np.repeat(np.array(users, dtype=object), counts),
        item=np.array(items, dtype=object),
        line=np.repeat(np.array(numbers, dtype=np.int64), counts),
        n_bare_users=counts.count(0),
    )


def read_pairs(path: Path) -> Rows:
    """Read a tab separated table with the columns ``USER`` and ``ITEM``."""
    header, *lines = read_text_lines(path)
    columns = header.split("\t")
    if columns.count("USER") != 1 or columns.count("ITEM") != 1:
        found = f"found the columns {', '.join(show(column) for column in columns)}"
        raise bad_line(path, 1, found, "the header has USER and ITEM, separated by a tab")
    if not lines:
        raise KDError(f"{path}: a header and no interaction.")
    width = len(columns)
    for number, line in enumerate(lines, 2):
        if line.count("\t") != width - 1:
            found = f"found {line.count(chr(9)) + 1} columns in {show(line)}"
            raise bad_line(path, number, found, f"the header has {width}")
    # All lines have the same number of fields, so a column is a stride through one flat list.
    fields = np.array("\t".join(lines).split("\t"), dtype=object)
    return Rows(
        path=path,
        user=fields[columns.index("USER") :: width],
        item=fields[columns.index("ITEM") :: width],
        line=np.arange(2, len(lines) + 2, dtype=np.int64),
    )


def bare_notes(rows: Sequence[Rows]) -> tuple[str, ...]:
    """Tell how many lines name a user and no item, if any."""
    return tuple(
        f"{r.path.name}: {r.n_bare_users} lines name a user and no item"
        for r in rows
        if r.n_bare_users
    )
