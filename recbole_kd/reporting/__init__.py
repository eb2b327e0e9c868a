"""The report of a benchmark: tables, figures and where the numbers come from, in four formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recbole_kd import checkpoint
from recbole_kd.errors import KDError
from recbole_kd.optional import library, parquet
from recbole_kd.reporting import data_files, render
from recbole_kd.reporting.collect import collect
from recbole_kd.reporting.contents import make_page
from recbole_kd.reporting.page import Page, Picture
from recbole_kd.reporting.results import Results, compute

FORMATS = ("md", "tex", "csv", "html")


def write_report(
    folder: str | Path,
    out: str | Path | None = None,
    metric: str | None = None,
    latency: bool = True,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Write the report of a benchmark, finished or not.

    Args:
        folder: The benchmark's folder, see :mod:`recbole_kd.benchmark.records`.
        out: Where to write; by default ``report`` in that folder.
        metric: The metric of tests and figures; by default the benchmark's own.
        latency: Whether to measure how fast the models answer, on this machine.
        formats: Which of :data:`FORMATS` to write.

    Returns:
        The files written, figures not counted.

    Raises:
        KDError: The folder is no benchmark's, a format or metric is unknown, a library is missing,
            or a file cannot be written.
    """
    folder = Path(folder)
    _check(formats)
    results = compute(collect(folder, metric), latency)
    target = folder / "report" if out is None else Path(out)
    texts = _csv(results) if "csv" in formats else {}
    if set(formats) - {"csv"}:
        page = make_page(results)
        _write_figures(page, target / "figures", formats)
        makers = {"md": render.markdown, "tex": render.latex, "html": render.html}
        texts |= {f"report.{f}": makers[f](page) for f in formats if f != "csv"}
    for name, text in texts.items():
        checkpoint.write_text(target / name, text)
    return [target / name for name in texts]


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


def _csv(results: Results) -> dict[str, str]:
    tables = [table for found in results.tables.values() for table in found]
    return {
        "report.csv": data_files.runs(results.bench),
        "report_means.csv": data_files.means(tables),
        "report_tests.csv": data_files.tests(results.bench, tables),
    }


def _write_figures(page: Page, folder: Path, formats: Sequence[str]) -> None:
    """Write the figures that Markdown and LaTeX name; the HTML page has them inside."""
    endings = ["svg"] if set(formats) & {"md", "html"} else []
    endings += ["pdf"] if "tex" in formats else []
    for part in (part for section in page.sections for part in section.parts):
        if isinstance(part, Picture):
            for ending in endings:
                content = part.drawn(ending)
                file = folder / f"{part.name}.{ending}"
                checkpoint.write_bytes_atomically(file, lambda f, c=content: f.write(c))
