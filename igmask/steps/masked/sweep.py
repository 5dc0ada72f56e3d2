"""What a network says of images of which more and more is kept, in the order of a ranking.

At each of some shares of the area, nothing and all among them: with mode keep the first squares of
the ranking stay, so that the least important go first (LIF); with mode drop these go (MIF). Both
are cut at the same squares, so that one shows what the other does not.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from igmask import arrays
from igmask.asked.recipes import QUANTITIES, STUDIED
from igmask.errors import refuse
from igmask.plain import pixels_of_squares, places, ranking
from igmask.progress import progress
from igmask.steps.masked.controls import Batch, Dataset, control_of, has_ranking
from igmask.steps.masked.shown import Network, Shown


class Cuts(NamedTuple):
    """Where the rankings of some images are cut.

    places: (n, K) of each square in its image's ranking, 0 the first
    counts: (n, points) how many squares come before each cut
    areas:  (n, points) the share of the pixels that they hold
    """

    places: np.ndarray
    counts: np.ndarray
    areas: np.ndarray


def cuts(scores: np.ndarray, sizes: np.ndarray, points: int) -> Cuts:
    """Return the cuts at 0, 1 / (points − 1), …, 1 of the area: the fewest squares that reach it.

    scores: (n, P, Q), the highest first; ties go to the lower index
    sizes:  (P·Q,) of `plain.pixels_of_squares`
    """
    ranked = ranking(scores)
    held = sizes.astype(np.int64)[ranked].cumsum(axis=1)
    total = held[:, -1:]
    shares = np.arange(points)
    counts = np.stack([(held * (points - 1) < share * total).sum(axis=1) for share in shares], 1)
    counts += shares > 0  # the square that reaches it
    before = np.concatenate([np.zeros_like(total), held], axis=1)
    return Cuts(places(ranked), counts, np.take_along_axis(before, counts, axis=1) / total)


def sweep(
    label: str,
    network: Network,
    images: arrays.Shards,
    dataset: Dataset,
    made_by: dict[str, Any],
    batch_size: int,
) -> Iterator[np.ndarray]:
    """Yield the rows of a curve, (n, points, 4) float32, batch by batch: QUANTITIES.

    area_kept: the share of pixels that are as they were;  probability: of the class predicted for
    the original;  correct, agreement: 1 where the prediction is the label, and where it is that of
    the original. NaN for an image that has no ranking.

    made_by: what the curve says of its making
    """
    batches, n_batches = images.batches(batch_size, full=True), images.n_batches(batch_size)
    for batch in progress(batches, total=n_batches, unit="batches", label=label):
        records = dataset.parts.records.iloc[batch.rows]
        yield _of_batch(network, batch, records, dataset, made_by)[: batch.n_live]


def _of_batch(
    network: Network,
    batch: arrays.Batch,
    records: pd.DataFrame,
    dataset: Dataset,
    made_by: dict[str, Any],
) -> np.ndarray:
    mask, size = made_by["mask"], batch.values.shape[1]
    scores = dataset.scores(batch.rows)
    if mask not in STUDIED:
        scores = control_of(mask).scores(dataset, Batch(batch.values, batch.rows))
    sizes = pixels_of_squares(scores.shape[1:], size, size, made_by["side"])
    cut = cuts(scores, sizes, made_by["points"])
    original = records["predicted"].to_numpy()
    label = dataset.classes[batch.rows]
    shown = Shown(network, batch.values, records["position"].to_numpy(), made_by)
    has = has_ranking(scores)
    found = np.empty((len(scores), made_by["points"], len(QUANTITIES)), dtype=np.float32)
    for point in range(made_by["points"]):
        kept = cut.places < cut.counts[:, point, None]
        area = cut.areas[:, point]
        if made_by["mode"] == "drop":
            kept, area = ~kept, 1 - area
        with torch.no_grad():
            inputs, _ = shown.input(kept.reshape(scores.shape))
            said = network.classifier(inputs).softmax(dim=1).numpy(force=True)
        # Of an image all masked there may be no answer: nothing is asked of it but on a curve.
        bad = np.isnan(said).any(axis=1) & has & kept.any(axis=1)
        refuse("outputs for", records["name"], bad.tolist())
        predicted = said.argmax(axis=1)
        probability = np.take_along_axis(said, original[:, None], axis=1)[:, 0]
        found[:, point] = np.stack(
            [area, probability, predicted == label, predicted == original], axis=1
        )
    found[~has] = np.nan
    return found
