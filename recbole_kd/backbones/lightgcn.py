"""RecBole's LightGCN with the same weights and scores, and its slow parts replaced."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.model.general_recommender.lightgcn import LightGCN as RecBoleLightGCN
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.options import is_positive


class _Propagate(torch.autograd.Function):
    """``adjacency @ x`` for a symmetric sparse matrix.

    Its gradient is the same product. Torch's own backward pass transposes the matrix at every call,
    which takes longer than the product.
    """

    @staticmethod
    def forward(ctx: Any, adjacency: Tensor, x: Tensor) -> Tensor:
        ctx.adjacency = adjacency
        return torch.sparse.mm(adjacency, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, torch.sparse.mm(ctx.adjacency, grad.contiguous())


class LightGCN(RecBoleLightGCN):
    """LightGCN (He et al., SIGIR 2020), as in RecBole.

    The normalised adjacency is built from coordinates instead of a dictionary of tuples, and is
    multiplied by rows, forwards and backwards. Parameters, their names and all results are
    RecBole's: a checkpoint of one opens in the other. With ``init_std`` the embeddings are drawn
    from a normal distribution, as in the original code (0.1), instead of RecBole's Xavier.

    Args:
        config: Options; RecBole's and ``init_std``.
        dataset: Train part.
    """

    same_scores = True

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        if config["init_std"] is not None:
            for table in (self.user_embedding, self.item_embedding):
                torch.nn.init.normal_(table.weight, std=config["init_std"])

    @staticmethod
    def check_data(config: Any, history: UserHistory, timeless: bool) -> None:
        """Refuse options out of range, before anything is trained.

        Args:
            config: Options.
            history: Train interactions.
            timeless: Whether the model will be asked at no point in time.

        Raises:
            KDError: ``init_std`` is no number above 0.
        """
        std = config["init_std"]
        if std is not None and not is_positive(std):
            raise KDError(f"--init_std={std}: allowed are numbers above 0")

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
        adjacency = torch.sparse_coo_tensor(
            torch.stack([rows, columns]), values, (nodes, nodes), check_invariants=False
        ).coalesce()
        # Without MKL a CPU multiplies coordinates only.
        by_rows = torch.backends.mkl.is_available() or torch.device(self.device).type != "cpu"
        return adjacency.to_sparse_csr() if by_rows else adjacency

    def forward(self) -> tuple[Tensor, Tensor]:
        """Propagated user and item embeddings: the mean over all layers, the first included."""
        layer = total = self.get_ego_embeddings()
        # There is no product of rows in half precision, and it is the same for every loss.
        with torch.autocast(layer.device.type, enabled=False):
            for _ in range(self.n_layers):
                layer = _Propagate.apply(self.norm_adj_matrix, layer)
                total = total + layer
        users, items = (total / (self.n_layers + 1)).split([self.n_users, self.n_items])
        return users, items
