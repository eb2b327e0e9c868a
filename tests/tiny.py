"""Small real data and models, cut from RecBole's ml-100k.

One data set is shared by all tests and never changed: its 60 most active users and 120 most
popular items, as atomic files in a folder that is removed at exit. Where a test needs a folder of
its own, the writers below fill it with the rows it wants, in real times.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
from torch import Tensor, nn

from recbole_kd import checkpoint, compat, deploy, training
from recbole_kd.config import KDConfig
from recbole_kd.data import Split, load_split
from recbole_kd.options import Sources
from recbole_kd.quick_start import run_recbole_kd

Row = tuple[str, str, float]
"""User, item, time."""

ML100K = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"
OPTIONS: dict[str, Any] = {
    "state": "WARNING",
    "show_progress": False,
    "use_gpu": False,
    "epochs": 1,
    "train_batch_size": 512,
    "save_last_seconds": 0,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
}
MODEL_OPTIONS: dict[str, dict[str, Any]] = {
    "BPR": {"embedding_size": 8},
    "LightGCN": {"embedding_size": 8, "n_layers": 2},
    "SimpleX": {
        "embedding_size": 8,
        "history_len": 20,
        "train_neg_sample_args": {"distribution": "uniform", "sample_num": 4},
    },
    "SASRec": {
        "MAX_ITEM_LIST_LENGTH": 8,
        "n_layers": 1,
        "hidden_size": 8,
        "inner_size": 16,
        "train_neg_sample_args": None,
    },
    "GRU4Rec": {
        "embedding_size": 8,
        "MAX_ITEM_LIST_LENGTH": 8,
        "hidden_size": 8,
        "num_layers": 1,
        "train_neg_sample_args": None,
    },
    "NeuMF": {"mf_embedding_size": 4, "mlp_embedding_size": 4, "mlp_hidden_size": [8]},
    "MultiVAE": {
        "mlp_hidden_size": [16],
        "latent_dimension": 8,
        "train_neg_sample_args": None,
    },
    "MultiDAE": {
        "mlp_hidden_size": [16],
        "latent_dimension": 8,
        "train_neg_sample_args": None,
    },
}


@functools.cache
def data_path() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="recbole_kd_tests_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def interactions() -> list[tuple[str, str, str, str]]:
    """The rows of the tiny data set: user, item, rating, time.

    Times are ranks: RecBole reads them in single precision, which cannot tell seconds apart.
    """
    rows = [line.split("\t") for line in ML100K.read_text(encoding="utf-8").splitlines()[1:]]
    for column, kept in ((1, 120), (0, 60)):
        counts: dict[str, int] = {}
        for row in rows:
            counts[row[column]] = counts.get(row[column], 0) + 1
        best = set(sorted(counts, key=lambda token: (-counts[token], token))[:kept])
        rows = [row for row in rows if row[column] in best]
    ranks = {time: str(i) for i, time in enumerate(sorted({row[3] for row in rows}, key=float))}
    return [(user, item, rating, ranks[time]) for user, item, rating, time in rows]


def write(name: str, rows: list[tuple[str, str, str, str]]) -> str:
    """Write an atomic file; returns the name of the data set."""
    folder = data_path() / name
    folder.mkdir(exist_ok=True)
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    lines = [header, *("\t".join(row) for row in rows)]
    (folder / f"{name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name


@functools.cache
def dataset(name: str = "tiny") -> str:
    """``tiny``, or ``permuted``: the same rows in another order, so that all ids differ."""
    rows = list(interactions())
    if name == "permuted":
        random.Random(5).shuffle(rows)
    return write(name, rows)


def options(model: str, **more: Any) -> dict[str, Any]:
    own = MODEL_OPTIONS.get(model, {})
    return {**OPTIONS, "data_path": str(data_path()), **own, **more}


def config(model: str, data: str = "tiny", **more: Any) -> KDConfig:
    """The configuration of a model trained alone."""
    if data in ("tiny", "permuted"):
        dataset(data)
    sources = Sources.collect("Scratch", data, model, options=options(model, **more))
    return KDConfig(sources)


@functools.cache
def split(family: str = "BPR", data: str = "tiny", seed: int = 2020) -> Split:
    """The split for models of the same family as ``family``; shared, never to be changed."""
    return load_split(config(family, data, split_seed=seed))


def model(name: str, data: str = "tiny", spread: float = 1.0, **more: Any) -> nn.Module:
    """A fresh model in eval mode; random weights that are far from equal."""
    built = training.build_plain(config(name, data, **more), split_for(name, data))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, spread, generator=generator)
        for part in built.modules():
            if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                part.weight[part.padding_idx] = 0  # as training leaves it
    return built.eval()


def split_for(name: str, data: str = "tiny", seed: int = 2020) -> Split:
    return split("SASRec" if name in ("SASRec", "GRU4Rec") else "BPR", data, seed)


def save(name: str, path: Path, data: str = "tiny", seed: int = 2020, **more: Any) -> Path:
    """A checkpoint of an untrained model, as a run writes it."""
    options = config(name, data, split_seed=seed, **more)
    part = split_for(name, data, seed)
    built = training.build_plain(options, part)
    content = deploy.describe(options, part, epoch=0, best_valid_score=0.5)
    checkpoint.save(path, {**content, "state_dict": built.state_dict()})
    return path


def run(name: str, folder: Path, data: str = "tiny", **more: Any) -> dict[str, Any]:
    """Train one model alone for an epoch."""
    dataset(data)
    settings = options(name, checkpoint_dir=str(folder), **more)
    return run_recbole_kd("Scratch", data, config_dict=settings, student=name)


def distil(folder: Path, teacher: Path, student: str = "BPR", **more: Any) -> dict[str, Any]:
    """One epoch of CE from a teacher's checkpoint, without scratch student."""
    settings = {
        **options(student, **more),
        "checkpoint_dir": str(folder),
        "scratch": False,
        "ce_K": 10,
        "teacher": {"checkpoint": str(teacher)},
    }
    return run_recbole_kd("CE", dataset(), config_dict=settings, student=student)


def users_of(part: Split, count: int = 9) -> Tensor:
    """Some active users, one of them twice, in no order."""
    users = part.history.active_users()
    picked = users[torch.randperm(len(users), generator=torch.Generator().manual_seed(1))][:count]
    return torch.cat([picked, picked[:1]])


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_recbole(name: str, folder: Path, data: str = "tiny", seed: int = 2020, **more: Any) -> Path:
    """Train a model for an epoch with RecBole's own classes; returns its ``.pth``.

    All that differs from RecBole's ``run_recbole`` is that numpy 2 gets its missing names.
    """
    dataset(data)
    folder.mkdir(parents=True, exist_ok=True)
    settings = options(name, checkpoint_dir=str(folder), seed=seed, topk=[10], **more)
    settings["valid_metric"] = "NDCG@10"
    with (
        inside(folder),
        mock.patch.object(Config, "compatibility_settings"),
        mock.patch.object(sys, "argv", ["run"]),
    ):
        compat.numpy_aliases()
        chosen = Config(model=name, dataset=data, config_dict=settings)
        init_seed(chosen["seed"], chosen["reproducibility"])
        whole = create_dataset(chosen)
        train, valid, _ = data_preparation(chosen, whole)
        init_seed(chosen["seed"], chosen["reproducibility"])
        built = get_model(name)(chosen, train.dataset)
        trainer = get_trainer(chosen["MODEL_TYPE"], name)(chosen, built)
        trainer.fit(train, valid, verbose=False, show_progress=False)
    (path,) = folder.glob("*.pth")
    return path


# -- data sets in a folder of the test's own ---------------------------------------------------


def ml100k_rows(users: int = 80, items: int = 150) -> list[Row]:
    """The interactions of the first users of ml-100k with its most frequent items."""
    lines = ML100K.read_text(encoding="utf-8").splitlines()[1:]
    table = [(u, i, float(t)) for u, i, _, t in (line.split("\t") for line in lines)]
    tokens, counts = np.unique([i for _, i, _ in table], return_counts=True)
    frequent = set(tokens[np.argsort(-counts, kind="stable")[:items]])
    return [r for r in table if int(r[0]) <= users and r[1] in frequent]


def write_inter(path: Path, rows: Sequence[Row]) -> None:
    """Write an atomic file with times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{u}\t{i}\t{t:.0f}\n" for u, i, t in rows]
    path.write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "".join(lines))


def write_dataset(root: Path, rows: Sequence[Row], name: str = "tiny") -> Path:
    """Write a data set of one file and return the folder that holds its folder."""
    write_inter(root / name / f"{name}.inter", rows)
    return root


def write_parts(root: Path, parts: Sequence[Sequence[Row]], name: str = "parts") -> Path:
    """Write a ready-made split and return the folder that holds its folder."""
    for part, rows in zip(("train", "valid", "test"), parts, strict=True):
        write_inter(root / name / f"{name}.{part}.inter", rows)
    return root


def config_for(root: Path, role: str = "student", name: str = "tiny", **options: Any) -> KDConfig:
    """A configuration on a data set of ours, its times loaded."""
    given = {
        "data_path": str(root),
        "checkpoint_dir": str(root / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": 5,
        "student": "BPR",
        "model": "Scratch",
        **options,
    }
    return KDConfig(Sources.collect(dataset=name, options=given), role)


def part_pairs(split: Split, index: int) -> set[tuple[str, str]]:
    """User and item tokens of one part."""
    feat, data = split.parts[index].inter_feat, split.dataset
    pairs = zip(feat[data.uid_field].tolist(), feat[data.iid_field].tolist(), strict=True)
    return {(split.tokens.users[u], split.tokens.items[i]) for u, i in pairs}
