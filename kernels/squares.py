"""Attribution → scores of the squares that tile the image.

Squares of `side` × `side` pixels tile the image from the top left; where the side does not divide
the image, the last row and column of squares are partial, and count as squares of their own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES = ("positive", "absolute", "signed", "absolute-sum")


def grid(height: int, width: int, side: int) -> tuple[int, int]:
    """Return (P, Q), the rows and columns of squares of an image: ⌈H/s⌉, ⌈W/s⌉."""
    return -(-height // side), -(-width // side)


def square_parts(attribution: Tensor, *, side: int = 3) -> Tensor:
    """Return the positive and the negative part of the attribution of every square.

    Both are sums over a square's pixels and channels: Σ max(φ, 0) and Σ max(−φ, 0). Every score
    follows from the two (`score_parts`).

    attribution: (N, C, H, W)
    returns      (N, 2, P, Q) ≥ 0, float32, or float64 if the attribution is
    """
    if attribution.ndim != 4 or not attribution.is_floating_point():
        raise ValueError(
            "square_parts: expected a floating-point attribution (N, C, H, W), "
            f"got {attribution.dtype} {tuple(attribution.shape)}"
        )
    if side < 1:
        raise ValueError(f"square_parts: side must be at least 1, got {side}")
    phi = attribution.to(torch.promote_types(attribution.dtype, torch.float32))
    parts = torch.stack((phi.clamp(min=0).sum(1), (-phi).clamp(min=0).sum(1)), dim=1)
    height, width = phi.shape[-2:]
    n_rows, n_columns = grid(height, width, side)
    bottom, right = n_rows * side - height, n_columns * side - width
    tiles = F.pad(parts, (0, right, 0, bottom)).unflatten(3, (n_columns, side))
    return tiles.unflatten(2, (n_rows, side)).sum(dim=(3, 5))


def score_parts(parts: Tensor, score: str) -> Tensor:
    """Return the scores (N, P, Q) of squares whose parts (N, 2, P, Q) are given.

    positive Σ max(φ, 0) · absolute Σ |φ| · signed Σ φ · absolute-sum |Σ φ|
    """
    positive, negative = parts.unbind(1)
    if score == "positive":
        return positive
    if score == "absolute":
        return positive + negative
    if score == "signed":
        return positive - negative
    if score == "absolute-sum":
        return (positive - negative).abs()
    raise ValueError(f"unknown score {score!r}; choose from {', '.join(SCORES)}")


def square_scores(attribution: Tensor, *, side: int = 3, score: str = "positive") -> Tensor:
    """Return the score of every square: (N, C, H, W) → (N, P, Q), float32 or float64.

    score: one of `SCORES`, a sum over a square's pixels and channels (see `score_parts`)
    """
    return score_parts(square_parts(attribution, side=side), score)
