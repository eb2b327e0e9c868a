"""The report of a benchmark: tables, figures and where the numbers come from, in four formats."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from recbole_kd import checkpoint
from recbole_kd.benchmark import records
from recbole_kd.errors import KDError
from recbole_kd.optional import library, parquet
from recbole_kd.reporting import data_files, render
from recbole_kd.reporting.collect import collect
from recbole_kd.reporting.contents import make_page
from recbole_kd.reporting.page import Page, Picture
from recbole_kd.reporting.pictures import own_names
from recbole_kd.reporting.results import Results, compute

LIST = "figures.txt"
"""The file beside the figures that names them, so that the next report can remove them."""

WHOLE = "report"
"""Name of the files of a report that is not of one pair."""

FORMATS = ("md", "tex", "csv", "html")


def write_report(
    folder: str | Path,
    out: str | Path | None = None,
    metric: str | None = None,
    latency: bool = True,
    formats: Sequence[str] = FORMATS,
    pair: str | None = None,
) -> list[Path]:
    """Write the report of a benchmark, finished or not.

    Args:
        folder: The benchmark's folder, see :mod:`recbole_kd.benchmark.records`.
        out: Where to write; by default ``report`` in that folder.
        metric: The metric of tests and figures; by default the benchmark's own.
        latency: Whether to measure how fast the models answer, on this machine.
        formats: Which of :data:`FORMATS` to write.
        pair: The pair it is about, whose name its files and the folder of its figures get; by
            default all, in ``report.*``.

    Returns:
        The files written, figures not counted.

    Raises:
        KDError: The folder is no benchmark's, a format, metric or pair is unknown, a library is
            missing, or a file cannot be written.
    """
    folder = Path(folder)
    _check(formats)
    if pair == WHOLE:
        raise KDError(f"--pair={pair}: its files would be those of the report of all pairs")
    results = compute(collect(folder, metric, pair), latency)
    target = folder / "report" if out is None else Path(out)
    name = WHOLE if pair is None else records.file_name(pair)
    texts = _csv(results, name) if "csv" in formats else {}
    if set(formats) - {"csv"}:
        page = make_page(results)
        _write_figures(page, target / page.figures, formats, own_names(results))
        makers = {"md": render.markdown, "tex": render.latex, "html": render.html}
        texts |= {f"{name}.{f}": makers[f](page) for f in formats if f != "csv"}
    for file, text in texts.items():
        checkpoint.write_text(target / file, text)
    return [target / file for file in texts]


def _check(formats: Sequence[str]) -> None:
    """Refuse what cannot be written before anything is measured."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        found = ", ".join(map(str, unknown)) or "none"
        raise KDError(f"--formats: found {found}; allowed are {', '.join(FORMATS)}")
    parquet("report")
    library("statsmodels", "report: Holm's correction")
    if set(formats) - {"csv"}:
        library("matplotlib", "report: a figure")
    if "html" in formats:
        library("jinja2", "report: the HTML page")


def _csv(results: Results, name: str) -> dict[str, str]:
    tables = [table for found in results.tables.values() for table in found]
    return {
        f"{name}.csv": data_files.runs(results.bench),
        f"{name}_means.csv": data_files.means(results.bench, tables),
        f"{name}_tests.csv": data_files.tests(results.bench, tables),
        f"{name}_compression.csv": data_files.compression(results),
        f"{name}_provenance.csv": data_files.origins(results),
    }


def _write_figures(page: Page, folder: Path, formats: Sequence[str], own: re.Pattern[str]) -> None:
    """Write the figures that Markdown and LaTeX name; the HTML page has them inside.

    Figures of an earlier report are removed, as its list or their names tell.
    """
    endings = ["svg"] if set(formats) & {"md", "html"} else []
    endings += ["pdf"] if "tex" in formats else []
    parts = (part for section in page.sections for part in section.parts)
    made = {f"{p.name}.{e}": p.drawn(e) for p in parts if isinstance(p, Picture) for e in endings}
    earlier = _listed(folder)
    if not made and not folder.is_dir():
        return
    kept = {name for name in earlier if Path(name).suffix[1:] not in endings}
    for file in folder.iterdir() if folder.is_dir() else []:
        stale = file.suffix[1:] in endings and file.name not in made
        if stale and (file.name in earlier or own.fullmatch(file.stem)):
            with contextlib.suppress(OSError):
                file.unlink()
    for name, content in made.items():
        checkpoint.write_bytes_atomically(folder / name, lambda f, c=content: f.write(c))
    checkpoint.write_text(folder / LIST, "".join(f"{name}\n" for name in sorted({*made, *kept})))


def _listed(folder: Path) -> set[str]:
    """Names of the figures that an earlier report wrote."""
    try:
        return set((folder / LIST).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return set()
