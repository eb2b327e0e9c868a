"""A search that lives in a folder: which trial comes next, and what became of the others.

It knows ranges and numbers, and nothing of what is trained.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np

from recbole_kd import checkpoint, optional
from recbole_kd.errors import KDError
from recbole_kd.tuning.space import Choices, Range

ASKER = "recbole-kd tune"
STUDY = "study.db"
TRIALS = "trials.csv"
PRUNERS = ("median", "none")

STARTUP_TRIALS = 5
"""Trials that end before the median of their validations stops another."""

MOST_KILLS = 3
"""Times that the process of a trial is killed before the trial counts as failed."""

REASON, REPEATS, KILLS = "reason", "repeats", "kills"
"""What is kept of a trial: why it was refused or failed, which one it repeats, and how often those
before it were killed.

A trial that failed without a reason is one whose process ended.
"""

Report = Callable[[int, float], None]


class RefusedError(Exception):
    """A combination of options that no run can have; the message is the reason."""


@dataclass
class Outcome:
    """One trial that has ended.

    Attributes:
        number: Its number, from 0.
        state: ``complete``, ``pruned``, ``refused`` or ``failed``.
        value: Its best validation score; where it was pruned, the last one.
        params: Its options.
        epoch: Epoch of its last validation, or ``None``.
        seconds: Wall time.
        reason: Why it was refused or failed.
    """

    number: int
    state: str
    value: float | None
    params: dict[str, Any]
    epoch: int | None
    seconds: float
    reason: str


class Study:
    """An Optuna study in a folder that one process at a time has to itself.

    Trial ``n`` is drawn with a seed made from the search's own and ``n``, so that a search that
    was killed goes on as it would have gone.

    Args:
        folder: The folder; it exists.
        ranges: What is searched.
        identity: What makes trials comparable, as plain data; a study keeps it.
        seed: Seed of the sampler.
        maximise: Whether more is better.
        pruner: One of :data:`PRUNERS`.
        warmup_epochs: Epochs in which no trial is pruned.

    Raises:
        KDError: Optuna is missing, or the folder's study is damaged or of another search.
    """

    def __init__(
        self,
        folder: Path,
        ranges: Mapping[str, Range],
        identity: Mapping[str, Any],
        seed: int,
        maximise: bool,
        pruner: str,
        warmup_epochs: int,
    ):
        self.optuna = optional.library("optuna", ASKER)
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        self.folder, self.ranges, self.seed = folder, dict(ranges), seed
        rule = self.optuna.pruners.NopPruner()
        if pruner == "median":
            rule = self.optuna.pruners.MedianPruner(STARTUP_TRIALS, warmup_epochs)
        direction = "maximize" if maximise else "minimize"
        self.study = self._open(direction, rule)
        self._check_identity(json.loads(json.dumps(identity)))
        self._repeat_killed()

    def _open(self, direction: str, rule: Any) -> Any:
        path = self.folder / STUDY
        try:
            return self.optuna.create_study(
                storage=f"sqlite:///{path}",
                study_name="tune",
                direction=direction,
                pruner=rule,
                load_if_exists=True,
            )
        except Exception as error:  # SQLAlchemy's and Optuna's own have no base in common
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise KDError(
                f"--study: {path} cannot be opened as a study ({reason}); allowed is another folder"
            ) from error

    def _check_identity(self, identity: dict[str, Any]) -> None:
        """Keep what makes trials comparable, or compare with what was kept."""
        kept = self.study.user_attrs
        if not self.study.get_trials(deepcopy=False):
            for key, value in identity.items():
                self.study.set_user_attr(key, value)
            return
        for key, mine in identity.items():
            if kept.get(key) == mine:
                continue
            found = kept.get(key)
            if isinstance(mine, dict) and isinstance(found, dict):
                inner = next(k for k in [*mine, *found] if mine.get(k) != found.get(k))
                key, found, mine = f"{key}, {inner}", found.get(inner), mine.get(inner)
            raise KDError(
                f"--study={self.folder}: it is of another search: its {key} is {found}, here it is "
                f"{mine}; allowed is the same, or another folder"
            )

    # -- trials --------------------------------------------------------------------------------

    def _repeat_killed(self) -> None:
        """Take a trial whose process was killed out of the count, and put it first in the queue.

        Not for ever: one that is killed time and again has failed, and the others go on.
        """
        states = self.optuna.trial.TrialState
        for trial in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            self.study.tell(trial.number, state=states.FAIL)  # the folder is ours alone
            if _kills(trial) >= MOST_KILLS:
                getLogger("recbole_kd").warning(
                    "trial %d: killed %d times, it is not repeated", trial.number, _kills(trial)
                )
        trials = self.study.get_trials(deepcopy=False)
        repeated = {trial.user_attrs.get(REPEATS) for trial in trials}
        for trial in trials:
            if _killed(trial) and trial.number not in repeated:
                # One that was killed while it was drawn has not yet all that it was to begin with.
                params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
                kept = {REPEATS: trial.number, KILLS: _kills(trial)}
                self.study.enqueue_trial(params, user_attrs=kept)

    def begin_with(self, params: Mapping[str, Any]) -> None:
        """Make some options the first trial of a new study.

        Args:
            params: Options, all of them within their ranges.
        """
        if not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial(self._labelled(params))

    def go_on(self, count: int, objective: Callable[[dict[str, Any], Report], float]) -> Iterator:
        """Run trials until so many have ended, those of earlier processes included.

        Args:
            count: Trials in all.
            objective: Options and a report of every validation to the score. The report ends a
                trial that is to be pruned, :class:`RefusedError` one that no run can have; any
                other error fails it.

        Yields:
            Each trial that has ended, as :class:`Outcome`.
        """
        while (done := len(self.outcomes())) < count:
            number = self._next(done, objective)
            yield next(o for o in self.outcomes() if o.number == number)

    def _next(self, done: int, objective: Callable[[dict[str, Any], Report], float]) -> int:
        states = self.optuna.trial.TrialState
        seed = int(np.random.SeedSequence([self.seed, done]).generate_state(1)[0])
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed)
        with _quiet():
            trial = self.study.ask(self._distributions())

        def report(epoch: int, score: float) -> None:
            if math.isnan(score):
                return  # neither above nor below a median; the best score of the trial decides
            trial.report(score, epoch)
            if trial.should_prune():
                raise self.optuna.TrialPruned

        try:
            value = objective(self._values(trial.params), report)
            if not math.isfinite(value):
                raise KDError(f"the best validation score is {value}")
        except self.optuna.TrialPruned:
            self.study.tell(trial, state=states.PRUNED)
        except RefusedError as error:
            trial.set_user_attr(REASON, str(error))
            self.study.tell(trial, state=states.PRUNED)
        except KeyboardInterrupt:  # the user's wish, and no sign of what kills its process
            trial.set_user_attr(KILLS, _kills(trial) - 2)
            raise
        except Exception as error:  # such as no memory: it ends this trial and no other
            getLogger("recbole_kd").debug("trial %d failed", trial.number, exc_info=True)
            trial.set_user_attr(REASON, _described(error))
            self.study.tell(trial, state=states.FAIL)
        else:
            self.study.tell(trial, value)
        return trial.number

    def outcomes(self) -> list[Outcome]:
        """The trials that have ended, in their order, without those that are repeated."""
        trials = self.study.get_trials(deepcopy=False)
        return [self._outcome(t) for t in trials if t.state.is_finished() and not _killed(t)]

    def _outcome(self, trial: Any) -> Outcome:
        reason = _reason(trial)
        state = trial.state.name.lower().replace("fail", "failed")
        return Outcome(
            number=trial.number,
            state="refused" if state == "pruned" and reason else state,
            value=trial.value,
            params=self._values(trial.params),
            epoch=trial.last_step,
            seconds=trial.duration.total_seconds(),
            reason=reason,
        )

    def best(self) -> Outcome | None:
        """The complete trial with the best score, the first of equals, if there is one."""
        complete = [o for o in self.outcomes() if o.state == "complete" and o.value is not None]
        sign = 1 if self.study.direction.name == "MAXIMIZE" else -1
        return max(complete, key=lambda o: sign * (o.value or 0.0), default=None)

    def write_table(self) -> Path:
        """Write all trials that have ended to a CSV file beside the study; returns its path."""
        text = io.StringIO()
        head = ["number", "state", "value", "last_epoch", "seconds", *self.ranges, "reason"]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(head)
        for o in self.outcomes():
            params = [o.params.get(key, "") for key in self.ranges]
            writer.writerow(
                [o.number, o.state, o.value, o.epoch, round(o.seconds, 2), *params, o.reason]
            )
        checkpoint.write_text(self.folder / TRIALS, text.getvalue())
        return self.folder / TRIALS

    # -- values --------------------------------------------------------------------------------

    def _distributions(self) -> dict[str, Any]:
        return {key: self._distribution(value) for key, value in self.ranges.items()}

    def _distribution(self, one: Range) -> Any:
        kinds = self.optuna.distributions
        if isinstance(one, Choices):
            return kinds.CategoricalDistribution(one.labels)
        if one.whole:
            return kinds.IntDistribution(one.low, one.high, log=one.log, step=one.step or 1)
        return kinds.FloatDistribution(one.low, one.high, log=one.log, step=one.step)

    def _labelled(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Values as Optuna keeps them: a list is text."""
        return {key: self._translate(key, value, back=False) for key, value in params.items()}

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What :meth:`_labelled` was made from, in the order of the ranges."""
        known = [key for key in self.ranges if key in params]
        return {key: self._translate(key, params[key], back=True) for key in known}

    def _translate(self, key: str, value: Any, back: bool) -> Any:
        one = self.ranges[key]
        if not isinstance(one, Choices):
            return value if one.whole else float(value)  # the same in memory and in the file
        known, wanted = (one.labels, one.choices) if back else (list(one.choices), one.labels)
        same = [n for n, v in enumerate(known) if v == value and type(v) is type(value)]
        return wanted[(same or [known.index(value)])[0]]


def _killed(trial: Any) -> bool:
    """Whether a trial has ended because its process did, and is repeated."""
    return _cut_short(trial) and _kills(trial) < MOST_KILLS


def _cut_short(trial: Any) -> bool:
    return trial.state.name == "FAIL" and REASON not in trial.user_attrs


def _kills(trial: Any) -> int:
    """How often a trial whose process ended was killed, with those that it repeats."""
    before: int = trial.user_attrs.get(KILLS, 0)
    return before + 1


def _reason(trial: Any) -> str:
    """Why a trial was refused or failed; nothing for any other."""
    reason: str = trial.user_attrs.get(REASON, "")
    return f"killed {_kills(trial)} times" if _cut_short(trial) else reason


def _described(error: Exception) -> str:
    """An error in a line: our own as it is, any other with its type."""
    if isinstance(error, KDError):
        return str(error)
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's warnings about repeated trials, which it takes for out of range."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
