"""`igmask check`: what would stop a study, and how long it takes, said before hours of work.

A function a finding. Nothing is written, and no weights are fetched: a network whose weights are
not at hand is tried with random ones.
"""

import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from http.client import HTTPException
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import psutil
import torch
from torch import nn

from igmask.asked import config
from igmask.asked.fields import plain
from igmask.asked.settings import BASELINES, Dataset, Geometry, Model, Study
from igmask.devices import n_cores, pick_device
from igmask.errors import InputError
from igmask.inputs import baselines, models, sample
from igmask.inputs.chance import by_luck
from igmask.inputs.data import (
    check_classes,
    check_labels,
    check_order,
    index,
    is_labelled,
    left_out,
    numbered_classes,
    opener,
    unnamed_classes,
)
from igmask.inputs.networks import library_of
from igmask.inputs.own import imported
from igmask.inputs.weights import weights_place
from igmask.kernels import grid
from igmask.plan import Workflow
from igmask.tools.trial import (
    AUTO_STEPS,
    Pace,
    are_to_come,
    beyond,
    pace,
    ready,
    selection_s,
    threads,
)

_N_TIMED = 8  # images of a trial of a network's pace
_JOB_BYTES = 700 * 10**6  # of a process that has imported torch
_JOB_S = 5.0  # until a job begins its work, and after it
_RECORD_BYTES = 50  # measured, of 50,000 images
_POINT_BYTES = 16  # of a curve


@dataclass(frozen=True)
class Finding:
    """What was found, about what, and whether it is `ok`, a `warning` or an `error`."""

    about: str
    says: str
    level: str = "ok"

    def __str__(self) -> str:
        first, *rest = self.says.splitlines()
        return "\n".join(
            [f"{self.level:<8} {self.about:<14} {first}", *(" " * 24 + line for line in rest)]
        )


@dataclass
class Images:
    """The images of a study, as far as they are at hand.

    records, classes: of `data.index`
    n:                how many there are, or should be; 0 if that is not known
    tried:            some, decoded, (n, size, size, 3) uint8 in each geometry
    labels:           theirs, if they have any
    decode_s:         seconds that an image took
    """

    records: pd.DataFrame
    classes: list[str]
    n: int
    tried: dict[Geometry, np.ndarray]
    labels: dict[Geometry, np.ndarray]
    decode_s: dict[Geometry, float]


def check(settings: Mapping[str, Any], *, trial: bool = True) -> Iterator[Finding]:
    """Yield what is found about the study of a configuration, as it is found.

    trial: whether networks are loaded and timed
    """
    try:
        flow = Workflow(settings, with_files=False)
    except InputError as error:
        yield Finding("configuration", str(error), "error")
        return
    study = flow.study
    says = f"models: {len(flow.models)}, conditions of each: {len(flow.conditions)}"
    says += f", curves: {len(flow.curves)} of {study.curves.points} points" * bool(flow.curves)
    says += f", shards: {study.compute.shards}"
    n_shown = n_passes(flow) + n_points(flow)
    yield Finding("configuration", f"{says}\neach image is shown {n_shown} times to a network")
    for line in config.warnings(study):
        yield Finding("configuration", line, "warning")
    n_expected = 0 if study.dataset.limit else study.dataset.n_expected or 0
    images = Images(pd.DataFrame(), [], n_expected, {}, {}, {})
    yield dataset(study.dataset, config.missing_files(study), images)
    for geometry in dict.fromkeys(model.geometry for model in flow.models.values()):
        if len(images.records):
            yield decoding(study, geometry, images)
        yield from baseline(study, geometry)
    yield from own(flow)
    paces: dict[str, Pace] = {}
    for name, model in flow.models.items():
        yield weights(name, model)
        if trial:
            yield from network(name, flow, images, paces)
    if images.n:
        yield disk(flow, images.n)
    if paces:
        yield memory(study, paces)
    if paces and images.n:
        yield duration(flow, images, paces)


def dataset(dataset: Dataset, missing: dict[str, str], images: Images) -> Finding:
    """Whether the images and labels are there, and as many as expected; fills in `images`."""
    absent = [f"{key}: {says}" for key, says in missing.items() if key.startswith("dataset.")]
    try:
        if absent:
            raise InputError("\n".join(absent))
        images.records, images.classes = index(replace(dataset, download=False))
    except InputError as error:
        if dataset.download and isinstance(error.__cause__, RuntimeError):
            return Finding("dataset", f"torchvision's {dataset.class_} will be fetched")
        return Finding("dataset", "\n".join([str(error), *advice(dataset)]), "error")
    images.n = len(images.records)
    made_by = {"dataset": plain(dataset), "classes": images.classes}
    found = f"{images.n:,} images of {images.records['label'].nunique():,} classes"
    if not is_labelled(made_by):
        found = f"{images.n:,} images without labels, of which networks agree with themselves"
    for note in (numbered_classes(made_by, images.records["label"]), left_out(dataset)):
        found += f"; {note}" if note else ""
    if not dataset.limit and images.n != (dataset.n_expected or images.n):
        return Finding("dataset", f"{found}; {dataset.n_expected:,} are expected", "warning")
    return Finding("dataset", found)


def advice(dataset: Dataset) -> list[str]:
    """How missing files are had, and which archive that lies about may hold the images."""
    lines = (dataset.obtain or "").splitlines()
    root = Path(dataset.root or ".")
    if dataset.source not in Dataset.FOLDERS or (root.is_dir() and any(root.iterdir())):
        return lines
    for folder in dict.fromkeys([Path(), root.parent]):
        for archive in sorted(folder.glob("*")):
            named = archive.name in (dataset.obtain or archive.name)
            if named and archive.name.lower().endswith((".tar", ".tar.gz", ".tgz", ".zip")):
                unpack = "unzip -q {} -d {}" if archive.suffix == ".zip" else "tar -xf {} -C {}"
                where = shlex.quote(str(root))
                command = unpack.format(shlex.quote(str(archive)), where)
                lines.append(f"{archive} is here: mkdir -p {where} && {command}")
    return lines


def decoding(study: Study, geometry: Geometry, images: Images) -> Finding:
    """Whether some images, drawn from all of the dataset, can be decoded; fills in `images`."""
    open_image = opener(replace(study.dataset, download=False), seed=study.seed)
    start = time.perf_counter()
    tried = sample.images(images.records, open_image, geometry)
    images.decode_s[geometry] = (time.perf_counter() - start) / len(tried)
    bad, good = [], {}
    for row, found in tried.items():
        if isinstance(found, InputError):
            reason, name = str(found), str(images.records["name"].iloc[row])
            bad.append(reason if name in reason else f"{name}: {reason}")
        else:
            good[row] = found
    if good:
        images.tried[geometry] = np.stack([*good.values()])
        if is_labelled({"dataset": plain(study.dataset)}):
            images.labels[geometry] = images.records["label"].to_numpy()[[*good]]
    if bad:
        skipped = study.dataset.on_bad_image == "skip"
        says = [f"{len(bad)} of {len(tried)} tried cannot be used", *bad]
        return Finding("images", "\n".join(says), "warning" if skipped else "error")
    each = f"{1e3 * images.decode_s[geometry]:.3g} ms each"
    return Finding("images", f"{len(tried)} tried as {geometry.name}, {each}")


def baseline(study: Study, geometry: Geometry) -> Iterator[Finding]:
    """Whether a baseline that is a file, or one's own, can be used in a geometry."""
    kind = study.attribution.baseline
    if kind in BASELINES:
        return
    try:
        baselines.check(kind, geometry)
        yield Finding("baseline", f"{kind}, as {geometry.name}")
    except InputError as error:
        yield Finding("baseline", str(error), "error")


def own(flow: Workflow) -> Iterator[Finding]:
    """Whether the functions of the user's own that steps will call can be imported."""
    one = SimpleNamespace(model=next(iter(flow.models)))
    for name in flow.preflight(one).own:
        try:
            imported(name)
        except InputError as error:
            yield Finding("own function", str(error), "error")


def weights(name: str, model: Model) -> Finding:
    """Whether the weights of a model are at hand, or can be fetched, and how large they are."""
    none = {
        "none": "random, as is meant",
        "unsaid": "those that its callable gives it",
        "library": f"those of {model.library}, which fetches them where they are not at hand",
    }
    if says := "trained by the study" if model.train else none.get(model.weights_kind):
        return Finding(name, f"weights: {says}")
    path, url = weights_place(model)
    if path.is_file():
        return Finding(name, f"weights: {path}, {_size(path.stat().st_size)}")
    if url is None:
        return Finding(name, f"weights: there is no file {str(path)!r}", "error")
    try:
        with urlopen(Request(url, method="HEAD"), timeout=10) as answer:
            size = _size(int(answer.headers.get("Content-Length", 0)))
    except (OSError, ValueError, HTTPException) as error:
        advice = f"fetch {url} elsewhere and save it as\n{path}"
        return Finding(name, f"weights: cannot be fetched here ({error})\n{advice}", "error")
    return Finding(name, f"weights: {size} will be fetched from {url}")


def network(name: str, flow: Workflow, images: Images, paces: dict[str, Pace]) -> Iterator[Finding]:
    """Whether a network loads, answers, knows the labels and can be attributed; adds its pace."""
    study, model = flow.study, flow.models[name]
    one = SimpleNamespace(model=name)
    compute, recipe = study.compute, flow.attribute(one)
    if flow.baseline(one):  # a file has a finding of its own
        recipe = replace(recipe, attribution=replace(recipe.attribution, baseline="black"))
    try:
        device = pick_device(compute.device)
        loaded = ready(model, device)
        size = model.geometry.size
        noise = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
        tried = images.tried.get(model.geometry, noise)
        n_classes = models.n_classes(loaded, model, tried)
        if len(images.records):
            listed = {"dataset": plain(study.dataset), "classes": images.classes}
            check_classes(listed, n_classes)
            check_labels(images.records, listed, n_classes)
            if note := unnamed_classes(listed, n_classes):
                yield Finding(name, note, "error")
            else:
                check_order(images.classes, library_of(model).class_names(model))
        pixels = models.pixels(tried[:_N_TIMED], device)
        with threads(compute.threads):
            yield from predictions(name, model, loaded, images, n_classes)
            labels = torch.zeros(len(pixels), dtype=torch.int64, device=device)
            paces[name] = found = pace(loaded, pixels, labels, recipe, compute)
    except Exception as error:  # a network of one's own may raise anything; others want a look, too
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        yield Finding(name, f"{kind}{error}", "error")
        return
    yield Finding(
        name,
        f"{n_classes:,} classes; an attribution takes {_time(found.attribute_s)}, a forward pass "
        f"{_time(found.evaluate_s)} an image",
    )


def predictions(
    name: str, model: Model, loaded: nn.Module, images: Images, n_classes: int
) -> Iterator[Finding]:
    """Whether a network is right more often than by luck, or weights are random that it has."""
    if are_to_come(model) or model.weights_kind == "none":
        return
    if note := models.random_weights(loaded, model):
        yield Finding(name, note, "warning")
    elif model.geometry in images.labels:
        device = models.device_of(loaded) or "cpu"
        predicted = sample.predicted(loaded, images.tried[model.geometry], device)
        labels = images.labels[model.geometry][: len(predicted)]
        if luck := by_luck(predicted, labels, n_classes):
            level, note = luck
            yield Finding(name, note, level)


def n_attributed(flow: Workflow) -> int:
    """Return how many networks attribute each image, a model's own and its randomised one."""
    return 2 if "randomised" in flow.study.masking.controls else 1


def n_passes(flow: Workflow) -> int:
    """Return how many times each image is shown to a network to be evaluated."""
    draws = {"random": flow.study.masking.draws}
    return sum(draws.get(condition.mask, 1) for condition in flow.conditions)


def n_points(flow: Workflow) -> int:
    """Return the same of curves."""
    return len(flow.curves) * flow.study.curves.points


def disk(flow: Workflow, n_images: int) -> Finding:
    """Whether what the study still has to write fits at results/."""
    study = flow.study
    squares = [
        prod(grid(m.geometry.size, m.geometry.size, study.squares.side))
        for m in flow.models.values()
    ]
    sides = {model.geometry: model.geometry.size for model in flow.models.values()}
    n_masks = len(study.selection.p)
    n_records = n_masks + n_passes(flow)
    parts = {
        "images": n_images * sum(3 * side**2 for side in sides.values()),
        "scores": n_images * n_attributed(flow) * sum(8 * k for k in squares),
        "masks": n_images * n_masks * sum(-(-k // 8) for k in squares),
        "records": n_images * len(squares) * n_records * _RECORD_BYTES,
        "curves": n_images * len(squares) * n_points(flow) * _POINT_BYTES,
    }
    place = Path("results") if Path("results").exists() else Path()
    free = shutil.disk_usage(place).free
    found = [path.stat() for path in Path(flow.folder).rglob("*") if path.is_file()]
    present = sum({(file.st_dev, file.st_ino): file.st_size for file in found}.values())
    missing = max(0, sum(parts.values()) - present)
    details = ", ".join(f"{part} {_size(size)}" for part, size in parts.items())
    says = f"{_size(missing)} to be written to results/, {_size(free)} free\n{details}"
    return Finding("disk", says, "ok" if missing <= free else "error")


def memory(study: Study, paces: dict[str, Pace]) -> Finding:
    """Whether the jobs' batches fit into the memory of the device that they run on."""
    device = pick_device(study.compute.device)
    on_gpu = device.type == "cuda"
    takes = {
        name: p.weight_bytes + p.batch_size * p.point_bytes + (0 if on_gpu else _JOB_BYTES)
        for name, p in paces.items()
    }
    name = max(takes, key=lambda name: takes[name])
    most, beside = takes[name], _beside(study, len(paces))
    free = _free_on(device) if on_gpu else psutil.virtual_memory().available
    where = f"free on {device}" if on_gpu else "free"
    says = (
        f"a job of {name} takes {_size(most)}, batches of {paces[name].batch_size}; "
        f"{_size(free)} {where}"
    )
    if most > free:
        return Finding("memory", f"{says}; set compute.batch_size lower", "error")
    if beside * most > free:
        says += f", not enough for {beside} jobs side by side; give Snakemake fewer --cores"
        return Finding("memory", says, "warning")
    return Finding("memory", says)


def duration(flow: Workflow, images: Images, paces: dict[str, Pace]) -> Finding:
    """How long the stages of the study will take here, all of it to be done."""
    study, cores, shards = flow.study, n_cores(), flow.study.compute.shards
    n, n_models, beside = images.n, len(paces), _beside(study, len(paces))
    tried = {name: flow.models[name] for name in paces}
    training = {name: model.train for name, model in tried.items() if model.train}
    train_s = sum(  # a step takes as long as three forward passes
        3 * t.epochs * study.dataset.n_train * paces[name].evaluate_s
        for name, t in training.items()
    )
    side, selection = study.squares.side, study.selection
    mask_s = sum(selection_s(m.geometry.size, side, selection) for m in tried.values())
    decode_s = sum(images.decode_s.values()) / flow.prepare_threads(cores)
    times = n_attributed(flow)
    stages = {  # jobs, seconds of work for all images, jobs side by side
        "train": (len(training), train_s, cores),
        "prepare": (shards * len(images.decode_s), n * decode_s, cores),
        "attribute": (
            shards * n_models * times,
            n * times * sum(p.attribute_s for p in paces.values()),
            beside,
        ),
        "mask": (n_models, n * mask_s, cores),
        "evaluate": (
            n_models,
            n * (n_passes(flow) + n_points(flow)) * sum(p.evaluate_s for p in paces.values()),
            beside,
        ),
        **beyond(flow, n, paces, beside),
    }
    takes = {
        stage: (work + n_jobs * _JOB_S) / min(n_jobs, lanes)
        for stage, (n_jobs, work, lanes) in stages.items()
        if n_jobs
    }
    together = f"{beside} networks side by side, none slowing another"
    lines = [
        f"about {_time(sum(takes.values()))} on this machine",
        *(f"{stage:<10} {_time(seconds):>8}" for stage, seconds in takes.items()),
        f"with {cores} cores, compute.threads {study.compute.threads}, and "
        f"{together if beside > 1 else 'one network at a time'}",
    ]
    if study.attribution.n_steps == "auto":
        lines.append(f"with {AUTO_STEPS} steps an image; n_steps is auto")
    if n_models < len(flow.models):
        lines.append(f"of {', '.join(paces)} only")
    return Finding("time", "\n".join(lines))


def _beside(study: Study, n_models: int) -> int:
    """Networks that run side by side: all cores' worth of them, or one on a GPU."""
    if pick_device(study.compute.device).type == "cuda":
        return 1
    lanes = max(1, n_cores() // study.compute.threads)
    return min(lanes, n_models * study.compute.shards)


def _free_on(device: torch.device) -> int:
    """Bytes free on a GPU, those that PyTorch keeps for this process included."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def _size(n_bytes: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.3g} {unit}"
    return f"{n_bytes / 1e3:.3g} kB"


def _time(seconds: float) -> str:
    for unit, scale in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.1 else f"{seconds:.2g} s"
