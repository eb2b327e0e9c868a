"""What a benchmark will run and how long it may take, before it is run."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from recbole_kd.benchmark import records
from recbole_kd.benchmark.check import check_jobs
from recbole_kd.benchmark.plan import Job
from recbole_kd.benchmark.progress import Progress
from recbole_kd.benchmark.records import DONE, SCRATCH_STUDENT, TEACHER, Record
from recbole_kd.benchmark.runner import Runner, finished
from recbole_kd.benchmark.spec import Spec
from recbole_kd.config import KDConfig
from recbole_kd.options import Sources, merge

EXPECTED_EPOCHS = 150
"""Epochs of a run of which nobody knows when early stopping ends it."""

TEACHER_EPOCHS = 5
"""Epochs of a teacher that is trained to time a row; HetComp needs some on its way."""

AROUND = 15.0
"""Seconds of a run that are no epoch: to start, to read the data, to test."""

Key = tuple[str, str, str]
"""Data set, pair, row."""


def dry_run(jobs: Sequence[Job], spec: Spec, out: Path, measure: bool = False) -> str:
    """The runs of a benchmark with their states and an estimate, as text.

    A row's time is the mean of its seeds that have run in the folder; else its seconds per epoch,
    where they are measured, times the mean epochs of what has run, or :data:`EXPECTED_EPOCHS`;
    and :data:`AROUND`.

    Args:
        jobs: Its jobs.
        spec: The benchmark.
        out: Its folder.
        measure: Whether an epoch of each row that has not run yet is trained to time it, in a
            folder that is thrown away.
    """
    splits = check_jobs(jobs, spec.metric)
    known = _by_row(jobs, out)
    to_do = [job for job in jobs if not finished(job, out, splits)]
    missing = {_key(job): job for job in to_do if _key(job) not in known}
    measured = _measured(list(missing.values())) if measure else {}
    expected = _expected_epochs(out)
    lines, left, without = [], 0.0, 0
    trained = {job.training for job in jobs if job not in to_do}
    for job in jobs:
        waiting = job in to_do
        epoch = measured.get(_key(job))
        seconds = known.get(_key(job)) or (epoch and epoch * min(expected, _most(job)))
        seconds = seconds and seconds + AROUND
        if waiting and job.training in trained:
            seconds = AROUND
        trained.add(job.training)
        if waiting:
            left += seconds or 0.0
            without += seconds is None
        names = [job.dataset, job.pair, job.row, job.seed, "to do" if waiting else "done"]
        lines.append([*names, "" if seconds is None else f"{seconds / 60:.1f}"])
    headers = ["data set", "pair", "row", "seed", "state", "minutes"]
    table = tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)
    hint = "" if measure or not without else "; --dry_run=measure times an epoch of each"
    more = f"; {without} runs without an estimate{hint}" if without else ""
    hours = f"{left / 3600 / spec.jobs:.1f} hours" if without < len(to_do) or not to_do else "none"
    return (
        f"{table}\n\n{len(jobs)} runs, {len(to_do)} to do, {spec.jobs} at a time, {spec.threads} "
        f"threads each.\nEstimate: {hours} (mean of a row's other seeds"
        f"{f', or {expected} epochs' if measure else ''}){more}."
    )


def _key(run: Job | Record) -> Key:
    return run.dataset, run.pair, run.row


def _by_row(jobs: Sequence[Job], out: Path) -> dict[Key, float]:
    """Mean seconds of the runs that ended well, of each row as it is asked for now."""
    asked = {_key(job): records.told(job.options, "seed") for job in jobs}
    seconds: dict[Key, list[float]] = {}
    for record in records.read_all(out):
        same = records.told(record.options, "seed") == asked.get(_key(record))
        if same and record.status == DONE and record.seconds is not None:
            seconds.setdefault(_key(record), []).append(record.seconds)
    return {key: statistics.mean(values) for key, values in seconds.items()}


def _expected_epochs(out: Path) -> int:
    epochs = [r.epochs for r in records.read_all(out) if r.status == DONE and r.epochs]
    return round(statistics.mean(epochs)) if epochs else EXPECTED_EPOCHS


def _most(job: Job) -> int:
    """The most epochs that what a job trains can have."""
    role = {TEACHER: "teacher", SCRATCH_STUDENT: "scratch"}.get(job.kind, "student")
    sources = Sources.collect(options=job.options)
    if role == "teacher" and sources.teacher_files:
        return 0
    return int(KDConfig(sources, role)["epochs"])


def _measured(jobs: Sequence[Job]) -> dict[Key, float]:
    """Seconds of an epoch of each job, where its run does not fail."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        short = [replace(job, options=_short(job, out), after=()) for job in jobs]
        progress = Progress(short, [])
        with progress:
            Runner(short, [], out, progress).run(1)
        found = [r for r in records.read_all(out) if r.status == DONE and r.epochs and r.seconds]
        return {_key(r): (r.seconds or 0) / (r.epochs or 1) for r in found}


def _short(job: Job, out: Path) -> dict[str, Any]:
    """A job's options, for few epochs."""
    options = merge(job.options, {"epochs": 1, "checkpoint_dir": str(out / records.RUNS)})
    for section in ("student", "scratch_student"):
        if "epochs" in options.get(section, {}):
            options = merge(options, {section: {"epochs": 1}})
    if "model" in options.get("teacher", {}):
        few: dict[str, Any] = {"epochs": TEACHER_EPOCHS}
        if "save_every" in options["teacher"]:
            few["save_every"] = 1
        options = merge(options, {"teacher": few})
    return options
