"""Ordered sequences of items."""

from __future__ import annotations

from pathlib import Path

from recbole_kd.convert.interactions import Interactions, join, repeated
from recbole_kd.convert.readers import bare_notes, read_lists
from recbole_kd.convert.result import About


def read_sequences(raw: str | Path) -> tuple[Interactions, About]:
    """Read a file of ordered sequences, which stays one part with an order column.

    Args:
        raw: Text file (plain or gzip) with one ``user item item ...`` line per user, oldest first.

    Returns:
        The interactions, and what the README tells about them.

    Raises:
        KDError: Bad raw data.
    """
    rows = read_lists(Path(raw))
    data = join([rows], ("",))
    n_repeats = int(repeated(data.pair_key()).sum())
    repeats = f"{n_repeats} repeated (user, item) pairs were kept; rm_dup_inter: first drops them"
    about = About(
        source="ordered sequences, one `user item item ...` line per user",
        rule="none: RecBole splits by order, the last interaction is test, the one before valid",
        notes=(
            *bare_notes([rows]),
            *((repeats,) if n_repeats else ()),
            "timestamp is the place in the user's sequence (0, 1, 2, ...), an order and not a time",
        ),
        eval_args="split: {LS: valid_and_test}, order: TO",
    )
    return data, about
