"""What every distillation method must do, asked of all that the registry knows.

A new file in ``recbole_kd/methods`` is tested here without being named; where the tiny world needs
other sizes than ``kd_helpers.small_options`` finds by itself, they stand in ``kd_helpers.SMALL``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import math
import random
import re
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from kd_helpers import (
    Dataset,
    Options,
    TinyGraph,
    TinyModel,
    World,
    make_world,
    options_for,
    small_options,
)
from recbole.utils import ModelType
from torch import Tensor

from recbole_kd.defaults import method_defaults
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.methods.base import NEEDS, Distiller, EmbeddingDistiller, Entities
from recbole_kd.methods.cd import CD
from recbole_kd.methods.rd import RD
from recbole_kd.options import SECTIONS
from recbole_kd.registry import SCRATCH, method_class, method_names
from recbole_kd.resources import properties_dir
from recbole_kd.rows import ROW_KINDS, Rows
from recbole_kd.scoring import Scorer
from recbole_kd.teacher import FrozenTeacher
from recbole_kd.trainer import random_state, restore_random_state

NAMES = [name for name in method_names() if name != SCRATCH]


@pytest.fixture(params=NAMES)
def method(request: pytest.FixtureRequest) -> type[Distiller]:
    found = method_class(request.param)
    assert found is not None
    return found


# -- a short life ------------------------------------------------------------------------------


def build(method: type[Distiller], world: World | None = None, **changes: Any) -> Any:
    """A distiller of small sizes; what it initialises is drawn from one seed."""
    torch.manual_seed(3)
    world = world or make_world()
    return world.distiller(method, **{**small_options(method), **changes})


def by_interaction(method: type[Distiller]) -> dict[str, Any]:
    """Rows that are those of the batch, for methods that deal rows."""
    return {"kd_rows": "interaction"} if method.deals_rows else {}


class Life:
    """A distiller that is trained, two batches an epoch."""

    def __init__(self, method: type[Distiller], world: World | None = None, **changes: Any):
        self.world = world or make_world()
        self.distiller = build(method, self.world, **changes)
        self.optimizer = torch.optim.Adam(self.distiller.parameters(), lr=0.01)
        self.losses: list[float] = []

    def live(self, *epochs: int) -> Life:
        for epoch in epochs:
            self.distiller.begin_epoch(epoch, 2)
            for index in range(2):
                parts = self.distiller.calculate_loss(self.world.batch(seed=10 * epoch + index))
                self.optimizer.zero_grad()
                sum(parts).backward()
                self.optimizer.step()
                self.losses += [part.item() for part in parts]
        return self

    def parameters(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.distiller.named_parameters()}


def kd_of(distiller: Distiller, world: World, epoch: int = 0, rows: int = 64) -> Tensor:
    """The raw distillation loss of an epoch's first step, dropout drawn from one seed."""
    distiller.begin_epoch(epoch, 1)
    torch.manual_seed(1)
    _, kd = distiller.calculate_loss(world.batch(rows))
    return kd / distiller.kd_weight


def gradients(distiller: Distiller) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in distiller.named_parameters()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that differ; NaN is NaN."""
    assert set(first) == set(second)
    bits = {"rtol": 0, "atol": 0, "equal_nan": True}
    return [n for n in first if not torch.isclose(first[n], second[n], **bits).all()]


def test_there_are_methods() -> None:
    assert len(NAMES) >= 2


# -- one step ----------------------------------------------------------------------------------


def test_a_step_moves_student_and_method_and_nothing_else(method: type[Distiller]) -> None:
    life = Life(method)
    distiller, teacher = life.distiller, life.distiller.teacher
    frozen = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    factors = [t.clone() for t in teacher.factors()]
    before = life.parameters()
    life.live(0)
    after = life.parameters()
    assert len(same(before, after)) == len(before), "something does not learn"
    assert all(torch.isfinite(p).all() for p in after.values())
    assert same(frozen, dict(teacher.model.state_dict())) == []
    assert all(torch.equal(a, b) for a, b in zip(factors, teacher.factors(), strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in teacher.model.parameters())
    assert not any(t.requires_grad for t in teacher.factors())
    assert not any(module.training for module in teacher.model.modules())
    inside = {id(p) for p in distiller.parameters()} | {id(b) for b in distiller.buffers()}
    assert not inside & {id(p) for p in teacher.model.parameters()}


def test_the_distillation_loss_alone_teaches_all_there_is(method: type[Distiller]) -> None:
    world = make_world()
    distiller = build(method, world)
    kd_of(distiller, world).backward()
    for name, gradient in gradients(distiller).items():
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name
        assert gradient.any(), name


def test_padding_is_neither_taught_nor_listened_to(method: type[Distiller]) -> None:
    world, other = make_world(), make_world()
    distiller = build(method, world)
    loss = kd_of(distiller, world)
    loss.backward()
    for table in (world.student.user_embedding, world.student.item_embedding):
        assert not table.weight.grad[0].any()
    with torch.no_grad():
        for model in (other.student, other.teacher):
            model.user_embedding.weight[0] = 37.0
            model.item_embedding.weight[0] = 53.0
    assert torch.equal(kd_of(build(method, other), other), loss)


def test_losses_are_added_and_weighted(method: type[Distiller]) -> None:
    world = make_world()
    plain = world.student.calculate_loss(world.batch())
    found = []
    for weight in (0.0, 1.0, 7.5):
        distiller = build(method, world, kd_weight=weight)
        distiller.begin_epoch(0, 1)
        torch.manual_seed(1)
        base, kd = distiller.calculate_loss(world.batch())
        assert torch.equal(base, plain)
        assert base.shape == kd.shape == ()
        log = distiller.epoch_log()
        assert log["base_loss"] == pytest.approx(base.item())
        assert kd.item() == pytest.approx(weight * log["kd_loss"])
        found.append(log["kd_loss"])
    assert found[0] == found[1] == found[2] > 0


def test_without_weight_the_student_learns_as_if_alone(method: type[Distiller]) -> None:
    alone, taught = make_world(), make_world()
    alone.student.calculate_loss(alone.batch()).backward()
    distiller = build(method, taught, kd_weight=0)
    distiller.begin_epoch(0, 1)
    sum(distiller.calculate_loss(taught.batch())).backward()
    for mine, theirs in zip(alone.student.parameters(), taught.student.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


@pytest.mark.parametrize("kind", ROW_KINDS)
def test_the_loss_is_a_mean_over_rows(method: type[Distiller], kind: str) -> None:
    if not method.deals_rows:
        pytest.skip("it distils no rows")
    world = make_world()
    distiller = build(method, world, kd_rows=kind)
    for epoch in (0, 1):
        distiller.begin_epoch(epoch, 2)
    rows = distiller.rows.next(world.batch()["user_id"])
    ones = [Rows(user, torch.ones(1)) for user in rows.users.split(1)]
    each = torch.stack([distiller.kd_loss(one) for one in ones])
    assert (each > 0).any()
    total = 64 if kind == "unique" else rows.weights.sum()
    wanted = (each * rows.weights).sum() / total
    torch.testing.assert_close(distiller.kd_loss(rows), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ROW_KINDS)
def test_negatives_make_no_interaction_more(method: type[Distiller], kind: str) -> None:
    """RecBole repeats a batch for each negative, or writes negatives below it: one and the same."""
    world = make_world()
    batch = world.batch()
    users, items, negatives = (batch[key] for key in ("user_id", "item_id", "neg_item_id"))
    below = negatives.t().flatten()
    pairwise = {"user_id": users.repeat(2), "item_id": items.repeat(2), "neg_item_id": below}
    label = (torch.arange(3 * len(users)) < len(users)).float()
    pointwise = {"user_id": users.repeat(3), "item_id": torch.cat([items, below]), "label": label}
    found = []
    for drawn, rows in ((1, batch), (2, pairwise), (2, pointwise)):
        own = {"kd_rows": kind} if method.deals_rows else {}
        sampling = {"distribution": "uniform", "sample_num": drawn}
        distiller = build(method, make_world(), train_neg_sample_args=sampling, **own)
        distiller.begin_epoch(1, 1)
        torch.manual_seed(1)
        found.append(distiller.distil(rows))
    assert found[0] > 0
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_graph_student_propagates_once_a_step(method: type[Distiller]) -> None:
    world = make_world(student=TinyGraph)
    distiller = build(method, world)
    distiller.begin_epoch(0, 2)
    for _ in range(2):
        world.student.calls = 0
        sum(distiller.calculate_loss(world.batch())).backward()
        assert world.student.calls == 1
    assert all(p.grad is not None and p.grad.any() for p in distiller.parameters())


def test_users_are_encoded_once_a_step(
    method: type[Distiller], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder of sequences costs more than all item sets together."""
    world = make_world()
    distiller = build(method, world)
    distiller.begin_epoch(0, 2)
    calls: list[Tensor] = []
    encode = distiller.scorer.user_vectors
    monkeypatch.setattr(
        distiller.scorer, "user_vectors", lambda users: calls.append(users) or encode(users)
    )
    distiller.calculate_loss(world.batch())
    assert len(calls) == 1
    assert len(calls[0].unique()) == len(calls[0])


# -- seeds and random streams ------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run(method: type[Distiller]) -> None:
    first, second = Life(method).live(0, 1, 2), Life(method).live(0, 1, 2)
    assert first.losses == second.losses
    assert same(first.parameters(), second.parameters()) == []
    assert same(first.distiller.tables(), second.distiller.tables()) == []


def test_another_seed_is_another_draw(
    method: type[Distiller], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for tool in ("noise", "step_generator"):
        real = getattr(Distiller, tool)

        def told(self: Distiller, *key: Any, tool: str = tool, real: Any = real) -> Any:
            asked.append(tool)
            return real(self, *key)

        monkeypatch.setattr(Distiller, tool, told)
    found = []
    for seed in (7, 8):
        world = make_world()
        rows = by_interaction(method)
        distiller = build(method, world, seed=seed, **rows)
        # Fewer rows than users and items, so that what is drawn is never all of them.
        found.append(torch.stack([kd_of(distiller, world, epoch, 5) for epoch in (0, 1)]))
    assert not (asked and torch.isclose(*found, rtol=1e-4).all()), asked
    if "step_generator" in asked:
        assert not torch.isclose(*found[0], rtol=1e-4)


def test_other_random_streams_stay_where_they_are(method: type[Distiller]) -> None:
    """The base loss sees the same batches and negatives with a method as without."""
    world = make_world()
    distiller = build(method, world)
    streams = random_state(None)
    for training in (True, False):
        distiller.train(training)
        torch.manual_seed(11)
        torch_state = torch.get_rng_state()
        distiller.begin_epoch(0, 1)
        assert torch.equal(torch.get_rng_state(), torch_state)
        distiller.calculate_loss(world.batch())
    assert torch.equal(torch.get_rng_state(), torch_state), "without dropout"
    version, internal, gauss = streams["python"]
    assert random.getstate() == (version, tuple(internal.tolist()), gauss)
    state: Any = np.random.get_state()  # noqa: NPY002
    assert state[2:] == tuple(streams["numpy"][2:])
    assert (state[1] == streams["numpy"][1].numpy()).all()


# -- size --------------------------------------------------------------------------------------


def stretched(world: World, sign: float) -> World:
    """Scores up to 100 of student and teacher, who agree or disagree throughout."""
    with torch.no_grad():
        for model, side in ((world.student, sign), (world.teacher, 1.0)):
            users, items = model.user_embedding.weight, model.item_embedding.weight
            factor = (100 / (users @ items.t()).abs().max()).sqrt()
            users *= side * factor
            items *= factor
    return world


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_large_scores_stay_finite(method: type[Distiller], sign: float) -> None:
    world = stretched(make_world(), sign)
    distiller = build(method, world)
    for epoch in (0, 1, 10, 19):
        distiller.zero_grad()
        distiller.begin_epoch(epoch, 1)
        parts = distiller.calculate_loss(world.batch())
        sum(parts).backward()
        assert all(torch.isfinite(part) for part in parts)
        for name, gradient in gradients(distiller).items():
            assert torch.isfinite(gradient).all(), name


# -- tables ------------------------------------------------------------------------------------


def test_tables_do_not_depend_on_the_memory_budget(method: type[Distiller]) -> None:
    found = []
    for budget in (0.5, 1e-9):
        world = make_world()
        distiller = build(method, world, memory_budget_gb=budget)
        assert len(list(distiller.student_lists(5, True))) == (1 if budget == 0.5 else 12)
        losses = torch.stack([kd_of(distiller, world, epoch) for epoch in (0, 1, 2)])
        found.append({**distiller.tables(), "losses": losses.detach()})
    for name, table in found[0].items():
        torch.testing.assert_close(found[1][name], table, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_a_users_rows_do_not_depend_on_other_users(method: type[Distiller]) -> None:
    world = make_world()
    whole, shard = build(method, world), build(method, world)
    shard.users = whole.users[1::3]
    for distiller in (whole, shard):
        distiller.begin_epoch(0, 1)
    for name, table in whole.tables().items():
        if len(table) == world.history.n_users:
            mine, wanted = (t[shard.users] for t in (shard.tables()[name], table))
            torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_tables_are_tensors_of_their_own(method: type[Distiller]) -> None:
    life = Life(method).live(0)
    for name, table in life.distiller.tables().items():
        assert isinstance(table, Tensor), name
        assert not table.requires_grad, name
    assert not set(life.distiller.state_dict()) & set(life.distiller.tables())


def test_the_student_is_ranked_in_eval_mode_and_goes_on_in_training(
    method: type[Distiller], monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[tuple[bool, bool]] = []
    real = method.refresh

    def refresh(self: Distiller, epoch: int) -> dict[str, float]:
        modes.append((self.student.training, torch.is_grad_enabled()))
        return real(self, epoch)

    monkeypatch.setattr(method, "refresh", refresh)
    life = Life(method).live(0)
    assert life.distiller.training
    assert all(module.training for module in life.distiller.modules())
    assert modes == ([(False, False)] if method.refreshes else [])


# -- resuming ----------------------------------------------------------------------------------


def through_a_file(content: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("every", [1, 3])
def test_a_run_that_was_cut_goes_on_bit_for_bit(method: type[Distiller], every: int) -> None:
    changes = {"refresh_every": every} if method.refreshes else {}
    whole = Life(method, **changes).live(0, 1, 2, 3, 4)
    half = Life(method, **changes).live(0, 1)
    saved = through_a_file(
        {
            "model": half.distiller.state_dict(),
            "method": half.distiller.resume_state(),
            "optimizer": half.optimizer.state_dict(),
            "random": random_state(None),
        }
    )
    rest = Life(method, **changes)
    with torch.no_grad():
        for parameter in rest.distiller.parameters():
            parameter.normal_()  # nothing of the new process may matter
    rest.distiller.load_state_dict(saved["model"])
    rest.optimizer.load_state_dict(saved["optimizer"])
    rest.distiller.load_resume_state(saved["method"])
    restore_random_state(saved["random"], None)
    rest.live(2, 3, 4)
    assert half.losses + rest.losses == whole.losses
    assert same(rest.parameters(), whole.parameters()) == []
    log = rest.distiller.epoch_log()
    assert log == whole.distiller.epoch_log()
    assert same(rest.distiller.tables(), whole.distiller.tables()) == []


def test_a_run_goes_on_with_other_sizes_or_says_that_it_cannot(method: type[Distiller]) -> None:
    """``--resume=PATH`` takes up a run of other options: never with tables of another form."""
    sizes = small_options(method)
    every = {"refresh_every": 5} if method.refreshes else {}
    whole = options_for(method, **sizes)
    old = Life(method, **every).live(0, 1)
    state = through_a_file({"method": old.distiller.resume_state()})["method"]
    for key in [
        k for k, d in declared(method).items() if d.type == "int" and k in own_keys(method)
    ]:
        if key == "refresh_every":
            continue
        changes = {**every, key: whole[key] + 1}
        new, fresh = Life(method, **changes), Life(method, **changes).live(0)
        message = refusal_of(functools.partial(new.distiller.load_resume_state, state))
        assert not message or message.startswith("--resume")
        if not message:
            new.live(2)
            shapes = [{k: v.shape for k, v in x.distiller.tables().items()} for x in (new, fresh)]
            assert shapes[0] == shapes[1], key


# -- what is shipped ---------------------------------------------------------------------------


def test_the_plain_student_is_deployed(method: type[Distiller]) -> None:
    life = Life(method).live(0)
    distiller, student = life.distiller, life.distiller.deployed()
    assert student is life.world.student
    fresh = make_world(seed=9).student
    fresh.load_state_dict(student.state_dict(), strict=True)
    batch = {"user_id": torch.arange(5)}
    mine = distiller.full_sort_predict(batch)
    assert torch.equal(fresh.full_sort_predict(batch), mine)
    names = {name for name in distiller.state_dict() if name.startswith("student.")}
    assert names == {f"student.{name}" for name in fresh.state_dict()}
    shapes = {"teacher_users", "teacher_items", "teacher"}
    assert not [name for name in distiller.state_dict() if shapes & set(name.split("."))]


# -- the teacher -------------------------------------------------------------------------------


def partly_known(poison: float | None = None) -> World:
    """A teacher that does not know some users and items, popular ones and train items among them.

    Args:
        poison: What the teacher's vectors of these, and of padding, are filled with.
    """
    world = make_world()
    popular = torch.bincount(world.history.items.long()).argsort(descending=True)[:3]
    users, items = torch.tensor([2, 7]), torch.cat([popular, torch.tensor([11, 30, 59])])
    world.user_ids = torch.arange(world.student.n_users).index_fill(0, users, -1)
    world.item_ids = torch.arange(world.student.n_items).index_fill(0, items, -1)
    if poison is not None:
        with torch.no_grad():
            for table, ids in (
                (world.teacher.user_embedding.weight, users),
                (world.teacher.item_embedding.weight, items),
            ):
                table[ids] = table[0] = poison
    return world


@pytest.mark.parametrize("poison", [50.0, math.nan])
def test_what_the_teacher_does_not_know_is_not_used(method: type[Distiller], poison: float) -> None:
    found = []
    for world in (partly_known(), partly_known(poison)):
        distiller = build(method, world, **by_interaction(method))
        losses = [kd_of(distiller, world, epoch) for epoch in (0, 1, 2)]
        torch.stack(losses).sum().backward()
        grads = [g for g in gradients(distiller).values() if g is not None]
        found.append([*(loss.detach() for loss in losses), *grads])
    assert all(torch.isfinite(t).all() for t in found[0])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_batch_of_strangers_teaches_nothing_and_breaks_nothing(method: type[Distiller]) -> None:
    world = partly_known()
    distiller = build(method, world, **by_interaction(method))
    distiller.begin_epoch(0, 1)
    unknown = (world.item_ids < 0).nonzero().squeeze(1)[:4]
    batch = {
        "user_id": torch.tensor([2, 7, 2, 7]),
        "item_id": unknown,
        "neg_item_id": unknown.flip(0).unsqueeze(1),
    }
    parts = distiller.calculate_loss(batch)
    assert all(torch.isfinite(part) for part in parts)
    sum(parts).backward()
    assert all(g is None or torch.isfinite(g).all() for g in gradients(distiller).values())


def test_ids_of_the_teacher_are_its_own(method: type[Distiller]) -> None:
    """The same teacher under other ids teaches the same."""
    world, other = make_world(), make_world()
    generator = torch.Generator().manual_seed(4)
    joined = []
    for name in ("user_embedding", "item_embedding"):
        table = getattr(other.teacher, name).weight.detach()
        ids = 1 + torch.randperm(len(table) - 1, generator=generator)
        ids = torch.cat([torch.zeros(1, dtype=torch.int64), ids])
        moved = torch.empty_like(table)
        moved[ids] = table
        joined.append((ids, moved))
    (other.user_ids, users), (other.item_ids, items) = joined
    other.teacher = TinyModel(users, items)
    if "trajectory" in method.needs:  # the earlier epochs of the tiny world go by id
        pytest.skip("its earlier teachers would not be the same")
    losses = [kd_of(build(method, w), w) for w in (world, other)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)


class ScoresOnly(Scorer):
    """A teacher without vectors: it answers with scores."""

    def encode(self, users: Tensor) -> Tensor:
        return users

    @torch.no_grad()
    def score_all(self, state: Tensor) -> Tensor:
        return self.model.full_sort_predict({"user_id": state})

    def score(self, state: Tensor, items: Tensor) -> Tensor:
        return self.score_all(state).gather(1, items)


class DenseWorld(World):
    """A world whose teachers have no vectors."""

    def _frozen(self, model: TinyModel, memory_budget_gb: float) -> FrozenTeacher:
        ids = torch.arange(self.student.n_users), torch.arange(self.student.n_items)
        scorer = ScoresOnly(model, self.history)
        return FrozenTeacher(scorer, *ids, self.history, memory_budget_gb)


def test_a_teacher_without_vectors_teaches_or_is_refused(method: type[Distiller]) -> None:
    world = make_world()
    dense = DenseWorld(**{f.name: getattr(world, f.name) for f in dataclasses.fields(World)})
    assert dense.frozen_teacher().factors() is None
    if "vectors" in method.needs:
        with pytest.raises(KDError, match=NEEDS["vectors"]) as refusal:
            build(method, dense)
        assert f"--model={method.__name__}" in str(refusal.value)
        return
    small = {"memory_budget_gb": 1e-6}  # too small for a table of scores
    losses = [kd_of(build(method, w, **small), w) for w in (world, dense)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    # Half precision may turn the order of two scores around, and a rank with it.
    torch.testing.assert_close(kd_of(build(method, dense), dense), losses[0], rtol=5e-3, atol=0)


def test_needs_are_known(method: type[Distiller]) -> None:
    assert set(method.needs) <= set(NEEDS)


# -- options -----------------------------------------------------------------------------------


class Recorder(Options):
    """Options that remember which of them were asked for."""

    def __init__(self, **values: Any):
        super().__init__(**values)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def require(self, key: str) -> Any:
        self.asked.add(key)
        return super().require(key)


def own_keys(method: type[Distiller]) -> set[str]:
    return set(method_defaults(method.__name__)) - set(SECTIONS)


@dataclasses.dataclass(frozen=True)
class Declared:
    """What the comment of an option in the method's file says."""

    type: str
    nullable: bool


def is_ours(method: type[Distiller]) -> bool:
    return method.__module__.startswith("recbole_kd.")


def declared(method: type[Distiller]) -> dict[str, Declared]:
    """Type of every option, and whether ``~`` is one of its values."""
    if not is_ours(method):  # an installed method has its defaults in the class, without comments
        values = method_defaults(method.__name__)
        return {k: Declared(type(values[k]).__name__, values[k] is None) for k in own_keys(method)}
    path = properties_dir() / "method" / f"{method.__name__}.yaml"
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"\s*(\w+): +(.*?) +# \((\w+)\) \S", line)
        if match:
            found[match[1]] = Declared(match[3], "~" in line)
    return found


def asked_for(method: type[Distiller], **changes: Any) -> set[str]:
    """Keys that a method without check reads in an epoch."""
    world = make_world()
    options = Recorder(
        **options_for(method, **{**small_options(method), **changes}).final_config_dict
    )
    method.assistant(options, 8)
    teacher = world.frozen_teacher()
    scorer = world.student.make_scorer(world.history)
    distiller = method(options, Dataset(), world.student, scorer, teacher, world.history)
    distiller.begin_epoch(0, 1)
    distiller.calculate_loss(world.batch())
    return options.asked


def test_every_option_is_checked_and_read(
    method: type[Distiller], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = Recorder(**options_for(method, **small_options(method)).final_config_dict)
    method.check(checked, make_world().history)
    assert own_keys(method) - checked.asked == set(), "never checked"
    # What the constructor's own check asks for is not what the method goes by.
    monkeypatch.setattr(method, "check", classmethod(lambda cls, config, history: None))
    read = asked_for(method)
    defaults = method_defaults(method.__name__)
    for switch in [key for key in own_keys(method) if isinstance(defaults[key], bool)]:
        read |= asked_for(method, **{switch: not defaults[switch]})
    assert own_keys(method) - read == set(), "never read"


def test_every_option_says_its_type(method: type[Distiller]) -> None:
    values = method_defaults(method.__name__)
    nested = {key for section in SECTIONS for key in values.get(section, {})}
    types = declared(method)
    assert set(types) == own_keys(method) | nested
    python = {"int": int, "float": (int, float), "str": str, "bool": bool}
    for key in own_keys(method):
        value, name = values[key], types[key].type
        assert isinstance(value, python[name]) if value is not None else types[key].nullable, key
        assert name == "bool" or not isinstance(value, bool), key


NONSENSE: dict[str, list[Any]] = {
    "NoneType": [],
    "int": ["many", 1.5, True, [1], math.nan],
    "float": ["much", True, [0.5], math.nan, math.inf],
    "str": ["nonsense", 3, ["teacher"]],
    "bool": ["yes", 2, [True]],
}


def test_nonsense_is_refused_before_anything_is_built(method: type[Distiller]) -> None:
    world = make_world()
    sizes, types = small_options(method), declared(method)
    for key in own_keys(method):
        wrong = NONSENSE[types[key].type]
        for value in wrong if types[key].nullable else [*wrong, None]:
            with pytest.raises(KDError) as refusal:
                world.check(method, **{**sizes, key: value})
            message = str(refusal.value)
            assert f"--{key}={value}" in message, (key, value)
            assert "allowed" in message
            assert "\n" not in message


def refusal_of(call: Callable[[], Any]) -> str:
    """What a call is refused with; nothing where it is not."""
    try:
        call()
    except KDError as error:
        return str(error)
    return ""


def test_negative_numbers_are_refused_or_work(method: type[Distiller]) -> None:
    refused, types = [], declared(method)
    for key in [k for k in own_keys(method) if types[k].type in ("int", "float")]:
        world, changes = make_world(), {**small_options(method), key: -1}
        message = refusal_of(functools.partial(world.check, method, **changes))
        if message:
            assert f"--{key}=-1: " in message
            refused.append(key)
            continue
        assert types[key].type == "float", key
        assert torch.isfinite(kd_of(build(method, world, **changes), world))
    assert "kd_weight" in refused


def test_numbers_far_above_the_items_there_are_are_refused_or_work(
    method: type[Distiller],
) -> None:
    types = declared(method)
    for key in [k for k in own_keys(method) if types[k].type == "int"]:
        world, changes = make_world(), {**small_options(method), key: 500}
        message = refusal_of(functools.partial(build, method, world, **changes))
        assert not message or key in message
        if not message:
            assert torch.isfinite(kd_of(build(method, world, **changes), world))


def test_what_a_method_brings_is_documented(method: type[Distiller]) -> None:
    """The source with its year in the class; something said of all that is public."""
    if not is_ours(method):
        pytest.skip("not of this house")
    assert re.search(r"\b(19|20)\d\d\b", inspect.getdoc(method) or "")
    module = inspect.getmodule(method)
    for name, member in vars(module).items():
        if getattr(member, "__module__", "") == method.__module__ and not name.startswith("_"):
            assert member.__doc__, name


# -- tools of the base class -------------------------------------------------------------------


def test_items_that_are_left_and_items_that_are_not() -> None:
    world = make_world()
    users = torch.tensor([1] * 58 + [2])
    items = torch.cat([torch.arange(1, 59), torch.tensor([5])])
    history = UserHistory.from_pairs(users, items, 14, 60)
    plain = method_class("CE")
    assert plain is not None
    distiller = dataclasses.replace(world, history=history).distiller(plain, ce_K=2)
    assert distiller.free_items(torch.tensor([2, 1])).tolist() == [58, 1]
    found = {
        user: sorted(set(items) - {60})
        for users, left_out in distiller.excluded_items()
        for user, items in zip(users.tolist(), left_out.tolist(), strict=True)
    }
    assert found == {1: list(range(59)), 2: [0, 5]}
    lists = torch.full((14, 2), 59)
    other = dataclasses.replace(world, history=history).distiller(plain, ce_K=2)
    ((users, left_out),) = other.excluded_items(lists)
    assert users.tolist() == [1, 2]
    assert left_out.tolist() == [list(range(60)), [0, 5, 59] + [60] * 57]


def entities_of(batch: dict[str, Tensor], world: World, **changes: Any) -> Entities:
    vectors = next(m for m in map(method_class, NAMES) if m and issubclass(m, EmbeddingDistiller))
    return build(vectors, world, **changes).entities(batch)


def test_entities_of_a_batch_are_distinct_and_known() -> None:
    world = partly_known()
    unknown = (world.item_ids < 0).nonzero()[0].item()
    batch = {"user_id": torch.tensor([3, 1, 3, 2]), "item_id": torch.tensor([9, unknown, 4, 9])}
    sampled = torch.tensor([[8, 4], [unknown, 8], [0, 5], [5, 5]])
    found = entities_of({**batch, "neg_item_id": sampled}, world)
    assert found.users.tolist() == [1, 3]
    assert (found.positives.tolist(), found.negatives.tolist()) == ([4, 9], [4, 5, 8])
    assert found.items.tolist() == [4, 5, 8, 9]
    assert found.rows == 4
    alone = entities_of(batch, world)
    assert (alone.positives.tolist(), alone.negatives.tolist()) == ([4, 9], [])


def test_entities_of_labelled_rows_and_of_sequences() -> None:
    world = make_world()
    batch = {"user_id": torch.tensor([3, 1, 3]), "item_id": torch.tensor([9, 7, 4])}
    labelled = entities_of({**batch, "label": torch.tensor([1.0, 0.0, 1.0])}, world)
    assert (labelled.positives.tolist(), labelled.negatives.tolist()) == ([4, 9], [7])
    lists = {"item_id_list": torch.tensor([[5, 9, 0], [6, 0, 0], [2, 3, 5]])}
    causal = {"MODEL_TYPE": ModelType.SEQUENTIAL, "LIST_SUFFIX": "_list"}
    every = entities_of({**batch, **lists}, world, **causal, sequence_training="causal")
    assert every.positives.tolist() == [2, 3, 4, 5, 6, 7, 9]
    last = entities_of({**batch, **lists}, world, **causal, sequence_training="prefix")
    assert last.positives.tolist() == [4, 7, 9]


def test_drawn_entities_are_distinct_known_and_even() -> None:
    world = partly_known()
    vectors = next(m for m in map(method_class, NAMES) if m and issubclass(m, EmbeddingDistiller))
    distiller = build(vectors, world)
    known = (world.item_ids > 0).nonzero().squeeze(1)
    counts = torch.zeros(60)
    for epoch in range(400):
        distiller.begin_epoch(epoch, 1)
        users, items = distiller.draw_entities(9)
        assert len(users.unique()) == len(items.unique()) == 9
        assert distiller.teacher.knows_user[users].all()
        assert torch.equal(distiller.draw_entities(9)[1], items), "the same step draws the same"
        counts[items] += 1
    assert counts.nonzero().squeeze(1).tolist() == known.tolist()
    share = 9 / len(known)
    assert (counts[known] - 400 * share).abs().max() < 4.5 * (400 * share * (1 - share)) ** 0.5
    everyone = distiller.draw_entities(1000)
    assert [len(ids) for ids in everyone] == [len(distiller.users), len(known)]


# -- what runs and data sets may be like -------------------------------------------------------


def test_mixed_precision_leaves_the_distillation_in_float32(method: type[Distiller]) -> None:
    """RecBole's ``enable_amp`` wraps the loss of a step, and with it the first look at a list."""
    losses = []
    for enabled in (False, True):
        life = Life(method)
        life.distiller.begin_epoch(0, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            _, kd = life.distiller.calculate_loss(life.world.batch())
        assert kd.dtype == torch.float32
        losses.append(kd.item())
    assert losses[0] == losses[1]


def test_repeated_interactions_hide_an_item_once(method: type[Distiller]) -> None:
    """A user may have had one item a hundred times: that is one item of the catalogue."""
    world = make_world()
    users, items = world.history.pairs()
    again = (users == users[0]) & (items == items[0])
    users = torch.cat([users, users[again].repeat(100)])
    items = torch.cat([items, items[again].repeat(100)])
    sizes = world.history.n_users, world.history.n_items
    world.history = UserHistory.from_pairs(users, items, *sizes)
    distiller = world.distiller(method, **small_options(method))
    distiller.begin_epoch(0, 1)
    base, kd = distiller.calculate_loss(world.batch())
    assert torch.isfinite(base + kd)
    free = sizes[1] - 1 - len(set(world.train_items(int(users[0]))))
    assert distiller.free_items(users[:1]).tolist() == [free]


class OwnTables(Distiller):
    """Makes its lists in ``refresh`` and keeps none of them for a resumed run."""

    defaults: ClassVar = {"kd_weight": 1.0, "kd_rows": "user", "refresh_every": 3}

    def refresh(self, epoch: int) -> dict[str, float]:
        self.lists = self.teacher.top_k(5)[0]
        return {}

    def kd_loss(self, rows: Rows) -> Tensor:
        scores = self.scorer.score(self.scorer.encode(rows.users), self.lists[rows.users].long())
        return rows.mean(scores.square().sum(1))


def test_a_resumed_method_that_keeps_nothing_refreshes_at_once() -> None:
    world = make_world()
    old, new = (world.distiller(OwnTables, **OwnTables.defaults) for _ in range(2))
    old.begin_epoch(0, 1)
    new.load_resume_state(old.resume_state())
    new.begin_epoch(1, 1)
    assert torch.equal(new.lists, old.lists)


class Variant(RD):
    """A shipped method, changed by its subclass."""


def test_a_subclass_of_a_shipped_method_has_its_options() -> None:
    inherited = method_defaults(f"{Variant.__module__}:Variant")
    assert inherited == method_defaults("RD")
    assert method_defaults(f"{OwnTables.__module__}:OwnTables") == OwnTables.defaults


def test_collaborative_draws_belong_to_their_options() -> None:
    """Draws that are made once are made by each process: other options are not ignored."""
    world = make_world()
    sizes = small_options(CD)
    old = world.distiller(CD, **sizes, cd_guide="student")
    new, fresh = (world.distiller(CD, **sizes, cd_guide="teacher", cd_t1=7.0) for _ in range(2))
    for distiller in (old, fresh):
        distiller.begin_epoch(0, 1)
    new.load_resume_state(old.resume_state())
    new.begin_epoch(1, 1)
    assert torch.equal(new.items, fresh.items)
    assert torch.equal(new.targets, fresh.targets)


def test_collaborative_labels_leave_out_what_the_teacher_does_not_know() -> None:
    world = make_world()
    world.item_ids = torch.arange(world.student.n_items)
    world.item_ids[20:] = -1
    distiller = world.distiller(CD, **small_options(CD), cd_n=8)
    distiller.begin_epoch(0, 1)
    items = distiller.items[distiller.users]
    assert (items == 0).any()
    assert (items < 20).all()
