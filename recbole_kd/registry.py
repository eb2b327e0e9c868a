"""Names to classes: distillation methods and RecBole models.

A method is the class ``Foo`` in ``recbole_kd/methods/foo.py``; a model of ours is the class
``Bar`` in ``recbole_kd/backbones/bar.py``, any other name is one of RecBole's. From outside,
``package.module:Class`` or an entry point of the group ``recbole_kd.methods`` or
``recbole_kd.models`` names a class. Names match exactly; an import that fails is never hidden.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
import sys
from pathlib import Path
from typing import Any

import recbole
from recbole.utils import get_model

from recbole_kd import compat
from recbole_kd.errors import KDError, did_you_mean

compat.import_sequential_models()

SCRATCH = "Scratch"
"""The value of ``--model`` that trains the student alone: there is no method class."""


def _package_classes(package: str) -> dict[str, str]:
    """Class name -> module of every module of ``package`` that holds a class named like it."""
    found = {}
    module = importlib.import_module(package)
    for info in pkgutil.iter_modules(module.__path__):
        if info.name in {"base"} or info.name.startswith("_"):
            continue
        member = importlib.import_module(f"{package}.{info.name}")
        for name, value in vars(member).items():
            own = isinstance(value, type) and value.__module__ == member.__name__
            if own and name.lower() == info.name.replace("_", ""):
                found[name] = member.__name__
    return found


def _entry_points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    return _entry_points_on(group, tuple(sys.path))


@functools.lru_cache(maxsize=8)
def _entry_points_on(group: str, path: tuple[str, ...]) -> dict[str, importlib.metadata.EntryPoint]:
    # All of what is installed is read for it, and a run asks some 30 times.
    return {e.name: e for e in importlib.metadata.entry_points(group=group)}


def _recbole_names() -> list[str]:
    folder = Path(recbole.__file__).parent / "properties" / "model"
    return sorted(p.stem for p in folder.glob("*.yaml"))


def short_name(model: str) -> str:
    """``pkg.module:Class`` -> ``Class``; other names as they are."""
    return model.rpartition(":")[2]


def method_names() -> list[str]:
    """Every method that ``--model`` accepts by its short name, ``Scratch`` included."""
    return sorted(
        {
            SCRATCH,
            *_package_classes("recbole_kd.methods"),
            *_entry_points("recbole_kd.methods"),
        }
    )


def backbone_names() -> list[str]:
    """Every model that ``--student`` and ``--teacher`` accept by its short name."""
    return sorted(
        {
            *_recbole_names(),
            *_package_classes("recbole_kd.backbones"),
            *_entry_points("recbole_kd.models"),
        }
    )


def _from_path(name: str, option: str) -> type[Any]:
    module_name, _, class_name = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), class_name]):
        raise KDError(f"{option}={name}: allowed is package.module:Class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise KDError(
            f"{option}={name}: there is no module '{module_name}' on the Python path"
        ) from error
    if not isinstance(getattr(module, class_name, None), type):
        raise KDError(f"{option}={name}: module '{module_name}' has no class '{class_name}'")
    return getattr(module, class_name)


def _require(cls: Any, name: str, option: str, members: tuple[str, ...], what: str) -> type[Any]:
    """Refuse a class from outside that is not what its option names."""
    missing = [m for m in members if not hasattr(cls, m)]
    if missing:
        raise KDError(f"{option}={name}: no {what}, it has no {', '.join(missing)}")
    return cls


def _require_method(cls: Any, name: str) -> type[Any]:
    return _require(cls, name, "--model", ("kd_loss", "check"), "distillation method")


def _require_model(cls: Any, name: str, option: str) -> type[Any]:
    return _require(cls, name, option, ("calculate_loss", "type"), "RecBole model")


def method_class(name: str) -> type[Any] | None:
    """The class of a distillation method.

    Args:
        name: Short name, or ``package.module:Class``.

    Returns:
        The class, or ``None`` for ``Scratch``.

    Raises:
        KDError: No such method; the message lists those that exist.
    """
    if name == SCRATCH:
        return None
    if ":" in name:
        return _require_method(_from_path(name, "--model"), name)
    classes = _package_classes("recbole_kd.methods")
    if name in classes:
        return getattr(importlib.import_module(classes[name]), name)
    entries = _entry_points("recbole_kd.methods")
    if name in entries:
        return _require_method(entries[name].load(), name)
    known = method_names()
    hint = did_you_mean(name, known)
    if name in backbone_names():
        hint = f" '{name}' is a model: name it with --student or --teacher."
    raise KDError(
        f"--model={name}: there is no such distillation method.{hint} Known: {', '.join(known)}"
    )


def methods_without(*needs: str) -> list[str]:
    """Every method, by its short name, that needs none of some things.

    Args:
        *needs: Of methods' ``needs``.
    """
    classes = {name: method_class(name) for name in method_names() if name != SCRATCH}
    return [n for n, cls in classes.items() if not set(needs) & set(getattr(cls, "needs", ()))]


def backbone_class(name: str, option: str = "--student") -> type[Any]:
    """The class of a RecBole model.

    Args:
        name: Short name, or ``package.module:Class``.
        option: The option the name came from, for the message.

    Raises:
        KDError: No such model; the message gives the nearest names.
    """
    if ":" in name:
        return _require_model(_from_path(name, option), name, option)
    classes = _package_classes("recbole_kd.backbones")
    if name in classes:
        return getattr(importlib.import_module(classes[name]), name)
    entries = _entry_points("recbole_kd.models")
    if name in entries:
        return _require_model(entries[name].load(), name, option)
    if name in _recbole_names():
        return get_model(name)
    hint = did_you_mean(name, backbone_names())
    if name in method_names():
        hint = f" '{name}' is a distillation method: name it with --model."
    raise KDError(
        f"{option}={name}: there is no such model.{hint} "
        "RecBole's model names are case-sensitive, for example BPR, LightGCN, NeuMF, SASRec"
    )


def recbole_class(name: str, where: str) -> type[Any]:
    """RecBole's own class of a name, which RecBole finds without this package.

    Args:
        name: Name of the model.
        where: The file or option the name came from, for the message.

    Raises:
        KDError: RecBole has no such class.
    """
    try:
        return get_model(name)
    except (ImportError, ValueError, AttributeError) as error:
        raise KDError(f"{where}: model {name} is not one of RecBole's") from error
