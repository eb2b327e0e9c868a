"""The records in a benchmark's folder: what is no record is left out, and what is wrong in one."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_kd.benchmark import records
from recbole_kd.benchmark.records import DONE, FAILED, RECORDS, Record
from recbole_kd.errors import KDError

KINDS = (records.TEACHER, records.SCRATCH_STUDENT, records.DISTILLED, records.REFERENCE)


@dataclass(frozen=True)
class Found:
    """A record and when its file was written, by which the newest one is known."""

    record: Record
    written: float


def read_records(folder: Path, pair: str | None = None) -> tuple[list[Found], tuple[str, ...]]:
    """The records of a benchmark.

    Args:
        folder: The benchmark's folder.
        pair: The pair whose records are read; all by default.

    Returns:
        Those that can be read, and a line for each record or field that cannot.
    """
    found: list[Found] = []
    damaged: list[str] = []
    where = "*" if pair is None else glob.escape(records.file_name(pair))
    for file in sorted((folder / RECORDS).glob(f"*/{where}/*/seed-*.json")):
        name = file.relative_to(folder).as_posix()
        try:
            record, written = records.read(file), file.stat().st_mtime
        except (KDError, OSError, RecursionError, ValueError) as error:
            damaged.append(f"unreadable record: {_line(error).replace(f'{folder}/', '')}")
            continue
        wrong = [key for key, holds in NEEDED.items() if not holds(getattr(record, key))]
        if wrong:
            damaged.append(f"unreadable record: {name}: {_what(record, wrong[0])}")
            continue
        for key in (key for key, holds in USEFUL.items() if not holds(getattr(record, key))):
            damaged.append(f"left out of a record: {name}: {_what(record, key)}")
            setattr(record, key, EMPTY.get(key))
        found.append(Found(record, written))
    return found, tuple(damaged)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _what(record: Record, key: str) -> str:
    shown = repr(getattr(record, key))
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    if key == "test_result":
        return f"a number in it is none: {shown}"
    return f"{key}: found {shown}"


def is_number(value: Any) -> bool:
    """Whether a value is a finite number.

    Args:
        value: Anything.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number.

    Args:
        value: Anything.
    """
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _count(value: Any) -> bool:
    return value is None or (is_whole(value) and 0 <= value < 2**63)


def _seconds(value: Any) -> bool:
    return value is None or (is_number(value) and value >= 0)


def _numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(is_number(number) for number in value.values())


NEEDED: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("dataset", "pair", "row"), _name),
    "seed": is_whole,
    "kind": lambda value: value in KINDS,
    "group": _name,
    "status": lambda value: value in (DONE, FAILED),
    "test_result": _numbers,
}
"""Fields without which a record is none."""

USEFUL: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("model", "error", "command"), _text),
    "folder": lambda value: value is None or _text(value),
    **dict.fromkeys(("best_epoch", "epochs", "parameters"), _count),
    "seconds": _seconds,
    **dict.fromkeys(("options", "provenance"), _mapping),
}
"""Fields that a record can do without."""

EMPTY: dict[str, Any] = {"model": "", "error": "", "command": "", "options": {}, "provenance": {}}
"""What stands for a field that is left out; else ``None``."""
