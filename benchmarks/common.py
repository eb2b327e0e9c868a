"""What the benchmark scripts share: provenance, data, tables."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shlex
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from recbole_kd import run_recbole_kd, training
from recbole_kd.config import KDConfig
from recbole_kd.convert import convert
from recbole_kd.data import Split
from recbole_kd.loaders import make_loaders
from recbole_kd.machine import processor
from recbole_kd.methods.base import Distiller
from recbole_kd.scoring import scorer_for
from recbole_kd.teacher import FrozenTeacher
from recbole_kd.trainer import make_trainer

ROOT = Path(__file__).resolve().parent.parent


def provenance(seeds: list[int]) -> str:
    """Command, date, versions and machine of a result, as Markdown lines."""
    libraries = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("recbole-kd", "recbole", "torch", "numpy", "pandas", "scipy")
    )
    return "\n".join(
        [
            f"- command: `python {shlex.join([_relative(a) for a in sys.argv])}`",
            f"- date: {date.today()}, commit {commit() or 'unknown'}",
            f"- {libraries}, Python {platform.python_version()}",
            f"- {processor()}, {torch.get_num_threads()} threads, "
            f"{'CUDA' if torch.cuda.is_available() else 'no GPU'}",
            f"- seeds: {', '.join(map(str, seeds))}; split seed 2020",
        ]
    )


def _relative(argument: str) -> str:
    """Without the folders of the machine it ran on."""
    words = []
    for word in argument.split(" "):
        option, equals, value = word.rpartition("=")
        path = Path(value)
        if path.is_absolute():
            value = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
        words.append(option + equals + value)
    return " ".join(words)


def parser(text: str) -> argparse.ArgumentParser:
    """An argument parser with the options every script has."""
    options = argparse.ArgumentParser(
        description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--data_path", default="dataset/", help="folder of converted data sets")
    options.add_argument("--checkpoint_dir", default="saved", help="folder of runs and teachers")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--note", default=None, help="a line to add to the result")
    options.add_argument("--out", default=None, help="folder of the result")
    return options


def need_data(name: str, data_path: str, raw: str | None, form: str) -> None:
    """Convert a data set if it is not there yet."""
    folder = Path(data_path) / name
    if any(folder.glob("*.inter")):
        return
    if raw is None:
        sys.exit(f"{folder} is missing: give --raw=PATH of the raw {form} files to convert")
    print(convert(form, raw, folder).summary())


def distil(
    dataset: str,
    student: str,
    teacher: str,
    seed: int,
    options: Any,
    **more: Any,
) -> Any:
    """One run of RCE-KD, which goes on if it was stopped, and the seconds of its epochs."""
    result = run_recbole_kd(
        "RCEKD",
        dataset,
        student=student,
        teacher=teacher,
        config_dict={
            "seed": seed,
            "resume": "auto",
            "data_path": options.data_path,
            "checkpoint_dir": options.checkpoint_dir,
            "show_progress": False,
            **more,
        },
    )
    log = (Path(result["checkpoints"]["student"]).parent / "metrics.jsonl").read_text()
    return result, [sum(json.loads(line)["seconds"].values()) for line in log.splitlines()]


def measure(
    config: KDConfig,
    split: Split,
    epochs: int,
    method: type[Distiller] | None = None,
    teacher: FrozenTeacher | None = None,
) -> list[dict]:
    """Seconds of refresh, training and evaluation of some epochs, after one that is not counted."""
    model = training.build_plain(config, split)
    scorer = scorer_for(model, split.history)
    if method is not None and teacher is not None:
        model = method(config, split.train, model, scorer, teacher, split.history)
    train, valid, _ = make_loaders(config, split)
    trainer = make_trainer(config, model, None)
    trainer._train_data = train
    trainer.eval_collector.data_collect(train)
    records = []
    for epoch in range(epochs + 1):
        trainer._train_epoch(train, epoch)
        seconds = dict(trainer._record["seconds"])
        trainer._valid_epoch(valid)
        seconds["eval"] = trainer._record["seconds"]["eval"]
        trainer._record = {}
        records.append(seconds)
    return records[1:]


def commit() -> str:
    """The commit that is checked out."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def mean_spread(values: list[float]) -> str:
    """Mean and sample standard deviation, as ``0.0150 ± 0.0002``; of one value, itself."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    spread = statistics.stdev(values)
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"
