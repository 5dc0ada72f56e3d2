"""A folder a class, as torchvision's ImageFolder has them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from igmask.asked.settings import Dataset
from igmask.errors import InputError
from igmask.inputs.classes import class_labels
from igmask.inputs.decode import read_rgb
from igmask.inputs.files import class_folders, existing, indexed_images, left_out


def listed(dataset: Dataset) -> tuple[dict[str, Any], list[str]]:
    """Return the columns name, path and label, and the class names, of the folders in `root`."""
    root = existing(dataset.root)
    folders = class_folders(root)
    if not folders:
        raise InputError(f"{root}: no class folders in it")
    labels, classes = class_labels(folders, dataset.classes, of=root)
    columns: dict[str, list[Any]] = {"name": [], "path": [], "label": []}
    for folder in folders:
        files = indexed_images(root / folder)
        if not files:
            others = left_out(root / folder, of_folders=False)
            raise InputError(
                f"{root / folder}: no images in this class folder; remove it or fill it"
                + f" ({others})" * bool(others)
            )
        start = os.path.join(folder, "")
        columns["name"] += [start + name for name in files]
        columns["path"] += files.values()
        columns["label"] += [labels[folder]] * len(files)
    return columns, classes


def opener(dataset: Dataset, *, seed: int) -> Callable[[Any], Image.Image]:
    """Return the function that opens the image of a record, which is a file."""

    def opened(record: Any) -> Image.Image:
        upright = bool(getattr(record, "upright", False))
        return read_rgb(Path(record.path), scale=dataset.scale, upright=upright)

    return opened
