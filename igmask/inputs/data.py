"""Datasets → an index: one record an image, its name, label, and where to read it."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from igmask.asked.settings import Dataset
from igmask.errors import InputError
from igmask.inputs import files
from igmask.inputs.classes import without_wnid
from igmask.inputs.decode import naming, without_border
from igmask.inputs.sources import source_of


def index(dataset: Dataset) -> tuple[pd.DataFrame, list[str]]:
    """Return (records, class names) of a dataset, in its own order.

    records: name (unique), path (of the file that holds the image, if one does), label, and
             position: the place in the whole dataset, which seeds all that is random about an image
             and does not depend on `limit`; of files also size, in bytes, and mtime_ns, the time of
             change in ns since 1970, and what their source needs to find the image
    raises   InputError, naming the folder, file or line that is wrong
    """
    columns, classes = source_of(dataset.source).listed(dataset)
    records = pd.DataFrame(columns)
    if records.empty:
        raise InputError(f"dataset {dataset.name!r} has no images")
    records["position"] = np.arange(len(records))
    if dataset.limit is not None:
        records = records[records.groupby("label").cumcount() < dataset.limit]
    records = records.reset_index(drop=True)
    if records["path"].iloc[0]:
        records = records.join(stamps(records))
    return records, classes


def stamps(records: pd.DataFrame) -> pd.DataFrame:
    """Return size and mtime_ns of the files of records, both −1 where one cannot be looked at."""

    def stamp(path: str) -> tuple[int, int]:
        try:
            found = os.stat(path)
        except OSError:  # a link to nothing, say; opening it will tell
            return -1, -1
        return found.st_size, found.st_mtime_ns

    found = {path: stamp(path) for path in records["path"].unique()}
    rows, names = [found[path] for path in records["path"]], ["size", "mtime_ns"]
    return pd.DataFrame(rows, records.index, names, dtype=np.int64)


def left_out(dataset: Dataset) -> str | None:
    """Return what to say of files that look like images and are not taken."""
    if not dataset.root or dataset.source not in {*Dataset.FOLDERS} - {*Dataset.ARCHIVES}:
        return None
    of_folders = source_of(dataset.source).has_folders
    return files.left_out(str(dataset.root), of_folders=of_folders)


def numbered_classes(made_by: Mapping[str, Any], labels: Iterable[int]) -> str | None:
    """Return what to say where class folders count by their numbers, not by the alphabet.

    made_by: settings of the dataset's records, as step `index` makes them
    labels:  of all records
    """
    present = {*labels}
    used = {name: i for i, name in enumerate(made_by["classes"]) if i in present}
    numbers = all(name.isdecimal() and int(name) == label for name, label in used.items())
    places = {name: i for i, name in enumerate(sorted(used))}
    if not _own_classes(made_by) or not numbers or used == places:
        return None
    return (
        "the class folders are numbers, and each counts as the class of its number, not of its "
        "place in alphabetical order; if they are others, dataset.classes has to say so"
    )


def unnamed_classes(made_by: Mapping[str, Any], n_classes: int) -> str | None:
    """Return what to say of a network's classes where a dataset does not name all of them.

    made_by: settings of the dataset's records, as step `index` makes them
    """
    kind, names = _own_classes(made_by), made_by["classes"]
    numbers = all(name.isdecimal() and int(name) == i for i, name in enumerate(names))
    if not kind or numbers or len(names) == n_classes:
        return None
    says = (
        f"has {n_classes} classes, and the dataset {len(names)} {kind}, which count as the first "
        "ones. "
    )
    if n_classes == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in names):
        return says + (
            "They are wnids of ImageNet: set dataset.classes to imagenet, if the network's outputs "
            "are the 1000 classes of ILSVRC 2012 in alphabetical order of their wnids"
        )
    return says + (
        f"Write the names of all {n_classes} to a file, one a line in the order of the network's "
        f"outputs, the {len(names)} as they are here, and set dataset.classes to it; or name class "
        "folders by the numbers of their classes"
    )


def check_order(classes: list[str], outputs: list[str]) -> None:
    """Raise InputError if most of a dataset's classes are a network's, but in another order.

    A class goes by its first name: the `tench` of one list is the `tench, Tinca tinca` of another,
    and the `n01440764 tench` of a third.

    classes: names of the dataset's classes 0, 1, …
    outputs: names of the network's, or none if it does not say them
    """
    own, theirs = (
        [without_wnid(name).partition(",")[0].strip().casefold() for name in names]
        for names in (classes, outputs)
    )
    times = Counter(theirs)
    places = {name: i for i, name in enumerate(theirs) if times[name] == 1}
    known = [i for i, name in enumerate(own) if name in places]
    elsewhere = [i for i in known if places[own[i]] != i]
    if len(known) > len(own) / 2 and len(elsewhere) > len(known) / 2:
        first = elsewhere[0]
        raise InputError(
            f"the dataset has the network's classes in another order: {classes[first]!r} is its "
            f"class {first}, and output {places[own[first]]} of the network; set dataset.classes "
            "to a file of their names in the order of the outputs"
        )


def check_classes(made_by: Mapping[str, Any], n_classes: int) -> None:
    """Raise InputError if a dataset lists more or fewer classes than the model has outputs.

    Of class folders and torchvision's datasets without `classes` see `unnamed_classes`; a list
    that leaves out numbers in between says of each class which it is, and may leave out the last.

    made_by: settings of the dataset's records, as step `index` makes them
    """
    dataset, names = made_by["dataset"], made_by["classes"]
    unnamed = [name == str(i) for i, name in enumerate(names)]  # or all are named by numbers
    fewer_are_fine = any(unnamed) and not all(unnamed) and len(names) < n_classes
    listed = dataset.get("classes") or source_of(dataset["source"]).lists_classes
    if not listed or not names or len(names) == n_classes or fewer_are_fine:
        return
    cause = (
        "has one of the two a background class, first of all, that the other lacks?"
        if abs(len(names) - n_classes) == 1
        else "is the list another network's, or do the model's `arguments` ask for another number?"
    )
    raise InputError(
        f"{listed} lists {len(names):,} classes, and the model has "
        f"{n_classes:,} outputs, which have to be one and the same in this order: {cause}"
    )


def is_labelled(made_by: Mapping[str, Any]) -> bool:
    """Return whether a dataset says of its images what they show, by its records' settings."""
    return source_of(made_by["dataset"]["source"]).is_labelled


def check_labels(records: pd.DataFrame, made_by: Mapping[str, Any], n_classes: int) -> None:
    """Raise InputError, naming an image, if a label is not a class of the model."""
    if not is_labelled(made_by):
        return
    wrong = records[(records["label"] < 0) | (records["label"] >= n_classes)]
    if len(wrong):
        first = wrong.iloc[0]
        raise InputError(
            f"{len(wrong)} labels are outside the model's classes 0 … {n_classes - 1}, the first "
            f"that of {first['name']!r}: {first['label']}; check dataset.classes and the model"
        )


def opener(dataset: Dataset, *, seed: int) -> Callable[[Any], Image.Image]:
    """Return the function that opens the image of an index record, in RGB, from any thread.

    raises InputError (the function), naming the image, if it cannot be read
    """
    open_image, border = source_of(dataset.source).opener(dataset, seed=seed), dataset.border
    if not border:
        return open_image

    def opened(record: Any) -> Image.Image:
        with naming(record.name):
            return without_border(open_image(record), border)

    return opened


def _own_classes(made_by: Mapping[str, Any]) -> str:
    """What a dataset's own class names are called, if they are all that says what labels are."""
    dataset = made_by["dataset"]
    return "" if dataset.get("classes") else source_of(dataset["source"]).own_classes
