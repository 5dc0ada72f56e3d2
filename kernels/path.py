"""Both ends of the path integral: the points, and the weighted sum of their gradients.

A *row* of a batch is one (image, step) pair; `rows` says which image each belongs to. So a batch
can hold any run of the queue of pairs, across images and steps alike.
"""

import torch
from torch import Tensor


def path_points(
    baseline: Tensor,
    image: Tensor,
    rows: Tensor,
    positions: Tensor,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the points b + α (x − b), one a pair; b and x themselves, to the bit, at α = 0 and 1.

    baseline:  (N, ...) start of each image's path
    image:     (N, ...) end of each image's path
    rows:      (B,) int64, the image of each pair
    positions: (B,) α of each pair, in [0, 1]
    dtype:     of the points; that of `image` if None. α is rounded to no less than float32
    returns    (B, ...) in the memory format of `image`
    """
    points = torch.empty(
        (len(rows), *image.shape[1:]),
        dtype=image.dtype,
        device=image.device,
        memory_format=memory_format_of(image),
    )
    # One image after the other: its two ends stay in the cache for all of its steps.
    for point, row, alpha in zip(points, rows.tolist(), positions.tolist(), strict=True):
        torch.lerp(baseline[row], image[row], alpha, out=point)
    return points if dtype is None else points.to(dtype)


def accumulate_(total: Tensor, gradient: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Add w·∂f to each pair's image in `total`, in the order of the pairs, and return it.

    The sum is the same to the bit however the queue is cut into batches. Pairs of weight zero
    are left out, whatever their gradient is.

    total:    (N, ...) running sum, changed in place
    gradient: (B, ...) gradient at each pair's point
    rows:     (B,) int64, the image of each pair
    weights:  (B,) quadrature weight of each pair
    """
    for slope, row, weight in zip(gradient, rows.tolist(), weights.tolist(), strict=True):
        if weight:
            total[row].add_(slope, alpha=weight)
    return total


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Return channels_last for a batch of images whose channels lie next to each other."""
    last = x.ndim == 4 and not x.is_contiguous()
    if last and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
