"""Size and speed of a benchmark's models, measured from their files on this machine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_kd import deploy
from recbole_kd.report import top_k_timer
from recbole_kd.reporting.collect import MAIN, Block, Row
from recbole_kd.scoring import model_size

K = 10
BATCH = 256
"""Users of a batch."""

REPEATS, LEAST_REPEATS, SECONDS = 200, 20, 1.0
"""Requests of a timing: at most, at least, and after which time no further one begins."""

ROUNDS, WARM_UP = 5, 2
"""In how many turns a model's requests are made, and requests before each that do not count."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one top-10 request, those of all rounds together.

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
    found: dict[str, Measured] = {}
    opened: dict[str, Timed] = {}
    for row in (row for row in block.of_group(MAIN) if row.runs):
        found[row.name], loaded = measure(folder, row)
        if not timed or loaded is None:
            continue
        try:
            opened[row.name] = Timed(loaded)
        except Exception as error:  # see measure
            found[row.name] = replace(found[row.name], reason=_reason(error))
    for name, one in time_all(opened).items():
        found[name] = replace(found[name], one=one.one, batch=one.batch, reason=one.reason)
    return found


def measure(folder: Path, row: Row) -> tuple[Measured, Any]:
    """Open the model of a row's first seed.

    Args:
        folder: The benchmark's folder.
        row: A row with runs.

    Returns:
        Its sizes, and the model; ``None`` where it cannot be opened.
    """
    seed, run = next(iter(row.runs.items()))
    file = folder / (run.folder or "") / "best.pt"
    if not run.folder or not file.is_file():
        return Measured(row.name, parameters=run.parameters, reason="there is no best.pt"), None
    try:
        loaded = deploy.load_model(file)
        return _sizes(row.name, seed, file, loaded), loaded
    except Exception as error:  # a model's own code can raise anything, and is one row of many
        reason = _reason(error).replace(f"{folder}/", "")
        return Measured(row.name, seed, run.parameters, reason=reason), None


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _sizes(name: str, seed: int, file: Path, loaded: Any) -> Measured:
    parameters, weight_bytes = model_size(loaded.model)
    return Measured(
        row=name,
        seed=seed,
        parameters=parameters,
        weight_bytes=weight_bytes,
        file_bytes=file.stat().st_size,
        data={
            "users": len(loaded.tokens.users) - 1,
            "items": len(loaded.tokens.items) - 1,
            "train interactions": int(loaded.history.counts.sum()),
        },
        split=dict(loaded.split),
    )


# -- latency -----------------------------------------------------------------------------------


class Timed:
    """A model whose requests are timed, a few at a time.

    Args:
        loaded: The model, as :func:`recbole_kd.deploy.load_model` gives it.

    Attributes:
        times: Milliseconds so far, of requests for one user and for :data:`BATCH`.
        reason: Why it is not timed; empty where it is.
    """

    def __init__(self, loaded: Any):
        self.scorer = loaded.scorer
        self.times: tuple[list[float], list[float]] = ([], [])
        self.reason = ""
        users = typical_users(loaded.history.counts).to(self.scorer.device)
        batches = [users.roll(n) for n in range(ROUNDS)]
        # Users of few and of many train items take turns, whoever is asked first.
        single = users[torch.randperm(len(users), generator=torch.Generator().manual_seed(0))]
        self.requests = (itertools.cycle(single.split(1)), itertools.cycle(batches))
        if top_k_timer(self.scorer, users[:1], K) is None:
            self.reason = "it cannot rank from the user alone"

    @torch.no_grad()
    def turn(self) -> None:
        """Time the requests of a round, after warm-up."""
        self.scorer.model.eval()
        with self.scorer.step():
            for requests, times in zip(self.requests, self.times, strict=True):
                for _ in range(WARM_UP):
                    self._ask(next(requests))
                ended = time.perf_counter() + SECONDS / ROUNDS
                for n in range(REPEATS // ROUNDS):
                    if n >= LEAST_REPEATS // ROUNDS and time.perf_counter() > ended:
                        break
                    times.append(self._ask(next(requests)))

    def _ask(self, users: torch.Tensor) -> float:
        """Milliseconds of the top-10 of all items for some users."""
        started = _now(users)
        scores = self.scorer.score_all(self.scorer.encode_now(users))
        scores.topk(min(K, scores.shape[1]), dim=1)
        return (_now(users) - started) * 1e3

    @property
    def one(self) -> Latency | None:
        """The latency of a request for one user."""
        return percentiles(self.times[0]) if self.times[0] else None

    @property
    def batch(self) -> Latency | None:
        """The latency of a request for :data:`BATCH` users."""
        return percentiles(self.times[1]) if self.times[1] else None


def _now(users: torch.Tensor) -> float:
    """Seconds of a clock, once the device has done what it was given."""
    if users.is_cuda:
        torch.cuda.synchronize(users.device)
    return time.perf_counter()


def time_all(models: Mapping[str, Timed]) -> Mapping[str, Timed]:
    """Time models in turns, so that what else the machine does meets all of them.

    Args:
        models: The models by row.

    Returns:
        The same, timed.
    """
    rows = list(models)
    for number in range(ROUNDS):
        start = number * len(rows) // ROUNDS
        for one in (models[name] for name in [*rows[start:], *rows[:start]]):
            if one.reason:
                continue
            try:
                one.turn()
            except Exception as error:  # see measure
                one.times, one.reason = ([], []), _reason(error)
    return models


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


def percentiles(times: Sequence[float]) -> Latency:
    """The percentiles of some times.

    Args:
        times: Milliseconds, ``[n]``.
    """
    p50, p95 = np.percentile(times, [50, 95]).tolist()
    return Latency(p50, p95, len(times))
