"""Step: what would else be found after hours: does the model load, answer, and know the labels?"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from igmask import arrays
from igmask.asked import config
from igmask.asked.recipes import Preflight, stamp
from igmask.asked.settings import Model
from igmask.errors import InputError
from igmask.inputs import baselines, models, sample
from igmask.inputs.chance import by_luck
from igmask.inputs.data import (
    check_classes,
    check_labels,
    check_order,
    is_labelled,
    opener,
    unnamed_classes,
)
from igmask.inputs.files import with_located
from igmask.inputs.networks import library_of
from igmask.inputs.own import imported, named
from igmask.plain import fill_values, grid
from igmask.progress import say
from igmask.steps.maps import check_maps
from igmask.steps.masked.controls import own_scores

_N_TRIED = 4  # images, of functions of the user's own


def preflight(index_path: Path, output: Path, recipe: Preflight) -> None:
    """Write, for people to read, what a model is found to be: classes, their names, parameters.

    And how often it is right about the first images; it is said if that is no better than chance,
    or if weights are random that nobody said to be so.

    raises InputError if weights do not load or fit, hold NaN, if the output of a trial pass has
           no probabilities or is not (N, classes), if a label is not one of the classes, if which
           classes the dataset has is not said or there are more or fewer in a list, if the
           baseline is a file, or one's own, that cannot be used, if the classes of dataset and
           network are in another order, if an image has no map or one that does not fit, if a
           function of one's own cannot be imported, or if a fill or control of one's own fails on
           the first images, or gives others when it is called again
    """
    here = with_located(recipe, index_path)
    model, baseline = here.model, here.baseline
    records, made_by = arrays.read_records(index_path)
    network = models.load(model)
    images, labels = _first_images(model, records, made_by)
    n_classes = models.n_classes(network, model, images if len(images) else None)
    check_classes(made_by, n_classes)
    check_labels(records, made_by, n_classes)
    if note := unnamed_classes(made_by, n_classes):
        raise InputError(f"the network {note}")
    check_order(made_by["classes"], library_of(model).class_names(model))
    geometry = models.complete(model).geometry
    baselines.check(baseline, geometry)
    if here.maps:
        size = geometry.size, geometry.size
        check_maps(here.maps, records["name"], size, here.side, here.score)
    for name in recipe.own:
        imported(name)
    _try_own(recipe, images, models.complete(model))
    predicted = sample.predicted(network, images)
    labels = labels[: len(predicted)] if is_labelled(made_by) else predicted
    if note := models.random_weights(network, model):
        say(f"warning: the network {note}")
    elif (
        model.weights_kind != "none"
        and is_labelled(made_by)
        and (luck := by_luck(predicted, labels, n_classes))
    ):
        say(f"warning: the network {luck[1]}")
    found = stamp("preflight", made_by) | {
        "n_classes": n_classes,
        "class_names": library_of(model).class_names(model) or made_by["classes"],
        "n_parameters": sum(p.numel() for p in network.parameters()),
        "first_images": {
            "n": len(labels),
            "top1": 100 * float((predicted == labels).mean()) if len(labels) else None,
        },
    }
    arrays.write_text(output, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def _try_own(recipe: Preflight, images: np.ndarray, model: Model) -> None:
    """Call the user's own fills and controls twice on some images."""
    few = images[:_N_TRIED]
    squares = grid(few.shape[1], few.shape[2], recipe.side)
    scores = np.random.default_rng(0).random((len(few), *squares), dtype=np.float32)
    calls = {name: partial(fill_values, few, named(name), model.mean) for name in recipe.fills}
    calls |= {name: partial(own_scores, name, few, scores, 0) for name in recipe.controls}
    for name, call in calls.items() if len(few) else ():
        if not np.array_equal(call(), call()):
            raise InputError(
                f"{name} gives other values each time it is called, and results would too; draw "
                "random numbers from a generator of a fixed seed"
            )


def _first_images(
    model: Model, records: pd.DataFrame, made_by: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Some images (n, H, W, 3) and their labels (n,); `prepare` names those that are bad."""
    dataset = config.dataset(made_by["dataset"] | {"download": False})
    open_image, geometry = opener(dataset, seed=made_by["seed"]), models.complete(model).geometry
    tried = sample.images(records, open_image, geometry)
    good = {row: image for row, image in tried.items() if not isinstance(image, InputError)}
    shape = (len(good), geometry.size, geometry.size, 3)
    images = np.array([*good.values()], dtype=np.uint8).reshape(shape)
    return images, records["label"].to_numpy()[[*good]]
