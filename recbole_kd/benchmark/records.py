"""What a benchmark's folder holds: its file, and a record of each run, for runner and report.

.. code-block:: text

    <out>/
      benchmark.yaml                          the file that asked for the runs, as it was read
      runs/<data set>/<name>-<fingerprint>/   each training, as ``recbole-kd train`` writes it
      records/<data set>/<pair>/<row>/seed-<n>.json    one run of the table: what came of it
      records/<data set>/<pair>/<row>/seed-<n>.log     what it said
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from recbole_kd import checkpoint
from recbole_kd.errors import KDError

SPEC_FILE = "benchmark.yaml"
RUNS, RECORDS = "runs", "records"

DONE, FAILED = "done", "failed"

TEACHER, SCRATCH_STUDENT, DISTILLED, REFERENCE = "teacher", "scratch", "distilled", "reference"
"""Kinds of rows: teacher, student trained alone, distilled student, plain RecBole model."""


@dataclass
class Record:
    """One run of the table: one seed of one row for one data set and pair.

    Attributes:
        dataset: Name of the data set.
        pair: Name of the teacher-student pair, such as ``MF-MF``.
        row: Name of the row in the table, such as ``RCEKD`` or ``w/o S``.
        seed: Seed of the run.
        kind: ``teacher``, ``scratch``, ``distilled`` or ``reference``.
        group: Which table the row belongs to: ``main``, or any other, such as ``ablation``.
        model: Method of a distilled row; model of the others.
        status: ``done`` or ``failed``.
        error: Why it failed, in one line; empty where it is done.
        folder: The training's folder, relative to the benchmark's; ``None`` where there is none.
            It holds ``best.pt``, ``resolved.yaml``, ``metrics.jsonl`` and ``per_user.parquet``.
        test_result: Test metrics of the best validation epoch.
        valid_result: Validation metrics of that epoch.
        best_epoch: That epoch, 0-based.
        epochs: Epochs trained.
        seconds: Wall time of its training, from the log of its epochs.
        parameters: Learned numbers of the model.
        options: Everything the run was given, as ``recbole-kd train`` would take it.
        training: What it trained, see :class:`~recbole_kd.benchmark.plan.Job`.
        command: A command that makes this run alone; empty for a reference row.
        provenance: Versions, digest of the package's source, machine, threads and date.
    """

    dataset: str
    pair: str
    row: str
    seed: int
    kind: str
    group: str = "main"
    model: str = ""
    status: str = DONE
    error: str = ""
    folder: str | None = None
    test_result: dict[str, float] = field(default_factory=dict)
    valid_result: dict[str, float] = field(default_factory=dict)
    best_epoch: int | None = None
    epochs: int | None = None
    seconds: float | None = None
    parameters: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    training: str = ""
    command: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)


def file_of(out: Path, dataset: str, pair: str, row: str, seed: int) -> Path:
    """Where the record of a run is kept.

    Args:
        out: The benchmark's folder.
        dataset: Name of the data set.
        pair: Name of the pair.
        row: Name of the row.
        seed: Seed of the run.
    """
    parts = (file_name(part) for part in (dataset, pair, row))
    return out.joinpath(RECORDS, *parts, f"seed-{seed}.json")


def name_of(run: Any) -> str:
    """How a run is called in messages.

    Args:
        run: A job or a record.
    """
    return f"{run.dataset}, {run.pair}, {run.row}, seed {run.seed}"


def file_name(text: str) -> str:
    """A name as the name of a file: ``w/o S`` -> ``w%2Fo S``.

    Args:
        text: The name.
    """
    kept = " +-_=" if not text.strip(".") else " .+-_="
    plain = "abcdefghijklmnopqrstuvwxyz0123456789" + kept
    return "".join(
        c if c.lower() in plain else "".join(f"%{b:02X}" for b in c.encode()) for c in text
    )


def told(options: Mapping[str, Any], *ignored: str) -> dict[str, Any]:
    """Options as a record tells them, to compare with one.

    Args:
        options: Options of a run or of a record.
        *ignored: Keys that do not count; the place of the runs, which may be called in other
            ways, never does.
    """
    plain = json.loads(json.dumps(options, default=str))
    return {k: v for k, v in plain.items() if k not in ("checkpoint_dir", *ignored)}


def write(file: Path, record: Record) -> None:
    """Write a record; one that is there is replaced.

    Args:
        file: Its file.
        record: The record.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(file, json.dumps(asdict(record), indent=1) + "\n")


def read(file: Path) -> Record:
    """Read a record.

    Raises:
        KDError: It is damaged, or of another version.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        known = {f.name for f in fields(Record)}
        return Record(**{key: value for key, value in content.items() if key in known})
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise KDError(f"{file}: no record of a run ({error})") from error


def read_all(out: Path) -> Iterator[Record]:
    """All records of a benchmark, in the order of their files.

    Args:
        out: The benchmark's folder.
    """
    for file in sorted((out / RECORDS).glob("*/*/*/seed-*.json")):
        yield read(file)
