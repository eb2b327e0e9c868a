"""A plain RecBole model, trained by RecBole's own trainer: a row to compare with.

Model class, trainer, optimiser and train loader are RecBole's, with its defaults and the options
that it knows; the split and the measuring are those of all rows.
"""

from __future__ import annotations

import json
import time
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.utils import get_trainer, init_seed

from recbole_kd import checkpoint, compat, deploy, training
from recbole_kd.config import KDConfig
from recbole_kd.data import Split
from recbole_kd.loaders import make_loaders, train_part
from recbole_kd.registry import recbole_class
from recbole_kd.trainer import event_writer, learned_beside


def train_reference(config: KDConfig, split: Split) -> Path:
    """Train a model with RecBole's trainer, or find it trained.

    A training that was stopped begins anew, for RecBole's cannot go on bit for bit.

    Args:
        config: The model's configuration.
        split: The split.

    Returns:
        Its folder, as :func:`recbole_kd.training.train` fills it.
    """
    folder = training.folder_of(config, split, f"RecBole-{config['model']}")
    with training.locked(folder, wait=True):
        if not (folder / "result.json").is_file():
            _train(config, split, folder)
    return folder


def _train(config: KDConfig, split: Split, folder: Path) -> None:
    init_seed(config["seed"], config["reproducibility"])
    cls = recbole_class(config["model"], f"--student={config['model']}")
    model = cls(config, train_part(config, split)).to(config["device"])
    train, valid, _ = make_loaders(config, split)
    with compat.no_default_folders():
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.tensorboard = event_writer(folder)
    described = deploy.describe(config, split, selection=training.selection(config))
    best: dict[str, Any] = {}

    def save(epoch: int, **options: Any) -> None:
        # RecBole's file pickles the configuration, which is not read back here.
        state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        best.update(described, epoch=epoch, state_dict=state, other_parameter=learned_beside(model))
        best["best_valid_score"] = float(trainer.best_valid_score)
        checkpoint.save(folder / "best.pt", best)

    trainer._save_checkpoint = save
    log = (folder / "metrics.jsonl").open("w", encoding="utf-8")
    started = last = time.perf_counter()
    epochs: list[int] = []

    def keep(epoch: int, score: float) -> None:
        nonlocal last
        now = time.perf_counter()
        epochs.append(epoch)
        line = {"epoch": epoch, "seconds": {"all": round(now - last, 4)}}
        log.write(json.dumps({**line, "valid": {config["valid_metric"].lower(): score}}) + "\n")
        log.flush()
        getLogger().info("epoch %d: %s %.4f", epoch, config["valid_metric"], score)
        last = now

    with log:
        score, _ = trainer.fit(
            train, valid, saved=True, verbose=False, show_progress=False, callback_fn=keep
        )
    seconds = time.perf_counter() - started
    model.load_state_dict(best["state_dict"])
    model.load_other_parameter(best["other_parameter"])
    found = training.measure(config, split, model, folder=folder)
    values: dict[str, Any] = {
        "model": config["model"],
        "measured": training.measured(config),
        "best_valid_score": float(score),
        "best_valid_result": found["valid"],
        "test_result": found["test"],
        "best_epoch": int(best["epoch"]),
        "epochs": len(epochs),
        "seconds": round(seconds, 2),
    }
    checkpoint.write_text(folder / "result.json", json.dumps(values, indent=1) + "\n")
    training.write_resolved(config, folder)
