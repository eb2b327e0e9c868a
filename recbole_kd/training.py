"""Training one model in a folder of its own: fresh, resumed, or found finished."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from recbole.data.transform import construct_transform
from recbole.utils import init_seed
from torch import nn

from recbole_kd import checkpoint, deploy, per_user
from recbole_kd.config import KDConfig, plain
from recbole_kd.data import Split
from recbole_kd.errors import KDError
from recbole_kd.loaders import check_ranking, make_loaders, say_unread, train_part
from recbole_kd.registry import SCRATCH, backbone_class
from recbole_kd.scoring import Scorer, scorer_for
from recbole_kd.times import check_unit
from recbole_kd.trainer import RunTrainer, make_trainer

SELECTION_KEYS = {"eval_args", "metric_decimal_place", "repeatable", "shuffle", "worker"}
"""Options of data and evaluation that decide the batches, or which epoch is the best."""

MEASURE_KEYS = ("metrics", "topk", "eval_history", "tail_ratio")
"""Options that say what is measured of the best weights: a trained model is measured anew."""


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
        seconds: Wall time of training, in the process that finished it only.
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


def fingerprint(config: KDConfig, split: Split, *more: str, way: bool = True) -> str:
    """Digest of what decides the outcome of a training run: model, hyper-parameters, seed, split.

    Args:
        config: The model's configuration.
        split: Its split.
        *more: Further parts, such as a teacher's digest.
        way: Whether the checkpoints kept on the way to the outcome count.
    """
    options = outcome_options(config)
    if config["save_every"] and way:
        options["save_every"] = config["save_every"]  # a model found trained must have its way
    names = [config.import_path, config.method]
    prints = split.prints(config.reads_time)
    content = json.dumps([names, options, prints, more], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def outcome_options(config: KDConfig) -> dict[str, Any]:
    """The options that decide the outcome of a training run on a given split, as plain data.

    Args:
        config: The model's configuration.
    """
    keys = config.learning_keys() | SELECTION_KEYS
    options = {k: v for k, v in config.resolved().items() if k in keys}
    options.update(selection(config))
    if config.method != SCRATCH and config["score_temperature"] is not None:
        options["score_temperature"] = config["score_temperature"]
    return options


def full_ranking(config: KDConfig) -> bool:
    """Whether validation and test rank all items, so that measuring twice gives the same."""
    return set(config["eval_args"]["mode"].values()) == {"full"}


def measured(config: KDConfig) -> dict[str, Any]:
    """What a configuration asks to be measured, as plain data."""
    return {key: plain(config[key]) for key in MEASURE_KEYS}


def selection(config: KDConfig) -> dict[str, Any]:
    """What gives the best epoch's score its meaning, as plain data."""
    metric = config["valid_metric"].lower()
    chosen = {
        "valid_metric": metric,
        "eval_args.mode": config["eval_args"]["mode"]["valid"],
        "repeatable": config["repeatable"],
    }
    if not full_ranking(config):
        chosen.update(measured(config))  # sampled candidates are others each time
        if config["per_user"]:
            chosen["per_user"] = True
    if metric.startswith("tailpercentage"):
        chosen["tail_ratio"] = plain(config["tail_ratio"])
    if config.sequential:
        chosen.update({key: config[key] for key in ("eval_targets", "filter_history")})
    return chosen


def check_data(config: KDConfig, split: Split) -> None:
    """Let a model that is picky about its data say so, before anything is trained.

    Args:
        config: The model's configuration.
        split: The split.

    Raises:
        KDError: See the model's ``check_data``, :func:`recbole_kd.loaders.train_part`,
            :func:`recbole_kd.loaders.check_ranking` and :func:`recbole_kd.times.check_unit`.
    """
    if config.sequential:
        check_ranking(config, split)
        if config["sequence_training"] == "causal":
            train_part(config, split)
        _check_held_out_times(config, split)
    check = getattr(config.model_class, "check_data", None)
    if check is not None:
        # A distillation query, and a ranking of all held-out items, is at no point in time.
        timeless = config.sources.method != SCRATCH or config.eval_targets == "all"
        check(config, split.history, timeless)


def _check_held_out_times(config: KDConfig, split: Split) -> None:
    """Refuse what cannot be seconds where a state reads it; one such time is always the last."""
    field = config["TIME_FIELD"]
    if not config.reads_time or config.eval_targets != "next":
        return
    for name, part in zip(("validation", "test"), split.parts[1:], strict=True):
        if field in part.inter_feat:
            check_unit(part.inter_feat[field].double(), f"data set {config['dataset']}, {name}")


def build_plain(config: KDConfig, split: Split) -> nn.Module:
    """A fresh RecBole model, its initialisation drawn from ``seed`` alone.

    Raises:
        KDError: It asks for an option, a column or a Python module that is not there.
    """
    init_seed(config["seed"], config["reproducibility"])
    # RecBole's transforms add fields to the options that BERT4Rec and SHAN read.
    construct_transform(config)
    cls = backbone_class(config.import_path)
    train_data = train_part(config, split)
    try:
        return cls(config, train_data).to(config["device"])
    except KeyError as error:
        raise KDError(
            f"{config.option}={config['model']}: it cannot be built on the data set "
            f"{config['dataset']}, it found no {error}; if that is a column, load_col must name it"
        ) from error
    except ModuleNotFoundError as error:
        raise _lacks_module(config, error) from error


def _lacks_module(config: KDConfig, error: ModuleNotFoundError) -> KDError:
    return KDError(
        f"{config.option}={config['model']}: it needs the Python module '{error.name}', which is "
        "not installed"
    )


def train(
    config: KDConfig,
    split: Split,
    folder: Path | None,
    wrap: Callable[[nn.Module, Scorer], nn.Module] | None = None,
    resume: Any = None,
    more: dict[str, Any] | None = None,
    test: bool = True,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train a model and test its best weights.

    Args:
        config: The model's configuration.
        split: The split.
        folder: Where to write, or ``None`` for nowhere; keep others out with :func:`locked`.
        wrap: Turns the plain model and its scorer into the model to train, e.g. a distiller.
        resume: ``auto``, a path, or ``None`` to start afresh.
        more: Plain data saved with the weights.
        test: Whether the test split is touched. A run that is not tested counts as unfinished:
            ``resume="auto"`` tests it.
        on_epoch: Called with epoch and score after every validation, those before the resume
            included; what it raises ends the training.

    Raises:
        KDError: See the trainer.
    """
    started = time.perf_counter()
    model = build_plain(config, split)
    scorer = scorer_for(model, split.history, config["score_temperature"])
    if config.role == "teacher":
        scorer.check()
    # Whatever the wrapper draws must not move the batches and negatives of the base loss.
    wrapped = wrap(model, scorer) if wrap else model
    init_seed(config["seed"], config["reproducibility"])
    loaders = make_loaders(config, split)
    say_unread(config, split)
    source = _prepare_folder(config, folder, resume)
    described = deploy.describe(config, split, **(more or {}), selection=selection(config))
    trainer = make_trainer(config, wrapped, folder, described)
    if source is not None:
        trainer.resume(source, loaders[0])
        getLogger().info("Resumed from %s at epoch %d", source, trainer.start_epoch)
    with _closing(trainer):
        score, result = _fit(trainer, loaders, config["show_progress"], on_epoch)
    seconds = time.perf_counter() - started
    tested = _test(trainer, config, split, folder, loaders[2]) if test else {}
    if not test:
        trainer.load_best()
    if source is not None and full_ranking(config):
        result = trainer.evaluate(loaders[1])  # the run that stopped may have measured other things
    trained = Trained(
        name=config["model"],
        model=model.eval(),
        scorer=scorer,
        folder=folder,
        best_valid_score=float(score),
        best_valid_result={k: float(v) for k, v in (result or {}).items()},
        test_result=tested,
        best_epoch=trainer.best_epoch,
        epochs=trainer.epochs_done,
        seconds=seconds,
    )
    if test:
        write_result(trained, config)
    return trained


def _fit(
    trainer: RunTrainer,
    loaders: Sequence[Any],
    show_progress: bool,
    on_epoch: Callable[[int, float], None] | None,
) -> tuple[float, Any]:
    """Train to the end; returns score and metrics of the best validation."""
    if on_epoch is not None:
        for epoch, score in trainer.validated():
            on_epoch(epoch, score)
    options = {"saved": True, "verbose": False, "show_progress": show_progress}
    try:
        return trainer.fit(loaders[0], loaders[1], callback_fn=on_epoch, **options)
    except ModuleNotFoundError as error:  # NCL asks for faiss as its first epoch begins
        raise _lacks_module(trainer.config, error) from error


def _test(
    trainer: RunTrainer, config: KDConfig, split: Split, folder: Path | None, loader: Any
) -> dict[str, float]:
    """Test metrics of the best weights; writes the rankings if the run asks for them."""
    result = trainer.evaluate(loader, show_progress=config["show_progress"])
    _write_rankings(trainer, config, split, folder)
    return {k: float(v) for k, v in result.items()}


@contextlib.contextmanager
def _closing(trainer: RunTrainer) -> Iterator[None]:
    """Close the log of a training, however it ends."""
    try:
        yield
    finally:
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
    source = checkpoint.file_in(resume, "last.pt")
    if not source.is_file():
        raise KDError(f"--resume={resume}: there is no such file; allowed are auto or a last.pt")
    return source


def _prepare_folder(config: KDConfig, folder: Path | None, resume: Any) -> Path | None:
    """Fill a run's folder; returns the ``last.pt`` to resume from, if any."""
    if folder is None:
        return None
    source = check_resume(resume, saved=True)
    if resume == "auto":
        source = folder / "last.pt" if (folder / "last.pt").is_file() else None
    foreign = source is not None and source.parent.resolve() != folder.resolve()
    if foreign and (folder / "last.pt").is_file():
        source, foreign = folder / "last.pt", False  # its name says that it went on from there
    if source is None or foreign:
        results = ("metrics.jsonl", "result.json", "summary.json")
        for name in ("best.pt", "last.pt", *results, *per_user.FILES):
            (folder / name).unlink(missing_ok=True)
        for name in ("tensorboard", "epochs"):
            shutil.rmtree(folder / name, ignore_errors=True)
    write_resolved(config, folder)
    if source is not None and foreign:
        _take_over(config, source, folder)
    return source


def _take_over(config: KDConfig, source: Path, folder: Path) -> None:
    """Copy what another run has beside its ``last.pt``, up to the epoch of that file."""
    for name in ("best.pt", "metrics.jsonl"):
        if (source.parent / name).is_file():
            shutil.copyfile(source.parent / name, folder / name)
    content = checkpoint.load(source)
    kept = {int(f.stem): f for f in checkpoint.epoch_files(source.parent)}
    best, every = content.get("best_epoch", -1), config["save_every"]
    if every and best >= 0 and (best + 1) % every == 0:
        kept[best] = source.parent / "best.pt"  # a finished run has it there only
    for epoch, file in kept.items():
        if epoch <= content.get("epoch", -1) and file.is_file():
            target = checkpoint.epoch_file(folder, epoch)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def write_resolved(config: KDConfig, folder: Path) -> None:
    """Write every option of a run beside its results.

    Args:
        config: The model's configuration.
        folder: The run's folder.
    """
    resolved = yaml.safe_dump(config.resolved(), sort_keys=True, allow_unicode=True)
    checkpoint.write_text(folder / "resolved.yaml", resolved)


@contextlib.contextmanager
def locked(folder: Path | None, wait: bool) -> Iterator[None]:
    """Make a run's folder and keep other processes out of it; a killed process leaves no lock.

    Args:
        folder: The folder, or ``None`` for nothing to lock.
        wait: Whether to wait for another process to finish, or to refuse.

    Raises:
        KDError: Another process holds it and ``wait`` is false; or the folder cannot be made.
    """
    if folder is None:
        yield
        return
    checkpoint.need_space(folder, 0)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        try:
            lock.acquire()
        except Timeout:
            if not wait:
                raise KDError(
                    f"{folder}: another process is writing this run; allowed is one at a time"
                ) from None
            getLogger().info("Waiting for another process that trains in %s", folder)
            lock.acquire(timeout=-1)
    except OSError as error:
        raise KDError(f"--checkpoint_dir: {lock.lock_file}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _write_rankings(
    trainer: RunTrainer, config: KDConfig, split: Split, folder: Path | None
) -> None:
    """Write the rankings of the test that was made last, if the run asks for them."""
    if config["per_user"] and folder is not None:
        rankings = trainer.evaluator.rankings()
        per_user.write(folder, rankings, split.tokens, split.history, measured(config))


def write_result(trained: Trained, config: KDConfig) -> None:
    """Write what came of a training, which marks it as ended.

    Args:
        trained: The trained model with its results.
        config: Its configuration.
    """
    if trained.folder is None:
        return
    result = {
        "model": trained.name,
        "measured": measured(config),
        "best_valid_score": trained.best_valid_score,
        "best_valid_result": trained.best_valid_result,
        "test_result": trained.test_result,
        "best_epoch": trained.best_epoch,
        "epochs": trained.epochs,
        "seconds": round(trained.seconds, 2),
    }
    if not config["per_user"] and _read_result(trained.folder).get("measured") != measured(config):
        per_user.remove(trained.folder)  # they are of other metrics
    checkpoint.write_text(trained.folder / "result.json", json.dumps(result, indent=1) + "\n")


def _read_result(folder: Path) -> dict[str, Any]:
    """What a run has written of its results; nothing where it has not ended."""
    file = folder / "result.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def folder_of(config: KDConfig, split: Split, name: str, *more: str, resume: Any = None) -> Path:
    """Folder of a run. Trainings that would come out equal share it.

    What ``--resume=PATH`` goes on with from another run is another training than the fresh one.

    Args:
        config: The model's configuration.
        split: The split.
        name: Beginning of the folder's name.
        *more: Further parts of the fingerprint.
        resume: Value of ``--resume``.
    """

    def place(*parts: str) -> Path:
        digest = fingerprint(config, split, *parts)
        return Path(config["checkpoint_dir"]) / config["dataset"] / f"{name}-{digest}"

    fresh = place(*more)
    source = check_resume(resume, saved=True)
    if source is None or source.parent.resolve() == fresh.resolve():
        return fresh
    return place(*more, checkpoint.digest(source))


def train_cached(
    config: KDConfig,
    split: Split,
    saved: bool = True,
    name: str = "",
    *more: str,
    test: bool = True,
    **wrapping: Any,
) -> Trained:
    """Train a model, or find it trained.

    The folder is named by a fingerprint of data, split, model, hyper-parameters and seed. A run
    that asks for the same finds the model there, and measures it anew if it asks for other metrics;
    one that was killed goes on, and one that finds another process at it waits.

    Args:
        config: The model's configuration.
        split: The split.
        saved: Whether to read and write the cache.
        name: Beginning of the folder's name; the model's by default.
        *more: Further parts of the fingerprint.
        test: See :func:`train`; without, a model that is found keeps what was measured of it.
        **wrapping: ``wrap`` and ``more`` of :func:`train`.
    """
    if not saved:
        return train(config, split, None, test=test, **wrapping)
    folder = folder_of(config, split, name or config["model"], *more)
    return cached(
        *(config, split, folder),
        lambda: train(config, split, folder, resume="auto", test=test, **wrapping),
        test,
    )


def cached(
    config: KDConfig, split: Split, folder: Path, make: Callable[[], Trained], test: bool = True
) -> Trained:
    """Find a model trained in a folder, measured as this run asks; else have it made.

    Args:
        config: The model's configuration.
        split: The split.
        folder: Its folder; another process that is at it is waited for.
        make: Trains it and fills the folder.
        test: Whether a model that is found is measured anew for other metrics.
    """
    if _finished(folder) and not os.access(folder, os.W_OK):
        return _find(config, split, folder, test)  # somebody else's, and nobody writes there
    with locked(folder, wait=True):
        if _finished(folder):
            return _find(config, split, folder, test)
        getLogger().info("Training %s (%s) in %s", config["model"], config.role, folder)
        return make()


def _finished(folder: Path) -> bool:
    return (folder / "result.json").is_file() and (folder / "best.pt").is_file()


def _find(config: KDConfig, split: Split, folder: Path, test: bool = True) -> Trained:
    """The finished model in a folder, measured as this run asks if it is to be tested."""
    getLogger().info("Found %s (%s) trained in %s", config["model"], config.role, folder)
    result = _read_result(folder)
    loaded = deploy.load_model(folder, config["device"], dataset=train_part(config, split))
    same = result.pop("measured", None) == measured(config)
    if config["per_user"]:
        same = same and per_user.fits(folder, measured(config))
    result["name"] = result.pop("model")
    scorer = scorer_for(loaded.model, split.history, config["score_temperature"])
    trained = Trained(model=loaded.model, scorer=scorer, folder=folder, **result)
    if test and not same:
        writable = os.access(folder, os.W_OK)
        found = measure(config, split, loaded.model, folder=folder if writable else None)
        trained.best_valid_result, trained.test_result = found["valid"], found["test"]
        if writable:
            write_resolved(config, folder)
            write_result(trained, config)
        elif config["per_user"]:
            getLogger().warning("%s cannot be written: it gets no %s", folder, per_user.FILE)
    return trained


def measure(
    config: KDConfig,
    split: Split,
    model: nn.Module,
    parts: Sequence[str] = ("valid", "test"),
    folder: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of a model that is not trained now, by part.

    Args:
        config: Configuration that says what is measured, and how.
        split: The split.
        model: A model in the split's ids.
        parts: ``valid``, ``test`` or both.
        folder: Where the test's rankings are written, if the configuration asks for them.
    """
    loaders = dict(zip(("train", "valid", "test"), make_loaders(config, split), strict=True))
    trainer = RunTrainer(config, model)
    trainer.eval_collector.data_collect(loaders["train"])
    found = {}
    for part in parts:
        result = trainer.evaluate(loaders[part], load_best_model=False)
        found[part] = {k: float(v) for k, v in result.items()}
        if part == "test":
            _write_rankings(trainer, config, split, folder)
    return found
