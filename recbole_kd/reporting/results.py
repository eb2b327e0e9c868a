"""A benchmark's results, computed: what every page and file of a report is made of."""

from __future__ import annotations

from dataclasses import dataclass

from recbole_kd.reporting.collect import Benchmark
from recbole_kd.reporting.compression import Measured, measure_all
from recbole_kd.reporting.rankings import Rankings
from recbole_kd.reporting.tables import Table, make_table


@dataclass(frozen=True)
class Results:
    """All that a page is made of.

    Attributes:
        bench: The benchmark.
        rankings: Reads the tests by user and item.
        tables: The tables of each data set and pair.
        measured: What was measured of the rows' models there.
        timed: Whether latencies were.
    """

    bench: Benchmark
    rankings: Rankings
    tables: dict[tuple[str, str], list[Table]]
    measured: dict[tuple[str, str], dict[str, Measured]]
    timed: bool


def compute(bench: Benchmark, timed: bool) -> Results:
    """Compute the tables of a benchmark and measure its models.

    Args:
        bench: The benchmark.
        timed: Whether to measure latencies too.
    """
    rankings = Rankings(bench.folder)
    results = Results(bench, rankings, {}, {}, timed)
    for block in bench.blocks:
        place = (block.dataset, block.pair)
        tables = [make_table(bench, block, group, rankings) for group in block.groups]
        results.tables[place] = tables
        results.measured[place] = measure_all(bench.folder, block, timed)
        rankings.clear()
    return results
