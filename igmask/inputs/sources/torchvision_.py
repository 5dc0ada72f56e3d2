"""Any dataset class of torchvision.datasets; an ImageFolder or the like as with source `folder`."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from igmask.asked.settings import Dataset
from igmask.errors import InputError, refusing, with_kind
from igmask.inputs.classes import class_labels, relabelled
from igmask.inputs.decode import by_place
from igmask.inputs.files import EXTENSIONS, check_text, class_folders, names_that_count
from igmask.inputs.sources import folder
from igmask.progress import progress


def listed(dataset: Dataset) -> tuple[dict[str, Any], list[str]]:
    """Return the columns name, path and label of the dataset's images, and its class names."""
    source = _made(dataset)
    lists = [getattr(source, name, None) for name in ("targets", "labels", "_labels")]
    labels = next((found for found in lists if found is not None), None)
    if labels is None:  # every image has to be read to see its label
        places = progress(range(len(source)), total=len(source), unit="images", label="labels")
        labels = [source[i][1] for i in places]
    labels = np.asarray(labels, dtype=np.int64)
    names = [f"{i:06d}" for i in range(len(source))]
    paths = [""] * len(source)
    # ImageNet's classes are tuples of synonyms.
    classes = [str(x[0] if isinstance(x, tuple) else x) for x in getattr(source, "classes", [])]
    if _is_tree(type(source)):
        paths = [path for path, _ in source.samples]
        for path in paths:
            check_text(path)
        names = [f"{name} {path}" for name, path in zip(names, paths, strict=True)]
        if dataset.classes or classes == [*source.labels]:  # no names but those of the folders
            classes = source.class_names
    else:
        labels, classes = relabelled(labels, classes, dataset.classes, of=dataset.class_)
    return {"name": names, "path": paths, "label": labels}, classes


def opener(dataset: Dataset, *, seed: int) -> Callable[[Any], Image.Image]:
    """Return the function that opens the image of a record: a file, or by its place."""
    if _is_tree(_class(dataset)):
        return folder.opener(dataset, seed=seed)
    source = _made(dataset)
    return by_place(lambda place: source[place][0], scale=dataset.scale)


def _made(dataset: Dataset) -> Any:
    factory = _class(dataset)
    arguments = dataset.arguments | ({"download": True} if dataset.download else {})
    what = f"torchvision.datasets.{dataset.class_}"
    refused = (RuntimeError, TypeError, ValueError, OSError)
    with (
        refusing(LookupError, says=lambda error: f"{what}: {with_kind(error)}"),
        refusing(*refused, says=lambda error: f"{what}: {error}"),
        names_that_count(),
    ):
        if _is_tree(factory):
            factory = _seen_as_folders(factory, dataset.classes)
        return factory(dataset.root, **arguments)


def _class(dataset: Dataset) -> Any:
    import torchvision.datasets  # slow, and needed by this source alone

    found = getattr(torchvision.datasets, dataset.class_ or "", None)
    if found is None:
        raise InputError(f"dataset.class: torchvision.datasets has no {dataset.class_!r}")
    return found


def _is_tree(factory: Any) -> bool:
    """Whether a class of torchvision.datasets is an ImageFolder or the like."""
    from torchvision.datasets import DatasetFolder

    return isinstance(factory, type) and issubclass(factory, DatasetFolder)


def _seen_as_folders(factory: Any, listed: str | None) -> Any:
    """The class, whose images are found and labelled as with source `folder`."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    class Seen(factory):
        @staticmethod
        def make_dataset(
            directory: str,
            class_to_idx: dict[str, int],
            extensions: Any = None,
            *rest: Any,
            **more: Any,
        ) -> Any:
            taken = EXTENSIONS if extensions == IMG_EXTENSIONS else extensions
            return factory.make_dataset(directory, class_to_idx, taken, *rest, **more)

        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            folders = class_folders(directory)
            if not folders:
                raise InputError(f"{directory}: no class folders in it")
            self.labels, self.class_names = class_labels(folders, listed, of=directory)
            return folders, self.labels

    return Seen
