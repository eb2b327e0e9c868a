"""What a method needs of its teacher: refused in one line before any training, or found."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from kd_helpers import small_options

from recbole_kd import checkpoint, run_recbole_kd, training
from recbole_kd.errors import KDError
from recbole_kd.methods.base import NEEDS
from recbole_kd.registry import SCRATCH, method_class, method_names, methods_without
from recbole_kd.scoring import factorised_names

CLASSES = {name: method_class(name) for name in method_names() if name != SCRATCH}
WITH_VECTORS = [name for name, cls in CLASSES.items() if "vectors" in cls.needs]
SIZES = {"student.embedding_size": 4, "teacher.embedding_size": 9, "scratch": False}


def asked(method: str, folder: Path, **more: Any) -> dict[str, Any]:
    """Options of a run of an epoch."""
    sizes = small_options(CLASSES[method])
    return {**tiny.OPTIONS, **sizes, "data_path": str(tiny.data_path()), **more} | {
        "checkpoint_dir": str(folder)
    }


def run(
    method: str, folder: Path, teacher: str | None = "BPR", saved: bool = True, **more: Any
) -> dict[str, Any]:
    """An epoch of a small BPR student."""
    options = asked(method, folder, **{**(SIZES if teacher == "BPR" else {}), **more})
    data = tiny.dataset()
    return run_recbole_kd(
        method, data, config_dict=options, student="BPR", teacher=teacher, saved=saved
    )


@pytest.fixture
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a model is trained before the refusal")

    monkeypatch.setattr(training, "train", train)


def refused(*parts: str, **call: Any) -> str:
    with pytest.raises(KDError) as refusal:
        run(**call)
    message = str(refusal.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == []
    return message


# -- vectors -----------------------------------------------------------------------------------


def test_needs_of_the_methods() -> None:
    assert WITH_VECTORS
    for need in NEEDS:
        others = set(methods_without(need))
        assert others == {name for name, cls in CLASSES.items() if need not in cls.needs}
        assert set(CLASSES) - others, f"nobody needs {need}"


@pytest.mark.parametrize("method", WITH_VECTORS)
def test_a_teacher_without_vectors_is_refused(
    method: str, tmp_path: Path, nothing_is_trained: None
) -> None:
    message = refused(
        "--teacher=NeuMF: ",
        f"--model={method} needs {NEEDS['vectors']}",
        ", ".join(factorised_names()),
        method=method,
        folder=tmp_path,
        teacher="NeuMF",
    )
    named = message.rpartition(": ")[2].split(", ")
    assert named == methods_without("vectors")
    assert method not in named
    assert list(tmp_path.rglob("*.pt")) == []


@pytest.mark.parametrize("method", WITH_VECTORS)
def test_a_checkpoint_without_vectors_is_refused(
    method: str, tmp_path: Path, nothing_is_trained: None
) -> None:
    file = tiny.save("NeuMF", tmp_path / "teacher.pt")
    refused(
        "--teacher=NeuMF: ",
        f"--model={method} needs {NEEDS['vectors']}",
        ", ".join(methods_without("vectors")),
        method=method,
        folder=tmp_path,
        teacher=None,
        **{"teacher.checkpoint": str(file), "scratch": True},
    )


def test_a_student_without_vectors_is_refused(tmp_path: Path, nothing_is_trained: None) -> None:
    options = {**asked("RD", tmp_path), **tiny.MODEL_OPTIONS["NeuMF"]}
    with pytest.raises(KDError, match=r"--student=NeuMF: .* allowed are BPR"):
        run_recbole_kd("RD", tiny.dataset(), config_dict=options, student="NeuMF", teacher="BPR")


def test_a_dense_teacher_serves_where_scores_are_enough(tmp_path: Path) -> None:
    """One of the methods; all of them learn from scores alone in the tiny world."""
    found = run("DCD", tmp_path, teacher="NeuMF", scratch=False, **{"student.embedding_size": 4})
    assert found["test_result"]["ndcg@10"] >= 0


@pytest.mark.parametrize("method", ["FTD", "FreqD"])
def test_vectors_of_graphs_and_sequences(method: str, tmp_path: Path) -> None:
    """Another encoder on each side, of another width; rows whose positions are all supervised."""
    shared = {"MAX_ITEM_LIST_LENGTH": 8, "kd_weight": 100, "scratch": False}
    own = {k: v for k, v in tiny.MODEL_OPTIONS["SASRec"].items() if k not in shared}
    causal = {"sequence_training": "causal", "train_batch_size": 16, "hidden_dropout_prob": 0.0}
    options = {
        **asked(method, tmp_path),
        **shared,
        "student": {**own, **causal, "learning_rate": 0.02, "epochs": 3},
        "teacher": {"embedding_size": 6},
    }
    result = run_recbole_kd(
        method, tiny.dataset(), config_dict=options, student="SASRec", teacher="LightGCN"
    )
    log = Path(result["checkpoints"]["student"]).with_name("metrics.jsonl")
    losses = [json.loads(line)["kd_loss"] for line in log.read_text().splitlines()]
    assert losses[0] > losses[1] > losses[2] > 0


# -- a trajectory ------------------------------------------------------------------------------

HET = {"teacher.epochs": 5, "teacher.learning_rate": 0.05, "teacher.save_every": 1}


@dataclasses.dataclass
class Found:
    """A run of HetComp: its folder and result, and the folder of its teacher."""

    saved: Path
    result: dict[str, Any]

    @property
    def teacher(self) -> Path:
        return Path(self.result["checkpoints"]["teacher"]).parent

    def copied(self, target: Path) -> Path:
        return Path(shutil.copytree(self.teacher, target))


@pytest.fixture(scope="module")
def het(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """A teacher that was trained and distilled with its earlier epochs."""
    folder = tmp_path_factory.mktemp("het")
    return Found(folder, run("HetComp", folder, **HET))


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"teacher.save_every": 0}, "--teacher.save_every=0: "),
        ({"saved": False, **HET}, "saved=False: "),
    ],
)
def test_no_trajectory_is_refused(
    more: dict[str, Any], found: str, tmp_path: Path, nothing_is_trained: None
) -> None:
    message = refused(
        found,
        f"--model=HetComp needs {NEEDS['trajectory']}",
        method="HetComp",
        folder=tmp_path,
        **more,
    )
    assert message.endswith(", ".join(methods_without("trajectory")))


def test_a_checkpoint_with_its_trajectory_teaches(het: Found, tmp_path: Path) -> None:
    """The same teacher, found by its path, teaches the same."""
    for path in (het.copied(tmp_path / "teacher"), het.teacher / "best.pt"):
        again = run(
            "HetComp",
            tmp_path / "saved",
            teacher=None,
            scratch=False,
            **{"teacher.checkpoint": str(path), "student.embedding_size": 4},
        )
        assert again["test_result"] == het.result["test_result"]
        assert again["best_valid_result"] == het.result["best_valid_result"]


def test_a_checkpoint_without_its_trajectory_is_refused(
    het: Found, tmp_path: Path, nothing_is_trained: None
) -> None:
    teacher = het.copied(tmp_path / "teacher")
    shutil.rmtree(teacher / "epochs")
    for path in (teacher, teacher / "best.pt"):
        refused(
            str(teacher / "best.pt"),
            f"--model=HetComp needs {NEEDS['trajectory']}",
            "--save_every",
            ", ".join(methods_without("trajectory")),
            method="HetComp",
            folder=tmp_path,
            teacher=None,
            **{"teacher.checkpoint": str(path), "scratch": True},
        )


@pytest.mark.parametrize("by_path", [True, False])
def test_too_few_epochs_are_refused_before_a_student_is_trained(
    by_path: bool, het: Found, nothing_is_trained: None
) -> None:
    kept = len(checkpoint.epoch_files(het.teacher))
    assert kept >= 2
    more = {"teacher": None, "teacher.checkpoint": str(het.teacher)} if by_path else HET
    message = refused(
        f"--hetcomp_checkpoints={kept + 2}: ",
        NEEDS["trajectory"],
        f"found {kept}",
        "--teacher.save_every",
        method="HetComp",
        folder=het.saved,
        **{**more, "hetcomp_checkpoints": kept + 2, "scratch": True},
    )
    assert "allowed" in message


def test_others_ignore_a_trajectory(het: Found, tmp_path: Path) -> None:
    first = run("RD", het.saved, **HET)
    copied = het.copied(tmp_path / "tiny" / het.teacher.name)
    shutil.rmtree(copied / "epochs")
    second = run("RD", tmp_path, **HET)
    assert Path(second["checkpoints"]["teacher"]).parent == copied
    assert not (copied / "epochs").exists()
    assert first["test_result"] == second["test_result"]


# -- an assistant ------------------------------------------------------------------------------


def roles(result: dict[str, Any]) -> list[str]:
    return [row["role"] for row in result["sizes"]]


def test_an_assistant_stands_between_teacher_and_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run("TARec", tmp_path, scratch=True)
    assert roles(result) == [
        "teacher",
        "teacher assistant",
        "student, from scratch",
        "student, TARec",
    ]
    assert "teacher assistant" in result["table"]
    (folder,) = (tmp_path / "tiny").glob("TARec-BPR-BPR-assistant-*")
    weights = checkpoint.load(folder / "best.pt")["state_dict"]
    # The geometric mean of 4 and 9.
    assert {v.shape[1] for v in weights.values()} == {6}
    numbers = [row["parameters"] for row in result["sizes"]]
    assert numbers[0] * 6 == numbers[1] * 9
    assert numbers[1] * 4 == numbers[3] * 6
    # It was distilled from the teacher, and the student from it.
    said = checkpoint.load(folder / "best.pt")["teacher"]
    digest = checkpoint.load(result["checkpoints"]["student"])["teacher"]["digest"]
    assert said["digest"] == Path(result["checkpoints"]["teacher"]).parent.name.partition("-")[2]
    assert digest == folder.name.rpartition("-")[2]

    trained: list[str] = []
    real = training.train

    def train(config: Any, split: Any, where: Path, **more: Any) -> Any:
        trained.append(where.name)
        return real(config, split, where, **more)

    monkeypatch.setattr(training, "train", train)
    again = run("TARec", tmp_path, scratch=True)
    monkeypatch.undo()
    assert trained == [Path(result["checkpoints"]["student"]).parent.name]
    assert again["test_result"] == result["test_result"]
    fixed = [{**row, "latency_ms": 0} for row in again["sizes"]]
    assert fixed == [{**row, "latency_ms": 0} for row in result["sizes"]]


def test_no_assistant_where_none_is_wanted_or_none_would_fit(tmp_path: Path) -> None:
    with_one = run("TARec", tmp_path)
    without = run("TARec", tmp_path, tarec_assistant=False)
    equal = run("TARec", tmp_path, **{"teacher.embedding_size": 4})
    assert "teacher assistant" in roles(with_one)
    for result in (without, equal):
        assert roles(result) == ["teacher", "student, TARec"]
        assert "teacher assistant" not in result["table"]
    students = {Path(r["checkpoints"]["student"]).parent for r in (with_one, without, equal)}
    assert len(students) == 3
    assert len(list((tmp_path / "tiny").glob("*assistant*"))) == 1


@pytest.mark.parametrize("teacher", [{"teacher": {"embedding_size": 16}}, {"embedding_size": 16}])
def test_an_assistant_has_a_width_that_the_student_reads_and_can_have(
    teacher: dict[str, Any], tmp_path: Path
) -> None:
    """SASRec's is ``hidden_size``, a multiple of its two heads: 11, the mean of 8 and 16, is 12."""
    own = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 2}
    options = {
        **asked("TARec", tmp_path),
        **{"scratch": False, "MAX_ITEM_LIST_LENGTH": 8},
        "student": {**own, "train_neg_sample_args": None},
        **teacher,
    }
    result = run_recbole_kd(
        "TARec", tiny.dataset(), config_dict=options, student="SASRec", teacher="BPR"
    )
    assert "teacher assistant" in roles(result)
    (folder,) = (tmp_path / "tiny").glob("*-assistant-*")
    weights = checkpoint.load(folder / "best.pt")["state_dict"]
    assert weights["item_embedding.weight"].shape[1] == 12


def test_methods_without_an_assistant_have_none(tmp_path: Path) -> None:
    for name, cls in CLASSES.items():
        config = tiny.config("BPR")
        config.final_config_dict.update({"tarec_assistant": True})
        assert (cls.assistant(config, 64) is not None) == (name == "TARec")
