"""Adam at memory speed on the CPU: fused, and without a dense gradient per embedding look-up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class DenseFromSparse:
    """Turns sparse embedding gradients into dense ones, in buffers that stay allocated.

    A dense look-up gradient is a fresh table of zeros for every look-up of every step; for BPR
    with 400 dimensions on CiteULike that is most of an epoch. Sparse look-up gradients are summed
    here into one table that is kept, and Adam sees the very same dense gradient as before.

    Args:
        optimizer: The optimiser before whose steps this runs.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._buffers: dict[Tensor, Tensor] = {}
        optimizer.register_step_pre_hook(self)

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Replace every sparse gradient by its dense equal."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                grad = parameter.grad
                if grad is None or not grad.is_sparse:
                    continue
                buffer = self._buffers.get(parameter)
                if buffer is None:
                    buffer = self._buffers[parameter] = torch.zeros_like(parameter)
                else:
                    buffer.zero_()
                # Not coalesced: index_add_ sums repeated rows itself.
                buffer.index_add_(0, grad._indices()[0], grad._values())
                parameter.grad = buffer


def speed_up(optimizer: torch.optim.Optimizer, model: nn.Module, eps: float, clipped: bool) -> None:
    """Put Adam into its fused form and make embedding look-ups cheap; other optimisers are left.

    Args:
        optimizer: The optimiser RecBole built.
        model: The model it trains.
        eps: Adam's epsilon.
        clipped: Whether gradients are clipped, which needs them dense before the step.
    """
    if not isinstance(optimizer, torch.optim.Adam):
        return
    for group in optimizer.param_groups:
        group["fused"], group["foreach"], group["eps"] = True, False, eps
    on_cpu = all(p.device.type == "cpu" for p in model.parameters())
    if clipped or not on_cpu:
        return
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            module.sparse = True
    DenseFromSparse(optimizer)
