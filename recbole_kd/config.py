"""Configuration in RecBole's manner, without its traps.

One run resolves up to three configurations, one for each *role*: the student, the teacher, the
student trained from scratch. Each is a :class:`KDConfig`, a RecBole ``Config`` whose values come,
lowest first, from

1. RecBole's own defaults (overall, model, data set, family),
2. our shipped ``properties/``: ``overall.yaml``, ``model/<Model>.yaml``, ``dataset/<name>.yaml``,
   ``method/<Method>.yaml``, ``protocol/<name>.yaml``, ``recipe/<dataset>/<pair>/<method>.yaml``,
3. the configuration files, in the order given,
4. the dictionary given from Python,
5. the command line.

In each of these sources a key at the top level holds for every role, and a key in a section
(``student:``, ``teacher:``, ``scratch_student:``) for that role only and before the top level of
the same source. The command line is handed in by its caller: constructing a configuration never
reads ``sys.argv``, and no text of the user is ever evaluated.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import recbole
import yaml
from recbole.config import Config
from recbole.utils import ModelType
from recbole.utils.argument_list import (
    dataset_arguments,
    evaluation_arguments,
    general_arguments,
    training_arguments,
)

from recbole_kd import compat
from recbole_kd.errors import KDError, did_you_mean
from recbole_kd.registry import SCRATCH, backbone_class, method_class
from recbole_kd.resources import properties_dir

SECTIONS = ("student", "teacher", "scratch_student")
NAMES = ("model", "dataset", "student", "teacher")
ROLE_SECTIONS = {
    "student": ("student",),
    "teacher": ("teacher",),
    "scratch": ("student", "scratch_student"),
}

UNUSED_RECBOLE_KEYS = {
    "save_dataset",
    "dataset_save_path",
    "save_dataloaders",
    "dataloaders_save_path",
    "config_file",
}
"""RecBole's pickled data caches: unsafe to load and never read here."""

UNLISTED_RECBOLE_KEYS = {"encoding", "tail_ratio"}
"""Keys that RecBole's data sets and metrics read and that none of its lists and files names."""

SEQUENTIAL_KEYS = {
    "ITEM_LIST_LENGTH_FIELD",
    "LIST_SUFFIX",
    "MAX_ITEM_LIST_LENGTH",
    "POSITION_FIELD",
}
SECTION_KEYS = {
    "seed",
    "epochs",
    "train_batch_size",
    "learner",
    "learning_rate",
    "train_neg_sample_args",
    "eval_step",
    "stopping_step",
    "clip_grad_norm",
    "weight_decay",
    "adam_eps",
    "require_pow",
    "enable_amp",
    "enable_scaler",
    "transform",
    "valid_metric",
    "save_last_seconds",
}
"""Training keys that a section may set for one role."""

TEXT_KEYS = {
    *NAMES,
    "checkpoint",
    "checkpoint_dir",
    "config_files",
    "data_path",
    "protocol",
    "recipe",
    "resume",
}
"""Names and paths: a data set called ``2024`` or ``1e5`` is no number."""

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
"""RecBole's optimisers. For any other name it trains with Adam and without weight decay."""


WITHOUT_CUTOFF = {"gauc", "auc", "logloss", "mae", "rmse"}
"""RecBole's metrics that are not ``name@k``."""


class SafeLoader(yaml.SafeLoader):
    """YAML's safe loader, which also reads ``1e-5`` as a number, as RecBole's does."""


SafeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_value(text: Any) -> Any:
    """Give a string of the command line its type, by YAML's safe rules; other values pass.

    ``True``, ``1e-5``, ``[10, 20]``, ``{'RS': [8, 1, 1]}`` and ``None`` are what they look like.
    A numpy number, as a search over a grid gives it, becomes Python's.
    """
    if isinstance(text, np.generic):
        return text.item()
    if not isinstance(text, str):
        return text
    if text == "None":
        return None
    try:
        value = yaml.load(text, Loader=SafeLoader)
    except (yaml.YAMLError, ValueError):  # ValueError: looks like a date and is none
        return text
    if isinstance(value, dict | list) and text.lstrip()[0] not in "[{":
        return text  # words with a colon or a dash
    return text if value is None and text not in {"~", "null", "Null", "NULL"} else value


def parse_option(key: str, value: Any) -> Any:
    """:func:`parse_value` for the value of ``key``: names and paths stay text, sections are filled.

    Args:
        key: Name of the option, with its section if it has one.
        value: Its value as a caller or the command line gave it.
    """
    if isinstance(value, Mapping) and key in SECTIONS:
        return {inner: parse_option(inner, v) for inner, v in value.items()}
    parsed = parse_value(value)
    if isinstance(value, str) and key.rpartition(".")[2] in TEXT_KEYS:
        return parsed if parsed is None or isinstance(parsed, Mapping) else value
    return parsed


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML file of options.

    Raises:
        KDError: The file is missing, is no YAML (with the line), or holds no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise KDError(f"configuration file {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise KDError(f"configuration file {path}: not UTF-8 text ({error.reason})") from error
    try:
        value = yaml.load(text, Loader=SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise KDError(
            f"configuration file {path}{where}: not valid YAML "
            f"({getattr(error, 'problem', None) or error})"
        ) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise KDError(
            f"configuration file {path}: found a {type(value).__name__}, "
            "allowed is a mapping of 'key: value' lines"
        )
    return {str(k): v for k, v in value.items()}


def parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn ``--key=value`` and ``--flag`` arguments into a dictionary with sections nested.

    Raises:
        KDError: An argument is not of that form, or one key has two different values.
    """
    flat: dict[str, str] = {}
    said: dict[str, str] = {}
    for argument in arguments:
        if not argument.startswith("--") or argument == "--":
            raise KDError(
                f"command line: found '{argument}', allowed are --key=value and --flag "
                "(the '=' is needed)"
            )
        key, equals, value = argument[2:].partition("=")
        value = value if equals else "True"
        name = f"{key}.model" if key in SECTIONS else key
        if said.setdefault(name, value) != value:
            raise KDError(f"command line: --{key} is given twice, as '{said[name]}' and '{value}'")
        flat[key] = value
    return nest({key: parse_option(key, value) for key, value in flat.items()})


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Move ``student.embedding_size`` into ``student: {embedding_size: ...}``.

    ``student: BPR`` means ``student: {model: BPR}``. ``model``, ``dataset`` stay as they are.
    """
    result: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        head, dot, tail = key.partition(".")
        if dot and head in SECTIONS:
            sections.setdefault(head, {})[tail] = value
        elif key in SECTIONS:
            if not isinstance(value, Mapping):
                value = {"model": value} if value is not None else {}
            sections.setdefault(key, {}).update(value)
        else:
            result[key] = value
    return {**result, **sections}


@dataclass
class Layer:
    """One source of options: where it came from and what it says."""

    origin: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class Sources:
    """Everything a user said, in rising precedence, and the four names it settles.

    Attributes:
        method: Name of the distillation method, or ``Scratch``.
        dataset: Name of the data set.
        student: Name of the student's model.
        teacher: Name of the teacher's model; ``None`` where a checkpoint will say it.
        layers: Files, dictionary, command line; names already taken out.
    """

    method: str
    dataset: str
    student: str
    teacher: str | None
    layers: list[Layer]

    @classmethod
    def collect(
        cls,
        model: str | None = None,
        dataset: str | None = None,
        student: str | None = None,
        teacher: str | None = None,
        files: Iterable[str | Path] = (),
        options: Mapping[str, Any] | None = None,
        command_line: Mapping[str, Any] | None = None,
    ) -> Sources:
        """Gather the sources and settle the names.

        Arguments passed by name are the same as keys of the command line.

        Raises:
            KDError: No data set or no student is named, or a file cannot be read.
        """
        named = {"model": model, "dataset": dataset, "student": student, "teacher": teacher}
        top = nest({k: v for k, v in named.items() if v is not None})
        layers = [Layer(f"file {f}", nest(read_yaml(f))) for f in files]
        # RecBole completes some dictionaries in place: never in the caller's own.
        parsed = {k: parse_option(k, v) for k, v in copy.deepcopy(dict(options or {})).items()}
        layers.append(Layer("dictionary", nest(parsed)))
        spoken = nest(copy.deepcopy(dict(command_line or {})))
        layers.append(Layer("command line", _merge(spoken, top)))
        names: dict[str, Any] = {}
        for layer in layers:
            for key in ("model", "dataset"):
                if layer.values.get(key) is not None:
                    names[key] = layer.values[key]
                layer.values.pop(key, None)
            for key in ("student", "teacher"):
                section = layer.values.get(key, {})
                if section.get("model") is not None:
                    names[key] = section["model"]
                section.pop("model", None)
        for key in ("dataset", "student"):
            if key not in names:
                raise KDError(f"--{key} is missing: name one on the command line or in a file")
        return cls(
            method=str(names.get("model", "RCEKD")),
            dataset=str(names["dataset"]),
            student=str(names["student"]),
            teacher=None if names.get("teacher") is None else str(names["teacher"]),
            layers=layers,
        )

    def get(self, key: str, section: str | None = None) -> Any:
        """The user's own value of a key (highest source wins), or ``None``."""
        found = None
        for layer in self.layers:
            values = layer.values.get(section, {}) if section else layer.values
            found = values.get(key, found)
        return found


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    result = dict(low)
    for key, value in high.items():
        if key in SECTIONS:
            result[key] = {**result.get(key, {}), **value}
        else:
            result[key] = value
    return result


def flatten(values: Mapping[str, Any], role: str) -> dict[str, Any]:
    """The keys of one source as they hold for ``role``: its sections over the top level."""
    flat = {k: v for k, v in values.items() if k not in SECTIONS}
    for section in ROLE_SECTIONS[role]:
        flat.update(values.get(section) or {})
    return flat


def _shipped(*parts: str) -> dict[str, Any] | None:
    path = properties_dir().joinpath(*parts)
    return nest(read_yaml(path)) if path.is_file() else None


def _recbole_yaml(*parts: str) -> dict[str, Any]:
    path = Path(recbole.__file__).parent.joinpath("properties", *parts)
    return read_yaml(path) if path.is_file() else {}


def short_name(model: str) -> str:
    """``pkg.module:Class`` -> ``Class``; other names as they are."""
    return model.rpartition(":")[2]


def recipe_layer(sources: Sources, method: str, recipe: Any) -> Layer | None:
    """The recipe for this data set, pair and method.

    Args:
        sources: What the user said.
        method: Method whose recipe is wanted; ``Scratch`` for a model trained alone.
        recipe: ``auto`` (the shipped one if there is one), ``none``, or a variant's name.

    Raises:
        KDError: A variant is named and does not exist.
    """
    if recipe in (None, "none", False):
        return None
    named = recipe != "auto" and method == sources.method
    if named and method != SCRATCH and not sources.teacher:
        raise KDError(f"--recipe={recipe}: recipes go by pair; name the teacher's model: --teacher")
    student = short_name(sources.student)
    pair = student if method == SCRATCH else f"{short_name(sources.teacher or '')}-{student}"
    name = short_name(method) if recipe == "auto" else f"{short_name(method)}-{recipe}"
    parts = ("recipe", sources.dataset, pair, f"{name}.yaml")
    values = _shipped(*parts)
    if values is None:
        if not named:
            return None
        folder = properties_dir().joinpath(*parts[:-1])
        known = sorted(p.stem for p in folder.glob("*.yaml")) if folder.is_dir() else []
        raise KDError(
            f"--recipe={recipe}: there is no properties/{'/'.join(parts)}; "
            f"known for this data set and pair: {', '.join(known) or 'none'}"
        )
    return Layer("recipe " + "/".join(parts[1:]), values)


class KDConfig(Config):
    """RecBole's ``Config`` for one role of a run.

    Args:
        sources: What the user said.
        role: ``student``, ``teacher`` or ``scratch``.

    Raises:
        KDError: An option is unknown, unreadable, or not allowed together with another.
    """

    def __init__(self, sources: Sources, role: str = "student"):
        self.sources = sources
        self.role = role
        self.method = SCRATCH if role != "student" else sources.method
        self.layers: list[Layer] = []
        name = sources.teacher if role == "teacher" else sources.student
        if name is None:
            raise KDError("--teacher is missing: name a model, or give --teacher.checkpoint=PATH")
        self.import_path = name
        self.sequences = False
        try:
            super().__init__(model=name, dataset=sources.dataset)
        except KDError:
            raise
        except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise KDError(f"options of {name}: refused by RecBole: {reason}") from error
        self.final_config_dict["method"] = self.method
        self.final_config_dict["import_path"] = name
        self._check_values()

    def compatibility_settings(self) -> None:
        """Refuse other libraries; add numpy's old names, for RecBole's way fails on numpy 2."""
        compat.check_versions()
        compat.numpy_aliases()

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return SafeLoader

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        return {key: parse_value(value) for key, value in config_dict.items()}

    def _load_config_files(self, file_list: Any) -> dict[str, Any]:
        return {}

    def _load_variable_config_dict(self, config_dict: Any) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for layer in self.sources.layers:
            merged.update(flatten(layer.values, self.role))
        return merged

    def _load_cmd_line(self) -> dict[str, Any]:
        return {}

    def _get_model_and_dataset(self, model: str, dataset: str) -> tuple[str, type[Any], str]:
        option = "--teacher" if self.role == "teacher" else "--student"
        cls = backbone_class(model, option)
        if cls.type in (ModelType.CONTEXT, ModelType.DECISIONTREE):
            raise KDError(
                f"{option}={model}: a {cls.type.name.lower()} model, which scores labelled "
                "interactions; allowed are models that rank the items for a user"
            )
        return short_name(model), cls, dataset

    def _load_internal_config_dict(self, model: str, model_class: Any, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        self._recbole_defaults = dict(self.internal_config_dict)
        protocol = self._first_said("protocol")
        candidates = [
            ("family", self._family_options(model_class)),
            ("overall.yaml", _shipped("overall.yaml")),
            (f"model/{model}.yaml", model_defaults(self.import_path)),
            (f"dataset/{dataset}.yaml", _shipped("dataset", f"{dataset}.yaml")),
        ]
        if self.method != SCRATCH:
            name = short_name(self.method)
            candidates.append((f"method/{name}.yaml", method_defaults(self.method)))
        if protocol:
            candidates.append((f"protocol {protocol}", _protocol(protocol)))
        layers = [Layer(origin, values) for origin, values in candidates if values is not None]
        layers += self._recipes(self._first_said("recipe", "auto"))
        self.layers = layers
        for layer in layers:
            self.internal_config_dict.update(flatten(layer.values, self.role))

    def _first_said(self, key: str, default: Any = None) -> Any:
        found = default
        for layer in self.sources.layers:
            found = layer.values.get(key, found)
        return found

    def _recipes(self, recipe: Any) -> list[Layer]:
        """The pair's recipe holds for all roles; a scratch recipe of the student on top of it."""
        layers = []
        if self.sources.method != SCRATCH and (self.sources.teacher or recipe != "auto"):
            layers.append(recipe_layer(self.sources, self.sources.method, recipe))
        if self.role == "scratch" or self.sources.method == SCRATCH:
            layers.append(recipe_layer(self.sources, SCRATCH, recipe))
        return [layer for layer in layers if layer is not None]

    def _family_options(self, model_class: Any) -> dict[str, Any]:
        """What the families of the run's models settle.

        Teacher and student have one split: a sequential member decides it for all roles. A loss
        over all items draws no negatives, which RecBole demands to be said.
        """
        options: dict[str, Any] = {}
        members = [backbone_class(self.sources.student)]
        if self.sources.method != SCRATCH and self.sources.teacher:
            members.append(backbone_class(self.sources.teacher, "--teacher"))
        self.sequences = any(cls.type == ModelType.SEQUENTIAL for cls in members)
        if self.sequences and model_class.type != ModelType.SEQUENTIAL:
            options["eval_args"] = _recbole_yaml("quick_start_config", "sequential.yaml")[
                "eval_args"
            ]
        loss = {**self.internal_config_dict, **self.external_config_dict}.get("loss_type")
        if model_class.type == ModelType.SEQUENTIAL and loss == "CE":
            options["train_neg_sample_args"] = None
        return options

    # -- values --------------------------------------------------------------------------------

    def _check_values(self) -> None:
        """Refuse what would only fail, or silently mean something else, hours later.

        Raises:
            KDError: Names the option, what was found and what is allowed.
        """
        for key in ("epochs", "train_batch_size", "eval_batch_size", "eval_user_batch_size"):
            self.positive_int(key)
        if "embedding_size" in self.final_config_dict:
            self.positive_int("embedding_size")
        for key in ("seed", "split_seed", "stopping_step", "eval_step", "metric_decimal_place"):
            self.whole_number(key)
        for key in ("weight_decay", "adam_eps", "save_last_seconds", "min_token_overlap"):
            self.number(key, low=0)
        for key in ("learning_rate", "memory_budget_gb"):
            self.number(key, low=0, above=True)
        for key in ("allow_leak", "repeatable", "scratch"):
            self.choice(key, (True, False))
        self.choice("learner", LEARNERS)
        if "adam" not in self["learner"] and self._said("adam_eps"):
            raise KDError(
                f"{self._shown('adam_eps')}: found learner={self['learner']}, which has no such "
                "epsilon; allowed with adam and adamw"
            )
        self.choice("eval_history", ("all", "train"))
        mode = self["eval_args"]["mode"]["test"]
        if self["eval_history"] == "train" and mode != "full":
            raise KDError(f"--eval_history=train: found eval_args.mode={mode}; allowed is full")
        measured = self.measured()
        if self["valid_metric"].lower() not in measured:
            raise KDError(
                f"{self._shown('valid_metric')}={self['valid_metric']}: metrics and topk give "
                f"{', '.join(measured)}; allowed is one of them"
            )

    def measured(self) -> list[str]:
        """Names of the metrics of an evaluation, such as ``ndcg@10``, as RecBole's results do."""
        names = [m.lower() for m in self["metrics"]]
        cut = [[m] if m in WITHOUT_CUTOFF else [f"{m}@{k}" for k in self["topk"]] for m in names]
        return list(dict.fromkeys(name for group in cut for name in group))

    def _said(self, key: str) -> bool:
        """Whether the user set the option, for this role or for all."""
        return any(key in flatten(layer.values, self.role) for layer in self.sources.layers)

    def _shown(self, key: str) -> str:
        """The option as its user wrote it, with its section."""
        for layer in reversed(self.sources.layers):
            for section in reversed(ROLE_SECTIONS[self.role]):
                if key in layer.values.get(section, {}):
                    return f"--{section}.{key}"
        return f"--{key}"

    def require(self, key: str) -> Any:
        """The value of a key that must be there.

        Raises:
            KDError: It is missing.
        """
        if key not in self.final_config_dict:
            raise KDError(f"option '{key}' is missing for {self.import_path}")
        return self.final_config_dict[key]

    def positive_int(self, key: str) -> int:
        """The value of a key that must be a whole number above 0.

        Raises:
            KDError: It is something else.
        """
        return self.whole_number(key, low=1)

    def whole_number(self, key: str, low: int = 0) -> int:
        """The value of a key that must be a whole number, at least ``low``.

        Raises:
            KDError: It is something else.
        """
        value = self.require(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            bound = f"above {low - 1}" if low == 1 else f"from {low}"
            raise KDError(f"{self._shown(key)}={value}: allowed are whole numbers {bound}")
        return value

    def number(self, key: str, low: float = float("-inf"), above: bool = False) -> float:
        """The value of a numeric key, at least ``low`` (or above it).

        Raises:
            KDError: It is something else.
        """
        value = self.require(key)
        right = isinstance(value, int | float) and not isinstance(value, bool)
        if not right or not math.isfinite(value) or value < low or (above and value == low):
            bound = f" {'above' if above else 'from'} {low:g}" if low > float("-inf") else ""
            raise KDError(f"{self._shown(key)}={value}: allowed are numbers{bound}")
        return float(value)

    def choice(self, key: str, allowed: Sequence[Any]) -> Any:
        """The value of a key that must be one of ``allowed``.

        Raises:
            KDError: It is something else.
        """
        value = self.require(key)
        if value not in allowed:
            shown = ", ".join(map(str, allowed))
            raise KDError(f"{self._shown(key)}={value}: allowed are {shown}")
        return value

    def learning_keys(self) -> set[str]:
        """Keys that model, method and training read, as opposed to paths, logs and data files."""
        keys = SECTION_KEYS - {"save_last_seconds"} | _model_keys(self.import_path, "--model")
        if self.method != SCRATCH:
            keys |= set(method_defaults(self.method))
        for layer in self.sources.layers:
            for section in ROLE_SECTIONS[self.role]:
                keys |= set(layer.values.get(section, {}))
        return keys

    def resolved(self) -> dict[str, Any]:
        """Every value as plain data, sorted by key, for ``resolved.yaml`` and checkpoints."""
        return {k: plain(v) for k, v in sorted(self.final_config_dict.items())}

    def changed(self) -> dict[str, tuple[Any, Any, str]]:
        """What differs from the defaults: key -> (default, value, where it came from).

        Defaults are RecBole's and our ``overall``, ``model``, ``method`` files; a sequential
        partner's split, data set, protocol, recipe, files, dictionary and command line count as
        changes.
        """
        default = dict(self._recbole_defaults)
        changes: dict[str, tuple[Any, Any, str]] = {}
        for layer in self.layers:
            if layer.origin.startswith(("overall", "model/", "method/")):
                default.update(flatten(layer.values, self.role))
        for layer in (*self.layers, *self.sources.layers):
            if layer.origin.startswith(("overall", "model/", "method/")):
                continue
            for key, value in flatten(layer.values, self.role).items():
                if default.get(key) != value:
                    changes[key] = (default.get(key), value, layer.origin)
                else:
                    changes.pop(key, None)
        return changes


def plain(value: Any) -> Any:
    """Data that YAML and a weights-only checkpoint can hold: numbers, strings, lists, dicts."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    return getattr(value, "name", None) or str(value)


def _protocol(name: str) -> dict[str, Any]:
    values = _shipped("protocol", f"{name}.yaml")
    if values is None:
        known = sorted(p.stem for p in (properties_dir() / "protocol").glob("*.yaml"))
        raise KDError(f"--protocol={name}: known are {', '.join(known)}")
    return values


def method_defaults(method: str) -> dict[str, Any]:
    """The shipped defaults of a method; an outside class brings ``defaults`` as an attribute."""
    values = _shipped("method", f"{short_name(method)}.yaml")
    if values is None:
        values = nest(getattr(method_class(method), "defaults", {}))
    return values


def model_defaults(name: str) -> dict[str, Any] | None:
    """The shipped defaults of a model; an outside class brings ``defaults`` as an attribute."""
    values = _shipped("model", f"{short_name(name)}.yaml")
    own = getattr(backbone_class(name), "defaults", None)
    return nest(own) if values is None and own is not None else values


def _model_keys(name: str | None, option: str) -> set[str]:
    """Keys a model reads: RecBole's YAML, ours, or the ``defaults`` of an outside class."""
    if name is None:
        return set()
    cls = backbone_class(name, option)
    keys = set(_recbole_yaml("model", f"{short_name(name)}.yaml"))
    ours = model_defaults(name) or {}
    for role in ROLE_SECTIONS:
        keys |= set(flatten(ours, role))
    if cls.type == ModelType.SEQUENTIAL:
        keys |= SEQUENTIAL_KEYS
    return keys


def known_keys(sources: Sources) -> dict[str | None, set[str]]:
    """The keys each part of the run reads: ``None`` for the top level, then each section."""
    run = set(_recbole_yaml("overall.yaml")) | set(_recbole_yaml("dataset", "sample.yaml"))
    run |= UNLISTED_RECBOLE_KEYS
    run |= {*dataset_arguments, *evaluation_arguments, *general_arguments, *training_arguments}
    run |= set(_recbole_yaml("dataset", f"{sources.dataset}.yaml"))
    run |= set(_shipped("overall.yaml") or {}) | set(
        flatten(_shipped("dataset", f"{sources.dataset}.yaml") or {}, "student")
    )
    run -= UNUSED_RECBOLE_KEYS | SEQUENTIAL_KEYS | set(SECTIONS)
    student = _model_keys(sources.student, "--student")
    teacher, teacher_section = set(), set()
    if sources.method != SCRATCH:
        run |= set(method_defaults(sources.method))
        teacher_section = {"checkpoint"}
        # A checkpoint brings all the options of the model in it.
        if not sources.get("checkpoint", "teacher"):
            teacher = _model_keys(sources.teacher, "--teacher")
            teacher_section |= SECTION_KEYS | (teacher - SEQUENTIAL_KEYS)
    section = SECTION_KEYS | (student - SEQUENTIAL_KEYS)
    return {
        None: run | student | teacher,
        "student": section,
        "scratch_student": section if sources.method != SCRATCH else set(),
        "teacher": teacher_section,
    }


def _elsewhere(key: str) -> str:
    """Which other model or method reads ``key``, as a hint, or an empty string."""
    folders = [
        Path(recbole.__file__).parent / "properties" / "model",
        properties_dir() / "model",
        properties_dir() / "method",
    ]
    readers = [p.stem for f in folders for p in sorted(f.glob("*.yaml")) if key in read_yaml(p)]
    if not readers:
        return ""
    more = f" and {len(readers) - 3} more" if len(readers) > 3 else ""
    return f" It belongs to {', '.join(readers[:3])}{more}."


def check_keys(sources: Sources) -> None:
    """Refuse any key that no part of the run reads.

    Raises:
        KDError: Names the key, its source and the nearest known keys.
    """
    known = known_keys(sources)
    parts = [sources.method, sources.student, sources.teacher or ""]
    run = ", ".join(p for p in parts if p)
    for layer in sources.layers:
        for key, value in layer.values.items():
            if key in SECTIONS:
                for inner in value:
                    _check_key(inner, f"{key}.{inner}", known[key], layer.origin, run)
            else:
                _check_key(key, key, known[None], layer.origin, run)


def _check_key(key: str, shown: str, known: set[str], origin: str, run: str) -> None:
    if key in known:
        return
    hint = _elsewhere(key) or did_you_mean(key, known)
    if shown != key and key in SEQUENTIAL_KEYS:
        hint = f" Teacher and student share their sequences: set {key} without a section."
    elif shown.startswith("teacher.") and known == {"checkpoint"}:
        hint = " The checkpoint brings the teacher's options: give one or the other."
    raise KDError(f"{origin}: option '{shown}' is read by no part of this run ({run}).{hint}")
