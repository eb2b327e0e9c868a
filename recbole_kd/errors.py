"""The one exception type a user's mistake raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KDError(ValueError):
    """Bad input. The message is one line: what was named, what was found, what is allowed."""


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
    """``" Did you mean 'a' or 'b'?"`` for the known names nearest to ``name``, or ``""``."""
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.6)
    if not near:
        return ""
    return " Did you mean " + " or ".join(f"'{by_lower[n]}'" for n in near) + "?"
