"""Datasets → an index: one record an image, its name, label, and where to read it."""

import csv
import io
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from igmask.errors import InputError
from igmask.inputs import demo
from igmask.inputs.classes import class_labels, class_names, class_numbers, class_of, identifiers
from igmask.inputs.decode import naming, read_rgb, to_rgb
from igmask.inputs.files import class_folders, counts, images_below, read_text
from igmask.progress import progress
from igmask.study.settings import Dataset


def index(dataset: Dataset) -> tuple[pd.DataFrame, list[str]]:
    """Return (records, class names) of a dataset, in its own order.

    records: name (unique), path (of files only), label, and position: the place in the whole
             dataset, which seeds all that is random about an image and does not depend on `limit`;
             of files also size, in bytes, and mtime_ns, the time of change in ns since 1970
    raises   InputError, naming the folder, file or line that is wrong
    """
    build = {"demo": _demo, "folder": _folder, "csv": _csv, "torchvision": _torchvision}
    records, classes = build[dataset.source](dataset)
    if records.empty:
        raise InputError(f"dataset {dataset.name!r} has no images")
    records["position"] = np.arange(len(records))
    if dataset.limit is not None:
        records = records[records.groupby("label").cumcount() < dataset.limit]
    records = records.reset_index(drop=True)
    if records["path"].iloc[0]:
        records = records.join(_stamps(records["path"].tolist()))
    return records, classes


def numbered_classes(made_by: Mapping[str, Any], labels: Iterable[int]) -> str | None:
    """Return what to say where class folders count by their numbers, not by the alphabet.

    made_by: settings of the dataset's records, such as `write_index` makes
    labels:  of all records
    """
    present = {*labels}
    used = {name: i for i, name in enumerate(made_by["classes"]) if i in present}
    numbers = all(name.isdecimal() and int(name) == label for name, label in used.items())
    places = {name: i for i, name in enumerate(sorted(used))}
    if not _by_folders(made_by) or not numbers or used == places:
        return None
    return (
        "the class folders are numbers, and each counts as the class of its number, not of its "
        "place in alphabetical order; if they are others, dataset.classes has to say so"
    )


def unnamed_classes(made_by: Mapping[str, Any], n_classes: int) -> str | None:
    """Return what to say of a network's classes where a dataset does not name all of them.

    made_by: settings of the dataset's records, such as `write_index` makes
    """
    names = made_by["classes"]
    numbers = all(name.isdecimal() and int(name) == i for i, name in enumerate(names))
    if not _by_folders(made_by) or numbers or len(names) == n_classes:
        return None
    kind = "class folders" if made_by["dataset"]["source"] == "folder" else "classes of its own"
    says = (
        f"has {n_classes} classes, and the dataset {len(names)} {kind}, which count as the first "
        "ones. "
    )
    if n_classes == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in names):
        return says + (
            "They are wnids of ImageNet: set dataset.classes to a file of all its 1000 wnids, one "
            "a line in alphabetical order, such as LOC_synset_mapping.txt, which comes with ILSVRC "
            "on Kaggle, or Keras' imagenet_class_index.json"
        )
    return says + (
        f"Write the names of all {n_classes} to a file, one a line in the order of the network's "
        f"outputs, the {len(names)} as they are here, and set dataset.classes to it; or name class "
        "folders by the numbers of their classes"
    )


def opener(dataset: Dataset, *, seed: int) -> Callable[[Any], Image.Image]:
    """Return the function that opens the image of an index record, in RGB, from any thread.

    raises InputError (the function), naming the image, if it cannot be read
    """
    if dataset.source == "demo":
        return lambda record: Image.fromarray(demo.draw(record.position, split="test", seed=seed))
    if dataset.source == "torchvision" and not _is_tree(_torchvision_class(dataset)):
        source, alone = _torchvision_dataset(dataset), threading.Lock()
        return lambda record: _from_torchvision(source, record, alone, scale=dataset.scale)
    return lambda record: read_rgb(Path(record.path), scale=dataset.scale)


def _by_folders(made_by: Mapping[str, Any]) -> bool:
    """Whether a dataset's own class names are all that says what its labels are."""
    dataset = made_by["dataset"]
    return dataset["source"] in ("folder", "torchvision") and not dataset.get("classes")


def _demo(dataset: Dataset) -> tuple[pd.DataFrame, list[str]]:
    labels = [demo.label_of(i) for i in range(dataset.n_images)]
    names = [f"{i:05d}-{demo.CLASSES[label]}" for i, label in enumerate(labels)]
    return pd.DataFrame({"name": names, "path": "", "label": labels}), list(demo.CLASSES)


def _folder(dataset: Dataset) -> tuple[pd.DataFrame, list[str]]:
    root = Path(dataset.root or "")
    folders = class_folders(_existing(root))
    if not folders:
        raise InputError(f"{root}: no class folders in it")
    labels, classes = class_labels(folders, _listed(dataset), of=root)
    columns: dict[str, list[Any]] = {"name": [], "path": [], "label": []}
    for folder in folders:
        files = _images_below(root / folder)
        if not files:
            raise InputError(
                f"{root / folder}: no images in this class folder; remove it or fill it"
            )
        start = os.path.join(folder, "")
        columns["name"] += [start + name for name in files]
        columns["path"] += files.values()
        columns["label"] += [labels[folder]] * len(files)
    return pd.DataFrame(columns), classes


def _csv(dataset: Dataset) -> tuple[pd.DataFrame, list[str]]:
    root, table = _existing(Path(dataset.root or "")), Path(dataset.labels or "")
    numbers = class_numbers(Path(dataset.classes)) if dataset.classes else {}
    known = identifiers(numbers)
    files = _images_below(root)
    by_stem: dict[str, list[str]] = {}
    for name in files:
        by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
    rows = []
    header, lines = _fields(table)
    if problem := _of_header(header, dataset.columns, files.keys() | by_stem.keys()):
        raise InputError(f"{table}: {problem}")
    for where, row in lines:
        if any(row.get(None, [])):  # type: ignore[call-overload]
            raise InputError(
                f"{where}: more fields than columns; put a field with commas in double quotes"
            )
        name, label = (row[column] or "" for column in dataset.columns)
        fitting = [name] if name in files else by_stem.get(name, [])
        if len(fitting) != 1:
            problem = f"{' and '.join(fitting)} are both" if fitting else "no image"
            raise InputError(f"{where}: {problem} {name!r} in {root}")
        rows.append((fitting[0], files[fitting[0]], _label(label, numbers, known, where)))
    records = pd.DataFrame(rows, columns=["name", "path", "label"])
    twice = records.name[records.name.duplicated()]
    if len(twice):
        raise InputError(f"{table}: {twice.iloc[0]!r} is there twice")
    return records, class_names(numbers)


def _fields(table: Path) -> tuple[Sequence[str], list[tuple[str, dict[str, Any]]]]:
    """(header, [(file and line, {column: field})]) of a CSV file, or InputError."""
    with io.StringIO(read_text(table)) as file:
        # Strict, since else a quote that nothing closes takes in every line that follows.
        reader = csv.DictReader(file, strict=True)
        lines, last = [], 1
        try:
            header = reader.fieldnames or []
            for row in reader:
                last = reader.line_num
                lines.append((f"{table}, line {last}", row))
        except csv.Error as error:
            raise InputError(
                f"{table}, after line {last}: a double quote is not closed, or not at the end of "
                f"its field ({error})"
            ) from None
    return header, lines


def _of_header(header: Sequence[str], columns: tuple[str, str], images: set[str]) -> str | None:
    """What is wrong with a table's header, if it does not have the columns once each."""
    missing = sorted({*columns} - {*header})
    if not header:
        return f"it is empty; it begins with a line {','.join(columns)!r}"
    if twice := [column for column in columns if header.count(column) > 1]:
        return f"the column {twice[0]!r} is there twice"
    if not missing:
        return None
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            return f"its columns are separated by {name}; separate them by commas"
    if any(field.strip() in images for field in header):
        return f"no header, but {','.join(header)!r}; put a line {','.join(columns)!r} above it"
    alike = {" ".join(field.split()).casefold(): field for field in header}
    for column in missing:
        if found := alike.get(" ".join(column.split()).casefold()):
            by = "upper and lower case" if found.strip() != column.strip() else "a space"
            return (
                f"no column {column!r}, but {found!r}, which differs by {by}; name it alike there "
                "and in dataset.columns"
            )
    return f"no column {missing}; it has {header}. Name the two to use in dataset.columns"


def _label(text: str, numbers: dict[str, int], known: dict[str, int], where: str) -> int:
    """The class of a CSV field: a name that `classes` lists, or a number."""
    label = class_of(text, numbers, known)
    if label is not None:
        return label
    # Where names are numbers, one that is none of them is no place in the list, either.
    if text.strip().isdecimal() and not any(map(str.isdecimal, numbers)):
        return int(text)
    problem = "is not in dataset.classes" if numbers else "is no number; set dataset.classes"
    raise InputError(f"{where}: the label {text!r} {problem}")


def _torchvision(dataset: Dataset) -> tuple[pd.DataFrame, list[str]]:
    source = _torchvision_dataset(dataset)
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
        names = [f"{name} {path}" for name, path in zip(names, paths, strict=True)]
        if dataset.classes or classes == [*source.labels]:  # no names but those of the folders
            classes = source.class_names
    elif listed := _listed(dataset):
        numbers, named = class_labels(classes, listed, of=dataset.class_)
        labels = np.asarray([*numbers.values()])[labels] if classes else labels
        classes = named
    return pd.DataFrame({"name": names, "path": paths, "label": labels}), classes


def _torchvision_dataset(dataset: Dataset) -> Any:
    factory = _torchvision_class(dataset)
    arguments = dict(dataset.arguments)
    if dataset.download:
        arguments["download"] = True
    try:
        if _is_tree(factory):
            factory = _seen_as_folders(factory, _listed(dataset))
        return factory(dataset.root, **arguments)
    except (RuntimeError, TypeError, ValueError, OSError) as error:
        raise InputError(f"torchvision.datasets.{dataset.class_}: {error}") from error


def _torchvision_class(dataset: Dataset) -> Any:
    import torchvision.datasets  # slow, and needed by this source alone

    found = getattr(torchvision.datasets, dataset.class_ or "", None)
    if found is None:
        raise InputError(f"dataset.class: torchvision.datasets has no {dataset.class_!r}")
    return found


def _is_tree(factory: Any) -> bool:
    """Whether a class of torchvision.datasets is an ImageFolder or the like."""
    from torchvision.datasets import DatasetFolder

    return isinstance(factory, type) and issubclass(factory, DatasetFolder)


def _seen_as_folders(factory: Any, listed: Path | None) -> Any:
    """The class, of which files count and how they are labelled as with source `folder`."""

    class Seen(factory):
        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            folders = class_folders(directory)
            if not folders:
                raise InputError(f"{directory}: no class folders in it")
            self.labels, self.class_names = class_labels(folders, listed, of=directory)
            return folders, self.labels

        @staticmethod
        def make_dataset(directory: str, *args: Any, **settings: Any) -> list[tuple[str, int]]:
            start = len(os.path.join(directory, ""))
            samples = factory.make_dataset(directory, *args, **settings)
            return [x for x in samples if all(map(counts, Path(x[0][start:]).parts))]

    return Seen


def _from_torchvision(
    source: Any, record: Any, alone: threading.Lock, *, scale: float | None
) -> Image.Image:
    # Datasets are made for processes: FakeData, say, seeds PyTorch's only generator.
    with naming(record.name), alone:
        image = source[record.position][0]
    if not isinstance(image, Image.Image):
        raise InputError(f"{record.name}: the dataset gives {type(image).__name__}, not an image")
    with naming(record.name):
        return to_rgb(image, scale=scale)


def _images_below(folder: Path) -> dict[str, str]:
    found = images_below(folder)
    for path in found.values():
        if not path.isprintable() and not _is_unicode(path):
            raise InputError(f"the file name {os.fsencode(path)!r} is not UTF-8; rename it")
    return found


def _stamps(paths: list[str]) -> pd.DataFrame:
    """Size and time of change of files, both −1 where a file cannot be looked at."""
    sizes, times = [], []
    for path in paths:
        try:
            found = os.stat(path)
            size, time = found.st_size, found.st_mtime_ns
        except OSError:  # a link to nothing, say; opening it will tell
            size = time = -1
        sizes.append(size)
        times.append(time)
    return pd.DataFrame({"size": sizes, "mtime_ns": times}, dtype=np.int64)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _listed(dataset: Dataset) -> Path | None:
    return Path(dataset.classes) if dataset.classes else None


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    return folder
