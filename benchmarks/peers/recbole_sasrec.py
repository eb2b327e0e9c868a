"""Cost of an epoch of RecBole's own SASRec: its data, its loader, its model, its trainer.

A row a position: RecBole's ``SequentialDataset`` writes every prefix of a sequence as a row of its
own, and the model is trained on the row's last position. All of it is RecBole's; ``recbole_kd`` is
imported only for the names that RecBole reads from numpy and scipy and that current releases lack.

Importing RecBole's sequential models switches on PyTorch's anomaly detection, which records Python
stacks in every step. That is what a user of RecBole gets, and what is measured; with
``--no_anomaly_detection`` it is off.

With ``--batches K`` the first two batches of an epoch are run and not counted, the next K are
timed, and an epoch is their mean times the number of its batches. A batch is its rows taken from
the data set, the step and the trainer's checks. Without it one whole epoch is timed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

# isort: split
# Before RecBole, which it adapts.
import recbole_kd  # noqa: F401

# isort: split
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

from recbole_kd import compat

WARM_UP = 2
LIBRARIES = ("recbole", "torch", "numpy", "pandas", "scipy")


class Timed:
    """The first batches of a loader, with the seconds of each.

    Attributes:
        loader: A loader of RecBole's.
        limit: Number of batches, all if ``None``.
        seconds: From one request for a batch to the next, so with the step between them.
    """

    def __init__(self, loader: Any, limit: int | None) -> None:
        self.loader = loader
        self.limit = limit
        self.seconds: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        started = time.perf_counter()
        for batch in itertools.islice(self.loader, self.limit):
            yield batch
            now = time.perf_counter()
            self.seconds.append(now - started)
            started = now


def configure(options: argparse.Namespace) -> Config:
    """RecBole's configuration; our command line is not its."""
    given = {
        "hidden_size": options.hidden_size,
        "n_layers": options.n_layers,
        "n_heads": options.n_heads,
        "inner_size": options.inner_size,
        "MAX_ITEM_LIST_LENGTH": options.length,
        "train_batch_size": options.batch_size,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "group_by": "user",
            "order": "TO",
            "mode": "full",
        },
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "seed": options.seed,
        "use_gpu": False,
        "state": "WARNING",
        "show_progress": False,
    }
    if options.data_path is not None:
        given["data_path"] = options.data_path
    with (
        mock.patch.object(Config, "compatibility_settings"),  # fails on numpy 2
        mock.patch.object(sys, "argv", sys.argv[:1]),
    ):
        return Config(model="SASRec", dataset=options.dataset, config_dict=given)


def peak_mib() -> float:
    """Largest resident set so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Build the data, train; what the result file says."""
    config = configure(options)
    init_seed(config["seed"], config["reproducibility"])
    started = time.perf_counter()
    train, _, _ = data_preparation(config, create_dataset(config))
    data_seconds, data_peak = time.perf_counter() - started, peak_mib()
    model = get_model("SASRec")(config, train.dataset)
    if options.no_anomaly_detection:
        torch.autograd.set_detect_anomaly(False)
    with compat.no_default_folders():
        trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    timed = Timed(train, options.batches and options.batches + WARM_UP)
    trainer._train_epoch(timed, 0)
    if options.batches:
        counted = timed.seconds[WARM_UP:]
        if not counted:
            sys.exit(f"an epoch has {len(train)} batches, too few for --batches")
        epoch = statistics.mean(counted) * len(train)
    else:
        counted = timed.seconds
        epoch = sum(counted)
    return {
        "seconds_per_epoch": epoch,
        "extrapolated": bool(options.batches),
        "seconds_data": data_seconds,
        "peak_rss_mib": peak_mib(),
        "peak_rss_mib_data": data_peak,
        "batches": len(train),
        "batches_timed": len(counted),
        "seconds_per_batch": counted,
        "anomaly_detection": torch.is_anomaly_enabled(),
        "data": {
            "users": train.dataset.user_num - 1,
            "items": train.dataset.item_num - 1,
            "train_rows": len(train.dataset),
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
        "threads": torch.get_num_threads(),
        "options": {k: v for k, v in vars(options).items() if k not in ("data_path", "out")},
    }


def parse() -> argparse.Namespace:
    """The script's options."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--dataset", default="ml-100k", help="ml-100k comes with RecBole")
    options.add_argument("--data_path", default=None, help="folder of atomic data sets")
    options.add_argument("--hidden_size", type=int, default=64)
    options.add_argument("--n_layers", type=int, default=2)
    options.add_argument("--n_heads", type=int, default=2)
    options.add_argument("--inner_size", type=int, default=256)
    options.add_argument("--length", type=int, default=50)
    options.add_argument("--batch_size", type=int, default=2048, help="rows a batch")
    options.add_argument("--batches", type=int, default=None, help="time so many, not an epoch")
    options.add_argument("--no_anomaly_detection", action="store_true")
    options.add_argument("--seed", type=int, default=2020)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--out", default=None, help="JSON file of the result")
    chosen = options.parse_args()
    if chosen.batches is not None and chosen.batches < 1:
        options.error("--batches must be at least 1")
    return chosen


def main() -> None:
    """Print and write the result."""
    chosen = parse()
    torch.set_num_threads(chosen.threads)
    text = json.dumps(run(chosen), indent=2)
    if chosen.out:
        Path(chosen.out).parent.mkdir(parents=True, exist_ok=True)
        Path(chosen.out).write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
