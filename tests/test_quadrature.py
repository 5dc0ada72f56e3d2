"""Quadrature rules against the integrals they must get right, and against Captum."""

import numpy as np
import pytest
import torch
from captum.attr._utils.approximation_methods import approximation_parameters

from igmask.quadrature import (
    CAPTUM_RULES,
    PROBES,
    RULES,
    between,
    cells,
    halved,
    middles,
    rule,
    steep,
    trapezoids,
)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("n_steps", [2, 3, 50, 101])
def test_weights_sum_to_one_and_positions_ascend_in_the_unit_interval(name, n_steps):
    positions, weights = rule(name, n_steps)
    assert len(positions) == len(weights) == n_steps
    assert sum(weights) == pytest.approx(1, abs=1e-14)
    assert positions == sorted(positions)
    assert positions[0] >= 0
    assert positions[-1] <= 1


def test_right_rule_is_the_formula_of_the_experiment():
    assert rule("right", 4) == ([0.25, 0.5, 0.75, 1.0], [0.25] * 4)


def test_left_and_middle_by_hand():
    assert rule("left", 2)[0] == [0.0, 0.5]
    assert rule("middle", 2)[0] == [0.25, 0.75]
    assert rule("trapezoid", 3) == ([0.0, 0.5, 1.0], [0.25, 0.5, 0.25])


@pytest.mark.parametrize(("name", "degree"), [("middle", 1), ("trapezoid", 1)])
def test_rules_are_exact_for_linear_integrands(name, degree):
    positions, weights = rule(name, 7)
    integral = sum(w * a**degree for a, w in zip(positions, weights, strict=True))
    assert integral == pytest.approx(1 / (degree + 1), abs=1e-14)


@pytest.mark.parametrize("n_steps", [1, 2, 5, 20])
def test_gauss_legendre_is_exact_up_to_degree_2m_minus_1(n_steps):
    positions, weights = rule("gauss-legendre", n_steps)
    for degree in (0, n_steps, 2 * n_steps - 1):
        integral = sum(w * a**degree for a, w in zip(positions, weights, strict=True))
        assert integral == pytest.approx(1 / (degree + 1), abs=1e-13)
    beyond = sum(w * a ** (2 * n_steps) for a, w in zip(positions, weights, strict=True))
    assert abs(beyond - 1 / (2 * n_steps + 1)) > 0


@pytest.mark.parametrize("name", CAPTUM_RULES)
@pytest.mark.parametrize("n_steps", [2, 7, 50])
def test_captum_names_mean_captum_positions_and_weights(double, name, n_steps):
    step_sizes, alphas = approximation_parameters(name)
    positions, weights = rule(name, n_steps)
    torch.testing.assert_close(torch.tensor(positions), torch.tensor(alphas(n_steps)))
    torch.testing.assert_close(torch.tensor(weights), torch.tensor(step_sizes(n_steps)))


def test_captum_trapezoid_keeps_captums_missing_step():
    assert sum(rule("riemann_trapezoid", 10)[1]) == pytest.approx(0.9)


def test_unknown_rule_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'simpson'.*right"):
        rule("simpson", 10)


@pytest.mark.parametrize(("name", "n_steps"), [("right", 0), ("trapezoid", 1), ("middle", -3)])
def test_too_few_steps(name, n_steps):
    with pytest.raises(ValueError, match="n_steps"):
        rule(name, n_steps)


@pytest.mark.parametrize("name", ["right", "left", "trapezoid"])
@pytest.mark.parametrize("n_steps", [2, 3, 25])
def test_a_rule_and_the_points_between_are_the_refined_rule(name, n_steps):
    positions, weights, n_refined = between(name, n_steps)
    assert n_refined == 2 * n_steps - (name == "trapezoid")
    halves = [*zip(*rule(name, n_steps), strict=True), *zip(positions, weights, strict=True)]
    together = sorted((alpha, weight / 2) for alpha, weight in halves)
    assert sum(together, ()) == pytest.approx(
        sum(zip(*rule(name, n_refined), strict=True), ()), abs=1e-14
    )


@pytest.mark.parametrize("name", ["middle", "gauss-legendre", "riemann_trapezoid", "simpson"])
def test_other_rules_cannot_be_refined(name):
    with pytest.raises(ValueError, match=f"not '{name}'"):
        between(name, 4)


# -- the rule `adaptive` ------------------------------------------------------------------------


def probed(f):
    return [f(alpha) for alpha in PROBES]


def sigmoid(slope, where):
    return lambda alpha: (1 + np.tanh(slope / 2 * (np.asarray(alpha) - where))) / 2


ALONG = [
    lambda alpha: alpha**3,
    lambda alpha: np.sin(9 * alpha),
    sigmoid(40, 0.3),
    sigmoid(4000, 0.97),
    lambda alpha: -1e-30 * alpha,
]


@pytest.mark.parametrize("f", ALONG)
@pytest.mark.parametrize("n_cells", [1, 2, 7, 50])
def test_cells_are_as_many_as_asked_and_of_equal_mass(f, n_cells):
    edges = cells(probed(f), n_cells)
    assert edges.shape == (n_cells + 1,)
    assert (edges[0], edges[-1]) == (0, 1)
    places = np.linspace(0, 1, 60_001)
    ends = np.linspace(0, 1, 16)
    slopes = np.abs(np.diff(f(ends))) * 15
    root = np.sqrt(slopes)[np.minimum(15 * places[:-1], 14).astype(int)]
    density = 0.8 * root / root.mean() + 0.2
    below = np.concatenate([[0], np.cumsum(density)]) / density.sum()
    np.testing.assert_allclose(
        np.interp(edges, places, below), np.linspace(0, 1, n_cells + 1), atol=2e-4
    )


@pytest.mark.parametrize("f", ALONG)
@pytest.mark.parametrize("of_cells", [middles, trapezoids])
def test_weights_of_cells_sum_to_1_and_integrate_lines_exactly(f, of_cells):
    positions, weights = of_cells(cells(probed(f), 9))
    assert sum(weights) == pytest.approx(1, abs=1e-14)
    assert np.dot(positions, weights) == pytest.approx(0.5, abs=1e-14)
    assert all(weight > 0 for weight in weights)


@pytest.mark.parametrize(
    "values",
    [
        [0.3] * 16,
        [*[0.0] * 15, np.nan],
        [np.inf] * 16,
        [0.0] * 15 + [5e-324],
        [1e308, -1e308] * 8,
    ],
)
def test_where_f_does_not_change_or_is_not_known_cells_are_alike(values):
    np.testing.assert_allclose(cells(values, 10), np.linspace(0, 1, 11), atol=1e-15)


def test_a_jump_that_uniform_steps_miss_has_most_of_the_steps():
    f = sigmoid(1000, 0.51)

    def integral(positions, weights):  # of f′, which is 1
        return np.dot(weights, 1000 * f(positions) * (1 - f(positions)))

    assert integral(*rule("right", 50)) < 0.02
    positions, weights = middles(cells(probed(f), 50))
    assert integral(positions, weights) == pytest.approx(1, abs=0.02)
    assert (np.abs(np.array(positions) - 0.5) < 0.05).sum() > 35


def test_middles_and_trapezoids_are_the_trapezoids_of_halves():
    edges = cells(probed(np.exp), 5)
    for _ in range(2):
        finer = dict(zip(*trapezoids(halved(edges)), strict=True))
        coarse = [*zip(*trapezoids(edges), strict=True), *zip(*middles(edges), strict=True)]
        assert finer == pytest.approx({alpha: weight / 2 for alpha, weight in coarse})
        edges = halved(edges)


def test_steps_between_flat_probes_are_left_out():
    right = rule("right", 49)  # none but the last at a probe
    p = sigmoid(60, 0.42)
    taken = steep(right, probed(p), 1e-4)
    places = np.array(right[0])
    around = [(np.floor(15 * a - 1e-9) / 15, np.ceil(15 * a - 1e-9) / 15) for a in places]
    is_steep = [any(p(end) * (1 - p(end)) >= 1e-4 for end in ends) for ends in around]
    assert taken.tolist() == is_steep
    assert 5 < taken.sum() < 30


def test_a_jump_between_flat_probes_is_not_left_out():
    p = sigmoid(5000, 0.5)
    taken = steep(rule("right", 50), probed(p), 1e-4)
    assert max(p(alpha) * (1 - p(alpha)) for alpha in PROBES) < 1e-4
    assert (np.flatnonzero(taken) + 1).tolist() == [24, 25, 26]  # those from 7/15 to 8/15
