"""`igmask check`: what would stop a study, and how long it takes, said before hours of work.

A function a finding. Nothing is written, and no weights are fetched: a network whose weights are
not at hand is tried with random ones.
"""

import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import torch
from torch import nn

from igmask.asked import config
from igmask.asked.fields import plain
from igmask.asked.settings import BASELINES, Dataset, Geometry, Model, Study
from igmask.devices import pick_device
from igmask.errors import InputError, in_words
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
from igmask.plan import Workflow
from igmask.tools import estimate
from igmask.tools.estimate import Left, as_size, as_time, n_passes, n_points
from igmask.tools.trial import Pace, are_to_come, pace, ready, threads

_N_TIMED = 8  # images of a trial of a network's pace


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
    left = Left(flow)
    if done := left.in_words():
        yield Finding("done", done)
    if images.n:
        yield Finding("disk", *estimate.disk(flow, left, images.n))
    if paces:
        yield Finding("memory", *estimate.memory(study, paces))
    if paces and images.n:
        says = estimate.duration(flow, left, images.n, images.decode_s.values(), paces)
        yield Finding("time", says)


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
        return Finding(name, f"weights: {path}, {as_size(path.stat().st_size)}")
    if url is None:
        return Finding(name, f"weights: there is no file {str(path)!r}", "error")
    try:
        with urlopen(Request(url, method="HEAD"), timeout=10) as answer:
            size = as_size(int(answer.headers.get("Content-Length", 0)))
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
        yield Finding(name, in_words(error), "error")
        return
    yield Finding(
        name,
        f"{n_classes:,} classes; an attribution takes {as_time(found.attribute_s)}, a forward pass "
        f"{as_time(found.evaluate_s)} an image",
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
