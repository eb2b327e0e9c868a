"""FreqD: frequency-aware feature distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from recbole_kd.errors import KDError
from recbole_kd.experts import Experts
from recbole_kd.graph import Neighbours, interactions, neighbour_graph
from recbole_kd.history import UserHistory
from recbole_kd.losses import squared_error
from recbole_kd.methods.base import EmbeddingDistiller, Entities


def freqd_loss(student: Tensor, teacher: Tensor, norm: bool) -> Tensor:
    """Distance of filtered vectors: ``1 - cosine``, or the squared distance.

    Args:
        student: Projected and filtered student vectors, ``[n, D]``, with gradient.
        teacher: Filtered teacher vectors, ``[n, D]``.
        norm: Whether to compare directions only.

    Returns:
        One loss an entity, ``[n]``.
    """
    if norm:
        return 1 - cosine_similarity(student, teacher, dim=1)
    return squared_error(student, teacher)


class FreqD(EmbeddingDistiller):
    """Zhu and Zhang, "A Frequency Perspective" (KDD 2025, arXiv 2411.10676).

    Vectors are compared after the low-pass filter ``alpha * G + (1 - alpha) * I``, ``G`` the
    normalised graph of the ``freqd_K`` entities with most common interactions, its edges kept with
    probability ``freqd_keep`` and scaled up by it. As released, which gives the published numbers:
    five averaged networks as wide as the teacher. Unlike it, only the batch and its neighbours are
    projected, an entity is excluded from its own neighbours by id instead of by rank, and a graph
    student's vectors are those after propagation.
    """

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; see :meth:`Distiller.check`."""
        super().check(config, history)
        for key in ("freqd_K", "freqd_experts"):
            config.positive_int(key)
        config.number("freqd_hidden_ratio", low=0, above=True)
        config.choice("freqd_norm", (True, False))
        for key, above in (("freqd_alpha", False), ("freqd_keep", True)):
            if config.number(key, low=0, above=above) > 1:
                raise KDError(f"--{key}={config[key]}: allowed are numbers up to 1")
        if config.number("freqd_dropout", low=0) >= 1:
            raise KDError(f"--freqd_dropout={config['freqd_dropout']}: allowed are numbers below 1")

    def __init__(self, config: Any, *parts: Any, **named: Any):
        super().__init__(config, *parts, **named)
        self.alpha, self.keep, self.norm = (config[f"freqd_{n}"] for n in ("alpha", "keep", "norm"))
        incidence, k = interactions(self.history), config["freqd_K"]
        self.user_graph = Neighbours(neighbour_graph(incidence, k), self.device)
        self.item_graph = Neighbours(neighbour_graph(incidence.T.tocsr(), k), self.device)
        hidden = max(1, int(self.teacher_width * config["freqd_hidden_ratio"]))
        sizes = self.width, self.teacher_width, config["freqd_experts"], hidden
        self.user_projector = Experts(*sizes, dropout=config["freqd_dropout"])
        self.item_projector = Experts(*sizes, dropout=config["freqd_dropout"])
        self.to(self.device)

    def embedding_loss(self, entities: Entities) -> Tensor:
        """Users' loss and half of the items' losses, over the batch's interactions."""
        generator = self.step_generator()
        items = torch.cat([entities.positives, entities.negatives])
        users = self._losses("user", entities.users, generator).sum()
        return (users + 0.5 * self._losses("item", items, generator).sum()) / entities.rows

    def _losses(self, side: str, ids: Tensor, generator: torch.Generator) -> Tensor:
        place, other, value = getattr(self, f"{side}_graph").edges(ids)
        known = self.teacher.knows_user if side == "user" else self.teacher.knows_item
        kept = torch.rand(len(value), generator=generator, device=value.device) < self.keep
        kept &= known[other]
        place, other, value = place[kept], other[kept], value[kept] / self.keep
        needed, where = torch.cat([ids, other]).unique(return_inverse=True)
        if side == "user":
            mine, teacher = self.scorer.user_vectors(needed), self.teacher_users[needed]
        else:
            mine, teacher = self.scorer.item_vectors()[needed], self.teacher_items[needed]
        projected = getattr(self, f"{side}_projector")(mine)
        own, edges = where[: len(ids)], torch.stack([place, where[len(ids) :]])
        shape = (len(ids), len(needed))
        graph = torch.sparse_coo_tensor(edges, value, shape, check_invariants=False)
        student, wanted = (
            self.alpha * (graph @ vectors) + (1 - self.alpha) * vectors[own]
            for vectors in (projected, teacher)
        )
        return freqd_loss(student, wanted, self.norm)
