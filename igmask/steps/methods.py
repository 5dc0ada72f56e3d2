"""How an image's squares are attributed: a method is a function, by its name."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from igmask.engine.ig import FUNCTIONS, Attribution, attribute_squares
from igmask.engine.network import Network
from igmask.errors import InputError
from igmask.inputs.contract import kind
from igmask.inputs.own import called
from igmask.kernels import square_parts


class Method(NamedTuple):
    """A method, and what is known of it.

    squares:     (network, made ready; model, as it was loaded; images; side=, and the arguments of
                 `integrated_gradients`) → an Attribution of squares
    is_complete: whether attributions should sum to f(x) − f(b), as Integrated Gradients do
    """

    squares: Callable[..., Attribution]
    is_complete: bool


def _integrated_gradients(
    network: Network, model: nn.Module, images: Tensor, *, side: int, **options: Any
) -> Attribution:
    return attribute_squares(network, images, side=side, **options)


def by_function(name: str, function: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Method:
    """Return the method of a function that knows nothing of squares, paths and baselines.

    function: (model, images (N, 3, H, W) in [0, 1], classes (N,) int64) → φ, shaped as the images
    """
    return Method(partial(_by_function, name, function), is_complete=False)


def _by_function(
    name: str,
    function: Callable[[nn.Module, Tensor, Tensor], Tensor],
    network: Network,
    model: nn.Module,
    images: Tensor,
    *,
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
    values = function(model, images, classes)
    if not isinstance(values, Tensor) or values.shape != images.shape:
        raise InputError(
            f"the method {name} returned {kind(values)}, not attributions {tuple(images.shape)} "
            "like the images"
        )
    output, baseline_output = (
        FUNCTIONS[of](one).gather(1, classes.unsqueeze(1)).squeeze(1)
        for one in (logits, at_baseline)
    )
    parts = square_parts(values.detach().float(), side=side)
    n_steps = torch.zeros_like(predicted)
    answers = predicted, classes, output, baseline_output, n_steps
    return Attribution(parts, *answers, of_squares=True)


METHODS = {
    "integrated-gradients": Method(_integrated_gradients, is_complete=True),
}


def method_of(name: str) -> Method:
    """Return the method of a name: one of METHODS, or `by_function` of one's own."""
    return METHODS.get(name) or by_function(name, partial(called, name))
