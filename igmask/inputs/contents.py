"""What stands in a job's params for files of the user's own, so that it runs again if they change.

Of some the bytes are read; of what may be terabytes names, sizes and times of change.
"""

import hashlib
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from igmask.asked.own import code_of, own_code
from igmask.asked.settings import Dataset, Model, baseline_files
from igmask.inputs.files import class_folders, files_below, images_below


def of_files(paths: Iterable[Path]) -> str:
    """Return what stands for the bytes of some files."""
    return " ".join(map(_digest, paths))


def of_dataset(dataset: Dataset) -> str:
    """Return that of `labels`, `classes`, a function's code, and the names of images and class
    folders, or of the files that hold many images, and their sizes."""
    found = [of_files([*map(Path, dataset.tables.values()), *code_of(dataset.source)])]
    if dataset.root and dataset.source in Dataset.FOLDERS:
        if ending := Dataset.ARCHIVES.get(dataset.source):
            held = files_below(dataset.root, (ending,)).items()
            names = [f"{name} {os.path.getsize(path)}" for name, path in held]
        else:
            names = sorted(images_below(dataset.root)) + class_folders(dataset.root)
        found.append(_of_lines(names))
    return " ".join(filter(None, found))


def of_model(model: Model) -> str:
    """Return that of a weights file, and of a module or package in the working directory."""
    files = code_of(model.source)
    if model.weights_kind == "file" and model.train is None:
        files.append(Path(str(model.weights)))
    return of_files(files)


def of_baseline(baseline: str) -> str:
    """Return that of a baseline, if it is an image file or a function of one's own."""
    return of_files([*own_code(baseline), *map(Path, baseline_files(baseline))])


def of_maps(folder: str | None) -> str:
    """Return that of ready attributions, if there are any."""
    if not folder:
        return ""
    held = sorted(files_below(folder, (".npy",)).items())
    found = [(name, os.stat(path)) for name, path in held]
    return _of_lines([f"{name} {of.st_size} {of.st_mtime_ns}" for name, of in found])


def _of_lines(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "replace")).hexdigest()


@cache
def _digest(path: Path) -> str:
    with path.open("rb") as file:  # not by arrays, which takes longer to import than all of this
        return f"{path}: {hashlib.file_digest(file, 'sha256').hexdigest()}"
