"""Libraries that only some runs need, asked for before those runs begin."""

from __future__ import annotations

import importlib
from typing import Any

from recbole_kd.errors import KDError


def need(module: str, asker: str, instead: str = "", package: str = "") -> Any:
    """A library that is no requirement of the package.

    Args:
        module: Name of the module.
        asker: What needs it, for the message.
        instead: What does without, for the message.
        package: Name to install it by, where it differs from the module's first part.

    Returns:
        The first part of the module's name, with the module loaded.

    Raises:
        KDError: It is not installed, or does not load.
    """
    first = module.partition(".")[0]
    package = package or first
    try:
        importlib.import_module(module)
        return importlib.import_module(first)
    except ImportError as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise KDError(
            f"{asker}: needs {package} ({reason}); pip install {package}{instead}"
        ) from error


def parquet(asker: str, instead: str = "") -> Any:
    """The library that reads and writes parquet files, see :func:`need`.

    Returns:
        The module ``pyarrow``, its ``parquet`` loaded.
    """
    return need("pyarrow.parquet", f"{asker}: parquet files", instead)
