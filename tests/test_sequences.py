"""Rows cut from sequences: RecBole's rows, whole rows, nothing of the future, exact times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import init_seed
from tiny import ML100K, Row, config_for, ml100k_rows, write_dataset, write_parts

from recbole_kd import run_recbole_kd
from recbole_kd.config import KDConfig
from recbole_kd.data import Split, load_split, require_order
from recbole_kd.errors import KDError
from recbole_kd.loaders import make_loaders, train_part
from recbole_kd.options import Sources
from recbole_kd.sequences import ExactTime, FullSequenceDataset
from recbole_kd.training import check_data

NEXT = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"}
SPLITS = {
    "leave one out": NEXT,
    "ratio by user": {**NEXT, "split": {"RS": [0.6, 0.2, 0.2]}},
    "ratio of all": {**NEXT, "split": {"RS": [0.6, 0.2, 0.2]}, "group_by": None},
}
KEPT = {"empty_users": "keep"}


def rows_of(part: Any) -> dict[str, torch.Tensor]:
    """Every row of a part, as its loader reads it."""
    return part[np.arange(len(part))].interaction


def stock(config: KDConfig) -> list[Any]:
    """Parts of RecBole's own sequential data set; with exact times if the option says so."""
    init_seed(config["split_seed"], True)
    return type("Stock", (ExactTime, SequentialDataset), {})(config).build()


def histories(fields: dict[str, torch.Tensor]) -> list[list[int]]:
    """Items of each row, its target last."""
    table = zip(
        fields["item_id_list"].tolist(),
        fields["item_length"].tolist(),
        fields["item_id"].tolist(),
        strict=True,
    )
    return [[*items[:length], target] for items, length, target in table]


# -- RecBole's rows ----------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("length", [3, 50])
@pytest.mark.parametrize("name", sorted(SPLITS))
def test_rows_are_recboles(root: Path, name: str, length: int, exact: bool) -> None:
    config = config_for(
        root,
        student="SASRec",
        exact_time=exact,
        MAX_ITEM_LIST_LENGTH=length,
        eval_args=SPLITS[name],
        **KEPT,
    )
    ours = load_split(config)
    assert isinstance(ours.train, FullSequenceDataset)
    for part, wanted in zip(ours.parts, stock(config), strict=True):
        found, expected = rows_of(part), rows_of(wanted)
        assert set(found) == set(expected)
        for field, values in expected.items():
            assert found[field].dtype == values.dtype, field
            assert torch.equal(found[field], values), field


def test_memory_grows_with_the_interactions_alone(root: Path) -> None:
    config = config_for(root, student="SASRec", MAX_ITEM_LIST_LENGTH=400)
    split = load_split(config)
    held = {id(v): v.numel() for part in split.parts for v in part.inter_feat.interaction.values()}
    held |= {id(v): v.numel() for v in split.train.sequences.interaction.values()}
    held |= {id(v): v.numel() for v in split.train.known.interaction.values()}
    assert sum(held.values()) < 15 * len(split.train.sequences)


def test_train_counts_every_interaction(root: Path) -> None:
    split = load_split(config_for(root, student="SASRec"))
    windows = split.train.windows("last")
    users, items = (t.tolist() for t in split.history.pairs())
    for part in (split.train, windows):
        assert part.item_counter == Counter(items)
        assert part.user_counter == Counter(users)
        matrix = part.inter_matrix()
        assert matrix.sum() == len(items)
        assert set(zip(matrix.row, matrix.col, strict=True)) == set(zip(users, items, strict=True))
    targets = Counter(split.parts[2].inter_feat["item_id"].tolist())
    assert split.parts[2].item_counter == targets


# -- whole rows --------------------------------------------------------------------------------


def supervised(fields: dict[str, torch.Tensor]) -> Counter[tuple[int, int]]:
    """How often each (user, item) of data without repeats is a target of a whole row."""
    users = fields["user_id"].tolist()
    return Counter((u, i) for u, row in zip(users, histories(fields), strict=True) for i in row[1:])


@pytest.mark.parametrize("targets", ["next", "all"])
@pytest.mark.parametrize("length", [1, 4, 7, 200])
def test_all_windows_supervise_each_interaction_once(root: Path, length: int, targets: str) -> None:
    config = config_for(
        root, student="SASRec", MAX_ITEM_LIST_LENGTH=length, eval_targets=targets, **KEPT
    )
    split = load_split(config)
    users, items = (t.tolist() for t in split.history.pairs())
    first = dict(reversed(list(zip(users, items, strict=True))))
    wanted = Counter((u, i) for u, i in zip(users, items, strict=True) if first[u] != i)
    assert supervised(rows_of(split.train.windows("all"))) == wanted


@pytest.mark.parametrize("length", [1, 4, 200])
def test_last_windows_are_the_latest_items(root: Path, length: int) -> None:
    config = config_for(root, student="SASRec", MAX_ITEM_LIST_LENGTH=length)
    split = load_split(config)
    fields = rows_of(split.train.windows("last"))
    assert len(set(fields["user_id"].tolist())) == len(fields["user_id"])
    for user, row in zip(fields["user_id"].tolist(), histories(fields), strict=True):
        start, end = split.history.offsets[user : user + 2].tolist()
        assert row == split.history.items[start:end].tolist()[-length - 1 :]


def test_the_model_decides_the_rows(root: Path) -> None:
    options = {"student": "SASRec", "MAX_ITEM_LIST_LENGTH": 6}
    split = load_split(config_for(root, **options))
    users = len(split.history.active_users())
    counts = {}
    for training, windows in (("prefix", "last"), ("causal", "last"), ("causal", "all")):
        config = config_for(root, **options, sequence_training=training, train_windows=windows)
        counts[training, windows] = len(train_part(config, split))
    assert counts["prefix", "last"] == len(split.history.items) - users
    assert counts["causal", "last"] == users
    longest = (split.history.counts[split.history.active_users()] - 2).div(6, rounding_mode="floor")
    assert counts["causal", "all"] == int((longest + 1).sum())


def test_causal_rows_are_counted_in_users(root: Path) -> None:
    chosen = config_for(root, student="SASRec", sequence_training="causal", train_batch_size=7)
    assert config_for(root, student="SASRec", sequence_training="causal")["train_batch_size"] == 128
    assert config_for(root, student="SASRec")["train_batch_size"] == 2048
    assert chosen["train_batch_size"] == 7


def test_a_model_that_looks_into_the_whole_table_gets_one(root: Path) -> None:
    config = config_for(root, student="FEARec")
    split = load_split(config)
    part = train_part(config, split)
    for field, values in rows_of(split.train).items():
        assert torch.equal(part.inter_feat[field], values), field
        assert torch.equal(rows_of(part)[field], values), field


# -- nothing of the future ---------------------------------------------------------------------

ROUTES = [
    pytest.param(targets, training, id=f"{targets}-{training}")
    for targets in ("next", "all")
    for training in ("prefix", "causal")
]


def planted(change: int = 0) -> list[Row]:
    """Each interaction has an item of its own; held-out ones can be changed, times too.

    With ten interactions a user both routes hold out the last two.
    """
    rows = []
    for user in range(12):
        for rank in range(10):
            item, time = f"u{user}r{rank}", 1e9 + 7919 * user + 86400 * rank
            if rank >= 8:
                item, time = f"{item}v{change}", time + 3600 * change
            rows.append((f"u{user}", item, time))
    # Items of all variants exist in each, so that internal ids are the same.
    rows += [("other", f"u{u}r{r}v{v}", 1e9 + r) for u in range(12) for r in (8, 9) for v in (0, 1)]
    return sorted(rows, key=lambda row: (row[0], row[1]))


def train_tensors(config: KDConfig, split: Split) -> list[dict[str, torch.Tensor]]:
    """All batches of an epoch, without those of the user that only carries items."""
    loader = make_loaders(config, split)[0]
    other = split.tokens.users.index("other")
    batches = []
    for batch in loader:
        kept = batch["user_id"] != other
        batches.append({k: v[kept] for k, v in batch.interaction.items()})
    return batches


def planted_config(folder: Path, targets: str, training: str, change: int = 0) -> KDConfig:
    write_dataset(folder, planted(change), f"planted{change}")
    return config_for(
        folder,
        name=f"planted{change}",
        student="SASRec",
        eval_targets=targets,
        sequence_training=training,
        train_windows="all",
        MAX_ITEM_LIST_LENGTH=4,
        train_neg_sample_args=None,
        shuffle=False,
    )


@pytest.mark.parametrize(("targets", "training"), ROUTES)
def test_no_held_out_item_is_in_a_training_tensor(
    tmp_path: Path, targets: str, training: str
) -> None:
    config = planted_config(tmp_path, targets, training)
    split = load_split(config)
    held_out = {i for i, token in enumerate(split.tokens.items) if "v" in token}
    own = {i for i, token in enumerate(split.tokens.items) if i and "v" not in token}
    seen = set()
    for batch in train_tensors(config, split):
        seen |= set(torch.cat([batch["item_id"], batch["item_id_list"].flatten()]).tolist())
    assert not seen & held_out
    assert seen - {0} == own


@pytest.mark.parametrize(("targets", "training"), ROUTES)
def test_held_out_interactions_change_no_training_tensor(
    tmp_path: Path, targets: str, training: str
) -> None:
    found = []
    for change in (0, 1):
        config = planted_config(tmp_path, targets, training, change)
        found.append(train_tensors(config, load_split(config)))
    for one, two in zip(*found, strict=True):
        assert set(one) == set(two)
        assert all(torch.equal(one[field], two[field]) for field in one)
        assert float(one["timestamp"].max()) < 1e9 + 7919 * 11 + 86400 * 8


def test_a_split_that_trains_on_the_future_is_refused(root: Path) -> None:
    args = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "full"}
    with pytest.raises(KDError, match="has to be 'TO'"):
        load_split(config_for(root, student="SASRec", eval_args=args))


# -- all held-out items as targets -------------------------------------------------------------


def by_user(part: Any) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    feat = part.inter_feat
    for user, item in zip(feat["user_id"].tolist(), feat["item_id"].tolist(), strict=True):
        found.setdefault(user, set()).add(item)
    return found


@pytest.mark.parametrize("policy", ["all", "train"])
def test_one_ranking_a_user(root: Path, policy: str) -> None:
    config = config_for(root, student="SASRec", eval_targets="all", eval_history=policy, **KEPT)
    split = load_split(config)
    general = load_split(config_for(root, eval_args=config["eval_args"], **KEPT))
    assert {k: v for k, v in split.fingerprints.items() if k != "order"} == general.fingerprints
    _, valid, test = make_loaders(config, split)
    train, held = by_user(split.train.interactions()), [by_user(p) for p in split.parts[1:]]
    for phase, loader in enumerate((valid, test)):
        hidden_parts = [train] if phase == 0 or policy == "train" else [train, held[0]]
        for batch, (rows, hidden), owners, positives in loader:
            for place, user in enumerate(batch["user_id"].tolist()):
                start, end = split.history.offsets[user : user + 2].tolist()
                latest = split.history.items[start:end].tolist()[-5:]
                length = batch["item_length"][place]
                assert batch["item_id_list"][place, :length].tolist() == (latest or [0])
                assert set(positives[owners == place].tolist()) == held[phase][user]
                wanted = set().union(*(p.get(user, set()) for p in hidden_parts))
                assert set(hidden[rows == place].tolist()) == wanted - held[phase][user]


def test_ready_made_files_need_no_times(tmp_path: Path) -> None:
    parts = [
        [("a", "x", 5), ("b", "y", 9), ("a", "y", 5), ("a", "z", 5), ("b", "x", 9)],
        [("a", "w", 5), ("b", "w", 5)],
        [("a", "v", 5), ("b", "z", 5), ("b", "v", 5)],
    ]
    write_parts(tmp_path, parts)
    config = config_for(
        tmp_path,
        name="parts",
        student="SASRec",
        benchmark_filename=["train", "valid", "test"],
        load_col={"inter": ["user_id", "item_id"]},
        topk=[2],
        valid_metric="NDCG@2",
    )
    assert config["eval_targets"] == "all"
    split = load_split(config)
    tokens = split.tokens
    rows = histories(rows_of(split.train.windows("last")))
    assert [[tokens.items[i] for i in row] for row in rows] == [["x", "y", "z"], ["y", "x"]]
    assert split.history.times is None
    (batch, _, owners, positives) = next(iter(make_loaders(config, split)[2]))
    found = [(tokens.users[u], n) for u, n in zip(batch["user_id"], owners.bincount(), strict=True)]
    assert [(u, int(n)) for u, n in found] == [("a", 1), ("b", 2)]
    assert len(positives) == 3


# -- hidden history ----------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [False, True, "all"])
def test_the_history_is_hidden_on_request(root: Path, kept: Any) -> None:
    config = config_for(root, student="SASRec", filter_history=kept, MAX_ITEM_LIST_LENGTH=3)
    split = load_split(config)
    for part, loader in zip(split.parts[1:], make_loaders(config, split)[1:], strict=True):
        place = 0
        for batch, hidden, _, positives in loader:
            assert torch.equal(positives, batch["item_id"])
            if not kept:
                assert hidden is None
                continue
            found: dict[int, set[int]] = {}
            for row, item in zip(*(t.tolist() for t in hidden), strict=True):
                found.setdefault(row, set()).add(item)
            for row in range(len(batch)):
                where = part.inter_feat["place_in_sequences"][place]
                rank = part.ranks[where]
                start = where - (rank if kept == "all" else rank.clamp_max(3))
                assert found[row] == set(part.sequences["item_id"][start:where].tolist())
                place += 1


def test_hidden_items_move_the_result(root: Path) -> None:
    """The same weights: without the items a user has had, no target ranks lower, some higher."""
    found = {}
    for kept in (False, True):
        result = run_recbole_kd(
            "Scratch",
            "tiny",
            student="SASRec",
            saved=False,
            config_dict={
                "data_path": str(root),
                "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
                "epochs": 1,
                "state": "WARNING",
                "show_progress": False,
                "filter_history": kept,
                "topk": [5, 10, 20, 50],
                "hidden_size": 8,
                "MAX_ITEM_LIST_LENGTH": 20,
            },
        )
        found[kept] = result["test_result"]
    changes = [found[True][name] - value for name, value in found[False].items()]
    assert min(changes) >= 0 < max(changes)


# -- exact times -------------------------------------------------------------------------------


def raw_ml100k() -> list[Row]:
    lines = ML100K.read_text(encoding="utf-8").splitlines()[1:]
    return [(u, i, float(t)) for u, i, _, t in (line.split("\t") for line in lines)]


def test_recboles_order_on_request(tmp_path: Path) -> None:
    """How far single precision puts the raw times of ml-100k out of order."""
    rows = raw_ml100k()
    write_dataset(tmp_path, rows, "raw")
    found = {}
    for exact in (True, False):
        options = {"normalize_all": False, "exact_time": exact}
        config = config_for(tmp_path, name="raw", student="SASRec", **options)
        split = load_split(config)
        test = split.parts[2].inter_feat
        found[exact] = (
            split.train.sequences["item_id"],
            dict(zip(test["user_id"].tolist(), test["item_id"].tolist(), strict=True)),
        )
    moved = (found[True][0] != found[False][0]).double().mean()
    targets = np.mean([found[True][1][u] != i for u, i in found[False][1].items()])
    assert moved == pytest.approx(0.466, abs=0.001)
    assert targets == pytest.approx(0.158, abs=0.001)
    by_time = sorted(enumerate(rows), key=lambda pair: (pair[1][2], pair[0]))
    last = {user: item for _, (user, item, _) in by_time}
    tokens = split.tokens
    wanted = {tokens.users.index(u): tokens.items.index(i) for u, i in last.items()}
    assert found[True][1] == wanted


@pytest.mark.parametrize("keep", ["first", "last"])
def test_removing_repeats_keeps_the_order_of_equal_times(tmp_path: Path, keep: str) -> None:
    """Half of ml-100k's interactions share their second with another of the user."""
    rows = raw_ml100k()
    write_dataset(tmp_path, rows, "raw")
    write_dataset(tmp_path, rows + rows[:500], "twice")

    def prints(name: str, **more: Any) -> dict[str, str]:
        options = {"normalize_all": False, "student": "SASRec", **more}
        found = load_split(config_for(tmp_path, name=name, **options)).prints(True)
        return {part: value for part, value in found.items() if part != "ids"}

    assert prints("raw", rm_dup_inter=keep) == prints("raw")
    if keep == "first":
        assert prints("twice", rm_dup_inter=keep) == prints("raw")


@pytest.mark.parametrize("targets", ["next", "all"])
def test_fingerprints_know_what_a_state_reads(tmp_path: Path, targets: str) -> None:
    """Held-out items and times enter states where the next item is asked for, and only there."""
    counts = Counter(user for user, _, _ in ml100k_rows())
    rows = sorted((r for r in ml100k_rows() if counts[r[0]] > 14), key=lambda r: (r[0], r[2]))
    rows = [(u, i, 8e8 + 10 * place) for place, (u, i, _) in enumerate(rows)]
    ends = [k for k in range(1, len(rows)) if rows[k][0] != rows[k - 1][0]] + [len(rows)]
    later = [list(rows) for _ in range(3)]
    for end in ends:
        (u, a, s), (_, b, t) = rows[end - 2 : end]
        later[1][end - 2 : end] = [(u, b, s), (u, a, t)]  # the last two, exchanged
        later[2][end - 1] = (u, b, t + 5)
    split = {**NEXT, "split": {"RS": [0.6, 0.2, 0.2]}}
    prints = []
    for place, version in enumerate(later):
        write_dataset(tmp_path, version, f"v{place}")
        options = {"student": "SASRec", "eval_args": split, "eval_targets": targets}
        loaded = load_split(config_for(tmp_path, name=f"v{place}", **options))
        prints.append({k: v for k, v in loaded.prints(True).items() if k != "ids"})
    assert (prints[1] == prints[0]) == (targets == "all")
    assert (prints[2] == prints[0]) == (targets == "all")


def test_normalisation_leaves_times_alone(root: Path) -> None:
    options = {"student": "SASRec", "normalize_all": True}
    exact = load_split(config_for(root, **options))
    scaled = load_split(config_for(root, exact_time=False, **options))
    assert exact.history.times is not None
    assert scaled.history.times is not None
    assert exact.history.times.dtype == torch.float64
    assert float(exact.history.times.min()) > 8e8
    assert float(scaled.history.times.max()) <= 1
    lists = exact.parts[2][np.arange(3)]["timestamp_list"]
    assert lists.dtype == torch.float64
    assert float(lists.max()) > 8e8


# -- refusals ----------------------------------------------------------------------------------


def refusal(root: Path, **options: Any) -> str:
    def load() -> None:
        config = config_for(root, **{"student": "SASRec", **options})
        check_data(config, load_split(config))

    with pytest.raises(KDError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"eval_targets": "some"}, ["--eval_targets=some", "next, all"]),
        ({"sequence_training": "both"}, ["--sequence_training=both", "prefix, causal"]),
        ({"train_windows": "first"}, ["--train_windows=first", "last, all"]),
        ({"filter_history": "some"}, ["--filter_history=some", "False, True, all"]),
        ({"exact_time": "maybe"}, ["--exact_time=maybe", "True, False"]),
        ({"MAX_ITEM_LIST_LENGTH": 0}, ["--MAX_ITEM_LIST_LENGTH=0"]),
        (
            {"eval_targets": "all", "eval_args": {**NEXT, "mode": "uni5"}},
            ["--eval_targets=all", "uni5", "full"],
        ),
        (
            {"filter_history": True, "eval_args": {**NEXT, "mode": "uni5"}},
            ["--filter_history=True", "uni5", "full"],
        ),
        (
            {"filter_history": True, "eval_targets": "all"},
            ["--filter_history=True", "eval_targets=all", "eval_history"],
        ),
        (
            {"student": "DIEN", "filter_history": "all", "eval_args": NEXT, "topk": [10]},
            ["--filter_history=all", "DIEN"],
        ),
        ({"student": "DIEN", "eval_targets": "all"}, ["--eval_targets=all", "DIEN", "next"]),
        (
            {"eval_history": "train", "eval_targets": "next"},
            ["--eval_history=train", "eval_targets=next", "filter_history"],
        ),
        (
            {"student": "HSTU", "train_neg_sample_args": {"distribution": "uniform"}},
            ["--train_neg_sample_args", "uniform", "HSTU", "null"],
        ),
    ],
)
def test_options_are_checked(root: Path, options: dict[str, Any], named: Sequence[str]) -> None:
    message = refusal(root, **options)
    assert all(part in message for part in named), message


def test_times_are_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    head = "user_id:token\titem_id:token\ttimestamp:token\n"
    (folder / "tiny.inter").write_text(head + "a\tx\t1\n")
    message = refusal(tmp_path)
    assert "timestamp:token" in message
    assert "timestamp:float" in message


def test_a_ready_made_split_of_the_past_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = sorted(ml100k_rows(), key=lambda row: row[2])
    write_parts(tmp_path, [rows[300:], rows[:100], rows[100:300]])
    files = {"benchmark_filename": ["train", "valid", "test"]}
    load_split(config_for(tmp_path, name="parts", student="SASRec", **files, **KEPT))
    assert "held-out interactions of the ready-made split are older" in caplog.text


def without_columns(root: Path, student: str, **more: Any) -> KDConfig:
    """A configuration on the ready-made split ``parts`` that does not say which columns to load."""
    files = {"benchmark_filename": ["train", "valid", "test"], "data_path": str(root)}
    given = {"student": student, "model": "Scratch", **files, **more}
    return KDConfig(Sources.collect(dataset="parts", options=given), "student")


def test_times_of_ready_made_files_are_not_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """RecBole's default loads users and items alone; sequences would be in the files' order."""
    rows = ml100k_rows()
    write_parts(tmp_path, [rows[::2], rows[1::4], rows[3::4]])

    def load(student: str, **more: Any) -> Split:
        return load_split(without_columns(tmp_path, student, **KEPT, **more))

    for student in ("SASRec", "HSTU"):
        with pytest.raises(KDError, match=r"--load_col={inter: \[user_id, item_id, timestamp\]}"):
            load(student)
    # A model without sequences needs no order, and who says so has the files' own.
    load("BPR")
    load("SASRec", load_col={"inter": ["user_id", "item_id"]})
    assert "in the order of the files" in caplog.text


def test_lists_in_the_files_are_an_order_of_rows_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A column of lists says how rows were made; single interactions of it have no order."""
    (tmp_path / "parts").mkdir()
    head = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float\n"
    rows = {"train": "p q\tr\t3", "valid": "p q r\ts\t4", "test": "p q r s\tp\t5"}
    for part, row in rows.items():
        (tmp_path / "parts" / f"parts.{part}.inter").write_text(f"{head}a\t{row}\n")

    few = {"topk": [2], "valid_metric": "NDCG@2"}
    columns = {"inter": ["user_id", "item_id_list", "item_id"]}
    prepared = {"eval_targets": "next", "load_col": columns, "alias_of_item_id": ["item_id_list"]}
    rows_only = without_columns(tmp_path, "SASRec", **few, **prepared)
    assert load_split(rows_only).sizes == (3, 1, 1)
    assert "in the order of the files" not in caplog.text

    single = without_columns(tmp_path, "BPR", **few)
    with pytest.raises(KDError, match=r"timestamp of parts\.train\.inter is not loaded"):
        require_order(single, load_split(single).dataset, "SASRec")  # a teacher


def test_a_missing_time_is_not_made_up(tmp_path: Path) -> None:
    rows = ml100k_rows()
    write_dataset(tmp_path, rows)
    path = tmp_path / "tiny" / "tiny.inter"
    lines = path.read_text().splitlines()
    lines[5] = lines[5].rpartition("\t")[0] + "\t"
    path.write_text("\n".join(lines) + "\n")
    for exact in (True, False):
        assert f"timestamp is missing in 1 of {len(rows)}" in refusal(tmp_path, exact_time=exact)
    # A random split does not ask for times.
    assert len(load_split(config_for(tmp_path)).history.items)


def test_a_wrong_time_among_the_held_out_is_refused(tmp_path: Path) -> None:
    rows = ml100k_rows()
    rows[7] = (*rows[7][:2], 8e11)
    write_dataset(tmp_path, rows)
    message = refusal(tmp_path, student="HSTU", relative_bias="time_and_position")
    assert "milliseconds" in message
    assert "test" in message


@pytest.mark.parametrize("student", ["SASRec", "HSTU"])
def test_an_infinite_time_is_refused_wherever_it_orders(tmp_path: Path, student: str) -> None:
    rows = ml100k_rows()
    rows[7] = (*rows[7][:2], float("inf"))
    write_dataset(tmp_path, rows)
    assert f"timestamp is infinite in 1 of {len(rows)}" in refusal(tmp_path, student=student)


def test_standardised_times_are_refused(tmp_path: Path) -> None:
    rows = ml100k_rows()
    times = np.array([t for _, _, t in rows])
    times = (times - times.mean()) / times.std()
    write_dataset(tmp_path, [(u, i, float(t)) for (u, i, _), t in zip(rows, times, strict=True)])
    assert "scaled" in refusal(tmp_path, student="HSTU", relative_bias="time_and_position")


def test_data_without_times_are_told_what_will_do(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "tiny.inter").write_text("user_id:token\titem_id:token\na\tx\n")
    assert "numbered 0, 1, ..." in refusal(tmp_path, student="HSTU", relative_bias="none")


def test_users_without_a_sequence_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ml100k_rows()
    users = sorted({user for user, _, _ in rows})
    parts: list[list[Row]] = [[], [], []]
    for user in users:
        own = [row for row in rows if row[0] == user]
        parts[0] += own[:-2] if user not in users[:3] else []
        parts[1].append(own[-2])
        parts[2].append(own[-1])
    write_parts(tmp_path, parts)
    files = {"benchmark_filename": ["train", "valid", "test"]}
    load_split(config_for(tmp_path, name="parts", student="SASRec", **files, **KEPT))
    assert "3 evaluated users" in caplog.text


def test_a_user_with_one_interaction_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_dataset(tmp_path, [*ml100k_rows(), ("lonely", "1", 880000000.0)])
    load_split(config_for(tmp_path, student="SASRec"))
    assert "1 users (first: 'lonely') have a single interaction" in caplog.text
    assert "user_inter_num_interval" in caplog.text


def test_interaction_class_is_recboles(root: Path) -> None:
    split = load_split(config_for(root, student="SASRec"))
    assert type(split.parts[1][np.arange(2)]) is Interaction
