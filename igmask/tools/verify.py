"""Are the files of a study whole, of this configuration, and made of what lies beside them?

Every array carries a checksum a row, every file of records those of its pages, the settings that
made it, and digests of what it was made of. So damage, another configuration's results and files
that were exchanged are seen whatever their names and times say. Of image files size and time of
change are known; where one differs, the image is decoded again. No torch.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from safetensors import SafetensorError, safe_open

from igmask import arrays
from igmask.errors import InputError, refusing
from igmask.inputs.data import index
from igmask.inputs.sources import source_of
from igmask.plan import Made, Workflow
from igmask.progress import progress
from igmask.report.tables import texts
from igmask.steps.prepare import decoded
from igmask.study.settings import Geometry

_CHUNK = 256  # rows checked at a time


def verify(
    flow: Workflow, results: Path = Path("results"), *, deep: bool = False
) -> Iterator[tuple[Made, str]]:
    """Yield each file of the study that is not as it should be, and what is wrong with it.

    A problem begins with missing, damaged or stale; half-written files that a killed job has left
    are `left over`.

    results: the folder of the study's results, wherever it is now
    deep:    decode every image again and compare; else those only whose file has another size or
             time of change than when it was indexed
    """
    expected = list(flow.made())
    expected += _kept(flow, expected, results)
    digests = _Digests(results)
    bad: set[Path] = set()
    for made in progress(expected, total=len(expected), unit="files", label="verify"):
        problem = _problem(made, results, digests, bad, flow)
        if not problem and made.path == Path(flow.folder, "index.parquet"):
            problem = _listing_problem(made, results, flow)
        if not problem and made.path.parent.parent == Path(flow.folder, "images"):
            problem = _source_problem(made, results, bad, flow, deep=deep)
        if problem:
            bad.add(made.path)
            yield made, problem
    for path in sorted(results.rglob(".*.tmp")):
        if arrays.is_at_work(path) is False:  # of another host nobody knows for a day
            yield Made("results" / path.relative_to(results)), "left over by a job that was killed"


def foreign(flow: Workflow) -> list[str]:
    """Return what results are there that were made with other settings: a line each."""
    lines = []
    for made in flow.made():
        carrier = made.outputs[-1]
        if made.settings is not None and carrier.is_file():
            try:
                different = differences(made.settings, _settings(carrier))
            except InputError:
                different = ["not readable"]
            lines += [f"{carrier}: {', '.join(different)}"] if different else []
    return lines


def remove(made: Made, results: Path = Path("results")) -> None:
    """Remove a file and its fellows, so that the next run makes them again."""
    for place in (_placed(path, results) for path in made.outputs):
        kept = place.parent / arrays.KEPT / place.name
        if _are_one(kept, place):
            kept.unlink()
        place.unlink(missing_ok=True)


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ, such as `attribution.n_steps is 50, not 100`.

    Of `attribution` only what is expected counts; other groups must be equal.
    """
    lines = []
    for key, value in json.loads(json.dumps(expected)).items():
        there = found.get(key)
        if key == "attribution" and isinstance(there, dict):
            lines += [f"{key}.{line}" for line in differences(value, there)]
        elif isinstance(value, dict) and isinstance(there, dict):
            changed = sorted(k for k in value | there if value.get(k) != there.get(k))
            lines += [f"{key}.{k} is {there.get(k)!r}, not {value.get(k)!r}" for k in changed]
        elif there != value:
            lines.append(f"{key} is {there!r}, not {value!r}")
    return lines


def _kept(flow: Workflow, expected: list[Made], results: Path) -> Iterator[Made]:
    """What `evaluate` keeps and has no other name: of a job that was killed, of other conditions.

    Of conditions that the study has no more, their model and images are compared.
    """
    as_expected = {made.path: made for made in expected}
    for name in flow.models:
        folder = Path(flow.records_folder(SimpleNamespace(model=name)))
        original = as_expected[folder / "original.parquet"]
        own = ("mode", "versions")
        common = {k: v for k, v in (original.settings or {}).items() if k not in own}
        for place in sorted(_placed(folder / arrays.KEPT, results).glob("*.parquet")):
            path = folder / place.name
            if path not in as_expected or not _are_one(place, _placed(path, results)):
                made = as_expected.get(path, replace(original, settings=common))
                yield replace(made, path=folder / arrays.KEPT / place.name)


def _are_one(first: Path, second: Path) -> bool:
    """Whether two names are of the same file."""
    return first.is_file() and second.is_file() and first.samefile(second)


class _Digests:
    """What stands for the content of arrays and weights, each read once; and what tables say."""

    def __init__(self, results: Path) -> None:
        self._results = results
        self._tables: dict[str, str] = {}
        self._found: dict[tuple[Path, ...], str] = {}

    def of(self, paths: list[Path]) -> str:
        key = tuple(paths)
        if key not in self._found:
            places = [_placed(path, self._results) for path in paths]
            if places[0].suffix == ".npy":
                read = [arrays.read_records(arrays.records_of(place))[0] for place in places]
                self._found[key] = arrays.digest(pd.concat(read))
            else:
                self._found[key] = arrays.digest_of_files(places)
        return self._found[key]

    def of_table(self, name: str, records: list[Path]) -> str:
        self._tables = self._tables or texts([_placed(path, self._results) for path in records])
        return self._tables[name]


def _problem(
    made: Made, results: Path, digests: _Digests, bad: set[Path], flow: Workflow
) -> str | None:
    places = [_placed(path, results) for path in made.outputs]
    if any(not place.is_file() for place in places):
        return "missing"
    try:
        if made.settings is None:
            return _look(made, places[0], digests, bad, flow)
        if places[0].suffix == ".npy":
            _check_rows(places[0])
        elif places[0].suffix == ".parquet":
            arrays.read_records(places[0])
        found = _settings(places[-1])
    except InputError as error:
        what = str(error).removeprefix(f"{places[0]}: ").removesuffix(f"; {arrays.ADVICE}")
        return f"damaged: {what}"
    if different := differences(made.settings, found):
        return f"stale: {', '.join(different)}"
    read = found.get("read", {})
    for kind, paths in made.read.items():
        if any(path in bad for path in paths):
            return f"stale: its {kind} are"
        elsewhere = kind == "code" and kind not in read  # than in the job's folder
        if not elsewhere and read.get(kind) != digests.of(paths):
            return f"stale: made of other {kind}"
    return None


def _settings(place: Path) -> dict[str, Any]:
    """The settings that a file carries, or InputError if it cannot be read."""
    kinds = OSError, TypeError, ValueError, SafetensorError
    with refusing(*kinds, says=lambda error: f"{place}: {error}"):
        if place.suffix == ".json":
            return dict(json.loads(place.read_text("utf-8")))
        if place.suffix == ".safetensors":
            with safe_open(place, framework="numpy") as file:
                return json.loads((file.metadata() or {}).get("igmask", "{}"))
    return arrays.read_settings(place)


def _check_rows(path: Path) -> None:
    """Raise InputError naming an image, if its row is not as it was written."""
    for _ in arrays.Shards([path]).batches(_CHUNK):
        pass


def _listing_problem(made: Made, results: Path, flow: Workflow) -> str | None:
    """What is wrong with an index that is whole: that it is not of the images and labels of now."""
    if not source_of(flow.study.dataset.source).is_relisted:
        return None  # nothing that can change, or all images would have to be read
    try:
        now, classes = index(flow.study.dataset)
    except InputError as error:
        return f"stale: {error}"
    listed, made_by = arrays.read_records(_placed(made.path, results))
    same = [now[column].equals(listed[column]) for column in ("name", "label")]
    if all(same) and classes == made_by["classes"]:
        return None
    return f"stale: there are other {'labels' if same[0] else 'images'} now"


def _source_problem(
    made: Made, results: Path, bad: set[Path], flow: Workflow, *, deep: bool
) -> str | None:
    """What is wrong with prepared images that are whole: that they are no more those of the files.

    A file that was only touched, or copied, still has the same pixels.
    """
    path = Path(flow.folder, "index.parquet")
    if path in bad:
        return None
    listed, made_by = arrays.read_records(_placed(path, results))
    prepared, settings = arrays.read_records(_placed(made.outputs[-1], results))
    first, last = arrays.shard_bounds(settings["shard"], len(listed))
    listed = listed.iloc[first:last]
    if not deep:
        known = {"size", "mtime_ns"} <= set(listed)
        listed = listed[[known and _is_touched(row) for row in listed.itertuples(index=False)]]
    if listed.empty:
        return None
    written = dict(zip(prepared["name"], prepared[arrays.CHECKSUM], strict=True))
    images = decoded(listed, made_by, Geometry(**settings["geometry"]))
    shown = progress(images, total=len(listed), unit="images", label=f"decode {settings['shard']}")
    changed = [
        name
        for name, pixels in zip(listed["name"], shown, strict=True)
        if written.get(name) != _checksum(pixels)
    ]
    others = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"stale: the image {changed[0]} has changed since{others}" if changed else None


def _is_touched(record: Any) -> bool:
    try:
        file = os.stat(record.path)
    except OSError:
        return True
    return (file.st_size, file.st_mtime_ns) != (record.size, record.mtime_ns)


def _checksum(pixels: np.ndarray | InputError) -> int | None:
    """The checksum of a prepared row; None of an image that cannot be used."""
    return None if isinstance(pixels, InputError) else arrays.checksums(pixels[np.newaxis])[0]


def _look(made: Made, place: Path, digests: _Digests, bad: set[Path], flow: Workflow) -> str | None:
    """What is wrong with a file that carries no settings."""
    try:
        if place.suffix == ".png":
            with Image.open(place) as image:
                image.verify()
        elif not place.stat().st_size:
            return "damaged: empty"
    except (OSError, SyntaxError, ValueError) as error:
        return f"damaged: {error}"
    if made.path.parent == Path("results/tables"):
        records = [Path(path) for path in flow.records(SimpleNamespace())]
        if bad.intersection(records):
            return "stale: its records are"
        if place.read_bytes() != digests.of_table(place.name, records).encode():
            return "stale: its records say otherwise"
    return None


def _placed(path: Path, results: Path) -> Path:
    """Where a file of results/ is, if that folder is elsewhere; others are where they are."""
    return results / path.relative_to("results") if path.parts[0] == "results" else path
