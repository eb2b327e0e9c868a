"""RecBole's loaders on a shared split: which rows a model trains on, and which it is ranked by."""

from __future__ import annotations

import copy
import logging
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.data.utils import create_samplers, get_dataloader

from recbole_kd.config import KDConfig
from recbole_kd.data import Split
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.sequences import FullSequenceDataset, without_sequences

READS_ALL_ROWS = ("FEARec",)
"""RecBole's models that look up the lists of other rows than those of the batch."""


class UserBatchEvalLoader(FullSortEvalDataLoader):
    """RecBole's full-sort loader with its batch size counted in users.

    RecBole's ``eval_batch_size`` counts scores, so that its default evaluates one user at a time
    on any catalogue of more than 4,096 items.
    """

    def _init_batch_size_and_step(self) -> None:
        users = self.config["eval_user_batch_size"]
        # Scores, their masked copy, positives and the ranking: about 16 bytes an item.
        fitting = self.config["memory_budget_gb"] * 2**30 // (16 * self._dataset.item_num)
        self.step = int(max(1, min(users, fitting)))
        self.set_batch_size(self.step)


class NextItemEvalLoader(UserBatchEvalLoader):
    """One ranking for each held-out item of a sequence, with the history hidden on request.

    RecBole leaves the items of the history in the ranking of sequential models. Here
    ``filter_history`` hides what the model reads, the last ``MAX_ITEM_LIST_LENGTH`` items, or
    ``all`` of it. A target that the user has had before is hidden too, and so missed.
    """

    def collate_fn(self, index: Any) -> Any:
        """A batch: rows, the items to hide, and the targets."""
        rows, _, users, items = super().collate_fn(index)
        kept = self.config["filter_history"]
        if not kept:
            return rows, None, users, items
        if kept == "all":
            return rows, self._dataset.before(index), users, items
        lists = rows[self.iid_field + self.config["LIST_SUFFIX"]]
        owner, column = lists.nonzero(as_tuple=True)
        return rows, (owner, lists[owner, column]), users, items


class UserSequenceEvalLoader(UserBatchEvalLoader):
    """One ranking for each user from the train sequence; all held-out items are its targets.

    Args:
        config: The model's configuration.
        dataset: Validation or test part, one row an interaction.
        sampler: Knows the items to hide.
        history: Train history.
    """

    # RecBole decides by the model's family.
    is_sequential = property(lambda self: False, lambda self, value: None)

    def __init__(self, config: KDConfig, dataset: Dataset, sampler: Any, history: UserHistory):
        self.history = history
        super().__init__(config, dataset, sampler)

    def collate_fn(self, index: Any) -> Any:
        """A batch: users with their train sequences, the items to hide, and the targets."""
        users, *rest = super().collate_fn(index)
        users.update(sequence_fields(self.config, self.history, users[self.uid_field]))
        return users, *rest


def sequence_fields(config: Any, history: UserHistory, users: torch.Tensor) -> Interaction:
    """What sequential models read of users: item list, length and, if known, time list.

    Args:
        config: The model's configuration.
        history: Train history.
        users: User ids, ``[B]``.
    """
    length, suffix = config["MAX_ITEM_LIST_LENGTH"], config["LIST_SUFFIX"]
    items, lengths = history.padded(users, length)
    fields = {config["ITEM_ID_FIELD"] + suffix: items, config["ITEM_LIST_LENGTH_FIELD"]: lengths}
    times = history.padded_times(users, length)
    if times is not None:
        fields[config["TIME_FIELD"] + suffix] = times
    return Interaction(fields)


def item_sets(history: UserHistory) -> np.ndarray:
    """Each user's train items as a set, ``[n_users]``, in the form RecBole's loaders read."""
    items, ends = history.items.tolist(), history.offsets.tolist()
    sets = np.empty(history.n_users, dtype=object)
    sets[:] = [set(items[a:b]) for a, b in pairwise(ends)]
    return sets


def hidden_items(config: KDConfig, split: Split, phase: str) -> np.ndarray:
    """What each user's ranking leaves out, unless it is a target, ``[n_users]``.

    Args:
        config: The model's configuration; ``eval_history`` counts at the test.
        split: The split.
        phase: ``valid`` or ``test``.
    """
    sets = item_sets(split.history)
    if phase == "test" and config["eval_history"] == "all":
        valid = split.parts[1].inter_feat
        users, items = valid[split.dataset.uid_field], valid[split.dataset.iid_field]
        for user, item in zip(users.tolist(), items.tolist(), strict=True):
            sets[user].add(item)
    return sets


def check_ranking(config: KDConfig, split: Split) -> None:
    """Refuse to hide what the data set cannot tell.

    Args:
        config: Configuration of a sequential model.
        split: The split.

    Raises:
        KDError: The whole history is to be hidden, and only prefix rows are there.
    """
    if config["filter_history"] == "all" and not isinstance(split.train, FullSequenceDataset):
        raise KDError(
            f"--filter_history=all: {config['model']} on {config['dataset']} has rows of the last "
            f"{config['MAX_ITEM_LIST_LENGTH']} items alone; allowed are True and False"
        )


def say_unread(config: KDConfig, split: Split) -> None:
    """Say which train interactions are too old to be learnt from one row a user.

    Args:
        config: The model's configuration.
        split: The split.
    """
    if not config.sequential or config["sequence_training"] != "causal":
        return
    targets = (split.history.counts - 1).clamp_min(0)
    read = targets.clamp_max(config["MAX_ITEM_LIST_LENGTH"])
    if config["train_windows"] == "last" and int(read.sum()) < int(targets.sum()):
        logging.getLogger(__name__).info(
            "%s learns %.1f%% of the train interactions, the last %d of each user; "
            "--train_windows=all learns all of them",
            config["model"],
            100 * float(read.sum()) / float(targets.sum()),
            config["MAX_ITEM_LIST_LENGTH"],
        )


def train_part(config: KDConfig, split: Split) -> Dataset:
    """The train split in the form the model reads.

    One row an interaction for general models; prefix rows, or rows of which every position is
    supervised, for sequential ones.

    Args:
        config: The model's configuration.
        split: The split.

    Raises:
        KDError: The model trains on whole rows, and the data set is of prepared prefix rows.
    """
    train = split.train
    if not isinstance(train, SequentialDataset):
        return train
    if not config.sequential:
        return without_sequences(train)
    whole = config["sequence_training"] == "causal"
    if isinstance(train, FullSequenceDataset):
        if config["model"] in READS_ALL_ROWS:
            return train.copied()
        return train.windows(config["train_windows"]) if whole else train
    if whole:
        raise KDError(
            f"{config['model']}, sequence_training=causal: the rows of data set "
            f"{config['dataset']} are prefixes already; allowed are plain interactions"
        )
    return train


def make_loaders(config: KDConfig, split: Split) -> tuple[Any, Any, Any]:
    """RecBole's train, validation and test loaders on a shared split.

    Args:
        config: The model's configuration (batch sizes, negative sampling, seed).
        split: The split.
    """
    train = train_part(config, split)
    by_user = config["eval_targets"] == "all" and isinstance(train, SequentialDataset)
    seen = without_sequences(split.train) if by_user else train
    samplers = create_samplers(config, split.dataset, [seen, *split.parts[1:]])
    # A loader marks fields of the set it is given; each model gets its own view of it.
    cls = get_dataloader(config, "train")
    loaders = [cls(config, copy.copy(train), samplers[0], shuffle=config["shuffle"])]
    for phase, part, sampler in zip(("valid", "test"), split.parts[1:], samplers[1:], strict=True):
        cls = get_dataloader(config, phase)
        part = copy.copy(part)
        if cls is not FullSortEvalDataLoader:
            loaders.append(cls(config, part, sampler, shuffle=False))
            continue
        train_only = phase == "test" and config["eval_history"] == "train"
        if by_user or (train_only and not config["repeatable"]):
            sampler = copy.copy(sampler)
            sampler.used_ids = hidden_items(config, split, phase)
        if by_user:
            loaders.append(UserSequenceEvalLoader(config, part, sampler, split.history))
        elif config.sequential:
            loaders.append(NextItemEvalLoader(config, part, sampler))
        else:
            loaders.append(UserBatchEvalLoader(config, part, sampler))
    return tuple(loaders)
