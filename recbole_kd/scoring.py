"""Scorers: encode a user once, then score any item set, or all items.

A *query* is a user with the whole train history; never a prefix row of an augmented sequence.
Models whose score is an inner product of a user vector and an item vector have a
:class:`FactorScorer`; any other RecBole model is served by :class:`DenseScorer`, which can teach
but not learn. RecBole's ``full_sort_predict`` is never called on a student: LightGCN's caches its
embeddings there, which would silently cut the gradient.
"""

from __future__ import annotations

import contextlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.general_recommender.bpr import BPR
from recbole.model.general_recommender.lightgcn import LightGCN
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recbole_kd import compat
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory

_SEQUENTIAL = compat.import_sequential_models()
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


class _GatherDot(torch.autograd.Function):
    """``out[b, k] = users[b] . items[ids[b, k]]`` without a ``[B, K, d]`` tensor.

    The forward pass is a sampled dense-dense product, the backward pass two sparse-dense ones; on
    two CPU cores that is about a tenth of the time of gathering and multiplying.
    """

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, ids: Tensor) -> Tensor:
        rows, width = ids.shape
        offsets = torch.arange(0, rows * width + 1, width, device=ids.device)
        zeros = torch.zeros(rows * width, dtype=users.dtype, device=ids.device)
        pattern = torch.sparse_csr_tensor(
            offsets, ids.reshape(-1), zeros, (rows, items.shape[0]), check_invariants=False
        )
        ctx.save_for_backward(users, items, ids)
        scores = torch.sparse.sampled_addmm(pattern, users, items.t(), beta=0.0)
        return scores.values().view(rows, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        users, items, ids = ctx.saved_tensors
        rows, width = ids.shape
        grad = grad.contiguous()
        grad_users = grad_items = None
        if ctx.needs_input_grad[0]:
            grad_users = torch.nn.functional.embedding_bag(
                ids, items, per_sample_weights=grad, mode="sum"
            )
        if ctx.needs_input_grad[1]:
            columns, order = ids.reshape(-1).sort()
            counts = torch.bincount(columns, minlength=items.shape[0])
            offsets = torch.zeros(items.shape[0] + 1, dtype=torch.int64, device=ids.device)
            torch.cumsum(counts, 0, out=offsets[1:])
            by_item = torch.sparse_csr_tensor(
                offsets,
                torch.div(order, width, rounding_mode="floor"),
                grad.reshape(-1)[order],
                (items.shape[0], rows),
                check_invariants=False,
            )
            grad_items = by_item @ users
        return grad_users, grad_items, None


def gather_dot(users: Tensor, items: Tensor, ids: Tensor) -> Tensor:
    """Inner products of each row's vector with the item vectors it names.

    Args:
        users: User vectors, ``[B, d]``, float.
        items: Item vectors, ``[I, d]``, float.
        ids: Item ids, ``[B, K]``, int64; repeats are allowed.

    Returns:
        Scores, ``[B, K]``, differentiable in ``users`` and ``items``.
    """
    # A sparse pattern holds at most as many entries a row as there are items.
    fits = 0 < ids.numel() <= ids.shape[0] * items.shape[0]
    if users.device.type == "cpu" and torch.backends.mkl.is_available() and fits:
        return _GatherDot.apply(users.contiguous(), items.contiguous(), ids)
    return torch.einsum("bd,bkd->bk", users, items[ids])


class Scorer(ABC):
    """Scores of one model, for users given by internal id.

    Args:
        model: A RecBole model.
        history: Train history of every user, for models that encode it.
    """

    factorised = False

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

    @abstractmethod
    def score(self, state: Tensor, items: Tensor) -> Tensor:
        """Scores ``[B, K]`` of the items ``[B, K]`` for the encoded users."""

    @abstractmethod
    def score_all(self, state: Tensor) -> Tensor:
        """Scores ``[B, n_items]`` of all items; column 0 is padding."""


class FactorScorer(Scorer):
    """A model whose score is an inner product of a user vector and an item vector."""

    factorised = True

    def encode(self, users: Tensor) -> Tensor:
        """User vectors, ``[B, d]``."""
        return self.user_vectors(users)

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
    A call of ``forward`` with arguments is the model's own affair and is never shared.
    """

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Propagate at most once inside this block."""
        forward, outer = self.model.forward, vars(self.model).get("forward")
        shared: list[Any] = []

        def propagate_once(*args: Any, **kwargs: Any) -> Any:
            if args or kwargs:
                return forward(*args, **kwargs)
            if not shared:
                shared.append(forward())
            return shared[0]

        # On this one instance: the model's own loss calls ``self.forward()`` too.
        self.model.forward = propagate_once
        try:
            yield
        finally:
            del self.model.forward
            if outer is not None:
                self.model.forward = outer

    def user_vectors(self, users: Tensor) -> Tensor:
        """Propagated user vectors, ``[B, d]``."""
        return self.model.forward()[0][users]

    def item_vectors(self) -> Tensor:
        """Propagated item vectors, ``[n_items, d]``."""
        return self.model.forward()[1]


class SequenceScorer(FactorScorer):
    """A sequence encoder whose output is scored against the item embeddings: SASRec, GRU4Rec."""

    def user_vectors(self, users: Tensor) -> Tensor:
        """Encodings of the users' train histories, ``[B, d]``."""
        sequences, lengths = self.history.padded(users, self.model.max_seq_length)
        return self.model.forward(sequences.to(self.device), lengths.to(self.device))

    def item_vectors(self) -> Tensor:
        """Item vectors, ``[n_items, d]``."""
        return self.model.item_embedding.weight


class DenseScorer(Scorer):
    """Any RecBole model, through ``full_sort_predict``, or ``predict`` where it has none.

    It serves teachers only: it runs without gradient, and a score row costs what the model's own
    full ranking costs. The state of a user is the id.
    """

    pair_budget = 2**21

    def __init__(self, model: Any, history: UserHistory):
        super().__init__(model, history)
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
        if hasattr(self.model, "ITEM_SEQ"):
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
        return self._ask(self.model.predict, pairs).view(items.shape)

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
            return scores.view(-1, self.n_items).clone()
        items = torch.arange(self.n_items, device=self.device).expand(len(state), -1)
        return self.score(state, items)


FACTORISED: dict[type[nn.Module], Callable[[nn.Module, UserHistory], FactorScorer]] = {
    BPR: TableScorer,
    LightGCN: GraphScorer,
    _SEQUENTIAL.SASRec: SequenceScorer,
    _SEQUENTIAL.GRU4Rec: SequenceScorer,
}
"""Models with a factorised scorer. A model class may bring its own as ``make_scorer``."""


def scorer_for(model: Any, history: UserHistory) -> Scorer:
    """The scorer of a model: its own, a factorised one, or the general one.

    Subclasses do not inherit an entry of :data:`FACTORISED` unless they declare
    ``same_scores = True``: a subclass is free to score in another way.

    Args:
        model: A RecBole model.
        history: Train history of every user.
    """
    if hasattr(model, "make_scorer"):
        return model.make_scorer(history)
    adapter = factorised_adapter(type(model))
    return DenseScorer(model, history) if adapter is None else adapter(model, history)


def factorised_adapter(cls: type[Any]) -> Callable[[Any, UserHistory], FactorScorer] | None:
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
    if not hasattr(cls, "make_scorer") and factorised_adapter(cls) is None:
        raise KDError(
            f"--student={name}: distillation needs a student with user and item vectors; "
            f"allowed are {', '.join(factorised_names())}"
        )


def factorised_names() -> list[str]:
    """Names of the RecBole models that have a factorised scorer."""
    return sorted(cls.__name__ for cls in FACTORISED)
