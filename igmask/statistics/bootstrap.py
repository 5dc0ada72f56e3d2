"""Images drawn anew, many times: how far a mean over them may be off."""

import numpy as np
import pandas as pd

from igmask.streams import Stream, rng

_AT_ONCE = 64  # replicates whose weights are in memory
_FEW = 10  # images of a class: n drawn of n vary by (n - 1) / n of what they should


def replicates(
    values: pd.DataFrame, classes: np.ndarray, *, seed: int, n: int = 2000
) -> pd.DataFrame:
    """Return the means of each column over images that are drawn with replacement, n times.

    All columns have the same images in a replicate, so that their differences vary as little as
    they do. From each class as many are drawn as it has (Efron & Tibshirani 1993, chapter 8);
    classes of fewer than ten images count as one, since within them little would vary, and of one
    image nothing. NaN is left out of its column's mean. Neither the order of the images nor that of
    the columns matters.

    values:  (n_images, columns) numbers, one row an image, by its name, which has to be its own
    classes: (n_images,) integers
    Returns (n, columns); equal to rounding on any number of cores.
    """
    if not values.index.is_unique:
        raise ValueError("images have to have names of their own")
    _, inverse, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    classes = np.where(sizes[inverse] < _FEW, -1, inverse)
    order = np.lexsort((values.index.to_numpy(str), classes))
    rows, counts = values.to_numpy(np.float64)[order], np.unique(classes, return_counts=True)[1]
    sizes, starts = (np.repeat(of, counts) for of in (counts, np.cumsum(counts) - counts))
    there = ~np.isnan(rows)
    whole = there.all()
    rows = np.where(there, rows, 0)
    drawn = rng(seed, Stream.BOOTSTRAP)
    found = np.empty((n, rows.shape[1]))
    for first in range(0, n, _AT_ONCE):
        weights = np.stack(
            [
                np.bincount(
                    starts + (drawn.random(len(rows)) * sizes).astype(np.int64), None, len(rows)
                )
                for _ in range(min(_AT_ONCE, n - first))
            ]
        ).astype(np.float64)
        held = np.full(1, len(rows)) if whole else weights @ there
        with np.errstate(invalid="ignore"):  # a replicate may have none of a column's images
            found[first : first + len(weights)] = (weights @ rows) / held
    return pd.DataFrame(found, columns=values.columns)


def interval(of: pd.Series) -> tuple[float, float]:
    """Return the 95 % interval of replicates of one number: the percentiles 2.5 and 97.5.

    NaN, if no replicate has it.
    """
    there = of.dropna()
    low, high = np.percentile(there, [2.5, 97.5]) if len(there) else (np.nan, np.nan)
    return float(low), float(high)
