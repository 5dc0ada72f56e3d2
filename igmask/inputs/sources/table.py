"""A folder of images and a CSV table that gives each its label."""

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from igmask.asked.settings import Dataset
from igmask.errors import InputError, refusing
from igmask.inputs.classes import class_names, class_numbers, identifiers, label_of
from igmask.inputs.files import existing, indexed_images, read_text

COLUMNS = ("file", "label")


def listed(dataset: Dataset) -> tuple[dict[str, Any], list[str]]:
    """Return the columns name, path and label of the table's lines, and the class names."""
    root, table = existing(dataset.root), Path(dataset.labels or "")
    numbers = class_numbers(dataset.classes) if dataset.classes else {}
    known = identifiers(numbers)
    files = indexed_images(root)
    by_stem: dict[str, list[str]] = {}
    for name in files:
        by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
    columns: dict[str, list[Any]] = {"name": [], "path": [], "label": []}
    used = dataset.columns or COLUMNS
    header, lines = _fields(table)
    if problem := _of_header(header, used, files.keys() | by_stem.keys()):
        raise InputError(f"{table}: {problem}")
    for where, row in lines:
        if any(row.get(None, [])):  # type: ignore[call-overload]
            raise InputError(
                f"{where}: more fields than columns; put a field with commas in double quotes"
            )
        name, label = (row[column] or "" for column in used)
        fitting = [name] if name in files else by_stem.get(name, [])
        if len(fitting) != 1:
            problem = f"{' and '.join(fitting)} are both" if fitting else "no image"
            raise InputError(f"{where}: {problem} {name!r} in {root}")
        columns["name"] += fitting
        columns["path"].append(files[fitting[0]])
        columns["label"].append(label_of(label, numbers, known, where))
    if twice := [name for name, n in Counter(columns["name"]).items() if n > 1]:
        raise InputError(f"{table}: {twice[0]!r} is there twice")
    return columns, class_names(numbers)


def _fields(table: Path) -> tuple[Sequence[str], list[tuple[str, dict[str, Any]]]]:
    """(header, [(file and line, {column: field})]) of a CSV file, or InputError."""
    # Strict, since else a quote that nothing closes takes in every line that follows.
    reader = csv.DictReader(io.StringIO(read_text(table)), strict=True)
    lines, last, fault = [], 1, "a double quote is not closed, or not at the end of its field"
    with refusing(csv.Error, says=lambda error: f"{table}, after line {last}: {fault} ({error})"):
        header = reader.fieldnames or []
        for row in reader:
            last = reader.line_num
            lines.append((f"{table}, line {last}", row))
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
