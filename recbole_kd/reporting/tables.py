"""The tables of a benchmark as data: means, marks, improvements and tests; no text, no file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from recbole_kd.benchmark.records import SCRATCH_STUDENT, TEACHER
from recbole_kd.reporting.collect import MAIN, Benchmark, Block, Row, is_ranking
from recbole_kd.reporting.rankings import Absent, Rankings, align, all_tokens
from recbole_kd.statistics import Comparison, Summary, by_seed, by_user, correct, summarise


@dataclass(frozen=True)
class Cell:
    """A metric of a row.

    Attributes:
        summary: Its mean and spread over the line's seeds.
        best: Whether it competes, and no other student is above it over the seeds both have.
        best_baseline: Whether no other baseline comes closer to ours, or is further above it, each
            over the seeds it has in common with ours.
        paper: The published number, if there is one.
    """

    summary: Summary
    best: bool = False
    best_baseline: bool = False
    paper: float | None = None


@dataclass(frozen=True)
class Line:
    """A row of a table.

    Attributes:
        row: The row.
        cells: Its cells by metric.
        seeds: The seeds behind its cells: those of the comparison if it has them, else its own.
        lacks: Seeds of the comparison that it has not, for which it does not compete.
    """

    row: Row
    cells: Mapping[str, Cell]
    seeds: tuple[int, ...] = ()
    lacks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Improvement:
    """How much larger a metric of ours is than the best baseline's.

    Attributes:
        baseline: Name of that baseline.
        relative: Difference of the means over the baseline's; ``None`` where that is zero.
        seeds: The seeds of both, where they are not all of ours.
    """

    baseline: str
    relative: float | None
    seeds: tuple[int, ...] = ()


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
        lines: Its rows.
        improvements: By metric; none without ours or without baseline.
        tests: Ours against each other student with a run, Holm's correction over them.
        compared: The seeds over which its rows compete.
    """

    dataset: str
    pair: str
    group: str
    metrics: list[str]
    lines: list[Line]
    improvements: Mapping[str, Improvement]
    tests: list[Versus]
    compared: tuple[int, ...] = ()


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
    ours = next((row for row in rows if row.name == bench.ours), None)
    own = block.of_group(group)
    seeds = {metric: _compared(rows, ours, own, metric) for metric in block.metrics}
    marked = list(filter(is_ranking, seeds))
    best = {metric: _best(rows, metric, seeds[metric]) for metric in marked}
    closest: dict[str, list[Improvement]] = {}
    if ours is not None and group == MAIN:
        baselines = [row for row in rows if row.is_student and row is not ours]
        closest = {metric: _closest(ours, baselines, metric) for metric in marked}
    lines = [_line(bench, block, row, seeds, best, closest) for row in rows]
    needed = seeds.get(bench.metric, ())
    lines = [_lacking(line, bench.metric, needed) for line in lines]
    improvements = {metric: found[0] for metric, found in closest.items() if found}
    # Those that stand beside a group are compared with ours in the main table.
    others = [row for row in own if row.is_student and row is not ours]
    tests = [] if ours is None else _tests(bench.metric, ours, others, rankings)
    named = (block.dataset, block.pair, group)
    return Table(*named, block.metrics, lines, improvements, tests, tuple(needed))


def _compared(
    rows: Sequence[Row], ours: Row | None, own: Sequence[Row], metric: str
) -> tuple[int, ...]:
    """The seeds over which rows compete: those of ours, or the most that a student has.

    Beside a group whose rows are asked for with fewer seeds, ours competes over those it shares.
    """
    students = [row for row in rows if row.is_student]
    found = [tuple(row.values(metric)) for row in ([ours] if ours is not None else students)]
    if not any(found):
        found = [tuple(row.values(metric)) for row in students]
    most = max(found, key=len, default=())
    inside = {seed for row in own if row.is_student for seed in row.values(metric)}
    return tuple(seed for seed in most if seed in inside) or most


def _lacking(line: Line, metric: str, seeds: Sequence[int]) -> Line:
    if not line.row.is_student:
        return line
    return replace(line, lacks=tuple(s for s in seeds if s not in line.row.values(metric)))


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


def _mean(row: Row, metric: str, seeds: Sequence[int]) -> float:
    values = row.values(metric)
    return math.fsum(values[seed] for seed in seeds) / len(seeds)


def _best(rows: Sequence[Row], metric: str, seeds: Sequence[int]) -> set[str]:
    """Names of the students with the largest mean over some seeds; rounding decides nothing.

    One that another is above over fewer seeds is not the best, and neither is that other.
    """
    students = [row for row in rows if row.is_student]
    rivals = [row for row in students if seeds and row.values(metric).keys() >= set(seeds)]
    means = {row.name: _mean(row, metric, seeds) for row in rivals}
    top = max(means.values(), default=0.0)
    return {
        row.name
        for row in rivals
        if _near(means[row.name], top) and not any(_above(o, row, metric, seeds) for o in students)
    }


def _near(one: float, two: float) -> bool:
    return math.isclose(one, two, rel_tol=1e-9)


def _above(one: Row, two: Row, metric: str, seeds: Sequence[int]) -> bool:
    """Whether the first's mean is larger, over those of some seeds that both have."""
    common = [seed for seed in _common(metric, one, two) if seed in seeds]
    if not common:
        return False
    first, second = (_mean(row, metric, common) for row in (one, two))
    return first > second and not _near(first, second)


def _line(
    bench: Benchmark,
    block: Block,
    row: Row,
    seeds: Mapping[str, tuple[int, ...]],
    best: Mapping[str, set[str]],
    closest: Mapping[str, Sequence[Improvement]],
) -> Line:
    paper = bench.paper(block, row.name)
    shown = {
        metric: needed if needed and row.values(metric).keys() >= set(needed) else tuple(row.runs)
        for metric, needed in seeds.items()
    }
    cells = {
        metric: Cell(
            row.summary(metric, shown[metric]),
            best=row.name in best.get(metric, ()),
            best_baseline=row.name in [one.baseline for one in closest.get(metric, ())],
            paper=paper.get(metric),
        )
        for metric in block.metrics
    }
    return Line(row, cells, shown.get(bench.metric, tuple(row.runs)))


def _closest(ours: Row, baselines: Sequence[Row], metric: str) -> list[Improvement]:
    """Ours against the baseline that comes closest to it, or is furthest above it, and its ties.

    Each is compared over the seeds it has in common with ours, for seeds differ more than rows do.
    """
    found = []
    for row in baselines:
        if common := _common(metric, ours, row):
            mine, other = (_mean(one, metric, common) for one in (ours, row))
            relative = mine / other - 1 if other else None
            some = common if len(common) < len(ours.values(metric)) else ()
            found.append((other - mine, Improvement(row.name, relative, some)))
    top = max((level for level, _ in found), default=0.0)
    size = abs(_mean(ours, metric, tuple(ours.values(metric)))) if found else 0.0
    return [one for level, one in found if top - level <= 1e-9 * size]


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
        found = [rankings.of_run(row.runs[seed], metric) for row in (one, two) for seed in seeds]
        several = any(rankings.several(row.runs[seed]) for row in (one, two) for seed in seeds)
    except Absent as absent:
        return Comparison(0, None, reason=str(absent))
    users, values = align(found)
    result = by_user(values[: len(seeds)], values[len(seeds) :])
    alone = len(all_tokens(found)) - len(users)
    notes = [f"users without a pair: {alone}"] if alone else []
    notes += ["means of each user's rankings are compared"] if several else []
    return replace(result, reason="; ".join(filter(None, [result.reason, *notes])))


# -- the teacher's share -----------------------------------------------------------------------


@dataclass(frozen=True)
class Shares:
    """What of the teacher's accuracy a student has.

    Attributes:
        kept: Its metric over the teacher's; ``None`` where one of them is missing or zero.
        closed: The part of the way from scratch student to teacher that it has gone; ``None``
            where one is missing, the teacher is not above the scratch student, or the two are no
            further apart than the larger of their spreads.
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
    mine, teachers, _ = _over_common(metric, row, teacher)
    if mine is not None and teachers:
        kept = mine / teachers
    mine, teachers, scratches, spread = _over_common(metric, row, teacher, scratch)
    if mine is None or teachers is None or scratches is None:
        return Shares(kept, None)
    gap = teachers - scratches
    if gap > 0 and gap >= (spread or 0.0) and row.is_student and row is not scratch:
        closed = (mine - scratches) / gap
    return Shares(kept, closed)


def _over_common(metric: str, *rows: Row | None) -> list[float | None]:
    """Mean of each row over the seeds that all have, and the largest spread but the first row's.

    There is nothing where there is no such seed.
    """
    found = [{} if row is None else row.values(metric) for row in rows]
    seeds = set.intersection(*(set(values) for values in found))
    if not seeds:
        return [None] * (len(rows) + 1)
    summaries = [summarise([values[s] for s in sorted(seeds)]) for values in found]
    spread = max(one.deviation or 0.0 for one in summaries[1:])
    return [*(one.mean for one in summaries), spread]
