"""Scores, p → the squares that hold the top p %: of the mass, or of their number.

The result is the same on every device, whatever the order of summation: a row's scores become
integers (the row's maximum in [2²⁹, 2³⁰), rounded towards zero), masses are int64 sums, and p is
a whole number of basis points. Ties go to the lower index.
"""

import torch
from torch import Tensor

SELECTIONS = ("mass", "count")

_INT32_MAX = 2**31 - 1


def select(scores: Tensor, p: float, *, by: str = "mass") -> Tensor:
    """Return the mask of the squares that hold the top p %.

    mass:  squares in descending score, until their sum reaches p % of the sum of all positive
           scores: the fewest squares that do
    count: the best ⌈p·K/100⌉ of a row's K squares

    A row without a positive score selects nothing.

    scores:  (N, P, Q) or (N, K), floating point
    p:       percent in (0, 100], at most two decimals
    returns  bool, in the shape of `scores`
    raises   ValueError for p out of range or NaN or infinity among the scores, naming the rows
    """
    if by not in SELECTIONS:
        raise ValueError(f"unknown selection {by!r}; choose from {', '.join(SELECTIONS)}")
    if scores.ndim < 2 or not scores.is_floating_point():
        raise ValueError(
            "select: expected floating-point scores (N, P, Q) or (N, K), "
            f"got {scores.dtype} {tuple(scores.shape)}"
        )
    p_points = basis_points(p)
    flat = scores.flatten(1)
    bad = (~flat.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"select: NaN or infinite scores in rows {bad[:10]} of {len(flat)}")

    ordered, order = _to_integers(flat).sort(dim=1, descending=True, stable=True)
    if by == "mass":
        mass = ordered.clamp(min=0).cumsum(dim=1)
        before = mass - ordered.clamp(min=0)  # a square is needed while the mass before it is short
        chosen = before * 10_000 < p_points * mass[:, -1:]
    else:
        n_best = -(-p_points * flat.shape[1] // 10_000)
        chosen = (torch.arange(flat.shape[1], device=flat.device) < n_best) & (ordered[:, :1] > 0)
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, chosen)
    return mask.view(scores.shape)


def basis_points(p: float) -> int:
    """Return p percent as a whole number of hundredths of a percent, or raise ValueError."""
    points = round(p * 100)
    if not 0 < points <= 10_000 or abs(points - p * 100) > 1e-6:
        raise ValueError(f"p must be in (0, 100], with at most two decimals; got {p}")
    return points


def _to_integers(flat: Tensor) -> Tensor:
    """Return (N, K) int64 scores, each row scaled by the power of two that its maximum asks for.

    float64 holds the scaled values exactly, subnormal scores included. Negative scores far below
    the row's maximum are cut off at −(2³¹ − 1): they only ever matter to `count`, at the very end.
    """
    exact = flat.double()
    top = exact.amax(dim=1, keepdim=True)
    _, exponent = torch.frexp(top.clamp(min=torch.finfo(torch.float64).tiny))
    scaled = torch.ldexp(exact, 30 - exponent).clamp(min=-_INT32_MAX, max=_INT32_MAX)
    return scaled.trunc().long()
