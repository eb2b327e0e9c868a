"""Scorers against each model's own scores, their gradients, and the shared propagation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from recbole.data.interaction import Interaction
from recbole.model.general_recommender.bpr import BPR
from recbole.model.general_recommender.lightgcn import LightGCN as RecBoleLightGCN
from recbole.model.general_recommender.simplex import SimpleX as RecBoleSimpleX
from torch import Tensor

from recbole_kd import load_model, scoring, training
from recbole_kd.backbones.lightgcn import LightGCN
from recbole_kd.gather import gather_dot
from recbole_kd.history import UserHistory
from recbole_kd.scoring import (
    CosineScorer,
    DenseScorer,
    FactorScorer,
    GraphScorer,
    SequenceScorer,
    TableScorer,
    scorer_for,
)

FACTORISED = {
    "BPR": TableScorer,
    "LightGCN": GraphScorer,
    "SimpleX": CosineScorer,
    "SASRec": SequenceScorer,
    "GRU4Rec": SequenceScorer,
}
TEMPERATURES = {"SimpleX": 0.1}
DENSE = ("NeuMF", "MultiVAE", "ItemKNN", "EASE")
SEQUENTIAL = ("SASRec", "GRU4Rec")


def history_lists(name: str) -> dict[int, list[int]]:
    """Train items of every user, oldest first, by a plain loop over the data set's rows."""
    part = tiny.split_for(name)
    users = {token: i for i, token in enumerate(part.tokens.users)}
    items = {token: i for i, token in enumerate(part.tokens.items)}
    held = set(zip(*(t.tolist() for t in part.held_out()), strict=True))
    rows = sorted(tiny.interactions(), key=lambda row: (int(row[0]), float(row[3])))
    lists: dict[int, list[int]] = {}
    for user, item, _, _ in rows:
        pair = users[user], items[item]
        if pair not in held:
            lists.setdefault(pair[0], []).append(pair[1])
    return lists


def own_input(name: str, model: Any, users: list[int]) -> Interaction:
    """The users as the model's own ``predict`` reads them, sequences made by a plain loop."""
    fields = {model.USER_ID: torch.tensor(users)}
    if name in SEQUENTIAL:
        part, length = tiny.split_for(name), model.max_seq_length
        latest = [part.history.items[a:b].tolist()[-length:] for a, b in bounds(part, users)]
        rows = [list(row) + [0] * (length - len(row)) for row in latest]
        fields[model.ITEM_SEQ] = torch.tensor(rows)
        fields[model.ITEM_SEQ_LEN] = torch.tensor([len(row) for row in latest])
    return Interaction(fields)


def bounds(part: Any, users: list[int]) -> list[tuple[int, int]]:
    offsets = part.history.offsets.tolist()
    return [(offsets[u], offsets[u + 1]) for u in users]


def naive(name: str, model: Any, users: Tensor, items: Tensor) -> Tensor:
    """``[B, K]`` scores from the model's own ``predict``, one row at a time, as logits."""
    rows = []
    for user, row in zip(users.tolist(), items, strict=True):
        pairs = own_input(name, model, [user] * len(row))
        pairs.update(Interaction({model.ITEM_ID: row}))
        rows.append(model.predict(pairs))
    return torch.stack(rows) / TEMPERATURES.get(name, 1)


def some_items(rows: int, width: int, n_items: int) -> Tensor:
    """Item ids with repeats, the first and the last item among them."""
    items = torch.randint(1, n_items, (rows, width), generator=torch.Generator().manual_seed(2))
    items[:, -1] = items[:, 0]
    items[0, 1], items[-1, 1] = 1, n_items - 1
    return items


@pytest.mark.parametrize("name", [*FACTORISED, *DENSE])
def test_scores_are_those_of_the_model(name: str) -> None:
    part, model = tiny.split_for(name), tiny.model(name)
    scorer = scorer_for(model, part.history)
    assert type(scorer) is FACTORISED.get(name, DenseScorer)
    assert scorer.factorised == (name in FACTORISED)
    users = tiny.users_of(part)
    items = some_items(len(users), 7, part.history.n_items)
    with torch.no_grad():
        state = scorer.encode(users)
        scores, everything = scorer.score(state, items), scorer.score_all(state)
        expected = naive(name, model, users, items)
    assert expected.std() > 1e-3, "a test of equal scores needs scores that differ"
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores, everything.gather(1, items), rtol=1e-4, atol=1e-5)
    assert everything.shape == (len(users), part.history.n_items)
    if name != "NeuMF":  # it has no full ranking of its own
        with torch.no_grad():
            ranked = model.full_sort_predict(own_input(name, model, users.tolist()))
        ranked = ranked.view_as(everything) / TEMPERATURES.get(name, 1)
        torch.testing.assert_close(everything, ranked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FACTORISED)
def test_gradients_are_those_of_the_model(name: str) -> None:
    part, model = tiny.split_for(name), tiny.model(name, spread=0.3)
    scorer = scorer_for(model, part.history)
    users = tiny.users_of(part, 5)
    items = some_items(len(users), 6, part.history.n_items)
    weights = torch.randn(items.shape, generator=torch.Generator().manual_seed(4))
    found, expected = [], []
    for gradients, scores in (
        (found, lambda: scorer.score(scorer.encode(users), items)),
        (expected, lambda: naive(name, model, users, items)),
    ):
        model.zero_grad(set_to_none=True)
        (scores() * weights).sum().backward()
        gradients += [(n, p.grad) for n, p in model.named_parameters()]
    assert sum(g is not None and bool(g.any()) for _, g in expected) >= 2
    for (parameter, a), (_, b) in zip(found, expected, strict=True):
        assert (a is None) == (b is None), parameter
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=lambda m, n=parameter: n + m)


@pytest.mark.parametrize("name", FACTORISED)
def test_full_scores_carry_the_same_gradient(name: str) -> None:
    part, model = tiny.split_for(name), tiny.model(name, spread=0.3)
    scorer = scorer_for(model, part.history)
    users = tiny.users_of(part, 4)
    items = torch.arange(part.history.n_items).expand(len(users), -1)
    grads = []
    for score in (lambda s: scorer.score(s, items), scorer.score_all):
        model.zero_grad(set_to_none=True)
        score(scorer.encode(users)).sigmoid().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["NeuMF", "MultiVAE"])
def test_dense_scores_have_no_gradient_and_are_no_cache_of_the_model(name: str) -> None:
    part, model = tiny.split_for(name), tiny.model(name)
    scorer = scorer_for(model, part.history)
    users = tiny.users_of(part, 3)
    first = scorer.score_all(scorer.encode(users))
    assert not first.requires_grad
    kept = first.clone()
    first.fill_(-torch.inf)
    torch.testing.assert_close(scorer.score_all(scorer.encode(users)), kept, rtol=0, atol=0)


def test_a_models_cached_scores_survive_a_caller_that_masks() -> None:
    class Cached(BPR):
        def full_sort_predict(self, interaction: Any) -> Tensor:
            if not hasattr(self, "kept"):
                self.kept = super().full_sort_predict(interaction)
            return self.kept

    part = tiny.split_for("BPR")
    model = Cached(tiny.config("BPR"), part.train).eval()
    scorer = DenseScorer(model, part.history)
    users = tiny.users_of(part, 3)
    part.history.mask_(scorer.score_all(users), users)
    assert torch.isfinite(scorer.score_all(users)).all()


def test_pairs_are_scored_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    part, model = tiny.split_for("NeuMF"), tiny.model("NeuMF")
    scorer = scorer_for(model, part.history)
    users = tiny.users_of(part)
    items = some_items(len(users), 7, part.history.n_items)
    whole = scorer.score(users, items)
    sizes = []
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda pairs: sizes.append(len(pairs)) or predict(pairs))
    monkeypatch.setattr(DenseScorer, "pair_budget", 15)
    torch.testing.assert_close(scorer.score(users, items), whole)
    assert sizes == [14] * (len(users) // 2)


# -- gather_dot ----------------------------------------------------------------------------------


def operands(
    rows: int, width: int, dtype: torch.dtype, n_items: int = 6
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 10 + width)
    users = torch.randn(rows, 5, dtype=dtype, generator=generator, requires_grad=True)
    items = torch.randn(n_items, 5, dtype=dtype, generator=generator, requires_grad=True)
    return users, items, torch.randint(0, n_items, (rows, width), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rows", "width"), [(7, 6), (7, 9), (7, 1), (1, 12), (1, 1), (0, 3), (3, 0)]
)
def test_gather_dot_is_the_einsum(rows: int, width: int, dtype: torch.dtype) -> None:
    users, items, ids = operands(rows, width, dtype)
    if width >= 6:
        assert ids[0].unique().numel() < width, "repeated ids within a row are to be covered"
    scores = gather_dot(users, items, ids)
    expected = torch.einsum("bd,bkd->bk", users, items[ids])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(scores, expected, rtol=tolerance, atol=tolerance)
    outer = torch.randn_like(expected)
    found = torch.autograd.grad(scores, (users, items), outer)
    wanted = torch.autograd.grad(expected, (users, items), outer)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_gather_dot_passes_gradcheck_with_any_operand_constant() -> None:
    users, items, ids = operands(4, 6, torch.float64)
    assert torch.autograd.gradcheck(lambda u, i: gather_dot(u, i, ids), (users, items))
    fixed_users, fixed_items = users.detach(), items.detach()
    assert torch.autograd.gradcheck(lambda i: gather_dot(fixed_users, i, ids), (items,))
    assert torch.autograd.gradcheck(lambda u: gather_dot(u, fixed_items, ids), (users,))


def test_gather_dot_refuses_a_second_derivative_instead_of_a_wrong_one() -> None:
    users, items, ids = operands(3, 4, torch.float64)
    grad = torch.autograd.grad(gather_dot(users, items, ids).pow(2).sum(), users, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad[0].sum().backward()


def test_gather_dot_of_strided_operands_and_an_expanded_gradient() -> None:
    users, items, ids = operands(6, 5, torch.float64)
    wide = torch.randn(12, 10, dtype=torch.float64, requires_grad=True)
    columns = torch.randint(0, 5, (4, 6)).t()
    assert not columns.is_contiguous()
    for u, i, k in ((wide[::2, ::2], items, ids), (users, wide[:, 5:], columns)):
        found = gather_dot(u, i, k)
        expected = torch.einsum("bd,bkd->bk", u, i[k])
        torch.testing.assert_close(found, expected)
        a = torch.autograd.grad(found.sum(), wide, retain_graph=True)[0]
        b = torch.autograd.grad(expected.sum(), wide, retain_graph=True)[0]
        torch.testing.assert_close(a, b)


# -- LightGCN ------------------------------------------------------------------------------------


def graph_batch(part: Any) -> Interaction:
    generator = torch.Generator().manual_seed(6)
    users = part.history.active_users()[:20]
    negatives, positives = (
        torch.randint(1, part.history.n_items, (20,), generator=generator) for _ in range(2)
    )
    return Interaction({"user_id": users, "item_id": positives, "neg_item_id": negatives})


class Step:
    """A LightGCN student with a base loss and a distillation loss."""

    def __init__(self, cls: type[Any] = LightGCN):
        self.part = tiny.split_for("LightGCN")
        self.model = cls(tiny.config("LightGCN"), self.part.train)
        self.scorer = scorer_for(self.model, self.part.history)
        self.batch = graph_batch(self.part)
        self.items = some_items(20, 5, self.part.history.n_items)
        self.calls = 0

    def base(self) -> Tensor:
        return self.model.calculate_loss(self.batch)

    def kd(self) -> Tensor:
        state = self.scorer.encode(self.batch["user_id"])
        return self.scorer.score(state, self.items).sigmoid().mean()

    def gradients(self, *losses: Any) -> list[Tensor]:
        self.model.zero_grad(set_to_none=True)
        with self.scorer.step():
            sum(loss() for loss in losses).backward()
        return [p.grad.clone() for p in self.model.parameters()]


@pytest.fixture
def step() -> Step:
    return Step()


def count_propagations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls = [0]
    original = LightGCN.forward

    def counted(self: Any) -> Any:
        calls[0] += 1
        return original(self)

    monkeypatch.setattr(LightGCN, "forward", counted)
    return calls


def test_one_propagation_serves_base_loss_and_distillation(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_propagations(monkeypatch)
    both = step.gradients(step.base, step.kd, step.kd)
    assert calls == [1]
    parts = [step.gradients(loss) for loss in (step.base, step.kd, step.kd)]
    separate = [sum(gradients) for gradients in zip(*parts, strict=True)]
    assert calls == [4]
    assert both[0].any()
    for a, b in zip(both, separate, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_nothing_is_kept_after_a_step(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    step.gradients(step.base, step.kd)
    before = step.scorer.score_all(step.scorer.encode(step.batch["user_id"]))
    with torch.no_grad():
        step.model.item_embedding.weight.mul_(-2)
    after = step.scorer.score_all(step.scorer.encode(step.batch["user_id"]))
    assert not torch.allclose(before, after)
    with torch.no_grad():
        torch.testing.assert_close(
            after, naive("LightGCN", step.model, step.batch["user_id"], all_items(step, 20))
        )
    kept = [v for v in vars(step.model).values() if isinstance(v, tuple)]
    kept += [v for v in vars(step.scorer).values() if isinstance(v, tuple)]
    assert kept == []
    with step.scorer.step():
        in_step = step.scorer.score_all(step.scorer.encode(step.batch["user_id"]))
    torch.testing.assert_close(in_step, after)
    calls = count_propagations(monkeypatch)
    step.model.forward(), step.model.forward()
    assert calls == [2]


def test_a_step_inside_a_step_leaves_the_outer_one_in_place(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_propagations(monkeypatch)
    with step.scorer.step():
        with step.scorer.step():
            step.model.forward()
        step.model.forward()
    assert calls == [1]
    assert "forward" not in vars(step.model)


def test_a_forward_with_arguments_is_the_models_own_affair(step: Step) -> None:
    """SimGCL and the like propagate with noise in their loss, and without it for scores."""
    original = step.model.forward
    step.model.forward = lambda noise=0.0: tuple(t + noise for t in original())
    with step.scorer.step():
        plain = step.model.forward()
        noisy = step.model.forward(noise=1.0)
        assert step.model.forward() is plain
    torch.testing.assert_close(noisy[0], plain[0] + 1)
    assert step.model.forward(noise=2.0)[0] is not noisy[0]


def all_items(step: Step, rows: int) -> Tensor:
    return torch.arange(step.part.history.n_items).expand(rows, -1)


def test_a_step_that_fails_keeps_nothing(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "base", lambda: step.kd() / 0 + 1 // 0)
    with pytest.raises(ZeroDivisionError):
        step.gradients(step.base)
    calls = count_propagations(monkeypatch)
    step.kd(), step.kd()
    assert calls == [4]


@pytest.mark.parametrize("cls", [LightGCN, RecBoleLightGCN])
def test_distillation_has_a_gradient_after_an_evaluation(cls: type[Any]) -> None:
    """RecBole's LightGCN keeps its embeddings after an evaluation, and drops them too late."""
    step = Step(cls)
    fresh = step.gradients(step.kd)
    step.model.eval()
    with torch.no_grad():
        step.model.full_sort_predict(step.batch)
    assert step.model.restore_user_e is not None
    assert not step.model.full_sort_predict(step.batch).requires_grad, "the trap itself"
    for a, b in zip(step.gradients(step.kd), fresh, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b)


def test_lightgcn_is_recboles() -> None:
    part, config = tiny.split_for("LightGCN"), tiny.config("LightGCN")
    ours, theirs = LightGCN(config, part.train), RecBoleLightGCN(config, part.train)
    torch.testing.assert_close(
        ours.norm_adj_matrix.to_dense(), theirs.norm_adj_matrix.to_dense(), rtol=0, atol=1e-6
    )
    assert ours.norm_adj_matrix.dtype == theirs.norm_adj_matrix.dtype
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    batch = graph_batch(part)
    for name in ("calculate_loss", "predict", "full_sort_predict"):
        a, b = (getattr(m.eval(), name)(batch) for m in (ours, theirs))
        torch.testing.assert_close(a, b)


def test_lightgcn_counts_a_repeated_interaction_once_and_keeps_isolated_nodes_finite() -> None:
    part, config = tiny.split_for("LightGCN"), tiny.config("LightGCN")
    matrix = part.train.inter_matrix(form="coo")
    for name in ("row", "col", "data"):
        setattr(matrix, name, getattr(matrix, name)[[*range(300), 0, 0, 1]])
    assert len(matrix.row) == 303
    adjacency = []
    for cls in (LightGCN, RecBoleLightGCN):
        model = cls(config, part.train)
        model.interaction_matrix = matrix
        adjacency.append(model.get_norm_adj_mat().to_dense())
    torch.testing.assert_close(*adjacency, rtol=0, atol=1e-6)
    assert torch.isfinite(adjacency[0]).all()
    assert (adjacency[0].sum(1) == 0).any(), "some node is isolated"
    assert adjacency[0].count_nonzero() == 600


# -- SimpleX -------------------------------------------------------------------------------------


def simplex(**more: Any) -> tuple[Any, Any]:
    """A SimpleX of random weights with its scorer."""
    model: Any = tiny.model("SimpleX", **more)
    return model, scorer_for(model, tiny.split_for("SimpleX").history)


@pytest.mark.parametrize("aggregator", ["mean", "user_attention", "self_attention"])
def test_simplex_vectors_are_units_and_its_scores_recboles(aggregator: str) -> None:
    model, scorer = simplex(aggregator=aggregator)
    users = tiny.users_of(tiny.split_for("SimpleX"))
    with torch.no_grad():
        wanted = RecBoleSimpleX.full_sort_predict(model, Interaction({"user_id": users}))
        found = scorer.score_all(scorer.encode(users))
        vectors = scorer.user_vectors(users), scorer.item_vectors()
    torch.testing.assert_close(found, wanted / 0.1)
    torch.testing.assert_close(vectors[0] @ vectors[1].t(), wanted)
    for unit in (vectors[0], vectors[1][1:]):
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(len(unit)))


def test_simplex_teaches_user_and_item_tables() -> None:
    model, scorer = simplex()
    users = tiny.users_of(tiny.split_for("SimpleX"), 4)
    with scorer.step():
        scorer.score_all(scorer.encode(users)).sigmoid().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert set(gradients) == {"user_emb.weight", "item_emb.weight", "UI_map.weight"}
    moved = gradients["user_emb.weight"].abs().sum(1).nonzero().squeeze(1)
    assert moved.tolist() == users.unique().tolist()
    assert gradients["item_emb.weight"][1:].abs().sum(1).all()
    assert not gradients["item_emb.weight"][0].any()
    assert all(torch.isfinite(g).all() for g in gradients.values())


def test_simplex_drops_out_in_training_alone() -> None:
    model, scorer = simplex(dropout_prob=0.5)
    users = tiny.users_of(tiny.split_for("SimpleX"))
    fixed = [scorer.encode(users) for _ in range(2)]
    assert torch.equal(*fixed)
    model.train()
    drawn = [scorer.encode(users) for _ in range(2)]
    assert not torch.equal(*drawn)
    torch.manual_seed(1)
    found = scorer.user_vectors(users)
    torch.manual_seed(1)
    items = model.item_emb(model.history_item_id[users])
    parts = model.user_emb(users), items, model.history_item_len[users]
    dropped = model.dropout(model.get_UI_aggregation(*parts))
    assert (dropped == 0).any()
    torch.testing.assert_close(found, dropped / dropped.norm(dim=1, keepdim=True))


def test_simplex_item_vectors_are_made_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, scorer = simplex()
    made = []
    original = type(model).item_vectors
    monkeypatch.setattr(type(model), "item_vectors", lambda m: made.append(1) or original(m))
    users = tiny.users_of(tiny.split_for("SimpleX"))
    with scorer.step():
        state = scorer.encode(users)
        scorer.score_all(state), scorer.score(state, users.unsqueeze(1)), scorer.item_vectors()
    assert len(made) == 1
    scorer.item_vectors(), scorer.item_vectors()
    assert len(made) == 3


def histories(model: Any, part: Any) -> list[set[tuple[str, str]]]:
    """What each user is mixed with, by token."""
    names = part.tokens
    rows = zip(model.history_item_id.tolist(), model.history_item_len.tolist(), strict=True)
    return [{(names.users[u], names.items[i]) for i in row[:n]} for u, (row, n) in enumerate(rows)]


@pytest.mark.parametrize("family", ["BPR", "SASRec"])
def test_simplex_mixes_in_train_items_drawn_from_the_splits_seed(family: str) -> None:
    """Some of each user's, the same whenever the model is built, and none that is held out."""
    part = tiny.split(family)
    sources = {"eval_args": tiny.config(family)["eval_args"]}
    models = [
        training.build_plain(tiny.config("SimpleX", split_seed=seed, **sources), part)
        for seed in (1, 1, 2)
    ]
    first, again, other = (histories(model, part) for model in models)
    assert first == again
    assert first != other
    users, items = (t.tolist() for t in part.history.pairs())
    trained = {(part.tokens.users[u], part.tokens.items[i]) for u, i in zip(users, items)}  # noqa: B905
    counts = part.history.counts.tolist()
    assert max(counts) > 20
    for drawn in (first, other):
        assert [len(d) for d in drawn] == [min(20, n) for n in counts]
        assert set().union(*drawn) <= trained
    held = part.held_out()
    secret = {(part.tokens.users[u], part.tokens.items[i]) for u, i in zip(*held, strict=True)}
    assert not set().union(*first) & secret


def test_simplex_is_the_same_from_its_checkpoint(tmp_path: Path) -> None:
    result = tiny.run("SimpleX", tmp_path)
    part = tiny.split("BPR")
    again = load_model(result["checkpoints"]["student"])
    options = tiny.config("SimpleX")
    rebuilt: Any = training.build_plain(options, part)
    assert torch.equal(again.model.history_item_id, rebuilt.history_item_id)
    rebuilt.load_state_dict(again.model.state_dict())
    users = tiny.users_of(part)
    state = again.scorer.encode(users)
    batch = Interaction({"user_id": users})
    with torch.no_grad():
        wanted = rebuilt.eval().full_sort_predict(batch) / 0.1
    torch.testing.assert_close(again.scorer.score_all(state), wanted)
    # RecBole's own class takes the weights, and where it keeps all items of a user the scores too.
    whole = tiny.config("SimpleX", history_len=200)
    plain = RecBoleSimpleX(whole, part.train)
    plain.load_state_dict(again.model.state_dict())
    ours: Any = training.build_plain(whole, part)
    ours.load_state_dict(again.model.state_dict())
    with torch.no_grad():
        scores = [model.eval().full_sort_predict(batch) for model in (plain, ours)]
    torch.testing.assert_close(*scores)


# -- sequences -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_sequences_are_the_latest_train_items(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part, model = tiny.split_for(name), tiny.model(name)
    lists = history_lists(name)
    seen = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *a: seen.append(a) or forward(*a))
    users = part.history.active_users()
    scorer_for(model, part.history).encode(users)
    ((sequences, lengths),) = seen
    assert sequences.shape == (len(users), 8)
    assert max(len(items) for items in lists.values()) > 8
    times = {(row[0], row[1]): float(row[3]) for row in tiny.interactions()}
    held: dict[int, set[int]] = {}
    for user, item in zip(*(t.tolist() for t in part.held_out()), strict=True):
        held.setdefault(user, set()).add(item)
    for user, row, length in zip(users.tolist(), sequences.tolist(), lengths.tolist(), strict=True):
        assert length == min(8, len(lists[user]))
        assert not row[length:] or set(row[length:]) == {0}
        assert not set(row) & held[user]
        token = part.tokens.users[user]
        # Items of one moment may come in any order: compare the times.
        found, wanted = (
            [times[token, part.tokens.items[i]] for i in items]
            for items in (row[:length], lists[user][-length:])
        )
        assert found == wanted
        assert len(set(row[:length])) == length
        assert set(row[:length]) <= set(lists[user])


def test_padded_by_brute_force() -> None:
    pairs = [(2, 5), (1, 3), (2, 4), (4, 1), (2, 6), (1, 2)]
    users, items = (torch.tensor(column) for column in zip(*pairs, strict=True))
    history = UserHistory.from_pairs(users, items, 6, 7)
    for length in (1, 2, 3, 5):
        for user in range(6):
            own = [i for u, i in pairs if u == user][-length:]
            row, count = history.padded(torch.tensor([user]), length)
            assert row.tolist() == [own + [0] * (length - len(own))]
            assert count.tolist() == [max(1, len(own))]


# -- which scorer --------------------------------------------------------------------------------


def test_a_subclass_that_scores_differently_does_not_get_the_parents_scorer() -> None:
    class Shifted(BPR):
        def full_sort_predict(self, interaction: Any) -> Tensor:
            return super().full_sort_predict(interaction) * 2 + 1

        def predict(self, interaction: Any) -> Tensor:
            return super().predict(interaction) * 2 + 1

    part = tiny.split_for("BPR")
    model = Shifted(tiny.config("BPR"), part.train).eval()
    scorer = scorer_for(model, part.history)
    assert not isinstance(scorer, FactorScorer)
    users = tiny.users_of(part, 4)
    items = some_items(len(users), 5, part.history.n_items)
    with torch.no_grad():
        torch.testing.assert_close(
            scorer.score(users, items), naive("BPR", model, users, items), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(scoring.KDError, match="student=Shifted"):
        scoring.require_factorised(Shifted, "Shifted")


def test_a_class_may_bring_its_own_scorer() -> None:
    class Own(BPR):
        def make_scorer(self, history: UserHistory) -> TableScorer:
            return TableScorer(self, history)

    part = tiny.split_for("BPR")
    assert isinstance(scorer_for(Own(tiny.config("BPR"), part.train), part.history), TableScorer)
    scoring.require_factorised(Own, "Own")


def test_what_a_step_makes_without_gradient_is_not_for_those_who_learn() -> None:
    part = tiny.split_for("LightGCN")
    model = tiny.model("LightGCN").train()
    scorer = scorer_for(model, part.history)
    with scorer.step():
        with torch.no_grad():
            assert not scorer.item_vectors().requires_grad
        assert scorer.item_vectors().requires_grad
        assert scorer.item_vectors() is scorer.item_vectors()


def test_what_a_step_makes_in_eval_mode_is_not_for_those_who_train() -> None:
    part = tiny.split_for("LightGCN")
    model = tiny.model("LightGCN").eval()
    scorer = scorer_for(model, part.history)
    with scorer.step():
        ranking = scorer.item_vectors()
        model.train()
        training = scorer.item_vectors()
        assert training is not ranking
        assert scorer.item_vectors() is training
        model.eval()
        assert scorer.item_vectors() is ranking
