"""Step: a model's predictions on the original or the masked images → one record an image."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from igmask import arrays, models
from igmask.attribute import check_labels, full_batch
from igmask.config import Model, settings
from igmask.devices import take_device
from igmask.errors import InputError, refuse
from igmask.kernels import fill_colours, occluded_input
from igmask.masks import area, pack, random_like, unpack
from igmask.progress import progress

MODES = ("keep", "drop")
CONTROLS = ("random",)

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
    output: Path,
    *,
    model: Model,
    name: str | None = None,
    masks: Path | None = None,
    mode: str = "keep",
    fill: str = "black",
    controls: tuple[str, ...] = CONTROLS,
    seed: int = 0,
    batch_size: int | None = None,
    device: str = "auto",
) -> None:
    """Write one record for each image and mask: what the model says of the masked image.

    Columns: name, label, mask (`none` for the original image, `selection`, or a control's name),
    predicted, correct, probability_predicted, probability_label and probability_original (of the
    predicted class, of the label, and of the class predicted for the original image), and
    area_kept, the fraction of pixels left as they were.

    image_paths: the shards, in order
    name:        what the tables call the model; its source if None
    batch_size:  images a forward pass; 64 if None
    masks:       of `write_masks`; None evaluates the original images
    seed:        of the controls
    mode:        `keep` masks everything outside the selection, `drop` masks the selection
    raises       InputError if masks and images do not belong together, naming images whose outputs
                 are NaN, or for an unknown mode or control
    """
    if mode not in MODES or not set(controls) <= set(CONTROLS):
        raise InputError(f"unknown mode {mode!r} or control in {controls}")
    records, made_by = arrays.read_shards(image_paths)
    if records.empty:
        raise InputError("no image of the dataset is usable, so there is nothing to evaluate")
    model = models.complete(model)
    where = take_device(device)
    network = models.load(model, device=where)
    n_classes = models.n_classes(network, model)
    check_labels(records, n_classes)
    normalize, classifier = network.children()  # as `models.load` puts them together
    mean, std = (value.flatten() for value in normalize.buffers())

    condition: dict[str, Any] = {"mode": "original"}
    read = {"images": arrays.digest(records)} | models.weights_digest(model)
    kinds: tuple[str, ...] = ("none",)
    if masks is not None:
        masked, made_by_mask = read_masks(masks, records, made_by)
        records = records.assign(predicted=masked["predicted"])
        made_by |= made_by_mask
        read["masks"] = arrays.digest(masked)
        condition = {"mode": mode, "fill": fill, "controls": list(controls)}
        if controls:
            condition["control_seed"] = seed
        kinds = ("selection", *controls)
    made_by |= condition | {"step": "evaluate", "name": name or model.source, "read": read}
    made_by |= {"model": settings(model), "n_classes": n_classes}
    made_by["class_names"] = models.class_names(model) or made_by["classes"]
    batch_size = batch_size or 64
    n_batches = arrays.n_batches(image_paths, batch_size) * len(kinds)
    batches = (
        (rows, n_live, shown, i)
        for rows, n_live, shown in _batches(image_paths, batch_size, where)
        for i in range(len(kinds))
    )
    label = f"evaluate {made_by['mode']} {made_by.get('p', '')}".strip()
    found = np.zeros((len(records), len(kinds)), dtype=_RECORD)
    for rows, n_live, shown, i in progress(batches, total=n_batches, unit="batches", label=label):
        batch = records.iloc[rows]
        if masks is None:
            record = _predict(network, models.pixels(shown, where), batch)
            record["area_kept"] = 1
        else:
            mask = unpack(arrays.read_rows(masks, rows), tuple(made_by["grid"]))
            if kinds[i] == "random":
                mask = random_like(mask, batch["position"].to_numpy(), seed=seed)
            inputs = occluded_input(
                shown,
                torch.from_numpy(pack(mask)).to(where),
                side=made_by["side"],
                drop=mode == "drop",
                fill=fill_colours(shown, fill, mean),
                mean=mean,
                std=std,
                memory_format=torch.channels_last,  # that of the bytes
            )
            record = _predict(classifier, inputs, batch)
            kept = mask if mode == "keep" else ~mask
            record["area_kept"] = area(kept, *shown.shape[1:3], side=made_by["side"])
        found[rows[:n_live], i] = record[:n_live]
    shown_images = records[["name", "label"]].loc[records.index.repeat(len(kinds))]
    results = shown_images.reset_index(drop=True).assign(mask=np.tile(kinds, len(records)))
    results = results.join(pd.DataFrame(found.ravel()))
    arrays.write_records(output, results, made_by)


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
    shards: list[Path], size: int, device: torch.device
) -> Iterator[tuple[np.ndarray, int, Tensor]]:
    """Yield (rows of all images, how many are not padding, the images in uint8), shard by shard."""
    for first, images in arrays.batches(shards, size):
        rows = full_batch(0, len(images), size)
        yield first + rows, len(images), torch.from_numpy(images[rows]).to(device)


def read_masks(
    path: Path, images: pd.DataFrame, made_by: dict[str, Any]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the records and settings of masks.

    images, made_by: the records of the images and their settings
    raises           InputError if the masks are of other images
    """
    _, records, made_by_mask = arrays.read_shard(path)
    if (
        not records["name"].equals(images["name"])
        or made_by_mask["geometry"] != made_by["geometry"]
    ):
        raise InputError(
            f"{path}: these masks belong to other images; `igmask verify --remove` clears away "
            "what does not fit the configuration, and the next run makes it again"
        )
    return records, made_by_mask
