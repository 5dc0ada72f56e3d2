"""What plain NumPy makes of scores, masks and fills, by hand; areas; random masks."""

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

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
WITH_TIES = st.one_of(FINITE, st.integers(-3, 3).map(float))


@settings(max_examples=200, deadline=None)
@given(
    scores=drawn_arrays(np.float32, st.tuples(st.just(3), st.integers(1, 40)), elements=WITH_TIES),
    percents=st.lists(st.sampled_from([0.01, 12.34, 50, 90, 100]), min_size=1, max_size=3),
    by=st.sampled_from(["mass", "count"]),
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
    how = {"kept": np.ones((2, 3, 3), dtype=bool), "solve": kernels.inpainted_arrays}
    found = {plain.fill_values(images, fill, [0] * 3, **how).dtype for fill in plain.FILLS}
    assert found == {np.dtype(expected)}


def test_unknown_names_are_refused():
    with pytest.raises(
        ValueError, match="unknown fill 'pink'; choose from black, white, mean, image-mean"
    ):
        plain.fill_values(np.zeros((1, 2, 2, 3)), "pink")
    with pytest.raises(ValueError, match="'noisy-linear' depends on what is kept"):
        plain.fill_values(np.zeros((1, 2, 2, 3)), "noisy-linear")
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


@pytest.mark.parametrize(("height", "width"), [(32, 32), (14, 13), (9, 12), (2, 3)])
def test_by_area_the_fewest_pixels_that_reach_it_are_selected(height, width):
    rng = np.random.default_rng(height)
    squares = plain.grid(height, width, 3)
    scores = rng.random((20, *squares)).round(1) + 0.1
    sizes = plain.pixels_of_squares(squares, height, width, 3)
    ps = [0.01, 12.5, 50, 99.99, 100]
    for p, mask in zip(ps, plain.select(scores, ps, by="area", sizes=sizes), strict=True):
        for one, chosen in zip(scores.reshape(20, -1), mask.reshape(20, -1), strict=True):
            order = sorted(range(len(one)), key=lambda k: (-one[k], k))
            n = next(
                n for n in range(len(one) + 1) if 100 * sizes[order[:n]].sum() >= p * sizes.sum()
            )
            assert set(np.flatnonzero(chosen)) == set(order[:n])


def test_by_area_whole_squares_are_by_count_and_no_score_selects_nothing():
    scores = np.random.default_rng(0).random((9, 4, 5)) - 0.3
    scores[4] = -1
    sizes = plain.pixels_of_squares((4, 5), 12, 15, 3)
    ps = [5, 33.3, 100]
    by_area, by_count = (
        plain.select(scores, ps, by="area", sizes=sizes),
        plain.select(scores, ps, by="count"),
    )
    for one, other in zip(by_area, by_count, strict=True):
        np.testing.assert_array_equal(one, other)
        assert not one[4].any()
    with pytest.raises(ValueError, match="by area, the sizes of the squares are needed"):
        list(plain.select(scores, ps, by="area"))
    found = kernels.select(torch.from_numpy(scores), 33.3, by="area", sizes=torch.from_numpy(sizes))
    np.testing.assert_array_equal(found, next(plain.select(scores, [33.3], by="area", sizes=sizes)))
