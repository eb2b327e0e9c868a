"""A report's numbers at full precision, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from recbole_kd.reporting.collect import Benchmark
from recbole_kd.reporting.tables import Table

RUNS = ("dataset", "pair", "group", "row", "kind", "model", "seed", "metric", "value")
MEANS = (
    *("dataset", "pair", "group", "row", "kind", "metric", "seeds", "mean", "deviation"),
    *("best", "best_baseline", "published"),
)
TESTS = (
    *("dataset", "pair", "group", "metric", "ours", "against", "by", "pairs", "difference"),
    *("effect_size", "statistic", "p_value", "p_holm", "reason"),
)


def runs(bench: Benchmark) -> str:
    """A line for each row, metric and seed."""
    return _csv(
        RUNS,
        (
            (block.dataset, block.pair, row.group, row.name, row.kind, row.model, seed, name, value)
            for block in bench.blocks
            for row in block.rows
            for seed, run in row.runs.items()
            for name, value in run.test_result.items()
        ),
    )


def means(tables: Iterable[Table]) -> str:
    """A line for each row and metric of each table, as it is shown there."""
    return _csv(MEANS, (line for table in tables for line in _means(table)))


def _means(table: Table) -> Iterable[Sequence[Any]]:
    for line in table.lines:
        for metric, cell in line.cells.items():
            found = cell.summary
            yield (
                *(table.dataset, table.pair, table.group, line.row.name, line.row.kind, metric),
                *(found.count, found.mean, found.deviation),
                *(int(cell.best), int(cell.best_baseline), cell.paper),
            )


def tests(bench: Benchmark, tables: Iterable[Table]) -> str:
    """A line for each comparison, by seed and by user."""
    return _csv(TESTS, (line for table in tables for line in _tests(bench, table)))


def _tests(bench: Benchmark, table: Table) -> Iterable[Sequence[Any]]:
    for versus in table.tests:
        for how, one in (("seed", versus.by_seed), ("user", versus.by_user)):
            yield (
                *(table.dataset, table.pair, table.group, bench.metric, bench.ours, versus.row),
                *(how, one.pairs, one.difference, one.effect_size, one.statistic),
                *(one.p_value, one.corrected, one.reason),
            )


def _csv(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()
