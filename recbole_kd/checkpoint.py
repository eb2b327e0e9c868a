"""Checkpoints: written to a temporary name and renamed, read without running any of their code.

Ours hold tensors and plain data. RecBole's own ``.pth`` files pickle a ``Config`` object; they are
read with torch's restricted unpickler and a fixed list of names, each of which becomes an inert
stand-in. Any other object in a file is an error that names it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import pickletools
import shutil
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from recbole.utils.enum_type import EvaluatorType, FeatureSource, FeatureType, InputType, ModelType

from recbole_kd.errors import KDError

FORMAT = "recbole_kd/1"
_ENUMS = (EvaluatorType, FeatureSource, FeatureType, InputType, ModelType)
_TEXT_OPS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_BYTES_OPS = ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8")
_NUMBERS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "b1": "?"}


class Inert:
    """Stands for a pickled object whose class we do not need: it keeps its state, nothing more."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _NumberType:
    """Stands for ``numpy.dtype``: the code of a plain number, and nothing numpy would act on."""

    def __init__(self, code: Any, *args: Any):
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "<"


def _number(kind: Any, data: Any) -> bool | int | float:
    """Stands for numpy's ``scalar``: a Python number."""
    if not isinstance(kind, _NumberType) or kind.code not in _NUMBERS or type(data) is not bytes:
        raise pickle.UnpicklingError("a numpy object other than a plain number")
    return struct.unpack(kind.order + _NUMBERS[kind.code], data)[0]


def _enum_member(owner: Any, name: Any) -> Any:
    """What pickled enums of some Python versions call ``getattr`` for, and only that."""
    if any(owner is enum for enum in _ENUMS) and name in owner.__members__:
        return owner[name]
    raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r})")


_STAND_INS: dict[str, Any] = {
    **{f"{enum.__module__}.{enum.__qualname__}": enum for enum in _ENUMS},
    "builtins.getattr": _enum_member,
    "__builtin__.getattr": _enum_member,
    "recbole.config.configurator.Config": Inert,
    "yaml.loader.FullLoader": Inert,
    "numpy.dtype": _NumberType,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
}


def _allowed(name: str) -> Any:
    """The object that stands for a global name of a RecBole checkpoint, or ``None``.

    No name is ever imported: whatever it names, what is called is one of these objects.
    """
    return Inert if name.startswith("recbole.model.") else _STAND_INS.get(name)


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
        # torch turns the error of a file into one of its own, and keeps it as the context.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        free = ""
        with contextlib.suppress(OSError):
            free = f"; {shutil.disk_usage(path.parent).free / 2**20:.0f} MiB are free there"
        reason = getattr(cause, "strerror", None) or _first_line(cause)
        raise KDError(f"cannot write {path}: {reason}{free}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file through a temporary name."""
    write_bytes_atomically(path, lambda file: file.write(text.encode("utf-8")))


def file_in(path: str | Path, name: str = "best.pt") -> Path:
    """The file a user names: ``path`` itself, or ``name`` in it if it is a run's folder."""
    path = Path(path)
    return path / name if path.is_dir() else path


def epoch_file(folder: Path, epoch: int) -> Path:
    """Where a run keeps the model of an epoch, see the option ``save_every``."""
    return folder / "epochs" / f"{epoch:04d}.pt"


def epoch_files(folder: Path | None) -> list[Path]:
    """The models of earlier epochs that a run keeps, oldest first.

    Args:
        folder: The run's folder; ``None``: it has none.
    """
    found = [] if folder is None else (folder / "epochs").glob("*.pt")
    return sorted((f for f in found if f.stem.isdigit()), key=lambda file: int(file.stem))


def digest(path: Path) -> str:
    """Digest of a file's bytes, which need not fit into memory."""
    found = hashlib.blake2b(digest_size=8)
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


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
    if not _is_zip(path):
        raise KDError(
            f"checkpoint {path}: not a torch checkpoint, or a truncated one "
            f"({path.stat().st_size} bytes)"
        )
    try:
        with path.open("rb") as file:
            content = _load_restricted(file)
    except _UnknownObject as error:
        raise KDError(
            f"checkpoint {path}: it holds the object '{error}', which no checkpoint needs; "
            "nothing was loaded and none of its code was run"
        ) from error
    except pickle.UnpicklingError as error:
        # torch wraps the reason in advice to load the file without restriction.
        reason = _first_line(error.__context__ or error)
        raise KDError(f"checkpoint {path}: refused, {reason}") from error
    except Exception as error:  # a damaged or hostile file can make the readers raise anything
        raise KDError(f"checkpoint {path}: corrupt or truncated ({_first_line(error)})") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise KDError(f"checkpoint {path}: it holds no 'state_dict'")
    return content


class _UnknownObject(Exception):
    """A checkpoint names an object that is not in :data:`_STAND_INS`."""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def _load_restricted(file: IO[bytes]) -> Any:
    """Check the file byte by byte and read it with torch's restricted unpickler."""
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()  # torch itself does not look at the checksums
        if damaged is not None:
            raise zipfile.BadZipFile(f"checksum of {damaged}")
        source = _with_protocol_2(archive) or file
    source.seek(0)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(source)
    stand_ins: list[Any] = [(_allowed(name), name) for name in names]
    for stand_in, name in stand_ins:
        if stand_in is None:
            raise _UnknownObject(name)
    source.seek(0)
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(source, map_location="cpu", weights_only=True)


def _with_protocol_2(archive: zipfile.ZipFile) -> IO[bytes] | None:
    """A copy of a checkpoint whose pickle is of protocol 2, or ``None`` if it is already.

    RecBole saves with protocol 4, and torch's restricted unpickler reads protocol 2.
    """
    records = [n for n in archive.namelist() if n.endswith("/data.pkl")]
    if len(records) != 1 or archive.read(records[0])[:2] <= b"\x80\x02":
        return None
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as target:
        for name in archive.namelist():
            data = archive.read(name)
            target.writestr(name, _to_protocol_2(data) if name == records[0] else data)
    return copy


class _Text(str):
    """A text that an opcode pushed, in a list of rewritten opcodes."""


def _to_protocol_2(data: bytes) -> bytes:
    """Rewrite a pickle of protocol 3 or 4 in opcodes of protocol 2; nothing is executed.

    Texts are written out where they are used instead of being remembered, so that the two texts
    before a ``STACK_GLOBAL`` can be taken back and become a ``GLOBAL``. What is unknown here is
    kept as it is, and torch refuses it.
    """
    rewritten: list[bytes | _Text] = []
    memo: dict[int, _Text | None] = {}
    ops: list[Any] = [(op.name, arg, start) for op, arg, start in pickletools.genops(data)]
    ends = [start for _, _, start in ops[1:]] + [len(data)]
    for (name, arg, start), end in zip(ops, ends, strict=True):
        last = rewritten[-1] if rewritten else b""
        if name == "PROTO":
            rewritten.append(pickle.PROTO + b"\x02")
        elif name in _TEXT_OPS:
            rewritten.append(_Text(arg))
        elif name == "MEMOIZE":
            memo[len(memo)] = last if isinstance(last, _Text) else None
            if not isinstance(last, _Text):
                rewritten.append(pickle.LONG_BINPUT + struct.pack("<I", len(memo) - 1))
        elif name in ("BINGET", "LONG_BINGET") and memo.get(arg) is not None:
            rewritten.append(memo[arg] or _Text())
        elif name == "STACK_GLOBAL":
            rewritten[-2:] = [_global(*rewritten[-2:])]
        elif name in _BYTES_OPS:
            # What protocol 2 itself writes for bytes.
            rewritten.append(pickle.GLOBAL + b"_codecs\nencode\n")
            rewritten += [_Text(arg.decode("latin1")), _Text("latin1")]
            rewritten.append(pickle.TUPLE2 + pickle.REDUCE)
        elif name != "FRAME":
            rewritten.append(data[start:end])
    return b"".join(_push_text(op) if isinstance(op, _Text) else op for op in rewritten)


def _push_text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _global(*parts: bytes | _Text) -> bytes:
    texts = [part for part in parts if isinstance(part, _Text) and "\n" not in part]
    if len(texts) != 2:
        raise pickle.UnpicklingError("the name of an object is computed")
    return pickle.GLOBAL + "".join(f"{text}\n" for text in texts).encode()


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
