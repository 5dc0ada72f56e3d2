"""Both ends of the path integral: the points, and the weighted sum of their gradients.

A *row* of a batch is one (image, step) pair; `rows` says which image each belongs to. So a batch
can hold any run of the queue of pairs, across images and steps alike.
"""

from torch import Tensor


def path_points(baseline: Tensor, image: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    """Return the points b + α (x − b), one a pair.

    baseline:  (N, ...) start of each image's path
    image:     (N, ...) end of each image's path
    rows:      (B,) int64, the image of each pair
    positions: (B,) α of each pair, in [0, 1]
    returns    (B, ...) in the dtype of `image`
    """
    start, end = baseline[rows], image[rows]
    alpha = positions.to(end.dtype).reshape(-1, *[1] * (end.ndim - 1))
    return start + alpha * (end - start)


def accumulate_(total: Tensor, gradient: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Add w·∂f to each pair's image in `total`, in the order of the pairs, and return it.

    On a CPU the sum is the same to the bit however the queue is cut into batches.

    total:    (N, ...) running sum, changed in place
    gradient: (B, ...) gradient at each pair's point
    rows:     (B,) int64, the image of each pair
    weights:  (B,) quadrature weight of each pair
    """
    weight = weights.to(total.dtype).reshape(-1, *[1] * (gradient.ndim - 1))
    return total.index_add_(0, rows, gradient.to(total.dtype) * weight)
