"""What the user said: text to values, files and arguments to sources, sources to names.

Which source wins is told in :mod:`recbole_kd.config`.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recbole_kd.errors import KDError

SECTIONS = ("student", "teacher", "scratch_student")
NAMES = ("model", "dataset", "student", "teacher")
ROLE_SECTIONS = {
    "student": ("student",),
    "teacher": ("teacher",),
    "scratch": ("student", "scratch_student"),
}

SCORE_FILES = (".parquet", ".csv", ".npz")
"""Endings of a teacher's scores in a file."""

TEACHER_FILES = (".pt", ".pth", *SCORE_FILES)
"""Endings by which ``--teacher`` is a file, not the name of a model."""

TEACHER_KEYS = ("teacher", "checkpoint")
"""Keys that may hold a list of files and run folders, one a teacher."""

TEXT_KEYS = {
    *NAMES,
    "checkpoint",
    "checkpoint_dir",
    "config_files",
    "data_path",
    "params_file",
    "protocol",
    "recipe",
    "resume",
    "study",
}
"""Names and paths: a data set called ``2024`` or ``1e5`` is no number."""


class SafeLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
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
    parsed, tail = parse_value(value), key.rpartition(".")[2]
    if isinstance(parsed, list) and tail in TEACHER_KEYS:
        return _texts(value) if isinstance(value, str) else parsed
    if isinstance(value, str) and tail in TEXT_KEYS:
        return parsed if parsed is None or isinstance(parsed, Mapping) else value
    return parsed


def _texts(text: str) -> list[str]:
    """A YAML list as the texts in it: a folder called ``2024`` is no number."""
    node = yaml.compose(text, Loader=SafeLoader)
    entries = node.value if isinstance(node, yaml.SequenceNode) else []
    return [n.value if isinstance(n, yaml.ScalarNode) else f"({n.tag})" for n in entries]


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

    ``student: BPR`` means ``student: {model: BPR}``, ``teacher: a.pt`` means
    ``teacher: {checkpoint: a.pt}``, and so does a list of files; a list of one is that one.
    ``model``, ``dataset`` stay as they are.
    """
    result: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        head, dot, tail = key.partition(".")
        if dot and head in SECTIONS:
            sections.setdefault(head, {})[tail] = value
        elif key in SECTIONS:
            sections.setdefault(key, {}).update(_section(key, value))
        else:
            result[key] = value
    return {**result, **sections}


def _section(name: str, value: Any) -> Mapping[str, Any]:
    """A section, where a plain value stands for one of its keys."""
    if isinstance(value, Mapping) or value is None:
        return value or {}
    several = isinstance(value, list | tuple)
    if several and len(value) == 1:
        return _section(name, value[0])
    # No model's name has a slash in it; a run's folder has.
    is_file = several or str(value).endswith(TEACHER_FILES) or "/" in str(value)
    return {"checkpoint" if name == "teacher" and is_file else "model": value}


def is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0; ``True`` is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


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
        teacher: str | Sequence[str] | None = None,
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
        layers.append(Layer("command line", merge(spoken, top)))
        names = _take_names(layers)
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

    def get(self, key: str, section: str | None = None, default: Any = None) -> Any:
        """The user's own value of a key (highest source wins), or ``default``."""
        found = default
        for layer in self.layers:
            values = layer.values.get(section, {}) if section else layer.values
            found = values.get(key, found)
        return found

    def says(self, key: str) -> bool:
        """Whether the user names a key, outside the sections and whatever the value."""
        return any(key in layer.values for layer in self.layers)

    @property
    def teacher_files(self) -> list[str]:
        """Files and run folders of the teachers; none where a teacher is trained."""
        said = self.get("checkpoint", "teacher") or []
        return [str(file) for file in (said if isinstance(said, list | tuple) else [said])]

    def with_layer(self, origin: str, values: dict[str, Any]) -> Sources:
        """The same with one more source, which wins over all."""
        return replace(self, layers=[*self.layers, Layer(origin, values)])


def _take_names(layers: Iterable[Layer]) -> dict[str, Any]:
    """Take the four names out of all layers; the highest that says one settles it."""
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
    return names


def merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """``high`` over ``low``, section by section.

    Args:
        low: Options, sections nested.
        high: Options that win.
    """
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
