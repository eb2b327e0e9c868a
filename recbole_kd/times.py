"""Times as a model reads them: seconds, and nothing that only looks like it."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory

MILLISECONDS = 1e11
"""In seconds the year 5138; in milliseconds 1973."""


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
            f"{where}: a time is {largest:.0f}, which looks like milliseconds or less; "
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
    gaps = times.diff()
    inside = torch.ones(len(gaps), dtype=torch.bool)
    starts = history.offsets[1:-1]
    inside[starts[(starts > 0) & (starts <= len(gaps))] - 1] = False
    if inside.any() and bool((gaps[inside] == 1).all()):
        raise KDError(
            f"{where}: every interaction comes one second after the user's one before, so its "
            f"times are places in a sequence; allowed are seconds, or {instead}"
        )
