"""Values of a format's options, as Python or a command line gives them."""

from __future__ import annotations

from contextlib import suppress

from recbole_kd.errors import KDError


def ratio_option(name: str, value: object) -> float:
    """Read a share that lies strictly between 0 and 1."""
    with suppress(TypeError, ValueError):
        number = float(value)  # type: ignore[arg-type]
        if not isinstance(value, bool) and 0.0 < number < 1.0:
            return number
    raise KDError(f"option '{name}' is {value!r}; allowed: a number above 0 and below 1.")


def seed_option(name: str, value: object) -> int:
    """Read a seed, a whole number from 0."""
    text = str(value)
    if text.isascii() and text.isdigit():
        return int(text)
    raise KDError(f"option '{name}' is {value!r}; allowed: a whole number from 0.")


def flag_option(name: str, value: object) -> bool:
    """Read true or false, also as a command line spells it."""
    flags = {"true": True, "false": False}
    if str(value).lower() not in flags:
        raise KDError(f"option '{name}' is {value!r}; allowed: True or False.")
    return flags[str(value).lower()]
