"""The figures of a report: matplotlib without a display, the same bytes for the same numbers.

Colours are those of Okabe and Ito, which readers with any kind of colour vision can tell apart;
markers and dashes say the same again.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from recbole_kd.benchmark.records import REFERENCE, SCRATCH_STUDENT, TEACHER
from recbole_kd.optional import library
from recbole_kd.reporting.collect import Row
from recbole_kd.reporting.curves import Curve
from recbole_kd.reporting.page import Picture
from recbole_kd.reporting.rankings import Grouped

WIDTH = 7.2
"""Width of every figure, inches."""

OURS, OTHERS = "#D55E00", ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
BY_KIND = {TEACHER: "#3D3D3D", SCRATCH_STUDENT: "#8C8C8C"}
OTHER_MARKERS, OTHER_DASHES = "D^vP<*>", ("-.", (0, (6, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 1)))

SETTINGS: dict[str, Any] = {
    "svg.hashsalt": "recbole_kd",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Look:
    """How a row is drawn, the same in every figure of a page."""

    colour: str
    marker: str
    dashes: Any


def looks(rows: Sequence[Row], ours: str | None) -> dict[str, Look]:
    """A look for each row.

    Args:
        rows: All rows of a data set and pair.
        ours: Name of the row that stands out, if there is one.
    """
    result = {}
    for row in rows:
        if row.name == ours:
            result[row.name] = Look(OURS, "o", "-")
        elif row.kind in BY_KIND:
            teacher = row.kind == TEACHER
            shape = ("s", "--") if teacher else ("X", ":")
            result[row.name] = Look(BY_KIND[row.kind], *shape)
        else:
            n = sum(look.colour in OTHERS for look in result.values())
            dashes = OTHER_DASHES[n % len(OTHER_DASHES)]
            marker = OTHER_MARKERS[n % len(OTHER_MARKERS)]
            result[row.name] = Look(OTHERS[n % len(OTHERS)], marker, dashes)
    return result


@dataclass(frozen=True)
class Mark:
    """A marker of a point: its size, and whether it is filled or hollow."""

    size: float
    filled: bool

    def inside(self, look: Look) -> str:
        """The colour of its inside."""
        return look.colour if self.filled else "none"


def mark_of(row: Row, ours: str | None) -> Mark:
    """How a row is marked, so that models at one place are all seen.

    Args:
        row: The row.
        ours: Name of the row that stands out, if there is one.
    """
    if row.kind == REFERENCE:
        return Mark(14, False)
    if row.name == ours:
        return Mark(5, True)
    return Mark(8, row.kind == TEACHER)


def shown(text: str, longest: int = 32) -> str:
    """A name as a label: short, and no formula."""
    short = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return short.replace("$", r"\$")


@contextmanager
def _figure(height: float, columns: int = 1, **more: Any) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, ``[columns]``, drawn with our settings."""
    figure_module = library("matplotlib.figure", "report: a figure")
    with library("matplotlib", "report: a figure").rc_context(SETTINGS):
        figure = figure_module.Figure(figsize=(WIDTH, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        yield figure, figure.subplots(1, columns, squeeze=False, **more)[0]


def _picture(figure: Any, name: str, caption: str) -> Picture:
    @cache
    def drawn(form: str) -> bytes:
        file = io.BytesIO()
        undated = {"Date" if form == "svg" else "CreationDate": None}
        with library("matplotlib", "report: a figure").rc_context(SETTINGS):
            figure.savefig(file, format=form, metadata=undated)
        return file.getvalue()

    return Picture(name, caption, drawn)


# -- bars --------------------------------------------------------------------------------------


def bars(
    rows: Sequence[Row], metric: str, styles: Mapping[str, Look], name: str, caption: str
) -> Picture:
    """A bar a row with spread, and a dot a seed; the teacher's mean goes through all of them.

    Args:
        rows: Rows that have the metric.
        metric: Name of the metric.
        styles: Look of each row.
        name: Name of the file.
        caption: What it shows.
    """
    with _figure(0.9 + 0.32 * len(rows)) as (figure, (axes,)):
        for place, row in enumerate(rows):
            values = list(row.values(metric).values())
            summary, colour = row.summary(metric), styles[row.name].colour
            hatch = "///" if row.kind == REFERENCE else None
            alpha = 0.95 if colour == OURS else 0.6
            axes.barh(place, summary.mean, 0.68, color=colour, alpha=alpha, hatch=hatch)
            if summary.deviation is not None:
                error = {"capsize": 3, "elinewidth": 1.2, "ecolor": "#1A1A1A"}
                axes.errorbar(summary.mean, place, xerr=summary.deviation, fmt="none", **error)
            places = [place] * len(values)
            axes.plot(values, places, ".", color="#1A1A1A", markersize=3.5, alpha=0.8)
            if row.kind == TEACHER:
                axes.axvline(summary.mean, color=BY_KIND[TEACHER], linestyle="--", linewidth=1)
        axes.set_yticks(range(len(rows)), [shown(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"test {metric}")
        axes.grid(axis="y", visible=False)
        return _picture(figure, name, caption)


# -- lines -------------------------------------------------------------------------------------


def training(
    panels: Mapping[str, Mapping[str, Curve]],
    styles: Mapping[str, Look],
    name: str,
    caption: str,
) -> Picture:
    """Curves over the epochs, a panel a quantity.

    Args:
        panels: Curves by row, by title of the panel; none is empty.
        styles: Look of each row.
        name: Name of the file.
        caption: What it shows.
    """
    with _figure(2.7, len(panels)) as (figure, all_axes):
        handles: dict[str, Any] = {}
        for axes, (title, found) in zip(all_axes, panels.items(), strict=True):
            for row, (epochs, values) in found.items():
                look = styles[row]
                line = {"color": look.colour, "linestyle": look.dashes, "linewidth": 1.5}
                marker = {"marker": look.marker, "markersize": 3.5, "markevery": 0.2}
                (drawn,) = axes.plot(epochs, values, **line, **marker)
                handles.setdefault(row, drawn)
            axes.set_title(title, fontsize=9)
            axes.set_ylim(bottom=0)
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
        _legend(figure, handles)
        return _picture(figure, name, caption)


def _legend(figure: Any, handles: Mapping[str, Any]) -> None:
    labels = [shown(row, 24) for row in handles]
    columns = min(len(labels), 6 if max(map(len, labels)) <= 10 else 3)
    figure.legend(list(handles.values()), labels, loc="outside lower center", ncols=columns)


def by_group(
    found: Grouped,
    styles: Mapping[str, Look],
    marks: Mapping[str, Mark],
    axis: tuple[str, str],
    name: str,
    caption: str,
    zero: str | None = None,
) -> Picture:
    """A quantity by groups of users or of items, a line a row.

    Args:
        found: The quantity, or its difference to that of another row.
        styles: Look of each row.
        marks: How each row is marked.
        axis: What the groups are of, and what the quantity is.
        name: Name of the file.
        caption: What it shows.
        zero: Name of that other row, the line at zero; ``None`` where there is none.
    """
    with _figure(3.2) as (figure, (axes,)):
        handles: dict[str, Any] = {}
        places = range(len(found.labels))
        if zero is not None:
            look = styles[zero]
            line = {"color": look.colour, "linestyle": look.dashes, "linewidth": 1.5}
            handles[zero] = axes.axhline(0, **line)
        # The larger below: a row of the same values shows inside or around.
        for row in sorted(found.values, key=lambda row: -marks[row].size):
            look, mark = styles[row], marks[row]
            line = {"color": look.colour, "linestyle": look.dashes, "marker": look.marker}
            line |= {"markersize": 0.7 * mark.size, "markerfacecolor": mark.inside(look)}
            (handles[row],) = axes.plot(places, found.values[row], linewidth=1.5, **line)
        _group_axis(axes, found)
        if zero is None:
            axes.set_ylim(bottom=0)
        axes.set(xlabel=axis[0], ylabel=axis[1])
        first = [] if zero is None else [zero]
        _legend(figure, {row: handles[row] for row in [*first, *found.values]})
        return _picture(figure, name, caption)


def _group_axis(axes: Any, found: Grouped) -> None:
    counted = zip(found.labels, found.sizes, strict=True)
    labels = [f"{label}\n(n = {size:,})" for label, size in counted]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.3, len(labels) - 0.7)


# -- points ------------------------------------------------------------------------------------


def pareto(
    points: Mapping[str, tuple[int, float]],
    metric: str,
    styles: Mapping[str, Look],
    marks: Mapping[str, Mark],
    name: str,
    caption: str,
) -> Picture:
    """Accuracy against size, with the line that no model is above and left of.

    Args:
        points: Parameters and metric of each row.
        metric: Name of the metric.
        styles: Look of each row.
        marks: How each row is marked.
        name: Name of the file.
        caption: What it shows.
    """
    with _figure(3.4) as (figure, (axes,)):
        sizes = [size for size, _ in points.values()]
        limits = (min(sizes) / 1.6, max(sizes) * 1.6)
        front = pareto_front(list(points.values()))
        steps_to_the_edge = [*front, (limits[1], front[-1][1])]
        axes.step(*zip(*steps_to_the_edge, strict=True), where="post", color="#BDBDBD", zorder=1)
        handles = {}
        # The larger below: a model at the same place shows inside or around.
        for row in sorted(points, key=lambda row: -marks[row].size):
            look, mark = styles[row], marks[row]
            one = {"marker": look.marker, "markersize": mark.size}
            one |= {"markerfacecolor": mark.inside(look)}
            edge = {"markeredgecolor": look.colour, "markeredgewidth": 1.4, "linestyle": "none"}
            (handles[row],) = axes.plot(*([x] for x in points[row]), **one, **edge)
        _size_axis(axes, limits)
        axes.margins(y=0.12)
        axes.set(xlabel="parameters", ylabel=f"test {metric}")
        _legend(figure, {row: handles[row] for row in points})
        return _picture(figure, name, caption)


def _size_axis(axes: Any, limits: tuple[float, float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    steps = (1.0, 2.0, 5.0) if limits[1] < 256 * limits[0] else (1.0,)
    axes.xaxis.get_major_locator().set_params(subs=steps)
    axes.xaxis.set_major_formatter(_short_number)
    axes.xaxis.set_minor_formatter("")


def _short_number(value: float, _: Any = None) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def pareto_front(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The points that no other one is at most as large and more accurate than, by size.

    Args:
        points: Size and accuracy of each.
    """
    front: list[tuple[int, float]] = []
    for size, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((size, value))
    return front
