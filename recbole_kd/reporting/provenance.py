"""Where a report's numbers come from: data, split, versions, machine, seeds, time, commands."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import torch

from recbole_kd import per_user
from recbole_kd.benchmark.records import Record
from recbole_kd.machine import processor
from recbole_kd.reporting.collect import Benchmark, Block
from recbole_kd.reporting.compression import Measured
from recbole_kd.reporting.rankings import Absent, Rankings

Facts = list[tuple[str, str]]
"""What is known, and its value as text."""

MOST = 6
"""Different values of one fact that are listed."""

OF_DATA = ("data", "split")
"""What of a run's provenance is a fact about its data set."""

LIBRARIES = ("recbole-kd", "recbole", "torch", "numpy")
"""Libraries that a model answers with."""


def of_dataset(blocks: Sequence[Block], measured: Iterable[Measured], rankings: Rankings) -> Facts:
    """Statistics of a data set and the fingerprints of its split.

    Args:
        blocks: The results of the data set, by pair.
        measured: What was read from the rows' models there.
        rankings: Reads the tests by user.
    """
    runs = [run for block in blocks for row in block.rows for run in row.runs.values()]
    said = [_mapping(run.provenance.get("data")) for run in runs]
    prints = [_mapping(run.provenance.get("split")) for run in runs]
    opened = [one for one in measured if one.data]
    if not any(said):
        said = [one.data for one in opened]
    if not any(prints):
        prints = [one.split for one in opened]
    facts: Facts = []
    for name in dict.fromkeys(name for one in said for name in one):
        facts += _one(DATA_NAMES.get(name, str(name)), (_count(o[name]) for o in said if name in o))
    if opened:
        data = opened[0].data
        cells = max(1, data["users"] * data["items"])
        facts.append(("train density", f"{data['train interactions'] / cells:.4%}"))
    facts += _test_size(runs, rankings)
    for part in dict.fromkeys(part for one in prints for part in one):
        facts += _one(f"split fingerprint, {part}", (str(o[part]) for o in prints if part in o))
    return facts


DATA_NAMES = {part: f"{part} interactions" for part in ("train", "valid", "test")}
"""Names of a run's facts about its data, where they are not plain."""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _test_size(runs: Iterable[Record], rankings: Rankings) -> Facts:
    for run in runs:
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
    facts += [(f"pair {name}", pair(models)) for name, models in bench.pairs.items()]
    flat = [_flat({k: v for k, v in r.provenance.items() if k not in OF_DATA}) for r in runs]
    for key in dict.fromkeys(key for one in flat for key in one):
        facts += _one(key, (one[key] for one in flat if key in one))
    seconds = sum({run.folder or id(run): run.seconds or 0.0 for run in runs}.values())
    facts.append(("runs", f"{len(runs)} done, {_missing(bench)}"))
    said = "sum of the seconds of all runs' epochs, from their logs; processes ran side by side"
    facts.append(("training time", f"{duration(seconds)} ({said})"))
    return facts


def _missing(bench: Benchmark) -> str:
    count = sum(len(block.missing) for block in bench.blocks) + len(bench.damaged)
    return f"{count} gaps (see above)" if count else "none missing"


def of_this_machine() -> Facts:
    """What the latencies were measured with."""
    facts: Facts = [("processor", processor()), ("threads", str(torch.get_num_threads()))]
    for name in LIBRARIES:
        try:
            facts.append((f"versions, {name}", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return [*facts, ("python", platform.python_version()), ("system", platform.system())]


def pair(models: Any) -> str:
    """Teacher and student of a pair, as text.

    Args:
        models: What the file says of the pair.
    """
    if not isinstance(models, Mapping):
        return str(models)
    return f"{model_name(models.get('teacher'))} -> {model_name(models.get('student'))}"


def model_name(said: Any) -> str:
    """A model, file or files of a pair, without the folders of the machine.

    Args:
        said: What the file says.
    """
    listed = said if isinstance(said, list) else [said]
    return ", ".join(_last_part(str(one)) for one in listed)


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


def command_text(command: str) -> str:
    """A command without the folders of the machine it ran on.

    Args:
        command: The command, of one line or more.

    Returns:
        The same with each absolute path as its last part.
    """
    return "\n".join(map(_command_line, command.splitlines()))


def _command_line(line: str) -> str:
    try:
        words = shlex.split(line)
    except ValueError:  # a quotation mark alone
        words = line.split(" ")
    short = [_word(word) for word in words]
    return line if short == words else shlex.join(short)


def _word(word: str) -> str:
    option, equals, value = word.rpartition("=")
    if _is_absolute(value):
        return option + equals + _last_part(value)
    # Paths inside of a list or mapping.
    return re.sub(r"(?<![^\s\[{,:='\"])(?:/|[A-Za-z]:\\)[^\s,\]}'\"]+", _inner, word)


def _inner(found: re.Match[str]) -> str:
    return _last_part(found[0])


def _is_absolute(text: str) -> bool:
    return PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()


def _last_part(text: str) -> str:
    """An absolute path as its last part; any other text as it is."""
    if PurePosixPath(text).is_absolute():
        return PurePosixPath(text).name or text
    return PureWindowsPath(text).name or text if PureWindowsPath(text).is_absolute() else text
