"""A report's numbers at full precision, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from recbole_kd.benchmark.records import SCRATCH_STUDENT, TEACHER
from recbole_kd.reporting.collect import Benchmark, Block
from recbole_kd.reporting.compression import Measured
from recbole_kd.reporting.contents import facts_of
from recbole_kd.reporting.provenance import command_text, commands
from recbole_kd.reporting.results import Results
from recbole_kd.reporting.tables import Table, shares

RUNS = ("dataset", "pair", "group", "row", "kind", "model", "seed", "metric", "value")
MEANS = (
    *("dataset", "pair", "group", "row", "kind", "metric", "seeds", "mean", "deviation"),
    *("best", "best_baseline", "competes", "published", "improvement", "improvement_over"),
    "improvement_seeds",
)
TESTS = (
    *("dataset", "pair", "group", "metric", "ours", "against", "by", "pairs", "difference"),
    *("effect_size", "statistic", "p_value", "p_holm", "reason"),
)
COMPRESSION = (
    *("dataset", "pair", "row", "kind", "seed", "metric", "mean", "kept", "gap_closed"),
    *("parameters", "weight_bytes", "file_bytes", "threads"),
    *("one_p50_ms", "one_p95_ms", "one_requests", "batch_p50_ms", "batch_p95_ms"),
    *("batch_requests", "reason"),
)
PROVENANCE = ("of", "fact", "value")


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


def means(bench: Benchmark, tables: Iterable[Table]) -> str:
    """A line for each row and metric of each table, as it is shown there.

    What improves on a baseline is the row of ours.
    """
    return _csv(MEANS, (line for table in tables for line in _means(bench, table)))


def _means(bench: Benchmark, table: Table) -> Iterable[Sequence[Any]]:
    for line in table.lines:
        is_ours = line.row.name == bench.ours
        for metric, cell in line.cells.items():
            found = cell.summary
            better = table.improvements.get(metric) if is_ours else None
            yield (
                *(table.dataset, table.pair, table.group, line.row.name, line.row.kind, metric),
                *(len(line.row.values(metric).keys() & set(line.seeds)), found.mean),
                found.deviation,
                *(int(cell.best), int(cell.best_baseline)),
                *(int(line.row.is_student and not line.lacks), cell.paper),
                *((better.relative, better.baseline) if better else (None, None)),
                " ".join(map(str, better.seeds)) if better else None,
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


def compression(results: Results) -> str:
    """A line for each row whose model was measured."""
    return _csv(
        COMPRESSION,
        (
            line
            for block in results.bench.blocks
            for line in _compression(results, block, results.measured[block.dataset, block.pair])
        ),
    )


def _compression(
    results: Results, block: Block, measured: dict[str, Measured]
) -> Iterable[Sequence[Any]]:
    metric, teacher, scratch = (
        results.bench.metric,
        block.of_kind(TEACHER),
        block.of_kind(SCRATCH_STUDENT),
    )
    threads = torch.get_num_threads() if results.timed else None
    for row in (row for row in block.rows if row.name in measured):
        one, share = measured[row.name], shares(row, teacher, scratch, metric)
        times = [(t.p50, t.p95, t.repeats) if t else (None,) * 3 for t in (one.one, one.batch)]
        yield (
            *(block.dataset, block.pair, row.name, row.kind, one.seed, metric),
            *(row.summary(metric).mean, share.kept, share.closed),
            *(one.parameters, one.weight_bytes, one.file_bytes, threads),
            *(*times[0], *times[1], one.reason),
        )


def origins(results: Results) -> str:
    """A line for each fact about runs, machine and data sets, and for each command."""
    bench = results.bench
    lines: list[Sequence[Any]] = [
        (of, name, value) for of, _, facts in facts_of(results) for name, value in facts
    ]
    lines.append(("benchmark", "command", command_text(bench.command)))
    lines += [
        (f"{block.dataset}, {block.pair}", f"command, {run.row}", command_text(run.command))
        for block in bench.blocks
        for run in commands(block)
    ]
    return _csv(PROVENANCE, lines)


def _csv(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in line] for line in lines)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A value; a text that a spreadsheet would take for a formula gets an apostrophe."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value
