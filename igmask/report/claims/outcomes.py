"""What became of each image of a model under each condition: what statistics are made of."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from igmask.asked.recipes import Condition
from igmask.errors import InputError, and_more
from igmask.inputs.classes import label_or_predicted
from igmask.report.areas import condition_in_order
from igmask.report.rightness import truth


def first_draws(records: pd.DataFrame) -> pd.DataFrame:
    """Return the answers to each image's first draw, by its name."""
    return records[records["draw"] == 0].set_index("name")


@dataclass
class Outcomes:
    """Of one model; grows by the records of one condition at a time.

    classes: of each image, by its name: its label, or if it has none the class predicted for the
             original
    right:   a column a condition, by its name: 1 where the model is right, of several draws of an
             image their mean; NaN where the condition leaves the image out
    first:   the same of the first draw alone
    """

    model: str
    truth: str = ""
    classes: pd.Series = field(default_factory=lambda: pd.Series(dtype=np.int64))
    conditions: dict[str, Condition] = field(default_factory=dict)
    n_draws: dict[str, int] = field(default_factory=dict)
    _right: dict[str, pd.Series] = field(default_factory=dict)
    _first: dict[str, pd.Series] = field(default_factory=dict)

    def add(self, records: pd.DataFrame, made_by: dict[str, Any]) -> str:
        """Take the records of a condition, and return its name.

        raises InputError if a name, or the condition, is there twice
        """
        p, fill = made_by.get("p"), made_by.get("fill")
        condition = Condition(made_by["mode"], p, fill, made_by["mask"])
        first = first_draws(records)
        if not first.index.is_unique:
            twice = first.index[first.index.duplicated()][0]
            raise InputError(f"{self.model}, {condition.name}: {twice} is there twice")
        if condition.name in self.conditions:
            raise InputError(
                f"{self.model}: there are two files of records of {condition.name}, which may be "
                "of two studies; pass one of them"
            )
        self.conditions[condition.name] = condition
        self.n_draws[condition.name] = made_by.get("draws", 1)
        self.truth = truth(made_by)
        self._first[condition.name] = first["correct"].astype(np.float64)
        self._right[condition.name] = (
            records.groupby("name", sort=False)["correct"].mean().astype(np.float64)
            if self.n_draws[condition.name] > 1
            else self._first[condition.name]
        )
        if len(first) > len(self.classes) or condition.p is None:
            self.classes = label_or_predicted(first)
        return condition.name

    def check(self) -> None:
        """Raise InputError if a condition has an image that the originals have not, or none has."""
        original = next((one.name for one in self.conditions.values() if one.p is None), "")
        for name, right in self._right.items() if original else ():
            if others := sorted({*right.index} - {*self._right[original].index}):
                raise InputError(
                    f"{self.model}: the records of {name} are of other images than those of "
                    f"{original}: {and_more(others)}"
                )

    @property
    def in_order(self) -> list[Condition]:
        """The conditions, whatever the order of their files."""
        return sorted(self.conditions.values(), key=lambda one: condition_in_order(*one))

    @property
    def right(self) -> pd.DataFrame:
        """A row an image, a column a condition."""
        return pd.DataFrame(self._right).reindex(self.classes.index)

    @property
    def first(self) -> pd.DataFrame:
        """A row an image, a column a condition."""
        return pd.DataFrame(self._first).reindex(self.classes.index)


def in_classes(right: pd.Series, classes: pd.Series) -> pd.Series:
    """Return the share of right answers to the images of each class, by the class."""
    return right.groupby(classes.reindex(right.index)).mean()
