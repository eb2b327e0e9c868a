"""FTD: full topology distillation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from recbole_kd.methods.base import EmbeddingDistiller, Entities


def ftd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of all cosine similarities, summed over ordered pairs.

    The matrices of similarities are never made: with normalised rows ``S`` and ``T``, the sum is
    ``|T'T|^2 - 2 |T'S|^2 + |S'S|^2``. Its terms grow with ``n^2``, the sum with what is different:
    they are float64, or vectors with a common direction would leave nothing but rounding.

    Args:
        student: Student's vectors, ``[n, d]``, with gradient.
        teacher: Teacher's vectors of the same entities, ``[n, D]``.

    Returns:
        Scalar, in the type of ``student``.
    """
    s, t = normalize(student.double(), dim=1), normalize(teacher.double(), dim=1)
    terms = [(a.t() @ b).square().sum() for a, b in ((t, t), (t, s), (s, s))]
    return (terms[0] - 2 * terms[1] + terms[2]).to(student.dtype)


class FTD(EmbeddingDistiller):
    """Kang, Hwang, Kweon and Yu, "Topology Distillation" (KDD 2021, arXiv 2106.08700): its FTD.

    All similarities among the users and items of a batch, users and items mixed; no projector,
    so that the widths may differ.
    """

    def embedding_loss(self, entities: Entities) -> Tensor:
        """The loss over the users and items of the batch, over its rows."""
        items = entities.items
        student = torch.cat(self.vectors(entities.users, items))
        teacher = torch.cat([self.teacher_users[entities.users], self.teacher_items[items]])
        return ftd_loss(student, teacher) / entities.rows
