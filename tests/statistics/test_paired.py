"""Paired comparison against SciPy, statsmodels and simulation."""

import math
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from igmask.statistics.paired import Pairs, holm, interval, log_mid_p, p_text, pairs


def test_pairs_are_counted():
    first = np.array([1, 1, 1, 0, 0, 1], bool)
    second = np.array([1, 0, 0, 0, 1, 1], bool)
    found = pairs(first, second)
    assert found == (2, 2, 1, 1)
    assert found.n == 6
    assert found.difference == pytest.approx(first.mean() - second.mean())


def by_fractions(b, c):
    n, t = b + c, min(b, c)
    f = [Fraction(comb(n, i), 2**n) for i in range(t + 1)]
    return min(Fraction(1), 2 * sum(f) - f[t])


@given(st.integers(0, 60), st.integers(0, 60))
def test_mid_p_is_exact(b, c):
    assert math.exp(log_mid_p(b, c)) == pytest.approx(float(by_fractions(b, c)), rel=1e-12)


@pytest.mark.parametrize(("b", "c"), [(3, 9), (0, 5), (40, 81), (1, 2)])
def test_mid_p_is_what_scipy_and_statsmodels_have_less_half_of_the_middle(b, c):
    half = binom.pmf(min(b, c), b + c, 0.5)
    of_scipy = binomtest(b, b + c, 0.5).pvalue - half
    of_statsmodels = mcnemar([[7, b], [c, 3]], exact=True).pvalue - half
    assert math.exp(log_mid_p(b, c)) == pytest.approx(of_scipy, rel=1e-12)
    assert math.exp(log_mid_p(b, c)) == pytest.approx(of_statsmodels, rel=1e-12)


def test_mid_p_of_many_images_is_beyond_float64():
    found = log_mid_p(3, 40_000)
    expected = by_fractions(3, 40_000)
    assert found == pytest.approx(
        math.log(expected.numerator) - math.log(expected.denominator), rel=1e-12
    )
    assert p_text(found) == "< 1e-300"
    assert p_text(log_mid_p(4, 4)) == "1"
    assert p_text(math.log(0.021)) == "0.021"


def test_no_discordant_pair_is_no_evidence():
    assert log_mid_p(0, 0) == 0.0
    low, high = interval(Pairs(5, 0, 0, 5))
    assert low == -high
    assert 0 < high < 0.5


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_statsmodels(values):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", lambda: None)  # which every call of theirs would do
        expected = multipletests(values, method="holm")[1]
    with np.errstate(divide="ignore"):
        found = np.exp(holm(np.log(values)))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_holm_of_nothing_is_nothing():
    assert holm([]) == []


def drawn(rng, n, p_first, p_second, together, times):
    """Counts of `times` samples of n pairs; `together` is the correlation of the two outcomes."""
    spread = math.sqrt(p_first * (1 - p_first) * p_second * (1 - p_second))
    both = p_first * p_second + together * spread
    cells = [both, p_first - both, p_second - both, 1 - p_first - p_second + both]
    assert min(cells) >= 0
    return rng.multinomial(n, cells, size=times)


@pytest.mark.parametrize("n", [20, 100, 1000])
@pytest.mark.parametrize(
    ("p_first", "p_second", "together"),
    [(0.19, 0.34, 0.3), (0.5, 0.5, 0.0), (0.8, 0.75, 0.6), (0.02, 0.3, 0.1), (0.9, 0.1, 0.05)],
)
def test_intervals_cover_what_they_should(n, p_first, p_second, together):
    rng = np.random.default_rng(0)
    samples = drawn(rng, n, p_first, p_second, together, times=2000)
    bounds = np.array([interval(Pairs(*map(int, of))) for of in samples])
    difference = p_first - p_second
    covered = (bounds[:, 0] <= difference) & (difference <= bounds[:, 1])
    assert covered.mean() >= 0.94


def test_p_values_are_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(1)
    samples = drawn(rng, 2000, 0.3, 0.3, 0.2, times=2000)
    p = np.exp([log_mid_p(int(b), int(c)) for _, b, c, _ in samples])
    for level in (0.05, 0.2, 0.5, 0.8):
        assert (p <= level).mean() == pytest.approx(level, abs=0.03)


def test_swapped_conditions_swap_the_interval_and_not_the_test():
    one, other = Pairs(10, 7, 3, 5), Pairs(10, 3, 7, 5)
    assert interval(one) == pytest.approx([-bound for bound in interval(other)[::-1]])
    assert log_mid_p(7, 3) == log_mid_p(3, 7)
