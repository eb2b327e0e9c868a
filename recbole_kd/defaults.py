"""What RecBole and this package ship: the options of models, methods, protocols and recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import recbole

from recbole_kd.errors import KDError
from recbole_kd.options import Layer, Sources, nest, read_yaml
from recbole_kd.registry import SCRATCH, backbone_class, method_class, short_name
from recbole_kd.resources import properties_dir

_RECBOLE_PROPERTIES = Path(recbole.__file__).parent / "properties"

RANGE = "range"
"""Key of a method's file that holds no option: what a search varies."""


def shipped(*parts: str) -> dict[str, Any] | None:
    """The options in one of our own files, or ``None`` where there is no such file."""
    path = properties_dir().joinpath(*parts)
    return nest(read_yaml(path)) if path.is_file() else None


def recbole_yaml(*parts: str) -> dict[str, Any]:
    """The options in one of RecBole's files; none where there is no such file."""
    path = _RECBOLE_PROPERTIES.joinpath(*parts)
    return read_yaml(path) if path.is_file() else {}


def protocol_options(name: str) -> dict[str, Any]:
    """The options of a shipped protocol.

    Raises:
        KDError: There is none of that name.
    """
    values = shipped("protocol", f"{name}.yaml")
    if values is None:
        known = sorted(p.stem for p in (properties_dir() / "protocol").glob("*.yaml"))
        raise KDError(f"--protocol={name}: known are {', '.join(known)}")
    return values


def method_defaults(method: str) -> dict[str, Any]:
    """The shipped defaults of a method; an outside class brings ``defaults``, or inherits them."""
    return nest(_of_method(method, "defaults"))


def method_ranges(method: str) -> dict[str, Any]:
    """What a search varies of a method: by option, ``low`` and ``high``, or ``choices``.

    They stand under ``range:`` in the method's file. An outside class brings ``ranges``, or
    inherits them; a student that is trained alone has those of every student.

    Args:
        method: Name of the method, or ``Scratch``.
    """
    if method == SCRATCH:
        return shipped("range", "student.yaml") or {}
    defaults = method_defaults(method)
    return {k: v for k, v in _of_method(method, "ranges").items() if k in defaults}


def _of_method(method: str, what: str) -> dict[str, Any]:
    """``defaults`` or ``ranges``, of the method itself or the nearest class that has them."""
    cls = method_class(method)
    if ":" not in method and (values := _method_file(method, what)) is not None:
        return values
    for base in () if cls is None else cls.__mro__:
        if what in vars(base):
            return vars(base)[what]
        ours = base.__module__.startswith("recbole_kd.methods.")
        if ours and (values := _method_file(base.__name__, what)) is not None:
            return values
    return {}


def _method_file(name: str, what: str) -> dict[str, Any] | None:
    """One half of a method's file: its options, or the ranges beside them."""
    values = shipped("method", f"{name}.yaml")
    if values is None:
        return None
    ranges = values.pop(RANGE, None) or {}
    return ranges if what == "ranges" else values


def model_defaults(name: str) -> dict[str, Any] | None:
    """The shipped defaults of a model; an outside class brings ``defaults`` as an attribute."""
    values = shipped("model", f"{short_name(name)}.yaml")
    own = getattr(backbone_class(name), "defaults", None)
    return nest(own) if values is None and own is not None else values


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
    values = shipped(*parts)
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


def readers_of(key: str) -> list[str]:
    """The models and methods whose files name ``key``."""
    folders = [
        _RECBOLE_PROPERTIES / "model",
        properties_dir() / "model",
        properties_dir() / "method",
    ]
    return [
        p.stem
        for f in folders
        for p in sorted(f.glob("*.yaml"))
        if key in read_yaml(p) and key != RANGE
    ]
