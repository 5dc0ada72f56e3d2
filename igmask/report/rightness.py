"""What it means on every page that a network is right: decided here, once."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from igmask.inputs.data import is_labelled


class Rightness(NamedTuple):
    """The words for it.

    quantity: the share of images that a network is right about, as a table's row
    title:    the same as a table's title begins
    means:    the same as a note explains it
    axis:     the same as an axis says it
    heading:  of attributions towards the label
    ticks:    what ✓ stands for beneath a picture, where it is not the label
    """

    quantity: str
    title: str
    means: str
    axis: str
    heading: str
    ticks: str = ""


RIGHTNESS = {  # by what accuracy.csv has in its column `truth`
    "label": Rightness(
        quantity="top-1",
        title="Top-1 accuracy in %",
        means="accuracy in %",
        axis="top-1 accuracy, %",
        heading="true",
    ),
    "own answer": Rightness(
        quantity="agreement",
        title="Agreement with the network's own answer to the original, in %",
        means="images of which the network says what it says of the original, in %; they have no "
        "labels, so that this is no accuracy, and it is 100 for the originals by definition",
        axis="agreement with the answer to the original, %",
        heading="predicted",
        ticks="✓: as of the original",
    ),
}


# Okabe and Ito (2008): told apart by colour-blind readers, too, in light and in dark. Black is left
# for the original.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
AREA = "area left as it was, % of the pixels"  # of an axis

TOP = {"mass": "the attribution", "count": "the squares", "area": "the area"}  # p % of it


def chance(accuracy: pd.DataFrame) -> float | None:
    """Return how often a guess is right, in percent, or None where networks differ in that.

    accuracy: of accuracy.csv; where there are no labels, nothing is right by chance
    """
    known = accuracy["n_classes"].dropna().unique() if "n_classes" in accuracy else []
    return 100 / known[0] if len(known) == 1 else None


def truth(made_by: Mapping[str, Any]) -> str:
    """Return the key of `RIGHTNESS` of records, by the settings that made them."""
    return "label" if is_labelled(made_by) else "own answer"
