"""The images that a network was evaluated on as PNG files, a folder a class, for other tools."""

import json
import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from igmask import arrays
from igmask.asked.masking import MODES, is_drawn
from igmask.asked.own import check_names
from igmask.devices import n_cores
from igmask.errors import InputError, refusing
from igmask.inputs.data import is_labelled
from igmask.inputs.decode import read_rgb
from igmask.inputs.files import EXTENSIONS
from igmask.plain import FILLS, to_pixels, unpack
from igmask.progress import progress, say
from igmask.steps.evaluate import read_masks
from igmask.steps.masked.fills import filled, in_bytes

UNLABELLED = "photos"  # the folder of images without labels
SETTINGS, LABELS = "export.json", "labels.csv"

_BATCH = 64  # images in memory
_MOST_CLASSES = 100_000  # a folder each
_MOST_BYTES = 120  # of a name, so that what is added to it fits into the 255 of a file system
_ROUNDING = 1e-3  # of a value in 0 … 255, which a colour of bytes is off by in float32


def export(
    image_paths: list[Path],
    output: Path,
    *,
    masks: Path | None = None,
    mode: str = "keep",
    fill: str = "black",
    blur_sigma: float = 10,
    seed: int = 0,
) -> None:
    """Write the images as `evaluate` shows them to a network, CLASS/NAME.png below `output`.

    torchvision.datasets.ImageFolder gives back their pixels and labels. A fill's colour that
    lies between two of the 256 values of a PNG becomes the nearer one.

    A folder is named after its class where the alphabet puts the names in the order of the labels
    and every label has images, else by label and class: 0003-cat. A label without images below one
    with images gets an empty folder, since ImageFolder counts folders; it then asks for
    `allow_empty=True`. Images without labels lie in one folder, `photos`. Names keep what every
    file system allows.

    At the root stand export.json, the settings, and at the end labels.csv: file, label (a number)
    and name of each image. Images that are there already are compared and not written again, so
    that an export that was cut short goes on.

    image_paths: the shards, in order
    masks:       of step `mask`; None exports the prepared images as they are
    mode, fill, blur_sigma, seed: see `evaluate`
    raises       InputError if masks and images do not belong together, if `output` holds an export
                 with other settings, other images or anything else, for labels that cannot be
                 folders, for damaged images, or for an unknown mode or fill
    """
    check_names("mode", [mode], MODES, own=False)
    check_names("fill", [fill], FILLS)
    images = arrays.Shards(image_paths)
    records = images.records
    if records.empty:
        raise InputError("no image of the dataset is usable, so there is nothing to export")
    folders = [UNLABELLED]
    if is_labelled(images.settings):
        folders = _class_folders(records["label"], images.settings["classes"])
    files = _files(records, folders)
    applied = None if masks is None else read_masks(masks, images)
    made_by = images.settings | {"mode": "original"}
    if applied is not None:
        made_by |= applied.settings | {"mode": mode, "fill": fill}
        made_by |= {"blur_sigma": blur_sigma} if fill == "blur" else {}
        made_by |= {"fill_seed": seed} if is_drawn(fill) else {}
    made_by |= {"step": "export", "n_images": len(records)}
    _claim(output, made_by)
    for folder in folders:
        (output / folder).mkdir(exist_ok=True)
    is_rounded = _write_all([output / file for file in files], images, applied, made_by)
    with arrays.replacing(output / LABELS) as temporary:
        table = {"file": files, "label": records["label"], "name": records["name"]}
        pd.DataFrame(table).to_csv(temporary, index=False)
    n_empty = len(folders) - records["label"].nunique()
    _report(output, len(records), len(folders), n_empty, is_rounded=is_rounded)


def _report(output: Path, n_images: int, n_folders: int, n_empty: int, *, is_rounded: bool) -> None:
    """Say what was written."""
    say(f"{output}: {n_images} images in {n_folders} class folders")
    if is_rounded:
        say("the fill's colour is rounded to the nearest that a PNG can hold")
    if n_empty:
        say(
            f"{n_empty} of the folders are empty, so that the others keep their labels: read with "
            f"ImageFolder({str(output)!r}, allow_empty=True)"
        )


def _write_all(
    places: list[Path],
    images: arrays.Shards,
    applied: arrays.Shards | None,
    made_by: dict[str, Any],
) -> bool:
    """Write the images under the masks that are applied; return whether a fill was rounded."""
    is_rounded, is_drop = False, made_by["mode"] == "drop"
    label = f"export {made_by['mode']} {made_by.get('p', '')}".strip()
    batches, n_batches = images.batches(_BATCH), images.n_batches(_BATCH)
    with ThreadPoolExecutor(n_cores()) as pool:  # Pillow encodes without holding the GIL
        for rows, _, shown in progress(batches, total=n_batches, unit="batches", label=label):
            if applied is not None:
                # As `occluded_input` has it before normalisation, in bytes.
                kept = unpack(applied.read(rows), tuple(made_by["grid"])) ^ is_drop
                seen = to_pixels(kept, *shown.shape[1:3], side=made_by["side"])
                places_in = applied.records["position"].to_numpy()[rows]
                about = {"mean": made_by["model"]["mean"], "positions": places_in, "kept": seen}
                values = 255 * filled(shown, made_by, **about)
                is_rounded |= bool((abs(values - values.round()) > _ROUNDING).any())
                values = in_bytes(values)
                shown = np.where(seen[..., np.newaxis], shown, values)
            list(pool.map(_write, places[rows[0] : rows[-1] + 1], shown))
    return is_rounded


def _write(path: Path, pixels: np.ndarray) -> None:
    if path.exists():
        if not np.array_equal(np.asarray(read_rgb(path)), pixels):
            raise InputError(f"{path}: holds another image; remove it, or choose another folder")
        return
    with arrays.replacing(path) as temporary:
        # Twice as fast as Pillow's level 6, for 15 % more bytes.
        Image.fromarray(pixels).save(temporary, format="png", compress_level=1)


def _claim(output: Path, made_by: dict[str, Any]) -> None:
    """Note the settings at the folder's root, or check that they are those of what is there."""
    place = output / SETTINGS
    if not place.exists():
        if output.exists() and any(not entry.name.startswith(".") for entry in output.iterdir()):
            raise InputError(f"{output}: holds files of other origin; choose another folder")
        arrays.write_text(place, json.dumps(made_by, indent=2) + "\n")
        return
    says = f"{place}: not settings of an export"
    with refusing(ValueError, TypeError, says=lambda error: f"{says} ({error})"):
        found = dict(json.loads(place.read_text("utf-8")))
    if others := arrays.changed(found, made_by):
        raise InputError(
            f"{output}: holds an export of other {' and '.join(others)}; choose another folder, "
            "or remove this one"
        )


def _class_folders(labels: pd.Series, classes: list[str]) -> list[str]:
    """Folders of the labels 0 … the highest, which the alphabet leaves in that order."""
    if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        raise InputError(
            f"labels from {labels.min()} to {labels.max()} cannot be folders, which count from 0; "
            "number the classes 0, 1, …"
        )
    n = int(labels.max()) + 1
    names = [_plain(name) for name in classes[:n]] + [""] * (n - len(classes))
    n_names = len({_same(name) for name in (*names, "", SETTINGS, LABELS)}) - 3
    if n_names == n == labels.nunique() and names == sorted(names):
        return names
    width = max(4, len(str(n - 1)))
    return [f"{i:0{width}}-{name}" if name else f"{i:0{width}}" for i, name in enumerate(names)]


def _files(records: pd.DataFrame, folders: list[str]) -> list[str]:
    """A file for each image, no two of them the same on any file system: cat/name.png."""
    files: list[str] = []
    taken: set[str] = set()
    columns = (records[column] for column in ("name", "label", "position"))
    for name, label, position in zip(*columns, strict=True):
        base = os.path.basename(name)
        stem, extension = os.path.splitext(base)
        stem = _plain(stem if extension.lower() in EXTENSIONS else base) or "image"
        while _same(file := f"{folders[label]}/{stem}.png") in taken:
            stem += f"~{position}"
        taken.add(_same(file))
        files.append(file)
    return files


def _plain(name: str) -> str:
    """What every file system allows of a name; nothing may be left."""
    kept = (c if c.isprintable() and c not in '\\/:*?"<>|' else "_" for c in name)
    return "".join(kept).encode()[:_MOST_BYTES].decode(errors="ignore").strip(". ")


def _same(name: str) -> str:
    """What file systems compare that ignore case and the form of Unicode."""
    return unicodedata.normalize("NFC", name.casefold())
