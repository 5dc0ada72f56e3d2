"""Integrated Gradients as the paper has them: what the engine computes, without what makes it fast.

Sundararajan, Taly & Yan (2017), "Axiomatic Attribution for Deep Networks", equations 1 and 3.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from igmask import quadrature


def integrated_gradients(
    f: Callable[[Tensor], Tensor],
    images: Tensor,
    baselines: Tensor,
    *,
    rule: str = "right",
    n_steps: int = 50,
) -> Tensor:
    """Return φ = (x − b) Σ_h w_h ∇f(b + α_h (x − b)), shaped as the images.

    f:         (N, …) → (N,), the number that is attributed of each image
    images, baselines: (N, …) floating point, whose precision is that of the result
    rule, n_steps: see `quadrature.rule`, which gives the α_h and w_h
    """
    total = torch.zeros_like(images)
    for alpha, weight in zip(*quadrature.rule(rule, n_steps), strict=True):
        points = (baselines + alpha * (images - baselines)).requires_grad_()
        (slopes,) = torch.autograd.grad(f(points).sum(), points)
        total += weight * slopes
    return (images - baselines) * total
