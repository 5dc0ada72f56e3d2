"""The settings of squares, of their selection, and of what is masked and shown: as settings.py."""

from collections.abc import Iterable
from dataclasses import dataclass

from igmask.asked.fields import setting
from igmask.asked.own import is_own
from igmask.plain import DRAWN_FILLS, FILLS, SCORES, SELECTIONS

MODES = ("keep", "drop")
DRAWN = ("random", "shifted", "other-class", "same-class")  # controls that depend on the seed
CONTROLS = (*DRAWN, "edges", "position", "randomised")

_PERCENT = {"type": "number", "exclusiveMinimum": 0, "maximum": 100}


@dataclass(frozen=True)
class Squares:
    """The components that are kept or dropped.

    side:  side of a square, in pixels
    score: a square's score, summed over its pixels and channels: max(φ, 0), |φ|, φ, or the absolute
           value of the sum of φ
    """

    side: int = setting(3, minimum=1)
    score: str = setting("positive", choices=SCORES)


@dataclass(frozen=True)
class Selection:
    """Which squares hold the top p %.

    by: p % of the total score (mass), of the number of squares (count), or of the pixels (area)
    p:  percentages, each in (0, 100]
    """

    by: str = setting("mass", choices=SELECTIONS)
    p: tuple[float, ...] = setting((90, 70, 50, 30), minItems=1, items=_PERCENT)


@dataclass(frozen=True)
class Masking:
    """What is masked, and how.

    modes:    keep the selected squares, or drop them
    fills:    what masked pixels become: a colour; blur: the image, blurred; shuffle: its own pixels
              in another order; noisy-linear: the mean of their neighbours, with noise (ROAD)
    controls: other masks of exactly the same area, evaluated beside: random squares; the image's
              own ranking of squares, shifted on the torus; the ranking of another image, of another
              class or the same; of squares by their edges (Sobel); the mean ranking of the other
              images (position); the attribution of the same network with weights drawn anew
              (randomised)
    draws:    how many random masks an image has
    blur_sigma: of fill blur: standard deviation of the Gaussian, in pixels
    transfer: show each network the masks of each other one of the same input, too
    """

    modes: tuple[str, ...] = setting(MODES, choices=MODES, minItems=1, uniqueItems=True)
    fills: tuple[str, ...] = setting(
        ("black",), choices=FILLS, own=True, minItems=1, uniqueItems=True
    )
    controls: tuple[str, ...] = setting(("random",), choices=CONTROLS, own=True, uniqueItems=True)
    draws: int = setting(5, minimum=1)
    blur_sigma: float = setting(10, exclusiveMinimum=0)
    transfer: bool = False


@dataclass(frozen=True)
class Curves:
    """What becomes of the images as more and more of their area is masked, in order of importance.

    points: shares of the area, equally spaced, all and nothing among them; 0: no curves
    """

    points: int = setting(11, minimum=0)


def middle(ps: Iterable[float]) -> float:
    """Return the p nearest to 50, which stands for all where one has to; of two the smaller.

    raises ValueError if there is none
    """
    return min(ps, key=lambda p: (abs(p - 50), p))


def is_drawn(name: str) -> bool:
    """Return whether a control or a fill depends on the study's seed, as one's own control may."""
    return name in (*DRAWN, *DRAWN_FILLS) or is_own(name)
