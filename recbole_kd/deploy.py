"""Trained models out of checkpoints: to serve, to teach, or to hand to plain RecBole."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import yaml
from recbole.utils import init_seed
from torch import Tensor, nn

from recbole_kd import checkpoint
from recbole_kd.config import KDConfig
from recbole_kd.data import Split, Tokens, _dataset_class
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.registry import backbone_class, recbole_class
from recbole_kd.scoring import Scorer, SequenceScorer, scorer_for, sequence_names
from recbole_kd.times import DAY, check_places, check_unit

EVALUATES = ("KD_DAGFM",)
"""RecBole's models whose constructor calls ``eval`` on an option."""


class PlainConfig(dict):
    """Resolved options as a model reads them: by key (``None`` if it is missing) or by dot."""

    def __missing__(self, key: str) -> None:
        return None

    def __getattr__(self, key: str) -> Any:
        if key not in self:
            raise AttributeError(key)
        return self[key]

    @property
    def final_config_dict(self) -> dict[str, Any]:
        """The options, under RecBole's name for them."""
        return self


class SavedDataset:
    """What model constructors ask a RecBole data set for, answered from a checkpoint.

    Args:
        config: Resolved options.
        tokens: Tokens by internal id.
        history: Train interactions.
    """

    def __init__(self, config: Mapping[str, Any], tokens: Tokens, history: UserHistory):
        self.uid_field, self.iid_field = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        self.config = config
        self.history = history
        self.field2id_token = {
            self.uid_field: np.array(tokens.users),
            self.iid_field: np.array(tokens.items),
        }
        self.user_num, self.item_num = len(tokens.users), len(tokens.items)
        self.item_feat = self.user_feat = None

    def num(self, field: str) -> int:
        """Number of tokens of the user or item field, padding included."""
        return len(self.field2id_token[field])

    def inter_matrix(self, form: str = "coo", value_field: str | None = None) -> Any:
        """Train interactions as a sparse ``[users, items]`` matrix of ones."""
        self._no_values(value_field)
        users, items = (t.numpy() for t in self.history.pairs())
        ones = np.ones(len(users), dtype=np.float32)
        matrix = sp.coo_matrix((ones, (users, items)), (self.user_num, self.item_num))
        return matrix if form == "coo" else matrix.tocsr()

    def history_item_matrix(
        self, value_field: str | None = None, max_history_len: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Items ``[users, longest]``, ones where filled, and lengths, as RecBole gives them."""
        self._no_values(value_field)
        counts = self.history.counts
        longest = int(min(counts.max(), max_history_len or counts.max()))
        items, _ = self.history.padded(torch.arange(self.user_num), longest)
        return items, (items > 0).float(), counts.clamp_max(longest)

    def _no_values(self, field: str | None) -> None:
        if field is not None:
            self.__getattr__(f"values of {field}")

    def __getattr__(self, name: str) -> Any:
        raise KDError(
            f"this model asks its data set for '{name}', which a checkpoint does not hold; "
            "open it with load_model(path, dataset=...)"
        )


def describe(config: KDConfig, split: Split, **more: Any) -> dict[str, Any]:
    """The plain data that make a checkpoint usable without the data set.

    Args:
        config: The model's configuration.
        split: The split it is trained on.
        **more: Further plain entries.
    """
    import recbole_kd

    return {
        "model": config.import_path,
        "config": config.resolved(),
        "tokens": {"users": split.tokens.users, "items": split.tokens.items},
        "history": {
            "offsets": split.history.offsets,
            "items": split.history.items,
            "times": split.history.times if config.reads_time else None,
        },
        "split": split.prints(config.reads_time),
        "versions": {"recbole_kd": recbole_kd.__version__, "torch": str(torch.__version__)},
        **more,
    }


@dataclass
class LoadedModel:
    """A trained model, ready to score.

    Attributes:
        model: The plain RecBole model, in eval mode.
        scorer: Its scorer.
        tokens: Tokens by internal id.
        history: Train interactions.
        config: Resolved options.
        split: Fingerprints of the split it was trained on; empty if unknown.
    """

    model: nn.Module
    scorer: Scorer
    tokens: Tokens
    history: UserHistory
    config: PlainConfig
    split: dict[str, str]

    def recommend(
        self,
        users: Sequence[str],
        k: int = 10,
        filter_history: bool = True,
        at: float | Sequence[float] | None = None,
    ) -> list[list[str]]:
        """The best items of some users.

        What a graph model or an item tower computes for all users alike is computed once a call:
        ask for many users at once.

        Args:
            users: User tokens; a single text is one user.
            k: Items a user.
            filter_history: Whether train items are left out.
            at: Time of the requests in seconds, one for all or one each, for models that read it.

        Returns:
            Item tokens, best first, one list a user.

        Raises:
            KDError: A user is unknown, or has no history for a model that reads it; the message
                names the first few. ``at`` is missing, not needed, or before the history's end.
        """
        users = [users] if isinstance(users, str) else users
        _check_list(users, "users", "a list of user tokens")
        ids = _ids(self.tokens.ids[0], users, "users")
        if self.scorer.reads_history:
            empty = [u for u, n in zip(users, self.history.counts[ids], strict=True) if n == 0]
            if empty:
                remedy = "are users with some"
                if isinstance(self.scorer, SequenceScorer):
                    remedy = "is recommend_from_history with items of theirs"
                raise KDError(
                    f"{len(empty)} users without train interactions: {', '.join(empty[:5])}; "
                    f"allowed {remedy}"
                )
        return self._best(self.history, ids, k, filter_history, at)

    def recommend_from_history(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        filter_history: bool = True,
        times: Sequence[Sequence[float]] | None = None,
        at: float | Sequence[float] | None = None,
    ) -> list[list[str]]:
        """The best next items after some item sequences, of users known or new.

        A history longer than the model's is cut to its latest items, as in training; all of its
        items are left out of the answer.

        Args:
            histories: Item tokens of each user, oldest first.
            k: Items a user.
            filter_history: Whether items of the history are left out.
            times: Their times in seconds, in the same shape, for models that read them.
            at: Time of the requests in seconds, one for all or one each, for models that read it.

        Returns:
            Item tokens, best first, one list a user.

        Raises:
            KDError: The model encodes no sequences; a history is empty or names an unknown item;
                times are missing, unsorted or no seconds; ``at`` is missing, not needed, or before
                the history's end.
        """
        if not isinstance(self.scorer, SequenceScorer):
            raise KDError(
                f"{self.config['model']} encodes no item sequences; "
                f"allowed are {', '.join(sequence_names())}"
            )
        _check_list(histories, "histories", "a list of item lists")
        for one in histories:
            _check_list(one, "histories", "a list of item lists")
        counts = torch.tensor([len(h) for h in histories])
        if not len(counts) or int(counts.min()) == 0:
            raise KDError("histories: found an empty one; allowed are one or more items in each")
        items = _ids(self.tokens.ids[1], [i for h in histories for i in h], "items")
        moments = None if times is None else _times_of(histories, times)
        if moments is not None and self._reads_dates():
            check_places(moments, "times", "")
        users = torch.arange(len(counts))
        history = UserHistory.from_pairs(
            users.repeat_interleave(counts), items, len(users), len(self.tokens.items), moments
        )
        return self._best(history, users, k, filter_history, at)

    def _reads_dates(self) -> bool:
        """Whether the model learnt from times of which none is near 0."""
        learnt = self.history.times if getattr(self.model, "uses_time", False) else None
        return learnt is not None and float(learnt.min()) >= DAY

    @torch.no_grad()
    def _best(
        self, history: UserHistory, users: Tensor, k: int, filter_history: bool, at: Any
    ) -> list[list[str]]:
        whole = isinstance(k, int | np.integer) and not isinstance(k, bool)
        if not whole or not 0 < k < len(self.tokens.items):
            raise KDError(f"k={k}: allowed are 1 to {len(self.tokens.items) - 1} items")
        moments = self._moments(history, users, at)
        lists: list[list[str]] = []
        with self.scorer.step():
            for rows in torch.arange(len(users)).split(1024):
                state = self._encode(history, users[rows], moments, rows)
                scores = self.scorer.score_all(state)
                scores[:, 0] = -torch.inf
                if filter_history:
                    history.mask_(scores, users[rows])
                lists += self._tokens(scores.topk(k, dim=1))
        return lists

    def _moments(self, history: UserHistory, users: Tensor, at: Any) -> Tensor | None:
        """Times of the requests, ``[n]``, where the model reads them."""
        name, model = self.config["model"], self.model
        if getattr(model, "uses_time", False) and history.times is None:
            raise KDError(f"times: {name} reads the times of a history; give one for each item")
        if not getattr(model, "needs_request_time", False):
            if at is not None:
                raise KDError(f"at: {name} does not read the time of a request; leave it out")
            return None
        if at is None:
            raise KDError(f"at: {name} reads the time of the request (time_anchor=next); give it")
        moments = _seconds(at, "at")
        moments = moments.expand(len(users)) if moments.ndim == 0 else moments
        if len(moments) != len(users):
            raise KDError(
                f"at: found {len(moments)} times for {len(users)} requests; allowed is one for each"
            )
        assert history.times is not None
        if bool((moments < history.times[history.offsets[users + 1] - 1]).any()):
            raise KDError("at: a request is before the last interaction of its history")
        return moments

    def _encode(
        self, history: UserHistory, users: Tensor, moments: Tensor | None, rows: Tensor
    ) -> Tensor:
        if isinstance(self.scorer, SequenceScorer):
            at = None if moments is None else moments[rows]
            return self.scorer.encode_history(history, users, at)
        return self.scorer.encode(users.to(self.scorer.device))

    def _tokens(self, best: Any) -> list[list[str]]:
        """Item tokens of a ranking, without the items that were hidden."""
        return [
            [self.tokens.items[i] for i, v in zip(row, values, strict=True) if v > -1e30]
            for row, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def _ids(known: Mapping[str, int], asked: Sequence[str], kind: str) -> Tensor:
    """Internal ids of tokens, ``[n]``.

    Raises:
        KDError: Some are unknown; the message names the first few.
    """
    unknown = [token for token in asked if token not in known]
    if unknown:
        other = [token for token in unknown if not isinstance(token, str)]
        hint = f" (found {type(other[0]).__name__}; allowed are texts)" if other else ""
        raise KDError(f"{len(unknown)} unknown {kind}: {', '.join(map(str, unknown[:5]))}{hint}")
    return torch.tensor([known[token] for token in asked], dtype=torch.int64)


def _times_of(histories: Sequence[Sequence[str]], times: Sequence[Sequence[float]]) -> Tensor:
    """Times of all histories, one after the other, ``[n]``, float64."""
    try:
        same = [len(h) for h in histories] == [len(t) for t in times]
    except TypeError:
        same = False
    if not same:
        raise KDError("times: found another form than the histories'; allowed is a time an item")
    rows = [_seconds(row, "times") for row in times]
    for place, row in enumerate(rows):
        if bool((row.diff() < 0).any()):
            raise KDError(f"times: those of history {place} are unsorted; allowed is oldest first")
    return torch.cat(rows)


def _seconds(given: Any, where: str) -> Tensor:
    """Numbers of the user as times, float64."""
    try:
        found = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    except (TypeError, ValueError):  # rows of different lengths
        found = np.asarray(None)
    if found.dtype.kind not in "iuf" or found.ndim > 1:
        raise KDError(f"{where}: found {_short(given)}; allowed are seconds as numbers")
    times = torch.from_numpy(found.astype(np.float64))
    check_unit(times, where)
    if found.dtype.kind == "f" and found.itemsize < times.element_size():
        raise KDError(
            f"{where}: found {found.dtype}, which cannot tell the seconds of Unix times apart; "
            "allowed are float64 and integers"
        )
    return times


def _check_list(given: Any, where: str, allowed: str) -> None:
    """Refuse what holds no tokens, and a text, whose characters would be taken for them."""
    if isinstance(given, str) or not isinstance(given, Collection):
        found = f"the text '{given}'" if isinstance(given, str) else _short(given)
        raise KDError(f"{where}: found {found}; allowed is {allowed}")


def _short(given: Any) -> str:
    """What was given, for a message of one line."""
    return " ".join(reprlib.repr(given).split())


def load_model(
    path: str | Path, device: str | torch.device = "cpu", dataset: Any = None
) -> LoadedModel:
    """Open a checkpoint of ours, or RecBole's own ``.pth``.

    Nothing in the file is executed; a model outside RecBole, ``package.module:Class``, is imported
    from the Python path. Ours needs no data set; RecBole's records neither tokens nor split, so its
    data set is loaded again from the folder it names.

    Args:
        path: The file, or a run's folder.
        device: Where the model goes.
        dataset: The train split the model was trained on, for models that need more of it than a
            checkpoint holds.

    Raises:
        KDError: The file cannot be read, its data set is gone, or ``dataset`` is another one.
    """
    path = Path(path)
    content = checkpoint.load(checkpoint.file_in(path))
    device = torch.device(device)
    if checkpoint.is_ours(content):
        return _load_ours(content, path, device, dataset)
    return _load_recbole(content, path, device)


def _load_ours(
    content: dict[str, Any], path: Path, device: torch.device, dataset: Any
) -> LoadedModel:
    missing = [k for k in ("model", "config", "tokens", "history") if k not in content]
    if missing:
        raise KDError(f"checkpoint {path}: it holds no {', '.join(missing)}; is it a last.pt?")
    try:
        config = PlainConfig(content["config"], device=device)
        tokens = Tokens(**content["tokens"])
        history = UserHistory(**content["history"], n_items=len(tokens.items))
    except (TypeError, ValueError) as error:
        raise KDError(f"checkpoint {path}: an entry is of another form ({error})") from error
    if dataset is None:
        dataset = SavedDataset(config, tokens, history)
    else:
        _check_dataset(dataset, tokens, history, path)
    model = _build(content["model"], config, dataset, content["state_dict"], path)
    model.load_other_parameter(content.get("other_parameter"))
    scorer = scorer_for(model, history)
    return LoadedModel(model, scorer, tokens, history, config, content.get("split", {}))


def _check_dataset(dataset: Any, tokens: Tokens, history: UserHistory, path: Path) -> None:
    """Refuse a data set whose ids or train interactions are not those of the weights."""
    fields = zip((dataset.uid_field, dataset.iid_field), (tokens.users, tokens.items), strict=True)
    same = all(list(map(str, dataset.field2id_token[field])) == known for field, known in fields)
    if not same or not torch.equal(_pairs(UserHistory.from_dataset(dataset)), _pairs(history)):
        raise KDError(
            f"checkpoint {path}: it was trained on other users, items or train interactions than "
            "those of the data set given, or on the same with other ids"
        )


def _pairs(history: UserHistory) -> Tensor:
    users, items = history.pairs()
    return (users * history.n_items + items).sort().values


def _build(name: str, config: PlainConfig, data: Any, state: dict[str, Tensor], path: Path) -> Any:
    cls = backbone_class(str(name), f"checkpoint {path}, model")
    if cls.__name__ in EVALUATES:
        raise KDError(f"checkpoint {path}: {name} evaluates text of the file as Python; refused")
    model = cls(config, data)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise KDError(f"checkpoint {path}: its weights do not fit {name} ({reason})") from error
    return model.to(config["device"]).eval()


def _load_recbole(content: dict[str, Any], path: Path, device: torch.device) -> LoadedModel:
    """Rebuild the data set as RecBole's own ``load_data_and_model`` does, to get the tokens."""
    options = getattr(content.get("config"), "final_config_dict", None)
    if not isinstance(options, dict):
        raise KDError(f"checkpoint {path}: neither ours nor RecBole's, it holds no configuration")
    config = PlainConfig(options, device=device, single_spec=True)
    if config["model"] == "LDiffRec" and config["n_cate"] != 1:
        raise KDError(f"checkpoint {path}: LDiffRec with n_cate above 1 unpickles another file")
    folder = Path(config["data_path"])
    if config["dataset"] == "ml-100k" and not folder.is_dir():
        import recbole

        folder = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"
        config["data_path"] = str(folder)
    if not folder.is_dir():
        raise KDError(
            f"checkpoint {path}: RecBole's checkpoints record no tokens, and the data set's folder "
            f"{folder} is gone; run from where it lies, or train the teacher here"
        )
    init_seed(config["seed"], config["reproducibility"])
    try:
        dataset = _dataset_class(config)(config)  # type: ignore[arg-type]
        train = dataset.build()[0]
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise KDError(f"checkpoint {path}: its data set cannot be read: {reason}") from error
    fields = (dataset.uid_field, dataset.iid_field)
    tokens = Tokens(*(list(map(str, dataset.field2id_token[f])) for f in fields))
    history = UserHistory.from_dataset(train)
    model = _build(config["model"], config, train, content["state_dict"], path)
    logging.getLogger(__name__).info("Read RecBole's checkpoint %s; rebuilt its split", path)
    return LoadedModel(model, scorer_for(model, history), tokens, history, config, {})


def export_recbole(path: str | Path, target: str | Path) -> Path:
    """Write a checkpoint of ours in RecBole's own form.

    RecBole's ``load_data_and_model`` opens the result without this package. RecBole has one seed
    for split and training; it is set to the split's, so that the same split is rebuilt.
    RecBole reads times in single precision: its split by time is the same only if no two times of
    a user come out equal there.

    Args:
        path: A checkpoint of ours, or a run's folder.
        target: The ``.pth`` to write.

    Raises:
        KDError: The model is not one of RecBole's, or a file cannot be read or written.
    """
    from recbole.config import Config

    path = checkpoint.file_in(path)
    content = checkpoint.load(path)
    if not checkpoint.is_ours(content):
        raise KDError(f"checkpoint {path}: it is in RecBole's form already")
    if "model" not in content:
        raise KDError(f"checkpoint {path}: it holds no model; is it a last.pt?")
    name = content["model"]
    model_class = recbole_class(name, f"checkpoint {path}")
    config = Config.__new__(Config)
    config._init_parameters_category()
    options = _recbole_options(content["config"], model_class)
    config.final_config_dict = options
    for part in ("file", "variable", "cmd", "external", "internal"):
        setattr(config, f"{part}_config_dict", {})
    config.model, config.model_class, config.dataset = name, model_class, options["dataset"]
    config.yaml_loader = yaml.FullLoader
    state = {
        "config": config,
        "epoch": content["epoch"],
        "cur_step": 0,
        "best_valid_score": content["best_valid_score"],
        "state_dict": content["state_dict"],
        "other_parameter": None,
        "optimizer": {},
    }
    target = Path(target)
    checkpoint.write_bytes_atomically(
        target, lambda file: torch.save(state, file, pickle_protocol=4)
    )
    return target


def _recbole_options(resolved: dict[str, Any], model_class: Any) -> dict[str, Any]:
    options = dict(resolved)
    for key in ("method", "import_path", "split_seed"):
        options.pop(key, None)
    enums = {
        "MODEL_TYPE": model_class.type,
        "MODEL_INPUT_TYPE": getattr(model_class, "input_type", None),
    }
    from recbole.utils import EvaluatorType, InputType

    if enums["MODEL_INPUT_TYPE"] is None and resolved.get("MODEL_INPUT_TYPE"):
        enums["MODEL_INPUT_TYPE"] = InputType[resolved["MODEL_INPUT_TYPE"]]
    return {
        **options,
        **enums,
        "eval_type": EvaluatorType[resolved["eval_type"]],
        "seed": resolved["split_seed"],
        "device": torch.device("cpu"),
    }
