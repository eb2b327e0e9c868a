"""Scores of a teacher without vectors: kept in a mapped file, or computed by chunks."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from recbole_kd import checkpoint
from recbole_kd.errors import KDError
from recbole_kd.losses import soft_targets
from recbole_kd.score_table import ScoreTable, table_bytes
from recbole_kd.scoring import scorer_for
from recbole_kd.teacher import UNKNOWN_SCORE, FrozenTeacher

USERS, ITEMS = 7, 40


def table_of(scores: Tensor, **more: Any) -> ScoreTable:
    table = ScoreTable(*scores.shape, "cpu", **more)
    for users in torch.arange(1, len(scores)).split(2):
        table.keep(users, scores[users].clone())
    return table


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0, 1e4])
def test_what_carries_a_softmax_is_exact(scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = (torch.rand(USERS, ITEMS, generator=generator) * 2 - 1) * scale
    table, users = table_of(scores), torch.tensor([5, 1, 2])
    found, wanted = table.score_all(users), scores[users]
    assert found.dtype == torch.float32
    gap = wanted[:, 1:].amax(1, keepdim=True) - wanted
    wrong = (found - wanted).abs() > gap.abs() * 2**-10 + 1e-6 * scale
    assert not bool(wrong[:, 1:].any())
    targets = soft_targets(found[:, 1:], 1.0), soft_targets(wanted[:, 1:], 1.0)
    torch.testing.assert_close(*targets, rtol=0, atol=2e-3)
    items = torch.randint(1, ITEMS, (3, 9), generator=generator)
    assert torch.equal(table.score(users, items), found.gather(1, items))
    found.fill_(7)
    assert not torch.equal(table.score_all(users), found), "a tensor of the table's own"


def test_far_below_is_finite_and_last() -> None:
    scores = torch.zeros(3, 6)
    scores[1, 2], scores[1, 3], scores[1, 4] = 5.0, -1e9, -torch.inf
    found = table_of(scores).score_all(torch.tensor([1]))[0]
    assert found[2] == 5
    assert bool(torch.isfinite(found).all())
    assert set(found[1:].topk(2, largest=False).indices.tolist()) == {2, 3}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    scores = torch.zeros(3, 6)
    scores[2, 4] = bad
    with pytest.raises(KDError, match="no finite number"):
        table_of(scores)


def test_the_file_is_half_precision_and_leaves_nothing(tmp_path: Path) -> None:
    table = table_of(torch.rand(USERS, ITEMS), folder=tmp_path)
    assert table._table.dtype == torch.float16
    assert isinstance(table._file.fileno(), int)
    assert table._file.seek(0, 2) == table_bytes(USERS, ITEMS) == 2 * USERS * ITEMS
    del table
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(KDError, match="has 0 MiB free"):
        table_of(torch.rand(USERS, ITEMS), folder=tmp_path)


# -- in a teacher ------------------------------------------------------------------------------


def teacher_of(name: str, budget: float, item_ids: Tensor | None = None) -> FrozenTeacher:
    history = tiny.split_for(name).history
    scorer = scorer_for(tiny.model(name), history)
    items = torch.arange(history.n_items) if item_ids is None else item_ids
    return FrozenTeacher(scorer, torch.arange(history.n_users), items, history, budget)


def counted(teacher: FrozenTeacher, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Users whose scores the model is asked for."""
    asked: list[int] = []

    def noted(original: Any, state: Tensor, *rest: Tensor) -> Tensor:
        asked.extend(state.tolist())
        return original(state, *rest)

    for name in ("score", "score_all"):
        if name == "score" or teacher.scorer._full_sort:
            original = getattr(teacher.scorer, name)
            monkeypatch.setattr(teacher.scorer, name, functools.partial(noted, original))
    return asked


@pytest.mark.parametrize("name", ["MultiVAE", "NeuMF", "EASE"])
def test_every_user_is_asked_about_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = teacher_of(name, 0.1)
    asked = counted(teacher, monkeypatch)
    known = teacher.knows_user.nonzero().squeeze(1)
    for _ in range(2):
        teacher.score(known, torch.ones(len(known), 3, dtype=torch.int64))
        teacher.score_all(known)
    assert sorted(asked) == known.tolist()
    for _ in range(2):
        teacher.top_k(4, mask_train=True)
    assert sorted(asked[len(known) :]) == known.tolist(), "lists are made of exact scores, once"


@pytest.mark.parametrize("name", ["MultiVAE", "NeuMF", "EASE"])
def test_what_a_ranking_asked_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = teacher_of(name, 0.1)
    asked = counted(teacher, monkeypatch)
    known = teacher.knows_user.nonzero().squeeze(1)
    teacher.top_k(4, mask_train=True)
    scores = teacher.score_all(known)
    teacher.score(known, torch.ones(len(known), 3, dtype=torch.int64))
    assert sorted(asked) == known.tolist()
    torch.testing.assert_close(scores, teacher_of(name, 0.1).score_all(known), rtol=0, atol=0)


def test_a_table_above_the_budget_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "memmap", lambda *a, **k: pytest.fail("a table is made"))
    teacher_of("MultiVAE", 1e-9).top_k(4)


def test_users_it_does_not_know_need_no_scores() -> None:
    history = tiny.split_for("MultiVAE").history
    users, items = torch.arange(history.n_users), torch.arange(history.n_items)
    users[3] = -1
    scorer = scorer_for(tiny.model("MultiVAE"), history)
    scores = torch.rand(history.n_users, history.n_items)
    scores[0] = torch.nan
    scorer.score_all = lambda state: scores[state].clone()  # type: ignore[method-assign]
    teacher = FrozenTeacher(scorer, users, items, history)
    found = teacher.score_all(torch.tensor([2, 3, 4]))
    torch.testing.assert_close(found[[0, 2], 1:], scores[[2, 4], 1:], rtol=0, atol=1e-3)
    assert not found[1].any()


def test_users_are_asked_about_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = teacher_of("MultiVAE", 0.1)
    asked = counted(teacher, monkeypatch)
    for users in ([3, 4], [4, 5, 5], [3, 5]):
        teacher.score(torch.tensor(users), torch.ones(len(users), 2, dtype=torch.int64))
    assert asked == [3, 4, 5]


def test_a_small_budget_computes_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    history = tiny.split_for("MultiVAE").history
    fits = table_bytes(history.n_users, history.n_items) / 2**30
    for budget, times in ((fits, 1), (fits * 0.99, 2)):
        teacher = teacher_of("MultiVAE", budget)
        asked = counted(teacher, monkeypatch)
        users = teacher.knows_user.nonzero().squeeze(1)
        first, second = teacher.score_all(users), teacher.score_all(users)
        assert torch.equal(first, second)
        assert len(asked) == times * len(users)


def test_the_two_ways_agree() -> None:
    kept, anew = teacher_of("NeuMF", 0.1), teacher_of("NeuMF", 1e-9)
    users = kept.history.active_users()
    scores = kept.score_all(users)[:, 1:], anew.score_all(users)[:, 1:]
    torch.testing.assert_close(*scores, rtol=0, atol=2e-3)
    assert not torch.equal(*scores)
    for mine, other in zip(kept.top_k(30), anew.top_k(30), strict=True):
        assert torch.equal(mine, other)


def test_what_the_teacher_does_not_know_stays_unknown() -> None:
    items = torch.arange(tiny.split_for("MultiVAE").history.n_items)
    items[3] = -1
    teacher = teacher_of("MultiVAE", 0.1, items)
    users = teacher.history.active_users()
    assert bool((teacher.score_all(users)[:, 3] == UNKNOWN_SCORE).all())
    assert bool((teacher.score(users, torch.full((len(users), 1), 3)) == UNKNOWN_SCORE).all())


def test_a_teacher_with_vectors_makes_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "memmap", lambda *a, **k: pytest.fail("a table is made"))
    teacher = teacher_of("BPR", 0.1)
    teacher.score_all(teacher.history.active_users())
    with pytest.raises(pytest.fail.Exception):
        teacher_of("NeuMF", 0.1).score_all(teacher.history.active_users())


def test_unknown_items_and_padding_do_not_coarsen_the_rest() -> None:
    """The best score is that of an item the teacher knows, whatever padding has."""
    history = tiny.split_for("MultiVAE").history
    users, items = torch.arange(history.n_users), torch.arange(history.n_items)
    items[3] = -1
    scorer = scorer_for(tiny.model("MultiVAE"), history)
    scores = torch.linspace(-300, -298, history.n_items).repeat(history.n_users, 1)
    scores[:, 0] = torch.nan
    scorer.score_all = lambda state: scores[state].clone()  # type: ignore[method-assign]
    found = FrozenTeacher(scorer, users, items, history).score_all(users[1:4])[:, 4:]
    torch.testing.assert_close(found, scores[1:4, 4:], rtol=0, atol=2e-3)


def test_lists_are_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that half precision cannot tell apart are still in their order."""
    history = tiny.split_for("MultiVAE").history
    scorer = scorer_for(tiny.model("MultiVAE"), history)
    order = torch.randperm(history.n_items, generator=torch.Generator().manual_seed(1))
    scores = (order.float() * 1e-4 - 50).repeat(history.n_users, 1)
    scores[:, 1] = 50.0
    scorer.score_all = lambda state: scores[state].clone()  # type: ignore[method-assign]
    ids = torch.arange(history.n_users), torch.arange(history.n_items)
    for budget in (0.1, 1e-9):
        teacher = FrozenTeacher(scorer, *ids, history, budget)
        assert teacher.in_half_precision == (budget == 0.1)
        user = teacher.history.active_users()[:1]
        wanted = scores[user, 1:].argsort(descending=True)[:, :20] + 1
        assert torch.equal(teacher.top_k(20)[0][user].long(), wanted)
    kept = FrozenTeacher(scorer, *ids, history, 0.1).score_all(user)[0]
    assert len(kept[2:].unique()) < history.n_items / 2, "the scores can be told apart"


def test_a_batch_of_all_users_is_scored_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = teacher_of("MultiVAE", 1e-5)
    sizes: list[int] = []
    original = teacher.scorer.score_all
    monkeypatch.setattr(
        teacher.scorer, "score_all", lambda state: sizes.append(len(state)) or original(state)
    )
    users = teacher.history.active_users()
    found = teacher.score(users, torch.ones(len(users), 3, dtype=torch.int64))
    assert found.shape == (len(users), 3)
    assert len(sizes) > 1
    assert max(sizes) < len(users) / 2
