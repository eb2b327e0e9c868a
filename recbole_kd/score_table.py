"""All scores of a frozen model in half precision, in a mapped file instead of memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_kd import checkpoint
from recbole_kd.errors import KDError

LOWEST = torch.finfo(torch.float16).min


def table_bytes(n_users: int, n_items: int) -> int:
    """Bytes of a table, on disk."""
    return 2 * n_users * n_items


class ScoreTable:
    """Scores of all items for all users, float16, below each user's best; filled by and by.

    What is kept is the distance to the user's best score, which is exact to a relative 2^-11: the
    scores that carry a softmax are near it. The file has no name and is gone with the process.

    Args:
        n_users: Number of users, padding included.
        n_items: Number of items, padding included.
        device: Where answers go.
        folder: Where the file lies; ``None``: where temporary files do.

    Raises:
        KDError: There is no room for the file.
    """

    def __init__(self, n_users: int, n_items: int, device: Any, folder: Path | None = None):
        where = folder or Path(tempfile.gettempdir())
        checkpoint.need_space(where, table_bytes(n_users, n_items))
        self._file = tempfile.TemporaryFile(dir=where)  # noqa: SIM115
        shape = (n_users, n_items)
        self._table = torch.from_numpy(np.memmap(self._file, np.float16, "w+", shape=shape))
        self._best = torch.zeros(n_users)
        self._filled = torch.zeros(n_users, dtype=torch.bool)
        self.device = device

    def keep(self, users: Tensor, scores: Tensor) -> None:
        """Take in the scores of some users.

        Args:
            users: User ids, ``[B]``, int64.
            scores: ``[B, n_items]``; ``-inf`` is far below all, and so is column 0.

        Raises:
            KDError: A score is no number, or infinite.
        """
        users, scores = users.cpu(), scores.cpu()
        best = scores[:, 1:].amax(1)
        if not bool(torch.isfinite(best).all()):
            raise KDError("teacher: it gives a score that is no finite number")
        below = scores - best.unsqueeze(1)
        below[:, 0] = LOWEST  # padding, which no model promises to be a number
        self._table[users] = below.clamp_min_(LOWEST).half()
        self._best[users] = best
        self._filled[users] = True

    def lacks(self, users: Tensor) -> Tensor:
        """Whether the scores of users are not there yet, ``[B]``, bool, on the CPU."""
        return ~self._filled[users.cpu()]

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores ``[B, K]``, float32, of the items ``[B, K]`` for the users ``[B]``."""
        users, items = users.cpu(), items.cpu()
        scores = self._table[users.unsqueeze(1), items].float() + self._best[users].unsqueeze(1)
        return scores.to(self.device)

    def score_all(self, users: Tensor) -> Tensor:
        """Scores ``[B, n_items]``, float32, of all items for the users ``[B]``; a fresh tensor."""
        users = users.cpu()
        return (self._table[users].float() + self._best[users].unsqueeze(1)).to(self.device)
