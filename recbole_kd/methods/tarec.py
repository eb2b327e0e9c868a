"""TARec: a teacher assistant with Wasserstein and contrastive losses, in the spirit of TARec."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.losses import soft_targets
from recbole_kd.methods.base import EmbeddingDistiller, Entities, check_list_length
from recbole_kd.rows import Rows


def wasserstein_loss(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Wasserstein-1 distance of the score distributions over the places of a list.

    Args:
        student: Student scores of the list, ``[B, K]``, with gradient.
        teacher: Teacher scores of the same items, best first, ``[B, K]``.
        tau: Temperature of both softmaxes, above 0.

    Returns:
        One loss a row, ``[B]``, the longest way counting 1.
    """
    gaps = (soft_targets(student, tau) - soft_targets(teacher, tau)).cumsum(1)
    return gaps[:, :-1].abs().sum(1) / max(1, student.shape[1] - 1)


def contrastive_loss(projected: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """InfoNCE of an entity's two vectors, the batch's other teacher vectors being the negatives.

    Args:
        projected: Projected student vectors, ``[n, D]``, with gradient.
        teacher: Teacher's vectors, ``[n, D]``.
        temperature: Divides the cosines, above 0.

    Returns:
        One loss an entity, ``[n]``.
    """
    logits = normalize(projected, dim=1) @ normalize(teacher, dim=1).t() / temperature
    return cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")


class TARec(EmbeddingDistiller):
    """In the spirit of TARec, not a reproduction: its losses are not public.

    Zhuang et al., "Bridging the Gap: Teacher-Assisted Wasserstein Knowledge Distillation for
    Efficient Multi-Modal Recommendation" (WWW 2025) names a teacher assistant, a Wasserstein
    distance of logits and contrastive learning of embeddings. How they look here is our choice: an
    assistant of geometric-mean width is distilled from the teacher and then teaches the student;
    both stages use :func:`wasserstein_loss` on the teacher's top-K and :func:`contrastive_loss`
    through a linear projector. Numbers under this name are no numbers of TARec.
    """

    deals_rows = True

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; see :meth:`Distiller.check`."""
        super().check(config, history)
        for key in ("tarec_tau", "tarec_contrast_tau"):
            config.number(key, low=0, above=True)
        for key in ("tarec_wasserstein", "tarec_contrast"):
            config.number(key, low=0)
        config.choice("tarec_assistant", (True, False))
        config.choice("tarec_mask_train", (True, False))
        length = config.positive_int("tarec_K")
        check_list_length("tarec_K", length, history, config["tarec_mask_train"])
        if config["tarec_assistant"] and _width_key(config) is None:
            raise KDError(
                f"--tarec_assistant=True: {config['model']} has neither embedding_size nor "
                "hidden_size; allowed is False"
            )

    @classmethod
    def assistant(cls, config: Any, teacher_width: int) -> dict[str, Any] | None:
        """A student of geometric-mean width, unless it would be no wider than the student."""
        key = _width_key(config)
        if not config["tarec_assistant"] or key is None:
            return None
        heads = int(config["n_heads"]) if "n_heads" in config.learning_keys() else 1
        width = heads * math.ceil(round(math.sqrt(teacher_width * config[key])) / heads)
        return {key: width} if width > config[key] else None

    @classmethod
    def teacher_list(cls, config: Any) -> tuple[int, bool] | None:
        """The teacher's lists; see :meth:`Distiller.teacher_list`."""
        return config["tarec_K"], config["tarec_mask_train"]

    def __init__(self, config: Any, *parts: Any, **named: Any):
        super().__init__(config, *parts, **named)
        self.k, self.tau, self.mask_train = (
            config[f"tarec_{n}"] for n in ("K", "tau", "mask_train")
        )
        self.wasserstein, self.contrast = config["tarec_wasserstein"], config["tarec_contrast"]
        self.contrast_tau = config["tarec_contrast_tau"]
        self.user_projector = nn.Linear(self.width, self.teacher_width, bias=False)
        self.item_projector = nn.Linear(self.width, self.teacher_width, bias=False)
        self.to(self.device)

    def distil(self, interaction: Any) -> Tensor:
        """Both losses, weighted; every user is encoded once."""
        rows, entities = self.rows.next(self.interacting(interaction)), self.entities(interaction)
        users = torch.cat([rows.users, entities.users]).unique()
        encoded = self.scorer.user_vectors(users)
        of_rows, of_batch = (
            encoded[torch.searchsorted(users, ids)] for ids in (rows.users, entities.users)
        )
        scores = self.score_loss(rows, of_rows)
        vectors = self.vector_loss(entities, of_batch, self.scorer.item_vectors())
        return self.wasserstein * scores + self.contrast * vectors

    def kd_loss(self, rows: Rows) -> Tensor:
        """:meth:`score_loss` alone."""
        return self.score_loss(rows, self.scorer.user_vectors(rows.users))

    def score_loss(self, rows: Rows, users: Tensor) -> Tensor:
        """Mean of :func:`wasserstein_loss` over the rows, of user vectors ``[b, d]``."""
        items, teacher = (t[rows.users] for t in self.teacher.top_k(self.k, self.mask_train))
        student = self.scorer.score(self.scorer.tempered(users), items.long())
        return rows.mean(wasserstein_loss(student, teacher, self.tau))

    def vector_loss(self, entities: Entities, users: Tensor, items: Tensor) -> Tensor:
        """Sum of :func:`contrastive_loss` over the entities, over the batch's interactions."""
        pairs = (
            (self.user_projector(users), self.teacher_users[entities.users]),
            (
                self.item_projector(items[entities.positives]),
                self.teacher_items[entities.positives],
            ),
        )
        losses = [contrastive_loss(*pair, self.contrast_tau).sum() for pair in pairs]
        return torch.stack(losses).sum() / entities.rows


def _width_key(config: Any) -> str | None:
    read = config.learning_keys()
    return next((k for k in ("embedding_size", "hidden_size") if k in read), None)
