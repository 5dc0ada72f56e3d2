"""A user's own `module:callable`, which says of a dataset's settings what images there are.

It returns a name and a label of each image, the names of the classes 0, 1, … or none, and the
function that opens the image at a place 0, 1, … as one of PIL's. A table of JPEG bytes:

    def photos(dataset):
        table = pandas.read_parquet(dataset.root)

        def open_image(i):
            return Image.open(BytesIO(table.jpeg[i]))

        return table.file, table.label, ["cat", "dog"], open_image
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from igmask.asked.settings import Dataset
from igmask.errors import InputError, integer, refusing, with_kind
from igmask.inputs.classes import as_labels, relabelled
from igmask.inputs.decode import by_place
from igmask.inputs.own import called

_NO_FAULTS = AttributeError, ImportError, KeyError, TypeError  # of an image


def listed(dataset: Dataset) -> tuple[dict[str, Any], list[str]]:
    """Return the columns name, path and label, and the class names, that the function says."""
    names, numbers, known, _ = _images(dataset)
    labels, classes = relabelled(numbers, known, dataset.classes, of=dataset.source)
    return {"name": names, "path": "", "label": labels}, classes


def opener(dataset: Dataset, *, seed: int) -> Callable[[Any], Image.Image]:
    """Return the function that opens the image of a record by its place."""
    *_, open_own = _images(dataset)

    def open_image(place: int) -> Any:
        with refusing(*_NO_FAULTS, says=lambda error: f"{dataset.source}: {with_kind(error)}"):
            return open_own(place)

    return by_place(open_image, scale=dataset.scale)


def _images(
    dataset: Dataset,
) -> tuple[list[str], np.ndarray, list[str], Callable[[int], Any]]:
    """What the function returns, or InputError that says what is wrong with it."""
    source = dataset.source
    match called(source, dataset):
        case (names, labels, classes, open_image) if callable(open_image):
            names, given = [str(name) for name in names], list(labels)
        case found:
            size = f" of {len(found)}" if isinstance(found, tuple | list) else ""
            raise InputError(
                f"{source} returned {type(found).__name__}{size}, not (names, labels, classes, "
                "function that opens the image at a place)"
            )
    if len(names) != len(given):
        raise InputError(f"{source}: {len(names):,} names and {len(given):,} labels")
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise InputError(f"{source}: {twice[0]!r} is there twice")
    known = [] if classes is None else [str(name) for name in classes]
    numbers = []
    for name, label in zip(names, given, strict=True):
        what = f"{source}: the label of {name!r}"
        numbers.append(integer(what, label))
        if known and not 0 <= numbers[-1] < len(known):
            raise InputError(f"{what} is {label}, and the classes are 0 … {len(known) - 1}")
    return names, as_labels(numbers, of=source), known, open_image
