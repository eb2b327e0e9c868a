"""Where a report's numbers come from: data, split, versions, machine, seeds, time, commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from recbole_kd import per_user
from recbole_kd.benchmark.records import Record
from recbole_kd.reporting.collect import Benchmark, Block
from recbole_kd.reporting.compression import Measured
from recbole_kd.reporting.rankings import Absent, Rankings

Facts = list[tuple[str, str]]
"""What is known, and its value as text."""

MOST = 6
"""Different values of one fact that are listed."""


def of_data(block: Block, measured: Mapping[str, Measured], rankings: Rankings) -> Facts:
    """Statistics of a data set and the fingerprints of its split.

    Args:
        block: The results of a data set and pair.
        measured: What was read from the rows' models.
        rankings: Reads the tests by user.
    """
    opened = [one for one in measured.values() if one.data]
    facts: Facts = []
    for name in ("users", "items", "train interactions"):
        facts += _one(name, (f"{one.data[name]:,}" for one in opened))
    if opened:
        data = opened[0].data
        cells = max(1, data["users"] * data["items"])
        facts.append(("train density", f"{data['train interactions'] / cells:.4%}"))
    facts += _test_size(block, rankings)
    prints = dict.fromkeys(part for one in opened for part in one.split)
    for part in prints:
        values = [one.split[part] for one in opened if part in one.split]
        facts += _one(f"split fingerprint, {part}", values)
    return facts


def _test_size(block: Block, rankings: Rankings) -> Facts:
    for run in (run for row in block.rows for run in row.runs.values()):
        try:
            users = rankings.column(run, per_user.FILE, "user")
            held_out = rankings.column(run, per_user.FILE, "held_out")
        except Absent:
            continue
        return [("users tested", f"{len(set(users)):,}"), ("test targets", f"{held_out.sum():,}")]
    return []


def of_runs(bench: Benchmark) -> Facts:
    """Versions, machine and time of all runs.

    Args:
        bench: The benchmark.
    """
    runs = [run for block in bench.blocks for row in block.rows for run in row.runs.values()]
    facts: Facts = [("seeds", ", ".join(map(str, bench.seeds)))]
    if bench.protocol:
        facts.append(("protocol", bench.protocol))
    facts += [(f"pair {name}", _pair(models)) for name, models in bench.pairs.items()]
    flat = [_flat(run.provenance) for run in runs]
    for key in dict.fromkeys(key for one in flat for key in one):
        facts += _one(key, (one[key] for one in flat if key in one))
    seconds = sum({run.folder or id(run): run.seconds or 0.0 for run in runs}.values())
    facts.append(("runs", f"{len(runs)} done, {_missing(bench)}"))
    facts.append(("training time, all runs", duration(seconds)))
    return facts


def _missing(bench: Benchmark) -> str:
    count = sum(len(block.missing) for block in bench.blocks) + len(bench.damaged)
    return f"{count} gaps (see above)" if count else "none missing"


def _pair(models: Any) -> str:
    if not isinstance(models, Mapping):
        return str(models)
    return f"{models.get('teacher')} -> {models.get('student')}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested plain data as texts, ``versions: {torch: 2.13}`` as ``versions, torch``."""
    result: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result.update(_flat(value, f"{prefix}{key}, "))
        else:
            result[f"{prefix}{key}"] = str(value)
    return result


def _one(name: str, values: Iterable[str]) -> Facts:
    """A fact of many runs: its value, or its values where the runs differ."""
    found = list(dict.fromkeys(values))
    if not found:
        return []
    more = f"; and {len(found) - MOST} more" if len(found) > MOST else ""
    differ = "differs: " if len(found) > 1 else ""
    return [(name, differ + "; ".join(found[:MOST]) + more)]


def duration(seconds: float) -> str:
    """Seconds as a text of about two figures: ``75`` -> ``1.2 min``."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def commands(block: Block) -> list[Record]:
    """The first run of each row that says how it was made.

    Args:
        block: The results of a data set and pair.
    """
    firsts = [next(iter(row.runs.values())) for row in block.rows if row.runs]
    return [run for run in firsts if run.command]
