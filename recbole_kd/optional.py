"""Libraries that only some runs need, asked for before those runs begin."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from recbole_kd.errors import KDError


def library(module: str, asker: str, instead: str = "") -> Any:
    """A library that may not be installed.

    Args:
        module: What to import of it, such as ``matplotlib.figure``.
        asker: What needs it and for what, for the message.
        instead: What does without, for the message.

    Returns:
        The module.

    Raises:
        KDError: It is not installed, or does not load.
    """
    name = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise KDError(f"{asker} needs {name} ({reason}); pip install {name}{instead}") from error


def parquet(asker: str, instead: str = "") -> Any:
    """The library that reads and writes parquet files.

    Args:
        asker: What needs it, for the message.
        instead: What does without, for the message.

    Returns:
        The module ``pyarrow``, its ``parquet`` loaded.

    Raises:
        KDError: It is not installed, or does not load.
    """
    library("pyarrow.parquet", f"{asker}: a parquet file", instead)
    return import_module("pyarrow")
