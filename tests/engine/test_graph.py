"""What networks compute, whichever way they are written and whoever takes their graph."""

import copy
import pickle
from collections import OrderedDict

import captum.attr
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import igmask
from igmask.engine.graph import LIBRARIES, traced
from igmask.engine.stem import split


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.rand(3, 3, 12, 12, dtype=torch.float64)


def drawn(network):
    """In float64 and evaluation mode, no statistic as it began."""
    torch.manual_seed(0)
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(std=0.2)
            part.running_var.uniform_(0.5, 2)
    return network.double().eval()


def assert_captums(network, images, alike=None):
    target = torch.tensor([0, 4, 2])
    how = {"rule": "right", "of": "logit", "n_steps": 4}
    ours = igmask.integrated_gradients(network, images, target=target, **how)
    theirs = captum.attr.IntegratedGradients(alike or network).attribute(
        images, target=target, n_steps=4, method="riemann_right"
    )
    assert (ours.values - theirs).norm() <= 1e-10 * theirs.norm()


class Norm(nn.BatchNorm2d):
    """Batch norm by function, with an activation, as timm has it."""

    def forward(self, x):
        statistics = self.running_mean, self.running_var, self.weight, self.bias
        return F.relu(F.batch_norm(x, *statistics, self.training, self.momentum, self.eps))


class Same(nn.Conv2d):
    """A convolution that pads by arithmetic on the size, as TensorFlow does."""

    def forward(self, x):
        pads = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in x.shape[-1:-3:-1]]
        x = F.pad(x, [side for n in pads for side in (n // 2, n - n // 2)])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """A convolution whose weights are normalised in each call."""

    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, 1)


def built(convolution):
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    return nn.Sequential(convolution, Norm(6), nn.Conv2d(6, 6, 3), Norm(6), *head)


class Reading(nn.Module):
    """It reads the weight of a layer that it also calls."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        x = self.conv(x) * self.conv.weight.mean()
        return self.head(x.relu().mean((2, 3)))


class Keeping(nn.Module):
    """It keeps something for its next call, in a dictionary and in an attribute."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.biases, self.last = {}, None
        self.bias = nn.Parameter(torch.rand(4))

    def forward(self, x):
        if "cpu" not in self.biases:
            self.biases["cpu"] = self.bias.view(1, -1, 1, 1)
        self.last = x = self.conv(x) + self.biases["cpu"]
        return self.head(x.relu().mean((2, 3)))


class Branching(nn.Module):
    """Control flow on a shape, an optional argument, and a part without autocast."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x, mask=None):
        if mask is not None or x.shape[2] % 2:
            x = x[:, :, 1:]
        with torch.autocast("cpu", enabled=False):
            x = self.norm(self.conv(x))
        return self.head(x.relu().flatten(2).transpose(1, 2)).mean(dim=1)


NETWORKS = {
    "norm by function": (lambda: built(nn.Conv2d(3, 6, 3)), "torch.fx", "0 (Conv2d)", 2),
    "padding": (lambda: built(Same(3, 6, 3, 2)), "torch.export", "0 (Same)", 2),
    "weights": (lambda: built(Standardised(3, 6, 3)), "torch.fx", "0 (Standardised)", 2),
    "reading": (Reading, "torch.fx", "", 0),
    "keeping": (Keeping, "torch.fx", "", 0),
    "branching": (Branching, "torch.export", "norm (BatchNorm2d)", 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_graph_computes_decides_where_the_stem_ends(name, images):
    make, by, _, n_folded = NETWORKS[name]
    network = drawn(make())
    found = split(network, images)
    assert (found.why_not, found.by, found.n_folded) == ("", by, n_folded)
    assert len(found.ends) == 1
    assert [begin.split(" ")[0] for begin in found.begins] != []
    torch.testing.assert_close(found(images), network(images), rtol=1e-12, atol=1e-12)
    assert_captums(network, images)


@pytest.mark.parametrize("by", LIBRARIES)
@pytest.mark.parametrize("name", ["norm by function", "weights", "reading"])
def test_both_libraries_give_one_form(name, by, images):
    network = drawn(NETWORKS[name][0]())
    found = traced(network, images, by)
    kinds = sorted(type(part).__name__ for part in found.parts.values())
    kinds = [kind for kind in kinds if kind in ("Conv2d", "BatchNorm2d")]
    assert kinds == (["Conv2d"] if name == "reading" else ["BatchNorm2d"] * 2 + ["Conv2d"] * 2)
    graph = torch.fx.GraphModule(dict(found.parts), found.graph)
    assert graph(images).equal(network(images))


def test_tracing_leaves_nothing_in_the_model(images):
    network = drawn(Keeping())
    before = pickle.dumps(network)
    for by in LIBRARIES:
        traced(network, images, by)
    assert network.biases == {}
    assert pickle.dumps(network) == before
    for _ in range(2):
        assert_captums(network, images)
    assert isinstance(copy.deepcopy(network.state_dict()), OrderedDict)
    assert isinstance(network.last, torch.Tensor)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch.compile
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
@pytest.mark.parametrize("within", [False, True])
def test_wrappers_are_looked_into(wrap, within, images):
    network = drawn(built(nn.Conv2d(3, 6, 3)))
    wrapped = wrap(network)
    found = split(nn.Sequential(nn.Identity(), wrapped).eval() if within else wrapped, images)
    assert found.why_not == ""
    assert found.n_folded == 2


def test_constants_that_are_changed_in_place_are_made_anew(images):
    class Filling(Reading):
        def forward(self, x):
            total = torch.zeros(4, dtype=x.dtype)
            total += self.conv(x).relu().sum((0, 2, 3)) * 0 + 1
            return super().forward(x) * total.mean()

    assert_captums(drawn(Filling()), images)


def test_random_numbers_are_not_computed_once(images):
    class Noisy(Reading):
        def forward(self, x):
            return super().forward(x) + torch.rand(5)

    found = traced(drawn(Noisy()), images, "torch.export")
    assert any(node.name.startswith("rand") for node in found.graph.nodes)


def test_what_is_printed_of_a_graph_that_cannot_be_taken_is_kept_back(images, capfd):
    class Deciding(Reading):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    found = split(drawn(Deciding()), images)
    assert "torch.fx cannot trace it" in found.why_not
    assert "torch.export cannot trace it" in found.why_not
    assert capfd.readouterr() == ("", "")


class Statement(Reading):
    """It changes a value in place, and reads it by its old name."""

    def forward(self, x):
        x = self.conv(x)
        torch.relu_(x)
        return self.head(x.mean((2, 3)))


class ViewStatement(Statement):
    """The same through a view."""

    def forward(self, x):
        x = self.conv(x)
        rows = x.view(x.shape[0], -1).relu_()
        return self.head(x.mean((2, 3))) + rows.mean(1, keepdim=True)


class IntegerLike(Reading):
    """It takes the type of an integer tensor."""

    def forward(self, x):
        whole = self.conv(10 * x).to(torch.ones(1, dtype=torch.int64))
        return self.head((self.conv(x) + whole).mean((2, 3)))


def patched():
    network = built(nn.Conv2d(3, 6, 3))
    plain = network[2].forward
    network[2].forward = lambda x: 2 * plain(x).relu()
    return network


class Doubling(nn.DataParallel):
    """A wrapper of one's own does more."""

    def forward(self, x):
        return self.module(x.square())


class Delegating(nn.Module):
    """It has what torch.compile's wrapper has, too."""

    def __init__(self):
        super().__init__()
        self._orig_mod = built(nn.Conv2d(3, 6, 3))

    def forward(self, x):
        return self._orig_mod(x.square())


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clamp(0, 0.1)

    @staticmethod
    def backward(context, slope):
        return slope


class StraightThrough(Reading):
    """It has a gradient of its own."""

    def forward(self, x):
        if x.shape[2] > 2:
            x = Straight.apply(self.conv(x))
        return self.head(x.tanh().mean((2, 3)))


class Sizes(nn.Module):
    """Sizes of parameters that are as many as the images, and images on another axis."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.two, self.three = (nn.Parameter(torch.rand(n, 4)) for n in (2, 3))

    def forward(self, x):
        x = self.conv(x).flatten(2).permute(2, 0, 1)  # places, images, channels
        scale = self.two.size(0) * self.three.shape[0] + x.size(1) * 0
        x = x.reshape(x.shape[0], x.shape[1], 2, -1).relu().flatten(2)
        return self.head(x.mean(0)) * scale


HIDDEN = [Statement, ViewStatement, IntegerLike, StraightThrough, Sizes, patched, Delegating]
HIDDEN.append(lambda: Doubling(built(nn.Conv2d(3, 6, 3))))


@pytest.mark.parametrize("make", HIDDEN)
@pytest.mark.parametrize("light", [0.0, 3.0])
def test_what_a_graph_does_not_say_is_not_lost(make, light, images):
    """In the light of some images nothing happens that would be seen of them."""
    network = drawn(make())
    assert_captums(network, torch.cat([images[:2] + light, images[2:]]))


@pytest.mark.parametrize("kind", [list, tuple, "tensor"])
def test_tensors_that_are_no_parameters_may_change_between_two_calls(kind, images):
    class Listing(Reading):
        def __init__(self):
            super().__init__()
            scale = torch.rand(4, dtype=torch.float64)
            self.scales = scale if kind == "tensor" else kind([scale])

        def forward(self, x):
            scale = self.scales if kind == "tensor" else self.scales[0]
            return self.head((self.conv(x) * scale.view(1, -1, 1, 1)).relu().mean((2, 3)))

    network = drawn(Listing())
    for factor in (1, 3):
        scale = network.scales if kind == "tensor" else network.scales[0]
        scale.data.mul_(factor)
        assert_captums(network, images)
        scale.data = scale.data + factor
        assert_captums(network, images)


def test_layers_in_a_plain_list_may_change_between_two_calls(images):
    class Listing(Reading):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Conv2d(3, 3, 1).double(), nn.BatchNorm2d(3).double().eval()]

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return super().forward(x)

    network = drawn(Listing())
    assert_captums(network, images)
    network.layers[0].weight.data.mul_(-2)
    assert_captums(network, images)
