"""How fast a network is on this machine, and what memory it takes: from one small batch."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from igmask.asked.masking import Selection
from igmask.asked.recipes import Attribute
from igmask.asked.settings import WITHOUT_FILE, Compute, Model
from igmask.engine.ready import prepare
from igmask.inputs import models
from igmask.inputs.weights import weights_place
from igmask.kernels import grid
from igmask.plain import pixels_of_squares, select
from igmask.steps.attribute import GROUP, arguments
from igmask.steps.methods import About, method_of

_BUDGET_S = 5.0  # for the attributions of a network
# Methods that ask files or images which a trial has not: one that takes as long.
_AS_FAST = {"expected-gradients": "smoothgrad", "maps": "random"}
AUTO_STEPS = 100  # what n_steps auto is taken for


@dataclass(frozen=True)
class Pace:
    """Seconds that an image takes, and bytes of memory.

    attribute_s, evaluate_s: an attribution, and a forward pass of one mask
    weight_bytes:            of the network
    point_bytes:             of one (image, step) pair of a batch
    batch_size:              pairs of a batch
    """

    attribute_s: float
    evaluate_s: float
    weight_bytes: int
    point_bytes: int
    batch_size: int


def ready(model: Model, device: torch.device) -> nn.Sequential:
    """Return the network of `models.load`, with random weights where its own are yet to come."""
    if not are_to_come(model):
        return models.load(model, device=device)
    built = models.build(replace(model, weights="none"))
    return models.frozen(built, model, device=device)


def are_to_come(model: Model) -> bool:
    """Whether a model's weights are not at hand yet, but to be trained or fetched."""
    if model.train is not None:
        return True
    of_file = model.weights_kind not in WITHOUT_FILE
    return of_file and not weights_place(model)[0].is_file()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pace(
    network: nn.Module, images: Tensor, labels: Tensor, recipe: Attribute, compute: Compute
) -> Pace:
    """Return the pace of a network with the settings of a study, on the device of its images.

    A slow network takes fewer steps than the study's, and the rest is taken to be as slow. Times
    are of engine eager, which needs no compiling; another engine runs once, to see that it does.

    images: (N, 3, H, W) in [0, 1];  labels: (N,) int64
    recipe: its model is complete
    raises  what the network raises, and InputError as `integrated_gradients`
    """
    precision, steps = recipe.attribution.precision, recipe.attribution.n_steps
    batch_size = compute.batch_size
    method = recipe.attribution.method
    squares = method_of(_AS_FAST.get(method, method)).squares

    def attribute(n_images: int, n_steps: int, engine: str = "eager") -> float:
        rows = torch.arange(n_images, device=images.device) % len(images)
        fixed = replace(recipe, attribution=replace(recipe.attribution, n_steps=n_steps))
        asked = arguments(fixed, images[rows], labels[rows].cpu(), range(n_images))
        made = prepare(network, images[:2], precision=precision, engine=engine)
        how: dict[str, Any] = {"side": recipe.side, "batch_size": batch_size, "engine": engine}
        how["about"] = About(recipe.attribution, [""] * n_images, range(n_images), recipe.seed)
        return seconds(lambda: squares(made, network, images[rows], **asked, **how))

    if compute.engine != "eager":
        attribute(1, 2, compute.engine)
    attribute_s = _attribution_s(attribute, AUTO_STEPS if steps == "auto" else int(steps))
    batch = images.repeat(8, 1, 1, 1)[:64] if images.is_cuda else images  # as evaluation has it
    with torch.no_grad():
        network(batch)
        evaluate_s = seconds(lambda: network(batch).cpu()) / len(batch)
    made = prepare(network, images[:1], precision=precision)
    return Pace(
        attribute_s=attribute_s,
        evaluate_s=evaluate_s,
        weight_bytes=sum(t.nbytes for t in network.state_dict().values()),
        point_bytes=made.bytes_per_point(images[:1]),
        batch_size=batch_size or made.batch_size(images[:1]),
    )


def selection_s(size: int, side: int, selection: Selection) -> float:
    """Return the seconds that selecting squares takes for an image of `size` × `size` pixels."""
    squares = grid(size, size, side)
    scores = np.random.default_rng(0).random((64, *squares), dtype=np.float32)
    sizes = pixels_of_squares(squares, size, size, side)
    choose = partial(select, scores, selection.p, by=selection.by, sizes=sizes)
    return seconds(lambda: list(choose())) / len(scores)


def seconds(work: Callable[[], Any]) -> float:
    """Return how long work takes, on a GPU too."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _attribution_s(attribute: Callable[[int, int], float], n_steps: int) -> float:
    """Seconds an image, from `attribute`, which takes numbers of images and steps → seconds."""
    attribute(1, 2)  # the first call finds the stem
    few = attribute(1, 2)
    affordable = int(_BUDGET_S / few) * 2  # steps, or less: what an image costs counts as steps
    n_tried = min(n_steps, max(4, affordable))
    n_images = min(GROUP, max(1, affordable // n_steps))
    tried = attribute(n_images, n_tried)
    # So short a call is mostly what any call costs, and on a GPU the first of a size is slow.
    while n_tried == n_steps and n_images < GROUP and tried < _BUDGET_S / 8:
        n_images = min(GROUP, 4 * n_images)
        tried = attribute(n_images, n_tried)
    if tried < _BUDGET_S / 4:
        tried = min(tried, attribute(n_images, n_tried))
    more = (n_steps - n_tried) * (tried - few) / (n_tried - 2) if n_tried < n_steps else 0
    return tried / n_images + max(more, 0)
