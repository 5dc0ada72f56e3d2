"""Masked images, pixel by pixel."""

import numpy as np
import pytest
import torch

from igmask.kernels import grid, inpainted_arrays, occlude, occluded_input, pack, to_pixels
from igmask.plain import FILLS, fill_values


@pytest.mark.parametrize("size", [224, 299, 32, 64, 5])
def test_every_pixel_belongs_to_its_square(size):
    rows, columns = grid(size, size, 3)
    numbered = torch.arange(rows * columns).view(1, rows, columns)
    pixels = to_pixels(numbered, size, size)
    y, x = np.mgrid[:size, :size]
    np.testing.assert_array_equal(pixels[0].numpy(), y // 3 * columns + x // 3)


@pytest.mark.parametrize("fill", ["black", "mean", "image-mean"])
def test_keep_and_drop_partition_the_image(fill):
    images = torch.randint(257, (3, 3, 10, 14)).double() / 256  # whose sums are exact
    mean = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    kept = torch.rand(3, 4, 5) < 0.5
    keep = occlude(images, kept, fill=fill, mean=mean)
    drop = occlude(images, ~kept, fill=fill, mean=mean)
    pixels = to_pixels(kept, 10, 14).unsqueeze(1).expand_as(images)
    assert keep[pixels].equal(images[pixels])
    assert drop[~pixels].equal(images[~pixels])
    filled = {
        "black": torch.zeros_like(images),
        "mean": mean.view(1, 3, 1, 1).expand_as(images),
        "image-mean": images.mean((2, 3), keepdim=True).expand_as(images),
    }[fill]
    assert keep[~pixels].equal(filled[~pixels])
    assert drop[pixels].equal(filled[pixels])


def test_fill_mean_is_zero_once_normalised():
    mean = torch.tensor([0.485, 0.456, 0.406])
    nothing = torch.zeros(1, 2, 2, dtype=torch.bool)
    masked = occlude(torch.rand(1, 3, 6, 6), nothing, fill="mean", mean=mean)
    assert ((masked - mean.view(3, 1, 1)) == 0).all()


def test_dtype_is_kept():
    images = torch.rand(1, 3, 6, 6).bfloat16()
    kept = torch.ones(1, 2, 2, dtype=torch.bool)
    assert occlude(images, kept, fill="image-mean").dtype == torch.bfloat16


def test_wrong_input_is_named():
    images = torch.rand(1, 3, 6, 6)
    with pytest.raises(ValueError, match=r"6×6 image has \(2, 2\) squares"):
        occlude(images, torch.ones(1, 3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="'pink'"):
        occlude(images, torch.ones(1, 2, 2, dtype=torch.bool), fill="pink")
    with pytest.raises(ValueError, match="needs the mean"):
        occlude(images, torch.ones(1, 2, 2, dtype=torch.bool), fill="mean")


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("drop", [False, True])
def test_the_input_from_bytes_and_bits_is_the_occluded_image_normalised(fill, drop):
    images = torch.randint(256, (3, 10, 14, 3), dtype=torch.uint8)
    mask = torch.rand(3, 4, 5) < 0.5
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    about = {"kept": to_pixels(mask ^ drop, 10, 14), "solve": inpainted_arrays}
    found = occluded_input(
        images,
        pack(mask),
        drop=drop,
        fill=torch.from_numpy(fill_values(images.numpy(), fill, mean.numpy(), **about)),
        mean=mean,
        std=std,
        memory_format=torch.channels_last,
    )
    pixels = images.permute(0, 3, 1, 2).double() / 255
    shown = occlude(pixels, mask ^ drop, fill=fill, mean=mean.double())
    expected = (shown - mean.view(3, 1, 1).double()) / std.view(3, 1, 1)
    near = 1e-3 if fill == "noisy-linear" else 1e-6
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=near)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_fill_that_is_a_picture_shows_where_the_image_does_not(turned):
    images, mask = torch.randint(256, (2, 10, 14, 3), dtype=torch.uint8), torch.rand(2, 4, 5) < 0.5
    expected = np.zeros((2, 3, 10, 14))
    for n, c, y, x in np.ndindex(expected.shape):
        row = y if mask[n, y // 3, x // 3] else 9 - y
        expected[n, c, y, x] = int(images[n, row, x, c]) / 255
    planes = images.permute(0, 3, 1, 2).double() / 255
    np.testing.assert_allclose(occlude(planes, mask, fill=turned), expected, rtol=1e-14)
    how = {"mean": torch.zeros(3), "std": torch.ones(3)}
    fill = torch.from_numpy(fill_values(images.numpy(), turned))
    found = occluded_input(images, pack(mask), fill=fill, **how)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_images_can_be_differentiated_where_they_are_kept():
    images = torch.rand(1, 3, 6, 6, requires_grad=True)
    kept = torch.tensor([[[True, False], [False, False]]])
    occlude(images, kept, fill="black").sum().backward()
    assert images.grad.equal(to_pixels(kept, 6, 6).expand(1, 3, 6, 6).float())


def test_the_mean_colour_of_an_image_of_bytes_is_exact():
    images = torch.zeros(2, 2, 2, 3, dtype=torch.uint8)
    images[1] = 255
    images[1, 0, 0, 2] = 0
    colours = fill_values(images.numpy(), "image-mean")
    assert colours[:, 0, 0].tolist() == [[0, 0, 0], [1, 1, 0.75]]


def test_what_does_not_fit_an_input_is_named():
    images, bits = torch.zeros(1, 6, 6, 3, dtype=torch.uint8), torch.zeros(1, 1, dtype=torch.uint8)
    three = torch.ones(3)
    how = {"fill": three.view(1, 1, 1, 3), "mean": three, "std": three}
    assert occluded_input(images, bits, **how).shape == (1, 3, 6, 6)
    with pytest.raises(ValueError, match="uint8"):
        occluded_input(images.float(), bits, **how)
    with pytest.raises(ValueError, match="2×2 squares"):
        occluded_input(images, bits.expand(1, 2), **how)
    with pytest.raises(ValueError, match="colours"):
        occluded_input(images, bits, **how | {"mean": torch.ones(4)})
    with pytest.raises(ValueError, match="colours"):
        occluded_input(images, bits, **how | {"fill": torch.ones(2, 3)})
    with pytest.raises(ValueError, match="colours"):
        occluded_input(images, bits, **how | {"fill": torch.ones(1, 6, 5, 3)})


def test_the_mean_colour_of_an_image_has_a_derivative():
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(2, 2, 2, dtype=torch.bool)
    occlude(images, nothing, side=2, fill="image-mean").sum().backward()
    torch.testing.assert_close(images.grad, torch.ones_like(images))  # Σ of the mean is Σ of all
