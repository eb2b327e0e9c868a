"""Names to classes, from this package, from RecBole and from outside."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recbole.model.general_recommender import BPR, MultiVAE, NeuMF
from recbole.model.sequential_recommender import GRU4Rec

from recbole_kd import registry
from recbole_kd.backbones.hstu import HSTU
from recbole_kd.backbones.lightgcn import LightGCN
from recbole_kd.backbones.sasrec import SASRec
from recbole_kd.errors import KDError
from recbole_kd.methods.ce import CE
from recbole_kd.methods.rcekd import RCEKD
from recbole_kd.registry import backbone_class, backbone_names, method_class, method_names

OUTSIDE = """
from recbole.model.general_recommender import BPR
from recbole_kd.methods.ce import CE

class MyBPR(BPR):
    pass

class MyCE(CE):
    defaults = {"kd_weight": 1}

class Other:
    pass

a_function = len
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package on the Python path, forgotten afterwards."""
    package = tmp_path / "outside_pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(OUTSIDE)
    (package / "needs_missing.py").write_text("import a_library_nobody_has\n")
    (package / "needs_prefix.py").write_text("import outside\n")
    (package / "broken.py").write_text("raise ImportError('half of it is missing')\n")
    (package / "buggy.py").write_text("nothing_of_this_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    for name in [n for n in sys.modules if n.startswith("outside_pkg")]:
        del sys.modules[name]


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(KDError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- short names -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cls"),
    [("BPR", BPR), ("NeuMF", NeuMF), ("MultiVAE", MultiVAE), ("GRU4Rec", GRU4Rec)],
)
def test_models_of_recbole(name: str, cls: type) -> None:
    assert backbone_class(name) is cls
    assert name in backbone_names()


def test_models_of_ours_go_first() -> None:
    for name, cls in (("LightGCN", LightGCN), ("SASRec", SASRec), ("HSTU", HSTU)):
        assert backbone_class(name) is cls
        assert backbone_names().count(name) == 1


def test_methods() -> None:
    assert method_class("RCEKD") is RCEKD
    assert method_class("CE") is CE
    assert method_class("Scratch") is None
    assert {"CE", "RCEKD", "Scratch"} <= set(method_names())
    files = Path(registry.__file__).parent.joinpath("methods").glob("[!_]*.py")
    assert len(method_names()) == len([f for f in files if f.stem != "base"]) + 1
    for name in set(method_names()) - {"Scratch"}:
        cls = method_class(name)
        assert cls is not None
        assert cls.__name__ == name
        assert cls.__module__ == f"recbole_kd.methods.{name.lower()}"


def test_helpers_are_no_methods() -> None:
    assert not {"Distiller", "Tables", "Rows"} & set(method_names())


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("RCEDK", ["--model=RCEDK", "'RCEKD'", "Known: ", "Scratch"]),
        ("rcekd", ["'RCEKD'"]),
        ("BPR", ["'BPR' is a model", "--student"]),
        ("recbole_kd", ["--model=recbole_kd"]),
        ("", ["--model="]),
    ],
)
def test_unknown_methods(name: str, parts: list[str]) -> None:
    message = refusal(method_class, name)
    assert [p for p in parts if p not in message] == []


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("BRP", ["--teacher=BRP", "'BPR'"]),
        ("bpr", ["'BPR'", "case-sensitive"]),
        ("LightGNC", ["'LightGCN'"]),
        ("CE", ["'CE' is a distillation method", "--model"]),
        ("../BPR", ["no such model"]),
    ],
)
def test_unknown_models(name: str, parts: list[str]) -> None:
    message = refusal(backbone_class, name, "--teacher")
    assert [p for p in parts if p not in message] == []


# -- package.module:Class ----------------------------------------------------------------------


def test_classes_from_outside(outside: Path) -> None:
    assert backbone_class("outside_pkg.parts:MyBPR").__name__ == "MyBPR"
    found = method_class("outside_pkg.parts:MyCE")
    assert found is not None
    assert found.__mro__[1] is CE


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("outside_pkg.nowhere:MyBPR", ["no module 'outside_pkg.nowhere'"]),
        ("outside_nowhere.parts:MyBPR", ["no module 'outside_nowhere.parts'"]),
        ("outside_pkg.parts:Missing", ["no class 'Missing'"]),
        ("outside_pkg.parts:a_function", ["no class 'a_function'"]),
        ("outside_pkg.parts:Other", ["no RecBole model", "calculate_loss"]),
        ("outside_pkg.parts:", ["package.module:Class"]),
        (":MyBPR", ["package.module:Class"]),
        (".parts:MyBPR", ["package.module:Class"]),
        ("outside_pkg/parts.py:MyBPR", ["package.module:Class"]),
    ],
)
def test_refused_from_outside(outside: Path, name: str, parts: list[str]) -> None:
    message = refusal(backbone_class, name, "--student")
    assert [p for p in [f"--student={name}", *parts] if p not in message] == []


@pytest.mark.parametrize("name", ["outside_pkg.parts:MyBPR", "outside_pkg.parts:Other"])
def test_a_method_must_be_one(outside: Path, name: str) -> None:
    assert "no distillation method, it has no kd_loss" in refusal(method_class, name)


@pytest.mark.parametrize("call", [method_class, backbone_class])
@pytest.mark.parametrize(
    ("module", "error", "text"),
    [
        ("needs_missing", ModuleNotFoundError, "a_library_nobody_has"),
        ("needs_prefix", ModuleNotFoundError, "'outside'"),  # a prefix of the module's own name
        ("broken", ImportError, "half of it is missing"),
        ("buggy", NameError, "nothing_of_this_name"),
    ],
)
def test_faults_inside_a_module_are_not_hidden(
    outside: Path, call: Any, module: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        call(f"outside_pkg.{module}:MyBPR")
    assert not isinstance(caught.value, KDError)


# -- entry points ------------------------------------------------------------------------------


@pytest.fixture
def entry_points(outside: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What an installed package would declare."""
    declared = {
        "recbole_kd.methods": {"MyCE": "parts:MyCE", "NoCE": "parts:Other", "Bad": "broken:X"},
        "recbole_kd.models": {"MyBPR": "parts:MyBPR", "NoBPR": "parts:Other"},
    }

    def entries(group: str) -> list[importlib.metadata.EntryPoint]:
        return [
            importlib.metadata.EntryPoint(name, f"outside_pkg.{value}", group)
            for name, value in declared[group].items()
        ]

    monkeypatch.setattr(importlib.metadata, "entry_points", entries)
    registry._entry_points_on.cache_clear()
    yield
    registry._entry_points_on.cache_clear()


def test_entry_points(entry_points: None) -> None:
    assert backbone_class("MyBPR").__name__ == "MyBPR"
    method = method_class("MyCE")
    assert method is not None
    assert method.__name__ == "MyCE"
    assert "MyBPR" in backbone_names()
    assert "MyCE" in method_names()
    assert "'MyCE'" in refusal(method_class, "MyEC")
    assert method_class("CE") is CE


def test_entry_points_that_name_something_else(entry_points: None) -> None:
    assert "no distillation method" in refusal(method_class, "NoCE")
    assert "no RecBole model" in refusal(backbone_class, "NoBPR")
    with pytest.raises(ImportError, match="half of it is missing"):
        method_class("Bad")
