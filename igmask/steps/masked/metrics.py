"""What the records say of an image: a metric is a function of what the network says of it.

Another one is an entry of `METRICS`, or of `OF_MASKS` for one of what is kept; records change with
it, so raise `STAGES["evaluate"]`.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from torch import Tensor

# Of probabilities (N, n_classes), the labels (N,), and the classes predicted for the original
# images (N,), all on the CPU: (N,) numbers, a column of the records.
Metric = Callable[[Tensor, Tensor, Tensor], Tensor]

# Of the squares that are kept (N, P, Q) and the pixels of each (P, Q): the same.
MaskMetric = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _of(probabilities: Tensor, classes: Tensor) -> Tensor:
    return probabilities.gather(1, classes.unsqueeze(1)).squeeze(1)


def _entropy(probabilities: Tensor, label: Tensor, original: Tensor) -> Tensor:
    """−Σ_c p_c log₂ p_c, in bits (Shannon 1948); 0 log 0 is 0."""
    return -(probabilities.double() * probabilities.double().clamp(min=1e-300).log2()).sum(dim=1)


def _margin(probabilities: Tensor, label: Tensor, original: Tensor) -> Tensor:
    """How far the first class is ahead of the second."""
    if probabilities.shape[1] == 1:
        return probabilities[:, 0]
    first, second = probabilities.topk(2, dim=1).values.T
    return first - second


def _area_kept(kept: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The share of the pixels."""
    return (kept * sizes).sum(axis=(1, 2)) / sizes.sum()


def _boundary(kept: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The pairs of neighbouring pixels, side by side, of which one is kept and the other not."""
    heights, widths = sizes[:, 0] / sizes[0, 0], sizes[0] / sizes[0, 0]
    side = sizes[0, 0] ** 0.5  # of a whole square, as the first is if there are several
    across = ((kept[:, :, 1:] != kept[:, :, :-1]) * heights[:, None]).sum(axis=(1, 2))
    down = ((kept[:, 1:] != kept[:, :-1]) * widths).sum(axis=(1, 2))
    return np.rint(side * (across + down)).astype(np.int64)


def _components(kept: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The pieces that the kept pixels hang together in, by their sides."""
    within = np.zeros((3, 3, 3), dtype=bool)  # an image hangs together with no other
    within[1] = ndimage.generate_binary_structure(2, 1)
    labels, n_pieces = ndimage.label(kept, within)
    owners = np.zeros(n_pieces + 1, dtype=np.int64)
    owners[labels] = np.arange(len(kept))[:, None, None]
    return np.bincount(owners[1:], minlength=len(kept))


METRICS: dict[str, Metric] = {
    "predicted": lambda probabilities, label, original: probabilities.argmax(dim=1),
    "correct": lambda probabilities, label, original: probabilities.argmax(dim=1) == label,
    "probability_predicted": lambda probabilities, label, original: probabilities.amax(dim=1),
    "probability_label": lambda probabilities, label, original: _of(probabilities, label),
    "probability_original": lambda probabilities, label, original: _of(probabilities, original),
    "entropy": _entropy,
    "margin": _margin,
}

OF_MASKS: dict[str, MaskMetric] = {
    "area_kept": _area_kept,
    "boundary": _boundary,
    "components": _components,
}
