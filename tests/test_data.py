"""The split, the histories made of its train part, and the loaders built on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.dataset import Dataset
from tiny import Row, config_for, ml100k_rows, part_pairs, write_dataset, write_parts

from recbole_kd.config import KDConfig
from recbole_kd.data import (
    Split,
    Tokens,
    fingerprint,
    load_split,
)
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory, first_rows
from recbole_kd.loaders import item_sets, make_loaders
from recbole_kd.sequences import without_sequences

LEAVE_ONE_OUT = {"split": {"LS": "valid_and_test"}, "order": "TO"}


def by_user(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Item tokens of each user by time; equal times in the order given."""
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for user, item, time in rows:
        found[user].append((time, item))
    return {u: [i for _, i in sorted(v, key=lambda pair: pair[0])] for u, v in found.items()}


def history_tokens(split: Split) -> dict[str, list[str]]:
    """Item tokens of each user's history, in its order."""
    users, items = (t.tolist() for t in split.history.pairs())
    found: dict[str, list[str]] = defaultdict(list)
    for user, item in zip(users, items, strict=True):
        found[split.tokens.users[user]].append(split.tokens.items[item])
    return dict(found)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return ml100k_rows()


# -- histories against brute force -------------------------------------------------------------


def test_sessions_are_ordered_by_the_second(root: Path, rows: list[Row]) -> None:
    """Unix times are 64 s apart in float32: the data must hold cases that would come out wrong."""
    coarse = [(u, i, float(np.float32(t))) for u, i, t in rows]
    assert by_user(coarse) != by_user(rows)
    split = load_split(config_for(root, eval_args=LEAVE_ONE_OUT))
    wanted = by_user(rows)
    assert history_tokens(split) == {u: items[:-2] for u, items in wanted.items()}
    assert part_pairs(split, 1) == {(u, items[-2]) for u, items in wanted.items()}
    assert part_pairs(split, 2) == {(u, items[-1]) for u, items in wanted.items()}


def test_times_reach_the_models_as_float32(root: Path) -> None:
    split = load_split(config_for(root, eval_args=LEAVE_ONE_OUT))
    assert {p.inter_feat["timestamp"].dtype for p in split.parts} == {torch.float32}


def test_history_of_a_random_split_is_in_time_order(root: Path, rows: list[Row]) -> None:
    split = load_split(config_for(root))
    train = part_pairs(split, 0)
    assert len(train) == len(split.history.items) < len(rows)
    at = {r[:2]: r[2] for r in rows}
    times = {u: [at[u, i] for i in items] for u, items in history_tokens(split).items()}
    assert times == {u: sorted(at[p] for p in train if p[0] == u) for u, _ in train}


@pytest.mark.parametrize("length", [1, 3, 50])
def test_history_of_prefix_rows(root: Path, rows: list[Row], length: int) -> None:
    config = config_for(root, student="SASRec", MAX_ITEM_LIST_LENGTH=length)
    split = load_split(config)
    assert history_tokens(split) == {u: items[:-2] for u, items in by_user(rows).items()}


def test_history_of_a_ready_made_split(tmp_path: Path, rows: list[Row]) -> None:
    parts = [rows[0::3], rows[1::3], rows[2::3]]
    known = {u for u, _, _ in parts[0]}
    parts[1:] = [[r for r in p if r[0] in known] for p in parts[1:]]
    write_parts(tmp_path, parts)
    config = config_for(tmp_path, name="parts", benchmark_filename=["train", "valid", "test"])
    split = load_split(config)
    assert history_tokens(split) == by_user(parts[0])
    assert [len(p) for p in split.parts] == [len(p) for p in parts]


def test_history_of_ready_made_sequences(tmp_path: Path) -> None:
    """One row a user, or several: what the first row lists and all targets."""
    folder = tmp_path / "lists"
    folder.mkdir()
    head = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    (folder / "lists.train.inter").write_text(head + "a\tp q r\ts\nb\tq\tp\nb\tq p\tt\n")
    (folder / "lists.valid.inter").write_text(head + "a\tp q r s\tt\nb\tq p t\ts\n")
    (folder / "lists.test.inter").write_text(head + "a\tp q r s t\tu\nb\tq p t s\tu\n")
    config = config_for(
        tmp_path,
        name="lists",
        student="SASRec",
        benchmark_filename=["train", "valid", "test"],
        eval_targets="next",
        load_col={"inter": ["user_id", "item_id_list", "item_id"]},
        topk=[2],
        valid_metric="NDCG@2",
        alias_of_item_id=["item_id_list"],
    )
    assert history_tokens(load_split(config)) == {"a": list("pqrs"), "b": list("qpt")}


def test_equal_times_keep_the_order_given() -> None:
    users = torch.tensor([2, 1, 2, 1, 2, 1])
    items = torch.tensor([5, 6, 7, 8, 9, 3])
    time = torch.tensor([4.0, 1.0, 4.0, 0.0, 2.0, 1.0])
    history = UserHistory.from_pairs(users, items, 4, 10, time)
    assert history.offsets.tolist() == [0, 0, 3, 6, 6]
    assert history.items.tolist() == [8, 6, 3, 9, 5, 7]
    assert history.counts.tolist() == [0, 3, 3, 0]
    assert history.active_users().tolist() == [1, 2]
    untimed = UserHistory.from_pairs(users, items, 4, 10)
    assert untimed.items.tolist() == [6, 8, 3, 5, 7, 9]


def test_first_rows() -> None:
    assert first_rows(torch.tensor([7, 3, 7, 5, 3])).tolist() == [1, 3, 0]
    assert first_rows(torch.tensor([], dtype=torch.int64)).tolist() == []


def test_history_holds_nothing_but_train(root: Path) -> None:
    """Planted: one item that occurs in the test part only."""
    split = load_split(config_for(root, eval_args=LEAVE_ONE_OUT))
    train, held = part_pairs(split, 0), part_pairs(split, 1) | part_pairs(split, 2)
    users, items = split.held_out()
    assert {
        (split.tokens.users[u], split.tokens.items[i]) for u, i in zip(users, items, strict=True)
    } == held
    seen = {(u, i) for u, items in history_tokens(split).items() for i in items}
    assert seen == train
    assert not seen & held


def test_an_item_of_the_test_part_only(tmp_path: Path) -> None:
    rows = [(f"u{u}", f"i{(u + k) % 6}", 10.0 * k) for u in range(6) for k in range(4)]
    planted = [("u0", "late", 99.0)]
    write_parts(tmp_path, [rows, rows[:3], planted])
    config = config_for(
        tmp_path,
        name="parts",
        benchmark_filename=["train", "valid", "test"],
        topk=[3],
        valid_metric="NDCG@3",
    )
    split = load_split(config)
    late = split.tokens.items.index("late")
    assert late not in split.history.items.tolist()
    assert part_pairs(split, 2) == {("u0", "late")}


# -- what is read off a history ----------------------------------------------------------------


@pytest.fixture(scope="module")
def history() -> UserHistory:
    generator = np.random.default_rng(4)
    pairs = [(u, i) for u in range(1, 12) if u != 5 for i in generator.permutation(30)[: 2 * u] + 1]
    table = torch.tensor(generator.permutation(pairs))
    return UserHistory.from_pairs(table[:, 0], table[:, 1], 13, 31)


def lists_of(history: UserHistory) -> list[list[int]]:
    ends = history.offsets.tolist()
    items = history.items.tolist()
    return [items[a:b] for a, b in pairwise(ends)]


@pytest.mark.parametrize("length", [1, 4, 40])
def test_padded(history: UserHistory, length: int) -> None:
    users = torch.tensor([3, 0, 5, 11, 3, 12])
    items, lengths = history.padded(users, length)
    assert items.dtype == lengths.dtype == torch.int64
    for row, count, user in zip(items.tolist(), lengths.tolist(), users.tolist(), strict=True):
        latest = lists_of(history)[user][-length:]
        assert row == latest + [0] * (length - len(latest))
        assert count == max(1, len(latest))


def test_mask(history: UserHistory) -> None:
    users = torch.tensor([11, 0, 4, 5, 4])
    scores = torch.arange(5 * 31, dtype=torch.float32).view(5, 31)
    before = scores.clone()
    assert history.mask_(scores, users) is scores
    for row, user in enumerate(users.tolist()):
        for item in range(31):
            hidden = item in lists_of(history)[user]
            assert scores[row, item] == (-torch.inf if hidden else before[row, item])


def test_item_sets(history: UserHistory) -> None:
    assert item_sets(history).tolist() == [set(items) for items in lists_of(history)]


def test_equal_sized_item_sets_stay_sets() -> None:
    """Numpy turns lists of equal length into a matrix."""
    history = UserHistory.from_pairs(torch.tensor([0, 1]), torch.tensor([3, 4]), 2, 5)
    sets = item_sets(history)
    assert sets.shape == (2,)
    assert sets.tolist() == [{3}, {4}]


# -- fingerprints ------------------------------------------------------------------------------


def prints(pairs: Sequence[tuple[str, str]], order: int = 0) -> str:
    """Fingerprint of pairs under ids dealt out in an order of their own."""
    generator = np.random.default_rng(order)
    users, items = (sorted({p[n] for p in pairs}) for n in (0, 1))
    tokens = Tokens(
        ["[PAD]", *generator.permutation(users)], ["[PAD]", *generator.permutation(items)]
    )
    shuffled = [pairs[k] for k in generator.permutation(len(pairs))]
    ids = [(tokens.users.index(u), tokens.items.index(i)) for u, i in shuffled]
    return fingerprint(*np.array(ids).T, tokens)


def test_fingerprint_depends_on_the_interactions_alone() -> None:
    pairs = [(f"u{u}", f"i{i}") for u in range(6) for i in range(6) if (u * i) % 4 != 3]
    assert len({prints(pairs, order) for order in range(5)}) == 1
    others = [pairs[:-1], [*pairs, pairs[0]], [*pairs[:-1], ("u0", "other")], [*pairs[1:]]]
    swapped = [(i, u) for u, i in pairs]
    exchanged = [("u0", "i1"), ("u1", "i0")], [("u0", "i0"), ("u1", "i1")]
    assert len({prints(p) for p in (pairs, *others, swapped)}) == 6
    assert prints(exchanged[0]) != prints(exchanged[1])


def test_parts_have_fingerprints_of_their_own(root: Path, rows: list[Row]) -> None:
    split = load_split(config_for(root, eval_args=LEAVE_ONE_OUT))
    sequential = load_split(config_for(root, student="SASRec"))
    assert len(set(split.fingerprints.values())) == 4
    # Two families, other ids' rows, the same interactions.
    interactions = {k: v for k, v in sequential.fingerprints.items() if k != "order"}
    assert split.fingerprints == interactions
    wanted = by_user(rows)
    assert split.fingerprints["test"] == prints([(u, items[-1]) for u, items in wanted.items()])


def test_the_order_of_train_interactions_counts_for_sequences_only(tmp_path: Path) -> None:
    """Corrected times must not find a sequence teacher trained on the wrong ones.

    The times themselves count for models that read them.
    """
    times = {"forth": [0, 1, 2, 3, 4], "back": [2, 1, 0, 3, 4], "late": [10, 11, 12, 13, 14]}
    found = {}
    for name, of_item in times.items():
        rows = [(f"u{u}", f"i{i}", float(of_item[i])) for u in range(8) for i in range(5)]
        write_dataset(tmp_path, rows, name)
        for student in ("BPR", "SASRec"):
            given = {"eval_args": LEAVE_ONE_OUT, "topk": 3, "valid_metric": "NDCG@3"}
            config = config_for(tmp_path, name=name, student=student, **given)
            split = load_split(config)
            found[student, name] = split.fingerprints
            found[student, name, "times"] = split.prints(times=True)
    assert found["BPR", "forth"] == found["BPR", "back"] == found["BPR", "late"]
    assert found["SASRec", "forth"] != found["SASRec", "back"]
    assert found["SASRec", "forth"] == found["SASRec", "late"]
    assert found["SASRec", "forth", "times"] != found["SASRec", "late", "times"]


# -- seeds and RecBole's own split -------------------------------------------------------------


def test_split_seed_decides_the_split_and_seed_does_not(root: Path) -> None:
    one = load_split(config_for(root, split_seed=1, seed=5)).fingerprints
    assert load_split(config_for(root, split_seed=1, seed=6)).fingerprints == one
    assert load_split(config_for(root, split_seed=2, seed=5)).fingerprints != one


@pytest.mark.parametrize("seed", [2020, 7])
def test_split_is_the_one_of_recbole_with_that_seed(root: Path, seed: int) -> None:
    from recbole.data import create_dataset
    from recbole.utils import init_seed

    split = load_split(config_for(root, split_seed=seed, seed=1))
    config = config_for(root, seed=seed)
    init_seed(config["seed"], config["reproducibility"])
    stock = create_dataset(config).build()
    for ours, theirs in zip(split.parts, stock, strict=True):
        assert sorted(ours.inter_feat.interaction) == sorted(theirs.inter_feat.interaction)
        for field in theirs.inter_feat.interaction:
            assert torch.equal(ours.inter_feat[field], theirs.inter_feat[field])


@pytest.mark.parametrize(
    "split",
    [
        {"LS": "valid_and_test"},
        {"LS": "valid_only"},
        {"LS": "test_only"},
        {"RS": [0.8, 0.1, 0.1]},
        {"RS": [1, 1, 2]},
        {"RS": [0.5, 0.5, 0.0]},
        {"RS": [0.05, 0.05, 0.9]},
    ],
)
@pytest.mark.parametrize("field", ["user_id", "item_id"])
def test_splits_by_group_are_recboles_to_the_row(tmp_path: Path, split: Any, field: str) -> None:
    """Groups of one and two rows among them, in the order in which RecBole meets the groups."""
    few = [("one", "lonely", 5.0), ("two", "lonely too", 6.0), ("two", "often", 7.0)]
    often = [(user, "often", 8.0) for user, *_ in ml100k_rows()[:5]]
    write_dataset(tmp_path, [*few, *ml100k_rows(), *often])
    dataset = load_split(config_for(tmp_path, empty_users="keep")).dataset
    sizes = dataset.inter_feat[field].bincount()[1:]
    assert sizes.min() == 1
    kind, value = next(iter(split.items()))

    def parts(of: type[Dataset]) -> list[Any]:
        if kind == "LS":
            return of.leave_one_out(dataset, field, value)
        return of.split_by_ratio(dataset, value, field)

    for ours, theirs in zip(parts(type(dataset)), parts(Dataset), strict=True):
        for name, values in theirs.inter_feat.interaction.items():
            assert torch.equal(ours.inter_feat[name], values)


def test_recboles_pickled_cache_is_never_opened(root: Path, tmp_path: Path) -> None:
    """RecBole unpickles a file of this name without being asked."""
    config = config_for(root, checkpoint_dir=str(tmp_path))
    trap = tmp_path / "tiny-Dataset.pth"
    trap.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    load_split(config)
    assert not (tmp_path / "ran").exists()


# -- one split for two families ----------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(root: Path) -> dict[str, KDConfig]:
    options = {"model": "RCEKD", "teacher": "SASRec"}
    return {r: config_for(root, r, **options) for r in ("student", "teacher", "scratch")}


def test_a_sequence_teacher_gets_sequences_from_a_general_students_split(
    mixed: dict[str, KDConfig],
) -> None:
    split = load_split(mixed["student"])
    batch = next(iter(make_loaders(mixed["teacher"], split)[0]))
    assert batch["item_id_list"].shape[1] == 5
    assert split.fingerprints == load_split(mixed["teacher"]).fingerprints


def test_a_general_model_sees_every_train_interaction_of_a_sequential_split(
    mixed: dict[str, KDConfig],
) -> None:
    split = load_split(mixed["student"])
    train, valid, _ = make_loaders(mixed["student"], split)
    seen = {
        pair
        for batch in train
        for pair in zip(batch["user_id"].tolist(), batch["item_id"].tolist(), strict=True)
    }
    assert seen == set(zip(*(t.tolist() for t in split.history.pairs()), strict=True))
    assert "item_id_list" not in next(iter(train)).interaction
    sets = item_sets(split.history)
    for user in valid.uid_list.tolist():
        assert set(valid.uid2history_item[user].tolist()) == sets[user]


def test_the_flat_view_leaves_the_rows_alone(root: Path) -> None:
    split = load_split(config_for(root, student="SASRec"))
    fields = set(split.train.inter_feat.interaction)
    view = without_sequences(split.train)
    assert set(split.train.inter_feat.interaction) == fields
    assert set(view.inter_feat.interaction) == {"user_id", "item_id", "timestamp"}
    assert len(view) == len(split.history.items)
    order = np.lexsort((view.inter_feat["timestamp"], view.inter_feat["user_id"]))
    assert torch.equal(view.inter_feat["user_id"][order], split.history.pairs()[0])


# -- refusals ----------------------------------------------------------------------------------


def refusal(root: Path, **options: Any) -> str:
    with pytest.raises(KDError) as caught:
        load_split(config_for(root, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"load_col": {"inter": ["user_id", "item_id"]}}, ["--load_col", "timestamp"]),
        ({"load_col": {"user": ["age"]}}, ["--load_col", "user_id, item_id, timestamp"]),
        ({"load_col": None, "unload_col": {"inter": ["timestamp"]}}, ["--unload_col", "timestamp"]),
        ({"topk": [10, 151], "valid_metric": "NDCG@10"}, ["--topk", "150 items"]),
        ({"eval_args": {"split": {"RS": [8, 2]}}}, ["--eval_args", "2 parts"]),
        ({"eval_args": {"split": {"RS": [8, 0, 2]}}}, ["validation split is empty"]),
        ({"eval_args": {"split": {"XY": [8, 1, 1]}}}, ["data set tiny", "XY"]),
        ({"threshold": 3}, ["data set tiny", "refused by RecBole"]),
        ({"user_inter_num_interval": "[900,inf)"}, ["data set tiny", "empty"]),
    ],
)
def test_refused(root: Path, options: dict[str, Any], named: list[str]) -> None:
    message = refusal(root, **{"eval_args": LEAVE_ONE_OUT, **options})
    assert [part for part in named if part not in message] == []


def test_a_column_that_nobody_left_out_is_no_option_of_the_user(root: Path) -> None:
    config = config_for(root, eval_args=LEAVE_ONE_OUT)
    for layer in config.sources.layers:
        layer.values.pop("load_col", None)
    with pytest.raises(KDError, match=r"^load_col, by default={.*}: timestamp is needed from"):
        load_split(KDConfig(config.sources))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\xff\xfe\x00user_id", "--encoding"),
        (b"", "line 1"),
        (b"user_id\titem_id\ttimestamp\n1\t2\t3\n", "line 1"),
        (b"user_id:token\titem_id:token\ttimestamp:float\n1\t2\tnoon\n", "timestamp:float"),
        (b"user_id:token\titem_id:thing\ttimestamp:float\n1\t2\t3\n", "thing"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes, named: str) -> None:
    path = write_dataset(tmp_path, []) / "tiny" / "tiny.inter"
    path.write_bytes(content)
    assert named in refusal(tmp_path)


def test_rows_of_a_models_own_data_set_are_in_order(root: Path) -> None:
    """RecBole's data set of DIEN is rows, which hold no time of each item; times were loaded."""
    split = load_split(config_for(root, student="DIEN"))
    assert split.history.times is None
    assert split.sizes[0] > 0


def test_sequences_of_a_ready_made_split_must_be_in_it(tmp_path: Path, rows: list[Row]) -> None:
    write_parts(tmp_path, [rows, rows[:5], rows[5:10]])
    parts = {"name": "parts", "benchmark_filename": ["train", "valid", "test"]}
    said = refusal(tmp_path, student="SASRec", eval_targets="next", **parts)
    assert "item_id_list" in said


@pytest.mark.parametrize("load_col", [None, {"inter": "*"}])
def test_all_columns(root: Path, load_col: Any) -> None:
    split = load_split(config_for(root, load_col=load_col, eval_args=LEAVE_ONE_OUT))
    assert "timestamp" in split.train.inter_feat.interaction
