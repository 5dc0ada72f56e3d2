"""Integrated Gradients (Sundararajan, Taly & Yan 2017): φ = (x − b) · Σ_h w_h ∇f(b + α_h (x − b)).

`path_gradients` runs the queue of (image, step) pairs in batches. `integrated_gradients` is the
experiment's call: an image classifier, its predicted class, completeness. captum.py has the class
with Captum's signature.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from igmask import quadrature
from igmask.errors import InputError
from igmask.kernels import accumulate_, path_points

FUNCTIONS = ("probability", "logit")
BATCH_SIZE = 64

Gradient = Callable[[tuple[Tensor, ...], Tensor], tuple[Tensor, ...]]


def path_gradients(
    gradient: Gradient,
    inputs: tuple[Tensor, ...],
    baselines: tuple[Tensor, ...],
    *,
    rule: str,
    n_steps: int,
    batch_size: int = BATCH_SIZE,
) -> tuple[Tensor, ...]:
    """Return Σ_h w_h ∇f(b + α_h (x − b)) of every example, one tensor an input.

    The queue holds the pairs (example, step) with the steps of an example next to each other; it
    is cut into batches of nearly the same size, at most `batch_size`. Memory depends neither on
    the number of steps nor of examples.

    gradient:  called with the points, one (B, ...) tensor an input, and rows (B,) int64, the
               example of each; returns the gradients at the points, shaped as the points
    inputs:    (N, ...) each;  baselines: the same shapes
    """
    positions, weights = (torch.tensor(v, dtype=torch.float64) for v in _rule(rule, n_steps))
    device = inputs[0].device
    totals = tuple(_sum_like(x) for x in inputs)
    for pairs in _queue(len(inputs[0]) * n_steps, batch_size):
        rows = (pairs // n_steps).to(device)
        alpha, weight = positions[pairs % n_steps].to(device), weights[pairs % n_steps].to(device)
        points = tuple(
            path_points(b, x, rows, alpha).requires_grad_()
            for b, x in zip(baselines, inputs, strict=True)
        )
        for total, grad in zip(totals, gradient(points, rows), strict=True):
            accumulate_(total, grad, rows, weight)
    return tuple(total.to(x.dtype) for total, x in zip(totals, inputs, strict=True))


def _rule(rule: str, n_steps: int) -> tuple[list[float], list[float]]:
    try:
        return quadrature.rule(rule, n_steps)
    except ValueError as error:
        raise InputError(str(error)) from None


def _sum_like(x: Tensor) -> Tensor:
    """Zeros in the memory format of x, in float32 at least: half precision loses sums of steps."""
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)).detach()


def _queue(n_pairs: int, batch_size: int) -> Iterator[Tensor]:
    """Yield 0 … n_pairs − 1 in consecutive runs of nearly equal length, at most batch_size."""
    if batch_size < 1:
        raise InputError(f"the batch size must be at least 1, got {batch_size}")
    n_batches = -(-n_pairs // batch_size)
    yield from torch.arange(n_pairs).chunk(n_batches) if n_batches else ()


@dataclass(frozen=True)
class Attribution:
    """What Integrated Gradients says about N images.

    values:      (N, C, H, W) φ, summing to output − baseline_output but for the quadrature's error
    predicted:   (N,) int64, the class of the largest logit at the image
    target:      (N,) int64, the class whose output was attributed
    output:      (N,) f at the image
    baseline_output: (N,) f at the baseline, averaged over several baselines
    """

    values: Tensor
    predicted: Tensor
    target: Tensor
    output: Tensor
    baseline_output: Tensor

    @property
    def completeness(self) -> Tensor:
        """(N,) float64: Σφ − (f(x) − f(b)), zero for an exact integral."""
        change = self.output.double() - self.baseline_output.double()
        return self.values.double().sum(dim=(1, 2, 3)) - change


def integrated_gradients(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    baselines: Tensor | None = None,
    target: Tensor | None = None,
    of: str = "probability",
    rule: str = "right",
    n_steps: int = 50,
    batch_size: int = BATCH_SIZE,
) -> Attribution:
    """Return the attribution of a classifier's output to the pixels of its images.

    model:     (N, C, H, W) → logits (N, n_classes); in evaluation mode, on the images' device
    images:    (N, C, H, W) floating point
    baselines: (n_baselines, N, C, H, W), averaged over the first axis; black if None
    target:    (N,) int64 classes; the predicted ones if None
    of:        f, `probability` (softmax of the target class) or `logit`
    rule, n_steps: see `quadrature.rule`
    raises     InputError if the model's output is not (N, n_classes) or a target is out of range
    """
    if of not in FUNCTIONS:
        raise InputError(f"unknown function {of!r}; choose from {', '.join(FUNCTIONS)}")
    if baselines is None:
        baselines = torch.zeros_like(images).unsqueeze(0)

    def f(x: Tensor, classes: Tensor) -> Tensor:
        scores = class_scores(model, x)
        if of == "probability":
            scores = scores.softmax(dim=1)
        return scores.gather(1, classes.unsqueeze(1)).squeeze(1)

    with torch.no_grad():
        logits = class_scores(model, images)
        predicted = logits.argmax(dim=1)
        classes = predicted if target is None else target.to(predicted)
        if ((classes < 0) | (classes >= logits.shape[1])).any():
            raise InputError(
                f"targets {classes.min()} … {classes.max()} do not fit a model of "
                f"{logits.shape[1]} classes"
            )
        f_image = f(images, classes)
        f_baseline = torch.stack([f(b, classes) for b in baselines]).mean(dim=0)

    def gradient(points: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
        return input_gradients(f(points[0], classes[rows]), points)

    values = torch.zeros_like(images)
    for baseline in baselines:
        (slope,) = path_gradients(
            gradient, (images,), (baseline,), rule=rule, n_steps=n_steps, batch_size=batch_size
        )
        values += (images - baseline) * slope / len(baselines)
    return Attribution(values, predicted, classes, f_image, f_baseline)


def class_scores(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the model's output, or raise InputError if it is not a tensor (N, n_classes)."""
    scores = model(images)
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(images):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(
            f"the model's output must be a tensor [N, classes] = [{len(images)}, …], got {shape}"
        )
    return scores


def input_gradients(outputs: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the gradient of every row's output by its own inputs, shaped as the inputs.

    Rows do not mix, so one backward pass of the sum gives them all.

    raises InputError if the outputs do not depend on the inputs differentiably
    """
    if not outputs.requires_grad:
        raise InputError(
            "the model's output has no gradient with respect to its input; look for detach(), "
            "no_grad(), or an operation such as argmax or rounding in its forward"
        )
    return torch.autograd.grad(outputs.sum(), inputs)
