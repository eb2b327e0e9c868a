"""A benchmark's results as a page: which tables and figures, and what each number is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from recbole_kd.benchmark.records import REFERENCE, SCRATCH_STUDENT, TEACHER
from recbole_kd.reporting import provenance
from recbole_kd.reporting.collect import MAIN, RANKING, Benchmark, Block
from recbole_kd.reporting.compression import BATCH, ROUNDS, K, Latency, Measured
from recbole_kd.reporting.page import Command, Grid, Notes, Page, Part, Section, Text
from recbole_kd.reporting.pictures import figures_folder, pictures, title_of
from recbole_kd.reporting.results import Results
from recbole_kd.reporting.tables import Cell, Improvement, Line, Table, shares
from recbole_kd.statistics import Comparison

NOTHING = "-"

EFFORT = {"seconds": "seconds", "epochs": "epochs", "best epoch (from 0)": "best_epoch"}
"""Columns of the table of trainings, and where a record has them."""


def make_page(results: Results) -> Page:
    """The page of a report.

    Args:
        results: What it is made of.
    """
    bench = results.bench
    done = sum(len(row.runs) for block in bench.blocks for row in block.rows)
    datasets = ", ".join(dict.fromkeys(block.dataset for block in bench.blocks)) or "no data set"
    lead = f"{datasets}; {done} runs; seeds {', '.join(map(str, bench.seeds)) or 'none'}"
    lead += f"; protocol {bench.protocol}." if bench.protocol else "."
    sections = [*_gaps(bench)]
    for block in bench.blocks:
        sections += _block_sections(results, block)
        results.rankings.clear()
    if bench.notes:
        sections += [Section("Notes", [Notes(list(bench.notes))])]
    sections += [Section("How to read the numbers", [Notes(_definitions(results))])]
    sections += _provenance(results)
    return Page(bench.name, lead, sections, figures_folder(bench.pair))


def _gaps(bench: Benchmark) -> list[Section]:
    lines = [
        f"{block.dataset}, {block.pair}: {line}" for block in bench.blocks for line in block.missing
    ]
    lines += bench.damaged
    if not bench.blocks:
        lines.append("There is no record of a run.")
    return [Section("What is missing or left out", [Notes(lines)])] if lines else []


def _block_sections(results: Results, block: Block) -> list[Section]:
    bench, place = results.bench, (block.dataset, block.pair)
    models = bench.pairs.get(block.pair)
    title = f"{block.dataset}, {block.pair}"
    if isinstance(models, Mapping):
        names = [provenance.model_name(models.get(key)) for key in ("teacher", "student")]
        title += f" (teacher {names[0]}, student {names[1]})"
    if not any(row.runs for row in block.rows):
        return [Section(title, [Notes(["No run is done yet."])])]
    sections = [Section(title)]
    for table in results.tables[place]:
        sections.append(Section(title_of(table.group), [_main_grid(bench, table)], level=3))
        if table.tests:
            sections[-1].parts.extend(_test_parts(bench, table))
    compression = _compression(results, block, results.measured[place])
    sections.append(Section("Compression", compression, level=3))
    sections.append(Section("Figures", pictures(results, block), level=3))
    notes = models.get("notes") if isinstance(models, Mapping) else None
    if isinstance(notes, list) and notes:
        sections.append(Section(f"Notes on {block.pair}", [Notes(list(map(str, notes)))], level=3))
    return sections


# -- tables ------------------------------------------------------------------------------------


def _main_grid(bench: Benchmark, table: Table) -> Grid:
    rows: list[list[Text]] = []
    for line in table.lines:
        rows.append(_line(bench, line))
        if any(cell.paper is not None for cell in line.cells.values()):
            papers = [_number(cell.paper) for cell in line.cells.values()]
            rows.append([Text("published", muted=True), Text(""), *_muted(papers)])
    if table.improvements:
        found = [table.improvements.get(metric) for metric in table.metrics]
        cells = [Text(NOTHING if one is None else _improvement(one)) for one in found]
        rows.append([Text("improvement"), Text(""), *cells])
    caption = f"{table.dataset}, {table.pair}: test metrics, mean ± spread over the seeds"
    caption += "; best student bold"
    if bench.ours is not None and table.group == MAIN:
        caption += f", closest to {bench.ours} underlined"
    ours = next((ln.row for ln in table.lines if ln.row.name == bench.ours), None)
    if ours is not None and table.group != MAIN and set(table.compared) < set(ours.runs):
        caption += f", over seed{'s' * (len(table.compared) > 1)} "
        caption += f"{', '.join(map(str, table.compared))} alone"
    return Grid(f"{caption}.", ["", "seeds", *table.metrics], rows)


def _improvement(one: Improvement) -> str:
    over = ""
    if one.seeds:
        over = f", seed{'s' * (len(one.seeds) > 1)} {', '.join(map(str, one.seeds))}"
    return f"{_signed(one.relative)} ({one.baseline}{over})"


def _line(bench: Benchmark, line: Line) -> list[Text]:
    seeds = line.seeds
    differs = seeds and set(seeds) != set(bench.seeds)
    count = str(len(seeds)) + (f": {', '.join(map(str, seeds))}" if differs else "")
    count += " (one training)" if line.row.is_shared else ""
    count += " (does not compete)" if line.lacks else ""
    name = line.row.name + (" (reference)" if line.row.kind == REFERENCE else "")
    return [Text(name), Text(count), *(_cell(cell) for cell in line.cells.values())]


def _cell(cell: Cell) -> Text:
    mean, deviation = cell.summary.mean, cell.summary.deviation
    text = _number(mean) + (f" ± {deviation:.4f}" if deviation is not None else "")
    return Text(text, bold=cell.best, underlined=cell.best_baseline)


def _muted(texts: Sequence[str]) -> list[Text]:
    return [Text(text, muted=True) for text in texts]


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def _signed(share: float | None) -> str:
    return NOTHING if share is None else f"{share:+.1%}"


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{share:.1%}"


def _p(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _effect(value: float | None) -> str:
    return NOTHING if value is None else f"{value:+.2f}"


def _test_parts(bench: Benchmark, table: Table) -> list[Part]:
    header = [
        f"{bench.ours} against",
        *("seeds", "difference", "p by seed", "d_z by seed"),
        *("users", "p by user", "d_z by user"),
    ]
    rows = []
    for one in table.tests:
        difference = one.by_seed.difference
        texts = [
            one.row,
            str(len(one.seeds)),
            NOTHING if difference is None else f"{difference:+.4f}",
            *(_p(one.by_seed.corrected), _effect(one.by_seed.effect_size)),
            f"{one.by_user.pairs:,}" if one.by_user.pairs else NOTHING,
            *(_p(one.by_user.corrected), _effect(one.by_user.effect_size)),
        ]
        rows.append([Text(text) for text in texts])
    caption = f"{table.dataset}, {table.pair}: paired t-tests of {bench.ours}, test "
    caption += f"{bench.metric}; p after Holm's correction."
    reasons = _reasons("by seed", [(one.row, one.by_seed) for one in table.tests])
    reasons += _reasons("by user", [(one.row, one.by_user) for one in table.tests])
    parts: list[Part] = [Grid(caption, header, rows)]
    return [*parts, Notes(reasons)] if reasons else parts


def _reasons(how: str, tests: Sequence[tuple[str, Comparison]]) -> list[str]:
    """One line a reason for which numbers are missing, with the rows it holds for."""
    found: dict[str, list[str]] = {}
    for row, test in tests:
        if test.reason:
            found.setdefault(test.reason, []).append(row)
    return [f"{how}, against {', '.join(rows)}: {reason}" for reason, rows in found.items()]


def _compression(results: Results, block: Block, measured: Mapping[str, Measured]) -> list[Part]:
    metric, teacher, scratch = (
        results.bench.metric,
        block.of_kind(TEACHER),
        block.of_kind(SCRATCH_STUDENT),
    )
    header = ["", metric, "teacher's kept", "gap closed", "parameters", "weights", "best.pt"]
    if results.timed:
        whose = ("one user", f"{BATCH} users")
        header += [f"{who} {part} (ms)" for who in whose for part in ("p50", "p95")]
    rows, reasons = [], {}
    for row in block.of_group(MAIN):
        if row.name not in measured:
            continue
        one, share = measured[row.name], shares(row, teacher, scratch, metric)
        mean = row.summary(metric).mean
        texts = [row.name, _number(mean), _percent(share.kept), _percent(share.closed)]
        texts += [NOTHING if one.parameters is None else f"{one.parameters:,}"]
        texts += [_size(one.weight_bytes), _size(one.file_bytes)]
        if results.timed:
            texts += [*_times(one.one), *_times(one.batch)]
        rows.append([Text(text) for text in texts])
        if one.reason:
            reasons[row.name] = one.reason
    caption = f"{block.dataset}, {block.pair}: accuracy, size and speed; top-{K} of all items"
    if results.timed:
        threads = torch.get_num_threads()
        caption += f" on this machine, {threads} thread{'s' if threads > 1 else ''}"
    parts: list[Part] = [Grid(f"{caption}.", header, rows)]
    if reasons:
        parts.append(Notes([f"{name}: {reason}" for name, reason in reasons.items()]))
    return parts


def _size(count: int | None) -> str:
    return NOTHING if count is None else f"{count / 2**20:.2f} MiB"


def _two_digits(value: float) -> str:
    """A number with two significant digits, ``0.153`` as ``0.15`` and ``153`` as ``150``."""
    rounded = float(f"{value:.1e}")
    return f"{rounded:.0f}" if rounded >= 10 else f"{rounded:#.2g}"


def _times(found: Latency | None) -> list[str]:
    return [NOTHING] * 2 if found is None else [_two_digits(found.p50), _two_digits(found.p95)]


# -- words -------------------------------------------------------------------------------------


def _definitions(results: Results) -> list[str]:
    bench = results.bench
    lines = [
        "Every number is of the test part, at the epoch that was best on validation; no model, "
        "epoch or option was selected on test data by these runs.",
        "± is the sample standard deviation over the seeds (divided by their number less one); "
        "a single seed has none. Where a row lacks seeds, the seeds it has are named.",
        f"Bold: the student with the largest mean, of the metrics of accuracy "
        f"({', '.join(RANKING)}); others are not marked, and none is bold where one with fewer "
        "seeds is better over those. The teacher and reference rows do not compete.",
        _competing(bench),
        *_shared(bench),
        "A row 'published' is the number its authors print, in their setting, not a run of ours.",
    ]
    if bench.ours is not None:
        lines += [
            f"Underlined, and compared in the row 'improvement': the student that comes closest to "
            f"{bench.ours} in that test metric, or is furthest above it, the scratch student "
            "included; each over the seeds it has in common, which are named where they are fewer.",
            "By seed: the paired t-test over the seeds that both have. By user: the paired t-test "
            "over the users both ranked, each user's metric averaged over those same seeds. Both "
            "are two-sided; the difference is ours less the other, over the common seeds. A user "
            "with several rankings is one pair: the user's mean.",
            "p after Holm's correction over all comparisons of its table, seeds and users apart. "
            "d_z: mean difference over the standard deviation of the differences.",
        ]
    lines += [
        "Teacher's kept: metric over the teacher's. Gap closed: (metric - scratch) / (teacher - "
        f"scratch); '{NOTHING}' where the teacher is not above the scratch student, or by less "
        "than the larger of their spreads. Both over the seeds that the rows share.",
        "Every run's folder holds resolved.yaml: all of its options, also those left at default.",
        "Parameters: learned numbers. Weights: their bytes in memory. best.pt: bytes on disk, "
        "with tokens and train history. Of the first seed of each row.",
    ]
    return [*lines, _latency_note(results)] if results.timed else lines


def _shared(bench: Benchmark) -> list[str]:
    """What it means that one training is behind the seeds of a row, where there is such a row."""
    if not any(row.is_shared for block in bench.blocks for row in block.rows):
        return []
    return [
        "One training: one and the same trained model is behind all the row's seeds (a teacher in "
        "a file, or of the file's teacher_seed). It has no spread; spreads and tests by seed of "
        "students with this teacher are of the students alone."
    ]


def _competing(bench: Benchmark) -> str:
    """Which rows are marked and improved on, and over which seeds."""
    if bench.ours is None:
        whose = "the seeds of the student that has most"
    else:
        whose = f"the seeds of {bench.ours}"
    return (
        f"Students compete over {whose}: with a seed less a row is shown with those it has, and "
        "does not compete; a seed more does not count there. A group beside the main table whose "
        "rows have fewer seeds competes over those alone, as its caption says."
    )


def _latency_note(results: Results) -> str:
    counts = [
        one.repeats
        for found in results.measured.values()
        for measured in found.values()
        for one in (measured.one, measured.batch)
        if one is not None
    ]
    span = f"{min(counts)} to {max(counts)}" if counts else "no"
    return (
        f"Latency: scoring all items and taking the top {K}, from user ids to item ids; items the "
        "user has seen are not removed. Models and users take turns: "
        f"{ROUNDS} rounds over all rows, each after warm-up, {span} requests a model; what does "
        "not depend on the request is computed before. Two digits are shown; differences below "
        "those between identical models, such as students of one size, are noise."
    )


def facts_of(results: Results) -> list[tuple[str, str, provenance.Facts]]:
    """What is known of the runs, the machine and each data set: of what, a caption, and the facts.

    Args:
        results: The benchmark's results.
    """
    bench = results.bench
    found = [("runs", "Runs.", provenance.of_runs(bench))]
    if results.timed:
        found.append(("latency", "Machine of the latencies.", provenance.of_this_machine()))
    for dataset in dict.fromkeys(block.dataset for block in bench.blocks):
        blocks = [block for block in bench.blocks if block.dataset == dataset]
        measured = [
            one
            for block in blocks
            for one in results.measured.get((dataset, block.pair), {}).values()
        ]
        facts = provenance.of_dataset(blocks, measured, results.rankings)
        results.rankings.clear()
        if facts:
            found.append((dataset, f"Data and split of {dataset}.", facts))
    return found


def _provenance(results: Results) -> list[Section]:
    parts: list[Part] = []
    if results.bench.command:
        parts.append(Command(provenance.command_text(results.bench.command)))
    parts += [_facts(caption, facts) for _, caption, facts in facts_of(results)]
    seen: set[str] = set()
    for block in results.bench.blocks:
        parts += _effort(block)
        parts += _run_commands(block, seen)
    return [Section("Provenance", parts)]


def _facts(caption: str, facts: provenance.Facts) -> Grid:
    rows: list[list[Text]] = [[Text(name), Text(value)] for name, value in facts]
    return Grid(caption, ["", "value"], rows, prose=True)


def _effort(block: Block) -> list[Part]:
    """Wall time and epochs of each row."""
    rows = []
    for row in block.rows:
        runs = list(row.runs.values())
        columns = [[getattr(run, name) for run in runs] for name in EFFORT.values()]
        if any(value is not None for column in columns for value in column):
            cells = [Text(_mean([v for v in column if v is not None])) for column in columns]
            rows.append([Text(row.name), Text(str(len(runs))), *cells])
    caption = f"Training, {block.dataset}, {block.pair}: means over the runs; seconds of all epochs"
    caption += " from their logs."
    return [Grid(caption, ["", "runs", *EFFORT], rows)] if rows else []


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):,.1f}" if values else NOTHING


def _run_commands(block: Block, seen: set[str]) -> list[Part]:
    runs: list[Any] = [run for run in provenance.commands(block) if run.command not in seen]
    seen.update(run.command for run in runs)
    rows = [[Text(run.row), Text(provenance.command_text(run.command))] for run in runs]
    caption = f"Commands of the first seeds, {block.dataset}, {block.pair}."
    return [Grid(caption, ["", "command"], rows, prose=True)] if rows else []
