"""The report: tables by hand, gaps, names that mean something to a format, and real runs."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import yaml

from recbole_kd import report
from recbole_kd.benchmark import records
from recbole_kd.benchmark.records import FAILED, Record
from recbole_kd.cli import main
from recbole_kd.errors import KDError
from recbole_kd.quick_start import run_recbole_kd
from recbole_kd.reporting import compression, contents, provenance, published, render, write_report
from recbole_kd.reporting.collect import Benchmark, Block, Row, collect
from recbole_kd.reporting.compression import (
    REPEATS,
    ROUNDS,
    Timed,
    percentiles,
    time_all,
    typical_users,
)
from recbole_kd.reporting.curves import curve
from recbole_kd.reporting.figures import bars, looks, pareto_front
from recbole_kd.reporting.page import Text
from recbole_kd.reporting.pictures import WHATS, figure_name, own_names
from recbole_kd.reporting.rankings import Absent, Groups, Rankings, align
from recbole_kd.reporting.results import Results, compute
from recbole_kd.reporting.tables import Table, make_table, shares

for name in ("matplotlib", "jinja2", "statsmodels"):
    pytest.importorskip(name)
pa, pq = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))

KINDS = {"Teacher": "teacher", "Scratch": "scratch", "ItemKNN": "reference"}
ODD = "[A_B] <b> 50% & $x$ #1 {y} ~ ^ | \\ *z* `q`"
"""A name in which every character means something to one of the formats."""


def make_bench(folder: Path, values: Mapping[str, Mapping[int, Any]], **more: Any) -> Path:
    """A folder with a record of NDCG@10, or of the metrics given, for each row and seed."""
    groups = more.pop("groups", {})
    spec = {
        "name": "a look",
        "command": "recbole-kd benchmark look.yaml",
        "protocol": "rcekd",
        "seeds": [0, 1, 2],
        "datasets": ["d"],
        "pairs": {"MF-MF": {"teacher": "BPR", "student": "BPR"}},
        "rows": [
            {"name": n, "group": groups.get(n, "main"), "kind": kind(n), "model": "X"}
            for n in values
        ],
        "ours": "RCEKD",
        "metric": "ndcg@10",
        "published": None,
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    for row, seeds in values.items():
        for seed, found in seeds.items():
            put(folder, row, seed, found, group=groups.get(row, "main"))
    return folder


def kind(row: str) -> str:
    return KINDS.get(row, "distilled")


def put(bench: Path, row: str, seed: int, found: Any, **more: Any) -> None:
    result = found if isinstance(found, dict) else {"ndcg@10": found}
    record = Record("d", "MF-MF", row, seed, kind(row), test_result=result, **more)
    records.write(records.file_of(bench, "d", "MF-MF", row, seed), record)


def table_of(folder: Path, group: str = "main") -> Table:
    bench = collect(folder)
    return make_table(bench, bench.blocks[0], group, Rankings(folder))


def marks(table: Table, metric: str = "ndcg@10") -> dict[str, str]:
    """``B`` for best, ``u`` for best baseline."""
    cells = {line.row.name: line.cells[metric] for line in table.lines}
    return {n: "B" * c.best + "u" * c.best_baseline for n, c in cells.items()}


VALUES = {
    "Teacher": {0: 0.50, 1: 0.52, 2: 0.54},
    "Scratch": {0: 0.20, 1: 0.22, 2: 0.24},
    "ItemKNN": {0: 0.60},
    "CE": {0: 0.30, 1: 0.32, 2: 0.34},
    "DCD": {0: 0.40, 1: 0.36, 2: 0.38},
    "RCEKD": {0: 0.42, 1: 0.42, 2: 0.45},
}


# -- the table ---------------------------------------------------------------------------------


def test_the_main_table_by_hand(tmp_path: Path) -> None:
    table = table_of(make_bench(tmp_path, VALUES))
    cells = {line.row.name: line.cells["ndcg@10"] for line in table.lines}
    assert list(cells) == list(VALUES)
    assert cells["Teacher"].summary.mean == pytest.approx(0.52)
    assert cells["Teacher"].summary.deviation == pytest.approx(0.02)
    assert cells["RCEKD"].summary.mean == pytest.approx(0.43)
    assert cells["RCEKD"].summary.deviation == pytest.approx(math.sqrt(3) / 100)
    assert (cells["ItemKNN"].summary.mean, cells["ItemKNN"].summary.deviation) == (0.60, None)
    wanted = {"RCEKD": "B", "DCD": "u", "Teacher": "", "ItemKNN": "", "Scratch": "", "CE": ""}
    assert marks(table) == wanted
    assert table.improvements["ndcg@10"].baseline == "DCD"
    assert table.improvements["ndcg@10"].relative == pytest.approx(0.43 / 0.38 - 1)


def test_tests_are_of_ours_against_each_other_student(tmp_path: Path) -> None:
    """Against DCD the differences are 0.02, 0.06, 0.07: mean 0.05, deviation sqrt(7)/100."""
    tests = {one.row: one for one in table_of(make_bench(tmp_path, VALUES)).tests}
    assert list(tests) == ["Scratch", "CE", "DCD"]
    found = tests["DCD"].by_seed
    assert found.difference == pytest.approx(0.05)
    assert found.effect_size == pytest.approx(5 / math.sqrt(7))
    ps = {row: one.by_seed.p_value for row, one in tests.items()}
    assert found.p_value == max(ps.values())
    assert found.corrected == pytest.approx(found.p_value)  # the largest, times one
    lowest = min(ps, key=lambda row: ps[row])
    assert tests[lowest].by_seed.corrected == pytest.approx(3 * ps[lowest])
    assert "has no folder" in tests["DCD"].by_user.reason


def test_ties_are_all_marked_and_rounding_makes_none_best(tmp_path: Path) -> None:
    values = {"CE": {0: 0.1 + 0.2}, "DCD": {0: 0.3}, "RCEKD": {0: 0.3}}
    assert marks(table_of(make_bench(tmp_path, values))) == {"CE": "Bu", "DCD": "Bu", "RCEKD": "B"}


def test_a_better_baseline_is_best_and_underlined(tmp_path: Path) -> None:
    table = table_of(make_bench(tmp_path, {"RCEKD": {0: 0.2}, "CE": {0: 0.4}, "DCD": {0: 0.1}}))
    assert marks(table) == {"RCEKD": "", "CE": "Bu", "DCD": ""}
    assert table.improvements["ndcg@10"].relative == pytest.approx(-0.5)


def test_without_ours_nothing_is_compared(tmp_path: Path) -> None:
    table = table_of(make_bench(tmp_path, VALUES, ours=None))
    assert (table.improvements, table.tests) == ({}, [])
    assert {row for row, mark in marks(table).items() if mark} == {"RCEKD"}
    assert marks(table)["RCEKD"] == "B"


def test_metrics_have_their_own_best_and_baseline(tmp_path: Path) -> None:
    values = {
        "CE": {0: {"ndcg@10": 0.2, "recall@10": 0.9}},
        "DCD": {0: {"ndcg@10": 0.3, "recall@10": 0.1}},
        "RCEKD": {0: {"ndcg@10": 0.6, "recall@10": 0.0}},
    }
    table = table_of(make_bench(tmp_path, values))
    assert marks(table, "recall@10") == {"CE": "Bu", "DCD": "", "RCEKD": ""}
    found = {metric: one.baseline for metric, one in table.improvements.items()}
    assert found == {"ndcg@10": "DCD", "recall@10": "CE"}
    assert table.improvements["ndcg@10"].relative == pytest.approx(1)


def test_rows_that_lack_a_seed_of_ours_do_not_compete(tmp_path: Path) -> None:
    """Over its seed 0 ours is 0.02 above CE: CE is no best row, and yet the closest baseline."""
    values = {"RCEKD": {0: 0.3, 1: 0.2, 2: 0.2}, "CE": {0: 0.28}, "DCD": {0: 0.1, 1: 0.2, 2: 0.1}}
    folder = make_bench(tmp_path, values)
    table = table_of(folder)
    assert marks(table) == {"RCEKD": "B", "CE": "u", "DCD": ""}
    found = table.improvements["ndcg@10"]
    assert (found.baseline, found.seeds) == ("CE", (0,))
    assert found.relative == pytest.approx(0.3 / 0.28 - 1)
    assert {line.row.name: line.lacks for line in table.lines}["CE"] == (1, 2)
    text = written(folder)
    assert "1: 0 (does not compete)" in text
    assert "+7.1% (CE, seed 0)" in text
    assert "Students compete over the seeds of RCEKD" in text


def test_a_seed_more_than_ours_does_not_count(tmp_path: Path) -> None:
    values = {"RCEKD": {0: 0.3, 1: 0.3}, "CE": {0: 0.2, 1: 0.2, 2: 0.8}}
    table = table_of(make_bench(tmp_path, values))
    assert marks(table) == {"RCEKD": "B", "CE": "u"}
    assert table.improvements["ndcg@10"].relative == pytest.approx(0.5)
    (line,) = (line for line in table.lines if line.row.name == "CE")
    assert line.cells["ndcg@10"].summary.mean == pytest.approx(0.2), "as it was judged"
    assert line.seeds == (0, 1)


def test_none_is_best_where_one_with_fewer_seeds_is_better_over_those(tmp_path: Path) -> None:
    values = {"RCEKD": {0: 0.3, 1: 0.9}, "CE": {0: 0.4}, "DCD": {0: 0.1, 1: 0.2}}
    folder = make_bench(tmp_path, values)
    table = table_of(folder)
    assert marks(table) == {"RCEKD": "", "CE": "u", "DCD": ""}
    assert "-25.0% (CE, seed 0)" in written(folder)
    files = {f.name: f for f in write_report(folder, formats=["csv"], latency=False)}
    lines = csv.DictReader(files["report_means.csv"].open(encoding="utf-8"))
    assert {r["row"]: r["improvement_seeds"] for r in lines} == {"RCEKD": "0", "CE": "", "DCD": ""}


def test_seeds_that_are_not_compared_decide_nothing(tmp_path: Path) -> None:
    values = {
        "RCEKD": {0: 0.1, 1: 0.1},
        "CE": {0: 0.2, 1: 0.2, 2: 0.0},
        "DCD": {0: 0.15, 1: 0.15, 2: 0.19},
    }
    found = marks(table_of(make_bench(tmp_path, values)))
    assert found == {"RCEKD": "", "CE": "Bu", "DCD": ""}


def test_without_ours_the_largest_set_of_seeds_competes(tmp_path: Path) -> None:
    values = {"CE": {0: 0.9}, "DCD": {1: 0.2, 2: 0.2}, "RD": {1: 0.3, 2: 0.3}}
    assert marks(table_of(make_bench(tmp_path, values, ours=None)))["RD"] == "B"


def test_only_metrics_of_accuracy_are_marked(tmp_path: Path) -> None:
    found = {"gauc": 0.5, "averagepopularity@10": 9.0, "ndcg@10": 0.1}
    table = table_of(make_bench(tmp_path, {"RCEKD": {0: found}, "CE": {0: found}}))
    assert marks(table, "averagepopularity@10") == {"RCEKD": "", "CE": ""}
    assert set(table.improvements) == {"gauc", "ndcg@10"}


def test_a_baseline_of_zero_has_no_improvement(tmp_path: Path) -> None:
    table = table_of(make_bench(tmp_path, {"RCEKD": {0: 0.2}, "CE": {0: 0.0}}))
    assert table.improvements["ndcg@10"].relative is None


def test_one_seed_has_no_spread_and_no_test(tmp_path: Path) -> None:
    values = {row: {0: seeds[0]} for row, seeds in VALUES.items()}
    folder = make_bench(tmp_path, values, seeds=[0])
    (one,) = {v.by_seed.reason for v in table_of(folder).tests}
    assert one == "one seed; a test needs two"
    text = written(folder)
    assert "0.4200" in text
    assert re.search(r"\d ± \d", text) is None
    assert "by seed, against Scratch, CE, DCD: one seed; a test needs two" in text


def test_one_training_for_all_seeds_has_no_spread(tmp_path: Path) -> None:
    values = {"Scratch": {0: 0.1, 1: 0.2}, "RCEKD": {0: 0.2, 1: 0.3}}
    folder = make_bench(tmp_path, values, seeds=[0, 1])
    for seed in (0, 1):
        put(folder, "Teacher", seed, 0.4, folder="runs/one")
    line = next(line for line in table_of(folder).lines if line.row.name == "Teacher")
    summary = line.cells["ndcg@10"].summary
    assert (summary.count, summary.mean, summary.deviation) == (1, 0.4, None)
    text = written(folder)
    assert "2 (one training)" in text
    assert "0.4000 ±" not in text


def test_runs_of_an_earlier_state_of_the_file_are_left_out(tmp_path: Path) -> None:
    values = {"Scratch": {0: 0.1}, "CD": {0: 0.5}, "RCEKD": {0: 0.2}}
    now = {f"d, MF-MF, {row}, seed 0": "now" for row in values}
    folder = make_bench(tmp_path, values, seeds=[0], trainings=now)
    for row, seeds in values.items():
        put(folder, row, 0, seeds[0], training="before" if row == "CD" else "now")
    assert set(marks(table_of(folder))) == {"Scratch", "RCEKD"}
    line = "CD: left out seed 0: made before the file, or the package's defaults, changed"
    assert line in written(folder)


def test_what_the_file_asks_for_now_decides_about_the_split(tmp_path: Path) -> None:
    """Old runs are more, and of another split; one has another name now, one other options."""
    values = {"Scratch": {0: 0.1}, "RCEKD": {0: 0.2, 1: 0.3}}
    now = {f"d, MF-MF, {row}, seed {seed}": "now" for row in values for seed in (0, 1)}
    folder = make_bench(tmp_path, values, seeds=[0, 1], trainings=now)
    old = {"training": "before", "provenance": {"split": {"train": "old"}}}
    new = {"training": "now", "provenance": {"split": {"train": "new"}}}
    for row in ("Scratch", "CD", "RRD"):
        put(folder, row, 0, 0.9, **old)
    put(folder, "RCEKD", 0, 0.2, **new, options={"teacher": {"seed": 0}})
    put(folder, "RCEKD", 1, 0.3, **new)
    (line,) = table_of(folder).lines
    assert line.row.values("ndcg@10") == {0: 0.2, 1: 0.3}
    assert "CD: left out seed 0" in written(folder)


def test_a_group_with_fewer_seeds_competes_over_them(tmp_path: Path) -> None:
    values = {"RCEKD": {0: 0.2, 1: 0.5}, "w/o S": {0: 0.3}, "w/o T": {0: 0.1}}
    folder = make_bench(tmp_path, values, groups={"w/o S": "ablation", "w/o T": "ablation"})
    assert marks(table_of(folder, "ablation")) == {"RCEKD": "", "w/o S": "B", "w/o T": ""}
    means = {ln.row.name: ln.cells["ndcg@10"].summary for ln in table_of(folder, "ablation").lines}
    assert (means["RCEKD"].mean, means["RCEKD"].deviation) == (0.2, None), "as it was judged"
    assert not any(line.lacks for line in table_of(folder, "ablation").lines)
    assert "best student bold, over seed 0 alone" in written(folder)


def test_tests_use_the_seeds_that_both_have(tmp_path: Path) -> None:
    values = {"RCEKD": {0: 0.5, 1: 0.6, 2: 0.9}, "CE": {0: 0.3, 2: 0.4, 7: 0.1}, "RD": {9: 0.1}}
    folder = make_bench(tmp_path, values, seeds=[0, 1, 2, 7, 9])
    tests = {one.row: one for one in table_of(folder).tests}
    assert tests["CE"].seeds == (0, 2)
    assert tests["CE"].by_seed.difference == pytest.approx((0.2 + 0.5) / 2)
    assert tests["RD"].by_seed.reason == "no seed"
    assert tests["RD"].by_user.reason == "no common seed"
    assert "3: 0, 2, 7" in written(folder)


def test_other_groups_stand_beside_teacher_scratch_and_ours(tmp_path: Path) -> None:
    values = {**VALUES, "w/o S": {0: 0.7, 1: 0.5, 2: 0.6}, "w/ const": {0: 0.3}}
    groups = {"w/o S": "ablation", "w/ const": "ablation"}
    folder = make_bench(tmp_path, values, groups=groups)
    assert marks(table_of(folder))["RCEKD"] == "B"
    table = table_of(folder, "ablation")
    rows = [line.row.name for line in table.lines]
    assert rows == ["Teacher", "Scratch", "RCEKD", "w/o S", "w/ const"]
    assert {row: mark for row, mark in marks(table).items() if mark} == {"w/o S": "B"}
    assert [one.row for one in table.tests] == ["w/o S", "w/ const"]
    assert table.improvements == {}


# -- by user -----------------------------------------------------------------------------------


def put_users(folder: Path, row: str, seed: int, values: Mapping[str, float], **more: Any) -> None:
    """The file by user of a run, its users in the order given."""
    place = f"runs/d/{row}-{seed}"
    (folder / place).mkdir(parents=True, exist_ok=True)
    columns = {"user": list(values), "held_out": [1] * len(values), "ndcg@10": [*values.values()]}
    pq.write_table(pa.table({**columns, **more}), folder / place / "per_user.parquet")
    put(folder, row, seed, float(np.mean([*values.values()])), folder=place)


def test_users_are_joined_by_token_and_averaged_over_common_seeds(tmp_path: Path) -> None:
    make_bench(tmp_path, {"RCEKD": {}, "CE": {}})
    put_users(tmp_path, "RCEKD", 0, {"a": 0.4, "b": 0.2, "c": 0.5})
    put_users(tmp_path, "RCEKD", 1, {"c": 0.1, "b": 0.6, "a": 0.2})
    put_users(tmp_path, "RCEKD", 2, {"a": 9.0, "b": 9.0, "c": 9.0})
    put_users(tmp_path, "CE", 0, {"b": 0.1, "a": 0.1, "c": 0.3})
    put_users(tmp_path, "CE", 1, {"a": 0.3, "b": 0.1, "c": 0.1})
    (one,) = table_of(tmp_path).tests
    # a: 0.3 - 0.2, b: 0.4 - 0.1, c: 0.3 - 0.2
    assert one.by_user.pairs == 3
    assert one.by_user.difference == pytest.approx(0.5 / 3)
    deviation = np.std([0.1, 0.3, 0.1], ddof=1)
    assert one.by_user.effect_size == pytest.approx(0.5 / 3 / deviation)
    assert one.by_user.corrected == one.by_user.p_value


def test_users_of_one_method_alone_are_left_out_and_counted(tmp_path: Path) -> None:
    make_bench(tmp_path, {"RCEKD": {}, "CE": {}})
    put_users(tmp_path, "RCEKD", 0, {"a": 0.4, "b": 0.2, "c": 0.5})
    put_users(tmp_path, "CE", 0, {"a": 0.1, "b": 0.0})
    (one,) = table_of(tmp_path).tests
    assert (one.by_user.pairs, one.by_user.reason) == (2, "users without a pair: 1")


def test_users_of_either_method_alone_are_counted_with_other_notes(tmp_path: Path) -> None:
    make_bench(tmp_path, {"RCEKD": {}, "CE": {}})
    put_users(tmp_path, "RCEKD", 0, {"a": 0.4, "b": 0.2, "c": 0.5}, user=["a", "b", "b"])
    put_users(tmp_path, "CE", 0, {"b": 0.1, "d": 0.0, "e": 0.3})
    (one,) = table_of(tmp_path).tests
    assert one.by_user.difference == pytest.approx(0.35 - 0.1)
    assert one.by_user.reason == (
        "one user; a test needs two; users without a pair: 3; "
        "means of each user's rankings are compared"
    )


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"user": [["a"], ["b"]]}, "a user of list<.*>; needed are texts"),
        ({"user": ["a", None]}, "a user of gaps; needed are texts"),
        ({"ndcg@10": ["0.1", "0.2"]}, "a ndcg@10 of string; needed are finite numbers"),
        ({"ndcg@10": [0.1, None]}, "a ndcg@10 of gaps; needed are finite numbers"),
    ],
)
def test_columns_of_other_types_have_a_reason(columns: Any, part: str, tmp_path: Path) -> None:
    make_bench(tmp_path, {"RCEKD": {}, "CE": {}})
    put_users(tmp_path, "RCEKD", 0, {"a": 0.4, "b": 0.2})
    put_users(tmp_path, "CE", 0, {"a": 0.4, "b": 0.2}, **columns)
    (one,) = table_of(tmp_path).tests
    assert re.search(f"^per_user.parquet of CE, seed 0 has {part}$", one.by_user.reason)


def test_text_targets_have_no_size(tmp_path: Path) -> None:
    make_bench(tmp_path, {"CE": {}})
    put_users(tmp_path, "CE", 0, {"a": 0.4, "b": 0.2}, held_out=["1", "2"])
    assert "test targets" not in written(tmp_path)


def test_a_row_without_files_leaves_the_groups_of_others(tmp_path: Path) -> None:
    make_bench(tmp_path, {"Teacher": {0: 0.5}, "RCEKD": {}})
    put_users(tmp_path, "RCEKD", 0, {"a": 0.2, "b": 0.8}, train_items=[1, 9])
    rankings, rows = Rankings(tmp_path), collect(tmp_path).blocks[0].rows
    found = rankings.by_activity(rows, "ndcg@10")
    assert list(found.values) == ["RCEKD"]
    assert found.left_out == ["Teacher, seed 0 has no folder"]
    rankings.clear()
    assert rankings._read == {}


def test_align_keeps_what_all_have() -> None:
    first = (np.array(["a", "b", "d"]), np.array([1.0, 2, 4]))
    second = (np.array(["b", "c", "d"]), np.array([20.0, 30, 40]))
    tokens, values = align([first, second])
    assert tokens.tolist() == ["b", "d"]
    assert values.tolist() == [[2, 4], [20, 40]]


def test_groups_share_out_the_weight_and_keep_equal_numbers_together() -> None:
    tokens = np.array(list("hgfedcba"))
    groups = Groups(tokens, np.array([8, 7, 6, 5, 4, 3, 2, 1]), np.ones(8))
    assert groups.labels == ["1-2", "3-4", "5-6", "7-8"]
    assert groups.sums(tokens, np.array([8.0, 7, 6, 5, 4, 3, 2, 1])).tolist() == [3, 7, 11, 15]
    same = Groups(tokens, np.array([5] * 7 + [9]), np.ones(8))
    assert same.labels == ["5", "9"]
    heavy = Groups(tokens, np.arange(8), np.array([1, 0, 0, 0, 0, 0, 0, 1]))
    assert heavy.labels == ["0", "7"]
    assert heavy.sums(np.array(["h", "b", "x"]), np.ones(3)).tolist() == [1, 0]


def test_accuracy_by_activity_and_popularity_by_hand(tmp_path: Path) -> None:
    make_bench(tmp_path, {"RCEKD": {}})
    train = pa.array([1, 9, 1, 9])
    users = {"a": 0.2, "b": 0.8, "c": 0.4, "d": 0.6}
    put_users(tmp_path, "RCEKD", 0, users, train_items=train)
    items = {"item": ["x", "y", "z"], "train_users": [3, 50, 3], "held_out": [2, 4, 2]}
    items["hits@10"] = [1, 3, 0]
    pq.write_table(pa.table(items), tmp_path / "runs/d/RCEKD-0/per_item.parquet")
    rankings, (row,) = Rankings(tmp_path), collect(tmp_path).blocks[0].rows
    found = rankings.by_activity([row], "ndcg@10")
    assert (found.labels, found.sizes) == (["1", "9"], [2, 2])
    assert found.values["RCEKD"] == pytest.approx([0.3, 0.7])
    found = rankings.by_popularity([row], 10)
    assert (found.labels, found.sizes) == (["3", "50"], [4, 4])
    assert found.values["RCEKD"] == pytest.approx([0.25, 0.75])
    with pytest.raises(Absent, match="RCEKD, seed 0 has no column hits@20"):
        rankings.by_popularity([row], 20)


# -- shares, sizes, curves ---------------------------------------------------------------------


def row_of(name: str, values: Mapping[int, float]) -> Row:
    runs = {
        s: Record("d", "p", name, s, kind(name), test_result={"m": v}) for s, v in values.items()
    }
    return Row(name, kind(name), runs=runs)


def test_shares_of_the_teacher_by_hand() -> None:
    teacher, scratch = row_of("Teacher", {0: 0.5, 1: 0.7}), row_of("Scratch", {0: 0.3, 1: 0.3})
    found = shares(row_of("CE", {0: 0.4, 1: 0.5}), teacher, scratch, "m")
    assert (found.kept, found.closed) == (pytest.approx(0.75), pytest.approx(0.5))
    found = shares(row_of("CE", {0: 0.4, 5: 9.0}), teacher, scratch, "m")
    assert (found.kept, found.closed) == (pytest.approx(0.8), pytest.approx(0.5))
    assert shares(teacher, teacher, scratch, "m").closed is None
    assert shares(scratch, teacher, scratch, "m").closed is None


def test_no_gap_is_closed_where_there_is_none() -> None:
    teacher, scratch = row_of("Teacher", {0: 0.3}), row_of("Scratch", {0: 0.3})
    assert shares(row_of("CE", {0: 0.6}), teacher, scratch, "m").closed is None
    assert shares(row_of("CE", {0: 0.6}), None, scratch, "m").kept is None
    assert shares(row_of("CE", {1: 0.6}), teacher, scratch, "m").kept is None


def test_no_gap_is_closed_where_it_is_within_the_spread() -> None:
    teacher, scratch = row_of("Teacher", {0: 0.3, 1: 0.5}), row_of("Scratch", {0: 0.3, 1: 0.3})
    assert shares(row_of("CE", {0: 0.6, 1: 0.6}), teacher, scratch, "m").closed is None
    found = shares(row_of("CE", {0: 0.6}), teacher, row_of("Scratch", {0: 0.2}), "m")
    assert found.closed == pytest.approx(4)


def test_percentiles_and_users_of_a_timing() -> None:
    found = percentiles(list(range(101)))
    assert (found.p50, found.p95, found.repeats) == (50, 95, 101)
    counts = tiny.torch.tensor([0, 5, 0, 1, 9])
    assert typical_users(counts, 3).tolist() == [3, 1, 4]
    assert len(typical_users(counts, 256)) == 256


class Slow:
    """A model of five users and three items that notes who asks."""

    def __init__(self, name: str, said: list[tuple[str, int, int]], fails: bool = False):
        self.name, self.said, self.fails = name, said, fails
        self.scorer, self.model = self, tiny.torch.nn.Linear(1, 1)
        self.history, self.device, self.n_items = self, tiny.torch.device("cpu"), 3
        self.counts = tiny.torch.tensor([0, 1, 2, 3, 4, 5])

    def step(self) -> Any:
        return contextlib.nullcontext()

    def encode_now(self, users: Any) -> Any:
        self.said.append((self.name, len(users), int(users[0])))
        return users

    def score_all(self, users: Any) -> Any:
        if self.fails and len(self.said) > 20:
            raise ValueError("broken\nthere")
        return tiny.torch.zeros(len(users), 3)


def test_models_and_users_take_turns() -> None:
    said: list[tuple[str, int, int]] = []
    models = {name: Timed(Slow(name, said, name == "c")) for name in "abc"}
    time_all(models)
    assert models["c"].reason == "broken"
    assert models["c"].one is None
    assert models["a"].one is not None
    assert models["a"].one.repeats == REPEATS
    turns = [name for name, _ in itertools.groupby(name for name, *_ in said)]
    assert turns.count("a") >= ROUNDS - 1
    assert {first for name, size, first in said if (name, size) == ("a", 1)} == {1, 2, 3, 4, 5}


def test_latencies_have_two_digits() -> None:
    shown = [contents._two_digits(value) for value in (0.0123, 0.1, 0.998, 9.96, 12.4, 153.0)]
    assert shown == ["0.012", "0.10", "1.0", "10", "12", "150"]


def test_the_front_has_what_no_smaller_model_beats() -> None:
    points = [(10, 0.2), (10, 0.3), (20, 0.25), (40, 0.5), (50, 0.5)]
    assert pareto_front(points) == [(10, 0.3), (40, 0.5)]


def test_lines_of_ours_teacher_scratch_and_baselines_differ() -> None:
    rows = [row_of(name, {}) for name in ("Teacher", "Scratch", "RCEKD", "CE", "DCD", "RD")]
    found = looks(rows, "RCEKD").values()
    assert len({one.marker for one in found}) == len({one.dashes for one in found}) == 6


def test_curves_are_means_over_the_epochs_all_seeds_have(tmp_path: Path) -> None:
    runs = {}
    for seed, values in ((0, [1.0, 2.0, 3.0]), (1, [3.0, 6.0])):
        folder = tmp_path / str(seed)
        folder.mkdir()
        lines = [json.dumps({"epoch": e, "weight_g": v}) for e, v in enumerate(values)]
        (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"epoch": 9, "weig']))
        runs[seed] = Record("d", "p", "r", seed, "distilled", folder=str(seed))
    row = Row("r", "distilled", runs=runs)
    assert curve(tmp_path, row, "weight_g") == (([0, 1], [2.0, 4.0]), [])
    assert curve(tmp_path, row, "overlap_topk") == (None, [])


def test_a_log_of_no_numbers_leaves_its_curve_out(tmp_path: Path) -> None:
    folder = make_bench(tmp_path, {"Teacher": {0: 0.5}, "CE": {}})
    put(folder, "CE", 0, 0.3, folder="runs")
    (folder / "runs").mkdir()
    lines = ['{"epoch": 0, "weight_g": NaN}', '{"epoch": 1e999, "weight_g": 1}', "[1]", "{"]
    lines += ['{"epoch": 1' + "0" * 30 + ', "weight_g": 1}', '{"epoch": 1, "weight_g": Infinity}']
    (folder / "runs" / "metrics.jsonl").write_text("\n".join(lines))
    text = written(folder)
    assert "metrics.jsonl of CE, seed 0: 4 lines with no finite weight\\_g of an epoch" in text


# -- names of figures --------------------------------------------------------------------------


def block_of(*groups: str, dataset: str = "d", pair: str = "p") -> Block:
    return Block(dataset, pair, tuple(Row(g, "distilled", g) for g in groups))


def test_figures_have_names_of_their_own() -> None:
    blocks = (block_of("main", "methods", "é", "è", "x", "X"), block_of("g", dataset="a-b"))
    blocks += (block_of("g", dataset="a", pair="b-p"),)
    bench = Benchmark(Path(), "n", "", "", (), "m", None, {}, {}, blocks)
    results = Results(bench, Rankings(Path()), {}, {}, False)
    whats = [(b, w) for b in blocks for w in (*WHATS, *(f"group-{g}" for g in b.groups))]
    names = [figure_name(results, block, what) for block, what in whats]
    assert len({name.lower() for name in names}) == len(whats)
    assert names[0] == "d-p-methods"
    assert figure_name(results, blocks[0], "group-methods") == "d-p-group-methods"
    assert all(re.fullmatch(r"[A-Za-z0-9-]+", name) for name in names)
    assert all(own_names(results).fullmatch(name) for name in names)


def test_figures_of_an_earlier_report_are_removed(tmp_path: Path) -> None:
    values = {"RCEKD": {0: 0.5}, "w/o S": {0: 0.1}}
    folder = make_bench(tmp_path, values, groups={"w/o S": "ablation"})
    write_report(folder, formats=["md"], latency=False)
    figures = folder / "report" / "figures"
    assert (figures / "d-MF-MF-group-ablation.svg").is_file()
    for name in ("mine.svg", "d-MF-MF-pareto.svg", "d-MF-MF-group-old.pdf"):
        (figures / name).touch()
    records.file_of(folder, "d", "MF-MF", "w/o S", 0).unlink()
    write_report(folder, formats=["md"], latency=False)
    assert {file.name for file in figures.iterdir()} == {
        *("mine.svg", "d-MF-MF-methods.svg", "d-MF-MF-group-old.pdf", "figures.txt")
    }


def test_a_pair_has_a_report_of_its_own(tmp_path: Path) -> None:
    models = {"teacher": "BPR", "student": "BPR", "notes": ["a large teacher"]}
    pairs = {"MF-MF": models, "a/b": {**models, "notes": []}}
    folder = make_bench(tmp_path, VALUES, pairs=pairs, published=None)
    write_report(folder, formats=["md", "csv"], latency=False)
    report = folder / "report"
    whole = {file: file.read_bytes() for file in report.rglob("*") if file.is_file()}
    files = write_report(folder, formats=["md", "csv"], latency=False, pair="MF-MF")
    names = {"MF-MF.md", "MF-MF.csv", *(name.replace("report", "MF-MF") for name in CSV)}
    assert {file.name for file in files} == names
    text = files[-1].read_text(encoding="utf-8")
    assert "a look: MF-MF" in text
    assert "### Notes on MF-MF\n\n- a large teacher" in text
    assert "a/b" not in text
    assert "(figures/MF-MF/d-MF-MF-methods.svg)" in text
    assert (report / "figures" / "MF-MF" / "d-MF-MF-methods.svg").is_file()
    assert {file: file.read_bytes() for file in whole} == whole
    broken = records.file_of(folder, "d", "a/b", "CE", 0)
    broken.parent.mkdir(parents=True)
    broken.write_text("{", encoding="utf-8")
    (other,) = write_report(folder, formats=["md"], latency=False, pair="a/b")
    assert other.name == "a%2Fb.md"
    assert "unreadable record" in other.read_text(encoding="utf-8")
    (again,) = write_report(folder, formats=["md"], latency=False, pair="MF-MF")
    assert again.read_text(encoding="utf-8") == text
    with pytest.raises(KDError, match="--pair=MF: found no such pair; allowed are MF-MF, a/b"):
        write_report(folder, pair="MF")


# -- partial and damaged folders ---------------------------------------------------------------


def written(folder: Path) -> str:
    """The report as Markdown, its figures not drawn."""
    return render.markdown(contents.make_page(compute(collect(folder), timed=False)))


def test_what_is_missing_failed_or_damaged_is_said(tmp_path: Path) -> None:
    folder = make_bench(tmp_path, {"Teacher": {0: 0.5, 1: 0.5}, "RRD": {}, "CE": {0: 0.1, 2: 0.2}})
    put(folder, "CE", 1, {}, status=FAILED, error="--ce_K=0: allowed are whole numbers")
    broken = records.file_of(folder, "d", "MF-MF", "Teacher", 2)
    broken.write_text('{"dataset": ')
    put(folder, "RRD", 1, {"ndcg@10": math.nan})
    text = written(folder)
    assert "d, MF-MF: RRD: not run yet with seeds 0, 1, 2" in text
    assert "d, MF-MF: CE: failed with seed 1: --ce\\_K=0: allowed are whole numbers" in text
    assert "unreadable record: records/d/MF-MF/Teacher/seed-2.json: no record of a run" in text
    assert "records/d/MF-MF/RRD/seed-1.json: a number in it is none" in text


CSV = [f"report_{n}.csv" for n in ("means", "tests", "compression", "provenance")]


@pytest.mark.parametrize("values", [{}, {"CE": {}, "Teacher": {}}, {"Teacher": {0: 0.5}}])
def test_hardly_anything_makes_a_report(values: dict[str, Any], tmp_path: Path) -> None:
    folder = make_bench(tmp_path, values)
    files = {file.name for file in write_report(folder)}
    assert files == {f"report{e}" for e in (".md", ".tex", ".csv", ".html")} | {
        *CSV,
    }


def test_numbers_of_users_that_are_none_leave_their_part_out(tmp_path: Path) -> None:
    make_bench(tmp_path, {"RCEKD": {}, "CE": {}})
    put_users(tmp_path, "RCEKD", 0, {"a": 0.4, "b": 0.2})
    put_users(tmp_path, "CE", 0, {"a": 0.1, "b": 0.2})
    broken = tmp_path / "runs/d/CE-0/per_user.parquet"
    pq.write_table(pa.table({"user": ["a", "b"], "ndcg@10": [0.1, math.nan]}), broken)
    reason = "per\\_user.parquet of CE, seed 0 has a ndcg@10 that is no finite number"
    assert f"by user, against CE: {reason}" in written(tmp_path)
    broken.write_bytes(b"PAR1")
    assert "per\\_user.parquet of CE, seed 0 cannot be read" in written(tmp_path)


def test_rows_the_file_does_not_name_come_last(tmp_path: Path) -> None:
    folder = make_bench(tmp_path, {"CE": {0: 0.1}})
    put(folder, "Old", 0, 0.2)
    (block,) = collect(folder).blocks
    assert [row.name for row in block.rows] == ["CE", "Old"]
    assert block.missing == ("CE: not run yet with seeds 1, 2",)


def test_only_what_the_file_asks_for_is_missing(tmp_path: Path) -> None:
    def row(name: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "kind": kind(name), **more}

    rows = [row("Teacher"), row("CE", seeds=[5], datasets=[], pairs=["MF-MF"], options={})]
    rows += [row("DCD", datasets=["e"]), row("RD", pairs=["X-MF"])]
    pairs = {key: {"teacher": "X", "student": "BPR"} for key in ("MF-MF", "X-MF")}
    folder = make_bench(tmp_path, {}, rows=rows, datasets=["d", "e"], pairs=pairs, seeds=[0])
    put(folder, "CE", 5, 0.2)
    put(folder, "RD", 0, 0.2)
    blocks = {(b.dataset, b.pair): b for b in collect(folder).blocks}
    assert blocks["d", "MF-MF"].missing == (
        "Teacher: not run yet with seed 5",
        "RD: left out, the file does not ask for it here",
    )
    assert [one.name for one in blocks["d", "MF-MF"].rows] == ["CE"]
    assert blocks["e", "X-MF"].missing == tuple(
        f"{name}: not run yet with seed 0" for name in ("Teacher", "DCD", "RD")
    )


def test_records_that_do_not_fit_their_row_are_left_out(tmp_path: Path) -> None:
    folder = make_bench(tmp_path, {"CE": {}, "DCD": {}, "Teacher": {}})
    for seed in (0, 1, 2, 3):
        lr = {"lr": 0.1 if seed == 1 else 0.2, "seed": seed, "checkpoint_dir": f"{seed}"}
        put(folder, "CE", seed, 0.5, options={**lr, "resume": seed, "threads": seed})
        split = {"split": {"train": "bad" if seed == 0 else "good"}}
        put(folder, "DCD", seed, 0.5, provenance=split)
    (block,) = collect(folder).blocks
    assert {row.name: list(row.runs) for row in block.rows} == {"CE": [0, 2], "DCD": [1, 2]}
    assert block.missing == (
        "CE: left out seed 3: the file does not ask for it",
        "CE: left out seed 1: made with other options than seed 0 (lr)",
        "DCD: left out seed 3: the file does not ask for it",
        "DCD: left out seed 0: another split of the data than the other rows",
        "Teacher: not run yet with seeds 0, 1, 2",
    )


def test_of_as_many_records_the_newest_or_those_of_the_file_count(tmp_path: Path) -> None:
    folder = make_bench(tmp_path, {"CE": {}}, seeds=[0, 1])
    for seed in (0, 1):
        put(folder, "CE", seed, 0.5, options={"ce_K": seed, "teacher": {"n": 1}})
        os.utime(records.file_of(folder, "d", "MF-MF", "CE", seed), (100 - seed, 100 - seed))
    assert list(collect(folder).blocks[0].rows[0].runs) == [0]
    row = {"name": "CE", "kind": "distilled", "options": {"ce_K": 1, "teacher": {"n": 1}}}
    make_bench(tmp_path, {}, seeds=[0, 1], rows=[row])
    assert list(collect(folder).blocks[0].rows[0].runs) == [1]


def test_the_metric_is_the_files_or_that_of_early_stopping(tmp_path: Path) -> None:
    found = {"itemcoverage@5": 0.9, "recall@5": 0.1, "mrr@5": 0.2}
    folder = make_bench(tmp_path, {"Teacher": {0: found}, "CE": {0: found}}, metric=None)
    assert collect(folder).metric == "recall@5"
    put(folder, "CE", 0, found, folder="runs")
    (folder / "runs").mkdir()
    (folder / "runs" / "resolved.yaml").write_text("valid_metric: MRR@5")
    assert collect(folder).metric == "mrr@5"
    make_bench(tmp_path, {"Teacher": {}, "CE": {}}, metric="NDCG@10")
    with pytest.raises(KDError, match=r"yaml, metric: ndcg@10: .* itemcoverage@5, recall@5, mrr"):
        collect(folder)


WRONG = {"row": ["CE"], "dataset": None, "seed": True, "kind": 3, "test_result": {"m": "0.3"}}


@pytest.mark.parametrize("key", WRONG)
def test_a_record_of_wrong_types_is_none(key: str, tmp_path: Path) -> None:
    folder = make_bench(tmp_path, {"CE": {0: 0.3, 1: 0.4}})
    file = records.file_of(folder, "d", "MF-MF", "CE", 1)
    file.write_text(json.dumps({**json.loads(file.read_text()), key: WRONG[key]}))
    bench = collect(folder)
    (line,) = bench.damaged
    assert line.startswith("unreadable record: records/d/MF-MF/CE/seed-1.json: ")
    assert list(bench.blocks[0].rows[0].runs) == [0]


def test_a_field_of_wrong_type_is_left_out_of_its_record(tmp_path: Path) -> None:
    folder = make_bench(tmp_path, {"CE": {}})
    wrong = {"folder": 3, "seconds": math.inf, "epochs": "9", "best_epoch": 1.5, "command": ["a"]}
    put(folder, "CE", 0, 0.3, **wrong, options=None, provenance=[1], parameters=10**400)
    bench = collect(folder)
    assert len(bench.damaged) == 8
    assert bench.damaged[1].endswith("records/d/MF-MF/CE/seed-0.json: folder: found 3")
    assert "left out of a record" in written(folder)


def test_a_published_text_is_left_out(tmp_path: Path) -> None:
    paper = {"d": {"MF-MF": {"CE": {"ndcg@10": "high", "Recall@10": 1}, "DCD": 3}}, "e": None}
    bench = collect(make_bench(tmp_path, VALUES, published=paper))
    assert bench.paper(bench.blocks[0], "CE") == {"recall@10": 1.0}
    assert [line.partition("published: ")[2].partition(":")[0] for line in bench.damaged] == [
        "d, MF-MF, CE, ndcg@10",
        "d, MF-MF, DCD",
    ]


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda f: write_report(f / "none"), "found no benchmark.yaml in"),
        (lambda f: write_report(f, metric="hit@5"), r"--metric=hit@5: found no run .*ndcg@10"),
        (lambda f: write_report(f, formats=["pdf"]), "--formats: found pdf; allowed are md, tex"),
        (lambda f: write_report(f, formats=[]), "--formats: found none"),
        (lambda f: published.load("rceKD"), "did you mean|Allowed are rcekd"),
    ],
)
def test_what_cannot_be_reported_is_refused(call: Any, part: str, tmp_path: Path) -> None:
    folder = make_bench(tmp_path, VALUES)
    with pytest.raises(KDError, match=part) as caught:
        call(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "report").exists()


@pytest.mark.parametrize("library", ["matplotlib", "jinja2", "statsmodels", "pyarrow"])
def test_a_missing_library_is_asked_for_first(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bench(tmp_path, VALUES)
    monkeypatch.setitem(sys.modules, library, None)
    if library == "pyarrow":
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(KDError, match=rf"^report: .* needs {library} .*; pip install {library}$"):
        write_report(folder)
    assert not (folder / "report").exists()


# -- formats -----------------------------------------------------------------------------------


class Page(HTMLParser):
    """Text, tags and addresses of a page; every tag must be closed."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def all_written(folder: Path) -> dict[str, str]:
    """The report in its three formats of text."""
    page = contents.make_page(compute(collect(folder), timed=False))
    return {form.__name__: form(page) for form in (render.markdown, render.latex, render.html)}


def test_names_mean_nothing_to_a_format(tmp_path: Path) -> None:
    values = {**VALUES, ODD: {0: 0.1, 1: 0.9, 2: 0.9}, "w/o S": {0: 0.1}}
    found = all_written(make_bench(tmp_path, values, name=ODD, groups={"w/o S": "abl_<i>"}))
    page = Page(found["html"])
    assert page.text.count(ODD) >= 3
    assert not {"i", "script", "link"} & set(page.tags)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    tex = found["latex"].replace(render.NARROWED + "{", "").replace("{tabular}}\n", "{tabular}\n")
    assert r"{[}A\_B{]} \textless{}b\textgreater{} 50\% \& \$x\$ \#1 \{y\} \textasciitilde" in tex
    for line in (line for line in tex.splitlines() if not line.startswith("%")):
        bare = re.sub(r"\\[&%$#_{}\\]", "", line)
        assert bare.count("{") == bare.count("}")
        assert re.search(r"[#%^~<>|]", bare) is None, line
    rows = [line for line in found["markdown"].splitlines() if line.startswith(r"| \[A")]
    assert len(rows) >= 2
    for row in rows:
        assert r"\[A\_B\] &lt;b&gt; 50% &amp; \$x\$ \#1 {y} \~ ^ \| \\ \*z\* \`q\`" in row
        assert len(re.findall(r"(?<!\\)\|", row)) in (4, 8, 9)


def test_latex_cells_and_numbers() -> None:
    assert render._tex_cell(Text("0.1 ± 0.2", bold=True)) == r"\textbf{0.1 $\pm$ 0.2}"
    assert render._tex_cell(Text("-3.1% (w/o S)", underlined=True)) == (
        r"\underline{$-$3.1\% (w/o S)}"
    )
    assert render.tex_escape("5-12, MF-MF, -") == "5-12, MF-MF, -"
    assert render.tex_escape("--a --- ''") == "-{}-a -{}-{}- '{}'"
    assert render.tex_escape('"`') == "{''}{\\textasciigrave}"


def test_a_command_with_backticks_has_a_longer_fence(tmp_path: Path) -> None:
    folder = make_bench(tmp_path, VALUES, command="echo ````\nmake")
    assert "`````\necho ````\nmake\n`````\n" in written(folder)


def test_marks_in_every_format(tmp_path: Path) -> None:
    folder = make_bench(tmp_path, VALUES)
    cells = ("0.4300 ± 0.0173", "0.3800 ± 0.0200")
    md, tex, html = all_written(folder).values()
    assert f"**{cells[0]}**" in md
    assert f"<ins>{cells[1]}</ins>" in md
    assert rf"\textbf{{{cells[0]}}}".replace("±", r"$\pm$") in tex
    assert rf"\underline{{{cells[1]}}}".replace("±", r"$\pm$") in tex
    assert f"<b>{cells[0]}</b>" in html
    assert f"<u>{cells[1]}</u>" in html
    assert "+13.2% (DCD)" in md


def test_csv_has_every_seed_mean_and_test(tmp_path: Path) -> None:
    folder = make_bench(tmp_path, VALUES)
    files = {f.name: f for f in write_report(folder, formats=["csv"], latency=False)}
    lines = {n: list(csv.DictReader(f.open(encoding="utf-8"))) for n, f in files.items()}
    found = {(r["row"], int(r["seed"])): float(r["value"]) for r in lines["report.csv"]}
    assert found == {(row, s): v for row, seeds in VALUES.items() for s, v in seeds.items()}
    best = [r["row"] for r in lines["report_means.csv"] if r["best"] == "1"]
    assert best == ["RCEKD"]
    better = {
        r["row"]: (r["improvement"], r["improvement_over"]) for r in lines["report_means.csv"]
    }
    assert float(better.pop("RCEKD")[0]) == pytest.approx(0.43 / 0.38 - 1)
    assert set(better.values()) == {("", "")}
    assert {r["improvement_seeds"] for r in lines["report_means.csv"]} == {""}
    sizes = {r["row"]: r for r in lines["report_compression.csv"]}
    assert float(sizes["RCEKD"]["gap_closed"]) == pytest.approx(0.7)
    assert sizes["RCEKD"]["one_p50_ms"] == sizes["RCEKD"]["threads"] == ""
    facts = {(r["of"], r["fact"]): r["value"] for r in lines["report_provenance.csv"]}
    assert facts["benchmark", "command"] == "recbole-kd benchmark look.yaml"
    assert "latency" not in {of for of, _ in facts}
    assert [r["by"] for r in lines["report_tests.csv"]] == ["seed", "user"] * 3
    assert not (folder / "report" / "figures").exists()


def test_names_in_csv_are_no_formulas(tmp_path: Path) -> None:
    folder = make_bench(tmp_path, {"=1+1": {0: -0.5}, "@x": {0: 0.1}})
    text = {f.name: f.read_text() for f in write_report(folder, formats=["csv"], latency=False)}
    assert "d,MF-MF,main,'=1+1,distilled,X,0,ndcg@10,-0.5" in text["report.csv"]
    assert "'@x" in text["report_means.csv"]


def test_nothing_is_timed_without_latency(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(compression, "Timed", None)
    assert write_report(make_bench(tmp_path, VALUES), formats=["csv"], latency=False)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("recbole-kd benchmark /root/a/b.yaml --out=/tmp/x", "recbole-kd benchmark b.yaml --out=x"),
        ("run --data_path='/home/my name/d s' a/b", "run '--data_path=d s' a/b"),
        ("run '--teacher=[/a/b.pt, /c/d.pt]'", "run '--teacher=[b.pt, d.pt]'"),
        ("make 'all\nrun /a/b", "make 'all\nrun b"),
        ("echo w/o  $(x)", "echo w/o  $(x)"),
    ],
)
def test_commands_name_no_folder_of_the_machine(command: str, shown: str) -> None:
    assert provenance.command_text(command) == shown


def test_data_and_split_are_said_once_a_data_set(tmp_path: Path) -> None:
    folder = make_bench(tmp_path, {"CE": {}}, datasets=["d", "e"])
    for n, dataset in enumerate("de"):
        facts = {"data": {"users": 10 + n, "train": 99}, "split": {"train": f"print-{n}"}}
        record = Record(dataset, "MF-MF", "CE", 0, "distilled", test_result={"ndcg@10": 0.1})
        record.provenance, record.seconds = {**facts, "threads": 1}, 90.0
        records.write(records.file_of(folder, dataset, "MF-MF", "CE", 0), record)
    text = written(folder)
    assert "differs" not in text
    assert "Data and split of e." in text
    assert [text.count(part) for part in ("print-0", "print-1", "| 11 ")] == [1, 1, 1]
    assert "3.0 min (sum of the seconds of all runs' epochs" in text


def test_published_numbers_stand_below_their_row(tmp_path: Path) -> None:
    paper = {"d": {"MF-MF": {"CE": {"ndcg@10": 0.3111}, "TARec": {"ndcg@10": 0.9}}}}
    folder = make_bench(tmp_path, VALUES, published=paper)
    lines = written(folder).splitlines()
    (place,) = [n for n, line in enumerate(lines) if "0.3111" in line]
    assert lines[place - 1].startswith("| CE ")
    assert "TARec" not in "\n".join(lines)


def test_the_papers_table_is_shipped() -> None:
    found = published.load("rcekd")
    assert set(found) == {"citeulike", "gowalla", "yelp"}
    pairs = {"MF-MF", "LightGCN-LightGCN", "HSTU-HSTU", "LightGCN-MF", "HSTU-MF"}
    rows = {"Teacher", "Scratch", "CD", "RRD", "DCD", "HetComp", "TARec", "RCEKD"}
    for by_pair in found.values():
        assert set(by_pair) == pairs
        for by_row in by_pair.values():
            assert set(by_row) == rows
            for metrics in by_row.values():
                assert list(metrics) == ["recall@10", "ndcg@10", "recall@20", "ndcg@20"]
    assert found["citeulike"]["MF-MF"]["RCEKD"]["ndcg@10"] == 0.0152
    assert found["yelp"]["HSTU-MF"]["Teacher"]["recall@20"] == 0.08


# -- real runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of two seeds: teacher, scratch student, CE and RCE-KD, trained for two epochs."""
    folder = tmp_path_factory.mktemp("bench")
    options = tiny.options("BPR", epochs=2, per_user=True, topk=[10, 20])
    options |= {"checkpoint_dir": str(folder / "runs"), "teacher": {"embedding_size": 16}}
    lists = {"RCEKD": {"rcekd_K": 10, "rcekd_L": 10, "rcekd_M": 30}, "CE": {"ce_K": 10}}
    names = [("Teacher", "teacher"), ("Scratch", "scratch"), ("CE", "distilled")]
    rows = [{"name": n, "kind": k} for n, k in [*names, ("RCEKD", "distilled")]]
    spec = {"name": "tiny", "seeds": [1, 2], "datasets": ["tiny"], "rows": rows, "ours": "RCEKD"}
    spec |= {"pairs": {"MF-MF": {"teacher": "BPR", "student": "BPR"}}, "metric": "ndcg@10"}
    (folder / "benchmark.yaml").write_text(yaml.safe_dump({**spec, "command": "make all"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "latency", lambda *_: None)  # of the run's own table: slow
        for method, seed in itertools.product(lists, (1, 2)):
            given = {**options, **lists[method], "seed": seed}
            models = {"student": "BPR", "teacher": "BPR"}
            found = run_recbole_kd(method, tiny.dataset(), config_dict=given, **models)
            _put_run(folder, method, seed, found)
    return folder


def _put_run(folder: Path, method: str, seed: int, found: dict[str, Any]) -> None:
    parts = {"Teacher": "teacher", "Scratch": "scratch", method: "student"}
    for row, part in parts.items():
        place = Path(found["checkpoints"][part]).parent
        result = found["test_result" if part == "student" else f"{part}_test_result"]
        record = Record("tiny", "MF-MF", row, seed, kind(row), test_result=result, seconds=2.5)
        record.folder = place.relative_to(folder).as_posix()
        record.provenance = {"versions": {"torch": "2.0"}, "threads": 1}
        records.write(records.file_of(folder, "tiny", "MF-MF", row, seed), record)


FIGURES = ("methods", "training", "pareto", "activity", "popularity")


@pytest.fixture(scope="module")
def reported(real: Path) -> Path:
    """Its report, in all formats."""
    files = [file.name for file in write_report(real)]
    assert files == ["report.csv", *CSV, "report.md", "report.tex", "report.html"]
    return real / "report"


def test_a_report_of_real_runs(real: Path, reported: Path) -> None:
    text = (real / "report" / "report.md").read_text(encoding="utf-8")
    assert "What is missing or left out" not in text
    assert "| users tested" in text
    assert "make all" in text
    figures = {file.name for file in (real / "report" / "figures").iterdir()} - {"figures.txt"}
    names = {f"tiny-MF-MF-{n}" for n in FIGURES}
    assert figures == {f"{n}.{e}" for n in names for e in ("svg", "pdf")}
    assert "left out" not in text
    assert "(figures/tiny-MF-MF-training.svg)" in text
    sizes = re.search(r"\| RCEKD +\|.*MiB \|.*MiB \| +([\d.]+) \| +([\d.]+) \|", text)
    assert sizes is not None
    assert 0 < float(sizes[1]) <= float(sizes[2])
    assert "split fingerprint, train" in text
    assert "Machine of the latencies" in text
    assert "differs" not in text
    page = Page((real / "report" / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("img") == len(FIGURES)
    assert re.search(r"https?://", page.text) is None


def test_tests_by_user_of_real_runs_agree_with_the_metric(real: Path) -> None:
    bench = collect(real)
    table = make_table(bench, bench.blocks[0], "main", Rankings(real))
    for one in table.tests:
        assert one.by_user.pairs == 60
        assert one.by_user.difference == pytest.approx(one.by_seed.difference, abs=1e-6)
        assert one.by_user.corrected is not None


def test_the_same_folder_gives_the_same_bytes(real: Path, reported: Path, tmp_path: Path) -> None:
    one, two = reported, tmp_path
    write_report(real, two, latency=False, formats=["csv", "html"])
    files = [two / "report.csv", two / "report_means.csv", two / "report_tests.csv"]
    files += sorted(two.glob("figures/*.svg"))
    assert len(files) == 3 + len(FIGURES)
    for file in files:
        assert (one / file.relative_to(two)).read_bytes() == file.read_bytes()


def test_the_same_rows_give_the_same_pdf() -> None:
    def drawn() -> bytes:
        rows = [row_of("CE", {0: 0.4, 1: 0.5})]
        return bars(rows, "m", looks(rows, None), "name", "caption").drawn("pdf")

    assert drawn() == drawn()


def test_options_of_the_command(real: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "2024"
    words = [f"--out={out}", "--metric=NDCG@20", "--latency=False", "--formats=csv", "--pair=None"]
    assert main(["report", str(real), *words]) == 0
    assert {f.name for f in out.iterdir()} == {"report.csv", *CSV}
    text = (out / "report_tests.csv").read_text(encoding="utf-8")
    assert "tiny,MF-MF,main,ndcg@20,RCEKD,CE,seed" in text
    said = capsys.readouterr().out.splitlines()
    assert [Path(line.split()[-1]).name for line in said] == ["report.csv", *CSV]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "found 0 of the arguments <folder>"),
        (["a", "b"], "found 2 of the arguments <folder>"),
        (["a", "--latency=often"], "--latency=often: allowed are True and False"),
        (["a", "--format=md"], "there is no option --format. Did you mean 'formats'?"),
        (["a"], "found no benchmark.yaml in a"),
        (["a", "--pair=report"], "--pair=report: its files would be"),
    ],
)
def test_mistakes_of_the_command(words: list[str], part: str, capsys: Any) -> None:
    assert main(["report", *words]) == 2
    said = capsys.readouterr().err
    assert part in said
    assert said.count("\n") == 1


def test_a_model_that_cannot_be_opened_has_a_reason(real: Path, tmp_path: Path) -> None:
    folder = make_bench(tmp_path, VALUES)
    (folder / "runs").mkdir()
    (folder / "runs" / "best.pt").write_bytes(b"no model")
    put(folder, "CE", 0, 0.3, folder="runs", parameters=12)
    text = written(folder)
    assert "CE: checkpoint runs/best.pt: not a torch checkpoint" in text
    assert "Teacher: there is no best.pt" in text
    others = ", ".join(name for name in VALUES if name != "CE")
    missing = f"Accuracy against size: {others} left out, without a number of parameters."
    assert missing in text.replace("\\", "")


def test_a_benchmark_knows_its_blocks() -> None:
    block = Block("d", "p", (Row("x", "distilled", "late"), Row("y", "teacher")))
    bench = Benchmark(Path(), "n", "", "", (), "m", None, {}, {"d": None}, (block,))
    assert block.groups == ["main", "late"]
    assert bench.paper(block, "x") == {}
    assert block.of_kind("teacher") is None


def test_notes_of_the_file_are_shown(tmp_path: Path) -> None:
    text = written(make_bench(tmp_path, VALUES, notes=["seed 0 is <b>hard</b>"]))
    assert "## Notes\n\n- seed 0 is &lt;b&gt;hard&lt;/b&gt;\n" in text
    assert "## Notes" not in written(make_bench(tmp_path / "none", VALUES))
