"""End to end on real ml-100k: distillation must beat the same student from scratch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from recbole_kd import load_model, run_recbole_kd

OPTIONS = {
    "show_progress": False,
    "state": "WARNING",
    "learning_rate": 0.005,
    "teacher.embedding_size": 64,
    "teacher.epochs": 15,
    "student.embedding_size": 8,
    "student.epochs": 12,
    "student.stopping_step": 20,
}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    options = {**OPTIONS, "checkpoint_dir": str(folder)}
    return run_recbole_kd("RCEKD", "ml-100k", student="BPR", teacher="BPR", config_dict=options)


def test_distilled_student_beats_the_scratch_student_by_a_margin(result):
    teacher, scratch, student = (
        result[key]["ndcg@10"]
        for key in ("teacher_test_result", "scratch_test_result", "test_result")
    )
    # A distillation gradient of zero would make the two students equal.
    assert student > scratch + 0.01
    assert teacher > scratch
    assert student > 0.2


def test_result_has_recboles_keys_and_ours(result):
    for key in ("best_valid_score", "valid_score_bigger", "best_valid_result", "test_result"):
        assert result[key] is not None
    assert set(result["checkpoints"]) >= {"student", "teacher", "scratch"}
    roles = [row["role"] for row in result["sizes"]]
    assert roles == ["teacher", "student, from scratch", "student, RCEKD"]
    teacher, scratch, student = result["sizes"]
    assert student["parameters"] == scratch["parameters"] == (944 + 1683) * 8
    assert teacher["weight_bytes"] == (944 + 1683) * 64 * 4
    assert all(row["latency_ms"] > 0 for row in result["sizes"])
    for word in ("recall@10", "ndcg@10", "parameters", "top-10, one user"):
        assert word in result["table"]


def test_the_epoch_log_says_what_the_documentation_promises(result):
    folder = Path(result["checkpoints"]["student"]).parent
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(12))
    for line in lines:
        assert {"base_loss", "kd_loss", "overlap_topk", "weight_g"} <= set(line)
        assert {"teacher_items_beyond_M", "ndcg@10_vs_teacher", "valid"} <= set(line)
        assert set(line["seconds"]) == {"refresh", "train", "eval"}
    # The student comes to agree with its teacher.
    assert lines[-1]["ndcg@10_vs_teacher"] > 5 * lines[0]["ndcg@10_vs_teacher"]
    assert lines[-1]["weight_g"] < lines[0]["weight_g"]
    resolved = yaml.safe_load((folder / "resolved.yaml").read_text())
    assert resolved["embedding_size"] == 8
    summary = json.loads((folder / "summary.json").read_text())
    assert "eval_history all" in summary["protocol"]
    assert "repeatable False" in summary["protocol"]
    assert list((folder / "tensorboard").iterdir())


def test_the_shipped_student_recommends_without_data_or_teacher(result):
    loaded = load_model(result["checkpoints"]["student"])
    lists = loaded.recommend(["196", "186"], k=5)
    assert [len(items) for items in lists] == [5, 5]
    seen = loaded.history.offsets
    user = loaded.tokens.users.index("196")
    own = loaded.history.items[seen[user] : seen[user + 1]].tolist()
    assert not {loaded.tokens.items[i] for i in own} & set(lists[0])
    assert sum(p.numel() for p in loaded.model.parameters()) == (944 + 1683) * 8


@pytest.mark.parametrize(
    "pair",
    [("LightGCN", "BPR"), ("BPR", "NeuMF"), ("BPR", "MultiVAE"), ("BPR", "Pop"), ("BPR", "EASE")],
)
def test_pairs_of_general_models(pair, small_options, tmp_path):
    student, teacher = pair
    options = {k: v for k, v in small_options.items() if not k.startswith("teacher")}
    small = {"rcekd_K": 10, "rcekd_L": 10, "rcekd_M": 40, "scratch": False}
    result = run_recbole_kd(
        "RCEKD",
        "small",
        student=student,
        teacher=teacher,
        config_dict={**options, **small},
    )
    assert result["test_result"]["ndcg@10"] > 0


def test_sequential_pair(small_options):
    options = {k: v for k, v in small_options.items() if "embedding_size" not in k}
    small = {
        "rcekd_K": 10,
        "rcekd_L": 10,
        "rcekd_M": 40,
        "scratch": False,
        "MAX_ITEM_LIST_LENGTH": 8,
        "teacher.epochs": 1,
    }
    result = run_recbole_kd(
        "RCEKD", "small", student="GRU4Rec", teacher="SASRec", config_dict={**options, **small}
    )
    assert 0 <= result["test_result"]["ndcg@10"] <= 1
    folder = Path(result["checkpoints"]["student"]).parent
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["kd_loss"] < lines[0]["kd_loss"]


def test_the_method_of_the_readme_works_from_outside(small_options, tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    section = text.split("## Add a method")[1]
    code = section.split("```python")[1].split("```")[0]
    defaults = yaml.safe_load(section.split("```yaml")[1].split("```")[0])
    module = f"{code}\nFoo.defaults = {defaults!r}\n"
    (tmp_path / "outside_method.py").write_text(module, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {**small_options, "scratch": False, "foo_K": 20}
    result = run_recbole_kd(
        "outside_method:Foo", "small", student="BPR", teacher="BPR", config_dict=options
    )
    folder = Path(result["checkpoints"]["student"]).parent
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["kd_loss"] < lines[0]["kd_loss"]
