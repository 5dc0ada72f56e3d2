"""Images drawn anew, against every way to draw them, SciPy and simulation."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from igmask.statistics.bootstrap import interval, replicates


def frame(values, **more):
    values = np.asarray(values, dtype=float)
    names = [f"{i:03}.png" for i in range(len(values))]
    return pd.DataFrame({"a": values, **more}, index=names)


def test_replicates_are_as_frequent_as_all_ways_to_draw_from_each_class(monkeypatch):
    monkeypatch.setattr("igmask.statistics.bootstrap._FEW", 2)  # all ways of ten are too many
    values, classes = np.array([0.0, 1, 5, 2, 9]), np.array([4, 4, 4, 7, 7])
    every = [
        (values[[*few]].sum() + values[[*rest]].sum()) / 5
        for few in product(range(3), repeat=3)
        for rest in product(range(3, 5), repeat=2)
    ]
    expected = dict(zip(*np.unique(np.round(every, 9), return_counts=True), strict=True))
    found = np.round(replicates(frame(values), classes, seed=0, n=40_000)["a"], 9)
    shares = found.value_counts(normalize=True)
    assert set(shares.index) == set(expected)
    for value, count in expected.items():
        assert shares[value] == pytest.approx(count / len(every), abs=0.01)


def test_intervals_are_scipys():
    rng = np.random.default_rng(0)
    values = rng.exponential(size=300)
    low, high = interval(replicates(frame(values), np.zeros(300, int), seed=1)["a"])
    of_scipy = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=9999, random_state=2
    ).confidence_interval
    assert (low, high) == pytest.approx((of_scipy.low, of_scipy.high), abs=0.02)


def test_neither_order_nor_other_columns_matter():
    rng = np.random.default_rng(0)
    values = frame(rng.random(50), b=rng.random(50))
    classes = rng.integers(3, size=50)
    found = replicates(values, classes, seed=5, n=100)
    order = rng.permutation(50)
    shuffled = replicates(values.iloc[order], classes[order], seed=5, n=100)
    pd.testing.assert_frame_equal(found, shuffled)
    alone = replicates(values[["b"]], classes, seed=5, n=100)
    np.testing.assert_allclose(alone["b"], found["b"], rtol=1e-12)
    longer = replicates(values, classes, seed=5, n=130)
    np.testing.assert_allclose(longer[:100], found, rtol=1e-12)


def test_all_columns_have_the_same_images():
    rng = np.random.default_rng(0)
    values = rng.random(80)
    found = replicates(frame(values, b=values + 0.25), np.zeros(80, int), seed=0, n=200)
    np.testing.assert_allclose(found["b"] - found["a"], 0.25)
    assert found["a"].std() > 0.01


def test_missing_values_are_left_out_of_their_column_alone():
    values = frame([1.0, 2, 3, 4], b=[1.0, np.nan, 3, np.nan])
    found = replicates(values, np.zeros(4, int), seed=0, n=500)
    assert found["a"].between(1, 4).all()
    assert found["b"].dropna().between(1, 3).all()
    assert found["b"].isna().sum() in range(15, 50)  # (1/2)⁴ of 500 have none of its images
    assert found["b"].mean() == pytest.approx(2, abs=0.1)


def test_a_column_of_nothing_is_nothing():
    found = replicates(frame([1.0, 2], b=[np.nan, np.nan]), np.zeros(2, int), seed=0, n=100)
    assert np.isnan(interval(found["b"])).all()


def test_names_that_are_there_twice_are_refused():
    values = pd.DataFrame({"a": [1.0, 2]}, index=["x", "x"])
    with pytest.raises(ValueError, match="names of their own"):
        replicates(values, np.zeros(2, int), seed=0)


def test_intervals_cover_what_they_should():
    """Of a mean that is a difference of two shares, 100 images of five classes."""
    rng = np.random.default_rng(0)
    classes = np.arange(100) % 5
    p_first, p_second = np.array([[0.1, 0.3, 0.5, 0.2, 0.4], [0.3, 0.5, 0.6, 0.2, 0.9]])
    covered = []
    for seed in range(400):
        first = rng.random(100) < p_first[classes]
        second = rng.random(100) < p_second[classes]
        values = frame(first.astype(float) - second)
        low, high = interval(replicates(values, classes, seed=seed, n=400)["a"])
        covered.append(low <= (p_first - p_second).mean() <= high)
    assert np.mean(covered) >= 0.92


def test_classes_of_one_image_leave_the_interval_as_wide_as_it_is():
    rng = np.random.default_rng(0)
    values = frame(rng.random(400) < 0.3)
    low, high = interval(replicates(values, np.arange(400), seed=0)["a"])
    spread = 2 * 1.96 * values["a"].std() / 20
    assert high - low == pytest.approx(spread, rel=0.1)
    few = interval(replicates(values, np.arange(400) // 2, seed=0)["a"])  # of two images each
    assert few[1] - few[0] == pytest.approx(spread, rel=0.1)
