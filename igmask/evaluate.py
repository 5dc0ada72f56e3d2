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
from igmask.errors import InputError, refuse
from igmask.kernels import fill_colours, occluded_input, pack, unpack
from igmask.masks import area, random_like
from igmask.progress import progress

MODES = ("keep", "drop")
CONTROLS = ("random",)


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
    images, records, made_by = arrays.read_shards(image_paths)
    if records.empty:
        raise InputError("no image of the dataset is usable, so there is nothing to evaluate")
    model = models.complete(model)
    where = models.pick_device(device)
    network = models.load(model, device=where)
    n_classes = models.n_classes(network, model)
    check_labels(records, n_classes)
    normalize, classifier = network.children()  # as `models.load` puts them together
    mean, std = (value.flatten() for value in normalize.buffers())

    condition: dict[str, Any] = {"mode": "original"}
    bits: np.ndarray | None = None
    kinds: tuple[str, ...] = ("none",)
    if masks is not None:
        bits, masked, made_by_mask = _read_masks(masks, records)
        records = records.assign(predicted=masked["predicted"])
        made_by |= made_by_mask
        condition = {"mode": mode, "fill": fill, "controls": list(controls), "seed": seed}
        kinds = ("selection", *controls)
    made_by |= condition | {"step": "evaluate", "name": name or model.source}
    made_by |= {"model": settings(model), "n_classes": n_classes}
    made_by["class_names"] = models.class_names(model) or made_by["classes"]
    batch_size = batch_size or 64
    n_batches = sum(-(-len(shard) // batch_size) for shard in images) * len(kinds)
    batches = (
        (rows, kind, shown) for rows, shown in _batches(images, batch_size, where) for kind in kinds
    )
    label = f"evaluate {made_by['mode']} {made_by.get('p', '')}".strip()
    found = []
    for rows, kind, shown in progress(batches, total=n_batches, unit="batches", label=label):
        batch = records.iloc[rows]
        if bits is None:
            record = _predict(network, models.pixels(shown, where), batch)
            found.append(record.assign(mask=kind, area_kept=1.0))
            continue
        chosen = torch.from_numpy(bits[rows])
        mask = unpack(chosen, tuple(made_by["grid"]))
        if kind == "random":
            mask = random_like(mask, batch["position"].to_numpy(), seed=seed)
            chosen = pack(mask)
        kept = mask if mode == "keep" else ~mask
        kept_area = area(kept, *shown.shape[1:3], side=made_by["side"]).numpy()
        inputs = occluded_input(
            shown,
            chosen.to(where),
            side=made_by["side"],
            drop=mode == "drop",
            fill=fill_colours(shown, fill, mean),
            mean=mean,
            std=std,
            memory_format=torch.channels_last,  # that of the bytes
        )
        record = _predict(classifier, inputs, batch)
        found.append(record.assign(mask=kind, area_kept=kept_area))
    # Padding repeats the last image of a shard; its first record stands.
    results = pd.concat(found, ignore_index=True)
    results = results[~results.duplicated(["name", "mask"])].reset_index(drop=True)
    arrays.write_records(output, results, made_by)


def _predict(network: nn.Module, inputs: Tensor, batch: pd.DataFrame) -> pd.DataFrame:
    with torch.no_grad():
        probabilities = network(inputs).softmax(dim=1).cpu()
    refuse("outputs for", batch["name"], probabilities.isnan().any(dim=1).tolist())
    predicted = probabilities.argmax(dim=1).numpy()
    label = batch["label"].to_numpy()
    original = batch["predicted"].to_numpy() if "predicted" in batch else predicted
    rows = np.arange(len(batch))
    return pd.DataFrame(
        {
            "name": batch["name"].to_numpy(),
            "label": label,
            "predicted": predicted,
            "correct": predicted == label,
            "probability_predicted": probabilities.numpy()[rows, predicted],
            "probability_label": probabilities.numpy()[rows, label],
            "probability_original": probabilities.numpy()[rows, original],
        }
    )


def _batches(
    shards: list[np.ndarray], size: int, device: torch.device
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield (rows of all images, the images in uint8) in full batches, shard by shard."""
    offset = 0
    for shard in shards:
        for start in range(0, len(shard), size):
            rows = full_batch(start, len(shard), size)
            yield offset + rows, torch.from_numpy(shard[rows]).to(device)
        offset += len(shard)


def _read_masks(path: Path, images: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame, dict]:
    bits = arrays.read_array(path)
    records, made_by = arrays.read_records(arrays.records_of(path))
    if len(bits) != len(images) or not records["name"].equals(images["name"]):
        raise InputError(f"{path}: these masks belong to other images; make them again")
    return bits, records, made_by
