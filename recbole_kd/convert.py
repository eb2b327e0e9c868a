"""Converters from the files public data sets come in to RecBole's atomic files.

Each ``convert_*`` function reads one raw format, checks it, and writes a folder that RecBole opens
with ``--dataset=<folder name> --config_files=<folder>/<folder name>.yaml``:

* ``<name>.inter``, or ``<name>.train.inter``, ``<name>.valid.inter``, ``<name>.test.inter``;
* ``<name>.yaml``, the configuration that goes with the files;
* ``README.md``, statistics, the rule of the split, and the command that made the folder.

:func:`convert` picks the function by the name of the format; :data:`FORMATS` lists them.
"""

from __future__ import annotations

import gzip
import inspect
import os
import re
import shlex
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_kd.errors import KDError, did_you_mean

IntArray = npt.NDArray[np.int64]
TextArray = npt.NDArray[np.object_]
PathLike = str | Path

PARTS = ("train", "valid", "test")
MIN_CITEULIKE_INTERACTIONS = 5

_GZIP_MAGIC = b"\x1f\x8b"
_LIGHTGCN_SOURCE = (
    "LightGCN files, one `user item item ...` line per user in train.txt and test.txt"
)
_MARKER = "<!-- recbole-kd convert wrote: "
_NAME = re.compile(r"\w[\w.-]*")
_TOKEN = re.compile(r"\w[\w.:@/+=-]*")
_TOKEN_RULE = "an id is letters, digits and _ . : @ / + = - and starts with a letter, digit or _"
# pandas, which RecBole reads with, takes these words for a missing value.
_MISSING_WORDS = frozenset({"NA", "N/A", "n/a", "NULL", "null", "NaN", "nan", "None"})


@dataclass(frozen=True)
class ConversionResult:
    """What a conversion wrote.

    Attributes:
        name: Name of the data set, which is the name of its folder.
        out: The folder.
        files: The files written, in the order of the README.
        n_users: Users with at least one interaction.
        n_items: Items with at least one interaction.
        interactions: Number of interactions per part; the one key of an unsplit set is ``all``.
        median_per_user: Median number of interactions per user, over all parts.
        rule: How the split was made, one sentence.
        command: The command line that makes the same folder.
        notes: What the user should know about the raw data, one sentence each.
    """

    name: str
    out: Path
    files: tuple[Path, ...]
    n_users: int
    n_items: int
    interactions: dict[str, int]
    median_per_user: float
    rule: str
    command: str
    notes: tuple[str, ...]

    @property
    def n_interactions(self) -> int:
        """Number of interactions in all parts together."""
        return sum(self.interactions.values())

    @property
    def density(self) -> float:
        """Share of the user-item matrix that is filled, from 0 to 1."""
        return self.n_interactions / (self.n_users * self.n_items)

    @property
    def mean_per_user(self) -> float:
        """Mean number of interactions per user, over all parts."""
        return self.n_interactions / self.n_users

    @property
    def config_file(self) -> Path:
        """The YAML file to pass to ``--config_files``."""
        return self.out / f"{self.name}.yaml"

    def summary(self) -> str:
        """Describe the result in a few lines for a terminal."""
        parts = ", ".join(f"{n} {part}" for part, n in self.interactions.items())
        lines = [
            f"{self.name}: {self.n_users} users, {self.n_items} items, interactions: {parts}",
            f"split: {self.rule}",
            *(f"note: {note}" for note in self.notes),
            f"wrote {len(self.files)} files to {self.out}",
            f"use: --dataset={self.name} --config_files={self.config_file}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Rows:
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


@dataclass(frozen=True)
class _Interactions:
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

    def keep(self, mask: npt.NDArray[np.bool_]) -> _Interactions:
        """The interactions where ``mask``, shape [n], is true, with the same codes."""
        return replace(
            self,
            user=self.user[mask],
            item=self.item[mask],
            part=self.part[mask],
            position=self.position[mask],
        )


@dataclass(frozen=True)
class _Target:
    """A checked output folder and the files of an earlier conversion in it."""

    out: Path
    name: str
    earlier: frozenset[str]


@dataclass(frozen=True)
class _About:
    """What the README tells besides numbers."""

    source: str
    rule: str
    command: str
    notes: tuple[str, ...] = ()
    eval_args: str = ""


# --------------------------------------------------------------------------- public functions


def convert(format_name: str, raw: PathLike, out: PathLike, **options: object) -> ConversionResult:
    """Convert raw files to RecBole's atomic files.

    Args:
        format_name: A key of :data:`FORMATS`.
        raw: The raw file or folder.
        out: The folder to write; its name becomes the name of the data set.
        **options: Options of the format, and ``overwrite``.

    Returns:
        What was written.

    Raises:
        KDError: Unknown format or option, bad raw data, or an output folder that is in use.
    """
    if format_name not in FORMATS:
        raise KDError(
            f"unknown format '{format_name}'; allowed: {', '.join(FORMATS)}."
            + did_you_mean(format_name, FORMATS)
        )
    function, _ = FORMATS[format_name]
    allowed = list(inspect.signature(function).parameters)[2:]
    for option in options:
        if option not in allowed:
            raise KDError(
                f"unknown option '{option}' of format '{format_name}'; allowed: "
                f"{', '.join(allowed)}." + did_you_mean(option, allowed)
            )
    return function(raw, out, **options)


def convert_citeulike(raw: PathLike, out: PathLike, *, overwrite: bool = False) -> ConversionResult:
    """Convert ``users.dat`` of citeulike-t and split it 8:1:1 in list order.

    Users with at least 5 interactions stay and are numbered from 0 in file order; their items are
    numbered from 0 in the order of the raw ids. The first ``n * 8 // 10`` interactions of a user
    with n are train, those up to ``n * 9 // 10`` valid, the rest test.

    Args:
        raw: ``users.dat`` (plain or gzip) or the folder that holds it.
        out: The folder to write.
        overwrite: Write into a folder that holds other files.

    Returns:
        What was written.

    Raises:
        KDError: Bad raw data, or an output folder that is in use.
    """
    target = _check_target(out, overwrite)
    path = _find_users_dat(raw)
    lists, lines, n_users = _read_users_dat(path)
    data = _split_lists(path, lists, lines)
    about = _About(
        source="`users.dat` of citeulike-t: line n is user n, the item count, then the item ids",
        rule=(
            "8:1:1 per user in list order: the first n*8//10 of n interactions are train, those up "
            "to n*9//10 valid, the rest test"
        ),
        command=_command("citeulike", raw, out, overwrite),
        notes=(
            f"{len(lists)} of {n_users} users have at least {MIN_CITEULIKE_INTERACTIONS} "
            "interactions and were kept",
            "user k is the k-th kept line, item k the k-th smallest raw id among the kept users' "
            "items, both counted from 0",
            "timestamp is the place in the user's list, an order and not a time",
        ),
    )
    return _write(data, about, target)


def convert_rcekd(raw: PathLike, out: PathLike, *, overwrite: bool = False) -> ConversionResult:
    """Convert a ready-made split, three tables with the columns ``USER`` and ``ITEM``.

    Args:
        raw: Folder with ``train.txt``, ``valid.txt`` and ``test.txt`` (plain or ``.gz``), tab
            separated with a header line.
        out: The folder to write.
        overwrite: Write into a folder that holds other files.

    Returns:
        What was written.

    Raises:
        KDError: Bad raw data, a (user, item) pair in two parts, or an output folder in use.
    """
    target = _check_target(out, overwrite)
    rows = [_read_pairs(path) for path in _find_parts(raw, PARTS)]
    data, n_repeats = _drop_repeats(_join(rows, PARTS))
    _refuse_overlap(data, rows)
    about = _About(
        source="ready-made split, tab separated tables with the columns USER and ITEM",
        rule="as given",
        command=_command("rcekd", raw, out, overwrite),
        notes=(
            *_repeat_note(n_repeats),
            "timestamp is the place in the user's train, then valid, then test list, an order and "
            "not a time",
        ),
    )
    return _write(data, about, target)


def convert_lightgcn(
    raw: PathLike,
    out: PathLike,
    *,
    valid_ratio: float = 0.1,
    seed: int = 2020,
    resplit: bool = False,
    overwrite: bool = False,
) -> ConversionResult:
    """Convert the ``train.txt`` and ``test.txt`` of the LightGCN family of repositories.

    The format has no validation part. Unless ``resplit``, one is drawn at random from each user's
    train interactions; test stays as given.

    Args:
        raw: Folder with ``train.txt`` and ``test.txt`` (plain or ``.gz``), one ``user item ...``
            line per user.
        out: The folder to write.
        valid_ratio: Share of each user's train interactions that becomes validation, in (0, 1);
            rounded to the nearest number, and one interaction always stays in train.
        seed: Seed of that draw.
        resplit: Pool train and test into one unsplit file instead.
        overwrite: Write into a folder that holds other files.

    Returns:
        What was written.

    Raises:
        KDError: Bad raw data or option, a pair in both parts, or an output folder in use.
    """
    target = _check_target(out, overwrite)
    if _flag_option("resplit", resplit):
        command = _command("lightgcn", raw, out, overwrite, resplit=True)
        return _write(*_lightgcn_pooled(raw, command), target)
    ratio, seed = _ratio_option("valid_ratio", valid_ratio), _seed_option("seed", seed)
    command = _command("lightgcn", raw, out, overwrite, valid_ratio=ratio, seed=seed)
    return _write(*_lightgcn_split(raw, ratio, seed, command), target)


def convert_sequences(raw: PathLike, out: PathLike, *, overwrite: bool = False) -> ConversionResult:
    """Convert a file of ordered sequences to one unsplit file with an order column.

    Args:
        raw: Text file (plain or gzip) with one ``user item item ...`` line per user, oldest first.
        out: The folder to write.
        overwrite: Write into a folder that holds other files.

    Returns:
        What was written.

    Raises:
        KDError: Bad raw data, or an output folder that is in use.
    """
    target = _check_target(out, overwrite)
    rows = _read_lists(Path(raw))
    data = _join([rows], ("",))
    n_repeats = int(pd.Series(data.pair_key()).duplicated().sum())
    repeats = f"{n_repeats} repeated (user, item) pairs were kept; rm_dup_inter: first drops them"
    about = _About(
        source="ordered sequences, one `user item item ...` line per user",
        rule="none: RecBole splits by order, the last interaction is test, the one before valid",
        command=_command("sequences", raw, out, overwrite),
        notes=(
            *_bare_notes([rows]),
            *((repeats,) if n_repeats else ()),
            "timestamp is the place in the user's sequence (0, 1, 2, ...), an order and not a time",
        ),
        eval_args="split: {LS: valid_and_test}, order: TO",
    )
    return _write(data, about, target)


FORMATS: dict[str, tuple[Callable[..., ConversionResult], str]] = {
    "citeulike": (convert_citeulike, "users.dat of citeulike-t, split 8:1:1 in list order"),
    "rcekd": (convert_rcekd, "train.txt, valid.txt, test.txt with columns USER and ITEM, as given"),
    "lightgcn": (convert_lightgcn, "train.txt and test.txt, one 'user item item ...' line a user"),
    "sequences": (convert_sequences, "one file of ordered 'user item item ...' lines, not split"),
}


# --------------------------------------------------------------------------- options


def _ratio_option(name: str, value: object) -> float:
    """Read a share that lies strictly between 0 and 1."""
    with suppress(TypeError, ValueError):
        number = float(value)  # type: ignore[arg-type]
        if not isinstance(value, bool) and 0.0 < number < 1.0:
            return number
    raise KDError(f"option '{name}' is {value!r}; allowed: a number above 0 and below 1.")


def _seed_option(name: str, value: object) -> int:
    """Read a seed, a whole number from 0."""
    text = str(value)
    if text.isascii() and text.isdigit():
        return int(text)
    raise KDError(f"option '{name}' is {value!r}; allowed: a whole number from 0.")


def _flag_option(name: str, value: object) -> bool:
    """Read true or false, also as a command line spells it."""
    flags = {"true": True, "false": False}
    if str(value).lower() not in flags:
        raise KDError(f"option '{name}' is {value!r}; allowed: True or False.")
    return flags[str(value).lower()]


def _command(
    format_name: str, raw: PathLike, out: PathLike, overwrite: object, **options: object
) -> str:
    """The command line that repeats a conversion."""
    flags = {**options, **({"overwrite": True} if _flag_option("overwrite", overwrite) else {})}
    words = ["recbole-kd", "convert", format_name, str(raw), str(out)]
    return shlex.join(words + [f"--{key}={value}" for key, value in flags.items()])


# --------------------------------------------------------------------------- reading


def _bad_line(path: Path, line: int, found: str, allowed: str) -> KDError:
    """The error for one line of a raw file."""
    return KDError(f"{path}, line {line}: {found}; {allowed}.")


def _show(text: str) -> str:
    """Quote raw text for a one-line message."""
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _find_file(folder: Path, name: str) -> Path:
    """Find a file, plain or gzip, in a folder."""
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise KDError(f"{folder}: no file {name}; looked for {name} and {name}.gz.")


def _find_parts(raw: PathLike, parts: Sequence[str]) -> list[Path]:
    """Find ``<part>.txt`` of each part in the raw folder."""
    folder = Path(raw)
    names = " and ".join(f"{part}.txt" for part in parts)
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise KDError(f"{folder}: {state}; expected a folder with {names} (plain or .gz).")
    return [_find_file(folder, f"{part}.txt") for part in parts]


def _find_users_dat(raw: PathLike) -> Path:
    """Find ``users.dat``, given itself or its folder."""
    path = Path(raw)
    if path.is_dir():
        return _find_file(path, "users.dat")
    if not path.exists():
        raise KDError(f"{path}: does not exist; looked for users.dat or the folder that holds it.")
    return path


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


def _read_text_lines(path: Path) -> list[str]:
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


def _read_lists(path: Path) -> _Rows:
    """Read ``user item item ...`` lines."""
    users: list[str] = []
    items: list[str] = []
    counts: list[int] = []
    numbers: list[int] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(_read_text_lines(path), 1):
        fields = line.split()
        if not fields:
            continue
        first = seen.setdefault(fields[0], number)
        if first != number:
            found = f"user {_show(fields[0])} already has line {first}"
            raise _bad_line(path, number, found, "a user has one line")
        users.append(fields[0])
        items.extend(fields[1:])
        counts.append(len(fields) - 1)
        numbers.append(number)
    if not items:
        found = f"{len(users)} users and no item"
        raise KDError(f"{path}: {found}; a line is 'user item item ...', separated by spaces.")
    return _Rows(
        path=path,
        user=np.repeat(np.array(users, dtype=object), counts),
        item=np.array(items, dtype=object),
        line=np.repeat(np.array(numbers, dtype=np.int64), counts),
        n_bare_users=counts.count(0),
    )


def _read_pairs(path: Path) -> _Rows:
    """Read a tab separated table with the columns ``USER`` and ``ITEM``."""
    header, *lines = _read_text_lines(path)
    columns = header.split("\t")
    if columns.count("USER") != 1 or columns.count("ITEM") != 1:
        found = f"found the columns {', '.join(_show(column) for column in columns)}"
        raise _bad_line(path, 1, found, "the header has USER and ITEM, separated by a tab")
    if not lines:
        raise KDError(f"{path}: a header and no interaction.")
    width = len(columns)
    for number, line in enumerate(lines, 2):
        if line.count("\t") != width - 1:
            found = f"found {line.count(chr(9)) + 1} columns in {_show(line)}"
            raise _bad_line(path, number, found, f"the header has {width}")
    # All lines have the same number of fields, so a column is a stride through one flat list.
    fields = np.array("\t".join(lines).split("\t"), dtype=object)
    return _Rows(
        path=path,
        user=fields[columns.index("USER") :: width],
        item=fields[columns.index("ITEM") :: width],
        line=np.arange(2, len(lines) + 2, dtype=np.int64),
    )


def _read_users_dat(path: Path) -> tuple[list[list[int]], list[int], int]:
    """Read the item lists of the users that are kept.

    Returns:
        The raw item ids of each kept user, the line number of each, and the number of all users.
    """
    lists: list[list[int]] = []
    numbers: list[int] = []
    lines = _read_text_lines(path)
    for number, line in enumerate(lines, 1):
        fields = line.split()
        for field in fields:
            if not (field.isascii() and field.isdigit() and len(field) <= 18):
                found = f"found {_show(field)}"
                raise _bad_line(path, number, found, "a line holds whole numbers only")
        if not fields or int(fields[0]) != len(fields) - 1:
            first = f"the first number is {fields[0]}" if fields else "the line is empty"
            found = f"{first} but {max(len(fields) - 1, 0)} item ids follow"
            raise _bad_line(path, number, found, "a line is the item count, then the item ids")
        if len(fields) - 1 >= MIN_CITEULIKE_INTERACTIONS:
            lists.append([int(field) for field in fields[1:]])
            numbers.append(number)
    if not lists:
        low = MIN_CITEULIKE_INTERACTIONS
        raise KDError(f"{path}: none of {len(lines)} users has at least {low} interactions.")
    return lists, numbers, len(lines)


# --------------------------------------------------------------------------- arranging


def _positions(user: IntArray) -> IntArray:
    """Number the interactions of each user from 0 in their order, shape [n]."""
    order = np.argsort(user, kind="stable")
    counts = np.bincount(user)
    starts = np.cumsum(counts) - counts
    positions = np.empty(len(user), dtype=np.int64)
    positions[order] = np.arange(len(user)) - starts[user[order]]
    return positions


def _split_lists(path: Path, lists: list[list[int]], lines: list[int]) -> _Interactions:
    """Number users and items and split each list 8:1:1 in its order."""
    counts = np.array([len(items) for items in lists], dtype=np.int64)
    user = np.repeat(np.arange(len(lists), dtype=np.int64), counts)
    raw_item = np.concatenate([np.array(items, dtype=np.int64) for items in lists])
    raw_ids, item = np.unique(raw_item, return_inverse=True)
    position = _positions(user)
    count = counts[user]
    # Whole numbers: 0.8 * n in floating point would cut some lists one too early.
    part = (position >= count * 8 // 10).astype(np.int64) + (position >= count * 9 // 10)
    users = [str(code) for code in range(len(lists))]
    items = [str(code) for code in range(len(raw_ids))]
    data = _Interactions(users, items, user, item.astype(np.int64), part, position)
    repeated = np.flatnonzero(pd.Series(data.pair_key()).duplicated().to_numpy())
    if len(repeated):
        row = int(repeated[0])
        found = f"item {raw_item[row]} stands there twice"
        raise _bad_line(path, lines[user[row]], found, "a user has an item once")
    return data


def _join(rows: Sequence[_Rows], parts: tuple[str, ...]) -> _Interactions:
    """Number the tokens of all parts together and check them."""
    user, users = pd.factorize(np.concatenate([r.user for r in rows]))
    item, items = pd.factorize(np.concatenate([r.item for r in rows]))
    for codes, tokens in ((user, users), (item, items)):
        _check_tokens(rows, codes, tokens)
    return _Interactions(
        users=users,
        items=items,
        user=user.astype(np.int64),
        item=item.astype(np.int64),
        part=np.repeat(np.arange(len(rows)), [len(r.user) for r in rows]),
        position=_positions(user),
        parts=parts,
    )


def _is_token(text: str) -> bool:
    """Whether RecBole reads the text back as the same token."""
    return _TOKEN.fullmatch(text) is not None and text not in _MISSING_WORDS


def _check_tokens(rows: Sequence[_Rows], codes: IntArray, tokens: Iterable[str]) -> None:
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
            raise _bad_line(
                part.path, int(part.line[row]), f"found {_show(token)} as an id", _TOKEN_RULE
            )
        row -= len(part.line)


def _drop_repeats(data: _Interactions) -> tuple[_Interactions, int]:
    """Drop a pair that stands again in its part, and renumber the places in the users' lists."""
    key = data.part * (len(data.users) * len(data.items)) + data.pair_key()
    repeated = pd.Series(key).duplicated().to_numpy()
    if not repeated.any():
        return data, 0
    kept = data.keep(~repeated)
    return replace(kept, position=_positions(kept.user)), int(repeated.sum())


def _repeat_note(n_repeats: int) -> tuple[str, ...]:
    """Tell how many repeated pairs were dropped, if any."""
    return (f"{n_repeats} repeated (user, item) pairs were dropped",) if n_repeats else ()


def _bare_notes(rows: Sequence[_Rows]) -> tuple[str, ...]:
    """Tell how many lines name a user and no item, if any."""
    return tuple(
        f"{r.path.name}: {r.n_bare_users} lines name a user and no item"
        for r in rows
        if r.n_bare_users
    )


def _refuse_overlap(data: _Interactions, rows: Sequence[_Rows]) -> None:
    """Refuse a ready-made split that holds a (user, item) pair in two parts."""
    key = data.pair_key()
    again = pd.Series(key).duplicated().to_numpy()
    if not again.any():
        return
    row = int(np.flatnonzero(again)[0])
    first = int(np.flatnonzero(key == key[row])[0])
    names = f"{rows[data.part[first]].path.name} and {rows[data.part[row]].path.name}"
    n_pairs = len(np.unique(key[again]))
    raise KDError(
        f"{rows[0].path.parent}: {n_pairs} (user, item) pairs are in two parts, the first is user "
        f"{_show(data.users[data.user[row]])}, item {_show(data.items[data.item[row]])} in "
        f"{names}; a pair may be in one part only."
    )


def _lightgcn_pooled(raw: PathLike, command: str) -> tuple[_Interactions, _About]:
    """Read train and test of the LightGCN format as one part."""
    rows = [_read_lists(path) for path in _find_parts(raw, ("train", "test"))]
    data = _join(rows, ("train", "test"))
    pooled = replace(data, part=np.zeros_like(data.part), parts=("",), ordered=False)
    pooled, n_repeats = _drop_repeats(pooled)
    about = _About(
        source=_LIGHTGCN_SOURCE,
        rule="none: train and test are pooled, RecBole splits at random 8:1:1 per user",
        command=command,
        notes=(*_bare_notes(rows), *_repeat_note(n_repeats)),
        eval_args="split: {RS: [0.8, 0.1, 0.1]}, order: RO",
    )
    return pooled, about


def _lightgcn_split(
    raw: PathLike, ratio: float, seed: int, command: str
) -> tuple[_Interactions, _About]:
    """Read train and test of the LightGCN format and draw a validation part from train."""
    rows = [_read_lists(path) for path in _find_parts(raw, ("train", "test"))]
    data, n_repeats = _drop_repeats(_join(rows, ("train", "test")))
    _refuse_overlap(data, rows)
    about = _About(
        source=_LIGHTGCN_SOURCE,
        rule=(
            f"test as given; valid is a random {ratio:g} of each user's train interactions (seed "
            f"{seed}, rounded to the nearest number, at least one stays in train); train is the "
            "rest"
        ),
        command=command,
        notes=(
            *_bare_notes(rows),
            *_repeat_note(n_repeats),
            "timestamp is the place in the user's train line, then test line, an order and not a "
            "time",
        ),
    )
    return _draw_valid(data, ratio, seed), about


def _draw_valid(data: _Interactions, ratio: float, seed: int) -> _Interactions:
    """Move a random share of each user's train interactions to a validation part.

    Args:
        data: Interactions with the parts train and test.
        ratio: Share to move, in (0, 1).
        seed: Seed of the draw.

    Returns:
        The same interactions in the same order with the parts train, valid and test.

    Raises:
        KDError: No user has enough train interactions for the share.
    """
    train = np.flatnonzero(data.part == 0)
    user = data.user[train]
    count = np.bincount(user, minlength=len(data.users))
    take = np.minimum(np.floor(count * ratio + 0.5), np.maximum(count - 1, 0))
    if not take.any():
        raise KDError(
            f"option 'valid_ratio' is {ratio:g}: no validation interaction for any user, the "
            f"longest train list has {count.max()}; choose a larger share."
        )
    draw = np.random.default_rng(seed).random(len(train))
    order = np.lexsort((draw, user))
    rank = _positions(user[order])
    part = np.where(data.part == 1, 2, 0)
    part[train[order[rank < take[user[order]]]]] = 1
    return replace(data, part=part, parts=PARTS)


# --------------------------------------------------------------------------- writing


def _inter_names(name: str, parts: Sequence[str]) -> list[str]:
    """File name of each part."""
    return [f"{name}.{part}.inter" if part else f"{name}.inter" for part in parts]


def _check_target(out: PathLike, overwrite: object) -> _Target:
    """Check the output folder and find the files of an earlier conversion in it."""
    given = Path(out)
    name = given.resolve().name
    if not _NAME.fullmatch(name):
        raise KDError(
            f"{given}: the folder's name {_show(name)} becomes the data set's name; allowed: "
            "letters, digits, _ . - with a letter, digit or _ first."
        )
    if name == "ml-100k":
        raise KDError(f"{given}: RecBole reads its own copy of ml-100k; choose another name.")
    if not given.exists():
        return _Target(given, name, frozenset())
    if not given.is_dir():
        raise KDError(f"{given}: is a file; the output must be a folder.")
    present = {entry.name for entry in given.iterdir()}
    known = {*_inter_names(name, ("", *PARTS)), f"{name}.yaml", "README.md"}
    earlier = present & known & _names_in_marker(given / "README.md")
    foreign = sorted(present - earlier)
    if foreign and not _flag_option("overwrite", overwrite):
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise KDError(
            f"{given}: holds {len(foreign)} files that no conversion wrote ({shown}); choose an "
            "empty folder or allow it with the option overwrite."
        )
    return _Target(given, name, frozenset(earlier))


def _names_in_marker(readme: Path) -> set[str]:
    """The file names an earlier conversion noted in the first line of its README."""
    with suppress(OSError, UnicodeDecodeError):
        first = readme.read_text(encoding="utf-8").partition("\n")[0]
        if first.startswith(_MARKER):
            return set(first.removeprefix(_MARKER).removesuffix(" -->").split(", "))
    return set()


def _write(data: _Interactions, about: _About, target: _Target) -> ConversionResult:
    """Write the atomic files, the configuration and the README."""
    per_part = np.bincount(data.part, minlength=len(data.parts))
    for part, number in zip(data.parts, per_part, strict=True):
        if not number:
            raise KDError(f"{target.name}: part {part} has no interaction; each part needs one.")
    names = _inter_names(target.name, data.parts)
    names += [f"{target.name}.yaml", "README.md"]
    per_user = np.bincount(data.user)
    result = ConversionResult(
        name=target.name,
        out=target.out,
        files=tuple(target.out / name for name in names),
        n_users=int(np.count_nonzero(per_user)),
        n_items=len(np.unique(data.item)),
        interactions={part or "all": int(n) for part, n in zip(data.parts, per_part, strict=True)},
        median_per_user=float(np.median(per_user[per_user > 0])),
        rule=about.rule,
        command=about.command,
        notes=about.notes,
    )
    config = _config_lines(data, about)
    texts = [_inter_text(data, index) for index in range(len(data.parts))]
    texts += [_config_text(config), _readme_text(data, about, result, config)]
    _replace_files(target, dict(zip(names, texts, strict=True)))
    return result


def _inter_text(data: _Interactions, index: int) -> str:
    """The atomic file of one part."""
    rows = data.part == index
    columns = [
        ("user_id:token", np.asarray(data.users, dtype=object)[data.user[rows]]),
        ("item_id:token", np.asarray(data.items, dtype=object)[data.item[rows]]),
    ]
    if data.ordered:
        numbers = np.array([str(n) for n in range(int(data.position.max()) + 1)], dtype=object)
        columns.append(("timestamp:float", numbers[data.position[rows]]))
    header = "\t".join(name for name, _ in columns)
    lines = map("\t".join, zip(*(values for _, values in columns), strict=True))
    return "\n".join([header, *lines, ""])


def _config_lines(data: _Interactions, about: _About) -> list[str]:
    """The YAML lines RecBole needs to read the files."""
    fields = "user_id, item_id" + (", timestamp" if data.ordered else "")
    lines = ["load_col:", f"  inter: [{fields}]"]
    if data.parts != ("",):
        lines.insert(0, f"benchmark_filename: [{', '.join(data.parts)}]")
    if about.eval_args:
        lines.append(f"eval_args: {{{about.eval_args}, group_by: user, mode: full}}")
    return lines


def _config_text(lines: Sequence[str]) -> str:
    """The configuration file."""
    head = "# Written by recbole-kd convert; pass this file to --config_files.\n"
    return head + "\n".join(lines) + "\n"


def _readme_text(
    data: _Interactions, about: _About, result: ConversionResult, config: Sequence[str]
) -> str:
    """The README of the converted data set; its first line marks the folder as ours."""
    names = ", ".join(path.name for path in result.files)
    table = ["| part | users | items | interactions |", "|---|---|---|---|"]
    for index, part in enumerate(result.interactions):
        rows = data.part == index
        users, items = len(np.unique(data.user[rows])), len(np.unique(data.item[rows]))
        table.append(f"| {part} | {users} | {items} | {result.interactions[part]} |")
    if len(result.interactions) > 1:
        table.append(f"| all | {result.n_users} | {result.n_items} | {result.n_interactions} |")
    lines = [
        f"{_MARKER}{names} -->",
        *(f"# {result.name}", "", "Made by", "", f"    {result.command}", "", *table, ""),
        f"- density: {100 * result.density:.4f} %",
        f"- interactions per user: median {result.median_per_user:g}, "
        f"mean {result.mean_per_user:.2f}",
        f"- source: {about.source}",
        f"- split: {about.rule}",
        *(f"- {note}" for note in about.notes),
        *("", "RecBole needs", "", "```yaml", *config, "```", ""),
        f"which are the lines of `{result.name}.yaml`: pass `--dataset={result.name} "
        f"--config_files={result.config_file}`.",
        "`data_path` (RecBole's default: `dataset/`) is the folder that holds this folder.",
        "",
    ]
    return "\n".join(lines)


def _replace_files(target: _Target, texts: dict[str, str]) -> None:
    """Write all files under temporary names, then move them into place.

    Raises:
        KDError: The folder cannot be written.
    """
    out = target.out
    existed = out.exists()
    temporary: dict[str, Path] = {name: out / f".{name}.{os.getpid()}.tmp" for name in texts}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            temporary[name].write_text(text, encoding="utf-8", newline="\n")
        for name in texts:
            os.replace(temporary[name], out / name)
        for name in target.earlier - set(texts):
            (out / name).unlink()
    except OSError as error:
        raise KDError(f"{out}: cannot be written ({error.strerror}).") from error
    finally:
        for path in temporary.values():
            with suppress(OSError):
                path.unlink()
        if not existed:
            # Only an empty folder goes, that is one where nothing was moved into place.
            with suppress(OSError):
                out.rmdir()
