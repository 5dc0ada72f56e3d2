"""Step: a model's predictions on the original and the masked images → one record an image.

All conditions of a model in one process: to import PyTorch and load a network takes longer than to
evaluate some hundred small images. Snakemake removes the outputs of a job before it runs and when
it fails, so they have a second name, in `KEPT`, by which the next process finds what is finished.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from igmask import arrays
from igmask.devices import take_device
from igmask.errors import InputError, refuse
from igmask.inputs import models
from igmask.inputs.classes import check_classes, check_labels
from igmask.kernels import occluded_input
from igmask.plain import FILLS, area, common_fill, fill_values, pack, unpack
from igmask.progress import progress, say
from igmask.steps.attribute import full_batch
from igmask.steps.controls import CONTROLS
from igmask.study.config import KEPT, Condition, Model, percent, settings, stamp

MODES = ("keep", "drop")

_N_SAMPLED = 8

# What the network says of an image under a mask.
_RECORD = np.dtype(
    [
        ("predicted", "int64"),
        ("correct", "bool"),
        ("probability_predicted", "float32"),
        ("probability_label", "float32"),
        ("probability_original", "float32"),
        ("area_kept", "float64"),
    ]
)


def evaluate(
    image_paths: list[Path],
    folder: Path,
    *,
    model: Model,
    name: str | None = None,
    masks: tuple[Path, ...] = (),
    modes: tuple[str, ...] = MODES,
    fills: tuple[str, ...] = ("black",),
    controls: tuple[str, ...] = tuple(CONTROLS),
    seed: int = 0,
    batch_size: int | None = None,
    device: str = "auto",
) -> None:
    """Write what the model says of each image under each mask: a file a condition, in the folder.

    original.parquet, then keep-50-black.parquet and its like for each of the masks, modes and
    fills. Those that the folder `KEPT` has, whole and made of the same things with the same
    settings, are not evaluated again.

    Columns: name, label, mask (`none` for the original image, `selection`, or a control's name),
    predicted, correct, probability_predicted, probability_label and probability_original (of the
    predicted class, of the label, and of the class predicted for the original image), and
    area_kept, the fraction of pixels left as they were. The settings beside them also say what
    the model predicts of an image that is all masked, `blank`.

    image_paths: the shards, in order
    name:        what the tables call the model; its source if None
    batch_size:  images a forward pass; 64 if None
    masks:       of `write_masks`, a file a p
    seed:        of the controls
    modes:       `keep` masks everything outside the selection, `drop` masks the selection
    raises       InputError if masks and images do not belong together, naming images that are
                 damaged or whose outputs are NaN, or for an unknown mode, fill or control
    """
    for kind, asked, known in (
        ("mode", modes, MODES), ("fill", fills, FILLS), ("control", controls, CONTROLS)
    ):  # fmt: skip
        if unknown := sorted(set(asked) - set(known)):
            raise InputError(f"unknown {kind} {unknown[0]!r}; choose from {', '.join(known)}")
    images = arrays.Shards(image_paths)
    records = images.records
    if records.empty:
        raise InputError("no image of the dataset is usable, so there is nothing to evaluate")
    model = models.complete(model)
    where = take_device(device)
    network = models.load(model, device=where)
    n_classes = models.n_classes(network, model)
    check_classes(images.settings, n_classes)
    check_labels(records, n_classes)
    made_by = images.settings | stamp("evaluate", images.settings)
    made_by |= {
        "name": name or model.source,
        "model": settings(model),
        "n_classes": n_classes,
        "outputs": _sample(network, images, where),
        "read": {"images": arrays.digest(records)} | models.digests(model),
    }
    made_by["class_names"] = models.class_names(model) or made_by["classes"]
    conditions = [_Condition("original", records, made_by | {"mode": "original"})]
    made_by["controls"] = list(controls)
    if controls:
        made_by["control_seed"] = seed
    blanks = {fill: _blank(network, fill, made_by["geometry"]["size"], where) for fill in fills}
    conditions += _masked(masks, modes, blanks, images, made_by)
    for condition in conditions:
        kept = folder / KEPT / f"{condition.name}.parquet"
        if _is_made(kept, condition.made_by):
            say(f"evaluate {condition.name}: kept from before")
        else:
            found = _evaluated(condition, network, images, batch_size or 64, where)
            arrays.write_records(kept, found, condition.made_by)
        _place(kept, folder / kept.name)


@dataclass(frozen=True)
class _Condition:
    """What a file of records is of: the images, the settings that it will carry, the masks."""

    name: str  # of the file
    records: pd.DataFrame
    made_by: dict[str, Any]
    masks: arrays.Shards | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the masks under which each image is shown."""
        return ("none",) if self.masks is None else ("selection", *self.made_by["controls"])


def _masked(
    masks: tuple[Path, ...],
    modes: tuple[str, ...],
    blanks: dict[str, dict[str, Any] | None],
    images: arrays.Shards,
    made_by: dict[str, Any],
) -> list[_Condition]:
    """The conditions of masks, in their order; `made_by` are the settings that all share.

    blanks: of each fill
    """
    conditions: dict[str, _Condition] = {}
    for path in masks:
        applied = read_masks(path, images)
        common = applied.settings | made_by | stamp("evaluate", applied.settings)
        selected = images.records.assign(predicted=applied.records["predicted"])
        p = applied.settings["p"]
        read = made_by["read"] | {"masks": arrays.digest(applied.records)}
        for mode, fill in product(dict.fromkeys(modes), blanks):
            condition = Condition(mode, p, fill)
            if condition.name in conditions:
                raise InputError(f"{path}: masks of p = {percent(p)} are there twice")
            own = common | condition._asdict() | {"blank": blanks[fill], "read": read}
            conditions[condition.name] = _Condition(condition.name, selected, own, applied)
    return list(conditions.values())


def _place(kept: Path, output: Path) -> None:
    """Give a file its second name, or a copy where that cannot be: another user's file, say."""
    with arrays.replacing(output) as temporary:
        try:
            os.utime(kept)  # later than masks that were made again to the same
            temporary.hardlink_to(kept)
        except OSError:
            temporary.unlink(missing_ok=True)
            shutil.copyfile(kept, temporary)


def _is_made(path: Path, made_by: dict[str, Any]) -> bool:
    try:
        return arrays.read_records(path)[1] == json.loads(json.dumps(made_by))
    except InputError:  # there is none, or it is damaged
        return False


def _evaluated(
    condition: _Condition,
    network: nn.Module,
    images: arrays.Shards,
    batch_size: int,
    device: torch.device,
) -> pd.DataFrame:
    """The records of a condition, the masks of an image one after the other."""
    records, made_by, kinds = condition.records, condition.made_by, condition.kinds
    normalize, classifier = network.children()  # as `models.load` puts them together
    mean, std = (value.flatten() for value in normalize.buffers())
    n_batches = images.n_batches(batch_size) * len(kinds)
    batches = (
        (*batch, i)
        for batch in _batches(images, batch_size, device, made_by.get("fill"), mean)
        for i in range(len(kinds))
    )
    label = f"evaluate {condition.name}"
    found = np.zeros((len(records), len(kinds)), dtype=_RECORD)
    told = progress(batches, total=n_batches, unit="batches", label=label)
    for rows, n_live, shown, fill, i in told:
        batch = records.iloc[rows]
        if condition.masks is None or fill is None:
            record = _predict(network, models.pixels(shown, device), batch)
            record["area_kept"] = 1
        else:
            mask = unpack(condition.masks.read(rows), tuple(made_by["grid"]))
            if kinds[i] in CONTROLS:
                mask = CONTROLS[kinds[i]].like(
                    mask,
                    batch["position"].to_numpy(),
                    *shown.shape[1:3],
                    side=made_by["side"],
                    seed=made_by["control_seed"],
                )
            inputs = occluded_input(
                shown,
                torch.from_numpy(pack(mask)).to(device),
                side=made_by["side"],
                drop=made_by["mode"] == "drop",
                fill=fill,
                mean=mean,
                std=std,
                memory_format=torch.channels_last,  # that of the bytes
            )
            record = _predict(classifier, inputs, batch)
            kept = mask if made_by["mode"] == "keep" else ~mask
            record["area_kept"] = area(kept, *shown.shape[1:3], side=made_by["side"])
        found[rows[:n_live], i] = record[:n_live]
    shown_images = records[["name", "label"]].loc[records.index.repeat(len(kinds))]
    results = shown_images.reset_index(drop=True).assign(mask=np.tile(kinds, len(records)))
    return results.join(pd.DataFrame(found.ravel()))


def _sample(network: nn.Module, images: arrays.Shards, device: torch.device) -> str:
    """Return what stands for what the network says of some images.

    It changes with all that settings and files do not tell: weights from a URL, code that a module
    imports, versions of libraries.
    """
    _, few = next(images.batches(_N_SAMPLED))
    with torch.no_grad():
        outputs = network(models.pixels(few, device)).cpu()
    return hashlib.sha256(outputs.numpy().tobytes()).hexdigest()


def _blank(network: nn.Module, fill: str, size: int, device: torch.device) -> dict[str, Any] | None:
    """Return the class that the network predicts of an image all masked, and its probability.

    None where there is no such image, the fill being each image's own, or no answer to it.
    """
    normalize, _ = network.children()
    mean, _ = normalize.buffers()
    colour = common_fill(fill, 3, mean.flatten().numpy(force=True))
    if colour is None:
        return None
    blank = torch.tensor(colour, dtype=torch.float32).expand(1, size, size, 3)
    with torch.no_grad():
        outputs = network(blank.permute(0, 3, 1, 2).contiguous().to(device))
        probability, predicted = outputs.softmax(dim=1).max(dim=1)
    known = bool(probability.isfinite())
    return {"class": int(predicted), "probability": float(probability)} if known else None


def _predict(network: nn.Module, inputs: Tensor, batch: pd.DataFrame) -> np.ndarray:
    with torch.no_grad():
        probabilities = network(inputs).softmax(dim=1).cpu()
    refuse("outputs for", batch["name"], probabilities.isnan().any(dim=1).tolist())
    predicted = probabilities.argmax(dim=1).numpy()
    label = batch["label"].to_numpy()
    original = batch["predicted"].to_numpy() if "predicted" in batch else predicted
    rows = np.arange(len(batch))
    record = np.zeros(len(batch), dtype=_RECORD)
    record["predicted"] = predicted
    record["correct"] = predicted == label
    for name, classes in (("predicted", predicted), ("label", label), ("original", original)):
        record[f"probability_{name}"] = probabilities.numpy()[rows, classes]
    return record


def _batches(
    images: arrays.Shards, size: int, device: torch.device, fill: str | None, mean: Tensor
) -> Iterator[tuple[np.ndarray, int, Tensor, Tensor | None]]:
    """Yield (rows of all images, how many are not padding, the images in uint8, what fills them).

    Shard by shard; with no `fill` the last is None.
    """
    colour = mean.numpy(force=True)
    for first, found in images.batches(size):
        rows = full_batch(0, len(found), size)
        shown = found[rows]
        filled = None if fill is None else torch.from_numpy(fill_values(shown, fill, colour))
        on_device = torch.from_numpy(shown).to(device)
        yield first + rows, len(found), on_device, None if filled is None else filled.to(device)


def read_masks(path: Path, images: arrays.Shards) -> arrays.Shards:
    """Return the masks in a file, or raise InputError if they are of other images."""
    masks = arrays.Shards([path])
    if (
        not masks.records["name"].equals(images.records["name"])
        or masks.settings["geometry"] != images.settings["geometry"]
    ):
        raise InputError(
            f"{path}: these masks belong to other images; `igmask verify --remove` clears away "
            "what does not fit the configuration, and the next run makes it again"
        )
    return masks
