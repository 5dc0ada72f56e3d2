"""One image, one model: what it looks at, and what it says when the rest, or that, is masked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from igmask import config, models
from igmask.classes import class_name, class_names, class_numbers
from igmask.config import Model, percent
from igmask.decode import fit, read_rgb
from igmask.devices import pick_device
from igmask.drawing import draw_explanation
from igmask.errors import InputError
from igmask.ig import integrated_gradients
from igmask.kernels import occlude, select, square_parts, square_scores


def load_model(source: str, *, device: str = "cpu", **settings: Any) -> torch.nn.Module:
    """Return a network on images in [0, 1], normalisation included, in evaluation mode.

    source, settings: as a model in config.yaml, such as load_model("resnet50",
                      weights="IMAGENET1K_V1"); a network of your own also needs `size`
    raises InputError if it cannot be had
    """
    model = config.model({"source": source, **settings})
    return models.load(model, device=pick_device(device))


def explain(
    image_path: Path,
    output: Path,
    *,
    model: Model,
    classes: Path | None,
    p: tuple[float, ...],
    fill: str,
    score: str,
    by: str,
    side: int,
    n_steps: int,
    device: str,
    batch_size: int | None,
) -> None:
    """Draw an image file, its attribution, and for each p what is kept and what is dropped.

    The predicted class and its probability stand beneath each; a file `classes` gives names to the
    classes of a network of one's own. Options as in config.yaml.
    """
    model = models.complete(model)
    where = pick_device(device)
    network = models.load(model, device=where)
    names = class_names(class_numbers(classes)) if classes else models.class_names(model)
    try:
        pixels = fit(read_rgb(image_path), model.geometry)
    except InputError as error:
        message = str(error)
        prefix = "" if str(image_path) in message else f"{image_path}: "
        raise InputError(prefix + message) from None
    image = models.pixels(pixels[None].copy(), where)
    found = integrated_gradients(network, image, n_steps=n_steps, batch_size=batch_size)
    scores = square_scores(found.values, side=side, score=score)
    masked = [("original", image)]
    for percentage in p:
        selection = select(scores, percentage, by=by)
        for mode, kept in (("keep", selection), ("drop", ~selection)):
            occluded = occlude(image, kept, side=side, fill=fill, mean=torch.tensor(model.mean))
            masked.append((f"{mode} {percent(percentage)} %", occluded))
    panels = [
        (title, x[0].permute(1, 2, 0).cpu().numpy(), _prediction(network, x, names))
        for title, x in masked
    ]
    positive, negative = square_parts(found.values, side=side)[0].cpu()
    deviation = f"completeness error\n{float(found.completeness):+.3f}"
    panels.insert(1, ("attribution", (positive - negative).numpy(), deviation))
    draw_explanation(output, panels, title=f"{image_path.name}, {model.source}")


def _prediction(network: Callable[[Tensor], Tensor], image: Tensor, names: list[str]) -> str:
    with torch.no_grad():
        probability, index = network(image).softmax(dim=1).max(dim=1)
    return f"{class_name(names, int(index))}\n{100 * float(probability):.0f} %"
