"""A page as Markdown, LaTeX or one HTML file."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from tabulate import tabulate

from recbole_kd.optional import library
from recbole_kd.reporting.page import Command, Grid, Notes, Page, Part, Picture, Text

TEMPLATE = Path(__file__).with_name("report.html.j2")

LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\0": "{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the beginning of a line it would be an argument of the line before
    "]": "{]}",
    '"': "{''}",  # a straight one needs another encoding of the font
    "`": r"{\textasciigrave}",
    "±": r"$\pm$",
    "→": r"$\to$",
}


NARROWED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}"
"""What makes a table that is too wide for the page as wide as the page."""


# -- Markdown ----------------------------------------------------------------------------------


def markdown(page: Page) -> str:
    """A page as GitHub's Markdown; figures are linked in its folder of figures."""
    lines = [f"# {md_escape(page.title)}", md_escape(page.lead)]
    for section in page.sections:
        lines.append(f"{'#' * section.level} {md_escape(section.title)}")
        lines += [_md_part(part, page.figures) for part in section.parts]
    return "\n\n".join(line for line in lines if line) + "\n"


def md_escape(text: str) -> str:
    """A text in which nothing is Markdown or HTML."""
    escaped = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _md_part(part: Part, figures: str) -> str:
    if isinstance(part, Grid):
        rows = [[_md_cell(cell) for cell in row] for row in part.rows]
        header = [md_escape(name) for name in part.header]
        aligned = ["left"] + ["left" if part.prose else "right"] * (len(header) - 1)
        body = tabulate(rows, header, "pipe", disable_numparse=True, colalign=aligned)
        return f"{md_escape(part.caption)}\n\n{body}"
    if isinstance(part, Notes):
        return "\n".join(f"- {md_escape(line)}" for line in part.lines)
    if isinstance(part, Command):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", part.text)), default=0))
        return f"{fence}\n{part.text}\n{fence}"
    caption = md_escape(part.caption)
    return f"![{caption}]({figures}/{part.name}.svg)\n\n{caption}"


def _md_cell(cell: Text) -> str:
    text = md_escape(cell.text)
    text = f"**{text}**" if cell.bold else text
    text = f"<ins>{text}</ins>" if cell.underlined else text
    return f"*{text}*" if cell.muted and text else text


# -- LaTeX -------------------------------------------------------------------------------------


def latex(page: Page) -> str:
    r"""A page's tables and figures as floats, to be read with ``\input``; all text is comments."""
    lines = [
        f"% {_comment(page.title)}",
        r"% \usepackage{booktabs} for the tables, \usepackage{graphicx} for tables and figures",
    ]
    for section in page.sections:
        lines += ["", f"% {'=' * section.level} {_comment(section.title)}"]
        for part in section.parts:
            lines += ["", *_tex_part(part, page.figures)]
    return "\n".join(lines) + "\n"


def tex_escape(text: str) -> str:
    """A text in which nothing is LaTeX; the minus of a number is one."""
    # Two hyphens or apostrophes would be one longer one.
    apart = re.sub(r"(?<=([-']))(?=\1)", "\0", " ".join(text.replace("\0", "").split()))
    escaped = "".join(LATEX.get(c, c) for c in apart)
    return re.sub(r"(?<![\w.)])-(?=\d)", "$-$", escaped)


def _comment(text: str) -> str:
    return " ".join(text.split())


def _tex_part(part: Part, figures: str) -> list[str]:
    if isinstance(part, Notes):
        return [f"% - {_comment(line)}" for line in part.lines]
    if isinstance(part, Command):
        return [f"% {line}" for line in part.text.splitlines()]
    if isinstance(part, Picture):
        return [
            r"\begin{figure}",
            r"  \centering",
            rf"  \includegraphics[width=\linewidth]{{{figures}/{part.name}.pdf}}",
            rf"  \caption{{{tex_escape(part.caption)}}}",
            r"\end{figure}",
        ]
    if part.prose:
        rows = [" ".join(cell.text for cell in row) for row in part.rows]
        return [f"% {_comment(line)}" for line in [part.caption, *rows]]
    return [
        r"\begin{table*}",
        r"  \centering",
        rf"  \caption{{{tex_escape(part.caption)}}}",
        rf"  {NARROWED}{{\begin{{tabular}}{{l{'r' * (len(part.header) - 1)}}}",
        r"    \toprule",
        f"    {' & '.join(tex_escape(name) for name in part.header)} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(map(_tex_cell, row))} \\\\" for row in part.rows),
        r"    \bottomrule",
        r"  \end{tabular}}",
        r"\end{table*}",
    ]


def _tex_cell(cell: Text) -> str:
    text = tex_escape(cell.text)
    text = rf"\textbf{{{text}}}" if cell.bold else text
    text = rf"\underline{{{text}}}" if cell.underlined else text
    return rf"\textit{{{text}}}" if cell.muted and text else text


# -- HTML --------------------------------------------------------------------------------------


def html(page: Page) -> str:
    """A page as one HTML file that needs no other, nor a network."""
    jinja = library("jinja2", "report: the HTML page")
    source = TEMPLATE.read_text(encoding="utf-8")
    environment = jinja.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["kind"] = _kind
    environment.filters["as_data"] = _as_data
    return environment.from_string(source).render(page=page) + "\n"


def _kind(part: Any) -> str:
    return type(part).__name__


def _as_data(picture: Picture) -> str:
    coded = base64.b64encode(picture.drawn("svg")).decode("ascii")
    return f"data:image/svg+xml;base64,{coded}"
