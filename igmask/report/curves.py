"""Plots of accuracy.csv: top-1 against p, and against the area that is left as it was."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from igmask import arrays
from igmask.asked.recipes import network_of
from igmask.asked.settings import percent
from igmask.errors import InputError
from igmask.report.drawing import drawing, fit_text
from igmask.report.rightness import AREA, COLOURS, RIGHTNESS, chance

_MARKERS = "osD^v"

_COLUMNS = ["model", "mode", "p", "fill", "mask", "top1", "ci_low", "ci_high", "area_kept"]
_SWEPT = ["model", "fill", "mask", "mode", "area_kept", "top1"]
_TRUTH = "truth"  # a column that tables of old do not have, as n_classes
_SELECTION = "selection"  # the mask of the curves; others are controls, and dashed
_CHANCE = "0.8"
_FEW = 2  # controls that do not hide the selection
_RANKED_BY = {  # controls as a legend calls them
    "random": "random squares",
    "shifted": "the attribution, shifted",
    "other-class": "another image, other class",
    "same-class": "another image, same class",
    "edges": "edges of the image",
    "position": "mean of the other images",
    "randomised": "randomised network",
}
# One a control, none of them the dots of the originals.
_DASHES: tuple[Any, ...] = (
    "--", "-.", (0, (1, 1)), (0, (8, 2)), (0, (6, 1, 1, 1, 1, 1)), (0, (3, 4)), (0, (8, 2, 3, 2)),
)  # fmt: skip


def curves(
    accuracy: Path, *, output: Path, areas: Path | None = None, formats: Sequence[str] = ("png",)
) -> None:
    """Write top-1 against p (accuracy-p.png) and against area (accuracy-area.png) to `output`.

    accuracy: the accuracy.csv of `igmask tables`
    areas:    its curves.csv, if there is one: what becomes of each image at every share of the area
    raises    InputError if it is not, or if no masked images were evaluated
    """
    table = arrays.read_table(accuracy, *_COLUMNS)
    by_chance = chance(table)
    table = table[_COLUMNS].assign(truth=table.get(_TRUTH, "label"))
    original = table[table["mode"] == "original"].set_index("model")["top1"]
    masked = table[(table["mode"] != "original") & table["mask"].map(network_of).isna()]
    if masked.empty:
        raise InputError(f"{accuracy}: no masked images were evaluated, so there are no curves")

    def paths(against: str) -> list[Path]:
        return [output / f"accuracy-{against}.{one}" for one in formats]

    _write_against_p(masked, original, by_chance, paths("p"))
    swept = None if areas is None else arrays.read_table(areas, *_SWEPT)
    _write_against_area(masked, original, swept, by_chance, paths("area"))


def _write_against_p(
    masked: pd.DataFrame, original: pd.Series, by_chance: float | None, paths: list[Path]
) -> None:
    """A panel for each fill and mode, a curve for each model."""
    models, fills, modes = (list(masked[key].unique()) for key in ("model", "fill", "mode"))
    looks = {model: (COLOURS[i % 6], _MARKERS[i % 5]) for i, model in enumerate(models)}
    with _curves(paths, masked, n_rows=len(fills), n_columns=len(modes)) as (figure, panels):
        for axes, (fill, mode) in zip(panels.flat, product(fills, modes), strict=True):
            axes.set_title(f"{mode} the top p %" + (f", {fill}" if len(fills) > 1 else ""))
            here = masked[(masked["fill"] == fill) & (masked["mode"] == mode)]
            for model, rows in here.groupby("model", sort=False):
                _draw_curve(axes, rows, "p", *looks[model])
                if model in original:
                    axes.axhline(original[model], color=looks[model][0], linestyle=":")
            _draw_chance(axes, by_chance)
        figure.supxlabel("p, %")
        keys = [_key(model, *look) for model, look in looks.items()]
        keys += [*_control_keys(masked), _key("original images", line=":")]
        figure.legend(handles=keys + _chance_key(by_chance), loc="outside right upper")


def _write_against_area(
    masked: pd.DataFrame,
    original: pd.Series,
    swept: pd.DataFrame | None,
    by_chance: float | None,
    paths: list[Path],
) -> None:
    """A panel for each model and fill, a curve for each mode; its points are the values of p."""
    cases = masked.groupby(["model", "fill"], sort=False).ngroups
    n_columns = cases if cases <= 3 else math.ceil(math.sqrt(cases))
    n_rows = math.ceil(cases / n_columns)
    with _curves(paths, masked, n_rows=n_rows, n_columns=n_columns) as (figure, panels):
        for axes in panels.flat[cases:]:
            axes.remove()
        keys = draw_against_area(list(panels.flat[:cases]), masked, original, swept, by_chance)
        figure.supxlabel(AREA)
        figure.legend(handles=keys, loc="outside right upper")


def draw_against_area(
    panels: Sequence[Axes],
    masked: pd.DataFrame,
    original: pd.Series,
    swept: pd.DataFrame | None,
    by_chance: float | None,
) -> list[Line2D]:
    """Draw into axes, one for each model and fill, and return the keys of a legend.

    masked:    the rows of accuracy.csv of masked images; original: accuracies by model
    swept:     of curves.csv, if there are curves
    by_chance: how often a guess is right, in percent
    """
    cases = list(masked.groupby(["model", "fill"], sort=False))
    present = masked["mode"].unique()
    looks = {"keep": (COLOURS[0], _MARKERS[0]), "drop": (COLOURS[1], _MARKERS[1])}
    looks = {mode: look for mode, look in looks.items() if mode in present}
    for axes, ((model, fill), here) in zip(panels, cases, strict=True):
        axes.set_title(fit_text(model, 20) + (f", {fill}" if masked["fill"].nunique() > 1 else ""))
        if swept is not None:
            _draw_swept(axes, swept[(swept["model"] == model) & (swept["fill"] == fill)], looks)
            here = here[here["mask"] == _SELECTION]
        for mode, rows in here.groupby("mode", sort=False):
            line = "-" if swept is None else ""
            _draw_curve(axes, rows, "area_kept", *looks[mode], line=line)
        if model in original:
            axes.plot(100, original[model], "*", color="black", markersize=6, clip_on=False)
        _draw_chance(axes, by_chance)
    chosen = masked[masked["mask"] == _SELECTION]
    line = "-" if swept is None else ""
    keys = [
        _key(_range(chosen[chosen["mode"] == mode]), *look, line=line)
        for mode, look in looks.items()
    ]
    if swept is not None:  # points and lines are of different masks: of a p, and of an area
        keys += [_key(f"{mode}, by area", colour) for mode, (colour, _) in looks.items()]
    keys += [*_control_keys(masked), _key("original images", "black", "*", line="")]
    return keys + _chance_key(by_chance)


@contextmanager
def _curves(
    paths: list[Path], masked: pd.DataFrame, *, n_rows: int, n_columns: int
) -> Iterator[tuple[Figure, np.ndarray]]:
    """Yield a figure and its panels, whose axes are both in percent."""
    width, height = 2.3 * n_columns + 1.8, 2.1 * n_rows + 0.4
    with drawing(paths, width=width, height=height) as figure:
        panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
        panels[0, 0].set(xlim=(0, 103), ylim=(0, 100), xticks=range(0, 101, 20))
        figure.supylabel(RIGHTNESS[masked[_TRUTH].iloc[0]].axis)
        for axes in panels.flat:
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelbottom=True, labelleft=True)
            axes.grid(color="0.92")
        yield figure, panels


def _draw_swept(axes: Axes, rows: pd.DataFrame, looks: dict[Any, tuple[str, str]]) -> None:
    """The curves of a model and fill; random squares, of which one mode is enough, in grey."""
    dashes = _dashes(rows)
    for (mask, mode), curve in rows.groupby(["mask", "mode"], sort=False):
        colour = "0.4" if mask == "random" else looks[mode][0]
        line, width = (dashes[mask], 0.8) if mask in dashes else ("-", 1.2)
        at, top1 = curve["area_kept"], curve["top1"]
        faint = mask in dashes and len(dashes) > _FEW
        axes.plot(at, top1, linestyle=line, color=colour, linewidth=width, alpha=1 - 0.5 * faint)


def _draw_chance(axes: Axes, by_chance: float | None) -> None:
    if by_chance is not None:
        axes.axhline(by_chance, color=_CHANCE, linewidth=2, zorder=0)


def _draw_curve(
    axes: Axes, rows: pd.DataFrame, against: str, colour: str, marker: str, *, line: str = "-"
) -> None:
    """Points with 95 % intervals, and the controls of the same conditions, dashed.

    against: p, or area_kept, and then controls stand at their own
    """
    dashes = _dashes(rows)
    for mask, of_mask in rows.sort_values("p", kind="stable").groupby("mask", sort=False):
        at, top1 = of_mask[against], of_mask["top1"]
        if mask in dashes:
            axes.plot(at, top1, linestyle=dashes[mask], color=colour, linewidth=0.8)
        else:
            interval = of_mask[["ci_low", "ci_high"]].sub(top1, axis=0).abs().T
            look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": line}
            axes.errorbar(at, top1, interval, **look, clip_on=False)  # whole at 0 and 100, too


def _key(label: str, colour: str = "0.4", marker: str = "", *, line: Any = "-") -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle=line, label=fit_text(label, 28))


def _dashes(rows: pd.DataFrame) -> dict[Any, Any]:
    """The controls, and how each is drawn."""
    controls = [mask for mask in rows["mask"].unique() if mask != _SELECTION]
    return dict(zip(controls, cycle(_DASHES), strict=False))


def _control_keys(masked: pd.DataFrame) -> list[Line2D]:
    of_mask = _dashes(masked).items()
    return [_key(_RANKED_BY.get(mask, f"{mask} squares"), line=line) for mask, line in of_mask]


def _chance_key(by_chance: float | None) -> list[Line2D]:
    if by_chance is None:
        return []
    return [Line2D([], [], color=_CHANCE, linewidth=2, label=f"by chance, {by_chance:.3g} %")]


def _range(rows: pd.DataFrame) -> str:
    """Name the curve of one mode, and the p of its first and last point, from the smallest area."""
    rows = rows.sort_values("area_kept")
    ends = dict.fromkeys(percent(p) for p in (rows["p"].iloc[0], rows["p"].iloc[-1]))
    return f"{rows['mode'].iloc[0]} the top {' … '.join(ends)} %"
