"""Finds the shipped YAML files: in a checkout, an editable install or an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def properties_dir() -> Path:
    """The folder of the shipped YAML files.

    A wheel carries it as ``recbole_kd/properties``; in a checkout, and in an editable install of
    one, it lies beside the package.

    Raises:
        FileNotFoundError: Neither exists, so the installation is broken.
    """
    for folder in (_PACKAGE / "properties", _PACKAGE.parent / "properties"):
        if (folder / "overall.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"the shipped settings are missing: no overall.yaml under {_PACKAGE / 'properties'} "
        f"or {_PACKAGE.parent / 'properties'}; install recbole-kd again"
    )
