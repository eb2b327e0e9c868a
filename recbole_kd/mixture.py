"""Several teachers as one: the weighted mean of their distributions, in scores."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from recbole_kd.candidates import chunk_rows
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory
from recbole_kd.scoring import Scorer
from recbole_kd.teacher import UNKNOWN_SCORE, Teacher


def log_mixture(log_probabilities: Iterable[Tensor], log_weights: Tensor) -> Tensor:
    """Log of the weighted mean of distributions, none of which is exponentiated.

    Args:
        log_probabilities: One distribution after the other, ``[B, K]`` each; ``-inf`` is 0.
        log_weights: Log-weight of each distribution in each row, ``[T, B]``. Where it is ``-inf``
            the row of that distribution takes no part, whatever it holds.

    Returns:
        ``[B, K]``; ``-inf`` where no distribution has a probability.
    """
    parts = (
        torch.where(weights == -torch.inf, weights, logs + weights)
        for logs, weights in zip(log_probabilities, log_weights.unsqueeze(2), strict=True)
    )
    return functools.reduce(torch.logaddexp, parts)


def shared_log_weights(weights: Tensor, knows: Tensor) -> Tensor:
    """Log-weights of the teachers for each user, summing to 1 over those who know the user.

    Args:
        weights: Weight of each teacher, ``[T]``, above 0.
        knows: Whether a teacher knows a user, ``[T, U]``, bool.

    Returns:
        ``[T, U]``, float32; ``-inf`` where a teacher does not know the user.
    """
    logs = weights.log().unsqueeze(1).expand(knows.shape).masked_fill(~knows, -torch.inf)
    return torch.where(knows, logs - logs.logsumexp(0), -torch.inf).float()


class MixedTeacher(Teacher):
    """The weighted mean of the distributions of several teachers.

    The score of an item is ``tau * log sum_k w_k softmax_k(item)``, each softmax over all the items
    its teacher scores, at temperature ``tau``: the softmax of these scores at ``tau`` over any set
    of items is the mean of the distributions on that set, renormalised. A number for each user is
    added, the mean of what the softmaxes took away, so that scores keep the level of the teachers:
    equal teachers give their own scores. An item that one teacher does not know has no probability
    there; the weights of a user are shared by those who know the user. There are no vectors, and
    no earlier epochs.

    Args:
        teachers: The teachers, in the ids of the student.
        weights: Weight of each, above 0.
        tau: Temperature of the softmaxes, above 0.
        history: Train history in the student's ids, to mask train items.
        memory_budget_gb: Working memory of a chunk, in GiB.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        weights: Sequence[float],
        tau: float,
        history: UserHistory,
        memory_budget_gb: float = 0.1,
    ):
        users = torch.stack([t.knows_user for t in teachers])
        items = torch.stack([t.knows_item for t in teachers])
        scored = torch.stack([t.scores_item for t in teachers])
        # Two teachers' scores are in memory while they are added up: half the rows for each pass.
        super().__init__(users.any(0), items.any(0), history, memory_budget_gb / 2)
        self.teachers, self.tau = list(teachers), tau
        self._unknown_items = ~scored
        self._log_weights = shared_log_weights(torch.tensor(weights, device=users.device), users)
        # Lists must be filled for the user of whom the fewest items are known.
        groups = users[:, self.knows_user].unique(dim=1).t()
        self.n_known_items = min(int(items[group].any(0).sum()) for group in groups)

    @functools.cached_property
    def log_sums(self) -> Tensor:
        """Log of each softmax's denominator, ``[T, n_users]``, float32; computed once."""
        return torch.stack([self._log_sums(k) for k in range(len(self.teachers))])

    @functools.cached_property
    def _levels(self) -> Tensor:
        """What is added to the log of each user's mean distribution, ``[n_users]``."""
        return (self._log_weights.exp() * self.log_sums).sum(0)

    @torch.no_grad()
    def _log_sums(self, k: int) -> Tensor:
        teacher, n_items = self.teachers[k], len(self.knows_item)
        sums = torch.zeros(len(self.knows_user), device=self.device)
        rows = chunk_rows(12 * n_items, self.memory_budget_gb, len(sums))
        for users in teacher.knows_user.nonzero().squeeze(1).split(rows):
            scores = teacher.score_all(users).masked_fill_(self._unknown_items[k], -torch.inf)
            sums[users] = scores.div_(self.tau).logsumexp(1)
        return sums

    @torch.no_grad()
    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of given items; see :meth:`Teacher.score`."""
        scores = (teacher.score(users, items) for teacher in self.teachers)
        return self._mixed(users, scores, (unknown[items] for unknown in self._unknown_items))

    @torch.no_grad()
    def score_all(self, users: Tensor) -> Tensor:
        """Scores of all items for given users; see :meth:`Teacher.score_all`."""
        scores = (teacher.score_all(users) for teacher in self.teachers)
        return self._mixed(users, scores, self._unknown_items)

    @torch.no_grad()
    def ranking_scores(self, users: Tensor) -> Tensor:
        """Scores of the items that some teacher ranks; see :meth:`Teacher.ranking_scores`."""
        ranked = torch.zeros(1, dtype=torch.bool, device=self.device)

        def found() -> Iterator[Tensor]:
            nonlocal ranked
            for teacher in self.teachers:
                scores = teacher.ranking_scores(users)
                orders = scores > UNKNOWN_SCORE
                if bool((~orders & teacher.scores_item).any()):  # a list, with items outside it
                    scores = torch.where(orders, scores, teacher.score_all(users))
                ranked = ranked | (orders & teacher.knows_user[users].unsqueeze(1))
                yield scores

        mixed = self._mixed(users, found(), self._unknown_items)
        return mixed.masked_fill_(~ranked, UNKNOWN_SCORE)

    def check_length(self, k: int, mask_train: bool) -> None:
        """Refuse lists that the teachers cannot fill; see :meth:`Teacher.check_length`.

        One teacher who knows all users and can fill them is enough; else each must.
        """
        super().check_length(k, mask_train)
        refusals = []
        for teacher in self.teachers:
            try:
                teacher.check_length(k, mask_train)
            except KDError as refusal:
                refusals.append(refusal)
            else:
                if bool(teacher.knows_user[self.knows_user].all()):
                    return
        if refusals:
            raise refusals[0]

    def _mixed(self, users: Tensor, scores: Iterable[Tensor], unknown: Iterable[Tensor]) -> Tensor:
        logs = self._log_probabilities(users, scores, unknown)
        mixed = log_mixture(logs, self._log_weights[:, users])
        mixed.add_(self._levels[users].unsqueeze(1)).mul_(self.tau)
        return mixed.clamp_min_(UNKNOWN_SCORE)

    def _log_probabilities(
        self, users: Tensor, scores: Iterable[Tensor], unknown: Iterable[Tensor]
    ) -> Iterator[Tensor]:
        """Log of each teacher's softmax; ``-inf`` where it has no score for the item."""
        for found, hidden, sums in zip(scores, unknown, self.log_sums, strict=True):
            logs = found / self.tau - sums[users].unsqueeze(1)
            # Far below all others is not enough: a level is added before anybody asks again.
            yield logs.masked_fill_(hidden | (found <= UNKNOWN_SCORE), -torch.inf)


class MixedScorer(Scorer):
    """The scorer of a :class:`MixedTeacher`, whose parameters are those of all its teachers.

    Args:
        teacher: The teacher.
        scorers: Scorers of the models in it.
    """

    def __init__(self, teacher: MixedTeacher, scorers: Sequence[Scorer]):
        super().__init__(nn.ModuleList([s.model for s in scorers]), teacher.history)
        self.teacher = teacher
        self.device = teacher.device

    def encode(self, users: Tensor) -> Tensor:
        """The ids themselves, ``[B]``."""
        return users

    def score(self, state: Tensor, items: Tensor) -> Tensor:
        """Scores ``[B, K]`` of the items ``[B, K]`` for the users."""
        return self.teacher.score(state, items)

    def score_all(self, state: Tensor) -> Tensor:
        """Scores ``[B, n_items]`` of all items; column 0 is padding."""
        return self.teacher.score_all(state)
