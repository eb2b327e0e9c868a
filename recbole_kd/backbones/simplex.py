"""RecBole's SimpleX, whose vectors and whose choice of history items can be asked for again."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from recbole.model.general_recommender.simplex import SimpleX as RecBoleSimpleX
from torch import Tensor

from recbole_kd.history import UserHistory
from recbole_kd.noise import keyed_generator


class SimpleX(RecBoleSimpleX):
    """SimpleX (Mao et al., CIKM 2021), as in RecBole: its weights, its loss, its scores.

    A user is mixed with the mean of ``history_len`` train items. Of users with more, RecBole draws
    some whenever a model is built, so that a checkpoint comes back as another model. Here they are
    drawn from ``split_seed`` and the train interactions alone.

    Args:
        config: Options, RecBole's.
        dataset: Train part.
    """

    same_scores = True
    stream = 4
    history_item_id: Tensor

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        matrix = dataset.inter_matrix(form="coo")
        pairs = torch.from_numpy(matrix.row).long() * self.n_items + torch.from_numpy(matrix.col)
        pairs = pairs.sort().values  # in whatever order they come
        # RecBole has one seed, and the one of a model in its form is that of the split.
        seed = config["seed"] if config["split_seed"] is None else config["split_seed"]
        generator = keyed_generator(seed, self.stream)
        history = UserHistory.from_pairs(
            pairs // self.n_items,
            pairs % self.n_items,
            self.n_users,
            self.n_items,
            torch.rand(len(pairs), generator=generator, dtype=torch.float64),
        )
        width: int = self.history_item_id.shape[1]
        self.history_item_id = history.padded(torch.arange(self.n_users), width)[0].to(self.device)
        self.history_item_len = history.counts.clamp_max(width).to(self.device)

    def user_vectors(self, users: Tensor) -> Tensor:
        """Unit vectors of users and their history items, ``[B, d]``; dropout as in the loss.

        Args:
            users: User ids, ``[B]``.
        """
        items = self.item_emb(self.history_item_id[users])
        mixed = self.get_UI_aggregation(self.user_emb(users), items, self.history_item_len[users])
        return F.normalize(self.dropout(mixed), dim=1)

    def item_vectors(self) -> Tensor:
        """Unit vectors of all items, ``[n_items, d]``; zeros for padding, and no gradient to it."""
        return F.pad(F.normalize(self.item_emb.weight[1:], dim=1), (0, 0, 1, 0))
