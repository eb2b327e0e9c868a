"""A test in detail: the files beside a run's results that tests of significance and reports read.

``per_user.parquet`` has a row a ranking: a user with all held-out items, or, for sequential models
that predict every held-out item from the items before it (``eval_targets: next``), one such item of
the user named; nothing is aggregated. Columns: ``user`` (token), ``held_out`` (number of held-out
items of the ranking), ``train_items`` (number of the user's train interactions) and the metrics
that are means over rankings, as RecBole defines them (``recall@10``).

``per_item.parquet`` has a row an item that is held out: ``item`` (token), ``train_users`` (number
of its train interactions, its popularity), ``held_out`` (how often it is a target) and, by cut-off,
how often it is among the best of a ranking it is a target of (``hits@10``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from recbole_kd import checkpoint
from recbole_kd.config import KDConfig
from recbole_kd.data import Tokens
from recbole_kd.errors import KDError
from recbole_kd.evaluation import Rankings, mean_metrics
from recbole_kd.history import UserHistory
from recbole_kd.optional import parquet

FILE = "per_user.parquet"
ITEMS_FILE = "per_item.parquet"
FILES = (FILE, ITEMS_FILE)
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
    folder: Path,
    rankings: Rankings,
    tokens: Tokens,
    history: UserHistory,
    measured: dict[str, Any],
) -> None:
    """Write the two files of a test; those that are there are replaced.

    Args:
        folder: The run's folder.
        rankings: The rankings.
        tokens: Tokens by id.
        history: Train interactions by user.
        measured: What was measured, as plain data; kept in the files for :func:`fits`.

    Raises:
        KDError: The library is missing, or a file cannot be written.
    """
    users = {
        "user": _taken(tokens.users, rankings.users),
        "held_out": rankings.held_out.int().numpy(),
        "train_items": history.counts[rankings.users].int().numpy(),
        **rankings.metrics,
    }
    n_items = len(tokens.items)
    targets = rankings.targets.bincount(minlength=n_items)
    items = targets.nonzero().squeeze(1)
    popularity = history.items.long().bincount(minlength=n_items)
    hits = {
        f"hits@{k}": rankings.hits[rankings.places < k].bincount(minlength=n_items)[items]
        for k in measured["topk"]
    }
    columns = {"train_users": popularity[items], "held_out": targets[items], **hits}
    by_item = {
        "item": _taken(tokens.items, items),
        **{name: counts.int().numpy() for name, counts in columns.items()},
    }
    _write(folder / ITEMS_FILE, by_item, measured)
    _write(folder / FILE, users, measured)


def _taken(tokens: Sequence[str], ids: Tensor) -> Any:
    """The tokens of some ids, as a column."""
    arrow = parquet(OPTION)
    return arrow.array(tokens, arrow.string()).take(arrow.array(ids.numpy()))


def _write(file: Path, columns: dict[str, Any], measured: dict[str, Any]) -> None:
    arrow = parquet(OPTION)
    said = {"measured": json.dumps(measured, sort_keys=True)}
    table = arrow.table(columns).replace_schema_metadata(said)
    checkpoint.write_bytes_atomically(file, lambda out: arrow.parquet.write_table(table, out))


def fits(folder: Path, measured: dict[str, Any]) -> bool:
    """Whether a folder has the files of a test, measured as asked.

    Args:
        folder: The run's folder.
        measured: What is to be measured, as plain data.

    Raises:
        KDError: The library is missing.
    """
    arrow = parquet(OPTION)
    try:
        kept = [arrow.parquet.read_schema(folder / name).metadata or {} for name in FILES]
    except (arrow.ArrowException, OSError):
        return False  # missing or damaged
    asked = json.dumps(measured, sort_keys=True).encode()
    return all(said.get(b"measured") == asked for said in kept)


def remove(folder: Path) -> None:
    """Remove the files of a test, where there are some.

    Args:
        folder: The run's folder.
    """
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
