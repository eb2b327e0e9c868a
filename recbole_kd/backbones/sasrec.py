"""RecBole's SASRec, which may also learn every position of a row at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_kd import compat
from recbole_kd.blocks import next_values
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.losses import full_softmax

RecBoleSASRec: Any = compat.import_sequential_models().SASRec


class SASRec(RecBoleSASRec):
    """SASRec (Kang and McAuley, ICDM 2018), as in RecBole: its weights, its states, its scores.

    With ``sequence_training: causal`` a row is a user's sequence, encoded once; the state of each
    position predicts the item after it, as in the original paper, with RecBole's cross-entropy over
    all items. RecBole encodes every prefix anew for its last state alone. A checkpoint of one opens
    in the other.

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

    def calculate_loss(self, interaction: Any) -> Tensor:
        """RecBole's loss of the last position, or the mean over all positions of the batch."""
        if not self.causal:
            return super().calculate_loss(interaction)
        lengths = interaction[self.ITEM_SEQ_LEN]
        items = interaction[self.ITEM_SEQ][:, : int(lengths.max())]
        columns = torch.arange(items.shape[1], device=items.device)
        targets = next_values(items, lengths, interaction[self.POS_ITEM_ID])
        inside = columns < lengths.unsqueeze(1)
        states = self.forward(items, (columns + 1).expand_as(items))
        vectors, positives = self.item_embedding.weight, targets[inside]
        return full_softmax(states[inside], vectors, positives, 1.0, self.budget, skipped=0)
