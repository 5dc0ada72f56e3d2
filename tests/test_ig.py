"""Integrated Gradients against closed forms, against Captum in float64, and against itself."""

import captum.attr
import pytest
import torch
from torch import nn

import igmask
from igmask.errors import InputError
from igmask.ig import integrated_gradients
from igmask.quadrature import CAPTUM_RULES, RULES


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


# -- Captum's class --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CAPTUM_RULES)
@pytest.mark.parametrize("internal_batch_size", [None, 7])
def test_every_rule_equals_captums(double, network, method, internal_batch_size):
    inputs, baselines = torch.rand(2, 4, 3, 9, 9)
    arguments = {
        "baselines": baselines,
        "target": torch.tensor([0, 1, 2, 3]),
        "n_steps": 12,
        "method": method,
        "return_convergence_delta": True,
    }
    ours, our_delta = igmask.IntegratedGradients(network).attribute(
        inputs, internal_batch_size=internal_batch_size, **arguments
    )
    theirs, their_delta = captum.attr.IntegratedGradients(network).attribute(inputs, **arguments)
    # Captum rounds its weights to float32, whatever the inputs are.
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(our_delta, their_delta, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("baselines", [None, 0.3, torch.full((1, 3, 9, 9), 0.2)])
@pytest.mark.parametrize("target", [2, [0, 4, 1], torch.tensor(3), torch.tensor([1])])
@pytest.mark.parametrize("multiply", [True, False])
def test_baselines_and_targets_are_captums(double, network, baselines, target, multiply):
    inputs = torch.rand(3, 3, 9, 9)
    arguments = {"baselines": baselines, "target": target, "n_steps": 5}
    ours = igmask.IntegratedGradients(network, multiply).attribute(inputs, **arguments)
    theirs = captum.attr.IntegratedGradients(network, multiply).attribute(inputs, **arguments)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)


def test_tuples_of_inputs_and_additional_arguments_are_captums(double):
    def forward(a, b, scale, power):
        return (a**power).sum(1, keepdim=True) * b * scale

    inputs = (torch.rand(3, 4), torch.rand(3, 2))
    arguments = {
        "baselines": (0.1, torch.rand(1, 2)),
        "target": [(0,), (1,), (0,)],
        "additional_forward_args": (torch.rand(3, 1), 3),
        "n_steps": 9,
    }
    ours = igmask.IntegratedGradients(forward).attribute(inputs, **arguments, internal_batch_size=4)
    theirs = captum.attr.IntegratedGradients(forward).attribute(inputs, **arguments)
    assert isinstance(ours, tuple)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_number_an_example_needs_no_target(double, shape):
    def forward(x):
        return (x**3).sum(1).view(shape)

    inputs = torch.rand(4, 6)
    ours, delta = igmask.IntegratedGradients(forward).attribute(
        inputs, return_convergence_delta=True
    )
    torch.testing.assert_close(ours, inputs**3)
    assert delta.abs().max() < 1e-12


def test_outputs_of_more_axes_take_tuples(double):
    def forward(x):
        return torch.stack((x, 2 * x, 3 * x), dim=1)  # (N, 3, 6)

    inputs = torch.rand(2, 6)
    found = igmask.IntegratedGradients(forward).attribute(inputs, target=(2, 4))
    assert found.nonzero()[:, 1].tolist() == [4, 4]
    torch.testing.assert_close(found[:, 4], 3 * inputs[:, 4])


def test_parameters_gradients_and_modes_are_left_alone(network):
    before = {name: value.clone() for name, value in network.named_parameters()}
    igmask.IntegratedGradients(network).attribute(
        torch.rand(1, 3, 9, 9, dtype=torch.float64), target=0, n_steps=2
    )
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
        assert parameter.equal(before[name])
    assert not network.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": None}, "target must say"),
        ({"target": 9}, "out of range"),
        ({"target": (0, 1)}, "does not name one number"),
        ({"target": 0, "baselines": torch.zeros(2, 3, 9, 9)}, "does not fit"),
        ({"target": 0, "baselines": (0, 0)}, "2 baselines for 1 inputs"),
        ({"target": 0, "method": "simpson"}, "simpson"),
        ({"target": 0, "n_steps": 0}, "n_steps"),
    ],
)
def test_bad_arguments_are_named(network, arguments, message):
    inputs = torch.rand(4, 3, 9, 9, dtype=torch.float64)
    with pytest.raises(InputError, match=message):
        igmask.IntegratedGradients(network).attribute(inputs, **arguments)
