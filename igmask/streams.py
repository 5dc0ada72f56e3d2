"""Random numbers, of which each use has a stream of its own.

NumPy takes missing words of a seed for zeros: [seed, 1, 5] and [seed, 1, 5, 0] give the same. So no
two uses share the word behind the seed, and one use always has as many words behind it.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What numbers are drawn for; another value would make other results."""

    DEMO_TRAIN = 0
    CONTROL = 1
    NOISE_BASELINE = 2
    FILL = 3  # noise and shuffled pixels, of which a condition has one
    PROBE = 4
    METHOD = 5
    CONVERGE = 6
    DEMO_TEST = 7
    BOOTSTRAP = 8


def rng(seed: int, stream: Stream, *where: int) -> np.random.Generator:
    """Return the numbers of a use; `where` is of what in it, such as an image's position."""
    return np.random.default_rng([seed, stream, *where])
