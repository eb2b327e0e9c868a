"""The frozen teacher: constant, in the student's ids, and silent about what it does not know."""

from __future__ import annotations

import functools
import logging
from typing import Any

import pytest
import tiny
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_kd import run_recbole_kd
from recbole_kd.config import KDConfig
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.loaders import make_loaders
from recbole_kd.losses import soft_targets
from recbole_kd.options import Sources
from recbole_kd.registry import method_class
from recbole_kd.scoring import Scorer, TableScorer, scorer_for
from recbole_kd.teacher import UNKNOWN_SCORE, FrozenTeacher, Teacher, join_tokens, report_overlap
from recbole_kd.teachers import translate_history
from recbole_kd.trainer import RunTrainer

FACTORISED, DENSE = ("BPR", "LightGCN", "SASRec"), ("NeuMF", "MultiVAE")


def teacher_of(name: str, **more: Any) -> FrozenTeacher:
    """A teacher that shares the student's ids."""
    part = tiny.split_for(name)
    scorer = scorer_for(tiny.model(name), part.history)
    return FrozenTeacher(scorer, *identity(part), part.history, **more)


def identity(part: Any) -> tuple[Tensor, Tensor]:
    return torch.arange(part.history.n_users), torch.arange(part.history.n_items)


# -- frozen --------------------------------------------------------------------------------------


def distiller_with(teacher_name: str, student_name: str = "BPR") -> tuple[Any, RunTrainer, Any]:
    """A CE distiller with its trainer and train loader."""
    part = tiny.split_for(student_name)
    model = tiny.model(teacher_name).train()
    teacher = FrozenTeacher(scorer_for(model, part.history), *identity(part), part.history)
    values = {**tiny.options(student_name), "ce_K": 10}
    sources = Sources.collect("CE", tiny.dataset(), student_name, teacher_name, options=values)
    config = KDConfig(sources)
    student = tiny.model(student_name, spread=0.1).train()
    method = method_class("CE")
    scorer = scorer_for(student, part.history)
    distiller = method(config, part.train, student, scorer, teacher, part.history)
    return distiller, RunTrainer(config, distiller), make_loaders(config, part)[0]


@pytest.mark.parametrize("name", ["MultiVAE", "NeuMF", "LightGCN"])
def test_a_training_step_leaves_the_teacher_as_it_was(name: str) -> None:
    distiller, trainer, loader = distiller_with(name)
    model = distiller.teacher.model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    student = {k: v.clone() for k, v in distiller.student.state_dict().items()}
    distiller.begin_epoch(0, len(loader))
    distiller.train()
    assert distiller.training
    assert distiller.student.training
    assert not any(module.training for module in model.modules())
    users = distiller.users[:6]
    first = distiller.teacher.score_all(users)
    trainer._train_epoch(loader, 0)
    assert any(not torch.equal(v, student[k]) for k, v in distiller.student.state_dict().items())
    for name_, value in model.state_dict().items():
        assert torch.equal(value, before[name_]), name_
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert torch.equal(distiller.teacher.score_all(users), first)
    assert not any(p is q for p in distiller.parameters() for q in model.parameters())
    assert set(distiller.state_dict()) == {f"student.{k}" for k in student}


@pytest.mark.parametrize("name", ["MultiVAE", "NeuMF", "SASRec"])
def test_a_teacher_with_dropout_answers_the_same_twice(name: str) -> None:
    part = tiny.split_for(name)
    model = tiny.model(name, **({"dropout_prob": 0.5} if name != "SASRec" else {})).train()
    scorer = scorer_for(model, part.history)
    users = part.history.active_users()[:6]
    with torch.no_grad():
        free = [scorer.score_all(scorer.encode(users)) for _ in range(2)]
    assert not torch.equal(*free), "in train mode this teacher is random"
    teacher = FrozenTeacher(scorer, *identity(part), part.history)
    assert torch.equal(teacher.score_all(users), teacher.score_all(users))
    again = FrozenTeacher(scorer, *identity(part), part.history)
    assert torch.equal(teacher.score_all(users), again.score_all(users))


def test_scores_carry_no_gradient() -> None:
    for name in (*FACTORISED, *DENSE):
        teacher = teacher_of(name)
        users = tiny.users_of(tiny.split_for(name), 3)
        items = torch.ones(len(users), 2, dtype=torch.int64)
        for scores in (teacher.score(users, items), teacher.score_all(users), teacher.top_k(3)[1]):
            assert not scores.requires_grad
            assert scores.dtype == torch.float32


# -- scores and lists ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FACTORISED, *DENSE])
def test_scores_are_the_teachers_own(name: str) -> None:
    part, teacher = tiny.split_for(name), teacher_of(name)
    users = tiny.users_of(part)
    items = torch.randint(
        1, part.history.n_items, (len(users), 6), generator=torch.Generator().manual_seed(0)
    )
    scorer = scorer_for(tiny.model(name), part.history)
    with torch.no_grad():
        expected = scorer.score_all(scorer.encode(users))
    everything = teacher.score_all(users)
    near = 1e-3 * float(expected.abs().max()) if name in DENSE else 1e-5  # half precision
    torch.testing.assert_close(everything[:, 1:], expected[:, 1:], rtol=1e-4, atol=near)
    torch.testing.assert_close(
        teacher.score(users, items), everything.gather(1, items), rtol=1e-4, atol=1e-5
    )
    assert (teacher.factors() is None) == (name in DENSE)
    everything.fill_(0)
    assert teacher.score_all(users).any(), "score_all gives away a tensor of the teacher's own"


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", ["BPR", "SASRec", "MultiVAE"])
def test_top_k_by_brute_force(name: str, mask: bool) -> None:
    part, teacher = tiny.split_for(name), teacher_of(name)
    items, scores = teacher.top_k(7, mask)
    assert items.shape == scores.shape == (part.history.n_users, 7)
    assert items.dtype == torch.int32
    assert not items[0].any()
    assert not scores[0].any()
    everything = teacher.ranking_scores(torch.arange(part.history.n_users))
    train = [set(items_of(part.history, user)) for user in range(part.history.n_users)]
    hidden = 0
    for user in range(1, part.history.n_users):
        row = everything[user].tolist()
        order = sorted(range(1, len(row)), key=lambda item, row=row: -row[item])
        hidden += len(set(order[:7]) & train[user])
        best = [item for item in order if not (mask and item in train[user])][:7]
        torch.testing.assert_close(scores[user], everything[user, best], rtol=1e-5, atol=1e-5)
        assert items[user].tolist() == best
    assert hidden > 0, "the mask must matter"


def items_of(history: UserHistory, user: int) -> list[int]:
    return history.items[history.offsets[user] : history.offsets[user + 1]].tolist()


def test_top_k_does_not_depend_on_the_chunks() -> None:
    whole = teacher_of("BPR").top_k(5, True)
    narrow = teacher_of("BPR", memory_budget_gb=1e-9).top_k(5, True)
    assert torch.equal(whole[0], narrow[0])
    torch.testing.assert_close(whole[1], narrow[1])


@pytest.mark.parametrize("name", ["BPR", "LightGCN", "MultiVAE"])
def test_what_is_constant_is_computed_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = teacher_of(name)
    calls: list[str] = []
    for method in ("score", "score_all", "user_vectors", "item_vectors"):
        original = getattr(teacher.scorer, method, None)
        if original is not None:
            monkeypatch.setattr(
                teacher.scorer, method, functools.partial(noted, calls, method, original)
            )
    first = teacher.top_k(5, True)
    once = list(calls)
    assert once
    again = teacher.top_k(5, True)
    assert calls == once
    assert first[0] is again[0]
    users = tiny.users_of(tiny.split_for(name), 3)
    teacher.score(users, torch.ones(len(users), 2, dtype=torch.int64))
    assert calls == once
    teacher.score(users, torch.ones(len(users), 2, dtype=torch.int64))
    assert torch.equal(teacher.top_k(5, True)[0], first[0])
    assert calls == once
    assert set(calls) == ({"score_all"} if name == "MultiVAE" else {"item_vectors", "user_vectors"})
    assert not torch.equal(teacher.top_k(5, False)[0], first[0])


def noted(calls: list[str], name: str, original: Any, *arguments: Any) -> Any:
    calls.append(name)
    return original(*arguments)


# -- tokens --------------------------------------------------------------------------------------


def test_join_tokens() -> None:
    joined = join_tokens(["[PAD]", "a", "b", "c", "d"], ["[PAD]", "c", "x", "a"])
    assert joined.tolist() == [0, 3, -1, 1, -1]
    assert joined.dtype == torch.int64


def test_padding_is_never_joined_to_an_item() -> None:
    assert join_tokens(["[PAD]", "a"], ["a", "[PAD]"])[0] == 0
    assert join_tokens(["x", "a"], ["y", "x", "a"]).tolist() == [0, 2]


def joined_teacher(name: str) -> tuple[FrozenTeacher, FrozenTeacher, Any]:
    """One teacher twice: in its own ids, and behind ids of another data file."""
    own = tiny.split_for(name)
    other = tiny.split_for(name, "permuted")
    ids = (
        join_tokens(other.tokens.users, own.tokens.users),
        join_tokens(other.tokens.items, own.tokens.items),
    )
    assert own.tokens.items != other.tokens.items
    assert sorted(own.tokens.items) == sorted(other.tokens.items)
    assert (ids[0] > 0).sum() == own.history.n_users - 1
    theirs = translate_history(other.history, *ids, own.history)
    scorers = [scorer_for(tiny.model(name), theirs) for _ in range(2)]
    plain = FrozenTeacher(scorers[0], *identity(own), theirs)
    return plain, FrozenTeacher(scorers[1], *ids, other.history), other


@pytest.mark.parametrize("name", ["BPR", "LightGCN", "SASRec", "NeuMF"])
def test_permuted_ids_give_the_same_scores_by_token(name: str) -> None:
    plain, joined, other = joined_teacher(name)
    own = tiny.split_for(name)
    users = tiny.users_of(other)
    everything = joined.score_all(users)
    items = torch.randint(
        1, other.history.n_items, (len(users), 5), generator=torch.Generator().manual_seed(0)
    )
    some = joined.score(users, items)
    lists, best = joined.top_k(4, mask_train=True)
    wanted = plain.score_all(torch.arange(own.history.n_users))
    theirs = {token: i for i, token in enumerate(own.tokens.items)}
    for row, user in enumerate(users.tolist()):
        token = other.tokens.users[user]
        reference = wanted[own.tokens.users.index(token)]
        columns = [theirs[t] for t in other.tokens.items[1:]]
        torch.testing.assert_close(everything[row, 1:], reference[columns], rtol=1e-4, atol=1e-5)
        picked = [theirs[other.tokens.items[i]] for i in items[row].tolist()]
        torch.testing.assert_close(some[row], reference[picked], rtol=1e-4, atol=1e-5)
        listed = lists[user].tolist()
        names = [theirs[other.tokens.items[i]] for i in listed]
        torch.testing.assert_close(best[user], reference[names], rtol=1e-4, atol=1e-5)
        assert not set(listed) & set(items_of(other.history, user))
    assert not torch.allclose(everything, wanted[users], atol=1e-3), "ids do not agree by chance"


class Partial:
    """A teacher that misses the student's last users and items, and knows others besides."""

    def __init__(self, name: str, users: int = 20, items: int = 30):
        self.part = part = tiny.split_for(name)
        self.user_ids, self.item_ids = identity(part)
        generator = torch.Generator().manual_seed(9)
        for ids, missing in ((self.user_ids, users), (self.item_ids, items)):
            shuffled = torch.randperm(len(ids) - 1, generator=generator) + 1
            ids[1:] = shuffled
            ids[-missing:] = -1
        self.unknown = self.item_ids == -1
        scorer = scorer_for(tiny.model(name), part.history)
        self.teacher = FrozenTeacher(scorer, self.user_ids, self.item_ids, part.history)


@pytest.mark.parametrize("name", ["BPR", "MultiVAE", "NeuMF"])
def test_unknown_items_get_no_probability_and_never_nan(name: str) -> None:
    partial = Partial(name)
    users = partial.teacher.knows_user.nonzero().squeeze(1)
    scores = partial.teacher.score_all(users)
    assert (scores[:, partial.unknown] == UNKNOWN_SCORE).all()
    known = ~partial.unknown
    known[0] = False
    assert (scores[:, known].abs() < 1e4).all()
    items = torch.arange(scores.shape[1]).expand(len(users), -1)[:, 1:]
    torch.testing.assert_close(
        partial.teacher.score(users, items), scores[:, 1:], rtol=1e-4, atol=1e-5
    )
    for tau in (0.1, 1.0, 10.0):
        targets = soft_targets(scores[:, 1:], tau)
        assert torch.isfinite(targets).all()
        assert not targets[:, partial.unknown[1:]].any()
        torch.testing.assert_close(targets.sum(1), torch.ones(len(users)))
    only_unknown = partial.unknown.nonzero().squeeze(1).expand(len(users), -1)
    assert torch.isfinite(soft_targets(partial.teacher.score(users, only_unknown), 1.0)).all()
    lists, best = partial.teacher.top_k(10)
    assert not partial.unknown[lists[users].long()].any()
    assert torch.isfinite(best).all()


def test_unknown_users_are_not_distilled() -> None:
    partial = Partial("BPR")
    part = partial.part
    unknown = (partial.user_ids == -1).nonzero().squeeze(1)
    assert not partial.teacher.knows_user[0]
    assert not partial.teacher.knows_user[unknown].any()
    assert int(partial.teacher.knows_user.sum()) == part.history.n_users - 1 - len(unknown)
    lists, scores = partial.teacher.top_k(3)
    assert not lists[unknown].any()
    assert not scores[unknown].any()
    values = {**tiny.options("BPR"), "ce_K": 5, "kd_rows": "interaction"}
    config = KDConfig(Sources.collect("CE", tiny.dataset(), "BPR", "BPR", options=values))
    student = tiny.model("BPR")
    scorer = scorer_for(student, part.history)
    distiller = method_class("CE")(  # type: ignore[misc]
        config, part.train, student, scorer, partial.teacher, part.history
    )
    assert not set(distiller.users.tolist()) & set(unknown.tolist())
    distiller.begin_epoch(0, 1)
    rows = distiller.rows.next(part.history.active_users())
    assert set(rows.users.tolist()) == set(distiller.users.tolist())
    assert torch.isfinite(distiller.kd_loss(rows))
    generator = torch.Generator().manual_seed(0)
    batch = Interaction(
        {
            "user_id": unknown,
            "item_id": torch.randint(1, 100, (len(unknown),), generator=generator),
            "neg_item_id": torch.randint(1, 100, (len(unknown),), generator=generator),
        }
    )
    base, kd = distiller.calculate_loss(batch)
    assert base > 0
    assert kd == 0


def test_a_teacher_of_other_data_is_refused() -> None:
    part = tiny.split_for("BPR")
    nobody = torch.full((part.history.n_users,), -1)
    scorer: Scorer = scorer_for(tiny.model("BPR"), part.history)
    with pytest.raises(KDError, match="no user or no item token"):
        FrozenTeacher(scorer, nobody, identity(part)[1], part.history)
    nothing = torch.full((part.history.n_items,), -1)
    nothing[0] = 0  # padding is no item
    with pytest.raises(KDError, match="no user or no item token"):
        FrozenTeacher(scorer, identity(part)[0], nothing, part.history)


def test_report_overlap(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    full = torch.arange(11)
    half = torch.tensor([0, 1, 2, 3, 4, 5, -1, -1, -1, -1, -1])
    assert report_overlap(full, full, 0.5, "there.pt") == (1.0, 1.0)
    assert caplog.messages == []
    assert report_overlap(full, half, 0.5, "there.pt") == (1.0, 0.5)
    (message,) = caplog.messages
    assert "there.pt" in message
    assert "100.0% of the student's users, 50.0% of its items" in message
    for users, items in ((full, half), (half, full)):
        with pytest.raises(KDError, match=r"there\.pt.*50\.0%.*min_token_overlap=0\.6") as error:
            report_overlap(users, items, 0.6, "there.pt")
        assert "\n" not in str(error.value)


def test_a_list_longer_than_what_the_teacher_knows_is_refused():
    class Known(nn.Module):
        n_items = 6

        def __init__(self):
            super().__init__()
            self.user_embedding, self.item_embedding = nn.Embedding(3, 2), nn.Embedding(6, 2)

    history = UserHistory.from_pairs(torch.tensor([1, 2]), torch.tensor([1, 2]), 3, 6)
    items = torch.tensor([0, 1, 2, 3, -1, -1])
    teacher = FrozenTeacher(TableScorer(Known(), history), torch.arange(3), items, history)
    assert teacher.top_k(3)[0].shape == (3, 3)
    with pytest.raises(KDError, match="knows 3"):
        teacher.top_k(4)


def test_a_teacher_that_needs_more_than_a_history_is_refused_before_it_is_trained(tmp_path):
    """DIEN learns from labels and from sequences of negatives."""
    name = tiny.dataset()
    lists = {"rcekd_K": 5, "rcekd_L": 5, "rcekd_M": 20}
    settings = tiny.options("DIEN", checkpoint_dir=str(tmp_path), scratch=False, **lists)
    with pytest.raises(KDError, match="DIEN cannot be asked about a user"):
        run_recbole_kd("RCEKD", name, student="SASRec", teacher="DIEN", config_dict=settings)
    assert not list(tmp_path.rglob("best.pt"))


def test_repeated_interactions_hide_an_item_once_from_a_list() -> None:
    users, items = torch.tensor([1] * 6), torch.tensor([1, 1, 1, 1, 1, 2])
    history = UserHistory.from_pairs(users, items, 2, 13)
    known = torch.ones(13, dtype=torch.bool)
    known[[0, 11, 12]] = False

    class Scores(Teacher):
        def score(self, users: Tensor, items: Tensor) -> Tensor:
            return items.float()

        def score_all(self, users: Tensor) -> Tensor:
            return torch.arange(13.0).masked_fill(~known, UNKNOWN_SCORE).repeat(len(users), 1)

    teacher = Scores(torch.tensor([False, True]), known, history)
    assert teacher.top_k(8, mask_train=True)[0][1].tolist() == [10, 9, 8, 7, 6, 5, 4, 3]
    with pytest.raises(KDError, match="up to 2 in the train split; allowed are lists up to 8"):
        teacher.top_k(9, mask_train=True)
