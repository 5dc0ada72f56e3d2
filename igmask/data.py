"""Datasets → an index: one record an image, its name, label, and where to read it."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from igmask import demo
from igmask.config import Dataset
from igmask.decode import read_rgb
from igmask.errors import InputError
from igmask.progress import progress

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


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


def opener(dataset: Dataset, *, seed: int) -> Callable[[Any], Image.Image]:
    """Return the function that opens the image of an index record, in RGB.

    raises InputError (the function), naming the image, if it cannot be read
    """
    if dataset.source == "demo":
        return lambda record: Image.fromarray(demo.draw(record.position, split="test", seed=seed))
    if dataset.source == "torchvision":
        source = _torchvision_dataset(dataset)
        return lambda record: _as_rgb(source[record.position][0], record.name)
    return lambda record: read_rgb(Path(record.path))


def _demo(dataset: Dataset) -> tuple[pd.DataFrame, list[str]]:
    labels = [demo.label_of(i) for i in range(dataset.n_images)]
    names = [f"{i:05d}-{demo.CLASSES[label]}" for i, label in enumerate(labels)]
    return pd.DataFrame({"name": names, "path": "", "label": labels}), list(demo.CLASSES)


def _folder(dataset: Dataset) -> tuple[pd.DataFrame, list[str]]:
    root = Path(dataset.root or "")
    folders = sorted(entry.name for entry in os.scandir(_existing(root)) if entry.is_dir())
    if not folders:
        raise InputError(f"{root}: no class folders in it")
    numbers = _class_numbers(dataset) if dataset.classes else {n: i for i, n in enumerate(folders)}
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
        rows += [(os.path.relpath(file, root), file, numbers[folder]) for file in files]
    return pd.DataFrame(rows, columns=["name", "path", "label"]), _names(numbers)


def _csv(dataset: Dataset) -> tuple[pd.DataFrame, list[str]]:
    root, table = _existing(Path(dataset.root or "")), Path(dataset.labels or "")
    numbers = _class_numbers(dataset) if dataset.classes else {}
    files = {os.path.relpath(file, root): file for file in _images_below(root)}
    by_stem = {os.path.splitext(name)[0]: name for name in files}
    rows = []
    with table.open(newline="", encoding="utf-8") as file:
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
    return records, _names(numbers)


def _label(text: str, numbers: dict[str, int], table: Path, line: int) -> int:
    """The class of a CSV field: a number, or a name, of which the first word counts."""
    word = text.split()[0] if text.split() else ""
    if word in numbers or text in numbers:
        return numbers.get(text, numbers.get(word, -1))
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
    names = [f"{i:06d}" for i in range(len(source))]
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


def _as_rgb(image: Any, name: str) -> Image.Image:
    if not isinstance(image, Image.Image):
        raise InputError(f"{name}: the dataset gives {type(image).__name__}, not an image")
    return image.convert("RGB")


def _class_numbers(dataset: Dataset) -> dict[str, int]:
    """The index of each class name in `dataset.classes`.

    A text file has a name a line, its first word, in the order of the indices. JSON has a list of
    names, or {name: index}, or {index: [name, ...]} as Keras' imagenet_class_index.json.
    """
    path = Path(dataset.classes or "")
    text = path.read_text("utf-8")
    if path.suffix != ".json":
        names = [line.split()[0] for line in text.splitlines() if line.strip()]
        return {name: i for i, name in enumerate(names)}
    content = json.loads(text)
    if isinstance(content, list):
        return {str(name): i for i, name in enumerate(content)}
    if all(isinstance(value, int) for value in content.values()):
        return content
    return {value[0]: int(key) for key, value in content.items()}


def _names(numbers: dict[str, int]) -> list[str]:
    by_number = {number: name for name, number in numbers.items()}
    return [by_number.get(i, str(i)) for i in range(max(by_number, default=-1) + 1)]


def _images_below(folder: Path) -> list[str]:
    """Image files below a folder, sorted as torchvision's ImageFolder sorts them."""
    found = []
    for where, _, files in sorted(os.walk(folder, followlinks=True)):
        found += [
            os.path.join(where, name) for name in sorted(files) if name.lower().endswith(EXTENSIONS)
        ]
    return found


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    return folder
