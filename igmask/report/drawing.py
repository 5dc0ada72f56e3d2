"""What all pictures share: their style, and tables of panels, a row an image.

Nothing goes through pyplot, whose figures outlive the call that made them. The same content makes
the same bytes.
"""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from igmask import arrays
from igmask.errors import InputError

# The first comes with matplotlib; the others, if installed, have the letters that it lacks.
_FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "Arial Unicode MS")
STYLE = {
    "font.size": 8,
    "font.family": [name for name in _FONTS if name in get_font_names()],
    "axes.titlesize": "medium",
    "figure.titlesize": "large",
    "figure.labelsize": "medium",
    "axes.edgecolor": "0.7",
    "axes.linewidth": 0.6,
    "lines.linewidth": 1,
    "lines.markersize": 4,
    "xtick.color": "0.7",
    "ytick.color": "0.7",
    "xtick.labelcolor": "0.2",
    "ytick.labelcolor": "0.2",
    "legend.frameon": False,
    "image.composite_image": False,  # each picture in a PDF or SVG by itself, as it is
    "figure.dpi": 200,
    "text.parse_math": False,  # a class may be called $5 bill
    "svg.hashsalt": "igmask",
    "pdf.fonttype": 42,  # TrueType, which journals ask for
}
# What a format would else say of the day and the software that it was made with.
_UNSAID = {".png": "Software", ".pdf": "CreationDate", ".svg": "Date"}
_FORMATS = (*_UNSAID, ".jpg", ".jpeg", ".webp")
_LETTERS_PER_INCH = 15
_SLIDE = 16 / 9
_GAP, _NAME, _CAPTION = 0.1, 0.3, 0.42  # inches: between pictures, left of them, and beneath

_PAD = 0.05  # between a picture and its texts

_VERDICTS = {"✓": "#00734F", "✗": "#C04000"}
HEAT = matplotlib.colormaps["RdBu_r"]
_BARS = ("#0072B2", "#56B4E9", "#999999")


class Column(NamedTuple):
    """A heading, and in each row a picture (see `draw_explanation`) with its caption."""

    title: str
    pictures: Sequence[np.ndarray] | np.ndarray
    captions: Sequence[str]


def draw_explanation(
    output: Path, panels: list[tuple[str, np.ndarray, str]], *, title: str
) -> None:
    """Write a row of panels, each a title, a picture and a caption.

    A picture is an image (H, W, 3), uint8 or in [0, 1], or an attribution (P, Q). A caption that
    begins with ✓ is green, with ✗ red.
    """
    columns = [Column(heading, [picture], [caption]) for heading, picture, caption in panels]
    write_table(output, columns, row_names=[""], title=title, inches=2.0)


def check_output(path: Path) -> None:
    """Raise InputError if a picture cannot be written to `path`: its format, its folder."""
    if path.suffix.lower() not in _FORMATS:
        known = ", ".join(_FORMATS)
        raise InputError(f"{path}: pictures are written as {known}, not as {path.suffix!r}")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir():
        raise InputError(f"{path}: {there} is a file, and no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{path}: the folder {there} cannot be written to")


@contextmanager
def drawing(
    paths: Path | list[Path], *, width: float, height: float, is_laid_out: bool = False
) -> Iterator[Figure]:
    """Yield an empty figure, its size in inches, and write it if the block succeeds.

    Its formats are those of the names; see `check_output`.

    is_laid_out: the block says where everything is; else axes are placed as their texts need it
    """
    paths = [paths] if isinstance(paths, Path) else paths
    with (
        matplotlib.style.context(["default", STYLE]),
        ExitStack() as files,
        warnings.catch_warnings(),
    ):
        places = [(path, files.enter_context(arrays.replacing(path))) for path in paths]
        # A letter that no font has is a box in the picture, which says it once.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        layout = None if is_laid_out else ConstrainedLayoutEngine()
        figure = Figure(figsize=(width, height), layout=layout)
        yield figure
        if layout is not None:
            layout.execute(figure)
            figure.set_layout_engine()  # none, with which savefig would draw everything twice
        for path, temporary in places:
            kind = path.suffix.lower()
            unsaid = {_UNSAID[kind]: None} if kind in _UNSAID else None
            figure.savefig(temporary, format=kind.lstrip("."), metadata=unsaid)


def write_table(
    path: Path | list[Path],
    columns: list[Column],
    *,
    row_names: list[str],
    title: str,
    inches: float = 1.3,
) -> None:
    """Write the columns side by side, a picture `inches` wide; many rows in blocks side by side.

    There are as many blocks as bring the figure nearest to the shape of a slide.
    """
    n, n_columns, n_letters = len(row_names), len(columns), int(inches * _LETTERS_PER_INCH)
    n_lines = max(column.title.count("\n") for column in columns)  # beyond the first
    has_scale = any(column.pictures[0].ndim == 2 for column in columns)
    beneath, above = 0.5 * has_scale, 0.6 + 0.17 * n_lines  # the pictures, in inches

    def shape(n_blocks: int) -> tuple[float, float]:
        width = n_blocks * (n_columns * (inches + _GAP) + _NAME)
        return width, -(-n // n_blocks) * (inches + _CAPTION) + above + beneath

    def off_a_slide(n_blocks: int) -> float:
        width, height = shape(n_blocks)
        return abs(math.log(width / height / _SLIDE))

    n_blocks = min(range(1, n + 1), key=off_a_slide)
    n_rows, (width, height) = -(-n // n_blocks), shape(n_blocks)
    with drawing(path, width=width, height=height, is_laid_out=True) as figure:
        figure.suptitle(fit_text(title, n_letters * n_columns), y=1 - 0.05 / height, va="top")
        # One for all pictures, in inches: axes of their own take longer than all that is in them.
        axes = figure.add_axes((0, 0, 1, 1))
        known = matplotlib.rcParams
        small, large = known["axes.labelsize"], known["axes.titlesize"]
        for i, name in enumerate(row_names):
            row, left = i % n_rows, i // n_rows * (width / n_blocks) + _NAME
            top = height - above - row * (inches + _CAPTION)
            middle, said = top - inches / 2, fit_text(name, n_letters)
            axes.text(left - _PAD, middle, said, size=small, ha="right", va="center", rotation=90)
            for k, column in enumerate(columns):
                x = left + k * (inches + _GAP)
                centre, caption = x + inches / 2, column.captions[i]
                if row == 0:
                    heading = fit_text(column.title, n_letters)
                    axes.text(centre, top + _PAD, heading, size=large, ha="center", va="bottom")
                _draw_at(axes, column.pictures[i], x, top - inches, inches)
                colour, said = _VERDICTS.get(caption[:1], "0.3"), fit_text(caption, n_letters)
                below = top - inches - _PAD
                axes.text(centre, below, said, size=small, color=colour, ha="center", va="top")
        axes.set(xlim=(0, width), ylim=(0, height))
        axes.set_axis_off()
        if has_scale:
            draw_scale(figure.add_axes((0.3, 0.3 / height, 0.4, 0.08 / height)))


def draw_bars(
    output: Path, groups: dict[str, list[float | None]], *, labels: list[str], title: str
) -> None:
    """Write horizontal bars, one of each group for each label, with a line at 1; None has none."""
    groups = {name: values for name, values in groups.items() if set(values) - {None}}
    height = 0.8 / max(len(groups), 1)
    with drawing(output, width=6, height=0.45 * len(labels) + 1) as figure:
        axes = figure.subplots()
        places = np.arange(len(labels))[::-1]
        for i, (name, values) in enumerate(groups.items()):
            known = [k for k, value in enumerate(values) if value is not None]
            widths = [value for value in values if value is not None]
            at = places[known] - i * height
            bars = axes.barh(at, widths, height, label=name, color=_BARS[i])
            axes.bar_label(bars, fmt="%.2f", padding=2)
        axes.axvline(1, color="0.4", linewidth=0.8)
        axes.set_yticks(places - height * (len(groups) - 1) / 2, labels)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title)
        if groups:
            figure.legend(loc="outside lower center", ncols=len(groups))


def draw_scale(axes: Axes) -> None:
    """Draw into wide axes what the colours of attributions mean."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    colours = ScalarMappable(Normalize(-1, 1), HEAT)
    bar = figure.colorbar(colours, cax=axes, orientation="horizontal")
    bar.set_ticks([-1, 0, 1], labels=["against", "0", "for the class"])
    bar.outline.set_visible(False)


def draw_panel(axes: Axes, picture: np.ndarray) -> None:
    """Draw a picture, see `Column`, into axes without ticks."""
    _show(axes, picture)
    axes.set(xticks=[], yticks=[])


def _draw_at(axes: Axes, picture: np.ndarray, x: float, y: float, side: float) -> None:
    """Draw a picture into a square of axes, in a frame, as large as fits."""
    height, width = (side * length / max(picture.shape[:2]) for length in picture.shape[:2])
    x, y = x + (side - width) / 2, y + (side - height) / 2
    _show(axes, picture, extent=(x, x + width, y, y + height), aspect="auto")
    axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="0.7", linewidth=0.6))


def _show(axes: Axes, picture: np.ndarray, **where: Any) -> None:
    # Enlarged pixels keep their edges; those near the resolution of the figure are smoothed.
    interpolation = "nearest" if max(picture.shape[:2]) <= 96 else "antialiased"
    if picture.ndim == 2:
        picture = scaled(picture)
    axes.imshow(picture, cmap=HEAT, vmin=-1, vmax=1, interpolation=interpolation, **where)


def scaled(attribution: np.ndarray) -> np.ndarray:
    """Return an attribution in [-1, 1]; the few most extreme squares are cut off."""
    size = np.abs(attribution)
    return np.clip(attribution / (np.percentile(size, 99) or size.max() or 1), -1, 1)


def fit_text(text: str, n_letters: int) -> str:
    """Return the text with lines that are too long cut short."""
    return "\n".join(
        line if len(line) <= n_letters else line[: n_letters - 1].rstrip() + "…"
        for line in text.split("\n")
    )
