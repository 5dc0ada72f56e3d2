"""Integrated Gradients with the signature and semantics of captum.attr.IntegratedGradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from igmask.errors import InputError
from igmask.ig import BATCH_SIZE, input_gradients, path_gradients


class IntegratedGradients:
    """Integrated Gradients with Captum's signature; see `captum.attr.IntegratedGradients`.

    forward_func: a module or function; its first arguments are the inputs, the rest additional
                  arguments; returns one number an example, or a tensor from which `target` picks
    multiply_by_inputs: False leaves out the factor (x − b): the average gradient on the path
    """

    def __init__(
        self, forward_func: Callable[..., Tensor], multiply_by_inputs: bool = True
    ) -> None:
        self.forward_func = forward_func
        self.multiplies_by_inputs = multiply_by_inputs

    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Return the attributions of the inputs, a tensor or a tuple as the inputs are.

        inputs:    (N, ...) tensor, or a tuple of them
        baselines: a number or tensor (N or 1, ...) an input; zero if None
        target:    for outputs (N, classes) an int, a tensor (N,) or a list of N; for outputs with
                   more axes a tuple, or a list of N tuples; None for one output an example
        additional_forward_args: passed after the inputs, tensors by their rows
        method:    a name of `quadrature.RULES` or of Captum's
        internal_batch_size: most rows of one forward pass; None lets igmask choose
        return_convergence_delta: also return (N,) Σφ − (f(x) − f(b))
        raises     InputError for shapes that do not fit, an unknown method, or a bad target
        """
        xs = inputs if isinstance(inputs, tuple) else (inputs,)
        bs = _expand_baselines(xs, baselines)
        extra = additional_forward_args
        extra = () if extra is None else extra if isinstance(extra, tuple) else (extra,)
        n_examples = len(xs[0])

        def f(points: tuple[Tensor, ...], rows: Tensor) -> Tensor:
            arguments = (a[rows] if _has_rows(a, n_examples) else a for a in extra)
            return pick_target(self.forward_func(*points, *arguments), target, rows)

        def gradient(points: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
            return input_gradients(f(points, rows), points)

        with torch.enable_grad():
            slopes = path_gradients(
                gradient,
                tuple(x.detach() for x in xs),
                bs,
                rule=method,
                n_steps=n_steps,
                batch_size=internal_batch_size or BATCH_SIZE,
            )
        values = slopes
        if self.multiplies_by_inputs:
            values = tuple((x - b) * s for x, b, s in zip(xs, bs, slopes, strict=True))
        values = tuple(v.detach() for v in values)
        result = values if isinstance(inputs, tuple) else values[0]
        if not return_convergence_delta:
            return result
        with torch.no_grad():
            rows = torch.arange(n_examples, device=xs[0].device)
            change = (f(xs, rows) - f(bs, rows)).reshape(n_examples)
        return result, sum(v.reshape(n_examples, -1).sum(dim=1) for v in values) - change


def _expand_baselines(inputs: tuple[Tensor, ...], baselines: Any) -> tuple[Tensor, ...]:
    given = baselines if isinstance(baselines, tuple) else (baselines,) * len(inputs)
    if len(given) != len(inputs):
        raise InputError(f"got {len(given)} baselines for {len(inputs)} inputs")
    return tuple(_expand_baseline(x, b) for x, b in zip(inputs, given, strict=True))


def _expand_baseline(x: Tensor, baseline: Any) -> Tensor:
    if not isinstance(baseline, Tensor):
        return torch.full_like(x, 0 if baseline is None else baseline).detach()
    if baseline.shape[1:] != x.shape[1:] or len(baseline) not in (1, len(x)):
        raise InputError(
            f"a baseline of shape {tuple(baseline.shape)} does not fit an input of shape "
            f"{tuple(x.shape)}; it must be the same, or 1 along the first axis"
        )
    return baseline.detach().to(x).expand_as(x)


def _has_rows(argument: Any, n_examples: int) -> bool:
    return isinstance(argument, Tensor) and argument.ndim > 0 and len(argument) == n_examples


def pick_target(output: Tensor, target: Any, rows: Tensor) -> Tensor:
    """Return (B,): of each row's output the number that `target` names, in Captum's notation.

    output: (B, ...);  rows: (B,) the example of each row, by which a target per example is found
    raises  InputError if the target does not name one number an example
    """
    if target is None:
        if output.numel() not in (1, len(rows)):
            raise InputError(
                f"an output of shape {tuple(output.shape)} has several numbers an example: "
                "target must say which one to attribute"
            )
        return output.reshape(-1)
    if isinstance(target, Tensor):
        target = target.item() if target.numel() == 1 else target.tolist()
    per_row = (
        [target[i] for i in rows.tolist()] if isinstance(target, list) else [target] * len(rows)
    )
    places = [t if isinstance(t, tuple) else (t,) for t in per_row]
    if any(len(place) != output.ndim - 1 for place in places):
        raise InputError(
            f"target {places[0]} does not name one number in an output of shape "
            f"{tuple(output.shape)}"
        )
    index = torch.tensor(places, device=output.device).unbind(1)
    try:
        return output[(torch.arange(len(rows), device=output.device), *index)]
    except IndexError:
        raise InputError(
            f"a target is out of range for an output of shape {tuple(output.shape)}"
        ) from None
