"""Quadrature rules on [0, 1]: where on the path to take gradients, and their weights.

On ReLU networks every rule converges as 1/m, since the gradient jumps along the path. What helps is
to take more steps where the output changes: the rule `adaptive` places them anew for each path.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from igmask.errors import InputError, integer

Rule = tuple[Sequence[float], Sequence[float]]  # positions and weights of the steps of a path

RULES = ("right", "left", "middle", "trapezoid", "gauss-legendre")  # the same on every path
ADAPTIVE = "adaptive"
CAPTUM_RULES = (*(f"riemann_{name}" for name in RULES[:-1]), "gausslegendre")


def rule(name: str, n_steps: int) -> tuple[list[float], list[float]]:
    """Return (positions, weights) of a rule with m = n_steps positions, in float64.

    right h/m · left (h−1)/m · middle (h−½)/m, for h = 1 … m, all with weights 1/m · trapezoid
    (h−1)/(m−1) with weights 1/(m−1), halved at both ends · gauss-legendre, exact for polynomials
    of degree 2m−1. The weights of each sum to 1.

    Captum's names (`CAPTUM_RULES`) mean Captum's weights: those of its `riemann_trapezoid` are
    1/m, halved at both ends, and sum to (m−1)/m.

    raises InputError for an unknown name or too few steps
    """
    if name not in RULES + CAPTUM_RULES:
        known = ", ".join(RULES + CAPTUM_RULES)
        raise InputError(f"unknown quadrature rule {name!r}; choose from {known}")
    least = 2 if name.endswith("trapezoid") else 1
    if n_steps < least:
        raise InputError(f"n_steps of rule {name!r} must be at least {least}, got {n_steps}")

    kind = name.removeprefix("riemann_")
    if kind in ("gauss-legendre", "gausslegendre"):
        nodes, gauss_weights = np.polynomial.legendre.leggauss(n_steps)  # on [−1, 1]
        return ((1 + nodes) / 2).tolist(), (gauss_weights / 2).tolist()
    if kind == "trapezoid":
        total = 1 if name == "trapezoid" else (n_steps - 1) / n_steps
        positions = np.linspace(0, 1, n_steps)
        weights = np.full(n_steps, total / (n_steps - 1))
        weights[0] /= 2
        weights[-1] /= 2
        return positions.tolist(), weights.tolist()
    first = {"right": 1, "left": 0, "middle": 0.5}[kind]
    return [(h + first) / n_steps for h in range(n_steps)], [1 / n_steps] * n_steps


def between(name: str, n_steps: int) -> tuple[list[float], list[float], int]:
    """Return (positions, weights, m') of the points that refine a rule with m = n_steps positions.

    The rule with m' positions is the mean of the rule with m and of these: right and left double
    m, trapezoid halves its intervals. The others share no points with their refinements.

    raises InputError for a rule that cannot be refined so
    """
    if name in ("right", "left"):
        shift = {"right": -0.5, "left": 0.5}[name]
        positions, weights = rule(name, n_steps)
        return [alpha + shift / n_steps for alpha in positions], weights, 2 * n_steps
    if name == "trapezoid":
        n_intervals = n_steps - 1
        positions = [(h + 0.5) / n_intervals for h in range(n_intervals)]
        return positions, [1 / n_intervals] * n_intervals, 2 * n_steps - 1
    raise InputError(
        "automatic steps refine the rules right, left, trapezoid and adaptive, not "
        f"{name!r}: its points are not among those of twice as many"
    )


def checked_rule(name: str, n_steps: int, *, refined: bool = False) -> Rule:
    """Return (positions, weights) of a rule, one that can be `refined`, or raise InputError.

    Of the rule `adaptive`, whose steps are of each path, those of a path on which f is linear.
    """
    n_steps = integer("n_steps", n_steps)
    if name == ADAPTIVE:
        least = 2 if refined else 1  # edges of cells, or cells
        if n_steps < least:
            raise InputError(f"n_steps of rule {name!r} must be at least {least}, got {n_steps}")
        return rule("middle", n_steps)
    found = rule(name, n_steps)
    if refined:
        between(name, n_steps)
    return found


def check_asked(
    name: str, n_steps: int | str, *, of: str = "probability", skip: float | None = None
) -> None:
    """Raise InputError if steps cannot be taken so.

    n_steps: a number, or `auto`
    of:      what is attributed;  skip: see `steep`
    """
    is_auto = n_steps == "auto"
    checked_rule(name, 25 if is_auto else int(n_steps), refined=is_auto)
    if skip is None:
        return
    if isinstance(skip, bool) or not isinstance(skip, int | float) or not 0 < skip <= 0.25:
        raise InputError(f"skip is a slope p (1 − p), above 0 and at most 0.25; got {skip!r}")
    if is_auto or name == ADAPTIVE or of != "probability":
        raise InputError(
            "skip leaves out steps of a fixed rule and number, of a probability; not with of "
            f"{of!r}, rule {name!r}, n_steps {n_steps}"
        )


def with_ends(rule: Rule) -> Rule:
    """Return the steps with 1 and 0 first, of weight zero where the rule does without them."""
    weights = dict(zip(*rule, strict=True))
    ordered = {1.0: weights.pop(1.0, 0.0), 0.0: weights.pop(0.0, 0.0)} | weights
    return list(ordered), list(ordered.values())


# -- the rule `adaptive` ------------------------------------------------------------------------

# Where f is asked before steps are placed, from the baseline to the image.
PROBES = tuple(h / 15 for h in range(16))
# Of the density, the part that follows f; the rest is uniform, since gradients change where f does
# not. It and the power ½ were chosen on ResNet-20 and CIFAR-10, and held on the other networks.
_FOLLOWS = 0.8


def cells(values: Sequence[float], n_cells: int) -> np.ndarray:
    """Return the edges, (n_cells + 1,) from 0 to 1, of cells of equal mass, by f at the PROBES.

    The density is 0.8 √|f′| + 0.2, both parts scaled to mass 1, and f′ constant between probes;
    uniform if f does not change, or is somewhere not finite. Density by |Δf| of a few forward
    passes: Bhat & Raychowdhury (2023), arXiv:2302.11107, without the root and the uniform part.

    values: (16,) f(b + α (x − b)) at each α of PROBES
    """
    mass = widths = np.diff(PROBES)
    with np.errstate(invalid="ignore", over="ignore"):
        following = np.sqrt(np.abs(np.diff(np.asarray(values, np.float64))) * widths)
    if 0 < following.sum() < np.inf:  # not where it is NaN, either
        mass = _FOLLOWS * following / following.sum() + (1 - _FOLLOWS) * widths
    below = np.concatenate([[0.0], np.cumsum(mass)])
    return np.interp(np.linspace(0, below[-1], n_cells + 1), below, PROBES)


def following(probed: Sequence[Sequence[float]], n_steps: int) -> list[Rule]:
    """Return the steps of rule `adaptive` on each path: the middles of its cells.

    probed: (N, 16), f at the PROBES of each path
    """
    return [middles(cells(values, n_steps)) for values in probed]


def middles(edges: np.ndarray) -> tuple[list[float], list[float]]:
    """Return (positions, weights): the middle of each cell, weighted by its width."""
    return ((edges[1:] + edges[:-1]) / 2).tolist(), np.diff(edges).tolist()


def trapezoids(edges: np.ndarray) -> tuple[list[float], list[float]]:
    """Return (positions, weights): the edges of the cells, by the trapezoid rule.

    The mean of this and of `middles` is the trapezoid rule of the cells `halved`.
    """
    widths = np.diff(edges)
    return edges.tolist(), ((np.append(widths, 0) + np.append(0, widths)) / 2).tolist()


def halved(edges: np.ndarray) -> np.ndarray:
    """Return the edges of cells half as wide."""
    return np.insert(edges, range(1, len(edges)), (edges[1:] + edges[:-1]) / 2)


# -- steps between ----------------------------------------------------------------------------


class Refinement(Protocol):
    """Steps that are doubled again and again.

    The sum with twice as many is the mean of the one before and of the one of the steps between.

    n_steps: on a path
    """

    n_steps: int

    def rules(self, baseline: int) -> Sequence[Rule]:
        """Return the first steps, of each image's path from a baseline."""

    def finer(self) -> int:
        """Return how many steps there will be next."""

    def between(self, baseline: int, images: Sequence[int]) -> Sequence[Rule]:
        """Return the steps between, on the paths of some images."""

    def refine(self) -> None:
        """Go on to twice as many."""


class Uniform:
    """The same steps on every path, by a rule that can be refined."""

    def __init__(self, rule: str, n_steps: int, n_images: int) -> None:
        first = with_ends(checked_rule(rule, n_steps, refined=True))
        self._rule, self.n_steps, self._first = rule, n_steps, [first] * n_images

    def rules(self, baseline: int) -> Sequence[Rule]:
        """Return the first steps, with the ends of the path."""
        return self._first

    def finer(self) -> int:
        """Return twice as many, or but one of a rule with both ends."""
        return between(self._rule, self.n_steps)[2]

    def between(self, baseline: int, images: Sequence[int]) -> Sequence[Rule]:
        """Return the steps between."""
        positions, weights, _ = between(self._rule, self.n_steps)
        return [(positions, weights)] * len(images)

    def refine(self) -> None:
        """Go on to twice as many."""
        self.n_steps = self.finer()


class Following:
    """Steps at the edges of cells that follow f, which are halved.

    probed: of each baseline (N, 16), f at the probes of each path
    """

    def __init__(self, probed: Sequence[Any], n_steps: int) -> None:
        checked_rule(ADAPTIVE, n_steps, refined=True)
        self.n_steps = n_steps
        self._edges = [[cells(f, n_steps - 1) for f in values] for values in probed]

    def rules(self, baseline: int) -> Sequence[Rule]:
        """Return the first steps: trapezoids."""
        return [trapezoids(edges) for edges in self._edges[baseline]]

    def finer(self) -> int:
        """Return how many edges the halves have."""
        return 2 * self.n_steps - 1

    def between(self, baseline: int, images: Sequence[int]) -> Sequence[Rule]:
        """Return the middles of the cells."""
        return [middles(self._edges[baseline][image]) for image in images]

    def refine(self) -> None:
        """Halve every cell."""
        self.n_steps = self.finer()
        self._edges = [[halved(edges) for edges in of_one] for of_one in self._edges]


# -- steps left out ---------------------------------------------------------------------------


def steep(rule: Rule, values: Sequence[float], least: float) -> np.ndarray:
    """Return which steps of a rule, (m,) bool, lie where the softmax is at least so steep.

    The largest slope of a probability p by a logit is p (1 − p). A step is not where both probes
    around it say that the slope is less, and that p hardly changes between them. The last step is
    taken if no other is.

    values: (16,) p at each α of PROBES
    """
    p = np.asarray(values, np.float64)
    is_flat = p * (1 - p) < least
    is_flat = is_flat[1:] & is_flat[:-1] & (np.abs(np.diff(p)) < least)
    taken = ~is_flat[np.clip(np.searchsorted(PROBES, rule[0]) - 1, 0, len(PROBES) - 2)]
    taken[-1] |= not taken.any()
    return taken


def some(rule: Rule, which: np.ndarray) -> Rule:
    """Return those steps of a rule that are marked, (m,) bool."""
    positions, weights = np.asarray(rule)[:, which].tolist()
    return positions, weights
