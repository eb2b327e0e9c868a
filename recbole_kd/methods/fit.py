"""Fit: feature regression with a projector."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from recbole_kd.errors import KDError
from recbole_kd.experts import Experts
from recbole_kd.history import UserHistory
from recbole_kd.losses import squared_error
from recbole_kd.methods.base import EmbeddingDistiller


def fit_loss(projected: Tensor, teacher: Tensor, norm: bool) -> Tensor:
    """Squared distance of projected student vectors and the teacher's.

    Args:
        projected: ``[n, D]``, with gradient.
        teacher: ``[n, D]``.
        norm: Whether both are scaled to length 1 first.

    Returns:
        One loss an entity, ``[n]``.
    """
    return squared_error(projected, teacher, norm)


class Fit(EmbeddingDistiller):
    """FitNets (Romero et al., ICLR 2015) on user and item vectors.

    In every step as many users and as many items as the batch has rows are drawn from all that the
    teacher knows, without repeats; they have nothing to do with the batch (released code, which
    fails where there are fewer; here all are taken).
    """

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; see :meth:`Distiller.check`."""
        super().check(config, history)
        config.positive_int("fit_experts")
        config.number("fit_hidden_ratio", low=0, above=True)
        if config.number("fit_dropout", low=0) >= 1:
            raise KDError(f"--fit_dropout={config['fit_dropout']}: allowed are numbers below 1")
        for key in ("fit_norm", "fit_bias", "fit_linear"):
            config.choice(key, (True, False))

    def __init__(self, config: Any, *parts: Any, **named: Any):
        super().__init__(config, *parts, **named)
        self.norm = config["fit_norm"]
        self.user_projector, self.item_projector = self._projector(config), self._projector(config)
        self.to(self.device)

    def _projector(self, config: Any) -> nn.Module:
        if config["fit_linear"]:
            return nn.Linear(self.width, self.teacher_width, bias=config["fit_bias"])
        hidden = max(1, int(self.teacher_width * config["fit_hidden_ratio"]))
        sizes = self.width, self.teacher_width, config["fit_experts"], hidden
        return Experts(*sizes, dropout=config["fit_dropout"])

    def distil(self, interaction: Any) -> Tensor:
        """Error of the drawn users and items, over the batch's interactions."""
        return self.drawn_error(interaction, lambda mine, wanted: fit_loss(mine, wanted, self.norm))
