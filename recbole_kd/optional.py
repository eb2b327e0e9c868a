"""Libraries that only some runs need, asked for before those runs begin."""

from __future__ import annotations

import importlib
from typing import Any

from recbole_kd.errors import KDError


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
    return _needed("pyarrow", ".parquet", f"{asker}: parquet files need", instead)


def optuna(asker: str) -> Any:
    """The library that searches hyper-parameters.

    Args:
        asker: What needs it, for the message.

    Returns:
        The module ``optuna``.

    Raises:
        KDError: It is not installed, or does not load.
    """
    return _needed("optuna", "", f"{asker}: a search needs")


def _needed(package: str, part: str, need: str, instead: str = "") -> Any:
    try:
        importlib.import_module(package + part)
    except ImportError as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise KDError(f"{need} {package} ({reason}); pip install {package}{instead}") from error
    return importlib.import_module(package)
