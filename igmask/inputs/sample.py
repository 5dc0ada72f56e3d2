"""Some images of a dataset, and what a network says of them: a look ahead, before all of them."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from igmask.asked.settings import Geometry
from igmask.errors import InputError
from igmask.inputs import models
from igmask.inputs.decode import fit

N_IMAGES = 64

_FEWEST = 8  # decoded, however long it takes
_BATCH = 4
_DECODE_S, _PREDICT_S = 5.0, 8.0  # after which no more images are tried


def images(
    records: pd.DataFrame, open_image: Callable[[Any], Image.Image], geometry: Geometry
) -> dict[int, np.ndarray | InputError]:
    """Return {row: image, or why there is none} of some records, drawn from all, the same always.

    Images are (size, size, 3) uint8; there are fewer than `N_IMAGES` where decoding takes long.

    records, open_image: of `data.index` and `data.opener`
    """
    rows = np.random.default_rng(0).permutation(len(records))[:N_IMAGES]
    found: dict[int, np.ndarray | InputError] = {}
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, on what it then decodes all the same
        for row, record in zip(rows, records.iloc[rows].itertuples(index=False), strict=True):
            if len(found) >= _FEWEST and time.perf_counter() - start > _DECODE_S:
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

    images: (N, H, W, 3) uint8
    """
    found = [np.zeros(0, dtype=np.int64)]
    start = time.perf_counter()
    with torch.no_grad():
        for first in range(0, len(images), _BATCH):
            if first and time.perf_counter() - start > _PREDICT_S:
                break
            scores = network(models.pixels(images[first : first + _BATCH], device))
            found.append(scores.argmax(dim=1).cpu().numpy())
    return np.concatenate(found)
