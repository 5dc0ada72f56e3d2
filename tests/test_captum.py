"""The class with Captum's signature, against Captum's own in float64."""

import captum.attr
import pytest
import torch

import igmask
from igmask.errors import InputError
from igmask.quadrature import CAPTUM_RULES


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
