"""What runs logged epoch by epoch, as one curve a row."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recbole_kd.benchmark.records import Record
from recbole_kd.reporting.collect import Row
from recbole_kd.reporting.reading import is_number, is_whole

LOG = "metrics.jsonl"

Curve = tuple[list[int], list[float]]
"""Epochs, and a number in each."""


MOST_EPOCHS = 10**6
"""An epoch above is none."""


def curve(folder: Path, row: Row, name: str) -> tuple[Curve | None, list[str]]:
    """A logged number over the epochs, the mean over the seeds.

    Args:
        folder: The benchmark's folder.
        row: A row.
        name: Name of the number in the log, such as ``overlap_topk``.

    Returns:
        The epochs that every seed has, in order, ``None`` where there is none; and a line for each
        log with lines that cannot be drawn.
    """
    runs, reasons = [], []
    for run in row.runs.values():
        found, wrong = _logged(folder, run, name)
        runs.append(found)
        if wrong:
            whose = f"{LOG} of {row.name}, seed {run.seed}"
            reasons.append(f"{whose}: {wrong} lines with no finite {name} of an epoch, left out")
    logged = [run for run in runs if run]
    epochs = sorted(set.intersection(*(set(run) for run in logged))) if logged else []
    if not epochs:
        return None, reasons
    return (epochs, [sum(run[e] for run in logged) / len(logged) for e in epochs]), reasons


def curves(folder: Path, rows: Iterable[Row], name: str) -> tuple[dict[str, Curve], list[str]]:
    """The curve of each row that logged a number.

    Args:
        folder: The benchmark's folder.
        rows: The rows.
        name: Name of the number in the log.

    Returns:
        The curves by row, and a line for each log with lines that cannot be drawn.
    """
    found: dict[str, Curve] = {}
    reasons: list[str] = []
    for row in rows:
        one, wrong = curve(folder, row, name)
        reasons += wrong
        if one is not None:
            found[row.name] = one
    return found, reasons


def _logged(folder: Path, run: Record, name: str) -> tuple[dict[int, float], int]:
    """A number by epoch, and how many lines have one that is none."""
    found: dict[int, float] = {}
    wrong = 0
    for line in _lines(folder / run.folder / LOG) if run.folder else []:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the line a kill cut short
        if not isinstance(entry, dict) or entry.get(name) is None:
            continue
        epoch: Any = entry.get("epoch")
        value = entry[name]
        if is_whole(epoch) and 0 <= epoch <= MOST_EPOCHS and is_number(value):
            found[epoch] = float(value)
        else:
            wrong += 1
    return found, wrong


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
