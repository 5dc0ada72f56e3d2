"""Files of a dataset: class folders and images, the same for every source, and tables' text.

Names that begin with a dot, as Jupyter's .ipynb_checkpoints, and macOS's __MACOSX do not.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from igmask.asked.settings import is_baseline_file
from igmask.errors import InputError, refusing
from igmask.progress import say

# The endings of formats that Pillow decodes by itself, whatever its version; and of others: icons,
# drawings, and what needs another program.
_TAKEN = """
.jpg .jpeg .jpe .jfif .mpo .png .apng .webp .avif .avifs .gif .tif .tiff .bmp .dib .psd .qoi .dds
.tga .icb .vda .vst .sgi .bw .rgb .rgba .ras .pcx .dcx .xbm .xpm .msp .im .pcd .pxr .blp .fli .flc
.ppm .pgm .pbm .pnm .pfm .jp2 .j2k .j2c .jpc .jpf .jpx
"""
_OTHERS = """
.heic .heif .hif .jxl .svg .eps .ps .wmf .emf .ico .icns .cur .fits .fit .exr .hdr .xcf .ftu .ftc
.dng .cr2 .cr3 .nef .arw .orf .raf .rw2 .pef .raw
"""
EXTENSIONS, NOT_TAKEN = tuple(_TAKEN.split()), tuple(_OTHERS.split())

RESULTS = "results"  # the folder below which a study's files are


def counts(name: str) -> bool:
    """Return whether a file or folder of this name may be an image or hold some."""
    return not name.startswith(".") and name != "__MACOSX"


class _Counting:
    """What os.scandir gives, without the names that do not count."""

    def __init__(self, entries: Any) -> None:
        self._entries, self.close = entries, entries.close

    def __enter__(self) -> "_Counting":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __iter__(self) -> "_Counting":
        return self

    def __next__(self) -> Any:
        return next(entry for entry in self._entries if counts(os.fsdecode(entry.name)))


@contextmanager
def names_that_count() -> Iterator[None]:
    """Let `os` list no others within the block, in which code that is not ours walks folders."""
    listdir, scandir = os.listdir, os.scandir
    os.listdir = lambda *at: [n for n in listdir(*at) if counts(os.fsdecode(n))]  # type: ignore[assignment]
    os.scandir = lambda *at: _Counting(scandir(*at))  # type: ignore[assignment]
    try:
        yield
    finally:
        os.listdir, os.scandir = listdir, scandir


def class_folders(root: Path | str) -> list[str]:
    """Return the names of the folders in a folder, in alphabetical order."""
    return sorted(entry.name for entry in os.scandir(root) if counts(entry.name) and entry.is_dir())


def images_below(folder: Path | str) -> dict[str, str]:
    """Return {name: path} of a folder's images, sorted as torchvision's ImageFolder sorts them.

    A name is the path from the folder on; links to folders are followed.
    """
    return files_below(folder, EXTENSIONS)


def files_below(folder: Path | str, endings: tuple[str, ...]) -> dict[str, str]:
    """Return what `images_below` does, of files that end otherwise."""
    found = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = filter(counts, folders)
        found.append((os.path.join(where, ""), files))
    start = len(os.path.join(folder, ""))  # os.path.relpath would take half the time of an index
    paths = [
        where + name  # os.path.join would take another third
        for where, files in sorted(found)
        for name in sorted(files)
        if name.lower().endswith(endings) and counts(name)
    ]
    return {path[start:]: path for path in paths}


def left_out(root: Path | str, *, of_folders: bool) -> str | None:
    """Return what to say of files that look like images and are not taken, nothing if all are.

    of_folders: whether images are taken from the folders in the root, and none that lie beside them
    """
    names = [*files_below(root, NOT_TAKEN)]
    if of_folders:
        beside = (entry.name for entry in os.scandir(root) if entry.is_file())
        names += [x for x in sorted(beside) if x.lower().endswith(EXTENSIONS) and counts(x)]
    if not names:
        return None
    kinds = Counter(os.path.splitext(name)[1].lower() for name in names)
    shown = ", ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items()))
    return (
        f"not taken, though they look like images: {shown}, the first {names[0]!r}; convert such "
        "files, to PNG, say" + ", and move what is in no class folder into one" * of_folders
    )


def existing(folder: str | None) -> Path:
    """Return the folder; raise InputError if there is none of that name."""
    path = Path(folder or "")
    if not path.is_dir():
        raise InputError(f"{path}: there is no such folder")
    return path


def indexed_images(folder: Path) -> dict[str, str]:
    """Return `images_below`; raise InputError for a name that is no text, as records have to be."""
    found = images_below(folder)
    for path in found.values():
        check_text(path)
    return found


def check_text(name: str) -> None:
    """Raise InputError for a name of a file, or of one within it, that is no text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        said = os.fsencode(name)
        raise InputError(f"the file name {said!r} is not UTF-8; rename it") from None


def located(path: str, beside: Path) -> str:
    """Return where a file is that words name: in the working directory, else with the results.

    Executors without a common file system hand a job its files below a folder of their own, in
    which `results/` lies as it does in the working directory.

    path:   a name that is no file's is given back as it is
    beside: a file that the job was given
    """
    whole = beside.absolute()
    if Path(path).is_file() or RESULTS not in whole.parts:
        return path
    place = Path(*whole.parts[: whole.parts.index(RESULTS)], path)
    if not place.is_file():
        return path
    say(f"{path} is not here; taken is {place}")
    return str(place)


def with_located(recipe: Any, beside: Path) -> Any:
    """Return a recipe with the files that it names, weights and a baseline, where they are."""
    found, model = {}, recipe.model
    if model.weights_kind == "file":
        found["model"] = replace(model, weights=located(model.weights, beside))
    baseline, attribution = (getattr(recipe, name, None) for name in ("baseline", "attribution"))
    if baseline and is_baseline_file(baseline):
        found["baseline"] = located(baseline, beside)
    if attribution and is_baseline_file(attribution.baseline):
        place = located(attribution.baseline, beside)
        found["attribution"] = replace(attribution, baseline=place)
    return replace(recipe, **found)


def read_text(path: Path) -> str:
    """Return a text file's content, its lines ended by \\n.

    raises InputError, naming it, if it is not there, cannot be read, or is not UTF-8
    """
    with (
        refusing(UnicodeDecodeError, says=lambda error: f"{path}: not UTF-8 text ({error})"),
        refusing(OSError, says=lambda error: f"{path}: cannot be read ({error})"),
        refusing(FileNotFoundError, says=lambda _: f"{path}: there is no such file"),
    ):
        return path.read_text("utf-8-sig")  # spreadsheets put a mark at the beginning
