"""Rules of the source tree, read off the syntax trees."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import recbole_kd
from recbole_kd import convert
from recbole_kd.registry import method_names

ROOT = Path(recbole_kd.__file__).resolve().parent
TREES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.rglob("*.py"))
}
METHODS = sorted(
    name
    for name in TREES
    if name.startswith("methods/") and Path(name).stem not in {"__init__", "base"}
)
FORMATS = [f"convert/{name}.py" for name in convert.FORMATS]
READS_RECBOLE = {
    "backbones/hstu.py",
    "backbones/lightgcn.py",
    "backbones/simplex.py",
    "benchmark/reference.py",
    "checkpoint.py",
    "compat.py",
    "config.py",
    "data.py",
    "defaults.py",
    "deploy.py",
    "evaluation.py",
    "keys.py",
    "loaders.py",
    "methods/base.py",
    "registry.py",
    "scoring.py",
    "sequences.py",
    "splitting.py",
    "trainer.py",
    "training.py",
}
"""The modules that may import RecBole; each of them is a place an upstream change can break."""


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and local name of every import, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, alias.asname or alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", alias.asname or alias.name


def packages(name: str) -> set[str]:
    """Top-level packages outside the standard library that a module imports."""
    found = {module.partition(".")[0] for module, _ in imports(TREES[name])}
    return found - set(sys.stdlib_module_names) - {"__future__"}


def member(name: str) -> str:
    """The name under which a file of this package is imported."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def ours(name: str) -> set[str]:
    """Modules of this package that a module imports."""
    members = {member(n) for n in TREES}
    found = set()
    for module, _ in imports(TREES[name]):
        parts = module.split(".")
        if parts[0] == "recbole_kd":
            inner = [".".join(parts[1:n]) for n in range(len(parts), 1, -1)]
            found.add(next((m for m in inner if m in members), "__init__"))
    return found


def test_the_tree_was_found() -> None:
    assert {"config.py", "losses.py", "methods/rcekd.py", "backbones/lightgcn.py"} <= set(TREES)
    assert len(METHODS) >= 2


PURE = {
    "blocks.py": set(),
    "candidates.py": set(),
    "closure.py": {"candidates"},
    "curriculum.py": {"candidates"},
    "experts.py": set(),
    "losses.py": {"gather"},
    "noise.py": set(),
    "popularity.py": set(),
    "rows.py": {"noise"},
}
"""Modules of tensor functions, and what of ours they may import."""


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_torch_only(name: str) -> None:
    assert packages(name) <= {"torch", "recbole_kd"}
    assert ours(name) <= PURE[name]


def test_sparse_matrices_need_scipy_and_hardly_anything_of_ours() -> None:
    assert packages("gather.py") == {"torch", "scipy"}
    assert ours("gather.py") == set()
    assert packages("graph.py") <= {"numpy", "scipy", "torch", "recbole_kd"}
    assert ours("graph.py") == {"history"}


def test_statistics_are_of_arrays_alone() -> None:
    assert packages("statistics.py") <= {"numpy", "scipy", "recbole_kd"}
    assert ours("statistics.py") == {"errors", "optional"}


def test_the_tables_of_a_report_are_data() -> None:
    assert packages("reporting/tables.py") == {"recbole_kd"}
    assert packages("reporting/page.py") == set()


def test_optional_libraries_are_asked_for_where_they_are_needed() -> None:
    """An import would make all of the package need them."""
    optional = {"jinja2", "matplotlib", "pyarrow", "statsmodels"}
    assert {name for name in TREES if packages(name) & optional} == set()


def test_the_search_has_rooms() -> None:
    assert packages("tuning/space.py") <= {"recbole_kd"}
    assert ours("tuning/space.py") == {"errors", "options"}
    assert ours("tuning/study.py") == {"checkpoint", "errors", "optional", "tuning.space"}
    users = {name for name in TREES if {m for m in ours(name) if m.startswith("tuning")}}
    assert {name for name in users if not name.startswith("tuning/")} == {"cli.py"}


EXTENDS = {"methods/dcd.py": {"methods.rrd"}}
"""Methods that are, in their papers, another one and a term beside it: they subclass that one."""


@pytest.mark.parametrize("name", METHODS)
def test_methods_know_neither_recbole_nor_each_other(name: str) -> None:
    assert packages(name) <= {"torch", "recbole_kd"}
    known = {m for m in ours(name) if m.startswith("methods")}
    assert known == {"methods.base"} | EXTENDS.get(name, set())


@pytest.mark.parametrize("name", METHODS)
def test_methods_know_tools_and_no_machinery(name: str) -> None:
    """What runs, reads and writes a training is none of a method's business."""
    tools = {member(n) for n in PURE} | {"errors", "graph", "history", "methods.base", "teacher"}
    assert ours(name) <= tools | EXTENDS.get(name, set())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_short_file(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").count("\n")
    assert lines <= 150


def test_converters_need_nothing_else_of_this_package() -> None:
    names = [name for name in TREES if name.startswith("convert/")]
    found = {m for name in names for m in ours(name) if not m.startswith("convert.")}
    assert found == {"errors"}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_know_neither_each_other_nor_the_writer(name: str) -> None:
    shared = {"convert.interactions", "convert.options", "convert.readers", "convert.result"}
    assert ours(name) <= shared | {"errors"}


def test_what_lies_below_everything_imports_nothing_above() -> None:
    assert packages("errors.py") == set()
    assert ours("compat.py") == {"errors"}
    assert ours("options.py") == {"errors"}
    assert ours("registry.py") == {"compat", "errors"}
    assert ours("resources.py") == set()
    assert ours("__init__.py") <= {"compat", "deploy", "quick_start"}
    assert {m for m in ours("trainer.py") if m.startswith("methods")} == set()


def test_imports_have_no_cycle() -> None:
    """An import inside a function counts; only the package itself may wait for its first use."""
    rest = {member(name): ours(name) for name in TREES if name != "__init__.py"}
    while free := {name for name, needs in rest.items() if not needs & set(rest)}:
        rest = {name: needs for name, needs in rest.items() if name not in free}
    assert rest == {}


def test_only_listed_modules_import_recbole() -> None:
    assert {name for name in TREES if "recbole" in packages(name)} == READS_RECBOLE


def test_no_test_module_imports_another() -> None:
    for path in Path(__file__).parent.glob("test_*.py"):
        modules = {m.partition(".")[0] for m, _ in imports(ast.parse(path.read_text("utf-8")))}
        assert not [m for m in modules if m.startswith("test_")], path.name


def test_recboles_quick_start_is_imported_nowhere() -> None:
    for name, tree in TREES.items():
        assert not [m for m, _ in imports(tree) if m.startswith("recbole.quick_start")], name


def foreign_assignments(tree: ast.AST) -> list[int]:
    """Lines that set an attribute on something imported from another package."""
    foreign = {n for m, n in imports(tree) if m.partition(".")[0] not in {"recbole_kd"}}
    lines = []
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"setattr", "delattr"}:
            targets = [ast.Attribute(node.args[0], "", ast.Store())]
        for target in targets:
            while isinstance(target, ast.Attribute | ast.Subscript):
                inner = target.value
                if isinstance(inner, ast.Name) and inner.id in foreign:
                    lines.append(node.lineno)
                target = inner
    return lines


def test_only_compat_changes_other_packages() -> None:
    assert {name for name, tree in TREES.items() if foreign_assignments(tree)} == {"compat.py"}


@pytest.mark.parametrize(
    "code",
    [
        "import numpy as np\nnp.float = float",
        "import torch\ntorch.backends.x.y = 1",
        "from scipy.sparse import dok_matrix\nsetattr(dok_matrix, '_update', 1)",
        "import recbole.trainer.trainer as t\nt.TABLE['a'] = 1",
    ],
)
def test_the_check_above_sees(code: str) -> None:
    assert foreign_assignments(ast.parse(code)) == [2]


def called(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


FORBIDDEN = {"eval", "exec", "compile", "print", "pickle.load", "pickle.loads", "os.system"}


def test_nothing_is_evaluated_unpickled_or_printed() -> None:
    found = [
        f"{name}:{line} {call}"
        for name, tree in TREES.items()
        for line, call in called(tree)
        if call in FORBIDDEN or call.endswith((".Unpickler", "yaml.unsafe_load", "yaml.full_load"))
    ]
    assert found == []


def test_every_torch_load_is_restricted() -> None:
    loads = [
        {k.arg: ast.unparse(k.value) for k in node.keywords}
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert loads
    assert {keywords.get("weights_only") for keywords in loads} == {"True"}


def test_every_yaml_load_is_safe() -> None:
    loads = [
        [ast.unparse(k.value) for k in node.keywords if k.arg == "Loader"]
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "yaml.load"
    ]
    assert loads
    assert {tuple(loader) for loader in loads} == {("SafeLoader",)}


def test_the_command_line_is_read_in_one_place() -> None:
    readers = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.argv"
    }
    assert readers == {"cli.py"}


@pytest.mark.parametrize("name", ["trainer.py", "training.py", "quick_start.py", "scoring.py"])
def test_the_machinery_names_no_method(name: str) -> None:
    words = {
        str(getattr(node, field))
        for node in ast.walk(TREES[name])
        for field in ("id", "attr", "value", "name", "arg")
        if isinstance(getattr(node, field, None), str)
    }
    methods = set(method_names()) - {"Scratch"}
    assert [w for w in words if methods & set(re.findall(r"\w+", w))] == []


@pytest.mark.parametrize("name", METHODS)
def test_one_class_and_one_yaml_for_each_method_file(name: str) -> None:
    stem = Path(name).stem
    classes = [n.name for n in TREES[name].body if isinstance(n, ast.ClassDef)]
    named = [c for c in classes if c.lower() == stem.replace("_", "")]
    assert len(named) == 1
    assert (ROOT.parent / "properties" / "method" / f"{named[0]}.yaml").is_file()
    assert named[0] in method_names()


def test_every_method_yaml_has_a_method() -> None:
    shipped = {p.stem for p in (ROOT.parent / "properties" / "method").glob("*.yaml")}
    assert shipped <= set(method_names())


def setup_keywords() -> dict[str, ast.expr]:
    tree = ast.parse((ROOT.parent / "setup.py").read_text(encoding="utf-8"))
    call = next(
        n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "setup"
    )
    return {k.arg: k.value for k in call.keywords if k.arg}


def test_one_version() -> None:
    assert ast.literal_eval(setup_keywords()["version"]) == recbole_kd.__version__
