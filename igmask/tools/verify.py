"""Are the files of a study whole, of this configuration, and made of what lies beside them?

Every array carries a checksum a row, every file of records those of its pages, the settings that
made it, and digests of what it was made of. So damage, another configuration's results and files
that were exchanged are seen whatever their names and times say. Of image files size and time of
change are known; where one differs, the image is decoded again. No torch.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from safetensors import SafetensorError, safe_open

from igmask import arrays
from igmask.asked.recipes import Condition
from igmask.asked.settings import Geometry
from igmask.errors import InputError, refusing
from igmask.inputs.data import index, stamps
from igmask.inputs.sources import source_of
from igmask.made import Made
from igmask.made import made as files_of
from igmask.plan import Workflow
from igmask.progress import progress
from igmask.report.tables import texts
from igmask.steps.prepare import decoded

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
    expected = list(files_of(flow))
    expected += _kept(flow, expected, results)
    files = _Files(flow, results, deep=deep)
    for made in progress(expected, total=len(expected), unit="files", label="verify"):
        if problem := files.problem(made):
            files.bad.add(made.path)
            yield made, problem
    for path in sorted(results.rglob(".*.tmp")):
        if arrays.is_at_work(path) is False:  # of another host nobody knows for a day
            yield Made("results" / path.relative_to(results)), "left over by a job that was killed"


def foreign(flow: Workflow) -> list[str]:
    """Return what results are there that were made with other settings: a line each."""
    lines = []
    for made in files_of(flow):
        if different := _of_others(made):
            lines.append(f"{made.outputs[-1]}: {', '.join(different)}")
    return lines


def standing(expected: Iterable[Made]) -> set[Path]:
    """Return the files that are there with this configuration's settings, made of such files only.

    Files that carry no settings, such as tables, are not among them; nothing but settings is read.

    expected: of `made.made`, in its order
    """
    found: set[Path] = set()
    others: set[Path] = set()  # that are missing, or have other settings
    for made in expected:
        if made.settings is None:
            continue
        is_there = all(path.is_file() for path in made.outputs) and not _of_others(made)
        made_of = {path for paths in made.read.values() for path in paths}
        (others if not is_there or made_of & others else found).add(made.path)
    return found


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


def _of_others(made: Made) -> list[str]:
    """In what the settings that a file carries are not its own; nothing if there is no file."""
    carrier = made.outputs[-1]
    if made.settings is None or not carrier.is_file():
        return []
    try:
        return differences(made.settings, _settings(carrier))
    except InputError:
        return ["not readable"]


def _kept(flow: Workflow, expected: list[Made], results: Path) -> Iterator[Made]:
    """What `evaluate` keeps and has no other name: of a job that was killed, of other conditions.

    Of conditions that the study has no more, their model and images are compared.
    """
    as_expected = {made.path: made for made in expected}
    for name in flow.models:
        folder = Path(flow.records_folder(SimpleNamespace(model=name)))
        original = as_expected[folder / "original.parquet"]
        own = (*Condition._fields, "versions")
        common = {k: v for k, v in (original.settings or {}).items() if k not in own}
        for place in sorted(_placed(folder / arrays.KEPT, results).glob("*.parquet")):
            path = folder / place.name
            if path not in as_expected or not _are_one(place, _placed(path, results)):
                made = as_expected.get(path, replace(original, settings=common))
                yield replace(made, path=folder / arrays.KEPT / place.name)
        curves = folder.with_name("curves")
        for place in sorted(_placed(curves / arrays.KEPT, results).glob("*.npy")):
            path = curves / place.name
            if path not in as_expected or not _are_one(place, _placed(path, results)):
                whole = Made(path, settings={})  # what made it is compared when it is wanted
                yield replace(as_expected.get(path, whole), path=curves / arrays.KEPT / place.name)


def _are_one(first: Path, second: Path) -> bool:
    """Whether two names are of the same file."""
    return first.is_file() and second.is_file() and first.samefile(second)


class _Files:
    """The files of a study that is looked at: those found bad so far, and what they hold."""

    def __init__(self, flow: Workflow, results: Path, *, deep: bool) -> None:
        self.bad: set[Path] = set()
        self._flow, self._results, self._deep = flow, results, deep
        self._index = Path(flow.folder, "index.parquet")
        self._digest = cache(self._digest_of)  # each file is read once

    def problem(self, made: Made) -> str | None:
        """Return what is wrong with a file."""
        places = [_placed(path, self._results) for path in made.outputs]
        if any(not place.is_file() for place in places):
            return "missing"
        try:
            if made.settings is None:
                return self._of_look(made, places[0])
            if places[0].suffix == ".npy":
                for _ in arrays.Shards([places[0]]).batches(_CHUNK):
                    pass  # which compares the rows with their checksums
            elif places[0].suffix == ".parquet":
                arrays.read_records(places[0])
            found = _settings(places[-1])
            if places[0].suffix == ".safetensors":
                with safe_open(places[0], framework="numpy") as file:
                    weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                arrays.check_weights(places[0], weights, found)
        except InputError as error:
            what = str(error).removeprefix(f"{places[0]}: ").removesuffix(f"; {arrays.ADVICE}")
            return f"damaged: {what}"
        if different := differences(made.settings, found):
            return f"stale: {', '.join(different)}"
        read = found.get("read", {})
        for kind, paths in made.read.items():
            if self.bad.intersection(paths):
                return f"stale: its {kind} are"
            elsewhere = kind == "code" and kind not in read  # than in the job's folder
            if not elsewhere and read.get(kind) != self._digest(tuple(paths)):
                return f"stale: made of other {kind}"
        if made.path == self._index:
            return self._of_listing(places[0])
        is_of_images = made.path.parent.parent == self._index.with_name("images")
        return self._of_sources(places[-1]) if is_of_images else None

    def _digest_of(self, paths: tuple[Path, ...]) -> str:
        """What stands for the content of arrays, or of files of weights or code."""
        places = [_placed(path, self._results) for path in paths]
        if places[0].suffix != ".npy":
            return arrays.digest_of_files(places)
        return arrays.digest(
            pd.concat([arrays.read_records(arrays.records_of(place))[0] for place in places])
        )

    def _of_listing(self, index_path: Path) -> str | None:
        """What is wrong with an index that is whole: that images and labels are others by now."""
        if not source_of(self._flow.study.dataset.source).is_relisted:
            return None  # nothing that can change, or all images would have to be read
        try:
            now, classes = index(self._flow.study.dataset)
        except InputError as error:
            return f"stale: {error}"
        listed, made_by = arrays.read_records(index_path)
        same = [now[column].equals(listed[column]) for column in ("name", "label")]
        own = {"name", "label", "path", "position", "size", "mtime_ns"}
        places = [column for column in listed if column not in own]  # in files that hold many
        same.append(all(now[column].equals(listed[column]) for column in places))
        if all(same) and classes == made_by["classes"]:
            return None
        return f"stale: there are other {'labels' if same[0] and same[2] else 'images'} now"

    def _of_sources(self, records: Path) -> str | None:
        """What is wrong with prepared images that are whole: that their files have others by now.

        A file that was only touched, or copied, still has the same pixels.
        """
        if self._index in self.bad:
            return None
        listed, made_by = arrays.read_records(_placed(self._index, self._results))
        prepared, settings = arrays.read_records(records)
        shard = settings["shard"]
        listed = listed.iloc[slice(*arrays.shard_bounds(shard, len(listed)))]
        if not self._deep:
            known = listed.reindex(columns=["size", "mtime_ns"])  # of images that are files
            touched = known.notna().all(axis=1) & (known != stamps(listed)).any(axis=1)
            listed = listed[touched]
        if listed.empty:
            return None
        written = dict(zip(prepared["name"], prepared[arrays.CHECKSUM], strict=True))
        images = decoded(listed, made_by, Geometry(**settings["geometry"]))
        shown = progress(images, total=len(listed), unit="images", label=f"decode {shard}")
        changed = []
        for name, pixels in zip(listed["name"], shown, strict=True):
            [own] = (
                [None] if isinstance(pixels, InputError) else arrays.checksums(pixels[np.newaxis])
            )
            if written.get(name) != own:
                changed.append(name)
        others = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
        return f"stale: the image {changed[0]} has changed since{others}" if changed else None

    def _of_look(self, made: Made, place: Path) -> str | None:
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
            if self.bad.intersection(self._tabulated):
                return "stale: its records are"
            if place.read_bytes() != self._tables[place.name].encode():
                return "stale: its records say otherwise"
        elif any(path.suffix in (".npy", ".parquet", ".csv") for path in self.bad):
            return "stale: what it shows is"
        return None

    @cached_property
    def _tables(self) -> dict[str, str]:
        paths = [_placed(path, self._results) for path in self._tabulated]
        return texts(paths, self._flow.tables(SimpleNamespace()))

    @cached_property
    def _tabulated(self) -> list[Path]:
        """What the tables are made of."""
        flow, every = self._flow, SimpleNamespace()
        of_masks = *flow.records(every), *flow.transferred(every), *flow.converged(every)
        return [Path(path) for path in (*of_masks, *flow.curve_files(every), *flow.probes(every))]


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


def _placed(path: Path, results: Path) -> Path:
    """Where a file of results/ is, if that folder is elsewhere; others are where they are."""
    return results / path.relative_to("results") if path.parts[0] == "results" else path
