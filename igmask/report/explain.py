"""One image, one model: what it looks at, and what it says when the rest, or that, is masked."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from igmask.devices import pick_device
from igmask.engine.ig import Attribution, Auto, checked_rule, integrated_gradients
from igmask.errors import InputError
from igmask.inputs import baselines, models
from igmask.inputs.classes import (
    check_classes,
    class_name,
    class_names,
    class_numbers,
    class_of,
    identifiers,
)
from igmask.inputs.decode import fit, read_rgb
from igmask.kernels import occlude, select, square_parts, square_scores
from igmask.plain import area
from igmask.progress import say
from igmask.report.drawing import check_output, draw_explanation
from igmask.study import config
from igmask.study.config import BASELINES, Model, percent

Network = Callable[[Tensor], Tensor]
Panel = tuple[str, np.ndarray, str]  # what stands above, the picture, what stands beneath


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
    of: str,
    target: str,
    baseline: str,
    blur_sigma: float,
    n_baselines: int,
    seed: int,
    rule: str,
    n_steps: int | str,
    device: str,
    batch_size: int | None,
) -> None:
    """Draw an image file, its attribution, and for each p what is kept and what is dropped.

    The predicted class and its probability stand beneath each, the area kept above. What is cheap
    to see is seen before the network is loaded.

    classes: a file that gives names to the classes of a network of one's own
    target:  `predicted`, or a class by its number or name
    the others: as in config.yaml
    raises   InputError, also for an output that cannot be written, or is the image itself
    """
    _check_output(output, image_path)
    model = models.complete(model)
    numbers, names = _classes(classes, model)
    number = None if target == "predicted" else _class_number(target, names, numbers)
    read = _read(image_path, model)
    if baseline not in BASELINES:
        baselines.read_baseline(baseline, model.geometry)
    if isinstance(n_steps, int):
        checked_rule(rule, n_steps)

    network, image = _loaded(model, read, names, classes, pick_device(device))
    start = baselines.make(
        baseline, image, mean=model.mean or (0, 0, 0), geometry=model.geometry,
        positions=np.zeros(1, dtype=np.int64), seed=seed, n_baselines=n_baselines,
        blur_sigma=blur_sigma,
    )  # fmt: skip
    found = integrated_gradients(
        network, image, baselines=start, target=number, of=of, rule=rule, batch_size=batch_size,
        n_steps=n_steps if isinstance(n_steps, int) else Auto(side=side),
    )  # fmt: skip
    panels = [_panel("original", image, 1, network, names)]
    panels.append(_attribution(found, target, names, side=side))
    for title, kept in _kept(square_scores(found.values, side=side, score=score), p, by=by):
        masked = occlude(image, kept, side=side, fill=fill, mean=torch.tensor(model.mean))
        [share] = area(kept.numpy(force=True), *image.shape[-2:], side=side)
        panels.append(_panel(title, masked, share, network, names))
    draw_explanation(output, panels, title=f"{image_path.name}, {model.source}")


def _check_output(output: Path, image_path: Path) -> None:
    check_output(output)
    if output.exists() and image_path.exists() and output.samefile(image_path):
        raise InputError(f"{output}: is the image itself; name another file to write")


def _classes(path: Path | None, model: Model) -> tuple[Mapping[str, int], list[str]]:
    """The numbers of the classes that a file names, if there is one, and the network's names."""
    if path is None:
        return {}, models.class_names(model)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    numbers = class_numbers(path)
    return numbers, class_names(numbers)


def _loaded(
    model: Model, read: np.ndarray, names: list[str], classes: Path | None, device: torch.device
) -> tuple[torch.nn.Module, Tensor]:
    """The network, and the image as it takes it.

    names: of its classes, from the file `classes` if there is one
    """
    network = models.load(model, device=device)
    n_classes = models.n_classes(network, model, read[None])
    listed = {"dataset": {"classes": classes and str(classes), "source": ""}, "classes": names}
    check_classes(listed, n_classes)
    if note := models.random_weights(network, model):
        say(f"warning: the network {note}")
    return network, models.pixels(read[None], device)


def _read(path: Path, model: Model) -> np.ndarray:
    """The image file in the network's geometry, (size, size, 3) uint8."""
    try:
        return fit(read_rgb(path), model.geometry).copy()
    except InputError as error:
        message = str(error)
        prefix = "" if str(path) in message else f"{path}: "
        raise InputError(prefix + message) from None


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
    close = difflib.get_close_matches(target, names, n=3)
    advice = f"did you mean {', '.join(map(repr, close))}?" if close else "give its number"
    raise InputError(f"target {target!r}: no class has that name; {advice}")


def _attribution(found: Attribution, target: str, names: list[str], *, side: int) -> Panel:
    """The panel of the attribution: of which class, and how far it is from completeness."""
    kind = "predicted" if target == "predicted" else "target"
    positive, negative = square_parts(found.values, side=side)[0].cpu()
    error = 100 * float(found.relative_completeness)
    return (
        f"attribution\n{kind}: {class_name(names, int(found.target))}",
        (positive - negative).numpy(),
        f"relative completeness error\n{error:.1f} %" if isfinite(error) else "f does not change",
    )


def _kept(scores: Tensor, percents: Iterable[float], *, by: str) -> Iterator[tuple[str, Tensor]]:
    """The squares that are kept for each p in each mode, below the name of that."""
    for p in percents:
        selection = select(scores, p, by=by)
        yield f"keep {percent(p)} %", selection
        yield f"drop {percent(p)} %", ~selection


def _panel(title: str, image: Tensor, share: float, network: Network, names: list[str]) -> Panel:
    """An image, which share of the original's area that is, and what the network says of it."""
    with torch.no_grad():
        probability, index = network(image).softmax(dim=1).max(dim=1)
    return (
        f"{title}\n{100 * share:.0f} % of the area",
        image[0].permute(1, 2, 0).cpu().numpy(),
        f"{class_name(names, int(index))}\n{100 * float(probability):.0f} %",
    )
