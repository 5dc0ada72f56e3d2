"""Step: a network → the same with weights drawn anew, whose attributions know nothing of training.

Adebayo et al. 2018, "Sanity Checks for Saliency Maps". Norms are as at the start of training, and
their running statistics are those of the drawn weights: with the old ones, activations vanish or
explode, and nothing is left to attribute.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from igmask import arrays
from igmask.asked.recipes import Randomise, made_by, stamp
from igmask.errors import InputError
from igmask.inputs import models
from igmask.inputs.files import with_located
from igmask.inputs.weights import write_weights
from igmask.progress import progress

_N_IMAGES, _BATCH = 256, 32  # of which norms take their statistics


def randomise(image_paths: list[Path], output: Path, recipe: Randomise) -> None:
    """Write the state dict of the network with weights drawn anew, as safetensors.

    image_paths: the shards, in order
    raises       InputError if the drawn network's outputs are not finite
    """
    images = arrays.Shards(image_paths)
    if images.records.empty:
        raise InputError("no image of the dataset is usable, so there is nothing to attribute")
    torch.set_num_threads(1)  # sums, and so the statistics, would depend on the number of threads
    recipe = replace(recipe, model=models.complete(recipe.model))
    whole = models.load(with_located(recipe, image_paths[0]).model)
    redraw(whole[1], seed=recipe.seed)
    n = min(_N_IMAGES, len(images.records))
    rows = np.arange(n) * len(images.records) // n  # spread over the dataset, however it is cut
    chunks = np.array_split(rows, -(-n // _BATCH))
    shown = progress(chunks, total=len(chunks), unit="batches", label="statistics")
    re_estimate(whole, (models.pixels(images.read(some)) for some in shown))
    with torch.no_grad():
        if not whole(models.pixels(images.read(chunks[0]))).isfinite().all():
            raise InputError(
                f"{recipe.model.source}: with weights drawn anew, outputs are not finite"
            )
    write_weights(output, whole[1], stamp("randomise") | made_by(recipe))


def redraw(network: nn.Module, *, seed: int) -> None:
    """Draw the weights of a network anew, in place: each layer as at its making.

    A parameter that belongs to no layer that can draw its own, such as a class token, has its
    values put in another order.
    """
    drawn: set[int] = set()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for module in network.modules():
            own = getattr(module, "reset_parameters", None) or getattr(
                module, "_reset_parameters", None
            )
            if callable(own):
                own()
                drawn |= {id(one) for one in module.parameters(recurse=False)}
        for one in network.parameters():
            if id(one) not in drawn:
                one.copy_(one.flatten()[torch.randperm(one.numel())].view_as(one))


def re_estimate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of batch norms to the means over some batches of images."""
    norms = [one for one in network.modules() if isinstance(one, _BatchNorm)]
    norms = [one for one in norms if one.running_mean is not None]
    before = [one.momentum for one in norms]
    for one in norms:
        one.reset_running_stats()
        one.momentum = None  # the mean of all
        one.training = True
    with torch.no_grad():
        for images in batches:
            network(images)
    for one, momentum in zip(norms, before, strict=True):
        one.momentum, one.training = momentum, False
