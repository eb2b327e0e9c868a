"""VkD: orthogonal projection."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from recbole_kd.experts import Orthogonal
from recbole_kd.history import UserHistory
from recbole_kd.losses import squared_error
from recbole_kd.methods.base import EmbeddingDistiller


def vkd_loss(projected: Tensor, teacher: Tensor, center: bool, norm: bool) -> Tensor:
    """Squared distance of projected student vectors and the teacher's.

    Args:
        projected: ``[n, D]``, with gradient.
        teacher: ``[n, D]``.
        center: Whether the mean of the given teacher rows is taken from them first.
        norm: Whether both are then scaled to length 1.

    Returns:
        One loss an entity, ``[n]``.
    """
    if center:
        teacher = teacher - teacher.mean(0)
    return squared_error(projected, teacher, norm)


class VkD(EmbeddingDistiller):
    """Miles, Elezi and Deng, "VkD: Improving Knowledge Distillation" (CVPR 2024, 2403.06213).

    A projector whose columns stay orthonormal keeps the lengths of the student's vectors. Users and
    items are drawn as in Fit. Released beside RCE-KD (default): squared error summed, the teacher
    centred by the mean of the drawn rows; the original takes the mean of a smooth L1 error to
    teacher features standardised one by one. torch's own orthogonal parametrisation, which the
    released code uses, becomes zero under weight decay; the one here does not notice it.
    """

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; see :meth:`Distiller.check`."""
        super().check(config, history)
        for key in ("vkd_center", "vkd_norm"):
            config.choice(key, (True, False))

    def __init__(self, config: Any, *parts: Any, **named: Any):
        super().__init__(config, *parts, **named)
        self.center, self.norm = config["vkd_center"], config["vkd_norm"]
        self.user_projector = Orthogonal(self.width, self.teacher_width)
        self.item_projector = Orthogonal(self.width, self.teacher_width)
        self.to(self.device)

    def distil(self, interaction: Any) -> Tensor:
        """Error of the drawn users and items, over the batch's interactions."""
        return self.drawn_error(
            interaction, lambda mine, wanted: vkd_loss(mine, wanted, self.center, self.norm)
        )
