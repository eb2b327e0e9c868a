"""One call from options to results: the wiring, and nothing else."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recbole_kd import checkpoint, deploy, per_user, report, training
from recbole_kd.config import KDConfig
from recbole_kd.data import Split, load_split
from recbole_kd.errors import KDError
from recbole_kd.keys import check_keys
from recbole_kd.methods.base import TaughtStudent
from recbole_kd.options import Sources
from recbole_kd.registry import method_class, recbole_class, short_name
from recbole_kd.scoring import Scorer, require_factorised
from recbole_kd.several import taught_by
from recbole_kd.teachers import TeacherFinder, TeacherParts, identity, ranking


def run_recbole_kd(
    model: str | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | Path] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
    *,
    student: str | None = None,
    teacher: str | Sequence[str] | None = None,
    command_line: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a teacher, a scratch student and a distilled student, and compare them.

    The first five arguments are those of RecBole's ``run_recbole``; the precedence of options is
    in :mod:`recbole_kd.config`.

    Args:
        model: Distillation method, or ``Scratch`` to train the student alone.
        dataset: Name of the data set.
        config_file_list: YAML files of options.
        config_dict: Options.
        saved: Whether to write and reuse files.
        student: Model of the student.
        teacher: Model of the teacher, its file, or several files.
        command_line: Parsed options of the command line; they win over the dictionary.

    Returns:
        RecBole's ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result`` and
        ``test_result`` of the student; ``teacher_test_result`` and ``scratch_test_result``
        (``None`` where not trained), ``checkpoints``, ``sizes``, ``table``, and ``protocol``: the
        split, the seeds and what was ranked, in words.

    Raises:
        KDError: Bad input; one line that names the option or file.
    """
    sources = Sources.collect(
        model, dataset, student, teacher, config_file_list or (), config_dict, command_line
    )
    refuse_distributed(sources)
    return Run(sources, saved).result()


def refuse_distributed(sources: Sources) -> None:
    """Take RecBole's options of distributed training out of all sources.

    Args:
        sources: What the user said.

    Raises:
        KDError: One of them asks for more than one process.
    """
    for key in ("nproc", "world_size"):
        value = sources.get(key)
        if value not in (None, 1, -1, 0):
            raise KDError(f"--{key}={value}: distributed training is not supported; allowed is 1")
        for layer in sources.layers:
            layer.values.pop(key, None)


class Run:
    """One run: its configuration, its split, its models.

    Args:
        sources: What the user said.
        saved: Whether to write and reuse files.
        split: The split, where another run has loaded it already.

    Raises:
        KDError: Bad input that shows before anything is trained; the method's own options are
            checked when it is used, see :meth:`check`.
    """

    def __init__(self, sources: Sources, saved: bool, split: Split | None = None):
        self.method = method_class(sources.method)
        trained = not sources.teacher_files
        if self.method is not None and sources.teacher is None and trained:
            raise KDError(
                "--teacher is missing: name a model to train, or give --teacher.checkpoint=PATH"
            )
        check_keys(sources)
        self.sources, self.saved = sources, saved
        self.config = KDConfig(sources, "student")
        self.log = start_logging(self.config)
        self.teacher_config = self.scratch_config = None
        if self.method is not None and trained:
            self.teacher_config = KDConfig(sources, "teacher")
        if self.method is not None and self.config["scratch"]:
            self.scratch_config = KDConfig(sources, "scratch")
        for config in (self.config, self.teacher_config, self.scratch_config):
            if config is not None:
                self._say_changes(config)
        if self.config.choice("save_format", ("safe", "recbole")) == "recbole":
            recbole_class(sources.student, "--save_format=recbole")
        self.config.choice("empty_users", ("refuse", "keep"))
        training.check_resume(self.config["resume"], saved)
        per_user.check(self.config, saved)
        self.split = load_split(self.config) if split is None else split
        for config in (self.config, self.teacher_config, self.scratch_config):
            if config is not None:
                training.check_data(config, self.split)
        if self.method is not None:
            require_factorised(self.config.model_class, self.config["model"])
            parts = (self.method, self.config, self.teacher_config, self.split, saved)
            self.finder = TeacherFinder(*parts)
            self.finder.check()
        self.log.info(
            "%s: %d users, %d items, %s train/valid/test interactions",
            self.config["dataset"],
            len(self.split.tokens.users) - 1,
            len(self.split.tokens.items) - 1,
            "/".join(map(str, self.split.sizes)),
        )

    @property
    def prints(self) -> dict[str, str]:
        """Fingerprints of the split; of its times too where a model that is trained reads them."""
        configs = (self.config, self.teacher_config)
        return self.split.prints(any(c.reads_time for c in configs if c is not None))

    # -- the kinds of run ----------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """Train all that the run names, and compare; see :func:`run_recbole_kd`."""
        return self.alone() if self.method is None else self.distilled()

    def check(self, teacher: TeacherParts | None = None) -> None:
        """Refuse options of the method before anything is trained.

        Args:
            teacher: The teacher, once there is one.

        Raises:
            KDError: An option is out of range, or the teacher lacks what it asks for.
        """
        if self.method is None:
            return
        self.method.check(self.config, self.split.history)
        for one in teacher.guides if teacher else ():
            self.method.check_teacher(self.config, one)

    def trial(
        self, teacher: TeacherParts | None, on_epoch: Callable[[int, float], None]
    ) -> training.Trained:
        """Train the student for its validation score; the test split is not touched.

        Args:
            teacher: The teacher; ``None`` for a student that is trained alone.
            on_epoch: See :func:`recbole_kd.training.train`.
        """
        if teacher is not None:
            return self._distil(teacher, wait=True, test=False, on_epoch=on_epoch)[0]
        folder = self._folder(self.config["model"])
        return self._train(folder, wait=True, test=False, on_epoch=on_epoch)

    def alone(self) -> dict[str, Any]:
        """Train the student without a teacher."""
        if self.config["resume"] == "auto":
            trained = training.train_cached(self.config, self.split, self.saved)
        else:
            trained = self._train(self._folder(self.config["model"]))
        return self._finish(trained, None, None)

    def distilled(self) -> dict[str, Any]:
        """Teacher, scratch student, distilled student."""
        self.check()
        teacher = self.finder.find()
        self.check(teacher)
        scratch = self.scratch() if self.scratch_config is not None else None
        trained, assistant = self._distil(teacher)
        return self._finish(trained, teacher, scratch, assistant)

    def _distil(
        self, teacher: TeacherParts, test: bool = True, **how: Any
    ) -> tuple[training.Trained, TeacherParts | None]:
        """The student, and the assistant that taught it if the method wants one."""
        assistant = self._assistant(teacher, test)
        guide = assistant or teacher
        name = f"{short_name(self.config.method)}-{self.config['model']}-{teacher.name}"
        folder = self._folder(name, guide.digest)
        wrapping = self._wrapping(self.config, guide)
        return self._train(folder, test=test, **how, **wrapping), assistant

    def scratch(self) -> training.Trained:
        """The student of a distillation run, trained alone on the run's split."""
        assert self.scratch_config is not None
        return training.train_cached(self.scratch_config, self.split, self.saved)

    def _assistant(self, teacher: TeacherParts, test: bool) -> TeacherParts | None:
        """A student between teacher and student, distilled first, if the method wants one."""
        assert self.method is not None
        factors = [guide.factors() for guide in teacher.guides]
        width = max(0 if vectors is None else vectors[1].shape[1] for vectors in factors)
        changes = self.method.assistant(self.config, width)
        if changes is None:
            return None
        sources = self.sources.with_layer("teacher assistant", {"student": changes})
        config = KDConfig(sources, "student")
        name = f"{short_name(config.method)}-{config['model']}-{teacher.name}-assistant"
        parts = (config, self.split, self.saved, name, teacher.digest)
        trained = training.train_cached(*parts, test=test, **self._wrapping(config, teacher))
        frozen = self.finder.freeze(trained.scorer, identity(self.split))
        digest = training.fingerprint(config, self.split, teacher.digest)
        rest = (trained.scorer, trained.name, trained.test_result, trained.checkpoint, digest)
        return TeacherParts(frozen, *rest)

    def _wrapping(self, config: KDConfig, teacher: TeacherParts) -> dict[str, Any]:
        """How :func:`training.train` distils from a teacher."""
        assert self.method is not None
        method, train, history = self.method, self.split.train, self.split.history

        def wrap(model: Any, scorer: Scorer) -> TaughtStudent:
            parts = (config, train, model, scorer)
            distillers = [method(*parts, guide, history) for guide in teacher.guides]
            return taught_by(distillers, teacher.weights)

        return {
            "wrap": wrap,
            "more": {
                "method": config.method,
                "teacher": {"model": teacher.name, "digest": teacher.digest},
            },
        }

    def _train(self, folder: Path | None, wait: bool = False, **more: Any) -> training.Trained:
        """Train the student of this run, with no other process in its folder."""
        with training.locked(folder, wait):
            resume = self.config["resume"]
            return training.train(self.config, self.split, folder, resume=resume, **more)

    # -- results -------------------------------------------------------------------------------

    def _folder(self, name: str, *more: str) -> Path | None:
        if not self.saved:
            return None
        resume = self.config["resume"]
        return training.folder_of(self.config, self.split, name, *more, resume=resume)

    def _finish(
        self,
        trained: training.Trained,
        teacher: TeacherParts | None,
        scratch: training.Trained | None,
        assistant: TeacherParts | None = None,
    ) -> dict[str, Any]:
        users = self.split.history.active_users()
        role = "student, from scratch" if teacher is None else f"student, {self.config.method}"
        models = [
            *((line.role, line) for line in (teacher.lines if teacher else ())),
            ("teacher assistant", assistant),
            ("student, from scratch", scratch),
            (role, trained),
        ]
        rows = [
            report.make_row(role, model.name, model.scorer, model.test_result, users)
            for role, model in models
            if model is not None
        ]
        metric = self.config["valid_metric"].lower()
        table = report.table(rows, metric, teacher.role if teacher else "")
        checkpoints: dict[str, Any] = {
            "student": trained.checkpoint,
            "teacher": teacher.checkpoint if teacher else None,
            "scratch": scratch.checkpoint if scratch else None,
        }
        if assistant is not None:
            checkpoints["assistant"] = assistant.checkpoint
        writable = trained.folder is not None and os.access(trained.folder, os.W_OK)
        if trained.folder and writable and self.config["save_format"] == "recbole":
            target = trained.folder / "student.pth"
            checkpoints["recbole"] = str(deploy.export_recbole(trained.folder, target))
        result = {
            "best_valid_score": trained.best_valid_score,
            "valid_score_bigger": self.config["valid_metric_bigger"],
            "best_valid_result": trained.best_valid_result,
            "test_result": trained.test_result,
            "teacher_test_result": teacher.test_result if teacher else None,
            "scratch_test_result": scratch.test_result if scratch else None,
            "checkpoints": checkpoints,
            "sizes": [asdict(row) for row in rows],
            "best_epoch": trained.best_epoch,
            "epochs": trained.epochs,
            "seconds": trained.seconds,
            "table": table,
            "protocol": self._protocol(teacher),
        }
        if trained.folder and writable:
            summary = json.dumps(result, indent=1) + "\n"
            checkpoint.write_text(trained.folder / "summary.json", summary)
            self.log.info("Written to %s", trained.folder)
        return result

    def _protocol(self, teacher: TeacherParts | None) -> str:
        c = self.config
        split = f"split {c['eval_args']['split']} by {c['eval_args']['order']}"
        if c["benchmark_filename"]:
            split = f"ready-made split {c['benchmark_filename']}"
        seeds = f"split_seed {c['split_seed']}, seed {c['seed']}"
        if self.teacher_config is not None and self.teacher_config["seed"] != c["seed"]:
            seeds += f" (the teacher's: {self.teacher_config['seed']})"
        text = f"{split}, {seeds}, {ranking(c)}"
        return f"{text}; the teacher: {teacher.note}" if teacher and teacher.note else text

    def _say_changes(self, config: KDConfig) -> None:
        lines = [
            f"  {key}: {value}  (default {default}; {origin})"
            for key, (default, value, origin) in sorted(config.changed().items())
        ]
        names = f"{self.sources.method}, {config.role} {config['model']}"
        self.log.info(
            "%s on %s\nDifferent from the defaults:\n%s",
            names,
            config["dataset"],
            "\n".join(lines) or "  nothing",
        )


def start_logging(config: KDConfig) -> logging.Logger:
    """Log to the console at the level of RecBole's ``state`` option; repeated calls add nothing."""
    level = str(config["state"] or "INFO").upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        raise KDError(f"--state={level}: allowed are DEBUG, INFO, WARNING, ERROR, CRITICAL")
    root = logging.getLogger()
    root.setLevel(level)
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    return logging.getLogger("recbole_kd")
