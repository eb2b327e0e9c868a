"""Options: where they come from, what type they have, which are refused and which are read."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recbole
import torch
import yaml
from kd_helpers import small_options
from recbole.model.general_recommender import BPR
from tiny import config_for

from recbole_kd import defaults, run_recbole_kd
from recbole_kd.config import KDConfig
from recbole_kd.data import load_split
from recbole_kd.defaults import RANGE, method_defaults
from recbole_kd.errors import KDError
from recbole_kd.keys import SCORE_FILE_KEYS, check_keys
from recbole_kd.options import (
    SECTIONS,
    SafeLoader,
    Sources,
    parse_arguments,
    parse_value,
    read_yaml,
)
from recbole_kd.registry import method_class, method_names
from recbole_kd.resources import properties_dir

METHODS = sorted(set(method_names()) - {"Scratch"})
SMALL = {
    "epochs": 1,
    "train_batch_size": 512,
    "show_progress": False,
    "state": "WARNING",
    "student.embedding_size": 4,
    "teacher.embedding_size": 8,
}


def sources(
    command_line: list[str] | None = None,
    options: dict[str, Any] | None = None,
    files: list[Path] | None = None,
    **names: Any,
) -> Sources:
    """What a user said, on ml-100k unless told otherwise; names are those of the caller."""
    return Sources.collect(
        files=files or [],
        options=options,
        command_line=parse_arguments(command_line or []),
        **{"dataset": "ml-100k", **names},
    )


def pair(*command_line: str, role: str = "student", **more: Any) -> KDConfig:
    """The configuration of one role of a BPR-BPR run."""
    given = {"model": "RCEKD", "student": "BPR", "teacher": "BPR", **more}
    return KDConfig(sources(list(command_line), **given), role)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refusal(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(KDError) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- precedence --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ((), 2020),
        (("first",), 1),
        (("first", "second"), 2),
        (("first", "second", "dictionary"), 3),
        (("first", "second", "dictionary", "command line"), 4),
        (("first", "command line"), 4),
        (("first", "dictionary"), 3),
    ],
)
def test_later_sources_win(tmp_path: Path, said: tuple[str, ...], value: int) -> None:
    first = write(tmp_path / "a.yaml", "split_seed: 1\n")
    second = write(tmp_path / "b.yaml", "split_seed: 2\n")
    found = pair(
        *(["--split_seed=4"] if "command line" in said else []),
        options={"split_seed": 3} if "dictionary" in said else None,
        files=[f for f, name in ((first, "first"), (second, "second")) if name in said],
    )
    assert found["split_seed"] == value


def test_files_count_in_the_order_given(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.yaml", f"epochs: {n}\n") for n in (7, 5, 9)]
    assert pair(files=files)["epochs"] == 9
    assert pair(files=files[::-1])["epochs"] == 7


def test_shipped_files_lie_over_recboles() -> None:
    stock = yaml.safe_load(
        (Path(recbole.__file__).parent / "properties" / "overall.yaml").read_text()
    )
    found = pair()
    for key, value in read_yaml(properties_dir() / "overall.yaml").items():
        assert found[key] == value
    assert found["metrics"] != stock["metrics"]
    assert found["learning_rate"] == stock["learning_rate"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_section_goes_before_the_top_level_of_its_source(tmp_path: Path, order: int) -> None:
    lines = ["student: {learning_rate: 0.2, epochs: 3}\n", "learning_rate: 0.1\nepochs: 2\n"]
    lines += ["scratch_student: {epochs: 4}\n"]
    file = write(tmp_path / "a.yaml", "".join(lines[::order]))
    values = {r: pair(role=r, files=[file]) for r in ("student", "teacher", "scratch")}
    assert {r: c["learning_rate"] for r, c in values.items()} == {
        "student": 0.2,
        "teacher": 0.1,
        "scratch": 0.2,
    }
    assert {r: c["epochs"] for r, c in values.items()} == {
        "student": 3,
        "teacher": 2,
        "scratch": 4,
    }


def test_a_later_source_goes_before_sections_of_earlier_ones(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "student: {epochs: 3}\nteacher: {epochs: 4}\n")
    assert pair("--epochs=9", files=[file])["epochs"] == 9
    assert pair(files=[file], options={"epochs": 9}, role="teacher")["epochs"] == 9
    assert pair("--epochs=9", options={"student.epochs": 5})["epochs"] == 9
    assert pair("--student.epochs=9", options={"epochs": 5})["epochs"] == 9
    assert pair("--student.epochs=9", options={"epochs": 5}, role="teacher")["epochs"] == 5


def test_sizes_of_the_roles_are_shipped() -> None:
    shipped = read_yaml(properties_dir() / "model" / "BPR.yaml")
    assert pair()["embedding_size"] == shipped["student"]["embedding_size"]
    assert pair(role="teacher")["embedding_size"] == shipped["teacher"]["embedding_size"]
    assert pair(role="scratch")["embedding_size"] == shipped["student"]["embedding_size"]


def test_the_callers_dictionary_is_left_alone() -> None:
    options = {"train_neg_sample_args": {"distribution": "uniform"}, "student": {"epochs": "3"}}
    assert pair(options=options)["train_neg_sample_args"]["sample_num"] == 1
    assert options == {
        "train_neg_sample_args": {"distribution": "uniform"},
        "student": {"epochs": "3"},
    }


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", ["BPR", {"model": "BPR", "embedding_size": 17}])
@pytest.mark.parametrize("place", ["file", "dictionary", "command line"])
def test_names_from_anywhere(tmp_path: Path, student: Any, place: str) -> None:
    said = {"model": "CE", "dataset": "toy", "student": student, "teacher": {"model": "LightGCN"}}
    if place == "file":
        file = write(tmp_path / "a.yaml", yaml.safe_dump(said))
        found = Sources.collect(files=[file])
    elif place == "dictionary":
        found = Sources.collect(options=said)
    else:
        found = Sources.collect(
            command_line=parse_arguments([f"--{k}={v}" for k, v in said.items()])
        )
    assert (found.method, found.dataset, found.student, found.teacher) == (
        "CE",
        "toy",
        "BPR",
        "LightGCN",
    )
    size = KDConfig(found)["embedding_size"]
    assert size == (17 if isinstance(student, dict) else pair()["embedding_size"])
    assert KDConfig(found, "teacher")["model"] == "LightGCN"


def test_dotted_options_fill_sections() -> None:
    parsed = parse_arguments(["--student=BPR", "--student.embedding_size=20", "--epochs=2"])
    assert parsed == {"epochs": 2, "student": {"model": "BPR", "embedding_size": 20}}
    assert pair("--student.embedding_size=21")["embedding_size"] == 21
    assert pair("--student.embedding_size=21", role="teacher")["embedding_size"] != 21


def test_later_names_win(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "student: {model: LightGCN, n_layers: 1}\ndataset: one\n")
    found = sources(["--student=BPR"], options={"dataset": "two"}, files=[file], dataset=None)
    assert (found.student, found.dataset) == ("BPR", "two")
    assert sources(["--student=BPR"], student="NeuMF").student == "NeuMF"


@pytest.mark.parametrize("name", ["2024", "007", "1e5", "on", "2020-01-01"])
def test_names_and_paths_stay_text(name: str) -> None:
    arguments = [f"--dataset={name}", "--student=BPR", f"--checkpoint_dir={name}"]
    for found in (
        Sources.collect(command_line=parse_arguments(arguments)),
        Sources.collect(options={"dataset": name, "student": "BPR", "checkpoint_dir": name}),
    ):
        assert found.dataset == name
        assert found.get("checkpoint_dir") == name


@pytest.mark.parametrize(
    ("given", "missing"), [({"student": "BPR"}, "--dataset"), ({"dataset": "toy"}, "--student")]
)
def test_missing_names(given: dict[str, str], missing: str) -> None:
    assert f"{missing} is missing" in refusal(Sources.collect, **given)


def test_a_teacher_role_needs_a_name() -> None:
    nameless = sources(["--teacher.checkpoint=x.pt"], student="BPR")
    assert "--teacher is missing" in refusal(KDConfig, nameless, "teacher")


# -- recipes, protocols ------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped files with recipes for a data set called toy."""
    folder = tmp_path / "properties"
    shutil.copytree(properties_dir(), folder)
    monkeypatch.setattr(defaults, "properties_dir", lambda: folder)
    recipe = folder / "recipe" / "toy"
    (recipe / "BPR-BPR").mkdir(parents=True)
    (recipe / "BPR").mkdir()
    write(
        recipe / "BPR-BPR" / "CE.yaml",
        "kd_weight: 31\nstudent: {epochs: 32}\nteacher: {epochs: 33}\n"
        "scratch_student: {epochs: 34}\n",
    )
    write(recipe / "BPR-BPR" / "CE-released.yaml", "kd_weight: 41\n")
    write(recipe / "BPR" / "Scratch.yaml", "weight_decay: 0.5\n")
    write(folder / "dataset" / "toy.yaml", "epochs: 21\nstopping_step: 22\neval_history: all\n")
    return folder


def toy(*command_line: str, role: str = "student", **more: Any) -> KDConfig:
    return pair(*command_line, role=role, **{"dataset": "toy", "model": "CE", **more})


def test_the_recipe_of_the_setting_is_taken(shipped: Path) -> None:
    assert [toy(role=r)["epochs"] for r in ("student", "teacher", "scratch")] == [32, 33, 34]
    assert toy()["kd_weight"] == 31
    assert [toy(role=r)["weight_decay"] for r in ("student", "scratch")] == [0.0, 0.5]
    assert toy(model="Scratch", teacher=None)["weight_decay"] == 0.5
    assert toy(model="RCEKD")["epochs"] == 21
    assert toy(teacher="LightGCN")["epochs"] == 21
    assert toy("--epochs=5")["epochs"] == 5


@pytest.mark.parametrize("off", ["none", "None"])
def test_recipes_can_be_left_out(shipped: Path, off: str) -> None:
    assert toy(f"--recipe={off}")["epochs"] == 21
    assert toy(f"--recipe={off}", role="scratch")["weight_decay"] == 0.0
    assert toy(f"--recipe={off}")["kd_weight"] == read_yaml(shipped / "method/CE.yaml")["kd_weight"]


def test_variants_of_recipes(shipped: Path) -> None:
    assert toy("--recipe=released")["kd_weight"] == 41
    assert toy("--recipe=released")["epochs"] == 21
    message = refusal(toy, "--recipe=relaesed")
    assert "--recipe=relaesed" in message
    assert "known for this data set and pair: CE, CE-released" in message
    assert "none" in refusal(toy, "--recipe=released", teacher="LightGCN")
    assert "--teacher" in refusal(toy, "--recipe=released", "--teacher.checkpoint=x", teacher=None)
    assert "--recipe=best" in refusal(toy, "--recipe=best", model="Scratch", teacher=None)


def test_protocols(shipped: Path) -> None:
    protocol = read_yaml(shipped / "protocol" / "rcekd.yaml")
    found = toy("--protocol=rcekd", "--recipe=none")
    assert {k: found[k] for k in protocol} == protocol
    assert toy()["eval_history"] == "all"
    assert toy("--protocol=rcekd")["epochs"] == 32
    assert toy("--protocol=rcekd", "--eval_history=all")["eval_history"] == "all"
    message = refusal(toy, "--protocol=rcekdd")
    assert "--protocol=rcekdd" in message
    assert "rcekd" in message.split("known are")[1]


def test_shipped_recipes_and_protocols_hold_known_keys() -> None:
    """Nothing shipped may be refused when a user writes it in a file."""
    for path in sorted(properties_dir().glob("recipe/*/*/*.yaml")):
        models = path.parent.name.split("-")
        method = path.stem.partition("-")[0]
        teacher = models[0] if method != "Scratch" else None
        said = sources(files=[path], model=method, student=models[-1], teacher=teacher, dataset="x")
        check_keys(said)
    for path in sorted(properties_dir().glob("protocol/*.yaml")):
        check_keys(sources(files=[path], model="Scratch", student="BPR"))


# -- families ----------------------------------------------------------------------------------


def split_of(found: KDConfig) -> tuple[Any, Any]:
    return found["eval_args"]["split"], found["eval_args"]["order"]


@pytest.mark.parametrize("role", ["student", "teacher", "scratch"])
@pytest.mark.parametrize(("student", "teacher"), [("BPR", "SASRec"), ("SASRec", "BPR")])
def test_a_sequential_member_decides_the_split_of_all_roles(
    role: str, student: str, teacher: str
) -> None:
    found = pair(student=student, teacher=teacher, role=role)
    assert split_of(found) == ({"LS": "valid_and_test"}, "TO")
    assert found.sequences
    alone = KDConfig(sources(student=found["model"], model="Scratch"))
    assert found["repeatable"] == alone["repeatable"]


def test_general_models_keep_the_random_split() -> None:
    assert split_of(pair())[0] == {"RS": [0.8, 0.1, 0.1]}
    assert not pair().sequences
    alone = KDConfig(sources(model="Scratch", student="BPR", teacher="SASRec"))
    assert split_of(alone)[1] == "RO"


def test_an_own_split_goes_before_the_familys() -> None:
    own = "--eval_args={'split': {'RS': [7, 1, 2]}, 'order': 'TO'}"
    for role in ("student", "teacher"):
        found = pair(own, student="BPR", teacher="SASRec", role=role)
        assert split_of(found) == ({"RS": [7, 1, 2]}, "TO")


def test_a_loss_over_all_items_draws_no_negatives() -> None:
    """RecBole's own defaults for SASRec are refused by RecBole."""
    found = pair(student="SASRec", teacher="BPR")
    assert found["train_neg_sample_args"]["distribution"] == "none"
    assert (
        pair(student="SASRec", teacher="BPR", role="teacher")["train_neg_sample_args"][
            "distribution"
        ]
        == "uniform"
    )
    pairwise = pair("--student.loss_type=BPR", student="SASRec")
    assert pairwise["train_neg_sample_args"]["distribution"] == "uniform"


# -- types -------------------------------------------------------------------------------------

CODE = [
    "__import__('os').system('touch {}')",
    "!!python/object/apply:os.system ['touch {}']",
    "open('{}', 'w')",
    "[c for c in ().__class__.__base__.__subclasses__()]",
    "lambda: open('{}', 'w')",
]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("2E+3", 2000.0),
        ("1.5e3", 1500.0),
        ("-7", -7),
        ("0.25", 0.25),
        ("[10,20]", [10, 20]),
        ("[10, 2e-1, a]", [10, 0.2, "a"]),
        ("{'RS':[8,1,1]}", {"RS": [8, 1, 1]}),
        ("{'split': {'LS': 'valid_and_test'}, 'order': 'TO'}", None),
        ("None", None),
        ("~", None),
        ("null", None),
        ("True", True),
        ("false", False),
        ("NDCG@10", "NDCG@10"),
        ("[5,inf)", "[5,inf)"),
        ("", ""),
        ("'1e-5'", "1e-5"),
        ("2020-13-45", "2020-13-45"),
        ("a: b: c", "a: b: c"),
        ("a: b", "a: b"),
        ("- a", "- a"),
    ],
)
def test_types_of_values(text: str, value: Any) -> None:
    if text.startswith("{'split'"):
        value = {"split": {"LS": "valid_and_test"}, "order": "TO"}
    found = [
        parse_value(text),
        parse_arguments([f"--key={text}"])["key"],
        parse_arguments([f"--teacher.key={text}"])["teacher"]["key"],
        sources(options={"key": text}, student="BPR").get("key"),
        sources(options={"teacher": {"key": text}}, student="BPR").get("key", "teacher"),
    ]
    assert found == [value] * 5
    assert {type(f) for f in found} == {type(value)}


def test_values_with_a_type_pass() -> None:
    for value in (1e-5, [1, 2], {"a": 1}, None, True):
        assert parse_value(value) is value
    for value in (np.float64(1e-3), np.int64(3), np.bool_(True)):
        found = pair(options={"wandb_project": value})["wandb_project"]
        assert (type(found), found) == (type(value.item()), value.item())


@pytest.mark.parametrize("text", CODE)
def test_no_text_is_ever_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """RecBole evaluates every string; here it stays the text it is, whichever way it comes."""
    monkeypatch.chdir(tmp_path)
    text = text.format(tmp_path / "ran")
    quoted = yaml.safe_dump({"wandb_project": text, "student": {"transform": text}})
    file = write(tmp_path / "a.yaml", quoted)
    for found in (
        pair(f"--wandb_project={text}", f"--student.transform={text}"),
        pair(options={"wandb_project": text, "student": {"transform": text}}),
        pair(options={"wandb_project": text, "student.transform": text}),
        pair(files=[file]),
    ):
        if not text.startswith("["):
            assert found["wandb_project"] == found["transform"] == text
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.yaml"]


def test_python_tags_in_a_file_are_refused(tmp_path: Path) -> None:
    tagged = f"epochs: 1\nseed: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n"
    file = write(tmp_path / "a.yaml", tagged)
    message = refusal(read_yaml, file)
    assert f"{file} line 2" in message
    assert not (tmp_path / "ran").exists()


def test_sys_argv_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = pair("--epochs=3").resolved()
    garbage = ["x", "--learning_rate=77", "--epochs=oops", "--epochs=4", "word", "--model=NeuMF"]
    monkeypatch.setattr(sys, "argv", garbage)
    assert pair("--epochs=3").resolved() == clean


# -- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["epochs=1", "-epochs=1", "--", "word"])
def test_arguments_of_another_form(argument: str) -> None:
    assert f"'{argument}'" in refusal(parse_arguments, ["--seed=1", argument])


def test_flags_and_repeats() -> None:
    assert parse_arguments(["--allow_leak", "--epochs=1", "--epochs=1", "--a=b=c"]) == {
        "allow_leak": True,
        "epochs": 1,
        "a": "b=c",
    }
    assert "--epochs is given twice" in refusal(parse_arguments, ["--epochs=1", "--epochs=2"])
    twice = ["--student=BPR", "--student.model=LightGCN"]
    assert "given twice, as 'BPR' and 'LightGCN'" in refusal(parse_arguments, twice)


# -- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"epochs: 1\nseed: [1, 2\nmore: x\n", "line 3"),
        (b"a: 1\nb: 2\n\tc: 3\n", "line 3"),
        (b"a: b: c\n", "line 1"),
        (b"- epochs\n- 3\n", "found a list"),
        (b"just words\n", "found a str"),
        (b"epochs: \xff\xfe\n", "UTF-8"),
        (b"epochs: 2020-13-45\n", "month"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes, named: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    message = refusal(sources, files=[file], student="BPR")
    assert f"configuration file {file}" in message
    assert named in message


def test_missing_files(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert f"{missing}: No such file" in refusal(sources, files=[missing], student="BPR")
    assert f"{tmp_path}: Is a directory" in refusal(sources, files=[tmp_path], student="BPR")


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path / "a.yaml", "# nothing\n")) == {}


# -- unknown keys ------------------------------------------------------------------------------


def key_refusal(*command_line: str, **more: Any) -> str:
    given = {"model": "RCEKD", "student": "BPR", "teacher": "BPR", **more}
    return refusal(check_keys, sources(list(command_line), **given))


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("--learning_rat=1", ["'learning_rat'", "'learning_rate'"]),
        ("--kd_wieght=1", ["'kd_wieght'", "'kd_weight'", "RCEKD, BPR"]),
        ("--student.embeding_size=1", ["'student.embeding_size'", "'embedding_size'"]),
        ("--teacher.embeding_size=1", ["'teacher.embeding_size'", "'embedding_size'"]),
        ("--n_layers=2", ["'n_layers'", "It belongs to ", " more."]),
        ("--ce_K=2", ["'ce_K'", "It belongs to CE."]),
        ("--MAX_ITEM_LIST_LENGTH=5", ["'MAX_ITEM_LIST_LENGTH'"]),
        ("--dataset_save_path=x.pth", ["'dataset_save_path'"]),
        ("--dataloaders_save_path=x.pth", ["'dataloaders_save_path'"]),
        ("--save_dataset", ["'save_dataset'"]),
        ("--config_file_list=a.yaml", ["'config_file_list'"]),
        ("--student.eval_args={}", ["'student.eval_args'"]),
        ("--student.checkpoint=x", ["'student.checkpoint'"]),
        ("--scratch_student.model=NeuMF", ["'scratch_student.model'"]),
        ("--teacher.kd_weight=1", ["'teacher.kd_weight'"]),
    ],
)
def test_keys_nobody_reads(argument: str, parts: list[str]) -> None:
    message = key_refusal(argument)
    assert message.startswith("command line: option '")
    assert [p for p in parts if p not in message] == []


def test_the_source_of_a_wrong_key_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "student: {epohcs: 1}\n")
    assert key_refusal(files=[file]).startswith(f"file {file}: option 'student.epohcs'")
    assert key_refusal(options={"epohcs": 1}).startswith("dictionary: option 'epohcs'")


def test_keys_somebody_reads() -> None:
    lengths = ["--MAX_ITEM_LIST_LENGTH=5", "--hidden_size=8", "--encoding=latin-1"]
    check_keys(sources(lengths, student="BPR", teacher="SASRec"))
    check_keys(sources(["--n_layers=2", "--teacher.n_layers=1"], student="BPR", teacher="LightGCN"))
    check_keys(sources(["--kd_weight=1", "--tail_ratio=0.2"], student="BPR", teacher="BPR"))
    check_keys(sources(["--ce_K=3"], model="CE", student="BPR", teacher="BPR"))


def test_keys_of_a_run_without_a_teacher() -> None:
    alone = {"model": "Scratch", "teacher": None}
    check_keys(sources(["--student.epochs=1"], student="BPR", **alone))
    for argument in ("--kd_weight=1", "--teacher.epochs=1", "--scratch_student.epochs=1"):
        assert "read by no part" in key_refusal(argument, **alone)


def test_sequences_are_shared() -> None:
    message = key_refusal("--student.MAX_ITEM_LIST_LENGTH=5", student="SASRec")
    assert "without a section" in message


def test_a_checkpoint_brings_the_teachers_options() -> None:
    checkpoint = "--teacher.checkpoint=best.pt"
    check_keys(sources([checkpoint], student="BPR"))
    check_keys(sources([checkpoint], student="BPR", teacher="LightGCN"))
    for teacher in (None, "BPR"):
        message = key_refusal(checkpoint, "--teacher.embedding_size=8", teacher=teacher)
        assert "'teacher.embedding_size'" in message
        assert "The checkpoint brings" in message
    assert "'teacher.epochs'" in key_refusal(checkpoint, "--teacher.epochs=8")
    assert "'n_layers'" in key_refusal(checkpoint, "--n_layers=2", teacher="LightGCN")


def test_defaults_of_a_model_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from recbole.model.general_recommender import BPR\n\n\n"
    source += "class Mine(BPR):\n    defaults = {'own': 5, 'teacher': {'own': 6}}\n"
    write(tmp_path / "outside_model.py", source)
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = {"student": "outside_model:Mine", "teacher": "outside_model:Mine"}
    assert [pair(role=r, **mine)["own"] for r in ("student", "teacher")] == [5, 6]
    assert pair("--student.own=7", **mine)["own"] == 7
    check_keys(sources(["--own=7", "--student.own=8"], **mine))
    assert "'own'" in key_refusal("--own=7")
    monkeypatch.delitem(sys.modules, "outside_model")


# -- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--epochs=0"], ["--epochs=0", "whole numbers above 0"]),
        (["--epochs=1.5"], ["--epochs=1.5"]),
        (["--epochs=True"], ["--epochs=True"]),
        (["--student.train_batch_size=-1"], ["--student.train_batch_size=-1"]),
        (["--seed=-1"], ["--seed=-1", "from 0"]),
        (["--learning_rate=0"], ["--learning_rate=0", "above 0"]),
        (["--learning_rate=fast"], ["--learning_rate=fast"]),
        (["--learning_rate=.nan"], ["--learning_rate=nan"]),
        (["--weight_decay=.inf"], ["--weight_decay=inf"]),
        (["--memory_budget_gb=0"], ["--memory_budget_gb=0"]),
        (["--student.embedding_size=-3"], ["--student.embedding_size=-3"]),
        (["--scratch=maybe"], ["--scratch=maybe", "True, False"]),
        (["--learner=sdg"], ["--learner=sdg", "sgd"]),
        (["--topk=[5]"], ["--valid_metric=NDCG@10", "NDCG@5"]),
        (["--valid_metric=Foo@10"], ["--valid_metric=Foo@10", "Recall@10"]),
        (["--valid_metric=NDCG"], ["--valid_metric=NDCG"]),
        (["--eval_history=none"], ["--eval_history=none", "all, train"]),
        (["--eval_history=train", "--eval_args={'mode': 'uni50'}"], ["--eval_history", "uni50"]),
        (["--metrics=Foo"], ["options of BPR", "'Foo'"]),
        (["--topk=[0]"], ["options of BPR", "topk"]),
        (["--eval_args=3"], ["options of BPR", "eval_args"]),
        (["--valid_metric=5"], ["options of BPR"]),
        (["--learner=sparse_adam"], ["--learner=sparse_adam", "adamw"]),
    ],
)
def test_values_out_of_range(arguments: list[str], parts: list[str]) -> None:
    message = refusal(pair, *arguments)
    assert [p for p in parts if p not in message] == []


def test_values_at_the_edge() -> None:
    pair("--weight_decay=0", "--metrics=[GAUC]", "--valid_metric=gauc", "--seed=0", "--topk=3")
    assert pair("--topk=3", "--valid_metric=recall@3")["topk"] == [3]


def test_other_libraries_are_refused_where_a_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    from recbole_kd import compat

    monkeypatch.setattr(compat, "version_problems", lambda _: ["pandas 3 is installed"])
    assert refusal(pair) == "pandas 3 is installed"


# -- changes, resolved options -----------------------------------------------------------------


def test_changed_lists_exactly_what_differs(tmp_path: Path) -> None:
    plain_run = pair()
    assert plain_run.changed() == {}
    file = write(tmp_path / "a.yaml", "epochs: 3\nlearning_rate: 0.001\nstudent: {kd_rows: user}\n")
    found = pair(
        "--kd_weight=7",
        "--seed=4",
        options={
            "seed": 3,
            "teacher.epochs": 9,
            "load_col": None,
            "clip_grad_norm": {"max_norm": 1},
        },
        files=[file],
    )
    changes = found.changed()
    default, now = plain_run.resolved(), found.resolved()
    assert set(changes) == {k for k in now if default.get(k, "missing") != now[k]}
    assert set(changes) == {"epochs", "kd_weight", "seed", "load_col", "clip_grad_norm"}
    assert {k: v[:2] for k, v in changes.items()} == {k: (default[k], now[k]) for k in changes}
    assert changes["seed"][2] == changes["kd_weight"][2] == "command line"
    assert changes["epochs"][2] == f"file {file}"
    assert changes["load_col"][2] == "dictionary"


def test_a_value_put_back_is_no_change() -> None:
    default = pair()["epochs"]
    assert pair(f"--epochs={default}", options={"epochs": 5}).changed() == {}


def test_changes_that_were_shipped_are_listed(shipped: Path) -> None:
    changes = toy("--protocol=rcekd").changed()
    assert changes["kd_weight"][1:] == (31, "recipe toy/BPR-BPR/CE.yaml")
    assert changes["epochs"][1:] == (32, "recipe toy/BPR-BPR/CE.yaml")
    assert changes["stopping_step"][1:] == (30, "protocol rcekd")
    assert toy().changed()["stopping_step"][1:] == (22, "dataset/toy.yaml")


def test_the_split_of_a_sequential_partner_is_listed() -> None:
    changes = pair(student="BPR", teacher="SASRec").changed()
    assert list(changes) == ["eval_args"]
    assert changes["eval_args"][0]["order"] == "RO"
    assert changes["eval_args"][1]["order"] == "TO"


@pytest.mark.parametrize("student", ["BPR", "SASRec", "LightGCN"])
def test_resolved_options_are_plain_and_round_trip(student: str) -> None:
    found = pair(
        student=student,
        options={"weight_decay": np.float64(1e-7), "wandb_project": {"a": [np.int64(1), None]}},
    )
    resolved = found.resolved()
    text = yaml.safe_dump(resolved)
    assert yaml.safe_load(text) == resolved
    assert yaml.load(text, Loader=SafeLoader) == resolved
    assert "!!" not in text
    assert resolved["weight_decay"] == 1e-7
    assert resolved["wandb_project"] == {"a": [1, None]}
    assert (resolved["MODEL_TYPE"], resolved["device"]) == (found["MODEL_TYPE"].name, "cpu")
    assert set(resolved) == set(found.final_config_dict)


# -- every shipped key is explained and read ---------------------------------------------------

EXPLAINED = ["overall.yaml", *(f"method/{m}.yaml" for m in METHODS)]
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}


@pytest.mark.parametrize("name", EXPLAINED)
def test_every_shipped_key_has_a_comment_with_its_type(name: str) -> None:
    path = properties_dir() / name
    lines = path.read_text(encoding="utf-8").splitlines()
    pattern = re.compile(r"^ *(\w+): +.*?# \((int|float|str|bool|list|dict)\) [A-Z'a-z].+")
    commented = dict(m.groups() for m in map(pattern.match, lines) if m)
    values = read_yaml(path)
    values.pop(RANGE, None)
    for section in SECTIONS:
        values.update(values.pop(section, {}))
    assert sorted(commented) == sorted(values)
    for key, value in values.items():
        if value is not None:
            number = isinstance(value, int) and not isinstance(value, bool)
            right = type(value) is TYPES[commented[key]] or (number and commented[key] == "float")
            assert right, f"{key} is {value!r}, its comment says {commented[key]}"


@pytest.fixture(scope="module")
def teacher(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trained BPR with its earlier epochs."""
    options = {
        **SMALL,
        "epochs": 12,
        "save_every": 1,
        "learning_rate": 0.02,
        "data_path": str(root),
        "checkpoint_dir": str(tmp_path_factory.mktemp("t")),
    }
    del options["teacher.embedding_size"]
    result = run_recbole_kd("Scratch", "tiny", config_dict=options, student="BPR")
    return Path(result["checkpoints"]["student"])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Keys read from any configuration once it is built; checks while it is built do not count.

    What the sources are asked for while it is built does: it settles which files are read.
    """
    seen: set[str] = set()
    building: list[int] = []
    init = KDConfig.__init__

    def building_init(self: KDConfig, *arguments: Any, **named: Any) -> None:
        building.append(1)
        try:
            init(self, *arguments, **named)
        finally:
            building.pop()

    def record(cls: type, name: str, while_building: bool) -> None:
        original = getattr(cls, name)

        def read(self: Any, key: str, *more: Any, **named: Any) -> Any:
            if bool(building) == while_building:
                seen.add(key)
            return original(self, key, *more, **named)

        monkeypatch.setattr(cls, name, read)

    monkeypatch.setattr(KDConfig, "__init__", building_init)
    record(KDConfig, "__getitem__", while_building=False)
    record(KDConfig, "require", while_building=False)
    record(Sources, "get", while_building=True)
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_every_shipped_key_is_read(
    root: Path, teacher: Path, tmp_path: Path, reads: set[str], method: str
) -> None:
    cls = method_class(method)
    assert cls is not None
    sizes = small_options(cls)
    options = {**SMALL, **sizes, "data_path": str(root)}
    options.update({"checkpoint_dir": str(tmp_path), "teacher.checkpoint": str(teacher)})
    options["scratch"] = False
    del options["teacher.embedding_size"]
    result = run_recbole_kd(method, "tiny", config_dict=options, student="BPR")
    shipped = set(read_yaml(properties_dir() / "overall.yaml"))
    shipped |= set(method_defaults(method)) - set(SECTIONS)
    assert shipped - reads == SCORE_FILE_KEYS, "shipped keys that this run never read"
    folder = Path(result["checkpoints"]["student"]).parent
    written = yaml.safe_load((folder / "resolved.yaml").read_text(encoding="utf-8"))
    assert written["method"] == method
    assert {k: written[k] for k in sizes} == sizes


def test_the_recording_sees_an_unread_key(reads: set[str]) -> None:
    found = pair("--wandb_project=x")
    assert "wandb_project" not in reads
    assert found["wandb_project"] == "x"
    assert "wandb_project" in reads


# -- seeds -------------------------------------------------------------------------------------


def test_split_seed_alone_moves_the_split(root: Path) -> None:
    def split(**seeds: int) -> dict[str, str]:
        return load_split(config_for(root, **seeds)).fingerprints

    assert split(seed=1, split_seed=1) == split(seed=2, split_seed=1) != split(seed=1, split_seed=2)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Every interaction whose base loss BPR computes."""
    seen: list[dict[str, torch.Tensor]] = []
    original = BPR.calculate_loss

    def recording(self: Any, interaction: Any) -> Any:
        seen.append({k: v.clone() for k, v in interaction.interaction.items()})
        return original(self, interaction)

    monkeypatch.setattr(BPR, "calculate_loss", recording)
    return seen


def test_a_method_moves_neither_batches_nor_negatives(
    root: Path, teacher: Path, batches: list[dict[str, torch.Tensor]]
) -> None:
    def two_epochs(model: str, **more: Any) -> list[dict[str, torch.Tensor]]:
        options = {**SMALL, "epochs": 2, "data_path": str(root), "scratch": False, **more}
        options["checkpoint_dir"] = str(root / "saved")
        del options["teacher.embedding_size"]
        if model == "Scratch":
            del options["scratch"]
        batches.clear()
        run_recbole_kd(model, "tiny", config_dict=options, student="BPR", saved=False)
        return list(batches)

    alone = two_epochs("Scratch")
    sizes = {"rcekd_K": 10, "rcekd_L": 10, "rcekd_M": 30}
    taught = {"teacher.checkpoint": str(teacher), **sizes}
    half = len(alone) // 2
    assert half > 2
    assert set(alone[0]) >= {"user_id", "item_id", "neg_item_id"}
    assert not torch.equal(alone[0]["neg_item_id"], alone[half]["neg_item_id"])
    for rows in ("user", "interaction"):
        distilled = two_epochs("RCEKD", kd_rows=rows, refresh_every=1, **taught)
        assert len(distilled) == len(alone)
        for one, other in zip(alone, distilled, strict=True):
            assert set(one) == set(other)
            assert all(torch.equal(one[k], other[k]) for k in one)
    other_seed = two_epochs("Scratch", seed=5)
    assert not torch.equal(other_seed[0]["neg_item_id"], alone[0]["neg_item_id"])


@pytest.mark.parametrize("dataset", ["ml-100k", "citeulike"])
def test_the_ablations_of_rcekd_have_its_list_length(dataset: str) -> None:
    lengths = {
        key: KDConfig(sources(model=method, dataset=dataset, student="BPR", teacher="BPR"))[key]
        for method, key in (("RCEKD", "rcekd_K"), ("CE", "ce_K"))
    }
    assert lengths["ce_K"] == lengths["rcekd_K"]
