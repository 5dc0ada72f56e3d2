"""Files that hold many images each: a dataset's, in order, and whether they stay the same."""

import filecmp
import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from io import BytesIO
from itertools import combinations
from typing import Any

from PIL import Image

from igmask.asked.settings import Dataset
from igmask.errors import InputError
from igmask.inputs.decode import naming, open_rgb
from igmask.inputs.files import check_text, existing, files_below


def shard_files(dataset: Dataset) -> dict[str, str]:
    """Return {name: path} of the files below `root` that hold the images, in order.

    raises InputError if there are none, if two of them are the same, or a name is no text
    """
    root, ending = existing(dataset.root), Dataset.ARCHIVES[dataset.source]
    there, pattern = files_below(root, (ending,)), dataset.files or "*"
    found = {x: path for x, path in there.items() if is_meant(x, pattern)}
    if not found:
        all_of_them = f"; there are {', '.join([*there][:5])}" if there else ""
        named = f" whose name fits dataset.files, {pattern}" if there else ""
        raise InputError(f"{root}: no {ending} files{named}{all_of_them}")
    for path in found.values():
        check_text(path)
    for same_size in alike(found.values(), os.path.getsize):
        for first, second in combinations(same_size, 2):
            if filecmp.cmp(first, second, shallow=False):
                raise InputError(f"{first} and {second} are the same; remove one of them")
    return found


def alike(paths: Iterable[str], what: Callable[[str], Any]) -> list[list[str]]:
    """Return the files of which something is the same, several each."""
    by_what: dict[Any, list[str]] = {}
    for path in paths:
        by_what.setdefault(what(path), []).append(path)
    return [same for same in by_what.values() if len(same) > 1]


def is_meant(name: str, pattern: str) -> bool:
    """Return whether a file's path from the root on, or its name alone, fits `dataset.files`."""
    return fnmatch(name, pattern) or fnmatch(os.path.basename(name), pattern)


def opened_by(read: Callable[[Any], bytes], *, scale: float | None) -> Callable[[Any], Image.Image]:
    """Return the function that opens the image of a record, in RGB, from any thread.

    read: record → the bytes of its image file; called by several threads at a time
    """

    def opened(record: Any) -> Image.Image:
        with naming(f"{record.path}: {record.name}"):
            return open_rgb(BytesIO(read(record)), scale=scale)

    return opened


def check_mark(record: Any, mark: int) -> None:
    """Raise InputError if what says where an image is in its file was another when listed."""
    if mark != record.mark:
        raise InputError(
            "the file has changed since it was listed; `igmask verify --remove` removes what was "
            "made of the old one, and the next run makes it again"
        )
