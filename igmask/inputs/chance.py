"""Is a network right more often than by luck, or are its labels in another order than its outputs?

NumPy alone: the tables ask, and `preflight` and `check`, of a few images.
"""

import math

import numpy as np

from igmask.statistics import Z

FEWEST = 10  # images; of fewer nothing is said

_LEAST_KAPPA = 0.1
_GOOD_KAPPA = 0.5


def wilson(n_correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion of n_correct in n, in percent.

    (k + z²/2 ± z √(k (n − k)/n + z²/4)) / (n + z²), Wilson 1927, equation for p_0.
    """
    centre = n_correct + Z**2 / 2
    spread = Z * math.sqrt(n_correct * (n - n_correct) / n + Z**2 / 4)
    low, high = (centre - spread) / (n + Z**2), (centre + spread) / (n + Z**2)
    return 100 * max(low, 0.0), 100 * min(high, 1.0)


def by_luck(predicted: np.ndarray, labels: np.ndarray, n_classes: int) -> tuple[str, str] | None:
    """Return (level, what to say) of a network that is hardly better than chance, else None.

    Chance is 1 / n_classes, or what the same predictions would score if they were dealt to the
    images at random, Σ_c (share of the predictions) (share of the labels), if that is more: it is
    what a network scores that says one class of everything. Where all labels are one class the
    second number says nothing.

    The level is `error` for no better than chance: Wilson's interval does not lie above it. It is
    `warning` where the images are too few to tell, since the interval also holds what is far better
    (8 right of 10, of two classes), and for hardly better: (top-1 − chance) / (1 − chance), which
    is Cohen's κ (1960), is less than 0.1, as where few classes are where the network has them.

    predicted, labels: (N,) integers, classes 0 … n_classes − 1
    """
    n = len(labels)
    if n < FEWEST or n_classes == 1:
        return None
    said, given = (np.bincount(classes, minlength=n_classes) / n for classes in (predicted, labels))
    dealt = float(said @ given) if (given > 0).sum() > 1 else 0.0
    chance = max(1 / n_classes, dealt)
    n_correct = int((predicted == labels).sum())
    low, high = (bound / 100 for bound in wilson(n_correct, n))
    no_better = low <= chance
    kappa, most_kappa = ((top1 - chance) / (1 - chance) for top1 in (n_correct / n, high))
    if not no_better and kappa >= _LEAST_KAPPA:
        return None
    may_be_good = no_better and kappa > 1e-9 and most_kappa > _GOOD_KAPPA
    how = "perhaps no" if may_be_good else "no" if no_better else "hardly"
    most = int(said.argmax())
    return "error" if no_better and not may_be_good else "warning", (
        f"is right about {100 * n_correct / n:.1f} % of {n:,} original images, "
        f"{how} better than chance ({100 * chance:.1f} %; "
        f"{100 * said[most]:.1f} % of its predictions are class {most}): are the labels in the "
        "order of the network's outputs?"
    )
