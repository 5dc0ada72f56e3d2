"""Other masks, to set beside those of a selection: as large, of other squares.

A control scores an image's squares in its own way, and its mask is made of the highest: of each
size of square as many as the selection has (`plain.as_large`), so exactly its area. Another one is
a function, its entry in `CONTROLS`, and its name in `asked.settings`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from igmask import arrays
from igmask.errors import InputError
from igmask.inputs.classes import label_or_predicted
from igmask.inputs.own import called
from igmask.plain import pixels_of_squares, places, ranking, score_parts
from igmask.streams import Stream, rng

_CHUNK = 256  # images whose rankings are summed at a time


@dataclass(frozen=True)
class Dataset:
    """What controls may ask of all images: the scores by which squares were selected, classes.

    parts: of the squares, all shards
    score: of `plain.SCORES`
    seed:  of what is drawn
    randomised: parts by the network with weights drawn anew, where they are asked for
    """

    parts: arrays.Shards
    score: str
    seed: int
    randomised: arrays.Shards | None = None

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Return the scores (n, P, Q) of some images, by their rows among all."""
        return score_parts(self.parts.read(rows), self.score)

    @property
    def grid(self) -> tuple[int, ...]:
        """Return (P, Q)."""
        return self.parts.row_shape[1:]

    @cached_property
    def classes(self) -> np.ndarray:
        """The label of each image, or if it has none the class predicted: (N,) int64."""
        return label_or_predicted(self.parts.records).to_numpy()

    @cached_property
    def ranked(self) -> np.ndarray:
        """Whether each image has a ranking, (N,) bool: others are no image's partner."""
        chunks = self.parts.batches(_CHUNK)
        return np.concatenate([has_ranking(score_parts(c.values, self.score)) for c in chunks])

    @cached_property
    def by_class(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows that have a ranking, class by class, and where each class begins, and ends."""
        n_classes = int(self.classes.max(initial=0)) + 1
        [rows] = np.nonzero(self.ranked)
        counts = np.bincount(self.classes[rows], minlength=n_classes)
        return rows[np.argsort(self.classes[rows], kind="stable")], np.cumsum([0, *counts])

    @cached_property
    def places(self) -> tuple[np.ndarray, int]:
        """Each square's place summed over the rankings of all images, (K,) int64, and their number.

        In one reading of the scores, which may be gigabytes.
        """
        total, n = np.zeros(int(np.prod(self.grid)), dtype=np.int64), 0
        for chunk in self.parts.batches(_CHUNK):
            scores = score_parts(chunk.values, self.score)
            ranked = places(ranking(scores[has_ranking(scores)]))
            total, n = total + ranked.sum(axis=0), n + len(ranked)
        return total, n

    def rng(self, row: int, draw: int) -> np.random.Generator:
        """Return the random numbers of a draw of an image, by its place in the dataset alone."""
        position = int(self.parts.records["position"].iloc[row])
        return rng(self.seed, Stream.CONTROL, position, draw)


class Batch(NamedTuple):
    """The images for which a control is asked.

    images: (n, H, W, 3) uint8
    rows:   (n,) their places among all images
    draw:   0, 1, …
    """

    images: np.ndarray
    rows: np.ndarray
    draw: int = 0


class Control(NamedTuple):
    """Other scores of squares.

    scores: (dataset, batch) → (n, P, Q), the highest first; a row of NaN for an image of which
            there are none
    is_of:  what stands under the tables: "top-1 with …"
    """

    scores: Callable[[Dataset, Batch], np.ndarray]
    is_of: str


def control_of(name: str) -> Control:
    """Return the control of a name: one of CONTROLS, or a function of one's own.

    It is called with images (n, H, W, 3) float32 in [0, 1], their scores (n, P, Q) float32 and the
    seed, and returns other scores of that shape.

    raises InputError (when called) if the function fails, or returns something else or NaN
    """
    return CONTROLS.get(name) or Control(partial(_own, name), f"the highest squares of {name}")


def own_scores(name: str, images: np.ndarray, scores: np.ndarray, seed: int) -> np.ndarray:
    """Return what a function of one's own says of bytes of images, checked."""
    found = called(name, images / np.float32(255), scores.copy(), seed)
    if (
        not isinstance(found, np.ndarray)
        or found.shape != scores.shape
        or found.dtype.kind in "OUS"
    ):
        came = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found)
        raise InputError(
            f"the control {name} returned {came}, not scores of squares {scores.shape}"
        )
    return found.astype(np.float64)


def has_ranking(scores: np.ndarray) -> np.ndarray:
    """Return of which images some squares come before others, (n,) bool."""
    flat = scores.reshape(len(scores), -1)
    differ = flat.max(axis=1) > flat.min(axis=1)
    return np.isfinite(flat).all(axis=1) & (differ | (flat.shape[1] == 1))


def _own(name: str, dataset: Dataset, batch: Batch) -> np.ndarray:
    found = own_scores(name, batch.images, dataset.scores(batch.rows), dataset.seed)
    bad = ~np.isfinite(found).all(axis=(1, 2))
    if bad.any():
        image = dataset.parts.records["name"].iloc[batch.rows[bad][0]]
        raise InputError(f"the control {name} gives scores that are not finite for {image}")
    return found


def _random(dataset: Dataset, batch: Batch) -> np.ndarray:
    n_squares = int(np.prod(dataset.grid))
    drawn = [dataset.rng(row, batch.draw).permutation(n_squares) for row in batch.rows.tolist()]
    return np.stack(drawn).reshape(-1, *dataset.grid).astype(np.float32)


def _shifted(dataset: Dataset, batch: Batch) -> np.ndarray:
    """The image's own ranking, its ties in order, moved by as much as was drawn, never by 0."""
    n_rows, n_columns = dataset.grid
    scores = dataset.scores(batch.rows)
    own, has = -places(ranking(scores)).reshape(scores.shape), has_ranking(scores)
    shifted = np.full(own.shape, np.nan)
    if n_rows * n_columns > 1:
        for i, row in enumerate(batch.rows.tolist()):
            if not has[i]:
                continue
            by = int(dataset.rng(row, batch.draw).integers(1, n_rows * n_columns))
            shifted[i] = np.roll(own[i], divmod(by, n_columns), axis=(0, 1))
    return shifted


def _of_another(dataset: Dataset, batch: Batch, *, same_class: bool) -> np.ndarray:
    """The scores of an image drawn from those of the same class, without itself, or of others."""
    rows, starts = dataset.by_class
    found = np.full((len(batch.rows), *dataset.grid), np.nan)
    partners = np.full(len(batch.rows), -1)
    for i, row in enumerate(batch.rows.tolist()):
        first, end = starts[dataset.classes[row] :][:2]
        n = end - first - dataset.ranked[row] if same_class else len(rows) - (end - first)
        if not n:
            continue
        place = int(dataset.rng(row, batch.draw).integers(n))
        if same_class:  # counted from the first of the class, without the image itself
            own = first + np.searchsorted(rows[first:end], row)
            place += first
            place += dataset.ranked[row] and place >= own
        elif place >= first:  # counted without the class
            place += end - first
        partners[i] = rows[place]
    has = partners >= 0
    if has.any():
        found[has] = dataset.scores(partners[has])
    return found


def _edges(dataset: Dataset, batch: Batch) -> np.ndarray:
    """The energy of each square's edges: Σ (∂x)² + (∂y)² by Sobel's filters, of grey pixels."""
    grey = np.pad(batch.images.mean(axis=3), ((0, 0), (1, 1), (1, 1)), mode="edge")
    down = grey[:, 2:] - grey[:, :-2]
    across = grey[:, :, 2:] - grey[:, :, :-2]
    dy = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    dx = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    return _per_square(dx**2 + dy**2, dataset.grid, dataset.parts.settings["side"])


def _position(dataset: Dataset, batch: Batch) -> np.ndarray:
    """The mean place of each square in the rankings of all other images that have one."""
    scores = dataset.scores(batch.rows)
    has = has_ranking(scores)[:, None]
    total, n = dataset.places
    others, n_others = total - np.where(has, places(ranking(scores)), 0), n - has
    found = np.where(n_others > 0, -others / np.maximum(n_others, 1), np.nan)
    return found.reshape(scores.shape)


def _randomised(dataset: Dataset, batch: Batch) -> np.ndarray:
    if dataset.randomised is None:
        raise InputError("the control randomised needs the scores of the randomised network, too")
    return score_parts(dataset.randomised.read(batch.rows), dataset.score)


def _per_square(pixels: np.ndarray, grid: tuple[int, ...], side: int) -> np.ndarray:
    """The mean over each square of pixels (n, H, W), since those at the border may be partial."""
    height, width = pixels.shape[1:]
    rows, columns = (np.arange(0, length, side) for length in (height, width))
    sums = np.add.reduceat(np.add.reduceat(pixels, rows, axis=1), columns, axis=2)
    return sums / pixels_of_squares(grid, height, width, side).reshape(grid)


CONTROLS = {
    "random": Control(_random, "squares drawn at random"),
    "shifted": Control(_shifted, "the image's own ranking shifted on the torus"),
    "other-class": Control(
        partial(_of_another, same_class=False), "the ranking of an image of another class"
    ),
    "same-class": Control(
        partial(_of_another, same_class=True), "the ranking of another image of the class"
    ),
    "edges": Control(_edges, "the squares with the strongest edges (Sobel)"),
    "position": Control(_position, "the mean ranking of all other images"),
    "randomised": Control(
        _randomised, "the attribution by the same network with weights drawn anew, of its logit"
    ),
}
