"""The file of a test's rankings: RecBole's means, whose rows they are, and its life in a folder."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from recbole_kd import checkpoint, load_model, run_recbole_kd, training
from recbole_kd.data import Split, load_split
from recbole_kd.errors import KDError
from recbole_kd.loaders import make_loaders
from recbole_kd.per_user import FILE, FILES, ITEMS_FILE, fits

pandas = pytest.importorskip("pandas")
pytest.importorskip("pyarrow.parquet")

MEANS = ["Recall", "NDCG", "MRR", "Hit", "Precision", "MAP", "AveragePopularity", "TailPercentage"]
NO_MEANS = ["ItemCoverage", "GiniIndex", "ShannonEntropy", "GAUC"]
LIMIT = 1e-6


def run(name: str, folder: Path, **more: Any) -> tuple[Path, dict[str, Any]]:
    """Train a model alone; its folder and its results."""
    result = tiny.run(name, folder, **{"per_user": True, "epochs": 2, **more})
    return Path(result["checkpoints"]["student"]).parent, result


def rows_of(folder: Path) -> Any:
    return pandas.read_parquet(folder / FILE)


def check_means(folder: Path, result: dict[str, float]) -> None:
    table = rows_of(folder)
    assert list(table)[:3] == ["user", "held_out", "train_items"]
    assert list(table)[3:] == [name for name in result if name in table]
    for name in list(table)[3:]:
        assert table[name].dtype == np.float64
        assert abs(table[name].mean() - result[name]) <= LIMIT, name


def held_out(split: Split) -> dict[str, int]:
    counts: dict[str, int] = {}
    for user, _ in tiny.part_pairs(split, 2):
        counts[user] = counts.get(user, 0) + 1
    return counts


# -- the numbers -------------------------------------------------------------------------------

IN_TIME = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user"}
PROTOCOLS: list[tuple[str, dict[str, Any]]] = [
    ("BPR", {}),
    ("BPR", {"eval_history": "train"}),
    ("BPR", {"protocol": "rcekd", "topk": [10, 20]}),
    ("BPR", {"eval_args": {"mode": "uni20"}}),
    ("SASRec", {"eval_targets": "next"}),
    ("SASRec", {"eval_targets": "next", "filter_history": True}),
    ("SASRec", {"eval_targets": "all"}),
    ("SASRec", {"eval_targets": "all", "eval_history": "train"}),
    ("SASRec", {"eval_targets": "next", "eval_args": {**IN_TIME, "mode": "uni20"}}),
]


@pytest.mark.parametrize(
    ("name", "options", "batch"), [*((*p, 7) for p in PROTOCOLS), (*PROTOCOLS[0], 1000)]
)
def test_means_are_recboles(tmp_path: Path, name: str, options: dict[str, Any], batch: int) -> None:
    given = {"metrics": MEANS, "topk": [3, 10], "metric_decimal_place": 12, **options}
    folder, result = run(name, tmp_path, eval_user_batch_size=batch, **given)
    table, test = rows_of(folder), result["test_result"]
    assert set(list(table)[3:]) == {f"{m.lower()}@{k}" for m in MEANS for k in given["topk"]}
    check_means(folder, test)
    assert table["recall@10"].std() > 0
    counts = held_out(load_split(tiny.config(name, **given)))
    assert set(table["user"]) == set(counts)
    found = dict(zip(table["user"], table["held_out"], strict=True))
    if options.get("eval_targets") == "next" and "eval_args" not in options:
        assert (table["held_out"] == 1).all()
        assert len(table) == sum(counts.values())
    else:
        assert (len(table), found) == (len(counts), counts)


@pytest.mark.parametrize(("name", "options"), [("BPR", {}), ("SASRec", {"eval_targets": "next"})])
def test_hits_by_item_are_those_by_user(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    given = {"metrics": ["Recall", "NDCG"], "topk": [10, 40], **options}
    folder, _ = run(name, tmp_path, eval_user_batch_size=7, **given)
    split, users = load_split(tiny.config(name, **given)), rows_of(folder)
    items = pandas.read_parquet(folder / ITEMS_FILE)
    assert list(items) == ["item", "train_users", "held_out", "hits@10", "hits@40"]
    known, seen = split.history.pairs()  # with a sequence's first item, which is no row
    trained = [split.tokens.items[item] for item in seen]
    tested = [item for _, item in tiny.part_pairs(split, 2)]
    rows = zip(items["item"], items["train_users"], items["held_out"], strict=True)
    assert set(items["item"]) == set(tested)
    assert all((trained.count(i), tested.count(i)) == (seen, held) for i, seen, held in rows)
    for k in given["topk"]:
        hits = (users[f"recall@{k}"] * users["held_out"]).sum()
        assert 0 < items[f"hits@{k}"].sum() == round(hits)
    assert (items["hits@10"] <= items["hits@40"]).all()
    counts = Counter(split.tokens.users[user] for user in known)
    assert dict(zip(users["user"], users["train_items"], strict=True)).items() <= counts.items()


@pytest.mark.parametrize("others", [["GAUC"], NO_MEANS[:3]])
def test_metrics_that_are_no_means_are_left_out(tmp_path: Path, others: list[str]) -> None:
    metrics = [*others[:1], "NDCG", *others[1:]]
    folder, result = run("BPR", tmp_path, metrics=metrics)
    assert list(rows_of(folder)) == ["user", "held_out", "train_items", "ndcg@10", "ndcg@20"]
    check_means(folder, result["test_result"])


def test_metrics_of_items_alone_know_the_held_out_items(tmp_path: Path) -> None:
    folder, result = run(
        "BPR", tmp_path, metrics=["AveragePopularity"], valid_metric="AveragePopularity@10"
    )
    check_means(folder, result["test_result"])
    table = rows_of(folder)
    counts = held_out(tiny.split("BPR"))
    assert dict(zip(table["user"], table["held_out"], strict=True)) == counts


def test_a_user_by_brute_force(tmp_path: Path) -> None:
    folder, _ = run("BPR", tmp_path, learning_rate=0.02, eval_user_batch_size=7)
    split, table = tiny.split("BPR"), rows_of(folder).set_index("user")
    loaded = load_model(folder)
    parts = [tiny.part_pairs(split, n) for n in range(3)]
    for user in list(table.index)[::9]:
        known, targets = ({i for u, i in pairs if u == user} for pairs in (parts[0], parts[2]))
        known |= {i for u, i in parts[1] if u == user}
        row = loaded.tokens.users.index(user)
        vectors = loaded.model.user_embedding.weight[row], loaded.model.item_embedding.weight
        order = (vectors[1] @ vectors[0]).argsort(descending=True).tolist()
        names = [loaded.tokens.items[i] for i in order if i]
        ranking = [i for i in names if i in targets or i not in known][:10]
        hits = [n for n, i in enumerate(ranking) if i in targets]
        best = sum(1 / np.log2(n + 2) for n in range(min(10, len(targets))))
        assert table.loc[user, "held_out"] == len(targets)
        assert table.loc[user, "recall@10"] == pytest.approx(len(hits) / len(targets))
        gain = sum(1 / np.log2(n + 2) for n in hits)
        assert table.loc[user, "ndcg@10"] == pytest.approx(gain / best)


def test_rankings_of_sequences_are_those_of_their_rows(tmp_path: Path) -> None:
    """A user with several held-out items has a row for each, none of them averaged."""
    options = {"eval_targets": "next", "eval_args": {**IN_TIME, "mode": "full"}}
    folder, _ = run("SASRec", tmp_path, topk=[10], **options)
    config = tiny.config("SASRec", **options)
    split, table = load_split(config), rows_of(folder)
    assert table["user"].duplicated().any()
    model, n = load_model(folder).model.eval(), 0
    for rows, hide, _, items in make_loaders(config, split)[2]:
        assert hide is None
        with torch.no_grad():
            scores = model.full_sort_predict(rows).view(len(rows), -1)
        scores[:, 0] = -torch.inf
        ranks = (scores > scores.gather(1, items.unsqueeze(1))).sum(1)
        for user, rank in zip(rows["user_id"].tolist(), ranks.tolist(), strict=True):
            assert table["user"][n] == split.tokens.users[user]
            assert table["recall@10"][n] == (rank < 10)
            gain = 1 / np.log2(rank + 2) if rank < 10 else 0
            assert table["ndcg@10"][n] == pytest.approx(gain)
            n += 1
    assert n == len(table)


# -- which folders -----------------------------------------------------------------------------


def test_teacher_scratch_and_student_have_one_each(tmp_path: Path) -> None:
    options = {
        **tiny.options("BPR", epochs=2, per_user=True, checkpoint_dir=str(tmp_path)),
        **{"ce_K": 10, "teacher.embedding_size": 16},
    }
    result = run_recbole_kd("CE", tiny.dataset(), config_dict=options, student="BPR", teacher="BPR")
    names = {"teacher": "teacher_test_result", "scratch": "scratch_test_result"}
    tables = []
    for role, key in {**names, "student": "test_result"}.items():
        folder = Path(result["checkpoints"][role]).parent
        check_means(folder, result[key])
        tables.append(rows_of(folder))
        assert list(tables[-1]["user"]) == list(tables[0]["user"])
    assert not tables[0].equals(tables[1])
    assert len(list(tmp_path.rglob(FILE))) == 3
    assert not list(tmp_path.rglob("*.tmp"))


def test_nothing_is_written_unless_asked_and_nothing_else_changes(tmp_path: Path) -> None:
    without, result = run("BPR", tmp_path / "without", per_user=False)
    asked, same = run("BPR", tmp_path / "asked")
    assert {p.name for p in asked.iterdir()} - {p.name for p in without.iterdir()} == set(FILES)
    assert asked.name == without.name
    for key in ("best_valid_result", "test_result"):
        assert result[key] == same[key]
    states = [checkpoint.load(f / "best.pt")["state_dict"] for f in (without, asked)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "saved", "part"),
    [
        ({}, False, "--per_user=True: needs saved=True, found saved=False"),
        ({"metrics": ["GAUC"], "valid_metric": "GAUC"}, True, "of which none is a mean over users"),
        ({"per_user": "often"}, True, "--per_user=often: allowed are True, False"),
    ],
)
def test_refused_before_anything_is_trained(
    tmp_path: Path, trained: list[int], options: dict[str, Any], saved: bool, part: str
) -> None:
    given = {"per_user": True, "checkpoint_dir": str(tmp_path), **options}
    with pytest.raises(KDError, match=part):
        run_recbole_kd(
            "Scratch",
            tiny.dataset(),
            config_dict=tiny.options("BPR", **given),
            saved=saved,
            student="BPR",
        )
    assert (trained, list(tmp_path.iterdir())) == ([], [])


def test_without_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[int]
) -> None:
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(KDError, match=r"--per_user=True: .* pip install pyarrow$"):
        run("BPR", tmp_path)
    assert trained == []
    run("BPR", tmp_path, per_user=False)
    assert trained == [0, 1]


# -- life of a folder --------------------------------------------------------------------------


def teacher_of(folder: Path, **more: Any) -> tuple[Path, dict[str, float]]:
    """The cached teacher of a run; its folder and its test results."""
    options = {
        **tiny.options("BPR", checkpoint_dir=str(folder), **more),
        **{"ce_K": 10, "scratch": False, "teacher.embedding_size": 16},
    }
    result = run_recbole_kd("CE", tiny.dataset(), config_dict=options, student="BPR", teacher="BPR")
    return Path(result["checkpoints"]["teacher"]).parent, result["teacher_test_result"]


def test_a_found_model_is_measured_anew_for_it(tmp_path: Path, trained: list[int]) -> None:
    folder, plain = teacher_of(tmp_path)
    assert not (folder / FILE).exists()
    assert trained == [0, 0]
    assert teacher_of(tmp_path, per_user=True) == (folder, plain)
    assert trained == [0, 0, 0], "the student alone is trained again"
    check_means(folder, plain)
    first = (folder / FILE).stat().st_mtime_ns
    teacher_of(tmp_path, per_user=True)
    teacher_of(tmp_path)
    assert (folder / FILE).stat().st_mtime_ns == first, "it was there"


def test_it_is_never_of_other_metrics_than_the_results(tmp_path: Path) -> None:
    folder, _ = teacher_of(tmp_path, per_user=True)
    assert list(rows_of(folder))[3:] == ["recall@10", "recall@20", "ndcg@10", "ndcg@20"]
    _, other = teacher_of(tmp_path, per_user=True, topk=[10])
    assert list(rows_of(folder))[3:] == ["recall@10", "ndcg@10"]
    check_means(folder, other)
    before = rows_of(folder)
    _, other = teacher_of(tmp_path, per_user=True, topk=[10], eval_history="train")
    assert not rows_of(folder).equals(before)
    check_means(folder, other)
    teacher_of(tmp_path)
    assert not (folder / FILE).exists()


def remove(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:50])


def write_foreign(file: Path) -> None:
    pandas.DataFrame({"user": ["a"]}).to_parquet(file)


@pytest.mark.parametrize("spoil", [remove, cut, write_foreign])
def test_a_file_that_is_missing_damaged_or_foreign_is_made_anew(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    folder, _ = teacher_of(tmp_path, per_user=True)
    whole = rows_of(folder)
    spoil(folder / FILE)
    assert teacher_of(tmp_path, per_user=True)[0] == folder
    assert rows_of(folder).equals(whole)
    assert fits(folder, training.measured(tiny.config("BPR", per_user=True)))
    assert not fits(folder, {})


def test_a_folder_of_somebody_else_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, plain = teacher_of(tmp_path)
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != folder and access(path, mode)
    )
    assert teacher_of(tmp_path, per_user=True) == (folder, plain)
    assert not (folder / FILE).exists()
    assert f"{folder} cannot be written: it gets no {FILE}" in caplog.text


def test_a_finished_run_gets_it_by_resuming(tmp_path: Path, trained: list[int]) -> None:
    folder, result = run("BPR", tmp_path, per_user=False)
    assert trained == [0, 1]
    assert run("BPR", tmp_path, resume="auto")[0] == folder
    assert trained == [0, 1]
    check_means(folder, result["test_result"])
    run("BPR", tmp_path, resume="auto", per_user=False)
    check_means(folder, result["test_result"])
    run("BPR", tmp_path, resume="auto", per_user=False, topk=[10])
    assert not (folder / FILE).exists()


def test_a_fresh_run_in_the_same_folder_begins_without_it(tmp_path: Path) -> None:
    folder, _ = run("BPR", tmp_path)
    assert run("BPR", tmp_path, per_user=False)[0] == folder
    assert not (folder / FILE).exists()


def test_with_sampled_candidates_it_is_another_run(tmp_path: Path) -> None:
    """Measuring anew would give other numbers."""
    sampled = {"eval_args": {"mode": "uni20"}}
    plain, _ = run("BPR", tmp_path, per_user=False, **sampled)
    folder, result = run("BPR", tmp_path, **sampled)
    assert folder != plain
    check_means(folder, result["test_result"])
