"""The leak guard: no validation or test interaction of the student may have trained the teacher."""

from __future__ import annotations

import logging

import numpy as np
from torch import Tensor

from recbole_kd.data import Split, pair_hashes
from recbole_kd.errors import KDError
from recbole_kd.history import UserHistory


def _secrets(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Held-out interactions, but for repeated ones that the student has in its own train split."""
    users, items = split.held_out()
    own_users, own_items = (t.numpy() for t in split.history.pairs())
    n_items = split.history.n_items
    new = ~np.isin(users * n_items + items, np.unique(own_users * n_items + own_items))
    return users[new], items[new]


def leaked(split: Split, teacher: UserHistory, user_ids: Tensor, item_ids: Tensor) -> int:
    """How many held-out interactions of the student's split are in the teacher's train split.

    A repeated interaction that the student itself has in its train split is no secret, and is not
    counted.

    Args:
        split: The student's split.
        teacher: The teacher's train interactions, in the teacher's ids.
        user_ids: Teacher id of every student user id, -1 where unknown.
        item_ids: Teacher id of every student item id, -1 where unknown.
    """
    users, items = _secrets(split)
    width = teacher.n_items
    seen_users, seen_items = (t.numpy() for t in teacher.pairs())
    theirs = user_ids.numpy()[users], item_ids.numpy()[items]
    known = (theirs[0] > 0) & (theirs[1] > 0)
    held = theirs[0][known] * width + theirs[1][known]
    return int(np.isin(held, np.unique(seen_users * width + seen_items)).sum())


def leaked_of(split: Split, trained_on: np.ndarray) -> int:
    """:func:`leaked`, of a teacher that left only hashes of its train interactions.

    Args:
        split: The student's split.
        trained_on: :func:`recbole_kd.data.pair_hashes` of the interactions, ``[N]``, uint64.
    """
    return int(np.isin(pair_hashes(*_secrets(split), split.tokens), trained_on).sum())


REMEDY = (
    "train it on this run's split (leave --teacher.checkpoint out), give both the same split_seed "
    "and eval_args"
)


def guard(
    split: Split,
    teacher: UserHistory,
    user_ids: Tensor,
    item_ids: Tensor,
    origin: str,
    allow: bool,
    remedy: str = REMEDY,
) -> int:
    """Refuse a teacher that was trained on the student's validation or test interactions.

    Args:
        split: The student's split.
        teacher: The teacher's train interactions, in the teacher's ids.
        user_ids: Teacher id of every student user id.
        item_ids: Teacher id of every student item id.
        origin: Name of the teacher, for the message.
        allow: Whether to go on with a loud warning.
        remedy: What is allowed beside ``allow_leak``, for the message.

    Returns:
        Leaked interactions.

    Raises:
        KDError: There are some and ``allow`` is false.
    """
    count = leaked(split, teacher, user_ids, item_ids)
    return _refuse(count, split, origin, allow, remedy)


def guard_scores(
    split: Split, trained_on: np.ndarray, origin: str, allow: bool, sampled: bool = False
) -> int:
    """:func:`guard`, for a file of scores that says what its model was trained on.

    Args:
        split: The student's split.
        trained_on: See :func:`leaked_of`.
        origin: The file, for the message.
        allow: Whether to go on with a loud warning.
        sampled: Whether hashes of further interactions were left out, so that more have leaked.

    Returns:
        Leaked interactions.

    Raises:
        KDError: There are some and ``allow`` is false.
    """
    remedy = "allowed is a file of a model that was trained on this run's split"
    return _refuse(leaked_of(split, trained_on), split, origin, allow, remedy, sampled)


def _refuse(
    count: int, split: Split, origin: str, allow: bool, remedy: str, sampled: bool = False
) -> int:
    if count == 0:
        return 0
    total, least = len(split.held_out()[0]), "at least " if sampled else ""
    found = (
        f"the teacher {origin} was trained on {least}{count} of the {total} validation and test "
        f"interactions of the student ({count / total:.1%}): its split is another one"
    )
    if not allow:
        raise KDError(f"{found}; {remedy}, or set --allow_leak to go on with wrong numbers")
    logging.getLogger(__name__).warning("LEAK ALLOWED: %s. The results are not comparable.", found)
    return count


def unchecked(origin: str) -> str:
    """Say that a teacher without a train history cannot be checked.

    Args:
        origin: Name of the teacher, for the message.

    Returns:
        The same in short, for the line of results.
    """
    logging.getLogger(__name__).warning(
        "the teacher %s says nothing of what it was trained on: it cannot be checked for "
        "validation and test interactions of this run",
        origin,
    )
    return "not checked for validation and test interactions"
