"""Images + mask → images with everything outside the mask filled.

`occlude` on floating-point images; `occluded_input` straight from what is on disk, bytes and bits,
to what a network takes.
"""

import torch
from torch import Tensor

from igmask.kernels.bits import unpack
from igmask.kernels.dispatch import check, jit, operation, tl
from igmask.kernels.path import piece, pieces
from igmask.kernels.squares import grid

FILLS = ("black", "mean", "image-mean")


def to_pixels(mask: Tensor, height: int, width: int, *, side: int = 3) -> Tensor:
    """Return the mask of pixels of a mask of squares: (N, P, Q) → (N, H, W), same dtype."""
    if mask.shape[-2:] != grid(height, width, side):
        raise ValueError(
            f"to_pixels: a {height}×{width} image has {grid(height, width, side)} squares of "
            f"side {side}, but the mask has {tuple(mask.shape[-2:])}"
        )
    pixels = mask.repeat_interleave(side, dim=-2).repeat_interleave(side, dim=-1)
    return pixels[..., :height, :width]


def fill_values(images: Tensor, fill: str, mean: Tensor | None = None) -> Tensor:
    """Return what masked pixels become, broadcastable to `images`.

    black: zero · mean: the normalisation's mean, which is zero once normalised ·
    image-mean: each image's own mean colour

    images: (N, C, H, W) in [0, 1]
    mean:   (C,) the normalisation's mean; needed by fill `mean` only
    """
    if fill == "black":
        return images.new_zeros(())
    if fill == "mean":
        if mean is None:
            raise ValueError("fill 'mean' needs the mean of the model's normalisation")
        return mean.to(images).view(-1, 1, 1)
    if fill == "image-mean":
        return images.mean(dim=(2, 3), keepdim=True)
    raise ValueError(f"unknown fill {fill!r}; choose from {', '.join(FILLS)}")


def occlude(
    images: Tensor,
    kept: Tensor,
    *,
    side: int = 3,
    fill: str = "black",
    mean: Tensor | None = None,
) -> Tensor:
    """Return the images with every pixel outside the squares of `kept` filled.

    images:  (N, C, H, W) in [0, 1]
    kept:    (N, P, Q) bool, the squares that stay (the complement of a selection, for `drop`)
    fill:    one of `FILLS` (see `fill_values`, also for `mean`)
    returns  (N, C, H, W), dtype of `images`
    """
    pixels = to_pixels(kept, *images.shape[-2:], side=side).unsqueeze(1)
    return torch.where(pixels, images, fill_values(images, fill, mean))


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
    fill:    (N, 3) or (1, 3) float32, in [0, 1]: the colour that masked pixels become
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
    fits = mean.shape == std.shape == (n_channels,) and fill.shape[1:] == (n_channels,)
    fits = fits and len(fill) in (1, len(images))
    check("occluded_input", fits, "colours of the images' channels", fill, mean, std)
    colours = (t.to(images.device, torch.float32).contiguous() for t in (fill, mean, std))
    last = memory_format == torch.channels_last
    return _occluded_input(
        images.contiguous(), bits.contiguous(), *colours, side, drop, dtype, last
    )


def fill_colours(images: Tensor, fill: str, mean: Tensor) -> Tensor:
    """Return `fill_values` of images (N, H, W, 3) uint8 as colours, (N, 3) or (1, 3) float32."""
    if fill == "image-mean":
        n_values = 255 * images.shape[1] * images.shape[2]
        return (images.sum(dim=(1, 2), dtype=torch.int64).double() / n_values).float()
    channels_last = images[:0].permute(0, 3, 1, 2).float()
    return fill_values(channels_last, fill, mean).expand(images.shape[3], 1, 1).reshape(1, -1)


# -- what it means -----------------------------------------------------------------------------


def _empty_input(
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
    n, height, width, n_channels = images.shape
    form = torch.channels_last if last else torch.contiguous_format
    shape = (n, n_channels, height, width)
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=form)


def _launch_occluded(
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
    n, height, width, n_channels = images.shape
    _occluded_kernel[pieces(height * width, n, _BLOCK)](
        out, images, bits, fill, mean, std, height, width, -(-width // side), bits.shape[1],
        0 if len(fill) == 1 else n_channels,
        n_channels, side, drop, last, _BLOCK,
    )  # fmt: skip
    return out


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
    values = torch.where(kept.unsqueeze(1), pixels, fill[:, :, None, None])
    return out.copy_((values - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))


# -- the kernel --------------------------------------------------------------------------------

_BLOCK = 512  # pixels of a program


@jit
def _occluded_kernel(
    out, images, bits, fill, mean, std, height, width, n_columns, n_bytes, fill_stride,
    CHANNELS: tl.constexpr, SIDE: tl.constexpr, DROP: tl.constexpr, LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    n_pixels = height * width
    image, pixel = piece(n_pixels, BLOCK)
    live = pixel < n_pixels
    square = pixel // width // SIDE * n_columns + pixel % width // SIDE
    byte = tl.load(bits + image * n_bytes + square // 8, mask=live, other=0).to(tl.int32)
    kept = (byte >> (square % 8)) & 1
    if DROP:
        kept = 1 - kept
    for c in tl.static_range(CHANNELS):
        there = images + (image * n_pixels + pixel) * CHANNELS + c
        value = tl.load(there, mask=live, other=0).to(tl.float32)
        value = tl.div_rn(value, tl.full((BLOCK,), 255.0, tl.float32))
        colour = tl.load(fill + image * fill_stride + c)
        value = tl.where(kept > 0, value, colour) - tl.load(mean + c)
        value = tl.div_rn(value, tl.load(std + c) + tl.zeros_like(value))
        if LAST:
            here = out + (image * n_pixels + pixel) * CHANNELS + c
        else:
            here = out + (image * CHANNELS + c) * n_pixels + pixel
        tl.store(here, value.to(out.dtype.element_ty), mask=live)
