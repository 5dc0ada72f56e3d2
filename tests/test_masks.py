"""What plain NumPy makes of scores, masks and fills, by hand; areas; random masks."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as drawn_arrays
from selection import masks_by_sort

from igmask import kernels, plain
from igmask.kernels import to_pixels
from igmask.plain import area
from igmask.steps.controls import random_like

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
WITH_TIES = st.one_of(FINITE, st.integers(-3, 3).map(float))


@settings(max_examples=200, deadline=None)
@given(
    scores=drawn_arrays(np.float32, st.tuples(st.just(3), st.integers(1, 40)), elements=WITH_TIES),
    percents=st.lists(st.sampled_from([0.01, 12.34, 50, 90, 100]), min_size=1, max_size=3),
    by=st.sampled_from(plain.SELECTIONS),
)
@example(np.float32([[1, -8, -5], [-0.0, 1, 0], [1, 1e-30, 2e-30]]), [12.34, 50], "count")
def test_the_selection_is_that_of_a_sort_in_exact_arithmetic(scores, percents, by):
    found = list(plain.select(scores, percents, by=by))
    expected = [masks_by_sort(scores, p, by) for p in percents]
    np.testing.assert_array_equal(found, expected)
    bits = kernels.select_bits(torch.from_numpy(scores), tuple(percents), by=by)
    np.testing.assert_array_equal(bits.numpy(), [plain.pack(mask) for mask in expected])


def test_the_selection_from_scores_of_images():
    scores = np.random.default_rng(0).standard_normal((20, 25, 26), dtype=np.float32) ** 3
    for p, by in ((30, "mass"), (50, "count"), (90, "mass")):
        expected = masks_by_sort(scores, p, by)
        [found] = plain.select(scores, [p], by=by)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(kernels.select(torch.from_numpy(scores), p, by=by), expected)


def test_no_image_and_no_p_select_nothing():
    scores = np.zeros((0, 5, 7), dtype=np.float32)
    assert [mask.shape for mask in plain.select(scores, [50, 90])] == [(0, 5, 7)] * 2
    assert list(plain.select(np.ones((2, 5, 7)), [])) == []
    assert plain.pack(scores > 0).shape == (0, 5)
    assert plain.unpack(np.zeros((0, 5), dtype=np.uint8), (5, 7)).shape == (0, 5, 7)


@pytest.mark.parametrize("score", plain.SCORES)
def test_scores_are_sums_over_a_square(score):
    values = np.random.default_rng(0).integers(-9, 9, (3, 4, 5, 27)).astype(np.float32)
    expected = {
        "positive": np.where(values > 0, values, 0).sum(-1),
        "absolute": np.abs(values).sum(-1),
        "signed": values.sum(-1),
        "absolute-sum": np.abs(values.sum(-1)),
    }[score]
    parts = np.stack([values.clip(min=0).sum(-1), -values.clip(max=0).sum(-1)], axis=1)
    np.testing.assert_array_equal(plain.score_parts(parts, score), expected)
    np.testing.assert_array_equal(kernels.score_parts(torch.from_numpy(parts), score), expected)


def test_bits_are_the_kernels_there_and_back():
    mask = np.random.default_rng(0).random((3, 5, 7)) < 0.5
    np.testing.assert_array_equal(plain.pack(mask), kernels.pack(torch.from_numpy(mask)).numpy())
    np.testing.assert_array_equal(plain.unpack(plain.pack(mask), (5, 7)), mask)
    assert plain.pack(np.array([[True, False, False, True] * 2 + [True]])).tolist() == [[0x99, 1]]


def test_pixels_of_squares_are_the_kernels():
    values = np.random.default_rng(0).random((2, 3, 4, 5))
    expected = np.kron(values, np.ones((3, 3)))[..., :10, :13]
    np.testing.assert_array_equal(plain.to_pixels(values, 10, 13, side=3), expected)
    of_tensor = kernels.to_pixels(torch.from_numpy(values), 10, 13, side=3)
    np.testing.assert_array_equal(of_tensor.numpy(), expected)
    with pytest.raises(ValueError, match=r"10×16 image has \(4, 6\) squares"):
        plain.to_pixels(values, 10, 16)


@pytest.mark.parametrize("fill", ["black", "mean", "image-mean"])
def test_fills_are_colours(fill):
    images, mean = np.random.default_rng(0).random((3, 6, 7, 3)), [0.1, 0.2, 0.3]
    found = plain.fill_values(images, fill, mean)
    expected = {
        "black": np.zeros((1, 1, 1, 3)),
        "mean": np.reshape(mean, (1, 1, 1, 3)),
        "image-mean": np.array([[[image.reshape(-1, 3).sum(0) / 42]] for image in images]),
    }[fill]
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    planes = torch.from_numpy(images).permute(0, 3, 1, 2)
    of_tensor = kernels.fill_values(planes, fill, torch.tensor(mean)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(of_tensor.numpy(), expected, rtol=1e-6)
    common = plain.common_fill(fill, 3, mean)
    if fill == "image-mean":
        assert common is None
    else:
        np.testing.assert_array_equal(common, expected)


@pytest.mark.parametrize(
    ("dtype", "expected"), [(np.uint8, np.float32), (np.float16, np.float32), (float, float)]
)
def test_fills_are_no_narrower_than_float32(dtype, expected):
    images = np.ones((2, 3, 3, 3), dtype)
    assert {plain.fill_values(images, f, [0] * 3).dtype for f in plain.FILLS} == {
        np.dtype(expected)
    }


def test_unknown_names_are_refused():
    with pytest.raises(
        ValueError, match="unknown fill 'pink'; choose from black, mean, image-mean"
    ):
        plain.fill_values(np.zeros((1, 2, 2, 3)), "pink")
    with pytest.raises(ValueError, match=r"unknown score \['signed'\]; choose from positive"):
        plain.score_parts(np.zeros((1, 2, 3, 3)), ["signed"])
    with pytest.raises(ValueError, match="two decimals"):
        list(plain.select(np.ones((1, 4)), [12.345]))


@pytest.mark.parametrize(
    ("height", "width", "side"), [(32, 32, 3), (10, 14, 3), (9, 9, 3), (5, 4, 7)]
)
def test_area_counts_pixels(height, width, side):
    shape = (4, -(-height // side), -(-width // side))
    mask = np.random.default_rng(0).random(shape) < 0.4
    pixels = to_pixels(torch.from_numpy(mask), height, width, side=side)
    expected = pixels.double().mean(dim=(1, 2)).numpy()
    np.testing.assert_allclose(area(mask, height, width, side=side), expected, rtol=1e-14)


@pytest.mark.parametrize("size", [32, 64, 224, 299])
def test_random_masks_have_the_area_of_selections_that_avoid_the_border(size):
    n_squares = -(-size // 3)
    rng = np.random.default_rng(size)
    away = np.minimum(np.arange(n_squares), np.arange(n_squares)[::-1]) / n_squares
    n_images = 1000 if size < 100 else 50  # a square of a small image is much of it
    scores = rng.random((n_images, n_squares, n_squares)) * np.minimum.outer(away, away)
    for mask in plain.select(scores, [90, 50], by="count"):
        drawn = random_like(mask, np.arange(n_images), size, size, seed=0)
        asked, found = (
            to_pixels(torch.from_numpy(m), size, size).double().mean(dim=(1, 2)).numpy()
            for m in (mask, drawn)
        )
        assert np.abs(found - asked).max() < 9 / size**2  # a square
        assert abs(found.mean() - asked.mean()) < 0.0005
        assert (mask != drawn).mean() > 0.1


def test_random_masks_have_as_many_squares_where_all_are_whole():
    rng = np.random.default_rng(0)
    mask = rng.random((20, 11, 11)) < rng.random((20, 1, 1))
    drawn = random_like(mask, np.arange(20), 33, 33, seed=0)
    np.testing.assert_array_equal(drawn.sum((1, 2)), mask.sum((1, 2)))
    assert drawn.shape == mask.shape
    assert not np.array_equal(drawn, mask)
    for whole in (np.zeros((2, 4, 5), dtype=bool), np.ones((2, 4, 5), dtype=bool)):
        found = random_like(whole, np.arange(2), 10, 13, seed=0)
        np.testing.assert_array_equal(found, whole)


def test_random_masks_depend_on_seed_and_position_only():
    mask = np.zeros((6, 5, 5), dtype=bool)
    mask[:, 0] = True
    positions = np.array([3, 9, 1, 7, 3, 2])
    together = random_like(mask, positions, 14, 13, seed=1)
    assert np.array_equal(together[0], together[4])
    assert not np.array_equal(together[0], together[1])
    for row in range(6):
        alone = random_like(mask[row : row + 1], positions[row : row + 1], 14, 13, seed=1)
        assert np.array_equal(alone[0], together[row])
    assert not np.array_equal(random_like(mask, positions, 14, 13, seed=2), together)


def test_random_masks_of_more_squares_contain_those_of_fewer():
    order = np.random.default_rng(0).permutation(40)
    grown = [np.isin(np.arange(40), order[:n]).reshape(1, 5, 8).repeat(50, 0) for n in range(41)]
    drawn = [random_like(mask, np.arange(50), 13, 22, seed=0) for mask in grown]
    assert all((small <= large).all() for small, large in pairwise(drawn))


def test_random_squares_are_spread_evenly():
    mask = np.zeros((4000, 1, 4), dtype=bool)
    mask[:, 0, 0] = True
    counts = random_like(mask, np.arange(4000), 3, 12, seed=0).sum(0).ravel()
    assert np.abs(counts - 1000).max() < 150  # five standard deviations


def test_squares_of_the_border_are_drawn_as_often_as_others():
    mask = np.zeros((4000, 6, 6), dtype=bool)
    mask[:, :3] = True
    shares = random_like(mask, np.arange(4000), 16, 17, seed=0).mean(0)
    expected = 3 * 3 * 17 / (16 * 17)  # of the pixels, and so about of the squares
    assert np.abs(shares - expected).max() < 0.04  # five standard deviations
