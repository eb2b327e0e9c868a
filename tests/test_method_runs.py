"""Every method through a whole run on real interactions, beside one teacher trained once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kd_helpers import small_options
from recbole.model.general_recommender import BPR

from recbole_kd import checkpoint, load_model, run_recbole_kd
from recbole_kd.registry import SCRATCH, method_class, method_names

NAMES = [name for name in method_names() if name != SCRATCH]
OPTIONS: dict[str, Any] = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "show_progress": False,
    "state": "WARNING",
    "scratch": False,
    "train_batch_size": 512,
    "learning_rate": 0.02,
    "student.embedding_size": 8,
    "student.epochs": 3,
    "teacher.embedding_size": 16,
    "teacher.epochs": 12,
    "teacher.save_every": 1,
    # The distillation loss alone moves the student, and what is drawn is drawn once: then it falls.
    "kd_weight": 100,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all runs share, and with it the teacher."""
    return tmp_path_factory.mktemp("saved")


def run(name: str, data: Path, saved: Path) -> dict[str, Any]:
    method = method_class(name)
    assert method is not None
    options = {**OPTIONS, **small_options(method)}
    if method.refreshes:
        options["refresh_every"] = 5
    options.update({"data_path": str(data), "checkpoint_dir": str(saved)})
    return run_recbole_kd(name, "small", student="BPR", teacher="BPR", config_dict=options)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_learns_from_its_teacher_and_ships_the_plain_student(
    name: str, small_data: Path, saved: Path
) -> None:
    result = run(name, small_data, saved)
    folder = Path(result["checkpoints"]["student"]).parent
    assert folder.name.startswith(f"{name}-BPR-BPR-")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["kd_loss"] for line in lines]
    assert len(losses) == 3
    assert losses[0] > losses[1] > losses[2] > 0
    # One teacher for all methods; an assistant is a folder of its method.
    assert [p.name for p in (saved / "small").glob("BPR-*")] == [
        Path(result["checkpoints"]["teacher"]).parent.name
    ]

    content = checkpoint.load(folder / "best.pt")
    shapes = {k: list(v.shape) for k, v in content["state_dict"].items()}
    users, items = (len(content["tokens"][kind]) for kind in ("users", "items"))
    assert shapes == {"user_embedding.weight": [users, 8], "item_embedding.weight": [items, 8]}
    loaded = load_model(folder)
    assert type(loaded.model) is BPR
    assert all(torch.equal(v, content["state_dict"][k]) for k, v in loaded.model.named_parameters())
    (best,) = loaded.recommend([loaded.tokens.users[1]], k=5)
    assert len(set(best)) == 5
    assert result["sizes"][-1]["parameters"] == 8 * (users + items)
    assert result["sizes"][-1]["role"] == f"student, {name}"
