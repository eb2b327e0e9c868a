"""RecBole's LightGCN with the same weights and scores, and its slow start removed."""

from __future__ import annotations

import numpy as np
import torch
from recbole.model.general_recommender.lightgcn import LightGCN as RecBoleLightGCN
from torch import Tensor


class LightGCN(RecBoleLightGCN):
    """LightGCN (He et al., SIGIR 2020), as in RecBole.

    The normalised adjacency is built from coordinates instead of a dictionary of tuples.
    Parameters, their names and all results are RecBole's: a checkpoint of one opens in the other.
    """

    same_scores = True

    def get_norm_adj_mat(self) -> Tensor:
        """The symmetrically normalised adjacency, sparse ``[users + items, users + items]``."""
        matrix = self.interaction_matrix
        edges = np.unique(matrix.row.astype(np.int64) * self.n_items + matrix.col)
        users = torch.from_numpy(edges // self.n_items)
        items = torch.from_numpy(edges % self.n_items) + self.n_users
        nodes = self.n_users + self.n_items
        rows, columns = torch.cat([users, items]), torch.cat([items, users])
        # RecBole's epsilon; an isolated node has no entry at all.
        scale = (torch.bincount(rows, minlength=nodes).double() + 1e-7).pow(-0.5)
        values = (scale[rows] * scale[columns]).float()
        return torch.sparse_coo_tensor(
            torch.stack([rows, columns]), values, (nodes, nodes), check_invariants=False
        ).coalesce()
