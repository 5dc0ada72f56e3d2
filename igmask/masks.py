"""Masks of squares on disk: the step that selects, their area, random masks to compare with.

NumPy alone, since a job of this step takes less time than importing torch. Its selection is that of
`kernels.select`, to the bit; the kernels are for masks that are used where they are made.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from igmask import arrays
from igmask.config import percent, stamp
from igmask.errors import InputError, refuse
from igmask.progress import progress

_CHUNK = 256  # images selected at a time

_STREAM = 1  # of random numbers; noise baselines have another


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
    n_pixels = mask.reshape(len(mask), -1) @ _sizes(mask.shape[1:], height, width, side)
    return n_pixels / (height * width)


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
    sizes = _sizes(mask.shape[1:], height, width, side)
    drawn = np.zeros_like(flat)
    for row, (position, n_pixels) in enumerate(zip(positions.tolist(), flat @ sizes, strict=True)):
        rng = np.random.default_rng([seed, _STREAM, position])
        order = rng.permutation(len(sizes))
        sizes_drawn, share = sizes[order], rng.random()
        missing = n_pixels - (sizes_drawn.cumsum() - sizes_drawn)  # before each of them
        drawn[row, order] = missing > share * sizes_drawn
    return drawn.reshape(mask.shape)


class Control(NamedTuple):
    """Other masks of the same area, to set beside those of a selection.

    like: (mask, positions, height, width, side=, seed=) → masks, as `random_like`
    is_of: what stands under the tables: "top-1 with …"
    """

    like: Callable[..., np.ndarray]
    is_of: str


CONTROLS = {
    "random": Control(random_like, "squares of the same area of each image, drawn at random"),
}


def _sizes(shape: tuple[int, ...], height: int, width: int, side: int) -> np.ndarray:
    """The pixels of each of P × Q squares, (P·Q,) float64: at the borders they may be fewer."""
    heights, widths = (np.full(n, side, dtype=np.float64) for n in shape)
    heights[-1] -= side * shape[0] - height
    widths[-1] -= side * shape[1] - width
    return np.outer(heights, widths).ravel()


def write_masks(
    score_paths: list[Path], folder: Path, *, percents: Sequence[float], by: str, score: str
) -> None:
    """Write the selection of every image for each p, all shards in order: 50.npy and its like.

    A bit a square, (N, ⌈K/8⌉) uint8. The records beside it carry on the images' names, labels and
    predictions, and add `n_selected`, the number of squares.

    percents, by, score: see `kernels.select` and `kernels.score_parts`
    raises               InputError naming the images whose scores are damaged or not finite, or for
                         a p twice
    """
    outputs = [folder / f"{percent(p)}.npy" for p in percents]
    if len(set(outputs)) < len(outputs):
        raise InputError(f"a p is there twice among {', '.join(map(percent, percents))}")
    shards = arrays.Shards(score_paths)
    records = shards.records
    if records.empty:
        raise InputError("no image of the dataset is usable, so there is nothing to mask")
    grid = shards.row_shape[1:]
    counts = np.zeros((len(outputs), len(records)), dtype=np.int64)
    with ExitStack() as stack:
        n_bytes = -(-grid[0] * grid[1] // 8)
        writers = [
            stack.enter_context(arrays.writing(output, np.uint8, (n_bytes,))) for output in outputs
        ]
        chunks, n_chunks = shards.batches(_CHUNK), shards.n_batches(_CHUNK)
        for first, parts in progress(chunks, total=n_chunks, unit="chunks", label="mask"):
            rows = slice(first, first + len(parts))
            scores = score_parts(parts, score)
            bad = ~np.isfinite(scores).all(axis=(1, 2))
            refuse("scores of", records["name"][rows], bad.tolist())
            for i, mask in enumerate(select(scores, percents, by=by)):
                writers[i].append(pack(mask))
                counts[i, rows] = mask.sum(axis=(1, 2))
    error = records["relative_completeness"]
    made_by = shards.settings | stamp("mask", shards.settings)
    made_by |= {
        "read": {"scores": arrays.digest(records)},
        "grid": list(grid),
        "by": by,
        "score": score,
        "completeness": {
            "mean": error.mean(),
            "median": error.median(),
            "max": error.max(),
            "n_without_change": int(error.isna().sum()),
        },
    }
    kept = records[["name", "label", "position", "predicted"]]
    for p, output, bits, n_selected in zip(percents, outputs, writers, counts, strict=True):
        own = kept.assign(n_selected=n_selected, crc32=bits.checksums)
        arrays.write_records(arrays.records_of(output), own, made_by | {"p": p})
