"""Integrated Gradients against closed forms, and against itself in float64."""

import pytest
import torch
from torch import nn

from igmask.errors import InputError
from igmask.ig import integrated_gradients
from igmask.quadrature import RULES


def test_linear_model_gives_weight_times_difference_with_any_rule():
    weight = torch.randn(4, 3 * 5 * 5, dtype=torch.float64)
    images, baseline = torch.rand(2, 2, 3, 5, 5, dtype=torch.float64)
    target = torch.tensor([1, 3])
    expected = weight[target].view(2, 3, 5, 5) * (images - baseline)
    for rule in RULES:
        found = integrated_gradients(
            lambda x: x.flatten(1) @ weight.T,
            images,
            baselines=baseline.unsqueeze(0),
            target=target,
            of="logit",
            rule=rule,
            n_steps=3,
        )
        torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=1e-12)
        assert found.completeness.abs().max() < 1e-10


@pytest.mark.parametrize(
    ("rule", "factor"),  # Σ w α: the gradient of Σ x² on the path from black is 2αx
    [("right", 51 / 50), ("left", 49 / 50), ("middle", 1), ("trapezoid", 1), ("gauss-legendre", 1)],
)
def test_quadratic_model_has_the_rules_own_error(rule, factor):
    images = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    found = integrated_gradients(
        lambda x: (x**2).flatten(1).sum(1, keepdim=True), images, of="logit", rule=rule
    )
    torch.testing.assert_close(found.values, factor * images**2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("of", ["probability", "logit"])
def test_completeness_of_a_smooth_network(network, of):
    images = torch.rand(4, 3, 9, 9, dtype=torch.float64)
    found = integrated_gradients(network, images, of=of, rule="gauss-legendre", n_steps=32)
    assert found.completeness.abs().max() < 1e-9
    assert (found.output - found.baseline_output).abs().max() > 1e-3
    assert found.predicted.equal(network(images).argmax(1))
    assert found.target.equal(found.predicted)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64, 1000])
def test_batch_size_does_not_matter(network, batch_size):
    images = torch.rand(3, 3, 9, 9, dtype=torch.float64)
    one = integrated_gradients(network, images, n_steps=10).values
    other = integrated_gradients(network, images, n_steps=10, batch_size=batch_size).values
    torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-15)


def test_images_do_not_depend_on_each_other(network):
    images = torch.rand(5, 3, 9, 9, dtype=torch.float64)
    together = integrated_gradients(network, images, n_steps=5).values
    alone = integrated_gradients(network, images[2:3], n_steps=5).values
    torch.testing.assert_close(together[2:3], alone, rtol=1e-11, atol=1e-15)


def test_float32_is_close_to_float64(network):
    images = torch.rand(3, 3, 9, 9, dtype=torch.float64)
    exact = integrated_gradients(network, images).values
    single = integrated_gradients(network.float(), images.float()).values
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-7)


def test_several_baselines_are_averaged(network):
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    baselines = torch.rand(3, 2, 3, 9, 9, dtype=torch.float64)
    together = integrated_gradients(network, images, baselines=baselines, n_steps=8)
    each = [integrated_gradients(network, images, baselines=b[None], n_steps=8) for b in baselines]
    torch.testing.assert_close(together.values, torch.stack([e.values for e in each]).mean(0))
    mean = torch.stack([e.completeness for e in each]).mean(0)
    torch.testing.assert_close(together.completeness, mean)


def test_a_given_target_is_attributed(network):
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    target = torch.tensor([0, 4])
    found = integrated_gradients(network, images, target=target)
    torch.testing.assert_close(found.output, network(images).softmax(1)[[0, 1], target])


def test_relu_network_against_float64_of_itself():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = (nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 49, 5))
        network = nn.Sequential(*layers).eval()
    images = torch.rand(4, 3, 9, 9)
    single = integrated_gradients(network, images).values
    exact = integrated_gradients(network.double(), images.double()).values
    assert (single - exact).norm() / exact.norm() < 1e-5


def test_in_place_operations_leave_the_images_alone():
    images = torch.rand(2, 3, 9, 9)
    before = images.clone()
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(243, 3))
    integrated_gradients(lambda x: network(x * 1), images, n_steps=3)
    assert images.equal(before)


@pytest.mark.parametrize("output", [torch.zeros(2, 3, 1), torch.zeros(3), (torch.zeros(2, 3),)])
def test_output_of_another_shape_is_an_error(output):
    with pytest.raises(InputError, match=r"\[N, classes\]"):
        integrated_gradients(lambda x: output, torch.rand(2, 3, 4, 4))


def test_target_out_of_range_is_an_error(network):
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    with pytest.raises(InputError, match="5 classes"):
        integrated_gradients(network, images, target=torch.tensor([0, 5]))


def test_output_without_gradient_is_an_error():
    with pytest.raises(InputError, match="no gradient"):
        integrated_gradients(lambda x: x.detach().mean((2, 3)), torch.rand(2, 3, 4, 4))


def test_unknown_options_are_named(network):
    images = torch.rand(1, 3, 9, 9, dtype=torch.float64)
    with pytest.raises(InputError, match="'energy'"):
        integrated_gradients(network, images, of="energy")
    with pytest.raises(InputError, match="'simpson'"):
        integrated_gradients(network, images, rule="simpson")
    with pytest.raises(InputError, match="batch size"):
        integrated_gradients(network, images, batch_size=0)
