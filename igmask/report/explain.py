"""One image, one model: what it looks at, and what it says when the rest, or that, is masked."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from igmask import quadrature
from igmask.asked import settings
from igmask.asked.recipes import Attribute, Mask
from igmask.asked.settings import percent
from igmask.devices import pick_device
from igmask.engine.ig import Attribution
from igmask.errors import InputError, suggestion
from igmask.inputs import baselines, models
from igmask.inputs.classes import (
    class_name,
    class_names,
    class_numbers,
    class_of,
    identifiers,
    without_wnid,
)
from igmask.inputs.data import check_classes
from igmask.inputs.decode import read_fitted
from igmask.inputs.networks import library_of
from igmask.inputs.own import named
from igmask.kernels import occlude, select
from igmask.plain import area, pixels_of_squares, score_parts
from igmask.progress import say
from igmask.report.drawing import check_output, draw_explanation
from igmask.steps.attribute import arguments
from igmask.steps.methods import About, method_of


def explain(
    image_path: Path,
    output: Path,
    recipe: Attribute,
    selection: Mask,
    *,
    classes: str | None,
    fill: str,
    device: str,
    batch_size: int | None,
) -> None:
    """Draw an image file, its attribution, and for each p what is kept and what is dropped.

    The predicted class and its probability stand beneath each, the area kept above. What is cheap
    to see is seen before the network is loaded.

    recipe:  its target is `predicted`, or a class by its number or name
    classes: what gives names to the classes of a network of one's own, as `dataset.classes`
    raises   InputError, also for an output that cannot be written, or is the image itself
    """
    check_output(output)
    if output.exists() and image_path.exists() and output.samefile(image_path):
        raise InputError(f"{output}: is the image itself; name another file to write")
    model, side, attribution = models.complete(recipe.model), recipe.side, recipe.attribution
    numbers = class_numbers(classes) if classes else {}
    names = class_names(numbers) if classes else library_of(model).class_names(model)
    target = attribution.target
    number = None if target == "predicted" else _class_number(target, names, numbers)
    read = read_fitted(image_path, model.geometry)
    baselines.check(attribution.baseline, model.geometry)
    how = _checked(attribution)
    where = pick_device(device)
    network = models.load(model, device=where)
    n_classes = models.n_classes(network, model, read[None])
    if classes:
        check_classes({"dataset": {"classes": classes}, "classes": names}, n_classes)
    if note := models.random_weights(network, model):
        say(f"warning: the network {note}")
    image = models.pixels(read[None], where)
    asked = arguments(replace(recipe, model=model), image, labels=[number or 0], positions=[0])
    asked["target"] = None if number is None else torch.tensor([number], device=where)
    method = method_of(attribution.method)
    asked |= {"about": About(attribution, [image_path.name], [0], recipe.seed)}
    found = method.squares(network, network, image, side=side, **asked, batch_size=batch_size)
    panels = [
        ("original\n100 % of the area", picture(image), prediction(network, image, names)),
        _attribution(found, target, names, method.is_complete),
    ]
    scores = score_parts(found.values, selection.score)
    mean, shape = torch.tensor(model.mean), image.shape[-2:]
    squares = tuple(scores.shape[1:])
    sizes = torch.from_numpy(pixels_of_squares(squares, shape[0], shape[1], side))
    for percentage in selection.p:
        chosen = select(scores, percentage, by=selection.by, sizes=sizes)
        for mode, kept in (("keep", chosen), ("drop", ~chosen)):
            masked = occlude(image, kept, side=side, fill=named(fill), mean=mean)
            [share] = area(kept.numpy(force=True), *shape, side=side)
            title = f"{mode} {percent(percentage)} %\n{100 * share:.0f} % of the area"
            panels.append((title, picture(masked), prediction(network, masked, names)))
    draw_explanation(output, panels, title=f"{image_path.name}, {model.source}; {how}")


def _checked(asked: settings.Attribution) -> str:
    """How is attributed, in words; InputError if it cannot be."""
    if not asked.is_integrated:
        return asked.method
    quadrature.check_asked(asked.rule, asked.n_steps, of=asked.of, skip=asked.skip)
    return f"rule {asked.rule}, m = {asked.n_steps}"


def _class_number(target: str, names: list[str], listed: Mapping[str, int]) -> int:
    """The number of a class that is given by number or name.

    listed: of `class_numbers`, if the names are from a file
    """
    if target.isdecimal():
        if names and int(target) >= len(names):
            raise InputError(f"target {target}: the classes are 0 … {len(names) - 1}")
        return int(target)
    if not names:
        raise InputError(f"target {target!r}: the classes have no names; give a number, or classes")
    if names.count(target) > 1:
        numbers = [i for i, name in enumerate(names) if name == target]
        raise InputError(f"target {target!r}: the classes {numbers} have that name; give a number")
    known = listed or {name: i for i, name in enumerate(names)}
    number = class_of(target, known, identifiers(known))
    if number is not None:
        return number
    shown = [without_wnid(name) for name in names]  # as pictures say it
    if shown.count(target) == 1:
        return shown.index(target)
    if shown.count(target) > 1:
        several = [name for name, short in zip(names, shown, strict=True) if short == target]
        raise InputError(f"target {target!r}: that may be any of {several}; write one of these")
    advice = suggestion(target, shown, n=3) or "; give its number"
    raise InputError(f"target {target!r}: no class has that name{advice}")


def picture(image: Tensor) -> np.ndarray:
    """Return the first of images (N, C, H, W) as pictures are drawn, (H, W, C)."""
    return image[0].detach().permute(1, 2, 0).float().cpu().numpy()


def _attribution(
    found: Attribution, target: str, names: list[str], is_complete: bool
) -> tuple[str, np.ndarray, str]:
    """The panel of the attribution: of which class, and how far it is from completeness."""
    kind = "predicted" if target == "predicted" else "target"
    positive, negative = found.values[0].cpu()
    error = 100 * float(found.relative_completeness)
    says = f"relative completeness error\n{error:.1f} %" if isfinite(error) else "f does not change"
    return (
        f"attribution\n{kind}: {class_name(names, int(found.target))}",
        (positive - negative).numpy(),
        says if is_complete else "",
    )


def prediction(network: Callable[[Tensor], Tensor], image: Tensor, names: list[str]) -> str:
    """Return what stands beneath an image (1, C, H, W): the class predicted, its probability."""
    with torch.no_grad():
        probability, index = network(image).softmax(dim=1).max(dim=1)
    return f"{class_name(names, int(index))}\n{100 * float(probability):.0f} %"
