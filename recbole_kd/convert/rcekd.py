"""A ready-made split, as the RCE-KD repository keeps it."""

from __future__ import annotations

from pathlib import Path

from recbole_kd.convert.interactions import PARTS, Interactions, drop_repeats, join, refuse_overlap
from recbole_kd.convert.readers import find_parts, read_pairs
from recbole_kd.convert.result import About


def read_rcekd(raw: str | Path) -> tuple[Interactions, About]:
    """Read three tables with the columns ``USER`` and ``ITEM``.

    Args:
        raw: Folder with ``train.txt``, ``valid.txt`` and ``test.txt`` (plain or ``.gz``), tab
            separated with a header line.

    Returns:
        The interactions, and what the README tells about them.

    Raises:
        KDError: Bad raw data, or a (user, item) pair in two parts.
    """
    rows = [read_pairs(path) for path in find_parts(raw, PARTS)]
    data, repeat_notes = drop_repeats(join(rows, PARTS))
    refuse_overlap(data, rows)
    about = About(
        source="ready-made split, tab separated tables with the columns USER and ITEM",
        rule="as given",
        notes=(
            *repeat_notes,
            "timestamp is the place in the user's train, then valid, then test list, an order and "
            "not a time",
        ),
    )
    return data, about
