"""A test, ranking by ranking: the file beside a run's results that tests of significance read.

A row is a ranking: a user with all held-out items, or, for sequential models that predict every
held-out item from the items before it (``eval_targets: next``), one such item of the user named;
nothing is aggregated. Columns: ``user`` (token), ``held_out`` (number of held-out items of the
ranking) and the metrics that are means over rankings, as RecBole defines them (``recall@10``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_kd import checkpoint
from recbole_kd.config import KDConfig
from recbole_kd.errors import KDError
from recbole_kd.evaluation import Rankings, mean_metrics
from recbole_kd.optional import parquet

FILE = "per_user.parquet"
OPTION = "--per_user=True"


def check(config: KDConfig, saved: bool) -> None:
    """Refuse to keep rankings that cannot be kept, before anything is trained.

    Args:
        config: Configuration of a run.
        saved: Whether the run writes files.

    Raises:
        KDError: The run asks for the file, and writes none, lacks the library for it, or measures
            nothing by ranking.
    """
    if not config["per_user"]:
        return
    if not saved:
        raise KDError(f"{OPTION}: needs saved=True, found saved=False")
    if not mean_metrics(config["metrics"]):
        raise KDError(
            f"{OPTION}: found metrics={config['metrics']}, of which none is a mean over users; "
            "needed is one that is, such as NDCG"
        )
    parquet(OPTION)


def write(
    folder: Path, rankings: Rankings, tokens: Sequence[str], measured: dict[str, Any]
) -> None:
    """Write the rankings of a test; a file that is there is replaced.

    Args:
        folder: The run's folder.
        rankings: The rankings.
        tokens: Token of each user id.
        measured: What was measured, as plain data; kept in the file for :func:`fits`.

    Raises:
        KDError: The library is missing, or the file cannot be written.
    """
    arrow = parquet(OPTION)
    users = arrow.array(tokens, arrow.string()).take(arrow.array(rankings.users.numpy()))
    held_out = arrow.array(rankings.held_out.numpy(), arrow.int32())
    table = arrow.table({"user": users, "held_out": held_out, **rankings.metrics})
    table = table.replace_schema_metadata({"measured": json.dumps(measured, sort_keys=True)})
    checkpoint.write_bytes_atomically(
        folder / FILE, lambda file: arrow.parquet.write_table(table, file)
    )


def fits(folder: Path, measured: dict[str, Any]) -> bool:
    """Whether a folder has the rankings of a test, measured as asked.

    Args:
        folder: The run's folder.
        measured: What is to be measured, as plain data.

    Raises:
        KDError: The library is missing.
    """
    arrow = parquet(OPTION)
    try:
        kept = arrow.parquet.read_schema(folder / FILE).metadata or {}
    except (arrow.ArrowException, OSError):
        return False  # missing or damaged
    return kept.get(b"measured") == json.dumps(measured, sort_keys=True).encode()
