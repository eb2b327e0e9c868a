"""RecBole's splits of a data set, without its Python loops over interactions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

Array = np.ndarray[Any, Any]

LEFT_OUT = {"valid_and_test": (0, 1, 2), "valid_only": (0, 1, None), "test_only": (0, None, 1)}
"""Which part of the split is train, validation and test; ``None`` is empty."""


def take(feat: Interaction, index: Tensor) -> Interaction:
    """Rows of an interaction by index or mask, without RecBole's detour over Python lists.

    Args:
        feat: The interaction, ``N`` rows.
        index: Rows, int64, or a mask, ``[N]``, bool.
    """
    return Interaction({field: values[index] for field, values in feat.interaction.items()})


class ArraySplits:
    """RecBole's splits by group, to the row and in its order, with arrays.

    RecBole collects the rows of every group in Python lists, which for a million interactions takes
    most of the time until training begins.
    """

    inter_feat: Any

    def leave_one_out(self, group_by: str | None, leave_one_mode: str) -> list[Any]:
        """The last one or two rows of each group; see RecBole's ``Dataset.leave_one_out``.

        Args:
            group_by: Field whose values are the groups.
            leave_one_mode: ``valid_and_test``, ``valid_only`` or ``test_only``.
        """
        if group_by is None or leave_one_mode not in LEFT_OUT:
            return super().leave_one_out(group_by, leave_one_mode)  # type: ignore[misc]
        places = LEFT_OUT[leave_one_mode]
        order, ranks, sizes = _grouped(self.inter_feat[group_by].numpy())
        most = len([place for place in places if place is not None]) - 1
        from_end = sizes - 1 - ranks
        parts = np.where(from_end < np.minimum(most, sizes - 1), most - from_end, 0)
        return self._copies(order, parts, places)

    def split_by_ratio(self, ratios: Sequence[float], group_by: str | None = None) -> list[Any]:
        """The first rows of each group, and so on; see RecBole's ``Dataset.split_by_ratio``.

        Args:
            ratios: Shares of the parts.
            group_by: Field whose values are the groups; ``None`` for all rows as one.
        """
        if group_by is None:
            return super().split_by_ratio(ratios, group_by)  # type: ignore[misc]
        order, ranks, sizes = _grouped(self.inter_feat[group_by].numpy())
        shares = [ratio / sum(ratios) for ratio in ratios]
        different, which = np.unique(sizes, return_inverse=True)
        ends = np.array([self._calcu_split_ids(int(n), shares) for n in different])  # type: ignore[attr-defined]
        parts = (ranks[:, None] >= ends.reshape(len(different), len(shares) - 1)[which]).sum(axis=1)
        return self._copies(order, parts, range(len(ratios)))

    def _copies(self, order: Array, parts: Array, places: Sequence[int | None]) -> list[Any]:
        """A data set for each part, its rows group by group."""
        self._drop_unused_col()  # type: ignore[attr-defined]
        chosen = [torch.from_numpy(order[parts == (-1 if p is None else p)]) for p in places]
        return [self.copy(take(self.inter_feat, index)) for index in chosen]  # type: ignore[attr-defined]


def _grouped(keys: Array) -> tuple[Array, Array, Array]:
    """The rows of each group together, the groups in order of appearance.

    Args:
        keys: Group of each row, ``[N]``.

    Returns:
        Rows, rank of each within its group, from 0, and size of its group, each ``[N]``, int64.
    """
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    place = np.empty_like(first)
    place[np.argsort(first)] = np.arange(len(first))
    group = place[group]
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=len(first))
    ranks = np.arange(len(keys)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order, ranks, np.repeat(sizes, sizes)
