"""Quadrature rules against the integrals they must get right, and against Captum."""

import pytest
import torch
from captum.attr._utils.approximation_methods import approximation_parameters

from igmask.quadrature import CAPTUM_RULES, RULES, between, rule


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
