"""Shared fixtures: small data cut from ml-100k, which ships inside RecBole."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ML100K, config_for, ml100k_rows, write_dataset

from recbole_kd import report, training
from recbole_kd.data import Split, load_split

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


LONGEST = ("benchmark", "trainer", "pair_runs", "run", "config", "per_user", "score_file", "docs")
"""Modules that take longest, begun first: two workers then end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest modules first; the order within a module stays."""
    places = {f"test_{name}": n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True, scope="session")
def _brief_timings():
    """Every run of a test ends with timings, half of its time, that no test looks at."""
    before, report.TIMED_SECONDS = report.TIMED_SECONDS, 1e-3
    yield
    report.TIMED_SECONDS = before


@pytest.fixture(autouse=True)
def _quiet_logging():
    """Tests that start a run must not leave its handlers behind."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every epoch that is trained from here on."""
    epochs: list[int] = []
    original = training.RunTrainer._train_epoch

    def counted(self: Any, data: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        epochs.append(epoch)
        return original(self, data, epoch, *args, **kwargs)

    monkeypatch.setattr(training.RunTrainer, "_train_epoch", counted)
    return epochs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set ``tiny``, its real times kept; a module's own, for runs write."""
    return write_dataset(tmp_path_factory.mktemp("data"), ml100k_rows())


@pytest.fixture(scope="module")
def split(root: Path) -> Split:
    """The default split of ``root``."""
    return load_split(config_for(root))


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set ``small``: the first 80 users of ml-100k by id, real times."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "small").mkdir()
    header, *rows = ML100K.read_text(encoding="utf-8").splitlines()
    kept = [row for row in rows if int(row.split("\t")[0]) <= 80]
    text = "\n".join([header, *kept]) + "\n"
    (folder / "small" / "small.inter").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def small_options(small_data: Path, tmp_path: Path) -> dict:
    """Options of a quick run on ``small`` that writes to the test's own folder."""
    return {
        "data_path": str(small_data),
        "checkpoint_dir": str(tmp_path / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "show_progress": False,
        "state": "WARNING",
        "epochs": 2,
        "student.embedding_size": 8,
        "teacher.embedding_size": 16,
    }
