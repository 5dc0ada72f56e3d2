"""A folder of photographs without labels, flat or nested.

The label of each is what the network says of the original, so that every network has its own; the
index knows of none.
"""

from pathlib import Path
from typing import Any

from igmask.errors import InputError
from igmask.inputs.classes import NO_LABEL, class_names, class_numbers
from igmask.inputs.files import existing, indexed_images
from igmask.study.settings import Dataset


def listed(dataset: Dataset) -> tuple[dict[str, Any], list[str]]:
    """Return the columns name, path and label, which is none, and the class names, if listed."""
    root = existing(dataset.root)
    files = indexed_images(root)
    if not files:
        raise InputError(f"{root}: no images in it")
    numbers = class_numbers(Path(dataset.classes)) if dataset.classes else {}
    return {"name": [*files], "path": [*files.values()], "label": NO_LABEL}, class_names(numbers)
