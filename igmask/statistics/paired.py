"""Two conditions of the same images: by how much they differ, and whether that may be chance."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from igmask.statistics import Z

_LEAST = -300  # decimal exponent of the least p-value that is printed


class Pairs(NamedTuple):
    """In how many images the network is right under both conditions, under one alone, or none."""

    both: int
    first: int
    second: int
    neither: int

    @property
    def n(self) -> int:
        """Return how many images there are."""
        return sum(self)

    @property
    def difference(self) -> float:
        """Return the share that is right under the first less that under the second."""
        return (self.first - self.second) / self.n


def pairs(first: np.ndarray, second: np.ndarray) -> Pairs:
    """Return the counts of two conditions; first, second: (n,) bool, of the same images."""
    counts = np.bincount(2 * ~first + ~second, minlength=4)
    return Pairs(*map(int, counts))


def interval(counts: Pairs) -> tuple[float, float]:
    """Return the 95 % interval of the difference, within [−1, 1].

    d ± z √((p₁ + p₂ − d²) / (n + 2)) with p₁ = (b + 1) / (n + 2), p₂ = (c + 1) / (n + 2) and
    d = p₁ − p₂, of b and c images that are right under one condition alone (Bonett & Price 2012,
    J. Educ. Behav. Stat. 37, 479).
    """
    first, second = ((one + 1) / (counts.n + 2) for one in (counts.first, counts.second))
    centre = first - second
    spread = Z * math.sqrt((first + second - centre**2) / (counts.n + 2))
    return max(centre - spread, -1.0), min(centre + spread, 1.0)


def log_mid_p(first: int, second: int) -> float:
    """Return the natural logarithm of McNemar's two-sided mid-p-value; 0, so p = 1, of no pair.

    min(1, 2 F(t) − f(t)) with the binomial distribution F and probability f of t = min(b, c) in
    n = b + c with ½ (Fagerland, Lydersen & Laake 2013, BMC Med. Res. Methodol. 13, 91); summed in
    logarithms, since of 50,000 images it may be 1e-5000.

    first, second: b and c, the images that are right under one of the two conditions alone
    """
    if first == second:
        return 0.0
    # Here, since importing it takes longer than all else that a table without a comparison needs.
    from scipy.special import logsumexp
    from scipy.stats import binom

    n, least = first + second, min(first, second)
    f = binom.logpmf(np.arange(least + 1), n, 0.5)
    return min(0.0, float(f[-1] + np.log(2 * np.exp(logsumexp(f - f[-1])) - 1)))


def holm(log_p: Sequence[float]) -> list[float]:
    """Return the logarithms of p-values of one family, adjusted for their number.

    max_{j ≤ i} min(1, (m − j + 1) p(j)) in ascending order (Holm 1979, Scand. J. Stat. 6, 65);
    valid whatever they depend on, so for networks on the same images.
    """
    values = np.asarray(log_p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    times = np.log(np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] + times), 0)
    return adjusted.tolist()


def p_text(log_p: float) -> str:
    """Return a p-value as tables have it: 0.021, 3.1e-12, < 1e-300."""
    exponent = log_p / math.log(10)
    return f"< 1e{_LEAST}" if exponent < _LEAST else f"{math.exp(log_p):.2g}"
