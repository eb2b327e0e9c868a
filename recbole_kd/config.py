"""Configuration in RecBole's manner, without its traps.

One run resolves up to three configurations, one for each *role*: the student, the teacher, the
student trained from scratch. Each is a :class:`KDConfig`, a RecBole ``Config`` whose values come,
lowest first, from

1. RecBole's own defaults (overall, model, data set, family),
2. our shipped ``properties/``: ``family/sequential.yaml`` (for sequential models),
   ``overall.yaml``, ``model/<Model>.yaml``, ``dataset/<name>.yaml``, ``method/<Method>.yaml``,
   ``protocol/<name>.yaml``, ``recipe/<dataset>/<pair>/<method>.yaml``,
3. the configuration files, in the order given,
4. the dictionary given from Python,
5. the command line.

In each of these sources a key at the top level holds for every role, and a key in a section
(``student:``, ``teacher:``, ``scratch_student:``) for that role only and before the top level of
the same source. The command line is handed in by its caller: constructing a configuration never
reads ``sys.argv``, and no text of the user is ever evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from recbole.config import Config
from recbole.trainer import PretrainTrainer
from recbole.utils import InputType, ModelType, get_trainer

from recbole_kd import compat
from recbole_kd.defaults import (
    method_defaults,
    model_defaults,
    protocol_options,
    recbole_yaml,
    recipe_layer,
    shipped,
)
from recbole_kd.errors import KDError
from recbole_kd.keys import SECTION_KEYS, model_keys
from recbole_kd.options import (
    ROLE_SECTIONS,
    SECTIONS,
    Layer,
    SafeLoader,
    Sources,
    flatten,
    parse_value,
)
from recbole_kd.registry import SCRATCH, backbone_class, short_name

RATIO_SPLIT = {
    "split": {"RS": [0.8, 0.1, 0.1]},
    "order": "TO",
    "group_by": "user",
    "mode": "full",
}
"""Split of sequences whose held-out items are all targets of one ranking."""

CAUSAL_BATCH_SIZE = 128
"""Users a batch where a row is a user: RecBole's 2048 would be a single step on small data."""

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop")
"""RecBole's optimisers. For any other name it trains with Adam and without weight decay."""

DEFAULT_LAYERS = ("family/", "overall", "model/", "method/")
"""Origins of shipped options that are no change."""

WITHOUT_CUTOFF = {"gauc", "auc", "logloss", "mae", "rmse"}
"""RecBole's metrics that are not ``name@k``."""


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
        self.eval_targets: str | None = None
        try:
            super().__init__(model=name, dataset=sources.dataset)
        except KDError:
            raise
        except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise KDError(f"options of {name}: refused by RecBole: {reason}") from error
        self.final_config_dict["method"] = self.method
        self.final_config_dict["import_path"] = name
        if self.sequences:
            self.final_config_dict["eval_targets"] = self.eval_targets
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
        option = self.option
        cls = backbone_class(model, option)
        if cls.type in (ModelType.CONTEXT, ModelType.DECISIONTREE, ModelType.KNOWLEDGE):
            raise KDError(
                f"{option}={model}: RecBole's {cls.type.name.lower()} models need more than "
                "interactions; allowed are general and sequential models"
            )
        if issubclass(get_trainer(cls.type, cls.__name__), PretrainTrainer):
            raise KDError(
                f"{option}={model}: RecBole trains it in stages, each from a pickle of the one "
                "before; allowed are models of one stage"
            )
        return short_name(model), cls, dataset

    def _load_internal_config_dict(self, model: str, model_class: Any, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        self._recbole_defaults = dict(self.internal_config_dict)
        protocol = self.sources.get("protocol")
        candidates = [
            ("overall.yaml", shipped("overall.yaml")),
            (f"model/{model}.yaml", model_defaults(self.import_path)),
            (f"dataset/{dataset}.yaml", shipped("dataset", f"{dataset}.yaml")),
        ]
        if self.sources.method != SCRATCH:
            # A method asks something of the other roles only in their sections.
            name, values = short_name(self.sources.method), method_defaults(self.sources.method)
            if self.method == SCRATCH:
                values = {k: v for k, v in values.items() if k in SECTIONS}
            candidates.append((f"method/{name}.yaml", values))
        if protocol:
            candidates.append((f"protocol {protocol}", protocol_options(protocol)))
        layers = [Layer(origin, values) for origin, values in candidates if values is not None]
        layers += self._recipes(self.sources.get("recipe", default="auto"))
        said = dict(self.internal_config_dict)
        for layer in layers:
            said.update(flatten(layer.values, self.role))
        said.update(self.external_config_dict)
        self.layers = [*self._family_layers(model_class, said), *layers]
        for layer in self.layers:
            self.internal_config_dict.update(flatten(layer.values, self.role))

    def _recipes(self, recipe: Any) -> list[Layer]:
        """The pair's recipe holds for all roles; a scratch recipe of the student on top of it."""
        layers = []
        if self.sources.method != SCRATCH and (self.sources.teacher or recipe != "auto"):
            layers.append(recipe_layer(self.sources, self.sources.method, recipe))
        if self.role == "scratch" or self.sources.method == SCRATCH:
            layers.append(recipe_layer(self.sources, SCRATCH, recipe))
        return [layer for layer in layers if layer is not None]

    def _family_layers(self, model_class: Any, said: dict[str, Any]) -> list[Layer]:
        """What the families of the run's models settle.

        Teacher and student have one split: a sequential member decides it for all roles. A loss
        over all items draws no negatives, which RecBole demands to be said.

        Args:
            model_class: Class of this role's model.
            said: What all other sources say.
        """
        members = [backbone_class(self.sources.student)]
        if self.sources.method != SCRATCH and self.sources.teacher:
            members.append(backbone_class(self.sources.teacher, "--teacher"))
        self.sequences = any(cls.type == ModelType.SEQUENTIAL for cls in members)
        sequential = model_class.type == ModelType.SEQUENTIAL
        if self.sequences:
            ready_made = said.get("benchmark_filename") is not None
            self.eval_targets = said.get("eval_targets") or ("all" if ready_made else "next")
        options: dict[str, Any] = {}
        if self.eval_targets == "all":
            options["eval_args"] = RATIO_SPLIT
        elif self.sequences and not sequential:
            family = recbole_yaml("quick_start_config", "sequential.yaml")
            options["eval_args"] = family["eval_args"]
        if sequential and said.get("loss_type") == "CE":
            options["train_neg_sample_args"] = None
        if sequential and said.get("sequence_training") == "causal":
            options["train_batch_size"] = CAUSAL_BATCH_SIZE
        layers = [Layer("family", options)]
        if sequential:
            own = shipped("family", "sequential.yaml") or {}
            layers.insert(0, Layer("family/sequential.yaml", own))
        return layers

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
        whole = ("seed", "split_seed", "stopping_step", "eval_step", "save_every")
        for key in (*whole, "metric_decimal_place"):
            self.whole_number(key)
        for key in ("weight_decay", "adam_eps", "save_last_seconds", "min_token_overlap"):
            self.number(key, low=0)
        tempered = ["score_temperature"] if self["score_temperature"] is not None else []
        for key in ("learning_rate", "memory_budget_gb", *tempered):
            self.number(key, low=0, above=True)
        for key in ("allow_leak", "exact_time", "per_user", "repeatable", "scratch"):
            self.choice(key, (True, False))
        self.choice("learner", LEARNERS)
        self.choice("missing_score", ("floor", "mask"))
        self.positive_int("min_listed_items")
        if self.sequences:
            self._check_sequences()
        self.choice("eval_history", ("all", "train"))
        mode = self["eval_args"]["mode"]["test"]
        if self["eval_history"] == "train" and mode != "full":
            raise KDError(f"--eval_history=train: found eval_args.mode={mode}; allowed is full")
        measured = [
            m if m.lower() in WITHOUT_CUTOFF else f"{m}@{k}"
            for m in self["metrics"]
            for k in self["topk"]
        ]
        if self["valid_metric"].lower() not in [m.lower() for m in measured]:
            raise KDError(
                f"{self._shown('valid_metric')}={self['valid_metric']}: metrics and topk give "
                f"{', '.join(dict.fromkeys(measured))}; allowed is one of them"
            )

    def _check_sequences(self) -> None:
        mode = self["eval_args"]["mode"]["test"]
        if self.choice("eval_targets", ("next", "all")) == "all" and mode != "full":
            raise KDError(f"--eval_targets=all: found eval_args.mode={mode}; allowed is full")
        if not self.sequential:
            return
        self.positive_int("MAX_ITEM_LIST_LENGTH")
        trained = getattr(self.model_class, "sequence_training", ("prefix",))
        if self.choice("sequence_training", ("prefix", "causal")) not in trained:
            raise KDError(
                f"{self._shown('sequence_training')}={self['sequence_training']}: {self['model']} "
                f"learns from {trained[0]} rows only; allowed is {trained[0]}"
            )
        drawn = (self["train_neg_sample_args"] or {}).get("distribution", "none")
        single = self["MODEL_INPUT_TYPE"] == InputType.POINTWISE
        if self["sequence_training"] == "causal" and single and drawn != "none":
            other = "student" if self.role == "teacher" else "teacher"
            raise KDError(
                f"{self._shown('train_neg_sample_args')}: found distribution {drawn}; "
                f"{self['model']} on causal rows would learn them as items of the user; allowed is "
                f"null, or a section of the other model (--{other}.train_neg_sample_args)"
            )
        self.choice("train_windows", ("last", "all"))
        hidden = self.choice("filter_history", (False, True, "all"))
        if hidden and mode != "full":
            raise KDError(
                f"--filter_history={hidden}: found eval_args.mode={mode}; allowed is full"
            )
        asked = self["eval_history"] == "train" and self["eval_targets"] == "next"
        if asked and self["repeatable"] and self.role != "teacher":
            raise KDError(
                "--eval_history=train: found eval_targets=next, where filter_history decides; "
                "allowed is all"
            )
        if hidden and self["eval_targets"] == "all":
            raise KDError(
                f"--filter_history={hidden}: found eval_targets=all, where eval_history decides; "
                "allowed is False"
            )

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

    def at_most(self, key: str, limit: str) -> None:
        """Refuse a number above that of another key.

        Args:
            key: The key to check; its value is a number.
            limit: The key that bounds it.

        Raises:
            KDError: It is above.
        """
        if self[key] > self[limit]:
            raise KDError(
                f"--{key}={self[key]}: found {limit}={self[limit]}; allowed are values up to that"
            )

    @property
    def option(self) -> str:
        """The option that names the model."""
        return "--teacher" if self.role == "teacher" else "--student"

    @property
    def sequential(self) -> bool:
        """Whether the model reads sequences; :attr:`sequences` asks that of the whole run."""
        return self["MODEL_TYPE"] == ModelType.SEQUENTIAL

    @property
    def reads_time(self) -> bool:
        """Whether the model reads the times of interactions, and not their order alone."""
        asked = getattr(self.model_class, "reads_time", None)
        return False if asked is None else asked(self)

    def learning_keys(self) -> set[str]:
        """Keys that model, method and training read, as opposed to paths, logs and data files."""
        keys = SECTION_KEYS - {"save_every", "save_last_seconds"} | model_keys(
            self.import_path, "--model"
        )
        keys -= {"score_temperature"}  # it says how scores are read, and a model alone reads none
        if self.method != SCRATCH:
            keys |= set(method_defaults(self.method)) - set(SECTIONS)
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
            if layer.origin.startswith(DEFAULT_LAYERS):
                default.update(flatten(layer.values, self.role))
        for layer in (*self.layers, *self.sources.layers):
            if layer.origin.startswith(DEFAULT_LAYERS):
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
