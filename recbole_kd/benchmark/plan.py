"""From the file of a benchmark to its jobs: what is run, with which options, and after what."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from recbole_kd import training
from recbole_kd.benchmark import records
from recbole_kd.benchmark.records import DISTILLED, REFERENCE, SCRATCH_STUDENT, TEACHER
from recbole_kd.benchmark.spec import TEACHER_ROW, Pair, Row, Spec
from recbole_kd.config import KDConfig
from recbole_kd.errors import KDError
from recbole_kd.keys import check_keys
from recbole_kd.options import SECTIONS, Sources, merge
from recbole_kd.registry import SCRATCH

CARRIER = "RCEKD"
"""Method whose run a teacher and a scratch student are parts of, where no row distils."""


@dataclass(frozen=True)
class Job:
    """One run of the table.

    Attributes:
        dataset: Name of the data set.
        pair: Name of the pair.
        row: Name of the row.
        seed: Its seed.
        kind: Kind of the row.
        group: Group of the row.
        model: Method of a distilled row, model of a reference row, else empty.
        options: Everything the run is given, sections nested. Teachers and scratch students are
            parts of a distillation run, whose options these are.
        training: What it trains; jobs that train the same are not run at the same time.
        after: What must have been trained before.
        threads: Threads of its process.
    """

    dataset: str
    pair: str
    row: str
    seed: int
    kind: str
    group: str
    model: str
    options: dict[str, Any] = field(hash=False)
    training: str = ""
    after: tuple[str, ...] = ()
    threads: int = 1

    @property
    def name(self) -> str:
        """How the job is called in messages."""
        return f"{self.dataset}, {self.pair}, {self.row}, seed {self.seed}"

    def file(self, out: Path) -> Path:
        """Its record in a benchmark's folder."""
        return records.file_of(out, self.dataset, self.pair, self.row, self.seed)

    def plain(self) -> dict[str, Any]:
        """The job as plain data, for its process."""
        return asdict(self)

    def command(self) -> str:
        """A command that makes this run alone; of a part, the run it is part of."""
        words = [f"--{key}={_text(value)}" for key, value in _flat(self.options)]
        return "recbole-kd train " + shlex.join(words)


def jobs_of(spec: Spec, out: Path) -> list[Job]:
    """All jobs of a benchmark, seed by seed, those that others wait for first.

    So a benchmark that is stopped early has fewer seeds, and not fewer rows.

    Args:
        spec: The benchmark.
        out: Its folder.

    Raises:
        KDError: Some run would be refused; the message names its row.
    """
    jobs: list[Job] = []
    for dataset in spec.datasets:
        for pair in spec.pairs:
            jobs += _jobs_of_pair(spec, dataset, pair, out)
    order = {TEACHER: 0, SCRATCH_STUDENT: 1, DISTILLED: 2, REFERENCE: 3}
    seeds = list(dict.fromkeys([*spec.seeds, *(job.seed for job in jobs)]))
    # Stable: else as in the file.
    return sorted(jobs, key=lambda job: (seeds.index(job.seed), order[job.kind]))


def _jobs_of_pair(spec: Spec, dataset: str, pair: Pair, out: Path) -> Iterator[Job]:
    rows = [
        row
        for row in spec.rows
        if dataset in (row.datasets or (dataset,)) and pair.name in (row.pairs or (pair.name,))
    ]
    carrier = _carrier(spec, rows)
    if not any(row.kind == TEACHER for row in rows):
        # Distilled rows need it; which seeds, they say.
        rows = [Row(TEACHER_ROW, TEACHER), *rows] if _distils(rows) else rows
    kept = _save_every(spec, dataset, pair, rows)
    wanted = {s for row in rows if row.kind == DISTILLED for s in row.seeds or spec.seeds}
    for row in rows:
        # A part of another row's run is checked with that row, if it says nothing of its own.
        checked = row.kind in (TEACHER, SCRATCH_STUDENT) and _distils(rows) and not row.options
        for seed in row.seeds or (
            sorted(wanted or spec.seeds) if row.kind == TEACHER else spec.seeds
        ):
            options = _options(spec, dataset, pair, row, carrier, seed, out)
            if kept and row.kind in (TEACHER, DISTILLED):
                options = merge({"teacher": {"save_every": kept}}, options)
            job = Job(
                *(dataset, pair.name, row.name, seed, row.kind, row.group, row.model, options),
                threads=spec.threads,
            )
            yield _resolved(job, check=not checked)
            checked = True


def _distils(rows: Sequence[Row]) -> bool:
    return any(row.kind == DISTILLED for row in rows)


def _carrier(spec: Spec, rows: Sequence[Row]) -> Row:
    """The row whose runs the teacher and the scratch student are parts of."""
    distilled = {row.name: row for row in rows if row.kind == DISTILLED}
    first = next(iter(distilled.values()), Row(CARRIER, DISTILLED, CARRIER))
    return distilled.get(spec.ours or "", first)


def _save_every(spec: Spec, dataset: str, pair: Pair, rows: Sequence[Row]) -> int:
    """How often the teacher must be kept on its way, so that one teacher does for all rows."""
    asked = [0]
    if (
        isinstance(pair.teacher, str)
        and not Sources.collect(
            CARRIER, dataset, student=pair.student, teacher=pair.teacher
        ).teacher_files
    ):
        for row in rows:
            if row.kind == DISTILLED:
                options = _options(spec, dataset, pair, row, row, 0, Path())
                asked.append(_config(options, "teacher", row.name)["save_every"] or 0)
    return max(asked)


def _options(
    spec: Spec, dataset: str, pair: Pair, row: Row, carrier: Row, seed: int, out: Path
) -> dict[str, Any]:
    """What a run is given: overrides, then the data set's, the pair's and the row's options.

    A teacher and a scratch student are those of another row, and get its options before their own.
    """
    said = merge(spec.overrides, spec.datasets[dataset])
    method = row if row.kind == DISTILLED else carrier
    names: dict[str, Any] = {"model": method.model, "dataset": dataset}
    if row.kind == REFERENCE:
        said = merge(_alone(said), row.options)
        names |= {"model": SCRATCH, "student": {"model": row.model}}
    else:
        said = merge(merge(said, pair.options), method.options)
        said = merge(said, row.options)
        key = "checkpoint" if isinstance(pair.teacher, list) else "model"
        section = "checkpoint" if _is_file(pair.teacher) else key
        names |= {"student": {"model": pair.student}, "teacher": {section: pair.teacher}}
    fixed = {
        "seed": seed,
        "checkpoint_dir": str(out / records.RUNS),
        "per_user": True,
        "resume": "auto",
        "show_progress": False,
    }
    if spec.protocol is not None:
        fixed["protocol"] = spec.protocol
    if row.kind == DISTILLED:
        fixed["scratch"] = False
    if row.kind == REFERENCE:
        del fixed["resume"]
    return merge(merge(names, said), fixed)


def _is_file(teacher: str | list[str]) -> bool:
    nested = Sources.collect(CARRIER, "none", student="none", teacher=teacher)
    return bool(nested.teacher_files)


def _alone(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those of a pair's models."""
    return {key: value for key, value in options.items() if key not in SECTIONS}


def _config(options: Mapping[str, Any], role: str, row: str) -> KDConfig:
    try:
        return KDConfig(Sources.collect(options=options), role)
    except KDError as error:
        raise KDError(f"row {row}: {error}") from error


def _resolved(job: Job, check: bool) -> Job:
    """The job with what it trains and what must be there before.

    Args:
        job: The job.
        check: Whether its keys are checked, which is done once a row.

    Raises:
        KDError: Its run would be refused.
    """
    sources = Sources.collect(options=job.options)
    if check:
        try:
            check_keys(sources)
        except KDError as error:
            raise KDError(f"row {job.row}: {error}") from error
    trained = not sources.teacher_files and job.kind != REFERENCE
    teacher = _config(job.options, "teacher", job.row) if trained else None
    if job.kind == TEACHER:
        named = _key(teacher) if teacher else f"files {sources.teacher_files}"
        return replace(job, training=named)
    if job.kind == SCRATCH_STUDENT:
        return replace(job, training=_key(_config(job.options, "scratch", job.row)))
    config = _config(job.options, "student", job.row)
    if job.kind == REFERENCE:
        return replace(job, training="reference " + _key(config))
    after = (_key(teacher),) if teacher else ()
    return replace(job, training=f"{_key(config)} by {job.pair} {after}", after=after)


def _key(config: KDConfig) -> str:
    """What a configuration trains: equal for trainings that would come out equal."""
    options = training.outcome_options(config)
    names = [config["dataset"], config.import_path, config.method, config["save_every"]]
    data = {key: config[key] for key in ("data_path", "benchmark_filename", "split_seed")}
    content = json.dumps([names, options, data], sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def _flat(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if key not in SECTIONS:
            yield key, value
            continue
        for inner, one in value.items():
            named = inner == "model" or (key == "teacher" and inner == "checkpoint")
            yield (key if named else f"{key}.{inner}"), one


def _text(value: Any) -> str:
    """A value as the command line reads it."""
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()
