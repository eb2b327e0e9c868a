"""HSTU: recorded values of the authors' code, and what must hold without them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_kd import losses
from recbole_kd.backbones import hstu
from recbole_kd.backbones.hstu import HSTU, OPTIONS
from recbole_kd.blocks import HSTUBlock, RelativeBias, length_groups, time_buckets
from recbole_kd.deploy import PlainConfig
from recbole_kd.errors import KDError
from recbole_kd.losses import full_softmax, sampled_softmax

DTYPES = [torch.float64, torch.float32]
ITEMS = 21  # with padding


def golden_folder() -> Path:
    """The folder of recorded values: a shared folder beside the checkout, or a named one."""
    given = os.environ.get("RECBOLE_KD_SHARED")
    root = Path(given) if given else Path(__file__).resolve().parents[2] / "shared"
    return root / "golden" / "hstu"


needs_golden = pytest.mark.skipif(
    not golden_folder().is_dir(), reason=f"no recorded values in {golden_folder()}"
)


class Golden:
    """One file, as tensors; keeps count of the arrays that a test has looked at."""

    def __init__(self, name: str):
        with np.load(golden_folder() / f"{name}.npz", allow_pickle=False) as content:
            self.arrays = {key: torch.from_numpy(content[key]) for key in content.files}
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.seen.add(name)
        return self.arrays[name]

    def weights(self, name: str, dtype: torch.dtype) -> Tensor:
        return self[name].to(dtype)

    def check(self, name: str, actual: Tensor, valid: Tensor | None = None) -> None:
        """Against the float64 record, and in float32 also against the recorded float32 run."""
        assert actual.shape == self[name].shape, name
        single = actual.dtype == torch.float32
        bounds = {name: 5e-5 if single else 1e-10}
        if f"{name}__f32" in self.arrays:
            self.seen.add(f"{name}__f32")
            if single:
                bounds[f"{name}__f32"] = 2e-5
        for key, bound in bounds.items():
            difference = (actual.detach().double() - self[key].double()).abs()
            if valid is not None:
                difference = difference[valid]
            assert difference.max() <= bound, key

    def all_seen(self) -> None:
        """Nothing recorded is left out, but what stands for what a test has no use of."""
        assert set(self.arrays) - self.seen <= {"target_ids"}


def options(**changed: Any) -> PlainConfig:
    """Options of the small model of the recorded runs: N = 11, two blocks."""
    values = {
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "TIME_FIELD": "timestamp",
        "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "item_length",
        "NEG_PREFIX": "neg_",
        "device": "cpu",
        "MAX_ITEM_LIST_LENGTH": 8,
        "hidden_size": 16,
        "n_layers": 2,
        "n_heads": 2,
        "attention_dim": 4,
        "linear_dim": 8,
        "hidden_dropout_prob": 0.0,
        "linear_dropout_prob": 0.0,
        "layer_norm_eps": 1e-6,
        "output_slots": 3,
        "relative_bias": "time_and_position",
        "time_anchor": "next",
        "num_time_buckets": 128,
        "time_bucket_divisor": 0.301,
        "loss_type": "sampled_softmax",
        "num_negatives": 5,
        "temperature": 0.05,
        "item_l2_norm": True,
        "torch_compile": False,
        "item_init": "truncated_normal",
        "memory_budget_gb": 0.1,
    }
    return PlainConfig({**values, **changed})


def make(dtype: torch.dtype = torch.float64, n_items: int = ITEMS, **changed: Any) -> HSTU:
    torch.manual_seed(1)
    return HSTU(options(**changed), SimpleNamespace(num=lambda field: n_items)).to(dtype)


def loud(model: HSTU) -> HSTU:
    """Weights so large that every part has a say; at initialisation blocks hardly do."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.7, generator=generator)
    return model


def filled(golden: Golden, dtype: torch.dtype, **changed: Any) -> HSTU:
    """The model with the recorded weights."""
    model = make(dtype, **changed)
    model.item_embedding.weight.data = golden.weights("item_embedding", dtype)
    model.position_embedding.weight.data = golden.weights("position_embedding", dtype)
    for index, block in enumerate(model.blocks):
        for name, parameter in block_parameters(block).items():
            parameter.data = golden.weights(f"block{index}.{name}", dtype)
    return model


def block_parameters(block: HSTUBlock) -> dict[str, torch.nn.Parameter]:
    """A block's parameters by the names of the record."""
    found = {"uvqk": block.uvqk, "o_weight": block.output.weight, "o_bias": block.output.bias}
    if block.bias is not None:
        found |= dict(block.bias.named_parameters())
    return found


def valid_slots(lengths: Tensor, slots: int) -> Tensor:
    return torch.arange(slots) < lengths.unsqueeze(1)


# -- recorded values: blocks --------------------------------------------------------------------


class Tap:
    """Records what a block hands to the functions it calls."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.norms: list[Tensor] = []
        self.gated: list[Tensor] = []
        layer_norm, dropout = F.layer_norm, F.dropout

        def norm(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.norms += [x, layer_norm(x, *args, **kwargs)]
            return self.norms[-1]

        def drop(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.gated.append(x)
            return dropout(x, *args, **kwargs)

        patch.setattr(F, "layer_norm", norm)
        patch.setattr(F, "dropout", drop)


BLOCKS = {
    "block_nobias": (8, 2, 4, 8),
    "block_relbias": (8, 2, 4, 8),
    "block_oddshape": (9, 3, 5, 4),
    "block_initscale": (8, 2, 4, 8),
}


@needs_golden
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BLOCKS)
def test_recorded_blocks(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden(name)
    length, heads, attention, linear = BLOCKS[name]
    x, buckets = golden.weights("x_in", dtype), None
    valid = valid_slots(golden["lengths"], length)
    timed = "timestamps" in golden.arrays
    if timed:
        times = golden["timestamps"]
        buckets = time_buckets(torch.cat([times[:, 1:], times[:, -1:]], dim=1), times)
    if "time_bucket" in golden.arrays:
        assert torch.equal(buckets, golden["time_bucket"])
    for index in range(2):
        bias = RelativeBias("time_and_position", length) if timed else None
        block = HSTUBlock(x.shape[-1], heads, attention, linear, length, bias=bias)
        for key, parameter in block_parameters(block).items():
            parameter.data = golden.weights(f"block{index}.{key}", dtype)
        with monkeypatch.context() as patch:
            tap = Tap(patch)
            out = block(x, buckets)
        _, normed_x, attended, normed = tap.norms
        projected = F.silu(normed_x @ block.uvqk).split(block.sizes, dim=-1)
        recorded = {
            "normed_x": normed_x,
            "attn_out": attended,
            "normed_attn": normed,
            "gated": tap.gated[0],
            "q": projected[2],
            "k": projected[3],
            "v": projected[1],
            "out": out,
        }
        for key, values in recorded.items():
            golden.check(f"block{index}.{key}", values, valid)
        if bias is not None:
            golden.check(f"block{index}.rel_bias", bias(length, buckets))
        x = out * valid.unsqueeze(2)
    golden.all_seen()


@needs_golden
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_recorded_time_buckets(dtype: torch.dtype) -> None:
    golden = Golden("time_buckets")
    seconds = golden["delta_seconds"].to(dtype)
    for sign in (1, -1):
        found = time_buckets(sign * seconds.unsqueeze(0), torch.zeros_like(seconds).unsqueeze(0))
        assert found.dtype == torch.int64
        assert torch.equal(found[0, :, 0], golden["bucket"])
    golden.all_seen()


# -- recorded values: the model -----------------------------------------------------------------


def check_encoder(golden: Golden, model: HSTU, times: list[Tensor], patch: Any) -> None:
    """Everything that the two files of the whole encoder hold."""
    items, lengths = golden["item_ids"], golden["lengths"]
    valid, outputs = valid_slots(lengths, items.shape[1]), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, out: outputs.append((inputs[0], out)))
    patch.setattr(hstu, "length_groups", lambda lengths: [torch.arange(len(lengths))])
    encoded = model.encode(items, lengths, *times)
    assert not encoded[~valid].any()
    longest = int(lengths.max())
    shown = valid[:, :longest]
    wide = [F.pad(t, (0, 0, 0, items.shape[1] - longest)) for t in (outputs[0][0], outputs[1][0])]
    assert not outputs[0][0][~shown].any()
    golden.check("x0", wide[0], valid)
    for index, (_, out) in enumerate(outputs):
        wide = F.pad(out, (0, 0, 0, items.shape[1] - longest))
        golden.check(f"block{index}.out", wide, valid)
    golden.check("encoded", encoded, valid)
    last = model.forward(items, lengths, *times)
    golden.check("last_state", last)
    golden.check("item_embedding_l2", model.item_vectors()[1:])
    scores = model.full_sort_predict(query(model, items, lengths, *times))
    golden.check("scores", scores[:, 1:])
    hidden = scores.scatter(1, items, -torch.inf)
    hidden[:, 0] = -torch.inf
    top = hidden.topk(10, dim=1)
    assert torch.equal(top.indices, golden["top10_ids_history_filtered"])
    golden.check("top10_scores_history_filtered", top.values)


def query(model: HSTU, items: Tensor, lengths: Tensor, *times: Tensor) -> Interaction:
    """A batch as RecBole gives it: lists, lengths, times of the lists and of the request."""
    fields = {model.ITEM_SEQ: items, model.ITEM_SEQ_LEN: lengths}
    names = (model.TIME_SEQ, model.TIME)
    return Interaction(fields | dict(zip(names, times, strict=False)))


@needs_golden
@pytest.mark.parametrize("dtype", DTYPES)
def test_recorded_encoder(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden("full_model")
    times = [golden["timestamps"].double(), golden["target_timestamps"].double()]
    check_encoder(golden, filled(golden, dtype), times, monkeypatch)
    golden.all_seen()


@needs_golden
@pytest.mark.parametrize("dtype", DTYPES)
def test_recorded_encoder_without_times(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = Golden("full_model_notime")
    check_encoder(golden, filled(golden, dtype, relative_bias="none"), [], monkeypatch)
    unused = {f"block{i}.{name}" for i in (0, 1) for name in ("pos_w", "ts_w")}
    golden.seen |= unused | {"target_timestamps"}
    golden.all_seen()


def recorded_negatives(model: HSTU, negatives: Tensor, patch: pytest.MonkeyPatch) -> None:
    def draw(rows: int) -> Tensor:
        assert rows == len(negatives)
        return negatives

    patch.setattr(model, "draw_negatives", draw)


@needs_golden
@pytest.mark.parametrize("dtype", DTYPES)
def test_recorded_train_step(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden("train_step")
    model, lengths = filled(golden, dtype), golden["lengths"]
    ids, times = golden["item_ids"], golden["timestamps"].double()
    last = lengths.unsqueeze(1)
    lists = [t.masked_fill(~valid_slots(lengths, t.shape[1]), 0)[:, :8] for t in (ids, times)]
    batch = query(model, lists[0], lengths, lists[1], times.gather(1, last).squeeze(1))
    batch.update(Interaction({model.ITEM_ID: ids.gather(1, last).squeeze(1)}))
    negatives = golden["negative_ids"]
    drawn = negatives[valid_slots(lengths, negatives.shape[1])]
    recorded_negatives(model, drawn, monkeypatch)
    loss = model.calculate_loss(batch)
    golden.check("loss", loss)
    encoded = model.encode(ids, lengths, times, times.gather(1, last).squeeze(1))
    golden.check("encoded", encoded, valid_slots(lengths, ids.shape[1]))
    loss.backward()
    golden.check("grad.item_embedding", model.item_embedding.weight.grad)
    assert not model.item_embedding.weight.grad[0].any()
    golden.check("grad.position_embedding", model.position_embedding.weight.grad)
    for index, block in enumerate(model.blocks):
        for name, parameter in block_parameters(block).items():
            golden.check(f"grad.block{index}.{name}", parameter.grad)
    golden.all_seen()


@needs_golden
@pytest.mark.parametrize("dtype", DTYPES)
def test_recorded_model_of_the_rcekd_authors(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No times, and the last item of the list is the last target."""
    golden = Golden("rcekd_model")
    model = filled(golden, dtype, relative_bias="none")
    items, lengths = golden["item_ids"], golden["lengths"]
    encoded = F.pad(model.encode(items, lengths), (0, 0, 0, 3))
    golden.check("encoded", encoded, valid_slots(lengths, 11))
    golden.check("last_state", model.forward(items, lengths))
    scores = model.full_sort_predict(query(model, items, lengths))
    golden.check("scores", scores[:, 1:])
    candidates = golden["candidate_items_zero_based"] + 1
    golden.check("multi_item_scores", scores.gather(1, candidates))
    for column, named in enumerate(candidates.t()):
        batch = query(model, items, lengths)
        batch.update(Interaction({model.ITEM_ID: named}))
        torch.testing.assert_close(model.predict(batch), scores.gather(1, candidates)[:, column])
    inputs = lengths - 1
    batch = query(model, items.masked_fill(~valid_slots(inputs, 8), 0), inputs)
    target = items.gather(1, inputs.unsqueeze(1)).squeeze(1)
    batch.update(Interaction({model.ITEM_ID: target}))
    drawn = golden["negative_ids"][valid_slots(inputs, 7)]
    recorded_negatives(model, drawn, monkeypatch)
    golden.check("loss", model.calculate_loss(batch))
    golden.all_seen()


@needs_golden
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("setting", ["l2_t0.05", "l2_t0.05_weighted", "nol2_t0.1"])
def test_recorded_sampled_softmax(setting: str, dtype: torch.dtype) -> None:
    golden = Golden("sampled_softmax")
    states, table = (
        golden.weights(name, dtype).requires_grad_()
        for name in ("output_embeddings", "item_embedding")
    )
    items = table if setting.startswith("nol2") else F.normalize(table, dim=1, eps=1e-6)
    temperature = 0.1 if setting == "nol2_t0.1" else 0.05
    weights = golden["weights_weighted" if "weighted" in setting else "weights"].to(dtype)
    assert not weights[~valid_slots(golden["lengths"], 8)].any()
    flat = (states.flatten(0, 1), items, golden["supervision_ids"].flatten())
    negatives = golden["negative_ids"].flatten(0, 1)
    loss = sampled_softmax(*flat, negatives, temperature, weights.flatten())
    golden.check(f"{setting}.loss", loss)
    single = [
        sampled_softmax(*flat, negatives, temperature, one)
        for one in torch.eye(len(negatives), dtype=dtype)
    ]
    counted = golden["supervision_ids"] > 0
    golden.check(f"{setting}.per_position_loss", torch.stack(single).view(3, 8), counted)
    gradients = torch.autograd.grad(loss, (states, table))
    golden.check(f"{setting}.grad_output_embeddings", gradients[0])
    golden.check(f"{setting}.grad_item_embedding", gradients[1])


@needs_golden
def test_every_recorded_file_has_a_test() -> None:
    named = {"full_model", "full_model_notime", "rcekd_model", "sampled_softmax", "train_step"}
    found = {path.stem for path in golden_folder().glob("*.npz")}
    assert found == named | set(BLOCKS) | {"time_buckets"}


# -- buckets and bias ---------------------------------------------------------------------------


def test_buckets_of_telling_times() -> None:
    day = 86400
    seconds = [0, 1, 2, 10, 60, 3600, day, 7 * day, 365 * day, 3650 * day, 2**31, 10**18]
    now = torch.tensor([seconds])
    found = time_buckets(now, torch.zeros_like(now))[0, :, 0].tolist()
    assert found == [0, 0, 2, 7, 13, 27, 37, 44, 57, 65, 71, 128]
    # float64 logarithms put this one elsewhere
    odd = torch.tensor([[417901]])
    exact = math.floor(math.log(417901) / 0.301)
    assert time_buckets(odd, torch.zeros_like(odd)).item() != exact


def test_buckets_tell_seconds_of_unix_times_apart() -> None:
    times = torch.tensor([[1.7e9, 1.7e9 + 2, 1.7e9 + 12]], dtype=torch.float64)
    assert time_buckets(times, times)[0].tolist() == [[0, 2, 8], [2, 0, 7], [8, 7, 0]]
    assert torch.equal(time_buckets(times.long(), times.long()), time_buckets(times, times))


@pytest.mark.parametrize("slots", [1, 4, 6])
@pytest.mark.parametrize("kind", ["position", "time", "time_and_position"])
def test_bias_against_a_loop(kind: str, slots: int) -> None:
    bias = RelativeBias(kind, 6, n_buckets=9)
    buckets = torch.randint(0, 10, (2, slots, slots), generator=torch.Generator().manual_seed(3))
    found = bias(slots, buckets if "time" in kind else None)
    assert found.shape == (2 if "time" in kind else 1, slots, slots)
    for b in range(len(found)):
        for i in range(slots):
            for j in range(slots):
                wanted = 0.0
                if "position" in kind:
                    wanted += bias.pos_w[5 + j - i].item()
                if "time" in kind:
                    wanted += bias.ts_w[buckets[b, i, j]].item()
                assert found[b, i, j].item() == pytest.approx(wanted, abs=1e-7)


# -- what changes what --------------------------------------------------------------------------


def rows(n: int = 4, slots: int = 8, seed: int = 5) -> list[Tensor]:
    """Items, lengths, times and request times; rows of all lengths, the first full."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([slots, 3, 1, 6, 0, 2, 5, 7])[torch.arange(n) % 8]
    real = valid_slots(lengths, slots)
    items = torch.randint(1, ITEMS, (n, slots), generator=generator) * real
    gaps = torch.randint(1, 100_000, (n, slots + 1), generator=generator).double() ** 1.5
    times = 1.6e9 + gaps.floor().cumsum(1)
    return [items, lengths, times[:, :-1] * real, times[:, -1]]


@pytest.mark.parametrize("kind", ["time_and_position", "position", "time", "none"])
def test_padding_changes_nothing(kind: str) -> None:
    model = loud(make(relative_bias=kind))
    items, lengths, times, at = rows()
    whole = model.encode(items, lengths, times, at)
    assert whole[valid_slots(lengths, 8)].norm(dim=1).sub(1).abs().max() < 1e-12
    assert not whole[~valid_slots(lengths, 8)].any()
    wider = model.encode(F.pad(items, (0, 3)), lengths, F.pad(times, (0, 3)), at)
    torch.testing.assert_close(wider[:, :8], whole, rtol=0, atol=1e-12)
    for row, length in enumerate(lengths.tolist()):
        one = slice(row, row + 1)
        alone = model.encode(items[one, :length], lengths[one], times[one, :length], at[one])
        torch.testing.assert_close(alone[0], whole[row, :length], rtol=0, atol=1e-12)


def test_what_stands_in_padding_is_never_read() -> None:
    model = loud(make())
    items, lengths, times, at = rows()
    whole = model.encode(items, lengths, times, at)
    pad = ~valid_slots(lengths, 8)
    again = model.encode(items.masked_fill(pad, 7), lengths, times.masked_fill(pad, 1e9), at)
    assert torch.equal(again, whole)
    model.item_embedding.weight.data[0] = 9.0
    assert torch.equal(model.encode(items, lengths, times, at), whole)


def test_order_of_rows_changes_nothing() -> None:
    model, batch = loud(make()), rows(8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(6))
    moved = model.encode(*(t[order] for t in batch))
    torch.testing.assert_close(moved, model.encode(*batch)[order], rtol=0, atol=1e-12)


def first_changed(model: HSTU, changed: dict[int, Tensor]) -> int:
    """The first slot whose state is not the same with other inputs."""
    batch = rows(1)
    other = [changed.get(place, t) for place, t in enumerate(batch)]
    difference = (model.encode(*batch) - model.encode(*other)).abs().amax(2)[0]
    return int((difference > 1e-9).nonzero()[0])


@pytest.mark.parametrize(("anchor", "earlier"), [("next", 1), ("current", 0)])
@pytest.mark.parametrize("place", [1, 5, 7])
def test_states_see_no_later_item_and_at_most_the_next_time(
    anchor: str, earlier: int, place: int
) -> None:
    model = loud(make(time_anchor=anchor))
    items, _, times, _ = rows(1)
    items[0, place] = items[0, place] % (ITEMS - 1) + 1
    assert first_changed(model, {0: items}) == place
    times[0, place] += 9e7
    assert first_changed(model, {2: times}) == place - earlier


def test_the_time_of_the_request_changes_the_last_state_alone() -> None:
    batch = rows(1)
    assert first_changed(loud(make()), {3: batch[3] + 9e7}) == 7
    model = loud(make(time_anchor="current"))
    assert torch.equal(model.encode(*batch[:3]), model.encode(*batch))


def test_a_row_without_items_is_zero_and_ranks_all_items_alike() -> None:
    model, batch = make(), rows(5)
    assert batch[1].tolist() == [8, 3, 1, 6, 0]
    states = model.forward(*batch)
    assert not states[4].any()
    assert states[:4].norm(dim=1).sub(1).abs().max() < 1e-12
    scores = model.full_sort_predict(query(model, *batch))
    assert not scores[4].any()
    # a history gives an empty user the length 1 and the item 0
    batch[1][4] = 1
    assert torch.equal(model.forward(*batch), states)
    none = [t[4:] for t in batch]
    none[1] = torch.zeros(1, dtype=torch.int64)
    assert not model.forward(*none).any()
    assert model.forward(*(t[:0] for t in batch)).shape == (0, 16)


# -- groups -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 15, 32, 40, 128])
@pytest.mark.parametrize("least", [1, 8])
def test_each_row_is_in_one_group(n: int, least: int) -> None:
    lengths = torch.randint(0, 50, (n,), generator=torch.Generator().manual_seed(n))
    groups = length_groups(lengths, least)
    assert torch.equal(torch.cat(groups).sort().values, torch.arange(n))
    longest = [int(lengths[group].max()) for group in groups if len(group)]
    assert longest == sorted(longest, reverse=True)
    assert all(len(group) >= min(least, n) for group in groups)
    for group, following in pairwise(groups):
        assert 2 * lengths[following].max() <= lengths[group].max()
        assert lengths[group].min() >= lengths[following].max()


@pytest.mark.parametrize("loss_type", ["sampled_softmax", "full_softmax"])
def test_groups_change_neither_loss_nor_gradients(
    loss_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = loud(make(loss_type=loss_type)), rows(80)
    interaction = query(model, *batch)
    target = torch.arange(80) % (ITEMS - 1) + 1
    interaction.update(Interaction({model.ITEM_ID: target}))

    def step() -> list[Tensor]:
        torch.manual_seed(4)
        loss = model.calculate_loss(interaction)
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    assert len(length_groups(batch[1])) > 1
    grouped, states = step(), model.encode(*batch)
    last = model.forward(*batch)
    monkeypatch.setattr(hstu, "length_groups", lambda lengths: [torch.arange(len(lengths))])
    for a, b in zip(grouped, step(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(states, model.encode(*batch), rtol=0, atol=1e-12)
    torch.testing.assert_close(last, model.forward(*batch), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["time_and_position", "none"])
def test_encoding_without_gradient_keeps_to_the_memory_budget(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = loud(make(relative_bias=kind)), rows(80)
    seen: list[int] = []
    original = model._encode_group

    def recorded(items: Tensor, *rest: Any) -> Tensor:
        seen.append(len(items))
        return original(items, *rest)

    monkeypatch.setattr(model, "_encode_group", recorded)
    states, last = model.encode(*batch), model.forward(*batch)
    model.options["memory_budget_gb"] = 30_000 / 2**30
    seen.clear()
    with torch.no_grad():
        torch.testing.assert_close(model.encode(*batch), states, rtol=0, atol=1e-12)
        torch.testing.assert_close(model.forward(*batch), last, rtol=0, atol=1e-12)
    assert sum(seen) == 2 * 80
    # A row of 8 slots, float32: scores of two heads alone are 512 bytes.
    assert 1 <= min(seen) <= max(seen) < 30_000 // 512
    assert len(seen) > 2 * len(length_groups(batch[1]))
    seen.clear()
    model.encode(*batch)
    assert len(seen) == len(length_groups(batch[1]))


# -- losses -------------------------------------------------------------------------------------


def operands(dtype: torch.dtype = torch.float64, n: int = 13) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    states = torch.randn(n, 6, dtype=dtype, generator=generator, requires_grad=True)
    items = torch.randn(ITEMS, 6, dtype=dtype, generator=generator, requires_grad=True)
    return states, items, torch.randint(1, ITEMS, (n,), generator=generator)


def naive(states: Tensor, items: Tensor, positives: Tensor, tau: float, w: Tensor) -> Tensor:
    scores = states @ items[1:].t() / tau
    return (F.cross_entropy(scores, positives - 1, reduction="none") * w).sum() / w.sum()


@pytest.mark.parametrize("rows_a_chunk", [0, 1, 5, 13, 1000])
@pytest.mark.parametrize("tau", [1.0, 0.05])
def test_full_softmax_is_the_cross_entropy_in_value_and_gradient(
    rows_a_chunk: int, tau: float
) -> None:
    states, items, positives = operands()
    budget = rows_a_chunk * ITEMS * 8
    for weights in (None, torch.linspace(0, 0.1, 13, dtype=torch.float64)):
        found = full_softmax(states, items, positives, tau, budget, weights)
        counted = torch.ones(13).double() if weights is None else weights
        wanted = naive(states, items, positives, tau, counted)
        torch.testing.assert_close(found, wanted)
        inputs = (states, items)
        for a, b in zip(
            torch.autograd.grad(3 * found, inputs),
            torch.autograd.grad(3 * wanted, inputs),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
    assert not torch.autograd.grad(full_softmax(states, items, positives), items)[0][0].any()


def test_full_softmax_of_no_rows_and_with_a_constant_operand() -> None:
    states, items, positives = operands()
    empty = full_softmax(states[:0], items, positives[:0])
    empty.backward()
    assert empty.item() == 0
    assert not items.grad.any()
    loss = full_softmax(states, items.detach(), positives)
    a = torch.autograd.grad(loss, states)[0]
    b = torch.autograd.grad(full_softmax(states, items, positives), states)[0]
    assert torch.equal(a, b)
    assert not full_softmax(states.detach(), items.detach(), positives).requires_grad


@pytest.mark.parametrize("dtype", DTYPES)
def test_sampled_softmax_with_all_others_as_negatives_is_the_full_one(dtype: torch.dtype) -> None:
    states, items, positives = operands(dtype)
    everything = torch.arange(1, ITEMS).expand(13, -1)
    found = sampled_softmax(states, items, positives, everything, 0.3)
    wanted = full_softmax(states, items, positives, 0.3)
    torch.testing.assert_close(found, wanted)
    for a, b in zip(
        torch.autograd.grad(found, (states, items)),
        torch.autograd.grad(wanted, (states, items)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("loss", ["sampled", "full"])
def test_losses_of_extreme_float32_scores_are_finite(loss: str) -> None:
    states, items, positives = (
        (t * 100 if t.is_floating_point() else t).detach() for t in operands(torch.float32)
    )
    states.requires_grad_()
    if loss == "full":
        value = full_softmax(states, items, positives, 0.05)
    else:
        negatives = positives.unsqueeze(1).repeat(1, 4)
        negatives[:6, 1:] = torch.arange(1, 4)
        value = sampled_softmax(states, items, positives, negatives, 0.05)
    assert value.isfinite()
    assert torch.autograd.grad(value, states)[0].isfinite().all()


def test_negatives_that_are_all_the_positive_leave_no_loss() -> None:
    states, items, positives = operands()
    loss = sampled_softmax(states, items, positives, positives.unsqueeze(1).repeat(1, 3))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, states)[0].any()


def test_sampled_softmax_gathers_no_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    original = losses.gather_dot
    monkeypatch.setattr(
        losses, "gather_dot", lambda u, i, k: widths.append(k.shape) or original(u, i, k)
    )
    states, items, positives = operands()
    sampled_softmax(states, items, positives, torch.ones(13, 3, dtype=torch.int64))
    assert widths == [(13, 4)]


# -- the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_type", ["sampled_softmax", "full_softmax"])
def test_a_batch_learns_every_slot_and_the_loss_falls(loss_type: str) -> None:
    model = make(torch.float32, loss_type=loss_type, num_negatives=12)
    batch = rows(40)
    interaction = query(model, *batch)
    interaction.update(Interaction({model.ITEM_ID: torch.arange(40) % 20 + 1}))
    optimiser, values = torch.optim.Adam(model.parameters(), lr=0.02), []
    torch.manual_seed(3)
    for _ in range(40):
        optimiser.zero_grad()
        loss = model.calculate_loss(interaction)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimiser.step()
        values.append(loss.item())
    assert values[-1] < 0.5 * values[0]
    assert not model.item_embedding.weight[0].any()


def test_dropout_acts_on_the_input_and_the_gate_in_training_only() -> None:
    batch = rows()
    for name in ("hidden_dropout_prob", "linear_dropout_prob"):
        model = loud(make(**{name: 0.5}))
        torch.manual_seed(0)
        first = model.encode(*batch)
        assert (first - model.encode(*batch)).abs().max() > 1e-3
        model.eval()
        assert torch.equal(model.encode(*batch), model.encode(*batch))


def test_initial_weights() -> None:
    model = make(n_items=4000, hidden_size=64, MAX_ITEM_LIST_LENGTH=200, n_layers=1)
    table = model.item_embedding.weight[1:]
    assert table.abs().max() <= 0.04
    assert table.std().item() == pytest.approx(0.02 * 0.8796, rel=0.02)
    position = model.position_embedding.weight
    assert position.shape == (203, 64)
    assert position.std().item() == pytest.approx(math.sqrt(2 / (203 + 64)), rel=0.05)
    block = model.blocks[0]
    assert block.uvqk.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.bias.pos_w.shape == (405,)
    assert block.bias.ts_w.shape == (129,)
    assert block.bias.pos_w.std().item() == pytest.approx(0.02, rel=0.2)
    bound = math.sqrt(6 / (64 + 16))
    assert 0.9 * bound < block.output.weight.abs().max() <= bound
    assert block.output.bias.abs().max() <= 1 / math.sqrt(16)
    assert "bias.pos_w" in block.state_dict()


def test_raw_items_are_scored_without_norm() -> None:
    model = loud(make(item_l2_norm=False))
    assert model.item_vectors() is model.item_embedding.weight
    batch = rows()
    scores = model.full_sort_predict(query(model, *batch))
    expected = model.forward(*batch) @ model.item_embedding.weight.t()
    assert torch.equal(scores, expected)
    cosines = loud(make()).full_sort_predict(query(model, *batch))
    assert cosines.abs().max() <= 1 + 1e-12


def test_negatives_are_any_items_but_padding() -> None:
    model = make(n_items=5, num_negatives=400)
    torch.manual_seed(0)
    drawn = model.draw_negatives(50)
    assert drawn.shape == (50, 400)
    share = torch.bincount(drawn.flatten(), minlength=5) / drawn.numel()
    assert share[0] == 0
    assert (share[1:] - 0.25).abs().max() < 0.02
    torch.manual_seed(0)
    assert torch.equal(model.draw_negatives(50), drawn)


@pytest.mark.parametrize(
    ("kind", "anchor", "reads", "request_time"),
    [
        ("time_and_position", "next", True, True),
        ("time", "current", True, False),
        ("position", "next", False, False),
        ("none", "next", False, False),
    ],
)
def test_which_times_are_read(kind: str, anchor: str, reads: bool, request_time: bool) -> None:
    model = make(relative_bias=kind, time_anchor=anchor)
    assert model.uses_time == reads
    assert model.needs_request_time == request_time
    batch = rows()
    if not reads:
        wanted = model.forward(*batch)
        assert torch.equal(model.forward(*batch[:2]), wanted)
        return
    with pytest.raises(KDError, match="found none; allowed without times"):
        model.full_sort_predict(query(model, *batch[:2]))
    if request_time:
        with pytest.raises(KDError, match="time of the request and found none"):
            model.full_sort_predict(query(model, *batch[:3]))
        with pytest.raises(KDError, match=r"found at in torch\.float32"):
            model.forward(*batch[:3], batch[3].float())
    else:
        model.forward(*batch[:3])
    with pytest.raises(KDError, match=r"found times in torch\.float32"):
        model.forward(*batch[:2], batch[2].float(), batch[3])
    whole_seconds = model.forward(*batch[:2], batch[2].long(), batch[3].long())
    assert torch.equal(whole_seconds, model.forward(*batch))


WRONG: dict[str, list[Any]] = {
    "MAX_ITEM_LIST_LENGTH": [0],
    "hidden_size": [0, -1, 1.5, True, "64", None],
    "n_layers": [0],
    "n_heads": [0],
    "attention_dim": [0],
    "linear_dim": [0],
    "hidden_dropout_prob": [1, -0.1, "no"],
    "linear_dropout_prob": [1.0],
    "layer_norm_eps": [0, float("nan"), float("inf")],
    "output_slots": [-1, 0.5],
    "relative_bias": ["both", None],
    "time_anchor": ["last"],
    "num_time_buckets": [0],
    "time_bucket_divisor": [0.0],
    "loss_type": ["CE"],
    "num_negatives": [0],
    "temperature": [0, -1],
    "item_l2_norm": ["True", 1],
    "item_init": ["uniform"],
    "torch_compile": [None],
    "memory_budget_gb": [0],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_wrong_options_are_refused_in_one_line(name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(KDError) as error:
            make(**{name: value})
        message = str(error.value)
        assert f"found {name}={value!r}, allowed is " in message
        assert "\n" not in message
    without = options()
    del without[name]
    with pytest.raises(KDError, match=f"found {name}=None"):
        HSTU(without, SimpleNamespace(num=lambda field: ITEMS))


def test_every_block_is_compiled_and_no_weight_renamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[dict[str, Any]] = []
    compiler: Callable[..., None] = lambda block, **kwargs: calls.append(kwargs)  # noqa: E731
    monkeypatch.setattr(HSTUBlock, "compile", compiler)
    model = make(torch_compile=True)
    assert calls == [{"dynamic": True}] * 2
    assert model.state_dict().keys() == make().state_dict().keys()


@pytest.mark.parametrize(("name", "spread"), [("truncated_normal", 0.0176), ("xavier_normal", 0.1)])
def test_item_vectors_start_as_named(name: str, spread: float) -> None:
    """A normal of 0.02 cut at two deviations; and sqrt(2 / (I + D)) for 192 items, 8 wide."""
    torch.manual_seed(0)
    data = SimpleNamespace(num=lambda field: 192)
    model = HSTU(options(hidden_size=8, item_init=name), data)
    assert float(model.item_embedding.weight[1:].detach().std()) == pytest.approx(spread, rel=0.06)
