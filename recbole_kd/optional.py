"""Libraries that only some runs need, asked for before those runs begin."""

from __future__ import annotations

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
    try:
        import pyarrow.parquet
    except ImportError as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise KDError(
            f"{asker}: parquet files need pyarrow ({reason}); pip install pyarrow{instead}"
        ) from error
    return pyarrow
