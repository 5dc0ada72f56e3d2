"""Photographs without labels: a folder of them, flat or nested, or those of scikit-image.

The label of each is the class that a network predicts of it as it is: another one's may differ.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from igmask.errors import InputError
from igmask.inputs.classes import class_names, class_numbers
from igmask.inputs.decode import read_rgb
from igmask.inputs.files import existing, indexed_images
from igmask.study.settings import UNLABELLED, Dataset

# Photographs in scikit-image's wheel of which its documentation says that anybody may use them: CC0
# (camera, chelsea, coffee), public domain (astronaut, clock, Hubble, rocket), or no restrictions known
# (coins). Of others there, such as the motorcycle, it does not say so, or they show no thing.
_OF_SCIKIT_IMAGE = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "hubble_deep_field.jpg",
    "rocket.jpg",
)


def listed(dataset: Dataset) -> tuple[dict[str, Any], list[str]]:
    """Return the columns name, path and label, and the names of the network's classes.

    raises InputError if there is no such folder, no image in it, or no scikit-image
    """
    if dataset.root is None:
        files = _of_scikit_image()
    elif not (files := indexed_images(existing(dataset.root))):
        raise InputError(f"{dataset.root}: no images in this folder or below")
    classes = class_names(class_numbers(dataset.classes)) if dataset.classes else []
    return {"name": [*files], "path": [*files.values()], "label": UNLABELLED}, classes


def opener(dataset: Dataset, *, seed: int) -> Callable[[Any], Image.Image]:
    """Return the function that opens the image of a record, which is a file."""
    return lambda record: read_rgb(Path(record.path), scale=dataset.scale)


def _of_scikit_image() -> dict[str, str]:
    """Where the photographs are; found without importing scikit-image, which takes a second."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise InputError(
            "dataset.root: missing, and without it the photographs are those of scikit-image, "
            "which is not installed; pip install 'igmask[photos]'"
        )
    folder = Path(found.origin).parent / "data"
    return {name: str(folder / name) for name in _OF_SCIKIT_IMAGE}
