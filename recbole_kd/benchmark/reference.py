"""A plain RecBole model, trained by RecBole's own trainer: a row to compare with.

Model class, trainer, optimiser and train loader are RecBole's, with its defaults and the options
that it knows; the split and the measuring are those of all rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.data.transform import construct_transform
from recbole.utils import get_trainer, init_seed
from torch import nn

from recbole_kd import checkpoint, compat, deploy, training
from recbole_kd.config import KDConfig
from recbole_kd.data import Split
from recbole_kd.loaders import make_loaders, train_part
from recbole_kd.registry import recbole_class
from recbole_kd.scoring import scorer_for
from recbole_kd.trainer import event_writer, learned_beside
from recbole_kd.training import Trained


def train_reference(config: KDConfig, split: Split) -> Trained:
    """Train a model with RecBole's trainer, or find it trained.

    A training that was stopped begins anew, for RecBole's cannot go on bit for bit.

    Args:
        config: The model's configuration.
        split: The split.
    """
    folder = training.folder_of(config, split, f"RecBole-{config['model']}")
    return training.cached(config, split, folder, lambda: _train(config, split, folder))


def _train(config: KDConfig, split: Split, folder: Path) -> Trained:
    training.write_resolved(config, folder)
    init_seed(config["seed"], config["reproducibility"])
    construct_transform(config)  # adds options that BERT4Rec and SHAN read
    cls = recbole_class(config["model"], f"--student={config['model']}")
    model = cls(config, train_part(config, split)).to(config["device"])
    train, valid, _ = make_loaders(config, split)
    with compat.no_default_folders():
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.tensorboard = event_writer(folder)
    best: dict[str, Any] = {}
    described = deploy.describe(config, split, selection=training.selection(config))

    def save(epoch: int, **options: Any) -> None:
        # RecBole's file pickles the configuration, which is not read back here.
        best.update(described, epoch=epoch, state_dict=_state(model))
        best["other_parameter"] = learned_beside(model)
        best["best_valid_score"] = float(trainer.best_valid_score)
        checkpoint.save(folder / "best.pt", best)

    trainer._save_checkpoint = save
    started = time.perf_counter()
    with _log(config, folder) as (lines, keep):
        score, _ = trainer.fit(
            train, valid, saved=True, verbose=False, show_progress=False, callback_fn=keep
        )
    seconds = time.perf_counter() - started
    model.load_state_dict(best["state_dict"])
    model.load_other_parameter(best["other_parameter"])
    found = training.measure(config, split, model, folder=folder)
    trained = Trained(
        name=config["model"],
        model=model.eval(),
        scorer=scorer_for(model, split.history),
        folder=folder,
        best_valid_score=float(score),
        best_valid_result=found["valid"],
        test_result=found["test"],
        best_epoch=int(best["epoch"]),
        epochs=lines[-1] + 1,
        seconds=seconds,
    )
    training.write_result(trained, config)
    return trained


def _state(model: nn.Module) -> dict[str, Any]:
    return {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}


@contextmanager
def _log(config: KDConfig, folder: Path) -> Iterator[tuple[list[int], Any]]:
    """The epochs validated, and what writes a line of ``metrics.jsonl`` for each."""
    epochs: list[int] = []
    last = time.perf_counter()

    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as log:

        def keep(epoch: int, score: float) -> None:
            nonlocal last
            now = time.perf_counter()
            valid = {config["valid_metric"].lower(): score}
            line = {"epoch": epoch, "seconds": {"all": round(now - last, 4)}, "valid": valid}
            log.write(json.dumps(line) + "\n")
            log.flush()
            getLogger().info("epoch %d: %s %.4f", epoch, config["valid_metric"], score)
            epochs.append(epoch)
            last = now

        yield epochs, keep
