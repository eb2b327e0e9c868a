"""Training: exact resume, checkpoints, early stopping, NaN, the optimiser's fast form."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from recbole_kd import checkpoint, optim, run_recbole_kd, training
from recbole_kd.config import KDConfig
from recbole_kd.data import load_split
from recbole_kd.errors import KDError
from recbole_kd.loaders import make_loaders
from recbole_kd.options import Sources
from recbole_kd.trainer import make_trainer, random_state, restore_random_state


def distil(options: dict, **more) -> dict:
    return run_recbole_kd(
        "RCEKD", "small", student="BPR", teacher="BPR", config_dict={**options, **more}
    )


def weights(result: dict) -> dict[str, torch.Tensor]:
    return checkpoint.load(result["checkpoints"]["student"])["state_dict"]


def log_of(result: dict) -> list[dict]:
    path = Path(result["checkpoints"]["student"]).parent / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("seconds")
    return lines


@pytest.fixture
def options(small_options: dict) -> dict:
    small = {"rcekd_K": 10, "rcekd_L": 10, "rcekd_M": 40, "scratch": False}
    return {**small_options, **small, "save_last_seconds": 0, "stopping_step": 50}


@pytest.mark.parametrize("rows", ["user", "interaction"])
def test_two_and_two_epochs_are_four(options, tmp_path, rows):
    # refresh_every 3: the resumed run starts in the middle of a refresh period.
    options = {**options, "kd_rows": rows, "refresh_every": 3, "teacher.epochs": 2}
    whole = distil(options, **{"student.epochs": 4})
    half = distil(options, **{"student.epochs": 2})
    folder = Path(half["checkpoints"]["student"]).parent
    rest = distil(
        options,
        **{"student.epochs": 4, "checkpoint_dir": str(tmp_path / "other"), "resume": str(folder)},
    )
    assert log_of(rest) == log_of(whole)
    assert rest["test_result"] == whole["test_result"]
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(rest)[name])


def test_a_killed_run_goes_on_bit_for_bit(options, monkeypatch):
    options = {**options, "epochs": 5, "teacher.epochs": 1}
    whole = distil(options)
    expected, expected_log = weights(whole), log_of(whole)

    original = training.RunTrainer._train_epoch

    def killed(self, train_data, epoch_idx, *args, **kwargs):
        result = original(self, train_data, epoch_idx, *args, **kwargs)
        if epoch_idx == 3 and hasattr(self.model, "begin_epoch"):
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(training.RunTrainer, "_train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        distil(options)
    monkeypatch.undo()
    rest = distil(options, resume="auto")
    assert log_of(rest) == expected_log
    assert all(torch.equal(v, weights(rest)[k]) for k, v in expected.items())


def test_resuming_a_finished_run_changes_nothing(options):
    first = distil(options)
    before = log_of(first)
    again = distil(options, resume="auto")
    assert again["test_result"] == first["test_result"]
    assert log_of(again) == before


def test_a_killed_teacher_goes_on(options, monkeypatch):
    whole = distil({**options, "teacher.epochs": 4})
    folder = Path(whole["checkpoints"]["teacher"]).parent
    expected = checkpoint.load(folder / "best.pt")["state_dict"]
    original = training.RunTrainer._train_epoch

    def killed(self, train_data, epoch_idx, *args, **kwargs):
        if epoch_idx == 2 and not hasattr(self.model, "begin_epoch"):
            self._save_last(epoch_idx - 1)
            raise KeyboardInterrupt
        return original(self, train_data, epoch_idx, *args, **kwargs)

    for name in ("best.pt", "last.pt", "result.json"):
        (folder / name).unlink()
    monkeypatch.setattr(training.RunTrainer, "_train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        distil({**options, "teacher.epochs": 4})
    monkeypatch.undo()
    distil({**options, "teacher.epochs": 4})
    found = checkpoint.load(folder / "best.pt")["state_dict"]
    assert all(torch.equal(v, found[k]) for k, v in expected.items())
    epochs = [json.loads(x)["epoch"] for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [0, 1, 2, 3]


def test_same_seed_same_numbers_twice(options, tmp_path):
    first = distil(options)
    second = distil({**options, "checkpoint_dir": str(tmp_path / "second")})
    assert log_of(first) == log_of(second)
    assert first["test_result"] == second["test_result"]
    third = distil({**options, "checkpoint_dir": str(tmp_path / "third")}, seed=7)
    assert log_of(first) != log_of(third)


def test_nothing_is_written_and_the_best_epoch_is_tested_without_saving(options, tmp_path):
    saved = distil({**options, "epochs": 3})
    folder = tmp_path / "never"
    unsaved = run_recbole_kd(
        "RCEKD",
        "small",
        student="BPR",
        teacher="BPR",
        saved=False,
        config_dict={**options, "epochs": 3, "checkpoint_dir": str(folder)},
    )
    assert unsaved["test_result"] == saved["test_result"]
    assert not folder.exists()


def test_teacher_is_reused_by_the_next_run_that_asks_for_the_same(options):
    first = distil(options)
    teacher = Path(first["checkpoints"]["teacher"])
    stamp = teacher.stat().st_mtime_ns
    second = distil(options, rcekd_beta=1.0)
    assert second["checkpoints"]["teacher"] == str(teacher)
    assert teacher.stat().st_mtime_ns == stamp
    assert second["teacher_test_result"] == first["teacher_test_result"]
    for change in ({"teacher.embedding_size": 17}, {"teacher.seed": 3}, {"split_seed": 1}):
        assert distil(options, **change)["checkpoints"]["teacher"] != str(teacher)


@pytest.fixture
def epochs(monkeypatch) -> list[int]:
    """Every epoch that is trained from here on."""
    trained: list[int] = []
    original = training.RunTrainer._train_epoch

    def counted(self, train_data, epoch_idx, *args, **kwargs):
        trained.append(epoch_idx)
        return original(self, train_data, epoch_idx, *args, **kwargs)

    monkeypatch.setattr(training.RunTrainer, "_train_epoch", counted)
    return trained


def test_other_metrics_are_measured_on_what_is_trained(options, tmp_path, epochs):
    other = {"topk": [5, 10], "metrics": ["NDCG", "Hit"], "eval_history": "train"}
    distil(options)
    epochs.clear()
    found = distil(options, resume="auto", **other)
    assert epochs == []
    fresh = distil(options, **other, checkpoint_dir=str(tmp_path / "fresh"))
    for key in ("teacher_test_result", "test_result", "best_valid_result", "best_valid_score"):
        assert found[key] == fresh[key]
    assert set(found["test_result"]) == {"ndcg@5", "ndcg@10", "hit@5", "hit@10"}
    kept = Path(found["checkpoints"]["teacher"]).with_name("result.json")
    assert json.loads(kept.read_text())["test_result"] == fresh["teacher_test_result"]


def test_metrics_of_the_catalogue_are_measured_on_what_is_trained(options, epochs):
    distil(options)
    epochs.clear()
    tails = []
    for ratio in (0.1, 0.6):
        more = {"metrics": ["NDCG", "ItemCoverage", "TailPercentage"], "tail_ratio": ratio}
        result = distil(options, resume="auto", **more)
        assert 0 < result["test_result"]["itemcoverage@10"] <= 1
        tails.append(result["teacher_test_result"]["tailpercentage@10"])
    assert epochs == []
    assert tails[0] != tails[1]


def test_a_sampled_ranking_is_part_of_the_training(options, epochs):
    options = {**options, "eval_args": {"mode": "uni20"}}
    first = distil(options)
    epochs.clear()
    assert distil(options, resume="auto")["best_valid_result"] == first["best_valid_result"]
    assert epochs == []
    other = distil(options, topk=[5, 10], resume="auto")
    assert len(epochs) > 0
    assert other["checkpoints"]["teacher"] != first["checkpoints"]["teacher"]


def alone(options: dict, **more) -> dict:
    kept = {k: v for k, v in options.items() if not k.startswith(("rcekd", "teacher", "scratch"))}
    return run_recbole_kd("Scratch", "small", student="BPR", config_dict={**kept, **more})


def test_a_model_alone_and_the_tables_scratch_student_are_one_training(options, epochs):
    result = alone(options)
    trained = len(epochs)
    beside = distil(options, scratch=True, **{"teacher.epochs": 1, "student.epochs": 1})
    assert beside["checkpoints"]["scratch"] != result["checkpoints"]["student"]
    epochs.clear()
    beside = distil(options, scratch=True, **{"teacher.epochs": 1})
    assert beside["checkpoints"]["scratch"] == result["checkpoints"]["student"]
    assert beside["scratch_test_result"] == result["test_result"]
    # What is named is trained; what stands beside it is found.
    assert len(epochs) == trained
    for resume, expected in (("auto", 0), (None, trained), (False, trained)):
        epochs.clear()
        assert alone(options, resume=resume)["test_result"] == result["test_result"]
        assert len(epochs) == expected


def test_a_run_that_goes_on_from_another_is_never_found_for_a_fresh_one(options):
    other = alone(options, learning_rate=0.05, seed=1, epochs=2)
    source = Path(other["checkpoints"]["student"]).parent
    hybrid = alone(options, epochs=4, resume=str(source))
    fresh = alone(options, epochs=4, resume="auto")
    assert hybrid["checkpoints"]["student"] != fresh["checkpoints"]["student"]
    assert log_of(hybrid)[:2] == log_of(other)
    assert log_of(hybrid) != log_of(fresh)
    again = alone(options, epochs=4)
    assert log_of(again) == log_of(fresh)


def test_a_run_does_not_go_on_under_another_metric(options):
    first = alone(options)
    folder = Path(first["checkpoints"]["student"]).parent
    for given, message in (
        ({"valid_metric": "Recall@10"}, "its valid_metric is ndcg@10, here it is recall@10"),
        ({"repeatable": True}, "its repeatable is False, here it is True"),
    ):
        with pytest.raises(KDError, match=message):
            alone(options, resume=str(folder), **given)
    again = alone(options, resume=str(folder), valid_metric="ndcg@10")
    assert again["best_valid_score"] == first["best_valid_score"]


def test_a_killed_run_that_went_on_from_another_goes_on(options, monkeypatch, tmp_path):
    source = Path(alone(options, epochs=2)["checkpoints"]["student"]).parent
    more = {"epochs": 6, "learning_rate": 0.002, "resume": str(source)}
    whole = alone(options, **more, checkpoint_dir=str(tmp_path / "whole"))
    trained: list[int] = []
    original = training.RunTrainer._train_epoch

    def killed(self, train_data, epoch_idx, *args, **kwargs):
        trained.append(epoch_idx)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return original(self, train_data, epoch_idx, *args, **kwargs)

    monkeypatch.setattr(training.RunTrainer, "_train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        alone(options, **more)
    rest = alone(options, **more)
    assert trained == [2, 3, 4, 3, 4, 5]
    assert log_of(rest) == log_of(whole)
    assert rest["test_result"] == whole["test_result"]


def test_other_ids_are_another_training(options, tmp_path):
    """Weights go by internal id, and those by the order of the file."""
    result = alone(options)
    folder = tmp_path / "shuffled" / "small"
    shutil.copytree(Path(options["data_path"]) / "small", folder)
    (file,) = folder.glob("*.inter")
    header, *rows = file.read_text().splitlines()
    file.write_text("\n".join([header, *reversed(rows)]) + "\n")
    other = {"data_path": str(folder.parent)}
    again = alone(options, **other, resume="auto")
    assert again["checkpoints"]["student"] != result["checkpoints"]["student"]
    with pytest.raises(KDError, match="its split is"):
        alone(options, **other, resume=str(Path(result["checkpoints"]["student"]).parent))


def test_the_folder_of_somebody_else_is_read(options, monkeypatch):
    first = distil(options)
    folder = Path(first["checkpoints"]["teacher"]).parent
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    allowed = training.os.access
    monkeypatch.setattr(
        training.os, "access", lambda path, mode: Path(path) != folder and allowed(path, mode)
    )
    second = distil(options, topk=[10, 15])
    assert second["teacher_test_result"]["ndcg@10"] == first["teacher_test_result"]["ndcg@10"]
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


HOLD = """
import sys
from pathlib import Path
from recbole_kd.training import locked
with locked(Path(sys.argv[1]), wait=False):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_two_processes_never_write_one_folder(options):
    first = distil(options)
    folder = Path(first["checkpoints"]["student"]).parent
    teacher = Path(first["checkpoints"]["teacher"]).parent

    def holder(path):
        command = [sys.executable, "-c", HOLD, str(path)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "held\n"
        return process

    with holder(folder) as process:
        with pytest.raises(KDError, match=f"{folder.name}: another process"):
            distil(options)
        process.kill()
    with holder(teacher) as process:
        timer = threading.Timer(1.0, process.kill)
        timer.start()
        assert distil(options)["test_result"] == first["test_result"]
        assert process.poll() is not None  # it waited


def test_nan_stops_with_epoch_and_batch(options, monkeypatch):
    from recbole_kd.methods.rcekd import RCEKD

    original = RCEKD.calculate_loss
    calls = []

    def poisoned(self, interaction):
        calls.append(1)
        base, kd = original(self, interaction)
        # Epoch 1, batch 2.
        return base, kd * (float("nan") if len(calls) == self.batches_an_epoch + 3 else 1.0)

    split_epoch = RCEKD.begin_epoch

    def begin(self, epoch, n_batches):
        self.batches_an_epoch = n_batches
        split_epoch(self, epoch, n_batches)

    monkeypatch.setattr(RCEKD, "calculate_loss", poisoned)
    monkeypatch.setattr(RCEKD, "begin_epoch", begin)
    with pytest.raises(KDError, match="epoch 1, batch 2") as error:
        distil({**options, "train_batch_size": 512})
    assert "\n" not in str(error.value)


def test_early_stopping_keeps_the_best_epoch(options, monkeypatch):
    scores = iter([0.1, 0.3, 0.2, 0.1, 0.05, 0.9])
    original = training.RunTrainer._valid_epoch

    def scripted(self, *args, **kwargs):
        score, result = original(self, *args, **kwargs)
        return (next(scores), result) if hasattr(self.model, "begin_epoch") else (score, result)

    monkeypatch.setattr(training.RunTrainer, "_valid_epoch", scripted)
    result = distil({**options, "epochs": 20, "stopping_step": 2, "teacher.epochs": 1})
    assert result["best_valid_score"] == 0.3
    assert result["best_epoch"] == 1
    assert result["epochs"] == 5


def test_resume_of_something_else_is_refused(options):
    result = distil(options)
    with pytest.raises(KDError, match=r"no last\.pt"):
        distil(options, resume=result["checkpoints"]["student"])
    folder = Path(result["checkpoints"]["student"]).parent
    with pytest.raises(KDError, match="does not fit"):
        distil({**options, "student.embedding_size": 5}, resume=str(folder))


def test_random_state_round_trip_is_plain_data(tmp_path):
    import random

    import numpy as np

    class Loader:
        generator = torch.Generator().manual_seed(3)

    state = random_state(Loader)
    checkpoint.save(tmp_path / "s.pt", {"state_dict": {}, "random": state})

    def draw():
        return (
            torch.rand(3).tolist(),
            np.random.rand(3).tolist(),  # noqa: NPY002
            [random.random() for _ in range(3)],
            torch.rand(3, generator=Loader.generator).tolist(),
        )

    first = draw()
    restore_random_state(checkpoint.load(tmp_path / "s.pt")["random"], Loader)
    assert draw() == first


class TwoTables(nn.Module):
    def __init__(self):
        super().__init__()
        self.users, self.items = nn.Embedding(30, 4), nn.Embedding(40, 4, padding_idx=0)
        self.head = nn.Linear(4, 1)

    def forward(self, users, items):
        # One table also enters densely, as in a model with tied weights.
        mixed = self.items(items) + self.items(items.flip(0)) + self.items.weight.mean(0)
        return self.head(self.users(users) * mixed).square().sum()


def test_fast_adam_is_adam():
    torch.manual_seed(0)
    slow, fast = TwoTables(), TwoTables()
    fast.load_state_dict(slow.state_dict())
    plain = torch.optim.Adam(slow.parameters(), lr=0.01, weight_decay=0.1, eps=1e-9, foreach=False)
    quick = torch.optim.Adam(fast.parameters(), lr=0.01, weight_decay=0.1)
    optim.speed_up(quick, fast, eps=1e-9, clipped=False)
    assert fast.items.sparse
    for step in range(20):
        users = torch.randint(30, (50,), generator=torch.Generator().manual_seed(step))
        items = torch.randint(40, (50,), generator=torch.Generator().manual_seed(step + 99))
        for model, optimizer in ((slow, plain), (fast, quick)):
            optimizer.zero_grad()
            model(users, items).backward()
            optimizer.step()
    for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_other_optimisers_and_clipped_gradients_stay_dense():
    for optimizer, clipped in (
        (torch.optim.SGD(TwoTables().parameters(), lr=0.1), False),
        (torch.optim.Adam(TwoTables().parameters()), True),
    ):
        model = TwoTables()
        optim.speed_up(optimizer, model, 1e-8, clipped)
        assert not model.items.sparse


def test_clipping_works_through_the_trainer(options):
    result = distil(options, clip_grad_norm={"max_norm": 1.0})
    assert result["test_result"]["ndcg@10"] > 0


def test_optimiser_holds_student_and_method_parameters_only(options):
    sources = Sources.collect("RCEKD", "small", "BPR", "BPR", options=options)
    config = KDConfig(sources)
    split = load_split(config)
    model = training.build_plain(config, split)
    model.item_embedding.weight.requires_grad_(False)
    trainer = make_trainer(config, model, None)
    held = {id(p) for g in trainer.optimizer.param_groups for p in g["params"]}
    assert held == {id(model.user_embedding.weight)}


def test_recbole_special_trainers_are_kept(options):
    result = run_recbole_kd(
        "Scratch",
        "small",
        student="ItemKNN",
        config_dict={
            k: v
            for k, v in options.items()
            if not k.startswith(("rcekd", "student", "teacher")) and k != "scratch"
        },
    )
    assert result["test_result"]["ndcg@10"] > 0


def test_no_space_is_said_before_training(options, monkeypatch):
    monkeypatch.setattr(
        checkpoint.shutil, "disk_usage", lambda path: type("U", (), {"free": 1000})()
    )
    with pytest.raises(KDError, match="MiB free") as error:
        distil(options)
    assert "checkpoint_dir" in str(error.value)


def test_loaders_of_a_method_see_the_batches_of_the_scratch_student(options):
    sources = Sources.collect("RCEKD", "small", "BPR", "BPR", options=options)
    split = load_split(KDConfig(sources))
    seen = []
    for role in ("student", "scratch"):
        config = KDConfig(sources, role)
        training.build_plain(config, split)
        training.init_seed(config["seed"], True)
        train = make_loaders(config, split)[0]
        seen.append([tuple(b[f].tolist() for f in b.interaction) for b in train])
    assert seen[0] == seen[1]


def test_importing_us_leaves_anomaly_detection_off():
    """RecBole's SINE turns it on for the whole process, and every backward pass gets slower."""
    code = "import sys, torch\n"
    for module in ("registry", "scoring", "quick_start"):
        code += f"import recbole_kd.{module}\nassert not torch.is_anomaly_enabled()\n"
    code += "assert 'recbole.model.sequential_recommender.sine' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
