"""What squares, scores, selection, masks and fills mean, once, in NumPy and without torch.

The study's light steps call it, since it takes less time than importing torch, and so do the CPU's
definitions of the kernels. What only computes and indexes serves tensors as it serves arrays.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil, prod
from typing import Any

import numpy as np

from igmask.errors import InputError
from igmask.streams import Stream, rng

Array = Any  # NumPy's, or a tensor


def grid(height: int, width: int, side: int) -> tuple[int, int]:
    """Return (P, Q), the rows and columns of squares of an image: ⌈H/s⌉, ⌈W/s⌉."""
    return -(-height // side), -(-width // side)


# name → of the parts of squares, Σ max(φ, 0) and Σ max(−φ, 0), their scores
SCORES: dict[str, Callable[[Array, Array], Array]] = {
    "positive": lambda positive, negative: positive,
    "absolute": lambda positive, negative: positive + negative,
    "signed": lambda positive, negative: positive - negative,
    "absolute-sum": lambda positive, negative: abs(positive - negative),
}


def score_parts(parts: Array, score: str) -> Array:
    """Return the scores (N, P, Q) of squares whose parts (N, 2, P, Q) are given.

    positive Σ max(φ, 0) · absolute Σ |φ| · signed Σ φ · absolute-sum |Σ φ|
    """
    return _named("score", score, SCORES)(parts[:, 0], parts[:, 1])


SELECTIONS = ("mass", "count", "area")


def select(
    scores: np.ndarray,
    percents: Sequence[float],
    *,
    by: str = "mass",
    sizes: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Yield for each p the mask of the squares that hold the top p %.

    They are the fewest squares, in descending score, that together reach p % of

    mass:  the sum of all positive scores. A row's scores become integers first (its maximum in
           [2²⁹, 2³⁰), rounded towards zero), so that no sum depends on its order
    count: the number of squares
    area:  the number of pixels, of which squares at the border may have fewer

    Ties go to the lower index; a row without a positive score selects nothing.

    scores:   (N, P, Q) or (N, K) floating point, finite
    percents: in (0, 100], at most two decimals
    sizes:    (K,) of `pixels_of_squares`, which area needs
    yields    bool, in the shape of `scores`
    """
    flat = _flat(scores)
    values = _masses(flat) if by == "mass" else flat
    ordered = -np.sort(-values, axis=1)
    held = ordered  # what each square adds
    if by == "count":
        held = np.ones((1, flat.shape[1]), np.int64)
    elif by == "area":
        if sizes is None:
            raise ValueError("select: by area, the sizes of the squares are needed")
        held = sizes.astype(np.int64)[ranking(flat)]
    total = held.cumsum(axis=1)
    for points in map(basis_points, percents):
        needed = (total - held) * 10_000 < points * total[:, -1:]  # what comes before is too little
        n_chosen = np.where(ordered[:, :1] > 0, needed.sum(axis=1, keepdims=True), 0)
        yield _first(values, ordered, n_chosen).reshape(scores.shape)


def _first(values: np.ndarray, ordered: np.ndarray, n_chosen: np.ndarray) -> np.ndarray:
    """The n (N, 1) highest of each row (N, K); `ordered` are the same, descending."""
    last = np.take_along_axis(ordered, (n_chosen - 1).clip(min=0), axis=1)
    above, ties = values > last, values == last
    n_ties = n_chosen - above.sum(axis=1, keepdims=True)
    return (above | (ties & (ties.cumsum(axis=1) <= n_ties))) & (n_chosen > 0)


def ranking(scores: np.ndarray) -> np.ndarray:
    """Return the squares of each image from the highest score to the lowest: (N, K) int64.

    scores: (N, P, Q) or (N, K); of equal ones the lower index comes first
    """
    return np.argsort(-_flat(scores), axis=1, kind="stable")


def places(ranked: np.ndarray) -> np.ndarray:
    """Return the place of each square in a ranking, 0 the first: the inverse of `ranking`."""
    found = np.empty_like(ranked)
    np.put_along_axis(found, ranked, np.arange(ranked.shape[1])[None], axis=1)
    return found


def as_large(scores: np.ndarray, mask: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return a mask of exactly the area of another: the squares with the highest other scores.

    As many squares of each size as `mask` has, since at the border they may be partial. Masks that
    grow give masks that grow.

    scores: (N, P, Q); ties go to the lower index
    mask:   (N, P, Q) bool
    sizes:  (P·Q,) of `pixels_of_squares`
    """
    flat, selected = _flat(scores), _flat(mask)
    found = np.zeros_like(selected)
    for size in np.unique(sizes):
        of_size = sizes == size
        values = flat[:, of_size]
        n_chosen = selected[:, of_size].sum(axis=1, keepdims=True)
        found[:, of_size] = _first(values, -np.sort(-values, axis=1), n_chosen)
    return found.reshape(mask.shape)


def basis_points(p: float) -> int:
    """Return p percent as a whole number of hundredths of a percent, or raise ValueError."""
    points = round(p * 100)
    if not 0 < points <= 10_000 or abs(points - p * 100) > 1e-6:
        raise ValueError(f"p must be in (0, 100], with at most two decimals; got {p}")
    return points


def _masses(scores: np.ndarray) -> np.ndarray:
    """What is positive of the scores (N, K), in units of their row, int64.

    float64 holds the scaled values exactly, subnormal scores included.
    """
    exact = scores.astype(np.float64).clip(min=0)
    top = exact.max(axis=1, keepdims=True).clip(min=np.finfo(np.float64).tiny)
    _, exponent = np.frexp(top)
    return np.trunc(np.ldexp(exact, 30 - exponent)).astype(np.int64)


def pack(mask: np.ndarray) -> np.ndarray:
    """Return a mask's bits: (N, P, Q) or (N, K) bool → (N, ⌈K/8⌉) uint8.

    Eight squares a byte, the first in the lowest bit; unused bits are zero.
    """
    return np.packbits(_flat(mask), axis=1, bitorder="little")


def unpack(
    bits: Array, shape: tuple[int, ...], *, arange: Callable[..., Array] = np.arange
) -> Array:
    """Return the mask (N, *shape) bool whose bits (N, ⌈K/8⌉) uint8 are given; K = Π shape.

    arange: counts, 0 … n − 1, where the bits are
    """
    eights = bits[:, :, None] & 2 ** arange(8, dtype=bits.dtype) != 0
    flat = eights.reshape(len(bits), 8 * bits.shape[1])
    return flat[:, : prod(shape)].reshape(len(bits), *shape)


def to_pixels(
    values: Array,
    height: int,
    width: int,
    *,
    side: int = 3,
    repeat: Callable[..., Array] = np.repeat,
) -> Array:
    """Return what each pixel's square has, a mask say: (..., P, Q) → (..., H, W), same dtype.

    repeat: each value along an axis; for tensors PyTorch's
    raises  ValueError if an image of that size has other squares
    """
    if tuple(values.shape[-2:]) != grid(height, width, side):
        raise ValueError(
            f"to_pixels: a {height}×{width} image has {grid(height, width, side)} squares of "
            f"side {side}, but the mask has {tuple(values.shape[-2:])}"
        )
    return repeat(repeat(values, side, -2), side, -1)[..., :height, :width]


def area(mask: np.ndarray, height: int, width: int, *, side: int = 3) -> np.ndarray:
    """Return the fraction of an image's pixels in a mask: (N, P, Q) bool → (N,) float64.

    Squares at the right and bottom border may be partial, and count by their pixels.
    """
    n_pixels = _flat(mask) @ pixels_of_squares(mask.shape[1:], height, width, side)
    return n_pixels / (height * width)


def pixels_of_squares(shape: tuple[int, ...], height: int, width: int, side: int) -> np.ndarray:
    """The pixels of each of P × Q squares, (P·Q,) float64: at the borders they may be fewer."""
    heights, widths = (np.full(n, side, dtype=np.float64) for n in shape)
    heights[-1] -= side * shape[0] - height
    widths[-1] -= side * shape[1] - width
    return np.outer(heights, widths).ravel()


FillFunction = Callable[..., Array]
Fill = str | FillFunction  # a name of FILLS, or a function (images, mean) like those

NOISE = 0.01  # of noisy-linear: the standard deviation, images being in [0, 1]
JUST_SEEN = 1 / 510  # half of a step of 8 bits: pixels that differ by less are the same


def _black(images: np.ndarray, mean: Any) -> np.ndarray:
    return np.zeros((1, 1, 1, images.shape[3]))


def _white(images: np.ndarray, mean: Any) -> np.ndarray:
    return np.ones((1, 1, 1, images.shape[3]))


def _mean(images: np.ndarray, mean: Any) -> np.ndarray:
    """The normalisation's mean, which is zero once normalised."""
    if mean is None:
        raise ValueError("fill 'mean' needs the mean of the model's normalisation")
    return np.reshape(mean, (1, 1, 1, images.shape[3]))


def _image_mean(images: np.ndarray, mean: Any) -> np.ndarray:
    """Each image's own mean colour."""
    if images.dtype != np.uint8:
        return images.mean(axis=(1, 2), keepdims=True)  # of tensors, too, which have a derivative
    rows = images.sum(axis=1, keepdims=True, dtype=np.float64)  # exact
    return rows.sum(axis=2, keepdims=True) / (255 * images.shape[1] * images.shape[2])


def _blur(images: np.ndarray, mean: Any, *, sigma: float) -> np.ndarray:
    """Each image itself, by a Gaussian of `sigma` pixels, mirrored at the border."""
    down, across = (_gaussian(length, sigma) for length in images.shape[1:3])
    return np.einsum("ij,njkc,lk->nilc", down, _in_one(images), across, optimize=True)


def _shuffle(images: np.ndarray, mean: Any, *, positions: np.ndarray, seed: int) -> np.ndarray:
    """Each image's own pixels, in an order drawn for its position in the dataset."""
    pixels = _in_one(images).reshape(len(images), -1, images.shape[3])
    drawn = [
        one[rng(seed, Stream.FILL, position).permutation(len(one))]
        for one, position in zip(pixels, positions.tolist(), strict=True)
    ]
    return np.stack(drawn).reshape(images.shape)


def _noisy_linear(
    images: np.ndarray, mean: Any, *, positions: np.ndarray, seed: int, kept: Any, solve: Any
) -> np.ndarray:
    """The weighted mean of each pixel's eight neighbours, with noise (ROAD)."""
    if kept is None or solve is None:
        raise ValueError("fill 'noisy-linear' depends on what is kept, which is not given")
    filled = solve(_in_one(images), kept)
    return filled + noise(images.shape, positions, seed).astype(filled.dtype)


# name → of images (N, H, W, C), uint8 or floating point in [0, 1], and the normalisation's mean
# (C,), or None where there is none, what masked pixels become, in [0, 1]: a colour of all,
# (1, 1, 1, C), or of each image, (N, 1, 1, C), or a picture of each, (N, H, W, C)
FILLS: dict[str, FillFunction] = {
    "black": _black,
    "white": _white,
    "mean": _mean,
    "image-mean": _image_mean,
    "blur": _blur,
    "shuffle": _shuffle,
    "noisy-linear": _noisy_linear,
}
_ASKS = {  # of those that are given more by `fill_values`, what
    "blur": ("sigma",),
    "shuffle": ("positions", "seed"),
    "noisy-linear": ("positions", "seed", "kept", "solve"),
}
DRAWN_FILLS = tuple(name for name, asks in _ASKS.items() if "seed" in asks)
OF_MASK = tuple(name for name, asks in _ASKS.items() if "kept" in asks)


def fill_values(
    images: np.ndarray,
    fill: Fill,
    mean: Any = None,
    *,
    sigma: float = 10,
    positions: np.ndarray | None = None,
    seed: int = 0,
    kept: Array | None = None,
    solve: Callable[..., Array] | None = None,
) -> np.ndarray:
    """Return what masked pixels become, broadcastable to `images`: see `FILLS`.

    images:    (N, H, W, C) uint8, or floating point in [0, 1]
    fill:      a name of FILLS, or a function like those, which is given floating point and a mean
               that is an array, if there is one, whatever comes here
    mean:      (C,) the normalisation's mean; needed by fill `mean` only
    sigma:     of fill `blur`, in pixels
    positions: (N,) of the images in their dataset, by which and by the seed random numbers are
               drawn; 0, 1, … if None
    kept:      (N, H, W) bool, the pixels that stay; needed by `noisy-linear`, whose values are
    solve:     `kernels.inpainted`
    returns    float32, or float64 if the images are
    raises     InputError for an unknown fill, one that needs the mean, or one of one's own that
               does not give what FILLS do
    """
    dtype = np.result_type(images, np.float32)
    if not callable(fill):
        positions = np.arange(len(images)) if positions is None else positions
        about = {"sigma": sigma, "positions": positions, "seed": seed, "kept": kept, "solve": solve}
        asked = {name: about[name] for name in _ASKS.get(fill, ())}
        return np.asarray(fill_of(fill)(images, mean, **asked), dtype)
    mean = None if mean is None else np.asarray(mean)
    values = np.ascontiguousarray(fill(_in_one(images), mean), dtype)
    name, sizes = getattr(fill, "__name__", fill), zip(values.shape, images.shape, strict=False)
    if values.ndim != 4 or any(n not in (1, size) for n, size in sizes):
        raise InputError(
            f"the fill {name} gives {values.shape}, which does not fit images {images.shape}"
        )
    if not (values.min(initial=0) >= 0 and values.max(initial=1) <= 1):  # NaN included
        raise InputError(f"the fill {name} gives values outside [0, 1]")
    return values


def noise(shape: tuple[int, ...], positions: np.ndarray, seed: int) -> np.ndarray:
    """Return N(0, NOISE²) of each pixel and channel of images (N, ...), float32.

    The same for every mask of an image, since it depends on seed and position alone.
    """
    drawn = [
        rng(seed, Stream.FILL, position).standard_normal(shape[1:], np.float32)
        for position in np.asarray(positions).tolist()
    ]
    return np.float32(NOISE) * np.stack(drawn).reshape(shape)


def fill_of(name: str) -> FillFunction:
    """Return the fill of a name, or raise InputError."""
    return _named("fill", name, FILLS)


def common_fill(fill: Fill, n_channels: int, mean: Any = None) -> np.ndarray | None:
    """Return what a fill is for any image, (1, 1, 1, C) float64, or None if each has its own."""
    if callable(fill) or fill in OF_MASK:
        return None
    values = fill_values(np.zeros((2, 1, 1, n_channels)), fill, mean)
    return values if len(values) == 1 else None


def _gaussian(length: int, sigma: float) -> np.ndarray:
    """The matrix that blurs a line of pixels: 3 σ to either side, mirrored without the edge."""
    radius = min(ceil(3 * sigma), length - 1)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    at = np.abs(np.arange(length)[:, None] + np.arange(-radius, radius + 1))
    at = np.where(at < length, at, 2 * (length - 1) - at)
    found = np.zeros((length, length))
    np.add.at(found, (np.arange(length)[:, None], at), weights / weights.sum())
    return found


def _in_one(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1]."""
    return images / np.float32(255) if images.dtype == np.uint8 else images


def _flat(values: np.ndarray) -> np.ndarray:
    """The squares of each image in one row, of no image too."""
    return values.reshape(len(values), prod(values.shape[1:]))


def _named(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in tuple(known):
        raise InputError(f"unknown {kind} {name!r}; choose from {', '.join(known)}")
    return known[name]
