"""Inner products of vectors with the items they name, without a tensor of gathered vectors."""

from __future__ import annotations

import warnings
from typing import Any

import scipy.sparse as sp
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


BLOCK_BYTES = 2**26
"""Memory of a block of products with all items."""


class _GatherDot(torch.autograd.Function):
    """``out[b, k] = users[b] . items[ids[b, k]]`` without a ``[B, K, d]`` tensor.

    The forward pass is a sampled dense-dense product, the backward pass two sparse-dense ones; on
    two CPU cores that is about a tenth of the time of gathering and multiplying. Even where a row
    names a seventh of all items it is faster than all inner products and a choice of them.
    """

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, ids: Tensor) -> Tensor:
        rows, width = ids.shape
        offsets = torch.arange(0, rows * width + 1, width, device=ids.device)
        zeros = torch.zeros(rows * width, dtype=users.dtype, device=ids.device)
        pattern = torch.sparse_csr_tensor(
            offsets, ids.reshape(-1), zeros, (rows, items.shape[0]), check_invariants=False
        )
        ctx.save_for_backward(users, items, ids)
        scores = torch.sparse.sampled_addmm(pattern, users, items.t(), beta=0.0)
        return scores.values().view(rows, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        users, items, ids = ctx.saved_tensors
        grad = grad.contiguous()
        grad_users = grad_items = None
        if ctx.needs_input_grad[0]:
            grad_users = torch.nn.functional.embedding_bag(
                ids, items, per_sample_weights=grad, mode="sum"
            )
        if ctx.needs_input_grad[1]:
            grad_items = _by_item(ids, grad, items.shape[0]) @ users
        return grad_users, grad_items, None


def _by_item(ids: Tensor, values: Tensor, n_items: int) -> Tensor:
    """The sparse matrix ``[I, B]`` that holds ``values[b, k]`` at ``(ids[b, k], b)``.

    SciPy's change from rows to columns is a counting sort, which takes half the time of sorting the
    ids; entries of one item stay in the order of the rows, so that sums are reproducible.
    """
    rows, width = ids.shape
    # SciPy converts 64-bit indices to 32-bit ones if they fit: do it in one pass.
    index = torch.int32 if ids.numel() < 2**31 and n_items < 2**31 else torch.int64
    offsets = torch.arange(0, rows * width + 1, width, dtype=index)
    arrays = (values.reshape(-1), ids.reshape(-1).to(index), offsets)
    columns = sp.csr_matrix(tuple(a.numpy() for a in arrays), shape=(rows, n_items)).tocsc()
    return torch.sparse_csr_tensor(
        torch.from_numpy(columns.indptr),
        torch.from_numpy(columns.indices),
        torch.from_numpy(columns.data),
        (n_items, rows),
        check_invariants=False,
    )


def gather_dot(users: Tensor, items: Tensor, ids: Tensor) -> Tensor:
    """Inner products of each row's vector with the item vectors it names.

    Args:
        users: User vectors, ``[B, d]``, float.
        items: Item vectors, ``[I, d]``, float.
        ids: Item ids, ``[B, K]``, int64; repeats are allowed.

    Returns:
        Scores, ``[B, K]``, differentiable in ``users`` and ``items``.
    """
    # A sparse pattern holds at most as many entries a row as there are items.
    fits = 0 < ids.shape[1] <= items.shape[0]
    if fits and ids.numel() and users.device.type == "cpu" and torch.backends.mkl.is_available():
        return _GatherDot.apply(users.contiguous(), items.contiguous(), ids)
    # Elsewhere all products and a choice of them, in blocks: vectors are never gathered.
    rows = max(1, BLOCK_BYTES // (items.shape[0] * items.element_size()))
    blocks = zip(users.split(rows), ids.split(rows), strict=True)
    return torch.cat([(u @ items.t()).gather(1, i) for u, i in blocks])
