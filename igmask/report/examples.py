"""Pictures of a few images: what a model looks at, and what it says of them masked."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from igmask import arrays
from igmask.asked.masking import middle
from igmask.asked.recipes import STUDIED
from igmask.asked.settings import percent
from igmask.errors import InputError
from igmask.inputs.classes import NO_LABEL, class_name
from igmask.plain import as_large, pixels_of_squares, to_pixels, unpack
from igmask.report.claims.outcomes import first_draws
from igmask.report.drawing import HEAT, Column, scaled, write_table
from igmask.report.rightness import RIGHTNESS, Rightness, truth
from igmask.steps.masked.controls import Batch, Dataset, control_of
from igmask.steps.masked.fills import filled

RANDOM = "random"  # the control that pictures show


class File(NamedTuple):
    """Records and their settings."""

    path: Path
    records: pd.DataFrame
    settings: dict[str, Any]


@dataclass(frozen=True)
class Examples:
    """A few images, and what the files of one model say of them.

    positions:   (n,) in the dataset
    images:      (n, H, W, 3) in [0, 1]
    attribution: (n, H, W), each pixel with the sum of its square, towards the class in `targets`
    target:      `predicted` or `true`, which of the two that class is
    right:       what it is to be right about an image
    rows:        what stands at the left: names of the labels, or of files where there are none
    masks:       p → (n, H, W) bool
    random:      the same of as many random squares, if there are records of them
    evaluated:   a file a condition, its records those of all images
    """

    names: pd.Series
    positions: np.ndarray
    rows: list[str]
    right: Rightness
    target: str
    targets: list[str]
    images: np.ndarray
    attribution: np.ndarray
    masks: dict[float, np.ndarray]
    random: dict[float, np.ndarray]
    evaluated: list[File]


def examples(
    files: list[Path],
    *,
    output: Path,
    model_name: str,
    n_images: int,
    formats: Sequence[str] = ("png",),
) -> None:
    """Write pictures of `n_images` images, spread over the classes, to the folder `output`.

    attributions-MODEL.png; of each mode among the records keep-MODEL.png or drop-MODEL.png; and of
    both keep_drop-MODEL.png, at the p nearest to 50, beside as many random squares if that control
    is among the records. Of several fills the first is shown.

    files: of one model: images and scores (all shards, in order), masks and records
    raises InputError if files are missing or do not belong together
    """
    few = read_examples(files, lambda index: spread(index["label"].to_numpy(), n_images))
    columns = condition_columns(few)
    original = columns.pop("original")[100.0]
    tables = {mode: [original, *of_p.values()] for mode, of_p in columns.items()}
    tables["attributions"] = [original, *attribution_columns(few)]
    if common := columns.get("keep", {}).keys() & columns.get("drop", {}).keys():
        tables["keep_drop"] = [original, *beside_random(few, columns, middle(common))]
    title = "; ".join(filter(None, [model_name, few.right.ticks]))
    for kind, shown in tables.items():
        paths = [output / f"{kind}-{model_name}.{one}" for one in formats]
        write_table(paths, shown, row_names=few.rows, title=title)


def spread(labels: np.ndarray, n_images: int) -> np.ndarray:
    """Return the rows of `n_images` images, or of all if there are fewer, evenly over the classes.

    They are the middles of equal parts of the images in the order of their labels: the choice
    knows nothing of what a model says of them.
    """
    n = min(n_images, len(labels))
    return np.argsort(labels, kind="stable")[(2 * np.arange(n) + 1) * len(labels) // (2 * n)]


def read_examples(files: list[Path], choose: Callable[[pd.DataFrame], np.ndarray]) -> Examples:
    """Return what the files of one model say of some images.

    choose: the list of all images, a row each → (n,) rows
    raises InputError if files are missing or do not belong together
    """
    found = by_step(files)
    of_images, of_scores = arrays.Shards(found["prepare"]), arrays.Shards(found["attribute"])
    index = of_images.records
    rows = choose(index)
    take = partial(taken, rows=rows, names=index["name"])
    images = of_images.read(rows).astype(np.float32) / 255
    classes, side = (of_scores.settings[key] for key in ("class_names", "side"))
    target, right = (
        of_scores.settings["attribution"]["target"],
        RIGHTNESS[truth(of_images.settings)],
    )
    known = zip(index["name"].iloc[rows], index["label"].iloc[rows], strict=True)
    tiled = partial(to_pixels, height=images.shape[1], width=images.shape[2], side=side)
    parts = tiled(take(of_scores))
    targets = of_scores.records["target"]
    masks = [arrays.Shards([path]) for path in found.get("mask", [])]
    evaluated = [File(path, *arrays.read_records(path)) for path in found["evaluate"]]
    squares = {one.settings["p"]: unpack(take(one), tuple(one.settings["grid"])) for one in masks}
    as_many = _as_many(squares, masks, evaluated, Batch(images, rows), of_scores)
    return Examples(
        names=index["name"].iloc[rows],
        positions=index["position"].to_numpy()[rows],
        rows=[
            PurePath(name).name if label == NO_LABEL else class_name(classes, label)
            for name, label in known
        ],
        right=right,
        target=target if target == "predicted" else right.heading,
        targets=[class_name(classes, target) for target in targets.iloc[rows]],
        images=images,
        attribution=parts[:, 0] - parts[:, 1],
        masks={p: tiled(chosen) for p, chosen in squares.items()},
        random={p: tiled(chosen) for p, chosen in as_many.items()},
        evaluated=evaluated,
    )


def _as_many(
    squares: dict[float, np.ndarray],
    masks: list[arrays.Shards],
    evaluated: list[File],
    batch: Batch,
    scores: arrays.Shards,
) -> dict[float, np.ndarray]:
    """By p as many random squares as are selected, the first draw; none if none were evaluated."""
    asked = [file.settings for file in evaluated if file.settings["mask"] == RANDOM]
    if not (asked and squares):
        return {}
    dataset = Dataset(scores, masks[0].settings["score"], asked[0].get("control_seed", 0))
    ranked = control_of(RANDOM).scores(dataset, batch)
    height, width = batch.images.shape[1:3]
    sizes = pixels_of_squares(dataset.grid, height, width, scores.settings["side"])
    return {p: as_large(ranked, chosen, sizes) for p, chosen in squares.items()}


def by_step(files: list[Path]) -> dict[str, list[Path]]:
    """Return the files of each step, once each; an array goes by its .npy, its .parquet or both.

    raises InputError if there are no images, scores or records among them
    """
    found: dict[str, list[Path]] = {}
    for path in dict.fromkeys(arrays.records_of(file) for file in files):
        step = arrays.read_settings(path)["step"]
        found.setdefault(step, []).append(path if step == "evaluate" else path.with_suffix(".npy"))
    for step in ("prepare", "attribute", "evaluate"):
        if step not in found:
            raise InputError(f"examples need the files that `igmask {step}` wrote, too")
    return found


def taken(shards: arrays.Shards, rows: np.ndarray, names: pd.Series) -> np.ndarray:
    """Return some rows of an array, which has to be of all images of these names."""
    if not shards.records["name"].equals(names):
        raise InputError(f"{shards.paths[0]}: of other images, or not all shards are given")
    return shards.read(rows)


def beside_random(
    examples: Examples, selected: dict[str, dict[float, Column]], p: float
) -> list[Column]:
    """Return what is kept at one p and what is dropped, each beside as many random squares.

    What there are no records of is left out.

    selected: of `condition_columns`
    """
    random = condition_columns(examples, ("none", RANDOM))
    pairs = [(mode, of) for mode in ("keep", "drop") for of in (selected, random)]
    return [of[mode][p] for mode, of in pairs if p in of.get(mode, {})]


def condition_columns(
    examples: Examples, of: tuple[str, ...] = STUDIED
) -> dict[str, dict[float, Column]]:
    """Return mode → p, the largest first → the images of that condition; original has p = 100."""
    columns: dict[str, dict[float, Column]] = {}
    fills: dict[str, str | None] = {}
    for file in examples.evaluated:
        mode, fill, mask = (file.settings[key] for key in ("mode", "fill", "mask"))
        if mask not in of:
            continue
        if fills.setdefault(mode, fill) == fill:
            column = _condition_column(examples, file)
            columns.setdefault(mode, {})[file.settings["p"] or 100.0] = column
    if "original" not in columns:
        raise InputError("examples need the records of the original images, too")
    return {mode: dict(sorted(of_p.items(), reverse=True)) for mode, of_p in columns.items()}


def _condition_column(examples: Examples, file: File) -> Column:
    """The images as the model saw them, and what it said."""
    settings, title, images = file.settings, file.settings["mode"], examples.images
    records = first_draws(file.records)
    if not examples.names.isin(records.index).all():
        raise InputError(f"{file.path}: records of other images")
    records = records.loc[examples.names]
    if title != "original":
        p = settings["p"]
        if p not in examples.masks:
            raise InputError(f"examples need the masks of p = {percent(p)}, too")
        is_random = settings["mask"] == RANDOM
        chosen = (examples.random if is_random else examples.masks)[p]
        kept = chosen if title == "keep" else ~chosen
        mean = settings["model"]["mean"]
        values = filled(images, settings, mean=mean, positions=examples.positions, kept=kept)
        images = np.where(kept[..., np.newaxis], images, values)
        title += " random squares" if is_random else f" {percent(p)} %"
        several = " (mean)" if records["area_kept"].nunique() > 1 else ""
        title += f"\n{100 * records['area_kept'].mean():.0f} % left{several}"
    classes = settings["class_names"]
    captions = [caption(record, classes) for record in records.itertuples()]
    return Column(title, images, captions)


def caption(record: Any, classes: list[str]) -> str:
    """Return what stands beneath an image: whether the model is right, its class, how sure."""
    mark = "✓" if record.correct else "✗"
    name = class_name(classes, record.predicted)
    return f"{mark} {name}\n{100 * record.probability_predicted:.0f} %"


def attribution_columns(examples: Examples) -> Iterator[Column]:
    """Yield the attribution by itself, over the grey image, and the squares it selects at one p."""
    values = examples.attribution
    yield Column(f"attribution\nfor {examples.target} class", list(values), examples.targets)
    relative = np.stack([scaled(one) for one in values])
    cover = np.sqrt(np.abs(relative))[..., np.newaxis]
    grey = examples.images.mean(axis=-1, keepdims=True)
    over = grey * (1 - cover) + HEAT((relative + 1) / 2)[..., :3] * cover
    yield Column("on the image", list(over), [""] * len(over))
    if examples.masks:
        p = middle(examples.masks)
        chosen = examples.masks[p]
        pictures = np.where(chosen[..., np.newaxis], examples.images, 0.65 + 0.2 * grey)
        areas = [f"{100 * one:.0f} % of the area" for one in chosen.mean(axis=(1, 2))]
        yield Column(f"top {percent(p)} %", pictures, areas)
