"""Numbers of papers, shipped as ``properties/published/<name>.yaml``."""

from __future__ import annotations

from recbole_kd.errors import KDError, did_you_mean
from recbole_kd.options import read_yaml
from recbole_kd.resources import properties_dir

Published = dict[str, dict[str, dict[str, dict[str, float]]]]
"""Data set -> pair -> row -> metric -> value."""


def names() -> list[str]:
    """Names of the shipped files."""
    return sorted(file.stem for file in (properties_dir() / "published").glob("*.yaml"))


def load(name: str) -> Published:
    """The published numbers of a paper.

    Args:
        name: Name of its file, such as ``rcekd``.

    Raises:
        KDError: There is no such file.
    """
    known = names()
    if name not in known:
        raise KDError(
            f"published={name}: there are no such numbers.{did_you_mean(name, known)} "
            f"Allowed are {', '.join(known)}"
        )
    return read_yaml(properties_dir() / "published" / f"{name}.yaml")
