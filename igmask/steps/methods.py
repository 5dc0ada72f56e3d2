"""How an image's squares are attributed: a method is a function, by its name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from igmask import arrays
from igmask.asked import settings
from igmask.engine.ig import FUNCTIONS, Attribution, attribute_squares
from igmask.engine.network import Network
from igmask.errors import InputError
from igmask.inputs.contract import kind
from igmask.inputs.models import pixels
from igmask.inputs.own import called
from igmask.kernels import square_parts
from igmask.steps.maps import read_map
from igmask.streams import Stream, rng


@dataclass(frozen=True)
class About:
    """What a method may ask besides a network and images.

    asked:     the settings
    names, positions: (N,) of the images
    seed:      of what is drawn, for each image by its place in the dataset
    images_of: the prepared images of the whole dataset, all shards, for expected gradients
    """

    asked: settings.Attribution
    names: Sequence[str]
    positions: Sequence[int]
    seed: int
    images_of: Sequence[Path] = ()

    def rngs(self) -> list[np.random.Generator]:
        """Return random numbers of each image."""
        places = map(int, self.positions)
        return [rng(self.seed, Stream.METHOD, place) for place in places]

    @cached_property
    def dataset(self) -> arrays.Shards:
        """The prepared images of the whole dataset."""
        if not self.images_of:
            raise InputError(f"{self.asked.method} are of the images of a dataset; run a study")
        return arrays.Shards(list(self.images_of))


class Method(NamedTuple):
    """A method, and what is known of it.

    squares:     (network, made ready; model, as it was loaded; images; about=, side=, and the
                 arguments of `integrated_gradients`) → an Attribution of squares
    is_complete: whether attributions should sum to f(x) − f(b), as Integrated Gradients do
    """

    squares: Callable[..., Attribution]
    is_complete: bool = False


def _integrated_gradients(
    network: Network, model: nn.Module, images: Tensor, *, about: About, side: int, **options: Any
) -> Attribution:
    return attribute_squares(network, images, side=side, **options)


class Question(NamedTuple):
    """What is to be attributed.

    f:       images (N, 3, H, W) → the sum over them of the output of the class of each
    model:   the network
    images:  (N, 3, H, W) in [0, 1]
    classes: (N,) int64
    about:   the images, and the settings
    side:    of the squares
    """

    f: Callable[[Tensor], Tensor]
    model: nn.Module
    images: Tensor
    classes: Tensor
    about: About
    side: int


def by_function(name: str, function: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Method:
    """Return the method of a function that knows nothing of squares, paths and baselines.

    function: (model, images (N, 3, H, W) in [0, 1], classes (N,) int64) → φ, shaped as the images
    """

    def attribution(asked: Question) -> Tensor:
        values = function(asked.model, asked.images, asked.classes)
        if not isinstance(values, Tensor) or values.shape != asked.images.shape:
            raise InputError(
                f"the method {name} returned {kind(values)}, not attributions "
                f"{tuple(asked.images.shape)} like the images"
            )
        return values

    return _of_pixels(attribution)


def _of_pixels(attribution: Callable[[Question], Tensor]) -> Method:
    """The method of a function that returns φ, shaped as the images."""

    def parts(asked: Question) -> Tensor:
        return square_parts(attribution(asked).detach().float(), side=asked.side)

    return Method(partial(_squares, parts))


def _squares(
    parts: Callable[[Question], Tensor],
    network: Network,
    model: nn.Module,
    images: Tensor,
    *,
    about: About,
    side: int,
    target: Tensor | None,
    of: str,
    baselines: Tensor,
    **_: Any,
) -> Attribution:
    with torch.no_grad():
        logits, at_baseline = model(images), model(baselines[0])
    predicted = logits.argmax(dim=1)
    classes = predicted if target is None else target

    def of_class(logits: Tensor) -> Tensor:
        return FUNCTIONS[of](logits).gather(1, classes.unsqueeze(1)).squeeze(1)

    asked = Question(lambda x: of_class(model(x)).sum(), model, images, classes, about, side)
    return Attribution(
        parts(asked), predicted, classes, of_class(logits), of_class(at_baseline),
        n_steps=torch.zeros_like(predicted), of_squares=True,
    )  # fmt: skip


def _slope(asked: Question, x: Tensor) -> Tensor:
    """∇f at points (N, 3, H, W), one an image."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(asked.f(x), x)[0]


def _gradient(asked: Question) -> Tensor:
    """∇f(x) (Simonyan, Vedaldi & Zisserman 2014), with its sign."""
    return _slope(asked, asked.images)


def _gradient_x_input(asked: Question) -> Tensor:
    """x ⊙ ∇f(x) (Shrikumar, Greenside & Kundaje 2017), of pixels in [0, 1]."""
    return asked.images * _slope(asked, asked.images)


def _smoothgrad(asked: Question) -> Tensor:
    """The mean of ∇f(x + N(0, σ²)) over samples (Smilkov et al. 2017); σ of white."""
    about, total = asked.about, torch.zeros_like(asked.images)
    rngs, shape = about.rngs(), asked.images.shape[1:]
    for _ in range(about.asked.n_samples):
        drawn = np.stack([rng.standard_normal(shape, np.float32) for rng in rngs])
        noise = torch.from_numpy(drawn).to(asked.images) * about.asked.noise
        total += _slope(asked, asked.images + noise)
    return total / about.asked.n_samples


def _expected_gradients(asked: Question) -> Tensor:
    """The mean of (x − b) ⊙ ∇f(b + α (x − b)) over samples: other images of the dataset b, and
    α uniform in [0, 1] (Erion et al. 2021, equation 4).
    """
    about, x, total = asked.about, asked.images, torch.zeros_like(asked.images)
    dataset, rngs = about.dataset, about.rngs()
    place = pd.Index(dataset.records["name"]).get_indexer(list(about.names))
    if len(dataset.records) < 2:
        raise InputError("expected gradients need another image to begin paths at")
    for _ in range(about.asked.n_samples):
        others = np.array([rng.integers(len(dataset.records) - 1) for rng in rngs])
        others += others >= place  # an image is no baseline of its own
        alpha = torch.tensor([rng.random() for rng in rngs]).to(x).view(-1, 1, 1, 1)
        b = pixels(dataset.read(others), x.device)
        total += (x - b) * _slope(asked, b + alpha * (x - b))
    return total / about.asked.n_samples


def _random(asked: Question) -> Tensor:
    """Uniform in [0, 1), of each pixel and channel."""
    shape = asked.images.shape[1:]
    drawn = np.stack([rng.random(shape, np.float32) for rng in asked.about.rngs()])
    return torch.from_numpy(drawn).to(asked.images)


def _maps(asked: Question) -> Tensor:
    """What lies ready in files: parts of squares."""
    folder, shape = Path(str(asked.about.asked.maps)), asked.images.shape[2:]
    found = [read_map(folder, name, (shape[0], shape[1]), asked.side) for name in asked.about.names]
    return torch.from_numpy(np.stack(found)).to(asked.images.device)


METHODS = {
    "integrated-gradients": Method(_integrated_gradients, is_complete=True),
    "gradient": _of_pixels(_gradient),
    "gradient-x-input": _of_pixels(_gradient_x_input),
    "smoothgrad": _of_pixels(_smoothgrad),
    "expected-gradients": _of_pixels(_expected_gradients),
    "random": _of_pixels(_random),
    "maps": Method(partial(_squares, _maps)),
}


def method_of(name: str) -> Method:
    """Return the method of a name: one of METHODS, or `by_function` of one's own."""
    return METHODS.get(name) or by_function(name, partial(called, name))
