"""A tiny in-memory world for the tests of distillation methods: no files, no training run.

Ids follow RecBole: 0 is padding, users and items start at 1.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from recbole.utils import InputType, ModelType
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from recbole_kd.config import KDConfig
from recbole_kd.defaults import method_defaults
from recbole_kd.history import UserHistory
from recbole_kd.methods.base import Distiller
from recbole_kd.options import Sources
from recbole_kd.scoring import FactorScorer, GraphScorer, TableScorer
from recbole_kd.teacher import FrozenTeacher

Batch = dict[str, Tensor]


class Options(KDConfig):
    """A ``KDConfig`` on a plain dictionary: its reading and checking methods, no files."""

    def __init__(self, **values: Any):
        self.import_path = "Tiny"
        self.role = "student"
        self.sources = Sources("RCEKD", "tiny", "Tiny", "Tiny", [])
        self.final_config_dict = values

    def learning_keys(self) -> set[str]:
        return set(self.final_config_dict)


def spelled(method: type[Distiller]) -> str:
    """What ``--model`` says for a method: its short name, or where it is from outside."""
    ours = method.__module__.startswith("recbole_kd.")
    return method.__name__ if ours else f"{method.__module__}:{method.__name__}"


def options_for(method: type[Distiller], **changes: Any) -> Options:
    """The shipped defaults of a method, with changes; small lists suit the tiny world."""
    common = {
        "model": "Tiny",
        "device": torch.device("cpu"),
        "seed": 7,
        "memory_budget_gb": 0.5,
        "epochs": 20,
        "embedding_size": 5,
        "NEG_PREFIX": "neg_",
        "LABEL_FIELD": "label",
    }
    return Options(**{**common, **method_defaults(spelled(method)), **changes})


SMALL: dict[str, dict[str, Any]] = {
    "DCD": {"dcd_ranking_weight": 0.5, "rrd_K": 5, "rrd_L": 5, "rrd_M": 10},
    "HetComp": {"refresh_every": 1},
    "RCEKD": {"rcekd_M": 20},
    "RD": {"rd_start_epoch": 1},
}
"""What a method needs beside :func:`small_options` so that a short run sees all of it."""


def small_options(method: type[Distiller]) -> dict[str, Any]:
    """Sizes that suit small data: the method's own whole numbers above 10, a twentieth of them.

    A method without an entry in :data:`SMALL` runs with these and its shipped defaults.
    """
    own = f"{method.__name__.lower()}_"
    sizes = {
        key: max(10, value // 20)
        for key, value in method_defaults(spelled(method)).items()
        if key.startswith(own) and type(value) is int and value > 10
    }
    return {**sizes, **SMALL.get(method.__name__, {})}


@dataclass
class Dataset:
    """What a distiller reads of a RecBole data set."""

    uid_field: str = "user_id"
    iid_field: str = "item_id"


class TinyModel(nn.Module):
    """Two embedding tables, as in BPR; the base loss is a mean over the rows of the batch.

    Args:
        users: User vectors, ``[n_users, d]``, row 0 for padding.
        items: Item vectors, ``[n_items, d]``, row 0 for padding.
    """

    type = ModelType.GENERAL
    input_type = InputType.PAIRWISE

    def __init__(self, users: Tensor, items: Tensor):
        super().__init__()
        self.n_users, self.n_items = len(users), len(items)
        self.user_embedding = nn.Embedding.from_pretrained(users.clone(), freeze=False)
        self.item_embedding = nn.Embedding.from_pretrained(items.clone(), freeze=False)

    def make_scorer(self, history: UserHistory) -> FactorScorer:
        return TableScorer(self, history)

    def calculate_loss(self, batch: Batch) -> Tensor:
        users, positives = self.user_embedding(batch["user_id"]), batch["item_id"].unsqueeze(1)
        candidates = self.item_embedding(torch.cat([positives, batch["neg_item_id"]], dim=1))
        scores = (users.unsqueeze(1) * candidates).sum(-1)
        return -logsigmoid(scores[:, :1] - scores[:, 1:]).mean()

    def full_sort_predict(self, batch: Batch) -> Tensor:
        return self.user_embedding(batch["user_id"]) @ self.item_embedding.weight.t()

    def other_parameter(self) -> dict[str, Any]:
        return {}


class TinyGraph(TinyModel):
    """A model that computes its vectors in ``forward()``, as LightGCN does; counts the calls."""

    calls = 0

    def make_scorer(self, history: UserHistory) -> FactorScorer:
        return GraphScorer(self, history)

    def forward(self) -> tuple[Tensor, Tensor]:
        self.calls += 1
        users, items = self.user_embedding.weight, self.item_embedding.weight
        return users.tanh() + items.mean(0), items.sin() + 0.5 * users.mean(0)


def pad(table: Tensor) -> Tensor:
    """Put the padding row in front of a table whose ids start at 0."""
    return torch.cat([torch.zeros_like(table[:1]), table])


@dataclass
class World:
    """A student, a teacher and the train history.

    Attributes:
        student: The model to train.
        teacher: The model to learn from.
        history: Train history, in the student's ids.
        user_ids: Teacher id of every student user, -1 where unknown; ``None``: the same ids.
        item_ids: Teacher id of every student item, -1 where unknown; ``None``: the same ids.
        trajectory: The teacher at earlier epochs, oldest first; ``None``: made with noise.
    """

    student: TinyModel
    teacher: TinyModel
    history: UserHistory
    user_ids: Tensor | None = None
    item_ids: Tensor | None = None
    trajectory: Sequence[TinyModel] | None = None

    def frozen_teacher(self, memory_budget_gb: float = 0.5) -> FrozenTeacher:
        """The teacher, with three earlier epochs unless the world has some: vectors with noise."""
        teacher = self._frozen(self.teacher, memory_budget_gb)
        earlier = self.trajectory
        if earlier is None:
            earlier = [self._earlier(share) for share in (0.9, 0.6, 0.3)]
        teacher.trajectory = [
            functools.partial(self._frozen, model, memory_budget_gb) for model in earlier
        ]
        return teacher

    def _earlier(self, noise: float) -> TinyModel:
        generator = torch.Generator().manual_seed(round(100 * noise))
        tables = (self.teacher.user_embedding.weight, self.teacher.item_embedding.weight)
        mixed = [
            (1 - noise) * t.detach() + noise * torch.randn(t.shape, generator=generator)
            for t in tables
        ]
        return TinyModel(*mixed)

    def _frozen(self, model: TinyModel, memory_budget_gb: float) -> FrozenTeacher:
        users, items = self.user_ids, self.item_ids
        return FrozenTeacher(
            model.make_scorer(self.history),
            torch.arange(self.student.n_users) if users is None else users,
            torch.arange(self.student.n_items) if items is None else items,
            self.history,
            memory_budget_gb,
        )

    def distiller(self, method: type[Distiller], **changes: Any) -> Any:
        """A distiller of this world, with the shipped defaults but for ``changes``."""
        options = options_for(method, **changes)
        return method(
            options,
            Dataset(),
            self.student,
            self.student.make_scorer(self.history),
            self.frozen_teacher(options["memory_budget_gb"]),
            self.history,
        )

    def check(self, method: type[Distiller], **changes: Any) -> None:
        """What is called before training starts: refuses options out of range."""
        method.check(options_for(method, **changes), self.history)

    def train_items(self, user: int) -> set[int]:
        start, end = self.history.offsets[user : user + 2].tolist()
        return set(self.history.items[start:end].tolist())

    def batch(self, rows: int = 64, seed: int = 5) -> Batch:
        """Train interactions drawn with replacement, two negatives each."""
        generator = torch.Generator().manual_seed(seed)
        users, items = self.history.pairs()
        picked = torch.randint(len(users), (rows,), generator=generator)
        shape = (rows, 2)
        negatives = torch.randint(1, self.history.n_items, shape, generator=generator)
        return {"user_id": users[picked], "item_id": items[picked], "neg_item_id": negatives}


def make_world(
    n_users: int = 14,
    n_items: int = 60,
    student: type[TinyModel] = TinyModel,
    scale: float = 1.0,
    seed: int = 0,
) -> World:
    """A planted problem: the teacher's vectors are the truth, train items come from its top.

    The student starts as a noisy, smaller copy, so that the two agree in part. The last user has
    no train interaction.
    """
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(n_users, 8, generator=generator)
    items = torch.randn(n_items, 8, generator=generator)
    noise = torch.randn(n_items, 5, generator=generator)
    student_items = (0.6 * items[:, :5] + 0.4 * noise) * scale
    scores = users @ items.t() + 1.5 * torch.randn(n_users, n_items, generator=generator)
    scores[:, 0] = -torch.inf
    pairs = [
        (user, item)
        for user in range(1, n_users - 1)
        for item in scores[user].topk(3 + user % 4).indices.tolist()
    ]
    table = torch.tensor(pairs)
    history = UserHistory.from_pairs(table[:, 0], table[:, 1], n_users, n_items)
    # A padding vector that would often win, were padding not left out.
    student_items[0] *= 5
    items[0] *= 5
    return World(
        student(users[:, :5] * scale, student_items), TinyModel(users * scale, items), history
    )


def exact_scores(model: TinyModel) -> Tensor:
    """All scores of a tiny model, ``[n_users, n_items]``, float64, without the code under test."""
    with torch.no_grad():
        if isinstance(model, TinyGraph):
            users, items = (v.double() for v in TinyGraph.forward(model))
        else:
            users, items = (e.weight.double() for e in (model.user_embedding, model.item_embedding))
        return users @ items.t()


def best_items(scores: Tensor, k: int, hidden: Sequence[int] | set[int] = ()) -> list[int]:
    """Ids of the ``k`` best items but padding and the hidden ones, by Python's own sort."""
    values = scores.tolist()
    allowed = [i for i in range(1, len(values)) if i not in hidden]
    return sorted(allowed, key=lambda i: -values[i])[:k]
