"""The folder of a converted data set: atomic files, configuration and README."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recbole_kd.convert.interactions import PARTS, Interactions
from recbole_kd.convert.readers import show
from recbole_kd.convert.result import About, ConversionResult
from recbole_kd.errors import KDError

_MARKER = "<!-- recbole-kd convert wrote: "
_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Target:
    """A checked output folder and the files of an earlier conversion in it."""

    out: Path
    name: str
    earlier: frozenset[str]


def _inter_names(name: str, parts: Sequence[str]) -> list[str]:
    """File name of each part."""
    return [f"{name}.{part}.inter" if part else f"{name}.inter" for part in parts]


def check_target(out: str | Path, overwrite: bool) -> Target:
    """Check the output folder and find the files of an earlier conversion in it.

    Args:
        out: The folder; its name becomes the name of the data set.
        overwrite: Whether it may hold other files.

    Raises:
        KDError: The name cannot be a data set's, or the folder is in use.
    """
    given = Path(out)
    name = given.resolve().name
    if not _NAME.fullmatch(name):
        raise KDError(
            f"{given}: the folder's name {show(name)} becomes the data set's name; allowed: "
            "letters, digits, _ . - with a letter, digit or _ first."
        )
    if name == "ml-100k":
        raise KDError(f"{given}: RecBole reads its own copy of ml-100k; choose another name.")
    if not given.exists():
        return Target(given, name, frozenset())
    if not given.is_dir():
        raise KDError(f"{given}: is a file; the output must be a folder.")
    present = {entry.name for entry in given.iterdir()}
    known = {*_inter_names(name, ("", *PARTS)), f"{name}.yaml", "README.md"}
    earlier = present & known & _names_in_marker(given / "README.md")
    foreign = sorted(present - earlier)
    if foreign and not overwrite:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise KDError(
            f"{given}: holds {len(foreign)} files that no conversion wrote ({shown}); choose an "
            "empty folder or allow it with the option overwrite."
        )
    return Target(given, name, frozenset(earlier))


def _names_in_marker(readme: Path) -> set[str]:
    """The file names an earlier conversion noted in the first line of its README."""
    with suppress(OSError, UnicodeDecodeError):
        first = readme.read_text(encoding="utf-8").partition("\n")[0]
        if first.startswith(_MARKER):
            return set(first.removeprefix(_MARKER).removesuffix(" -->").split(", "))
    return set()


def write(data: Interactions, about: About, target: Target, command: str) -> ConversionResult:
    """Write the atomic files, the configuration and the README.

    Raises:
        KDError: A part is empty, or the folder cannot be written.
    """
    per_part = np.bincount(data.part, minlength=len(data.parts))
    for part, number in zip(data.parts, per_part, strict=True):
        if not number:
            raise KDError(f"{target.name}: part {part} has no interaction; each part needs one.")
    names = _inter_names(target.name, data.parts)
    names += [f"{target.name}.yaml", "README.md"]
    per_user = np.bincount(data.user)
    result = ConversionResult(
        name=target.name,
        out=target.out,
        files=tuple(target.out / name for name in names),
        n_users=int(np.count_nonzero(per_user)),
        n_items=len(np.unique(data.item)),
        interactions={part or "all": int(n) for part, n in zip(data.parts, per_part, strict=True)},
        median_per_user=float(np.median(per_user[per_user > 0])),
        rule=about.rule,
        command=command,
        notes=about.notes,
    )
    config = _config_lines(data, about)
    texts = [_inter_text(data, index) for index in range(len(data.parts))]
    head = "# Written by recbole-kd convert; pass this file to --config_files."
    texts += ["\n".join([head, *config, ""]), _readme_text(data, about, result, config)]
    _replace_files(target, dict(zip(names, texts, strict=True)))
    return result


def _inter_text(data: Interactions, index: int) -> str:
    """The atomic file of one part."""
    rows = data.part == index
    columns = [
        ("user_id:token", np.asarray(data.users, dtype=object)[data.user[rows]]),
        ("item_id:token", np.asarray(data.items, dtype=object)[data.item[rows]]),
    ]
    if data.ordered:
        numbers = np.array([str(n) for n in range(int(data.position.max()) + 1)], dtype=object)
        columns.append(("timestamp:float", numbers[data.position[rows]]))
    header = "\t".join(name for name, _ in columns)
    lines = map("\t".join, zip(*(values for _, values in columns), strict=True))
    return "\n".join([header, *lines, ""])


def _config_lines(data: Interactions, about: About) -> list[str]:
    """The YAML lines RecBole needs to read the files."""
    fields = "user_id, item_id" + (", timestamp" if data.ordered else "")
    lines = ["load_col:", f"  inter: [{fields}]"]
    if data.parts != ("",):
        lines.insert(0, f"benchmark_filename: [{', '.join(data.parts)}]")
    if about.eval_args:
        lines.append(f"eval_args: {{{about.eval_args}, group_by: user, mode: full}}")
    return lines


def _readme_text(
    data: Interactions, about: About, result: ConversionResult, config: Sequence[str]
) -> str:
    """The README of the converted data set; its first line marks the folder as ours."""
    names = ", ".join(path.name for path in result.files)
    table = ["| part | users | items | interactions |", "|---|---|---|---|"]
    for index, part in enumerate(result.interactions):
        rows = data.part == index
        users, items = len(np.unique(data.user[rows])), len(np.unique(data.item[rows]))
        table.append(f"| {part} | {users} | {items} | {result.interactions[part]} |")
    if len(result.interactions) > 1:
        table.append(f"| all | {result.n_users} | {result.n_items} | {result.n_interactions} |")
    lines = [
        f"{_MARKER}{names} -->",
        *(f"# {result.name}", "", "Made by", "", f"    {result.command}", "", *table, ""),
        f"- density: {100 * result.density:.4f} %",
        f"- interactions per user: median {result.median_per_user:g}, "
        f"mean {result.mean_per_user:.2f}",
        f"- source: {about.source}",
        f"- split: {about.rule}",
        *(f"- {note}" for note in about.notes),
        *("", "RecBole needs", "", "```yaml", *config, "```", ""),
        f"which are the lines of `{result.name}.yaml`: pass `--dataset={result.name} "
        f"--config_files={result.config_file}`.",
        "`data_path` (RecBole's default: `dataset/`) is the folder that holds this folder.",
        "",
    ]
    return "\n".join(lines)


def _replace_files(target: Target, texts: dict[str, str]) -> None:
    """Write all files under temporary names, then move them into place.

    Raises:
        KDError: The folder cannot be written.
    """
    out = target.out
    existed = out.exists()
    temporary: dict[str, Path] = {name: out / f".{name}.{os.getpid()}.tmp" for name in texts}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            temporary[name].write_text(text, encoding="utf-8", newline="\n")
        for name in texts:
            os.replace(temporary[name], out / name)
        for name in target.earlier - set(texts):
            (out / name).unlink()
    except OSError as error:
        raise KDError(f"{out}: cannot be written ({error.strerror}).") from error
    finally:
        for path in temporary.values():
            with suppress(OSError):
                path.unlink()
        if not existed:
            # Only an empty folder goes, that is one where nothing was moved into place.
            with suppress(OSError):
                out.rmdir()
