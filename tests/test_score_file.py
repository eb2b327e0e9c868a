"""A file of scores as a teacher: read by token, checked, cached, and silent beyond its lists."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from kd_helpers import Dataset, World, make_world, options_for, small_options
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_kd import leak, load_model, run_recbole_kd, score_file, training
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.listed import ListedTeacher, report_lists
from recbole_kd.mixture import MixedTeacher
from recbole_kd.options import SCORE_FILES
from recbole_kd.registry import SCRATCH, method_class, method_names
from recbole_kd.score_file import Found, ScoreLists, open_scores, read_trained_on
from recbole_kd.score_writer import write_scores
from recbole_kd.teacher import UNKNOWN_SCORE

try:
    import pyarrow.parquet  # noqa: F401

    HAS_PARQUET = True
except ImportError:  # no build of it for numpy 1 any more
    HAS_PARQUET = False

needs_parquet = pytest.mark.skipif(not HAS_PARQUET, reason="needs pyarrow")
FORMS = [pytest.param(".parquet", marks=needs_parquet), ".csv", ".npz"]
BY_SCORES = [name for name in method_names() if name != SCRATCH and not method_class(name).needs]
USERS = ["[PAD]", "ann", "bob", "cy", "dan"]
ITEMS = ["[PAD]", "a", "b", "c", "d", "e", "007"]
ROWS = [
    ("bob", "c", 1.5),
    ("ann", "a", 0.1),
    ("bob", "007", -3.25),
    ("ann", "e", 7e-8),
    ("cy", "d", 2.0),
    ("bob", "a", 1e6),
]
LISTS = {
    1: {1: 0.1, 5: 7e-8},
    2: {1: 1e6, 3: 1.5, 6: -3.25},
    3: {4: 2.0},
}
"""What the rows are in ids."""


def frame(rows: list[tuple[Any, ...]] = ROWS) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["user", "item", "score"])


def write(table: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        kinds = {"user": str, "item": str, "score": float}
        np.savez(path, **{name: table[name].to_numpy().astype(kinds[name]) for name in table})
    return path


def content(lists: ScoreLists) -> dict[int, dict[int, float]]:
    """The lists as a mapping, read without the code that looks them up."""
    found = {}
    for user in range(len(lists.offsets) - 1):
        place = slice(int(lists.offsets[user]), int(lists.offsets[user + 1]))
        items = lists.items[place].tolist()
        assert items == sorted(items)
        if items:
            found[user] = dict(zip(items, lists.scores[place].tolist(), strict=True))
    return found


def single(lists: dict[int, dict[int, float]]) -> dict[int, dict[int, float]]:
    """The same numbers in single precision."""
    return {u: {i: float(np.float32(s)) for i, s in row.items()} for u, row in lists.items()}


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# -- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_a_chunk", [2, 2**20])
@pytest.mark.parametrize("form", FORMS)
def test_rows_of_any_order_become_lists(
    form: str, rows_a_chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_file, "CHUNK_ROWS", rows_a_chunk)
    for seed in range(4):
        table = frame().sample(frac=1, random_state=seed)
        lists = open_scores(write(table, tmp_path / f"s{form}"), USERS, ITEMS, None)
        assert content(lists) == single(LISTS)
        assert lists.offsets.dtype == torch.int64
        assert (lists.items.dtype, lists.scores.dtype) == (torch.int32, torch.float32)
        assert lists.counts.tolist() == [0, 2, 3, 1, 0]
        assert lists.found == Found(rows=6)


def test_the_endings_are_those_of_the_option() -> None:
    assert tuple(score_file.READERS) == SCORE_FILES


@pytest.mark.parametrize("form", FORMS)
def test_tokens_may_be_whole_numbers(form: str, tmp_path: Path) -> None:
    """But a text that looks like a number stays a text: 007 is not 7."""
    users, items = ["[PAD]", "10", "9"], ["[PAD]", "7", "007"]
    rows = [(9, 7, 1.0), (10, 7, 2.0)]
    path = tmp_path / f"s{form}"
    if form == ".npz":
        np.savez(path, user=np.array([9, 10]), item=np.array([7, 7]), score=np.array([1.0, 2.0]))
    else:
        write(frame(rows), path)
    assert content(open_scores(path, users, items, None)) == {1: {1: 2.0}, 2: {1: 1.0}}
    write(frame([("10", "007", 3.0), ("10", "7", 4.0)]), path)
    assert content(open_scores(path, users, items, None)) == {1: {1: 4.0, 2: 3.0}}


def test_columns_of_a_table_may_be_in_any_order_beside_others(tmp_path: Path) -> None:
    text = '\ufeffscore,rank,item,user\n2.5,1,"a,b",ann\n1.5,2,NA,"an""n"\n'
    (tmp_path / "s.csv").write_text(text, encoding="utf-8")
    users, items = ["[PAD]", "ann", 'an"n'], ["[PAD]", "a,b", "NA"]
    lists = open_scores(tmp_path / "s.csv", users, items, None)
    assert content(lists) == {1: {1: 2.5}, 2: {2: 1.5}}


@needs_parquet
def test_parquet_may_hold_categories_and_row_groups(tmp_path: Path) -> None:
    table = frame().astype({"user": "category", "item": "category", "score": "float32"})
    table.to_parquet(tmp_path / "s.parquet", row_group_size=2)
    assert content(open_scores(tmp_path / "s.parquet", USERS, ITEMS, None)) == single(LISTS)


def test_many_rows_against_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_file, "CHUNK_ROWS", 97)
    users = ["[PAD]", *(f"u{n}" for n in range(40))]
    items = ["[PAD]", *(f"i{n}" for n in range(60))]
    random = np.random.default_rng(0)
    picked = random.permutation(39 * 59)[:1500]  # some users, items and pairs are not there
    rows = [(users[1 + p // 59], items[1 + p % 59], float(random.normal())) for p in picked]
    wanted: dict[int, dict[int, float]] = {}
    for user, item, score in rows:
        wanted.setdefault(users.index(user), {})[items.index(item)] = score
    path = write(frame(rows), tmp_path / "s.npz")
    assert content(open_scores(path, users, items, None)) == single(wanted)


# -- what is refused, and what is left out -------------------------------------------------------


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(KDError) as refusal:
        open_scores(path, USERS, ITEMS, path.parent / "cache")
    message = str(refusal.value)
    assert "\n" not in message
    assert [part for part in ("score file", str(path), *parts) if part not in message] == []
    assert files(path.parent / "cache") == []


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([], ["no row"]),
        ([*ROWS, ("ann", "b", math.nan)], ["row 7 (user 'ann', item 'b')", "score nan", "finite"]),
        ([("cy", "b", math.inf), *ROWS], ["row 1 (user 'cy', item 'b')", "score inf"]),
        ([*ROWS, ("cy", "zz", -math.inf)], ["row 7 (user 'cy', item 'zz')", "score -inf"]),
        ([*ROWS, ("cy", "b", 1e39)], ["score 1e+39", "single precision"]),
        ([*ROWS, ("cy", "b", -1e9)], ["score -1e+09", "above -1e+09"]),
        ([*ROWS, ROWS[0], ROWS[3]], ["2 rows", "user 'ann', item 'e'", "allowed is one"]),
        ([*ROWS, ("", "b", 1.0)], ["row 7", "no user"]),
        ([*ROWS, ("bob", "", 1.0)], ["row 7", "no item"]),
        ([("eve", "a", 1.0), ("flo", "b", 1.0)], ["none of its 2 rows", "the user 'eve'"]),
        ([("ann", "x", 1.0), ("bob", "[PAD]", 1.0)], ["none of its 2 rows", "the item 'x'"]),
        ([("eve", "a", 1.0), ("bob", "y", 1.0)], ["the user 'eve' and the item 'y'"]),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_rows_that_are_refused(
    form: str, rows: list[Any], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_file, "CHUNK_ROWS", 4)
    refused(write(frame(rows), tmp_path / f"s{form}"), *parts)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("missing", ["user", "item", "score"])
def test_a_column_must_be_there(missing: str, form: str, tmp_path: Path) -> None:
    path = write(frame().drop(columns=missing), tmp_path / f"s{form}")
    left = [name for name in ("user", "item", "score") if name != missing]
    refused(path, *left, "needed are user, item, score")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["columns none"]),
        ("user,item,score,score\nann,a,1,2\n", ["score, score", "each once"]),
        ("user;item;score\nann;a;1\n", ["user;item;score"]),
        ("user,item,score\nann,a,high\n", ["high"]),
        ("user,item,score\nann,a,\n", ["row 1 (user 'ann', item 'a')", "score nan"]),
        ("user,item,score\nann,a\n", ["row 1", "score nan"]),
        ("user,item,score\nann\n", ["row 1", "no item"]),
        ("user,item,score\nann,a,1,9\nbob,b,2,9\n", ["user, item and number"]),
        ("user,item,score\nann,a,1\nbob,b,2,9\n", ["line 3"]),
        ('user,item,score\nann,"a,1\n', ["user, item and number"]),
        ("user,item,score\nann,\udcff,1\n", ["utf-8"]),
    ],
)
def test_tables_that_are_refused(text: str, parts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(path, *parts)


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"user": np.array(["ann"], dtype=object)}, ["Object arrays", "no objects"]),
        ({"user": np.array([b"ann"])}, ["column user of type |S3", "texts and whole numbers"]),
        ({"item": np.array([1.5])}, ["column item of type float64"]),
        ({"score": np.array(["1"])}, ["scores of type <U1"]),
        ({"score": np.array([1.0, 2.0])}, ["shapes (1,), (1,), (2,)"]),
        ({"user": np.array("ann"), "item": np.array("a"), "score": np.array(1.0)}, ["shapes ()"]),
    ],
)
def test_arrays_that_are_refused(arrays: Any, parts: list[str], tmp_path: Path) -> None:
    right = {"user": np.array(["ann"]), "item": np.array(["a"]), "score": np.array([1.0])}
    np.savez(tmp_path / "s.npz", **{**right, **arrays})
    refused(tmp_path / "s.npz", *parts)


def test_pickled_objects_of_a_file_are_never_made(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "sprung").touch, ())

    users = np.array([Trap(), "ann"], dtype=object)
    np.savez(tmp_path / "s.npz", user=users, item=np.array(["a", "b"]), score=np.ones(2))
    refused(tmp_path / "s.npz", "no objects")
    assert not (tmp_path / "sprung").exists()


@needs_parquet
@pytest.mark.parametrize(
    ("column", "values", "parts"),
    [
        ("user", [1.0, 2.0], ["column user of type double"]),
        ("item", [b"a", b"b"], ["column item of type binary"]),
        ("score", ["1", "2"], ["column score of type"]),
        ("user", ["ann", None], ["row 2", "no user"]),
        ("score", [1.0, None], ["row 2", "score nan"]),
        ("score", [[1.0], [2.0]], ["column score of type list"]),
    ],
)
def test_parquet_columns_that_are_refused(
    column: str, values: list[Any], parts: list[str], tmp_path: Path
) -> None:
    columns = {"user": ["ann", "bob"], "item": ["a", "b"], "score": [1.0, 2.0]}
    pd.DataFrame({**columns, column: values}).to_parquet(tmp_path / "s.parquet")
    refused(tmp_path / "s.parquet", *parts)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_such_file_is_refused(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"s{form}"
    refused(path, "no such file")
    path.write_bytes(b"\x00\x01 neither this nor that \xff" * 9)
    refused(path)
    whole = write(frame(), tmp_path / f"whole{form}").read_bytes()
    if form != ".csv":  # a table that ends early is a shorter table
        path.write_bytes(whole[: len(whole) // 2])
        refused(path)
    path.unlink()
    path.mkdir()
    refused(path, "a folder")


def test_parquet_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    (tmp_path / "s.parquet").write_bytes(b"PAR1")
    refused(tmp_path / "s.parquet", "pip install pyarrow", ".csv or .npz")
    assert not (tmp_path / "cache").exists()


def test_strangers_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strangers = [("eve", "a", 1.0), ("bob", "new", 1.0), ("eve", "b", 2.0), ("eve", "newer", 0.0)]
    path = write(frame([*ROWS, *strangers]), tmp_path / "s.csv")
    lists = open_scores(path, USERS, ITEMS, None)
    assert content(lists) == single(LISTS)
    assert lists.found == Found(10, user_rows=3, user="eve", item_rows=2, item="new")
    with caplog.at_level(logging.WARNING):
        report_lists(lists, 0.75, "floor", "s.csv")
    said = [record.getMessage() for record in caplog.records]
    assert any("3 of 10 rows (30.0%) are of users" in line and "'eve'" in line for line in said)
    assert any("2 of 10 rows (20.0%) are of items" in line and "'new'" in line for line in said)
    assert any("75.0% of the student's users: users without one" in line for line in said)
    with pytest.raises(KDError, match=r"lists of 75.0% of .* min_token_overlap=0.76 or more"):
        report_lists(lists, 0.76, "floor", "s.csv")


def test_a_complete_file_is_reported_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(frame([*ROWS, ("dan", "a", 1.0)]), tmp_path / "s.csv")
    with caplog.at_level(logging.INFO):
        report_lists(open_scores(path, USERS, ITEMS, None), 1, "mask", "s.csv")
    (line,) = [r.getMessage() for r in caplog.records if "lists of" in r.getMessage()]
    assert "100.0% of the student's users, 1 to 3 items each" in line
    assert "no probability (missing_score=mask)" in line


# -- the cache ---------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path) -> tuple[Path, Path]:
    """A file that was read, and the folder of caches."""
    path = write(frame(), tmp_path / "s.csv")
    open_scores(path, USERS, ITEMS, tmp_path / "cache")
    return path, tmp_path / "cache"


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> Any:
        raise AssertionError("the file is read again")

    for form in score_file.READERS:
        monkeypatch.setitem(score_file.READERS, form, read)


def test_a_cache_is_found(cached: tuple[Path, Path], unread: None) -> None:
    path, folder = cached
    (cache,) = folder.iterdir()
    assert sorted(f.name for f in cache.iterdir()) == [
        "info.json",
        "items.npy",
        "offsets.npy",
        "scores.npy",
    ]
    lists = open_scores(path, USERS, ITEMS, folder)
    assert content(lists) == single(LISTS)
    assert lists.found == Found(rows=6)
    maps = Path("/proc/self/maps")
    if maps.exists():
        mapped = maps.read_text()
        assert all(str(cache / f"{name}.npy") in mapped for name in score_file.ARRAYS)
    lists.scores.fill_(0)  # a copy of the page: the file stays
    assert content(open_scores(path, USERS, ITEMS, folder)) == single(LISTS)
    copied = path.with_name("copied.csv")
    copied.write_bytes(path.read_bytes())
    assert content(open_scores(copied, USERS, ITEMS, folder)) == single(LISTS)


def test_another_file_or_other_ids_have_another_cache(cached: tuple[Path, Path]) -> None:
    path, folder = cached
    items = [*ITEMS[:1], *ITEMS[:0:-1]]
    lists = open_scores(path, USERS, items, folder)
    names = {u: {ITEMS[i]: s for i, s in row.items()} for u, row in single(LISTS).items()}
    assert {u: {items[i]: s for i, s in r.items()} for u, r in content(lists).items()} == names
    write(frame(ROWS[:3]), path)
    assert len(open_scores(path, USERS, ITEMS, folder).items) == 3
    assert len(list(folder.iterdir())) == 3


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("scores.npy", flip),
        ("items.npy", flip),
        ("offsets.npy", Path.unlink),
        ("scores.npy", lambda file: file.write_bytes(b"")),
        ("info.json", lambda file: file.write_text('{"digests": 1')),
        ("info.json", lambda file: file.write_text("[]")),
        ("info.json", Path.unlink),
    ],
)
def test_a_damaged_cache_is_made_anew(
    name: str, harm: Callable[[Path], Any], cached: tuple[Path, Path]
) -> None:
    path, folder = cached
    (cache,) = folder.iterdir()
    before = {f.name: f.read_bytes() for f in cache.iterdir()}
    harm(cache / name)
    assert content(open_scores(path, USERS, ITEMS, folder)) == single(LISTS)
    assert {f.name: f.read_bytes() for f in cache.iterdir()} == before
    assert list(folder.iterdir()) == [cache]


def test_nowhere_to_keep_a_cache(tmp_path: Path) -> None:
    path = write(frame(), tmp_path / "s.csv")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(KDError, match="checkpoint_dir"):
        open_scores(path, USERS, ITEMS, tmp_path / "cache")
    assert sorted(f.name for f in files(tmp_path)) == ["cache", "s.csv"]


# -- the teacher ---------------------------------------------------------------------------------


def lists_of(table: dict[int, dict[int, float]], n_users: int) -> ScoreLists:
    """Lists without a file."""
    rows = [sorted(table.get(user, {}).items()) for user in range(n_users)]
    flat = [pair for row in rows for pair in row]
    offsets = torch.tensor([0, *np.cumsum([len(row) for row in rows])])
    items = torch.tensor([i for i, _ in flat], dtype=torch.int32)
    return ScoreLists(offsets, items, torch.tensor([s for _, s in flat]), Found(), "")


def best_of(world: World, k: int) -> dict[int, dict[int, float]]:
    """The teacher's best items of each user of a world, a longer list for every third."""
    scores = world.teacher.full_sort_predict({"user_id": torch.arange(world.history.n_users)})
    scores = scores.detach()
    scores[:, 0] = -torch.inf
    table = {}
    for user in range(1, world.history.n_users):
        best = scores[user].topk(k + user % 3)
        table[user] = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return table


def listed(world: World, table: dict[int, dict[int, float]], **more: Any) -> ListedTeacher:
    return ListedTeacher(lists_of(table, world.history.n_users), world.history, **more)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


def naive(world: World, table: dict[int, dict[int, float]], missing: str) -> Tensor:
    """All scores, item by item, ``[n_users, n_items]``."""
    scores = torch.full((world.history.n_users, world.history.n_items), UNKNOWN_SCORE)
    for user, row in table.items():
        for item in range(world.history.n_items):
            low = min(row.values()) if missing == "floor" else UNKNOWN_SCORE
            scores[user, item] = row.get(item, low)
    return scores


@pytest.mark.parametrize("budget", [0.1, 1e-9])
@pytest.mark.parametrize("missing", ["floor", "mask"])
def test_scores_are_looked_up(missing: str, budget: float, world: World) -> None:
    table = {user: row for user, row in best_of(world, 20).items() if user != 4}
    teacher = listed(world, table, missing_score=missing, memory_budget_gb=budget)
    wanted = naive(world, table, missing)
    users = torch.tensor([3, 1, 12, 3, 4, 7])
    assert torch.equal(teacher.score_all(users), wanted[users])
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(0, world.history.n_items, (len(users), 30), generator=generator)
    assert torch.equal(teacher.score(users, items), wanted[users].gather(1, items))
    assert torch.equal(teacher.ranking_scores(users), naive(world, table, "mask")[users])
    teacher.score_all(users).fill_(0)
    assert torch.equal(teacher.score_all(users), wanted[users])
    assert teacher.knows_user.nonzero().squeeze(1).tolist() == sorted(table)
    named = {item for row in table.values() for item in row}
    assert teacher.knows_item.nonzero().squeeze(1).tolist() == sorted(named)
    assert teacher.factors() is None
    assert teacher.trajectory == ()


@pytest.mark.parametrize("budget", [0.1, 1e-9])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("missing", ["floor", "mask"])
def test_top_k_by_brute_force(missing: str, mask: bool, budget: float, world: World) -> None:
    table = best_of(world, 20)
    teacher = listed(world, table, missing_score=missing, memory_budget_gb=budget)
    free = {
        u: {i: s for i, s in row.items() if i not in world.train_items(u)}
        for u, row in table.items()
    }
    wanted = free if mask else table
    assert free != table
    shortest = min(len(row) for row in wanted.values())
    items, scores = teacher.top_k(shortest, mask)
    assert items.dtype == torch.int32
    assert not items[0].any()
    for user, row in wanted.items():
        best = sorted(row, key=lambda item, row=row: -row[item])[:shortest]
        assert items[user].tolist() == best
        assert scores[user].tolist() == [row[item] for item in best]


def test_a_missing_item_is_never_listed_though_it_ties(world: World) -> None:
    """All scores are equal, so that a missing item at the floor has as much."""
    table = {user: dict.fromkeys(range(30, 40), 1.0) for user in range(1, world.history.n_users)}
    teacher = listed(world, table)
    assert teacher.score(torch.tensor([1]), torch.tensor([[2]])).item() == 1.0
    items, scores = teacher.top_k(10)
    assert {tuple(sorted(row)) for row in items[1:].tolist()} == {tuple(range(30, 40))}
    assert scores[1:].eq(1).all()
    best = teacher.ranking_scores(torch.arange(1, 5)).topk(10).indices
    assert best.min() >= 30


def test_lists_longer_than_the_shortest_are_refused(world: World) -> None:
    table = best_of(world, 20)
    table[5] = dict(list(table[5].items())[:6])
    table[6] = dict(list(table[6].items())[:9])
    teacher = listed(world, table, origin="s.csv")
    teacher.check_length(6, False)
    message = (
        r"score file s.csv: a list of 7 items .*, 1 of its 13 users have fewer; allowed are lists "
        r"up to 6, or --min_listed_items=7, which"
    )
    with pytest.raises(KDError, match=message):
        teacher.check_length(7, False)
    with pytest.raises(KDError, match="2 of its 13 users"):
        teacher.top_k(10)
    left = {u: len(set(row) - world.train_items(u)) for u, row in table.items()}
    shortest = min(left.values())
    teacher.check_length(shortest, True)
    with pytest.raises(KDError, match=f"have fewer that are no train items; .* up to {shortest},"):
        teacher.check_length(shortest + 1, True)


def test_users_with_short_lists_are_not_distilled(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    table = best_of(world, 20)
    table[5] = dict(list(table[5].items())[:6])
    table[6] = dict.fromkeys(world.train_items(6), 1.0)
    left = {u: len(set(row) - world.train_items(u)) for u, row in table.items()}
    assert left[6] == 0
    with caplog.at_level(logging.WARNING):
        teacher = listed(world, table)
    assert not teacher.knows_user[6], "a list of train items teaches nothing"
    assert teacher.knows_user[5]
    assert "1 users have fewer than min_listed_items=1" in caplog.text
    for least in (left[5], left[5] + 1, 14):
        teacher = listed(world, table, min_listed_items=least)
        wanted = [user for user, count in left.items() if count >= least]
        assert teacher.knows_user.nonzero().squeeze(1).tolist() == wanted
        teacher.check_length(least, True)
        teacher.check_length(least, False)
        method = method_class("CE")
        assert method is not None
        distiller = distil_from(teacher, world, "CE", ce_K=least)
        assert set(distiller.users.tolist()) <= set(wanted)
    most = max(left.values())
    with pytest.raises(KDError, match=rf"no user has {most + 1} .* the most are {most};"):
        listed(world, table, min_listed_items=most + 1)


def test_repeated_train_items_count_once() -> None:
    """A user who had an item twice still has the others of the list."""
    users, items = torch.tensor([1, 1, 1]), torch.tensor([2, 2, 3])
    history = UserHistory.from_pairs(users, items, 2, 9)
    table = {1: {2: 5.0, 3: 4.0, 4: 3.0, 5: 2.0}}
    teacher = ListedTeacher(lists_of(table, 2), history, min_listed_items=2)
    assert teacher.top_k(2, True)[0][1].tolist() == [4, 5]
    with pytest.raises(KDError, match="the most are 2"):
        ListedTeacher(lists_of(table, 2), history, min_listed_items=3)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is made."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.most = max(self.most, tensor.numel())
        return made


def test_memory_is_that_of_the_lists() -> None:
    """No tensor of users x items, and none much above the budget beside the lists themselves."""
    n_users, n_items, length = 20_000, 50_000, 8
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(1, n_items // length, (n_users, length), generator=generator)
    items = items.cumsum(1).int()
    offsets = torch.arange(0, n_users * length + 1, length)
    lists = ScoreLists(
        offsets, items.flatten(), torch.rand(n_users * length, generator=generator), Found(), ""
    )
    users = torch.arange(1, n_users).repeat_interleave(3)
    history = UserHistory.from_pairs(
        users, torch.ones(len(users), dtype=torch.int64), n_users, n_items
    )
    with Largest() as largest:
        teacher = ListedTeacher(lists, history, memory_budget_gb=1e-3)
        for mask in (False, True):
            teacher.top_k(5, mask)
        teacher.score(torch.arange(1000), torch.ones(1000, 20, dtype=torch.int64))
    assert largest.most <= n_users * length


# -- methods -----------------------------------------------------------------------------------


def distil_from(teacher: ListedTeacher, world: World, name: str, **changes: Any) -> Any:
    method: Any = method_class(name)
    sizes = {**small_options(method), **changes}
    scorer = world.student.make_scorer(world.history)
    options = options_for(method, **sizes)
    return method(options, Dataset(), world.student, scorer, teacher, world.history)


@pytest.mark.parametrize("missing", ["floor", "mask"])
def test_student_lists_meet_missing_items(missing: str, world: World) -> None:
    """CE on the student's own list: what the teacher's file does not name has the floor, or 0."""
    table = best_of(world, 12)
    teacher = listed(world, table, missing_score=missing)
    distiller = distil_from(teacher, world, "CE", ce_guide="student", ce_K=12, ce_tau=2.0)
    distiller.begin_epoch(0, 1)
    wanted = naive(world, table, missing).double()
    strangers = 0
    for user in distiller.users.tolist():
        items = distiller.items[user].tolist()
        shares = torch.softmax(torch.stack([wanted[user, i] for i in items]) / 2.0, 0)
        torch.testing.assert_close(distiller.targets[user].double(), shares, rtol=1e-5, atol=1e-7)
        absent = torch.tensor([i not in table[user] for i in items])
        strangers += int(absent.sum())
        assert bool((distiller.targets[user][absent] > 0).all()) == (missing == "floor") or not (
            absent.any()
        )
        if missing == "floor" and absent.any() and not absent.all():
            assert distiller.targets[user][absent].max() <= distiller.targets[user][~absent].min()
    assert strangers > 10


@pytest.mark.parametrize("missing", ["floor", "mask"])
def test_all_items_of_a_softmax(missing: str, world: World) -> None:
    table = best_of(world, 12)
    teacher = listed(world, table, missing_score=missing)
    distiller = distil_from(teacher, world, "CE", ce_guide="all", ce_tau=1.5)
    distiller.begin_epoch(0, 1)
    rows = distiller.rows.next(distiller.users)
    teachers = naive(world, table, missing)[rows.users, 1:].double()
    students = world.student.full_sort_predict({"user_id": rows.users})[:, 1:].double()
    losses = -(torch.softmax(teachers / 1.5, 1) * torch.log_softmax(students / 1.5, 1)).sum(1)
    found = distiller.kd_loss(rows).double()
    torch.testing.assert_close(found, rows.mean(losses), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("missing", ["floor", "mask"])
@pytest.mark.parametrize("guide", ["teacher", "random"])
def test_soft_labels_of_missing_items(guide: str, missing: str, world: World) -> None:
    """CD leaves out what has no probability, and labels the rest by the floor."""
    table = best_of(world, 12)
    distiller = distil_from(
        listed(world, table, missing_score=missing), world, "CD", cd_guide=guide, cd_n=60, cd_M=40
    )
    distiller.begin_epoch(0, 1)
    kept = {u: set(distiller.items[u].tolist()) - {0} for u in distiller.users.tolist()}
    outside = sum(len(items - set(table[user])) for user, items in kept.items())
    assert (outside > 0) == (missing == "floor")
    assert bool((distiller.items[distiller.users] == 0).any()) == (missing == "mask")
    assert distiller.targets.isfinite().all()


def test_samples_of_a_list_are_listed_though_others_tie(world: World) -> None:
    """All listed scores are equal, so that the floor is as high."""
    users = range(1, world.history.n_users)
    table = {u: dict.fromkeys(set(range(30, 60)) - world.train_items(u), 1.0) for u in users}
    distiller = distil_from(listed(world, table), world, "CD", cd_guide="teacher", cd_n=50, cd_M=15)
    distiller.begin_epoch(0, 1)
    for user in distiller.users.tolist():
        assert set(distiller.items[user].tolist()) <= set(table[user])


@pytest.mark.parametrize("missing", ["floor", "mask"])
def test_no_order_is_made_up_of_missing_items(missing: str, world: World) -> None:
    """UnKD draws pairs that the teacher orders; items that tie at the floor are none."""
    table = best_of(world, 30)
    distiller = distil_from(
        listed(world, table, missing_score=missing), world, "UnKD", unkd_groups=2, unkd_n=40
    )
    distiller.begin_epoch(0, 1)
    drawn = 0
    for user in distiller.users.tolist():
        items = distiller.items[user].tolist()
        better, worse = items[: len(items) // 2], items[len(items) // 2 :]
        for high, low in zip(better, worse, strict=True):
            if high:
                assert table[user][high] > table[user][low]
                drawn += 1
    assert drawn > 100


@pytest.mark.parametrize("missing", ["floor", "mask"])
def test_a_mixture_treats_items_that_nobody_lists_like_others(missing: str, world: World) -> None:
    """What another user's list names changes nothing; a masked item of both keeps the mask."""
    table = {user: {3: 70.0, 4: 69.0, 5: 68.0} for user in range(1, world.history.n_users)}
    other = {**table, 2: {**table[2], 9: 67.5}}  # someone else's list names item 9

    def scores(first: dict[int, dict[int, float]]) -> torch.Tensor:
        teachers = [listed(world, t, missing_score=missing) for t in (first, table)]
        mixture = MixedTeacher(teachers, [0.9, 0.1], 1.0, world.history)
        asked = torch.tensor([[3, 4, 9, 20]])
        found = mixture.score(torch.tensor([1]), asked)
        torch.testing.assert_close(found, mixture.score_all(torch.tensor([1]))[:, asked[0]])
        return found[0]

    found = scores(table)
    torch.testing.assert_close(scores(other), found)
    if missing == "mask":
        assert (found[2:] == UNKNOWN_SCORE).all()
    else:
        torch.testing.assert_close(found, torch.tensor([70.0, 69.0, 68.0, 68.0]))


@pytest.mark.parametrize("missing", ["floor", "mask"])
def test_rce_kd_of_missing_items(missing: str, world: World) -> None:
    table = best_of(world, 12)
    teacher = listed(world, table, missing_score=missing)
    distiller = distil_from(teacher, world, "RCEKD", rcekd_K=10, rcekd_L=10, rcekd_M=20)
    distiller.begin_epoch(0, 1)
    tables, wanted = distiller.tables(), naive(world, table, missing)
    for user in distiller.users.tolist():
        items = tables["items"][user].long()
        own, others = items[:10], items[20:]
        assert set(others.tolist()) <= set(table[user])
        torch.testing.assert_close(tables["p"][user], wanted[user, own].softmax(0))
    assert distiller.kd_loss(distiller.rows.next(distiller.users)).isfinite()


# -- runs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's run on the tiny data."""
    folder = tmp_path_factory.mktemp("teacher")
    more = {"epochs": 3, "learning_rate": 0.02, "embedding_size": 16}
    return Path(tiny.run("BPR", folder, **more)["checkpoints"]["student"])


@pytest.fixture(scope="module")
def scores(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its best 110 of 120 items."""
    target = tmp_path_factory.mktemp("scores") / "teacher.csv"
    write_scores(trained, target, top_k=110)
    return target


def asked(folder: Path, **more: Any) -> dict[str, Any]:
    base = {**tiny.options("BPR"), "checkpoint_dir": str(folder), "scratch": False, "ce_K": 10}
    return {**base, **more}


def run(folder: Path, teacher: Path, model: str = "CE", saved: bool = True, **more: Any) -> Any:
    options = asked(folder, **more)
    if model != "CE":
        del options["ce_K"]
    return run_recbole_kd(
        model, tiny.dataset(), config_dict=options, student="BPR", teacher=str(teacher), saved=saved
    )


@pytest.fixture
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a model is trained before the refusal")

    monkeypatch.setattr(training, "train", train)


@pytest.mark.parametrize("missing", ["floor", "mask"])
@pytest.mark.parametrize("name", BY_SCORES)
def test_every_method_on_scores_runs(name: str, missing: str, scores: Path, tmp_path: Path) -> None:
    method: Any = method_class(name)
    sizes = {key: min(value, 12) for key, value in small_options(method).items()}
    sizes.update({"min_listed_items": 12, "missing_score": missing})
    table = pd.read_csv(scores, dtype={"user": str, "item": str})
    short = table.groupby("user").head(90)
    path = write(short, tmp_path / "short.csv")
    result = run(tmp_path / "saved", path, name, **{**sizes, "epochs": 2, "kd_weight": 1})
    log = Path(result["checkpoints"]["student"]).with_name("metrics.jsonl")
    losses = [json.loads(line)["kd_loss"] for line in log.read_text().splitlines()]
    assert len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


def test_the_methods_on_scores_are_found() -> None:
    assert {"RCEKD", "CE", "RD", "CD", "RRD", "DCD", "UnKD"} <= set(BY_SCORES)


@pytest.mark.parametrize("form", FORMS)
def test_a_model_and_its_file_teach_the_same(form: str, trained: Path, tmp_path: Path) -> None:
    target = tmp_path / f"s{form}"
    write_scores(trained, target, top_k=110)
    more = {"epochs": 3, "kd_weight": 10, "learning_rate": 0.02}
    found = [run(tmp_path / "saved", teacher, **more) for teacher in (trained, target)]
    students = [load_model(r["checkpoints"]["student"]).model.state_dict() for r in found]
    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])
    assert found[0]["test_result"] == found[1]["test_result"]
    assert found[0]["best_valid_result"] == found[1]["best_valid_result"]
    other = run(tmp_path / "saved", target, **more, seed=1)
    assert other["test_result"] != found[0]["test_result"]


def test_a_round_trip_on_more_users(small_data: Path, tmp_path: Path) -> None:
    """Top lists without train items of 80 users and all their items, in chunks of a few users."""
    options = {
        **tiny.OPTIONS,
        "data_path": str(small_data),
        "checkpoint_dir": str(tmp_path),
        "epochs": 2,
        "scratch": False,
        "embedding_size": 8,
    }
    sizes = {"rrd_M": 60, "rrd_K": 30, "rrd_L": 50}
    alone = run_recbole_kd("Scratch", "small", config_dict=options, student="BPR")
    teacher = Path(alone["checkpoints"]["student"])
    target = tmp_path / "s.npz"
    write_scores(teacher, target, top_k=100, mask_train=True, memory_budget_gb=1e-4)
    found = [
        run_recbole_kd(
            "RRD", "small", config_dict={**options, **sizes}, student="BPR", teacher=str(path)
        )
        for path in (teacher, target)
    ]
    students = [load_model(r["checkpoints"]["student"]).model.state_dict() for r in found]
    for name, value in students[0].items():
        torch.testing.assert_close(value, students[1][name], rtol=0, atol=1e-5)


def test_a_run_says_what_its_teacher_is(
    scores: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = run(tmp_path, scores)
    unchecked = [r for r in caplog.records if "cannot be checked for validation" in r.getMessage()]
    assert len(unchecked) == 1
    folder = Path(result["checkpoints"]["student"]).parent
    assert folder.name.startswith("CE-BPR-scores-")
    summary = json.loads((folder / "summary.json").read_text())
    assert "the teacher: not checked for validation and test interactions" in summary["protocol"]
    assert "only items of its lists" in summary["protocol"]
    (row,) = [line for line in result["table"].splitlines() if line.startswith("| teacher ")]
    assert [cell.strip() for cell in row.split("|")[-4:-1]] == ["-", "-", "-"]
    assert result["checkpoints"]["teacher"] == str(scores)
    assert result["teacher_test_result"]["recall@20"] > 0.3
    assert result["sizes"][0]["parameters"] is None


def test_the_teacher_is_tested_by_its_lists(trained: Path, tmp_path: Path) -> None:
    """With few items a list, what the others would have found is lost; missing ones rank last."""
    results = []
    for k in (120, 60, 20):
        target = tmp_path / f"s{k}.csv"
        write_scores(trained, target, top_k=k)
        result = run(tmp_path, target, ce_K=5, min_token_overlap=0)
        results.append(result["teacher_test_result"]["recall@20"])
    own = run(tmp_path, trained)["teacher_test_result"]["recall@20"]
    assert results[0] == own
    assert results[0] > results[1] > results[2]


def test_missing_items_rank_last_in_the_teachers_test(tmp_path: Path) -> None:
    """Lists of the test items, all at one score: nothing else comes before them."""
    pairs = sorted(tiny.part_pairs(tiny.split(), 2))
    path = write(frame([(user, item, 1.0) for user, item in pairs]), tmp_path / "s.csv")
    result = run(tmp_path, path, ce_guide="all")
    assert result["teacher_test_result"]["recall@20"] == 1.0


def test_a_second_run_finds_the_cache(scores: Path, tmp_path: Path, monkeypatch: Any) -> None:
    first = run(tmp_path, scores)
    (cache,) = (tmp_path / "tiny").glob("scores-*")

    def read(path: Path) -> Any:
        raise AssertionError("the file is read again")

    monkeypatch.setitem(score_file.READERS, ".csv", read)
    second = run(tmp_path, scores)
    assert second["test_result"] == first["test_result"]
    assert list((tmp_path / "tiny").glob("scores-*")) == [cache]


def test_nothing_is_written_where_nothing_is_saved(scores: Path, tmp_path: Path) -> None:
    kept = run(tmp_path / "kept", scores)
    result = run(tmp_path / "saved", scores, saved=False)
    assert files(tmp_path / "saved") == []
    assert result["test_result"] == kept["test_result"]


def test_a_run_goes_on_where_it_stopped(scores: Path, tmp_path: Path) -> None:
    more = {"refresh_every": 3, "learning_rate": 0.02, "ce_guide": "student", "kd_weight": 10}
    whole = run(tmp_path / "whole", scores, epochs=4, **more)
    half = run(tmp_path / "half", scores, epochs=2, **more)
    last = Path(half["checkpoints"]["student"]).with_name("last.pt")
    rest = run(tmp_path / "half", scores, epochs=4, resume=str(last), **more)
    states = [load_model(r["checkpoints"]["student"]).model.state_dict() for r in (whole, rest)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert rest["epochs"] == 4


def test_what_decides_the_student_names_its_folder(scores: Path, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"missing_score": "mask"}, {"min_listed_items": 12}]
    found = [run(tmp_path, scores, **more)["checkpoints"]["student"] for more in changes]
    assert len(set(found)) == 3
    assert run(tmp_path, scores, missing_score="floor")["checkpoints"]["student"] == found[0]
    table = pd.read_csv(scores, dtype=str)
    other = write(table[::-1], tmp_path / "other.csv")
    assert run(tmp_path, other)["checkpoints"]["student"] not in found


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ({"ce_K": 111}, ["list of 111 items", "up to 110", "--min_listed_items=111"]),
        ({"missing_score": "low"}, ["--missing_score=low", "floor, mask"]),
        ({"min_listed_items": 0}, ["--min_listed_items=0", "whole numbers above 0"]),
        ({"min_listed_items": 1.5}, ["--min_listed_items=1.5", "whole numbers above 0"]),
        ({"min_listed_items": 120}, ["no user has 120 listed items"]),
        ({"teacher.model": "BPR"}, ["--teacher=BPR", "names no model"]),
        ({"teacher.embedding_size": 3}, ["teacher.embedding_size"]),
    ],
)
def test_options_are_refused_before_any_training(
    more: dict[str, Any],
    parts: list[str],
    scores: Path,
    tmp_path: Path,
    nothing_is_trained: None,
) -> None:
    options = {**asked(tmp_path), "scratch": True, "teacher.checkpoint": str(scores), **more}
    with pytest.raises(KDError) as refusal:
        run_recbole_kd("CE", tiny.dataset(), config_dict=options, student="BPR")
    message = str(refusal.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == []


def test_options_of_files_are_read_for_files_only(trained: Path, tmp_path: Path) -> None:
    for more in ({"missing_score": "mask"}, {"min_listed_items": 2}):
        (key,) = more
        hint = rf"'{key}' is read by no part .* for a teacher in a file of scores \(.parquet, .csv,"
        with pytest.raises(KDError, match=hint):
            run(tmp_path, trained, **more)
        with pytest.raises(KDError, match=hint):
            tiny.run("BPR", tmp_path, **more)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("CE", "ce_K"),
        ("RCEKD", "rcekd_K"),
        ("RRD", "rrd_M"),
        ("DCD", "dcd_M"),
        ("RD", "rd_K"),
    ],
)
def test_short_lists_are_refused_before_any_training(
    name: str, option: str, scores: Path, tmp_path: Path, nothing_is_trained: None
) -> None:
    """At the method's own length and mask, in the words of the file."""
    method: Any = method_class(name)
    path = write(pd.read_csv(scores, dtype=str).groupby("user").head(8), tmp_path / "short.csv")
    sizes = small_options(method)
    with pytest.raises(KDError, match=r"short.csv: a list of 10 items .*min_listed_items=10"):
        run(tmp_path, path, name, **{**sizes, option: 10, "scratch": True})


@pytest.mark.parametrize("name", [n for n in method_names() if n not in {SCRATCH, *BY_SCORES}])
def test_what_a_file_has_not_is_refused(
    name: str, scores: Path, tmp_path: Path, nothing_is_trained: None
) -> None:
    with pytest.raises(KDError, match=rf"--teacher=.*: --model={name} needs a teacher with") as no:
        run(tmp_path, scores, name, **small_options(method_class(name)))
    assert "RCEKD" in str(no.value).rpartition(": ")[2]
    assert "a file of scores has none" in str(no.value)


# -- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", ["BPR", "LightGCN", "SASRec", "NeuMF", "MultiVAE"])
def test_best_items_of_any_model(name: str, mask: bool, tmp_path: Path) -> None:
    model = tiny.save(name, tmp_path / "model.pt")
    target = tmp_path / "deep" / "s.csv"
    written = write_scores(model, target, top_k=15, mask_train=mask, memory_budget_gb=1e-5)
    table = pd.read_csv(target, dtype={"user": str, "item": str})
    assert files(target.parent) == [target]
    loaded = load_model(model)
    tokens, history = loaded.tokens, loaded.history
    users = torch.arange(1, history.n_users)
    with torch.no_grad():
        everything = loaded.scorer.score_all(loaded.scorer.encode(users))
    everything[:, 0] = -torch.inf
    if mask:
        history.mask_(everything, users)
    for user, row in zip(users.tolist(), everything, strict=True):
        mine = table[table.user == tokens.users[user]]
        best = row.topk(min(15, int(row.isfinite().sum()))).values
        ids = [tokens.items.index(item) for item in mine.item]
        assert len(ids) == len(set(ids)) == len(best)
        # Chunks of other sizes round otherwise: near ties may change places.
        for found in (torch.tensor(mine.score.to_numpy()).float(), row[ids]):
            torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-6)
    assert (written.rows, written.users, written.left_out) == (len(table), 60, 0)


@needs_parquet
def test_recboles_own_checkpoint(tmp_path: Path) -> None:
    path = tiny.run_recbole("BPR", tmp_path / "theirs")
    write_scores(path, tmp_path / "s.parquet", top_k=30)
    table = pd.read_parquet(tmp_path / "s.parquet")
    assert table.dtypes.map(str).to_dict()["score"] == "float32"
    loaded = load_model(path)
    for user in loaded.tokens.users[1:4]:
        (best,) = loaded.recommend([user], k=30, filter_history=False)
        assert table[table.user == user].item.tolist() == best


def test_users_without_train_interactions_are_left_out(tmp_path: Path) -> None:
    rows = tiny.ml100k_rows(40)
    train, rest = [r for r in rows[::2] if r[0] != "7"], rows[1::2]
    assert "7" in {u for u, _, _ in rest}
    root = tiny.write_parts(tmp_path, [train, rest[::2], rest[1::2]])
    options = {
        **tiny.OPTIONS,
        "data_path": str(root),
        "checkpoint_dir": str(tmp_path / "saved"),
        "benchmark_filename": ["train", "valid", "test"],
        "empty_users": "keep",
        "embedding_size": 4,
    }
    result = run_recbole_kd("Scratch", "parts", config_dict=options, student="BPR")
    written = write_scores(result["checkpoints"]["student"], tmp_path / "s.npz", top_k=5)
    assert written.left_out == 1
    assert "1 users without train interactions" in written.summary()
    with np.load(tmp_path / "s.npz") as found:
        assert set(found["user"]) == {u for u, _, _ in train}
        assert len(found["score"]) == 5 * written.users


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_a_model_of_another_split_is_refused(
    form: str, tmp_path: Path, nothing_is_trained: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that this package wrote says what its model learnt from; a table has no place."""
    model = tiny.save("BPR", tmp_path / "model.pt", seed=1)
    target = tmp_path / f"s{form}"
    write_scores(model, target, top_k=110)
    if form == ".csv":
        with pytest.raises(AssertionError, match="before the refusal"):
            run(tmp_path / "saved", target)
        assert "cannot be checked for validation" in caplog.text
        return
    student, teacher = tiny.split("BPR"), tiny.split("BPR", seed=1)
    ids = torch.arange(len(student.tokens.users)), torch.arange(len(student.tokens.items))
    assert student.tokens.items == teacher.tokens.items
    count = leak.leaked(student, teacher.history, *ids)
    assert count > 100
    with pytest.raises(KDError, match=rf"was trained on {count} of the .*--allow_leak"):
        run(tmp_path / "saved", target)
    with pytest.raises(AssertionError, match="before the refusal"):
        run(tmp_path / "saved", target, allow_leak=True)
    assert "LEAK ALLOWED" in caplog.text


@pytest.mark.parametrize("form", [form for form in FORMS if form != ".csv"])
def test_hashes_of_some_interactions_show_a_leak(
    form: str, tmp_path: Path, nothing_is_trained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("score_writer", "teachers"):
        monkeypatch.setattr(f"recbole_kd.{module}.MOST_HASHES", 500)
    model = tiny.save("BPR", tmp_path / "model.pt", seed=1)
    target = tmp_path / f"s{form}"
    write_scores(model, target, top_k=110)
    kept = read_trained_on(target)
    assert kept is not None
    assert len(kept) == 500 < len(tiny.split("BPR", seed=1).history.items)
    found = leak.leaked_of(tiny.split("BPR"), kept)
    assert 20 < found < 200
    with pytest.raises(KDError, match=rf"was trained on at least {found} of the .*--allow_leak"):
        run(tmp_path / "saved", target)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_a_model_of_this_split_is_no_leak(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny.save("BPR", tmp_path / "model.pt")
    target = tmp_path / f"s{form}"
    write_scores(model, target, top_k=110)
    result = run(tmp_path / "saved", target, epochs=1)
    assert ("not checked" in result["protocol"]) == (form == ".csv")


def test_a_small_catalogue_is_written_whole(tmp_path: Path) -> None:
    model = tiny.save("BPR", tmp_path / "model.pt")
    assert write_scores(model, tmp_path / "s.npz").rows == 60 * 120


def test_users_with_few_items_left_have_those(tmp_path: Path) -> None:
    model = tiny.save("BPR", tmp_path / "model.pt")
    write_scores(model, tmp_path / "s.csv", top_k=120, mask_train=True)
    table = pd.read_csv(tmp_path / "s.csv", dtype=str)
    history, tokens = tiny.split().history, tiny.split().tokens
    free = {tokens.users[u]: 120 - int(history.distinct_counts[u]) for u in range(1, 61)}
    assert table.groupby("user").size().to_dict() == free
    assert np.isfinite(table.score.astype(float)).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_command(form: str, trained: Path, tmp_path: Path, capsys: Any) -> None:
    from recbole_kd.cli import main

    target = tmp_path / f"s{form}"
    target.write_text("what was there before")
    words = ["teacher-scores", str(trained.parent), str(target), "--top_k=7", "--mask_train"]
    assert main(words) == 0
    assert f"written {target}: 420 rows, best items of 60 users" in capsys.readouterr().out
    tokens = load_model(trained).tokens
    lists = open_scores(target, tokens.users, tokens.items, None)
    assert lists.counts[1:].unique().tolist() == [7]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["{teacher}"], ["found 1 of the arguments", "<scores.parquet>"]),
        (["{teacher}", "{out}/s.txt"], ["s.txt", ".parquet, .csv, .npz"]),
        (["{out}/none.pt", "{out}/s.csv"], ["none.pt", "no such file"]),
        (["{teacher}", "{out}/s.csv", "--top_k=121"], ["--top_k=121", "120 items"]),
        (["{teacher}", "{out}/s.csv", "--top_k=0"], ["--top_k=0", "above 0"]),
        (["{teacher}", "{out}/s.csv", "--top_k=True"], ["--top_k=True", "above 0"]),
        (["{teacher}", "{out}/s.csv", "--mask_train=1"], ["--mask_train=1", "True, False"]),
        (["{teacher}", "{out}/s.csv", "--memory_budget_gb=0"], ["--memory_budget_gb=0"]),
        (["{teacher}", "{out}/s.csv", "--topk=5"], ["no option --topk", "'top_k'"]),
        (["{teacher}", "{out}/folder.csv"], ["folder.csv", "is a folder"]),
        (["{teacher}", "{out}/file/s.csv", "--top_k=5"], ["cannot write", "file/s.csv"]),
    ],
)
def test_the_command_refuses(
    words: list[str], parts: list[str], trained: Path, tmp_path: Path, capsys: Any
) -> None:
    from recbole_kd.cli import main

    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    named = [word.format(teacher=trained, out=tmp_path) for word in words]
    assert main(["teacher-scores", *named]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("recbole-kd: ")
    assert said.err.count("\n") == 1
    assert [part for part in parts if part not in said.err] == []
    assert [f.name for f in files(tmp_path)] == ["file"]


def test_a_model_that_fails_leaves_the_old_file(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recbole_kd.teacher import FrozenTeacher

    target = tmp_path / "s.csv"
    target.write_text("what was there before")
    real = FrozenTeacher.score_all
    calls: list[int] = []

    def score_all(self: FrozenTeacher, users: Tensor) -> Tensor:
        calls.append(len(users))
        scores = real(self, users)
        return scores if len(calls) == 1 else scores.fill_(torch.nan)

    monkeypatch.setattr(FrozenTeacher, "score_all", score_all)
    with pytest.raises(KDError, match="not finite"):
        write_scores(trained, target, top_k=5, memory_budget_gb=1e-5)
    assert len(calls) == 2
    assert target.read_text() == "what was there before"
    assert files(tmp_path) == [target]


def test_the_usage_names_the_command(capsys: Any) -> None:
    from recbole_kd.cli import main

    assert main([]) == 0
    assert re.search(r"recbole-kd teacher-scores <.*> <scores\.parquet", capsys.readouterr().out)
