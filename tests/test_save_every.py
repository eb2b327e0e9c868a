"""Models of earlier epochs, kept every ``save_every`` epochs up to the best one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from recbole_kd import checkpoint, load_model, run_recbole_kd, training
from recbole_kd.config import KDConfig
from recbole_kd.errors import KDError
from recbole_kd.options import Sources
from recbole_kd.training import fingerprint

EPOCHS, BEST = 6, 4
PEAK = {"epoch": BEST}
"""The epoch whose validation is the best of all."""


@pytest.fixture(scope="module", autouse=True)
def _scripted() -> Iterator[None]:
    """Validation gets better up to the peak, and worse from there."""
    original = training.RunTrainer._valid_epoch

    def scripted(self: Any, *args: Any, **kwargs: Any) -> Any:
        _, result = original(self, *args, **kwargs)
        return 1 - abs(self._epoch - PEAK["epoch"]) / 10, result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.RunTrainer, "_valid_epoch", scripted)
        yield


def run(folder: Path, **more: Any) -> Path:
    """Train a BPR alone; its folder."""
    settings = {"embedding_size": 4, "epochs": EPOCHS, "learning_rate": 0.02, **more}
    result = tiny.run("BPR", folder, **settings)
    return Path(result["checkpoints"]["student"]).parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps every epoch; never to be changed."""
    return run(tmp_path_factory.mktemp("whole"), save_every=1)


def kept(folder: Path) -> list[str]:
    return [file.name for file in checkpoint.epoch_files(folder)]


def contents(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {f.name: checkpoint.load(f)["state_dict"] for f in checkpoint.epoch_files(folder)}


def assert_same(first: Path, second: Path) -> None:
    """Same files, same weights."""
    mine, theirs = contents(first), contents(second)
    assert list(mine) == list(theirs)
    for name, weights in mine.items():
        assert all(torch.equal(value, theirs[name][key]) for key, value in weights.items()), name


def killed(folder: Path, before: int, last: int, **more: Any) -> Path:
    """A run that is killed before an epoch, its ``last.pt`` of an earlier one; its folder."""
    trains, validated = training.RunTrainer._train_epoch, training.RunTrainer._after_validation

    def train(self: Any, data: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        if epoch == before:
            raise KeyboardInterrupt
        return trains(self, data, epoch, *args, **kwargs)

    def after(self: Any, epoch: int, score: float) -> None:
        validated(self, epoch, score)
        if epoch == last:
            self._save_last(epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.RunTrainer, "_train_epoch", train)
        patch.setattr(training.RunTrainer, "_after_validation", after)
        patch.setattr(training.RunTrainer, "_save_last_if_due", lambda self, epoch: None)
        with pytest.raises(KeyboardInterrupt):
            run(folder, **more)
    (found,) = (folder / "tiny").glob("BPR-*")
    return found


# -- which files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "epochs"),
    [(0, []), (1, [0, 1, 2, 3]), (2, [1, 3]), (5, [])],
)
def test_every_nth_epoch_before_the_best_is_kept(
    tmp_path: Path, every: int, epochs: list[int]
) -> None:
    folder = run(tmp_path, save_every=every)
    assert kept(folder) == [f"{epoch:04d}.pt" for epoch in epochs]
    assert checkpoint.load(folder / "best.pt")["epoch"] == BEST
    for epoch, file in zip(epochs, checkpoint.epoch_files(folder), strict=True):
        assert checkpoint.load(file)["epoch"] == epoch
    every_file = {p.name for p in (folder / "epochs").glob("*")}
    assert every_file == set(kept(folder)), "something else was left there"
    if not every:
        assert not (folder / "epochs").exists()


def test_nothing_of_the_training_depends_on_it(whole: Path, tmp_path: Path) -> None:
    plain, logs = run(tmp_path), []
    for folder in (plain, whole):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        logs.append([{**json.loads(line), "seconds": None} for line in lines])
    assert logs[0] == logs[1]
    first, second = (checkpoint.load(f / "best.pt")["state_dict"] for f in (plain, whole))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_kept_model_is_the_best_of_a_run_that_ended_there(whole: Path, tmp_path: Path) -> None:
    """Each file opens as a model of its own: that of the epoch, ready to recommend."""
    loaded = [load_model(file) for file in checkpoint.epoch_files(whole)]
    assert len({str(m.model.item_embedding.weight.tolist()) for m in loaded}) == BEST
    for end in (1, 3):
        best, model = load_model(run(tmp_path / str(end), epochs=end)), loaded[end - 1]
        for name, value in best.model.state_dict().items():
            assert torch.equal(model.model.state_dict()[name], value)
        users = model.tokens.users[1:4]
        assert model.recommend(users, k=5) == best.recommend(users, k=5)


def test_a_distilled_student_is_kept_plain(tmp_path: Path) -> None:
    options = {
        **tiny.options("BPR", embedding_size=4, epochs=3, checkpoint_dir=str(tmp_path)),
        **{"student.save_every": 1, "ce_K": 10, "scratch": False},
    }
    result = run_recbole_kd("CE", tiny.dataset(), config_dict=options, student="BPR", teacher="BPR")
    student = Path(result["checkpoints"]["student"]).parent
    assert kept(student) == ["0000.pt", "0001.pt"]
    names = {"user_embedding.weight", "item_embedding.weight"}
    assert all(set(weights) == names for weights in contents(student).values())
    assert kept(Path(result["checkpoints"]["teacher"]).parent) == []


def test_nothing_is_kept_without_saving(tmp_path: Path) -> None:
    options = tiny.options("BPR", embedding_size=4, save_every=1, checkpoint_dir=str(tmp_path))
    run_recbole_kd("Scratch", tiny.dataset(), config_dict=options, student="BPR", saved=False)
    assert list(tmp_path.rglob("*.pt")) == []


@pytest.mark.parametrize("value", [-1, 1.5, "often", True])
def test_nonsense_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(KDError, match=f"--save_every={value}: allowed are whole numbers from 0"):
        run(tmp_path, save_every=value)


# -- life of a folder --------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "last"), [(3, 2), (4, 1)])
def test_a_killed_run_ends_with_the_same_files(
    whole: Path, tmp_path: Path, trained: list[int], before: int, last: int
) -> None:
    cut = killed(tmp_path, before, last, save_every=1)
    assert kept(cut) == [f"{epoch:04d}.pt" for epoch in range(before)]
    trained.clear()
    assert run(tmp_path, save_every=1, resume="auto") == cut
    assert trained == list(range(last + 1, EPOCHS))
    assert_same(cut, whole)
    assert run(tmp_path, save_every=1, resume="auto") == cut
    assert_same(cut, whole)


def test_a_fresh_run_in_the_same_folder_begins_anew(tmp_path: Path) -> None:
    cut = killed(tmp_path, 3, 1, save_every=2)
    checkpoint.epoch_file(cut, 2).write_bytes((cut / "best.pt").read_bytes())
    assert run(tmp_path, save_every=2) == cut
    assert kept(cut) == ["0001.pt", "0003.pt"]


def test_a_run_that_goes_on_from_a_finished_one_is_one_run(whole: Path, tmp_path: Path) -> None:
    """3 + 3 epochs are 6: what leads to the new best epoch leads over the old one."""
    half = run(tmp_path / "half", save_every=1, epochs=3)
    rest = run(tmp_path / "rest", save_every=1, resume=str(half))
    assert checkpoint.load(rest / "best.pt")["epoch"] == BEST
    assert_same(rest, whole)


def test_models_of_epochs_that_are_trained_again_are_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run may have kept models of epochs after its ``last.pt``."""
    monkeypatch.setitem(PEAK, "epoch", 1)
    cut = killed(tmp_path / "cut", 4, 1, save_every=1)
    assert kept(cut) == ["0000.pt", "0001.pt", "0002.pt", "0003.pt"]
    monkeypatch.undo()
    rest = run(tmp_path / "rest", save_every=4, learning_rate=0.03, resume=str(cut))
    assert checkpoint.load(rest / "best.pt")["epoch"] == BEST
    assert kept(rest) == ["0000.pt", "0001.pt", "0003.pt"]


# -- names of folders --------------------------------------------------------------------------


def config_of(**more: Any) -> KDConfig:
    sources = Sources.collect("Scratch", tiny.dataset(), "BPR", options=tiny.options("BPR", **more))
    return KDConfig(sources)


def test_folder_names_say_it_only_where_something_is_kept() -> None:
    part = tiny.split("BPR")
    plain, none = config_of(), config_of(save_every=0)
    prints = [fingerprint(config, part) for config in (plain, none)]
    assert prints[0] == prints[1]
    del none.final_config_dict["save_every"]  # as before there was such an option
    assert fingerprint(none, part) == prints[0]
    others = {fingerprint(config_of(save_every=every), part) for every in (1, 2, 10)}
    assert len(others) == 3
    assert prints[0] not in others


def test_a_teacher_is_trained_again_for_its_way_and_found_with_it(
    tmp_path: Path, trained: list[int]
) -> None:
    options = {
        **tiny.options("BPR", embedding_size=4, checkpoint_dir=str(tmp_path)),
        **{"teacher.epochs": 2, "ce_K": 10, "scratch": False},
    }
    teachers = []
    for more in ({}, {"teacher.save_every": 1}, {"teacher.save_every": 1}, {}):
        result = run_recbole_kd(
            "CE",
            tiny.dataset(),
            config_dict={**options, **more},
            student="BPR",
            teacher="BPR",
        )
        teachers.append(Path(result["checkpoints"]["teacher"]).parent)
    assert teachers[0] == teachers[3] != teachers[1] == teachers[2]
    assert trained == [0, 1, 0, 0, 1, 0, 0, 0]
    assert (kept(teachers[0]), kept(teachers[1])) == ([], ["0000.pt"])


def test_epoch_files_are_those_with_a_number(tmp_path: Path) -> None:
    assert checkpoint.epoch_files(None) == []
    assert checkpoint.epoch_files(tmp_path) == []
    (tmp_path / "epochs").mkdir()
    for name in ("0010.pt", "0002.pt", "10000.pt", ".0003.pt.7.tmp", "notes.pt", "0004.txt"):
        (tmp_path / "epochs" / name).touch()
    names = [file.name for file in checkpoint.epoch_files(tmp_path)]
    assert names == ["0002.pt", "0010.pt", "10000.pt"]
    assert checkpoint.epoch_file(tmp_path, 2) == tmp_path / "epochs" / "0002.pt"
