"""Times as a model reads them: seconds, and nothing that only looks like it."""

from __future__ import annotations

import math

from torch import Tensor

from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory

MILLISECONDS = 1e11
"""In seconds the year 5138; in milliseconds 1973."""

DAY = 86400
"""No data of a recommender lie within a day of 0; places in a sequence and scaled times all do."""


def check_unit(times: Tensor, where: str) -> None:
    """Refuse what cannot be seconds.

    Args:
        times: Times, any shape, float64.
        where: What holds them, for the message.

    Raises:
        KDError: A time is not finite, or as large as milliseconds are.
    """
    if not bool(times.isfinite().all()):
        raise KDError(f"{where}: a time is {times[~times.isfinite()][0].item()}; allowed are times")
    largest = float(times.abs().max()) if times.numel() else 0.0
    if largest >= MILLISECONDS:
        raise KDError(
            f"{where}: a time is {largest:.0f}, which looks like milliseconds or a smaller unit; "
            "allowed are seconds"
        )


def check_places(times: Tensor, where: str, instead: str) -> None:
    """Refuse times that are places in a sequence, or were scaled.

    Args:
        times: Times of one data set, or of one request, any shape, float64.
        where: What holds them, for the message.
        instead: What is allowed beside seconds, for the message.

    Raises:
        KDError: All of them lie within a day of 0.
    """
    largest = float(times.abs().max()) if times.numel() else math.inf
    if largest < DAY:
        raise KDError(
            f"{where}: all times lie within a day of 0 (up to {largest:g}): they look like places "
            f"in a sequence, or scaled; allowed are seconds{instead}"
        )


def check_history(history: UserHistory, where: str, instead: str) -> None:
    """Refuse train times that are no seconds, before anything is trained on their differences.

    Args:
        history: Train interactions.
        where: Name of the data set, for the message.
        instead: Options that do without times, for the message.

    Raises:
        KDError: There are no times; they were scaled to a small range; they are places in the
            sequence; they are milliseconds.
    """
    times = history.times
    if times is None:
        raise KDError(f"{where}: found no times; allowed without them: {instead}")
    check_unit(times, where)
    span = float(times.max() - times.min()) if len(times) else 0.0
    if span < 2:
        raise KDError(
            f"{where}: all times lie within {span:g} seconds, as after a normalisation "
            f"(normalize_field, normalize_all with exact_time=False); allowed are seconds, or "
            f"{instead}"
        )
    check_places(times, where, f", or {instead}")
