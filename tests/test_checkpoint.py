"""Checkpoints: what is written comes back, what is damaged or hostile is refused in one line."""

from __future__ import annotations

import builtins
import errno
import io
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from recbole.utils import InputType, ModelType

from recbole_kd import checkpoint
from recbole_kd.deploy import load_model
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory

CONTENT: dict[str, Any] = {
    "state_dict": {
        "a": torch.arange(3000.0).view(30, 100),
        "half": torch.ones(3, dtype=torch.float16),
        "ids": torch.tensor([1, -(2**60)]),
        "none": torch.zeros(0, 4),
    },
    "text": "Ünïcode \n \U0001f600",
    "numbers": [1, -1, 2**40, 0.1, float("inf"), True, None],
    "nested": {"x": {"y": [{"z": "deep"}]}},
}


def refusal(path: Path) -> str:
    """The message with which a file is refused: one line that names the file."""
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(KDError) as refused:
        checkpoint.load(path)
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    assert set(torch.serialization.get_safe_globals()) == before
    return message


def same(a: Any, b: Any) -> bool:
    """Whether two contents are equal, tensors bit by bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


# -- writing -------------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "best.pt"
    checkpoint.save(path, CONTENT)
    loaded = checkpoint.load(path)
    assert loaded.pop("format") == checkpoint.FORMAT
    assert same(loaded, CONTENT)
    assert not same(loaded, {**CONTENT, "state_dict": {**CONTENT["state_dict"], "ids": None}})
    assert os.listdir(path.parent) == ["best.pt"]
    assert checkpoint.is_ours(checkpoint.load(path))
    assert torch.load(path, weights_only=True).keys() == {"format", *CONTENT}


class FullDisk(io.RawIOBase):
    """A file on a disk that has room for some bytes only."""

    def __init__(self, file: Any, room: int):
        self.file, self.room = file, room

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)


@pytest.mark.parametrize("room", [0, 500, 5000])
def test_a_full_disk_leaves_the_old_file(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best.pt"
    checkpoint.save(path, CONTENT)
    old = path.read_bytes()
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: save(content, FullDisk(file, room)))
    with pytest.raises(KDError, match=r"No space left on device; \d+ MiB are free") as refused:
        checkpoint.save(path, {**CONTENT, "text": "newer"})
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["best.pt"]


def fail(error: BaseException) -> Any:
    def failing(*args: Any, **kwargs: Any) -> Any:
        raise error

    return failing


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_an_error_at_the_very_end_leaves_the_old_file(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resolved.yaml"
    checkpoint.write_text(path, "old")
    monkeypatch.setattr(os, function, fail(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(KDError, match="Input/output error") as refused:
        checkpoint.write_text(path, "new")
    assert str(path) in str(refused.value)
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["resolved.yaml"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TypeError("cannot pickle")])
def test_an_interrupted_write_leaves_the_old_file(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    checkpoint.save(path, CONTENT)
    old = path.read_bytes()

    def write(file: Any) -> None:
        file.write(b"half of it")
        raise error

    with pytest.raises(type(error)):
        checkpoint.write_bytes_atomically(path, write)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["best.pt"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(KDError, match=r"cannot write .*best\.pt: (Not a directory|File exists)"):
        checkpoint.save(tmp_path / "file" / "best.pt", CONTENT)
    with pytest.raises(KDError, match=r"--checkpoint_dir: .*file"):
        checkpoint.need_space(tmp_path / "file" / "deeper", 1)


def test_need_space(tmp_path: Path) -> None:
    checkpoint.need_space(tmp_path / "a" / "b", 1)
    assert (tmp_path / "a" / "b").is_dir()
    needed = shutil.disk_usage(tmp_path).free + 2**40
    with pytest.raises(KDError, match=r"MiB free, the run needs about \d+ MiB"):
        checkpoint.need_space(tmp_path, needed)


def test_another_version_of_the_format_is_refused() -> None:
    assert not checkpoint.is_ours({"state_dict": {}})
    with pytest.raises(KDError, match="'recbole_kd/99'"):
        checkpoint.is_ours({"format": "recbole_kd/99", "state_dict": {}})


# -- damage --------------------------------------------------------------------------------------


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.pt"
    checkpoint.save(path, CONTENT)
    return path


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "there is none.pt"
    assert "no such file" in refusal(path)
    assert "no such file" in refusal(tmp_path)
    for number, content in enumerate(
        (b"", b"\n", b"user_id:token\n1\n", bytes(10000), b"PK\x03\x04")
    ):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(content)
        assert f"not a torch checkpoint, or a truncated one ({len(content)} bytes)" in refusal(path)


def test_a_zip_that_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("holiday.txt", "sunny")
    assert "corrupt or truncated" in refusal(path)


def test_a_checkpoint_without_weights(tmp_path: Path) -> None:
    for content in ({"format": checkpoint.FORMAT}, [1, 2], torch.ones(2)):
        torch.save(content, tmp_path / "x.pt")
        assert "no 'state_dict'" in refusal(tmp_path / "x.pt")


def test_truncated_anywhere(good: Path, tmp_path: Path) -> None:
    whole = good.read_bytes()
    for cut in (1, 2, 10, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path = tmp_path / "cut.pt"
        path.write_bytes(whole[:cut])
        assert "truncated" in refusal(path)


def content_or_refusal(path: Path) -> dict[str, Any] | None:
    try:
        return checkpoint.load(path)
    except KDError as error:
        right = str(path) in str(error) and "\n" not in str(error)
    assert right, "a refusal is one line that names the file"
    return None


def test_flipped_bytes_are_noticed(good: Path, tmp_path: Path) -> None:
    """No damage gives other content, and none in the weights or the structure goes unnoticed."""
    whole, loaded = good.read_bytes(), checkpoint.load(good)
    tensor = CONTENT["state_dict"]["a"].numpy().tobytes()
    start = whole.find(tensor)
    pickled = whole.find(b"state_dict")
    assert 0 < pickled < start
    vital = {start, start + 1, start + 6001, start + len(tensor) - 1, pickled - 3, pickled + 2}
    refused = 0
    for position in sorted(
        {*range(0, len(whole), 301), *range(len(whole) - 60, len(whole)), *vital}
    ):
        damaged = bytearray(whole)
        damaged[position] ^= 0x41
        path = tmp_path / "damaged.pt"
        path.write_bytes(damaged)
        content = content_or_refusal(path)
        refused += content is None
        assert content is None or (position not in vital and same(content, loaded)), position
    assert refused > len(vital) + 20


def test_a_flipped_byte_of_recboles_own_file(tmp_path: Path) -> None:
    path = tiny.run_recbole("BPR", tmp_path)
    whole = bytearray(path.read_bytes())
    weights = checkpoint.load(path)["state_dict"]["item_embedding.weight"]
    whole[whole.find(weights.numpy().tobytes()) + 100] ^= 1
    path.write_bytes(whole)
    assert "corrupt or truncated" in refusal(path)


# -- hostile files -------------------------------------------------------------------------------


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def archive(path: Path, pickled: bytes) -> Path:
    """A torch checkpoint around a pickle made by hand."""
    with zipfile.ZipFile(path, "w") as file:
        for name, data in (("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n")):
            file.writestr(f"archive/{name}", data)
    return path


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()


def by_hand(value: bytes, protocol: int = 4) -> bytes:
    """A pickle of ``{"state_dict": {}, "x": value}``."""
    head = pickle.PROTO + bytes([protocol]) + pickle.EMPTY_DICT + text("state_dict")
    return head + b"}s" + text("x") + value + b"s" + pickle.STOP


def call(module: str, name: str, arguments: bytes) -> bytes:
    """Opcodes of ``module.name(*arguments)``; a dotted name is followed from object to object."""
    return text(module) + text(name) + pickle.STACK_GLOBAL + arguments + pickle.REDUCE


def touch(path: Path) -> str:
    return f"touch {path}"


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["top", "config", "state_dict", "tensor"])
def test_a_call_of_os_system_is_not_run(place: str, protocol: int, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    evil: Any = Call(os.system, touch(sentinel))
    content = {
        "top": {"state_dict": {}, "x": evil},
        "config": {"state_dict": {}, "config": {"a": [{"b": (evil,)}]}},
        "state_dict": {"state_dict": {"w": torch.ones(2), "v": evil}},
        "tensor": evil,
    }[place]
    path = tmp_path / "evil.pth"
    torch.save(content, path, pickle_protocol=protocol)
    message = refusal(path)
    assert f"'{os.system.__module__}.system'" in message
    assert "none of its code was run" in message
    assert not sentinel.exists()
    torch.load(path, weights_only=False)
    assert sentinel.exists(), "the file is as hostile as this test believes"


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (builtins.eval, ("open({!r}, 'w').close()",), "'builtins.eval'"),
        (builtins.exec, ("open({!r}, 'w').close()",), "'builtins.exec'"),
        (builtins.open, ("{}", "w"), "open'"),
        (os.mkdir, ("{}",), ".mkdir'"),
        (shutil.copyfile, ("/dev/null", "{}"), "'shutil.copyfile'"),
        (torch.save, ({}, "{}"), "'torch.serialization.save'"),
        (np.save, ("{}.npy", 1), "numpy.save'"),
    ],
)
def test_other_calls_are_not_run(
    function: Any, arguments: tuple[Any, ...], named: str, tmp_path: Path
) -> None:
    sentinel = tmp_path / "sentinel"
    filled = [a.format(str(sentinel)) if isinstance(a, str) else a for a in arguments]
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {}, "x": Call(function, *filled)}, path)
    message = refusal(path)
    assert named in message
    assert not list(tmp_path.glob("sentinel*"))
    torch.load(path, weights_only=False)
    assert list(tmp_path.glob("sentinel*")), "the file is as hostile as this test believes"


def test_a_raw_pickle_is_not_run(tmp_path: Path) -> None:
    sentinel, path = tmp_path / "sentinel", tmp_path / "evil.pth"
    raw = pickle.dumps({"state_dict": {}, "x": Call(os.system, touch(sentinel))})
    path.write_bytes(raw)
    assert "not a torch checkpoint" in refusal(path)
    with path.open("ab") as file, zipfile.ZipFile(file, "w") as zipped:  # now it also is a zip
        zipped.writestr("archive/data.pkl", raw)
    assert zipfile.is_zipfile(path)
    refusal(path)
    assert not sentinel.exists()
    pickle.loads(raw)
    assert sentinel.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("recbole.model.abstract_recommender", "torch.os.system"),
        ("recbole.model.layers", "copy.copyreg.__builtins__"),
        ("recbole.model.general_recommender.bpr", "torch.os.system"),
    ],
)
def test_names_below_recbole_model_are_never_followed(
    module: str, name: str, tmp_path: Path
) -> None:
    sentinel = tmp_path / "sentinel"
    pickled = by_hand(call(module, name, text(touch(sentinel)) + pickle.TUPLE1))
    loaded = checkpoint.load(archive(tmp_path / "x.pth", pickled))
    assert type(loaded["x"]) is checkpoint.Inert
    assert not sentinel.exists()
    if name.endswith("system"):
        pickle.loads(pickled)
        assert sentinel.exists(), "the file is as hostile as this test believes"


def test_modules_below_recbole_model_are_never_imported(tmp_path: Path) -> None:
    import sys

    module = "recbole.model.exlib_recommender.xgboost"
    assert module not in sys.modules
    pickled = by_hand(call(module, "XGBoost", pickle.EMPTY_TUPLE))
    assert type(checkpoint.load(archive(tmp_path / "x.pth", pickled))["x"]) is checkpoint.Inert
    assert module not in sys.modules


ENUM = text("recbole.utils.enum_type") + text("ModelType") + pickle.STACK_GLOBAL
INERT = text("recbole.model.x") + text("Y") + pickle.STACK_GLOBAL


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (ENUM + text("mro") + pickle.TUPLE2, "getattr(<enum 'ModelType'>, 'mro')"),
        (ENUM + text("__class__") + pickle.TUPLE2, "__class__"),
        (INERT + text("__init__") + pickle.TUPLE2, "__init__"),
        (text("text") + text("format") + pickle.TUPLE2, "format"),
        (pickle.EMPTY_DICT + text("GENERAL") + pickle.TUPLE2, "GENERAL"),
        (ENUM + pickle.EMPTY_LIST + pickle.TUPLE2, "corrupt"),
        (pickle.EMPTY_TUPLE, "corrupt"),
    ],
    ids=["mro", "class", "stand-in", "text", "dict", "no name", "nothing"],
)
@pytest.mark.parametrize("module", ["builtins", "__builtin__"])
def test_getattr_gives_members_of_recboles_enums_only(
    module: str, arguments: bytes, reason: str, tmp_path: Path
) -> None:
    pickled = by_hand(call(module, "getattr", arguments))
    assert reason in refusal(archive(tmp_path / "x.pth", pickled))
    member = by_hand(call(module, "getattr", ENUM + text("GENERAL") + pickle.TUPLE2))
    assert checkpoint.load(archive(tmp_path / "y.pth", member))["x"] is ModelType.GENERAL


def test_a_name_that_is_computed_is_refused(tmp_path: Path) -> None:
    parts = call("_codecs", "encode", text("os") + text("ascii") + pickle.TUPLE2)
    pickled = by_hand(parts + text("system") + pickle.STACK_GLOBAL)
    assert "computed" in refusal(archive(tmp_path / "x.pth", pickled))
    injected = by_hand(text("torch\nSize\nc") + text("os\nsystem") + pickle.STACK_GLOBAL)
    assert "computed" in refusal(archive(tmp_path / "x.pth", injected))


def test_a_stand_in_cannot_be_changed_by_a_file(tmp_path: Path) -> None:
    """``BUILD`` on a class would set attributes of the class for everyone."""
    state = pickle.NONE + pickle.EMPTY_DICT + text("owned") + text("yes") + b"s" + pickle.TUPLE2
    getattr_ = text("builtins") + text("getattr") + pickle.STACK_GLOBAL
    for target in (ENUM, INERT, getattr_):
        pickled = by_hand(target + state + pickle.BUILD)
        refusal(archive(tmp_path / "x.pth", pickled))
    assert not hasattr(ModelType, "owned")
    assert not hasattr(checkpoint.Inert, "owned")


# -- numpy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "value",
    [np.float64(0.1), np.float32(0.1), np.int64(-7), np.int32(9), np.bool_(True), np.float16(2)],
)
def test_numbers_of_numpy_come_back_as_plain_numbers(
    value: Any, protocol: int, tmp_path: Path
) -> None:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {}, "value": value}, path, pickle_protocol=protocol)
    loaded = checkpoint.load(path)["value"]
    assert type(loaded) is type(value.item())
    assert loaded == value.item()


def test_a_number_in_the_other_byte_order(tmp_path: Path) -> None:
    array = np.array([1.5], dtype=">f8")
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {}, "value": Call(scalar_of(np), array.dtype, array.tobytes())}, path)
    assert checkpoint.load(path)["value"] == 1.5


def scalar_of(numpy: Any) -> Any:
    return numpy.float64(0).__reduce__()[0]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (np.dtype("O"), b"12345678"),
        (np.dtype([("a", "O"), ("b", "f8")]), b"1234567812345678"),
        (np.dtype("f8"), b"123"),
        (np.dtype("f8"), "12345678"),
        (np.dtype("V8"), b"12345678"),
        ("f8", b"12345678"),
    ],
    ids=["object", "record", "short", "text", "void", "no dtype"],
)
def test_numpy_objects_are_never_made_from_bytes(kind: Any, data: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {}, "value": Call(scalar_of(np), kind, data)}, path)
    refusal(path)


def test_arrays_of_numpy_are_named_and_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "value": np.ones(3)}, tmp_path / "x.pth")
    assert "_reconstruct" in refusal(tmp_path / "x.pth") or "ndarray" in refusal(tmp_path / "x.pth")


# -- RecBole's own files -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recbole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recbole")
    names = ("BPR", "LightGCN", "SASRec", "NeuMF", "MultiVAE")
    return {name: tiny.run_recbole(name, folder / name) for name in names}


@pytest.mark.parametrize("name", ["BPR", "LightGCN", "SASRec", "NeuMF", "MultiVAE"])
def test_recboles_own_checkpoint_opens(name: str, recbole_files: dict[str, Path]) -> None:
    path = recbole_files[name]
    with zipfile.ZipFile(path) as file:
        (record,) = [n for n in file.namelist() if n.endswith("data.pkl")]
        assert file.read(record)[:2] == b"\x80\x04"
    before = set(torch.serialization.get_safe_globals())
    content = checkpoint.load(path)
    loaded = load_model(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert not checkpoint.is_ours(content)
    raw = torch.load(path, weights_only=False)
    assert isinstance(content["best_valid_score"], float)
    assert content["best_valid_score"] == pytest.approx(float(raw["best_valid_score"]), abs=0)
    assert content["config"].final_config_dict == raw["config"].final_config_dict
    if name != "MultiVAE":
        assert isinstance(content["config"].final_config_dict["MODEL_INPUT_TYPE"], InputType)
    for part in ("state_dict", "optimizer", "other_parameter"):
        assert same(dict(content[part]), dict(raw[part])), part
    assert same(dict(loaded.model.state_dict()), dict(raw["state_dict"]))
    assert not loaded.model.training
    assert ("restore_user_e" in content["other_parameter"]) == (name == "LightGCN")


@pytest.mark.parametrize("name", ["BPR", "LightGCN", "SASRec"])
def test_recboles_own_checkpoint_teaches(
    name: str, recbole_files: dict[str, Path], tmp_path: Path
) -> None:
    result = tiny.distil(tmp_path, recbole_files[name], "SASRec" if name == "SASRec" else "BPR")
    assert result["teacher_test_result"]["recall@20"] > 0
    assert result["checkpoints"]["teacher"] == str(recbole_files[name])


def test_the_split_of_recboles_checkpoint_is_rebuilt(recbole_files: dict[str, Path]) -> None:
    for name in ("BPR", "SASRec"):
        loaded, part = load_model(recbole_files[name]), tiny.split_for(name)
        assert loaded.tokens == part.tokens
        assert interactions(loaded.history) == interactions(part.history)


def interactions(history: UserHistory) -> set[tuple[int, int]]:
    return set(zip(*(t.tolist() for t in history.pairs()), strict=True))


def test_recboles_checkpoint_whose_data_are_gone(
    recbole_files: dict[str, Path], tmp_path: Path
) -> None:
    content = torch.load(recbole_files["BPR"], weights_only=False)
    for folder, reason in ((tmp_path / "gone", "gone is gone"), (tmp_path, "cannot be read")):
        content["config"].final_config_dict["data_path"] = str(folder)
        path = tmp_path / "moved.pth"
        torch.save(content, path, pickle_protocol=4)
        with pytest.raises(KDError, match=reason) as refused:
            load_model(path)
        assert "\n" not in str(refused.value)


def test_a_model_that_evaluates_its_options_is_refused(
    recbole_files: dict[str, Path], tmp_path: Path
) -> None:
    """RecBole's KD_DAGFM calls ``eval`` on the option 'teacher'."""
    sentinel, path = tmp_path / "sentinel", tmp_path / "evil.pth"
    content = torch.load(recbole_files["BPR"], weights_only=False)
    content["config"].final_config_dict.update(
        model="KD_DAGFM", teacher=f"open({str(sentinel)!r}, 'w').close()"
    )
    torch.save(content, path, pickle_protocol=4)
    with pytest.raises(KDError, match="KD_DAGFM evaluates text"):
        load_model(path)
    assert not sentinel.exists()


def test_a_model_that_unpickles_another_file_is_refused(
    recbole_files: dict[str, Path], tmp_path: Path
) -> None:
    """RecBole's LDiffRec reads ``item_emb.npy`` beside the data with ``allow_pickle``."""
    content = torch.load(recbole_files["BPR"], weights_only=False)
    content["config"].final_config_dict.update(model="LDiffRec", n_cate=2)
    torch.save(content, tmp_path / "evil.pth", pickle_protocol=4)
    with pytest.raises(KDError, match="LDiffRec with n_cate above 1 unpickles another file"):
        load_model(tmp_path / "evil.pth")
