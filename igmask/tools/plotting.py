"""Pictures for notebooks: of one image, and of a finished study. Axes in, figure out."""

import io
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from igmask.asked.recipes import network_of
from igmask.asked.settings import percent
from igmask.engine.ig import integrated_gradients
from igmask.errors import InputError, integer
from igmask.inputs.classes import class_name
from igmask.kernels import occlude, select, square_scores
from igmask.plain import area, as_large, pixels_of_squares
from igmask.report.curves import draw_against_area
from igmask.report.drawing import STYLE, draw_panel, draw_scale
from igmask.report.explain import picture, prediction
from igmask.report.rightness import AREA, RIGHTNESS, chance
from igmask.tools.masking import Picture, percentages, pixels

_PANEL = 2.1, 3.2  # inches, with its texts

Panel = tuple[str, np.ndarray, str]


class Drawn(Figure):
    """A figure that a notebook shows, with pyplot or without."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """Write it whole, in the style that it was drawn in."""
        with matplotlib.style.context(["default", STYLE]):
            super().savefig(fname, **{"bbox_inches": "tight"} | options)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def plot_image(
    image: Picture,
    model: Callable[[Tensor], Tensor],
    p: float | Sequence[float] = 50,
    *,
    side: int = 3,
    fill: Any = "black",
    random: int | None = 0,
    axes: Sequence[Axes] | None = None,
    title: str = "",
    **attribution: Any,
) -> Figure:
    """Return a figure of an image, its attribution, and for each p what is kept and dropped.

    Beside both stand as many random squares, without which nobody can tell what the attribution
    found from what its area does. Beneath each stands what the model says of it; names of classes
    are the model's `classes`.

    image:  one, in [0, 1], of the model's size: see `load_image`
    model:  see `mask_image`
    random: the seed of the random squares; None leaves them out
    axes:   2 + 4 · (number of p) of matplotlib to draw into, 2 + 2 · (number of p) without random
            squares; a figure of its own if None
    attribution: options of `integrated_gradients`, such as n_steps, rule and target
    raises InputError if the image, an option, or the number of axes is not of these
    """
    x = pixels(image)
    if x.ndim != 3:
        raise InputError(f"plot draws one image, got {tuple(x.shape)}")
    ps = percentages(p)
    if x.shape[0] not in (1, 3):
        raise InputError(f"plot draws images of one colour or three, got {x.shape[0]}")
    names = list(getattr(model, "classes", []))
    x = x[None]
    found = integrated_gradients(model, x, **attribution)
    squares = torch.stack(
        [square_scores(found.values, side=side), square_scores(-found.values, side=side)], dim=1
    )
    signed = (squares[0, 0] - squares[0, 1]).numpy(force=True)
    panels = [
        ("original", picture(x), prediction(model, x, names)),
        ("attribution", signed, f"for {class_name(names, int(found.target))}"),
    ]
    ranked = None if random is None else _drawn(random, tuple(squares.shape[2:]))
    for one in ps:
        chosen = select(squares[:, 0], one)
        of = {f"{percent(one)} %": chosen}
        if ranked is not None:
            sizes = pixels_of_squares(ranked.shape[1:], x.shape[2], x.shape[3], side)
            as_many = as_large(ranked, chosen.numpy(force=True), sizes)
            of["random squares"] = torch.from_numpy(as_many).to(chosen.device)
        for mode in ("keep", "drop"):
            for what, squares_of in of.items():
                kept = squares_of if mode == "keep" else ~squares_of
                masked = occlude(x, kept, side=side, fill=fill)
                [share] = area(kept.numpy(force=True), *x.shape[2:], side=side)
                heading = f"{mode} {what}\n{100 * share:.0f} % left"
                panels.append((heading, picture(masked), prediction(model, masked, names)))
    return plot_panels(panels, per_row=(len(panels) - 2) // len(ps), title=title, axes=axes)


def _drawn(seed: int, grid: tuple[int, ...]) -> np.ndarray:
    """Scores of squares that rank them at random, (1, P, Q)."""
    rng = np.random.default_rng(abs(integer("random", seed)))
    return rng.permutation(int(np.prod(grid))).reshape(1, *grid)


def plot_panels(
    panels: Sequence[Panel],
    *,
    per_row: int,
    title: str = "",
    axes: Sequence[Axes] | None = None,
) -> Figure:
    """Return a figure of panels, each a heading, a picture and a caption.

    Two stand at the left of the first row, and of the others `per_row` in each.

    raises InputError if axes are given and there are not as many
    """
    others = [(i // per_row, 2 + i % per_row) for i in range(len(panels) - 2)]
    with matplotlib.style.context(["default", STYLE]):
        figure, places = _places(axes, [(0, 0), (0, 1), *others], inches=_PANEL)
        for place, (heading, shown, caption) in zip(places, panels, strict=True):
            draw_panel(place, shown)
            place.set_title(heading)
            place.set_xlabel(caption)
            if shown.ndim == 2 and axes is None:
                draw_scale(place.inset_axes((0.15, -0.32, 0.7, 0.04)))
        if title and axes is None:
            figure.set_figheight(figure.get_figheight() + 0.4)
            figure.suptitle(title)
    return figure


def plot_study(
    accuracy: pd.DataFrame,
    curves: pd.DataFrame | None,
    *,
    fill: str | None = None,
    axes: Sequence[Axes] | None = None,
) -> Figure:
    """Return a figure of accuracy over area, a panel for each network.

    accuracy, curves: of `Study`
    fill: the study's first if None
    axes: one for each network
    """
    masked = accuracy[(accuracy["mode"] != "original") & accuracy["mask"].map(network_of).isna()]
    if masked.empty:
        raise InputError("no masked images were evaluated, so there are no curves")
    fill = fill or masked["fill"].iloc[0]
    masked = masked[masked["fill"] == fill]
    if masked.empty:
        known = accuracy["fill"].dropna().unique()
        raise InputError(f"the study has no fill {fill!r}; it has {', '.join(known)}")
    original = accuracy[accuracy["mode"] == "original"].set_index("model")["top1"]
    n = masked["model"].nunique()
    with matplotlib.style.context(["default", STYLE]):
        cells = [(0, i) for i in range(n)]
        figure, places = _places(axes, cells, inches=(2.6, 3.4), beside=1.2)
        swept = None if curves is None else curves[curves["fill"] == fill]
        keys = draw_against_area(places, masked, original, swept, chance(accuracy))
        for place in places:
            place.spines[["top", "right"]].set_visible(False)  # which would cross a point at 100
            place.set(xlim=(0, 103), ylim=(0, 100), xlabel=AREA)
            place.grid(color="0.92")
        truths = masked.get("truth", pd.Series(["label"]))
        places[0].set_ylabel(RIGHTNESS[truths.iloc[0]].axis)
        if axes is None:
            figure.legend(handles=keys, loc="outside right upper")
        else:
            places[-1].legend(handles=keys)
    return figure


def _places(
    axes: Sequence[Axes] | None,
    cells: list[tuple[int, int]],
    *,
    inches: tuple[float, float],
    beside: float = 0,
) -> tuple[Figure, list[Axes]]:
    """The axes that are given, checked, or those of a new figure, at its rows and columns.

    inches: width and height of a cell
    beside: inches at the right, for a legend
    """
    n = len(cells)
    if axes is None:
        n_rows, n_columns = (max(places) + 1 for places in zip(*cells, strict=True))
        size = (inches[0] * n_columns + beside, inches[1] * n_rows)
        figure: Figure = Drawn(figsize=size, layout="constrained")
        grid = figure.add_gridspec(n_rows, n_columns)
        return figure, [figure.add_subplot(grid[cell]) for cell in cells]
    places = [axes] if isinstance(axes, Axes) else list(chain(np.asarray(axes, object).flat))
    if len(places) != n:
        raise InputError(f"{n} axes are needed, got {len(places)}")
    return places[0].get_figure(root=True), places  # type: ignore[return-value]
