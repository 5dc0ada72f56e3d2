"""Images + mask → images with everything outside the mask filled.

`occlude` on floating-point images; `occluded_input` straight from what is on disk, bytes and bits,
to what a network takes.
"""

import torch
from torch import Tensor

from igmask import plain
from igmask.kernels.bits import unpack
from igmask.kernels.dispatch import check, jit, operation, tl, wide
from igmask.kernels.inpaint import inpainted_arrays
from igmask.kernels.path import piece, pieces
from igmask.plain import grid


def to_pixels(mask: Tensor, height: int, width: int, *, side: int = 3) -> Tensor:
    """Return the mask of pixels of a mask of squares: (N, P, Q) → (N, H, W), same dtype."""
    return plain.to_pixels(mask, height, width, side=side, repeat=torch.repeat_interleave)


def fill_values(
    images: Tensor, fill: plain.Fill, mean: Tensor | None = None, *, kept: Tensor | None = None
) -> Tensor:
    """Return what masked pixels become, broadcastable to `images`.

    images: (N, C, H, W) in [0, 1]
    fill:   one of `plain.FILLS`, or a function like those; there is a derivative through colours
    mean:   (C,) the normalisation's mean; needed by fill `mean` only
    kept:   (N, H, W) bool, the pixels that stay; needed by `noisy-linear` only
    """
    colour = None if mean is None else mean.double().numpy(force=True)
    last = images.to(wide(images)).movedim(1, 3)
    if images.requires_grad and fill == "image-mean":  # arithmetic alone, which tensors share
        values = plain.fill_of(fill)(last, colour)
    elif (values := plain.common_fill(fill, images.shape[1], colour)) is None:
        pixels = last.numpy(force=True)  # from a GPU, too
        values = plain.fill_values(pixels, fill, colour, kept=kept, solve=inpainted_arrays)
    return torch.as_tensor(values).movedim(3, 1).to(images)


def occlude(
    images: Tensor,
    kept: Tensor,
    *,
    side: int = 3,
    fill: plain.Fill = "black",
    mean: Tensor | None = None,
) -> Tensor:
    """Return the images with every pixel outside the squares of `kept` filled.

    images:  (N, C, H, W) in [0, 1]
    kept:    (N, P, Q) bool, the squares that stay (the complement of a selection, for `drop`)
    fill, mean: see `fill_values`
    returns  (N, C, H, W), dtype of `images`
    """
    pixels = to_pixels(kept, *images.shape[-2:], side=side)
    return torch.where(pixels.unsqueeze(1), images, fill_values(images, fill, mean, kept=pixels))


def occluded_input(
    images: Tensor,
    bits: Tensor,
    *,
    side: int = 3,
    drop: bool = False,
    fill: Tensor,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Return (v − mean) / std, v being pixel / 255 where a square is kept and the fill elsewhere.

    images:  (N, H, W, 3) uint8
    bits:    (N, ⌈K/8⌉) uint8 of `pack`: the squares that stay, or with `drop` those that go
    fill:    (N, H, W, 3) or broadcast to it, float32, in [0, 1]: what masked pixels become
    mean, std: (3,) float32, of the normalisation
    returns  (N, 3, H, W) of `dtype`, computed in float32, in `memory_format`
    raises   ValueError for shapes or dtypes that do not fit
    """
    fits = images.ndim == 4 and images.dtype == bits.dtype == torch.uint8
    check("occluded_input", fits, "images (N, H, W, C) and bits, both uint8", images, bits)
    if side < 1:
        raise ValueError(f"occluded_input: side must be at least 1, got {side}")
    n_rows, n_columns = grid(images.shape[1], images.shape[2], side)
    fits = bits.shape == (len(images), -(-n_rows * n_columns // 8))
    check("occluded_input", fits, f"bits of {n_rows}×{n_columns} squares", images, bits)
    n_channels = images.shape[3]
    fits = mean.shape == std.shape == (n_channels,) and fill.ndim == 4
    fits = fits and all(n in (1, size) for n, size in zip(fill.shape, images.shape, strict=True))
    check("occluded_input", fits, "colours of the images' channels", fill, mean, std)
    fill, mean, std = (t.to(images.device, torch.float32) for t in (fill, mean, std))
    tensors = images.contiguous(), bits.contiguous(), fill, mean.contiguous(), std.contiguous()
    return _occluded_input(*tensors, side, drop, dtype, memory_format == torch.channels_last)


# -- what it means -----------------------------------------------------------------------------


def _empty_input(images, bits, fill, mean, std, side, drop, dtype, last):
    n, height, width, n_channels = images.shape
    form = torch.channels_last if last else torch.contiguous_format
    shape = (n, n_channels, height, width)
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=form)


def _launch_occluded(images, bits, fill, mean, std, side, drop, dtype, last):
    out = _empty_input(images, bits, fill, mean, std, side, drop, dtype, last)
    n, height, width, n_channels = images.shape
    strides = fill.expand(images.shape).stride()  # zero along what a colour does not have
    _occluded_kernel[pieces(height * width, n, _BLOCK)](
        out, images, bits, fill, mean, std, *strides, height, width, -(-width // side),
        bits.shape[1], n_channels, any(strides[1:3]), side, drop, last, _BLOCK,
    )  # fmt: skip
    return out


# In PyTorch, and not in `plain`, since images may be on a GPU, and `occlude` can be differentiated.
@operation(launch=_launch_occluded, fake=_empty_input)
def _occluded_input(
    images: Tensor,
    bits: Tensor,
    fill: Tensor,
    mean: Tensor,
    std: Tensor,
    side: int,
    drop: bool,
    dtype: torch.dtype,
    last: bool,
) -> Tensor:
    out = _empty_input(images, bits, fill, mean, std, side, drop, dtype, last)
    height, width = images.shape[1:3]
    kept = to_pixels(unpack(bits, grid(height, width, side)) ^ drop, height, width, side=side)
    pixels = images.permute(0, 3, 1, 2) / 255
    values = torch.where(kept.unsqueeze(1), pixels, fill.permute(0, 3, 1, 2))
    return out.copy_((values - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))


# -- the kernel --------------------------------------------------------------------------------

_BLOCK = 512  # pixels of a program


@jit
def _occluded_kernel(
    out, images, bits, fill, mean, std, fill_n, fill_y, fill_x, fill_c, height, width, n_columns,
    n_bytes,
    CHANNELS: tl.constexpr, PICTURE: tl.constexpr, SIDE: tl.constexpr, DROP: tl.constexpr,
    LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n_pixels = height * width
    image, pixel = piece(n_pixels, BLOCK)
    live = pixel < n_pixels
    square = pixel // width // SIDE * n_columns + pixel % width // SIDE
    byte = tl.load(bits + image * n_bytes + square // 8, mask=live, other=0).to(tl.int32)
    kept = (byte >> (square % 8)) & 1
    if DROP:
        kept = 1 - kept
    at = fill + image * fill_n  # a colour is read once, a picture where it is seen
    if PICTURE:
        seen = live & (kept == 0)
        at += tl.where(seen, pixel // width * fill_y + pixel % width * fill_x, 0)
    for c in tl.static_range(CHANNELS):
        there = images + (image * n_pixels + pixel) * CHANNELS + c
        value = tl.load(there, mask=live, other=0).to(tl.float32)
        value = tl.div_rn(value, tl.full((BLOCK,), 255.0, tl.float32))
        colour = tl.load(at + c * fill_c)
        value = tl.where(kept > 0, value, colour) - tl.load(mean + c)
        value = tl.div_rn(value, tl.load(std + c) + tl.zeros_like(value))
        if LAST:
            here = out + (image * n_pixels + pixel) * CHANNELS + c
        else:
            here = out + (image * CHANNELS + c) * n_pixels + pixel
        tl.store(here, value.to(out.dtype.element_ty), mask=live)
