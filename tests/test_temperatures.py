"""The temperature of cosine models: whose it is, who may set it, and what it decides."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from recbole_kd import run_recbole_kd
from recbole_kd.config import KDConfig
from recbole_kd.data import load_split
from recbole_kd.deploy import export_recbole, load_model
from recbole_kd.errors import KDError
from recbole_kd.keys import check_keys
from recbole_kd.options import Sources
from recbole_kd.registry import method_class
from recbole_kd.teachers import TeacherFinder

KEY = "teacher.score_temperature"


def sources(teacher: str | list[str] | None, student: str = "BPR", **more: Any) -> Sources:
    options = {**tiny.options(student), "data_path": str(tiny.data_path()), "ce_K": 10, **more}
    method = options.pop("model", "CE")
    return Sources.collect(method, tiny.dataset(), student, teacher, options=options)


def finder(teacher: str | list[str], **more: Any) -> TeacherFinder:
    """Finds a teacher of which the files are there, or which is trained."""
    given = sources(teacher, **more)
    config = KDConfig(given)
    own = None if given.teacher_files else KDConfig(given, "teacher")
    method = method_class(given.method)
    assert method is not None
    return TeacherFinder(method, config, own, load_split(config), saved=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints of untrained models; that of SimpleX was made in a run that asked for 0.7."""
    folder = tmp_path_factory.mktemp("files")
    saved = {name: tiny.save(name, folder / f"{name}.pt") for name in ("BPR", "NeuMF")}
    given = {"student.score_temperature": 0.7}
    saved["SimpleX"] = tiny.save("SimpleX", folder / "SimpleX.pt", **given)
    return {name: str(path) for name, path in saved.items()}


def test_it_is_said_for_one_role() -> None:
    for student, teacher in (("BPR", "SimpleX"), ("SimpleX", "BPR"), ("SimpleX", "SimpleX")):
        named = [r for r, m in (("student", student), ("teacher", teacher)) if m == "SimpleX"]
        hint = "holds for one role: set " + " or ".join(f"{r}.score_temperature" for r in named)
        with pytest.raises(KDError, match=hint):
            check_keys(sources(teacher, student, score_temperature=0.2))
    check_keys(sources("SimpleX", **{KEY: 0.2}))
    check_keys(sources("NeuMF", "SimpleX", **{"student.score_temperature": 0.2}))
    check_keys(sources("NeuMF", **{KEY: 0.2}))
    for student, teacher, section in (("BPR", "SimpleX", "student"), ("SimpleX", "BPR", "teacher")):
        with pytest.raises(KDError, match="is read by no part of this run"):
            check_keys(sources(teacher, student, **{f"{section}.score_temperature": 0.2}))


@pytest.mark.parametrize("wrong", [0, -1, True, "warm", float("inf"), float("nan")])
def test_it_is_a_number_above_0(wrong: Any, files: dict[str, str]) -> None:
    with pytest.raises(KDError, match=r"--teacher.score_temperature=.*: allowed are numbers"):
        finder(files["SimpleX"], **{KEY: wrong})


def test_an_opened_teacher_has_its_models_own_unless_asked(files: dict[str, str]) -> None:
    """What the run that trained it asked for is no matter: the file's name does not tell."""
    digests = set()
    for asked, found in ((None, 0.1), (0.1, 0.1), (0.4, 0.4)):
        parts = finder(files["SimpleX"], **({} if asked is None else {KEY: asked})).find()
        assert parts.scorer.temperature == pytest.approx(found)
        digests.add(parts.digest)
    assert len(digests) == 2


def test_inner_products_refuse_it(files: dict[str, str]) -> None:
    hint = r"--teacher.score_temperature=0.3: .* taken as they are; .*HSTU, SimpleX and models"
    with pytest.raises(KDError, match=hint):
        finder(files["BPR"], **{KEY: 0.3}).find()


@pytest.mark.parametrize("budget", [0.1, 1e-6])
@pytest.mark.parametrize("name", ["NeuMF", "EASE"])
def test_scores_without_vectors_are_divided(name: str, budget: float, tmp_path: Path) -> None:
    """One by one, all at once, from a table or anew; the ranking stays what it is."""
    file, digests, found = str(tiny.save(name, tmp_path / "m.pt")), set(), []
    users, items = torch.arange(1, 5), torch.arange(1, 121).expand(4, -1)
    for asked in (None, 0.25):
        more = {} if asked is None else {KEY: asked}
        parts = finder(file, memory_budget_gb=budget, **more).find()
        digests.add(parts.digest)
        one, all_of_them = parts.teacher.score(users, items), parts.teacher.score_all(users)
        torch.testing.assert_close(one, all_of_them[:, 1:])
        found.append((one, parts.teacher.top_k(5)[0], parts.test_result))
    assert len(digests) == 2
    torch.testing.assert_close(found[1][0], found[0][0] / 0.25, rtol=1e-3, atol=1e-3)
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]


def test_a_file_of_scores_refuses_it(files: dict[str, str], tmp_path: Path) -> None:
    tokens = load_split(KDConfig(sources("BPR"))).tokens
    rows = [f"{u},{i},{n}.5" for u in tokens.users[1:] for n, i in enumerate(tokens.items[1:40])]
    path = tmp_path / "b.csv"
    path.write_text("\n".join(["user,item,score", *rows]) + "\n")
    with pytest.raises(KDError, match="a file's scores, and inner products, are taken as they are"):
        finder(str(path), checkpoint_dir=str(tmp_path), **{KEY: 0.3}).find()


def test_in_a_list_it_is_for_those_who_take_one(files: dict[str, str]) -> None:
    both = finder([files["SimpleX"], files["NeuMF"], files["BPR"]], **{KEY: 0.3}).find()
    cosine, dense, plain = (member.scorer for member in both.members)
    assert cosine.temperature == 0.3
    assert plain.temperature == 1
    assert dense.temperature == 0.3


def test_earlier_epochs_have_the_temperature_of_the_run(tmp_path: Path) -> None:
    more = {
        "model": "HetComp",
        "teacher.save_every": 1,
        "teacher.epochs": 3,
        "hetcomp_checkpoints": 2,
        "hetcomp_K": 10,
        "checkpoint_dir": str(tmp_path),
    }
    for asked, found in ((1.0, 1.0), (None, 0.1)):
        given = more if asked is None else {**more, KEY: asked}
        teacher = finder("SimpleX", **given).find().teacher
        early = [load() for load in teacher.trajectory]
        assert early
        for one in (teacher, *early):
            assert one.scorer.temperature == pytest.approx(found)


def test_half_precision_is_part_of_what_tells_teachers_apart(files: dict[str, str]) -> None:
    digests = {
        name: [finder(files[name], memory_budget_gb=b).find().digest for b in (0.1, 1e-6)]
        for name in ("NeuMF", "BPR")
    }
    assert len(set(digests["NeuMF"])) == 2
    assert len(set(digests["BPR"])) == 1


def test_simplex_comes_back_from_recboles_form(tmp_path: Path) -> None:
    """RecBole's form has one seed; the history items are drawn from it, not from the training's."""
    given = {"history_len": 3, "seed": 1}
    tiny.save("SimpleX", tmp_path / "best.pt", **given)
    ours, theirs = (
        load_model(tmp_path / "best.pt"),
        load_model(export_recbole(tmp_path, tmp_path / "student.pth")),
    )
    assert int((ours.history.counts > 3).sum()) > 0
    assert torch.equal(ours.model.history_item_id, theirs.model.history_item_id)


def test_it_decides_the_student(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    losses = []
    for asked in (1.0, 0.1):
        given = {
            **tiny.options("BPR"),
            "ce_K": 10,
            "ce_guide": "teacher",
            "scratch": False,
            "checkpoint_dir": str(tmp_path),
            "teacher": {"epochs": 1, "score_temperature": asked},
        }
        result = run_recbole_kd(
            "CE", tiny.dataset(), config_dict=given, student="BPR", teacher="SimpleX"
        )
        folder = Path(result["checkpoints"]["student"]).parent
        losses.append((folder / "metrics.jsonl").read_text().split('"kd_loss": ')[1][:8])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("method", "teacher", "section"),
    [("Scratch", None, "student"), ("CE", "BPR", "scratch_student")],
)
def test_nobody_asks_a_model_alone_for_scores(
    method: str, teacher: str | None, section: str
) -> None:
    key = f"{section}.score_temperature"
    options = {**tiny.options("SimpleX"), key: 0.2}
    given = Sources.collect(method, tiny.dataset(), "SimpleX", teacher, options=options)
    with pytest.raises(KDError, match=f"'{key}' is read by no part"):
        check_keys(given)


def test_a_recipe_holds_for_an_opened_teacher_too() -> None:
    """The recipe's other values are found for scores at its temperature."""
    found = []
    for checkpoint in (None, "x.pt"):
        opened = {} if checkpoint is None else {"teacher.checkpoint": checkpoint}
        given = Sources.collect(
            "RCEKD", "citeulike", "BPR", "HSTU", options={"protocol": "rcekd", **opened}
        )
        config = KDConfig(given)
        own = KDConfig(given, "teacher") if checkpoint is None else None
        method: Any = method_class("RCEKD")
        split: Any = None
        found.append(TeacherFinder(method, config, own, split, saved=True).temperature)
    assert found == [1.0, 1.0]
