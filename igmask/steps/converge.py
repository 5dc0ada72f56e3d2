"""Step: masks of converged attributions of some images → how far the study's masks are off."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from igmask import arrays
from igmask.asked import recipes
from igmask.asked.recipes import CONVERGED, Converge, stamp
from igmask.errors import InputError
from igmask.plain import unpack
from igmask.progress import say
from igmask.steps.attribute import attribute
from igmask.steps.evaluate import evaluate
from igmask.steps.mask import mask
from igmask.streams import Stream, rng

N_STEPS = 400  # placed where f changes: masks as those of some thousands of equal steps


def converge(
    image_paths: list[Path],
    folder: Path,
    recipe: Converge,
    *,
    masks: list[Path],
    batch_size: int | None = None,
    device: str = "auto",
) -> None:
    """Write agreement.parquet, and the records of the images under converged masks, in records/.

    agreement.parquet has a row an image and p: name, p, and the intersection over union (iou) of
    its mask with the converged one, 1 where both are empty. The images are drawn by the seed.
    scores.npy and masks/ hold the converged ones.

    image_paths, masks: of all shards, in order, and of `mask`, a file a p
    """
    sample, scores = folder / "images.npy", folder / "scores.npy"
    rows = _write_sample(image_paths, sample, recipe)
    asked = replace(recipe.attribution, rule="adaptive", n_steps=N_STEPS, skip=None)
    of = recipes.Attribute(recipe.model, asked, recipe.side, recipe.seed)
    say(f"converged attributions of {len(rows)} images")
    attribute(sample, scores, of, batch_size=batch_size, device=device)
    own = [arrays.Shards([path]) for path in masks]
    ps = tuple(one.settings["p"] for one in own)
    mask([scores], folder / "masks", recipes.Mask(ps, by=recipe.by, score=recipe.score))
    converged = [folder / "masks" / path.name for path in masks]
    shown = recipes.Evaluate(
        recipe.model, recipe.name, modes=recipe.modes, fills=recipe.fills, controls=(),
        blur_sigma=recipe.fill_blur_sigma, points=0, seed=recipe.seed, masks_of=CONVERGED,
    )  # fmt: skip
    how: dict[str, Any] = {
        "masks": converged,
        "scores": [scores],
        "batch_size": batch_size,
        "device": device,
    }
    evaluate([sample], folder / "records", shown, **how)
    found = []
    for p, one, path in zip(ps, own, converged, strict=True):
        grid = tuple(one.settings["grid"])
        there = (unpack(values, grid) for values in (one.read(rows), arrays.read_array(path)))
        names = one.records["name"].iloc[rows].to_numpy()
        found.append(pd.DataFrame({"name": names, "p": p, "iou": iou(*there)}))
    made_by = {key: value for key, value in own[0].settings.items() if key != "p"}
    made_by |= stamp("converge", made_by) | recipes.made_by(recipe)
    made_by["read"] = {"masks": arrays.digest(pd.concat([one.records for one in own]))}
    arrays.write_records(folder / "agreement.parquet", pd.concat(found, ignore_index=True), made_by)


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection over union of masks (n, P, Q) bool, 1 where both are empty: (n,)."""
    both, either = (of.sum(axis=(1, 2)) for of in (first & second, first | second))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def _write_sample(image_paths: list[Path], output: Path, recipe: Converge) -> np.ndarray:
    """Write some of the images, and return which of all they are."""
    images = arrays.Shards(image_paths)
    n = len(images.records)
    if not n:
        raise InputError("no image of the dataset is usable, so there is nothing to attribute")
    drawn = rng(recipe.seed, Stream.CONVERGE).permutation(n)
    rows = np.sort(drawn[: recipe.n_images])
    with arrays.writing(output, np.uint8, images.row_shape) as writer:
        for first in range(0, len(rows), 256):
            writer.append(images.read(rows[first : first + 256]))
    records = images.records.iloc[rows].reset_index(drop=True)
    records[arrays.CHECKSUM] = writer.checksums
    settings = images.settings | {"shard": "1-of-1"}
    arrays.write_records(arrays.records_of(output), records, settings)
    return rows
