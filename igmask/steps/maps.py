"""Attributions that lie ready in a folder, a .npy file an image: Captum's, zennit's or others."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from igmask.errors import InputError, refusing
from igmask.plain import grid

_SHOWN = 5  # names in a message


def file_of(folder: Path, name: str) -> Path:
    """Return the file of an image: cats/1.jpg has cats/1.jpg.npy, or else cats/1.npy.

    raises InputError if there is neither, or both
    """
    whole, bare = folder / f"{name}.npy", (folder / name).with_suffix(".npy")
    there = [path for path in dict.fromkeys((whole, bare)) if path.is_file()]
    if not there:
        raise InputError(f"{name} has no map: there is neither {whole} nor {bare}")
    if len(there) > 1:
        raise InputError(f"{name} has two maps, {whole} and {bare}")
    return there[0]


def read_map(folder: Path, name: str, size: tuple[int, int], side: int) -> np.ndarray:
    """Return the parts (2, P, Q) float32 of the squares of an image, as `attribute` writes them.

    An array of its file may be an attribution of pixels, (H, W), (C, H, W) or (H, W, C) with one
    or three channels, or one number a square, (P, Q): a score, or a ranking whose first square has
    the highest number. Such numbers keep their order under the score `signed`, and if none is
    negative under any.

    size:   (H, W) of the prepared images
    raises  InputError, naming the file, if it has another shape, is damaged, is no array of
            numbers, or has NaN or infinite ones
    """
    path = file_of(folder, name)
    values = _load(path)
    pixels = _pixels(path, values, size, side)
    values = np.asarray(values if pixels is None else pixels, dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{path}: has NaN or infinite values")
    parts = np.stack([np.maximum(values, 0), np.maximum(-values, 0)])
    if pixels is not None:
        rows, columns = (np.arange(0, length, side) for length in size)
        parts = np.add.reduceat(np.add.reduceat(parts.sum(axis=1), rows, axis=1), columns, axis=2)
    return parts.astype(np.float32)


def check_maps(
    folder: str, names: Iterable[str], size: tuple[int, int], side: int, score: str
) -> None:
    """Raise InputError if some of the images have no map, or one of another shape.

    Or if a number of a square is negative, and the score is none that keeps their order.
    """
    if not Path(folder).is_dir():
        raise InputError(f"attribution.maps: there is no folder {folder!r}")
    paths, missing, names = [], [], list(names)
    for name in names:
        try:
            paths.append(file_of(Path(folder), name))
        except InputError as error:
            missing.append(str(error))
    if missing:
        listed = "\n".join(f"  {line}" for line in missing[:_SHOWN])
        more = f"\n  and {len(missing) - _SHOWN} more" * (len(missing) > _SHOWN)
        raise InputError(f"{len(missing)} of {len(names)} images lack a map:\n{listed}{more}")
    for path in paths:
        values = _load(path, "r")  # its shape, and few numbers
        is_of_pixels = _pixels(path, values, size, side) is not None
        if not is_of_pixels and score != "signed" and (values < 0).any():
            raise InputError(
                f"{path}: has negative numbers of squares, of which squares.score: {score} would "
                "lose the order; say squares.score: signed, or raise all numbers above 0"
            )
    for name in names[:1]:
        read_map(Path(folder), name, size, side)


def _load(path: Path, mapped: Literal["r"] | None = None) -> np.ndarray:
    says = f"{path}: no whole array of numbers in NumPy's format"
    with refusing(ValueError, OSError, EOFError, says=lambda error: f"{says} ({error})"):
        values = np.load(path, mapped, allow_pickle=False)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        raise InputError(says)
    return values


def _pixels(path: Path, values: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray | None:
    """An attribution of pixels as (C, H, W), or None if it is one number a square.

    raises InputError if it is neither
    """
    if values.shape == size:
        return values[None]
    if values.ndim == 3 and values.shape[1:] == size and values.shape[0] in (1, 3):
        return values
    if values.ndim == 3 and values.shape[:2] == size and values.shape[2] in (1, 3):
        return np.moveaxis(values, 2, 0)
    if values.shape != (squares := grid(*size, side)):
        raise InputError(
            f"{path}: of shape {values.shape}; images of {size} have attributions {size}, "
            f"(3, {size[0]}, {size[1]}) or ({size[0]}, {size[1]}, 3), or one number for each of "
            f"{squares} squares"
        )
    return None
