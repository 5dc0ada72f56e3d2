"""Curves → Tables 4 and 5, and curves.csv, their long form: keep and drop at equal area.

A curve says of each image what becomes of it as more of its area is kept. With mode keep the least
important squares go first (LIF), with drop the most important (MIF).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from igmask import arrays
from igmask.asked.recipes import QUANTITIES, STUDIED, Tables
from igmask.asked.settings import percent
from igmask.errors import InputError
from igmask.inputs.chance import wilson
from igmask.inputs.classes import label_or_predicted
from igmask.plain import FILLS
from igmask.report.rightness import RIGHTNESS, truth
from igmask.statistics import bootstrap
from igmask.steps.masked.controls import CONTROLS, control_of

COLUMNS = [
    "model", "fill", "mask", "mode", "share", "n", "area_kept", "top1", "ci_low", "ci_high",
    "agreement", "probability", "truth",
]  # fmt: skip

_CHUNK = 4096  # images of a curve in memory

# Of an image, and by `NAME_low` and `NAME_high` the 95 % interval of their means over the images.
_UNDER = ("insertion", "deletion", "srg", "keep_minus_random", "random_minus_drop")

_AREAS = (
    "insertion, deletion: area under the probability of the class predicted for the original, over "
    "the share of pixels, as squares are shown and removed in the order of their ranking (Petsiuk "
    "et al. 2018, who show them on a blurred image and remove them to black); SRG: insertion − "
    "deletion, the sum of the two to its right (Bluecher et al. 2024); insertion of random squares "
    "is the R-OMS of a fill, which grades it: high is good; by trapezoids, of each image; in "
    "brackets 95 % intervals, of {replicates:,} times as many images drawn anew, of each class as "
    "many; areas.csv has them of all columns"
)


@dataclass(frozen=True)
class Areas:
    """What curves say.

    points: one row a model, fill, mask, mode and share of the area, `COLUMNS`
    under:  one row a model, fill and mask: means over the images of the areas under their curves,
            and their intervals
    notes:  what belongs under the tables
    """

    points: pd.DataFrame
    under: pd.DataFrame
    notes: list[str]


def collect(curve_paths: Iterable[Path], recipe: Tables | None = None) -> Areas:
    """Return what the curves of all models say, models in given order."""
    points: list[dict[str, Any]] = []
    under: dict[str, _Under] = {}
    notes: list[str] = []
    for path in curve_paths:
        shards = arrays.Shards([path])
        made_by = shards.settings
        found, areas, n = _means(shards)
        key = made_by["name"], made_by["fill"], made_by["mask"]
        if not n:
            notes.append(f"{key[0]}: no image has a ranking by {key[2]}")
            continue
        common = dict(zip(("model", "fill", "mask"), key, strict=True)) | {"mode": made_by["mode"]}
        common["truth"] = truth(made_by)
        points += [common | {"n": n} | row for row in found]
        classes = label_or_predicted(shards.records.set_index("name"))
        of_model = under.setdefault(key[0], _Under(classes))
        if not classes.index.equals(of_model.classes.index):
            raise InputError(f"{path}: of other images than the other curves of {key[0]}")
        of_model.of[*key[1:], made_by["mode"]] = areas
        if left := len(shards.records) - n:
            which = "attribution" if made_by["mask"] in STUDIED else made_by["mask"]
            notes.append(f"{key[0]}: {left} images have no ranking by {which}, and are left out")
    models = list(dict.fromkeys(row["model"] for row in points))
    points.sort(
        key=lambda row: (
            models.index(row["model"]),
            *in_order(row["fill"], row["mask"]),
            row["mode"] != "keep",
            row["share"],
        )
    )
    rows = [
        {"model": model} | row
        for model, of_model in under.items()
        for row in of_model.rows(recipe or Tables())
    ]
    areas_under = pd.DataFrame(rows)
    return Areas(pd.DataFrame(points, columns=COLUMNS), areas_under, list(dict.fromkeys(notes)))


def texts(curve_paths: Iterable[Path], render: Any, recipe: Tables) -> dict[str, str]:
    """Return {name: text} of the tables.

    render: `tables.render`
    """
    found = collect(curve_paths, recipe)
    points, right = found.points, RIGHTNESS[found.points["truth"].iloc[0]]
    middle = min(points["share"], key=lambda share: abs(share - 50))
    half, other = percent(middle), percent(100 - middle)
    controls = [mask for mask in dict.fromkeys(points["mask"]) if mask not in STUDIED]
    said = [f"{name}: {control_of(name).is_of}" for name in controls]
    equal = render(
        _at_equal_area(points, middle, right.quantity),
        title=f"Table 4. {right.title}, keep {half} % beside drop {other} % of the area",
        notes=[
            f"{right.quantity}: {right.means}; the squares are those first, or last, in the "
            "ranking, as many as reach that share of the pixels; 95 % interval: Wilson's; area: "
            "pixels left as they were, in %",
            *said,
            *found.notes,
        ],
    )
    under = render(
        _shown(found.under, right.quantity),
        title="Table 5. Areas under the curves over area",
        notes=[_AREAS.format(replicates=recipe.replicates), *said, *found.notes],
    )
    tables = {"table4": equal, "table5": under}
    files = {f"{name}.{kind}": text for name, of in tables.items() for kind, text in of.items()}
    csv = points.round(4).to_csv(index=False)
    return {"curves.csv": csv, "areas.csv": found.under.round(6).to_csv(index=False)} | files


def trapezoids(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return ∫ of curves (n, points) over ascending or descending places (n, points): (n,)."""
    middles = (values[:, 1:] + values[:, :-1]) / 2
    return np.abs((middles * np.diff(at, axis=1)).sum(axis=1))


def _means(shards: arrays.Shards) -> tuple[list[dict[str, float]], pd.DataFrame, int]:
    """The means of a curve at each point, the areas under it of each image, and of how many."""
    n_points = shards.row_shape[0]
    sums, n = np.zeros(shards.row_shape), 0
    areas = pd.DataFrame(np.nan, index=shards.records["name"], columns=QUANTITIES[1:])
    for chunk in shards.batches(_CHUNK):
        values, rows = chunk.values.astype(np.float64), chunk.rows
        there = ~np.isnan(values).any(axis=(1, 2))
        values = values[there]
        n += len(values)
        sums += values.sum(axis=0)
        for i, name in enumerate(QUANTITIES[1:], start=1):
            under = trapezoids(values[:, :, i], values[:, :, 0])
            areas.iloc[rows[there], areas.columns.get_loc(name)] = under
    found: list[dict[str, float]] = []
    for point, row in enumerate(sums):
        if not n:
            break
        area, probability, correct, agreement = row / n
        low, high = wilson(int(row[2]), n)
        share = 100 * point / (n_points - 1)
        found.append({"share": share, "area_kept": 100 * area, "probability": probability})
        found[-1] |= {"top1": 100 * correct, "ci_low": low, "ci_high": high}
        found[-1] |= {"agreement": 100 * agreement}
    return found, areas, n


@dataclass(frozen=True)
class _Under:
    """The areas under the curves of a model, of each image: of a fill, mask and mode."""

    classes: pd.Series
    of: dict[tuple[str, str, str], pd.DataFrame] = field(default_factory=dict)

    def rows(self, recipe: Tables) -> list[dict[str, Any]]:
        """A row a fill and mask: SRG, what it is made of, and how far they may be off."""
        cases = sorted({key[:2] for key in self.of}, key=lambda case: in_order(*case))
        by_image: dict[str, pd.Series] = {}
        for fill, mask in cases:
            keep, drop = (self._area(fill, mask, mode, "probability") for mode in ("keep", "drop"))
            by_chance = self._area(fill, "random", "keep", "probability")
            found = keep, drop, keep - drop, keep - by_chance, by_chance - drop
            keys = (f"{name} {fill} {mask}" for name in _UNDER)
            by_image |= dict(zip(keys, found, strict=True))
        frame = pd.DataFrame(by_image)
        drawn = bootstrap.replicates(
            frame, self.classes.to_numpy(), seed=recipe.seed, n=recipe.replicates
        )
        rows = []
        for fill, mask in cases:
            row: dict[str, Any] = {"fill": fill, "mask": mask}
            of_case = {name: f"{name} {fill} {mask}" for name in _UNDER}
            row["n"] = int(frame[[*of_case.values()]].notna().any(axis=1).sum())
            for name, key in of_case.items():
                row[name] = frame[key].mean()
                low, high = bootstrap.interval(drawn[key])
                row |= {f"{name}_low": low, f"{name}_high": high}
            for mode in ("keep", "drop"):
                row[f"{mode}_top1"] = self._area(fill, mask, mode, "correct").mean()
            rows.append(row)
        return rows

    def _area(self, fill: str, mask: str, mode: str, quantity: str) -> pd.Series:
        """The area under a curve of each image; of random squares either mode says the other."""
        modes = ("keep", "drop") if mask == "random" else (mode,)
        there = [self.of[fill, mask, one] for one in modes if (fill, mask, one) in self.of]
        return there[0][quantity] if there else np.nan * next(iter(self.of.values()))[quantity]


def _at_equal_area(points: pd.DataFrame, share: float, quantity: str) -> pd.DataFrame:
    """Table 4: a block of rows a model (and fill), the originals and both modes as columns."""
    several = points["fill"].nunique() > 1
    cells: dict[tuple[str, str], dict[str, str]] = {}

    def put(row: Any, column: str) -> None:
        name = f"{row.model}, {row.fill}" if several else row.model
        if row.mask in STUDIED:
            told = {
                quantity: f"{row.top1:.1f}",
                "95 % interval": f"{row.ci_low:.1f}–{row.ci_high:.1f}",
            }
            told |= {"area": f"{row.area_kept:.1f}", "n": str(row.n)}
        else:
            told = {f"{row.mask} squares": f"{row.top1:.1f}"}
        for key, text in told.items():
            cells.setdefault((name, key), {})[column] = text

    at = {"keep": share, "drop": 100 - share}  # so that as much is left as it was
    columns = {mode: f"{mode} {percent(one)} %" for mode, one in at.items()}
    for row in points.itertuples():
        if row.mask in STUDIED and row.share == (100 if row.mode == "keep" else 0):
            put(row, "original")
        if np.isclose(row.share, at[row.mode]):
            # What one mode keeps of random squares, the other might as well.
            for mode in at if row.mask == "random" else [row.mode]:
                put(row, columns[mode])
    filled = [
        {name: cell.get(name, "") for name in ("original", *columns.values())}
        for cell in cells.values()
    ]
    wide = pd.DataFrame(filled)
    wide = wide.loc[:, (wide != "").any()]
    wide.index = pd.MultiIndex.from_tuples(list(cells), names=["model", ""])
    return wide


def _shown(under: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Table 5 as texts: a row a model (and fill) and mask."""
    several = under["fill"].nunique() > 1
    names = under["model"] + (", " + under["fill"] if several else "")
    heads = {
        "insertion": "insertion", "deletion": "deletion", "srg": "SRG",
        "keep_minus_random": "insertion − random", "random_minus_drop": "random − deletion",
        "keep_top1": f"keep, {quantity}", "drop_top1": f"drop, {quantity}",
    }  # fmt: skip
    cells = []
    for _, row in under.iterrows():
        texts = {head: _number(row[name]) for name, head in heads.items()}
        for name in _UNDER[2:]:
            if texts[heads[name]]:
                around = (_number(row[f"{name}_{end}"]) for end in ("low", "high"))
                texts[heads[name]] += f" ({' … '.join(around)})"
        cells.append(texts)
    wide = pd.DataFrame(cells)
    wide.index = pd.MultiIndex.from_arrays([names, under["mask"]], names=["model", ""])
    return wide


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3f}".replace("-", "−")


def in_order(fill: str | None, mask: str) -> tuple[Any, ...]:
    """Where rows of a fill and a mask have their place, whatever the order of files.

    Functions of one's own come last.
    """
    fills, masks = [*FILLS, fill], [*STUDIED, *CONTROLS, mask]
    return fills.index(fill), str(fill), masks.index(mask), mask


def condition_in_order(mode: str, p: float | None, fill: str | None, mask: str) -> tuple[Any, ...]:
    """The same of a condition: the originals, then keep and drop, the largest p first."""
    return ("original", "keep", "drop").index(mode), -(p or 0), *in_order(fill, mask)
