"""What runs logged epoch by epoch, as one curve a row."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from recbole_kd.benchmark.records import Record
from recbole_kd.reporting.collect import Row

LOG = "metrics.jsonl"

Curve = tuple[list[int], list[float]]
"""Epochs, and a number in each."""


def curve(folder: Path, row: Row, name: str) -> Curve | None:
    """A logged number over the epochs, the mean over the seeds.

    Args:
        folder: The benchmark's folder.
        row: A row.
        name: Name of the number in the log, such as ``overlap_topk``.

    Returns:
        The epochs that every seed has, in order; ``None`` where there is none.
    """
    runs = [_logged(folder, run, name) for run in row.runs.values()]
    logged = [run for run in runs if run]
    if not logged:
        return None
    epochs = sorted(set.intersection(*(set(run) for run in logged)))
    return epochs, [sum(run[e] for run in logged) / len(logged) for e in epochs]


def curves(folder: Path, rows: Iterable[Row], name: str) -> dict[str, Curve]:
    """The curve of each row that logged a number.

    Args:
        folder: The benchmark's folder.
        rows: The rows.
        name: Name of the number in the log.
    """
    found = {row.name: curve(folder, row, name) for row in rows}
    return {row: one for row, one in found.items() if one is not None and one[0]}


def _logged(folder: Path, run: Record, name: str) -> dict[int, float]:
    file = folder / (run.folder or "") / LOG
    if not run.folder or not file.is_file():
        return {}
    found: dict[int, float] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            if isinstance(entry.get(name), int | float):
                found[int(entry["epoch"])] = float(entry[name])
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError):
            continue  # the line a kill cut short
    return found
