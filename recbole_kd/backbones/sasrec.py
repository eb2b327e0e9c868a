"""RecBole's SASRec, which may also learn every position of a row at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from recbole_kd import compat
from recbole_kd.blocks import columns_of, in_order, length_groups, next_values
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.losses import full_softmax

RecBoleSASRec: Any = compat.import_sequential_models().SASRec

CACHED_TOKENS = 16384
"""Slots that a CPU encodes at a time: its caches hold what a layer makes of them."""


class SASRec(RecBoleSASRec):
    """SASRec (Kang and McAuley, ICDM 2018), as in RecBole: its weights, its states, its scores.

    With ``sequence_training: causal`` a row is a user's sequence, encoded once; the state of each
    position predicts the item after it, as in the original paper, with RecBole's cross-entropy over
    all items. RecBole encodes every prefix anew for its last state alone. A checkpoint of one opens
    in the other.

    Rows are encoded in groups of similar length, each as wide as its longest row, for no padding
    reaches a state of a row that has an item. With dropout the draws are other ones than RecBole's.

    Args:
        config: Options; RecBole's and ``sequence_training``.
        dataset: Train part.
    """

    same_scores = True
    sequence_training = ("prefix", "causal")

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        self.causal = config["sequence_training"] == "causal"
        self.budget = int((config["memory_budget_gb"] or 0.1) * 2**30)

    @staticmethod
    def check_data(config: Any, history: UserHistory, timeless: bool) -> None:
        """Refuse options the model cannot learn by, before anything is trained.

        Args:
            config: Options.
            history: Train interactions.
            timeless: Whether the model will be asked at no point in time.

        Raises:
            KDError: Causal training with a loss other than CE.
        """
        if config["sequence_training"] == "causal" and config["loss_type"] != "CE":
            raise KDError(
                f"--loss_type={config['loss_type']}: found sequence_training=causal, which learns "
                "from all items; allowed is CE"
            )

    def gather_indexes(self, output: Tensor, gather_index: Tensor) -> Tensor:
        """Outputs at one position of each row, as RecBole's, or at several.

        Args:
            output: ``[B, T, d]``.
            gather_index: ``[B]`` or ``[B, S]``, int64.

        Returns:
            ``[B, d]`` or ``[B, S, d]``.
        """
        if gather_index.dim() == 1:
            return super().gather_indexes(output, gather_index)
        return output.gather(1, gather_index.unsqueeze(-1).expand(-1, -1, output.shape[-1]))

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """The state after each row's last item, as RecBole's; or after several items of each.

        Args:
            item_seq: Item ids, ``[B, T]``, int64, oldest first; padding is 0, on the right.
            item_seq_len: Items of each row, ``[B]``, int64, at least 1; or ``[B, S]``, the numbers
                of items after which its states are wanted.

        Returns:
            ``[B, d]`` or ``[B, S, d]``, float.
        """
        encode = super().forward
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # groups cannot be
        if item_seq_len.dim() > 1 or recorded:
            return encode(item_seq, item_seq_len)
        # Before its first item a row attends to all columns alike, padding too.
        widths = item_seq_len.where(item_seq[:, 0] != 0, item_seq.shape[1])
        return in_order(
            (rows, encode(items, item_seq_len[rows])) for rows, items in _groups(item_seq, widths)
        )

    def calculate_loss(self, interaction: Any) -> Tensor:
        """RecBole's loss of the last position, or the mean over all positions of the batch."""
        if not self.causal:
            return super().calculate_loss(interaction)
        items, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        targets = next_values(items, lengths, interaction[self.POS_ITEM_ID])
        states, positives = [], []
        for rows, cut in _groups(items, lengths):
            columns = torch.arange(cut.shape[1], device=cut.device)
            inside = columns < lengths[rows].unsqueeze(1)
            states.append(self.forward(cut, (columns + 1).expand_as(cut))[inside])
            positives.append(targets[rows, : cut.shape[1]][inside])
        vectors = self.item_embedding.weight
        return full_softmax(
            torch.cat(states), vectors, torch.cat(positives), 1.0, self.budget, skipped=0
        )


def _groups(items: Tensor, widths: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of similar width and their first columns, ``[G, t]``."""
    for alike in length_groups(widths):
        columns = columns_of(alike, widths)
        cached = CACHED_TOKENS // columns if items.device.type == "cpu" else len(alike)
        for rows in alike.split(max(1, cached)):
            yield rows, items[rows, :columns]
