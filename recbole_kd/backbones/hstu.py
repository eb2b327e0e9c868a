"""HSTU, a sequential recommender with pointwise attention, in dense tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_kd.blocks import (
    BIAS_KINDS,
    HSTUBlock,
    RelativeBias,
    columns_of,
    in_order,
    length_groups,
    next_values,
    time_buckets,
)
from recbole_kd.candidates import chunk_rows
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.losses import full_softmax, sampled_softmax
from recbole_kd.times import check_history

NORM_EPS = 1e-6
"""Least length a vector is divided by, as in the reference."""


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(*values: Any) -> tuple[str, Callable[[Any], bool]]:
    return " or ".join(map(str, values)), lambda value: value in values


POSITIVE_INT = "a whole number above 0", lambda value: _whole(value, 1)
POSITIVE = "a number above 0", lambda value: _number(value) and value > 0
SHARE = "a number from 0 to below 1", lambda value: _number(value) and 0 <= value < 1
FLAG = "True or False", lambda value: isinstance(value, bool)

OPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "MAX_ITEM_LIST_LENGTH": POSITIVE_INT,
    "hidden_size": POSITIVE_INT,
    "n_layers": POSITIVE_INT,
    "n_heads": POSITIVE_INT,
    "attention_dim": POSITIVE_INT,
    "linear_dim": POSITIVE_INT,
    "hidden_dropout_prob": SHARE,
    "linear_dropout_prob": SHARE,
    "layer_norm_eps": POSITIVE,
    "output_slots": ("a whole number from 0", lambda value: _whole(value, 0)),
    "relative_bias": _one_of(*BIAS_KINDS),
    "time_anchor": _one_of("next", "current"),
    "num_time_buckets": POSITIVE_INT,
    "time_bucket_divisor": POSITIVE,
    "loss_type": _one_of("sampled_softmax", "full_softmax"),
    "num_negatives": POSITIVE_INT,
    "temperature": POSITIVE,
    "item_l2_norm": FLAG,
    "item_init": _one_of("truncated_normal", "xavier_normal"),
    "torch_compile": FLAG,
    "memory_budget_gb": POSITIVE,
}
"""The options the model reads: what is allowed, and the check of it."""


def _read(config: Any) -> dict[str, Any]:
    """The values of :data:`OPTIONS`.

    Raises:
        KDError: One is missing or not allowed.
    """
    values = {name: config[name] for name in OPTIONS}
    for name, (allowed, check) in OPTIONS.items():
        if not check(values[name]):
            raise KDError(f"HSTU: found {name}={values[name]!r}, allowed is {allowed}")
    return values


class HSTU(SequentialRecommender):
    """HSTU (Zhai et al., "Actions Speak Louder than Words", ICML 2024, arXiv 2402.17152).

    The model of the paper's public experiments, as in the authors' research code: learned absolute
    positions, blocks of pointwise attention with a relative bias of position and time, unit states.
    Scores are cosines, inner products with unit item vectors; the temperature divides them in the
    loss only. A row learns at every slot: the state of an item is to predict the next item.

    Rows are padded on the right, and N, which divides the attention and sizes the tables, is the
    longest list plus ``output_slots``, never the length of a row.

    With ``time_anchor: next``, as in the reference, a state looks back from the time of the item it
    is to predict, so the time of the request must be known, and in a test it is the target's.
    ``current`` looks back from the state's own item and needs no such time.

    Args:
        config: Options; see :data:`OPTIONS`.
        dataset: A RecBole data set, asked for its number of items.

    Raises:
        KDError: An option is missing or not allowed.
    """

    input_type = InputType.POINTWISE
    sequence_training = ("causal",)

    def __init__(self, config: Any, dataset: Any):
        options = _read(config)
        super().__init__(config, dataset)
        self.options = options
        self.TIME = config["TIME_FIELD"]
        self.TIME_SEQ = f"{self.TIME}{config['LIST_SUFFIX']}"
        self.length = options["MAX_ITEM_LIST_LENGTH"] + options["output_slots"]
        width = options["hidden_size"]
        self.item_embedding = nn.Embedding(self.n_items, width, padding_idx=0)
        self.position_embedding = nn.Embedding(self.length, width)
        self.blocks = nn.ModuleList(self._block() for _ in range(options["n_layers"]))
        self._init_tables()
        if options["torch_compile"]:
            for block in self.blocks:
                block.compile(dynamic=True)

    def _init_tables(self) -> None:
        table = self.item_embedding.weight
        if self.options["item_init"] == "xavier_normal":
            nn.init.xavier_normal_(table)
        else:
            nn.init.trunc_normal_(table, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(table.detach()[0])
        nn.init.xavier_normal_(self.position_embedding.weight)

    @staticmethod
    def reads_time(config: Any) -> bool:
        """Whether a model of these options reads times."""
        return "time" in str(config["relative_bias"])

    @classmethod
    def check_data(cls, config: Any, history: UserHistory, timeless: bool) -> None:
        """Refuse options and data that the model would misread, before anything is trained.

        Args:
            config: Options.
            history: Train interactions.
            timeless: Whether the model will be asked at no point in time: in distillation, or for
                one ranking of all held-out items.

        Raises:
            KDError: An option is not allowed; the bias reads time and there are no exact seconds to
                read, or ``time_anchor`` is next and ``timeless``.
        """
        _read(config)
        if not cls.reads_time(config):
            return
        instead = "relative_bias=position or none"
        if config["exact_time"] is False:
            raise KDError(
                f"HSTU: relative_bias={config['relative_bias']} reads times, and exact_time=False "
                f"rounds them to minutes; allowed are exact_time=True, or {instead}"
            )
        check_history(history, f"data set {config['dataset']}", instead)
        if timeless and config["time_anchor"] == "next":
            raise KDError(
                "HSTU: time_anchor=next reads the time of the request, and distillation and "
                f"eval_targets=all know none; allowed are time_anchor=current, or {instead}"
            )

    def _block(self) -> HSTUBlock:
        options, kind = self.options, self.options["relative_bias"]
        bias = RelativeBias(kind, self.length, options["num_time_buckets"])
        return HSTUBlock(
            options["hidden_size"],
            options["n_heads"],
            options["attention_dim"],
            options["linear_dim"],
            self.length,
            options["linear_dropout_prob"],
            options["layer_norm_eps"],
            None if kind == "none" else bias,
        )

    @property
    def uses_time(self) -> bool:
        """Whether the relative bias reads times."""
        return self.reads_time(self.options)

    @property
    def needs_request_time(self) -> bool:
        """Whether a state also depends on the time of the item to predict."""
        return self.uses_time and self.options["time_anchor"] == "next"

    def encode(
        self,
        items: Tensor,
        lengths: Tensor,
        times: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """The state after each item.

        Args:
            items: Item ids, ``[B, T]``, int64, oldest first, 0 on padding, which is on the right.
            lengths: Items of each row, ``[B]``, int64; may be 0.
            times: Their times in seconds, ``[B, T]``, float64 or int64, if the bias reads time.
            at: Time of each row's request or target, ``[B]``, as ``times``, if
                :attr:`needs_request_time`.

        Returns:
            Unit vectors, ``[B, T, D]``, zero on padding.

        Raises:
            KDError: A time is needed and missing, or has lost its precision; a row is longer than
                the table of positions.
        """
        slots = items.shape[1]
        groups = self._groups(items, lengths, times, at)
        return in_order(
            (rows, F.pad(states, (0, 0, 0, slots - states.shape[1]))) for rows, states in groups
        )

    def _groups(
        self, items: Tensor, lengths: Tensor, times: Tensor | None, at: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and states ``[G, t, D]`` by groups, each as wide as its longest row."""
        longest = int(lengths.max()) if len(lengths) else 0
        if longest > self.length:
            raise KDError(
                f"HSTU: found a sequence of {longest} items; allowed are up to {self.length} "
                "(MAX_ITEM_LIST_LENGTH + output_slots)"
            )
        clock = self._clock(lengths, times, at)
        for group in length_groups(lengths):
            for rows in group.split(self._rows_at_once(columns_of(group, lengths), len(group))):
                # The slots after the longest row would change nothing.
                cut = columns_of(rows, lengths)
                own = None if clock is None else tuple(t[rows, :cut] for t in clock)
                yield rows, self._encode_group(items[rows, :cut], lengths[rows], own)

    def _rows_at_once(self, slots: int, rows: int) -> int:
        """How many of a group's rows are encoded together: what the memory budget holds of them.

        A gradient needs all that was made for any row, whether together or not.
        """
        if torch.is_grad_enabled():
            return max(1, rows)
        options = self.options
        heads, time = options["n_heads"], 16 if self.uses_time else 0
        # Scores of all heads and their activation; bias and buckets; twice u, v, q and k.
        widths = 2 * heads * (options["attention_dim"] + options["linear_dim"])
        needed = slots * slots * (8 * heads + time) + 8 * slots * widths
        return chunk_rows(needed, options["memory_budget_gb"], rows)

    def _clock(
        self, lengths: Tensor, times: Tensor | None, at: Tensor | None
    ) -> tuple[Tensor, ...] | None:
        """The times from which queries look back and those of the items, both ``[B, T]``."""
        if not self.uses_time:
            return None
        if times is None:
            raise KDError(
                f"HSTU: relative_bias={self.options['relative_bias']} reads times and found none; "
                "allowed without times is relative_bias=position or none"
            )
        times = _exact("times", times)
        if not self.needs_request_time:
            return times, times
        if at is None:
            raise KDError(
                "HSTU: time_anchor=next reads the time of the request and found none; allowed "
                "without it is time_anchor=current, or relative_bias=position or none"
            )
        return next_values(times, lengths, _exact("at", at)), times

    def _encode_group(
        self, items: Tensor, lengths: Tensor, clock: tuple[Tensor, ...] | None
    ) -> Tensor:
        """:meth:`encode` for rows of similar length."""
        options, slots = self.options, items.shape[1]
        places = torch.arange(slots, device=items.device)
        real = ((places < lengths.unsqueeze(1)) & (items != 0)).unsqueeze(2)
        x = self.item_embedding(items) * math.sqrt(options["hidden_size"])
        x = x + self.position_embedding.weight[:slots]
        x = F.dropout(x, options["hidden_dropout_prob"], self.training) * real
        buckets = None
        if clock is not None:
            anchors, times = clock
            n_buckets, divisor = options["num_time_buckets"], options["time_bucket_divisor"]
            buckets = time_buckets(anchors, times, n_buckets, divisor)
        for block in self.blocks:
            x = block(x, buckets)
        return F.normalize(x * real, dim=-1, eps=NORM_EPS)

    def forward(
        self,
        items: Tensor,
        lengths: Tensor,
        times: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """The state after each row's last item.

        Args:
            items: See :meth:`encode`, as for the other arguments.
            lengths: Items of each row.
            times: Their times.
            at: Time of each request.

        Returns:
            ``[B, D]``; zero for a row without items.

        Raises:
            KDError: A time is needed and missing.
        """
        last = (lengths - 1).clamp_min(0)
        groups = self._groups(items, lengths, times, at)
        return in_order((rows, self.gather_indexes(states, last[rows])) for rows, states in groups)

    def item_vectors(self) -> Tensor:
        """Item vectors, ``[n_items, D]``, of unit length unless ``item_l2_norm`` is off."""
        table = self.item_embedding.weight
        return F.normalize(table, dim=-1, eps=NORM_EPS) if self.options["item_l2_norm"] else table

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """The mean loss over all items of the batch but each row's first.

        Args:
            interaction: Rows with item lists, their lengths, and the target after each list; where
                the bias reads time, with the times of both.

        Returns:
            Scalar.

        Raises:
            KDError: A time is needed and missing.
        """
        lengths = interaction[self.ITEM_SEQ_LEN]
        longest = max(1, int(lengths.max()))
        items = interaction[self.ITEM_SEQ][:, :longest]
        times, at = self._times(interaction)
        states = self.encode(items, lengths, None if times is None else times[:, :longest], at)
        targets = next_values(items, lengths, interaction[self.ITEM_ID])
        learns = torch.arange(items.shape[1], device=items.device) < lengths.unsqueeze(1)
        states, positives = states[learns], targets[learns]
        vectors, temperature = self.item_vectors(), self.options["temperature"]
        if self.options["loss_type"] == "full_softmax":
            budget = int(self.options["memory_budget_gb"] * 2**30)
            return full_softmax(states, vectors, positives, temperature, budget)
        negatives = self.draw_negatives(len(positives)).to(positives.device)
        return sampled_softmax(states, vectors, positives, negatives, temperature)

    def draw_negatives(self, rows: int) -> Tensor:
        """Uniform draws of any items but padding, with replacement, ``[rows, num_negatives]``."""
        return torch.randint(1, self.n_items, (rows, self.options["num_negatives"]))

    def _times(self, interaction: Interaction) -> tuple[Tensor | None, Tensor | None]:
        """Times of the lists and of their targets, as far as the model reads them."""
        times = at = None
        if self.uses_time and self.TIME_SEQ in interaction:
            times = interaction[self.TIME_SEQ]
        if self.needs_request_time and self.TIME in interaction:
            at = interaction[self.TIME]
        return times, at

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Cosines of each row's last state with all items, ``[B, n_items]``."""
        return self._last_states(interaction) @ self.item_vectors().t()

    def predict(self, interaction: Interaction) -> Tensor:
        """Cosine of each row's last state with the row's item, ``[B]``."""
        vectors = self.item_vectors()[interaction[self.ITEM_ID]]
        return (self._last_states(interaction) * vectors).sum(dim=1)

    def _last_states(self, interaction: Interaction) -> Tensor:
        items, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        return self.forward(items, lengths, *self._times(interaction))


def _exact(name: str, times: Tensor) -> Tensor:
    """``times`` in float64, unless their precision has been lost before."""
    if times.dtype not in (torch.float64, torch.int64):
        raise KDError(
            f"HSTU: found {name} in {times.dtype}, which cannot tell the seconds of Unix times "
            "apart; allowed are float64 and int64 (exact_time=True)"
        )
    return times.double()
