"""Areas and random masks."""

import numpy as np
import pytest
import torch

from igmask.kernels import to_pixels
from igmask.masks import area, random_like


@pytest.mark.parametrize(
    ("height", "width", "side"), [(32, 32, 3), (10, 14, 3), (9, 9, 3), (5, 4, 7)]
)
def test_area_counts_pixels(height, width, side):
    shape = (4, -(-height // side), -(-width // side))
    mask = torch.rand(shape) < 0.4
    expected = to_pixels(mask, height, width, side=side).double().mean(dim=(1, 2))
    torch.testing.assert_close(area(mask, height, width, side=side), expected)


def test_random_masks_have_as_many_squares_for_each_image():
    mask = torch.rand(20, 11, 11) < torch.rand(20, 1, 1)
    drawn = random_like(mask, np.arange(20), seed=0)
    assert drawn.sum((1, 2)).equal(mask.sum((1, 2)))
    assert drawn.shape == mask.shape
    assert not drawn.equal(mask)


def test_random_masks_depend_on_seed_and_position_only():
    mask = torch.zeros(6, 5, 5, dtype=torch.bool)
    mask[:, 0] = True
    positions = np.array([3, 9, 1, 7, 3, 2])
    together = random_like(mask, positions, seed=1)
    assert together[0].equal(together[4])
    assert not together[0].equal(together[1])
    for row in range(6):
        alone = random_like(mask[row : row + 1], positions[row : row + 1], seed=1)
        assert alone[0].equal(together[row])
    assert not random_like(mask, positions, seed=2).equal(together)


def test_random_masks_of_more_squares_contain_those_of_fewer():
    few, many = torch.zeros(2, 3, 40, dtype=torch.bool).unbind(0)
    few, many = few.view(3, 5, 8), many.view(3, 5, 8)
    few[:, 0, :3] = True
    many[:, :2] = True
    positions = np.arange(3)
    small, large = (random_like(m, positions, seed=0) for m in (few, many))
    assert (small & ~large).sum() == 0


def test_random_squares_are_spread_evenly():
    mask = torch.zeros(4000, 1, 4, dtype=torch.bool)
    mask[:, 0, 0] = True
    counts = random_like(mask, np.arange(4000), seed=0).sum(0).flatten()
    assert (counts - 1000).abs().max() < 150  # five standard deviations
