"""Has a network collapsed to few answers, or read the class from the mask? → Table 7, classes.csv.

A network that says one class of everything that is mostly masked is right about that class; and the
shape of a mask may tell the class to whoever never sees a pixel of it.
"""

from collections.abc import Iterable
from math import log2
from typing import Any

import numpy as np
import pandas as pd

from igmask.asked.recipes import STUDIED
from igmask.inputs.classes import class_name
from igmask.report.claims.outcomes import Outcomes, in_classes

NOTE = (
    "class-balanced: the mean over the classes of what is said above of each; of right originals: "
    "of the images whose original the network is right about; entropy: of the predicted classes, "
    "over that of equally many of each class, 1 if all are as many, 0 if all are one; from the "
    "mask: how often a linear classifier (ridge regression, five folds) tells the class from which "
    "squares are selected, and from their number alone; chance: the class that most images have"
)

QUANTITIES = {  # columns of accuracy.csv, and the rows of Table 7 that show them
    "top1_balanced": "class-balanced",
    "top1_of_right": "of right originals",
    "most_frequent_share": "most frequent prediction",
    "entropy_share": "entropy, 1 at most",
    "from_mask": "class from the mask",
    "from_number": "class from the number of squares",
    "chance": "chance",
}


def add(accuracy: pd.DataFrame, models: dict[str, Outcomes], n_classes: dict[str, int]) -> None:
    """Add to rows of accuracy.csv what outcomes say: `top1_balanced`, `top1_of_right` (percent),
    and `entropy_share`, the entropy of the predictions over log₂ of the number of classes.
    """
    balanced, of_right, shares = [], [], []
    outcomes = {name: one.right for name, one in models.items()}
    for row in accuracy.itertuples():
        one, of_model = models[row.model], outcomes[row.model]
        right = of_model[row.condition].dropna()
        balanced.append(100 * in_classes(right, one.classes).mean())
        before = of_model.get("original", pd.Series(dtype=float)).reindex(right.index) == 1
        of_right.append(100 * right[before].mean() if before.any() else np.nan)
        of = n_classes[row.model]
        shares.append(row.entropy / log2(of) if of > 1 else np.nan)
    accuracy["top1_balanced"], accuracy["top1_of_right"] = balanced, of_right
    accuracy["entropy_share"] = shares


def of_classes(
    predicted: dict[tuple[str, str], np.ndarray],
    models: Iterable[Outcomes],
    names: dict[str, list[str]],
) -> pd.DataFrame:
    """Return a row a model, condition and class: its images, how many are right, and how often it
    is predicted, all in counts but top-1 (percent); classes of which there is neither are left out.

    predicted: {(model, condition): (n_classes,) counts of the predictions}
    names:     of the classes of each model
    """
    rows: list[dict[str, Any]] = []
    for one in models:
        counts = one.classes.value_counts()
        right = one.right
        for condition in one.in_order:
            if condition.mask not in STUDIED:
                continue
            name = condition.name
            said = predicted[one.model, name]
            of_class = 100 * in_classes(right[name], one.classes)
            for label in sorted({*counts.index, *np.flatnonzero(said).tolist()}):
                rows.append(
                    {
                        "model": one.model,
                        "condition": name,
                        "class": label,
                        "name": class_name(names[one.model], label),
                        "n": int(counts.get(label, 0)),
                        "top1": of_class.get(label, np.nan),
                        "n_predicted": int(said[label]) if label < len(said) else 0,
                    }
                )
    return pd.DataFrame(rows)


def cell(row: Any) -> dict[str, str]:
    """Return what a row of accuracy.csv puts into a column of a model's block of Table 7."""
    found = {}
    for column, quantity in QUANTITIES.items():
        value = getattr(row, column, np.nan)
        if not pd.isna(value):
            digits = 2 if column == "entropy_share" else 1
            found[quantity] = f"{value:.{digits}f}"
    return found
