"""What would be refused hours later is refused before the first run: each row is set up once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from recbole_kd.benchmark.plan import Job
from recbole_kd.benchmark.records import DISTILLED, REFERENCE
from recbole_kd.config import KDConfig
from recbole_kd.data import Split, load_split
from recbole_kd.errors import KDError
from recbole_kd.options import Sources
from recbole_kd.quick_start import Run

PARTS = ("train", "valid", "test")


Prints = dict[tuple[str, str, str], dict[str, str]]
"""What a row's runs read, by data set, pair and row: see :attr:`Run.prints`."""


def check_jobs(jobs: Iterable[Job], metric: str | None = None) -> Prints:
    """Set up a run of each row without training anything.

    Args:
        jobs: The jobs of a benchmark.
        metric: Metric of tests and figures, or ``None``.

    Returns:
        The split of each row, as its files are now.

    Raises:
        KDError: A run would be refused, or a row has another split than the others of its pair; the
            message names the row.
    """
    splits: dict[str, Split] = {}
    found: Prints = {}
    first: dict[tuple[str, str], tuple[str, dict[str, str]]] = {}
    rows = {(job.dataset, job.pair, job.row): job for job in reversed(list(jobs))}
    # A teacher and a scratch student are parts of a distilled row's run, and checked with it.
    for job in sorted(rows.values(), key=lambda job: job.kind != DISTILLED):
        try:
            with _quiet():
                read = _set_up(job, splits, metric)
        except KDError as error:
            raise KDError(f"row {job.row}, {job.dataset}, {job.pair}: {error}") from error
        found[job.dataset, job.pair, job.row] = read
        prints = {part: read[part] for part in PARTS}
        row, expected = first.setdefault((job.dataset, job.pair), (job.row, prints))
        if prints != expected:
            raise KDError(
                f"row {job.row}, {job.dataset}, {job.pair}: found another split than that of "
                f"{row}; allowed is one for all rows: eval_args and eval_targets decide it"
            )
    return found


def _set_up(job: Job, splits: dict[str, Split], metric: str | None) -> dict[str, str]:
    """What a run does before it trains; splits are loaded once.

    Returns:
        :attr:`Run.prints`.
    """
    sources = Sources.collect(options=job.options)
    config = KDConfig(sources, "student")
    learnt = config.learning_keys() | {"method", "import_path", "model", "seed"}
    data = {key: value for key, value in config.resolved().items() if key not in learnt}
    key = json.dumps([data, config.sequences, config["MODEL_TYPE"].name], sort_keys=True)
    if job.kind == REFERENCE:
        key += job.model  # some models bring a data set of their own
    split = splits.get(key)
    if split is None:
        split = splits[key] = load_split(config)
    run = Run(sources, saved=True, split=split)
    if job.kind == DISTILLED:
        run.check()
    if job.kind == REFERENCE:
        config.positive_int("eval_step")  # RecBole's trainer would keep no epoch
    names = [f"{name.lower()}@{k}" for name in config["metrics"] for k in config["topk"]]
    if metric is not None and metric not in names:
        raise KDError(f"metric={metric}: found {', '.join(names)}; allowed is one of them")
    return run.prints


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what a run says of itself to the run."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
