"""Users' sequences in exact time order, from which rows are cut when they are read.

RecBole's ``SequentialDataset`` copies a padded list for every prefix of every user and for every
field: interactions x length numbers. :class:`FullSequenceDataset` keeps each interaction once and a
row as the place of its target, so that memory grows with the interactions alone. Its rows are
RecBole's, and it also offers one row per user, of which a causal model learns every position.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_kd.errors import KDError
from recbole_kd.history import first_rows, ragged
from recbole_kd.splitting import take

PLACE = "place_in_sequences"
"""Field of a row: place of its target among all interactions by user and time."""


class ExactTime:
    """Keeps times complete; with ``exact_time`` in float64 and out of RecBole's normalisation.

    RecBole orders by float32, in which Unix times are 64 to 128 seconds apart: interactions of one
    session come out in the order of the file. Where a data set's settings hide that by scaling all
    numbers to [0, 1], as those of ml-100k do, time differences lose their unit.
    """

    uid_field: str
    iid_field: str
    time_field: str
    inter_feat: Any
    config: Any

    def _fill_nan(self) -> None:
        """Refuse an infinite or a missing time; RecBole fills those with the mean of all times."""
        if self._ordered() and self.time_field in self.inter_feat:
            times = self.inter_feat[self.time_field]
            for kind, found in (("missing", times.isna()), ("infinite", np.isinf(times))):
                if found.any():
                    raise KDError(
                        f"data set {self.config['dataset']}: {self.time_field} is {kind} in "
                        f"{int(found.sum())} of {len(times)} interactions; allowed is a time in "
                        "each"
                    )
        super()._fill_nan()  # type: ignore[misc]

    def _ordered(self) -> bool:
        """Whether the order of the interactions decides what is trained."""
        return self.config.sequences or self.config["eval_args"]["order"] == "TO"

    def _remove_duplication(self) -> None:
        """As RecBole's, but interactions of the same time keep the order of the file."""
        keep, exact = self.config["rm_dup_inter"], self.config["exact_time"]
        if keep is None or not (exact and self._ordered() and self.time_field in self.inter_feat):
            super()._remove_duplication()  # type: ignore[misc]
            return
        pair = [self.uid_field, self.iid_field]
        ordered = self.inter_feat.sort_values(self.time_field, kind="stable")
        self.inter_feat = ordered.drop_duplicates(subset=pair, keep=keep)

    def _normalize(self) -> None:
        """Scale what ``normalize_all`` names, but not the time."""
        keep = self.config["exact_time"] and self.config["normalize_all"]
        keep = keep and self.time_field in self.inter_feat
        times = self.inter_feat[self.time_field].copy() if keep else None
        super()._normalize()  # type: ignore[misc]
        if times is not None:
            self.inter_feat[self.time_field] = times

    def _dataframe_to_interaction(self, data: Any) -> Any:
        interaction = super()._dataframe_to_interaction(data)  # type: ignore[misc]
        timed = self.config["exact_time"] and self.time_field in data
        if timed and interaction[self.time_field].dtype == torch.float32:
            exact = data[self.time_field].to_numpy(dtype=np.float64, copy=True)
            interaction.interaction[self.time_field] = torch.from_numpy(exact)
        return interaction


def round_time(data: Dataset) -> None:
    """Give models the float32 times they know, now that the order is settled."""
    for field, values in data.inter_feat.interaction.items():
        if values.dtype == torch.float64:
            data.inter_feat.interaction[field] = values.float()


class FullSequenceDataset(SequentialDataset):
    """RecBole's sequential data set in memory proportional to the interactions.

    With ``eval_targets: next`` the rows, their split and their order are RecBole's: one for every
    target, its inputs the items before it. With ``eval_targets: all`` the interactions are split
    first, as for a general model; validation and test parts then hold plain interactions, all of
    them targets of one ranking from the train sequence, and only the train part has rows.

    Attributes:
        sequences: All interactions that rows are cut from, by user and time.
        ranks: Rank of each in its user's sequence, from 0, int64.
        known: Train interactions by user and time; ``None`` but for the train part.
    """

    inter_feat: Any
    sequences: Interaction
    ranks: Tensor
    known: Interaction | None = None

    def _benchmark_presets(self) -> None:
        """Ready-made files of single interactions bring no lists."""

    def data_augmentation(self) -> None:
        """Make RecBole's rows, without copying any sequence."""
        if self.config["eval_targets"] == "next":
            self._cut_rows()

    def build(self) -> list[Dataset]:
        """Split as RecBole does; see RecBole's ``Dataset.build``.

        Raises:
            ValueError: ``eval_args.order`` is not TO, which would put a user's future into train.
        """
        ready_made = self.benchmark_filename_list is not None
        parts = Dataset.build(self) if ready_made else super().build()
        if self.config["eval_targets"] == "next":
            parts[0]._know_train_rows()
        else:
            parts[0]._cut_rows()
            parts[0].known = parts[0].sequences
        return parts

    def _cut_rows(self) -> None:
        """One row for every interaction but each user's first; equal times keep their order."""
        timed = self.time_field in self.inter_feat.interaction
        self._aug_presets()
        self.sort(by=[self.uid_field, self.time_field] if timed else self.uid_field)
        self.sequences = self.inter_feat
        firsts = first_rows(self.sequences[self.uid_field])
        counts = torch.diff(firsts, append=torch.tensor([len(self.sequences)]))
        self.ranks = torch.arange(len(self.sequences)) - firsts.repeat_interleave(counts)
        targets = (self.ranks > 0).nonzero().squeeze(1)
        rows = take(self.sequences, targets)
        lengths = self.ranks[targets].clamp_max(self.max_item_list_len)
        rows.update(Interaction({self.item_list_length_field: lengths, PLACE: targets}))
        self.inter_feat = rows

    def _last_places(self) -> Tensor:
        """Place of the last target of each user among the rows, -1 for none, ``[n_users]``."""
        last = torch.full((self.user_num,), -1)
        users, places = self.inter_feat[self.uid_field], self.inter_feat[PLACE]
        return last.scatter_reduce(0, users, places, "amax")

    def _know_train_rows(self) -> None:
        """Collect the train interactions: each user's first one, and the targets of all rows."""
        places = torch.arange(len(self.sequences))
        known = places <= self._last_places()[self.sequences[self.uid_field]]
        if int((known & (self.ranks > 0)).sum()) != len(self):
            raise KDError(
                f"eval_args.split={self.config['eval_args']['split']}: a user's train interactions "
                "are not the first ones in time; allowed are splits that train on the past"
            )
        self.known = take(self.sequences, known)

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        """Rows with their lists, right-padded with 0 to ``MAX_ITEM_LIST_LENGTH``, as RecBole's."""
        rows = self._rows(index)
        return self.join(rows) if join else rows

    def _rows(self, index: Any) -> Interaction:
        rows = self.inter_feat[index]
        if PLACE in rows:
            self._add_lists(rows)
        return rows

    def _add_lists(self, rows: Interaction) -> None:
        places, lengths = rows.interaction.pop(PLACE), rows[self.item_list_length_field]
        columns = torch.arange(self.max_item_list_len)
        outside = columns >= lengths.unsqueeze(1)
        where = ((places - lengths).unsqueeze(1) + columns).masked_fill_(outside, 0)
        lists = {}
        for field, values in self.sequences.interaction.items():
            if field != self.uid_field:
                found = values[where]
                found[outside] = 0
                lists[getattr(self, f"{field}_list_field")] = found
        rows.update(Interaction(lists))

    def before(self, targets: Any) -> tuple[Tensor, Tensor]:
        """All items that stand before the targets of some rows.

        Args:
            targets: Indices of the rows.

        Returns:
            Row and item id of each, ``[N]``, int64.
        """
        places = self.inter_feat[PLACE][targets]
        ranks = self.ranks[places]
        owner, where = ragged(places - ranks, ranks)
        return owner, self.sequences[self.iid_field][where]

    def windows(self, kind: str) -> FullSequenceDataset:
        """A view of the train part with rows of which every position is supervised.

        Args:
            kind: ``last``: each user's latest row alone. ``all``: the sequence cut into rows that
                overlap by one item, so that each train interaction but a user's first is a target
                once, however long the history.
        """
        back = self._last_places()[self.inter_feat[self.uid_field]] - self.inter_feat[PLACE]
        chosen = back == 0 if kind == "last" else back % self.max_item_list_len == 0
        view = copy.copy(self)
        view.inter_feat = take(self.inter_feat, chosen)
        return view

    def interactions(self) -> Dataset:
        """The train part as one row an interaction, for a model that reads no sequences."""
        assert self.known is not None, "of the train part only"
        return flat(self, dict(self.known.interaction))

    def copied(self) -> FullSequenceDataset:
        """A view whose rows hold their lists, for a model that looks into the whole table."""
        view = copy.copy(self)
        view.inter_feat = self._rows(slice(None))
        return view

    # RecBole counts rows; a row may be a whole user here.

    @property
    def item_counter(self) -> Any:
        """Train interactions of each item; of the other parts, targets."""
        return super().item_counter if self.known is None else self.interactions().item_counter

    @property
    def user_counter(self) -> Any:
        """Train interactions of each user; of the other parts, targets."""
        return super().user_counter if self.known is None else self.interactions().user_counter

    def inter_matrix(self, form: str = "coo", value_field: str | None = None) -> Any:
        """Train interactions as a sparse ``[users, items]`` matrix; see RecBole's ``Dataset``."""
        view = self if self.known is None else self.interactions()
        return Dataset.inter_matrix(view, form, value_field)


def flat(part: Dataset, fields: dict[str, Tensor]) -> Dataset:
    """A plain RecBole data set with everything of ``part`` but its rows.

    Args:
        part: Any data set.
        fields: The rows by field.
    """
    view = Dataset.__new__(Dataset)
    view.__dict__.update(part.__dict__)
    view.inter_feat = Interaction(fields)
    round_time(view)
    return view


def without_sequences(train: SequentialDataset) -> Dataset:
    """A view of a train part as one row an interaction, for a model that reads no sequences.

    The rows of a sequential data set are prefixes with their targets: the first item of each user
    is in a prefix only, and would be neither trained on nor hidden.

    Args:
        train: The train part.
    """
    if isinstance(train, FullSequenceDataset):
        return train.interactions()
    feat, suffix = train.inter_feat, train.config["LIST_SUFFIX"]
    first = first_rows(feat[train.uid_field])
    fields = {}
    for field, values in feat.interaction.items():
        if field == train.uid_field:
            fields[field] = torch.cat([values[first], values])
        elif field + suffix in feat.interaction:
            fields[field] = torch.cat([feat[field + suffix][first, 0], values])
    return flat(train, fields)
