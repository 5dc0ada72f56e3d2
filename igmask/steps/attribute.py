"""Step: attributions of every image of a shard → the parts of its squares' scores."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from igmask import arrays
from igmask.asked import recipes, settings
from igmask.asked.fields import counting, plain
from igmask.asked.recipes import Attribute, stamp
from igmask.devices import take_device
from igmask.engine.ig import Attribution, Auto, NotFinite
from igmask.engine.network import Network
from igmask.engine.ready import prepare
from igmask.errors import InputError, refuse
from igmask.inputs import baselines, models
from igmask.inputs.classes import NO_LABEL
from igmask.inputs.data import check_labels
from igmask.inputs.files import with_located
from igmask.inputs.networks import library_of
from igmask.kernels import grid
from igmask.progress import progress, say
from igmask.steps.methods import About, method_of

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
    recipe: Attribute,
    *,
    classes: Path | None = None,
    references: Sequence[Path] = (),
    batch_size: int | None = None,
    engine: str = "eager",
    device: str = "auto",
) -> None:
    """Write (n, 2, P, Q) float32, the positive and negative parts of each square's attribution.

    The records beside it say of each image: the predicted class and the target, f at the image
    and at the baseline, completeness (Σφ − (f(x) − f(b))), its size relative to f(x) − f(b), and
    the steps taken.

    classes:     scores whose predicted classes are attributed, in the place of `target`
    references:  the images of all shards, for expected gradients
    batch_size, engine: see `integrated_gradients`
    raises       InputError naming the images that are damaged, whose attribution is not finite or
                 whose label does not fit the model
    """
    images = arrays.Shards([images_path])
    records, made_by = images.records, arrays.read_settings(arrays.records_of(images_path))
    recipe = replace(recipe, model=models.complete(recipe.model))
    here, where = with_located(recipe, images_path), take_device(device)
    model = here.model
    network = models.load(model, device=where)
    check_labels(records, made_by, models.n_classes(network, model))
    # Now, not after hours in which a file may have changed.
    read = {"images": arrays.digest(records)} | models.digests(here.files())
    if references:
        read["references"] = arrays.Shards(list(references)).digest
    asked = records
    if classes is not None:
        asked, read["classes"] = _with_classes(records, classes)
    columns = {name: np.zeros(len(records), dtype) for name, dtype in _COLUMNS.items()}
    height, width, _ = images.row_shape
    with arrays.writing(output, np.float32, (2, *grid(height, width, recipe.side))) as scores:
        groups, n_groups = images.batches(GROUP, full=True), images.n_batches(GROUP)
        ask = _asking(network, here, references, batch_size=batch_size, engine=engine)
        label = f"attribute {made_by['shard']}"
        for group in progress(groups, total=n_groups, unit="groups", label=label):
            live = group.rows[: group.n_live]
            found = ask(models.pixels(group.values, where), asked.iloc[group.rows])
            parts = found.values[: group.n_live].cpu()
            bad = ~parts.isfinite().flatten(1).all(dim=1)
            refuse("attributions of", records["name"].iloc[live], bad.tolist())
            scores.append(parts.numpy())
            for name, column in columns.items():
                column[live] = getattr(found, name)[: group.n_live].cpu()
    if not method_of(recipe.attribution.method).is_complete:
        columns |= {name: np.full(len(records), np.nan) for name in columns if "complete" in name}
    made_by |= stamp("attribute", made_by) | recipes.made_by(recipe) | {"read": read}
    made_by["class_names"] = library_of(model).class_names(model) or made_by["classes"]
    made_by["attribution"] = _said(recipe.attribution)
    records = records.assign(**columns)
    records[arrays.CHECKSUM] = scores.checksums
    arrays.write_records(arrays.records_of(output), records, made_by)


def _with_classes(records: pd.DataFrame, scores: Path) -> tuple[pd.DataFrame, str]:
    """Records whose labels are the classes that scores have as predicted, and their digest."""
    found, _ = arrays.read_records(arrays.records_of(scores))
    if not found["name"].equals(records["name"]):
        raise InputError(f"{scores}: of other images")
    return records.assign(label=found["predicted"]), arrays.digest(found)


def _said(asked: settings.Attribution) -> dict[str, Any]:
    """What the records say of all settings; of those that came later where they matter."""
    matter, later = counting(asked), ("method", "skip", "n_samples", "noise", "maps")
    return {k: v for k, v in plain(asked).items() if k not in later or k in matter}


def _asking(
    network: nn.Module,
    recipe: Attribute,
    references: Sequence[Path],
    *,
    batch_size: int | None,
    engine: str,
) -> Callable[[Tensor, pd.DataFrame], Attribution]:
    """What attributes a group, pixels and records, by a recipe whose model is complete."""
    method, precision = method_of(recipe.attribution.method), recipe.attribution.precision
    ready: list[Network] = []  # made of the first images

    def ask(pixels: Tensor, batch: pd.DataFrame) -> Attribution:
        try:
            if not ready:
                ready.append(prepare(network, pixels, precision=precision, engine=engine))
                say(f"the network's graph: {ready[0].split.account}")
            asked = arguments(recipe, pixels, batch["label"], batch["position"])
            images = batch["name"].tolist(), batch["position"].tolist()
            asked["about"] = About(recipe.attribution, *images, recipe.seed, references)
            asked |= {"side": recipe.side, "batch_size": batch_size, "engine": engine}
            return method.squares(ready[0], network, pixels, **asked)
        except NotFinite as error:
            name = batch["name"].iloc[error.image]
            raise NotFinite(error.image, error.alpha, error.step, name) from None

    return ask


def arguments(recipe: Attribute, pixels: Tensor, labels: Any, positions: Any) -> dict[str, Any]:
    """Return what a recipe means for a batch, as arguments of `integrated_gradients`.

    recipe:    its model is complete
    pixels:    (N, 3, H, W) in [0, 1]
    labels, positions: (N,) integers, of the images; what has no label has the predicted class
    """
    asked = recipe.attribution
    n_steps: int | Auto | str = asked.n_steps
    if n_steps == "auto":
        n_steps = Auto(asked.tolerance, asked.agreement, most=asked.most_steps, side=recipe.side)
    places, labels = np.asarray(positions), torch.tensor(np.asarray(labels), device=pixels.device)
    about = {"mean": recipe.model.mean or (0, 0, 0), "geometry": recipe.model.geometry}
    return {
        "baselines": baselines.make(asked, pixels, **about, positions=places, seed=recipe.seed),
        "target": labels if asked.target == "label" and (labels != NO_LABEL).all() else None,
        "n_steps": n_steps,
    } | {name: getattr(asked, name) for name in ("of", "rule", "skip", "precision")}
