"""What a report consists of, whatever it is written as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Text:
    """A cell of a table.

    Attributes:
        text: What it says, unescaped.
        bold: Whether it is the best.
        underlined: Whether it is the best baseline.
        muted: Whether it is somebody else's number.
    """

    text: str
    bold: bool = False
    underlined: bool = False
    muted: bool = False


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        caption: What it shows, in a sentence.
        header: Its columns; the first is a name, the others are numbers unless ``prose``.
        rows: Its lines, each as long as the header.
        prose: Whether all columns are text.
    """

    caption: str
    header: list[str]
    rows: list[list[Text]]
    prose: bool = False


@dataclass(frozen=True)
class Notes:
    """Short lines of text."""

    lines: list[str]


@dataclass(frozen=True)
class Command:
    """Something to type."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: Name of its file, without ending.
        caption: What it shows, in a sentence or two.
        drawn: The figure as ``svg`` or ``pdf``, drawn when it is first asked for.
    """

    name: str
    caption: str
    drawn: Callable[[str], bytes]


Part = Grid | Notes | Command | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what is under it.

    Attributes:
        title: The heading.
        parts: What is under it.
        level: 2 for a heading of the page, 3 for one below.
    """

    title: str
    parts: list[Part] = field(default_factory=list)
    level: int = 2


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: Its title.
        lead: A line about it.
        sections: Its sections.
        figures: Folder of its figures, below its own.
    """

    title: str
    lead: str
    sections: list[Section]
    figures: str = "figures"
