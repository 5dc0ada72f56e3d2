"""WebDataset's tar files: an image and its label under one key, key.jpg beside key.cls or key.json.

A key is a path up to the first dot of its last part, without ./ and ../ before it. Images are
read in place, at the offsets that the headers gave when they were listed.
"""

import json
import os
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from igmask.asked.settings import Dataset
from igmask.errors import InputError, refusing
from igmask.inputs.classes import (
    NO_LABEL,
    check_given,
    class_names,
    class_numbers,
    identifiers,
    label_of,
)
from igmask.inputs.files import EXTENSIONS, check_text, counts, existing, files_below
from igmask.inputs.sources.shards import check_mark, is_meant, opened_by, shard_files
from igmask.progress import say

LABEL = "label"  # the key in .json
LABELS = (".cls", ".json")  # the first that there is, is taken

_BLOCK = tarfile.BLOCKSIZE
_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7z": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """Where a file is in a tar, and what stands for its header."""

    offset: int
    length: int
    mark: int


def listed(dataset: Dataset) -> tuple[dict[str, Any], list[str]]:
    """Return the columns name, path, label, offset, length and mark, and the class names.

    An image goes by its key; where tar files have keys in common, by the tar's name and the key.
    """
    _refuse_compressed(dataset)
    numbers = class_numbers(dataset.classes) if dataset.classes else {}
    known, key_of_label = identifiers(numbers), (dataset.columns or (LABEL, LABEL))[1]
    rows: list[dict[str, Any]] = []
    seen: dict[str, dict[str, Any]] = {}
    are_names = True
    for name, path in shard_files(dataset).items():
        with open(path, "rb") as file:
            for key, (image, label) in _samples(path, file).items():
                where = f"{path}: {key}"
                text = _label(file, where, *label, key_of_label)
                number = (
                    NO_LABEL if text == str(NO_LABEL) else label_of(text, numbers, known, where)
                )
                row = {"key": key, "shard": os.path.splitext(name)[0], "path": path}
                rows.append(row | {"label": number} | image._asdict())
                if (other := seen.setdefault(key, rows[-1])) is not rows[-1]:
                    _refuse_same(other, rows[-1])
                    are_names = False
    check_given(np.array([row["label"] for row in rows]), of=dataset.root)
    found: dict[str, Any] = {
        "name": [row["key"] if are_names else f"{row['shard']}/{row['key']}" for row in rows]
    }
    found |= {x: [row[x] for row in rows] for x in ("path", "label", *Member._fields)}
    return found, class_names(numbers)


def opener(dataset: Dataset, *, seed: int) -> Callable[[Any], Image.Image]:
    """Return the function that opens the image of a record at its offset."""

    def read(record: Any) -> bytes:
        with open(record.path, "rb", buffering=0) as file:
            file.seek(record.offset - _BLOCK)
            check_mark(record, zlib.crc32(file.read(_BLOCK)))
            return file.read(record.length)

    return opened_by(read, scale=dataset.scale)


def _refuse_compressed(dataset: Dataset) -> None:
    for name, path in files_below(existing(dataset.root), _COMPRESSED).items():
        if is_meant(name, dataset.files or "*"):
            raise InputError(
                f"{path}: images cannot be read in place in a compressed tar; decompress it, as "
                "by gunzip (images are compressed by themselves)"
            )


def _samples(path: str, file: BinaryIO) -> dict[str, tuple[Member, tuple[str, Member]]]:
    """{key: (image, (ending, label))} of a tar, in its order."""
    parts: dict[str, dict[str, Member]] = {}
    for name, member in _members(path, file):
        below = re.sub(r"^(\.\./)+", "", posixpath.normpath(name))
        folder, _, base = below.rpartition("/")
        stem, _, ending = base.partition(".")
        if not stem or not all(map(counts, filter(None, folder.split("/")))):
            continue
        with refusing(InputError, says=lambda error: f"{path}: {error}"):
            check_text(name)
        of_key = parts.setdefault(f"{folder}/{stem}" if folder else stem, {})
        if of_key.setdefault(f".{ending.lower()}", member) is not member:
            raise InputError(f"{path}: {name!r} is there twice")
    samples, without = {}, []
    for key, of_key in parts.items():
        images = [ending for ending in of_key if ending in EXTENSIONS]
        labels = [ending for ending in LABELS if ending in of_key]
        if len(images) > 1:
            raise InputError(f"{path}: {key!r} has several images, {' and '.join(images)}")
        if images and not labels:
            beside = ", ".join(x for x in of_key if x not in images) or "nothing"
            raise InputError(
                f"{path}: {key!r} has no {' or '.join(LABELS)} with its label, but {beside}; of "
                "images without labels in a folder see source: photos"
            )
        if images:
            samples[key] = of_key[images[0]], (labels[0], of_key[labels[0]])
        elif any(x.endswith(EXTENSIONS) for x in of_key) and any(map(_is_label, of_key)):
            raise InputError(
                f"{path}: {key!r} has {' and '.join([*of_key][:4])}; a key ends at the first dot "
                "of a name; after it .jpg, say, and .cls or .json are to follow: rename the files"
            )
        else:
            without.append(f"{key} ({', '.join(of_key)})")
    if without:
        say(f"{path}: {len(without):,} keys have no image that is taken, the first {without[0]}")
    return samples


def _is_label(ending: str) -> bool:
    return ending.endswith(LABELS)


def _members(path: str, file: BinaryIO) -> Iterator[tuple[str, Member]]:
    """The names of the files in a tar, links to those before included, and where they are.

    raises InputError for what is no whole tar, and a link of an image or a label to nothing
    """
    start = file.read(4)
    if packed := [kind for magic, kind in _MAGIC.items() if start.startswith(magic)]:
        raise InputError(f"{path}: compressed by {packed[0]}, and no tar to read in; decompress it")
    file.seek(0)
    last, known = "its beginning", dict[str, Member]()
    says = "; it is damaged or cut short, so fetch it again"
    with (
        refusing(tarfile.TarError, says=lambda e: f"{path}, after {last}: {e}{says}"),
        tarfile.open(fileobj=file, mode="r:") as tar,
    ):
        for info in tar:
            tar.members = []  # type: ignore[attr-defined] # which else hold all there were
            if info.isreg() and not info.issparse():
                last = info.name
                file.seek(info.offset_data - _BLOCK)
                mark = zlib.crc32(file.read(_BLOCK))
                found = Member(info.offset_data, info.size, mark)
                known[posixpath.normpath(last)] = found
                yield last, found
            elif info.islnk() or info.issym():  # of a file that is there under another name
                folder = posixpath.dirname(info.name) if info.issym() else ""
                target = known.get(posixpath.normpath(posixpath.join(folder, info.linkname)))
                if target:
                    yield info.name, target
                elif info.name.lower().endswith((*EXTENSIONS, *LABELS)):
                    raise InputError(
                        f"{path}: {info.name!r} is a link to {info.linkname!r}, which is not "
                        "before it in this tar; pack files, as by tar --dereference"
                    )
        end = tar.offset
    file.seek(end)
    # A header that is none ends a tar for Python's tarfile, without a word.
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise InputError(f"{path}, after {last}: no mark of its end{says}")


def _label(file: BinaryIO, where: str, ending: str, member: Member, key: str) -> str:
    """The text of a label, which for .json is its value under a key."""
    file.seek(member.offset)
    with refusing(UnicodeDecodeError, says=lambda e: f"{where}{ending}: not UTF-8 text ({e})"):
        text = file.read(member.length).decode("utf-8-sig").strip()
    if ending == ".cls":
        if not re.fullmatch(r"\S.*", text):
            raise InputError(f"{where}{ending}: there is no label in it")
        return text
    with refusing(ValueError, says=lambda e: f"{where}{ending}: not JSON ({e})"):
        content = json.loads(text)
    has = f"it has {[*content]}" if isinstance(content, dict) else f"it is {text[:40]}"
    if isinstance(content, dict) and key in content:
        has = f"it is {json.dumps(content[key])[:40]}"
    value = content.get(key) if isinstance(content, dict) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InputError(
            f"{where}{ending}: no whole number or name under {key!r}; {has}. The second of "
            "dataset.columns says where the label is"
        )
    return str(value)


def _refuse_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Raise InputError if two images of one key are the same, to the byte."""
    if first["length"] != second["length"]:
        return
    contents = []
    for row in (first, second):
        with open(row["path"], "rb") as file:
            file.seek(row["offset"])
            contents.append(file.read(row["length"]))
    if contents[0] == contents[1]:
        raise InputError(
            f"{first['path']} and {second['path']} both have the image {first['key']!r}, to the "
            "byte; is a shard there twice?"
        )
