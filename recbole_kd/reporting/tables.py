"""The tables of a benchmark as data: means, marks, improvements and tests; no text, no file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from recbole_kd.benchmark.records import SCRATCH_STUDENT, TEACHER
from recbole_kd.reporting.collect import MAIN, Benchmark, Block, Row
from recbole_kd.reporting.rankings import Absent, Rankings, align
from recbole_kd.statistics import Comparison, Summary, by_seed, by_user, correct, summarise


@dataclass(frozen=True)
class Cell:
    """A metric of a row.

    Attributes:
        summary: Its mean and spread over the row's seeds.
        best: Whether no other student's mean is above it.
        best_baseline: Whether no other student's mean is, that of ours left out.
        paper: The published number, if there is one.
    """

    summary: Summary
    best: bool = False
    best_baseline: bool = False
    paper: float | None = None


@dataclass(frozen=True)
class Line:
    """A row of a table: its cells by metric."""

    row: Row
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Improvement:
    """How much larger a metric of ours is than the best baseline's.

    Attributes:
        baseline: Name of that baseline.
        relative: Difference of the means over the baseline's; ``None`` where that is zero.
    """

    baseline: str
    relative: float | None


@dataclass(frozen=True)
class Versus:
    """The tests of ours against one other student.

    Attributes:
        row: Name of the other.
        seeds: The seeds both have.
        by_seed: The comparison by seed.
        by_user: The comparison by user, over the same seeds.
    """

    row: str
    seeds: tuple[int, ...]
    by_seed: Comparison
    by_user: Comparison


@dataclass(frozen=True)
class Table:
    """The table of a data set, a pair and a group.

    Attributes:
        dataset: Name of the data set.
        pair: Name of the pair.
        group: Name of the group.
        metrics: Names of its columns.
        lines: Its rows, those without a run included.
        improvements: By metric; none without ours or without baseline.
        tests: Ours against each other student with a run, Holm's correction over them.
    """

    dataset: str
    pair: str
    group: str
    metrics: list[str]
    lines: list[Line]
    improvements: Mapping[str, Improvement]
    tests: list[Versus]


def make_table(bench: Benchmark, block: Block, group: str, rankings: Rankings) -> Table:
    """A group's rows as a table.

    In groups other than the main one teacher, scratch student and ours stand beside the rows.

    Args:
        bench: The benchmark.
        block: The results of a data set and pair.
        group: Name of the group.
        rankings: Reads the tests by user.
    """
    rows = rows_of(bench, block, group)
    means = {metric: _means(rows, metric) for metric in block.metrics}
    ours = next((row for row in rows if row.name == bench.ours), None)
    baselines = []
    if ours is not None and group == MAIN:
        baselines = [row for row in rows if row.is_student and row is not ours]
    lines = [_line(bench, block, row, rows, baselines, means) for row in rows]
    improvements = {} if ours is None else _improvements(ours, baselines, means)
    # Those that stand beside a group are compared with ours in the main table.
    others = [row for row in block.of_group(group) if row.is_student and row is not ours]
    tests = [] if ours is None else _tests(bench.metric, ours, others, rankings)
    return Table(block.dataset, block.pair, group, block.metrics, lines, improvements, tests)


def rows_of(bench: Benchmark, block: Block, group: str) -> list[Row]:
    """The rows of a group's table, in its order.

    Args:
        bench: The benchmark.
        block: The results of a data set and pair.
        group: Name of the group.
    """
    rows = block.of_group(group)
    if group == MAIN:
        return rows
    beside = [
        row
        for row in block.of_group(MAIN)
        if row.kind in (TEACHER, SCRATCH_STUDENT) or row.name == bench.ours
    ]
    return [*beside, *rows]


def _means(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """Mean of each row that measured a metric."""
    found = {row.name: row.values(metric) for row in rows}
    return {name: math.fsum(v.values()) / len(v) for name, v in found.items() if v}


def _best(rows: Sequence[Row], means: Mapping[str, float]) -> set[str]:
    """Names of the rows with the largest mean; rounding decides nothing."""
    known = [row.name for row in rows if row.name in means]
    top = max((means[name] for name in known), default=0.0)
    return {name for name in known if math.isclose(means[name], top, rel_tol=1e-9)}


def _line(
    bench: Benchmark,
    block: Block,
    row: Row,
    rows: Sequence[Row],
    baselines: Sequence[Row],
    means: Mapping[str, Mapping[str, float]],
) -> Line:
    students = [one for one in rows if one.is_student]
    paper = bench.paper(block, row.name)
    cells = {
        metric: Cell(
            summarise(list(row.values(metric).values())),
            best=row.name in _best(students, found),
            best_baseline=row.name in _best(baselines, found),
            paper=paper.get(metric),
        )
        for metric, found in means.items()
    }
    return Line(row, cells)


def _improvements(
    ours: Row, baselines: Sequence[Row], means: Mapping[str, Mapping[str, float]]
) -> dict[str, Improvement]:
    result = {}
    for metric, found in means.items():
        best = next((r.name for r in baselines if r.name in _best(baselines, found)), None)
        if best is not None and ours.name in found:
            relative = found[ours.name] / found[best] - 1 if found[best] else None
            result[metric] = Improvement(best, relative)
    return result


# -- tests -------------------------------------------------------------------------------------


def _tests(metric: str, ours: Row, rows: Sequence[Row], rankings: Rankings) -> list[Versus]:
    others = [row for row in rows if row.runs] if ours.runs else []
    seeds = [_common(metric, ours, other) for other in others]
    pairs = list(zip(others, seeds, strict=True))
    seedwise = correct([_seed_test(metric, ours, other, common) for other, common in pairs])
    userwise = correct([_user_test(metric, ours, o, common, rankings) for o, common in pairs])
    return [
        Versus(other.name, common, one, two)
        for (other, common), one, two in zip(pairs, seedwise, userwise, strict=True)
    ]


def _common(metric: str, one: Row, two: Row) -> tuple[int, ...]:
    return tuple(sorted(one.values(metric).keys() & two.values(metric).keys()))


def _seed_test(metric: str, one: Row, two: Row, seeds: tuple[int, ...]) -> Comparison:
    first, second = one.values(metric), two.values(metric)
    return by_seed({s: first[s] for s in seeds}, {s: second[s] for s in seeds})


def _user_test(
    metric: str, one: Row, two: Row, seeds: tuple[int, ...], rankings: Rankings
) -> Comparison:
    if not seeds:
        return Comparison(0, None, reason="no common seed")
    try:
        found = [rankings.by_user(row, seeds, metric) for row in (one, two)]
    except Absent as absent:
        return Comparison(0, None, reason=str(absent))
    users, (first, second) = align(found)
    result = by_user(first, second)
    left_out = max(len(names) for names, _ in found) - len(users)
    return replace(result, reason=f"users without a pair: {left_out}") if left_out else result


# -- the teacher's share -----------------------------------------------------------------------


@dataclass(frozen=True)
class Shares:
    """What of the teacher's accuracy a student has.

    Attributes:
        kept: Its metric over the teacher's; ``None`` where one of them is missing or zero.
        closed: The part of the way from scratch student to teacher that it has gone; ``None``
            where one is missing or the teacher is not above the scratch student.
    """

    kept: float | None
    closed: float | None


def shares(row: Row, teacher: Row | None, scratch: Row | None, metric: str) -> Shares:
    """What of the teacher's accuracy a row has, each quotient over the seeds its rows share.

    Args:
        row: The row.
        teacher: The teacher's, if there is one.
        scratch: The scratch student's, if there is one.
        metric: Name of the metric.
    """
    kept = closed = None
    mine, teachers = _over_common(metric, row, teacher)
    if mine is not None and teachers:
        kept = mine / teachers
    mine, teachers, scratches = _over_common(metric, row, teacher, scratch)
    known = mine is not None and teachers is not None and scratches is not None
    if known and teachers > scratches and row.is_student and row is not scratch:  # type: ignore[operator]
        closed = (mine - scratches) / (teachers - scratches)  # type: ignore[operator]
    return Shares(kept, closed)


def _over_common(metric: str, *rows: Row | None) -> list[float | None]:
    """Mean of each row over the seeds that all have; nothing where there is none."""
    found = [{} if row is None else row.values(metric) for row in rows]
    seeds = set.intersection(*(set(values) for values in found))
    if not seeds:
        return [None] * len(rows)
    return [math.fsum(values[s] for s in seeds) / len(seeds) for values in found]
