"""Step: a model's predictions on the original and the masked images → one record an image.

All conditions of a model in one process: to import PyTorch and load a network takes longer than to
evaluate some hundred small images. Each has a file of its own, so that a new p, fill or control
evaluates itself only. Snakemake removes the outputs of a job before it runs and when
it fails, so they have a second name, in `KEPT`, by which the next process finds what is finished.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from igmask import arrays
from igmask.asked.masking import MODES
from igmask.asked.own import check_names
from igmask.asked.recipes import QUANTITIES, Condition, Evaluate, stamp
from igmask.asked.settings import Model, percent
from igmask.devices import keep_freed_memory, take_device
from igmask.errors import InputError, refuse
from igmask.inputs import models
from igmask.inputs.classes import NO_LABEL
from igmask.inputs.data import check_classes, check_labels
from igmask.inputs.files import located, with_located
from igmask.inputs.networks import library_of
from igmask.inputs.own import named
from igmask.plain import FILLS, as_large, common_fill, pixels_of_squares, unpack
from igmask.progress import progress, say
from igmask.steps.masked.controls import CONTROLS, Batch, Dataset, control_of, has_ranking
from igmask.steps.masked.metrics import METRICS, OF_MASKS
from igmask.steps.masked.shown import Network, Shown
from igmask.steps.masked.sweep import sweep

_N_SAMPLED = 8


def evaluate(
    image_paths: list[Path],
    folder: Path,
    recipe: Evaluate,
    *,
    masks: Sequence[Path] = (),
    scores: Sequence[Path] = (),
    randomised: Sequence[Path] = (),
    batch_size: int | None = None,
    device: str = "auto",
) -> None:
    """Write what the model says of each image under each mask: a file a condition, in the folder.

    original.parquet, then keep-50-black.parquet and its like for each of the masks, modes and
    fills, and keep-50-black-random.parquet of each control. Those that the folder `KEPT` has,
    whole and made of the same things with the same settings, are not evaluated again; other
    conditions' files stay there alone.

    Columns: name, label, draw (of a control that is drawn several times), predicted, correct,
    probability_predicted, probability_label and probability_original (of the predicted class, of
    the label, and of the class predicted for the original image), entropy and margin of the
    probabilities; area_kept, the fraction of pixels that stay, changed, the fraction that is
    visibly other than before, boundary and components of what is kept. The label of an image that
    has none is the class predicted for the original. An image of which a control has no ranking is
    left out of its records. The settings beside them also say what the model predicts of an image
    that is all masked, `blank`.

    If there are scores, curves too, arrays in the folder `curves` beside it: see `sweep`.

    image_paths: the shards, in order
    recipe:      mode `keep` masks everything outside the selection, `drop` masks the selection
    masks:       of `mask`, a file a p
    scores:      of `attribute`, all shards, which controls need
    randomised:  the same by the randomised network, for the control of that name
    batch_size:  images a forward pass; see `even_size` if None
    raises       InputError if masks and images do not belong together, naming images that are
                 damaged or whose outputs are NaN, or for an unknown mode, fill or control
    """
    _check_names(recipe)
    images = arrays.Shards(image_paths)
    if images.records.empty:
        raise InputError("no image of the dataset is usable, so there is nothing to evaluate")
    where = take_device(device)
    recipe = replace(recipe, model=models.complete(recipe.model))
    network = _network(with_located(recipe, image_paths[0]).model, where)
    dataset = _dataset(recipe, images, masks, scores, randomised)
    conditions = _conditions(recipe, network, images, masks, dataset)
    size = batch_size or even_size(len(images.records))
    for one in conditions:
        name = one.condition.name

        def write(kept: Path, one: _Asked = one) -> None:
            found = _evaluated(one, network, images, dataset, size)
            arrays.write_records(kept, found, one.made_by)

        _keep(folder, f"{name}.parquet", one.made_by, write, label=f"evaluate {name}")
    _clear(folder, {f"{one.condition.name}.parquet" for one in conditions})
    if dataset is not None and not recipe.masks_of:
        _curves(recipe, network, images, dataset, conditions[0].made_by, folder, size)


def even_size(n_images: int, most: int = 64) -> int:
    """Return the size of batches of which as few rows as may be fill up the last one.

    n_images: of all shards, since what a network says may depend on the size in its last digits
    """
    return -(-n_images // -(-n_images // most))


def _network(model: Model, device: torch.device) -> Network:
    """The network, in a process that keeps freed memory where that is faster."""
    if device.type == "cpu":
        keep_freed_memory()
    return Network(models.load(model, device=device))


def _check_names(recipe: Evaluate) -> None:
    """Raise InputError for an unknown mode, fill or control."""
    check_names("mode", recipe.modes, MODES, own=False)
    check_names("fill", recipe.fills, FILLS)
    check_names("control", recipe.controls, CONTROLS)


def _read_by(mask: str, dataset: Dataset) -> dict[str, str]:
    """What stands for the scores that a ranking is made of."""
    read = {"scores": dataset.parts.digest}
    if mask == "randomised" and dataset.randomised is not None:
        read["randomised"] = dataset.randomised.digest
    return read


def _curves(
    recipe: Evaluate,
    network: Network,
    images: arrays.Shards,
    dataset: Dataset,
    original: dict[str, Any],
    folder: Path,
    batch_size: int,
) -> None:
    """Write the curves beside the folder of the records: an array each, a row an image."""
    parts, place = dataset.parts, folder.with_name("curves")
    common = {key: original[key] for key in ("n_classes", "outputs", "class_names")}
    names = set()
    for curve in recipe.curves():
        made_by = parts.settings | common | stamp("evaluate", parts.settings)
        made_by |= recipe.of_curve(curve)
        made_by["read"] = original["read"] | _read_by(curve.mask, dataset)
        if code := recipe.model.files(curve.fill, curve.mask).get("code"):
            made_by["read"]["code"] = arrays.digest_of_files(code)
        label = f"curve {curve.name}"

        def write(kept: Path, made_by: dict[str, Any] = made_by, label: str = label) -> None:
            shape = (recipe.points, len(QUANTITIES))
            with arrays.writing(kept, np.float32, shape) as writer:
                for rows in sweep(label, network, images, dataset, made_by, batch_size):
                    writer.append(rows)
            records = parts.records[["name", "label", "position", "predicted"]]
            records = records.assign(crc32=writer.checksums)
            arrays.write_records(arrays.records_of(kept), records, made_by)

        names |= _keep(place, f"{curve.name}.npy", made_by, write, label=label)
    _clear(place, names)


def _keep(
    folder: Path,
    name: str,
    made_by: dict[str, Any],
    write: Callable[[Path], None],
    *,
    label: str,
) -> set[str]:
    """Write a file, and what is beside it, to `KEPT`, unless it is there; give it its second name.

    Returns the names.
    """
    kept = folder / arrays.KEPT / name
    records = arrays.records_of(kept)
    if _is_made(records, made_by):
        say(f"{label}: kept from before")
    else:
        write(kept)
    for path in dict.fromkeys((kept, records)):
        _place(path, folder / path.name)
    return {kept.name, records.name}


def _clear(folder: Path, names: set[str]) -> None:
    """Take the second name of what the study has no more; what has no other name stays."""
    for kept in (folder / arrays.KEPT).glob("*"):
        if kept.name not in names:
            (folder / kept.name).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Asked:
    """A condition, the settings that its file will carry, and the images' records and masks."""

    condition: Condition
    records: pd.DataFrame
    made_by: dict[str, Any]
    masks: arrays.Shards | None = None


def _dataset(
    recipe: Evaluate,
    images: arrays.Shards,
    masks: Sequence[Path],
    scores: Sequence[Path],
    randomised: Sequence[Path],
) -> Dataset | None:
    """What controls ask, if there are any."""
    if not scores:
        if recipe.controls and masks:
            raise InputError(f"the controls {', '.join(recipe.controls)} need the scores, too")
        return None
    parts, *others = (
        arrays.Shards(_located(paths, images)) for paths in (scores, randomised) if paths
    )
    for one in (parts, *others):
        _check_images(one, images)
    return Dataset(parts, recipe.score, recipe.seed, *others)


def _located(paths: Sequence[Path], images: arrays.Shards) -> list[Path]:
    """Where files are, if the job's folder is another than that of the words."""
    return [Path(located(str(path), images.paths[0])) for path in paths]


def _conditions(
    recipe: Evaluate,
    network: Network,
    images: arrays.Shards,
    masks: Sequence[Path],
    dataset: Dataset | None,
) -> list[_Asked]:
    """The original images, and every mask in every mode and with every fill, in this order."""
    model, records = recipe.model, images.records
    n_classes = models.n_classes(network.whole, model)
    check_classes(images.settings, n_classes)
    check_labels(records, images.settings, n_classes)
    read = {"images": images.digest} | models.digests(model.files())
    common = images.settings | {
        "n_classes": n_classes,
        "outputs": _sample(network, images),
        "class_names": library_of(model).class_names(model) or images.settings["classes"],
    }
    size = images.settings["geometry"]["size"]
    blanks = {fill: _blank(network, fill, size) for fill in recipe.fills}
    applied: dict[float, arrays.Shards] = {}
    for path in _located(masks, images):
        of_path = read_masks(path, images)
        if (p := of_path.settings["p"]) in applied:
            raise InputError(f"{path}: masks of p = {percent(p)} are there twice")
        applied[p] = of_path
    found = []
    for condition in recipe.conditions(applied):
        if condition.p is None:
            made_by = common | stamp("evaluate", common) | recipe.of_condition(condition)
            found.append(_Asked(condition, records, made_by | {"read": read}))
            continue
        of_masks = applied[condition.p]
        made_by = of_masks.settings | common | stamp("evaluate", of_masks.settings)
        made_by |= recipe.of_condition(condition) | {"blank": blanks[str(condition.fill)]}
        made_by["read"] = read | {"masks": of_masks.digest}
        # Alone: weights may be large, and are read once.
        if code := model.files(str(condition.fill), condition.mask).get("code"):
            made_by["read"]["code"] = arrays.digest_of_files(code)
        if condition.is_control and dataset is not None:
            made_by["read"] |= _read_by(condition.mask, dataset)
        own = of_masks.records
        if recipe.masks_of:
            if dataset is None:
                raise InputError(f"masks of {recipe.masks_of} need the network's own scores, too")
            own = dataset.parts.records
            made_by["read"]["scores"] = dataset.parts.digest
        selected = records.assign(predicted=own["predicted"])
        found.append(_Asked(condition, selected, made_by, of_masks))
    return found


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
    asked: _Asked,
    network: Network,
    images: arrays.Shards,
    dataset: Dataset | None,
    batch_size: int,
) -> pd.DataFrame:
    """The records of a condition, the draws of an image one after the other."""
    batches, n_batches = images.batches(batch_size, full=True), images.n_batches(batch_size)
    label = f"evaluate {asked.condition.name}"
    found: list[pd.DataFrame] = []
    for batch in progress(batches, total=n_batches, unit="batches", label=label):
        answers = list(_answers(asked, network, dataset, batch))
        found.append(pd.concat(answers).sort_index(kind="stable"))
    return pd.concat(found, ignore_index=True)


def _answers(
    asked: _Asked, network: Network, dataset: Dataset | None, batch: arrays.Batch
) -> Iterator[pd.DataFrame]:
    """The records of a batch, those of each draw."""
    records, made_by = asked.records.iloc[batch.rows], asked.made_by
    own = records[["name", "label"]].reset_index(drop=True).assign(draw=0)
    live = np.arange(len(own)) < batch.n_live
    if asked.masks is None:
        said = _predict(network.whole, models.pixels(batch.values, network.device), records)
        yield own.assign(**said, area_kept=1.0, changed=0.0, boundary=0, components=1)[live]
        return
    size, side = batch.values.shape[1], made_by["side"]
    shown = Shown(network, batch.values, records["position"].to_numpy(), made_by)
    selection = unpack(asked.masks.read(batch.rows), tuple(made_by["grid"]))
    sizes = pixels_of_squares(selection.shape[1:], size, size, side)
    for draw in range(made_by.get("draws", 1)):
        mask, answered = selection, live
        if asked.condition.is_control and dataset is not None:
            scores = control_of(asked.condition.mask).scores(
                dataset, Batch(batch.values, batch.rows, draw)
            )
            mask = as_large(scores, selection, sizes)
            answered = live & (has_ranking(scores) | ~selection.any(axis=(1, 2)))
        kept = ~mask if made_by["mode"] == "drop" else mask
        inputs, changed = shown.input(kept)
        said = _predict(network.classifier, inputs, records)
        of_mask = {name: of(kept, sizes.reshape(kept.shape[1:])) for name, of in OF_MASKS.items()}
        yield own.assign(draw=draw, **said, **of_mask, changed=changed)[answered]


def _sample(network: Network, images: arrays.Shards) -> str:
    """Return what stands for what the network says of some images.

    It changes with all that settings and files do not tell: weights from a URL, code that a module
    imports, versions of libraries.
    """
    few = next(images.batches(_N_SAMPLED)).values
    with torch.no_grad():
        outputs = network.whole(models.pixels(few, network.device)).cpu()
    return hashlib.sha256(outputs.numpy().tobytes()).hexdigest()


def _blank(network: Network, fill: str, size: int) -> dict[str, Any] | None:
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
    _check_images(masks, images)
    return masks


def _check_images(of_them: arrays.Shards, images: arrays.Shards) -> None:
    """Raise InputError if masks or scores are of other images."""
    if (
        not of_them.records["name"].equals(images.records["name"])
        or of_them.settings["geometry"] != images.settings["geometry"]
    ):
        what = "masks" if "p" in of_them.settings else "scores"
        raise InputError(
            f"{of_them.paths[0]}: these {what} belong to other images; `igmask verify --remove` "
            "clears away what does not fit the configuration, and the next run makes it again"
        )
