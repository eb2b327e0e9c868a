"""Scorers: encode a user once, then score any item set, or all items.

A *query* is a user with the whole train history; never a prefix row of an augmented sequence.
Models whose score is an inner product of a user vector and an item vector have a
:class:`FactorScorer`; any other RecBole model is served by :class:`DenseScorer`, which can teach
but not learn. RecBole's ``full_sort_predict`` is never called on a student: LightGCN's caches its
embeddings there, which would silently cut the gradient.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.general_recommender.bpr import BPR
from recbole.model.general_recommender.lightgcn import LightGCN
from recbole.utils import ModelType
from torch import Tensor, nn

from recbole_kd import compat
from recbole_kd.backbones.hstu import HSTU
from recbole_kd.backbones.simplex import SimpleX
from recbole_kd.errors import KDError
from recbole_kd.gather import gather_dot
from recbole_kd.history import UserHistory

_SEQUENTIAL = compat.import_sequential_models()


class Scorer(ABC):
    """Scores of one model, for users given by internal id.

    Args:
        model: A RecBole model.
        history: Train history of every user, for models that encode it.
    """

    factorised = False

    free_scale = False
    """Whether the scale of its scores is nothing that it learnt by, so that a temperature may be
    asked for: cosines, and the scores of models without vectors."""

    reads_history = False
    """Whether a user's state is the train history alone: of an empty one there is none."""

    def __init__(self, model: Any, history: UserHistory):
        self.model = model
        self.history = history
        self.n_items = history.n_items
        self.device = next(model.parameters(), torch.empty(0)).device

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Within this block the parameters do not change, so shared work is done once."""
        yield

    @torch.no_grad()
    def check(self) -> None:
        """Ask the untrained model about one user, so that a refusal comes before the training.

        Raises:
            KDError: The model needs more than a user and the train history.
        """
        user = self.history.active_users()[:1].to(self.device)
        training = self.model.training
        self.model.eval()
        # Some models cannot be asked yet: Pop has no counts before its first batch.
        with contextlib.suppress(AttributeError, TypeError, RuntimeError):
            self.score(self.encode(user), torch.ones(1, 1, dtype=torch.int64, device=self.device))
        self.model.train(training)

    @abstractmethod
    def encode(self, users: Tensor) -> Tensor:
        """A state for each user, ``[B, ...]``, from which any items can be scored."""

    def encode_now(self, users: Tensor) -> Tensor:
        """:meth:`encode`, for models that also read the time of the request: right now."""
        return self.encode(users)

    @abstractmethod
    def score(self, state: Tensor, items: Tensor) -> Tensor:
        """Scores ``[B, K]`` of the items ``[B, K]`` for the encoded users."""

    @abstractmethod
    def score_all(self, state: Tensor) -> Tensor:
        """Scores ``[B, n_items]`` of all items; column 0 is padding."""


class FactorScorer(Scorer):
    """A model whose score is an inner product of a user vector and an item vector.

    Scores are divided by a *temperature*, so that they are logits whatever the model calls a score
    and a method's own ``tau`` means the same for every pair. It is 1 where the inner product is
    what the model learns by. Where that is a cosine it is not: at temperature 1 a softmax of
    numbers between -1 and 1 is almost uniform. Rankings, and the vectors, are those of the model.

    Args:
        model: A RecBole model.
        history: Train history of every user.
        temperature: Divides the scores, above 0; ``None``: the model's own.
    """

    factorised = True
    own_temperature = 1.0
    """Temperature of a model that brings none."""

    made_once: str | None = None
    """A method of the model that, called without arguments, gives the same all through a step."""

    def __init__(self, model: Any, history: UserHistory, temperature: float | None = None):
        super().__init__(model, history)
        self.temperature = self.own_temperature if temperature is None else float(temperature)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Call the model's :attr:`made_once` at most once inside this block.

        A call with arguments is the model's own affair and is never shared.
        """
        name = self.made_once
        if name is None:
            yield
            return
        method, outer = getattr(self.model, name), vars(self.model).get(name)
        shared: dict[tuple[bool, bool], Any] = {}

        def once(*args: Any, **kwargs: Any) -> Any:
            if args or kwargs:
                return method(*args, **kwargs)
            # What is made without gradient, or without dropout, is not for those who want it.
            key = torch.is_grad_enabled(), self.model.training
            if key not in shared:
                shared[key] = method()
            return shared[key]

        # On this one instance: the model's own loss calls the method too.
        setattr(self.model, name, once)
        try:
            yield
        finally:
            delattr(self.model, name)
            if outer is not None:
                setattr(self.model, name, outer)

    def encode(self, users: Tensor) -> Tensor:
        """User vectors over the temperature, ``[B, d]``."""
        return self.tempered(self.user_vectors(users))

    def tempered(self, vectors: Tensor) -> Tensor:
        """Vectors over the temperature."""
        return vectors if self.temperature == 1 else vectors / self.temperature

    @abstractmethod
    def user_vectors(self, users: Tensor) -> Tensor:
        """User vectors, ``[B, d]``."""

    @abstractmethod
    def item_vectors(self) -> Tensor:
        """Item vectors, ``[n_items, d]``."""

    def score(self, state: Tensor, items: Tensor) -> Tensor:
        """Scores ``[B, K]`` of the items ``[B, K]`` for the encoded users."""
        return gather_dot(state, self.item_vectors(), items)

    def score_all(self, state: Tensor) -> Tensor:
        """Scores ``[B, n_items]`` of all items; column 0 is padding."""
        return state @ self.item_vectors().t()


class TableScorer(FactorScorer):
    """Two embedding tables, as in BPR."""

    def user_vectors(self, users: Tensor) -> Tensor:
        """User vectors, ``[B, d]``."""
        return self.model.user_embedding(users)

    def item_vectors(self) -> Tensor:
        """Item vectors, ``[n_items, d]``."""
        return self.model.item_embedding.weight


class GraphScorer(FactorScorer):
    """A model whose ``forward()`` propagates all embeddings over the graph, as in LightGCN.

    Within :meth:`step` the propagation runs once and serves every score and the model's own loss.
    """

    made_once = "forward"

    def user_vectors(self, users: Tensor) -> Tensor:
        """Propagated user vectors, ``[B, d]``."""
        return self.model.forward()[0][users]

    def item_vectors(self) -> Tensor:
        """Propagated item vectors, ``[n_items, d]``."""
        return self.model.forward()[1]


class CosineScorer(FactorScorer):
    """A model that gives unit vectors of users and of items, as SimpleX.

    Its loss compares cosines with a margin and knows no temperature, so the default is a choice:
    at 0.1 an item can be e^20 times as likely as another, as with vectors of free length.
    """

    own_temperature = 0.1
    free_scale = True
    made_once = "item_vectors"

    def user_vectors(self, users: Tensor) -> Tensor:
        """Unit user vectors, ``[B, d]``."""
        return self.model.user_vectors(users)

    def item_vectors(self) -> Tensor:
        """Unit item vectors, ``[n_items, d]``."""
        return self.model.item_vectors()


class SequenceScorer(FactorScorer):
    """A sequence encoder whose output is scored against the item embeddings: SASRec, GRU4Rec.

    A training step, within :meth:`step`, encodes the same users once, whoever asks.
    """

    reads_history = True
    _encoded: list[tuple[Tensor, Tensor]] | None = None

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Within this block what is encoded with a gradient is shared."""
        outer, self._encoded = self._encoded, []
        try:
            with super().step():
                yield
        finally:
            self._encoded = outer

    def user_vectors(self, users: Tensor) -> Tensor:
        """Encodings of the users' train histories, ``[B, d]``."""
        # Without a gradient nothing is kept: a refresh goes through all users, a timing repeats.
        shared = self._encoded if torch.is_grad_enabled() else None
        for asked, vectors in shared or ():
            if torch.equal(asked, users):
                return vectors
        vectors = self.encode_history(self.history, users)
        if shared is not None:
            shared.append((users, vectors))
        return vectors

    def encode_history(
        self, history: UserHistory, users: Tensor, at: Tensor | None = None
    ) -> Tensor:
        """Encodings of any histories, cut to the latest items the model was trained on.

        Args:
            history: Item sequences.
            users: Which of them, ``[B]``.
            at: Time of each request in seconds, ``[B]``, float64, for models that read it.

        Returns:
            ``[B, d]``.

        Raises:
            KDError: ``at`` is given to a model that reads no times.
        """
        if at is not None:
            raise KDError(f"at: {type(self.model).__name__} reads no times; leave it out")
        sequences, lengths = history.padded(users, self.model.max_seq_length)
        return self.model.forward(sequences.to(self.device), lengths.to(self.device))

    def item_vectors(self) -> Tensor:
        """Item vectors, ``[n_items, d]``."""
        return self.model.item_embedding.weight


class TimedSequenceScorer(SequenceScorer):
    """A sequence encoder that may read times, with item vectors of its own: HSTU.

    HSTU ranks by cosines and learns by cosines over its option ``temperature``, which is the
    default here too. Item vectors are made once in a :meth:`step`, for the model's own loss too.
    """

    free_scale = True
    made_once = "item_vectors"

    def __init__(self, model: Any, history: UserHistory, temperature: float | None = None):
        super().__init__(model, history, temperature or model.options["temperature"])

    def encode_history(
        self, history: UserHistory, users: Tensor, at: Tensor | None = None
    ) -> Tensor:
        """Encodings of any histories; see :meth:`SequenceScorer.encode_history`.

        Raises:
            KDError: The model needs times or the time of the request and has none; ``at`` is given
                to a model that reads no times.
        """
        if not self.model.uses_time:
            return super().encode_history(history, users, at)
        items, lengths = history.padded(users, self.model.max_seq_length)
        times = history.padded_times(users, self.model.max_seq_length)
        inputs = [None if t is None else t.to(self.device) for t in (items, lengths, times, at)]
        return self.model.forward(*inputs)

    def encode_now(self, users: Tensor) -> Tensor:
        """Encodings for a request at the time of each user's last interaction, ``[B, d]``."""
        if self.history.times is None or not self.model.needs_request_time:
            return self.encode(users)
        last = self.history.offsets[users.to(self.history.offsets.device) + 1] - 1
        return self.tempered(self.encode_history(self.history, users, self.history.times[last]))

    def item_vectors(self) -> Tensor:
        """Item vectors, ``[n_items, d]``, unit length if the model scores by cosine."""
        return self.model.item_vectors()


class DenseScorer(Scorer):
    """Any RecBole model, through ``full_sort_predict``, or ``predict`` where it has none.

    It serves teachers only: it runs without gradient, and a score row costs what the model's own
    full ranking costs. The state of a user is the id.

    What such a model calls a score has any scale: NeuMF's are probabilities, EASE's and ItemKNN's
    are sums of weights. They are taken as they are unless a temperature is given.

    Args:
        model: A RecBole model.
        history: Train history of every user.
        temperature: Divides the scores, above 0; ``None``: 1.
    """

    free_scale = True
    pair_budget = 2**21

    def __init__(self, model: Any, history: UserHistory, temperature: float | None = None):
        super().__init__(model, history)
        self.temperature = 1.0 if temperature is None else float(temperature)
        self.reads_history = hasattr(model, "ITEM_SEQ")
        base: type = nn.Module
        for owner in type(model).__mro__:
            if "full_sort_predict" in vars(owner):
                base = owner
                break
        self._full_sort = base.__module__ != "recbole.model.abstract_recommender"

    def encode(self, users: Tensor) -> Tensor:
        """The ids themselves, ``[B]``."""
        return users

    def _interaction(self, users: Tensor) -> Interaction:
        fields = {self.model.USER_ID: users}
        if self.reads_history:
            sequences, lengths = self.history.padded(users, self.model.max_seq_length)
            fields[self.model.ITEM_SEQ] = sequences
            fields[self.model.ITEM_SEQ_LEN] = lengths
        return Interaction(fields).to(self.device)

    @torch.no_grad()
    def score(self, state: Tensor, items: Tensor) -> Tensor:
        """Scores ``[B, K]`` of the items ``[B, K]`` for the users."""
        if self._full_sort:
            return self.score_all(state).gather(1, items)
        rows = max(1, self.pair_budget // items.shape[1])
        parts = [
            self._pairs(u, i) for u, i in zip(state.split(rows), items.split(rows), strict=True)
        ]
        return torch.cat(parts)

    def _pairs(self, users: Tensor, items: Tensor) -> Tensor:
        pairs = self._interaction(users).repeat_interleave(items.shape[1])
        pairs.update(Interaction({self.model.ITEM_ID: items.reshape(-1)}).to(self.device))
        return self._tempered(self._ask(self.model.predict, pairs).view(items.shape))

    def _tempered(self, scores: Tensor) -> Tensor:
        return scores if self.temperature == 1 else scores / self.temperature

    def _ask(self, method: Callable[[Interaction], Tensor], query: Interaction) -> Tensor:
        try:
            return method(query)
        except KeyError as error:
            raise KDError(
                f"{type(self.model).__name__} cannot be asked about a user and the train history: "
                f"it reads the field {error} of an interaction"
            ) from error

    @torch.no_grad()
    def score_all(self, state: Tensor) -> Tensor:
        """Scores ``[B, n_items]`` of all items; column 0 is padding."""
        if self._full_sort:
            # A model may hand out a cached tensor: never let a caller mask it in place.
            scores = self._ask(self.model.full_sort_predict, self._interaction(state))
            return self._tempered(scores.view(-1, self.n_items).clone())
        items = torch.arange(self.n_items, device=self.device).expand(len(state), -1)
        return self.score(state, items)


FACTORISED: dict[type[nn.Module], type[FactorScorer]] = {
    BPR: TableScorer,
    LightGCN: GraphScorer,
    SimpleX: CosineScorer,
    HSTU: TimedSequenceScorer,
    _SEQUENTIAL.SASRec: SequenceScorer,
    _SEQUENTIAL.GRU4Rec: SequenceScorer,
}
"""Models with a factorised scorer. A model class may bring its own as ``make_scorer``."""


def scorer_for(model: Any, history: UserHistory, temperature: float | None = None) -> Scorer:
    """The scorer of a model: its own, a factorised one, or the general one.

    Subclasses do not inherit an entry of :data:`FACTORISED` unless they declare
    ``same_scores = True``: a subclass is free to score in another way.

    Args:
        model: A RecBole model.
        history: Train history of every user.
        temperature: Divides the scores of one that has a :attr:`Scorer.free_scale`; ``None``: the
            model's own.

    Raises:
        KDError: A temperature is given to a model that has no such scale.
    """
    if temperature is not None and not takes_temperature(type(model)):
        raise KDError(
            f"score_temperature={temperature}: found {type(model).__name__}, whose scores are "
            f"inner products that it learnt by; allowed with {', '.join(cosine_names())} and "
            "models without vectors"
        )
    if hasattr(model, "make_scorer"):
        return model.make_scorer(history)
    adapter = factorised_adapter(type(model))
    return (adapter or DenseScorer)(model, history, temperature)


def takes_temperature(cls: type[Any]) -> bool:
    """Whether scores of a model class are read over a temperature that can be chosen."""
    return not hasattr(cls, "make_scorer") and (factorised_adapter(cls) or DenseScorer).free_scale


def factorised_adapter(cls: type[Any]) -> type[FactorScorer] | None:
    """The factorised scorer of a model class in :data:`FACTORISED`, or ``None``."""
    for known, adapter in FACTORISED.items():
        if cls is known or (issubclass(cls, known) and getattr(cls, "same_scores", False)):
            return adapter
    return None


def require_factorised(cls: type[Any], name: str) -> None:
    """Refuse a student class without user and item vectors, before anything is trained.

    Args:
        cls: The student's class.
        name: Its name, for the message.

    Raises:
        KDError: The class has no factorised scorer.
    """
    if not is_factorised(cls):
        raise KDError(
            f"--student={name}: distillation needs a student with user and item vectors; "
            f"allowed are {', '.join(factorised_names())}"
        )


def is_factorised(cls: type[Any]) -> bool:
    """Whether models of a class have user and item vectors."""
    return hasattr(cls, "make_scorer") or factorised_adapter(cls) is not None


def factorised_names() -> list[str]:
    """Names of the RecBole models that have a factorised scorer."""
    return sorted(cls.__name__ for cls in FACTORISED)


def cosine_names() -> list[str]:
    """Names of the models that score by cosine."""
    return sorted(cls.__name__ for cls, adapter in FACTORISED.items() if adapter.free_scale)


def sequence_names() -> list[str]:
    """Names of the models that encode any item sequence."""
    return sorted(
        cls.__name__ for cls, adapter in FACTORISED.items() if issubclass(adapter, SequenceScorer)
    )


def model_size(model: Any) -> tuple[int | None, int | None]:
    """Number of a model's parameters, and their bytes.

    ``None`` for RecBole's traditional models (EASE, ItemKNN, Pop): what they learn is kept outside
    PyTorch's parameters; the one that they have keeps the optimiser content.

    Args:
        model: A RecBole model.
    """
    if getattr(model, "type", None) is ModelType.TRADITIONAL:
        return None, None
    parameters = list(model.parameters())
    return (
        sum(p.numel() for p in parameters),
        sum(p.numel() * p.element_size() for p in parameters),
    )
