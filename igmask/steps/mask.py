"""Step: the scores of all shards → the squares that hold the top p %, a bit each, for each p."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from igmask import arrays
from igmask.asked.recipes import Mask, stamp
from igmask.asked.settings import percent
from igmask.errors import InputError, refuse
from igmask.plain import pack, pixels_of_squares, score_parts, select
from igmask.progress import progress

_FAR = 0.1  # from where on a relative error of completeness is counted
_CHUNK = 256  # images selected at a time


def mask(score_paths: list[Path], folder: Path, recipe: Mask) -> None:
    """Write the selection of every image for each p, all shards in order: 50.npy and its like.

    A bit a square, (N, ⌈K/8⌉) uint8. The records beside it carry on the images' names, labels and
    predictions, and add `n_selected`, the number of squares.

    raises InputError naming the images whose scores are damaged or not finite, or for a p twice
    """
    outputs = [folder / f"{percent(p)}.npy" for p in recipe.p]
    if len(set(outputs)) < len(outputs):
        raise InputError(f"a p is there twice among {', '.join(map(percent, recipe.p))}")
    shards = arrays.Shards(score_paths)
    records = shards.records
    if records.empty:
        raise InputError("no image of the dataset is usable, so there is nothing to mask")
    grid = shards.row_shape[1:]
    size, side = shards.settings["geometry"]["size"], shards.settings["side"]
    sizes = pixels_of_squares(grid, size, size, side)
    counts = np.zeros((len(outputs), len(records)), dtype=np.int64)
    with ExitStack() as stack:
        n_bytes = -(-grid[0] * grid[1] // 8)
        writers = [
            stack.enter_context(arrays.writing(output, np.uint8, (n_bytes,))) for output in outputs
        ]
        chunks, n_chunks = shards.batches(_CHUNK), shards.n_batches(_CHUNK)
        for chunk in progress(chunks, total=n_chunks, unit="chunks", label="mask"):
            scores = score_parts(chunk.values, recipe.score)
            bad = ~np.isfinite(scores).all(axis=(1, 2))
            refuse("scores of", records["name"][chunk.rows], bad.tolist())
            for i, chosen in enumerate(select(scores, recipe.p, by=recipe.by, sizes=sizes)):
                writers[i].append(pack(chosen))
                counts[i, chunk.rows] = chosen.sum(axis=(1, 2))
    error = records["relative_completeness"]
    spread = error.agg(["mean", "median", "max"]).to_dict()  # for the notes under the tables
    spread["n_without_change"] = int(error.isna().sum())
    spread["share_above"] = float((error.dropna() > _FAR).mean())
    made_by = shards.settings | stamp("mask", shards.settings)
    made_by |= {
        "read": {"scores": arrays.digest(records)},
        "grid": list(grid),
        "by": recipe.by,
        "score": recipe.score,
        "completeness": spread if error.notna().any() else None,
    }
    kept = records[["name", "label", "position", "predicted"]]
    for p, output, bits, n_selected in zip(recipe.p, outputs, writers, counts, strict=True):
        own = kept.assign(n_selected=n_selected, crc32=bits.checksums)
        arrays.write_records(arrays.records_of(output), own, made_by | {"p": p})
