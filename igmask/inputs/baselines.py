"""Where the path of Integrated Gradients begins: black, white, mean, blurred, noise, or a file."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from igmask.asked.settings import Geometry, is_own
from igmask.errors import InputError, refusing
from igmask.inputs.contract import kind
from igmask.inputs.decode import fit, read_rgb
from igmask.inputs.own import called, imported
from igmask.streams import Stream, rng


def make(attribution: Any, images: Tensor, **about: Any) -> Tensor:
    """Return the baselines of a batch, (n, N, C, H, W) like `images`; n is 1 but for `uniform`.

    attribution: its `baseline` is a name of BASELINES, the path of an image file, or a function of
                 one's own, `module:callable`, that is called like those of BASELINES and returns
                 (N, C, H, W), or (n, N, C, H, W) to be averaged over; it also has `blur_sigma` and
                 `n_baselines`
    images:      (N, C, H, W) in [0, 1]
    about:       `mean` of the normalisation; `geometry`; `positions` (N,) in the dataset, which
                 with the `seed` determine an image's noise
    raises       InputError if the file cannot be read or is smaller than the crop, or if the
                 function fails or returns something else
    """
    name = attribution.baseline
    function = BASELINES.get(name, partial(_own if is_own(name) else _file, name))
    found = function(images, attribution=attribution, **about)
    return found if found.ndim > images.ndim else found.unsqueeze(0)


def check(name: str, geometry: Geometry) -> None:
    """Raise InputError if a baseline that is a file, or a function of one's own, cannot be had."""
    if is_own(name):
        imported(name)
    elif name not in BASELINES:
        read_baseline(name, geometry)


def read_baseline(path: str, geometry: Geometry) -> np.ndarray:
    """Return the image file at `path` in a network's geometry: (size, size, 3) uint8.

    raises InputError naming the file if it cannot be read or is smaller than the crop
    """
    with refusing(InputError, says=lambda error: f"the baseline {path}: {error}"):
        return fit(read_rgb(Path(path), upright=True), geometry).copy()


def _black(images: Tensor, **_: Any) -> Tensor:
    return torch.zeros_like(images)


def _white(images: Tensor, **_: Any) -> Tensor:
    return torch.ones_like(images)


def _mean(images: Tensor, *, mean: tuple[float, ...], **_: Any) -> Tensor:
    return torch.tensor(mean).to(images).view(-1, 1, 1).expand_as(images)


def _blur(images: Tensor, *, attribution: Any, **_: Any) -> Tensor:
    """Of the image itself."""
    from torchvision.transforms.v2.functional import gaussian_blur  # slow to import

    sigma = attribution.blur_sigma
    radius = min(math.ceil(3 * sigma), *(side - 1 for side in images.shape[-2:]))
    return gaussian_blur(images, [2 * radius + 1] * 2, [sigma] * 2)


def _uniform(
    images: Tensor, *, attribution: Any, positions: np.ndarray, seed: int, **_: Any
) -> Tensor:
    """Several images of noise, to be averaged over."""
    shape = (attribution.n_baselines, *images.shape[1:])
    noise = [
        rng(seed, Stream.NOISE_BASELINE, position).random(shape, dtype=np.float32)
        for position in positions.tolist()
    ]
    return torch.from_numpy(np.stack(noise, axis=1)).to(images)


def _file(path: str, images: Tensor, *, geometry: Geometry, **_: Any) -> Tensor:
    one = torch.from_numpy(read_baseline(path, geometry)).permute(2, 0, 1)
    return (one.to(images) / 255).expand_as(images)


def _own(name: str, images: Tensor, **about: Any) -> Tensor:
    found = called(name, images, **about)
    fits = isinstance(found, Tensor) and images.shape in (found.shape, found.shape[1:])
    if not fits:
        raise InputError(
            f"the baseline {name} returned {kind(found)}, not a tensor {tuple(images.shape)} like "
            "the images, or some of them, (n, …)"
        )
    return found.to(images)


BASELINES: dict[str, Callable[..., Tensor]] = {
    "black": _black,
    "white": _white,
    "mean": _mean,
    "blur": _blur,
    "uniform": _uniform,
}
