"""``train.txt`` and ``test.txt`` of the LightGCN family of repositories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from recbole_kd.convert.interactions import (
    PARTS,
    Interactions,
    drop_repeats,
    join,
    positions,
    refuse_overlap,
)
from recbole_kd.convert.options import flag_option, ratio_option, seed_option
from recbole_kd.convert.readers import bare_notes, find_parts, read_lists
from recbole_kd.convert.result import About
from recbole_kd.errors import KDError

_GIVEN = ("train", "test")
_SOURCE = "LightGCN files, one `user item item ...` line per user in train.txt and test.txt"


def read_lightgcn(
    raw: str | Path, *, valid_ratio: float = 0.1, seed: int = 2020, resplit: bool = False
) -> tuple[Interactions, About]:
    """Read the train and test lists of a LightGCN data set.

    The format has no validation part. Unless ``resplit``, one is drawn at random from each user's
    train interactions; test stays as given.

    Args:
        raw: Folder with ``train.txt`` and ``test.txt`` (plain or ``.gz``), one ``user item ...``
            line per user.
        valid_ratio: Share of each user's train interactions that becomes validation, in (0, 1);
            rounded to the nearest number, and one interaction always stays in train.
        seed: Seed of that draw.
        resplit: Pool train and test into one unsplit file instead.

    Returns:
        The interactions, and what the README tells about them.

    Raises:
        KDError: Bad raw data or option, or a pair in both parts.
    """
    if flag_option("resplit", resplit):
        return _pooled(raw)
    return _split(raw, ratio_option("valid_ratio", valid_ratio), seed_option("seed", seed))


def _pooled(raw: str | Path) -> tuple[Interactions, About]:
    """Read train and test as one part."""
    rows = [read_lists(path) for path in find_parts(raw, _GIVEN)]
    data = join(rows, _GIVEN)
    pooled = replace(data, part=np.zeros_like(data.part), parts=("",), ordered=False)
    pooled, repeat_notes = drop_repeats(pooled)
    about = About(
        source=_SOURCE,
        rule="none: train and test are pooled, RecBole splits at random 8:1:1 per user",
        notes=(*bare_notes(rows), *repeat_notes),
        options={"resplit": True},
        eval_args="split: {RS: [0.8, 0.1, 0.1]}, order: RO",
    )
    return pooled, about


def _split(raw: str | Path, ratio: float, seed: int) -> tuple[Interactions, About]:
    """Read train and test and draw a validation part from train."""
    rows = [read_lists(path) for path in find_parts(raw, _GIVEN)]
    data, repeat_notes = drop_repeats(join(rows, _GIVEN))
    refuse_overlap(data, rows)
    about = About(
        source=_SOURCE,
        rule=(
            f"test as given; valid is a random {ratio:g} of each user's train interactions (seed "
            f"{seed}, rounded to the nearest number, at least one stays in train); train is the "
            "rest"
        ),
        notes=(
            *bare_notes(rows),
            *repeat_notes,
            "timestamp is the place in the user's train line, then test line, an order and not a "
            "time",
        ),
        options={"valid_ratio": ratio, "seed": seed},
    )
    return _draw_valid(data, ratio, seed), about


def _draw_valid(data: Interactions, ratio: float, seed: int) -> Interactions:
    """Move a random share of each user's train interactions to a validation part.

    Args:
        data: Interactions with the parts train and test.
        ratio: Share to move, in (0, 1).
        seed: Seed of the draw.

    Returns:
        The same interactions in the same order with the parts train, valid and test.

    Raises:
        KDError: No user has enough train interactions for the share.
    """
    train = np.flatnonzero(data.part == 0)
    user = data.user[train]
    count = np.bincount(user, minlength=len(data.users))
    take = np.minimum(np.floor(count * ratio + 0.5), np.maximum(count - 1, 0))
    if not take.any():
        raise KDError(
            f"option 'valid_ratio' is {ratio:g}: no validation interaction for any user, the "
            f"longest train list has {count.max()}; choose a larger share."
        )
    draw = np.random.default_rng(seed).random(len(train))
    order = np.lexsort((draw, user))
    rank = positions(user[order])
    part = np.where(data.part == 1, 2, 0)
    part[train[order[rank < take[user[order]]]]] = 1
    return replace(data, part=part, parts=PARTS)
