"""Networks that guess, and labels in another order than the outputs, are seen; others are not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igmask.inputs.chance import by_luck


def answers(n, n_classes, top1, seed=0):
    """Labels, and predictions of which a share is right and the rest drawn from the others."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    wrong = (labels + rng.integers(1, n_classes, n)) % n_classes
    return np.where(rng.random(n) < top1, labels, wrong), labels


@pytest.mark.parametrize(
    ("n", "n_classes", "top1"), [(64, 1000, 0.6), (64, 10, 0.5), (300, 2, 0.7)]
)
def test_a_network_that_knows_its_classes_is_believed(n, n_classes, top1):
    predicted, labels = answers(n, n_classes, top1)
    assert by_luck(predicted, labels, n_classes) is None


def test_labels_in_alphabetical_order_of_their_numbers_are_seen():
    """Right about everything, and two of twelve folders are where their number says."""
    alphabetical = np.array(sorted(range(12), key=str))
    folders = np.repeat(np.arange(12), 5)
    level, says = by_luck(alphabetical[folders], folders, 12)
    assert level == "warning"
    assert "16.7 % of 60 original images" in says
    assert "in the order of the network's outputs?" in says


def test_a_network_that_says_one_class_of_everything_is_seen_whatever_the_shares_of_the_labels():
    labels = np.array([3] * 70 + [1] * 30)
    level, says = by_luck(np.full(100, 3), labels, 10)
    assert level == "error"
    assert "70.0 % of 100" in says
    assert "100.0 % of its predictions are class 3" in says


def test_images_of_one_class_are_no_reason_to_doubt_a_network_that_knows_it():
    assert by_luck(np.full(50, 3), np.full(50, 3), 10) is None
    assert by_luck(np.full(50, 2), np.full(50, 3), 10)


def test_few_images_say_nothing():
    assert by_luck(np.zeros(9, int), np.ones(9, int), 2) is None
    assert by_luck(np.zeros(10, int), np.ones(10, int), 2)


@given(st.integers(0, 2**32 - 1), st.integers(2, 50), st.integers(10, 400))
def test_predictions_that_have_nothing_to_do_with_the_labels_seldom_pass(seed, n_classes, n):
    """One in forty may look better than chance; none that is below it."""
    labels, predicted = np.random.default_rng(seed).integers(0, n_classes, (2, n))
    if (predicted == labels).mean() <= 1 / n_classes:
        assert by_luck(predicted, labels, n_classes)[0] == "error"


def test_one_in_forty_guessing_networks_looks_better_than_chance():
    """By the interval's definition; those are warned of, all but one in a thousand."""
    rng = np.random.default_rng(0)
    levels = [(by_luck(*rng.integers(0, 10, (2, 200)), 10) or ["none"])[0] for _ in range(1000)]
    assert levels.count("error") > 940
    assert levels.count("none") < 10


@pytest.mark.parametrize(("n", "n_classes", "top1"), [(10, 2, 0.8), (16, 2, 0.8), (12, 3, 0.6)])
def test_few_images_of_an_honest_network_are_no_error(n, n_classes, top1):
    found = [by_luck(*answers(n, n_classes, top1, seed), n_classes) for seed in range(500)]
    assert sum(said is not None and said[0] == "error" for said in found) < 75


def test_one_class_is_nothing_to_be_right_about():
    assert by_luck(np.zeros(20, int), np.zeros(20, int), 1) is None
