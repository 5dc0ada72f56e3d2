"""Curves over area, and the metrics of masks, by brute force."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy import integrate, ndimage, stats

from igmask import plain
from igmask.report.areas import trapezoids
from igmask.steps.masked.metrics import METRICS, OF_MASKS
from igmask.steps.masked.shown import Network, Shown
from igmask.steps.masked.sweep import cuts


@pytest.mark.parametrize(("size", "points"), [(32, 11), (14, 21), (9, 2), (2, 3)])
def test_cuts_are_the_fewest_squares_that_reach_a_share(size, points):
    rng = np.random.default_rng(size)
    squares = plain.grid(size, size, 3)
    scores = rng.integers(0, 5, (10, *squares)).astype(float)
    sizes = plain.pixels_of_squares(squares, size, size, 3)
    found = cuts(scores, sizes, points)
    for i, one in enumerate(scores.reshape(10, -1)):
        order = sorted(range(len(one)), key=lambda k: (-one[k], k))
        assert found.places[i][order].tolist() == list(range(len(one)))
        for j in range(points):
            share, total = j / (points - 1), int(sizes.sum())
            n = next(
                n for n in range(len(one) + 1) if sizes[order[:n]].sum() >= share * total - 1e-9
            )
            assert found.counts[i, j] == n
            assert found.areas[i, j] == sizes[order[:n]].sum() / total
    assert (found.areas[:, 0] == 0).all()
    assert (found.areas[:, -1] == 1).all()


def test_trapezoids_are_scipys_in_either_direction():
    rng = np.random.default_rng(0)
    values, at = rng.random((20, 9)), np.sort(rng.random((20, 9)), axis=1)
    expected = integrate.trapezoid(values, at, axis=1)
    np.testing.assert_allclose(trapezoids(values, at), expected)
    np.testing.assert_allclose(trapezoids(values[:, ::-1], at[:, ::-1]), expected)


@pytest.mark.parametrize("size", [14, 15, 7])
def test_metrics_of_masks_are_those_of_their_pixels(size):
    rng = np.random.default_rng(size)
    squares = plain.grid(size, size, 3)
    kept = rng.random((40, *squares)) < rng.random((40, 1, 1))
    kept[:2] = [[[False]], [[True]]]
    sizes = plain.pixels_of_squares(squares, size, size, 3).reshape(squares)
    found = {name: of(kept, sizes) for name, of in OF_MASKS.items()}
    pixels = plain.to_pixels(kept, size, size)
    for i, one in enumerate(pixels):
        assert found["area_kept"][i] == pytest.approx(one.mean())
        neighbours = np.abs(np.diff(one.astype(int), axis=0)).sum()
        neighbours += np.abs(np.diff(one.astype(int), axis=1)).sum()
        assert found["boundary"][i] == neighbours
        assert found["components"][i] == ndimage.label(one)[1]
    assert found["components"][:2].tolist() == [0, 1]
    assert found["boundary"][:2].tolist() == [0, 0]


def test_entropy_and_margin():
    q = torch.rand(50, 7, generator=torch.Generator().manual_seed(0)) ** 4
    q[0] = torch.eye(7)[3]
    q = q / q.sum(dim=1, keepdim=True)
    label = torch.zeros(50, dtype=torch.int64)
    np.testing.assert_allclose(
        METRICS["entropy"](q, label, label), stats.entropy(q.double(), base=2, axis=1), atol=1e-6
    )
    ordered = q.sort(dim=1).values
    torch.testing.assert_close(METRICS["margin"](q, label, label), ordered[:, -1] - ordered[:, -2])


class Identity(torch.nn.Module):
    """Normalises in a way that is easy to undo."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.2, 0.6]).view(3, 1, 1))
        self.register_buffer("std", torch.full((3, 1, 1), 0.5))


@pytest.mark.parametrize("fill", plain.FILLS)
def test_what_is_shown_is_the_image_and_the_fill_and_what_changed_is_counted(fill):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 14, 14, 3), dtype=np.uint8)
    images[0] = 0
    images[1, 3:8] = 0
    images[2] = (102, 51, 153)  # the mean
    kept = rng.random((6, 5, 5)) < 0.4
    network = Network(torch.nn.Sequential(Identity(), torch.nn.Identity()))
    made_by = {"fill": fill, "side": 3, "fill_seed": 5, "blur_sigma": 2.0}
    positions = np.arange(6) + 10
    shown = Shown(network, images, positions, made_by)
    inputs, changed = shown.input(kept)
    pixels = inputs.permute(0, 2, 3, 1).numpy() * 0.5 + [0.4, 0.2, 0.6]
    stays = plain.to_pixels(kept, 14, 14)
    np.testing.assert_allclose(pixels[stays], images[stays] / 255, atol=1e-6)
    differs = (np.abs(pixels - images / 255) > 1 / 510 + 1e-6).any(axis=3)
    np.testing.assert_allclose(changed, differs.mean(axis=(1, 2)), atol=1e-9)
    expected = {
        "black": np.zeros(images.shape),
        "white": np.ones(images.shape),
        "mean": np.broadcast_to([0.4, 0.2, 0.6], images.shape),
        "image-mean": np.broadcast_to(images.mean((1, 2), keepdims=True) / 255, images.shape),
        "blur": np.stack(
            [
                ndimage.gaussian_filter(one / 255, (2, 2, 0), mode="mirror", truncate=3)
                for one in images
            ]
        ),
    }
    if fill in expected:
        np.testing.assert_allclose(pixels[~stays], expected[fill][~stays], atol=1e-6)
    elif fill == "shuffle":
        whole = plain.fill_values(images, fill, positions=positions, seed=5)
        assert not np.allclose(whole, images / 255)
        for one, of in zip(whole.reshape(6, -1, 3), images.reshape(6, -1, 3) / 255, strict=True):
            np.testing.assert_allclose(
                *(sorted(map(tuple, values)) for values in (one, of)), atol=1e-7
            )
    again, _ = Shown(network, images[[4, 1]], positions[[4, 1]], made_by).input(kept[[4, 1]])
    torch.testing.assert_close(again, inputs[[4, 1]], atol=2e-6, rtol=0)


def test_black_on_black_is_no_change():
    images = np.zeros((1, 9, 9, 3), dtype=np.uint8)
    network = Network(torch.nn.Sequential(Identity(), torch.nn.Identity()))
    for fill, share in (("black", 0), ("white", 1), ("image-mean", 0)):
        shown = Shown(network, images, np.arange(1), {"fill": fill, "side": 3})
        assert shown.input(np.zeros((1, 3, 3), dtype=bool))[1] == [share]


def test_the_last_square_that_is_shown_first_goes_last():
    """LIF is the exact reverse of MIF, ties included."""
    scores = np.array([[[1.0, 0, 0], [0, 2, 1], [0, 0, 1]]])
    cut = cuts(scores, np.ones(9), 10)
    kept = [cut.places < cut.counts[:, j, None] for j in range(10)]
    shown_first = [int(np.flatnonzero(kept[j + 1] & ~kept[j])[0]) for j in range(9)]
    assert shown_first == [4, 0, 5, 8, 1, 2, 3, 6, 7]
    dropped_first = [int(np.flatnonzero(~(~kept[j + 1]) & ~kept[j])[0]) for j in range(9)]
    assert dropped_first == shown_first
    assert {*product(range(3), range(3))} == {divmod(k, 3) for k in shown_first}
