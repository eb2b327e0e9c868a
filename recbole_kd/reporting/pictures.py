"""Which figures a report has, of which rows, and what is said of each."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from recbole_kd.benchmark.records import REFERENCE, SCRATCH_STUDENT, TEACHER
from recbole_kd.reporting import figures
from recbole_kd.reporting.collect import MAIN, Block, Row
from recbole_kd.reporting.curves import curves
from recbole_kd.reporting.page import Grid, Notes, Part, Text
from recbole_kd.reporting.rankings import Absent, Grouped
from recbole_kd.reporting.results import Results
from recbole_kd.reporting.tables import rows_of

LOGGED = {
    "ndcg@10_vs_teacher": "NDCG@10 vs. teacher's ranking",
    "overlap_topk": "overlap of the top-K lists",
    "weight_g": "weight g",
}
"""Numbers of the epochs' log that are drawn, and the titles of their panels."""

WHATS = ("methods", "training", "pareto", "activity", "popularity")
"""The figures of every data set and pair, as their files are called."""

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
    makers: list[tuple[str, Callable[[Results, Block], list[Part]]]] = [
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
            made = make(results, block)
        except Absent as absent:
            left_out.append(f"{title}: left out, {absent}.")
            continue
        parts += [part for part in made if not isinstance(part, Notes)]
        notes = [line for part in made if isinstance(part, Notes) for line in part.lines]
        left_out += [f"{title}: {line}." for line in notes]
    return [*parts, Notes(left_out)] if left_out else parts


def _looks(results: Results, block: Block) -> dict[str, figures.Look]:
    return figures.looks(block.rows, results.bench.ours)


# -- names of files ----------------------------------------------------------------------------


def figures_folder(pair: str | None) -> str:
    """Folder of a report's figures: a pair's has its own, for its metric may be another.

    Args:
        pair: The pair it is about, or ``None``.
    """
    return "figures" if pair is None else f"figures/{_plain((pair,))}"


def figure_name(results: Results, block: Block, what: str) -> str:
    """The name of a figure's file, without ending, that no other figure of the report has.

    Args:
        results: The benchmark's results.
        block: Those of the data set and pair.
        what: One of :data:`WHATS`, or ``group-`` and the name of a group.
    """
    mine = (block.dataset, block.pair, what)
    others = [
        (one.dataset, one.pair, name)
        for one in results.bench.blocks
        for name in (*WHATS, *(f"group-{group}" for group in one.groups))
    ]
    name = _plain(mine)
    # Some file systems do not tell large letters from small ones.
    clash = any(_plain(one).lower() == name.lower() for one in others if one != mine)
    if not clash and name == "-".join(mine):
        return name
    digest = hashlib.blake2b(json.dumps(mine).encode(), digest_size=4).hexdigest()
    return f"{name}-{digest}"


def _plain(parts: tuple[str, ...]) -> str:
    """Parts of a name, of letters, digits and hyphens, not too long for a file."""
    text = "-".join(parts)
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)[:120]


def own_names(results: Results) -> re.Pattern[str]:
    """What the names of this report's figures look like, those of earlier states included.

    Args:
        results: The benchmark's results.
    """
    places = {_plain((b.dataset, b.pair, ""))[:110] for b in results.bench.blocks}
    starts = "|".join(map(re.escape, sorted(places)))
    return re.compile(rf"(?:{starts})(?:{'|'.join(WHATS)}|group-[A-Za-z0-9-]+)(?:-[0-9a-f]{{8}})?")


# -- the figures -------------------------------------------------------------------------------


def _measured_rows(rows: Sequence[Row], metric: str) -> list[Row]:
    found = [row for row in rows if row.values(metric)]
    if not found:
        raise Absent(f"no run has a test {metric}")
    return found


def _bars(results: Results, block: Block, group: str, caption: str) -> list[Part]:
    metric = results.bench.metric
    rows = _measured_rows(rows_of(results.bench, block, group), metric)
    caption = f"{block.dataset}, {block.pair}: {caption} Whiskers are the spread, dots the seeds."
    name = figure_name(results, block, "methods" if group == MAIN else f"group-{group}")
    return [figures.bars(rows, metric, _looks(results, block), name, caption)]


def _methods(results: Results, block: Block) -> list[Part]:
    return _bars(results, block, MAIN, f"test {results.bench.metric} of every row.")


def _group_bars(group: str) -> Callable[[Results, Block], list[Part]]:
    def make(results: Results, block: Block) -> list[Part]:
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


def _training(results: Results, block: Block) -> list[Part]:
    logged, reasons = {}, []
    for name in LOGGED:
        logged[name], wrong = curves(results.bench.folder, block.rows, name)
        reasons += wrong
    names = {row for found in logged.values() for row in found}
    rows, note = _few(results, block, [row for row in block.rows if row.name in names])
    kept = {row.name for row in rows}
    panels = {
        title: {row: one for row, one in logged[name].items() if row in kept}
        for name, title in LOGGED.items()
    }
    panels = {title: found for title, found in panels.items() if found}
    if not panels:
        raise Absent("; ".join(["no run logged a number against its teacher", *reasons]))
    caption = f"{block.dataset}, {block.pair}: what the methods that measure it logged, mean over"
    caption += f" the seeds; a curve stops where the row's shortest seed does.{note}"
    name = figure_name(results, block, "training")
    return [figures.training(panels, _looks(results, block), name, caption), Notes(reasons)]


def _pareto(results: Results, block: Block) -> list[Part]:
    metric, measured = results.bench.metric, results.measured[block.dataset, block.pair]
    points, marks, without = {}, {}, []
    for row in _measured_rows(block.of_group(MAIN), metric):
        size, values = measured[row.name].parameters, list(row.values(metric).values())
        if not size:
            without.append(row.name)
            continue
        points[row.name] = (size, sum(values) / len(values))
        marks[row.name] = figures.mark_of(row, results.bench.ours)
    if not points:
        raise Absent("the size of no model is known")
    caption = f"{block.dataset}, {block.pair}: test {metric} against parameters. No model lies"
    caption += " above and left of the grey line."
    if any(row.kind == REFERENCE and row.name in points for row in block.rows):
        caption += " Large hollow markers are reference rows."
    styles, name = _looks(results, block), figure_name(results, block, "pareto")
    made: list[Part] = [figures.pareto(points, metric, styles, marks, name, caption)]
    if without:
        made.append(Notes([f"{', '.join(without)} left out, without a number of parameters"]))
    return made


def _activity(results: Results, block: Block) -> list[Part]:
    metric = results.bench.metric
    rows, note = _few(results, block, _measured_rows(block.of_group(MAIN), metric))
    found = results.rankings.by_activity(rows, metric)
    what = f"test {metric} by the user's number of train items; n users in each group"
    axis = ("train items of the user", f"test {metric}")
    return _by_group(results, block, found, "activity", what, axis, note)


def _popularity(results: Results, block: Block) -> list[Part]:
    metric = results.bench.metric
    cutoff = metric.partition("@")[2]
    if not cutoff.isdigit():
        raise Absent(f"{metric} has no cut-off")
    rows, note = _few(results, block, _measured_rows(block.of_group(MAIN), metric))
    found = results.rankings.by_popularity(rows, int(cutoff))
    what = f"share of the held-out targets that are in the user's top {cutoff}, by the item's"
    what += " number of train users; n targets in each group"
    axis = ("train users of the item", f"targets in the top {cutoff}")
    return _by_group(results, block, found, "popularity", what, axis, note)


def _by_group(
    results: Results,
    block: Block,
    found: Grouped,
    name: str,
    what: str,
    axis: tuple[str, str],
    note: str,
) -> list[Part]:
    """A figure of differences to the scratch student or teacher, and the table of what they are."""
    kinds = {row.name: row.kind for row in block.rows if row.name in found.values}
    bases = [n for kind in (SCRATCH_STUDENT, TEACHER) for n, k in kinds.items() if k == kind]
    base = bases[0] if bases and len(found.values) > 1 else None
    drawn, said = found, f"{what}."
    if base is not None:
        drawn = _less(found, base)
        axis = (axis[0], f"difference to {figures.shown(base, 20)}")
        said = f"{what}. Drawn is the difference to {base}, which is the line at zero; the "
        said += "table below has the numbers themselves."
    place, styles = f"{block.dataset}, {block.pair}", _looks(results, block)
    file = figure_name(results, block, name)
    marks = {row.name: figures.mark_of(row, results.bench.ours) for row in block.rows}
    caption = f"{place}: {said}{note}"
    picture = figures.by_group(drawn, styles, marks, axis, file, caption, base)
    header = ["", *(f"{la} (n = {n:,})" for la, n in zip(found.labels, found.sizes, strict=True))]
    rows = [
        [Text(row), *(Text(f"{value:.4f}") for value in values)]
        for row, values in found.values.items()
    ]
    reasons = [f"left out, {line}" for line in found.left_out]
    return [picture, Grid(f"{place}: {what}.", header, rows), Notes(reasons)]


def _less(found: Grouped, base: str) -> Grouped:
    """Differences to a row, which itself is left out."""
    values = {
        row: [mine - its for mine, its in zip(ones, found.values[base], strict=True)]
        for row, ones in found.values.items()
        if row != base
    }
    return replace(found, values=values)
