"""Step: a model's predictions on the original and the masked images → one record an image.

All conditions of a model in one process: to import PyTorch and load a network takes longer than to
evaluate some hundred small images. Snakemake removes the outputs of a job before it runs and when
it fails, so they have a second name, in `KEPT`, by which the next process finds what is finished.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from igmask.inputs.classes import NO_LABEL
from igmask.inputs.data import check_classes, check_labels
from igmask.inputs.files import located, with_located
from igmask.inputs.networks import library_of
from igmask.inputs.own import named
from igmask.kernels import occluded_input
from igmask.plain import FILLS, area, common_fill, fill_values, pack, unpack
from igmask.progress import progress, say
from igmask.steps.controls import CONTROLS, control_of
from igmask.steps.metrics import METRICS
from igmask.study.recipes import Condition, Evaluate, stamp
from igmask.study.settings import is_own, percent

MODES = ("keep", "drop")

_N_SAMPLED = 8


def evaluate(
    image_paths: list[Path],
    folder: Path,
    recipe: Evaluate,
    *,
    masks: Sequence[Path] = (),
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
    area_kept, the fraction of pixels left as they were. The label of an image that has none is the
    class predicted for the original. The settings beside them also say what the model predicts of
    an image that is all masked, `blank`.

    image_paths: the shards, in order
    recipe:      mode `keep` masks everything outside the selection, `drop` masks the selection
    masks:       of `mask`, a file a p
    batch_size:  images a forward pass; 64 if None
    raises       InputError if masks and images do not belong together, naming images that are
                 damaged or whose outputs are NaN, or for an unknown mode, fill or control
    """
    for kind, asked, known in (
        ("mode", recipe.modes, MODES),
        ("fill", recipe.fills, FILLS),
        ("control", recipe.controls, CONTROLS),
    ):
        if unknown := sorted(name for name in {*asked} - {*known} if not is_own(name)):
            raise InputError(f"unknown {kind} {unknown[0]!r}; choose from {', '.join(known)}")
    images = arrays.Shards(image_paths)
    if images.records.empty:
        raise InputError("no image of the dataset is usable, so there is nothing to evaluate")
    where = take_device(device)
    recipe = replace(recipe, model=models.complete(recipe.model))
    model = with_located(recipe, image_paths[0]).model
    network = _Network(models.load(model, device=where))
    read = {"images": arrays.digest(images.records)} | models.digests(model.files())
    code = model.files(*recipe.own).get("code")  # alone: weights may be large, and are read once
    with_own = read | ({"code": arrays.digest_of_files(code)} if code else {})
    for condition in _conditions(recipe, network, images, masks, read, with_own):
        kept = folder / arrays.KEPT / f"{condition.name}.parquet"
        if _is_made(kept, condition.made_by):
            say(f"evaluate {condition.name}: kept from before")
        else:
            found = _evaluated(condition, network, images, batch_size or 64)
            arrays.write_records(kept, found, condition.made_by)
        _place(kept, folder / kept.name)


class _Network:
    """A network as `models.load` puts it together: a normalisation, then the classifier."""

    def __init__(self, whole: nn.Sequential) -> None:
        normalize, self.classifier = whole.children()
        self.mean, self.std = (value.flatten() for value in normalize.buffers())
        self.whole, self.device = whole, self.mean.device


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


def _conditions(
    recipe: Evaluate,
    network: _Network,
    images: arrays.Shards,
    masks: Sequence[Path],
    read: dict[str, str],
    with_own: dict[str, str],
) -> list[_Condition]:
    """The original images, and every mask in every mode and with every fill, in this order.

    read, with_own: what stands for the content of the files that the original images are made of,
                    and those under masks, of fills and controls of the user's own, too
    """
    model, records = recipe.model, images.records
    n_classes = models.n_classes(network.whole, model)
    check_classes(images.settings, n_classes)
    check_labels(records, images.settings, n_classes)
    common = images.settings | {
        "n_classes": n_classes,
        "outputs": _sample(network, images),
        "class_names": library_of(model).class_names(model) or images.settings["classes"],
        "read": read,
    }
    original = Condition("original")
    made_by = common | stamp("evaluate", common) | recipe.of_condition(original)
    found = {original.name: _Condition(original.name, records, made_by)}
    size = images.settings["geometry"]["size"]
    blanks = {fill: _blank(network, fill, size) for fill in recipe.fills}
    for path in masks:
        applied = read_masks(Path(located(str(path), images.paths[0])), images)
        of_masks = applied.settings | common | stamp("evaluate", applied.settings)
        of_masks["read"] = with_own | {"masks": arrays.digest(applied.records)}
        selected = records.assign(predicted=applied.records["predicted"])
        for mode, fill in product(dict.fromkeys(recipe.modes), blanks):
            condition = Condition(mode, p := applied.settings["p"], fill)
            if condition.name in found:
                raise InputError(f"{path}: masks of p = {percent(p)} are there twice")
            made_by = of_masks | recipe.of_condition(condition) | {"blank": blanks[fill]}
            found[condition.name] = _Condition(condition.name, selected, made_by, applied)
    return list(found.values())


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
        return not arrays.changed(arrays.read_records(path)[1], made_by)
    except InputError:  # there is none, or it is damaged
        return False


def _evaluated(
    condition: _Condition, network: _Network, images: arrays.Shards, batch_size: int
) -> pd.DataFrame:
    """The records of a condition, the masks of an image one after the other."""
    records, kinds, fill = condition.records, condition.kinds, condition.made_by.get("fill")
    mean, device = network.mean.numpy(force=True), network.device
    batches, n_batches = images.batches(batch_size, full=True), images.n_batches(batch_size)
    label = f"evaluate {condition.name}"
    found: list[pd.DataFrame] = []
    for rows, n_live, shown in progress(batches, total=n_batches, unit="batches", label=label):
        batch, on_device = records.iloc[rows], torch.from_numpy(shown).to(device)
        filled = None
        if fill is not None:
            filled = torch.from_numpy(fill_values(shown, named(fill), mean)).to(device)
        of_kinds = [_answers(network, kind, condition, batch, on_device, filled) for kind in kinds]
        together = pd.concat([answers[:n_live] for answers in of_kinds])
        found.append(together.sort_index(kind="stable"))
    return pd.concat(found, ignore_index=True)


def _answers(
    network: _Network,
    kind: str,
    condition: _Condition,
    batch: pd.DataFrame,
    images: Tensor,
    fill: Tensor | None,
) -> pd.DataFrame:
    """The records of a batch of records under one kind of mask; images are (N, H, W, 3) uint8."""
    made_by, (height, width) = condition.made_by, images.shape[1:3]
    answers = pd.DataFrame({"name": batch["name"], "label": batch["label"], "mask": kind})
    if condition.masks is None or fill is None:
        said = _predict(network.whole, models.pixels(images), batch)
        return answers.assign(**said, area_kept=1.0)
    bits, side = condition.masks.read(batch.index.to_numpy()), made_by["side"]
    mask, drop = unpack(bits, tuple(made_by["grid"])), made_by["mode"] == "drop"
    if kind != "selection":
        like, seed = control_of(kind).like, made_by["control_seed"]
        mask = like(mask, batch["position"].to_numpy(), height, width, side=side, seed=seed)
    inputs = occluded_input(
        images,
        torch.from_numpy(pack(mask)).to(images.device),
        side=side,
        drop=drop,
        fill=fill,
        mean=network.mean,
        std=network.std,
        memory_format=torch.channels_last,  # that of the bytes
    )
    kept = ~mask if drop else mask
    said = _predict(network.classifier, inputs, batch)
    return answers.assign(**said, area_kept=area(kept, height, width, side=side))


def _sample(network: _Network, images: arrays.Shards) -> str:
    """Return what stands for what the network says of some images.

    It changes with all that settings and files do not tell: weights from a URL, code that a module
    imports, versions of libraries.
    """
    few = next(images.batches(_N_SAMPLED)).values
    with torch.no_grad():
        outputs = network.whole(models.pixels(few, network.device)).cpu()
    return hashlib.sha256(outputs.numpy().tobytes()).hexdigest()


def _blank(network: _Network, fill: str, size: int) -> dict[str, Any] | None:
    """Return the class that the network predicts of an image all masked, and its probability.

    None where there is no such image, the fill being each image's own, or no answer to it.
    """
    colour = common_fill(named(fill), 3, network.mean.numpy(force=True))
    if colour is None:
        return None
    blank = torch.tensor(colour, dtype=torch.float32).expand(1, size, size, 3)
    with torch.no_grad():
        outputs = network.whole(blank.permute(0, 3, 1, 2).contiguous().to(network.device))
        probability, predicted = outputs.softmax(dim=1).max(dim=1)
    known = bool(probability.isfinite())
    return {"class": int(predicted), "probability": float(probability)} if known else None


def _predict(network: nn.Module, inputs: Tensor, batch: pd.DataFrame) -> dict[str, np.ndarray]:
    with torch.no_grad():
        probabilities = network(inputs).softmax(dim=1).cpu()
    refuse("outputs for", batch["name"], probabilities.isnan().any(dim=1).tolist())
    original = probabilities.argmax(dim=1)
    if "predicted" in batch:
        original = torch.tensor(batch["predicted"].to_numpy())
    label = torch.tensor(batch["label"].to_numpy())
    label = label.where(label != NO_LABEL, original)
    found = {name: of(probabilities, label, original) for name, of in METRICS.items()}
    return {name: values.numpy() for name, values in ({"label": label} | found).items()}


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
