"""The documentation against the code: examples run, links lead somewhere, options exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from kd_helpers import small_options

from recbole_kd import load_model
from recbole_kd.cli import main
from recbole_kd.defaults import method_defaults
from recbole_kd.keys import check_keys
from recbole_kd.options import SECTIONS, Sources, parse_arguments
from recbole_kd.registry import SCRATCH, method_class, method_names, methods_without
from recbole_kd.tuning.search import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDE = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for named, code in found if named == language]


# -- the guide's package -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the guide in a folder, beside what an installer writes for its entry points."""
    folder = tmp_path_factory.mktemp("site")
    files = re.findall(r"^`(\S+\.py)`:\n\n```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert len(files) == len(blocks(GUIDE, "python")) == 2
    for name, code in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code, encoding="utf-8")
    (folder / "mykd" / "__init__.py").touch()
    (toml,) = blocks(GUIDE, "toml")
    group, *entries = toml.splitlines()
    info = folder / "mykd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mykd\nVersion: 1.0\n")
    name = re.fullmatch(r'\[project\.entry-points\."(.*)"\]', group)
    assert name is not None
    plain = [entry.replace('"', "") for entry in entries]
    (info / "entry_points.txt").write_text("\n".join([f"[{name[1]}]", *plain]) + "\n")
    return folder


@pytest.fixture
def installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(package))
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] == "mykd"]:
        del sys.modules[name]


def command(model: str, folder: Path, *more: str) -> list[str]:
    return [
        "train",
        f"--model={model}",
        "--student=BPR",
        "--teacher=BPR",
        f"--dataset={tiny.dataset()}",
        f"--data_path={tiny.data_path()}",
        f"--checkpoint_dir={folder}",
        *("--show_progress=False", "--state=WARNING", "--scratch=False"),
        *("--learning_rate=0.02", "--train_batch_size=512", "--teacher.epochs=4"),
        *("--student.embedding_size=4", "--teacher.embedding_size=8"),
        *more,
    ]


@pytest.mark.parametrize(
    ("path", "more"),
    [("mykd.pair:PairKD", ["--pairkd_K=15"]), ("mykd.cosine:CosineKD", []), ("PairKD", [])],
)
def test_the_methods_of_the_guide_run(
    path: str,
    more: list[str],
    installed: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(path, tmp_path, "--student.epochs=2", "--kd_weight=100", *more)) == 0
    name = path.rpartition(":")[2]
    assert f"student, {path}" in capsys.readouterr().out
    (folder,) = (tmp_path / "tiny").glob(f"{name}-BPR-BPR-*")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[1]["kd_loss"] < lines[0]["kd_loss"]
    if name == "PairKD":
        k = 15 if more else 20
        assert lines[0]["pairs_of_one"] == pytest.approx(1 / k, abs=0.05)
    names = set(load_model(folder).model.state_dict())
    assert names == {"user_embedding.weight", "item_embedding.weight"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--pairkd_K=1", "--pairkd_K=1: allowed are whole numbers from 2"),
        ("--pairkd_K=1000", "--pairkd_K=1000: the data set has 120 items"),
        ("--pairkd_n=none", "--pairkd_n=none: allowed are whole numbers above 0"),
        ("--pairkd_M=3", "'pairkd_M' is read by no part of this run"),
    ],
)
def test_the_options_of_the_guide_are_checked(
    more: str, said: str, installed: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("mykd.pair:PairKD", tmp_path, more)) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.rglob("*.pt")) == []


def test_short_names_of_the_guide_are_listed(installed: None) -> None:
    assert {"PairKD", "CosineKD"} <= set(method_names())
    assert "PairKD" in methods_without("vectors")
    assert "CosineKD" not in methods_without("vectors")
    assert small_options(method_class("PairKD")) == {"pairkd_K": 10}


def test_the_methods_of_the_guide_do_what_every_method_must(package: Path) -> None:
    """The guide's own last command, in a process that finds its package installed."""
    (line,) = [b for b in blocks(GUIDE, "") if "pytest" in b]
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "pytest"]
    environment = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, *words[1:-1], "PairKD or CosineKD", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 60


# -- all pages ---------------------------------------------------------------------------------


def heading_anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in heading_anchors(file.read_text(encoding="utf-8")), target


def training_commands() -> Iterator[tuple[str, str]]:
    """Page and command of every complete training command."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        said = r"^(?:recbole-kd (?:train|tune)|python run_recbole_kd\.py) .*$"
        for line in re.findall(said, text, re.M):
            yield page.name, line


@pytest.mark.parametrize(("page", "line"), training_commands())
def test_options_of_the_commands_exist(page: str, line: str, installed: None) -> None:
    arguments = [word for word in shlex.split(line, comments=True) if word.startswith("--")]
    options = parse_arguments(arguments)
    files = str(options.pop("config_files", "") or "").split()
    if line.startswith("recbole-kd tune "):
        options = {k: v for k, v in options.items() if k not in SETTINGS}
    if all(Path(file).is_file() for file in files):
        check_keys(Sources.collect(files=files, command_line=options))


@pytest.mark.parametrize("name", [n for n in method_names() if n != SCRATCH])
def test_every_method_and_option_is_described(name: str) -> None:
    pages = {p.name: p.read_text(encoding="utf-8") for p in PAGES}
    assert f"`{name}`" in pages["README.md"], "the table of methods"
    text = pages["methods.md"] + pages["rcekd.md"]
    assert f"## {name}\n" in text
    for key in set(method_defaults(name)) - set(SECTIONS):
        assert f"`{key}`" in text, key
