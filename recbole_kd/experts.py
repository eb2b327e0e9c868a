"""Modules that some methods train beside the student: experts, gates, projectors.

They map the student's vectors into the teacher's space and are never deployed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

GATE_FLOOR = 1e-10
"""Added to a gate's probabilities before their logarithm (released codes of DE and HTD)."""


class Experts(nn.Module):
    """Several two-layer networks at once: dropout, linear, ReLU, dropout, linear.

    Two matrix products serve all experts; a mixture never makes an output for each of them.

    Args:
        width: Dimensions of the input.
        out: Dimensions of the output.
        number: Number of experts.
        hidden: Hidden units of each.
        dropout: Dropout probability before both layers.
    """

    def __init__(self, width: int, out: int, number: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.number, self.hidden, self.dropout = number, hidden, dropout
        self.weight_in = nn.Parameter(torch.empty(number * hidden, width))
        self.bias_in = nn.Parameter(torch.empty(number * hidden))
        self.weight_out = nn.Parameter(torch.empty(number, hidden, out))
        self.bias_out = nn.Parameter(torch.empty(number, out))
        for weight, fan in ((self.weight_in, width), (self.bias_in, width)):
            nn.init.uniform_(weight, -1 / math.sqrt(fan), 1 / math.sqrt(fan))
        for weight in (self.weight_out, self.bias_out):
            nn.init.uniform_(weight, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden))

    def forward(self, inputs: Tensor, shares: Tensor | None = None) -> Tensor:
        """The experts' outputs, mixed.

        Args:
            inputs: ``[n, width]``.
            shares: Share of each expert in each row, ``[n, number]``; ``None``: all alike.

        Returns:
            ``[n, out]``.
        """
        if shares is None:
            shares = inputs.new_full((1, self.number), 1 / self.number).expand(len(inputs), -1)
        inner = torch.relu(self._first(inputs))
        inner = nn.functional.dropout(inner, self.dropout, self.training)
        inner = inner.view(-1, self.number, self.hidden) * shares.unsqueeze(2)
        return inner.flatten(1) @ self.weight_out.flatten(0, 1) + shares @ self.bias_out

    def _first(self, inputs: Tensor) -> Tensor:
        """The first layer of all experts, ``[n, number * hidden]``, each with a mask of its own."""
        if not self.training or self.dropout == 0:
            return nn.functional.linear(inputs, self.weight_in, self.bias_in)
        kept = inputs.unsqueeze(1).expand(-1, self.number, -1)
        kept = nn.functional.dropout(kept, self.dropout)
        weight = self.weight_in.view(self.number, self.hidden, -1)
        return torch.einsum("ned,ehd->neh", kept, weight).flatten(1) + self.bias_in


class Gate(nn.Module):
    """Chooses experts by the teacher's vector, by a softmax with Gumbel noise.

    Args:
        width: Dimensions of the teacher's vectors.
        number: Number of experts.
    """

    def __init__(self, width: int, number: int):
        super().__init__()
        self.linear = nn.Linear(width, number)

    def forward(self, teacher: Tensor, noise: Tensor, temperature: float) -> Tensor:
        """Shares of the experts, ``[n, number]``.

        Args:
            teacher: Teacher's vectors, ``[n, width]``.
            noise: Standard Gumbel noise, ``[n, number]``.
            temperature: Above 0; near 0 one expert is chosen.
        """
        chances = self.linear(teacher).softmax(1) + GATE_FLOOR
        return ((chances.log() + noise) / temperature).softmax(1)

    def groups(self, teacher: Tensor) -> Tensor:
        """The most likely expert of each row, without noise or gradient, ``[n]``, int64."""
        with torch.no_grad():
            return self.linear(teacher).argmax(1)


class Orthogonal(nn.Module):
    """A linear map without bias whose matrix has orthonormal columns (rows, where it widens not).

    The matrix is the Q of the parameter's QR decomposition, signs fixed. It does not depend on the
    parameter's length, so that weight decay cannot wear it away.

    Args:
        width: Dimensions of the input.
        out: Dimensions of the output.
    """

    def __init__(self, width: int, out: int):
        super().__init__()
        self.raw = nn.Parameter(nn.init.orthogonal_(torch.empty(out, width)))

    def matrix(self) -> Tensor:
        """The map, ``[out, width]``."""
        tall = self.raw.shape[0] >= self.raw.shape[1]
        q, r = torch.linalg.qr(self.raw if tall else self.raw.t())
        q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
        return q if tall else q.t()

    def forward(self, inputs: Tensor) -> Tensor:
        """``[n, width]`` to ``[n, out]``."""
        return inputs @ self.matrix().t()


def gumbel(rows: int, number: int, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, ``[rows, number]``, on the generator's device."""
    noise = torch.empty(rows, number, device=generator.device)
    return -noise.exponential_(generator=generator).log()


def annealed(start: float, end: float, epoch: int, epochs: int) -> float:
    """A temperature that falls geometrically from ``start`` to ``end`` over ``epochs``."""
    return max(end, start * (end / start) ** (epoch / max(1, epochs)))
