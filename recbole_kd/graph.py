"""Co-occurrence graphs of users or items, built once from the train history."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from recbole_kd.history import UserHistory, ragged

ROWS = 128
"""Rows whose co-occurrences are counted at a time: some 40 bytes for each of all rows."""


def interactions(history: UserHistory) -> sp.csr_matrix:
    """Train interactions as a sparse 0/1 matrix, ``[n_users, n_items]``, float32."""
    users, items = (ids.numpy() for ids in history.to("cpu").pairs())
    shape = (history.n_users, history.n_items)
    matrix = sp.csr_matrix((np.ones(len(users), dtype=np.float32), (users, items)), shape)
    matrix.data[:] = 1
    return matrix


def neighbour_graph(incidence: sp.csr_matrix, k: int) -> sp.csr_matrix:
    """Each row's ``k`` rows with most common entries, symmetric and normalised.

    ``D^-1/2 (G + G') / 2 D^-1/2`` with ``G`` the 0/1 matrix of neighbours; a row is no neighbour of
    its own. Ties go to the smaller id. Rows with nothing in common are never neighbours; the code
    released beside RCE-KD fills a row that has fewer than ``k`` others with such.

    Args:
        incidence: 0/1 matrix, ``[N, M]``.
        k: Neighbours a row at most.

    Returns:
        ``[N, N]``, float32; rows without a neighbour are empty.
    """
    transposed = incidence.T.tocsr()
    rows, columns = [], []
    for start in range(0, incidence.shape[0], ROWS):
        counts = (incidence[start : start + ROWS] @ transposed).tocoo()
        row, column, value = counts.row + start, counts.col, counts.data
        other = row != column
        row, column, value = row[other], column[other], value[other]
        order = np.lexsort((column, -value, row))
        row, column = row[order], column[order]
        first = np.searchsorted(row, row)
        kept = np.arange(len(row)) - first < k
        rows.append(row[kept])
        columns.append(column[kept])
    row, column = np.concatenate(rows), np.concatenate(columns)
    size = incidence.shape[0]
    graph = sp.csr_matrix((np.ones(len(row), dtype=np.float32), (row, column)), (size, size))
    graph = ((graph + graph.T) / 2).tocsr()
    degrees = np.asarray(graph.sum(1)).ravel()
    scale = sp.diags(1 / np.sqrt(np.where(degrees > 0, degrees, 1)))
    return (scale @ graph @ scale).tocsr().astype(np.float32)


class Neighbours:
    """A graph's rows on the device, for filters on a few of its entities.

    Args:
        graph: ``[N, N]``, float32.
        device: Where the filter runs.
    """

    def __init__(self, graph: sp.csr_matrix, device: Any):
        # int64: scipy's index type depends on the size of the matrix.
        ends = torch.from_numpy(graph.indptr.astype("int64")).to(device)
        self.starts, self.counts = ends[:-1], ends.diff()
        self.others = torch.from_numpy(graph.indices.astype("int64")).to(device)
        self.values = torch.from_numpy(graph.data).to(device)

    def edges(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Edges of some entities: place in ``ids``, the other's id, and value."""
        runs, places = ragged(self.starts[ids], self.counts[ids])
        return runs, self.others[places], self.values[places]
