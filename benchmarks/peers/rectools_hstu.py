"""Speed and quality of the HSTU of RecTools on sequences, leave-one-out.

Needs ``rectools[torch]`` only. The last item of a user is the test target, the one before it the
validation target; the rest is what the model is fitted on. Both targets are ranked against every
item that RecTools knows, without those of the user's history: the train items for validation, the
train items and the validation item for the test. RecTools takes another data set in ``recommend``
than in ``fit``, so that the same weights, never trained on a validation item, encode the longer
history for the test. It knows only the items it was fitted on: a target that no user has among
the last ``--length`` + 1 train items cannot be recommended and counts as a miss, and such an item
in a history is passed over. A user has one target, so that NDCG is ``1 / log2(rank + 2)``, ranks
counted from 0.

Where the options are silent the model has RecTools' defaults: cosine similarity, learned absolute
positions, no dropout in the attention, attention divided by ``--length``, Adam with betas 0.9 and
0.98. The temperature is the one exception: with RecTools' default of 1 the logits of a cosine lie
between -1 and 1 and hardly train; 0.05 is what its HSTU tutorial uses.

Seconds of an epoch are wall clock between the trainer's hooks, without fitting's preparation and
without evaluation.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import platform
import resource
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet

TOP = 10
LIBRARIES = ("rectools", "torch", "pytorch-lightning", "numpy", "pandas")


class EpochTimer(Callback):
    """Wall seconds of every training epoch.

    Attributes:
        seconds: One figure an epoch.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.seconds.append(time.perf_counter() - self._started)


def make_trainer() -> Trainer:
    """RecTools' default trainer on the CPU, with a clock; ``fit_partial`` sets its epochs."""
    return Trainer(
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        callbacks=[EpochTimer()],
    )


def read(path: str) -> list[np.ndarray]:
    """Item ids of every user, oldest first.

    Args:
        path: File of ``user item item ...`` lines, one a user.

    Returns:
        One array a user, in the order of the file; items are counted from 0.
    """
    ids: dict[str, int] = {}
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    sequences = [
        np.array([ids.setdefault(token, len(ids)) for token in line.split()[1:]])
        for line in lines
        if line.strip()
    ]
    if not sequences or min(map(len, sequences)) < 3:
        sys.exit(f"{path}: leave-one-out needs three items a user")
    return sequences


def dataset(sequences: list[np.ndarray]) -> Dataset:
    """A RecTools data set of sequences; the time of an item is its place."""
    lengths = [len(s) for s in sequences]
    places = np.concatenate([np.arange(n) for n in lengths])
    frame = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(sequences)), lengths),
            Columns.Item: np.concatenate(sequences),
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(places, unit="s"),
        }
    )
    return Dataset.construct(frame)


def build(options: argparse.Namespace) -> HSTUModel:
    """The model, not yet fitted."""
    return HSTUModel(
        n_blocks=options.blocks,
        n_heads=options.heads,
        n_factors=options.dim,
        dropout_rate=options.dropout,
        session_max_len=options.length,
        loss="sampled_softmax",
        n_negatives=options.negatives,
        lr=options.lr,
        batch_size=options.batch_size,
        epochs=options.epochs,
        relative_time_attention=False,
        relative_pos_attention=options.position_bias,
        item_net_block_types=(IdEmbeddingsItemNet,),
        lightning_module_kwargs={"logits_t": options.temperature},
        get_trainer_func=make_trainer,
    )


def ranked(model: HSTUModel, history: list[np.ndarray], targets: np.ndarray) -> dict[str, float]:
    """Metrics of one target a user.

    Args:
        model: A fitted model.
        history: Items that are encoded and not recommended, one array a user.
        targets: One item a user.

    Returns:
        HR and NDCG over all users; who gets no recommendation counts 0.
    """
    found = model.recommend(
        users=np.arange(len(targets)),
        dataset=dataset(history),
        k=TOP,
        filter_viewed=True,
        on_unsupported_targets="ignore",
    )
    users, items = found[Columns.User].to_numpy(), found[Columns.Item].to_numpy()
    ranks = found[Columns.Rank].to_numpy()[items == targets[users]] - 1  # theirs begin at 1
    return {
        f"HR@{TOP}": len(ranks) / len(targets),
        f"NDCG@{TOP}": float(np.sum(1 / np.log2(ranks + 2)) / len(targets)),
    }


def evaluate(model: HSTUModel, sequences: list[np.ndarray]) -> dict[str, Any]:
    """Metrics on validation and test, and the seconds they took."""
    started = time.perf_counter()
    last = np.array([s[-2:] for s in sequences])
    return {
        "valid": ranked(model, [s[:-2] for s in sequences], last[:, 0]),
        "test": ranked(model, [s[:-1] for s in sequences], last[:, 1]),
        "seconds": time.perf_counter() - started,
    }


def peak_mib() -> float:
    """Largest resident set so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train and rank; what the result file says."""
    seed_everything(options.seed)
    sequences = read(options.sequences)
    train = dataset([s[:-2] for s in sequences])
    model = build(options)
    every = options.eval_every or options.epochs
    evaluations: list[dict[str, Any]] = []
    fit_seconds, peak_train, done = 0.0, 0.0, 0
    while done < options.epochs:
        epochs = min(every, options.epochs - done)
        started = time.perf_counter()
        model.fit_partial(train, min_epochs=epochs, max_epochs=epochs)
        fit_seconds += time.perf_counter() - started
        peak_train = peak_train or peak_mib()
        done += epochs
        evaluations.append({"epoch": done, **evaluate(model, sequences)})
        print(json.dumps(evaluations[-1]), flush=True)
    (timer,) = (c for c in model.fit_trainer.callbacks if isinstance(c, EpochTimer))
    known = model.data_preparator.get_known_item_ids()
    return {
        "seconds_per_epoch": timer.seconds,
        "seconds_per_epoch_median": statistics.median(timer.seconds),
        "seconds_fit": fit_seconds,
        "peak_rss_mib": peak_mib(),
        "peak_rss_mib_before_evaluation": peak_train,
        "valid": evaluations[-1]["valid"],
        "test": evaluations[-1]["test"],
        "evaluations": evaluations,
        "data": {
            "users": len(sequences),
            "items": len(np.unique(np.concatenate(sequences))),
            "items_known": len(known),
            "train_interactions": sum(len(s) - 2 for s in sequences),
            "targets_unknown": {
                part: int(np.sum(~np.isin([s[place] for s in sequences], known)))
                for part, place in (("valid", -2), ("test", -1))
            },
        },
        "parameters": sum(p.numel() for p in model.torch_model.parameters()),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
        "threads": torch.get_num_threads(),
        "options": {
            **{k: v for k, v in vars(options).items() if k != "out"},
            "sequences": Path(options.sequences).name,
        },
        "similarity": model.torch_model.similarity_module.distance.name.lower(),
        "model": model.get_config(simple_types=True),
    }


def parse() -> argparse.Namespace:
    """The script's options."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--sequences", required=True, help="file of `user item item ...` lines")
    options.add_argument("--epochs", type=int, required=True)
    options.add_argument("--eval_every", type=int, default=0, help="epochs; 0: at the end only")
    options.add_argument("--batch_size", type=int, default=128, help="users a batch")
    options.add_argument("--dim", type=int, default=64)
    options.add_argument("--blocks", type=int, default=2)
    options.add_argument("--heads", type=int, default=2)
    options.add_argument("--length", type=int, default=50)
    options.add_argument("--negatives", type=int, default=256, help="uniform, for every position")
    options.add_argument("--dropout", type=float, default=0.2)
    options.add_argument("--lr", type=float, default=1e-3)
    options.add_argument("--temperature", type=float, default=0.05, help="logits are divided by it")
    options.add_argument("--position_bias", action="store_true", help="relative, in the attention")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--out", default=None, help="JSON file of the result")
    chosen = options.parse_args()
    if chosen.epochs < 1 or chosen.eval_every < 0:
        options.error("--epochs must be at least 1, --eval_every at least 0")
    return chosen


def main() -> None:
    """Print and write the result."""
    chosen = parse()
    torch.set_num_threads(chosen.threads)
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    text = json.dumps(run(chosen), indent=2)
    if chosen.out:
        Path(chosen.out).parent.mkdir(parents=True, exist_ok=True)
        Path(chosen.out).write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
