"""RecBole's SASRec, which may also learn every position of a row at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

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
    reaches a state of a row that has an item. The last layer is asked where a state is wanted and
    nowhere else. With dropout the draws are other ones than RecBole's.

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
        if self.hidden_act == "gelu":
            for layer in self.trm_encoder.layer:  # the same function, in one pass instead of five
                layer.feed_forward.intermediate_act_fn = gelu

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
        if item_seq_len.dim() > 1:
            return super().forward(item_seq, item_seq_len)
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # groups cannot be recorded
            return self._last_states(item_seq, item_seq_len)
        # Before its first item a row attends to all columns alike, padding too.
        widths = item_seq_len.where(item_seq[:, 0] != 0, item_seq.shape[1])
        return in_order(
            (rows, self._last_states(items, item_seq_len[rows]))
            for rows, items in _groups(item_seq, widths)
        )

    def _last_states(self, items: Tensor, lengths: Tensor) -> Tensor:
        """RecBole's forward, whose last layer is asked at one position of each row alone.

        Args:
            items: ``[G, t]``.
            lengths: ``[G]``.

        Returns:
            ``[G, d]``.
        """
        places = torch.arange(items.shape[1], device=items.device)
        states = self.item_embedding(items) + self.position_embedding(places)
        states = self.dropout(self.LayerNorm(states))
        mask = self.get_attention_mask(items)
        *layers, last = self.trm_encoder.layer
        for layer in layers:
            states = layer(states, mask)
        return _layer_at(last, states, mask, lengths - 1)

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


def _layer_at(layer: Any, states: Tensor, mask: Tensor, columns: Tensor) -> Tensor:
    """A layer of RecBole's encoder at one position of each row: its keys and values are of all.

    Args:
        layer: A ``TransformerLayer``.
        states: What it reads, ``[G, t, d]``.
        mask: What it adds to the logits of attention, ``[G, 1, t, t]``.
        columns: The positions, ``[G]``, int64.

    Returns:
        ``[G, d]``.
    """
    rows = torch.arange(states.shape[0], device=states.device)  # len() would be fixed by tracing
    attention = layer.multi_head_attention
    asking = states[rows, columns].unsqueeze(1)
    query, key, value = (
        attention.transpose_for_scores(part(read)).transpose(1, 2)
        for part, read in (
            (attention.query, asking),
            (attention.key, states),
            (attention.value, states),
        )
    )
    logits = query @ key.mT / attention.sqrt_attention_head_size
    weights = attention.attn_dropout(attention.softmax(logits + mask[rows, :, columns, None]))
    heard = attention.dense((weights @ value).transpose(1, 2).flatten(2))
    states = attention.LayerNorm(attention.out_dropout(heard) + asking)
    return layer.feed_forward(states).squeeze(1)


def _groups(items: Tensor, widths: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of similar width and their first columns, ``[G, t]``."""
    for alike in length_groups(widths):
        columns = columns_of(alike, widths)
        cached = CACHED_TOKENS // columns if items.device.type == "cpu" else len(alike)
        for rows in alike.split(max(1, cached)):
            yield rows, items[rows, :columns]
