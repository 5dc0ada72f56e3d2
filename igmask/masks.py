"""Masks of squares: their area, random masks to compare with, and the step that selects."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from igmask import arrays
from igmask.config import percent
from igmask.errors import InputError, refuse
from igmask.kernels import score_parts, select_bits, unpack
from igmask.progress import progress

_CHUNK = 1024  # images selected at a time

_STREAM = 1  # of random numbers; noise baselines have another


def area(mask: Tensor, height: int, width: int, *, side: int = 3) -> Tensor:
    """Return the fraction of an image's pixels in a mask: (N, P, Q) bool → (N,) float64.

    Squares at the right and bottom border may be partial, and count by their pixels.
    """
    heights = torch.full((mask.shape[1],), side, dtype=torch.float64)
    widths = torch.full((mask.shape[2],), side, dtype=torch.float64)
    heights[-1] -= side * mask.shape[1] - height
    widths[-1] -= side * mask.shape[2] - width
    n_pixels = torch.einsum("npq,p,q->n", mask.double().cpu(), heights, widths)
    return n_pixels / (height * width)


def random_like(mask: Tensor, positions: np.ndarray, *, seed: int) -> Tensor:
    """Return masks of as many squares, drawn at random for each image: (N, P, Q) bool.

    An image's draw depends on the seed and its position in the dataset only, so it is the same in
    every shard; the draws of growing masks contain each other, as selections of growing p do.
    """
    flat = mask.flatten(1)
    drawn = np.zeros(flat.shape, dtype=bool)
    for row, (position, n_squares) in enumerate(
        zip(positions.tolist(), flat.sum(dim=1).tolist(), strict=True)
    ):
        order = np.random.default_rng([seed, _STREAM, position]).permutation(flat.shape[1])
        drawn[row, order[:n_squares]] = True
    return torch.from_numpy(drawn).to(mask.device).view(mask.shape)


def write_masks(score_paths: list[Path], output: Path, *, p: float, by: str, score: str) -> None:
    """Write the selection of every image, all shards in order, a bit a square: (N, ⌈K/8⌉) uint8.

    The records beside it carry on the images' names, labels and predictions, and add `n_selected`,
    the number of squares.

    p, by, score: see `kernels.select` and `kernels.score_parts`
    """
    shards, records, made_by = arrays.read_shards(score_paths)
    if records.empty:
        raise InputError("no image of the dataset is usable, so there is nothing to mask")
    grid = shards[0].shape[2:]
    chunks = [
        shard[start : start + _CHUNK] for shard in shards for start in range(0, len(shard), _CHUNK)
    ]
    counts: list[int] = []
    with arrays.writing(output, np.uint8, (-(-grid[0] * grid[1] // 8),)) as bits:
        for parts in progress(chunks, total=len(chunks), unit="chunks", label=f"mask {percent(p)}"):
            scores = score_parts(torch.from_numpy(np.array(parts)), score)
            names = records["name"].iloc[len(counts) : len(counts) + len(parts)]
            refuse("scores of", names, (~scores.isfinite().flatten(1).all(dim=1)).tolist())
            (chosen,) = select_bits(scores, [p], by=by)
            bits.append(chosen.numpy())
            counts += unpack(chosen, tuple(grid)).flatten(1).sum(dim=1).tolist()
    error = records["relative_completeness"]
    made_by |= {
        "step": "mask",
        "grid": list(grid),
        "p": p,
        "by": by,
        "score": score,
        "completeness": {
            "mean": error.mean(),
            "median": error.median(),
            "max": error.max(),
            "n_without_change": int(error.isna().sum()),
        },
    }
    kept = records[["name", "label", "position", "predicted"]].assign(n_selected=counts)
    arrays.write_records(arrays.records_of(output), kept, made_by)
