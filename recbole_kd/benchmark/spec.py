"""The file of a benchmark: which data sets, pairs, rows and seeds, and how they are run.

.. code-block:: yaml

    name: CiteULike, MF to MF
    datasets: [citeulike]
    pairs:
      MF-MF: {teacher: BPR, student: BPR}
    methods:
      - Teacher
      - Scratch
      - RCEKD
      - {name: w/o sep, method: CE, group: ablation, options: {ce_guide: union}}
      - {name: "BPR, d = 400", recbole: BPR, options: {embedding_size: 400}}
    seeds: [0, 1, 2]
    protocol: rcekd

A row is a method's name, ``Scratch``, ``Teacher``, or the name of a RecBole model, which RecBole
itself trains; as a mapping it has a name, options and restrictions of its own. docs/benchmark.md
tells every key.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recbole_kd.benchmark.records import (
    DISTILLED,
    REFERENCE,
    SCRATCH_STUDENT,
    TEACHER,
)
from recbole_kd.defaults import shipped
from recbole_kd.errors import KDError, did_you_mean
from recbole_kd.options import SECTIONS, nest, parse_option, read_yaml
from recbole_kd.registry import SCRATCH, backbone_names, method_names, recbole_class
from recbole_kd.resources import properties_dir

TEACHER_ROW = "Teacher"
"""The row that is the teacher itself."""

KEYS = (
    *("name", "datasets", "pairs", "methods", "seeds", "teacher_seed", "protocol", "overrides"),
    *("ours", "metric", "published", "notes", "jobs", "threads"),
)
PAIR_KEYS = ("teacher", "student", "options", "notes")
ROW_KEYS = ("name", "method", "recbole", "group", "options", "datasets", "pairs", "seeds")

RESERVED = ("model", "dataset", "seed", "protocol", "checkpoint_dir", "resume", "per_user")
"""Options that the benchmark itself sets for each run."""


@dataclass(frozen=True)
class Pair:
    """A teacher and a student.

    Attributes:
        name: Its name in tables.
        teacher: What ``--teacher`` takes: a model, a file, or several files.
        student: Model of the student.
        options: Options of its runs, sections nested.
        notes: What the report says of its runs, a line each.
    """

    name: str
    teacher: str | list[str]
    student: str
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: Its name.
        kind: ``teacher``, ``scratch``, ``distilled`` or ``reference``.
        model: Method of a distilled row, RecBole model of a reference row, else empty.
        group: Which table it belongs to.
        options: Options of its runs, sections nested.
        datasets: Data sets it is run on; all where empty.
        pairs: Pairs it is run for; all where empty.
        seeds: Its seeds; the benchmark's where empty.
    """

    name: str
    kind: str
    model: str = ""
    group: str = "main"
    options: dict[str, Any] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A benchmark, as its file says it.

    Attributes:
        name: Title.
        datasets: Options by data set, sections nested.
        pairs: Pairs.
        rows: Rows, in the order of the table.
        seeds: Seeds.
        teacher_seed: Seed of the teachers of all seeds; ``None`` where each has one of its own.
        protocol: Name of the protocol, or ``None``.
        overrides: Options of every run, sections nested.
        ours: Row whose improvement is reported, or ``None``.
        metric: Metric of tests and figures; ``None`` for the one of early stopping.
        published: Published numbers: data set -> pair -> row -> metric -> value.
        notes: What the report says of the runs, a line each.
        jobs: Processes at a time.
        threads: Threads of each.
    """

    name: str
    datasets: dict[str, dict[str, Any]]
    pairs: tuple[Pair, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    teacher_seed: int | None = None
    protocol: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    ours: str | None = None
    metric: str | None = None
    published: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    jobs: int = 1
    threads: int = 1

    def plain(self) -> dict[str, Any]:
        """What the report reads, as plain data."""
        values = asdict(self)
        pairs = {
            pair.pop("name"): {**pair, "notes": list(pair["notes"])} for pair in values.pop("pairs")
        }
        rows = [
            {key: list(value) if isinstance(value, tuple) else value for key, value in row.items()}
            for row in values.pop("rows")
        ]
        return {
            **values,
            "datasets": list(self.datasets),
            "pairs": pairs,
            "rows": rows,
            "seeds": list(self.seeds),
            "notes": list(self.notes),
        }


def read(path: str | Path, **changes: Any) -> Spec:
    """Read the file of a benchmark.

    Args:
        path: A YAML file.
        **changes: Keys that win over the file's, such as ``jobs``.

    Raises:
        KDError: It is missing, or says something that is not allowed; one line.
    """
    said = {**read_yaml(path), **{k: v for k, v in changes.items() if v is not None}}
    where = str(path)
    _known(said, KEYS, where)
    for key in ("datasets", "pairs", "methods"):
        if not said.get(key):
            raise KDError(f"{where}: {key} is missing; needed is at least one")
    datasets = _datasets(said["datasets"], where)
    pairs = tuple(
        _pair(name, said["pairs"][name], where) for name in _mapping(said, "pairs", where)
    )
    if not isinstance(said["methods"], list):
        raise KDError(f"{where}: methods: found {said['methods']!r}; allowed is a list")
    rows = tuple(_row(entry, where, datasets, [p.name for p in pairs]) for entry in said["methods"])
    _check_names(rows, where)
    jobs = _whole(said.get("jobs", 1), "jobs", where, 1)
    of_teachers = said.get("teacher_seed")
    cores = os.cpu_count() or 1
    return Spec(
        name=str(said.get("name", Path(path).stem)),
        datasets=datasets,
        pairs=pairs,
        rows=rows,
        seeds=_seeds(said.get("seeds", [0]), f"{where}: seeds"),
        teacher_seed=None if of_teachers is None else _whole(of_teachers, "teacher_seed", where, 0),
        protocol=None if said.get("protocol") is None else str(said["protocol"]),
        overrides=_options(said.get("overrides"), f"{where}: overrides"),
        ours=_ours(said.get("ours"), rows, where),
        metric=None if said.get("metric") is None else str(said["metric"]).lower(),
        published=_published(said.get("published"), where),
        notes=_notes(said.get("notes"), where),
        jobs=jobs,
        threads=_whole(said.get("threads", max(1, cores // jobs)), "threads", where, 1),
    )


def _check_names(rows: Sequence[Row], where: str) -> None:
    names = [row.name for row in rows]
    for row in rows:
        if names.count(row.name) > 1:
            raise KDError(
                f"{where}: methods: found {row.name} twice; give one of them a name of its own"
            )
        if row.name == TEACHER_ROW and row.kind != TEACHER:
            raise KDError(
                f"{where}: methods: the name {TEACHER_ROW} is the teacher's; found {row.model}"
            )


def _datasets(said: Any, where: str) -> dict[str, dict[str, Any]]:
    """Options by data set, from a list of names or a mapping."""
    if isinstance(said, list):
        names = [str(name) for name in said]
        if twice := [name for n, name in enumerate(names) if name in names[:n]]:
            raise KDError(f"{where}: datasets: found {twice[0]} twice; allowed is each once")
        return {name: {} for name in names}
    if isinstance(said, Mapping):
        return {str(k): _options(v, f"{where}: datasets.{k}") for k, v in said.items()}
    return {str(said): {}}


def _pair(name: Any, said: Any, where: str) -> Pair:
    place = f"{where}: pairs.{name}"
    if not isinstance(said, Mapping):
        raise KDError(f"{place}: found {said!r}; allowed is {{teacher: MODEL, student: MODEL}}")
    _known(said, PAIR_KEYS, place)
    for key in ("teacher", "student"):
        if not said.get(key):
            raise KDError(f"{place}: {key} is missing")
    teacher = said["teacher"]
    files = [str(one) for one in teacher] if isinstance(teacher, list) else str(teacher)
    options = _options(said.get("options"), f"{place}.options")
    return Pair(str(name), files, str(said["student"]), options, _notes(said.get("notes"), place))


def _row(entry: Any, where: str, datasets: Iterable[str], pairs: Sequence[str]) -> Row:
    """A row of the table from its name, or from a mapping."""
    if not isinstance(entry, Mapping):
        return Row(str(entry), *_kind(str(entry), f"{where}: methods"))
    place = f"{where}: methods: {entry.get('name') or entry.get('method') or entry.get('recbole')}"
    _known(entry, ROW_KEYS, place)
    if ("method" in entry) == ("recbole" in entry):
        raise KDError(f"{place}: found both or neither of method and recbole; needed is one")
    if "recbole" in entry:
        kind, model = REFERENCE, str(entry["recbole"])
        recbole_class(model, place)
    else:
        kind, model = _kind(str(entry["method"]), place)
    seeds = entry.get("seeds")
    return Row(
        name=str(entry.get("name") or entry.get("method") or entry["recbole"]),
        kind=kind,
        model=model,
        group=str(entry.get("group", "main")),
        options=_options(entry.get("options"), f"{place}: options"),
        datasets=_subset(entry.get("datasets"), list(datasets), f"{place}: datasets"),
        pairs=_subset(entry.get("pairs"), pairs, f"{place}: pairs"),
        seeds=() if seeds is None else _seeds(seeds, f"{place}: seeds"),
    )


def _kind(name: str, place: str) -> tuple[str, str]:
    """Kind and model of a row that is a single word."""
    if name == TEACHER_ROW:
        return TEACHER, ""
    if name == SCRATCH:
        return SCRATCH_STUDENT, ""
    if name in method_names() or ":" in name:
        return DISTILLED, name
    if name in backbone_names():
        recbole_class(name, place)
        return REFERENCE, name
    known = [TEACHER_ROW, *method_names(), *backbone_names()]
    raise KDError(
        f"{place}: there is no method or model {name}.{did_you_mean(name, known)} Allowed are "
        f"{TEACHER_ROW}, {', '.join(method_names())} and RecBole's models"
    )


def _ours(said: Any, rows: Sequence[Row], where: str) -> str | None:
    names = [row.name for row in rows if row.kind == DISTILLED]
    if said is None:
        return "RCEKD" if "RCEKD" in names else None
    if str(said) not in names:
        raise KDError(f"{where}: ours: found {said}; allowed are {', '.join(names)}")
    return str(said)


def _published(said: Any, where: str) -> dict[str, Any]:
    """Published numbers: those shipped under a name, or the file's own."""
    if said is None or isinstance(said, Mapping):
        return dict(said or {})
    values = shipped("published", f"{said}.yaml")
    if values is None:
        known = sorted(p.stem for p in (properties_dir() / "published").glob("*.yaml"))
        raise KDError(f"{where}: published: found {said}; allowed are {', '.join(known)}")
    return values


def _notes(said: Any, where: str) -> tuple[str, ...]:
    if not all(isinstance(line, str) for line in said or ()) or isinstance(said, str):
        raise KDError(f"{where}: notes: found {said!r}; allowed is a list of texts")
    return tuple(said or ())


def _options(said: Any, place: str) -> dict[str, Any]:
    """Options as a run takes them, sections nested."""
    if said is None:
        return {}
    if not isinstance(said, Mapping):
        raise KDError(f"{place}: found {said!r}; allowed are 'key: value' lines")
    for key in said:
        if key in RESERVED:
            raise KDError(f"{place}: found {key}, which the benchmark sets for each run")
    nested = nest({str(key): parse_option(str(key), value) for key, value in said.items()})
    for section in SECTIONS:
        if {"model", "checkpoint"} & set(nested.get(section, {})):
            raise KDError(f"{place}: found a model for {section}; models are named under pairs")
        if "seed" in nested.get(section, {}):
            hint = "; allowed is teacher_seed beside seeds" if section == "teacher" else ""
            raise KDError(
                f"{place}: found {section}.seed, which the benchmark sets for each run{hint}"
            )
    return nested


def _mapping(said: Mapping[str, Any], key: str, where: str) -> Mapping[Any, Any]:
    if not isinstance(said[key], Mapping):
        raise KDError(f"{where}: {key}: found {said[key]!r}; allowed are 'name: ...' lines")
    return said[key]


def _known(said: Mapping[Any, Any], known: Sequence[str], place: str) -> None:
    for key in said:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise KDError(f"{place}: there is no key {key}.{hint} Allowed are {', '.join(known)}")


def _seeds(said: Any, place: str) -> tuple[int, ...]:
    listed = said if isinstance(said, list) else [said]
    seeds = tuple(_whole(seed, "", place, 0) for seed in listed)
    if not seeds or len(set(seeds)) < len(seeds):
        raise KDError(f"{place}: found {said}; allowed is a list of different whole numbers")
    return seeds


def _subset(said: Any, known: Sequence[str], place: str) -> tuple[str, ...]:
    listed = [] if said is None else said if isinstance(said, list) else [said]
    for name in map(str, listed):
        if name not in known:
            raise KDError(f"{place}: found {name}; allowed are {', '.join(known)}")
    return tuple(map(str, listed))


def _whole(value: Any, key: str, where: str, low: int) -> int:
    place = f"{where}: {key}" if key else where
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise KDError(f"{place}: found {value!r}; allowed are whole numbers from {low}")
    return value
