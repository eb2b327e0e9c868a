"""Training: RecBole's trainer with an epoch hook, safe checkpoints, exact resume and a log.

It knows a lifecycle, and no method by name: a model may have ``begin_epoch``, ``epoch_log``,
``deployed`` and ``resume_state`` (see :class:`recbole_kd.methods.base.Distiller`), and a plain
RecBole model has none of them.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.trainer import Trainer
from recbole.utils import get_trainer
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from recbole_kd import checkpoint, compat, optim
from recbole_kd.errors import KDError
from recbole_kd.evaluation import RankingEvaluator, TopKCollector

KEPT_EPOCHS = 20
"""Models of earlier epochs for which there must be room; early stopping leaves few."""


class RunTrainer(Trainer):
    """RecBole's ``Trainer`` for a run with a folder of its own.

    The folder holds ``best.pt`` (what is shipped), ``last.pt`` (what resumes), ``metrics.jsonl``
    and TensorBoard events.

    Args:
        config: The model's configuration.
        model: A RecBole model, plain or distilled.
        folder: The run's folder, or ``None`` to write nothing and keep the best weights in memory.
        describe: Plain data saved beside the best weights (tokens, options, split).
    """

    def __init__(
        self,
        config: Any,
        model: nn.Module,
        folder: Path | None = None,
        describe: dict[str, Any] | None = None,
    ):
        self.folder = folder
        self.describe = describe or {}
        with compat.no_default_folders():
            super().__init__(config, model)
        self.eval_collector = TopKCollector(config)
        self.evaluator = RankingEvaluator(config)
        self.save_every = config.whole_number("save_every")
        if folder is not None:
            size = sum(p.numel() * p.element_size() for p in model.parameters())
            kept = config["epochs"] // self.save_every if self.save_every else 0
            checkpoint.need_space(folder, (6 + min(kept, KEPT_EPOCHS)) * size)
            self.saved_model_file = str(folder / "best.pt")
        self.tensorboard = event_writer(folder)
        self.save_last_seconds = config.number("save_last_seconds", low=0)
        self.finished = False
        self.best_epoch = -1
        self.best_state: dict[str, Tensor] | None = None
        self._train_data: Any = None
        self._epoch = self._batch = 0
        self._last_saved = time.monotonic()
        self._record: dict[str, Any] = {}
        self._on_epoch: Callable[[int, float], None] | None = None

    # -- optimiser -----------------------------------------------------------------------------

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """RecBole's optimiser over what may learn, see :func:`recbole_kd.optim.speed_up`."""
        if "params" not in kwargs:
            kwargs["params"] = [p for p in self.model.parameters() if p.requires_grad]
        if not kwargs["params"]:
            kwargs["params"] = [nn.Parameter(torch.zeros(0))]
        optimizer = super()._build_optimizer(**kwargs)
        clipped = bool(self.clip_grad_norm)
        optim.speed_up(optimizer, self.model, self.config["adam_eps"], clipped)
        return optimizer

    @property
    def epochs_done(self) -> int:
        """Epochs trained so far."""
        return self._epoch + 1

    def validated(self) -> list[tuple[int, float]]:
        """Epoch and score of every validation that the log has."""
        path = None if self.folder is None else self.folder / "metrics.jsonl"
        if path is None or not path.is_file():
            return []
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(r["epoch"], r["valid"][self.valid_metric]) for r in records if "valid" in r]

    # -- one epoch -----------------------------------------------------------------------------

    def fit(self, train_data: Any, valid_data: Any = None, **kwargs: Any) -> tuple[float, Any]:
        """Train until early stopping or the last epoch; see RecBole's ``Trainer.fit``."""
        self._train_data = train_data
        self._on_epoch = kwargs.pop("callback_fn", None)
        verbose = kwargs.get("verbose", True)
        if not self.finished:
            super().fit(train_data, valid_data, callback_fn=self._after_validation, **kwargs)
            self.finished = True
            self._flush_record()
            for file in checkpoint.epoch_files(self.folder):
                if int(file.stem) >= self.best_epoch:
                    file.unlink()  # best.pt is the end of the way to it
            self._save_last(self._epoch)
        else:
            self.eval_collector.data_collect(train_data)  # as RecBole's fit begins
        if verbose:
            self.logger.info("Best epoch %d of %d", self.best_epoch, self._epoch + 1)
        return self.best_valid_score, self.best_valid_result

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> Any:
        self._flush_record()
        if epoch_idx > self.start_epoch:
            self._save_last_if_due(epoch_idx - 1)
        self._epoch, self._batch = epoch_idx, -1
        started = time.perf_counter()
        if hasattr(self.model, "begin_epoch"):
            self.model.begin_epoch(epoch_idx, len(train_data))
        refreshed = time.perf_counter()
        inner = loss_func or self.model.calculate_loss

        def counted(interaction: Any) -> Any:
            self._batch += 1
            return inner(interaction)

        losses = super()._train_epoch(train_data, epoch_idx, counted, show_progress)
        seconds = {"refresh": refreshed - started, "train": time.perf_counter() - refreshed}
        self._record = {"epoch": epoch_idx, **self._losses(losses, len(train_data))}
        self._record["seconds"] = {k: round(v, 4) for k, v in seconds.items()}
        if self.folder is not None and self.save_every and (epoch_idx + 1) % self.save_every == 0:
            file = checkpoint.epoch_file(self.folder, epoch_idx)
            file.parent.mkdir(exist_ok=True)
            checkpoint.save(file, self._content(epoch_idx))
        return losses

    def _losses(self, losses: Any, n_batches: int) -> dict[str, float]:
        if hasattr(self.model, "epoch_log"):
            return self.model.epoch_log()
        total = sum(losses) if isinstance(losses, tuple) else losses
        return {"base_loss": total / max(1, n_batches)}

    def _check_nan(self, loss: Tensor) -> None:
        if not torch.isfinite(loss).all():
            raise KDError(
                f"training stopped: the loss is {loss.item()} at epoch {self._epoch}, batch "
                f"{self._batch}; lower learning_rate or kd_weight, or look at the data"
            )

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        started = time.perf_counter()
        score, result = super()._valid_epoch(valid_data, show_progress)
        self._record.setdefault("seconds", {})["eval"] = round(time.perf_counter() - started, 4)
        self._record["valid"] = {k: float(v) for k, v in result.items()}
        return score, result

    def _after_validation(self, epoch_idx: int, valid_score: float) -> None:
        """Called by RecBole after every validation, its early-stopping state up to date."""
        self._flush_record()
        if self._on_epoch:
            self._on_epoch(epoch_idx, valid_score)

    def _flush_record(self) -> None:
        """Write the epoch's line to ``metrics.jsonl`` and its numbers to TensorBoard."""
        if not self._record:
            return
        record, self._record = self._record, {}
        if self.tensorboard is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self.tensorboard.add_scalar(f"train/{name}", value, record["epoch"])
        terms = {k: v for k, v in record.items() if isinstance(v, float)}
        shown = "  ".join(f"{k} {v:.4g}" for k, v in terms.items())
        self.logger.info("epoch %d: %s  %s", record["epoch"], shown, record["seconds"])
        if self.folder is not None:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    # -- checkpoints ---------------------------------------------------------------------------

    def _deployed(self) -> Any:
        return self.model.deployed() if hasattr(self.model, "deployed") else self.model

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """RecBole calls this when the model is the best so far."""
        self.best_epoch = epoch
        content = self._content(epoch)
        if self.folder is None:
            self.best_state = content["state_dict"]
            return
        checkpoint.save(self.saved_model_file, content)

    def _content(self, epoch: int) -> dict[str, Any]:
        """The deployed model as it is now, for a checkpoint."""
        model = self._deployed()
        return {
            **self.describe,
            "epoch": epoch,
            "best_valid_score": float(self.best_valid_score),
            "state_dict": {k: v.detach().cpu().clone() for k, v in model.state_dict().items()},
            "other_parameter": learned_beside(model),
        }

    def _save_last_if_due(self, epoch: int) -> None:
        if time.monotonic() - self._last_saved >= self.save_last_seconds:
            self._save_last(epoch)

    def _save_last(self, epoch: int) -> None:
        if self.folder is None:
            return
        state = self.model.resume_state() if hasattr(self.model, "resume_state") else {}
        content = {
            "run": self._identity(),
            "epoch": epoch,
            "finished": self.finished,
            "cur_step": self.cur_step,
            "best_epoch": self.best_epoch,
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": _floats(self.best_valid_result),
            "state_dict": self.model.state_dict(),
            "method": state,
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(self._train_data),
        }
        checkpoint.save(self.folder / "last.pt", content)
        self._last_saved = time.monotonic()

    def resume(self, path: Path, train_data: Any) -> None:
        """Continue where ``last.pt`` ended, bit for bit on the CPU.

        Args:
            path: The file.
            train_data: The train loader, whose random state is put back.

        Raises:
            KDError: The file is corrupt or of another model.
        """
        content = checkpoint.load(path)
        if "optimizer" not in content or "random" not in content:
            raise KDError(f"--resume: {path} is no last.pt; found a checkpoint without optimiser")
        self._check_identity(path, content)
        options = [
            {k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups
        ]
        try:
            self.model.load_state_dict(content["state_dict"])
            self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise KDError(f"--resume: {path} does not fit this run's model ({reason})") from error
        self._check_best(path, content)
        for group, chosen in zip(self.optimizer.param_groups, options, strict=True):
            group.update(chosen)  # this run's learning rate, not the file's
        self.start_epoch = content["epoch"] + 1
        self._epoch = content["epoch"]
        self.cur_step = content["cur_step"]
        stopped_early = self.cur_step > self.stopping_step
        self.finished = stopped_early or self.start_epoch >= self.epochs
        self.best_epoch = content["best_epoch"]
        self.best_valid_score = content["best_valid_score"]
        self.best_valid_result = content["best_valid_result"]
        if hasattr(self.model, "load_resume_state"):
            self.model.load_resume_state(content["method"])
        restore_random_state(content["random"], train_data)
        self._cut_metrics(content["epoch"])

    def _identity(self) -> dict[str, Any]:
        """What a run must share with the one it goes on from."""
        keys = ("model", "method", "teacher", "split")
        identity = {key: self.describe[key] for key in keys if key in self.describe}
        return {**identity, **self.describe.get("selection", {})}

    def _check_identity(self, path: Path, content: dict[str, Any]) -> None:
        for key, mine in self._identity().items():
            found = content.get("run", {}).get(key)
            if found != mine:
                raise KDError(
                    f"--resume: {path} does not fit this run: its {key} is {found}, "
                    f"here it is {mine}"
                )
        ended = content["epoch"] + 1
        if ended > self.epochs:
            raise KDError(f"--resume: {path} has {ended} epochs, found epochs={self.epochs}")

    def _check_best(self, path: Path, content: dict[str, Any]) -> None:
        """Refuse best weights of an epoch that another run would not reach in the same way.

        ``best.pt`` is written at once, ``last.pt`` now and then. The run itself trains those epochs
        again, to the same weights; a run with other options does not.
        """
        best = Path(self.saved_model_file)
        if self.folder is None or path.parent.resolve() == self.folder.resolve():
            return
        if best.is_file() and checkpoint.load(best)["epoch"] != content["best_epoch"]:
            raise KDError(
                f"--resume: the best weights beside {path} are newer than it; "
                "first finish that run with its own options"
            )

    def _cut_metrics(self, epoch: int) -> None:
        """Drop the log lines of epochs that will be run again."""
        path = None if self.folder is None else self.folder / "metrics.jsonl"
        if path is None or not path.is_file():
            return
        lines = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["epoch"] <= epoch:
                    lines.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                continue  # the line a kill cut short
        checkpoint.write_text(path, "".join(lines))

    @torch.no_grad()
    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> Any:
        """RecBole's evaluation; the best weights come from memory, or from ``model_file``."""
        if load_best_model:
            self.load_best(model_file)
        return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)

    def load_best(self, model_file: str | None = None) -> Any:
        """Give the deployed model its best weights, from memory, the run's folder or a file."""
        model, state = self._deployed(), self.best_state
        if model_file is not None or self.folder is not None:
            content = checkpoint.load(model_file or self.saved_model_file)
            state = content["state_dict"]
            model.load_other_parameter(content.get("other_parameter"))
        if state is not None:
            model.load_state_dict(state)
        clear_caches(model)
        return model


def learned_beside(model: Any) -> dict[str, Tensor]:
    """Tensors that a model learns outside its parameters, such as Pop's item counts.

    The embeddings that graph models cache for evaluation are none of them.
    """
    return {
        name: value.detach().cpu()
        for name, value in model.other_parameter().items()
        if isinstance(value, Tensor) and not name.startswith("restore_")
    }


def clear_caches(model: nn.Module) -> None:
    """Forget the embeddings that RecBole's graph models keep from an earlier evaluation."""
    for name in getattr(model, "other_parameter_name", []):
        if name.startswith("restore_"):
            setattr(model, name, None)


def make_trainer(
    config: Any, model: nn.Module, folder: Path | None, describe: dict[str, Any] | None = None
) -> RunTrainer:
    """The trainer of a model: ours, over the one RecBole has for the model's name if it has one.

    Args:
        config: The model's configuration.
        model: The model, plain or distilled.
        folder: The run's folder, or ``None``.
        describe: Plain data saved beside the best weights.
    """
    own = get_trainer(config["MODEL_TYPE"], config["model"])
    cls: type[RunTrainer] = RunTrainer
    if own is not Trainer and not hasattr(model, "begin_epoch"):
        cls = type(f"Run{own.__name__}", (RunTrainer, own), {})
    return cls(config, model, folder, describe)


def event_writer(folder: Path | None) -> Any:
    """A TensorBoard writer into a run's folder; one that writes nothing where there is none.

    Args:
        folder: The folder, or ``None``.
    """
    return _NoWriter() if folder is None else SummaryWriter(str(folder / "tensorboard"))


class _NoWriter:
    """A TensorBoard writer that writes nothing."""

    def add_scalar(self, *args: Any, **kwargs: Any) -> None:
        """Ignore."""

    def add_hparams(self, *args: Any, **kwargs: Any) -> None:
        """Ignore."""


def _floats(result: Any) -> dict[str, float] | None:
    return None if result is None else {k: float(v) for k, v in result.items()}


def random_state(train_data: Any) -> dict[str, Any]:
    """All random state of a training run as tensors and numbers.

    Args:
        train_data: The train loader, whose generator orders the batches; ``None`` for none.
    """
    state_tuple: Any = np.random.get_state()  # noqa: NPY002
    name, keys, position, has_gauss, cached = state_tuple
    version, internal, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "python": [version, torch.tensor(internal), gauss],
        "batches": None if train_data is None else train_data.generator.get_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any], train_data: Any) -> None:
    """Put back what :func:`random_state` took."""
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        (name, keys.numpy().astype(np.uint32), position, has_gauss, cached)
    )
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    if state["batches"] is not None:
        train_data.generator.set_state(state["batches"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
