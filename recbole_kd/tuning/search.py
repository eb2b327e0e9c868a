"""``recbole-kd tune``: trials of one method on one pair, by the validation metric alone.

The teacher is trained or opened once and shared, no trial trains the scratch student, and none
touches the test split. The best configuration becomes a recipe, and its model is tested at the end.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import torch

import recbole_kd
from recbole_kd import checkpoint, optional, training
from recbole_kd.defaults import method_ranges
from recbole_kd.errors import KDError
from recbole_kd.keys import check_keys, known_keys
from recbole_kd.options import Sources, flatten, nest
from recbole_kd.quick_start import Run, refuse_distributed, start_logging
from recbole_kd.registry import short_name
from recbole_kd.teachers import TeacherParts
from recbole_kd.tuning import recipe
from recbole_kd.tuning.space import Range, described, read_ranges, to_ranges
from recbole_kd.tuning.study import ASKER, PRUNERS, Outcome, RefusedError, Report, Study

SETTINGS = ("trials", "params_file", "study", "pruner", "warmup_epochs")
"""Options of a search; all others are those of the run that is searched."""

FIXED = {"eval_step", "save_every", "save_last_seconds", "seed", "valid_metric"}
"""Options of a training by which trials could no longer be compared, or that change no model."""


def tune(
    model: str | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | Path] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    *,
    student: str | None = None,
    teacher: str | Sequence[str] | None = None,
    command_line: Mapping[str, Any] | None = None,
    trials: int = 30,
    params_file: str | Path | None = None,
    study: str | Path | None = None,
    pruner: str = "median",
    warmup_epochs: int = 10,
) -> dict[str, Any]:
    """Search the options of a method, or of a student alone, by the validation metric.

    The same call goes on with a search that was stopped. The arguments before ``trials`` are those
    of :func:`recbole_kd.quick_start.run_recbole_kd`.

    Args:
        model: Distillation method, or ``Scratch``.
        dataset: Name of the data set.
        config_file_list: YAML files of options.
        config_dict: Options.
        student: Model of the student.
        teacher: Model of the teacher, its file, or several files.
        command_line: Parsed options of the command line.
        trials: Trials in all, those of earlier calls included.
        params_file: File of ranges; by default those beside the method's options, without what
            the user has set.
        study: Folder of the search; by default one in ``checkpoint_dir``.
        pruner: ``median`` or ``none``.
        warmup_epochs: Epochs in which no trial is pruned.

    Returns:
        What ``run_recbole_kd`` returns for the best configuration, with its options
        (``best_params``), all trials (``trials``), the folder (``study``) and the file of the
        recipe (``recipe``).

    Raises:
        KDError: Bad input, a study of another search, or no trial that came to its end.
    """
    optional.library("optuna", ASKER)
    settings = {"trials": trials, "pruner": pruner, "warmup_epochs": warmup_epochs}
    _check_settings(settings)
    sources = Sources.collect(
        model, dataset, student, teacher, config_file_list or (), config_dict, command_line
    )
    refuse_distributed(sources)
    search = Search(sources, params_file, pruner, warmup_epochs)
    folder = search.default_folder() if study is None else Path(study)
    with training.locked(folder, wait=False):
        return search.run(folder, trials)


def _check_settings(settings: Mapping[str, Any]) -> None:
    for key, low in (("trials", 1), ("warmup_epochs", 0)):
        value = settings[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise KDError(f"--{key}={value}: allowed are whole numbers from {low}")
    if settings["pruner"] not in PRUNERS:
        raise KDError(f"--pruner={settings['pruner']}: allowed are {', '.join(PRUNERS)}")


class Search:
    """A search: what is searched, and the run that each trial varies.

    Args:
        sources: What the user said of the run.
        params_file: File of ranges, or ``None`` for the shipped ones.
        pruner: One of :data:`~.study.PRUNERS`.
        warmup_epochs: Epochs in which no trial is pruned.

    Raises:
        KDError: Bad input that shows before anything is trained.
    """

    def __init__(
        self, sources: Sources, params_file: str | Path | None, pruner: str, warmup_epochs: int
    ):
        self.sources, self.rule = sources, (pruner, warmup_epochs)
        ranges = _given(sources, params_file) if params_file else _shipped(sources)
        self.base = Run(sources, saved=True)
        self.config = self.base.config
        if self.config["resume"] not in (None, "auto"):
            raise KDError(
                f"--resume={self.config['resume']}: a trial goes on with itself; allowed is auto"
            )
        self.config.positive_int("eval_step")
        self.defaults = {key: self.config[key.removeprefix("student.")] for key in ranges}
        if not params_file:
            ranges = {key: one.widened(self.defaults[key]) for key, one in ranges.items()}
        self.ranges = ranges
        self.metric = self.config["valid_metric"].lower()
        self.log = getLogger("recbole_kd")
        self.teacher: TeacherParts | None = None
        self._check_own()

    def default_folder(self) -> Path:
        """Folder of the search in the run's ``checkpoint_dir``."""
        names = [self.sources.method, self.sources.student]
        if self.base.method is not None:
            names.append(self.sources.teacher or "opened")
        name = "-".join(map(short_name, names))
        return Path(self.config["checkpoint_dir"]) / self.config["dataset"] / f"tune-{name}"

    def _check_own(self) -> None:
        """Refuse now, and not once a trial, what no searched option can put right.

        That is a refusal of the run's own options that stays the same, word for word, at both ends
        of every range.

        Raises:
            KDError: That refusal.
        """
        try:
            self.base.check()
        except KDError as error:
            ends = [{key: end} for key, one in self.ranges.items() for end in one.ends]
            refusals = {self._refusal({**self.defaults, **end}) for end in ends}
            start_logging(self.config)  # they were quieter
            if refusals == {str(error)}:
                raise

    def _refusal(self, params: Mapping[str, Any]) -> str | None:
        """Why no run can have some options, as far as it shows without the teacher."""
        try:
            self._run_of(params).check()
        except KDError as error:
            return str(error)
        return None

    def run(self, folder: Path, trials: int) -> dict[str, Any]:
        """Search, write the recipe, and test the best model.

        Args:
            folder: The folder of the search, which no other process is in.
            trials: Trials in all.

        Raises:
            KDError: The folder holds another search, or no trial came to its end.
        """
        study = self._searched(folder, trials)
        table, best, outcomes = study.write_table(), study.best(), study.outcomes()
        if best is None:
            raise KDError(
                f"tune: none of {len(outcomes)} trials came to its end, see {table}; "
                f"the last: {outcomes[-1].reason}"
            )
        path = self._write_recipe(folder, best, len(outcomes))
        found = (best.number, self.metric, best.value, path)
        self.log.info("Best: trial %d, %s %g; recipe: %s", *found)
        again = self._with(best.params, "best trial", {"resume": "auto"})
        result = Run(again, saved=True, split=self.base.split).result()
        more = {"study": str(folder), "recipe": str(path), "best_params": best.params}
        return {**result, **more, "trials": [vars(o) for o in outcomes]}

    def _searched(self, folder: Path, trials: int) -> Study:
        """The study after its last trial."""
        trained = self.base.teacher_config is not None
        if self.base.method is not None and not trained:
            self.teacher = self.base.finder.find()
        bigger = self.config["valid_metric_bigger"]
        parts = (folder, self.ranges, self._identity(), self.config["seed"], bigger)
        study = Study(*parts, *self.rule)
        self._say_space(folder)
        self._begin(study)
        if trained:  # only now, for it may take hours and the study may be refused
            self.teacher = self.base.finder.find()
        for outcome in study.go_on(trials, self._trial):
            start_logging(self.config)  # the trial was quieter
            self._say(outcome, study, trials)
            study.write_table()
        return study

    # -- one trial -----------------------------------------------------------------------------

    def _trial(self, params: dict[str, Any], report: Report) -> float:
        try:
            run = self._run_of(params)
            run.check(self.teacher)
        except KDError as error:
            raise RefusedError(str(error)) from error
        return run.trial(self.teacher, report).best_valid_score

    def _run_of(self, params: Mapping[str, Any]) -> Run:
        """The run of a trial, which says less than the search."""
        level = str(self.config["state"] or "INFO").upper()
        quiet = {"scratch": False, "resume": "auto"}
        if level != "DEBUG":
            quiet.update(show_progress=False, state="WARNING" if level == "INFO" else level)
        return Run(self._with(params, "trial", quiet), saved=True, split=self.base.split)

    def _with(self, params: Mapping[str, Any], origin: str, more: Mapping[str, Any]) -> Sources:
        """The run's sources with the options of a trial over them."""
        return self.sources.with_layer(origin, {**recipe.place(params, self.sources), **more})

    def _begin(self, study: Study) -> None:
        """Let the run's own options be the first trial, so that the best is never worse."""
        outside = [key for key, one in self.ranges.items() if not one.holds(self.defaults[key])]
        if not outside:
            study.begin_with(self.defaults)
            return
        shown = ", ".join(f"{key}={self.defaults[key]}" for key in outside)
        self.log.info(
            "The run's own options are no trial, for %s is out of range: the best may be worse",
            shown,
        )

    # -- what is kept --------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What trials must share to be compared."""
        split, config = self.base.split, self.config
        varied = {key.removeprefix("student.") for key in self.ranges}
        keys = (config.learning_keys() | training.SELECTION_KEYS) - varied
        return {
            "data set": config["dataset"],
            "split": split.prints(config.reads_time),
            "method": config.method,
            "student": config.import_path,
            "search space": described(self.ranges),
            "metric": training.selection(config),
            "options": {k: v for k, v in config.resolved().items() if k in keys},
            "pruner": list(self.rule),
            "teacher": self._teacher_identity(),
        }

    def _teacher_identity(self) -> str | None:
        """What tells the teacher from others, without training it."""
        if self.base.teacher_config is not None:
            return training.fingerprint(self.base.teacher_config, self.base.split)
        return None if self.teacher is None else self.teacher.digest

    def _write_recipe(self, folder: Path, best: Outcome, count: int) -> Path:
        path, teacher, student = folder / recipe.FILE, self.teacher, self.config["model"]
        taught_by = None if teacher is None else teacher.name
        layers = [layer for layer in self.config.layers if layer.origin.startswith("recipe ")]
        chosen = recipe.body(self.sources, layers, best.params)
        pair = student if taught_by is None else f"{taught_by} -> {student}"
        versions = f"recbole_kd {recbole_kd.__version__}, torch {torch.__version__}"
        optuna = optional.library("optuna", ASKER).__version__
        head = [
            f"{self.config.method}, {self.config['dataset']}, {pair}: the best of {count} trials",
            f"by {self.metric} on validation: {best.value:g} (trial {best.number})",
            f"Study {folder}, seed {self.config['seed']}, {datetime.date.today()}, "
            f"{versions}, optuna {optuna}",
            recipe.command(self.sources, chosen, str(path)),
            "To ship it: " + recipe.shipped_path(self.sources, taught_by),
        ]
        checkpoint.write_text(path, recipe.text(head, chosen))
        return path

    # -- what is said --------------------------------------------------------------------------

    def _say_space(self, folder: Path) -> None:
        lines = [f"  {k}: {one}  (own {self.defaults[k]})" for k, one in self.ranges.items()]
        space = "\n".join(lines)
        self.log.info("Searching by %s on validation, in %s\n%s", self.metric, folder, space)

    def _say(self, outcome: Outcome, study: Study, trials: int) -> None:
        best = study.best()
        params = ", ".join(
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in outcome.params.items()
        )
        said = outcome.state if outcome.reason else f"{outcome.state} {outcome.value:.6g}"
        if outcome.state == "pruned":
            said = f"pruned after epoch {outcome.epoch} with {outcome.value:.6g}"
        best_said = "none yet" if best is None else f"{best.value:.6g} in trial {best.number}"
        self.log.info(
            "trial %d (%d of %d): %s; best %s; %.1f s; %s%s",
            outcome.number,
            len(study.outcomes()),
            trials,
            said,
            best_said,
            outcome.seconds,
            params,
            f"; {outcome.reason}" if outcome.reason else "",
        )


# -- ranges ------------------------------------------------------------------------------------


def _given(sources: Sources, params_file: str | Path) -> dict[str, Range]:
    """The ranges in the user's file.

    Raises:
        KDError: An option is unknown, set already, or the same in all trials.
    """
    ranges, origin = read_ranges(params_file), f"--params_file={params_file}"
    check_keys(sources.with_layer(origin, nest({key: None for key in ranges})))
    free = recipe.method_keys(sources) | (known_keys(sources)["student"] - FIXED)
    inner = [key.removeprefix("student.") for key in ranges]
    for key, name in zip(ranges, inner, strict=True):
        if name not in free or (key != name and name in recipe.method_keys(sources)):
            raise KDError(
                f"{origin}: found {key}, which is the same in all trials; allowed are options of "
                "the method and of the student's model and training"
            )
        if inner.count(name) > 1 or _is_said(sources, name):
            raise KDError(f"{origin}: found {key}, which is set as well; allowed is one of the two")
    return ranges


def _shipped(sources: Sources) -> dict[str, Range]:
    """The ranges beside the method's options, without what the user has set.

    Raises:
        KDError: None is left.
    """
    all_ranges = method_ranges(sources.method)
    free = {key: one for key, one in all_ranges.items() if not _is_said(sources, key)}
    if not free:
        found = f"all of {', '.join(all_ranges)} are set" if all_ranges else "it has no ranges"
        raise KDError(
            f"tune: found nothing to search for --model={sources.method}, for {found}; "
            "allowed is --params_file=FILE"
        )
    return to_ranges(free, f"ranges of {short_name(sources.method)}")


def _is_said(sources: Sources, key: str) -> bool:
    return any(key in flatten(layer.values, "student") for layer in sources.layers)
