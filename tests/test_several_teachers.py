"""Several teachers: how a list is said, their mean distribution, and the method once a teacher."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from kd_helpers import TinyGraph, World, make_world, small_options
from torch import Tensor

from recbole_kd import checkpoint, load_model, run_recbole_kd, training
from recbole_kd.errors import KDError
from recbole_kd.keys import SEVERAL_KEYS, check_keys
from recbole_kd.losses import soft_targets
from recbole_kd.methods.base import NEEDS, Distiller
from recbole_kd.mixture import MixedTeacher, log_mixture, shared_log_weights
from recbole_kd.options import Sources, parse_arguments
from recbole_kd.registry import SCRATCH, method_class, method_names, methods_without
from recbole_kd.scoring import SequenceScorer, scorer_for
from recbole_kd.several import Combination, SeveralDistillers, taught_by
from recbole_kd.teacher import UNKNOWN_SCORE, FrozenTeacher
from recbole_kd.trainer import random_state, restore_random_state

CLASSES = {name: method_class(name) for name in method_names() if name != SCRATCH}
ON_SCORES = [name for name, cls in CLASSES.items() if not cls.needs]
WITH_NEEDS = [name for name, cls in CLASSES.items() if cls.needs]

# -- how a list is said ------------------------------------------------------------------------


def said(*words: str, **options: Any) -> Sources:
    line = parse_arguments(["--student=BPR", "--dataset=toy", "--model=CE", *words])
    return Sources.collect(options=options, command_line=line)


@pytest.mark.parametrize(
    ("word", "files"),
    [
        ("--teacher=[a.pth, b.pth]", ["a.pth", "b.pth"]),
        ("--teacher=[a.pth,some/folder]", ["a.pth", "some/folder"]),
        ("--teacher.checkpoint=[2024, 1e5, on]", ["2024", "1e5", "on"]),
        ("--teacher=['a b.pt', c.npz]", ["a b.pt", "c.npz"]),
        ("--teacher.checkpoint=a.pth", ["a.pth"]),
        ("--teacher=a.pth", ["a.pth"]),
        ("--teacher=[a.pth]", ["a.pth"]),
        ("--teacher.checkpoint=[2024]", ["2024"]),
        ("--teacher=[a.pth", ["[a.pth"]),
        ("--teacher=BPR", []),
        ("--teacher=[BPR]", []),
        ("--teacher=saved/run", ["saved/run"]),
        ("--teacher=[saved/run]", ["saved/run"]),
    ],
)
def test_lists_on_the_command_line(word: str, files: list[str]) -> None:
    found = said(word)
    assert found.teacher_files == files
    assert found.teacher == (None if files else "BPR")


@pytest.mark.parametrize(
    "options",
    [
        {"teacher": ["a.pt", "b.pt"]},
        {"teacher": ("a.pt", Path("b.pt"))},
        {"teacher": "[a.pt, b.pt]"},
        {"teacher": {"checkpoint": ["a.pt", "b.pt"]}},
        {"teacher": {"checkpoint": "[a.pt, b.pt]"}},
        {"teacher.checkpoint": ["a.pt", "b.pt"]},
    ],
)
def test_lists_in_a_dictionary(options: dict[str, Any]) -> None:
    found = said(**options)
    assert found.teacher_files == ["a.pt", "b.pt"]
    assert found.teacher is None
    check_keys(found)


@pytest.mark.parametrize(
    "text",
    ["teacher: [a.pt, b.pt]", "teacher:\n- a.pt\n- b.pt", "teacher: {checkpoint: [a.pt, b.pt]}"],
)
def test_lists_in_a_file_and_over_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text + "\n")
    call = {"files": [tmp_path / "run.yaml"], "dataset": "toy", "student": "BPR"}
    assert Sources.collect(**call).teacher_files == ["a.pt", "b.pt"]
    assert Sources.collect(**call, teacher=["c.pt", "d.pt"]).teacher_files == ["c.pt", "d.pt"]
    assert Sources.collect(**call, teacher="c.pt").teacher_files == ["c.pt"]


@pytest.mark.parametrize("key", sorted(SEVERAL_KEYS))
def test_options_of_several_teachers_need_several(key: str) -> None:
    check_keys(said("--teacher=[a.pt, b.pt]", f"--{key}=1"))
    for teacher in ("BPR", "a.pt", "[a.pt]"):
        with pytest.raises(KDError, match=rf"'{key}' is read by no part .* several teachers"):
            check_keys(said(f"--teacher={teacher}", f"--{key}=1"))


# -- what is refused before any training -------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints of untrained models; ``copy`` is BPR's in another place."""
    folder = tmp_path_factory.mktemp("teachers")
    found = {name: tiny.save(name, folder / f"{name}.pt") for name in ("BPR", "LightGCN", "NeuMF")}
    found["leaky"] = tiny.save("BPR", folder / "leaky.pt", seed=1)
    found["copy"] = Path(shutil.copyfile(found["BPR"], folder / "copy.pt"))
    run = folder / "run"
    run.mkdir()
    shutil.copyfile(found["LightGCN"], run / "best.pt")
    return {**{name: str(file) for name, file in found.items()}, "run": str(run)}


def distil(method: str, folder: Path, *teachers: str, **more: Any) -> dict[str, Any]:
    """An epoch of a small BPR student."""
    options = {**tiny.options("BPR"), **small_options(CLASSES[method]), "scratch": False, **more}
    return run_recbole_kd(
        method,
        tiny.dataset(),
        config_dict={**options, "checkpoint_dir": str(folder)},
        student="BPR",
        teacher=list(teachers),
    )


@pytest.fixture
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a model is trained before the refusal")

    monkeypatch.setattr(training, "train", train)


def refusal(method: str, folder: Path, *teachers: str, **more: Any) -> str:
    with pytest.raises(KDError) as refused:
        distil(method, folder, *teachers, **more)
    message = str(refused.value)
    assert "\n" not in message
    assert list(folder.rglob("*.pt")) == []
    return message


def test_models_in_a_list_are_refused(
    files: dict[str, str], tmp_path: Path, nothing_is_trained: None
) -> None:
    for teachers in (("BPR", "LightGCN"), (files["BPR"], "LightGCN")):
        message = refusal("CE", tmp_path, *teachers)
        assert message.startswith(f"--teacher=[{', '.join(teachers)}]: ")
        assert "never trained: allowed are checkpoints and run folders" in message


@pytest.mark.parametrize("twice", [("BPR", "BPR"), ("run", "BPR", "run/best.pt")])
def test_a_file_twice_is_refused(
    twice: tuple[str, ...], files: dict[str, str], tmp_path: Path, nothing_is_trained: None
) -> None:
    folder = str(Path(files["run"]).parent)
    paths = [files.get(name) or f"{folder}/{name}" for name in twice]
    assert f"{paths[-1]} is in it twice" in refusal("CE", tmp_path, *paths)


@pytest.mark.parametrize(
    ("more", "allowed"),
    [
        *(
            ({"teacher_weights": wrong}, "allowed are 2 numbers above 0, one a teacher")
            for wrong in (1, [1], [1, 2, 3], [1, 0], [1, -1], [1, "a"], [1, True], [1, math.inf])
        ),
        ({"teacher_combine": "scores"}, "allowed are distributions, losses"),
        ({"teacher_tau": 0}, "allowed are numbers above 0"),
        ({"teacher_tau": "warm"}, "allowed are numbers above 0"),
    ],
)
def test_options_out_of_range_are_refused(
    more: dict[str, Any],
    allowed: str,
    files: dict[str, str],
    tmp_path: Path,
    nothing_is_trained: None,
) -> None:
    (option,) = more.items()
    message = refusal("CE", tmp_path, files["BPR"], files["NeuMF"], **more)
    assert message == f"--{option[0]}={option[1]}: {allowed}"


@pytest.mark.parametrize("method", WITH_NEEDS)
def test_a_mixture_has_neither_vectors_nor_earlier_epochs(
    method: str, tmp_path: Path, nothing_is_trained: None
) -> None:
    """Said before the files are opened, which are not there."""
    (need,) = CLASSES[method].needs
    message = refusal(method, tmp_path, "a.pt", "b.pt")
    assert message.startswith(f"--teacher=[a.pt, b.pt]: --model={method} needs {NEEDS[need]}; ")
    assert "allowed is --teacher_combine=losses" in message
    assert message.endswith(", ".join(methods_without(*NEEDS)))


def test_each_teacher_must_have_what_the_method_needs(
    files: dict[str, str], tmp_path: Path, nothing_is_trained: None
) -> None:
    losses = {"teacher_combine": "losses"}
    message = refusal("DE", tmp_path, files["BPR"], files["NeuMF"], **losses)
    assert message.startswith(f"--teacher=NeuMF: --model=DE needs {NEEDS['vectors']}")
    message = refusal("HetComp", tmp_path, files["BPR"], files["LightGCN"], **losses)
    assert message.startswith(f"{files['BPR']}: --model=HetComp needs {NEEDS['trajectory']}")


@pytest.mark.parametrize("combine", ["distributions", "losses"])
def test_each_teacher_is_checked_for_leaks(
    combine: str, files: dict[str, str], tmp_path: Path, nothing_is_trained: None
) -> None:
    more = {"teacher_combine": combine}
    message = refusal("CE", tmp_path, files["NeuMF"], files["leaky"], **more)
    assert "leaky.pt was trained on" in message


def test_a_sequence_teacher_beside_another_names_its_split(
    files: dict[str, str], tmp_path: Path
) -> None:
    """What the message says is enough: with it the run goes on."""
    first = run_recbole_kd(
        "Scratch",
        tiny.dataset(),
        config_dict={**tiny.options("SASRec"), "checkpoint_dir": str(tmp_path)},
        student="SASRec",
    )
    sequential = str(Path(first["checkpoints"]["student"]).parent)
    with pytest.raises(
        KDError, match="its split is another one; give this run the split"
    ) as refused:
        distil("CE", tmp_path, sequential, files["BPR"])
    remedy = re.search(r'--eval_args="(.*?)"', str(refused.value))
    assert remedy is not None
    more = {"eval_args": yaml.safe_load(remedy[1])}
    with pytest.raises(KDError, match=r"BPR\.pt was trained on"):  # the other one's split, now
        distil("CE", tmp_path, sequential, files["BPR"], **more)
    own = run_recbole_kd(
        "Scratch",
        tiny.dataset(),
        config_dict={**tiny.options("BPR"), **more, "checkpoint_dir": str(tmp_path)},
        student="BPR",
    )
    result = distil("CE", tmp_path, sequential, own["checkpoints"]["student"], **more)
    assert 0 <= result["teacher_test_result"]["ndcg@10"] < 1


# -- the mean of distributions -----------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_log_of_a_mean_by_brute_force(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (2 * torch.rand(3, 6, 9, generator=generator) - 1) * scale
    weights = torch.tensor([0.2, 0.5, 0.3])
    wanted = (weights.double().view(3, 1, 1) * scores.double().softmax(2)).sum(0).log()
    found = log_mixture(scores.log_softmax(2), weights.log().unsqueeze(1).expand(3, 6))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_what_has_no_weight_takes_no_part() -> None:
    certain = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    nothing = torch.full((1, 3), torch.nan)
    found = log_mixture([certain, nothing], torch.tensor([[0.0], [-torch.inf]]))
    assert torch.equal(found, certain)


def test_weights_are_shared_by_those_who_know_a_user() -> None:
    knows = torch.tensor([[True, True, False, False], [True, False, True, False]])
    found = shared_log_weights(torch.tensor([0.25, 0.75]), knows)
    wanted = torch.tensor([[0.25, 1, 0, 0], [0.75, 0, 1, 0]])
    torch.testing.assert_close(found.exp(), wanted)


def other_teacher(world: World, seed: int, **changes: Any) -> FrozenTeacher:
    """Another teacher of the same student."""
    model = make_world(seed=seed).teacher
    return dataclasses.replace(world, teacher=model, **changes).frozen_teacher()


def partial(world: World, users: tuple[int, ...], items: tuple[int, ...], seed: int) -> Any:
    """A teacher that does not know some users and items, its vectors of which are nonsense."""
    ids = []
    for count, unknown in ((world.student.n_users, users), (world.student.n_items, items)):
        ids.append(torch.arange(count).index_fill(0, torch.tensor(unknown), -1))
    teacher = other_teacher(world, seed, user_ids=ids[0], item_ids=ids[1])
    with torch.no_grad():
        teacher.model.user_embedding.weight[list(users)] = math.nan
        teacher.model.user_embedding.weight[0] = math.nan
        teacher.model.item_embedding.weight[[0, *items]] = math.nan
    return teacher


def mixed(
    world: World, *teachers: Any, weights: Any = None, tau: float = 1.0, budget: float = 0.5
) -> MixedTeacher:
    shares = weights or [1 / len(teachers)] * len(teachers)
    return MixedTeacher(teachers, shares, tau, world.history, budget)


@pytest.fixture
def strangers() -> tuple[World, list[Any]]:
    """A world whose two teachers know different users and items."""
    world = make_world()
    return world, [partial(world, (2, 7), (11, 30), 1), partial(world, (7, 9), (30, 41, 59), 2)]


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
def test_a_mixture_by_brute_force(strangers: tuple[World, list[Any]], tau: float) -> None:
    world, teachers = strangers
    weights = [0.2, 0.8]
    mixture = mixed(world, *teachers, weights=weights, tau=tau)
    users = torch.arange(1, world.student.n_users)
    scores = mixture.score_all(users)
    items = torch.randint(1, 60, (len(users), 8), generator=torch.Generator().manual_seed(1))
    some = mixture.score(users, items)
    assert (scores[:, [0, 30]] == UNKNOWN_SCORE).all()
    torch.testing.assert_close(some, scores.gather(1, items), rtol=1e-5, atol=1e-4)
    for row, user in enumerate(users.tolist()):
        mean, shares = torch.zeros(60, dtype=torch.float64), 0.0
        for teacher, weight in zip(teachers, weights, strict=True):
            if teacher.knows_user[user]:
                own = teacher.score_all(users[row : row + 1])[0].double() / tau
                mean += weight * own.masked_fill(~teacher.knows_item, -torch.inf).softmax(0)
                shares += weight
        if not shares:
            assert user == 7
            assert (scores[row] == UNKNOWN_SCORE).all()
            continue
        mean /= shares
        found = soft_targets(scores[row : row + 1].double(), tau)[0]
        torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-8)
        picked = mean[items[row]]
        on_the_set = soft_targets(some[row : row + 1].double(), tau)[0]
        torch.testing.assert_close(on_the_set, picked / picked.sum(), rtol=1e-4, atol=1e-8)
        assert not found[30]
        assert not found[0]
        assert bool(found[41]) == (user != 2)


def test_the_mixture_knows_what_any_of_them_knows(strangers: tuple[World, list[Any]]) -> None:
    world, teachers = strangers
    mixture = mixed(world, *teachers)
    assert mixture.knows_user.logical_not().nonzero().squeeze(1).tolist() == [0, 7]
    assert mixture.knows_item.logical_not().nonzero().squeeze(1).tolist() == [0, 30]
    assert mixture.factors() is None
    assert list(mixture.trajectory) == []
    # User 9 is known to the first teacher alone, user 2 to the second, which knows 56 items.
    assert mixture.n_known_items == 56
    with pytest.raises(KDError, match="knows 56 of the student's items"):
        mixture.top_k(57)
    lists, scores = mixture.top_k(56)
    assert not lists[7].any()
    for user in mixture.knows_user.nonzero().squeeze(1).tolist():
        known = torch.zeros(60, dtype=torch.bool)
        for teacher in teachers:
            known |= teacher.knows_item & teacher.knows_user[user]
        assert known[lists[user].long()].all()
    assert torch.isfinite(scores).all()
    assert (scores > UNKNOWN_SCORE).all()


@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_equal_teachers_give_their_own_scores(tau: float) -> None:
    world = make_world()
    teacher = world.frozen_teacher()
    mixture = mixed(world, teacher, world.frozen_teacher(), weights=[0.3, 0.7], tau=tau)
    users = teacher.knows_user.nonzero().squeeze(1)
    found, wanted = mixture.score_all(users), teacher.score_all(users)
    assert (found[:, 0] == UNKNOWN_SCORE).all()
    torch.testing.assert_close(found[:, 1:], wanted[:, 1:], rtol=1e-5, atol=1e-4)
    assert torch.equal(mixture.top_k(9, True)[0], teacher.top_k(9, True)[0])


def test_weights_matter_and_an_even_mean_does_not_depend_on_the_order() -> None:
    world = make_world()
    one, two = world.frozen_teacher(), other_teacher(world, 5)
    users = torch.arange(1, 14)

    def shares(*teachers: Any, weights: Any = None) -> Tensor:
        return mixed(world, *teachers, weights=weights).score_all(users)[:, 1:].softmax(1)

    first, second = (t.score_all(users)[:, 1:].softmax(1) for t in (one, two))
    torch.testing.assert_close(shares(one, two), (first + second) / 2)
    torch.testing.assert_close(shares(two, one), (first + second) / 2)
    wanted = 0.9 * first + 0.1 * second
    torch.testing.assert_close(shares(one, two, weights=[0.9, 0.1]), wanted)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_large_scores_stay_exact(scale: float) -> None:
    world = make_world()
    teachers = [world.frozen_teacher(), other_teacher(world, 5)]
    with torch.no_grad():
        for teacher in teachers:
            users, items = (e.weight for e in teacher.model.children())
            users *= scale / (users[1:] @ items[1:].t()).abs().max()
    users = torch.arange(1, 14)
    single = torch.stack([t.score_all(users)[:, 1:].double() for t in teachers])
    assert single.abs().max() > 0.8 * scale
    wanted = single.softmax(2).mean(0).log()
    found = mixed(world, *teachers).score_all(users)[:, 1:].double().log_softmax(1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-4)


def test_sums_are_made_once_at_first_use_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world()
    found, asked = [], []
    real = FrozenTeacher.score_all

    def noted(self: FrozenTeacher, users: Tensor) -> Tensor:
        asked.append(len(users))
        return real(self, users)

    monkeypatch.setattr(FrozenTeacher, "score_all", noted)
    for budget, chunks in ((0.5, 1), (1e-9, 13)):
        asked.clear()
        mixture = mixed(world, world.frozen_teacher(), other_teacher(world, 5), budget=budget)
        assert asked == []
        users = torch.arange(1, 14)
        found.append(mixture.score(users, torch.ones(13, 2, dtype=torch.int64)))
        assert asked == [13 // chunks] * 2 * chunks
        assert mixture.log_sums.shape == (2, 14)
        assert mixture.log_sums.dtype == torch.float32
        mixture.score(users, torch.ones(13, 2, dtype=torch.int64))
        assert len(asked) == 2 * chunks
    torch.testing.assert_close(*found)


def probe(budget: float) -> int:
    """Rows of the largest chunk in which a mixture ranks all items."""
    world = make_world()
    teachers = [world.frozen_teacher(), other_teacher(world, 5)]
    mixture = mixed(world, *teachers, budget=budget)
    rows: list[int] = []
    real = mixture.ranking_scores
    mixture.ranking_scores = lambda users: rows.append(len(users)) or real(users)
    mixture.top_k(5)
    return max(rows)


def test_a_mixture_ranks_half_as_many_users_at_once() -> None:
    """24 bytes a score, of which 60 are a user's: eight users would need 11520."""
    assert probe(11520 / 2**30) == 8
    assert probe(1.0) == 13


# -- methods with a mixture --------------------------------------------------------------------


def distiller(method: str, world: World, teacher: Any, **changes: Any) -> Any:
    """A distiller of a world with a teacher of its own."""
    torch.manual_seed(3)
    own = dataclasses.replace(world)
    own.frozen_teacher = lambda budget=0.5: teacher  # type: ignore[method-assign, assignment]
    return own.distiller(CLASSES[method], **{**small_options(CLASSES[method]), **changes})


@pytest.mark.parametrize("method", ON_SCORES)
def test_every_method_on_scores_learns_from_a_mixture(
    method: str, strangers: tuple[World, list[Any]]
) -> None:
    world, teachers = strangers
    taught = distiller(method, world, mixed(world, *teachers))
    assert not set(taught.users.tolist()) & {0, 7}
    optimizer = torch.optim.Adam(taught.parameters(), lr=0.01)
    before = world.student.item_embedding.weight.detach().clone()
    for epoch in (0, 1):
        taught.begin_epoch(epoch, 1)
        _, kd = taught.calculate_loss(world.batch(seed=epoch))
        assert kd > 0
        optimizer.zero_grad()
        kd.backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in taught.parameters())
        optimizer.step()
    assert not torch.equal(before, world.student.item_embedding.weight)


@pytest.mark.parametrize("method", ON_SCORES)
def test_a_mixture_of_equal_teachers_teaches_like_one(method: str) -> None:
    losses = []
    for several in (False, True):
        world = make_world()
        teacher: Any = world.frozen_teacher()
        if several:
            teacher = mixed(world, teacher, world.frozen_teacher(), weights=[0.25, 0.75])
        taught = distiller(method, world, teacher)
        for epoch in (0, 1):
            taught.begin_epoch(epoch, 1)
            losses.append(taught.calculate_loss(world.batch())[1])
    torch.testing.assert_close(losses[2:], losses[:2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", WITH_NEEDS)
def test_other_methods_refuse_a_mixture(method: str) -> None:
    world = make_world()
    mixture = mixed(world, world.frozen_teacher(), other_teacher(world, 5))
    with pytest.raises(KDError, match="|".join(NEEDS[n] for n in CLASSES[method].needs)):
        distiller(method, world, mixture)


# -- the method once a teacher -----------------------------------------------------------------


def teachers_of(world: World) -> list[Any]:
    return [world.frozen_teacher(), other_teacher(world, 5), other_teacher(world, 8)]


WEIGHTS = (0.5, 0.2, 0.3)


def together(method: str, world: World, **changes: Any) -> SeveralDistillers:
    found = [distiller(method, world, teacher, **changes) for teacher in teachers_of(world)]
    several = taught_by(found, WEIGHTS)
    assert isinstance(several, SeveralDistillers)
    return several


@pytest.mark.parametrize("method", CLASSES)
def test_losses_and_gradients_are_weighted_sums(method: str) -> None:
    world = make_world()
    singles = [distiller(method, world, t, kd_weight=7.5) for t in teachers_of(world)]
    wanted, losses = [], []
    for single in singles:
        world.student.zero_grad()
        single.eval()  # without dropout, which the second teacher's would draw from the first's
        single.begin_epoch(0, 1)
        base, kd = single.calculate_loss(world.batch())
        kd.backward()
        losses.append(kd.detach())
        wanted.append([p.grad.clone() for p in world.student.parameters()])
    assert len({round(loss.item(), 5) for loss in losses}) == 3
    world.student.zero_grad()
    several = together(method, world, kd_weight=7.5)
    several.eval()
    several.begin_epoch(0, 1)
    found = several.calculate_loss(world.batch())
    assert torch.equal(found[0], base)
    total = sum(w * loss for w, loss in zip(WEIGHTS, losses, strict=True))
    torch.testing.assert_close(found[1].detach(), total, rtol=1e-5, atol=1e-7)
    found[1].backward()
    log = several.epoch_log()
    assert log["kd_loss"] == pytest.approx(found[1].item() / 7.5, rel=1e-5)
    assert log["base_loss"] == pytest.approx(base.item())
    for number, loss in enumerate(losses, 1):
        assert log[f"kd_loss_{number}"] == pytest.approx(loss.item() / 7.5, rel=1e-5)
    for mine, parameter in enumerate(world.student.parameters()):
        each = [grads[mine] for grads in wanted]
        mean = sum(w * g for w, g in zip(WEIGHTS, each, strict=True))
        torch.testing.assert_close(parameter.grad, mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", CLASSES)
def test_the_student_is_held_once(method: str) -> None:
    world = make_world()
    single = distiller(method, world, world.frozen_teacher())
    own = [name for name in single.state_dict() if not name.startswith("student.")]
    student = [name for name in single.state_dict() if name.startswith("student.")]
    several = together(method, world)
    names = [f"teacher{n}.{name}" for n in (1, 2, 3) for name in own]
    assert sorted(several.state_dict()) == sorted([*student, *names])
    held = [id(p) for p in several.parameters()]
    assert len(held) == len(set(held)) == len(list(several.state_dict()))
    assert several.deployed() is world.student
    assert set(several.deployed().state_dict()) == {n.removeprefix("student.") for n in student}
    several.eval()
    assert not any(module.training for module in several.modules())
    several.train()
    assert all(module.training for module in several.modules())
    batch = {"user_id": torch.arange(4)}
    found = several.full_sort_predict(batch)
    assert torch.equal(found, world.student.full_sort_predict(batch))


@pytest.mark.parametrize("method", CLASSES)
def test_a_graph_student_propagates_once_a_step_for_all(method: str) -> None:
    world = make_world(student=TinyGraph)
    several = together(method, world)
    several.begin_epoch(0, 2)
    for _ in range(2):
        world.student.calls = 0
        sum(several.calculate_loss(world.batch())).backward()
        assert world.student.calls == 1


@pytest.mark.parametrize("method", ["RCEKD", "CE"])
def test_a_sequence_student_encodes_once_a_step_for_all(
    method: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[bool] = []
    original = SequenceScorer.encode_history

    def noted(self: Any, *args: Any) -> Tensor:
        encoded.append(torch.is_grad_enabled())
        return original(self, *args)

    monkeypatch.setattr(SequenceScorer, "encode_history", noted)
    options = {**tiny.options("SASRec"), **small_options(CLASSES[method]), "scratch": False}
    options.update({"epochs": 1, "allow_leak": True, "teacher_combine": "losses"})
    counts = []
    for teachers in ([files["BPR"], files["copy"]], [files["BPR"], files["copy"], files["run"]]):
        encoded.clear()
        folder = {"checkpoint_dir": str(tmp_path / str(len(teachers)))}
        names = {"student": "SASRec", "teacher": teachers}
        run_recbole_kd(method, tiny.dataset(), config_dict={**options, **folder}, **names)
        counts.append(sum(encoded))
    assert counts[0] == counts[1] > 0


def test_only_steps_that_learn_share_what_is_encoded() -> None:
    scorer = scorer_for(tiny.model("SASRec"), tiny.split_for("SASRec").history)
    users = torch.arange(1, 5)
    with scorer.step():
        first = scorer.encode(users)
        assert scorer.encode(users.clone()) is first
        assert scorer.encode(users[:3]).shape == (3, first.shape[1])
        with torch.no_grad():
            assert scorer.encode(users) is not scorer.encode(users)
    with scorer.step():
        assert scorer.encode(users) is not first
    assert scorer.encode(users) is not scorer.encode(users)


def live(several: SeveralDistillers, world: World, optimizer: Any, epochs: Any) -> list[float]:
    losses = []
    for epoch in epochs:
        several.begin_epoch(epoch, 2)
        for index in range(2):
            parts = several.calculate_loss(world.batch(seed=10 * epoch + index))
            optimizer.zero_grad()
            sum(parts).backward()
            optimizer.step()
            losses += [part.item() for part in parts]
    return losses


def fresh(method: str) -> tuple[SeveralDistillers, World, Any]:
    world = make_world()
    every = {"refresh_every": 3} if CLASSES[method].refreshes else {}
    several = together(method, world, **every)
    return several, world, torch.optim.Adam(several.parameters(), lr=0.01)


@pytest.mark.parametrize("method", CLASSES)
def test_a_run_that_was_cut_goes_on_bit_for_bit(method: str) -> None:
    torch.manual_seed(5)
    whole, *rest = fresh(method)
    torch.manual_seed(5)
    wanted = live(whole, *rest, range(4))
    half, *rest = fresh(method)
    torch.manual_seed(5)
    first = live(half, *rest, range(2))
    file = io.BytesIO()
    state = {
        "model": half.state_dict(),
        "method": half.resume_state(),
        "random": random_state(None),
    }
    torch.save({**state, "optimizer": rest[1].state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, *rest = fresh(method)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.normal_()
    again.load_state_dict(saved["model"])
    rest[1].load_state_dict(saved["optimizer"])
    again.load_resume_state(saved["method"])
    restore_random_state(saved["random"], None)
    assert first + live(again, *rest, (2, 3)) == wanted
    assert again.epoch_log() == whole.epoch_log()
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_one_teacher_needs_no_composite() -> None:
    world = make_world()
    single = distiller("CE", world, world.frozen_teacher())
    assert taught_by([single], [1.0]) is single
    assert isinstance(single, Distiller)


# -- what tells combinations apart -------------------------------------------------------------


class Given(tiny.KDConfig):
    """Options of a combination alone."""

    def __init__(self, **values: Any):
        self.sources, self.role = Sources("CE", "toy", "BPR", None, []), "student"
        defaults = {"teacher_weights": None, "teacher_combine": "distributions", "teacher_tau": 1.0}
        self.final_config_dict = {**defaults, **values}


def test_weights_sum_to_one() -> None:
    assert Combination.read(Given(), 4).weights == (0.25,) * 4
    assert Combination.read(Given(teacher_weights=[1, 3]), 2).weights == (0.25, 0.75)
    assert Combination.read(Given(), 1).weights == (1.0,)


def test_a_digest_tells_what_matters() -> None:
    def digest(*teachers: str, **values: Any) -> str:
        return Combination.read(Given(**values), len(teachers)).digest(teachers)

    losses = {"teacher_combine": "losses"}
    same = digest("a", "b")
    assert same == digest("a", "b", teacher_weights=[5, 5])
    assert digest("a", "b", **losses) == digest("a", "b", teacher_tau=2, **losses)
    others = [
        digest("a", "c"),
        digest("a", "b", "c"),
        digest("a", "b", teacher_weights=[1, 2]),
        digest("a", "b", teacher_tau=2),
        digest("a", "b", **losses),
    ]
    assert len({same, *others}) == 6


def test_the_options_are_no_part_of_other_fingerprints() -> None:
    assert not SEVERAL_KEYS & (tiny.config("BPR").learning_keys() | training.SELECTION_KEYS)


# -- whole runs --------------------------------------------------------------------------------


def roles(result: dict[str, Any]) -> list[str]:
    return [row["role"] for row in result["sizes"]]


def epochs_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    log = Path(result["checkpoints"]["student"]).with_name("metrics.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_run_with_a_mixture(files: dict[str, str], tmp_path: Path) -> None:
    pair = files["BPR"], files["NeuMF"]
    result = distil("RCEKD", tmp_path, *pair, teacher_weights=[1, 3])
    assert roles(result) == ["teacher 1", "teacher 2", "teachers, mixed", "student, RCEKD"]
    one, two, both, student = result["sizes"]
    assert [row["model"] for row in result["sizes"]] == ["BPR", "NeuMF", "BPR+NeuMF", "BPR"]
    assert both["parameters"] == one["parameters"] + two["parameters"]
    assert both["latency_ms"] > 0
    assert result["teacher_test_result"] == both["test_result"]
    assert both["test_result"] not in (one["test_result"], two["test_result"])
    assert "ndcg@10 / teachers, mixed" in result["table"]
    assert result["checkpoints"]["teacher"] == list(pair)
    folder = Path(result["checkpoints"]["student"]).parent
    assert folder.name.startswith("RCEKD-BPR-BPR+NeuMF-")
    assert set(load_model(folder).model.state_dict()) == {
        "user_embedding.weight",
        "item_embedding.weight",
    }
    assert student["test_result"] == result["test_result"]
    other = distil("RCEKD", tmp_path, *pair, teacher_weights=[3, 1])
    assert Path(other["checkpoints"]["student"]).parent != folder
    assert other["teacher_test_result"] != result["teacher_test_result"]
    assert epochs_of(other)[0]["kd_loss"] != epochs_of(result)[0]["kd_loss"]


def test_a_run_with_each_teachers_loss(files: dict[str, str], tmp_path: Path) -> None:
    pair = files["BPR"], files["run"]
    result = distil("DE", tmp_path, *pair, teacher_combine="losses", teacher_weights=[1, 3])
    assert roles(result) == ["teacher 1", "teacher 2", "student, DE"]
    assert [row["model"] for row in result["sizes"][:2]] == ["BPR", "LightGCN"]
    tested = [row["test_result"] for row in result["sizes"][:2]]
    best = max(range(2), key=lambda n: tested[n]["ndcg@10"])
    assert result["teacher_test_result"] == tested[best]
    assert f"ndcg@10 / teacher {best + 1}" in result["table"]
    assert result["checkpoints"]["teacher"] == [pair[0], f"{pair[1]}/best.pt"]
    (log,) = epochs_of(result)
    assert log["kd_loss"] == pytest.approx(0.25 * log["kd_loss_1"] + 0.75 * log["kd_loss_2"])
    assert log["kd_loss_1"] != log["kd_loss_2"]
    last = checkpoint.load(Path(result["checkpoints"]["student"]).with_name("last.pt"))
    parts = {name.partition(".")[0] for name in last["state_dict"]}
    assert parts == {"student", "teacher1", "teacher2"}
    shipped = load_model(result["checkpoints"]["student"]).model.state_dict()
    assert {name.partition(".")[0] for name in shipped} == {"user_embedding", "item_embedding"}


@pytest.mark.parametrize("combine", ["distributions", "losses"])
def test_a_teacher_and_its_copy_teach_like_one(
    combine: str, files: dict[str, str], tmp_path: Path
) -> None:
    more = {"learning_rate": 0.02, "kd_weight": 10, "epochs": 3}
    one = distil("RCEKD", tmp_path, files["BPR"], **more)
    assert roles(one) == ["teacher", "student, RCEKD"]
    assert one["checkpoints"]["teacher"] == files["BPR"]
    pair = (files["BPR"], files["copy"])
    two = distil("RCEKD", tmp_path, *pair, teacher_combine=combine, **more)
    assert two["teacher_test_result"] == one["teacher_test_result"]
    for mine, theirs in zip(epochs_of(one), epochs_of(two), strict=True):
        assert theirs["kd_loss"] == pytest.approx(mine["kd_loss"], rel=1e-4)
        assert theirs["base_loss"] == pytest.approx(mine["base_loss"], rel=1e-4)
    weights = [
        load_model(result["checkpoints"]["student"]).model.state_dict() for result in (one, two)
    ]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-2, atol=1e-3)


def test_a_run_of_several_goes_on_where_it_stopped(files: dict[str, str], tmp_path: Path) -> None:
    def run(folder: str, **more: Any) -> dict[str, Any]:
        pair = files["BPR"], files["LightGCN"]
        return distil("Fit", tmp_path / folder, *pair, teacher_combine="losses", **more)

    whole = run("whole", epochs=4)
    half = run("half", epochs=2)
    last = Path(half["checkpoints"]["student"]).with_name("last.pt")
    rest = run("half", epochs=4, resume=str(last))
    assert rest["best_valid_result"] == whole["best_valid_result"]
    assert rest["test_result"] == whole["test_result"]
    losses = [[line["kd_loss_2"] for line in epochs_of(r)] for r in (whole, rest)]
    assert losses[0] == losses[1]
    with pytest.raises(KDError, match="its teacher is"):
        run("half", epochs=4, resume=str(last), teacher_weights=[1, 2])


def test_an_assistant_of_several_teachers(files: dict[str, str], tmp_path: Path) -> None:
    pair, more = (files["BPR"], files["LightGCN"]), {"embedding_size": 4}
    result = distil("TARec", tmp_path, *pair, teacher_combine="losses", **more)
    assert roles(result) == ["teacher 1", "teacher 2", "teacher assistant", "student, TARec"]


def test_several_teachers_from_the_command_line(files: dict[str, str], tmp_path: Path) -> None:
    words = [f"--teacher=[{files['BPR']}, {files['NeuMF']}]", "--teacher_tau=2", "--ce_K=10"]
    settings = {**tiny.options("BPR"), "checkpoint_dir": str(tmp_path), "scratch": False}
    result = run_recbole_kd(
        "CE",
        tiny.dataset(),
        config_dict=settings,
        student="BPR",
        command_line=parse_arguments(words),
    )
    assert "teachers, mixed" in roles(result)
