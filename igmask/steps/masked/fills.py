"""What masked pixels become, by what records say of their making."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from igmask.inputs.own import named
from igmask.plain import OF_MASK, fill_values


def in_bytes(values: Any) -> np.ndarray:
    """Return values of 0 … 255 in the nearest 8 bits, as files of pictures have them."""
    return np.asarray(values).round().clip(0, 255).astype(np.uint8)


def filled(
    images: np.ndarray,
    made_by: Mapping[str, Any],
    *,
    mean: Any,
    positions: np.ndarray,
    kept: Any = None,
) -> np.ndarray:
    """Return the values of a fill, see `plain.fill_values`.

    images:    (N, H, W, 3) uint8, or floating point in [0, 1]
    made_by:   `fill`, and as far as it asks for them `blur_sigma` and `fill_seed`
    mean:      (3,) of the network's normalisation
    positions: (N,) of the images in the dataset
    kept:      (N, H, W) bool, an array, or a tensor where it is to be computed
    """
    fill, solve = made_by["fill"], None
    if fill in OF_MASK:
        from igmask.kernels import inpainted_arrays  # torch, which is slow to import

        solve = inpainted_arrays
    return fill_values(
        images,
        named(fill),
        mean,
        sigma=made_by.get("blur_sigma", 0),
        positions=positions,
        seed=made_by.get("fill_seed", 0),
        kept=kept,
        solve=solve,
    )
