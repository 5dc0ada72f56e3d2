"""Some images of a dataset, and what a network says of them: a look ahead, before all of them."""

import dataclasses
import time
import warnings

import numpy as np
import pandas as pd
import torch
from torch import nn

from igmask import models
from igmask.config import Dataset, Geometry
from igmask.data import opener
from igmask.decode import fit
from igmask.errors import InputError

N_IMAGES = 64

_FEWEST = 8  # decoded, however long it takes
_BATCH = 4
_BUDGET_S = 5.0  # to decode, and again to predict


def images(
    records: pd.DataFrame, dataset: Dataset, geometry: Geometry, *, seed: int
) -> dict[int, np.ndarray | InputError]:
    """Return {row: image, or why there is none} of some records, drawn from all, the same always.

    Images are (size, size, 3) uint8; there are fewer than `N_IMAGES` where decoding takes long.

    records: of `data.index`
    seed:    of the demo's images
    """
    rows = np.random.default_rng(0).permutation(len(records))[:N_IMAGES]
    open_image = opener(dataclasses.replace(dataset, download=False), seed=seed)
    found: dict[int, np.ndarray | InputError] = {}
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, on what it then decodes all the same
        for row, record in zip(rows, records.iloc[rows].itertuples(index=False), strict=True):
            if len(found) >= _FEWEST and time.perf_counter() - start > _BUDGET_S:
                break
            try:
                found[int(row)] = fit(open_image(record), geometry)
            except InputError as error:
                found[int(row)] = error
    return found


def predicted(
    network: nn.Module, images: np.ndarray, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Return the classes (n,) int64 of the first n images; a slow network answers not to all.

    images: (N, H, W, 3) uint8, N > 0
    """
    found: list[np.ndarray] = []
    start = time.perf_counter()
    with torch.no_grad():
        for first in range(0, len(images), _BATCH):
            if found and time.perf_counter() - start > _BUDGET_S:
                break
            scores = network(models.pixels(images[first : first + _BATCH], device))
            found.append(scores.argmax(dim=1).cpu().numpy())
    return np.concatenate(found)
