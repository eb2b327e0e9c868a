"""Sequence models in runs: trained on whole rows, asked about histories, saved, distilled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from recbole.utils import get_model
from tiny import config_for, ml100k_rows, write_dataset, write_parts
from torch.nn.functional import cross_entropy

from recbole_kd import load_model, run_recbole_kd
from recbole_kd.blocks import length_groups
from recbole_kd.data import Split, load_split
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.loaders import make_loaders
from recbole_kd.scoring import scorer_for
from recbole_kd.teacher import FrozenTeacher
from recbole_kd.times import check_history
from recbole_kd.training import build_plain, check_data, fingerprint

SMALL: dict[str, dict[str, Any]] = {
    "HSTU": {"hidden_size": 8, "attention_dim": 4, "linear_dim": 4, "n_layers": 1},
    "SASRec": {
        "hidden_size": 8,
        "inner_size": 8,
        "n_layers": 1,
        "n_heads": 1,
        "sequence_training": "causal",
    },
}
TIMELESS = {"relative_bias": "position"}


def options(root: Path, student: str = "HSTU", **more: Any) -> dict[str, Any]:
    return {
        "data_path": str(root),
        "checkpoint_dir": str(root / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": 10,
        "epochs": 2,
        "train_batch_size": 32,
        "state": "WARNING",
        "show_progress": False,
        "save_last_seconds": 0,
        "student": SMALL[student],
        **more,
    }


def run(root: Path, student: str = "HSTU", dataset: str = "tiny", **more: Any) -> dict[str, Any]:
    config = options(root, student, **more)
    return run_recbole_kd("Scratch", dataset, student=student, config_dict=config)


# -- whole rows --------------------------------------------------------------------------------


@pytest.fixture
def short_root(tmp_path: Path) -> Path:
    """Histories of at most 20 items, so that one row holds all of each."""
    rows = ml100k_rows()
    seen: dict[str, int] = {}
    kept = []
    for user, item, time in sorted(rows, key=lambda row: row[2]):
        seen[user] = seen.get(user, 0) + 1
        if seen[user] <= 20:
            kept.append((user, item, time))
    return write_dataset(tmp_path, kept)


def sasrec(root: Path, **more: Any) -> tuple[Split, Any, Any]:
    config = config_for(
        root,
        **{**SMALL["SASRec"], "student": "SASRec", "hidden_dropout_prob": 0.0, **more},
        attn_dropout_prob=0.0,
        train_batch_size=4096,
        MAX_ITEM_LIST_LENGTH=30,
    )
    split = load_split(config)
    return split, build_plain(config, split), make_loaders(config, split)[0]


def recboles(split: Split, model: Any, config: Any) -> Any:
    """RecBole's own class with the weights of ours."""
    plain = get_model("SASRec")(config, split.train)
    plain.load_state_dict(model.state_dict())
    return plain


@pytest.mark.parametrize("slots", [10**6, 100])
def test_causal_sasrec_is_sasrec_on_all_prefixes(
    short_root: Path, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    """Whole rows that hold everything, and RecBole's prefix rows: one loss, one gradient."""
    monkeypatch.setattr("recbole_kd.backbones.sasrec.CACHED_TOKENS", slots)
    found = {}
    for training in ("prefix", "causal"):
        _, model, loader = sasrec(short_root, sequence_training=training)
        batches = list(loader)
        rows = sum(len(b) for b in batches)
        if training == "prefix":
            losses = [model.calculate_loss(b) * len(b) / rows for b in batches]
        else:
            tokens = [int(b["item_length"].sum()) for b in batches]
            parts = zip(batches, tokens, strict=True)
            losses = [model.calculate_loss(b) * n / sum(tokens) for b, n in parts]
        loss = torch.stack(losses).sum()
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
        found[training] = loss.item(), gradients
    assert found["causal"][0] == pytest.approx(found["prefix"][0], abs=1e-5)
    for name, gradient in found["prefix"][1].items():
        assert torch.allclose(found["causal"][1][name], gradient, atol=1e-6), name


@pytest.mark.parametrize(("loss", "slots"), [("CE", 10**6), ("CE", 100), ("BPR", 100)])
def test_rows_in_groups_learn_as_recboles(
    short_root: Path, monkeypatch: pytest.MonkeyPatch, loss: str, slots: int
) -> None:
    """Prefixes of 1 to 20 items in any order: RecBole's states, loss and gradients, not padded."""
    monkeypatch.setattr("recbole_kd.backbones.sasrec.CACHED_TOKENS", slots)
    sampled = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}
    more = {"sequence_training": "prefix", "loss_type": loss, **(sampled if loss == "BPR" else {})}
    split, model, loader = sasrec(short_root, n_layers=2, n_heads=2, **more)
    assert loader.config["loss_type"] == loss
    plain = recboles(split, model, loader.config)
    batch = next(iter(loader))
    items, lengths = batch["item_id_list"], batch["item_length"]
    assert len(length_groups(lengths)) > 2
    shapes: list[tuple[int, int]] = []
    first = model.trm_encoder.layer[0]
    hook = first.register_forward_pre_hook(lambda _, a: shapes.append(a[0].shape[:2]))
    assert torch.allclose(model(items, lengths), plain(items, lengths), atol=1e-6)
    hook.remove()
    assert shapes[0][1] == int(lengths.max()) < items.shape[1]
    assert all(rows * width <= slots for rows, width in shapes)
    assert sum(rows * width for rows, width in shapes) < 1.5 * int(lengths.sum())
    losses = [m.calculate_loss(batch) for m in (model, plain)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)
    for one in losses:
        one.backward()
    for name, weight in plain.named_parameters():
        assert torch.allclose(dict(model.named_parameters())[name].grad, weight.grad, atol=1e-6)


def test_a_user_without_items_has_recboles_state_in_any_batch(root: Path) -> None:
    """Such a row is one column of padding; RecBole lets it attend to all columns."""
    split, model, loader = sasrec(root, sequence_training="prefix")
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    plain = recboles(split, model, loader.config)
    batch = next(iter(loader))
    items, lengths = batch["item_id_list"].clone(), batch["item_length"].clone()
    items[0], lengths[0] = 0, 1
    for count in (1, 4, 30):
        part = items[:count], lengths[:count]
        assert torch.allclose(model(*part), plain(*part), atol=1e-5)
    assert model(items[:0], lengths[:0]).shape == (0, model.hidden_size)


def test_an_exported_model_takes_any_lengths(root: Path) -> None:
    _, model, loader = sasrec(root, sequence_training="prefix")
    model.eval()
    batch = next(iter(loader))
    items, lengths = batch["item_id_list"], batch["item_length"]
    exported = torch.export.export(model, (items[:8], lengths[:8])).module()
    traced = torch.jit.trace(model, (items[:8], lengths[:8]))
    others = items[-8:], lengths[-8:]
    for recorded in (exported, traced):
        assert torch.allclose(recorded(*others), model(*others), atol=1e-6)
    fewer = items[-5:], lengths[-5:]
    assert torch.allclose(traced(*fewer), model(*fewer), atol=1e-6)


def test_causal_states_are_recboles(root: Path) -> None:
    split, model, loader = sasrec(root)
    plain = recboles(split, model, loader.config)
    batch = next(iter(loader))
    items, lengths = batch["item_id_list"][:20], batch["item_length"][:20]
    model.eval()
    plain.eval()
    columns = torch.arange(1, items.shape[1] + 1).expand_as(items)
    states = model.forward(items, columns)
    for place in (1, 3, 8):
        kept = lengths >= place
        alone = items.masked_fill(torch.arange(items.shape[1]) >= place, 0)
        wanted = plain.forward(alone, torch.full_like(lengths, place))
        assert torch.allclose(states[kept, place - 1], wanted[kept], atol=1e-6)
    logits = states @ model.item_embedding.weight.t()
    inside = columns <= lengths.unsqueeze(1)
    targets = items.roll(-1, 1)
    targets[torch.arange(20), lengths - 1] = batch["item_id"][:20]
    wanted = cross_entropy(logits[inside], targets[inside])
    part = batch[:20]
    assert model.calculate_loss(part).item() == pytest.approx(wanted.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"student": "GRU4Rec", "sequence_training": "causal"}, ["GRU4Rec", "prefix"]),
        ({"student": "HSTU", "sequence_training": "prefix"}, ["HSTU", "causal"]),
        ({"student": "SASRec", "sequence_training": "causal", "loss_type": "BPR"}, ["BPR", "CE"]),
    ],
)
def test_rows_a_model_cannot_learn_from(
    root: Path, changes: dict[str, Any], named: list[str]
) -> None:
    def build() -> None:
        config = config_for(root, **changes)
        check_data(config, load_split(config))

    with pytest.raises(KDError) as caught:
        build()
    assert all(part in str(caught.value) for part in named), caught.value


# -- runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", sorted(SMALL))
def test_training_lowers_the_loss_and_resumes_exactly(tmp_path: Path, student: str) -> None:
    results = {}
    for name, steps in (("whole", [4]), ("halves", [2, 4])):
        root = write_dataset(tmp_path / name, ml100k_rows())
        for epochs in steps:
            config = options(root, student, epochs=epochs, learning_rate=0.01)
            config["resume"] = str(results["last"]) if epochs != steps[0] else None
            found = run_recbole_kd("Scratch", "tiny", student=student, config_dict=config)
            folder = Path(found["checkpoints"]["student"]).parent
            results["last"] = folder / "last.pt"
        results[name] = folder
    weights = [load_model(results[n]).model.state_dict() for n in ("whole", "halves")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    log = [
        json.loads(line)
        for line in (results["whole"] / "metrics.jsonl").read_text().split("\n")
        if line
    ]
    losses = [line["base_loss"] for line in log]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 4


def test_both_ways_of_ranking_say_what_they_hide(root: Path) -> None:
    for more, said in (
        ({"filter_history": False}, "filter_history False (nothing hidden), time_anchor next"),
        ({"filter_history": True}, "filter_history True (the last 10 items hidden)"),
        ({"filter_history": "all"}, "filter_history all (the whole history hidden)"),
        (
            {"eval_targets": "all", "time_anchor": "current", "eval_history": "train"},
            "one ranking from the train sequence, eval_history train, time_anchor current",
        ),
    ):
        assert said in run(root, epochs=1, **more)["protocol"]


def test_a_ready_made_split_without_times(tmp_path: Path) -> None:
    rows = sorted(ml100k_rows(), key=lambda row: row[2])
    parts = [rows[: len(rows) // 2], rows[-200:-100], rows[-100:]]
    write_parts(tmp_path, parts)
    config = {
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id"]},
        "empty_users": "keep",
    }
    result = run(tmp_path, dataset="parts", **TIMELESS, **config)
    assert np.isfinite(result["test_result"]["ndcg@10"])
    with pytest.raises(KDError, match=r"found no times.*relative_bias=position or none"):
        run(tmp_path, dataset="parts", time_anchor="current", **config)


@pytest.mark.parametrize("bias", ["position", "time_and_position"])
def test_distilled_in_both_roles(root: Path, bias: str) -> None:
    result = run_recbole_kd(
        "RCEKD",
        "tiny",
        student="HSTU",
        teacher="HSTU",
        config_dict=options(
            root,
            epochs=1,
            relative_bias=bias,
            time_anchor="current",
            eval_targets="all",
            rcekd_K=5,
            rcekd_L=5,
            rcekd_M=10,
            teacher={**SMALL["HSTU"], "n_layers": 2},
        ),
    )
    assert all(np.isfinite(v) for v in result["test_result"].values())
    loaded = load_model(result["checkpoints"]["student"])
    assert len(loaded.recommend(loaded.tokens.users[1:4], k=5)) == 3


def test_a_query_without_a_time_is_refused_early(root: Path) -> None:
    """The reference anchor reads the time of the item to predict; distillation knows none."""
    for method, more in (("RCEKD", {"teacher": SMALL["HSTU"]}), ("Scratch", {})):
        with pytest.raises(KDError, match="time_anchor=next reads the time of the request"):
            run_recbole_kd(
                method,
                "tiny",
                student="HSTU",
                teacher="HSTU" if more else None,
                config_dict=options(root, eval_targets="all", **more),
            )


def test_times_count_where_they_are_read(tmp_path: Path) -> None:
    """A teacher trained on other times, in the same order, is not found again."""
    rows = ml100k_rows()
    found = {}
    for name, factor in (("one", 1.0), ("two", 2.0)):
        root = write_dataset(tmp_path, [(u, i, t * factor - 1e8) for u, i, t in rows], name)
        for bias in ("time", "position"):
            config = config_for(root, name=name, student="HSTU", relative_bias=bias)
            config["dataset"] = "same"
            found[name, bias] = fingerprint(config, load_split_of(config, name))
    assert found["one", "time"] != found["two", "time"]
    assert found["one", "position"] == found["two", "position"]


def load_split_of(config: Any, name: str) -> Split:
    config["dataset"] = name
    split = load_split(config)
    config["dataset"] = "same"
    return split


@pytest.mark.parametrize("student", sorted(SMALL))
@pytest.mark.parametrize("targets", ["next", "all"])
def test_held_out_interactions_move_no_loss(tmp_path: Path, student: str, targets: str) -> None:
    """Other held-out items, at other times: the losses of two epochs are the same, bit for bit."""
    losses = []
    for change in (0, 1):
        # The first user names all items, so that internal ids are the same.
        rows = [("all", f"i{item}", 1e9 + item) for item in range(30)]
        for user in range(20):
            for rank in range(10):
                item, time = f"i{(7 * user + rank) % 30}", 1e9 + 7919.0 * user + 86400.0 * rank
                if rank >= 8 and change:
                    item, time = f"i{(11 * user + 3 * rank) % 30}", time + 3600
                rows.append((f"u{user:02d}", item, time))
        root = write_dataset(tmp_path / str(change), rows)
        more = {"time_anchor": "current"} if (student, targets) == ("HSTU", "all") else {}
        result = run(root, student, eval_targets=targets, **more)
        log = Path(result["checkpoints"]["student"]).parent / "metrics.jsonl"
        losses.append([json.loads(line)["base_loss"] for line in log.read_text().splitlines()])
    assert losses[0] == losses[1]


# -- histories from outside --------------------------------------------------------------------


@pytest.fixture(scope="module")
def timed(root: Path) -> Any:
    """A model that reads times, the time of the request included."""
    result = run(root, epochs=3, learning_rate=0.01)
    return load_model(result["checkpoints"]["student"])


@pytest.fixture(scope="module")
def untimed(root: Path) -> Any:
    result = run(root, epochs=3, learning_rate=0.01, **TIMELESS)
    return load_model(result["checkpoints"]["student"])


def history_of(loaded: Any, user: int) -> tuple[list[str], list[float]]:
    start, end = loaded.history.offsets[user : user + 2].tolist()
    items = [loaded.tokens.items[i] for i in loaded.history.items[start:end].tolist()]
    return items, loaded.history.times[
        start:end
    ].tolist() if loaded.history.times is not None else []


def test_a_known_history_gives_what_its_user_gets(timed: Any, untimed: Any) -> None:
    users = [1, 5, 9]
    tokens = [timed.tokens.users[u] for u in users]
    items, times = zip(*(history_of(timed, u) for u in users), strict=True)
    at = [t[-1] + 60 for t in times]
    wanted = timed.recommend(tokens, at=at)
    assert timed.recommend_from_history(items, times=times, at=at) == wanted
    late = max(at) + 1e8
    found = timed.recommend_from_history(items, times=times, at=late)
    assert found == timed.recommend(tokens, at=[late] * 3)
    items = [history_of(untimed, u)[0] for u in users]
    assert untimed.recommend_from_history(items) == untimed.recommend(tokens)
    assert [len(row) for row in wanted] == [10, 10, 10]
    for row, known in zip(wanted, items, strict=True):
        assert not set(row) & set(known)


def test_a_history_longer_than_the_model(untimed: Any) -> None:
    items = untimed.tokens.items[1:40]
    short = untimed.recommend_from_history([items[-10:]], k=20, filter_history=False)
    assert untimed.recommend_from_history([items], k=20, filter_history=False) == short


def test_the_time_of_the_request_counts(timed: Any) -> None:
    items, times = history_of(timed, 3)
    scores = []
    for moment in (times[-1], times[-1] + 1e7):
        ids = torch.tensor([timed.tokens.items.index(i) for i in items])
        history = UserHistory.from_pairs(
            torch.zeros(len(ids), dtype=torch.int64),
            ids,
            1,
            timed.history.n_items,
            torch.tensor(times, dtype=torch.float64),
        )
        at = torch.tensor([moment], dtype=torch.float64)
        state = timed.scorer.encode_history(history, torch.tensor([0]), at)
        scores.append(timed.scorer.score_all(state))
    assert not torch.allclose(*scores)


@pytest.mark.parametrize(
    ("model", "arguments", "named"),
    [
        ("untimed", {"histories": [["nothing", "1"]]}, "1 unknown items: nothing"),
        ("untimed", {"histories": [["1"], []]}, "empty"),
        ("untimed", {"histories": []}, "empty"),
        ("untimed", {"histories": [["1"]], "k": 0}, "k=0"),
        ("untimed", {"histories": [["1"]], "k": 2.5}, "k=2.5"),
        ("untimed", {"histories": [[50, 1]]}, "50, 1 (found int; allowed are texts)"),
        ("untimed", {"histories": "50"}, "the text '50'"),
        ("untimed", {"histories": ["50", "1"]}, "the text '50'"),
        ("untimed", {"histories": None}, "histories: found None; allowed is a list of item lists"),
        ("untimed", {"histories": [["1"], 50]}, "histories: found 50; allowed is a list"),
        ("untimed", {"histories": [["1"]], "at": 1e9}, "HSTU does not read the time of a request"),
        ("timed", {"histories": [["1"]]}, "times: HSTU reads the times of a history"),
        ("timed", {"histories": [["1"]], "times": [[1e9]]}, "at: HSTU reads the time of the"),
        ("timed", {"histories": [["1", "50"]], "times": [[1e9]], "at": 1e9}, "another form"),
        ("timed", {"histories": [["1"]], "times": [1e9], "at": 1e9}, "another form"),
        ("timed", {"histories": [["1"]], "times": [["a"]], "at": 1e9}, "found ['a']"),
        ("timed", {"histories": [["1"]], "times": [[1e9]], "at": "now"}, "found 'now'"),
        ("timed", {"histories": [["1"]], "times": [[1e9]], "at": 1e9 - 1}, "before the last"),
        ("timed", {"histories": [["1", "50"]], "times": [[2e9, 1e9]], "at": 2e9}, "unsorted"),
        ("timed", {"histories": [["1"]], "times": [[1e12]], "at": 1e9}, "milliseconds"),
        ("timed", {"histories": [["1"]], "times": [[1e9]], "at": 1e12}, "milliseconds"),
        ("timed", {"histories": [["1"]], "times": [[float("nan")]], "at": 1e9}, "nan"),
        ("timed", {"histories": [["1"]], "times": [[1e9]], "at": [1e9, 1e9]}, "2 times for 1"),
        ("timed", {"histories": [["1"]], "times": [[[1e9]]], "at": 1e9}, "times: found [[1000000"),
        ("timed", {"histories": [["1"]], "times": [[1e9]], "at": [[1e9]]}, "at: found [[1000000"),
        ("timed", {"histories": [["1"]], "times": [[1e9]], "at": [[1e9], [1e9, 1]]}, "at: found"),
        (
            "timed",
            {
                "histories": [["1"]],
                "times": np.array([["2020-01-01"]], dtype="datetime64[s]"),
                "at": 1e9,
            },
            "times: found array(",
        ),
        (
            "timed",
            {"histories": [["1"]], "times": [torch.tensor([1e9])], "at": 1e9},
            "times: found float32, which cannot tell the seconds",
        ),
        (
            "timed",
            {"histories": [["1"]], "times": [[1e9]], "at": np.float32(1e9)},
            "at: found float32, which cannot tell the seconds",
        ),
        ("timed", {"histories": [["1", "50"]], "times": [[0, 1]], "at": 1e9}, "places in a seq"),
        ("timed", {"histories": [["1", "50"]], "times": [[0.1, 0.2]], "at": 0.4}, "scaled"),
    ],
)
def test_bad_requests(
    request: pytest.FixtureRequest, model: str, arguments: dict[str, Any], named: str
) -> None:
    loaded = request.getfixturevalue(model)
    with pytest.raises(KDError) as caught:
        loaded.recommend_from_history(**arguments)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_without_sequences_has_no_such_answer(root: Path) -> None:
    config = options(root, epochs=1)
    del config["student"], config["MAX_ITEM_LIST_LENGTH"]
    result = run_recbole_kd("Scratch", "tiny", student="BPR", config_dict=config)
    loaded = load_model(result["checkpoints"]["student"])
    with pytest.raises(KDError, match=r"BPR encodes no item sequences.*HSTU"):
        loaded.recommend_from_history([["1"]])
    with pytest.raises(KDError, match="users: found None; allowed is a list of user tokens"):
        loaded.recommend(None)
    with pytest.raises(KDError, match="at: BPR does not read the time of a request"):
        loaded.recommend(loaded.tokens.users[1:2], at=1e9)


# -- times -------------------------------------------------------------------------------------


def history(rows: list[tuple[int, float]]) -> UserHistory:
    users, times = (torch.tensor(column) for column in zip(*rows, strict=True))
    items = torch.arange(1, len(rows) + 1)
    return UserHistory.from_pairs(users, items, 4, len(rows) + 1, times.double())


REAL = [(1, 8e8), (1, 8e8 + 60), (2, 8.1e8), (3, 8.2e8), (3, 8.2e8)]


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([(u, (t - 8e8) / 1e8) for u, t in REAL], "normalisation"),
        ([(u, t * 1000) for u, t in REAL], "milliseconds"),
        ([(1, 0.0), (1, 1.0), (1, 2.0), (2, 0.0), (2, 1.0), (3, 0.0)], "places in a sequence"),
        ([(1, 3.0), (1, 7.0), (2, 0.0), (2, 41.0), (3, 9.0)], "places in a sequence"),
        ([(1, 8e8), (2, float("inf"))], "inf"),
    ],
)
def test_times_that_are_no_seconds(rows: list[tuple[int, float]], named: str) -> None:
    with pytest.raises(KDError) as caught:
        check_history(history(rows), "data set x", "instead")
    assert named in str(caught.value)
    assert "instead" in str(caught.value) or "allowed" in str(caught.value)


def test_seconds_pass() -> None:
    check_history(history(REAL), "data set x", "instead")


def test_scaled_times_are_refused_before_training(root: Path) -> None:
    scaled = {"normalize_all": False, "normalize_field": ["timestamp"]}
    for more, said in (
        (scaled, "normalisation"),
        ({"exact_time": False}, "rounds them to minutes"),
    ):
        config = config_for(root, student="HSTU", **more)
        with pytest.raises(KDError, match=said):
            check_data(config, load_split(config))
    fine = config_for(root, student="HSTU", normalize_all=True)
    check_data(fine, load_split(fine))


def test_wrong_options_are_refused_before_the_teacher_is_trained(root: Path) -> None:
    config = options(root, epochs=1, teacher={"hidden_size": 8}, time_anchor="current")
    for student, more, said in (
        ("HSTU", {"relative_bias": "both"}, "relative_bias='both'"),
        ("SASRec", {"loss_type": "BPR"}, "--loss_type=BPR"),
    ):
        config["student"] = {**SMALL[student], **more}
        config.pop("time_anchor", None)
        with pytest.raises(KDError, match=said):
            run_recbole_kd("RCEKD", "tiny", student=student, teacher="SASRec", config_dict=config)
        assert not list((root / "saved" / "tiny").glob("SASRec-*/result.json"))


def test_a_teacher_of_seconds_is_not_asked_in_milliseconds(tmp_path: Path) -> None:
    write_dataset(tmp_path, ml100k_rows())
    trained = run(tmp_path, epochs=1, time_anchor="current", eval_targets="all")
    write_dataset(tmp_path, [(u, i, t * 1000) for u, i, t in ml100k_rows()], "milli")
    config = options(tmp_path, epochs=1, eval_targets="all")
    config["student"] = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 1}
    config["teacher"] = {"checkpoint": trained["checkpoints"]["student"]}
    config |= {"rcekd_K": 5, "rcekd_L": 5, "rcekd_M": 10}
    with pytest.raises(KDError, match="milliseconds"):
        run_recbole_kd("RCEKD", "milli", student="SASRec", config_dict=config)


def test_mixed_precision(root: Path) -> None:
    for student, more in (("HSTU", {"loss_type": "full_softmax"}), ("HSTU", {}), ("SASRec", {})):
        result = run(root, student, epochs=1, enable_amp=True, **more)
        assert np.isfinite(result["best_valid_score"])


def test_a_user_without_a_history(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, [*ml100k_rows(), ("lonely", "1", 880000000.0)])
    result = run(root, epochs=1, **TIMELESS)
    loaded = load_model(result["checkpoints"]["student"])
    with pytest.raises(KDError, match="1 users without train interactions: lonely"):
        loaded.recommend(["lonely"])


def test_rows_of_a_users_latest_items_say_so(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for windows, said in (("last", True), ("all", False)):
        caplog.clear()
        run(root, epochs=1, state="INFO", train_windows=windows)
        assert ("of the train interactions, the last 10 of each user" in caplog.text) is said


def test_models_that_read_what_transforms_add(root: Path) -> None:
    more = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 1}
    config = {**options(root, epochs=1), "student": more}
    result = run_recbole_kd("Scratch", "tiny", student="BERT4Rec", config_dict=config)
    assert np.isfinite(result["test_result"]["ndcg@10"])


@pytest.mark.parametrize("asked", [None, 0.2, 1.0])
def test_the_scorer_is_the_models_ranking_over_a_temperature(
    root: Path, asked: float | None
) -> None:
    config = config_for(
        root, student="HSTU", **SMALL["HSTU"], time_anchor="current", eval_targets="all"
    )
    split = load_split(config)
    model = build_plain(config, split).eval()
    scorer = scorer_for(model, split.history, asked)
    batch = next(iter(make_loaders(config, split)[1]))[0]
    wanted = model.full_sort_predict(batch) / (asked or config["temperature"])
    state = scorer.encode(batch["user_id"])
    assert torch.allclose(scorer.score_all(state), wanted, atol=1e-5)
    assert torch.allclose(scorer.score_all(scorer.encode_now(batch["user_id"])), wanted, atol=1e-5)
    items = torch.randint(1, split.history.n_items, (len(batch), 7))
    assert torch.allclose(scorer.score(state, items), wanted.gather(1, items), atol=1e-5)
    # The vectors themselves are of unit length, and a teacher's scores are over it too.
    assert torch.allclose(scorer.user_vectors(batch["user_id"]).norm(dim=1), torch.tensor(1.0))
    ids = torch.arange(split.history.n_users), torch.arange(split.history.n_items)
    teacher = FrozenTeacher(scorer, *ids, split.history)
    assert torch.allclose(teacher.score_all(batch["user_id"]), wanted, atol=1e-5)
    assert torch.allclose(
        teacher.score(batch["user_id"], items), wanted.gather(1, items), atol=1e-5
    )


def test_item_vectors_are_made_once_a_step(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(root, student="HSTU", **SMALL["HSTU"], time_anchor="current")
    split = load_split(config)
    model = build_plain(config, split).eval()
    scorer = scorer_for(model, split.history)
    calls: list[int] = []
    own = type(model).item_vectors
    monkeypatch.setattr(type(model), "item_vectors", lambda m: calls.append(1) or own(m))
    batch = next(iter(make_loaders(config, split)[0]))
    users = split.history.active_users()[:4]
    with scorer.step():
        scorer.score_all(scorer.encode(users))
        scorer.score(scorer.encode(users), torch.ones(4, 2, dtype=torch.int64))
        model.calculate_loss(batch).backward()
    assert len(calls) == 1
    scorer.item_vectors()
    assert len(calls) == 2, "what was made in a step outlives it"


def test_the_temperature_of_scores_is_no_part_of_a_model_alone(root: Path) -> None:
    def digest(role: str, method: str = "RCEKD", **more: Any) -> str:
        given = {"model": method, "student": "HSTU", "teacher": "HSTU", **SMALL["HSTU"]}
        config = config_for(root, role, **given, **more)
        return fingerprint(config, load_split(config))

    for role in ("teacher", "scratch"):
        assert digest(role) == digest(role, score_temperature=0.3)
    assert digest("student") != digest("student", score_temperature=0.3)
    for section in ("student", "teacher"):
        with pytest.raises(KDError, match=r"score_temperature=0: allowed are numbers above 0"):
            digest(section, **{f"{section}.score_temperature": 0})


def test_another_temperature_is_another_run(root: Path) -> None:
    def checkpoints(teacher: str | None = "HSTU", **more: Any) -> dict[str, str]:
        small = {"student": SMALL["HSTU"], "teacher": {**SMALL["HSTU"], "epochs": 1}}
        if teacher is None:
            small.pop("teacher")
        given = {**options(root, epochs=1), **small, "time_anchor": "current", "scratch": False}
        given |= {"kd_weight": 1, "ce_guide": "teacher", "ce_K": 5, **more}
        return run_recbole_kd("CE", "tiny", student="HSTU", teacher=teacher, config_dict=given)[
            "checkpoints"
        ]

    found = [
        checkpoints(),
        checkpoints(**{"teacher.score_temperature": 0.5}),
        checkpoints(**{"student.score_temperature": 0.5}),
    ]
    assert len({c["student"] for c in found}) == 3
    assert len({c["teacher"] for c in found}) == 1, "a teacher is trained anew for it"
    opened = {"teacher.checkpoint": found[0]["teacher"]}
    found += [checkpoints(None, **opened, **{"teacher.score_temperature": t}) for t in (0.5, 0.6)]
    assert len({c["student"] for c in found}) == 5


def test_scores_that_have_no_temperature_take_none(root: Path) -> None:
    with pytest.raises(KDError, match=r"score_temperature=0.5: found BPR.* allowed with .*HSTU"):
        scorer_for(tiny.model("BPR"), tiny.split_for("BPR").history, 0.5)
