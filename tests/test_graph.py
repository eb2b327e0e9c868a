"""Neighbour graphs against brute force on Python's sets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from recbole_kd import graph
from recbole_kd.graph import Neighbours, interactions, neighbour_graph
from recbole_kd.history import UserHistory


def random_incidence(rows: int, columns: int, share: float, seed: int) -> sp.csr_matrix:
    drawn = np.random.default_rng(seed).random((rows, columns)) < share
    drawn[0] = False  # padding
    return sp.csr_matrix(drawn.astype(np.float32))


def neighbours(incidence: sp.csr_matrix, k: int) -> list[list[int]]:
    """The ``k`` others with most common entries, ties by id, none without a common entry."""
    sets = [set(row.indices.tolist()) for row in incidence]
    found = []
    for own, mine in enumerate(sets):
        counts = [(-len(mine & theirs), other) for other, theirs in enumerate(sets) if other != own]
        found.append([other for count, other in sorted(counts) if count < 0][:k])
    return found


def brute_force(incidence: sp.csr_matrix, k: int) -> np.ndarray:
    size = incidence.shape[0]
    table = np.zeros((size, size))
    for row, others in enumerate(neighbours(incidence, k)):
        for other in others:
            table[row, other] += 0.5
            table[other, row] += 0.5
    degrees = table.sum(1)
    for row in range(size):
        for other in range(size):
            if table[row, other]:
                table[row, other] /= math.sqrt(degrees[row] * degrees[other])
    return table


CASES = [(12, 9, 0.4, 1), (12, 9, 0.4, 2), (30, 8, 0.3, 5), (25, 40, 0.1, 3), (8, 5, 0.9, 50)]


@pytest.mark.parametrize(("rows", "columns", "share", "k"), CASES)
def test_a_graph_against_brute_force(rows: int, columns: int, share: float, k: int) -> None:
    for seed in range(3):
        incidence = random_incidence(rows, columns, share, seed)
        found = neighbour_graph(incidence, k)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.toarray(), brute_force(incidence, k), atol=1e-6)


@pytest.mark.parametrize(("rows", "columns", "share", "k"), CASES)
def test_a_graph_is_symmetric_and_nobody_is_a_neighbour_of_itself(
    rows: int, columns: int, share: float, k: int
) -> None:
    table = neighbour_graph(random_incidence(rows, columns, share, 4), k).toarray()
    np.testing.assert_allclose(table, table.T, atol=1e-7)
    assert not table.diagonal().any()
    assert not table[0].any()
    # A symmetric normalisation: no eigenvalue lies outside [-1, 1], and 1 is reached.
    eigenvalues = np.linalg.eigvalsh(table.astype(np.float64))
    assert eigenvalues.max() == pytest.approx(1, abs=1e-5)
    assert eigenvalues.min() > -1 - 1e-5


def test_twins_are_neighbours_and_not_themselves() -> None:
    """Equal rows share most with each other; the row itself, which shares as much, is left out."""
    incidence = sp.csr_matrix(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]))
    table = neighbour_graph(incidence.astype(np.float32), 1).toarray()
    # 0 - 1 both ways (weight 1); 2 names 0 (weight 1/2); 3 has nobody.
    wanted = np.zeros((4, 4))
    wanted[0, 1] = wanted[1, 0] = 1 / math.sqrt(1.5 * 1)
    wanted[0, 2] = wanted[2, 0] = 0.5 / math.sqrt(1.5 * 0.5)
    np.testing.assert_allclose(table, wanted, atol=1e-6)


def test_a_row_names_at_most_k_others() -> None:
    incidence = random_incidence(40, 10, 0.5, 6)
    for k in (1, 3, 7):
        edges = sp.triu(neighbour_graph(incidence, k)).nnz
        assert edges <= 39 * k
        assert edges >= 39 * k / 2
    most = neighbour_graph(incidence, 10_000)
    common = (incidence @ incidence.T).toarray() > 0
    np.fill_diagonal(common, False)
    assert (most.toarray() > 0).tolist() == common.tolist()


def test_chunks_do_not_change_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    incidence = random_incidence(37, 12, 0.3, 7)
    whole = neighbour_graph(incidence, 4).toarray()
    for rows in (1, 5, 36):
        monkeypatch.setattr(graph, "ROWS", rows)
        assert np.array_equal(neighbour_graph(incidence, 4).toarray(), whole)


def test_no_common_entry_is_no_edge() -> None:
    assert neighbour_graph(sp.csr_matrix(np.eye(5, dtype=np.float32)), 3).nnz == 0
    assert neighbour_graph(sp.csr_matrix((4, 6), dtype=np.float32), 3).nnz == 0


def test_interactions_are_ones_even_where_they_are_repeated() -> None:
    users, items = torch.tensor([1, 2, 1, 1, 3]), torch.tensor([4, 1, 2, 4, 4])
    history = UserHistory.from_pairs(users, items, 5, 6)
    matrix = interactions(history)
    wanted = np.zeros((5, 6))
    wanted[[1, 1, 2, 3], [4, 2, 1, 4]] = 1
    assert matrix.toarray().tolist() == wanted.tolist()
    assert (matrix.dtype, matrix.shape) == (np.float32, (5, 6))
    assert len(history.items) == 5, "the history itself keeps the repeat"


def test_edges_of_a_few_entities() -> None:
    graph_ = neighbour_graph(random_incidence(20, 10, 0.3, 8), 3)
    ids = torch.tensor([4, 0, 17, 4, 9])
    place, other, value = Neighbours(graph_, "cpu").edges(ids)
    found = torch.zeros(5, 20).index_put((place, other), value)
    np.testing.assert_array_equal(found.numpy(), graph_.toarray()[ids])
    assert len(place) == sum(int(graph_.indptr[i + 1] - graph_.indptr[i]) for i in ids)
    assert (place.dtype, other.dtype, value.dtype) == (torch.int64, torch.int64, torch.float32)
    nobody = Neighbours(graph_, "cpu").edges(ids[:0])
    assert [len(part) for part in nobody] == [0, 0, 0]
