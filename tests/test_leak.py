"""Held-out interactions reach nothing that trains, and no teacher that saw them teaches."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from recbole_kd import leak, training
from recbole_kd.config import KDConfig
from recbole_kd.data import Split, load_split
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.options import Sources
from recbole_kd.registry import method_class
from recbole_kd.scoring import scorer_for
from recbole_kd.teacher import FrozenTeacher, join_tokens
from recbole_kd.teachers import translate_history

N_USERS, N_TRAIN = 10, 30
Row = tuple[str, str, str, str]


def by_token(part: Split, pairs: Any) -> set[tuple[str, str]]:
    users, items = (t.tolist() for t in pairs)
    named = ((part.tokens.users[u], part.tokens.items[i]) for u, i in zip(users, items))  # noqa: B905
    return set(named)


# -- planted data --------------------------------------------------------------------------------


def planted_rows(variant: str) -> dict[str, list[Row]]:
    """Parts of a split in which every held-out item is a stranger's, and no variant shares one.

    The train rows of all variants are the same. Held-out items of variant ``a`` are train items
    of other users; in variant ``b`` they are others; in variant ``new`` nobody has them in train.
    """
    parts: dict[str, list[Row]] = {"train": [], "valid": [], "test": []}
    for user in range(N_USERS):
        own = [(3 * user + step) % N_TRAIN for step in range(9)]
        parts["train"] += [(f"u{user}", f"i{item}", "5", str(t)) for t, item in enumerate(own)]
        far = {"a": 15, "b": 19}.get(variant, 0)
        for name, shift in (("valid", 0), ("test", 1)):
            item = f"new{2 * user + shift}" if not far else f"i{(3 * user + far + shift) % N_TRAIN}"
            parts[name].append((f"u{user}", item, "5", str(100 + shift)))
    return parts


def planted(variant: str, model: str = "BPR") -> Split:
    """The split of a planted variant: ready-made for general models, by time for SASRec."""
    parts, name = planted_rows(variant), f"planted_{variant}"
    for part, rows in parts.items():
        tiny.write(name, rows)
        folder = tiny.data_path() / name
        (folder / f"{name}.inter").rename(folder / f"{name}.{part}.inter")
    tiny.write(name, [row for rows in parts.values() for row in rows])
    ready = {} if model == "SASRec" else {"benchmark_filename": ["train", "valid", "test"]}
    return load_split(tiny.config(model, name, **ready))


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
@pytest.mark.parametrize("variant", ["a", "b", "new"])
def test_the_history_is_the_planted_train_part(variant: str, model: str) -> None:
    part, rows = planted(variant, model), planted_rows(variant)
    assert by_token(part, part.history.pairs()) == {row[:2] for row in rows["train"]}
    held = {row[:2] for name in ("valid", "test") for row in rows[name]}
    assert by_token(part, map(torch.from_numpy, part.held_out())) == held


def test_sequences_hold_no_planted_item() -> None:
    part = planted("new", "SASRec")
    sequences, _ = part.history.padded(part.history.active_users(), 20)
    tokens = {part.tokens.items[i] for i in sequences.unique().tolist()}
    assert tokens == {"[PAD]", *(f"i{i}" for i in range(N_TRAIN))}
    assert any(token.startswith("new") for token in part.tokens.items)
    matrix = part.train.inter_matrix(form="csr")
    columns = {part.tokens.items[i] for i in matrix.nonzero()[1].tolist()}
    assert columns == tokens - {"[PAD]"}


def test_masks_hide_train_items_and_no_other() -> None:
    part = planted("a")
    users = part.history.active_users()
    scores = part.history.mask_(torch.zeros(len(users), part.history.n_items), users)
    rows, columns = (scores == -torch.inf).nonzero(as_tuple=True)
    hidden = by_token(part, (users[rows], columns))
    assert hidden == {row[:2] for row in planted_rows("a")["train"]}
    assert not hidden & by_token(part, map(torch.from_numpy, part.held_out()))


def distilled_tables(variant: str, method: str) -> dict[str, Tensor]:
    """Everything a method precomputes, for one planted variant and fixed weights."""
    part = planted(variant)
    lengths = {"ce_K": 5} if method == "CE" else {"rcekd_K": 4, "rcekd_L": 3, "rcekd_M": 8}
    values = {
        **tiny.options("LightGCN", **lengths),
        "kd_rows": "interaction",
        "benchmark_filename": ["train", "valid", "test"],
        **({"ce_guide": "union"} if method == "CE" else {"rcekd_mask_train": True}),
    }
    name = f"planted_{variant}"
    config = KDConfig(Sources.collect(method, name, "LightGCN", "BPR", options=values))
    students = [training.build_plain(config, part) for _ in range(2)]
    generator = torch.Generator().manual_seed(8)
    for parameter in (p for model in students for p in model.parameters()):
        torch.nn.init.normal_(parameter, generator=generator)
    student, model = students
    identity = torch.arange(part.history.n_users), torch.arange(part.history.n_items)
    teacher = FrozenTeacher(scorer_for(model, part.history), *identity, part.history)
    distiller: Any = method_class(method)(  # type: ignore[misc]
        config, part.train, student, scorer_for(student, part.history), teacher, part.history
    )
    distiller.begin_epoch(0, 1)
    rows = distiller.rows.next(part.history.pairs()[0])
    loss = distiller.kd_loss(rows)
    loss.backward()
    return {
        **distiller.tables(),
        "users": rows.users,
        "weights": rows.weights,
        "loss": loss.detach(),
        "top": teacher.top_k(4, True)[0],
        "gradient": student.item_embedding.weight.grad,
    }


@pytest.mark.parametrize("method", ["CE", "RCEKD"])
def test_no_candidate_set_depends_on_held_out_items(method: str) -> None:
    """Two data sets that differ in their held-out interactions only give the same training."""
    one, other = (distilled_tables(variant, method) for variant in ("a", "b"))
    assert one.keys() == other.keys()
    assert len(one) > 6
    for name, table in one.items():
        assert torch.equal(table, other[name]), name


def test_the_two_variants_do_differ() -> None:
    held = [by_token(planted(v), map(torch.from_numpy, planted(v).held_out())) for v in ("a", "b")]
    assert not held[0] & held[1]
    assert planted("a").tokens == planted("b").tokens


# -- the guard -----------------------------------------------------------------------------------


def brute_force(student: Split, teacher: Split) -> int:
    """Held-out interactions of one split in the train part of another, as sets of tokens."""
    trained = by_token(teacher, teacher.history.pairs())
    held = by_token(student, map(torch.from_numpy, student.held_out()))
    return len(held & trained)


def joined(student: Split, teacher: Split) -> tuple[Tensor, Tensor]:
    return (
        join_tokens(student.tokens.users, teacher.tokens.users),
        join_tokens(student.tokens.items, teacher.tokens.items),
    )


@pytest.mark.parametrize("data", ["tiny", "permuted"])
@pytest.mark.parametrize("seed", [2020, 1])
def test_the_count_is_a_set_intersection_by_token(data: str, seed: int) -> None:
    student, teacher = tiny.split("BPR", "tiny", 2020), tiny.split("BPR", data, seed)
    expected = brute_force(student, teacher)
    same = (data, seed) == ("tiny", 2020)
    assert (expected == 0) == same
    if data == "permuted":
        assert student.tokens.items != teacher.tokens.items
    assert leak.leaked(student, teacher.history, *joined(student, teacher)) == expected


def test_the_count_across_general_and_sequential_splits() -> None:
    pairs = [("BPR", "SASRec"), ("SASRec", "BPR")]
    for student, teacher in ((tiny.split(a), tiny.split(b)) for a, b in pairs):
        expected = brute_force(student, teacher)
        assert expected > 30
        assert leak.leaked(student, teacher.history, *joined(student, teacher)) == expected


def test_tokens_the_teacher_does_not_know_are_not_counted() -> None:
    student, teacher = tiny.split("BPR", "tiny", 2020), tiny.split("BPR", "tiny", 1)
    users, items = joined(student, teacher)
    all_of_them = leak.leaked(student, teacher.history, users, items)
    items[50:] = -1
    users[40:] = -1
    held = zip(*(t.tolist() for t in student.held_out()), strict=True)
    kept = [(u, i) for u, i in held if u < 40 and i < 50]
    trained = set(zip(*(t.tolist() for t in teacher.history.pairs()), strict=True))
    expected = sum((users[u].item(), items[i].item()) in trained for u, i in kept)
    assert leak.leaked(student, teacher.history, users, items) == expected
    assert 0 < expected < all_of_them


def test_a_repeated_interaction_of_the_students_own_split_is_no_leak() -> None:
    """Music is heard again: a test interaction may repeat one of the train split."""
    rows = [*tiny.interactions(), *tiny.interactions()[::3]]
    part = load_split(tiny.config("BPR", tiny.write("repeated", rows)))
    trained = by_token(part, part.history.pairs())
    assert len(by_token(part, map(torch.from_numpy, part.held_out())) & trained) > 50
    identity = torch.arange(part.history.n_users), torch.arange(part.history.n_items)
    assert leak.guard(part, part.history, *identity, "own.pt", allow=False) == 0
    other = load_split(tiny.config("BPR", "repeated", split_seed=1))
    secret = by_token(part, map(torch.from_numpy, part.held_out())) - trained
    expected = len(secret & by_token(other, other.history.pairs()))
    pairs = zip(*(t.tolist() for t in part.held_out()), strict=True)
    named = [(part.tokens.users[u], part.tokens.items[i]) for u, i in pairs]
    theirs = by_token(other, other.history.pairs())
    counted = leak.leaked(part, other.history, *joined(part, other))
    assert counted == sum(n in theirs and n not in trained for n in named)
    assert counted >= expected > 50


def test_two_seeds_of_ml_100k(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    student, teacher = (tiny.split("BPR", "ml-100k", seed) for seed in (2020, 42))
    expected = brute_force(student, teacher)
    total = sum(len(part) for part in student.parts[1:])
    assert expected / total == pytest.approx(0.8, abs=0.02)
    with pytest.raises(KDError) as refused:
        leak.guard(student, teacher.history, *joined(student, teacher), "x.pt", allow=False)
    message = str(refused.value)
    assert f"{expected} of the {total}" in message
    assert f"({expected / total:.1%})" in message
    assert re.search(r"x\.pt.*split_seed.*--allow_leak", message)
    assert "\n" not in message
    with caplog.at_level(logging.WARNING):
        counted = leak.guard(
            student, teacher.history, *joined(student, teacher), "x.pt", allow=True
        )
    assert counted == expected
    assert [f"{expected} of the {total}" in m and "LEAK" in m for m in caplog.messages] == [True]


# -- whole runs ----------------------------------------------------------------------------------


def test_a_checkpoint_of_another_split_is_refused_before_training(tmp_path: Path) -> None:
    teacher = tiny.save("BPR", tmp_path / "teacher.pt", seed=1)
    expected = brute_force(tiny.split("BPR"), tiny.split("BPR", "tiny", 1))
    with pytest.raises(KDError, match=rf"teacher\.pt was trained on {expected} of the 1070"):
        tiny.distil(tmp_path / "saved", teacher)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_checkpoint_of_the_same_split_is_accepted(tmp_path: Path) -> None:
    teacher = tiny.save("BPR", tmp_path / "teacher.pt")
    result = tiny.distil(tmp_path / "saved", teacher)
    assert result["test_result"]["ndcg@10"] > 0
    assert result["teacher_test_result"]["ndcg@10"] > 0


def test_allow_leak_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    teacher = tiny.save("BPR", tmp_path / "teacher.pt", seed=1)
    expected = brute_force(tiny.split("BPR"), tiny.split("BPR", "tiny", 1))
    with caplog.at_level(logging.WARNING):
        tiny.distil(tmp_path / "saved", teacher, allow_leak=True)
    (warning,) = [m for m in caplog.messages if "LEAK ALLOWED" in m]
    assert f"{expected} of the 1070" in warning


@pytest.mark.parametrize("name", ["BPR", "SASRec"])
def test_recboles_own_checkpoint(name: str, tmp_path: Path) -> None:
    """It records no split; the guard reads the one that its seed gives."""
    same = tiny.run_recbole(name, tmp_path / "same", seed=2020)
    result = tiny.distil(tmp_path / "saved", same, name)
    assert result["teacher_test_result"]["ndcg@10"] >= 0
    summary = Path(result["checkpoints"]["student"]).with_name("summary.json").read_text()
    assert ("the teacher: encodes the train history" in summary) == (name == "SASRec")
    if name == "SASRec":
        return  # its split is by time: there is no seed in it
    other = tiny.run_recbole(name, tmp_path / "other", seed=3)
    expected = brute_force(tiny.split("BPR"), tiny.split("BPR", "tiny", 3))
    with pytest.raises(KDError, match=f"was trained on {expected} of the 1070"):
        tiny.distil(tmp_path / "saved", other, name)


def test_a_sequence_teacher_reads_the_students_train_items_only() -> None:
    student, teacher = tiny.split("SASRec", "permuted"), tiny.split("SASRec")
    ids = joined(student, teacher)
    items = ids[1].clone()
    items[5] = -1
    history = translate_history(student.history, ids[0], items, teacher.history)
    lost = student.tokens.items[5]
    assert (history.n_users, history.n_items) == (teacher.history.n_users, teacher.history.n_items)
    for user in student.history.active_users().tolist():
        theirs = int(ids[0][user])
        found, wanted = (
            [part.tokens.items[i] for i in own(h, u)]
            for part, h, u in ((teacher, history, theirs), (student, student.history, user))
        )
        assert found == [token for token in wanted if token != lost]


def own(history: UserHistory, user: int) -> list[int]:
    return history.items[history.offsets[user] : history.offsets[user + 1]].tolist()
