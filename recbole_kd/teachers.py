"""Finding the teacher of a run: trained in it, or opened from what ``--teacher`` names."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from recbole_kd import checkpoint, deploy, leak, training
from recbole_kd.config import KDConfig
from recbole_kd.data import Split, require_order
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.listed import ListedTeacher, report_lists
from recbole_kd.loaders import train_part
from recbole_kd.methods.base import NEEDS
from recbole_kd.mixture import MixedScorer, MixedTeacher
from recbole_kd.options import SCORE_FILES, TEACHER_FILES, is_positive
from recbole_kd.registry import methods_without, short_name
from recbole_kd.score_file import MOST_HASHES, open_scores, read_trained_on
from recbole_kd.scoring import (
    Scorer,
    cosine_names,
    factorised_names,
    is_factorised,
    scorer_for,
    takes_temperature,
)
from recbole_kd.several import Combination
from recbole_kd.teacher import FrozenTeacher, Teacher, join_tokens, report_overlap

Ids = tuple[torch.Tensor, torch.Tensor]
"""Teacher id of every user and item id of the student, -1 where unknown."""


@dataclass
class TeacherParts:
    """A teacher with what the report says of it.

    Several teachers together are a teacher too: their mixture, or the best of them.

    Attributes:
        teacher: The teacher itself.
        scorer: Scorer of its model; ``None`` for a file of scores.
        name: Name of its model.
        test_result: Test metrics.
        checkpoint: Its file, or ``None``; of several, all files.
        digest: What tells it from other teachers.
        note: How it was tested, where that is not the student's way.
        role: What the table calls it.
        members: The single teachers, where there are several.
        weights: Weight of the loss of each of the teachers that the student learns from.
    """

    teacher: Teacher
    scorer: Scorer | None
    name: str
    test_result: dict[str, float]
    checkpoint: str | list[str] | None
    digest: str
    note: str = ""
    role: str = "teacher"
    members: Sequence[TeacherParts] = ()
    weights: Sequence[float] = (1.0,)

    @property
    def guides(self) -> list[Teacher]:
        """Whom the student learns from, one loss each."""
        return [self.teacher] if len(self.weights) == 1 else [m.teacher for m in self.members]

    @property
    def lines(self) -> list[TeacherParts]:
        """What the table shows: each teacher, and their mixture if there is one."""
        single = self.role in [member.role for member in self.members]
        return [*self.members] if single else [*self.members, self]


class TeacherFinder:
    """Trains or opens the teacher of a run.

    Args:
        method: Class of the distillation method.
        config: The student's configuration.
        teacher_config: The teacher's, if it is trained in the run.
        split: The split.
        saved: Whether files are written and reused.
    """

    def __init__(
        self,
        method: type[Any],
        config: KDConfig,
        teacher_config: KDConfig | None,
        split: Split,
        saved: bool,
    ):
        self.method, self.config, self.teacher_config = method, config, teacher_config
        self.split, self.saved = split, saved
        # A recipe's section for the teacher holds for one that is opened, too.
        asked = asked_temperature(config)
        self.temperature = asked if teacher_config is None else teacher_config["score_temperature"]
        self.files = config.sources.teacher_files
        self.combination = Combination.read(config, max(1, len(self.files)))

    def check(self) -> None:
        """Refuse a teacher that lacks what the method needs, before anything is trained.

        Raises:
            KDError: Says what is missing, and which methods do without.
        """
        if len(self.files) > 1:
            self._check_several()
        if self.teacher_config is not None:
            self._check_needs(self.teacher_config.model_class, self.teacher_config["model"])

    def find(self) -> TeacherParts:
        """The teacher, tested on the run's split.

        Raises:
            KDError: It lacks what the method needs, knows other users or items, or has seen the
                student's held-out interactions.
        """
        if self.teacher_config is None:
            opened = [self._open(file) for file in self.files]
            self._check_temperature(opened)
            return opened[0] if len(opened) == 1 else self._combined(opened)
        trained = training.train_cached(self.teacher_config, self.split, self.saved)
        ids = identity(self.split)
        frozen = self.freeze(trained.scorer, ids)
        if trained.checkpoint is not None:
            best = Path(trained.checkpoint)
            frozen.trajectory = self._trajectory(best, ids, self.split.history)
        # What is kept of its way teaches only those who ask for it.
        way = "trajectory" in getattr(self.method, "needs", ())
        taught = training.fingerprint(self.teacher_config, self.split, way=way)
        digest = self._digest(taught, frozen)
        parts = TeacherParts(
            frozen, trained.scorer, trained.name, trained.test_result, trained.checkpoint, digest
        )
        if ranking(self.teacher_config) != ranking(self.config):
            parts.note = ranking(self.teacher_config)
        return parts

    def freeze(self, scorer: Scorer, ids: Ids) -> FrozenTeacher:
        """A model as a teacher of this run's student.

        Args:
            scorer: Its scorer.
            ids: Its ids of the student's users and items.
        """
        folder = Path(self.config["checkpoint_dir"]) if self.saved else None
        budget = self.config["memory_budget_gb"]
        return FrozenTeacher(scorer, *ids, self.split.history, budget, folder)

    def _check_temperature(self, opened: Sequence[TeacherParts]) -> None:
        free = [
            parts.scorer is not None and takes_temperature(type(parts.scorer.model))
            for parts in opened
        ]
        if self.temperature is not None and not any(free):
            raise KDError(
                f"--teacher.score_temperature={self.temperature}: a file's scores, and inner "
                f"products, are taken as they are; allowed with {', '.join(cosine_names())} and "
                "models without vectors"
            )

    def _check_several(self) -> None:
        said = f"--teacher=[{', '.join(self.files)}]"
        for file in self.files:
            if not file.endswith(TEACHER_FILES) and not Path(file).exists():
                raise KDError(
                    f"{said}: found no file or run folder {file}; several teachers are opened, "
                    "never trained: allowed are checkpoints and run folders"
                )
        found = [checkpoint.file_in(file).resolve() for file in self.files]
        if twice := [file for n, file in enumerate(self.files) if found[n] in found[:n]]:
            raise KDError(f"{said}: {twice[0]} is in it twice; allowed is each once")
        if self.combination.mixes:
            hint = "the mean of distributions has none; allowed is --teacher_combine=losses"
            for need in sorted(getattr(self.method, "needs", ())):
                self._lacks(said, need, hint, NEEDS)

    def _combined(self, members: list[TeacherParts]) -> TeacherParts:
        """Several teachers as one, whose test result is the reference of the table.

        That of the mixture; where each teaches by itself, of the best of them on validation.
        """
        members = [replace(m, role=f"teacher {n}") for n, m in enumerate(members, 1)]
        notes = [f"{m.note} ({m.role})" for m in members if m.note]
        together: dict[str, Any] = {
            "name": "+".join(m.name for m in members),
            "checkpoint": [str(m.checkpoint) for m in members],
            "digest": self.combination.digest([m.digest for m in members]),
            "note": "; ".join(notes),
            "members": members,
        }
        weights, tau = self.combination.weights, self.combination.tau
        if not self.combination.mixes:
            metric = self.config["valid_metric"].lower()
            sign = 1 if self.config["valid_metric_bigger"] else -1
            best = max(members, key=lambda m: sign * self._valid(m.teacher)[metric])
            return replace(best, weights=weights, **together)
        parts = (weights, tau, self.split.history, self.config["memory_budget_gb"])
        mixed = MixedTeacher([m.teacher for m in members], *parts)
        scorers = [m.scorer for m in members if m.scorer is not None]
        return TeacherParts(
            teacher=mixed,
            # A file of scores has no size and no speed, and neither has a mixture with one.
            scorer=MixedScorer(mixed, scorers) if len(scorers) == len(members) else None,
            test_result=self._test(mixed),
            role="teachers, mixed",
            **together,
        )

    def _check_needs(self, cls: type[Any], name: str) -> None:
        needs = set(getattr(self.method, "needs", ()))
        lacking = needs - offers(cls)
        if "vectors" in lacking:
            hint = f"with vectors are {', '.join(factorised_names())}"
            self._lacks(f"--teacher={name}", "vectors", hint, set(NEEDS) - offers(cls))
        if "trajectory" in lacking:
            hint = "it is made in one pass; allowed are models trained by epochs"
            self._lacks(f"--teacher={name}", "trajectory", hint, set(NEEDS) - offers(cls))
        if "trajectory" not in needs or self.teacher_config is None:
            return
        if not self.saved:
            self._lacks("saved=False", "trajectory", "allowed is saved=True")
        if not self.teacher_config["save_every"]:
            self._lacks("--teacher.save_every=0", "trajectory", "allowed are whole numbers above 0")
        epochs, every = self.teacher_config["epochs"], self.teacher_config["save_every"]
        self.method.check_checkpoints(self.config, (epochs - 1) // every)

    def _lacks(self, found: str, need: str, hint: str, lacking: Collection[str] = ()) -> None:
        others = ", ".join(methods_without(*lacking or (need,)))
        raise KDError(
            f"{found}: --model={self.config.method} needs {NEEDS[need]}; {hint}; "
            f"methods that do without: {others}"
        )

    def _trajectory(self, best: Path, ids: Ids, history: UserHistory) -> list[Callable[[], Any]]:
        """The teacher at its earlier epochs, each loaded when it is asked for."""
        files = checkpoint.epoch_files(best.parent)
        users, items = history.n_users, history.n_items
        if not files and "trajectory" in getattr(self.method, "needs", ()):
            if self.teacher_config is None:
                hint = "found none beside it; train it with --save_every=10"
            else:
                rarer = "save_every" if self.teacher_config["save_every"] > 1 else "learning_rate"
                hint = f"its best epoch came first; allowed is a lower --teacher.{rarer}"
            self._lacks(str(best), "trajectory", hint)

        def load(file: Path) -> FrozenTeacher:
            data = None
            if self.teacher_config is not None:
                data = train_part(self.teacher_config, self.split)
            with torch.random.fork_rng():  # a model that is built draws numbers
                loaded = deploy.load_model(file, self.config["device"], dataset=data)
            if len(loaded.tokens.users) != users or len(loaded.tokens.items) != items:
                raise KDError(f"{file}: it is of another run than {best}")
            return self.freeze(self._scorer(loaded.model, history), ids)

        return [functools.partial(load, file) for file in files]

    def _open(self, path: str) -> TeacherParts:
        """The teacher in a checkpoint, or in a file of scores."""
        if path.endswith(SCORE_FILES):
            return self._open_scores(path)
        loaded = deploy.load_model(path, self.config["device"])
        name, asked = str(loaded.config["model"]), self.config.sources.teacher
        if asked is not None and short_name(asked) != name:
            raise KDError(f"--teacher={asked}: the checkpoint {path} holds a {name}")
        ids = (
            join_tokens(self.split.tokens.users, loaded.tokens.users),
            join_tokens(self.split.tokens.items, loaded.tokens.items),
        )
        report_overlap(*ids, self.config.number("min_token_overlap", low=0), path)
        sequential = getattr(loaded.model.type, "name", "") == "SEQUENTIAL"
        remedy = leak.REMEDY
        if sequential and not self.config.sequences:
            remedy = (
                f"say --teacher={name} beside the checkpoint, so that the split is a sequence's"
            )
            if len(self.files) > 1:  # other members may be no sequence models
                own = yaml.safe_dump(loaded.config["eval_args"], default_flow_style=True, width=999)
                remedy = f'give this run the split of that teacher, --eval_args="{own.strip()}"'
        leak.guard(self.split, loaded.history, *ids, path, self.config["allow_leak"], remedy)
        history = translate_history(self.split.history, *ids, loaded.history)
        if sequential:
            require_order(self.config, self.split.dataset, name)
        check = getattr(type(loaded.model), "check_data", None)
        if check is not None:
            check(loaded.config, history, True)
        self._check_needs(type(loaded.model), name)
        scorer = self._scorer(loaded.model, history)
        frozen = self.freeze(scorer, ids)
        met = (ids[0] > 0) & (self.split.history.counts > 0)
        if unread := int((met & ~frozen.knows_user.cpu()).sum()):
            logging.getLogger(__name__).warning(
                "the teacher %s knows none of the train items of %d of its users, who are not "
                "distilled",
                path,
                unread,
            )
        file = checkpoint.file_in(path)
        frozen.trajectory = self._trajectory(file, ids, history)
        result = self._test(frozen)
        digest = self._digest(checkpoint.digest(file), frozen)
        parts = TeacherParts(frozen, scorer, name, result, str(file), digest)
        if sequential:
            parts.note = "encodes the train history, without the validation items"
            # The split of a general student has no order of its own.
            parts.digest += f" {self.split.train_order()}"
        return parts

    def _scorer(self, model: Any, history: UserHistory) -> Scorer:
        """Scorer of an opened model, over the temperature asked for if it takes one."""
        return scorer_for(
            model, history, self.temperature if takes_temperature(type(model)) else None
        )

    def _digest(self, digest: str, teacher: FrozenTeacher) -> str:
        """What decides what a teacher teaches and is no part of its training, put to its digest."""
        if teacher.scorer.free_scale:
            digest = f"{digest} at {teacher.scorer.temperature:g}"  # type: ignore[attr-defined]
        return f"{digest} in half precision" if teacher.in_half_precision else digest

    def _open_scores(self, path: str) -> TeacherParts:
        """The teacher that a file of scores is."""
        asked, config = self.config.sources.teacher, self.config
        if asked is not None:
            raise KDError(f"--teacher={asked}: {path} is a file of scores, which names no model")
        for need in getattr(self.method, "needs", ()):
            self._lacks(f"--teacher={path}", need, "a file of scores has none", NEEDS)
        folder = Path(config["checkpoint_dir"]) / config["dataset"] if self.saved else None
        tokens = self.split.tokens
        lists = open_scores(path, tokens.users, tokens.items, folder)
        missing, least = config["missing_score"], config["min_listed_items"]
        report_lists(lists, config["min_token_overlap"], missing, path)
        rest = (missing, least, config["device"], config["memory_budget_gb"], path)
        teacher = ListedTeacher(lists, self.split.history, *rest)
        note = "only items of its lists can be found"
        trained_on = read_trained_on(path)
        if trained_on is None:
            note = f"{leak.unchecked(path)}, {note}"
        else:
            sampled = len(trained_on) >= MOST_HASHES
            leak.guard_scores(self.split, trained_on, path, config["allow_leak"], sampled)
        digest = f"{lists.digest}-{missing}-{least}"
        return TeacherParts(teacher, None, "scores", self._test(teacher), path, digest, note)

    def _valid(self, teacher: Teacher) -> dict[str, float]:
        """Validation metrics of a teacher on the student's split, in the student's ids."""
        model = _TeacherModel(teacher, self.config)
        return training.measure(self.config, self.split, model, ["valid"])["valid"]

    def _test(self, teacher: Teacher) -> dict[str, float]:
        """Test a teacher on the student's split, in the student's ids."""
        model = _TeacherModel(teacher, self.config)
        return training.measure(self.config, self.split, model, ["test"])["test"]

    def write_test(self, parts: TeacherParts, folder: Path) -> None:
        """Write the rankings of an opened teacher's test, and the options of the run.

        Args:
            parts: The teacher.
            folder: Where to write.
        """
        checkpoint.need_space(folder, 0)
        model = _TeacherModel(parts.teacher, self.config)
        training.measure(self.config, self.split, model, ["test"], folder=folder)
        training.write_resolved(self.config, folder)


class _TeacherModel(nn.Module):
    """A teacher with the face of a RecBole model, for the evaluator."""

    def __init__(self, teacher: Teacher, config: Any):
        super().__init__()
        self.teacher = teacher
        self.user_field = config["USER_ID_FIELD"]

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        """Scores of all items, ``[B, n_items]``."""
        return self.teacher.ranking_scores(interaction[self.user_field])


def offers(cls: type[Any]) -> frozenset[str]:
    """What a model of a class has to teach beside scores, of :data:`~.methods.base.NEEDS`.

    Args:
        cls: Class of a RecBole model.
    """
    has = {"vectors": is_factorised(cls), "trajectory": cls.type.name != "TRADITIONAL"}
    return frozenset(need for need, there in has.items() if there)


def asked_temperature(config: KDConfig) -> Any:
    """The option ``teacher.score_temperature`` of a run, or ``None`` where nobody sets it.

    Args:
        config: The student's.

    Raises:
        KDError: It is no finite number above 0.
    """
    sections = [x.values.get("teacher", {}) for x in (*config.layers, *config.sources.layers)]
    said = [s["score_temperature"] for s in sections if s.get("score_temperature") is not None]
    if said and not is_positive(said[-1]):
        raise KDError(f"--teacher.score_temperature={said[-1]}: allowed are numbers above 0")
    return said[-1] if said else None


def identity(split: Split) -> Ids:
    """Ids of a teacher that has the student's own."""
    return torch.arange(len(split.tokens.users)), torch.arange(len(split.tokens.items))


def ranking(config: KDConfig) -> str:
    """Which items a model's test ranking holds and hides, in words."""
    mode = config["eval_args"]["mode"]["test"]
    text = _hidden(config)
    return text if mode == "full" else f"{text}, ranked among sampled items (eval_args.mode {mode})"


def _hidden(config: KDConfig) -> str:
    if config.sequential:
        if config.eval_targets == "next":
            kept = config["filter_history"]
            hidden = {False: "nothing", True: f"the last {config['MAX_ITEM_LIST_LENGTH']} items"}
            shown = hidden.get(kept, "the whole history")
            text = f"repeatable True, filter_history {kept} ({shown} hidden)"
        else:
            text = f"one ranking from the train sequence, eval_history {config['eval_history']}"
        return f"{text}, time_anchor {config['time_anchor']}" if config.reads_time else text
    if config["repeatable"]:
        return "repeatable True (nothing hidden)"
    return f"repeatable False, eval_history {config['eval_history']}"


def translate_history(
    history: UserHistory, user_ids: torch.Tensor, item_ids: torch.Tensor, teacher: UserHistory
) -> UserHistory:
    """The student's train history in the teacher's ids; what the teacher does not know is left out.

    Args:
        history: The student's history.
        user_ids: Teacher id of every student user id, -1 where unknown.
        item_ids: Teacher id of every student item id, -1 where unknown.
        teacher: The teacher's own history, for its sizes.
    """
    users, items = history.pairs()
    users, items = user_ids[users], item_ids[items]
    known = (users > 0) & (items > 0)
    times = None if history.times is None else history.times[known]
    sizes = teacher.n_users, teacher.n_items
    return UserHistory.from_pairs(users[known], items[known], *sizes, times)
