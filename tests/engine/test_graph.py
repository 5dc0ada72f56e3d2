"""What networks compute, whichever way they are written and whoever takes their graph."""

import copy
import os
import pickle
import threading
from collections import OrderedDict, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import captum.attr
import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

import igmask
from igmask.engine.fusion import _folded
from igmask.engine.graph import LIBRARIES, Untraceable, traced
from igmask.engine.simplify import Traced, simplify
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


class Pooling(Reading):
    """It has a thread do a part of it."""

    def __init__(self):
        super().__init__()
        self.pool = ThreadPoolExecutor(1)
        self.pool.submit(int).result()

    def forward(self, x):
        return super().forward(x * self.pool.submit(float, 2).result(timeout=60))


def test_a_pool_of_threads_is_not_copied(images):
    network = drawn(Pooling())
    assert split(network, images).why_not == ""
    assert_captums(network, images)
    network.pool.shutdown()


class Plain:
    def __init__(self):
        self.values, self.last = [], None


@dataclass(frozen=True, slots=True)
class Slotted:
    values: list = field(default_factory=list)


class Listed(list):
    pass


KEEPERS = {
    "list": (list, lambda kept, x: kept.append(x), list),
    "list of one's own": (Listed, lambda kept, x: kept.append(x), list),
    "deque": (lambda: deque(maxlen=3), lambda kept, x: kept.append(x), list),
    "defaultdict": (lambda: defaultdict(list), lambda kept, x: kept[1].append(x), lambda k: k[1]),
    "set": (set, lambda kept, x: kept.add(x), list),
    "namespace": (SimpleNamespace, lambda kept, x: setattr(kept, "x", x), lambda k: [k.x]),
    "object": (Plain, lambda kept, x: setattr(kept, "last", x), lambda k: [k.last]),
    "object's list": (Plain, lambda kept, x: kept.values.append(x), lambda k: k.values),
    "slots": (Slotted, lambda kept, x: kept.values.append(x), lambda k: k.values),
    "tuple": (lambda: (Plain(),), lambda kept, x: kept[0].values.append(x), lambda k: k[0].values),
    "method": (
        lambda: Plain().__init__,
        lambda f, x: setattr(f.__self__, "last", x),
        lambda f: [f.__self__.last],
    ),
}


class Noting(Reading):
    """It keeps a value somewhere, and cannot do without a lock and a file."""

    def __init__(self, keeper, note):
        super().__init__()
        self.keeper, self.note = keeper, note
        self.lock, self.file = threading.Lock(), open(os.devnull)  # noqa: SIM115
        self.itself, self.call = [self], lambda x: self.note(self.keeper, x)
        self.later = partial(self.note, self.keeper)

    def forward(self, x):
        with self.lock:
            for keep in (self.call, self.later, partial(self.itself[0].note, self.keeper)):
                keep(self.conv(x))
        return super().forward(x)


@pytest.mark.parametrize("name", KEEPERS)
@pytest.mark.parametrize("by", LIBRARIES)
def test_tracing_leaves_nothing_in_what_a_network_keeps(name, by, images):
    make, note, kept = KEEPERS[name]
    keeper = make()
    network = drawn(Noting(keeper, note))
    before = repr(keeper)
    # Strict torch.export cannot take a lock.
    with suppress(Untraceable) if by == "torch.export, strict" else nullcontext():
        traced(network, images, by)
    assert repr(keeper) == before
    network(images)
    values = kept(keeper)
    assert {type(value) for value in values} <= {torch.Tensor}
    network.file.close()


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch.compile
@pytest.mark.parametrize(
    ("wrap", "within"),
    [
        (torch.compile, False),
        pytest.param(torch.compile, True, marks=pytest.mark.slow),
        (nn.DataParallel, False),
        (nn.DataParallel, True),
    ],
)
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


class Clipping(Reading):
    """It clips a gradient, that of some images."""

    def forward(self, x):
        x = self.conv(x)
        x.register_hook(lambda slope: slope.clamp(max=3.0))
        return self.head((x.relu() ** 2).mean((2, 3)))


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


HIDDEN = [Statement, ViewStatement, IntegerLike, StraightThrough, Clipping, Sizes, patched]
HIDDEN.append(Delegating)
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


def of_what_it_is(x):
    """A proxy of torch.fx is no tensor."""
    return x.clamp(max=2.0) if isinstance(x, torch.Tensor) else x


def of_whether_it_is_compiled(x):
    return x if torch.compiler.is_compiling() else of_what_it_is(x)


def of_numbers_if_it_can(x):
    try:
        return x * 2 - 1 if x.max() > 2 else x
    except torch.fx.proxy.TraceError:
        return x


def of_length_if_it_can(x):
    try:
        return x * len(x) / x.shape[0]
    except RuntimeError:
        return x.relu()


class Choosing(Reading):
    """It goes one of two ways, of which a trace is not told."""

    def __init__(self, choose):
        super().__init__()
        self.choose = choose

    def forward(self, x):
        return super().forward(self.choose(x))


CHOICES = [of_what_it_is, of_whether_it_is_compiled, of_numbers_if_it_can, of_length_if_it_can]


@pytest.mark.parametrize("choose", CHOICES)
@pytest.mark.parametrize("dark", [0, 1, 2])
def test_a_way_that_a_trace_does_not_see_is_not_lost(choose, dark, images):
    """The first images say nothing of it, as far as there are others."""
    images[dark:] = images[dark:] * 40
    images[:dark] = images[:dark] / 10
    assert_captums(drawn(Choosing(choose)), images)


class Numbering(Reading):
    """It asks in Python how many the images are."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, x):
        n = len(x) if self.number == "length" else int(x.shape[0])
        return self.head(self.conv(x).relu().reshape(n, 4, -1).mean(2))


class Pairing(Reading):
    """It goes one of two ways, by how many the images are."""

    def forward(self, x):
        n = x.shape[0]
        x = self.conv(x).relu()
        x = x.view(n // 2, 2, 4, -1) if n % 2 == 0 else x
        return self.head(x.reshape(n, 4, -1).mean(2))


class Few(Reading):
    def forward(self, x):
        return super().forward(x * 2 if x.shape[0] < 50 else x)


MANY = {
    "length": (lambda: Numbering("length"), True),
    "int": (lambda: Numbering("int"), True),
    "pairs": (Pairing, False),
    "few": (Few, False),
}


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("n", [1, 2])
def test_the_number_of_images_is_not_taken_for_constant(name, n, images):
    make, cut = MANY[name]
    network = drawn(make())
    assert (split(network, images[:n]).why_not == "") == cut
    how = {"target": 1, "n_steps": 4}
    ours = igmask.integrated_gradients(network, images[:n], rule="right", of="logit", **how)
    plain = captum.attr.IntegratedGradients(network)
    theirs = plain.attribute(images[:n], method="riemann_right", **how)
    assert (ours.values - theirs).norm() <= 1e-10 * theirs.norm()


class Turned(Reading):
    """It changes the order of the images, and changes it back behind the affine part."""

    def __init__(self, there, back):
        super().__init__()
        self.there, self.back = there, back

    def forward(self, x):
        return super().forward(self.back(self.there(self.conv(x)).relu())[:, :3])


TURNS = [
    (lambda x: x.flip(0), lambda x: x.flip(0)),
    (lambda x: x.roll(1, 0), lambda x: x.roll(-1, 0)),
    (lambda x: torch.cat([x[1:], x[:1]]), lambda x: torch.cat([x[-1:], x[:-1]])),
]


@pytest.mark.parametrize(("there", "back"), TURNS)
@pytest.mark.parametrize("alike", [False, True])
def test_a_stem_keeps_the_images_in_their_order(there, back, alike, images):
    images = images[:1].repeat(3, 1, 1, 1) if alike else images
    network = drawn(Turned(there, back))
    assert split(network, images).ends == ("conv (Conv2d)",)
    assert_captums(network, images)


class Narrow(Reading):
    def __init__(self, narrow):
        super().__init__()
        self.narrow = narrow

    def forward(self, x):
        return super().forward(x - self.narrow(x))


NARROW = [
    lambda x: x.mean((1, 2, 3), keepdim=True, dtype=torch.float32),
    lambda x: x.float().double(),
    lambda x: x.to(torch.ones(1, dtype=torch.float32)),
    lambda x: x.type(torch.bfloat16),
]


@pytest.mark.parametrize("narrow", NARROW)
def test_a_stem_has_no_type_coarser_than_the_images(narrow, images):
    network = drawn(Narrow(narrow))
    assert split(network, images).ends in [("x",), ("x", "x"), ()]
    assert_captums(network, images)


class Written(Reading):
    """Constants that are changed in place and read by other names."""

    def __init__(self, change):
        super().__init__()
        self.change, self.scale = change, nn.Parameter(torch.rand(4, 10, 10), requires_grad=False)

    def forward(self, x):
        x = self.conv(x)
        return self.head((x * self.change(self.scale * 1)).relu().mean((2, 3)))


def filled(c):
    c[..., 0, :] = 3
    return c


def through_views(c):
    c.flatten(-2)[..., 1].mul_(2)
    c.view(-1).add_(1)
    return c


def by_a_layer(c):
    nn.Threshold(0.5, 0.1, inplace=True)(c)
    return c


def by_its_transpose(c):
    c.mT.mul_(torch.arange(10))
    return c


@pytest.mark.parametrize("change", [filled, through_views, by_a_layer, by_its_transpose])
def test_constants_may_change_in_place_before_they_are_read(change, images):
    network = drawn(Written(change))
    assert split(network, images).ends[0].startswith("mul")
    assert_captums(network, images)


class Rewritten(Written):
    """A constant is read, changed, and read again."""

    def forward(self, x):
        x, scale = self.conv(x), self.scale * 1
        first = x + scale
        self.change(scale)
        return self.head((first.relu() - 2 * (x + scale)).relu().mean((2, 3)))


class Overwritten(Written):
    """What depends on the images is changed in place, and read by its old name."""

    def forward(self, x):
        x = self.conv(x)
        self.change(x)
        return self.head(x.relu().mean((2, 3)))


@pytest.mark.parametrize("kind", [Rewritten, Overwritten])
@pytest.mark.parametrize("change", [filled, through_views, by_a_layer, by_its_transpose])
def test_what_is_read_before_or_behind_a_change_in_place_is_not_mixed_up(kind, change, images):
    assert_captums(drawn(kind(change)), images)


class Own(Reading):
    """What it computes first is a function of the images and a weight."""

    def __init__(self, function, *shape):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.rand(shape), requires_grad=False)

    def forward(self, x):
        return self.head(self.function(x, self.weight).relu().mean((2, 3)))


AFFINE = {
    "einsum": ((3, 4), lambda x, w: torch.einsum("nchw,cd->ndhw", x, w)),
    "conv_transpose2d": ((3, 4, 3, 3), lambda x, w: F.conv_transpose2d(x, w, padding=1)),
    "conv2d": ((4, 3, 3, 3), lambda x, w: F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), w)),
    "norm": ((4,), lambda x, w: F.batch_norm(x.repeat(1, 2, 1, 1)[:, :4], w, w + 1)),
}


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("by", LIBRARIES)
def test_functions_that_are_affine_belong_to_the_stem(name, by, images, monkeypatch):
    monkeypatch.setattr("igmask.engine.stem.LIBRARIES", {by: LIBRARIES[by]})
    shape, function = AFFINE[name]
    network = drawn(Own(function, *shape))
    found = split(network, images)
    assert (found.why_not, found.by) == ("", by)
    assert found.begins[0].startswith(("relu", "the output")), found.ends
    assert_captums(network, images)


def test_norms_of_any_number_of_axes(images):
    def normed(x, w):
        x = F.batch_norm(x.repeat(1, 2, 1, 1)[:, :4].view(-1, 4, 1, 12, 12, 1), w, w + 1)
        return x.view(-1, 4, 12, 12)

    network = drawn(Own(normed, 4))
    assert split(network, images).why_not == ""
    assert_captums(network, images)


def test_values_that_nothing_reads_any_more_are_let_go_while_a_graph_is_observed():
    """Of a hundred layers some values are in memory at a time, as without observing."""
    held, most = [], 0

    def watched(x):
        nonlocal most
        held.append(StorageWeakRef((y := x + 1).untyped_storage()))
        most = max(most, sum(not one.expired() for one in held))
        return y

    graph = fx.Graph()
    node = image = graph.placeholder("x")
    for _ in range(6):
        node = graph.call_function(watched, (node,))
    graph.output(node)
    simplify(Traced(graph, image, {}, {}), torch.zeros(1, 3))
    assert len(held) >= 6
    assert most == 2


@pytest.mark.parametrize(("groups", "n_folded"), [(1, 2), (2, 1)])
def test_norms_are_folded_into_transposed_convolutions(images, groups, n_folded):
    network = drawn(
        nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 6, 3, stride=2, groups=groups),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
        )
    )
    assert split(network, images).n_folded == n_folded
    assert_captums(network, images)


FACTOR = 1.0


@pytest.mark.parametrize("where", ["array", "global", "closure", "a tensor in a closure"])
def test_changes_of_what_a_network_reads_beside_itself_are_noticed(images, where, monkeypatch):
    held = {"factor": 1.0, "tensor": torch.ones((), dtype=torch.float64)}

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(3, 4, 3),
                nn.Tanh(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(4, 5),
            )
            self.shift = np.array([0.1, 0.2, 0.3])

        def forward(self, x):
            x = x - torch.as_tensor(self.shift).to(x).view(3, 1, 1)
            return self.body(x * FACTOR * held["factor"] * held["tensor"])

    network = drawn(Reads())
    assert_captums(network, images)
    if where == "array":
        network.shift[:] = [5, 6, 7]
    elif where == "global":
        monkeypatch.setitem(globals(), "FACTOR", 3.0)
    elif where == "closure":
        held["factor"] = 3.0
    else:
        held["tensor"].mul_(3)
    assert_captums(network, images)


def test_transposed_convolutions_of_decomposed_programs(images):
    layers = nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.ConvTranspose1d(4, 2, 3), nn.Flatten()
    network = drawn(nn.Sequential(*layers, nn.ReLU(), nn.LazyLinear(5)))
    network(images)
    several = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(network, (images,), dynamic_shapes=several)
    found = split(program.run_decompositions().module(), images)
    assert found.ends
    assert_captums(program.module(), images, network)


@pytest.mark.parametrize("decomposed", [None, {}, "core"])
def test_exported_programs_have_their_stem_and_a_users_hook_is_heeded(images, tmp_path, decomposed):
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    network = drawn(nn.Sequential(*layers, nn.Linear(4, 5)))
    several = ({0: torch.export.Dim("n", min=1, max=512)},)
    program = torch.export.export(network, (images,), dynamic_shapes=several)
    if decomposed is not None:  # to the core operators of ATen, or without changes in place alone
        program = program.run_decompositions(*([] if decomposed == "core" else [decomposed]))
    torch.export.save(program, tmp_path / "net.pt2")
    exported = torch.export.load(tmp_path / "net.pt2").module()
    found = split(exported, images)
    assert found.ends
    assert found.n_folded == 1
    assert_captums(exported, images, network)
    exported.register_forward_hook(lambda module, given, found: 2 * found)
    assert split(exported, images).why_not == "it has hooks or parametrizations"


@pytest.mark.parametrize("is_transposed", [False, True])
def test_folded_weights_are_rounded_once(is_transposed):
    kind = nn.ConvTranspose2d if is_transposed else nn.Conv2d
    layer, norm = drawn(nn.Sequential(kind(3, 40, 3), nn.BatchNorm2d(40))).float()
    norm.weight.data.uniform_(0.5, 1.5)
    found = _folded(layer, norm, is_transposed)
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shape = (1, -1, 1, 1) if is_transposed else (-1, 1, 1, 1)
    assert found.weight.equal((layer.weight.double() * scale.view(shape)).float())
    bias = (layer.bias.double() - norm.running_mean.double()) * scale + norm.bias.double()
    assert (found.bias.double() - bias).abs().max() <= 2**-24 * bias.abs().max()
