"""Step: Integrated Gradients of every image of a shard → the parts of its squares' scores."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from igmask import arrays
from igmask.devices import take_device
from igmask.engine.ig import Auto, NotFinite, attribute_squares
from igmask.engine.ready import prepare
from igmask.errors import refuse
from igmask.inputs import baselines, models
from igmask.inputs.classes import check_labels
from igmask.kernels import grid
from igmask.progress import progress
from igmask.study.config import Model, settings, stamp

# Images attributed together: enough that their steps fill batches, few enough to stay in memory.
GROUP = 16


# What the records say of an image, besides what those of the images say; names as of `Attribution`.
_COLUMNS = {
    "predicted": "int64",
    "target": "int64",
    "output": "float32",
    "baseline_output": "float32",
    "completeness": "float64",
    "relative_completeness": "float64",
    "n_steps": "int64",
}


def attribute(
    images_path: Path,
    output: Path,
    *,
    model: Model,
    attribution: dict[str, Any],
    side: int,
    seed: int,
    batch_size: int | None = None,
    engine: str = "eager",
    device: str = "auto",
) -> None:
    """Write (n, 2, P, Q) float32, the positive and negative parts of each square's attribution.

    The records beside it say of each image: the predicted class and the target, f at the image
    and at the baseline, completeness (Σφ − (f(x) − f(b))), its size relative to f(x) − f(b), and
    the steps taken.

    attribution: the keys of the schema's `attribution`
    batch_size, engine: see `integrated_gradients`
    raises       InputError naming the images that are damaged, whose attribution is not finite or
                 whose label does not fit the model
    """
    images = arrays.Shards([images_path])
    records, made_by = images.records, arrays.read_settings(arrays.records_of(images_path))
    model = models.complete(model)
    where = take_device(device)
    network = models.load(model, device=where)
    check_labels(records, models.n_classes(network, model))
    # Now, not after hours in which a file may have changed.
    read = {"images": arrays.digest(records)} | models.digests(model)
    n_steps, precision = attribution["n_steps"], attribution["precision"]
    if n_steps == "auto":
        n_steps = Auto(
            completeness=attribution["tolerance"],
            agreement=attribution["agreement"],
            most=attribution["most_steps"],
            side=side,
        )
    ready = None  # made of the first images
    starts = range(0, len(records), GROUP)
    parts_shape = (2, *grid(images.row_shape[0], images.row_shape[1], side))
    columns = {name: np.zeros(len(records), dtype) for name, dtype in _COLUMNS.items()}
    with arrays.writing(output, np.float32, parts_shape) as scores:
        label = f"attribute {made_by['shard']}"
        for start in progress(starts, total=len(starts), unit="groups", label=label):
            rows = full_batch(start, len(records), GROUP)
            batch = records.iloc[rows]
            pixels = models.pixels(images.read(rows), where)
            labels = torch.tensor(batch["label"].to_numpy(), device=where)
            starts_of_paths = baselines.make(
                attribution["baseline"],
                pixels,
                mean=model.mean or (0, 0, 0),
                geometry=model.geometry,
                positions=batch["position"].to_numpy(),
                seed=seed,
                n_baselines=attribution["n_baselines"],
                blur_sigma=attribution["blur_sigma"],
            )
            try:
                ready = ready or prepare(network, pixels, precision=precision, engine=engine)
                result = attribute_squares(
                    ready,
                    pixels,
                    side=side,
                    baselines=starts_of_paths,
                    target=labels if attribution["target"] == "label" else None,
                    of=attribution["of"],
                    rule=attribution["rule"],
                    n_steps=n_steps,
                    batch_size=batch_size,
                    precision=precision,
                    engine=engine,
                )
            except NotFinite as error:
                name = batch["name"].iloc[error.image]
                raise NotFinite(error.image, error.alpha, error.step, name) from None
            n_live = min(GROUP, len(records) - start)
            parts = result.values[:n_live].cpu()
            bad = ~parts.isfinite().flatten(1).all(dim=1)
            refuse("attributions of", batch["name"][:n_live], bad.tolist())
            scores.append(parts.numpy())
            for name, column in columns.items():
                column[start : start + n_live] = getattr(result, name)[:n_live].cpu()
    made_by |= stamp("attribute", made_by) | {
        "read": read,
        "model": settings(model),
        "class_names": models.class_names(model) or made_by["classes"],
        "attribution": attribution,
        "side": side,
    }
    if attribution["baseline"] == "uniform":
        made_by["baseline_seed"] = seed
    records = records.assign(**columns)
    records[arrays.CHECKSUM] = scores.checksums
    arrays.write_records(arrays.records_of(output), records, made_by)


def full_batch(start: int, n_images: int, size: int) -> np.ndarray:
    """Return the rows of a batch that is always full: past the end, the last image is repeated.

    One shape for every batch makes results independent of how the images are sharded.
    """
    return np.minimum(np.arange(start, start + size), n_images - 1)
