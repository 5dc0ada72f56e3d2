"""Does the shape of a mask alone tell the class? A linear classifier that never sees a pixel.

A network that is right about masked images may have read the class from the mask ("class leakage",
Rong et al. 2022, ROAD): so far as a linear classifier reads it, too, it may.
"""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from igmask.streams import Stream, rng

FOLDS = 5

_AT_ONCE = 4096  # images whose masks are unpacked
_BINS = 16  # of the number of squares
_RIDGE = 1.0  # times the number of features


def probe(
    bits: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    names: np.ndarray,
    *,
    seed: int,
) -> np.ndarray:
    """Return the class that a linear classifier reads from each image's features, (n,) int64.

    Ridge regression to the classes, one each, the largest wins: w = (Xᵀ X + λ K)⁻¹ Xᵀ Y of centred
    X and Y, K features, λ = 1 (Hastie, Tibshirani & Friedman 2009, 4.2). Each image is classified
    by what was fitted to the other four fifths of the images, of each class.

    bits:   rows → (len(rows), K) uint8, the features
    labels: (n,) integers;  names: (n,), by which folds are dealt, whatever the order of the images
    seed:   of the folds
    """
    classes, dealt = np.unique(labels, return_inverse=True)[0], folds(labels, names, seed=seed)
    total = _sums(bits, labels, classes, np.arange(len(labels)))
    said = np.empty(len(labels), dtype=np.int64)
    for fold in range(FOLDS):
        rows = np.flatnonzero(dealt == fold)
        if not len(rows):
            continue
        if len(rows) == len(labels):
            raise ValueError("an image alone cannot be classified by others")
        held = _sums(bits, labels, classes, rows)
        gram, cross, of_features, of_classes = (a - b for a, b in zip(total, held, strict=True))
        n = of_classes.sum()
        mean, share = of_features / n, of_classes / n
        gram -= np.outer(of_features, mean)
        gram[np.diag_indices_from(gram)] += _RIDGE * len(gram)
        cross -= np.outer(of_features, share)
        weights = cho_solve(cho_factor(gram, overwrite_a=True), cross)
        for some in _chunks(rows):
            said[some] = ((bits(some) - mean) @ weights + share).argmax(axis=1)
    return classes[said]


def of_numbers(numbers: np.ndarray) -> np.ndarray:
    """Return features (n, bins) uint8 of one number an image: which sixteenth of them it is in.

    So a linear classifier may read any function of it.
    """
    edges = np.unique(np.quantile(numbers, np.arange(1, _BINS) / _BINS))
    return np.eye(len(edges) + 1, dtype=np.uint8)[np.searchsorted(edges, numbers, side="left")]


def folds(labels: np.ndarray, names: np.ndarray, *, seed: int) -> np.ndarray:
    """Return to which of FOLDS parts each image is dealt, (n,): of each class as many to each."""
    order = np.lexsort((names.astype(str), labels))
    drawn = rng(seed, Stream.PROBE).random(len(labels))
    order = order[np.lexsort((drawn, labels[order]))]
    dealt = np.empty(len(labels), dtype=np.int64)
    dealt[order] = np.arange(len(labels)) % FOLDS
    return dealt


def _sums(
    bits: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    classes: np.ndarray,
    rows: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Xᵀ X, Xᵀ Y, and the sums of X and of Y over some images: whole numbers, so in any order."""
    n_classes = len(classes)
    found: tuple[np.ndarray, ...] | None = None
    for some in _chunks(rows):
        x = bits(some).astype(np.float32)
        y = np.eye(n_classes, dtype=np.float32)[np.searchsorted(classes, labels[some])]
        sums = x.T @ x, x.T @ y, x.sum(axis=0), y.sum(axis=0)
        if found is None:
            found = tuple(one.astype(np.float64) for one in sums)
        else:
            for one, more in zip(found, sums, strict=True):
                one += more
    assert found is not None
    return found


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), _AT_ONCE):
        yield rows[first : first + _AT_ONCE]
