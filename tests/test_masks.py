"""Selection as the kernels' definition has it, to the bit; areas; random masks."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as drawn_arrays

from igmask import kernels, masks
from igmask.kernels import to_pixels
from igmask.masks import area, random_like

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
WITH_TIES = st.one_of(FINITE, st.integers(-3, 3).map(float))


@settings(max_examples=200, deadline=None)
@given(
    scores=drawn_arrays(np.float32, st.tuples(st.just(3), st.integers(1, 40)), elements=WITH_TIES),
    percents=st.lists(st.sampled_from([0.01, 12.34, 50, 90, 100]), min_size=1, max_size=3),
    by=st.sampled_from(kernels.SELECTIONS),
)
@example(np.float32([[1, -8, -5], [-0.0, 1, 0], [1, 1e-30, 2e-30]]), [12.34, 50], "count")
def test_the_selection_is_the_kernels_to_the_bit(scores, percents, by):
    found = [masks.pack(mask) for mask in masks.select(scores, percents, by=by)]
    expected = kernels.select_bits(torch.from_numpy(scores), tuple(percents), by=by)
    np.testing.assert_array_equal(found, expected.numpy())


def test_the_selection_is_the_kernels_for_scores_of_images():
    scores = np.random.default_rng(0).standard_normal((20, 25, 26), dtype=np.float32) ** 3
    for p, by in ((30, "mass"), (50, "count"), (90, "mass")):
        expected = kernels.select(torch.from_numpy(scores), p, by=by)
        [found] = masks.select(scores, [p], by=by)
        np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize("score", kernels.SCORES)
def test_scores_are_the_kernels(score):
    parts = np.random.default_rng(0).random((3, 2, 4, 5), dtype=np.float32)
    expected = kernels.score_parts(torch.from_numpy(parts), score)
    np.testing.assert_array_equal(masks.score_parts(parts, score), expected.numpy())


def test_bits_are_the_kernels_there_and_back():
    mask = np.random.default_rng(0).random((3, 5, 7)) < 0.5
    np.testing.assert_array_equal(masks.pack(mask), kernels.pack(torch.from_numpy(mask)).numpy())
    np.testing.assert_array_equal(masks.unpack(masks.pack(mask), (5, 7)), mask)


@pytest.mark.parametrize("step", ["index", "prepare", "mask", "tables", "examples", "verify"])
def test_steps_without_networks_start_without_torch(step):
    module = {"index": "prepare", "mask": "masks"}.get(step, step)
    code = f"import sys, igmask.cli, igmask.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pixels_of_squares_are_the_kernels():
    values = np.random.default_rng(0).random((2, 3, 4, 5))
    expected = kernels.to_pixels(torch.from_numpy(values), 10, 13, side=3)
    np.testing.assert_array_equal(masks.to_pixels(values, 10, 13, side=3), expected.numpy())


@pytest.mark.parametrize("fill", kernels.FILLS)
def test_fills_are_the_kernels(fill):
    images, mean = np.random.default_rng(0).random((3, 6, 7, 3)), [0.1, 0.2, 0.3]
    found = masks.fill_values(images, fill, mean)
    planes = torch.from_numpy(images).permute(0, 3, 1, 2)
    expected = kernels.fill_values(planes, fill, torch.tensor(mean)).expand_as(planes)
    expected = expected.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(np.broadcast_to(found, images.shape), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "side"), [(32, 32, 3), (10, 14, 3), (9, 9, 3), (5, 4, 7)]
)
def test_area_counts_pixels(height, width, side):
    shape = (4, -(-height // side), -(-width // side))
    mask = np.random.default_rng(0).random(shape) < 0.4
    pixels = to_pixels(torch.from_numpy(mask), height, width, side=side)
    expected = pixels.double().mean(dim=(1, 2)).numpy()
    np.testing.assert_allclose(area(mask, height, width, side=side), expected, rtol=1e-14)


def test_random_masks_have_as_many_squares_for_each_image():
    rng = np.random.default_rng(0)
    mask = rng.random((20, 11, 11)) < rng.random((20, 1, 1))
    drawn = random_like(mask, np.arange(20), seed=0)
    np.testing.assert_array_equal(drawn.sum((1, 2)), mask.sum((1, 2)))
    assert drawn.shape == mask.shape
    assert not np.array_equal(drawn, mask)


def test_random_masks_depend_on_seed_and_position_only():
    mask = np.zeros((6, 5, 5), dtype=bool)
    mask[:, 0] = True
    positions = np.array([3, 9, 1, 7, 3, 2])
    together = random_like(mask, positions, seed=1)
    assert np.array_equal(together[0], together[4])
    assert not np.array_equal(together[0], together[1])
    for row in range(6):
        alone = random_like(mask[row : row + 1], positions[row : row + 1], seed=1)
        assert np.array_equal(alone[0], together[row])
    assert not np.array_equal(random_like(mask, positions, seed=2), together)


def test_random_masks_of_more_squares_contain_those_of_fewer():
    few, many = np.zeros((2, 3, 5, 8), dtype=bool)
    few[:, 0, :3] = True
    many[:, :2] = True
    positions = np.arange(3)
    small, large = (random_like(m, positions, seed=0) for m in (few, many))
    assert (small & ~large).sum() == 0


def test_random_squares_are_spread_evenly():
    mask = np.zeros((4000, 1, 4), dtype=bool)
    mask[:, 0, 0] = True
    counts = random_like(mask, np.arange(4000), seed=0).sum(0).ravel()
    assert np.abs(counts - 1000).max() < 150  # five standard deviations
