"""Step: masks of every p → the class of each image that a linear classifier reads from them."""

from pathlib import Path

import numpy as np
import pandas as pd

from igmask import arrays
from igmask.asked.recipes import Probe, stamp
from igmask.asked.recipes import made_by as said_of
from igmask.inputs.classes import NO_LABEL, label_or_predicted
from igmask.plain import unpack
from igmask.progress import progress
from igmask.statistics.probe import FOLDS, of_numbers
from igmask.statistics.probe import probe as read

_CHUNK = 4096  # images whose squares are counted


def probe(mask_paths: list[Path], output: Path, recipe: Probe) -> None:
    """Write a record an image and p: what is read from its mask, and from the number of squares.

    Columns: name, label, p, from_mask and from_number, classes, or −1 where there are fewer than
    ten images or one class only, of which nothing can be read. The label of an image that has none
    is the class predicted for it.

    mask_paths: of `mask`, a file a p
    """
    found, read_of = [], {}
    for path in progress(mask_paths, total=len(mask_paths), unit="masks", label="probe"):
        masks = arrays.Shards([path])
        records, label = masks.records, label_or_predicted(masks.records).to_numpy()
        of = records[["name"]].assign(label=label, p=masks.settings["p"])
        found.append(of.assign(**_read(masks, label, recipe.seed)))
        read_of[path] = masks
    last = read_of[mask_paths[-1]]
    settings = {key: value for key, value in last.settings.items() if key != "p"}
    settings |= stamp("probe", settings) | said_of(recipe)
    settings["read"] = {"masks": arrays.digest(pd.concat([of.records for of in read_of.values()]))}
    arrays.write_records(output, pd.concat(found, ignore_index=True), settings)


def _read(masks: arrays.Shards, label: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The classes read from masks, and from how many squares they have."""
    grid, names = tuple(masks.settings["grid"]), masks.records["name"].to_numpy()
    if len(label) < 2 * FOLDS or len(np.unique(label)) == 1:
        nothing = np.full(len(label), NO_LABEL, dtype=np.int64)
        return {"from_mask": nothing, "from_number": nothing}

    def bits(rows: np.ndarray) -> np.ndarray:
        return unpack(masks.read(rows), grid).reshape(len(rows), -1).astype(np.uint8)

    starts = range(0, len(label), _CHUNK)
    chunks = (np.arange(first, min(first + _CHUNK, len(label))) for first in starts)
    numbers = of_numbers(np.concatenate([bits(rows).sum(axis=1) for rows in chunks]))
    return {
        "from_mask": read(bits, label, names, seed=seed),
        "from_number": read(lambda rows: numbers[rows], label, names, seed=seed),
    }
