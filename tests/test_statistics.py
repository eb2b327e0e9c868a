"""Paired comparisons against scipy's tests, by hand, and in every degenerate case."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from recbole_kd.errors import KDError
from recbole_kd.statistics import (
    Comparison,
    Summary,
    by_seed,
    by_user,
    correct,
    holm,
    mean_by_user,
    summarise,
)

BASE = {2020: 0.30, 2021: 0.32, 2022: 0.31}
BETTER = {2022: 0.33, 2020: 0.33, 2021: 0.34}
"""Differences 0.03, 0.02, 0.02 by seed; not in the same order."""


def random_pairs(seed: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    first = generator.random(pairs)
    return first, first * 0.9 + generator.normal(0, 0.2, pairs)


# -- the test ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [2, 3, 5, 50, 5000])
def test_both_comparisons_are_scipys_paired_t_test(pairs: int) -> None:
    first, second = random_pairs(pairs, pairs)
    seeds = [dict(enumerate(values.tolist())) for values in (first, second)]
    wanted = stats.ttest_rel(first, second, alternative="two-sided")
    for found in (by_user(first, second), by_seed(*seeds)):
        assert found.pairs == pairs
        assert found.statistic == pytest.approx(wanted.statistic, rel=1e-10)
        assert found.p_value == pytest.approx(wanted.pvalue, rel=1e-8)
        differences = first - second
        assert found.difference == pytest.approx(differences.mean())
        assert found.effect_size == pytest.approx(differences.mean() / differences.std(ddof=1))
        assert found.reason == ""


def test_a_comparison_by_hand() -> None:
    """Mean 7/300, deviation sqrt(1/3)/100: t is 7 with two degrees of freedom."""
    found = by_seed(BETTER, BASE)
    assert found.pairs == 3
    assert found.difference == pytest.approx(0.07 / 3)
    assert found.effect_size == pytest.approx(7 / math.sqrt(3))
    assert found.statistic == pytest.approx(7)
    # The distribution function of t with two degrees of freedom has a closed form.
    assert found.p_value == pytest.approx(1 - 7 / math.sqrt(2 + 49))


def test_the_sign_says_who_is_better_and_p_does_not() -> None:
    up, down = by_seed(BETTER, BASE), by_seed(BASE, BETTER)
    for name in ("difference", "effect_size", "statistic"):
        assert getattr(up, name) > 0
        assert getattr(down, name) == -getattr(up, name)
    assert up.p_value == down.p_value
    # Neither of the one-sided tests: half of it is the right one's p.
    right, wrong = (
        stats.ttest_rel([BETTER[s] for s in BASE], list(BASE.values()), alternative=a).pvalue
        for a in ("greater", "less")
    )
    assert up.p_value == pytest.approx(2 * right)
    assert wrong > 0.9


def test_users_are_averaged_over_the_seeds_first() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.random((3, 40)), generator.random((2, 40))
    found = by_user(first, second)
    assert found == by_user(first.mean(axis=0), second.mean(axis=0))
    assert found.pairs == 40
    assert by_user(first[:1], second[0]) == by_user(first[0], second[:1])


def test_the_order_of_pairs_does_not_matter() -> None:
    first, second = random_pairs(3, 30)
    order = np.random.default_rng(1).permutation(30)
    one, two = by_user(first, second), by_user(first[order], second[order])
    assert one.p_value == pytest.approx(two.p_value, rel=1e-9)
    assert one.effect_size == pytest.approx(two.effect_size, rel=1e-9)
    assert by_user(first, second[order]).p_value != pytest.approx(one.p_value, rel=1e-3)


def test_the_level_is_held_where_there_is_no_difference() -> None:
    generator = np.random.default_rng(7)
    draws = generator.normal(size=(2, 2000, 6))
    found = [by_user(a, b).p_value for a, b in zip(*draws, strict=True)]
    below = np.mean([p is not None and p < 0.05 for p in found])
    assert 0.035 < below < 0.065


# -- nothing to test ---------------------------------------------------------------------------


def test_one_seed_has_a_difference_and_no_test() -> None:
    found = by_seed({1: 0.3}, {1: 0.2})
    assert found == Comparison(1, pytest.approx(0.1), reason="one seed; a test needs two")


def test_no_pair_has_nothing() -> None:
    assert by_seed({}, {}) == Comparison(0, None, reason="no seed")
    assert by_user([], []) == Comparison(0, None, reason="no user")


def test_equal_methods_differ_by_zero() -> None:
    values = np.random.default_rng(0).random(9)
    found = by_user(values, values.copy())
    assert found == Comparison(9, 0.0, reason="the differences of all 9 users are zero")


@pytest.mark.parametrize("scale", [2.0**-40, 1.0, 2.0**30])
def test_rounding_is_no_variation(scale: float) -> None:
    """0.3 - 0.2 and 0.4 - 0.3 differ in the last digit."""
    first, second = np.array([0.3, 0.4, 0.8]) * scale, np.array([0.2, 0.3, 0.7]) * scale
    assert np.ptp(first - second) > 0
    found = by_user(first, second)
    assert found.difference == pytest.approx(0.1 * scale)
    assert (found.effect_size, found.statistic, found.p_value) == (None, None, None)
    assert found.reason == "the differences of all 3 users are the same"
    found = by_user(first + np.array([0, 0, 1e-9]) * scale, second)
    assert found.p_value is not None
    assert found.p_value < 1e-10


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: by_seed(BASE, {2020: 0.3}), "found the seeds 2021, 2022 for one"),
        (lambda: by_seed({1: math.nan, 2: 0.1}, {1: 0.1, 2: 0.1}), "not finite"),
        (lambda: by_user([0.1, 0.2], [0.1]), "by user: found 2 and 1 values"),
        (lambda: by_user([0.1, math.inf], [0.1, 0.2]), "not finite"),
        (lambda: by_user(np.zeros((0, 3)), np.zeros(3)), "found no seed"),
        (lambda: by_user(np.zeros((1, 1, 3)), np.zeros(3)), "found 3 dimensions; allowed are 1 or"),
        (lambda: by_user([[0.1, 0.2], [0.1]], [0.1, 0.2]), "found no table of numbers"),
        (lambda: summarise([0.1, math.nan]), "not finite"),
        (lambda: mean_by_user(["a", "b"], [0.1]), "found 1 for 2 users"),
        (lambda: holm([0.1, 1.5]), "allowed are 0 to 1"),
        (lambda: holm([math.nan]), "allowed are 0 to 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(call: Any, part: str) -> None:
    with pytest.raises(KDError, match=part) as caught:
        call()
    assert "\n" not in str(caught.value)


# -- means -------------------------------------------------------------------------------------


def test_mean_and_sample_deviation() -> None:
    assert summarise([2, 4, 4, 4, 5, 5, 7, 9]) == Summary(8, 5.0, pytest.approx(math.sqrt(32 / 7)))
    assert summarise([0.25]) == Summary(1, 0.25, None, "one value has no deviation")
    assert summarise([]) == Summary(0, None, None, "no value")
    assert summarise([0.5, 0.5]) == Summary(2, 0.5, 0.0)


def test_rankings_of_a_user_are_averaged() -> None:
    users, values = mean_by_user(["b", "a", "b", "c", "b"], [1, 0, 0, 0.5, 0.5])
    assert users.tolist() == ["a", "b", "c"]
    assert values.tolist() == [0, 0.5, 0.5]
    users, values = mean_by_user(np.array([], dtype=str), [])
    assert (len(users), len(values)) == (0, 0)


# -- Holm --------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    """0.01 * 4; 0.02 * 3; 0.03 * 2; and 0.04 * 1 is raised to what came before it."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.005, 0.03, 0.5, 0.9]) == pytest.approx([0.02, 0.09, 1, 1])
    assert holm([0.3]) == [0.3]
    assert holm([]) == []
    assert holm([0.0, 1.0]) == [0.0, 1.0]


def rejected(ps: list[float], level: float) -> set[int]:
    """Holm's procedure as he states it: step down until the first p that is too large."""
    found: set[int] = set()
    for step, place in enumerate(sorted(range(len(ps)), key=lambda n: ps[n])):
        if ps[place] > level / (len(ps) - step):
            break
        found.add(place)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_holm_rejects_what_his_procedure_rejects(seed: int) -> None:
    ps = (np.random.default_rng(seed).random(12) ** 3).tolist()
    corrected = holm(ps)
    for level in (0.01, 0.05, 0.2, 0.7):
        below = {n for n, p in enumerate(corrected) if p is not None and p <= level}
        assert below == rejected(ps, level)


def test_holm_follows_permutations_and_keeps_the_order_of_p() -> None:
    ps = [0.02, 0.02, 0.001, 0.7]
    corrected = dict(enumerate(holm(ps)))
    for order in itertools.permutations(range(4)):
        assert holm([ps[n] for n in order]) == [corrected[n] for n in order]
    assert corrected[0] == corrected[1]
    found = [p for p in corrected.values() if p is not None]
    assert all(p <= q <= min(1, 4 * p) for p, q in zip(ps, found, strict=True))


def test_untested_comparisons_count_in_no_family() -> None:
    assert holm([None, 0.01, None, 0.02]) == [None, 0.02, None, 0.02]
    assert holm([None]) == [None]
    family = [by_seed(BETTER, BASE), by_seed({1: 0.1}, {1: 0.2}), by_seed(BASE, BETTER)]
    found = correct(family)
    assert [one.corrected for one in found] == [2 * found[0].p_value, None, 2 * found[2].p_value]
    assert [one.pairs for one in found] == [3, 1, 3]
    assert family[0].corrected is None
