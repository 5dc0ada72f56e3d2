"""A study from Python: started, and read when it is finished."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from torch import Tensor

from igmask import arrays
from igmask.asked import config
from igmask.asked.masking import middle
from igmask.asked.recipes import Condition
from igmask.asked.settings import percent
from igmask.errors import InputError, suggestion
from igmask.inputs.files import read_text
from igmask.plain import unpack
from igmask.plan import Workflow
from igmask.progress import say
from igmask.report.examples import (
    RANDOM,
    attribution_columns,
    beside_random,
    condition_columns,
    read_examples,
)
from igmask.tools import plotting
from igmask.tools.masking import Picture

_LAST_LINES = 12  # of what Snakemake says, in an error


class Study:
    """What a study has found, read from its folder when it is asked for.

    folder: `results` of the working directory of the study
    models: the names of its networks
    """

    def __init__(self, folder: str | os.PathLike[str] = "results") -> None:
        self.folder = Path(folder)
        table = self.folder / "tables" / "accuracy.csv"
        if not table.is_file():
            below = sorted(self.folder.glob("*/tables/accuracy.csv"))
            near = f"; did you mean {str(below[0].parents[1])!r}?" if below else ""
            raise InputError(f"{table}: there is no finished study in {self.folder}{near}")
        self.models = list(dict.fromkeys(self.accuracy["model"]))

    def __repr__(self) -> str:
        return f"Study({str(self.folder)!r}), of {', '.join(self.models)}"

    @cached_property
    def accuracy(self) -> pd.DataFrame:
        """accuracy.csv: a row a model, mode, p, fill and mask; all shares in percent."""
        return arrays.read_table(self.folder / "tables" / "accuracy.csv")

    @cached_property
    def comparisons(self) -> pd.DataFrame | None:
        """comparisons.csv: differences with intervals and tests; None if there are none."""
        return self._table_if_there("comparisons")

    def classes(self, model: str | None = None) -> list[str]:
        """Return the names of a network's classes, by their numbers in `records`."""
        path = self._of(model or self.models[0]) / "records" / "original.parquet"
        return list(arrays.read_records(path)[1]["class_names"])

    @cached_property
    def curves(self) -> pd.DataFrame | None:
        """curves.csv: accuracy at each share of the area; None if the study has no curves."""
        return self._table_if_there("curves")

    def _table_if_there(self, name: str) -> pd.DataFrame | None:
        path = self.folder / "tables" / f"{name}.csv"
        return arrays.read_table(path) if path.exists() else None

    def records(
        self,
        model: str,
        mode: str = "original",
        p: float | None = None,
        *,
        fill: str | None = None,
        mask: str = "selection",
    ) -> pd.DataFrame:
        """Return what a network said of each image under a condition, a row an image (and draw).

        fill: the study's first if None
        mask: `selection`, or a control
        raises InputError for a condition that the study does not have, with those that it has
        """
        self._of(model)
        condition = Condition("original")
        if mode != "original":
            modes = list(self.accuracy["mode"].unique())
            if mode not in modes:
                raise InputError(f"the study has no mode {mode!r}; it has {', '.join(modes)}")
            if p is None:
                raise InputError(f"records of {mode!r} need p")
            condition = Condition(mode, p, self._fill(model, mode, fill), mask)
        path = self._of(model) / "records" / f"{condition.name}.parquet"
        if not path.is_file():
            table = self.accuracy
            alike = table[(table["model"] == model) & (table["mode"] == mode)]
            ps, fills, masks = (
                ", ".join(
                    percent(x) if x == x and key == "p" else str(x) for x in alike[key].unique()
                )
                for key in ("p", "fill", "mask")
            )
            raise InputError(
                f"{path}: the study has no such records; of {mode} it has p = {ps}, the fills "
                f"{fills}, the masks {masks}"
            )
        return arrays.read_records(path)[0]

    def masks(self, model: str, p: float) -> np.ndarray:
        """Return the squares selected of all images, (N, P, Q) bool; rows are those of `images`.

        raises InputError for a p that the study does not have
        """
        shards = arrays.Shards([self._mask(model, p)])
        every = np.arange(len(shards.records))
        return unpack(shards.read(every), tuple(shards.settings["grid"]))

    def images(self, model: str) -> pd.DataFrame:
        """Return the list of images: name, label, position, target and what was attributed."""
        return self._scores(model).records

    def image(self, name: str, model: str | None = None) -> np.ndarray:
        """Return an image as the network saw it, (H, W, 3) uint8.

        name:  as in `images`, or its end after a slash
        model: of those of the study the first if None
        raises InputError if there is none of that name, or several
        """
        shards = self._pictures(model or self.models[0])
        return shards.read(np.array([self._row(shards.records["name"], name)]))[0]

    def attribution(self, name: str, model: str | None = None) -> np.ndarray:
        """Return the attribution of an image, (P, Q) float32: of each square its signed sum."""
        shards = self._scores(model or self.models[0])
        parts = shards.read(np.array([self._row(shards.records["name"], name)]))[0]
        return parts[0] - parts[1]

    def plot_accuracy(self, *, fill: str | None = None, axes: Any = None) -> Figure:
        """Return a figure of accuracy over area; see `igmask.plot`."""
        return plotting.plot_study(self.accuracy, self.curves, fill=fill, axes=axes)

    def plot_image(
        self, name: str, model: str | None = None, p: float | None = None, *, axes: Any = None
    ) -> Figure:
        """Return a figure of an image, its attribution, and what is kept and dropped.

        As in the study's pictures: with its first fill, beside as many random squares if that
        control is among its own, and with what the network says of each.

        p:    the study's nearest to 50 if None
        axes: of matplotlib to draw into, as many as there are panels
        raises InputError for what the study does not have, or another number of axes
        """
        model = model or self.models[0]
        ps = self.accuracy["p"].dropna()
        if ps.empty:
            raise InputError(
                f"{self.folder}: no masked images were evaluated, so there are no masks"
            )
        if p is None:
            p = middle(ps)
        shards = (*self._pictures(model).paths, *self._scores(model).paths)
        files = [*shards, self._mask(model, p), *self._shown(model, p)]
        few = read_examples(files, lambda index: np.array([self._row(index["name"], name)]))
        selected = condition_columns(few)
        first = selected["original"][100.0], next(attribution_columns(few))
        columns = [*first, *beside_random(few, selected, p)]
        panels = [(one.title, one.pictures[0], one.captions[0]) for one in columns]
        title = f"{Path(name).name}, {model}"
        return plotting.plot_panels(panels, per_row=len(panels) - 2, title=title, axes=axes)

    def _mask(self, model: str, p: float) -> Path:
        path = self._of(model) / "masks" / f"{percent(p)}.npy"
        # Of its table, since the folder may hold those of a p that it had before.
        rows = self.accuracy[self.accuracy["model"] == model]
        known = sorted(rows["p"].dropna().unique())
        if p not in known or not path.is_file():
            there = ", ".join(map(percent, known))
            raise InputError(f"{path}: the study has no such masks; there are those of p = {there}")
        return path

    def _shown(self, model: str, p: float) -> Iterator[Path]:
        """The records of the conditions that pictures at p show."""
        folder = self._of(model) / "records"
        yield folder / "original.parquet"
        table = self.accuracy
        for mode in table.loc[(table["model"] == model) & (table["p"] == p), "mode"].unique():
            for mask in ("selection", RANDOM):
                condition = Condition(mode, p, self._fill(model, mode, None), mask)
                path = folder / f"{condition.name}.parquet"
                if path.is_file():
                    yield path

    def _fill(self, model: str, mode: str, fill: str | None) -> str:
        table = self.accuracy
        known = table.loc[(table["model"] == model) & (table["mode"] == mode), "fill"].unique()
        if fill is None and len(known):
            return str(known[0])
        if fill is None or fill not in known:
            raise InputError(f"the study has no fill {fill!r} for {mode}; {', '.join(known)}")
        return fill

    def _of(self, model: str) -> Path:
        """The folder of a network; the study's dataset is the one that has it."""
        if model not in self.models:
            near = suggestion(model, self.models)
            raise InputError(
                f"the study has no network {model!r}, but {', '.join(self.models)}{near}"
            )
        found = [path for path in self.folder.glob("*/models/*") if path.name == model]
        if len(found) != 1:
            listed = ", ".join(map(str, found)) or "none"
            raise InputError(f"{self.folder}: one folder of {model} is needed, there is {listed}")
        return found[0]

    def _scores(self, model: str) -> arrays.Shards:
        folder = self._of(model) / "scores"
        if not (paths := _in_order(folder.glob("*.npy"))):
            raise InputError(f"{folder}: the attributions are not there; run the study again")
        return arrays.Shards(paths)

    def _pictures(self, model: str) -> arrays.Shards:
        asked = self._scores(model).settings["geometry"]
        for folder in sorted((self._of(model).parents[1] / "images").glob("*")):
            if not (paths := _in_order(folder.glob("*.npy"))):
                continue
            shards = arrays.Shards(paths)
            if shards.settings["geometry"] == asked:
                return shards
        raise InputError(f"{self.folder}: the images that {model} saw are not there")

    def _row(self, names: pd.Series, name: str) -> int:
        found = names.index[(names == name) | names.str.endswith(f"/{name}")]
        if len(found) != 1:
            what = "several images" if len(found) else "no image"
            near = "" if len(found) else suggestion(name, names)
            raise InputError(f"the study has {what} named {name!r}{near}")
        return int(found[0])


def plot(
    shown: Picture | Study | str | os.PathLike[str],
    model: Callable[[Tensor], Tensor] | None = None,
    p: float | Sequence[float] = 50,
    **options: Any,
) -> Figure:
    """Return a figure, for a notebook: of an image and a model, or, without one, of a study.

    Of an image: itself, its attribution, and for each p what is kept and dropped, each beside as
    many random squares, with what the model says beneath. Of a study, or the folder of its results:
    accuracy over area.

    options: `axes` of matplotlib to draw into, 2 + 4 · (number of p), or one for each network of a
             study; of an image side, fill, title, random (the seed of the random squares; None
             leaves them out), and those of `integrated_gradients`, such as n_steps, rule and
             target; of a study fill
    raises   InputError if the image, an option, or the number of axes is not of these
    """
    if model is not None:
        return plotting.plot_image(shown, model, p, **options)  # type: ignore[arg-type]
    if isinstance(shown, str | os.PathLike) and Path(shown).is_dir():
        shown = Study(shown)
    if not isinstance(shown, Study):
        raise InputError("plot needs a model, too, or a study or the folder of one's results")
    return shown.plot_accuracy(**options)


def run(
    study: Mapping[str, Any] | str | os.PathLike[str],
    *,
    cores: int | str = "all",
    folder: str | os.PathLike[str] = ".",
    quiet: bool = True,
) -> Study:
    """Run a study, or what of it is not done yet, and return it finished.

    study:  a configuration, as config.yaml has it, or the file of one
    cores:  of this machine
    folder: where its paths begin, and `results` is written
    quiet:  say nothing but errors
    raises  InputError for a configuration that is not valid, or with the last lines of what was
            said if a job fails; the same call goes on with what is missing
    """
    if isinstance(study, Mapping):
        settings = dict(study)
    else:
        settings = config.of_yaml(read_text(Path(study)), str(study))
    flow = Workflow(settings, with_files=False)  # which says what is wrong
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(settings, file, allow_unicode=True)
        file.flush()
        words = [sys.executable, "-m", "snakemake", "--snakefile", str(_snakefile())]
        words += ["--cores", str(cores), "--directory", str(folder), "--nocolor"]
        words += ["--configfile", file.name, *(["--quiet", "rules"] if quiet else [])]
        try:
            done = subprocess.run(words, capture_output=quiet, text=True, check=False)
        except KeyboardInterrupt:
            say(f"stopped; the same call goes on with what is missing of the study of {flow.data}")
            raise
    if done.returncode:
        said = "\n".join(f"{done.stdout}\n{done.stderr}".splitlines()[-_LAST_LINES:])
        raise InputError(f"the study of {flow.data} was not finished:\n{said}")
    return Study(Path(folder, "results"))


def _snakefile() -> Path:
    place = Path(__file__).resolve().parents[2] / "Snakefile"
    if not place.is_file():
        raise InputError(
            f"{place}: is not there; install igmask from its checkout: pip install -e ."
        )
    return place


def _in_order(paths: Iterable[Path]) -> list[Path]:
    """Shards in their order, 2-of-10 before 10-of-10, of the number that was made last."""
    paths = list(paths)
    last = max(paths, key=lambda path: path.stat().st_mtime_ns, default=Path())
    of_last = [path for path in paths if path.stem.split("-")[-1] == last.stem.split("-")[-1]]
    return sorted(of_last, key=lambda path: int(path.stem.split("-")[0]))
