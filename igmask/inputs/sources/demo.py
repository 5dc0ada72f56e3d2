"""The drawn data set of the demo: ten kinds of painted eggs on clutter, 64×64 RGB, from a seed.

Nothing is downloaded. An image depends on (seed, split, position) alone, so shards can be drawn in
any order and on any machine. As in photographs, a class shows in more than one way, its pattern and
its colour, and parts of it are hidden: networks learn within seconds, and bear some black squares.
Two kinds are dark, so that an image most of which is black looks like them rather than like none.
NumPy and Pillow; no torch.
"""

import colorsys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from igmask import streams
from igmask.asked.settings import Dataset

SIDE = 64
SPLITS = {"train": streams.Stream.DEMO_TRAIN, "test": streams.Stream.DEMO_TEST}

_FINE = 2  # stencils are drawn this much larger and averaged down, which smooths every edge
_ROWS, _COLUMNS = np.mgrid[:SIDE, :SIDE].astype(np.float32) - (SIDE - 1) / 2


class Kind(NamedTuple):
    """A class of eggs: where its pattern is painted (positive height), and its usual colour."""

    height: Callable[[np.ndarray, np.ndarray], np.ndarray]
    hue: float
    saturation: float
    value: float
    hue_spread: float = 0.045


def _hexagonal(wave: np.ufunc, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Three plane waves at 120°, summed."""
    return wave(u) + wave(0.866 * v - u / 2) + wave(-0.866 * v - u / 2)


def _bricks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Joints of a wall, every other course of it shifted by half a brick."""
    course = np.floor(u / (2 * np.pi))
    return np.maximum(np.cos(u), -np.cos(v + np.pi * course)) - 0.7


# Heights take coordinates u, v (64, 64) in radians, one period of the pattern being 2π.
_KINDS = {
    "stripes": Kind(lambda u, v: np.sin(u), 0.0, 0.28, 0.75),
    "waves": Kind(lambda u, v: np.sin(u + 1.5 * np.sin(v)), 0.0, 0.78, 0.75),
    "checker": Kind(lambda u, v: 2 * np.sin(u) * np.sin(v), 0.25, 0.28, 0.75),
    "dots": Kind(lambda u, v: np.cos(u) + np.cos(v) - 0.7, 0.25, 0.78, 0.75),
    "grid": Kind(lambda u, v: np.maximum(np.cos(u), np.cos(v)) - 0.6, 0.5, 0.28, 0.75),
    "tiles": Kind(lambda u, v: 0.4 - np.maximum(np.cos(u), np.cos(v)), 0.5, 0.78, 0.75),
    "bricks": Kind(_bricks, 0.75, 0.28, 0.75),
    "target": Kind(lambda u, v: np.sin(np.hypot(u, v)), 0.75, 0.78, 0.75),
    "honeycomb": Kind(lambda u, v: _hexagonal(np.cos, u, v) + 0.6, 0.1, 0.25, 0.22, 0.14),
    "triangles": Kind(lambda u, v: _hexagonal(np.sin, u, v), 0.6, 0.75, 0.22, 0.14),
}
CLASSES = tuple(_KINDS)


def label_of(position: int) -> int:
    """Return the class index at a position; ten images in a row hold one of each class."""
    return position % len(CLASSES)


def listed(dataset: Dataset) -> tuple[dict[str, Any], list[str]]:
    """Return the columns name, path and label of the test images, and the class names."""
    labels = [label_of(i) for i in range(dataset.n_images)]
    names = [f"{i:05d}-{CLASSES[label]}" for i, label in enumerate(labels)]
    return {"name": names, "path": "", "label": labels}, list(CLASSES)


def opener(dataset: Dataset, *, seed: int) -> Callable[[Any], Image.Image]:
    """Return the function that draws the image of a record."""
    return lambda record: Image.fromarray(draw(record.position, split="test", seed=seed))


def draw(position: int, *, split: str, seed: int) -> np.ndarray:
    """Return one image of a split: (64, 64, 3) uint8."""
    if split not in SPLITS:
        raise ValueError(f"demo: split must be one of {', '.join(SPLITS)}, not {split!r}")
    rng = streams.rng(seed, SPLITS[split], position)
    kind = _KINDS[CLASSES[label_of(position)]]

    image = _field(rng, rng.uniform(80, 190, 3), cells=7, spread=14)
    n_lines = rng.integers(2, 6)
    lines = _rectangles(rng, rng.uniform(20, 90, n_lines), rng.uniform(0.7, 2, n_lines))
    colour = tuple(rng.integers(60, 210, 3).tolist())
    image.paste(colour, mask=_stencil(lines, rng.uniform(0.4, 1, n_lines)))

    egg = _stencil([_egg(rng)], [1.0])
    image.paste(_field(rng, _colour(rng, kind), cells=3, spread=10), mask=egg)
    painted = Image.fromarray((np.asarray(egg) * _pattern(rng, kind)).astype(np.uint8))
    image.paste(_field(rng, _colour(rng, kind, lighter=0.2), cells=3, spread=14), mask=painted)

    n_specks = int(110 * rng.uniform() ** 2)  # few on most images, many on some
    sides = rng.uniform(1.7, 4.5, n_specks)
    specks = _rectangles(rng, sides, sides)
    image.paste((0, 0, 0), mask=_stencil(specks, rng.uniform(0.5, 1, n_specks)))
    grain = 5 * rng.standard_normal((SIDE, SIDE, 3), dtype=np.float32)
    return (np.asarray(image) + grain).clip(0, 255).astype(np.uint8)


def _egg(rng: np.random.Generator) -> np.ndarray:
    """The outline of an egg, a circle with two harmonics, near the centre; (40, 2) pixels."""
    angle = np.arange(40) * (2 * np.pi / 40)
    oval, tip = rng.uniform(0, 2 * np.pi, 2)
    bulge = 0.12 * np.cos(2 * angle + oval) + 0.08 * np.cos(3 * angle + tip)
    radius = rng.uniform(24, 34) * (1 + bulge)
    return _circle(angle) * radius[:, None] + SIDE / 2 + rng.uniform(-6, 6, 2)


def _pattern(rng: np.random.Generator, kind: Kind) -> np.ndarray:
    """How much each pixel is painted, at a random angle, phase and scale; (64, 64) in [0, 1]."""
    cos, sin = _circle(rng.uniform(0, 2 * np.pi)) * (2 * np.pi / rng.uniform(9, 14))
    right, down = rng.uniform(-np.pi, np.pi, 2)
    u = cos * _COLUMNS + sin * _ROWS + right
    v = cos * _ROWS - sin * _COLUMNS + down
    return (0.5 + 2 * kind.height(u, v)).clip(0, 1)


def _colour(rng: np.random.Generator, kind: Kind, *, lighter: float = 0.0) -> np.ndarray:
    """A colour near the kind's; (3,) in 0..255."""
    hue = rng.normal(kind.hue, kind.hue_spread) % 1
    saturation, value = rng.normal((kind.saturation, kind.value + lighter), (0.07, 0.06)).clip(0, 1)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def _field(rng: np.random.Generator, mean: np.ndarray, *, cells: int, spread: float) -> Image.Image:
    """Smooth noise about a mean colour: cells × cells random colours, interpolated."""
    noise = rng.normal(mean, spread, (cells, cells, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _rectangles(rng: np.random.Generator, lengths: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Corners of rectangles at random places and angles; (N, 4, 2) pixels."""
    along = _circle(rng.uniform(0, 2 * np.pi, len(lengths)))
    across = along[:, ::-1] * (-1, 1) * widths[:, None] / 2
    along = along * lengths[:, None] / 2
    corners = np.stack([along + across, along - across, -along - across, -along + across], axis=1)
    return corners + rng.uniform(0, SIDE, (len(lengths), 1, 2))


def _stencil(polygons: Iterable[np.ndarray], opacities: Iterable[float]) -> Image.Image:
    """What polygons cover of the image, each with an opacity in [0, 1]; one channel, 0..255."""
    large = Image.new("L", (SIDE * _FINE, SIDE * _FINE))
    pen = ImageDraw.Draw(large)
    for polygon, opacity in zip(polygons, opacities, strict=True):
        pen.polygon((polygon * _FINE).ravel().tolist(), fill=round(255 * opacity))
    return large.reduce(_FINE)


def _circle(angle: np.ndarray | float) -> np.ndarray:
    """Points of the unit circle; (..., 2)."""
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)
