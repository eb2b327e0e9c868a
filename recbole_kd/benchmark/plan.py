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

from recbole_kd import checkpoint, training
from recbole_kd.benchmark import records
from recbole_kd.benchmark.records import DISTILLED, REFERENCE, SCRATCH_STUDENT, TEACHER
from recbole_kd.benchmark.spec import TEACHER_ROW, Pair, Row, Spec
from recbole_kd.config import KDConfig, plain
from recbole_kd.errors import KDError
from recbole_kd.keys import known_keys
from recbole_kd.options import SECTIONS, Sources, merge, nest
from recbole_kd.registry import SCRATCH, backbone_class
from recbole_kd.teachers import asked_temperature

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
        return records.name_of(self)

    def file(self, out: Path) -> Path:
        """Its record in a benchmark's folder."""
        return records.file_of(out, self.dataset, self.pair, self.row, self.seed)

    def plain(self) -> dict[str, Any]:
        """The job as plain data, for its process."""
        return asdict(self)

    def command(self) -> str:
        """A command that makes this run alone; of a part, the run it is part of.

        Empty for a reference row, which RecBole's trainer trains.
        """
        if self.kind == REFERENCE:
            return ""
        words = [f"--{key}={_text(value)}" for key, value in _flat(self.options)]
        return "recbole-kd train " + shlex.join(words)


def jobs_of(spec: Spec, out: Path) -> list[Job]:
    """All jobs of a benchmark, seed by seed, those that others wait for first.

    So a benchmark that is stopped early has fewer seeds, and not fewer rows. What the options ask
    of the data is checked by :func:`recbole_kd.benchmark.check.check_jobs`.

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


def select(
    jobs: Sequence[Job],
    pairs: Sequence[str] = (),
    rows: Sequence[str] = (),
    seeds: Sequence[str] = (),
) -> list[Job]:
    """The jobs of some pairs, rows and seeds, and the teachers these wait for.

    Args:
        jobs: All jobs of a benchmark.
        pairs: Names of pairs; all where empty.
        rows: Names of rows; all where empty.
        seeds: Seeds, as text; all where empty.

    Raises:
        KDError: There is none of a name, or no job is all that was asked for.
    """
    chosen = list(jobs)
    asked = {"pairs": (pairs, "pair"), "methods": (rows, "row"), "seeds": (seeds, "seed")}
    for option, (names, attribute) in asked.items():
        named = {job: str(getattr(job, attribute)) for job in jobs}
        known = list(dict.fromkeys(named.values()))
        if unknown := [name for name in names if name not in known]:
            raise KDError(
                f"--{option}: found {', '.join(map(repr, unknown))}; allowed are "
                f"{', '.join(map(repr, known))}"
            )
        chosen = [job for job in chosen if not names or named[job] in names]
    if not chosen:
        raise KDError("--pairs, --methods, --seeds: found no run that is all of these")
    needed = {(job.dataset, job.pair, job.seed, before) for job in chosen for before in job.after}
    kept = set(chosen)
    return [
        job
        for job in jobs
        if job in kept or (job.dataset, job.pair, job.seed, job.training) in needed
    ]


def metric_of(job: Job) -> str:
    """The metric by which a job's epochs are chosen.

    Args:
        job: The job.
    """
    return str(_config(job, "student")["valid_metric"]).lower()


def _jobs_of_pair(spec: Spec, dataset: str, pair: Pair, out: Path) -> list[Job]:
    rows = [
        row
        for row in spec.rows
        if dataset in (row.datasets or (dataset,)) and pair.name in (row.pairs or (pair.name,))
    ]
    carrier = _carrier(spec, rows)
    wanted = {s for row in rows if row.kind == DISTILLED for s in row.seeds or spec.seeds}
    if wanted and not any(row.kind == TEACHER for row in rows):
        rows.insert(0, Row(TEACHER_ROW, TEACHER))  # distilled rows need it
    jobs = []
    for row in rows:
        needed = sorted(wanted) if row.kind == TEACHER else ()
        for seed in dict.fromkeys([*(row.seeds or spec.seeds), *needed]):
            options = _options(spec, dataset, pair, row, carrier, seed, out)
            named = (dataset, pair.name, row.name, seed, row.kind, row.group, row.model)
            jobs.append(Job(*named, options, threads=spec.threads))
    if section := _of_teacher(spec, jobs):
        jobs = [
            replace(job, options=merge({"teacher": section}, job.options))
            if job.kind in (TEACHER, DISTILLED)
            else job
            for job in jobs
        ]
    like = next((job for job in jobs if job.kind != REFERENCE), None)
    if like is not None:
        jobs = [_on_the_split_of(like, job) if job.kind == REFERENCE else job for job in jobs]
    jobs = [_resolved(job) for job in jobs]
    _check_teachers(jobs, [row.name for row in rows if "teacher" in nest(row.options)])
    return jobs


def _check_teachers(jobs: Sequence[Job], own: Sequence[str]) -> None:
    """Refuse a row that would train a teacher of its own unasked: rows are compared with one.

    Args:
        jobs: The jobs of a pair.
        own: Names of the rows that say something of their teacher.
    """
    teachers = {job.seed: job for job in jobs if job.kind == TEACHER}
    for job in jobs:
        if job.kind != DISTILLED or job.row in own:
            continue
        table = teachers[job.seed]
        if job.after != (table.training,):
            raise KDError(
                f"row {job.row}: found another teacher than that of the table "
                f"({_of_teachers(job, table)}); allowed is one for all rows: what a row or its "
                "method's recipe says of the student alone stands under student. "
                "(student.learning_rate), what holds for the teacher under teacher. in the pair's "
                "options, or in the row's own if it is to be compared with another"
            )


def _of_teachers(job: Job, table: Job) -> str:
    """In what the teacher of a job is another than the table's, three options at most."""
    first, second = (
        {key: value for part in _trained(_config(one, "teacher")) for key, value in part.items()}
        for one in (job, table)
    )
    differing = [key for key in sorted({*first, *second}) if first.get(key) != second.get(key)]
    said = [f"{key}={first.get(key)}, not {second.get(key)}" for key in differing[:3]]
    return "; ".join(said) + ("; ..." if len(differing) > 3 else "")


def _on_the_split_of(like: Job, job: Job) -> Job:
    """A reference job with the split of the pair, where families would have different ones."""
    config = _config(like, "student")
    sequential = backbone_class(job.model).type.name == "SEQUENTIAL"
    if not (config.sequences or sequential):
        return job
    split = {"eval_args": plain(config["eval_args"])}
    if sequential:
        split["eval_targets"] = config.eval_targets or "all"
    return replace(job, options=merge(split, job.options))


def _carrier(spec: Spec, rows: Sequence[Row]) -> Row:
    """The row whose runs the teacher and the scratch student are parts of."""
    distilled = {row.name: row for row in rows if row.kind == DISTILLED}
    first = next(iter(distilled.values()), Row(CARRIER, DISTILLED, CARRIER))
    return distilled.get(spec.ours or "", first)


def _of_teacher(spec: Spec, jobs: Sequence[Job]) -> dict[str, int]:
    """Options of a teacher that is trained, so that one does for all rows, or for all seeds."""
    needing = {job.row: job for job in jobs if job.kind in (TEACHER, DISTILLED)}
    trained = [j for j in needing.values() if not Sources.collect(options=j.options).teacher_files]
    kept = [_config(job, "teacher")["save_every"] for job in trained if job.kind == DISTILLED]
    options = {"save_every": max(kept)} if any(kept) else {}
    if trained and spec.teacher_seed is not None:
        options["seed"] = spec.teacher_seed
    return options


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
        said = _of_reference(row, merge(said, pair.options), said)
        names |= {"model": SCRATCH, "student": {"model": row.model}}
    else:
        said = merge(merge(said, pair.options), method.options)
        said = merge(said, row.options)
        names |= nest({"student": pair.student, "teacher": pair.teacher})
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


def _of_reference(
    row: Row, of_pair: Mapping[str, Any], of_all: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of a reference row: the pair's, but for those of its method and its models.

    Args:
        row: The row.
        of_pair: What all runs of the pair are given.
        of_all: What all runs are given, which is never left out: an option no run reads is refused.
    """
    sources = Sources.collect(SCRATCH, "none", row.model)
    read = known_keys(sources)[None]
    said = {
        key: value
        for key, value in of_pair.items()
        if key not in SECTIONS and (key in read or key in of_all)
    }
    return merge(said, row.options)


def _config(job: Job, role: str) -> KDConfig:
    try:
        return KDConfig(Sources.collect(options=job.options), role)
    except KDError as error:
        raise KDError(f"row {job.row}: {error}") from error


def _resolved(job: Job) -> Job:
    """The job with what it trains and what must be there before.

    Args:
        job: The job.

    Raises:
        KDError: Its run would be refused.
    """
    sources = Sources.collect(options=job.options)
    if job.kind == REFERENCE:
        return replace(job, training=f"reference {_key(_config(job, 'student'))}")
    teacher = _teacher_key(job, sources)
    if job.kind == TEACHER:
        return replace(job, training=teacher)
    if job.kind == SCRATCH_STUDENT:
        return replace(job, training=_key(_config(job, "scratch")))
    trained = f"{_key(_config(job, 'student'))} by {teacher}"
    temperature = asked_temperature(_config(job, "student"))
    if temperature is not None:
        trained += f" over {float(temperature)}"
    return replace(job, training=trained, after=(teacher,))


def _teacher_key(job: Job, sources: Sources) -> str:
    """What tells a teacher from others: how it is trained, or what is in its files."""
    if not sources.teacher_files:
        return _key(_config(job, "teacher"))
    files = [checkpoint.file_in(file) for file in sources.teacher_files]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise KDError(f"pair {job.pair}: the teacher {missing[0]} is missing")
    return "files " + " ".join(checkpoint.digest(file) for file in files)


def _key(config: KDConfig) -> str:
    """What a configuration trains: equal for trainings that would come out equal."""
    names, options, data = _trained(config)
    content = json.dumps([list(names.values()), options, data], sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def _trained(config: KDConfig) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """All that decides how a training comes out and what it keeps: names, options and data."""
    names = {
        "dataset": config["dataset"],
        "model": config.import_path,
        "method": config.method,
        "save_every": config["save_every"],
    }
    data = {key: config[key] for key in ("data_path", "benchmark_filename", "split_seed")}
    return names, training.outcome_options(config), data


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
