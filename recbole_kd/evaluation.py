"""RecBole's evaluation, without its dense matrix of positives; its means, and what they are of."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from recbole.evaluator import Evaluator
from recbole.evaluator.base_metric import TopkMetric
from recbole.evaluator.collector import Collector, DataStruct
from recbole.evaluator.metrics import AveragePopularity, TailPercentage
from recbole.evaluator.register import metrics_dict
from torch import Tensor

USERS, HELD_OUT = "rec.users", "rec.held_out"
"""Names of what is collected with ``per_user``: user id and number of targets of each ranking."""

TARGETS, HITS, PLACES = "rec.targets", "rec.hits", "rec.places"
"""The same, over all rankings: each target's item; each hit's item, and its 0-based place."""

PER_RANKING = (USERS, HELD_OUT, TARGETS, HITS, PLACES)

PER_BATCH = ("rec.topk", "rec.meanrank", "rec.score", "rec.items", "data.label", *PER_RANKING)
"""What an evaluation collects batch by batch; the rest is collected once from the train data."""

MEANS = (TopkMetric, AveragePopularity, TailPercentage)
"""RecBole's metrics that are means over rankings; the values of all go to ``topk_result``."""


class TopKCollector(Collector):
    """RecBole's ``Collector`` with the same results for top-k metrics at a third of the time.

    For ``rec.topk`` RecBole fills an integer matrix of users x items with the positives and sums
    its rows; here the positives are looked up among the ranked items. With the option
    ``per_user`` it also collects whose ranking each is.
    """

    def eval_batch_collect(
        self, scores_tensor: Tensor, interaction: Any, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        """Collect one batch.

        Args:
            scores_tensor: Scores, ``[B, n_items]``; hidden items are ``-inf``.
            interaction: The batch.
            positive_u: Row of each positive, ``[P]``.
            positive_i: Item of each positive, ``[P]``.
        """
        needs = {k for k in ("rec.meanrank", "rec.score", "data.label") if self.register.need(k)}
        others = bool(needs) or not self.register.need("rec.topk")
        if others:
            super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        if others and not self.config["per_user"]:
            return
        top, hits, counts = self._ranked(scores_tensor, positive_u, positive_i)
        if self.config["per_user"]:
            self._collect_users(scores_tensor, interaction, positive_u, positive_i)
            self._collect_items(top, hits, positive_u, positive_i)
        if others:
            return
        if self.register.need("rec.items"):
            self.data_struct.update_tensor("rec.items", top)
        self.data_struct.update_tensor("rec.topk", torch.cat([hits, counts], dim=1))

    def _ranked(
        self, scores: Tensor, positive_u: Tensor, positive_i: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best items ``[B, k]``, whether each is a target, and the number of targets."""
        rows, n_items = scores.shape
        device = scores.device
        top = scores.topk(max(self.topk), dim=-1).indices
        pairs = (positive_u.to(device) * n_items + positive_i.to(device)).unique()
        ranked = torch.arange(rows, device=device).unsqueeze(1) * n_items + top
        counts = torch.bincount(pairs // n_items, minlength=rows).int().unsqueeze(1)
        return top, torch.isin(ranked, pairs).int(), counts

    def _collect_items(
        self, top: Tensor, hits: Tensor, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        pairs = torch.stack([positive_u, positive_i], dim=1).unique(dim=0)
        rows, places = hits.nonzero(as_tuple=True)
        self.data_struct.update_tensor(TARGETS, pairs[:, 1].cpu())
        self.data_struct.update_tensor(HITS, top[rows, places].cpu())
        self.data_struct.update_tensor(PLACES, places.cpu())

    def _collect_users(
        self, scores: Tensor, interaction: Any, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        rows, n_items = scores.shape
        users = interaction[self.config["USER_ID_FIELD"]]
        if len(users) != rows:
            # Sampled candidates: a row an item, and the rows of a user lie together.
            users = users.unique_consecutive()
        targets = (positive_u * n_items + positive_i).unique() // n_items
        self.data_struct.update_tensor(USERS, users.cpu())
        self.data_struct.update_tensor(HELD_OUT, torch.bincount(targets, minlength=rows).cpu())

    def get_data_struct(self) -> Any:
        """What was collected, on the CPU; the batches' share is dropped for the next evaluation.

        RecBole's own fails on the counts that ItemCoverage, GiniIndex, AveragePopularity and
        TailPercentage need: it moves them to the CPU as if they were tensors.
        """
        content = self.data_struct._data_dict
        collected = copy.copy(self.data_struct)
        collected._data_dict = {
            k: v.cpu() if isinstance(v, Tensor) else v for k, v in content.items()
        }
        self.data_struct._data_dict = {k: v for k, v in content.items() if k not in PER_BATCH}
        return collected


@dataclass(frozen=True)
class Rankings:
    """What an evaluation's means are of: a row a ranking, in the order of the loader.

    Attributes:
        users: User id, ``[n]``, int64.
        held_out: Number of targets, ``[n]``, int64.
        metrics: Values of each metric that is a mean over rankings, ``[n]``, float64.
        targets: Item id of each target of all rankings, ``[t]``, int64.
        hits: Item id of each target that is among the best, ``[h]``, int64.
        places: 0-based place of it, ``[h]``, int64.
    """

    users: Tensor
    held_out: Tensor
    metrics: dict[str, np.ndarray[Any, Any]]
    targets: Tensor
    hits: Tensor
    places: Tensor


class RankingEvaluator(Evaluator):
    """RecBole's ``Evaluator``, which with ``per_user`` remembers the last evaluation."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.collected: DataStruct | None = None

    def evaluate(self, dataobject: DataStruct) -> Any:
        """The metrics of what was collected, by name."""
        self.collected = dataobject if USERS in dataobject else None
        return super().evaluate(dataobject)

    def rankings(self) -> Rankings:
        """The rankings of the last evaluation, which was made with ``per_user``."""
        assert self.collected is not None
        metrics: dict[str, np.ndarray[Any, Any]] = {}
        for metric in self.metric_class.values():
            if isinstance(metric, MEANS):
                metrics.update(_values(metric, self.collected))
        users, held_out, *items = (self.collected[name] for name in PER_RANKING)
        return Rankings(users, held_out, metrics, *items)


def _values(metric: Any, collected: DataStruct) -> dict[str, np.ndarray[Any, Any]]:
    """What a metric of RecBole takes the mean of, by name and cut-off."""
    found: dict[str, np.ndarray[Any, Any]] = {}

    def keep(name: str, values: np.ndarray[Any, Any]) -> None:
        found.update({f"{name}@{k}": values[:, k - 1].astype(np.float64) for k in metric.topk})

    metric = copy.copy(metric)
    metric.topk_result = keep
    metric.calculate_metric(collected)
    return found


def mean_metrics(names: Sequence[str]) -> list[str]:
    """The metrics that are means over rankings, of some of RecBole's.

    Args:
        names: Names of metrics, in any case.
    """
    return [name for name in names if issubclass(metrics_dict[name.lower()], MEANS)]
