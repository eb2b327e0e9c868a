"""Pairs of different families: one split, and no state that knows what comes later."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from recbole_kd import training
from recbole_kd.config import KDConfig
from recbole_kd.data import Split, load_split
from recbole_kd.loaders import make_loaders
from recbole_kd.methods.base import Distiller
from recbole_kd.options import Sources
from recbole_kd.registry import method_class
from recbole_kd.scoring import scorer_for
from recbole_kd.teacher import FrozenTeacher
from recbole_kd.teachers import identity

N_USERS, STEPS, LENGTH = 12, 10, 4
HELD = 2
PROTOCOLS = {"next": {}, "all": {"protocol": "rcekd"}}
OWN: dict[str, dict[str, Any]] = {
    "SASRec": {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 1},
    "GRU4Rec": {"embedding_size": 8, "hidden_size": 8, "num_layers": 1},
    "HSTU": {"hidden_size": 8, "attention_dim": 4, "linear_dim": 4, "relative_bias": "position"},
    "BPR": {"embedding_size": 8},
    "LightGCN": {"embedding_size": 8},
    "SimpleX": tiny.MODEL_OPTIONS["SimpleX"],
    "MultiVAE": {"mlp_hidden_size": [16], "latent_dimension": 8, "train_neg_sample_args": None},
}
PAIRS = [
    ("BPR", "GRU4Rec"),
    ("LightGCN", "HSTU"),
    ("SimpleX", "SASRec"),
    ("MultiVAE", "SASRec"),
    ("SASRec", "BPR"),
    ("GRU4Rec", "LightGCN"),
    ("HSTU", "SimpleX"),
    ("HSTU", "GRU4Rec"),
    ("SASRec", "HSTU"),
]
"""Teacher and student: sequential <- general, general <- sequential, sequential <- sequential."""


def interactions(change: str = "") -> dict[tuple[str, str], int]:
    """User and item of each interaction, and its step; the last steps of a user are held out.

    The last train items and the held-out items of a user are nobody else's. In the variant
    ``held`` the held-out items are others, in ``train`` one train item is.
    """
    found = {}
    for user in range(N_USERS):
        for step in range(STEPS):
            item = f"shared{(3 * user + step) % 20}" if step < 5 else f"u{user}end{step}"
            if step >= STEPS - HELD and change == "held":
                item = f"u{user}other{step}"
            if step == 6 and change == "train":
                item = f"u{user}other{step}"
            found[f"u{user}", item] = step
    return found


@functools.cache
def data(change: str = "") -> str:
    """A planted data set, led by a user who names all items: internal ids are the same in all."""
    steps = {variant: interactions(variant) for variant in ("", "held", "train")}
    names = sorted({item for found in steps.values() for _, item in found})
    rows = [("all", item, "5", str(t)) for t, item in enumerate(names)]
    rows += [(user, item, "5", str(1000 + step)) for (user, item), step in steps[change].items()]
    return tiny.write(f"pairs_{change}", rows)


def config(
    teacher: str, student: str, role: str, protocol: str, name: str, **more: Any
) -> KDConfig:
    sequential = bool({teacher, student} & {"SASRec", "GRU4Rec", "HSTU"})
    values = {
        **tiny.OPTIONS,
        "rcekd_K": 5,
        "rcekd_L": 5,
        "rcekd_M": 10,
        "train_batch_size": 16,
        **PROTOCOLS[protocol],
        **({"MAX_ITEM_LIST_LENGTH": LENGTH} if sequential else {}),
        "data_path": str(tiny.data_path()),
        "student": OWN[student],
        "teacher": OWN[teacher],
        **more,
    }
    return KDConfig(Sources.collect("RCEKD", name, student, teacher, options=values), role)


def weigh(model: nn.Module) -> nn.Module:
    """Weights far from equal, padding left alone; dropout off."""
    generator = torch.Generator().manual_seed(3)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=generator)
        for part in model.modules():
            if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                part.weight[part.padding_idx] = 0
    return model.eval()


class Pair:
    """Teacher and student of a run on a planted data set."""

    def __init__(self, teacher: str, student: str, protocol: str, change: str = "", **more: Any):
        self.config, self.theirs = (
            config(teacher, student, role, protocol, data(change), **more)
            for role in ("student", "teacher")
        )
        self.split = load_split(self.config)
        self.history = self.split.history
        self.student, self.teacher = (
            weigh(training.build_plain(options, self.split))
            for options in (self.config, self.theirs)
        )
        self.scorer, self.guide = (
            scorer_for(model, self.history) for model in (self.student, self.teacher)
        )

    def distiller(self) -> Distiller:
        frozen = FrozenTeacher(self.guide, *identity(self.split), self.history)
        method: Any = method_class("RCEKD")
        return method(
            self.config, self.split.train, self.student, self.scorer, frozen, self.history
        )

    def batches(self) -> Iterator[Any]:
        yield from make_loaders(self.config, self.split)[0]

    def users(self) -> Tensor:
        """The planted users; the one who names all items is left out."""
        tokens = self.split.tokens.users
        return torch.tensor([tokens.index(f"u{user}") for user in range(N_USERS)])

    @torch.no_grad()
    def answers(self) -> dict[str, Tensor]:
        """States and scores of both roles."""
        users, found = self.users(), {}
        for role, scorer in (("student", self.scorer), ("teacher", self.guide)):
            state = scorer.encode(users)
            found[f"{role}'s states"] = state
            found[f"{role}'s scores"] = scorer.score_all(state)
        return found


# -- prefix rows -------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("student", "rows"),
    [("GRU4Rec", "prefix"), ("SASRec", "prefix"), ("SASRec", "causal"), ("HSTU", "causal")],
)
def test_a_row_of_the_base_loss_holds_the_past_of_its_target(
    student: str, rows: str, protocol: str
) -> None:
    pair = Pair("BPR", student, protocol, **{"student.sequence_training": rows})
    steps, tokens = interactions(), pair.split.tokens
    seen = set()
    for batch in pair.batches():
        fields = (batch[key].tolist() for key in ("user_id", "item_id", "item_id_list"))
        for user, target, items in zip(*fields, strict=True):
            name = tokens.users[user]
            if name == "all":
                continue
            last = steps[name, tokens.items[target]]
            found = [steps[name, tokens.items[item]] for item in items if item]
            assert found == list(range(max(0, last - LENGTH), last))
            assert last < STEPS - HELD
            seen.add((name, last))
    targets = range(1, STEPS - HELD) if rows == "prefix" else [STEPS - HELD - 1]
    assert seen == {(f"u{user}", step) for user in range(N_USERS) for step in targets}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kd_rows", ["interaction", "unique", "user"])
@pytest.mark.parametrize("student", ["GRU4Rec", "SASRec"])
def test_a_prefix_row_is_no_distillation_query(student: str, kd_rows: str, protocol: str) -> None:
    """Rows of the base loss are prefixes; what is distilled is the train history of their users."""
    pair = Pair("HSTU", student, protocol, kd_rows=kd_rows)
    distiller: Any = pair.distiller()
    read: list[tuple[Tensor, Tensor]] = []
    forward = pair.student.forward
    pair.student.forward = lambda items, lengths: (
        read.append((items, lengths)) or forward(items, lengths)
    )
    asked: list[Tensor] = []
    kd_loss = distiller.kd_loss
    distiller.kd_loss = lambda rows: asked.append(rows.users) or kd_loss(rows)
    batches = list(pair.batches())
    distiller.begin_epoch(0, len(batches))
    short = 0
    for batch in batches:
        read.clear(), asked.clear()
        distiller.calculate_loss(batch)
        base, *queries = read
        assert torch.equal(base[0], batch["item_id_list"])
        short += int((batch["item_length"] < LENGTH).sum())
        assert len(queries) >= 1
        for items, lengths in queries:
            assert torch.equal(items, pair.history.padded(asked[0], LENGTH)[0])
            assert lengths.tolist() == [LENGTH] * len(items)
    assert short > N_USERS, "there are prefixes shorter than any query"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_query_ends_with_the_last_train_item(protocol: str) -> None:
    pair = Pair("SASRec", "GRU4Rec", protocol)
    items, _ = pair.history.padded(pair.users(), LENGTH)
    names = [[pair.split.tokens.items[i] for i in row] for row in items.tolist()]
    last = STEPS - HELD - 1
    assert [row[1:] for row in names] == [
        [f"u{user}end{step}" for step in range(last - 2, last + 1)] for user in range(N_USERS)
    ]


# -- held-out items ------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_other_held_out_items_change_no_state(teacher: str, student: str, protocol: str) -> None:
    first, other, control = (
        Pair(teacher, student, protocol, change) for change in ("", "held", "train")
    )
    assert first.split.tokens == other.split.tokens == control.split.tokens
    held = [set(zip(*p.split.held_out(), strict=True)) for p in (first, other)]
    assert len(held[0] - held[1]) == HELD * N_USERS
    mine, theirs, moved = (pair.answers() for pair in (first, other, control))
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    # What reads histories notices a train item.
    for role, name in (("student", student), ("teacher", teacher)):
        reads = name in ("SASRec", "GRU4Rec", "HSTU", "LightGCN", "SimpleX", "MultiVAE")
        differs = not torch.equal(mine[f"{role}'s scores"], moved[f"{role}'s scores"])
        assert differs == reads, name


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_other_held_out_items_change_no_distillation_loss(
    teacher: str, student: str, protocol: str
) -> None:
    """The same users are asked in all, for what else a batch holds are sampled negatives."""
    losses = []
    for change in ("", "held"):
        pair = Pair(teacher, student, protocol, change, kd_rows="user")
        distiller: Any = pair.distiller()
        distiller.begin_epoch(0, 1)
        kd = distiller.kd_loss(distiller.rows.next(pair.users()))
        kd.backward()
        gradients = [p.grad for p in pair.student.parameters() if p.grad is not None]
        losses.append([kd.detach(), *gradients])
    assert losses[0][0] > 0
    assert len(losses[0]) == len(losses[1]) > 2
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


# -- one split -----------------------------------------------------------------------------------


def pairs_of(part: Split) -> list[set[tuple[str, str]]]:
    """User and item tokens of train, validation and test part."""
    users, items = (t.tolist() for t in part.history.pairs())
    names = part.tokens
    train = {(names.users[u], names.items[i]) for u, i in zip(users, items, strict=True)}
    return [train, *(tiny.part_pairs(part, index) for index in (1, 2))]


def shared(student: Split, teacher: Split) -> float:
    """Share of the student's test interactions that the teacher is trained on."""
    return len(pairs_of(student)[2] & pairs_of(teacher)[0]) / len(pairs_of(student)[2])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("teacher", "student"), [("BPR", "SASRec"), ("SASRec", "LightGCN")])
def test_teacher_and_student_have_one_split(teacher: str, student: str, protocol: str) -> None:
    mine, theirs = (
        load_split(config(teacher, student, role, protocol, tiny.dataset()))
        for role in ("student", "teacher")
    )
    assert pairs_of(mine) == pairs_of(theirs)
    assert shared(mine, theirs) == shared(theirs, mine) == 0
    sizes = [len(part) for part in pairs_of(mine)]
    users = len(mine.tokens.users) - 1
    assert (sizes[2] == users) == (protocol == "next")
    assert sum(sizes) == len(tiny.interactions())
    if protocol == "all":
        assert sizes[2] / sum(sizes) == pytest.approx(0.1, abs=0.01)


def test_the_families_own_splits_leak() -> None:
    """What a run would do if each model kept RecBole's split of its family."""
    general, sequential = tiny.split("BPR"), tiny.split("SASRec")
    assert shared(general, sequential) > 0.9
    assert shared(sequential, general) > 0.7
