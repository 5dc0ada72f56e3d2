"""Gradients of a function's outputs by its inputs, which it may change in place."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode, resolve_name

from igmask.errors import InputError


def input_gradients(f: Callable[..., Tensor], points: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the gradient of the sum of f(*points) by each of them; zero where f leaves one out.

    f may change its arguments in place.

    raises InputError if f does not depend on the points differentiably, saying what cuts it
    """
    with torch.enable_grad():
        nodes = tuple(map(node_of, points))
        edges = [get_gradient_edge(node) for node in nodes]
        outputs = f(*nodes)
        slopes: tuple[Tensor | None, ...] = (None,) * len(points)
        if outputs.requires_grad:
            slopes = torch.autograd.grad(outputs.sum(), edges, allow_unused=True)
    if all(slope is None for slope in slopes):
        raise InputError(
            f"the model's output has no gradient with respect to its input: {_what_cuts(f, points)}"
        )
    return tuple(
        torch.zeros_like(point) if slope is None else slope
        for point, slope in zip(points, slopes, strict=True)
    )


def node_of(point: Tensor) -> Tensor:
    """Return the point as a node of autograd that is no leaf, so that it may change in place."""
    return point.add_(torch.zeros((), dtype=point.dtype, device=point.device, requires_grad=True))


def _what_cuts(f: Callable[..., Tensor], points: tuple[Tensor, ...]) -> str:
    cuts: list[str] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            asked = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
            result = function(*args, **(kwargs or {}))
            if asked and isinstance(result, Tensor) and not result.requires_grad:
                under = "" if torch.is_grad_enabled() else " under no_grad()"
                cuts.append(f"{resolve_name(function) or function}{under}")
            return result

    with torch.enable_grad():
        nodes = tuple(node_of(point.detach().clone()) for point in points)
        with Watch():
            f(*nodes)
    names = ", ".join(dict.fromkeys(cuts))
    return f"it is cut by {names}" if names else "the output does not depend on it"


def ordinary(x: Tensor) -> Tensor:
    """Return the tensor, detached; a copy if it is one of torch.inference_mode."""
    with torch.inference_mode(False):
        return x.clone() if x.is_inference() else x.detach()


def all_finite(tensors: tuple[Tensor, ...]) -> bool:
    """Whether no number of the tensors is NaN or infinite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
