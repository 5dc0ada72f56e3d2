"""Images + mask → images with everything outside the mask filled."""

import torch
from torch import Tensor

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
