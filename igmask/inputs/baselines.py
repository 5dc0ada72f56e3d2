"""Where the path of Integrated Gradients begins: black, white, mean, blurred, noise, or a file."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from igmask.errors import InputError
from igmask.inputs.decode import fit, read_rgb
from igmask.study.settings import Geometry

_STREAM = 2  # of random numbers; random squares have another


def make(
    kind: str,
    images: Tensor,
    *,
    mean: tuple[float, ...],
    geometry: Geometry,
    positions: np.ndarray,
    seed: int,
    n_baselines: int,
    blur_sigma: float,
) -> Tensor:
    """Return the baselines of a batch, (n, N, C, H, W) like `images`; n is 1 but for `uniform`.

    kind:      black, white, mean (of the normalisation), blur (of the image itself), uniform
               (`n_baselines` noise images, to be averaged over), or the path of an image file
    images:    (N, C, H, W) in [0, 1]
    positions: (N,) places in the dataset; with the seed they determine an image's noise
    raises     InputError if the file cannot be read or is smaller than the crop
    """
    if kind == "black":
        return torch.zeros_like(images).unsqueeze(0)
    if kind == "white":
        return torch.ones_like(images).unsqueeze(0)
    if kind == "mean":
        return torch.tensor(mean).to(images).view(-1, 1, 1).expand_as(images).unsqueeze(0)
    if kind == "blur":
        from torchvision.transforms.v2.functional import gaussian_blur  # slow to import

        radius = min(math.ceil(3 * blur_sigma), *(side - 1 for side in images.shape[-2:]))
        return gaussian_blur(images, [2 * radius + 1] * 2, [blur_sigma] * 2).unsqueeze(0)
    if kind == "uniform":
        noise = [
            np.random.default_rng([seed, _STREAM, position]).random(
                (n_baselines, *images.shape[1:]), dtype=np.float32
            )
            for position in positions.tolist()
        ]
        return torch.from_numpy(np.stack(noise, axis=1)).to(images)
    one = torch.from_numpy(read_baseline(kind, geometry)).permute(2, 0, 1)
    return (one.to(images) / 255).expand_as(images).unsqueeze(0)


def read_baseline(path: str, geometry: Geometry) -> np.ndarray:
    """Return the image file at `path` in a network's geometry: (size, size, 3) uint8.

    raises InputError naming the file if it cannot be read or is smaller than the crop
    """
    try:
        return fit(read_rgb(Path(path)), geometry).copy()
    except InputError as error:
        raise InputError(f"the baseline {path}: {error}") from None
