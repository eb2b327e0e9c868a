"""Which figures a report has, of which rows, and what is said of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from recbole_kd.benchmark.records import SCRATCH_STUDENT, TEACHER
from recbole_kd.reporting import figures
from recbole_kd.reporting.collect import MAIN, Block, Row
from recbole_kd.reporting.curves import curves
from recbole_kd.reporting.page import Notes, Part, Picture
from recbole_kd.reporting.rankings import Absent
from recbole_kd.reporting.results import Results
from recbole_kd.reporting.tables import rows_of

LOGGED = {
    "ndcg@10_vs_teacher": "NDCG@10 vs. teacher's ranking",
    "overlap_topk": "overlap of the top-K lists",
    "weight_g": "weight g",
}
"""Numbers of the epochs' log that are drawn, and the titles of their panels."""

MOST_LINES = 8
"""Rows in a figure of lines; the best baselines are kept."""


def title_of(group: str) -> str:
    """The heading of a group's table.

    Args:
        group: Name of the group.
    """
    return "Main table" if group == MAIN else group[:1].upper() + group[1:]


def pictures(results: Results, block: Block) -> list[Part]:
    """The figures of a data set and pair, and a line for each that cannot be drawn.

    Args:
        results: The benchmark's results.
        block: Those of the data set and pair.
    """
    makers: list[tuple[str, Callable[[Results, Block], Picture]]] = [
        ("Method comparison", _methods),
        *((f"{title_of(g)} bars", _group_bars(g)) for g in block.groups if g != MAIN),
        ("Training curves", _training),
        ("Accuracy against size", _pareto),
        ("Accuracy by user activity", _activity),
        ("Accuracy by item popularity", _popularity),
    ]
    parts: list[Part] = []
    left_out: list[str] = []
    for title, make in makers:
        try:
            parts.append(make(results, block))
        except Absent as absent:
            left_out.append(f"{title}: left out, {absent}.")
    return [*parts, Notes(left_out)] if left_out else parts


def _looks(results: Results, block: Block) -> dict[str, figures.Look]:
    return figures.looks(block.rows, results.bench.ours)


def _name(block: Block, what: str) -> str:
    text = f"{block.dataset}-{block.pair}-{what}"
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)


def _measured_rows(rows: Sequence[Row], metric: str) -> list[Row]:
    found = [row for row in rows if row.values(metric)]
    if not found:
        raise Absent(f"no run has a test {metric}")
    return found


def _bars(results: Results, block: Block, group: str, caption: str) -> Picture:
    metric = results.bench.metric
    rows = _measured_rows(rows_of(results.bench, block, group), metric)
    caption = f"{block.dataset}, {block.pair}: {caption} Whiskers are the spread, dots the seeds."
    name = _name(block, "methods" if group == MAIN else group)
    return figures.bars(rows, metric, _looks(results, block), name, caption)


def _methods(results: Results, block: Block) -> Picture:
    return _bars(results, block, MAIN, f"test {results.bench.metric} of every row.")


def _group_bars(group: str) -> Callable[[Results, Block], Picture]:
    def make(results: Results, block: Block) -> Picture:
        if not any(row.values(results.bench.metric) for row in block.of_group(group)):
            raise Absent(f"no run of {group} is done")
        return _bars(results, block, group, f"test {results.bench.metric}, {group}.")

    return make


def _few(results: Results, block: Block, rows: Sequence[Row]) -> tuple[list[Row], str]:
    """As many rows as a figure of lines can show, and a note on those left out."""
    metric, ours = results.bench.metric, results.bench.ours
    fixed = [r for r in rows if r.kind in (TEACHER, SCRATCH_STUDENT) or r.name == ours]
    rest = [row for row in rows if row not in fixed]

    def mean(row: Row) -> float:
        values = list(row.values(metric).values())
        return sum(values) / len(values) if values else 0.0

    kept = sorted(rest, key=mean, reverse=True)[: max(0, MOST_LINES - len(fixed))]
    note = f" Of the other rows, the best {len(kept)}." if len(kept) < len(rest) else ""
    return [row for row in rows if row in fixed or row in kept], note


def _training(results: Results, block: Block) -> Picture:
    logged = {name: curves(results.bench.folder, block.rows, name) for name in LOGGED}
    names = {row for found in logged.values() for row in found}
    rows, note = _few(results, block, [row for row in block.rows if row.name in names])
    kept = {row.name for row in rows}
    panels = {
        title: {row: one for row, one in logged[name].items() if row in kept}
        for name, title in LOGGED.items()
    }
    panels = {title: found for title, found in panels.items() if found}
    if not panels:
        raise Absent("no run logged a number against its teacher")
    caption = f"{block.dataset}, {block.pair}: what the methods that measure it logged, mean over"
    caption += f" the seeds.{note}"
    styles = _looks(results, block)
    return figures.training(panels, styles, _name(block, "training"), caption)


def _pareto(results: Results, block: Block) -> Picture:
    metric, measured = results.bench.metric, results.measured[block.dataset, block.pair]
    points = {}
    for row in _measured_rows(block.of_group(MAIN), metric):
        size, values = measured[row.name].parameters, list(row.values(metric).values())
        if size:
            points[row.name] = (size, sum(values) / len(values))
    if not points:
        raise Absent("the size of no model is known")
    caption = f"{block.dataset}, {block.pair}: test {metric} against parameters. No model lies"
    caption += " above and left of the grey line."
    styles = _looks(results, block)
    return figures.pareto(points, metric, styles, _name(block, "pareto"), caption)


def _activity(results: Results, block: Block) -> Picture:
    metric = results.bench.metric
    rows, note = _few(results, block, _measured_rows(block.of_group(MAIN), metric))
    found = results.rankings.by_activity(rows, metric)
    caption = f"{block.dataset}, {block.pair}: test {metric} by the user's number of train items;"
    caption += f" n users in each group.{note}"
    axis = ("train items of the user", f"test {metric}")
    styles = _looks(results, block)
    return figures.by_group(found, styles, axis, _name(block, "activity"), caption)


def _popularity(results: Results, block: Block) -> Picture:
    metric = results.bench.metric
    cutoff = metric.partition("@")[2]
    if not cutoff.isdigit():
        raise Absent(f"{metric} has no cut-off")
    rows, note = _few(results, block, _measured_rows(block.of_group(MAIN), metric))
    found = results.rankings.by_popularity(rows, int(cutoff))
    caption = f"{block.dataset}, {block.pair}: share of the held-out targets that are in the user's"
    caption += f" top {cutoff}, by the item's number of train users; n targets in each group.{note}"
    axis = ("train users of the item", f"targets in the top {cutoff}")
    styles = _looks(results, block)
    return figures.by_group(found, styles, axis, _name(block, "popularity"), caption)
