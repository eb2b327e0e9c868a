"""Converters from the files public data sets come in to RecBole's atomic files.

:func:`convert` reads one raw format, checks it, and writes a folder that RecBole opens with
``--dataset=<folder name> --config_files=<folder>/<folder name>.yaml``:

* ``<name>.inter``, or ``<name>.train.inter``, ``<name>.valid.inter``, ``<name>.test.inter``;
* ``<name>.yaml``, the configuration that goes with the files;
* ``README.md``, statistics, the rule of the split, and the command that made the folder.

A format is one function in a module of its own, listed in :data:`FORMATS`: it takes the raw path
and the format's options, and returns the interactions and what the README tells about them.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from recbole_kd.convert.citeulike import read_citeulike
from recbole_kd.convert.interactions import Interactions
from recbole_kd.convert.lightgcn import read_lightgcn
from recbole_kd.convert.options import flag_option
from recbole_kd.convert.rcekd import read_rcekd
from recbole_kd.convert.result import About, ConversionResult
from recbole_kd.convert.sequences import read_sequences
from recbole_kd.convert.writer import check_target, write
from recbole_kd.errors import KDError, did_you_mean

__all__ = ["FORMATS", "ConversionResult", "convert"]

FORMATS: dict[str, Callable[..., tuple[Interactions, About]]] = {
    "citeulike": read_citeulike,
    "rcekd": read_rcekd,
    "lightgcn": read_lightgcn,
    "sequences": read_sequences,
}


def convert(
    format_name: str, raw: str | Path, out: str | Path, /, **options: object
) -> ConversionResult:
    """Convert raw files to RecBole's atomic files.

    Args:
        format_name: A key of :data:`FORMATS`.
        raw: The raw file or folder.
        out: The folder to write; its name becomes the name of the data set.
        **options: Options of the format, and ``overwrite``: write into a folder that holds other
            files.

    Returns:
        What was written.

    Raises:
        KDError: Unknown format or option, bad raw data, or an output folder that is in use.
    """
    if format_name not in FORMATS:
        raise KDError(
            f"unknown format '{format_name}'; allowed: {', '.join(FORMATS)}."
            + did_you_mean(format_name, FORMATS)
        )
    read = FORMATS[format_name]
    allowed = [*list(inspect.signature(read).parameters)[1:], "overwrite"]
    for option in options:
        if option not in allowed:
            raise KDError(
                f"unknown option '{option}' of format '{format_name}'; allowed: "
                f"{', '.join(allowed)}." + did_you_mean(option, allowed)
            )
    overwrite = flag_option("overwrite", options.pop("overwrite", False))
    target = check_target(out, overwrite)
    data, about = read(raw, **options)
    used = {**about.options, **({"overwrite": True} if overwrite else {})}
    return write(data, about, target, _command(format_name, raw, out, used))


def _command(
    format_name: str, raw: str | Path, out: str | Path, options: Mapping[str, object]
) -> str:
    """The command line that repeats a conversion."""
    words = ["recbole-kd", "convert", format_name, str(raw), str(out)]
    return shlex.join(words + [f"--{key}={value}" for key, value in options.items()])
