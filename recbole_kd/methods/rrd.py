"""RRD: relaxed ranking distillation."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from recbole_kd.candidates import distinct_outside, gumbel_top_k, rank_log_weights
from recbole_kd.history import UserHistory
from recbole_kd.losses import relaxed_ranking
from recbole_kd.methods.base import Distiller, check_list_length
from recbole_kd.rows import Rows


def draw_places(log_weights: Tensor, k: int, noise: Tensor, in_order: bool) -> Tensor:
    """Draw places of a list without replacement; see :func:`recbole_kd.candidates.gumbel_top_k`.

    Args:
        log_weights: Log-weights of the places, ``[C, M]``.
        k: Number of draws.
        noise: Independent draws of the exponential distribution, ``[C, M]``.
        in_order: Whether they come in the list's order; else in that of the draws.

    Returns:
        Places, ``[C, k]``, int64.
    """
    drawn = gumbel_top_k(log_weights, k, noise, ordered=not in_order)
    return drawn.sort(1).values if in_order else drawn


class RRD(Distiller):
    """Kang, Hwang, Kweon and Yu, "DE-RRD" (CIKM 2020, arXiv 2012.04357): its ranking part.

    K items sampled from the teacher's top M keep the teacher's order, above L uninteresting items
    that are in neither the top M nor the train items. The loss is
    :func:`recbole_kd.losses.relaxed_ranking`. Released code: scores are cut at 80 (``rrd_clamp``;
    by default they are not, for the loss here needs no cut). K = M takes the whole list, which the
    original's authors later recommend.
    """

    kept: tuple[str, ...] = ("items",)

    @classmethod
    def check(cls, config: Any, history: UserHistory) -> None:
        """Refuse options out of range; see :meth:`Distiller.check`."""
        super().check(config, history)
        length, others = config.positive_int("rrd_M"), config.positive_int("rrd_L")
        config.positive_int("rrd_K")
        config.at_most("rrd_K", "rrd_M")
        config.number("rrd_T", low=0, above=True)
        config.choice("rrd_weights", ("rank", "score"))
        config.choice("rrd_sort", (True, False))
        if config["rrd_clamp"] is not None:
            config.number("rrd_clamp")
        check_list_length("rrd_M", length, history, mask_train=True)
        check_list_length("rrd_L", others, history, mask_train=True, beside=length)

    @classmethod
    def teacher_list(cls, config: Any) -> tuple[int, bool] | None:
        """The teacher's lists; see :meth:`Distiller.teacher_list`."""
        return config["rrd_M"], True

    def __init__(self, config: Any, *parts: Any, **named: Any):
        super().__init__(config, *parts, **named)
        self.k, self.others, self.length = (config[f"rrd_{n}"] for n in "KLM")
        self.temperature, self.weights = config["rrd_T"], config["rrd_weights"]
        self.sort, self.clamp = config["rrd_sort"], config["rrd_clamp"]
        self.items = self.table(self.k + self.others, torch.int32)

    def refresh(self, epoch: int) -> dict[str, float]:
        """Both lists of every user, drawn anew."""
        top_items, top_scores = self.teacher.top_k(self.length, mask_train=True)
        for users, excluded in self.excluded_items(top_items):
            lists = top_items[users].long()
            log_weights = self._log_weights(top_scores[users])
            noise = self.noise(users, self.length, epoch)
            drawn = draw_places(log_weights, self.k, noise, self.sort)
            uniform = functools.partial(self._uniform_of, users, epoch)
            others = distinct_outside(uniform, excluded, self.others, self.n_items)
            self.items[users] = torch.cat([lists.gather(1, drawn), others], 1).int()
        return {}

    def _log_weights(self, scores: Tensor) -> Tensor:
        if self.weights == "score":
            return scores / self.temperature
        weights = rank_log_weights(self.length, self.temperature).to(scores)
        return weights.expand(len(scores), -1)

    def _uniform_of(self, users: Tensor, epoch: int, rows: Tensor, width: int) -> Tensor:
        return self.uniform(users[rows], width, epoch, 1)

    def losses(self, state: Any, users: Tensor) -> Tensor:
        """The relaxed ranking loss of each user, ``[R]``; one student scoring call.

        Args:
            state: The student's states of the users.
            users: User ids, ``[R]``.
        """
        scores = self.scorer.score(state, self.items[users].long())
        return relaxed_ranking(scores[:, : self.k], scores[:, self.k :], self.clamp)

    def kd_loss(self, rows: Rows) -> Tensor:
        """Mean of the losses over the rows."""
        return rows.mean(self.losses(self.scorer.encode(rows.users), rows.users))
