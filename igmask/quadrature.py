"""Quadrature rules on [0, 1]: where on the path to take gradients, and their weights.

On ReLU networks every rule converges as 1/m, since the gradient jumps along the path.
"""

import numpy as np

RULES = ("right", "left", "middle", "trapezoid", "gauss-legendre")
CAPTUM_RULES = (*(f"riemann_{name}" for name in RULES[:-1]), "gausslegendre")


def rule(name: str, n_steps: int) -> tuple[list[float], list[float]]:
    """Return (positions, weights) of a rule with m = n_steps positions, in float64.

    right h/m · left (h−1)/m · middle (h−½)/m, for h = 1 … m, all with weights 1/m · trapezoid
    (h−1)/(m−1) with weights 1/(m−1), halved at both ends · gauss-legendre, exact for polynomials
    of degree 2m−1. The weights of each sum to 1.

    Captum's names (`CAPTUM_RULES`) mean Captum's weights: those of its `riemann_trapezoid` are
    1/m, halved at both ends, and sum to (m−1)/m.

    raises ValueError for an unknown name or too few steps
    """
    if name not in RULES + CAPTUM_RULES:
        known = ", ".join(RULES + CAPTUM_RULES)
        raise ValueError(f"unknown quadrature rule {name!r}; choose from {known}")
    least = 2 if name.endswith("trapezoid") else 1
    if n_steps < least:
        raise ValueError(f"n_steps of rule {name!r} must be at least {least}, got {n_steps}")

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

    raises ValueError for a rule that cannot be refined so
    """
    if name in ("right", "left"):
        shift = {"right": -0.5, "left": 0.5}[name]
        positions, weights = rule(name, n_steps)
        return [alpha + shift / n_steps for alpha in positions], weights, 2 * n_steps
    if name == "trapezoid":
        n_intervals = n_steps - 1
        positions = [(h + 0.5) / n_intervals for h in range(n_intervals)]
        return positions, [1 / n_intervals] * n_intervals, 2 * n_steps - 1
    raise ValueError(
        f"automatic steps refine the rules right, left and trapezoid, not {name!r}: its points are "
        "not among those of twice as many"
    )
