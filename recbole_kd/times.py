"""Times as a model reads them: seconds, and nothing that only looks like it."""

from __future__ import annotations

from torch import Tensor

from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory

MILLISECONDS = 1e11
"""In seconds the year 5138; in milliseconds 1973."""

DAY = 86400
"""No data of a recommender lie within a day after 0; places in a sequence all do."""


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
    if float(times.min()) >= 0 and float(times.max()) < DAY:
        raise KDError(
            f"{where}: all times lie between 0 and {times.max():g}, within a day: they look "
            f"like places in a sequence; allowed are seconds, or {instead}"
        )
