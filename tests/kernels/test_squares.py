"""Square scores against loops over pixels, partial squares at the border included."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igmask.kernels import (
    attribution_and_parts,
    attribution_parts,
    grid,
    score_parts,
    square_parts,
    square_scores,
)
from igmask.plain import SCORES

BY_HAND = {
    "positive": lambda phi: np.maximum(phi, 0).sum(),
    "absolute": lambda phi: np.abs(phi).sum(),
    "signed": lambda phi: phi.sum(),
    "absolute-sum": lambda phi: abs(phi.sum()),
}


def by_loops(attribution, side, score):
    n, _, height, width = attribution.shape
    rows, columns = grid(height, width, side)
    scores = np.zeros((n, rows, columns))
    for image in range(n):
        for i in range(rows):
            for j in range(columns):
                square = attribution[image, :, i * side : (i + 1) * side, j * side : (j + 1) * side]
                scores[image, i, j] = BY_HAND[score](square)
    return scores


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [(224, 3, 75), (299, 3, 100), (32, 3, 11), (64, 3, 22), (64, 64, 1), (5, 7, 1), (6, 2, 3)],
)
def test_grid_counts_partial_squares(size, side, expected):
    assert grid(size, size, side) == (expected, expected)


@pytest.mark.parametrize("size", [224, 299, 32, 64])
def test_border_squares_hold_only_the_pixels_that_are_left(size):
    counts = square_scores(torch.ones(1, 1, size, size, dtype=torch.float64))[0]
    rest = size % 3 or 3
    assert counts[0, 0] == 9
    assert counts[-1, 0] == counts[0, -1] == 3 * rest
    assert counts[-1, -1] == rest * rest
    assert counts.sum() == size * size


@settings(max_examples=40, deadline=None)
@given(
    score=st.sampled_from(list(SCORES)),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 11), st.integers(1, 11)),
    side=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_scores_equal_loops_over_pixels(score, shape, side, seed):
    attribution = np.random.default_rng(seed).normal(size=shape)
    found = square_scores(torch.from_numpy(attribution), side=side, score=score)
    np.testing.assert_allclose(found.numpy(), by_loops(attribution, side, score), atol=1e-12)


def test_parts_are_not_negative_and_differ_by_the_sum():
    attribution = torch.randn(2, 3, 10, 13, dtype=torch.float64)
    parts = square_parts(attribution)
    assert (parts >= 0).all()
    total = (parts[:, 0] - parts[:, 1]).sum(dim=(1, 2))
    torch.testing.assert_close(total, attribution.sum(dim=(1, 2, 3)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    attribution = torch.full((1, 3, 64, 64), 1.0, dtype=dtype)
    scores = square_scores(attribution, side=64)
    assert scores.dtype == torch.float32
    assert scores.item() == 3 * 64 * 64  # beyond what either half type can hold exactly


def test_nan_stays_visible():
    attribution = torch.zeros(1, 1, 6, 6)
    attribution[0, 0, 4, 4] = float("nan")
    assert square_scores(attribution)[0].isnan().tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize(
    "attribution", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.int64)]
)
def test_wrong_attribution_is_named(attribution):
    with pytest.raises(ValueError, match="square_parts: expected"):
        square_parts(attribution)


def test_unknown_score_and_side_are_named():
    with pytest.raises(ValueError, match="'largest'"):
        score_parts(torch.zeros(1, 2, 3, 3), "largest")
    with pytest.raises(ValueError, match="side"):
        square_parts(torch.zeros(1, 3, 8, 8), side=0)


def test_parts_without_the_attribution_are_those_of_the_attribution():
    image, baseline, slope = torch.randn(3, 2, 3, 7, 8, dtype=torch.float64)
    phi, parts = attribution_and_parts(image, baseline, slope, side=3)
    torch.testing.assert_close(phi, (image - baseline) * slope)
    torch.testing.assert_close(parts, square_parts(phi, side=3))
    assert attribution_parts(image, baseline, slope, side=3).equal(parts)
    last = [t.to(memory_format=torch.channels_last) for t in (image, baseline, slope)]
    torch.testing.assert_close(attribution_parts(*last, side=3), parts)


def test_what_does_not_fit_an_attribution_is_named():
    x = torch.rand(1, 3, 6, 6)
    with pytest.raises(ValueError, match=r"attribution_parts: .*torch.float64"):
        attribution_parts(x, x, x.double())
    with pytest.raises(ValueError, match=r"attribution_and_parts: .*\(1, 3, 6, 5\)"):
        attribution_and_parts(x, x[..., 1:], x)


def test_scores_can_be_differentiated():
    phi = torch.randn(1, 3, 7, 8, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(square_scores(phi, side=3, score="signed").sum(), phi)
    assert slope.eq(1).all()
