"""Other masks, to set beside those of a selection.

Another one is a function, its entry in `CONTROLS`, and its name in `study.settings.Masking`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from igmask.errors import InputError
from igmask.inputs.own import called
from igmask.plain import pixels_of_squares

_STREAM = 1  # of random numbers; noise baselines have another


def random_like(
    mask: np.ndarray,
    positions: np.ndarray,
    height: int,
    width: int,
    *,
    side: int = 3,
    seed: int,
) -> np.ndarray:
    """Return masks of random squares of each image, of the same area: (N, P, Q) bool.

    They are the first squares of a random order. The last one may be too large by some pixels,
    since squares at the border may be partial: it is in with the probability that makes the area
    right on average, and never off by a whole square. Where all squares are whole, as many are
    drawn as there are in the mask.

    An image's draw depends on the seed and its position in the dataset only, so it is the same in
    every shard; the draws of growing masks contain each other, as selections of growing p do.

    mask: (N, P, Q) bool, of images of height × width pixels
    """
    flat = mask.reshape(len(mask), -1)
    sizes = pixels_of_squares(mask.shape[1:], height, width, side)
    drawn = np.zeros_like(flat)
    for row, (position, n_pixels) in enumerate(zip(positions.tolist(), flat @ sizes, strict=True)):
        rng = np.random.default_rng([seed, _STREAM, position])
        order = rng.permutation(len(sizes))
        sizes_drawn, share = sizes[order], rng.random()
        missing = n_pixels - (sizes_drawn.cumsum() - sizes_drawn)  # before each of them
        drawn[row, order] = missing > share * sizes_drawn
    return drawn.reshape(mask.shape)


class Control(NamedTuple):
    """Other masks to set beside those of a selection, as large, if they are to be compared.

    like: (mask, positions, height, width, side=, seed=) → masks, as `random_like`
    is_of: what stands under the tables: "top-1 with …"
    """

    like: Callable[..., np.ndarray]
    is_of: str


def control_of(name: str) -> Control:
    """Return the control of a name: one of CONTROLS, or a function of one's own, as `Control.like`.

    raises InputError (when called) if the function fails, or returns no masks of the same shape
    """
    return CONTROLS.get(name) or Control(partial(_own, name), f"the masks of {name}")


def _own(name: str, mask: np.ndarray, *arguments: Any, **keywords: Any) -> np.ndarray:
    found = called(name, mask, *arguments, **keywords)
    if not isinstance(found, np.ndarray) or (found.shape, found.dtype) != (mask.shape, mask.dtype):
        came = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found)
        raise InputError(f"the control {name} returned {came}, not masks bool {mask.shape}")
    return found


CONTROLS = {
    "random": Control(random_like, "squares of the same area of each image, drawn at random"),
}
