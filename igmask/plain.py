"""What squares, scores, selection and masks mean, in NumPy, once.

The study's light steps call it, since it takes less time than importing torch, and so do the CPU's
definitions of the kernels, which are compared with it to the bit.
"""

from collections.abc import Iterator, Sequence

import numpy as np


def score_parts(parts: np.ndarray, score: str) -> np.ndarray:
    """Return the scores (N, P, Q) of squares with parts (N, 2, P, Q), as `kernels.score_parts`."""
    positive, negative = parts[:, 0], parts[:, 1]
    return {
        "positive": lambda: positive,
        "absolute": lambda: positive + negative,
        "signed": lambda: positive - negative,
        "absolute-sum": lambda: np.abs(positive - negative),
    }[score]()


def select(
    scores: np.ndarray, percents: Sequence[float], *, by: str = "mass"
) -> Iterator[np.ndarray]:
    """Yield for each p the mask of the squares that hold the top p %, as `kernels.select` does.

    Squares are sorted once, which takes most of the time.

    scores:   (N, P, Q) or (N, K) floating point, finite
    percents: in (0, 100], at most two decimals
    by:       `mass` or `count`
    yields    bool, in the shape of `scores`
    """
    flat = scores.reshape(len(scores), -1)
    values = _masses(flat) if by == "mass" else flat
    ordered = -np.sort(-values, axis=1)
    total = ordered.cumsum(axis=1) if by == "mass" else None
    for points in (round(100 * p) for p in percents):
        if total is not None:
            needed = (total - ordered) * 10_000 < points * total[:, -1:]  # the mass before is short
            n_chosen = needed.sum(axis=1, keepdims=True)
        else:
            n_best = -(-points * values.shape[1] // 10_000)
            n_chosen = np.where(ordered[:, :1] > 0, n_best, 0)
        last = np.take_along_axis(ordered, (n_chosen - 1).clip(min=0), axis=1)
        above, ties = values > last, values == last
        n_ties = n_chosen - above.sum(axis=1, keepdims=True)
        chosen = above | (ties & (ties.cumsum(axis=1) <= n_ties))
        yield (chosen & (n_chosen > 0)).reshape(scores.shape)


def _masses(scores: np.ndarray) -> np.ndarray:
    """What is positive of the scores (N, K), in units of their row, int64: see `kernels.select`."""
    exact = scores.astype(np.float64).clip(min=0)
    top = exact.max(axis=1, keepdims=True).clip(min=np.finfo(np.float64).tiny)
    _, exponent = np.frexp(top)
    return np.trunc(np.ldexp(exact, 30 - exponent)).astype(np.int64)


def pack(mask: np.ndarray) -> np.ndarray:
    """Return a mask's bits, as `kernels.pack`: (N, P, Q) or (N, K) bool → (N, ⌈K/8⌉) uint8."""
    return np.packbits(mask.reshape(len(mask), -1), axis=1, bitorder="little")


def unpack(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the mask (N, *shape) bool of bits (N, ⌈K/8⌉) uint8."""
    flat = np.unpackbits(bits, axis=1, count=int(np.prod(shape)), bitorder="little")
    return flat.view(bool).reshape(-1, *shape)


def to_pixels(values: np.ndarray, height: int, width: int, *, side: int = 3) -> np.ndarray:
    """Return a mask's pixels, or of other values of squares: (..., P, Q) → (..., H, W)."""
    return values.repeat(side, axis=-2).repeat(side, axis=-1)[..., :height, :width]


def fill_values(images: np.ndarray, fill: str, mean: list[float]) -> np.ndarray:
    """Return what masked pixels of images (N, H, W, C) become, as `kernels.fill_values`."""
    return {
        "black": lambda: np.zeros((), images.dtype),
        "mean": lambda: np.array(mean, images.dtype),
        "image-mean": lambda: images.mean(axis=(1, 2), keepdims=True),
    }[fill]()


def area(mask: np.ndarray, height: int, width: int, *, side: int = 3) -> np.ndarray:
    """Return the fraction of an image's pixels in a mask: (N, P, Q) bool → (N,) float64.

    Squares at the right and bottom border may be partial, and count by their pixels.
    """
    n_pixels = mask.reshape(len(mask), -1) @ pixels_of_squares(mask.shape[1:], height, width, side)
    return n_pixels / (height * width)


def pixels_of_squares(shape: tuple[int, ...], height: int, width: int, side: int) -> np.ndarray:
    """The pixels of each of P × Q squares, (P·Q,) float64: at the borders they may be fewer."""
    heights, widths = (np.full(n, side, dtype=np.float64) for n in shape)
    heights[-1] -= side * shape[0] - height
    widths[-1] -= side * shape[1] - width
    return np.outer(heights, widths).ravel()
