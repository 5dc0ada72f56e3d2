"""What is read from masks, against least squares by another way, and planted answers."""

import numpy as np
import pytest

from igmask.statistics.probe import FOLDS, folds, of_numbers, probe


def named(n):
    return np.array([f"{i:04}.png" for i in range(n)])


def by_least_squares(bits, labels, dealt):
    """Ridge regression with an intercept, as one overdetermined system; λ = K."""
    classes, n_features = np.unique(labels), bits.shape[1]
    found = np.empty(len(labels), int)
    for fold in range(FOLDS):
        train = dealt != fold
        x, mean = bits[train].astype(float), bits[train].mean(axis=0)
        y = (labels[train][:, None] == classes).astype(float)
        rows = np.vstack([x - mean, np.sqrt(n_features) * np.eye(n_features)])
        wanted = np.vstack([y - y.mean(axis=0), np.zeros((n_features, len(classes)))])
        weights = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        said = (bits[~train] - mean) @ weights + y.mean(axis=0)
        found[~train] = classes[said.argmax(axis=1)]
    return found


@pytest.fixture
def planted():
    """Masks of which some squares are likelier in some classes, 3, 8 and 9."""
    rng = np.random.default_rng(0)
    labels = np.array([3, 8, 9])[rng.integers(3, size=240)]
    likely = rng.random((10, 30))[labels]
    return (rng.random((240, 30)) < 0.3 + 0.5 * likely).astype(np.uint8), labels


def test_a_linear_classifier_is_fitted_to_the_other_folds(planted):
    bits, labels = planted
    names = named(240)
    found = probe(lambda rows: bits[rows], labels, names, seed=0)
    expected = by_least_squares(bits, labels, folds(labels, names, seed=0))
    assert (found == expected).mean() == 1
    assert (found == labels).mean() > 0.6


def test_nothing_is_read_where_there_is_nothing(planted):
    bits, labels = planted
    labels = np.random.default_rng(1).permutation(labels)
    found = probe(lambda rows: bits[rows], labels, named(240), seed=0)
    assert (found == labels).mean() < 0.45


def test_the_order_of_images_does_not_matter(planted):
    bits, labels = planted
    found = probe(lambda rows: bits[rows], labels, named(240), seed=3)
    order = np.random.default_rng(2).permutation(240)
    shuffled = probe(lambda rows: bits[order][rows], labels[order], named(240)[order], seed=3)
    np.testing.assert_array_equal(shuffled, found[order])


def test_folds_are_equal_parts_of_each_class():
    labels = np.repeat([0, 1, 5], [50, 23, 2])
    dealt = folds(labels, named(75), seed=0)
    for label, n in zip((0, 1, 5), (50, 23, 2), strict=True):
        counts = np.bincount(dealt[labels == label], minlength=FOLDS)
        assert counts.sum() == n
        assert counts.max() - counts.min() <= 1
    assert (folds(labels, named(75), seed=1) != dealt).any()


def test_a_number_of_squares_may_tell_the_class_in_any_way():
    """One class has middling numbers: no line of the number itself can tell it from the others."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    numbers = np.array([10, 50, 90])[labels] + rng.integers(-8, 9, size=300)
    features = of_numbers(numbers)
    assert features.sum(axis=1).tolist() == [1] * 300
    found = probe(lambda rows: features[rows], labels, named(300), seed=0)
    assert (found == labels).mean() > 0.9


def test_equal_numbers_are_told_apart_by_nothing():
    features = of_numbers(np.full(20, 7))
    assert (features == features[0]).all()
