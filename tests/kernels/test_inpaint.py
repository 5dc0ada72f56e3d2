"""ROAD's fill against a direct solution of its equations, pixel by pixel."""

import itertools

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch

from igmask import plain
from igmask.kernels import inpainted, occlude, to_pixels

BESIDE, DIAGONAL = 1 / 6, 1 / 12


def solved(image, kept):
    """An image (C, H, W) whose pixels that are not kept solve their equations, in float64."""
    _, height, width = image.shape
    at = np.argwhere(~kept)
    number = np.zeros((height, width), dtype=int)
    number[~kept] = np.arange(len(at))
    right, entries = np.zeros((len(at), len(image))), []
    for dy, dx in itertools.product((-1, 0, 1), repeat=2):
        if dy == dx == 0:
            continue
        beside = at + np.array([dy, dx])
        inside = ((beside >= 0) & (beside < (height, width))).all(axis=1)
        k, (y, x) = np.flatnonzero(inside), beside[inside].T  # at the border the diagonal has less
        weight = np.full(len(k), DIAGONAL if dy and dx else BESIDE)
        known = kept[y, x]
        right[k[known]] += weight[known, None] * image[:, y[known], x[known]].T
        entries += [(weight, k, k), (-weight[~known], k[~known], number[y, x][~known])]
    values, rows, columns = map(np.concatenate, zip(*entries, strict=True))
    matrix = scipy.sparse.csc_matrix((values, (rows, columns)))  # with sums of what is in one place
    found = image.astype(np.float64).copy()
    found[:, ~kept] = scipy.sparse.linalg.spsolve(matrix, right).reshape(-1, len(image)).T
    return found


def of_squares(rng, n, size, share):
    squares = torch.from_numpy(rng.random((n, *plain.grid(size, size, 3))) < share)
    return to_pixels(squares, size, size).numpy()


def hole(n, size):
    """All but a corner and a pixel, far from most."""
    kept = np.zeros((n, size, size), dtype=bool)
    kept[:, :3, :3] = kept[:, size // 2, size - 1] = True
    return kept


@pytest.mark.parametrize("size", [1, 2, 5, 16, 33, 64])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.02, "hole"])
def test_filled_pixels_solve_their_equations(size, share):
    rng = np.random.default_rng(size)
    images = rng.random((3, 3, size, size))
    kept = hole(3, size) if share == "hole" else of_squares(rng, 3, size, share)
    kept[:, size // 2, size // 3] = True
    expected = [
        image if mask.all() else solved(image, mask)
        for image, mask in zip(images, kept, strict=True)
    ]
    for dtype in (torch.float32, torch.float64):
        found = inpainted(torch.from_numpy(images).to(dtype), torch.from_numpy(kept))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, atol=1e-4)
        for image, mask, filled in zip(images, kept, found.numpy(), strict=True):
            np.testing.assert_array_equal(filled[:, mask], image[:, mask].astype(filled.dtype))


@pytest.mark.parametrize("squares", [[(0, 0)], [(0, 0), (-1, -1)], [(25, 24), (25, 25)]])
def test_what_little_is_kept_tells_the_far_end_of_an_image(squares):
    y, x = np.mgrid[:150, :150] / 150
    image = np.stack([0.5 + 0.4 * np.sin(3 * y + 2 * x + channel) for channel in range(3)])
    mask = torch.zeros(1, 50, 50, dtype=torch.bool)
    for square in squares:
        mask[0][square] = True
    kept = to_pixels(mask, 150, 150)
    found = inpainted(torch.from_numpy(image).float()[None], kept)[0]
    np.testing.assert_allclose(found, solved(image, kept[0].numpy()), atol=2e-5)


def test_a_slope_is_continued_and_a_colour_spreads_to_the_border():
    x = torch.arange(30.0).expand(1, 3, 30, 30) / 30
    kept = torch.zeros(1, 30, 30, dtype=torch.bool)
    kept[:, :, [0, 29]] = kept[:, [0, 29]] = True
    torch.testing.assert_close(inpainted(x, kept), x, atol=1e-4, rtol=0)
    one = torch.full((1, 3, 30, 30), 0.7)
    kept = torch.zeros(1, 30, 30, dtype=torch.bool)
    kept[:, 4, 5] = True
    torch.testing.assert_close(inpainted(one, kept), one, atol=1e-4, rtol=0)


def test_of_an_image_all_masked_every_pixel_is_its_mean():
    images = torch.rand(3, 3, 20, 21, generator=torch.Generator().manual_seed(0))
    kept = torch.zeros(3, 20, 21, dtype=torch.bool)
    kept[1] = torch.rand(20, 21, generator=torch.Generator().manual_seed(1)) < 0.5
    found = inpainted(images, kept)
    for i in (0, 2):
        mean = images[i].mean(dim=(1, 2), keepdim=True)
        torch.testing.assert_close(found[i], mean.expand_as(found[i]))
    assert found[1].isfinite().all()
    all_kept = torch.ones(3, 20, 21, dtype=torch.bool)
    torch.testing.assert_close(inpainted(images, all_kept), images, rtol=0, atol=0)
    assert inpainted(images[:0], kept[:0]).shape == (0, 3, 20, 21)


def test_an_image_is_filled_the_same_whatever_is_beside_it():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((9, 3, 50, 50), dtype=np.float32))
    kept = torch.from_numpy(of_squares(rng, 9, 50, 0.15))
    kept[4] = False
    together = inpainted(images, kept)
    order = torch.from_numpy(rng.permutation(9))
    torch.testing.assert_close(
        inpainted(images[order], kept[order]), together[order], atol=1e-6, rtol=0
    )
    for i in range(9):
        alone = inpainted(images[i : i + 1], kept[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-6, rtol=0)


def test_the_fill_has_noise_where_pixels_are_masked_and_there_alone():
    images = torch.rand(2, 3, 60, 60, generator=torch.Generator().manual_seed(0))
    kept = torch.from_numpy(np.random.default_rng(0).random((2, 20, 20)) < 0.3)
    found = occlude(images, kept, fill="noisy-linear")
    pixels = to_pixels(kept, 60, 60).unsqueeze(1).expand_as(images)
    assert found[pixels].equal(images[pixels])
    noise = (found - inpainted(images, pixels[:, 0]))[~pixels]
    assert float(noise.std()) == pytest.approx(plain.NOISE, rel=0.03)
    assert abs(float(noise.mean())) < 5 * plain.NOISE / len(noise) ** 0.5
    more = occlude(images, kept | (torch.arange(20) < 3), fill="noisy-linear")
    of_more = more - inpainted(images, to_pixels(kept | (torch.arange(20) < 3), 60, 60))
    both = ~pixels & (torch.arange(60) >= 9)
    torch.testing.assert_close(of_more[both], (found - inpainted(images, pixels[:, 0]))[both])


@pytest.mark.gpu
def test_a_gpu_fills_as_the_cpu():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((9, 3, 224, 224), dtype=np.float32))
    kept = torch.from_numpy(of_squares(rng, 9, 224, 0.1))
    found = inpainted(images.cuda(), kept.cuda()).cpu()
    torch.testing.assert_close(found, inpainted(images, kept), atol=1e-4, rtol=0)
