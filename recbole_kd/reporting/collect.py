"""What a benchmark's folder holds: the records as rows by seed, and what is missing of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recbole_kd.benchmark.records import (
    DISTILLED,
    DONE,
    SCRATCH_STUDENT,
    SPEC_FILE,
    TEACHER,
    Record,
    name_of,
)
from recbole_kd.errors import KDError
from recbole_kd.options import read_yaml
from recbole_kd.reporting.reading import KINDS, Found, is_number, is_whole, read_records
from recbole_kd.statistics import Summary, summarise

MAIN = "main"
"""The group of the rows of the main table."""

RANKING = ("recall", "ndcg", "hit", "mrr", "map", "precision", "auc", "gauc")
"""Metrics of accuracy: the larger, the better."""

INCIDENTAL = ("seed", "checkpoint_dir", "resume", "show_progress", "threads")
"""Options that leave a run's result as it is, or that runs of one row differ in."""


@dataclass(frozen=True)
class Row:
    """One row of a table: a method, a model or a variant, with its runs.

    Attributes:
        name: Its name.
        kind: ``teacher``, ``scratch``, ``distilled`` or ``reference``.
        group: The table it belongs to.
        model: Method of a distilled row; model of the others.
        runs: The record of each seed that is done, by seed.
        seeds: Its seeds; those of the benchmark where empty.
        datasets: Data sets it is asked for; all where empty.
        pairs: Pairs it is asked for; all where empty.
        options: Options of its own.
    """

    name: str
    kind: str
    group: str = MAIN
    model: str = ""
    runs: Mapping[int, Record] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    datasets: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_student(self) -> bool:
        """Whether it competes: neither the teacher nor a plain model of its own size."""
        return self.kind in (SCRATCH_STUDENT, DISTILLED)

    def is_for(self, dataset: str, pair: str) -> bool:
        """Whether the file asks for it there."""
        return dataset in (self.datasets or (dataset,)) and pair in (self.pairs or (pair,))

    def values(self, metric: str) -> dict[int, float]:
        """A test metric by seed, of the runs that measured it."""
        results = {seed: run.test_result.get(metric) for seed, run in sorted(self.runs.items())}
        return {seed: float(value) for seed, value in results.items() if value is not None}

    @property
    def is_shared(self) -> bool:
        """Whether one training is behind several seeds, as of a teacher that all of them have."""
        folders = {run.folder for run in self.runs.values()}
        return len(self.runs) > 1 and len(folders) == 1 and None not in folders

    def summary(self, metric: str, seeds: Collection[int] | None = None) -> Summary:
        """Mean and spread of a test metric over its trainings.

        Args:
            metric: Name of the metric.
            seeds: The seeds that count; ``None``: all.
        """
        found = self.values(metric)
        values = [v for s, v in found.items() if seeds is None or s in seeds]
        return summarise(values[:1] if self.is_shared else values)


@dataclass(frozen=True)
class Block:
    """The rows of one data set and pair, in the order of the tables.

    Attributes:
        dataset: Name of the data set.
        pair: Name of the pair.
        rows: Its rows that have a run.
        missing: One line for each run that failed, was not made, or is left out.
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
        damaged: One line for each record, field or published number that cannot be used.
        notes: What the benchmark's file says of the runs, a line each.
        pair: The one pair it was read for, or ``None``.
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
    notes: tuple[str, ...] = ()
    pair: str | None = None

    def paper(self, block: Block, row: str) -> Mapping[str, float]:
        """The published metrics of a row; none where there are none."""
        found: Any = self.published
        for key in (block.dataset, block.pair, row):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}


def is_ranking(metric: str) -> bool:
    """Whether a metric is one of accuracy, of which larger is better.

    Args:
        metric: Its name, such as ``ndcg@10``.
    """
    return metric.partition("@")[0] in RANKING


def collect(folder: Path, metric: str | None = None, pair: str | None = None) -> Benchmark:
    """Read a benchmark's folder, finished or not.

    Args:
        folder: The folder.
        metric: The metric of tests and figures; by default the benchmark's own.
        pair: The one pair that is read; all by default.

    Raises:
        KDError: It is no benchmark's folder, its file is damaged, there is no such pair, or no run
            measured the metric.
    """
    if not (folder / SPEC_FILE).is_file():
        raise KDError(f"report: found no {SPEC_FILE} in {folder}; allowed is a benchmark's folder")
    spec = read_yaml(folder / SPEC_FILE)
    found, damaged = read_records(folder, pair)
    if pair is not None:
        whole, spec = spec, _of_pair(spec, pair)
        if not (found or spec["pairs"]):
            known = dict.fromkeys(name for _, name in _places(whole, read_records(folder)[0]))
            raise KDError(f"--pair={pair}: found no such pair; allowed are {', '.join(known)}")
    seeds = _seeds(spec) or tuple(sorted({one.record.seed for one in found}))
    rows = _rows(spec)
    places = _places(spec, found)
    trainings = {str(k): str(v) for k, v in _mapping(spec, "trainings").items()}
    blocks = [
        _block(place, rows, found, seeds, asked, trainings) for place, asked in places.items()
    ]
    published, wrong = _published(_mapping(spec, "published"))
    return Benchmark(
        folder=folder,
        name=str(spec.get("name") or folder.name) + (f": {pair}" if pair else ""),
        command=str(spec.get("command") or ""),
        protocol=str(spec.get("protocol") or ""),
        seeds=seeds,
        metric=_metric(folder, metric, spec, blocks),
        ours=None if spec.get("ours") is None else str(spec["ours"]),
        pairs=_mapping(spec, "pairs"),
        published=published,
        blocks=tuple(block for block in blocks if block.rows or block.missing),
        damaged=(*damaged, *wrong),
        pair=pair,
        notes=tuple(str(note) for note in _list(spec, "notes")),
    )


def _of_pair(spec: Mapping[str, Any], pair: str) -> dict[str, Any]:
    """A benchmark's file as if it were of one pair."""
    published = _mapping(spec, "published").items()
    return {
        **spec,
        "pairs": {k: v for k, v in _mapping(spec, "pairs").items() if str(k) == pair},
        "published": {
            dataset: {k: v for k, v in by_pair.items() if str(k) == pair}
            if isinstance(by_pair, Mapping)
            else by_pair
            for dataset, by_pair in published
        },
    }


def _list(spec: Mapping[str, Any], key: str, where: str = SPEC_FILE) -> list[Any]:
    value = spec.get(key) or []
    if not isinstance(value, list):
        raise KDError(f"{where}, {key}: found {value!r}; allowed is a list")
    return value


def _seeds(spec: Mapping[str, Any], where: str = SPEC_FILE) -> tuple[int, ...]:
    seeds = _list(spec, "seeds", where)
    for seed in seeds:
        if not is_whole(seed):
            raise KDError(f"{where}, seeds: found {seed!r}; allowed are whole numbers")
    return tuple(seeds)


def _mapping(spec: Mapping[str, Any], key: str, where: str = SPEC_FILE) -> Mapping[str, Any]:
    value = spec.get(key) or {}
    if not isinstance(value, Mapping):
        raise KDError(f"{where}, {key}: found {value!r}; allowed is a mapping")
    return value


def _rows(spec: Mapping[str, Any]) -> list[Row]:
    """The rows of the file; those of one name are one."""
    rows: dict[str, Row] = {}
    for entry in _list(spec, "rows"):
        if not isinstance(entry, Mapping) or entry.get("kind") not in KINDS or "name" not in entry:
            raise KDError(
                f"{SPEC_FILE}, rows: found {entry!r}; allowed are name, group, model and a kind "
                f"of {', '.join(KINDS)}"
            )
        name = str(entry["name"])
        where = f"{SPEC_FILE}, rows, {name}"
        rows[name] = Row(
            name,
            str(entry["kind"]),
            str(entry.get("group") or MAIN),
            str(entry.get("model") or ""),
            seeds=_seeds(entry, where),
            datasets=tuple(map(str, _list(entry, "datasets", where))),
            pairs=tuple(map(str, _list(entry, "pairs", where))),
            options=_mapping(entry, "options", where),
        )
    return list(rows.values())


def _places(spec: Mapping[str, Any], found: Iterable[Found]) -> dict[tuple[str, str], bool]:
    """Data sets and pairs, those of the file first, and whether the file names them."""
    asked = [(str(d), str(p)) for d in _list(spec, "datasets") for p in _mapping(spec, "pairs")]
    others = [(one.record.dataset, one.record.pair) for one in found]
    named = dict.fromkeys(asked, True)
    return named | {place: False for place in others if place not in named}


def _metric(
    folder: Path, asked: str | None, spec: Mapping[str, Any], blocks: Iterable[Block]
) -> str:
    """The metric of tests and figures: the one asked for, the file's, or that of the runs' choice.

    Raises:
        KDError: No run measured the metric that is asked for.
    """
    blocks = list(blocks)
    known = list(dict.fromkeys(name for block in blocks for name in block.metrics))
    said = asked or spec.get("metric")
    if said is None:
        runs = [run for block in blocks for row in block.rows for run in row.runs.values()]
        chosen = (name for run in runs if (name := _stopped_by(folder, run)) in known)
        return next(itertools.chain(chosen, filter(is_ranking, known), known), "")
    name = str(said).lower()
    if known and name not in known:
        where = "--metric=" if asked else f"{SPEC_FILE}, metric: "
        raise KDError(
            f"{where}{name}: found no run that measured it; allowed are {', '.join(known)}"
        )
    return name


def _stopped_by(folder: Path, run: Record) -> str:
    """The metric that a run's epoch was chosen by; empty where it is unknown."""
    said = run.options.get("valid_metric")
    if said is None and run.folder:
        try:
            said = read_yaml(folder / run.folder / "resolved.yaml").get("valid_metric")
        except KDError:
            return ""
    return str(said or "").lower()


def _published(said: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Published numbers by data set, pair, row and metric, and a line for what is none."""
    kept: dict[str, Any] = {}
    wrong: list[str] = []

    def walk(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, Mapping) and len(path) < 4:
            for key, inner in value.items():
                walk(inner, (*path, str(key)))
        elif len(path) == 4 and is_number(value):
            inside = kept
            for key in path[:3]:
                inside = inside.setdefault(key, {})
            inside[path[3].lower()] = float(value)
        elif value is not None and value != {}:
            where = f"{SPEC_FILE}, published: {', '.join(path)}"
            wrong.append(f"left out: {where}: found {value!r}; allowed is a number")

    walk(said, ())
    return kept, wrong


# -- the rows of a data set and pair -----------------------------------------------------------


def _block(
    place: tuple[str, str],
    rows: Sequence[Row],
    found: Iterable[Found],
    seeds: tuple[int, ...],
    asked: bool,
    trainings: Mapping[str, str],
) -> Block:
    """The rows of a data set and pair that have a run, and what is missing or odd there.

    Args:
        place: Data set and pair.
        rows: The rows of the file.
        found: All records.
        seeds: The seeds of the benchmark.
        asked: Whether the file names the data set and the pair.
        trainings: What each run of the file trains, by the run's name.
    """
    here, lines = _as_asked(
        [one for one in found if (one.record.dataset, one.record.pair) == place], trainings
    )
    there = [row for row in rows if row.is_for(*place)]
    split = _most(here, _split_of) if any(map(_split_of, here)) else ""
    filled: list[Row] = []
    for row in [*there, *_unnamed(rows, here)]:
        mine = [one for one in here if one.record.row == row.name]
        wanted = _wanted(row, there, seeds)
        kept, odd = _fitting(row, mine, wanted, split, told=bool(trainings))
        runs = {one.record.seed: one.record for one in kept}
        done = {seed: run for seed, run in sorted(runs.items()) if run.status == DONE}
        made = {one.record.seed for one in mine}
        absent = [s for s in wanted if s not in made] if asked and row in there else []
        lines += _gaps(row, absent, runs) + odd
        if done:
            filled.append(replace(row, runs=done))
    elsewhere = {r.name for r in rows} - {r.name for r in there}
    for name in dict.fromkeys(o.record.row for o in here if o.record.row in elsewhere):
        lines.append(f"{name}: left out, the file does not ask for it here")
    return Block(*place, tuple(filled), tuple(lines))


def _as_asked(
    found: Sequence[Found], trainings: Mapping[str, str]
) -> tuple[list[Found], list[str]]:
    """The records of what the file asks for now, and a line for each row that has others.

    Args:
        found: Records.
        trainings: What each run of the file trains, by the run's name; empty where it is unknown.
    """
    if not trainings:
        return list(found), []
    kept: list[Found] = []
    others: dict[str, list[Found]] = {}
    for one in found:
        asked = trainings.get(name_of(one.record)) == one.record.training
        (kept if asked else others.setdefault(one.record.row, [])).append(one)
    why = "made before the file, or the package's defaults, changed"
    return kept, [_left_out(row, odd, why) for row, odd in others.items()]


def _left_out(row: str, odd: Sequence[Found], why: str) -> str:
    seeds = ", ".join(str(seed) for seed in sorted(one.record.seed for one in odd))
    return f"{row}: left out seed{'s' * (len(odd) > 1)} {seeds}: {why}"


def _unnamed(rows: Sequence[Row], here: Iterable[Found]) -> list[Row]:
    """Rows of records that the file does not name (any more)."""
    names = {row.name for row in rows}
    found: dict[str, Row] = {}
    for record in (one.record for one in here if one.record.row not in names):
        found.setdefault(record.row, Row(record.row, record.kind, record.group, record.model))
    return list(found.values())


def _wanted(row: Row, rows: Iterable[Row], seeds: tuple[int, ...]) -> tuple[int, ...]:
    """The seeds a row is asked for; a teacher is trained for all that distil from it."""
    if row.seeds or row.kind != TEACHER:
        return row.seeds or seeds
    distilled = {s for one in rows if one.kind == DISTILLED for s in one.seeds or seeds}
    return tuple(sorted(distilled)) or seeds


def _gaps(row: Row, absent: Sequence[int], runs: Mapping[int, Record]) -> list[str]:
    lines = []
    if absent:
        plural = "s" if len(absent) > 1 else ""
        lines.append(f"{row.name}: not run yet with seed{plural} {', '.join(map(str, absent))}")
    for seed, run in sorted(runs.items()):
        if run.status != DONE:
            lines.append(f"{row.name}: failed with seed {seed}: {run.error or 'no reason'}")
    return lines


def _fitting(
    row: Row,
    mine: Sequence[Found],
    wanted: Sequence[int],
    split: str,
    told: bool,
) -> tuple[list[Found], list[str]]:
    """The records of a row that can be averaged, and a line for those that cannot.

    Args:
        row: The row.
        mine: Its records.
        wanted: The seeds it is asked for.
        split: The split of the data set and pair; empty where it is unknown.
        told: Whether the file has told which records are as it asks; else options have to be equal.
    """
    lines: list[str] = []

    def without(found: Sequence[Found], odd: Sequence[Found], why: str) -> list[Found]:
        if odd:
            lines.append(_left_out(row.name, odd, why))
        return [one for one in found if one not in odd]

    why = "the file does not ask for it"
    kept = without(mine, [one for one in mine if one.record.seed not in wanted], why)
    done = [one for one in kept if one.record.status == DONE]
    odd = [one for one in done if _split_of(one) not in ("", split)]
    why = "another split of the data than the other rows"
    done, kept = without(done, odd, why), [one for one in kept if one not in odd]
    if told:
        return kept, lines
    options = _most(done, _options_of, lambda one: _holds(one.record.options, row.options))
    for odd_options in dict.fromkeys(o for o in map(_options_of, done) if o != options):
        odd = [one for one in done if _options_of(one) == odd_options]
        others = next(one for one in done if _options_of(one) == options)
        differing = _differing(odd[0].record.options, others.record.options)
        why = f"made with other options than seed {others.record.seed} ({differing})"
        kept = without(kept, odd, why)
    return kept, lines


def _most(
    found: Sequence[Found],
    key: Callable[[Found], str],
    first: Callable[[Found], bool] = lambda _: True,
) -> str:
    """What most records have in common; of as many, those of which one is the newest.

    Args:
        found: The records.
        key: What they are told apart by; empty where it is unknown.
        first: Of what group's records one that holds for comes before all others.
    """
    groups: dict[str, list[Found]] = {}
    for one in found:
        groups.setdefault(key(one), []).append(one)
    known = {name: ones for name, ones in groups.items() if name} or groups

    def rank(name: str) -> tuple[bool, int, float]:
        ones = known[name]
        return any(map(first, ones)), len(ones), max(one.written for one in ones)

    return max(known, key=rank, default="")


def _plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in INCIDENTAL}


def _options_of(one: Found) -> str:
    return json.dumps(_plain_options(one.record.options), sort_keys=True, default=str)


def _split_of(one: Found) -> str:
    split = one.record.provenance.get("split")
    return json.dumps(split, sort_keys=True, default=str) if split else ""


def _holds(options: Any, asked: Any) -> bool:
    """Whether options are as a row of the file asks for them, sections nested."""
    if not isinstance(asked, Mapping):
        return bool(options == asked)
    return isinstance(options, Mapping) and all(
        key in options and _holds(options[key], value) for key, value in asked.items()
    )


def _differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    """Names of the options that differ, at most three."""
    first, second = _plain_options(one), _plain_options(two)
    names = [k for k in dict.fromkeys([*first, *second]) if first.get(k) != second.get(k)]
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
