"""A network with weights drawn anew: nothing of training is left; activations keep their scale."""

import copy

import pytest
import torch
from torch import nn

from igmask.steps.randomise import re_estimate, redraw
from igmask.zoo import cifar_resnet


class Token(nn.Module):
    """Has a parameter of its own beside its layers."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.linspace(-3, 5, 40).view(1, 40))
        self.layer = nn.Linear(40, 6)

    def forward(self, x):
        return self.layer(x + self.token)


def trained(network):
    """As if it had been trained: weights, γ, β and statistics that no initialisation has."""
    torch.manual_seed(7)
    with torch.no_grad():
        for one in (*network.parameters(), *network.buffers()):
            if one.is_floating_point():
                one.copy_(one * 2 + torch.rand_like(one) + 0.5)
    return network.eval()


@pytest.fixture
def network():
    return trained(cifar_resnet(depth=20)).requires_grad_(False)


def test_every_weight_is_drawn_anew_and_norms_begin_again(network):
    before = copy.deepcopy(network.state_dict())
    redraw(network, seed=0)
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            assert not torch.isclose(module.weight, before[f"{name}.weight"]).any(), name
    again = trained(cifar_resnet(depth=20))
    redraw(again, seed=0)
    assert all(one.equal(other) for one, other in zip(*map(values, (network, again)), strict=True))
    redraw(again, seed=1)
    assert not all(a.equal(b) for a, b in zip(*map(values, (network, again)), strict=True))


def values(network):
    return list(network.state_dict().values())


def test_the_generator_of_others_is_left_alone(network):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    redraw(network, seed=0)
    assert torch.rand(4).equal(expected)


def test_a_parameter_of_no_layer_has_its_values_in_another_order():
    network = Token()
    before = network.token.detach().clone()
    redraw(network, seed=0)
    assert not network.token.equal(before)
    assert network.token.sort().values.equal(before)


def test_statistics_are_the_means_over_the_batches_by_themselves(network):
    redraw(network, seed=0)
    batches = torch.rand(4, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    re_estimate(network, batches)
    assert not network.training
    assert not any(module.training for module in network.modules())
    first = next(one for one in network.modules() if isinstance(one, nn.BatchNorm2d))
    before = next(one for one in network.modules() if isinstance(one, nn.Conv2d))
    seen = [before(batch).double() for batch in batches]
    mean = torch.stack([one.mean((0, 2, 3)) for one in seen]).mean(0)
    var = torch.stack([one.var((0, 2, 3)) for one in seen]).mean(0)
    torch.testing.assert_close(first.running_mean.double(), mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first.running_var.double(), var, rtol=1e-4, atol=1e-6)
    assert first.momentum == 0.1
    # Activations behind each norm are of the scale that the norm gives, in evaluation too.
    kept = []
    norms = [one for one in network.modules() if isinstance(one, nn.BatchNorm2d)]
    for one in norms:
        one.register_forward_hook(lambda *a: kept.append(float(a[2].std())))
    network(batches.flatten(0, 1))
    assert len(kept) == len(norms)
    assert all(0.5 < std < 2 for std in kept)


def test_stale_statistics_would_leave_nothing_to_attribute(network):
    """What `re_estimate` is for: with those of training, it says one thing of all images."""
    redraw(network, seed=0)
    with torch.no_grad():
        for one in network.modules():
            if isinstance(one, nn.BatchNorm2d):
                one.running_var.fill_(1e4)
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    stale = network(images).std(dim=0)
    re_estimate(network, [images])
    assert (network(images).std(dim=0) > 100 * stale).all()
