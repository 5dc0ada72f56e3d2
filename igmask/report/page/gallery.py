"""A few images of a model, with all that the page of a study needs to draw them masked.

The page draws masked images itself: from the originals, the rank of each square, and what masked
pixels become: some kilobytes an image, however many p, modes and fills there are.
"""

import io
import json
import zlib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from igmask import arrays
from igmask.asked.recipes import STUDIED
from igmask.asked.settings import percent
from igmask.errors import InputError
from igmask.inputs.classes import NO_LABEL, class_name
from igmask.plain import OF_MASK, as_large, pixels_of_squares, unpack
from igmask.report.areas import condition_in_order
from igmask.report.claims.outcomes import first_draws
from igmask.report.drawing import scaled
from igmask.report.examples import by_step, spread, taken
from igmask.steps.masked.controls import Batch, Dataset, control_of, has_ranking
from igmask.steps.masked.fills import filled, in_bytes

# Of all pictures of a model: so many are stored to the bit, more as they look. A megabyte or three.
_MOST_EXACT = 1_200_000
_QUALITY = 85


class Evaluated(NamedTuple):
    """What a network said of the chosen images under a condition, by their names; and settings."""

    answers: pd.DataFrame
    made_by: dict[str, Any]


def gallery(
    files: list[Path],
    output: Path,
    *,
    model_name: str = "model",
    n_gallery: int = 60,
    randomised: list[Path] | None = None,
) -> None:
    """Write what the page of a study shows of a model's images, a JSON file.

    Arrays in it are bytes, deflated, in base64, in the order (image, row, column):
    `attribution` int8, 127 the strongest of its image; `levels` of the selection and of each
    control uint8: in how many of the masks a square is, of which there is one a p, `ps`, from the
    largest to the smallest.

    files:      of one model: images and scores (all shards, in order), masks, and records or
                the folder that holds them
    randomised: scores by the randomised network, for the control of that name
    raises      InputError if files are missing or do not belong together
    """
    text = json.dumps(_described(files, model_name, n_gallery, randomised or []), allow_nan=False)
    arrays.write_text(output, text)


def _described(
    files: list[Path], model_name: str, n_gallery: int, randomised: list[Path]
) -> dict[str, Any]:
    found = by_step(arrays.files_in(files, "*.parquet"))
    of_images, of_scores = arrays.Shards(found["prepare"]), arrays.Shards(found["attribute"])
    index = of_images.records
    rows = spread(index["label"].to_numpy(), n_gallery)
    images = of_images.read(rows)
    parts = taken(of_scores, rows, index["name"])
    masks = [arrays.Shards([path]) for path in found.get("mask", [])]
    masks.sort(key=lambda one: -one.settings["p"])
    chosen = [unpack(taken(one, rows, index["name"]), tuple(one.settings["grid"])) for one in masks]
    evaluated = [_evaluated(path, index["name"].iloc[rows]) for path in found["evaluate"]]
    evaluated.sort(key=_place)
    settings = evaluated[0].made_by
    classes = settings["class_names"]
    labels = index["label"].iloc[rows]
    targets = of_scores.records["target"].iloc[rows]
    return {
        "model": model_name,
        "skipped": len(of_images.settings.get("skipped", [])),
        "side": of_scores.settings["side"],
        "grid": list(parts.shape[2:]),
        "size": list(images.shape[1:3]),
        "completeness": _completeness(masks),
        "images": [
            {
                "name": PurePath(name).name,
                "label": None if label == NO_LABEL else class_name(classes, label),
                "target": class_name(classes, target),
            }
            for name, label, target in zip(index["name"].iloc[rows], labels, targets, strict=True)
        ],
        "exact": is_exact(images),
        "pictures": [_picture(image, exact=is_exact(images)) for image in images],
        "attribution": _bytes(_signed(parts)),
        "ps": [percent(one.settings["p"]) for one in masks],
        "levels": dict(_levels(chosen, masks, evaluated, of_scores, images, rows, randomised)),
        "fills": dict(_fills(evaluated, images, index["position"].to_numpy()[rows])),
        **_said(evaluated, classes),
    }


def is_exact(images: np.ndarray) -> bool:
    """Return whether so many pixels, of images (n, H, W, 3), are stored to the bit."""
    return images[..., 0].size <= _MOST_EXACT


def _completeness(masks: list[arrays.Shards]) -> dict[str, float] | None:
    """Of all images, as the mask step has it, where the method has it."""
    found = masks[0].settings.get("completeness") if masks else None
    return found and {key: found[key] for key in ("median", "share_above")}


def _signed(parts: np.ndarray) -> np.ndarray:
    """The attribution of squares by parts (n, 2, P, Q), int8, 127 the strongest of its image."""
    values = [scaled(one) for one in parts[:, 0] - parts[:, 1]]
    return np.round(127 * np.stack(values)).astype(np.int8)


def _levels(
    chosen: list[np.ndarray],
    masks: list[arrays.Shards],
    evaluated: list[Evaluated],
    scores: arrays.Shards,
    images: np.ndarray,
    rows: np.ndarray,
    randomised: list[Path],
) -> Iterator[tuple[str, str]]:
    """By selection and control: in how many of the masks, largest first, each square is."""
    if not chosen:
        return
    yield "selection", _bytes(_levels_of(chosen))
    of_mask = masks[0].settings
    said = {one.made_by["mask"]: one.made_by for one in evaluated}
    grid, side = tuple(of_mask["grid"]), of_mask["side"]
    sizes = pixels_of_squares(grid, images.shape[1], images.shape[2], side)
    for name, made_by in said.items():
        if name in STUDIED:
            continue
        if name == "randomised" and not randomised:
            continue
        drawn = arrays.Shards(randomised) if name == "randomised" else None
        dataset = Dataset(scores, of_mask["score"], made_by.get("control_seed", 0), drawn)
        ranked = control_of(name).scores(dataset, Batch(images, rows))
        has = has_ranking(ranked)
        ranked = np.where(has[:, None, None], ranked, 0)
        levels = _levels_of([as_large(ranked, one, sizes) for one in chosen])
        yield name, _bytes(np.where(has[:, None, None], levels, 0).astype(np.uint8))


def _levels_of(chosen: list[np.ndarray]) -> np.ndarray:
    """In how many masks each square is: masks of one ranking lie within each other."""
    return np.stack(chosen).sum(axis=0, dtype=np.uint8)


def _fills(
    evaluated: list[Evaluated],
    images: np.ndarray,
    positions: np.ndarray,
) -> Iterator[tuple[str, Any]]:
    """By fill: a colour for all images or each, pictures, or None where it depends on the mask."""
    for fill, made_by in {one.made_by["fill"]: one.made_by for one in evaluated}.items():
        if fill is None:
            continue
        if fill in OF_MASK:
            yield fill, None
            continue
        mean = made_by["model"]["mean"]
        values = in_bytes(255 * filled(images, made_by, mean=mean, positions=positions))
        values = np.broadcast_to(values, (len(images), *values.shape[1:]))
        if values.shape[1:3] == (1, 1):
            yield fill, values[:, 0, 0].tolist()
        else:
            yield fill, [_picture(one, exact=is_exact(images)) for one in values]


def _evaluated(path: Path, names: pd.Series) -> Evaluated:
    """The rows of the images chosen, NaN for one without a ranking; of several draws the first."""
    records, made_by = arrays.read_records(path)
    answers = first_draws(records).reindex(names)
    if made_by["mask"] in STUDIED and answers["predicted"].isna().any():
        raise InputError(f"{path}: records of other images")
    return Evaluated(answers, made_by)


def _place(one: Evaluated) -> tuple[Any, ...]:
    """Where a condition has its place among all, whatever the order of files."""
    made_by = one.made_by
    return condition_in_order(made_by["mode"], made_by["p"] or 0, made_by["fill"], made_by["mask"])


def _said(evaluated: list[Evaluated], classes: list[str]) -> dict[str, Any]:
    """What the network said under each condition: places in `classes`, percent, whether right."""
    names: dict[str, int] = {}
    said = []
    for answers, made_by in evaluated:
        of_images = [
            None
            if pd.isna(one.predicted)
            else [
                names.setdefault(class_name(classes, int(one.predicted)), len(names)),
                round(100 * one.probability_predicted),
                int(one.correct),
            ]
            for one in answers.itertuples()
        ]
        p = made_by["p"]
        condition = {key: made_by[key] for key in ("mode", "fill", "mask")}
        said.append(condition | {"p": None if p is None else percent(p), "answers": of_images})
    return {"classes": list(names), "said": said}


def _picture(image: np.ndarray, *, exact: bool) -> str:
    """An image (H, W, 3) of bytes as a data URL."""
    file = io.BytesIO()
    how = {"lossless": True, "quality": 100} if exact else {"quality": _QUALITY}
    Image.fromarray(image).save(file, "webp", method=4, **how)
    return f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}"


def _bytes(values: np.ndarray) -> str:
    return b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode()
