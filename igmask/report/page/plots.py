"""The page's plots as Vega-Lite: accuracy over p and over area, with controls, and a chance line.

Specifications and data, and no drawing: the page has Vega within itself, and draws them with the
colours, and in the width, that it has.
"""

import json
from itertools import cycle, islice
from typing import Any

import pandas as pd

from igmask.report.rightness import AREA, COLOURS, RIGHTNESS, Rightness, chance

_ORIGINAL, _CHANCE, _SELECTION = "original", "chance", "selection"

_DASHES = [
    [1, 0],
    [4, 3],
    [8, 3, 2, 3],
    [8, 2],
    [2, 3],
    [6, 2, 2, 2, 2, 2],
    [12, 3],
    [3, 6],
    [5, 1],
]


def plots(
    accuracy: pd.DataFrame, curves: pd.DataFrame | None, top: str
) -> dict[str, dict[str, Any]]:
    """Return {name: specification} of the plots over p and over area.

    accuracy: of accuracy.csv, as texts and numbers; masks of other networks left out
    curves:   of curves.csv, if there is one
    top:      what p is a share of: the attribution, the squares, the area
    """
    masked = accuracy[accuracy["mode"] != "original"].copy()
    masked["p"] = masked["p"].astype(float)
    original = accuracy[accuracy["mode"] == "original"].set_index("model")["top1"]
    right = RIGHTNESS[accuracy["truth"].iloc[0]]
    by_chance = chance(accuracy)
    found = {"over-p": _over_p(masked, original, by_chance, right, top)}
    found["over-area"] = _over_area(masked, original, curves, by_chance, right)
    return found


def _over_p(
    masked: pd.DataFrame, original: pd.Series, by_chance: float | None, right: Rightness, top: str
) -> dict[str, Any]:
    """A panel a mode, a colour a network, a line a mask."""
    columns = ["model", "mode", "fill", "mask", "p", "top1", "ci_low", "ci_high", "area_kept"]
    rows = _rows(masked[columns])
    ends = [min(masked["p"].min(), 0), 100]
    for row in rows:
        row["panel"] = f"{row['mode']} the top p %"
    of_panels = masked[["mode", "fill"]].drop_duplicates()
    levels = [(str(model), _ORIGINAL, float(top1)) for model, top1 in original.items()]
    if by_chance is not None:
        levels.append((_CHANCE, _CHANCE, by_chance))
    for mode, fill in of_panels.itertuples(index=False):
        rows += [
            {"panel": f"{mode} the top p %", "fill": fill, "p": p}
            | {"model": model, "mask": mask, "top1": top1}
            for model, mask, top1 in levels
            for p in ends
        ]
    models = [*map(str, masked["model"].unique())]
    colour = _scale("model", [*models, *[_CHANCE] * (by_chance is not None)], grey=_CHANCE)
    return _facets(
        rows,
        x={"field": "p", "title": f"p, % of {top}", "scale": {"domain": [0, 100]}},
        colour=colour | {"title": "network"},
        facet={"field": "panel", "title": None, "sort": "descending"},
        masks=_masks(masked, by_chance),
        right=right,
        about=f"by p, the share of {top} that is kept, or dropped",
    )


def _over_area(
    masked: pd.DataFrame,
    original: pd.Series,
    curves: pd.DataFrame | None,
    by_chance: float | None,
    right: Rightness,
) -> dict[str, Any]:
    """A panel a network, a colour a mode, a line a mask; points where the values of p lie."""
    columns = ["model", "mode", "fill", "mask", "p", "top1", "ci_low", "ci_high", "area_kept"]
    points = masked[columns]
    if curves is not None:
        points = points[points["mask"] == _SELECTION]
        swept = curves[[name for name in columns if name != "p"]].assign(line=True)
        points = points.assign(line=False)
        rows = _rows(swept) + _rows(points)
    else:
        rows = _rows(points)
    of_panels = masked[["model", "fill"]].drop_duplicates()
    for model, fill in of_panels.itertuples(index=False):
        common = {"model": str(model), "fill": fill, "line": True}
        lines = {_CHANCE: by_chance} if by_chance is not None else {}
        if model in original.index:
            lines[_ORIGINAL] = float(original[model])
        rows += [
            common | {"mode": name, "mask": name, "area_kept": at, "top1": top1}
            for name, top1 in lines.items()
            for at in (0, 100)
        ]
    modes = [*masked["mode"].unique(), _ORIGINAL, *[_CHANCE] * (by_chance is not None)]
    colour = _scale("mode", modes, grey=_CHANCE, black=_ORIGINAL)
    axis = {"field": "area_kept", "title": AREA}
    return _facets(
        rows,
        x=axis | {"scale": {"domain": [0, 100]}},
        colour=colour | {"title": "masked"},
        facet={"field": "model", "title": None, "sort": [*map(str, masked["model"].unique())]},
        masks=_masks(masked, by_chance),
        right=right,
        about="over the share of the area that is left as it was: at one place as many pixels are "
        "left, and only the choice differs",
    )


def _facets(
    rows: list[dict[str, Any]],
    *,
    x: dict[str, Any],
    colour: dict[str, Any],
    facet: dict[str, Any],
    masks: list[str],
    right: Rightness,
    about: str,
) -> dict[str, Any]:
    layers = _layers(x | {"type": "quantitative"}, colour, masks, right)
    fills = list(dict.fromkeys(row["fill"] for row in rows))
    controls = [name for name in masks if name not in (_SELECTION, _ORIGINAL, _CHANCE)]
    beside = ["all controls", *controls, "none"]
    default = "random" if "random" in controls else beside[0]
    params: list[dict[str, Any]] = [{"name": "fill", "value": fills[0]}]
    if len(fills) > 1:
        params = [_choice("fill", "masked pixels become ", fills, fills[0])]
    params += [_choice("beside", "beside the selection ", beside, default)] * bool(controls)
    is_shown = f"indexof({json.dumps([_SELECTION, _ORIGINAL, _CHANCE])}, datum.mask) >= 0"
    shown = [{"filter": "datum.fill === fill"}]
    if controls:
        is_shown += f" || beside === '{beside[0]}' || datum.mask === beside"
        shown.append({"filter": is_shown})
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": f"{right.title}, {about}",
        "data": {"values": rows},
        "params": params,
        "transform": shown,
        "facet": facet | {"type": "nominal", "header": {"labelFontSize": 13}},
        "columns": 2,
        "spec": {"width": 300, "height": 240, "layer": layers},
    }


def _layers(
    x: dict[str, Any], colour: dict[str, Any], masks: list[str], right: Rightness
) -> list[dict[str, Any]]:
    """Lines; points of the selection with their intervals; and what the pointer finds of lines."""
    y = {
        "field": "top1",
        "type": "quantitative",
        "title": right.axis,
        "scale": {"domain": [0, 100]},
    }
    detail = [{"field": name} for name in ("model", "mode", "mask")]
    dash = {
        "field": "mask",
        "type": "nominal",
        "title": "squares",
        "scale": {"domain": masks, "range": list(islice(cycle(_DASHES), len(masks)))},
        "legend": {"symbolType": "stroke", "symbolStrokeWidth": 1.5, "symbolSize": 300},
    }
    told = [
        {"field": "model", "title": "network"},
        {"field": "mode"},
        {"field": "mask", "title": "squares"},
        {"field": "p", "title": "p, %"},
        {"field": "top1", "title": f"{right.quantity}, %", "format": ".1f"},
        {"field": "ci_low", "title": "95 % from", "format": ".1f"},
        {"field": "ci_high", "title": "to", "format": ".1f"},
        {"field": "area_kept", "title": "area left, %", "format": ".1f"},
    ]
    common = {"x": x, "y": y, "color": colour}
    lines = {
        "transform": [{"filter": "datum.line !== false"}],
        "mark": {"type": "line", "strokeWidth": 1.6},
        "encoding": common | {"strokeDash": dash, "detail": detail},
    }
    selected = [{"filter": f"datum.mask === '{_SELECTION}' && datum.line !== true"}]
    intervals = {
        "transform": selected,
        "mark": {"type": "rule", "strokeWidth": 1.2},
        "encoding": common | {"y": y | {"field": "ci_low"}, "y2": {"field": "ci_high"}},
    }
    points = {
        "transform": selected,
        "mark": {"type": "point", "filled": True, "size": 45},
        "encoding": common | {"tooltip": told},
    }
    under = {
        "mark": {"type": "point", "filled": True, "size": 90, "opacity": 0},
        "encoding": {"x": x, "y": y, "detail": detail, "tooltip": told},
    }
    return [lines, intervals, points, under]


def _choice(name: str, says: str, options: list[str], value: str) -> dict[str, Any]:
    """A parameter that a select of the page sets."""
    return {
        "name": name,
        "value": value,
        "bind": {"input": "select", "options": options, "name": says},
    }


def _scale(field: str, names: list[str], *, grey: str, black: str = "") -> dict[str, Any]:
    """A colour each; `black` stands for the colour of the text, which the page knows."""
    free = iter(COLOURS * (len(names) // len(COLOURS) + 1))
    fixed = {grey: "#888888", black: "TEXT"}
    colours = [fixed.get(name) or next(free) for name in names]
    return {"field": field, "type": "nominal", "scale": {"domain": names, "range": colours}}


def _masks(masked: pd.DataFrame, by_chance: float | None) -> list[str]:
    controls = [name for name in masked["mask"].unique() if name != _SELECTION]
    return [_SELECTION, *controls, _ORIGINAL, *[_CHANCE] * (by_chance is not None)]


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows without what is missing; names of models are texts, whatever they look like."""
    table = table.round(2)
    return [
        {name: value for name, value in row.items() if not pd.isna(value)}
        for row in table.to_dict("records")
    ]
