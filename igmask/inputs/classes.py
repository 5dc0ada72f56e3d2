"""Names of classes → their numbers: the places of the network's outputs, which are the labels."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from igmask.asked.settings import CLASSES
from igmask.errors import InputError, no_file, refusing
from igmask.inputs.files import read_text

NO_LABEL = -1  # of an image whose label is what a network says of it, or that is to be predicted

# Of ILSVRC 2012, in the order that PyTorch's networks have: wnids as WordNet 3.0 has them, names as
# torchvision's weights have them.
_IMAGENET = Path(__file__).with_name("imagenet.txt")
_WNID = re.compile(r"^n\d{8} (?=\S)")
_DIGITS = 18  # of numbers that are less than 2⁶³
_MOST = 100_000  # a number beyond is no class: a date, say


def class_numbers(path: Path | str) -> dict[str, int]:
    """Return {name: index} of the classes that a file lists, or `imagenet`, which is here.

    A text file has a class a line, in the order of the indices; a class goes by its whole line or
    by its first word, where that is one of the `identifiers`. JSON has a list of names, or
    {name: index}, {index: name}, or {index: [name, ...]} as Keras' imagenet_class_index.json.

    raises InputError naming the file if it is none of these, or not there
    """
    path = _IMAGENET if str(path) in CLASSES else Path(path)
    if not path.is_file():
        raise InputError(f"dataset.classes: {no_file(str(path), CLASSES)}")
    text, says = read_text(path), f"{path}: expected names, {{name: index}} or {{index: name}}"
    if path.suffix != ".json":
        # str.splitlines ends lines in the middle of names, too: at U+2028 and form feeds.
        return _numbered([line.strip() for line in text.split("\n") if line.strip()], path)
    with refusing(json.JSONDecodeError, says=lambda error: f"{path}: not JSON ({error})"):
        content = json.loads(text, object_pairs_hook=partial(_once, path))
    match content:
        case list() if all(isinstance(name, str) for name in content):
            return _numbered(content, path)
        case dict() if all(isinstance(index, int) for index in content.values()):
            numbers = content
        case dict() if all(key.isdecimal() for key in content):
            firsts = [
                value[:1] if isinstance(value, list) else [value] for value in content.values()
            ]
            names = [name for first in firsts for name in first if isinstance(name, str)]
            numbers = dict(zip(names, map(int, content), strict=False))
            if len(names) < len(content):
                raise InputError(says)
        case _:
            raise InputError(says)
    if not all(0 <= number < _MOST for number in numbers.values()):
        raise InputError(f"{path}: an index is no class's number")
    if len({*numbers.values()}) < len(content):
        raise InputError(f"{path}: two classes have the same name or the same index")
    return numbers


def identifiers(numbers: Mapping[str, int]) -> dict[str, int]:
    """Return {first word: index} of classes that all begin with an identifier of their own.

    Identifiers are the same letters and then digits, in all names: n01440764 tench, class7. Other
    first words are none: a tiger cat is no tiger shark, and a 7 segment display not class 7.
    """
    words = {(name.split() or [""])[0]: number for name, number in numbers.items()}
    letters = {found and found[1] for found in (re.fullmatch(r"(\D+)\d+", x) for x in words)}
    return words if len(letters) == 1 and letters != {None} and len(words) == len(numbers) else {}


def class_of(name: str, numbers: Mapping[str, int], known: Mapping[str, int]) -> int | None:
    """Return the number of a class by its name, or by its first word if that is `known`.

    known: of `identifiers`
    """
    whole, first = name.strip(), (name.split() or [""])[0]
    return numbers.get(whole, known.get(first))


def class_name(classes: list[str], label: int) -> str:
    """Return the name of a class, without the wnid before it, or its number where it has none."""
    return without_wnid(classes[label]) if label < len(classes) else f"class {label}"


def without_wnid(name: str) -> str:
    """Return a class's name without the wnid before it; a wnid alone stays."""
    return _WNID.sub("", name)


def class_names(numbers: Mapping[str, int]) -> list[str]:
    """Return the names of classes 0, 1, …; a class without a name goes by its number."""
    by_number = {number: name for name, number in numbers.items()}
    return [by_number.get(i, str(i)) for i in range(max(by_number, default=-1) + 1)]


def class_labels(
    names: list[str], listed: str | None, *, of: object
) -> tuple[dict[str, int], list[str]]:
    """Return ({name: label}, names of classes 0, 1, …) of a dataset's classes or class folders.

    Labels are what a file says, if there is one. Else they are the names themselves, if all are
    numbers, and otherwise places in alphabetical order. Names that count from 1 in both orders
    keep their places, since a network of as many classes has them so.

    listed: a file for `class_numbers`
    of:     the dataset, for messages
    raises  InputError naming the classes that the file does not have, or that are no numbers
            apart, or −1, which is none
    """
    if str(NO_LABEL) in names:
        raise InputError(
            f"{of}: −1 among the classes {sorted(names)[:5]} is no class; take such images out"
        )
    if not listed:
        labels = _by_themselves(names, of)
        return labels, class_names(labels)
    numbers = class_numbers(listed)
    known = identifiers(numbers)
    labels = {x: n for x in names if (n := class_of(x, numbers, known)) is not None}
    if unknown := [name for name in names if name not in labels]:
        raise InputError(
            f"{of}: the classes {unknown[:5]} are not in {listed}, as whole names; where a "
            "dataset's own classes are the network's, in its order, leave dataset.classes out"
        )
    return labels, class_names(numbers)


def relabelled(
    labels: np.ndarray, classes: list[str], listed: str | None, *, of: object
) -> tuple[np.ndarray, list[str]]:
    """Return (labels, names of classes 0, 1, …), in the order of a file if there is one.

    labels:  (N,) places in `classes`; those of the file already where a dataset names no classes
    classes: names of the dataset's own
    listed, of, raises: as `class_labels`; InputError, too, where images have no label, −1
    """
    labels = np.asarray(labels)
    check_given(labels, of=of)
    if classes and len(labels) and labels.max() >= len(classes):
        raise InputError(
            f"{of}: the label {labels.max()} is none of its classes 0 … {len(classes) - 1}"
        )
    if not listed:
        return labels, classes
    numbers, names = class_labels(classes, listed, of=of)
    return np.array([numbers[name] for name in classes])[labels] if classes else labels, names


def as_labels(numbers: list[int], *, of: object) -> np.ndarray:
    """Return whole numbers as labels (N,) int64; raise InputError for one that is too large."""
    try:
        return np.array(numbers, dtype=np.int64)
    except OverflowError:
        raise InputError(f"{of}: a label of 2⁶³ or more is too large for a class") from None


def check_given(labels: np.ndarray, *, of: object) -> None:
    """Raise InputError if images have no label: splits that are to be predicted have −1."""
    if n_none := int((labels < 0).sum()):
        raise InputError(
            f"{of}: {n_none:,} of {len(labels):,} images have no label, but −1, as in a split that "
            "is to be predicted; take another split, or, of images in a folder, source: photos"
        )


def label_of(text: str, numbers: Mapping[str, int], known: Mapping[str, int], where: str) -> int:
    """Return the class of a label in a file: a name that `classes` lists, or a number.

    numbers, known: of `class_numbers` and `identifiers`
    raises          InputError that begins with `where`
    """
    label = class_of(text, numbers, known)
    if label is not None:
        return label
    # Where names are numbers, one that is none of them is no place in the list, either.
    if text.strip().isdecimal() and not any(map(str.isdecimal, numbers)):
        if len(text.strip().lstrip("0")) > _DIGITS:
            raise InputError(f"{where}: the label {text.strip()[:30]} is too large for a class")
        return int(text)
    problem = "is not in dataset.classes" if numbers else "is no number; set dataset.classes"
    raise InputError(f"{where}: the label {text!r} {problem}")


def _by_themselves(names: list[str], of: object) -> dict[str, int]:
    places = {name: i for i, name in enumerate(sorted(names))}
    if not all(name.isdecimal() for name in names):
        return places
    numbers = {name: int(name) for name in places}
    if list(numbers.values()) == [*range(1, len(numbers) + 1)]:
        return places
    by_number: dict[int, str] = {}
    for name, number in numbers.items():
        if by_number.setdefault(number, name) != name:
            raise InputError(f"{of}: the folders {by_number[number]} and {name} are one class")
    if max(by_number) >= _MOST:
        raise InputError(
            f"{of}: the class folder {by_number[max(by_number)]} is no class's number; write to a "
            "file, which dataset.classes names, which folder is which class"
        )
    return numbers


def _once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, which would have the last of equal keys alone."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InputError(f"{path}: two classes have the same name or the same index")
    return found


def _numbered(names: list[str], path: Path) -> dict[str, int]:
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        raise InputError(f"{path}: {twice[:5]} are there twice")
    return {name: i for i, name in enumerate(names)}


def label_or_predicted(records: Any) -> Any:
    """Return the label of each image, or if it has none the class predicted: a Series of int64.

    records: a table with columns `label` and `predicted`
    """
    label = records["label"]
    return label.where(label != NO_LABEL, records["predicted"]).astype("int64")
