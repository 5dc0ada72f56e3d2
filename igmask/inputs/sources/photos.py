"""Photographs without labels: a folder of them, flat or nested, or those of scikit-image.

The label of each is what the network says of the original, so that every network has its own; the
index knows of none.
"""

import importlib.util
from pathlib import Path
from typing import Any

from igmask.asked.settings import Dataset
from igmask.errors import InputError
from igmask.inputs.classes import NO_LABEL, class_names, class_numbers
from igmask.inputs.files import existing, indexed_images, left_out

# Photographs in scikit-image's wheel of which its documentation says that anybody may use them: CC0
# (camera, chelsea, coffee), public domain (astronaut, clock, Hubble, rocket), or no restrictions
# known (coins). Of others there, such as the motorcycle, it does not say so, or they show no thing.
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
    """Return the columns name, path and label, which is none, and the class names, if listed.

    Photographs are shown upright, as people see them, whichever way the camera was held.

    raises InputError if there is no such folder, no image in it, or no scikit-image
    """
    if dataset.root is None:
        files = _of_scikit_image()
    elif not (files := indexed_images(existing(dataset.root))):
        others = left_out(existing(dataset.root), of_folders=False)
        raise InputError(f"{dataset.root}: no images in it" + f"; {others}" * bool(others))
    numbers = class_numbers(dataset.classes) if dataset.classes else {}
    found: dict[str, Any] = {"name": [*files], "path": [*files.values()], "label": NO_LABEL}
    return found | {"upright": True}, class_names(numbers)


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
