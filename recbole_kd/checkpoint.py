"""Checkpoints: written to a temporary name and renamed, read without running any of their code.

Ours hold tensors and plain data. RecBole's own ``.pth`` files pickle a ``Config`` object; they are
read with torch's restricted unpickler and a fixed list of names, each of which becomes an inert
stand-in. Any other object in a file is an error that names it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from recbole.utils.enum_type import EvaluatorType, FeatureSource, FeatureType, InputType, ModelType

from recbole_kd.errors import KDError

FORMAT = "recbole_kd/1"
_ENUMS = (EvaluatorType, FeatureSource, FeatureType, InputType, ModelType)


class Inert:
    """Stands for a pickled object whose class we do not need: it keeps its state, nothing more."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _enum_member(owner: Any, name: str) -> Any:
    """What pickled enums of some Python versions call ``getattr`` for, and only that."""
    if owner in _ENUMS and name in owner.__members__:
        return owner[name]
    raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r})")


def _allowed(name: str) -> Any:
    """The object that stands for a global name of a RecBole checkpoint, or ``None``."""
    for enum in _ENUMS:
        if name == f"{enum.__module__}.{enum.__qualname__}":
            return enum
    if name in {"builtins.getattr", "__builtin__.getattr"}:
        return _enum_member
    if name in {"recbole.config.configurator.Config", "yaml.loader.FullLoader"}:
        return Inert
    if name.startswith("recbole.model.") and name.count(".") <= 5:
        return Inert
    if name.startswith(("numpy.", "numpy._core.")):
        return _numpy_global(name)
    return None


def _numpy_global(name: str) -> Any:
    import numpy as np

    module, _, attribute = name.rpartition(".")
    if module in {"numpy.core.multiarray", "numpy._core.multiarray"} and attribute == "scalar":
        return np.float64(0).__reduce__()[0]
    if name == "numpy.dtype":
        return np.dtype
    if module == "numpy.dtypes" and attribute in {"Float64DType", "Float32DType", "Int64DType"}:
        return getattr(np.dtypes, attribute)
    return None


def write_bytes_atomically(path: Path, write: Any) -> None:
    """Run ``write(file)`` on a temporary file beside ``path``, then rename it.

    Raises:
        KDError: The disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        free = ""
        with contextlib.suppress(OSError):
            free = f"; {shutil.disk_usage(path.parent).free / 2**20:.0f} MiB are free there"
        raise KDError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}{free}"
        ) from (error)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file through a temporary name."""
    write_bytes_atomically(path, lambda file: file.write(text.encode("utf-8")))


def save(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain data.

    Args:
        path: File to write.
        content: Nested dicts, lists, strings, numbers and tensors.

    Raises:
        KDError: It cannot be written.
    """
    content = {"format": FORMAT, **content}
    write_bytes_atomically(Path(path), lambda file: torch.save(content, file))


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of ours or of RecBole, on the CPU, without running any code in it.

    Args:
        path: File to read.

    Returns:
        Its content.

    Raises:
        KDError: The file is missing, truncated, corrupt, or holds an object that a checkpoint has
            no need of.
    """
    path = Path(path)
    if not path.is_file():
        raise KDError(f"checkpoint {path}: there is no such file")
    if not zipfile.is_zipfile(path):
        raise KDError(
            f"checkpoint {path}: not a torch checkpoint, or a truncated one "
            f"({path.stat().st_size} bytes)"
        )
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins: list[Any] = []
        for name in names:
            stand_in = _allowed(name)
            if stand_in is None:
                raise KDError(
                    f"checkpoint {path}: it holds the object '{name}', which no checkpoint needs; "
                    "nothing was loaded and none of its code was run"
                )
            stand_ins.append((stand_in, name))
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise KDError(f"checkpoint {path}: refused, {reason}") from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise KDError(f"checkpoint {path}: corrupt or truncated ({reason})") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise KDError(f"checkpoint {path}: it holds no 'state_dict'")
    return content


def is_ours(content: dict[str, Any]) -> bool:
    """Whether a loaded checkpoint is in our own form, and one this version reads.

    Raises:
        KDError: It is ours, of another version.
    """
    found = content.get("format")
    if found is None:
        return False
    if found != FORMAT:
        raise KDError(f"checkpoint format '{found}': this version reads '{FORMAT}'")
    return True


def need_space(folder: Path, needed: int) -> None:
    """Check the free space before a long run.

    Args:
        folder: Where the run writes; created if missing.
        needed: Bytes.

    Raises:
        KDError: There is less.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise KDError(f"--checkpoint_dir: {folder}: {error.strerror}") from error
    if free < needed:
        raise KDError(
            f"--checkpoint_dir: {folder} has {free / 2**20:.0f} MiB free, the run needs about "
            f"{needed / 2**20:.0f} MiB"
        )
