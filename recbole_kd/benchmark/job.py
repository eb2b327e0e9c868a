"""One job of a benchmark, in a process of its own: ``python -m recbole_kd.benchmark.job``.

The first line of its standard input is the job; the input stays open as long as the runner lives,
so that a runner that is killed leaves no process behind.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import sys
import threading
import traceback
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import recbole_kd
from recbole_kd import checkpoint
from recbole_kd.benchmark import records
from recbole_kd.benchmark.plan import Job
from recbole_kd.benchmark.records import (
    DISTILLED,
    DONE,
    FAILED,
    REFERENCE,
    SCRATCH_STUDENT,
    TEACHER,
    Record,
)
from recbole_kd.errors import KDError
from recbole_kd.machine import processor, source
from recbole_kd.scoring import model_size

LIBRARIES = ("recbole", "torch", "numpy", "pandas", "scipy")


def run(job: Job, out: Path) -> Record:
    """Run a job and say what came of it.

    Args:
        job: The job.
        out: The benchmark's folder.

    Raises:
        KDError: The run refuses, or its training fails.
    """
    from recbole_kd.options import Sources
    from recbole_kd.quick_start import Run

    if job.kind == REFERENCE:
        return _reference(job, out)
    options = job.options
    if job.kind == SCRATCH_STUDENT:
        options = {**options, "scratch": True}
    work = Run(Sources.collect(options=options), saved=True)
    if job.kind == TEACHER:
        parts = work.finder.find()
        folder = out / records.RUNS / job.dataset / f"teacher-{_short(job.training)}"
        if work.teacher_config is not None:
            folder = Path(str(parts.checkpoint)).parent
        else:
            work.finder.write_test(parts, folder)
        return _record(job, out, folder, parts.test_result, parts.scorer, work.split, work.prints)
    if job.kind == SCRATCH_STUDENT:
        trained = work.scratch()
        return _record(job, out, trained.folder, {}, trained.scorer, work.split, work.prints)
    assert job.kind == DISTILLED
    result = work.distilled()
    folder = Path(result["checkpoints"]["student"]).parent
    record = _record(job, out, folder, result["test_result"], None, work.split, work.prints)
    record.parameters = result["sizes"][-1]["parameters"]
    return record


def _short(training: str) -> str:
    return hashlib.blake2b(training.encode(), digest_size=8).hexdigest()


def _reference(job: Job, out: Path) -> Record:
    from recbole_kd.benchmark.reference import train_reference
    from recbole_kd.config import KDConfig
    from recbole_kd.data import load_split
    from recbole_kd.options import Sources
    from recbole_kd.quick_start import start_logging

    config = KDConfig(Sources.collect(options=job.options), "student")
    start_logging(config)
    split = load_split(config)
    trained = train_reference(config, split)
    return _record(
        job, out, trained.folder, {}, trained.scorer, split, split.prints(config.reads_time)
    )


def _record(
    job: Job,
    out: Path,
    folder: Path | None,
    test: Mapping[str, float],
    scorer: Any,
    split: Any,
    prints: Mapping[str, str],
) -> Record:
    """The record of a run that is done; what its folder says of it is added."""
    record = _begin(job)
    record.test_result = dict(test)
    if scorer is not None:
        record.parameters, _ = model_size(scorer.model)
    train, valid, tested = split.sizes
    record.provenance["data"] = {
        "users": len(split.tokens.users) - 1,
        "items": len(split.tokens.items) - 1,
        "train": train,
        "valid": valid,
        "test": tested,
    }
    record.provenance["split"] = split.fingerprints
    if "times" in prints:  # beside it: all rows of a table have one split, not all read its times
        record.provenance["times"] = prints["times"]
    if folder is None:
        return record
    record.folder = os.path.relpath(folder, out)
    if not (folder / "result.json").is_file():
        return record  # a teacher in a file was trained elsewhere
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    odd = {k: v for k, v in result["test_result"].items() if not math.isfinite(v)}
    if odd:
        raise KDError(
            f"found {next(iter(odd))} = {next(iter(odd.values()))} in the test; allowed "
            "are finite numbers"
        )
    record.test_result = result["test_result"]
    record.valid_result = result["best_valid_result"]
    record.best_epoch, record.epochs = result["best_epoch"], result["epochs"]
    record.seconds = _seconds(folder / "metrics.jsonl")
    _summarise(record, folder)
    return record


def _summarise(record: Record, folder: Path) -> None:
    """A summary beside a training that was part of another run, or RecBole's."""
    if record.kind == DISTILLED or not os.access(folder, os.W_OK):
        return  # a distillation has written its own
    names = ("model", "test_result", "valid_result", "best_epoch", "epochs", "seconds")
    summary = {"kind": record.kind, **{name: getattr(record, name) for name in names}}
    checkpoint.write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")


def _begin(job: Job) -> Record:
    """A record that says what was asked."""
    return Record(
        *(job.dataset, job.pair, job.row, job.seed, job.kind, job.group, job.model),
        options=job.options,
        training=job.training,
        command=job.command(),
        provenance=_provenance(job.threads),
    )


def _seconds(log: Path) -> float | None:
    """Wall time of all epochs in a log, whichever processes trained them."""
    if not log.is_file():
        return None
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return round(sum(sum(line["seconds"].values()) for line in lines), 2)


def _provenance(threads: int) -> dict[str, Any]:
    """Versions, machine and date."""
    import torch

    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "versions": {"recbole-kd": recbole_kd.__version__, **versions},
        "source": source(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "threads": threads,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def failed(job: Job, error: str) -> Record:
    """The record of a run that failed.

    Args:
        job: The job.
        error: Why, in one line.
    """
    record = _begin(job)
    record.status, record.error = FAILED, " ".join(error.split())
    return record


def _follow_runner() -> None:
    """End with the runner: its end of the standard input closes, however it died."""
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> int:
    """Read a job, run it, write its record."""
    source()  # while the files are still those that run
    message = json.loads(sys.stdin.buffer.readline())
    job, out = Job(**message["job"]), Path(message["out"])
    threading.Thread(target=_follow_runner, daemon=True).start()
    import torch

    torch.set_num_threads(job.threads)
    try:
        record = run(job, out)
    except KDError as error:
        record = failed(job, str(error))
    except Exception as error:  # a bug of ours or of a library is one failed run, with its place
        traceback.print_exc()
        record = failed(job, f"{type(error).__name__}: {error}")
    if record.status == FAILED:
        logging.getLogger(__name__).error("%s", record.error)
    records.write(job.file(out), record)
    return 0 if record.status == DONE else 1


if __name__ == "__main__":
    # Not at the interpreter's leisure: the thread above waits in a read that nothing interrupts.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
