"""Parquet files as Hugging Face ships image datasets: a row an image, whose file is in a column.

Rows are read in place, one after another: a page of the file is in memory at a time, so that it
does not grow with the number of images, or of those in a row group.
"""

import hashlib
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from igmask.asked.settings import Dataset
from igmask.devices import n_cores
from igmask.errors import InputError, refusing
from igmask.inputs.classes import NO_LABEL, as_labels, class_labels, relabelled
from igmask.inputs.sources.shards import alike, check_mark, opened_by, shard_files

COLUMNS = ("image", "label")

_BUFFER = 1 << 16  # bytes read at a time; without, a whole column of a row group
_OPEN = 2  # files: threads that decode are in two where one ends


def listed(dataset: Dataset) -> tuple[dict[str, Any], list[str]]:
    """Return the columns name, path, label, row (in its file) and mark, and the class names.

    An image goes by its own path in the row, if all have one and no two the same, else by file and
    row.
    """
    files, columns = shard_files(dataset), dataset.columns or COLUMNS
    own_names: list[Any] = []
    labels: list[Any] = []
    parts: dict[str, tuple[list[Any], list[str], int]] = {}
    for path in files.values():
        names, of_file, classes = _read(path, *columns)
        parts[path] = names, classes, _mark(path)
        own_names += names
        labels += of_file
    _check_alike(parts, columns[0])
    are_names = None not in own_names and len({*own_names}) == len(own_names)
    found: dict[str, Any] = {"name": own_names, "path": [], "row": [], "mark": []}
    if not are_names:
        stems = (os.path.splitext(name)[0] for name in files)
        rows = zip(stems, parts.values(), strict=True)
        found["name"] = [f"{x}/{i:06d}" for x, (names, *_) in rows for i in range(len(names))]
    for path, (names, _, mark) in parts.items():
        found["path"] += [path] * len(names)
        found["row"] += range(len(names))
        found["mark"] += [mark] * len(names)
    known = next(iter(parts.values()))[1]
    found["label"], classes = _labelled(labels, known, dataset)
    return found, classes


def opener(dataset: Dataset, *, seed: int) -> Callable[[Any], Image.Image]:
    """Return the function that opens the image of a record by its row."""
    column, alone = (dataset.columns or COLUMNS)[0], threading.Lock()

    @lru_cache(maxsize=_OPEN)
    def rows(path: str) -> tuple[_Rows, int]:
        return _Rows(path, column), _mark(path)

    def read(record: Any) -> bytes:
        with alone:
            of_file, mark = rows(record.path)
            check_mark(record, mark)
            content = of_file.read(record.row)
        if content is None:
            raise InputError(
                "the row has no bytes of an image; save the dataset with its images in it, not "
                "with the paths of files elsewhere"
            )
        return content

    return opened_by(read, scale=dataset.scale)


class _Rows:
    """The images of a file, by row: forwards without going back, as they are mostly asked for.

    What threads pass over while they ask for rows close by stays until it is asked for.
    """

    def __init__(self, path: str, column: str) -> None:
        self._file = pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
        metadata = self._file.metadata
        n_rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *n_rows])
        self._column = _bytes_column(self._file.schema_arrow, column)
        self._group, self._next = -1, 0
        self._rows: Iterator[Any] = iter(())
        self._passed: dict[int, Any] = {}

    def read(self, row: int) -> bytes | None:
        """Return what is in a row; None if nothing is."""
        if row not in self._passed:
            self._go_to(row)
        value = self._passed.pop(row)[0].as_py()
        return value["bytes"] if isinstance(value, dict) else value

    def _go_to(self, row: int) -> None:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if group != self._group or row < self._next:
            self._group, self._next = group, int(self._starts[group])
            batches = {"batch_size": 1, "row_groups": [group], "columns": [self._column]}
            self._rows = self._file.iter_batches(**batches, use_threads=False)
        while self._next <= row:
            self._passed[self._next] = next(self._rows).column(0)
            self._next += 1
            if len(self._passed) > 2 * n_cores():
                del self._passed[next(iter(self._passed))]


def _read(path: str, image: str, label: str) -> tuple[list[Any], list[Any], list[str]]:
    """The images' own names, or None, and labels in a file, and what it calls its classes."""
    with _refusing(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        if missing := [x for x in (image, label) if x not in schema.names]:
            raise InputError(
                f"{path}: no column {missing}; it has {schema.names}. Name the two to use, of "
                "images and of labels, in dataset.columns"
            )
        kind, of_bytes = schema.field(image).type, _bytes_column(schema, image)
        if not of_bytes:
            raise InputError(
                f"{path}: the column {image!r} is {kind}, not bytes of image files, or a struct "
                "with a field of them, `bytes`"
            )
        has_names = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
        wanted = [label, *([f"{image}.path"] if has_names else [])]
        table = file.read(columns=wanted, use_threads=False)
    names = [None] * table.num_rows
    if has_names:
        names = table[image].combine_chunks().field("path").to_pylist()
    given = table[label]
    if pa.types.is_dictionary(given.type):
        given = given.cast(given.type.value_type)
    if not (pa.types.is_integer(given.type) or _is_text(given.type)):
        raise InputError(
            f"{path}: the column {label!r} is {given.type}, not the numbers or names of classes"
        )
    return names, given.to_pylist(), _class_names(schema, label)


def _refusing(path: str) -> Any:
    says = f"{path}: no parquet file, or not a whole one"
    return refusing(pa.ArrowException, OSError, says=lambda error: f"{says} ({error})")


def _bytes_column(schema: pa.Schema, image: str) -> str:
    """The name of the column of bytes: image, or image.bytes; nothing if there is none."""
    kind, name = schema.field(image).type, image
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind, name = kind.field("bytes").type, f"{image}.bytes"
    return name if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else ""


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _class_names(schema: pa.Schema, label: str) -> list[str]:
    """The names of the classes 0, 1, … that `datasets` keeps beside the columns, if it does."""
    found: Any = None
    with suppress(ValueError):  # of what is not JSON
        found = json.loads((schema.metadata or {}).get(b"huggingface", "null"))
    for key in ("info", "features", label, "names"):
        found = found.get(key) if isinstance(found, dict) else None
    return [str(name) for name in found] if isinstance(found, list) else []


def _mark(path: str) -> int:
    """What stands for a file's footer, which says where everything in it is."""
    with open(path, "rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return zlib.crc32(file.read(length))


def _check_alike(parts: dict[str, tuple[list[Any], list[str], int]], image: str) -> None:
    """Raise InputError for files that have the same images, or number classes differently.

    The same are those of the same names, in whatever order, to the byte; without names, in order.
    """
    (first, (_, classes, _)), *others = parts.items()
    for path, (_, own, _) in others:
        if own != classes:
            raise InputError(f"{first} and {path} have other names of classes, or other orders")
    named = {
        x: range(len(names)) if None in names else names
        for x, (names, *_) in parts.items()
        if names
    }

    def one_image(path: str) -> Any:
        with _refusing(path):
            return _Rows(path, image).read(named[path].index(min(named[path])))

    def all_images(path: str) -> tuple[tuple[Any, bytes], ...]:
        with _refusing(path):
            rows = _Rows(path, image)
            contents = [
                hashlib.sha256(rows.read(i) or b"").digest() for i in range(len(named[path]))
            ]
        return tuple(sorted(zip(named[path], contents, strict=True)))

    for same_names in alike(named, lambda path: tuple(sorted(named[path]))):
        for likely in alike(same_names, one_image):  # which mostly spares reading the others
            for one, other, *_ in alike(likely, all_images):
                raise InputError(f"{one} and {other} have the same images; remove one of them")


def _labelled(
    given: list[Any], known: list[str], dataset: Dataset
) -> tuple[list[int] | np.ndarray, list[str]]:
    """(labels, names of classes) of the labels as they stand in the files."""
    if texts := [x for x in given if isinstance(x, str) and x.strip() != str(NO_LABEL)]:
        named = sorted({*texts})
        if len(texts) < len(given):
            raise InputError(f"{dataset.root}: {len(given) - len(texts):,} images have no label")
        numbers, classes = class_labels(named, dataset.classes, of=dataset.root)
        return [numbers[label] for label in given], classes
    with_none = [x if isinstance(x, int) else NO_LABEL for x in given]
    labels = as_labels(with_none, of=dataset.root)
    return relabelled(labels, known, dataset.classes, of=dataset.root)
