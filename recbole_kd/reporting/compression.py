"""Size and speed of a benchmark's models, measured from their files on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_kd import deploy
from recbole_kd.report import top_k_timer
from recbole_kd.reporting.collect import MAIN, Block, Row

K = 10
BATCH = 256
"""Users of a batch."""

REPEATS, LEAST_REPEATS, SECONDS = 200, 20, 1.0
"""Repeats of a timing: at most, at least, and after which time no further one begins."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one top-10 request.

    Attributes:
        p50: Their median.
        p95: What 95% of them do not exceed.
        repeats: How many were timed.
    """

    p50: float
    p95: float
    repeats: int


@dataclass(frozen=True)
class Measured:
    """A row's model.

    Attributes:
        row: Name of the row.
        seed: Seed of the run that was measured; ``None`` where there is no file.
        parameters: Learned numbers.
        weight_bytes: Bytes of the weights in memory.
        file_bytes: Bytes of ``best.pt``, which also holds tokens and train history.
        one: A request for one user; ``None`` where it was not timed.
        batch: A request for :data:`BATCH` users; ``None`` where it was not timed.
        reason: Why numbers are missing; empty where none is.
        data: Facts about the data the model was trained on, by name.
        split: Fingerprints of its split.
    """

    row: str
    seed: int | None = None
    parameters: int | None = None
    weight_bytes: int | None = None
    file_bytes: int | None = None
    one: Latency | None = None
    batch: Latency | None = None
    reason: str = ""
    data: dict[str, int] = field(default_factory=dict)
    split: dict[str, str] = field(default_factory=dict)


def measure_all(folder: Path, block: Block, timed: bool) -> dict[str, Measured]:
    """Measure the first seed of every row of the main group that has runs.

    Args:
        folder: The benchmark's folder.
        block: The results of a data set and pair.
        timed: Whether to measure latencies too.

    Returns:
        What was measured, by row.
    """
    return {row.name: measure(folder, row, timed) for row in block.of_group(MAIN) if row.runs}


def measure(folder: Path, row: Row, timed: bool) -> Measured:
    """Measure the model of a row's first seed.

    Args:
        folder: The benchmark's folder.
        row: A row with runs.
        timed: Whether to measure latencies too.
    """
    seed, run = next(iter(row.runs.items()))
    file = folder / (run.folder or "") / "best.pt"
    if not run.folder or not file.is_file():
        return Measured(row.name, parameters=run.parameters, reason="there is no best.pt")
    try:
        return _measure(row.name, seed, file, timed)
    except Exception as error:  # a model's own code can raise anything, and is one row of many
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        reason = reason.replace(f"{folder}/", "")
        return Measured(row.name, seed, run.parameters, reason=reason)


def _measure(name: str, seed: int, file: Path, timed: bool) -> Measured:
    loaded = deploy.load_model(file)
    parameters = list(loaded.model.parameters())
    one = batch = None
    if timed:
        users = typical_users(loaded.history.counts)
        one = latency(loaded.scorer, users[len(users) // 2 :][:1])
        batch = latency(loaded.scorer, users)
    return Measured(
        row=name,
        seed=seed,
        parameters=sum(p.numel() for p in parameters),
        weight_bytes=sum(p.numel() * p.element_size() for p in parameters),
        file_bytes=file.stat().st_size,
        one=one,
        batch=batch,
        reason="it cannot rank from the user alone" if timed and one is None else "",
        data={
            "users": len(loaded.tokens.users) - 1,
            "items": len(loaded.tokens.items) - 1,
            "train interactions": int(loaded.history.counts.sum()),
        },
        split=dict(loaded.split),
    )


def typical_users(counts: torch.Tensor, size: int = BATCH) -> torch.Tensor:
    """Users with train items, evenly from those with few to those with many.

    The one in the middle has a history of median length.

    Args:
        counts: Train items of each user id, ``[n_users]``.
        size: How many.

    Returns:
        User ids, ``[size]``; users come twice where there are fewer.
    """
    active = torch.nonzero(counts).flatten()
    active = active[counts[active].argsort(stable=True)]
    return active[torch.linspace(0, len(active) - 1, size).round().long()]


@torch.no_grad()
def latency(scorer: Any, users: torch.Tensor) -> Latency | None:
    """Time a top-10 of all items, request by request, after warm-up.

    Args:
        scorer: The model's scorer.
        users: User ids of the request, ``[n]``.

    Returns:
        The percentiles; ``None`` for a model that needs more than the user.
    """
    timer = top_k_timer(scorer, users, K)
    if timer is None:
        return None
    with scorer.step():
        timer.timeit(3)
        times: list[float] = []
        ended = time.perf_counter() + SECONDS
        while len(times) < REPEATS and (len(times) < LEAST_REPEATS or time.perf_counter() < ended):
            times.append(timer.timeit(1).median * 1e3)
    return percentiles(times)


def percentiles(times: Sequence[float]) -> Latency:
    """The percentiles of some times.

    Args:
        times: Milliseconds, ``[n]``.
    """
    p50, p95 = np.percentile(times, [50, 95]).tolist()
    return Latency(p50, p95, len(times))
