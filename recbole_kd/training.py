"""Training one model in a folder of its own: fresh, resumed, or found finished."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import yaml
from recbole.utils import init_seed
from torch import nn

from recbole_kd import checkpoint, deploy
from recbole_kd.config import KDConfig
from recbole_kd.data import Split, make_loaders, train_part
from recbole_kd.errors import KDError
from recbole_kd.registry import backbone_class
from recbole_kd.scoring import Scorer, scorer_for
from recbole_kd.trainer import RunTrainer, make_trainer

EVALUATION_KEYS = {
    "eval_args",
    "eval_history",
    "metric_decimal_place",
    "metrics",
    "repeatable",
    "shuffle",
    "topk",
}
"""Evaluation options that decide which epoch is best, or what a stored result means."""


@dataclass
class Trained:
    """A trained model with its results.

    Attributes:
        name: Name of its model.
        model: The plain RecBole model with its best weights.
        scorer: Its scorer.
        folder: Its folder, or ``None``.
        best_valid_score: Best value of the validation metric.
        best_valid_result: All validation metrics of that epoch.
        test_result: Test metrics of the best weights.
        best_epoch: 0-based epoch of the best weights.
        epochs: Epochs trained.
        seconds: Wall time of training, this process only.
    """

    name: str
    model: nn.Module
    scorer: Scorer
    folder: Path | None
    best_valid_score: float
    best_valid_result: dict[str, float]
    test_result: dict[str, float]
    best_epoch: int
    epochs: int
    seconds: float

    @property
    def checkpoint(self) -> str | None:
        """Path of the best weights, or ``None``."""
        return None if self.folder is None else str(self.folder / "best.pt")


def fingerprint(config: KDConfig, split: Split, *more: str) -> str:
    """Digest of what decides the outcome of a training run: model, hyper-parameters, seed, split.

    Args:
        config: The model's configuration.
        split: Its split.
        *more: Further parts, such as a teacher's digest.
    """
    keys = config.learning_keys() | EVALUATION_KEYS
    options = {k: v for k, v in config.resolved().items() if k in keys}
    names = [config.import_path, config.method]
    content = json.dumps([names, options, split.fingerprints, more], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def build_plain(config: KDConfig, split: Split) -> nn.Module:
    """A fresh RecBole model, its initialisation drawn from ``seed`` alone."""
    init_seed(config["seed"], config["reproducibility"])
    cls = backbone_class(config.import_path)
    return cls(config, train_part(config, split)).to(config["device"])


def train(
    config: KDConfig,
    split: Split,
    folder: Path | None,
    wrap: Callable[[nn.Module, Scorer], nn.Module] | None = None,
    resume: Any = None,
    more: dict[str, Any] | None = None,
) -> Trained:
    """Train a model and test its best weights.

    Args:
        config: The model's configuration.
        split: The split.
        folder: Where to write, or ``None`` for nowhere.
        wrap: Turns the plain model and its scorer into the model to train, e.g. a distiller.
        resume: ``auto``, a path, or ``None`` to start afresh.
        more: Plain data saved with the weights.

    Raises:
        KDError: See the trainer.
    """
    started = time.perf_counter()
    model = build_plain(config, split)
    scorer = scorer_for(model, split.history)
    # Whatever the wrapper draws must not move the batches and negatives of the base loss.
    wrapped = wrap(model, scorer) if wrap else model
    init_seed(config["seed"], config["reproducibility"])
    loaders = make_loaders(config, split)
    source = _prepare_folder(config, folder, resume)
    trainer = make_trainer(config, wrapped, folder, deploy.describe(config, split, **(more or {})))
    if source is not None:
        trainer.resume(source, loaders[0])
        getLogger().info("Resumed from %s at epoch %d", source, trainer.start_epoch)
    score, result = trainer.fit(
        loaders[0],
        loaders[1],
        saved=True,
        verbose=False,
        show_progress=config["show_progress"],
    )
    seconds = time.perf_counter() - started
    test = trainer.evaluate(loaders[2], show_progress=config["show_progress"])
    trained = Trained(
        name=config["model"],
        model=model.eval(),
        scorer=scorer,
        folder=folder,
        best_valid_score=float(score),
        best_valid_result={k: float(v) for k, v in (result or {}).items()},
        test_result={k: float(v) for k, v in test.items()},
        best_epoch=trainer.best_epoch,
        epochs=trainer.epochs_done,
        seconds=seconds,
    )
    _write_result(trained)
    _close(trainer)
    return trained


def _close(trainer: RunTrainer) -> None:
    close = getattr(trainer.tensorboard, "close", None)
    if close:
        close()


def check_resume(resume: Any, saved: bool) -> Path | None:
    """The file that ``--resume=PATH`` names, or ``None`` for ``auto`` or nothing.

    Args:
        resume: Value of the option.
        saved: Whether the run writes files.

    Raises:
        KDError: There is no such file, or the run writes none.
    """
    if not resume:
        return None
    if not saved:
        raise KDError("--resume: needs saved=True, found saved=False")
    if resume == "auto":
        return None
    source = Path(resume) / "last.pt" if Path(resume).is_dir() else Path(resume)
    if not source.is_file():
        raise KDError(f"--resume={resume}: there is no such file; allowed are auto or a last.pt")
    return source


def _prepare_folder(config: KDConfig, folder: Path | None, resume: Any) -> Path | None:
    """Make the run's folder; returns the ``last.pt`` to resume from, if any."""
    if folder is None:
        return None
    checkpoint.need_space(folder, 0)
    source = check_resume(resume, saved=True)
    if resume == "auto":
        source = folder / "last.pt" if (folder / "last.pt").is_file() else None
    elif source is not None and source.parent.resolve() != folder.resolve():
        for name in ("best.pt", "metrics.jsonl"):
            if (source.parent / name).is_file():
                shutil.copyfile(source.parent / name, folder / name)
    if source is None:
        for name in ("best.pt", "last.pt", "metrics.jsonl", "result.json"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    resolved = yaml.safe_dump(config.resolved(), sort_keys=True, allow_unicode=True)
    checkpoint.write_text(folder / "resolved.yaml", resolved)
    return source


def _write_result(trained: Trained) -> None:
    if trained.folder is None:
        return
    result = {
        "model": trained.name,
        "best_valid_score": trained.best_valid_score,
        "best_valid_result": trained.best_valid_result,
        "test_result": trained.test_result,
        "best_epoch": trained.best_epoch,
        "epochs": trained.epochs,
        "seconds": round(trained.seconds, 2),
    }
    checkpoint.write_text(trained.folder / "result.json", json.dumps(result, indent=1) + "\n")


def train_alone(config: KDConfig, split: Split, saved: bool = True) -> Trained:
    """Train a model without a teacher, or find it trained.

    The folder is named by a fingerprint of data, split, model, hyper-parameters and seed. A run
    that asks for the same finds the result there; one that was killed goes on.

    Args:
        config: The model's configuration.
        split: The split.
        saved: Whether to read and write the cache.
    """
    if not saved:
        return train(config, split, None)
    digest = fingerprint(config, split)
    folder = Path(config["checkpoint_dir"]) / config["dataset"] / f"{config['model']}-{digest}"
    result_file = folder / "result.json"
    if not (result_file.is_file() and (folder / "best.pt").is_file()):
        getLogger().info("Training %s (%s) in %s", config["model"], config.role, folder)
        return train(config, split, folder, resume="auto")
    getLogger().info("Found %s (%s) trained in %s", config["model"], config.role, folder)
    result = json.loads(result_file.read_text(encoding="utf-8"))
    loaded = deploy.load_model(folder, config["device"], dataset=train_part(config, split))
    result["name"] = result.pop("model")
    scorer = scorer_for(loaded.model, split.history)
    return Trained(model=loaded.model, scorer=scorer, folder=folder, **result)
