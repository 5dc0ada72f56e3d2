"""Datasets → an index: one record an image, its name, label, and where to read it."""

import csv
import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from igmask import demo
from igmask.config import EXTENSIONS, Dataset
from igmask.decode import naming, read_rgb, to_rgb
from igmask.errors import InputError
from igmask.progress import progress


def index(dataset: Dataset) -> tuple[pd.DataFrame, list[str]]:
    """Return (records, class names) of a dataset, in its own order.

    records: name (unique), path (of files only), label, and position: the place in the whole
             dataset, which seeds all that is random about an image and does not depend on `limit`
    raises   InputError, naming the folder, file or line that is wrong
    """
    build = {"demo": _demo, "folder": _folder, "csv": _csv, "torchvision": _torchvision}
    records, classes = build[dataset.source](dataset)
    if records.empty:
        raise InputError(f"dataset {dataset.name!r} has no images")
    records["position"] = np.arange(len(records))
    if dataset.limit is not None:
        records = records[records.groupby("label").cumcount() < dataset.limit]
    return records.reset_index(drop=True), classes


def unnamed_classes(made_by: dict[str, Any], n_classes: int) -> str | None:
    """Return what to say of a network's classes where class folders do not name all of them.

    made_by: settings of the dataset's records, such as `write_index` makes
    """
    dataset, n_folders = made_by["dataset"], len(made_by["classes"])
    if dataset["source"] != "folder" or dataset.get("classes") or n_folders == n_classes:
        return None
    return (
        f"has {n_classes} classes, and the dataset {n_folders} class folders, which were taken for "
        "the first ones in alphabetical order; if they are others, dataset.classes has to say so"
    )


def opener(dataset: Dataset, *, seed: int) -> Callable[[Any], Image.Image]:
    """Return the function that opens the image of an index record, in RGB, from any thread.

    raises InputError (the function), naming the image, if it cannot be read
    """
    if dataset.source == "demo":
        return lambda record: Image.fromarray(demo.draw(record.position, split="test", seed=seed))
    if dataset.source == "torchvision":
        source, alone = _torchvision_dataset(dataset), threading.Lock()
        return lambda record: _from_torchvision(source, record, alone, scale=dataset.scale)
    return lambda record: read_rgb(Path(record.path), scale=dataset.scale)


def _demo(dataset: Dataset) -> tuple[pd.DataFrame, list[str]]:
    labels = [demo.label_of(i) for i in range(dataset.n_images)]
    names = [f"{i:05d}-{demo.CLASSES[label]}" for i, label in enumerate(labels)]
    return pd.DataFrame({"name": names, "path": "", "label": labels}), list(demo.CLASSES)


def _folder(dataset: Dataset) -> tuple[pd.DataFrame, list[str]]:
    root = Path(dataset.root or "")
    folders = sorted(entry.name for entry in os.scandir(_existing(root)) if entry.is_dir())
    if not folders:
        raise InputError(f"{root}: no class folders in it")
    numbers = (
        class_numbers(Path(dataset.classes))
        if dataset.classes
        else {n: i for i, n in enumerate(folders)}
    )
    unknown = [name for name in folders if name not in numbers]
    if unknown:
        raise InputError(f"{root}: the folders {unknown[:5]} are not in {dataset.classes}")
    rows = []
    for folder in folders:
        files = _images_below(root / folder)
        if not files:
            raise InputError(
                f"{root / folder}: no images in this class folder; remove it or fill it"
            )
        label = numbers[folder]
        rows += [(os.path.join(folder, name), file, label) for name, file in files.items()]
    return pd.DataFrame(rows, columns=["name", "path", "label"]), class_names(numbers)


def _csv(dataset: Dataset) -> tuple[pd.DataFrame, list[str]]:
    root, table = _existing(Path(dataset.root or "")), Path(dataset.labels or "")
    numbers = class_numbers(Path(dataset.classes)) if dataset.classes else {}
    files = _images_below(root)
    by_stem = {os.path.splitext(name)[0]: name for name in files}
    rows = []
    with io.StringIO(_text(table)) as file:
        reader = csv.DictReader(file)
        missing = set(dataset.columns) - set(reader.fieldnames or ())
        if missing:
            raise InputError(
                f"{table}: no column {sorted(missing)}; it has {reader.fieldnames}. "
                "Name the two to use in dataset.columns"
            )
        for row in reader:
            name, label = (row[column] or "" for column in dataset.columns)
            name = name if name in files else by_stem.get(name, name)
            if name not in files:
                raise InputError(f"{table}, line {reader.line_num}: no image {name!r} in {root}")
            rows.append((name, files[name], _label(label, numbers, table, reader.line_num)))
    records = pd.DataFrame(rows, columns=["name", "path", "label"])
    twice = records.name[records.name.duplicated()]
    if len(twice):
        raise InputError(f"{table}: {twice.iloc[0]!r} is there twice")
    return records, class_names(numbers)


def _label(text: str, numbers: dict[str, int], table: Path, line: int) -> int:
    """The class of a CSV field: a number, or a name, of which the first word counts."""
    word = text.split()[0] if text.split() else ""
    for name in (text.strip(), word):
        if name in numbers:
            return numbers[name]
    if word.isdecimal():
        return int(word)
    known = "is not in dataset.classes" if numbers else "is no number; set dataset.classes"
    raise InputError(f"{table}, line {line}: the label {text!r} {known}")


def _torchvision(dataset: Dataset) -> tuple[pd.DataFrame, list[str]]:
    source = _torchvision_dataset(dataset)
    lists = [getattr(source, name, None) for name in ("targets", "labels", "_labels")]
    labels = next((found for found in lists if found is not None), None)
    if labels is None:  # every image has to be read to see its label
        places = progress(range(len(source)), total=len(source), unit="images", label="labels")
        labels = [source[i][1] for i in places]
    files = getattr(source, "samples", None)  # of datasets that are trees of files
    names = [f"{i:06d}" + (f" {files[i][0]}" if files else "") for i in range(len(source))]
    records = pd.DataFrame({"name": names, "path": "", "label": np.asarray(labels, dtype=np.int64)})
    return records, [str(name) for name in getattr(source, "classes", [])]


def _torchvision_dataset(dataset: Dataset) -> Any:
    import torchvision.datasets  # slow, and needed by this source alone

    factory = getattr(torchvision.datasets, dataset.class_ or "", None)
    if factory is None:
        raise InputError(f"dataset.class: torchvision.datasets has no {dataset.class_!r}")
    arguments = dict(dataset.arguments)
    if dataset.download:
        arguments["download"] = True
    try:
        return factory(dataset.root, **arguments)
    except (RuntimeError, TypeError, ValueError, OSError) as error:
        raise InputError(f"torchvision.datasets.{dataset.class_}: {error}") from error


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


def class_numbers(path: Path) -> dict[str, int]:
    """Return {name: index} of the classes that a file lists.

    A text file has a class a line, in the order of the indices; a class goes by its whole line or,
    where these differ, by its first word (n01440764 tench). JSON has a list of names, or
    {name: index}, {index: name}, or {index: [name, ...]} as Keras' imagenet_class_index.json.

    raises InputError naming the file if it is none of these
    """
    text = _text(path)
    if path.suffix != ".json":
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        words = [line.split()[0] for line in lines]
        numbers = _numbered(words, path) if len({*words}) == len(words) else {}
        return numbers | _numbered(lines, path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    match content:
        case list() if all(isinstance(name, str) for name in content):
            return _numbered(content, path)
        case dict() if all(isinstance(index, int) for index in content.values()):
            numbers = content
        case dict() if all(key.isdecimal() for key in content):
            names = [value[0] if isinstance(value, list) else value for value in content.values()]
            numbers = dict(zip(names, map(int, content), strict=True))
        case _:
            raise InputError(f"{path}: expected names, {{name: index}} or {{index: name}}")
    if len({*numbers.values()}) < len(content):
        raise InputError(f"{path}: two classes have the same name or the same index")
    return numbers


def _numbered(names: list[str], path: Path) -> dict[str, int]:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"{path}: {sorted(twice)[:5]} are there twice")
    return {name: i for i, name in enumerate(names)}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")  # spreadsheets put a mark at the beginning
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from None


def class_names(numbers: dict[str, int]) -> list[str]:
    """Return the names of classes 0, 1, …; a class without a name goes by its number."""
    by_number = {number: name for name, number in numbers.items()}
    return [by_number.get(i, str(i)) for i in range(max(by_number, default=-1) + 1)]


def _images_below(folder: Path) -> dict[str, str]:
    """{name: path} of the images below a folder, sorted as torchvision's ImageFolder sorts them."""
    start = len(os.path.join(folder, ""))  # os.path.relpath would take half the time of an index
    paths = [
        os.path.join(where, name)
        for where, _, files in sorted(os.walk(folder, followlinks=True))
        for name in sorted(files)
        if name.lower().endswith(EXTENSIONS)
    ]
    for path in paths:
        if not path.isprintable() and not _is_unicode(path):
            raise InputError(f"the file name {os.fsencode(path)!r} is not UTF-8; rename it")
    return {path[start:]: path for path in paths}


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    return folder
