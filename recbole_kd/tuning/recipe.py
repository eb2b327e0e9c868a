"""The best options of a search as a recipe: a file like those in ``properties/recipe``."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from recbole_kd.defaults import method_defaults
from recbole_kd.keys import SEQUENTIAL_KEYS, known_keys
from recbole_kd.options import SECTIONS, Layer, Sources, merge
from recbole_kd.registry import SCRATCH, short_name

FILE = "recipe.yaml"

NEVER = {"checkpoint", "save_last_seconds", "seed"}
"""Options of a training that are no part of a recipe."""

UNSAID = {
    "checkpoint_dir",
    "data_path",
    "resume",
    "save_last_seconds",
    "scratch",
    "show_progress",
    "state",
}
"""Options that change no result, or that every reader has another value for."""


def place(params: Mapping[str, Any], sources: Sources) -> dict[str, Any]:
    """Options of a trial, in the sections of a source: the student's own never reach the teacher.

    Args:
        params: By key, with or without ``student.`` before it.
        sources: What the user said.
    """
    own, placed = method_keys(sources), {}
    for key, value in params.items():
        if key in own:
            placed[key] = value
        else:
            placed.setdefault("student", {})[key.removeprefix("student.")] = value
    return placed


def method_keys(sources: Sources) -> set[str]:
    """Options that the run's method reads."""
    if sources.method == SCRATCH:
        return set()
    return set(method_defaults(sources.method)) - set(SECTIONS)


def body(sources: Sources, recipes: Iterable[Layer], params: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a training, of all that was said: the shipped recipe, the user, the search.

    Args:
        sources: What the user said.
        recipes: The shipped recipes that the run goes by.
        params: The best options.
    """
    known = known_keys(sources)
    kept: dict[str, Any] = {}
    sections = {name: known[name] - NEVER for name in SECTIONS}
    top = method_keys(sources) | SEQUENTIAL_KEYS | set().union(*sections.values())
    for layer in (*recipes, *sources.layers):
        values = {k: v for k, v in layer.values.items() if k in top}
        for name in SECTIONS:
            inside = layer.values.get(name) or {}
            values[name] = {k: v for k, v in inside.items() if k in sections[name]}
        kept = merge(kept, values)
    kept = merge(kept, place(params, sources))
    sized = {k: v for k, v in kept.items() if k not in SECTIONS}
    return {**sized, **{name: kept[name] for name in SECTIONS if kept.get(name)}}


def command(sources: Sources, recipe: Mapping[str, Any], path: str) -> str:
    """The command that trains with a recipe, with what the user said beside it.

    Args:
        sources: What the user said.
        recipe: The recipe's options.
        path: Its file.
    """
    names = {"model": sources.method, "student": sources.student, "teacher": sources.teacher}
    said: dict[str, Any] = {k: v for k, v in names.items() if v is not None}
    said["dataset"] = sources.dataset
    for layer in sources.layers:
        for key, value in layer.values.items():
            inner = {f"{key}.{k}": v for k, v in value.items()} if key in SECTIONS else {key: value}
            said.update({k: v for k, v in inner.items() if not _holds(recipe, k)})
    said["config_files"] = path
    words = [f"--{k}={_shown(v)}" for k, v in said.items() if k not in UNSAID]
    return shlex.join(["recbole-kd", "train", *words])


def _holds(recipe: Mapping[str, Any], key: str) -> bool:
    section, dot, inner = key.partition(".")
    return inner in recipe.get(section, {}) if dot and section in SECTIONS else key in recipe


def _shown(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def shipped_path(sources: Sources, teacher: str | None) -> str:
    """Where a recipe is copied to, to become the one that ``--recipe=auto`` finds.

    Args:
        sources: What the user said.
        teacher: Name of the teacher's model, or ``None``.
    """
    student = short_name(sources.student)
    pair = student if teacher is None else f"{teacher}-{student}"
    name = short_name(sources.method)
    return f"properties/recipe/{sources.dataset}/{pair}/{name}.yaml"


def text(head: Iterable[str], recipe: Mapping[str, Any]) -> str:
    """A recipe as it is written, below lines of comment."""
    lines = "".join(f"# {line}\n" for line in head)
    return lines + yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
