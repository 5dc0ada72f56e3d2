"""Every way to read the published text: in how many of them does each of its sentences hold?

A reading chooses what the text leaves open: which output of which class is attributed, from which
baseline, how a square is scored and selected, what masked pixels become, and whether a sentence is
of accuracies or of what is left of them beside a control of the same area.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from igmask import arrays
from igmask.asked.masking import middle
from igmask.asked.settings import percent
from igmask.errors import InputError
from igmask.report.rightness import RIGHTNESS, truth
from igmask.report.tables import render

# What a reading chooses, in the order of the tables' columns.
AXES = ("output", "target", "baseline", "score", "selection", "fill", "control")
_CHOSEN = ("of", "target", "baseline")  # of an attribution's settings
_NONE = "none"  # of controls: accuracies as they are

# By (mode, p) and mask: of each image, by its name, how often of a hundred the network is right.
_Conditions = dict[tuple[str, float], dict[str, pd.Series]]


class Sentence(NamedTuple):
    """A sentence, and by how many points it holds: of the accuracies of a reading, by (mode, p).

    at_least: whether it holds at a margin of 0, too
    """

    short: str
    says: str
    margin: Callable[[dict[tuple[str, float], float], float], float]
    at_least: bool = False

    def holds(self, margins: pd.Series) -> pd.Series:
        """Return of which margins, in points, rounded where binary fractions are not exact."""
        rounded = margins.round(9)
        return (rounded >= 0) if self.at_least else (rounded > 0)


def _falls(right: dict[tuple[str, float], float], original: float) -> float:
    """The least step from one p to the next smaller one."""
    ps = sorted((p for mode, p in right if mode == "keep"), reverse=True)
    steps = [right["keep", a] - right["keep", b] for a, b in pairwise(ps)]
    return min(steps, default=np.nan)


def _reversed(right: dict[tuple[str, float], float], original: float) -> float:
    ps = [{p for mode, p in right if mode == asked} for asked in ("keep", "drop")]
    if not (both := ps[0] & ps[1]):
        return np.nan
    p = middle(both)
    return right["drop", p] - right["keep", p]


def _third(right: dict[tuple[str, float], float], original: float) -> float:
    p = max((p for mode, p in right if mode == "keep"), default=None)
    return np.nan if p is None else original - right["keep", p] - original / 3


SENTENCES = {
    "falls": Sentence(
        "accuracy falls with p",
        "accuracy falls with p: the less is kept, the less is right",
        _falls,
    ),
    "reversed": Sentence(
        "keep-50 below drop-50", "keep-50 is below drop-50, of the p nearest to 50", _reversed
    ),
    "third": Sentence(
        "keep-90 loses a third",
        "keep-90, of the largest p, loses a third of the accuracy or more",
        _third,
        at_least=True,
    ),
}


@dataclass(frozen=True)
class Readings:
    """All readings of all models.

    rows:  one a model and reading: AXES, the accuracies in percent (`keep 50`), of a control less
           its own, and of each sentence by how many points it holds
    holds: one a model and sentence: in how many readings it holds, and the share of the variance
           of its margin that each choice alone explains
    """

    rows: pd.DataFrame
    holds: pd.DataFrame
    truth: str


def collect(paths: Iterable[Path]) -> Readings:
    """Return the readings in records; all have those of the original images among them.

    raises InputError for records of other images than the originals', or such that differ in more
           than AXES, or if those of a control are missing
    """
    original: dict[str, pd.Series] = {}
    found: dict[tuple[str, ...], _Conditions] = {}
    fixed: dict[str, dict[str, Any]] = {}
    said = "label"
    for path in paths:
        records, made_by = arrays.read_records_of(path, "evaluate")
        said, name = truth(made_by), made_by["name"]
        right = 100 * records.groupby("name")["correct"].mean()
        _check_alike(path, made_by, fixed.setdefault(name, {}))
        if made_by["mode"] == "original":
            original[name] = right
            continue
        asked = made_by["attribution"]
        chosen = asked["of"], asked["target"], asked["baseline"], made_by["score"], made_by["by"]
        of_mask = found.setdefault((name, *chosen, made_by["fill"]), {})
        of_mask.setdefault((made_by["mode"], made_by["p"]), {})[made_by["mask"]] = right
    rows = []
    for (model, *choices), conditions in found.items():
        if model not in original:
            raise InputError(f"{model}: there are no records of the original images")
        for (mode, p), of in conditions.items():
            if "selection" not in of or not of["selection"].index.equals(original[model].index):
                raise InputError(
                    f"{model}: the records of {mode} {percent(p)} are not of the same images as "
                    "those of the originals"
                )
        controls = {mask for of in conditions.values() for mask in of} - {"selection"}
        for control in (_NONE, *sorted(controls)):
            bare = [key for key, of in conditions.items() if control not in of]
            if control != _NONE and bare:
                says = f"{model}: there are no records of {bare[0][0]} {percent(bare[0][1])} with"
                raise InputError(
                    f"{says} squares of the control {control}, and of others there are"
                )
            right = {key: _top1(of, control) for key, of in conditions.items()}
            row: dict[str, Any] = {"model": model}
            row |= dict(zip(AXES, (*choices, control), strict=True))
            row |= {f"{mode} {percent(p)}": one for (mode, p), one in right.items()}
            whole = float(original[model].mean())
            margins = {name: of.margin(right, whole) for name, of in SENTENCES.items()}
            if control != _NONE:
                margins["third"] = np.nan  # of the original: no control is beside that
            rows.append(row | margins)
    frame = pd.DataFrame(rows)
    return Readings(frame, pd.DataFrame(_holding(frame)), said)


def _top1(of_mask: dict[str, pd.Series], control: str) -> float:
    """The accuracy of a selection; less that of a control, of the images that have both."""
    right = of_mask["selection"]
    return float((right if control == _NONE else right - of_mask[control]).mean())


def _check_alike(path: Path, made_by: dict[str, Any], others: dict[str, Any]) -> None:
    """Raise InputError if records differ from others of their model in what is no choice."""
    own = {"images": made_by.get("read", {}).get("images"), "side": made_by.get("side")}
    own |= {key: made_by.get(key) for key in ("geometry", "blur_sigma")}
    asked = made_by.get("attribution", {})
    own |= {f"attribution.{key}": of for key, of in asked.items() if key not in _CHOSEN}
    for key, value in own.items():
        if value is not None and others.setdefault(key, value) != value:
            raise InputError(
                f"{path}: made with {key} {value}, and others of {made_by['name']} with "
                f"{others[key]}; readings differ in {', '.join(AXES)} alone"
            )


def _holding(rows: pd.DataFrame) -> Iterable[dict[str, Any]]:
    for model, of_model in rows.groupby("model", sort=False):
        for name in SENTENCES:
            margins = of_model[name]
            yield {
                "model": model,
                "sentence": name,
                "n": int(margins.notna().sum()),
                "holds": int(SENTENCES[name].holds(margins).sum()),
                "least": margins.min(),
                "most": margins.max(),
            } | explained(of_model.loc[margins.notna(), [*AXES]], margins.dropna())


def explained(choices: pd.DataFrame, values: pd.Series) -> dict[str, float]:
    """Return the share of the variance of values that each choice alone explains, η².

    Σ_level n_level (mean_level − mean)² / Σ (value − mean)², of choices that have several levels;
    where every choice occurs with every other as often, they sum to at most 1, and what is left is
    of choices together. NaN where values do not vary.
    """
    total = ((values - values.mean()) ** 2).sum()
    found = {}
    for name in choices:
        if choices[name].nunique() > 1:
            means = values.groupby(choices[name]).transform("mean")
            between = ((means - values.mean()) ** 2).sum()
            found[name] = between / total if total > 0 else np.nan
    return found


def readings(paths: Iterable[Path], *, output: Path) -> None:
    """Write readings.csv, a row a model and reading, and sentences.csv, .md, .html and .tex.

    paths: records of `evaluate`, or folders that hold them
    """
    found = collect(arrays.files_in(paths, "*.parquet"))
    arrays.write_text(output / "readings.csv", found.rows.round(4).to_csv(index=False))
    arrays.write_text(output / "sentences.csv", found.holds.round(4).to_csv(index=False))
    right = RIGHTNESS[found.truth]
    title = f"Readings. In how many of {len(found.rows)} each sentence holds; {right.title}"
    for kind, text in render(_shown(found.holds), title=title, notes=_notes(found)).items():
        if kind != "csv":
            arrays.write_text(output / f"sentences.{kind}", text)


def _shown(holds: pd.DataFrame) -> pd.DataFrame:
    cells = []
    for row in holds.to_dict("records"):
        texts = {"holds in": f"{row['holds']} of {row['n']}"}
        texts["by"] = f"{row['least']:+.1f} … {row['most']:+.1f}".replace("-", "−")
        shares = {axis: row.get(axis, np.nan) for axis in AXES}
        cells.append(
            texts | {axis: f"{100 * x:.0f} %" for axis, x in shares.items() if not pd.isna(x)}
        )
    wide = pd.DataFrame(cells).fillna("")
    names = [SENTENCES[name].short for name in holds["sentence"]]
    wide.index = pd.MultiIndex.from_arrays([holds["model"], names], names=["model", ""])
    return wide


def _notes(found: Readings) -> list[str]:
    axes = [axis for axis in AXES if found.rows[axis].nunique() > 1]
    levels = "; ".join(f"{axis}: {', '.join(found.rows[axis].unique())}" for axis in axes)
    sentences = "; ".join(of.says for of in SENTENCES.values())
    return [
        f"the sentences: {sentences}; by: the least and the largest margin in points, above 0 "
        "where the sentence holds (a third: 0, too)",
        f"the readings: {levels}; beside a control, of accuracies less those under the control's "
        "masks of the same area",
        "under each choice the share of the variance of the margin that it explains alone, of all "
        "readings of the network; the rest is of choices together. Readings depend on each other: "
        "their number is no evidence, it says what the sentence depends on",
    ]
