"""Data of a run: one split, built by RecBole, shared by every model of the run."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.utils import ModelType, init_seed

from recbole_kd.config import KDConfig
from recbole_kd.errors import KDError, did_you_mean
from recbole_kd.history import UserHistory
from recbole_kd.sequences import ExactTime, FullSequenceDataset, round_time
from recbole_kd.splitting import ArraySplits


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
    def ids(self) -> tuple[dict[str, int], dict[str, int]]:
        """Internal id of each token of users and of items, without the padding's."""
        users, items = ({t: i for i, t in enumerate(k) if i} for k in (self.users, self.items))
        return users, items

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
            sequences, also of their order, that of held-out items if later ones are asked for
            after them.
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

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Interactions of the three parts."""
        return len(self.history.items), len(self.parts[1]), len(self.parts[2])

    def prints(self, times: bool) -> dict[str, str]:
        """:attr:`fingerprints`, for a model that reads times with a digest of those.

        Args:
            times: Whether the model reads times.
        """
        if not times or self.history.times is None:
            return self.fingerprints
        users, items, _, moments = _in_order(self.parts[0], self.history)
        bits = moments.double().numpy().view(np.uint64)
        return {**self.fingerprints, "times": fingerprint(users, items, self.tokens, bits)}

    def train_order(self) -> str:
        """Digest of the order in which each user's train interactions are read."""
        users, items = self.history.pairs()
        places = torch.arange(len(users)) - self.history.offsets[users]
        return fingerprint(users.numpy(), items.numpy(), self.tokens, places.numpy())

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
        places: Place (or time) of each interaction in its user's sequence, ``[N]``, integers, if
            it counts.
    """
    pairs = pair_hashes(users, items, tokens, places)
    return hashlib.blake2b(np.sort(pairs).tobytes(), digest_size=16).hexdigest()


def pair_hashes(
    users: np.ndarray, items: np.ndarray, tokens: Tokens, places: np.ndarray | None = None
) -> np.ndarray:
    """A 64-bit number of each interaction that does not depend on internal ids.

    Args:
        users: User ids, ``[N]``.
        items: Item ids, ``[N]``.
        tokens: Tokens of the ids.
        places: See :func:`fingerprint`.

    Returns:
        ``[N]``, uint64.
    """
    of_users, of_items = tokens.hashes
    with np.errstate(over="ignore"):
        pairs = of_users[users] * np.uint64(0x9E3779B97F4A7C15)
        pairs ^= pairs >> np.uint64(29)
        if places is None:
            pairs += of_items[items]
        else:
            pairs += of_items[items] * np.uint64(0xC2B2AE3D27D4EB4F) + places.astype(np.uint64)
    return pairs


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
        users, items, places, _ = _in_order(parts[0], history)
        prints["order"] = fingerprint(users, items, tokens, places)
    if config.sequential:
        require_order(config, dataset, config["model"])
    if isinstance(dataset, FullSequenceDataset):
        _warn_of_single(parts[0], tokens)
        _warn_of_past(dataset, parts, history)
    else:
        for data in (dataset, *parts):
            round_time(data)
    return Split(dataset, parts, tokens, history, prints)


def _in_order(train: Dataset, history: UserHistory) -> tuple[np.ndarray, np.ndarray, Any, Any]:
    """All interactions that a ranking may read as a user's sequence.

    Where each held-out item is asked for after those before it, they are in its sequence too.

    Args:
        train: The train part.
        history: Its interactions.

    Returns:
        Users, items and places in the user's sequence, ``[N]`` each, int64, and times, ``[N]``, a
        tensor, if they are known.
    """
    if isinstance(train, FullSequenceDataset):
        feat = train.sequences
        times = feat.interaction.get(train.time_field)
        pairs = feat[train.uid_field], feat[train.iid_field]
        return pairs[0].numpy(), pairs[1].numpy(), train.ranks.numpy(), times
    users, items = history.pairs()
    places = torch.arange(len(users)) - history.offsets[users]
    return users.numpy(), items.numpy(), places.numpy(), history.times


def _build(config: KDConfig) -> tuple[Dataset, tuple[Dataset, ...]]:
    """RecBole's data set and its parts; what RecBole refuses becomes one line."""
    cls = _dataset_class(config)
    if config.sequences:
        cls = _sequence_class(config, cls)
    cls = type(f"Exact{cls.__name__}", (ExactTime, ArraySplits, cls), {})
    init_seed(config["split_seed"], config["reproducibility"])
    try:
        dataset = cls(config)
        return dataset, tuple(dataset.build())
    except KDError:
        raise
    except (TypeError, ValueError, AttributeError, NotImplementedError, AssertionError) as error:
        reason = " ".join(str(error).split()) or "assertion failed"
        raise KDError(f"data set {config['dataset']}: refused by RecBole: {reason}") from error


def _sequence_class(config: KDConfig, cls: type[Dataset]) -> type[Dataset]:
    """Our rows, but where RecBole's are prepared in the files or made for one model alone."""
    ready_made = config["benchmark_filename"] is not None
    prepared = ready_made and config["eval_targets"] == "next"
    if cls not in (Dataset, SequentialDataset) or prepared:
        if config["eval_targets"] == "all":
            raise KDError(
                f"--eval_targets=all: {config['model']} brings a data set of its own; "
                "allowed is next"
            )
        return cls if issubclass(cls, SequentialDataset) else SequentialDataset
    return FullSequenceDataset


def _warn_of_single(train: FullSequenceDataset, tokens: Tokens) -> None:
    """Say that a sequence of one item has no target, as RecBole does not."""
    counts = torch.bincount(train.sequences[train.uid_field], minlength=len(tokens.users))
    single = (counts == 1).nonzero().squeeze(1)
    if len(single):
        logging.getLogger(__name__).warning(
            "%d users (first: '%s') have a single interaction to learn from: no item follows it, "
            "so they train no sequential model; user_inter_num_interval leaves them out",
            len(single),
            tokens.users[int(single[0])],
        )


def _warn_of_past(dataset: Dataset, parts: tuple[Dataset, ...], history: UserHistory) -> None:
    """Say that a ready-made split trains on what came after its held-out interactions."""
    if dataset.benchmark_filename_list is None or history.times is None:
        return
    ends = (history.offsets[1:] - 1).clamp_min(0)
    last = torch.where(history.counts > 0, history.times[ends], -torch.inf)
    early = 0
    for part in parts[1:]:
        feat = part.inter_feat
        early += int((feat[dataset.time_field] < last[feat[dataset.uid_field]]).sum())
    if early:
        logging.getLogger(__name__).warning(
            "%d held-out interactions of the ready-made split are older than the user's last train "
            "interaction: the sequences know their future",
            early,
        )


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


def require_order(config: KDConfig, data: Dataset, name: str) -> None:
    """Refuse to read sequences in the order of a file that has times, unless that was asked for.

    Args:
        config: Configuration of the run's student.
        data: Its whole data set.
        name: The model that reads them as sequences.

    Raises:
        KDError: Times are in the file, and no source of options leaves them out.
    """
    folder, dataset, time = Path(config["data_path"]), config["dataset"], config["TIME_FIELD"]
    parts = config["benchmark_filename"]
    path = folder / (f"{dataset}.{parts[0]}.inter" if parts else f"{dataset}.inter")
    if time in data.field2type:
        return
    columns = _columns(config, path)
    # Lists in the files have an order of their own, where they are what is read.
    as_rows = isinstance(data, SequentialDataset) and not isinstance(data, FullSequenceDataset)
    prepared = as_rows and config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"] in columns
    if prepared or time not in columns:
        return
    if config.sources.says("load_col"):
        logging.getLogger(__name__).warning(
            "%s reads sequences in the order of the files: load_col leaves %s out", name, time
        )
        return
    named = [config["USER_ID_FIELD"], config["ITEM_ID_FIELD"], time]
    raise KDError(
        f"data set {dataset}: {name} reads sequences, and {time} of {path.name} is not loaded; "
        f"allowed is --load_col={{inter: [{', '.join(named)}]}}"
    )


def _columns(config: KDConfig, path: Path) -> list[str]:
    """Names of the columns of an ``.inter`` file."""
    with path.open(encoding=config["encoding"] or "utf-8") as file:
        header = file.readline().rstrip("\n")
    return [field.rpartition(":")[0] or field for field in header.split(config["field_separator"])]


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
    lists = config["ITEM_ID_FIELD"] + (config["LIST_SUFFIX"] or "")
    if config.sequences and ready_made:
        if config["eval_targets"] == "next":
            needed.append(lists)
        elif lists in columns:
            raise KDError(
                f"{path} line 1: found the column {lists} of prepared prefix rows; "
                "they need --eval_targets=next"
            )
    elif config.sequences or (config["eval_args"]["order"] == "TO" and not ready_made):
        needed.append(config["TIME_FIELD"])
    if config["TIME_FIELD"] in needed or config.sequences:
        _check_time_column(config, path, header.split(separator))
    missing = [field for field in needed if field not in columns]
    if missing or ":" not in header:
        hint = ""
        if missing == [config["TIME_FIELD"]]:
            hint = f" ({missing[0]} orders them; a user's interactions numbered 0, 1, ... will do)"
        raise KDError(
            f"{path} line 1: found columns {', '.join(columns)}; needed are "
            f"{', '.join(needed)} as 'name:type' separated by {separator!r}{hint}"
        )
    loaded = _loaded_columns(config, columns)
    unloaded = [field for field in needed if field not in loaded]
    if unloaded:
        option = "load_col" if config["load_col"] is not None else "unload_col"
        lacks = ", ".join(unloaded)
        remedy = {
            "load_col": f"--load_col={{inter: [{', '.join(needed)}]}}",
            "unload_col": f"--unload_col without {lacks}",
        }
        name = f"--{option}" if config.sources.says(option) else f"{option}, by default"
        raise KDError(
            f"{name}={config[option]}: {lacks} is needed from {path.name}; "
            f"allowed is {remedy[option]}"
        )


def _check_time_column(config: KDConfig, path: Path, header: list[str]) -> None:
    """Refuse times that RecBole would order as texts."""
    for column in header:
        field, _, kind = column.rpartition(":")
        if field == config["TIME_FIELD"] and kind != "float":
            raise KDError(f"{path} line 1: found {column}; allowed is {field}:float, in seconds")


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
    evaluated = torch.cat([p.inter_feat[p.uid_field] for p in parts[1:]]).unique()
    empty = evaluated[history.counts[evaluated] == 0]
    if not len(empty):
        return
    first = tokens.users[int(empty[0])]
    if config["empty_users"] != "keep":
        raise KDError(
            f"data set {config['dataset']}: {len(empty)} evaluated users have no train interaction "
            f"(first: '{first}'); raise user_inter_num_interval, "
            "or set --empty_users=keep to evaluate them all the same"
        )
    if config.sequences:
        logging.getLogger(__name__).warning(
            "%d evaluated users (first: '%s') have no train interaction: where sequences are read "
            "from the train part, all items are alike to them, and their ranks are accidents",
            len(empty),
            first,
        )
