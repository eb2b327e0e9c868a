"""Teachers and students of different families through whole runs, under both protocols."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from recbole_kd import checkpoint, load_model, run_recbole_kd, training
from recbole_kd.data import load_split
from recbole_kd.errors import KDError
from recbole_kd.loaders import make_loaders
from recbole_kd.methods.base import Distiller
from recbole_kd.rows import Rows
from recbole_kd.scoring import scorer_for
from recbole_kd.teacher import FrozenTeacher
from recbole_kd.teachers import identity, translate_history

PROTOCOLS = {"next": {}, "all": {"protocol": "rcekd"}}
SEQUENTIAL = {"SASRec", "GRU4Rec", "HSTU"}
SMALL: dict[str, dict[str, Any]] = {
    **tiny.MODEL_OPTIONS,
    "HSTU": {
        "hidden_size": 8,
        "attention_dim": 4,
        "linear_dim": 4,
        "n_layers": 1,
        "relative_bias": "position",
    },
}


def run(
    teacher: str | None,
    student: str,
    folder: Path,
    protocol: str = "next",
    method: str = "RCEKD",
    saved: bool = True,
    **more: Any,
) -> dict[str, Any]:
    own = {
        role: {k: v for k, v in SMALL.get(name or "", {}).items() if k != "MAX_ITEM_LIST_LENGTH"}
        for role, name in (("student", student), ("teacher", teacher))
    }
    shared = {"MAX_ITEM_LIST_LENGTH": 8} if SEQUENTIAL & {teacher, student} else {}
    options = {
        **{k: v for k, v in tiny.OPTIONS.items() if k != "epochs"},
        **shared,
        **own,
        "student.epochs": 1,
        "teacher.epochs": 3,
        **PROTOCOLS[protocol],
        "data_path": str(tiny.data_path()),
        "checkpoint_dir": str(folder),
        "scratch": False,
        **({"rcekd_K": 5, "rcekd_L": 5, "rcekd_M": 10} if method == "RCEKD" else {}),
        **more,
    }
    if teacher is None:
        options.pop("teacher.epochs")
    return run_recbole_kd(
        method, tiny.dataset(), config_dict=options, student=student, teacher=teacher, saved=saved
    )


def epochs_of(result: dict[str, Any], role: str) -> list[dict[str, Any]]:
    log = Path(result["checkpoints"][role]).with_name("metrics.jsonl")
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("BPR", "GRU4Rec"),
        ("LightGCN", "HSTU"),
        ("SASRec", "BPR"),
        ("HSTU", "LightGCN"),
        ("SASRec", "SimpleX"),
        ("GRU4Rec", "SASRec"),
        ("NeuMF", "BPR"),
        ("MultiVAE", "GRU4Rec"),
        ("ItemKNN", "BPR"),
        ("EASE", "SASRec"),
    ],
)
def test_a_pair_of_any_families(teacher: str, student: str, protocol: str, tmp_path: Path) -> None:
    result = run(teacher, student, tmp_path, protocol)
    mixed = bool(SEQUENTIAL & {teacher, student})
    options = load_model(result["checkpoints"]["student"]).config
    assert options["eval_args"]["split"] == (
        {"LS": "valid_and_test"} if mixed and protocol == "next" else {"RS": [0.8, 0.1, 0.1]}
    )
    assert options["eval_targets"] == (protocol if mixed else options["eval_targets"])
    (line,) = epochs_of(result, "student")
    assert line["kd_loss"] > 0
    for key in ("teacher_test_result", "test_result"):
        assert 0 <= result[key]["ndcg@10"] < 1
    mine, theirs = (
        checkpoint.load(result["checkpoints"][role])["split"] for role in ("student", "teacher")
    )
    assert mine == theirs


@pytest.mark.parametrize("name", ["ItemKNN", "EASE"])
def test_a_teacher_made_in_one_pass(name: str, tmp_path: Path) -> None:
    """Whatever ``epochs`` says; found again and opened from its file it is the same."""
    first = run(name, "BPR", tmp_path)
    assert len(epochs_of(first, "teacher")) == 1
    sizes = {row["role"]: row["parameters"] for row in first["sizes"]}
    assert sizes["teacher"] is None  # its one parameter is for show
    assert sizes["student, RCEKD"] > 1000
    file = first["checkpoints"]["teacher"]
    again = run(name, "BPR", tmp_path)
    opened = run(None, "BPR", tmp_path, **{"teacher.checkpoint": file})
    unsaved = run(name, "BPR", tmp_path, saved=False)
    for other in (again, opened, unsaved):
        for key in ("test_result", "teacher_test_result"):
            assert other[key] == first[key]


def test_a_teacher_made_in_one_pass_has_no_trajectory(tmp_path: Path) -> None:
    """Its 300 epochs are RecBole's default, and not what happens."""
    small = {"hetcomp_K": 10, "scratch": False}
    for more in ({}, {"teacher.save_every": 1}):
        with pytest.raises(KDError, match="--teacher=EASE: --model=HetComp needs a teacher with"):
            run("EASE", "BPR", tmp_path, method="HetComp", **small, **more)
    assert list(tmp_path.rglob("*.pt")) == []
    file = tiny.save("ItemKNN", tmp_path / "knn.pt")
    with pytest.raises(KDError, match="--teacher=ItemKNN: --model=HetComp needs a teacher with"):
        run(None, "BPR", tmp_path, method="HetComp", **small, **{"teacher.checkpoint": str(file)})


@pytest.mark.parametrize("name", ["NeuMF", "MultiVAE"])
def test_a_trajectory_without_vectors(name: str, tmp_path: Path) -> None:
    """What ranks can be followed through its training."""
    more = {"hetcomp_K": 10, "hetcomp_checkpoints": 2, "refresh_every": 1}
    epochs = {"teacher.epochs": 4, "teacher.save_every": 1, "teacher.learning_rate": 0.01}
    result = run(name, "BPR", tmp_path, method="HetComp", **more, **epochs)
    assert torch.isfinite(torch.tensor(epochs_of(result, "student")[0]["kd_loss"]))


@pytest.mark.parametrize("name", ["RaCT", "S3Rec"])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_models_of_several_stages_are_refused(name: str, role: str, tmp_path: Path) -> None:
    """Their stages hand each other pickles that nothing here would read."""
    with pytest.raises(KDError, match=rf"--{role}={name}: RecBole trains it in stages"):
        run(*((name, "BPR") if role == "teacher" else ("BPR", name)), tmp_path)
    assert list(tmp_path.rglob("*.pt*")) == []


@pytest.mark.parametrize("name", ["GRU4RecF", "FDSA"])
def test_a_model_that_needs_another_column(name: str, tmp_path: Path) -> None:
    with pytest.raises(KDError, match=rf"--teacher={name}: .* found no 'class'; .* load_col"):
        run(name, "BPR", tmp_path)


def test_a_model_that_needs_another_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(KDError, match="--teacher=NCL: it needs the Python module 'faiss'"):
        run("NCL", "BPR", tmp_path)


# -- users a teacher cannot read ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reads"), [("SASRec", True), ("HSTU", True), ("NARM", True), ("BPR", False)]
)
def test_a_user_of_unknown_items_is_no_user_of_a_sequence_teacher(name: str, reads: bool) -> None:
    """The encoding of nothing is no preference, though the user's token is known."""
    config = tiny.config(name, **SMALL.get(name, {}), protocol="rcekd")
    split = load_split(config)
    history = split.history
    user = int(history.counts.argmax())
    users, items = identity(split)
    items[history.items[history.offsets[user] : history.offsets[user + 1]].long()] = -1
    read = translate_history(history, users, items, history)
    assert int(read.counts[user]) == 0
    scorer = scorer_for(training.build_plain(config, split), read)
    teacher = FrozenTeacher(scorer, users, items, history)
    assert bool(teacher.knows_user[user]) is not reads
    others = torch.arange(1, history.n_users)[read.counts[1:] > 0]
    assert len(others)
    assert bool(teacher.knows_user[others].all())


def test_a_run_says_how_many_users_a_sequence_teacher_cannot_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taught = run("SASRec", "BPR", tmp_path, "all")["checkpoints"]["teacher"]
    rows = tiny.interactions()
    lone = rows[0][0]
    renamed = [(u, f"new{i}" if u == lone else i, *rest) for u, i, *rest in rows]
    options = {
        **tiny.options("BPR"),
        **PROTOCOLS["all"],
        "checkpoint_dir": str(tmp_path),
        "teacher.checkpoint": taught,
        "min_token_overlap": 0.3,
        "scratch": False,
        "state": "INFO",
        **{"rcekd_K": 5, "rcekd_L": 5, "rcekd_M": 10},
    }
    for name, said in (("renamed", True), (tiny.dataset(), False)):
        caplog.clear()
        data = tiny.write(name, renamed) if said else name
        run_recbole_kd("RCEKD", data, config_dict=options, student="BPR", teacher="SASRec")
        assert ("knows none of the train items of 1 of its users" in caplog.text) is said


# -- SimpleX -----------------------------------------------------------------------------------


@pytest.mark.parametrize("student", ["BPR", "GRU4Rec"])
def test_simplex_teaches_the_same_however_it_is_found(student: str, tmp_path: Path) -> None:
    """Its users have more train items than it keeps, and keep the same ones."""
    first = run("SimpleX", student, tmp_path, "all")
    file = first["checkpoints"]["teacher"]
    assert int(load_model(file).history.counts.max()) > 20
    again = run("SimpleX", student, tmp_path, "all")
    opened = run(None, student, tmp_path, "all", **{"teacher.checkpoint": file})
    unsaved = run("SimpleX", student, tmp_path, "all", saved=False)
    for other in (again, opened, unsaved):
        for key in ("test_result", "teacher_test_result"):
            assert other[key] == first[key]


@pytest.mark.parametrize(("method", "teacher"), [("RCEKD", "BPR"), ("RRD", "SimpleX")])
def test_simplex_learns(method: str, teacher: str, tmp_path: Path) -> None:
    """The distillation loss falls where it is nearly all there is, over one list."""
    more = {"refresh_every": 9, "kd_weight": 100.0, "student.learning_rate": 0.02}
    lists = {} if method == "RCEKD" else {"rrd_K": 10, "rrd_L": 10, "rrd_M": 20}
    result = run(
        teacher, "SimpleX", tmp_path, "all", method, **more, **lists, **{"student.epochs": 3}
    )
    losses = [line["kd_loss"] for line in epochs_of(result, "student")]
    assert losses[0] > losses[1] > losses[2] > 0
    content = checkpoint.load(result["checkpoints"]["student"])
    assert set(content["state_dict"]) == {"user_emb.weight", "item_emb.weight", "UI_map.weight"}


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_the_temperature_of_simplex(role: str, tmp_path: Path) -> None:
    """At 1 its scores are plain cosines, and the loss is another."""
    names = {"teacher": "BPR", "student": "BPR"} | {role: "SimpleX"}
    losses = []
    for more in ({}, {f"{role}.score_temperature": 0.1}, {f"{role}.score_temperature": 1}):
        result = run(names["teacher"], names["student"], tmp_path, **more)
        losses.append(epochs_of(result, "student")[0]["kd_loss"])
    assert losses[0] == losses[1] != losses[2]


# -- several negatives -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("name", ["BPR", "SimpleX", "GRU4Rec"])
def test_rows_of_a_batch_with_several_negatives(name: str, number: int) -> None:
    """Every train interaction of an epoch is one row, however often RecBole repeats it."""
    sampling = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": number}}
    pairwise = {"loss_type": "BPR"} if name == "GRU4Rec" else {}
    config = tiny.config(name, **sampling, **pairwise)
    config.final_config_dict |= {"kd_weight": 1.0, "kd_rows": "unique", "refresh_every": 1}
    part = tiny.split_for(name)
    model = training.build_plain(config, part)
    scorer = scorer_for(model, part.history)
    teacher = FrozenTeacher(scorer, *identity(part), part.history)
    found: list[Rows] = []

    class Counted(Distiller):
        def kd_loss(self, rows: Rows) -> torch.Tensor:
            found.append(rows)
            return rows.mean(torch.ones(len(rows.users)))

    distiller = Counted(config, part.train, model, scorer, teacher, part.history)
    loader = make_loaders(config, part)[0]
    distiller.begin_epoch(0, len(loader))
    interactions = 0
    for batch in loader:
        users = distiller.interacting(batch)
        assert torch.equal(batch["user_id"], users.repeat(number))
        positives = batch["item_id"][: len(users)]
        assert torch.equal(batch["item_id"], positives.repeat(number))
        interactions += len(users)
        _, kd = distiller.calculate_loss(batch)
        assert kd == pytest.approx(len(users.unique()) / len(users))
    assert sum(float(rows.total) for rows in found) == interactions
    assert interactions == len(part.train)


@pytest.mark.parametrize(
    ("name", "remedy"), [("NARM", "are users with some"), ("SASRec", "is recommend_from_history")]
)
def test_a_user_without_a_history_is_not_recommended_to(
    name: str, remedy: str, tmp_path: Path
) -> None:
    rows = tiny.interactions()
    data = tiny.write("lonely", [*rows, ("lonely", *rows[0][1:])])
    options = {
        **tiny.options("BPR"),
        "checkpoint_dir": str(tmp_path),
        "teacher.epochs": 1,
        "scratch": False,
        **{"rcekd_K": 5, "rcekd_L": 5, "rcekd_M": 10},
    }
    result = run_recbole_kd("RCEKD", data, config_dict=options, student="BPR", teacher=name)
    loaded = load_model(result["checkpoints"]["teacher"])
    assert loaded.recommend([rows[0][0]], k=3)[0]
    with pytest.raises(KDError, match=f"1 users without train .*: lonely; allowed {remedy}"):
        loaded.recommend([rows[0][0], "lonely"], k=3)
