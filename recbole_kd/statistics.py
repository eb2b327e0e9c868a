"""Whether two methods differ: paired tests by seed and by user, effect size, Holm's correction.

Both tests are the paired t-test, two-sided. By user too: with many users the Wilcoxon signed-rank
and the sign test find differences where there are none, and neither is about the difference of
means that is reported, while the t-test agrees with randomisation and bootstrap (Smucker et al.,
CIKM 2007; Urbano et al., SIGIR 2019; Ihemelandu and Ekstrand, SIGIR 2023). The last of them also
shows that with many users nearly every difference is significant: read the effect size with it.

The two tests answer two questions. By seed: would other initialisations and samples show the
difference again, for these users? By user: would other users, for these trained models?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from recbole_kd.errors import KDError
from recbole_kd.optional import library

Array = np.ndarray[Any, Any]

ROUNDING = 8 * float(np.finfo(np.float64).eps)
"""What of a value may be rounding: differences that vary by no more do not vary."""


@dataclass(frozen=True)
class Summary:
    """Mean and spread of some values.

    Attributes:
        count: How many there are.
        mean: Their mean; ``None`` where there is none.
        deviation: Their sample standard deviation (divided by ``count - 1``); ``None`` below two.
        reason: Why a number is missing; empty where none is.
    """

    count: int
    mean: float | None
    deviation: float | None
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two methods.

    Attributes:
        pairs: Pairs compared: seeds, or users.
        difference: Mean of first minus second: above 0 where the first method's values are
            larger; ``None`` without a pair.
        effect_size: Cohen's d_z, the mean difference over the sample standard deviation of the
            differences, of the same sign; ``None`` where they do not vary.
        statistic: Student's t with ``pairs - 1`` degrees of freedom, of the same sign; ``None``
            where the effect size is.
        p_value: Two-sided p of it; ``None`` where the statistic is.
        corrected: Holm's p in its family, see :func:`correct`; ``None`` before, or without a p.
        reason: Why numbers are missing; empty where none is.
    """

    pairs: int
    difference: float | None
    effect_size: float | None = None
    statistic: float | None = None
    p_value: float | None = None
    corrected: float | None = None
    reason: str = ""


def summarise(values: Sequence[float] | Array) -> Summary:
    """Mean and sample standard deviation.

    Args:
        values: Numbers, ``[n]``.

    Raises:
        KDError: One of them is not finite, or they are no list.
    """
    given = _numbers(values, "values", 1)
    if not len(given):
        return Summary(0, None, None, "no value")
    mean = float(given.mean())
    if len(given) == 1:
        return Summary(1, mean, None, "one value has no deviation")
    return Summary(len(given), mean, float(given.std(ddof=1)))


def by_seed(first: Mapping[Any, float], second: Mapping[Any, float]) -> Comparison:
    """Compare two methods that were run with the same seeds.

    Args:
        first: A metric of the first method, by seed.
        second: The same of the second.

    Returns:
        The paired t-test over the seeds.

    Raises:
        KDError: A seed is there for one of them alone, or a value is not finite.
    """
    if unpaired := sorted(map(str, first.keys() ^ second.keys())):
        raise KDError(
            f"a comparison by seed: found the seeds {', '.join(unpaired)} for one of the two "
            "methods alone; allowed are the same seeds"
        )
    seeds = list(first)
    return _compare([first[s] for s in seeds], [second[s] for s in seeds], "seed")


def by_user(first: Sequence[Any] | Array, second: Sequence[Any] | Array) -> Comparison:
    """Compare two methods on the same users.

    The seeds of each method are averaged first, so that a pair is a user; the methods may have
    different numbers of them.

    Args:
        first: A metric of the first method by user, ``[n_users]`` or ``[n_seeds, n_users]``.
        second: The same of the second, its users in the same order.

    Returns:
        The paired t-test over the users.

    Raises:
        KDError: There are other numbers of users, no seed, or a value that is not finite.
    """
    return _compare(_mean_of_seeds(first), _mean_of_seeds(second), "user")


def _mean_of_seeds(values: Sequence[Any] | Array) -> Array:
    given = _numbers(values, "metrics by user", 1, 2)
    if given.ndim == 2 and not len(given):
        raise KDError("a comparison by user: found no seed; needed is one")
    return given if given.ndim == 1 else given.mean(axis=0)


def mean_by_user(users: Sequence[Any] | Array, values: Sequence[float] | Array) -> tuple[Any, Any]:
    """A metric of each user from that of each ranking, where users may have several.

    Rankings of one user are no independent pairs; their mean is one.

    Args:
        users: The user of each ranking, ``[n]``.
        values: Its metric, ``[n]``.

    Returns:
        The users, sorted, ``[n_users]``, and the mean of each, ``[n_users]``, float64.

    Raises:
        KDError: The two differ in length, or a value is not finite.
    """
    given = _numbers(values, "metrics by ranking", 1)
    if len(users) != len(given):
        raise KDError(
            f"metrics by ranking: found {len(given)} for {len(users)} users; allowed is one each"
        )
    names, places, counts = np.unique(np.asarray(users), return_inverse=True, return_counts=True)
    return names, np.bincount(places, weights=given, minlength=len(names)) / counts


def correct(family: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of a family with their corrected p, see :func:`holm`."""
    ps = holm([one.p_value for one in family])
    return [replace(one, corrected=p) for one, p in zip(family, ps, strict=True)]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction: the error rate of the whole family is bounded.

    Args:
        p_values: A p for each comparison; ``None`` where nothing could be tested, which does not
            count.

    Returns:
        The corrected p of each, in the order given, at most 1; ``None`` stays.

    Raises:
        KDError: A p is not between 0 and 1, or statsmodels is missing.
    """
    known = [n for n, p in enumerate(p_values) if p is not None]
    given = np.array([p_values[n] for n in known], dtype=np.float64)
    if not ((given >= 0) & (given <= 1)).all():
        raise KDError(f"Holm's correction: found the p {given.tolist()}; allowed are 0 to 1")
    corrected: list[float | None] = [None] * len(p_values)
    if known:
        tests = library("statsmodels.stats.multitest", "Holm's correction")
        for place, p in zip(known, tests.multipletests(given, method="holm")[1], strict=True):
            corrected[place] = float(p)
    return corrected


def _compare(
    first: Sequence[float] | Array, second: Sequence[float] | Array, of: str
) -> Comparison:
    """The paired t-test.

    Args:
        first: Values of the first method, ``[n]``.
        second: Values of the second, ``[n]``, in the same order.
        of: What a pair is, for messages.
    """
    one, two = (_numbers(values, f"metrics by {of}", 1) for values in (first, second))
    pairs = len(one)
    if pairs != len(two):
        raise KDError(
            f"a comparison by {of}: found {pairs} and {len(two)} values; allowed are as many"
        )
    if not pairs:
        return Comparison(0, None, reason=f"no {of}")
    differences = one - two
    mean = float(differences.mean())
    if pairs == 1:
        return Comparison(1, mean, reason=f"one {of}; a test needs two")
    deviation = float(differences.std(ddof=1))
    if deviation <= ROUNDING * max(np.abs(one).max(), np.abs(two).max()):
        same = "zero" if not differences.any() else "the same"
        return Comparison(pairs, mean, reason=f"the differences of all {pairs} {of}s are {same}")
    test = stats.ttest_rel(one, two)
    return Comparison(pairs, mean, mean / deviation, float(test.statistic), float(test.pvalue))


def _numbers(values: Sequence[Any] | Array, what: str, *dimensions: int) -> Array:
    """Finite numbers, float64, of one of some numbers of dimensions."""
    try:
        given = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise KDError(f"{what}: found no table of numbers ({error})") from error
    if given.ndim not in dimensions:
        shown = " or ".join(map(str, dimensions))
        raise KDError(f"{what}: found {given.ndim} dimensions; allowed are {shown}")
    if not np.isfinite(given).all():
        raise KDError(f"{what}: found a value that is not finite; allowed are finite numbers")
    return given
