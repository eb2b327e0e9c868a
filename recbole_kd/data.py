"""Data of a run: one split, built by RecBole, shared by every model of the run."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.data.utils import create_samplers, get_dataloader
from recbole.utils import ModelType, init_seed

from recbole_kd.config import KDConfig
from recbole_kd.errors import KDError, did_you_mean
from recbole_kd.history import UserHistory, first_rows


@dataclass
class Tokens:
    """Tokens of users and items by internal id; id 0 is RecBole's padding.

    Attributes:
        users: Token of each user id.
        items: Token of each item id.
    """

    users: list[str]
    items: list[str]

    @cached_property
    def hashes(self) -> tuple[np.ndarray, np.ndarray]:
        """:func:`token_hashes` of users and of items."""
        return token_hashes(self.users), token_hashes(self.items)


@dataclass
class Split:
    """A data set and its three parts, with what is derived from them.

    Attributes:
        dataset: The whole RecBole data set.
        parts: Train, validation and test parts.
        tokens: Tokens by internal id.
        history: Train interactions by user; nothing else enters it.
        fingerprints: Digests of each part's interactions, by token; of the tokens by id; of
            sequences, also of their order.
    """

    dataset: Dataset
    parts: tuple[Dataset, Dataset, Dataset]
    tokens: Tokens
    history: UserHistory
    fingerprints: dict[str, str]

    @property
    def train(self) -> Dataset:
        """The train part."""
        return self.parts[0]

    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """User and item ids of all validation and test interactions, ``[N]`` each, int64."""
        uid, iid = self.dataset.uid_field, self.dataset.iid_field
        users = torch.cat([p.inter_feat[uid] for p in self.parts[1:]])
        items = torch.cat([p.inter_feat[iid] for p in self.parts[1:]])
        return users.numpy(), items.numpy()


def token_hashes(tokens: list[str]) -> np.ndarray:
    """A 64-bit hash of each token, ``[n]``, uint64."""
    digests = b"".join(hashlib.blake2b(t.encode(), digest_size=8).digest() for t in tokens)
    return np.frombuffer(digests, dtype=np.uint64)


def fingerprint(
    users: np.ndarray, items: np.ndarray, tokens: Tokens, places: np.ndarray | None = None
) -> str:
    """Digest of a set of interactions that does not depend on internal ids or on their order.

    Args:
        users: User ids, ``[N]``.
        items: Item ids, ``[N]``.
        tokens: Tokens of the ids.
        places: Place of each interaction in its user's sequence, ``[N]``, if the order counts.
    """
    of_users, of_items = tokens.hashes
    with np.errstate(over="ignore"):
        pairs = of_users[users] * np.uint64(0x9E3779B97F4A7C15)
        pairs ^= pairs >> np.uint64(29)
        if places is None:
            pairs += of_items[items]
        else:
            pairs += of_items[items] * np.uint64(0xC2B2AE3D27D4EB4F) + places.astype(np.uint64)
    return hashlib.blake2b(np.sort(pairs).tobytes(), digest_size=16).hexdigest()


def load_split(config: KDConfig) -> Split:
    """Load the data set and split it, as RecBole does, under the split's own seed.

    Args:
        config: Configuration of any role; data, filter and split options are shared.

    Raises:
        KDError: Files or columns are missing, or a user has no train interaction.
    """
    check_files(config)
    dataset, parts = _build(config)
    if len(parts) != 3:
        raise KDError(
            f"--eval_args: split={config['eval_args']['split']} gives {len(parts)} parts, "
            "allowed are three: train, valid and test"
        )
    uid, iid = dataset.uid_field, dataset.iid_field
    tokens = Tokens(*(list(map(str, dataset.field2id_token[f])) for f in (uid, iid)))
    history = UserHistory.from_dataset(parts[0])
    _check_users(config, parts, history, tokens)
    if max(config["topk"]) >= len(tokens.items):
        raise KDError(
            f"--topk={config['topk']}: the data set has {len(tokens.items) - 1} items; "
            "allowed are cut-offs up to that"
        )
    prints = {}
    for name, part in zip(("train", "valid", "test"), parts, strict=True):
        pairs = history.pairs() if name == "train" else (part.inter_feat[uid], part.inter_feat[iid])
        prints[name] = fingerprint(pairs[0].numpy(), pairs[1].numpy(), tokens)
    # Weights go by internal id, and those by the order of the files.
    ids = "\n".join([*tokens.users, "", *tokens.items])
    prints["ids"] = hashlib.blake2b(ids.encode(), digest_size=16).hexdigest()
    if isinstance(dataset, SequentialDataset):
        users, items = history.pairs()
        places = torch.arange(len(users)) - history.offsets[users]
        prints["order"] = fingerprint(users.numpy(), items.numpy(), tokens, places.numpy())
    for data in (dataset, *parts):
        _round_time(data)
    return Split(dataset, parts, tokens, history, prints)


class ExactTime:
    """Keeps times in float64 while RecBole orders and splits by them.

    RecBole orders by float32, in which Unix times are 64 to 128 seconds apart: interactions of one
    session come out in the order of the file.
    """

    time_field: str

    def _dataframe_to_interaction(self, data: Any) -> Any:
        interaction = super()._dataframe_to_interaction(data)  # type: ignore[misc]
        if self.time_field in data and interaction[self.time_field].dtype == torch.float32:
            exact = data[self.time_field].to_numpy(dtype=np.float64, copy=True)
            interaction.interaction[self.time_field] = torch.from_numpy(exact)
        return interaction


def _round_time(data: Dataset) -> None:
    """Give the models the float32 times they know, now that the order is settled."""
    for field, values in data.inter_feat.interaction.items():
        if values.dtype == torch.float64:
            data.inter_feat.interaction[field] = values.float()


def _build(config: KDConfig) -> tuple[Dataset, tuple[Dataset, ...]]:
    """RecBole's data set and its parts; what RecBole refuses becomes one line."""
    cls = _dataset_class(config)
    if config.sequences and not issubclass(cls, SequentialDataset):
        cls = SequentialDataset  # the other member of the run needs them
    init_seed(config["split_seed"], config["reproducibility"])
    try:
        dataset = type(f"Exact{cls.__name__}", (ExactTime, cls), {})(config)
        return dataset, tuple(dataset.build())
    except (TypeError, ValueError, AttributeError, NotImplementedError, AssertionError) as error:
        reason = " ".join(str(error).split()) or "assertion failed"
        raise KDError(f"data set {config['dataset']}: refused by RecBole: {reason}") from error


def _dataset_class(config: KDConfig) -> type[Dataset]:
    """RecBole's choice of data set class, without its unpickling of cached files."""
    import recbole.data.dataset as module

    own = getattr(module, f"{config['model']}Dataset", None)
    if own is not None:
        return own
    by_type = {
        ModelType.SEQUENTIAL: "SequentialDataset",
        ModelType.KNOWLEDGE: "KnowledgeBasedDataset",
    }
    return getattr(module, by_type.get(config["MODEL_TYPE"], "Dataset"))


def check_files(config: KDConfig) -> None:
    """Look for the data set's files and columns before anything is loaded.

    Raises:
        KDError: Names the folder or file, what was found and what is needed.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    parts = config["benchmark_filename"]
    if not folder.is_dir():
        near = [p.name for p in folder.parent.glob("*") if p.is_dir()] + ["ml-100k"]
        raise KDError(
            f"--dataset={name}: there is no folder {folder}.{did_you_mean(name, near)} "
            f"Put RecBole atomic files there (recbole-kd convert), or set --data_path; "
            f"found: {', '.join(sorted(set(near)))}"
        )
    if parts is not None and (not isinstance(parts, list) or len(parts) != 3):
        raise KDError(f"--benchmark_filename={parts}: allowed is a list of three file parts")
    files = (
        [folder / f"{name}.{part}.inter" for part in parts] if parts else [folder / f"{name}.inter"]
    )
    for path in files:
        if not path.is_file():
            found = ", ".join(sorted(p.name for p in folder.iterdir())) or "no file"
            hint = ""
            if not parts and (folder / f"{name}.train.inter").is_file():
                hint = " (for a ready-made split set --benchmark_filename=[train,valid,test])"
            raise KDError(f"data set {name}: {path} is missing{hint}; the folder holds {found}")
        _check_columns(config, path)


def _check_columns(config: KDConfig, path: Path) -> None:
    try:
        with path.open(encoding=config["encoding"] or "utf-8") as file:
            header = file.readline().rstrip("\n")
    except (UnicodeDecodeError, LookupError) as error:
        raise KDError(f"{path}: cannot be read as text ({error}); set --encoding") from error
    separator = config["field_separator"]
    columns = [field.rpartition(":")[0] or field for field in header.split(separator)]
    needed = [config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]]
    ready_made = config["benchmark_filename"] is not None
    if config.sequences and ready_made:
        needed.append(config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"])
    elif config.sequences or (config["eval_args"]["order"] == "TO" and not ready_made):
        needed.append(config["TIME_FIELD"])
    missing = [field for field in needed if field not in columns]
    if missing or ":" not in header:
        raise KDError(
            f"{path} line 1: found columns {', '.join(columns)}; needed are "
            f"{', '.join(needed)} as 'name:type' separated by {separator!r}"
        )
    loaded = _loaded_columns(config, columns)
    unloaded = [field for field in needed if field not in loaded]
    if unloaded:
        option = "load_col" if config["load_col"] is not None else "unload_col"
        raise KDError(
            f"--{option}={config[option]}: {', '.join(unloaded)} is needed from {path.name}"
        )


def _loaded_columns(config: KDConfig, columns: list[str]) -> list[str]:
    """The columns of an ``.inter`` file that RecBole loads."""
    if config["load_col"] is None:
        left_out = (config["unload_col"] or {}).get("inter") or ()
        return [field for field in columns if field not in left_out]
    chosen = config["load_col"].get("inter", [])
    return columns if chosen == "*" else chosen


def _check_users(
    config: KDConfig, parts: tuple[Dataset, ...], history: UserHistory, tokens: Tokens
) -> None:
    if not len(history.items):
        raise KDError(f"data set {config['dataset']}: the train split is empty after filtering")
    for part, name in zip(parts[1:], ("validation", "test"), strict=True):
        if not len(part):
            raise KDError(
                f"data set {config['dataset']}: the {name} split is empty; "
                f"found eval_args.split={config['eval_args']['split']}"
            )
    if config["empty_users"] == "keep":
        return
    evaluated = torch.cat([p.inter_feat[p.uid_field] for p in parts[1:]]).unique()
    empty = evaluated[history.counts[evaluated] == 0]
    if len(empty):
        raise KDError(
            f"data set {config['dataset']}: {len(empty)} evaluated users have no train interaction "
            f"(first: '{tokens.users[int(empty[0])]}'); raise user_inter_num_interval, "
            "or set --empty_users=keep to evaluate them all the same"
        )


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


def item_sets(history: UserHistory) -> np.ndarray:
    """Each user's train items as a set, ``[n_users]``, in the form RecBole's loaders read."""
    items, ends = history.items.tolist(), history.offsets.tolist()
    sets = np.empty(history.n_users, dtype=object)
    sets[:] = [set(items[a:b]) for a, b in pairwise(ends)]
    return sets


def without_sequences(train: SequentialDataset) -> SequentialDataset:
    """A view of a train part as one row an interaction, for a model that reads no sequences.

    The rows of a sequential data set are prefixes with their targets: the first item of each user
    is in a prefix only, and would be neither trained on nor hidden.

    Args:
        train: The train part.
    """
    feat, suffix = train.inter_feat, train.config["LIST_SUFFIX"]
    first = first_rows(feat[train.uid_field])
    fields = {}
    for field, values in feat.interaction.items():
        if field == train.uid_field:
            fields[field] = torch.cat([values[first], values])
        elif field + suffix in feat.interaction:
            fields[field] = torch.cat([feat[field + suffix][first, 0], values])
    view = copy.copy(train)
    view.inter_feat = Interaction(fields)
    return view


def train_part(config: KDConfig, split: Split) -> Dataset:
    """The train split in the form the model reads: prefix rows, or one row an interaction."""
    sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    if isinstance(split.train, SequentialDataset) and not sequential:
        return without_sequences(split.train)
    return split.train


def make_loaders(config: KDConfig, split: Split) -> tuple[Any, Any, Any]:
    """RecBole's train, validation and test loaders on a shared split.

    Args:
        config: The model's configuration (batch sizes, negative sampling, seed).
        split: The split.
    """
    train_only = config.choice("eval_history", ("all", "train")) == "train"
    parts = [train_part(config, split), *split.parts[1:]]
    samplers = create_samplers(config, split.dataset, parts)
    loaders = []
    for phase, part, sampler in zip(("train", "valid", "test"), parts, samplers, strict=True):
        cls = get_dataloader(config, phase)
        if phase == "train":
            # A loader marks fields of the set it is given; each model gets its own view of it.
            loaders.append(cls(config, copy.copy(part), sampler, shuffle=config["shuffle"]))
            continue
        if cls is FullSortEvalDataLoader:
            cls = UserBatchEvalLoader
            if phase == "test" and train_only and not config["repeatable"]:
                sampler = copy.copy(sampler)
                sampler.used_ids = item_sets(split.history)
        loaders.append(cls(config, copy.copy(part), sampler, shuffle=False))
    return tuple(loaders)
