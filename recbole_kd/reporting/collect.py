"""What a benchmark's folder holds: the records as rows by seed, and what is missing of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recbole_kd.benchmark import records
from recbole_kd.benchmark.records import (
    DISTILLED,
    DONE,
    RECORDS,
    SCRATCH_STUDENT,
    SPEC_FILE,
    TEACHER,
    Record,
)
from recbole_kd.errors import KDError
from recbole_kd.options import read_yaml

MAIN = "main"
"""The group of the rows of the main table."""

KINDS = (TEACHER, SCRATCH_STUDENT, DISTILLED, records.REFERENCE)


@dataclass(frozen=True)
class Row:
    """One row of a table: a method, a model or a variant, with its runs.

    Attributes:
        name: Its name.
        kind: ``teacher``, ``scratch``, ``distilled`` or ``reference``.
        group: The table it belongs to.
        model: Method of a distilled row; model of the others.
        runs: The record of each seed that is done, by seed.
    """

    name: str
    kind: str
    group: str = MAIN
    model: str = ""
    runs: Mapping[int, Record] = field(default_factory=dict)

    @property
    def is_student(self) -> bool:
        """Whether it competes: neither the teacher nor a plain model of its own size."""
        return self.kind in (SCRATCH_STUDENT, DISTILLED)

    def values(self, metric: str) -> dict[int, float]:
        """A test metric by seed, of the runs that measured it."""
        results = {seed: run.test_result.get(metric) for seed, run in sorted(self.runs.items())}
        return {seed: float(value) for seed, value in results.items() if value is not None}


@dataclass(frozen=True)
class Block:
    """The rows of one data set and pair, in the order of the tables.

    Attributes:
        dataset: Name of the data set.
        pair: Name of the pair.
        rows: Its rows, also those without a run.
        missing: One line for each run that failed or was not made.
    """

    dataset: str
    pair: str
    rows: tuple[Row, ...]
    missing: tuple[str, ...] = ()

    @property
    def groups(self) -> list[str]:
        """Names of the groups, the main one first."""
        names = dict.fromkeys([MAIN, *(row.group for row in self.rows)])
        return [name for name in names if any(row.group == name for row in self.rows)]

    @property
    def metrics(self) -> list[str]:
        """Names of the test metrics, in the order of the first run that has them."""
        runs = [run for row in self.rows for run in row.runs.values()]
        return list(dict.fromkeys(name for run in runs for name in run.test_result))

    def of_group(self, group: str) -> list[Row]:
        """The rows of a group."""
        return [row for row in self.rows if row.group == group]

    def row(self, name: str | None) -> Row | None:
        """The row of a name, if there is one."""
        return next((row for row in self.rows if row.name == name), None)

    def of_kind(self, kind: str) -> Row | None:
        """The first row of a kind that has a run, if there is one."""
        return next((row for row in self.rows if row.kind == kind and row.runs), None)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's results.

    Attributes:
        folder: Its folder.
        name: Its title.
        command: The command that made it.
        protocol: Name of its protocol.
        seeds: The seeds it asks for.
        metric: The metric of tests and figures.
        ours: Name of the row that improvements are about, if there is one.
        pairs: Models of teacher and student, by pair.
        published: Published numbers by data set, pair, row and metric.
        blocks: Its results by data set and pair.
        damaged: One line for each record that cannot be read.
    """

    folder: Path
    name: str
    command: str
    protocol: str
    seeds: tuple[int, ...]
    metric: str
    ours: str | None
    pairs: Mapping[str, Any]
    published: Mapping[str, Any]
    blocks: tuple[Block, ...]
    damaged: tuple[str, ...] = ()

    def paper(self, block: Block, row: str) -> Mapping[str, float]:
        """The published metrics of a row; none where there are none."""
        found: Any = self.published
        for key in (block.dataset, block.pair, row):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}


def collect(folder: Path, metric: str | None = None) -> Benchmark:
    """Read a benchmark's folder, finished or not.

    Args:
        folder: The folder.
        metric: The metric of tests and figures; by default the benchmark's own.

    Raises:
        KDError: It is no benchmark's folder, its file is damaged, or no run measured the metric.
    """
    if not (folder / SPEC_FILE).is_file():
        raise KDError(f"report: found no {SPEC_FILE} in {folder}; allowed is a benchmark's folder")
    spec = read_yaml(folder / SPEC_FILE)
    found, damaged = _records(folder)
    seeds = tuple(_list(spec, "seeds")) or tuple(sorted({r.seed for r in found}))
    rows = _rows(spec, found)
    blocks = tuple(_block(*place, rows, found, seeds) for place in _places(spec, found))
    chosen = str(metric or spec.get("metric") or "ndcg@10").lower()
    known = list(dict.fromkeys(name for block in blocks for name in block.metrics))
    if known and chosen not in known:
        raise KDError(f"--metric={chosen}: found no run that measured it; allowed are {known}")
    return Benchmark(
        folder=folder,
        name=str(spec.get("name") or folder.name),
        command=str(spec.get("command") or ""),
        protocol=str(spec.get("protocol") or ""),
        seeds=seeds,
        metric=chosen,
        ours=None if spec.get("ours") is None else str(spec["ours"]),
        pairs=_mapping(spec, "pairs"),
        published=_mapping(spec, "published"),
        blocks=blocks,
        damaged=damaged,
    )


def _list(spec: Mapping[str, Any], key: str) -> list[Any]:
    value = spec.get(key) or []
    if not isinstance(value, list):
        raise KDError(f"{SPEC_FILE}, {key}: found {value!r}; allowed is a list")
    return value


def _mapping(spec: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = spec.get(key) or {}
    if not isinstance(value, Mapping):
        raise KDError(f"{SPEC_FILE}, {key}: found {value!r}; allowed is a mapping")
    return value


def _records(folder: Path) -> tuple[list[Record], tuple[str, ...]]:
    """The records that can be read, and a line for each that cannot."""
    found: list[Record] = []
    damaged: list[str] = []
    for file in sorted((folder / RECORDS).glob("*/*/*/seed-*.json")):
        try:
            record = records.read(file)
        except (KDError, OSError) as error:
            damaged.append(str(error).replace(f"{folder}/", ""))
            continue
        if _sound(record):
            found.append(record)
        else:
            damaged.append(f"{file.relative_to(folder)}: a number in it is none")
    return found, tuple(damaged)


def _sound(record: Record) -> bool:
    """Whether what is counted on has the form it should."""
    numbers = record.test_result.values() if isinstance(record.test_result, dict) else [None]
    finite = all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)
    return finite and isinstance(record.seed, int) and isinstance(record.provenance, dict)


def _rows(spec: Mapping[str, Any], found: Iterable[Record]) -> list[Row]:
    """The rows of the file, then those of records that it does not name (any more)."""
    rows: dict[str, Row] = {}
    for entry in _list(spec, "rows"):
        if not isinstance(entry, Mapping) or entry.get("kind") not in KINDS or "name" not in entry:
            raise KDError(
                f"{SPEC_FILE}, rows: found {entry!r}; allowed are name, group, model and a kind "
                f"of {', '.join(KINDS)}"
            )
        name, group = str(entry["name"]), str(entry.get("group") or MAIN)
        rows[name] = Row(name, str(entry["kind"]), group, str(entry.get("model") or ""))
    for record in found:
        rows.setdefault(record.row, Row(record.row, record.kind, record.group, record.model))
    return list(rows.values())


def _places(spec: Mapping[str, Any], found: list[Record]) -> list[tuple[str, str]]:
    """Data sets and pairs, those of the file first."""
    asked = [(str(d), str(p)) for d in _list(spec, "datasets") for p in _mapping(spec, "pairs")]
    return list(dict.fromkeys([*asked, *((r.dataset, r.pair) for r in found)]))


def _block(
    dataset: str, pair: str, rows: list[Row], found: list[Record], seeds: tuple[int, ...]
) -> Block:
    here = [record for record in found if (record.dataset, record.pair) == (dataset, pair)]
    filled: list[Row] = []
    missing: list[str] = []
    for row in rows:
        runs = {record.seed: record for record in here if record.row == row.name}
        done = {seed: run for seed, run in sorted(runs.items()) if run.status == DONE}
        filled.append(replace(row, runs=done))
        absent = [str(seed) for seed in seeds if seed not in runs]
        if absent:
            plural = "s" if len(absent) > 1 else ""
            missing.append(f"{row.name}: not run yet with seed{plural} {', '.join(absent)}")
        for seed, run in sorted(runs.items()):
            if run.status != DONE:
                missing.append(f"{row.name}: failed with seed {seed}: {run.error or 'no reason'}")
    return Block(dataset, pair, tuple(filled), tuple(missing))
