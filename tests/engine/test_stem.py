"""The affine stem: found where there is one, exact, and never at the cost of the model."""

import copy
import logging
import operator
import threading

import captum.attr
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from igmask.engine import fusion
from igmask.engine.ig import integrated_gradients
from igmask.engine.network import Network
from igmask.engine.queue import path_gradients
from igmask.engine.stem import Head, split


class Normalised(nn.Module):
    """(x − mean) / std before the network, as models in pixel space have it."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1))

    def forward(self, x):
        return self.network((x - self.mean) / self.std)


class Patches(nn.Module):
    """The beginning of a vision transformer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.position = nn.Parameter(torch.randn(1, 5, 6))
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        patches = self.embed(x).flatten(2).transpose(1, 2)
        token = self.token.expand(x.shape[0], -1, -1)
        tokens = torch.cat([token, patches], dim=1) + self.position
        tokens = self.norm(self.dropout(tokens))
        return self.head(tokens.tanh()[:, 0] + tokens[:, 1:].square().mean(1))


class ChannelsTransformed(nn.Module):
    """The transform_input of torchvision's Inception."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        red = torch.unsqueeze(x[:, 0], 1) * (0.229 / 0.5) + (0.485 - 0.5) / 0.5
        green = torch.unsqueeze(x[:, 1], 1) * (0.224 / 0.5) + (0.456 - 0.5) / 0.5
        blue = torch.unsqueeze(x[:, 2], 1) * (0.225 / 0.5) + (0.406 - 0.5) / 0.5
        x = self.conv(torch.cat((red, green, blue), 1))
        return self.head(F.relu(x).mean((2, 3)))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head((self.narrow(x).relu() * torch.sigmoid(self.wide(x))).mean((2, 3)))


class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.first(x)
        x = x + self.second(F.relu(x))
        return self.head(F.relu(x).mean((2, 3)))


class PreActivationInPlace(PreActivation):
    """The shortcut reads what the in-place activation has left."""

    def forward(self, x):
        x = self.first(x)
        x = x + self.second(x.relu_())
        return self.head(F.relu(x).mean((2, 3)))


class Functional(nn.Module):
    def __init__(self, mode="constant"):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 5)
        self.mode = mode

    def forward(self, x):
        x = F.pad(torch.add(x, 0.5), (1, 1, 1, 1), mode=self.mode)
        x = F.dropout(F.conv2d(x, self.weight, self.bias), training=False)
        return self.head(F.relu(x).mean((2, 3)))


class Named(nn.Module):
    """Everything passed by name."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = F.conv2d(input=self.conv(input=x), weight=self.weight)
        return self.head(F.relu(input=x).mean(dim=(2, 3)))


class AddedInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        x = self.conv(x)
        x += 1
        kept = x
        x += 1
        return self.head((x.relu_() + kept).square().mean((2, 3)))


class ViewChangedInPlace(AddedInPlace):
    def forward(self, x):
        x = self.conv(x)
        view = x.flatten(2)
        x.relu_()
        return self.head((view.mean(2) + x.mean((2, 3))).square())


class ShapeOfTheInput(AddedInPlace):
    def forward(self, x):
        features = self.conv(x).relu().sum((2, 3))
        return self.head(features.view(x.shape[0], -1) / x.size(2))


class ConstantInside(AddedInPlace):
    """A tensor made in forward, as many models normalise."""

    def forward(self, x):
        mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.25] * 3, dtype=x.dtype)
        x = (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
        return self.head(self.conv(x).relu().mean((2, 3)))


def convolutional(*first):
    return nn.Sequential(*first, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


class Beginning(nn.Module):
    """What `begin` makes of the input, then a network that is not affine."""

    def __init__(self, begin, n=4):
        super().__init__()
        self.begin, self.conv, self.head = begin, nn.Conv2d(3, n, 3), nn.Linear(n, 5)

    def forward(self, x):
        return self.head(self.conv(self.begin(x)).square().mean((2, 3)))


SPLITS = {
    "normalised": (
        lambda: Normalised(convolutional(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))),
        ["network.1 (BatchNorm2d)"],
        ["network.2 (ReLU)"],
    ),
    "patches": (Patches, ["dropout (Dropout)"], ["norm (LayerNorm)"]),
    "transform_input": (ChannelsTransformed, ["conv (Conv2d)"], ["relu"]),
    "branches": (Branches, ["narrow (Conv2d)", "wide (Conv2d)"], ["relu", "sigmoid"]),
    "pre-activation": (PreActivation, ["first (Conv2d)"], ["relu", "add"]),
    "functional": (Functional, ["dropout"], ["relu"]),
    "functional, reflected": (lambda: Functional("reflect"), ["dropout"], ["relu"]),
    "deep and linear": (
        lambda: convolutional(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Identity()),
        ["2 (Identity)"],
        ["3 (ReLU)"],
    ),
    "linear": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 5)),
        ["3 (Linear)"],
        ["the output"],
    ),
    "named arguments": (Named, ["conv2d"], ["relu"]),
    "constant inside": (ConstantInside, ["conv (Conv2d)"], ["relu"]),
}

# No stem, or no matter where it ends: only that nothing goes wrong.
OTHERS = {
    "in-place additions": AddedInPlace,
    "in-place shortcut": PreActivationInPlace,
    "in-place view": ViewChangedInPlace,
    "shape": ShapeOfTheInput,
    "product with a mean": lambda: Beginning(lambda x: x * x.mean((1, 2, 3), keepdim=True)),
    "product by name": lambda: Beginning(lambda x: torch.mul(x, other=x)),
    "matrix product": lambda: Beginning(lambda x: x @ x.transpose(2, 3)),
    "rounded quotient": lambda: Beginning(
        lambda x: x + torch.div(x, 0.1, rounding_mode="floor") / 10
    ),
    "to an integer": lambda: Beginning(lambda x: x + (8 * x).to(torch.int32) / 8),
    "divided by the input": lambda: Beginning(lambda x: 1 / (x + 1)),
    "chunks": lambda: Beginning(lambda x: torch.cat([c.relu() for c in x.chunk(3, dim=1)], dim=1)),
    "maximum of the input": lambda: Beginning(lambda x: x - x.amax((1, 2, 3), keepdim=True)),
    "weight normalisation": lambda: convolutional(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    ),
}


def ready(make):
    """The network of a factory, in float64 and evaluation mode, with statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = make().double().eval()
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.normal_(module.running_mean)
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 2)
                    nn.init.normal_(module.bias)
    return network


@pytest.fixture
def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.fixture
def baselines():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def assert_close(a, b, rtol=1e-12):
    assert a.dtype == b.dtype
    assert (a - b).norm() <= rtol * b.norm()


def assert_captums(network, images, baselines):
    target = torch.tensor([0, 4, 2])
    ours = integrated_gradients(
        network, images, baselines=baselines[None], target=target, of="logit", n_steps=8
    )
    # Captum's weights are float32: exact for a power of two.
    theirs = captum.attr.IntegratedGradients(network).attribute(
        images, baselines, target=target, n_steps=8, method="riemann_right"
    )
    assert_close(ours.values, theirs, 1e-10)


@pytest.mark.parametrize("name", SPLITS)
def test_the_stem_is_found(name, images):
    make, ends, begins = SPLITS[name]
    found = split(ready(make), images)
    assert found.why_not == ""
    assert (list(found.ends), list(found.begins)) == (ends, begins)


@pytest.mark.parametrize("name", SPLITS | OTHERS)
def test_the_two_parts_are_the_network_and_the_first_is_affine(name, images, baselines):
    network = ready(SPLITS[name][0] if name in SPLITS else OTHERS[name])
    found = split(network, images)
    assert_close(found(images.clone()), network(images.clone()))
    start, end = found.stem(baselines), found.stem(images)
    for a in (0.3, -1.0, 2.5):
        for between, b, e in zip(
            found.stem(baselines + a * (images - baselines)), start, end, strict=True
        ):
            assert_close(between, b + a * (e - b))


@pytest.mark.parametrize("name", SPLITS | OTHERS)
def test_attributions_through_the_stem_are_captums(name, images, baselines):
    assert_captums(ready(SPLITS[name][0] if name in SPLITS else OTHERS[name]), images, baselines)


@pytest.mark.parametrize("begin", [F.relu, lambda x: x * x, torch.square, lambda x: 1 / x.exp()])
def test_a_first_operation_that_is_not_affine_leaves_the_network_whole(begin, images, baselines):
    network = ready(lambda: Beginning(begin))
    found = split(network, images)
    assert found.trunk is network
    assert (found.ends, found.n_folded) == ((), 0)
    assert "not affine" in found.why_not
    assert found.stem(images)[0] is images
    assert_captums(network, images, baselines)


def test_a_mean_over_the_batch_is_left_to_the_network(images):
    found = split(ready(lambda: Beginning(lambda x: x * x.mean())), images)
    assert found.why_not
    assert_close(found(images), found.trunk(images))


class Branching(AddedInPlace):
    def forward(self, x):
        x = self.conv(x)
        return self.head((x.relu() if x.sum() > 0 else x.sigmoid()).mean((2, 3)))


class WithoutGradient(AddedInPlace):
    """A trace does not see no_grad: its gradient would be another."""

    def forward(self, x):
        x = self.conv(x)
        with torch.no_grad():
            scale = x.abs().mean((1, 2, 3), keepdim=True)
        return self.head((x * scale).relu().mean((2, 3)))


class Detached(AddedInPlace):
    def forward(self, x):
        x = self.conv(x)
        x = x + (x.round() - x).detach()
        return self.head(x.relu().square().mean((2, 3)))


def hooked():
    network = convolutional(nn.Conv2d(3, 4, 3))
    network[0].register_forward_hook(lambda module, inputs, output: output * 2)
    return network


def hooked_backward():
    network = convolutional(nn.Conv2d(3, 4, 3))
    network[1].register_full_backward_hook(lambda module, before, after: (before[0] * 2,))
    return network


class PartlyFixed(AddedInPlace):
    """A small part of the gradient is cut, less than a comparison of gradients would notice."""

    def forward(self, x):
        u = self.conv(x)
        with torch.no_grad():
            constant = u.tanh() * 0.01
        return self.head((u.relu() + constant).mean((2, 3)))


class WritesIntoParts(AddedInPlace):
    """Fills a tensor part by part, and reads it after."""

    def forward(self, x):
        u = self.conv(x)
        if u.shape[-1] > 1:
            u = u.sigmoid()
        filled = torch.zeros_like(u)
        filled[:, :2] = u[:, 2:].square()
        filled[:, 2:] = u[:, :1]
        filled[:, :, :1] *= 2
        return self.head((filled + u).mean((2, 3)))


class WritesPartlyFixed(PartlyFixed):
    """What torch.export's functional form would let through: it has lost no_grad()."""

    def forward(self, x):
        u = self.conv(x)
        with torch.no_grad():
            constant = u.tanh() * 1e-6
        if u.shape[-1] > 1:
            filled = torch.zeros_like(u)
            filled[:, :2] = u[:, 2:].relu()
        return self.head((filled + u * constant).mean((2, 3)))


class WritesBuffer(WritesIntoParts):
    """Counts its calls, which the parts that it writes depend on."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(4))

    def forward(self, x):
        u = self.conv(x)
        if u.shape[-1] > 1:
            self.calls.add_(1)
        filled = u.clone()
        filled[:, :1] = u[:, 1:2].relu() * self.calls[0].clamp(max=1)
        return self.head(filled.mean((2, 3)))


class InInferenceMode(AddedInPlace):
    """Its factor is 1 but near a brightness that no image has: a comparison may not see that."""

    def forward(self, x):
        u = self.conv(x)
        if u.shape[-1] > 1:
            u = u.sigmoid()
        with torch.inference_mode():
            factor = (0.1 - (x.mean((1, 2, 3), keepdim=True) - 0.2).abs()).relu() * 20
        return self.head((u * (1 + factor.clone())).mean((2, 3)))


class Turning(AddedInPlace):
    """Makes constants without gradients, as rotary embeddings do, and branches on shapes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", torch.rand(4))

    @torch.no_grad()
    def angles(self, like):
        return self.frequencies[:, None] * torch.arange(like.shape[-1])

    def forward(self, x):
        u = self.conv(x)
        if u.shape[-1] > 1:
            u = u + self.angles(u)[None, :, None].cos()
        return self.head(u.relu().mean((2, 3)))


class TurningByValues(Turning):
    def angles(self, like):
        with torch.no_grad():
            return self.frequencies[:, None] * like.mean((0, 1, 2))


def normed():
    return convolutional(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Branching, "cannot trace"),
        (WithoutGradient, "no_grad"),
        (PartlyFixed, "no_grad"),
        (TurningByValues, "no_grad"),
        (WritesPartlyFixed, "which this form would lose"),
        (WritesBuffer, "what it keeps"),
        (InInferenceMode, "inference_mode"),
        (hooked, "hooks or parametrizations"),
        (hooked_backward, "hooks or parametrizations"),
        (normed, "hooks or parametrizations"),
    ],
)
def test_what_a_trace_would_lose_leaves_the_network_whole(make, why, images, baselines):
    network = ready(make)
    found = split(network, images)
    assert why in found.why_not
    assert found.trunk is network
    assert_captums(network, images, baselines)


def test_a_detached_value_stays_detached(images, baselines):
    network = ready(Detached)
    assert split(network, images).ends == ("conv (Conv2d)",)
    assert_captums(network, images, baselines)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_old_weight_normalisation_is_no_stem_with_old_weights(images, baselines):
    network = ready(lambda: convolutional(nn.utils.weight_norm(nn.Conv2d(3, 4, 3))))
    assert_captums(network, images, baselines)


def test_a_function_has_no_stem(images):
    found = split(lambda x: x.flatten(1), images)
    assert "function" in found.why_not
    assert found(images).shape == (3, 192)


def test_dropout_in_training_mode_is_not_affine(images):
    network = ready(lambda: convolutional(nn.Conv2d(3, 4, 3), nn.Dropout(0.0)))
    assert split(network, images).ends == ("1 (Dropout)",)
    network[1].train()
    assert split(network, images).ends == ("0 (Conv2d)",)


@pytest.mark.parametrize("training", [True, None])
def test_functional_dropout_in_training_mode_is_not_affine(images, training):
    arguments = {} if training is None else {"training": training}

    class Dropping(AddedInPlace):
        def forward(self, x):
            x = F.dropout(self.conv(x), 0.0, **arguments)
            return self.head(x.relu().mean((2, 3)))

    assert split(ready(Dropping), images).ends == ("conv (Conv2d)",)


def test_batch_norm_by_its_batch_is_not_affine(images):
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    network = ready(lambda: convolutional(nn.Conv2d(3, 4, 3)))
    network.insert(1, norm.double().eval())
    assert split(network, images).ends == ("0 (Conv2d)",)
    assert split(network, images).n_folded == 0


class Folding(nn.Module):
    """Seven batch norms, three of which follow a convolution that nobody else reads."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4, affine=False))
        self.line = nn.Sequential(nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4))
        self.linear = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
        self.pooled = nn.BatchNorm2d(4)
        self.shared, self.of_shared = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))

    def forward(self, x):
        x = self.pooled(F.max_pool2d(self.second(self.first(x).relu()), 1)).relu()
        y = self.shared(x)
        x = (self.of_shared(y) * y).flatten(2)
        return self.head(self.linear(self.line(x).relu().mean(2)).relu())


def test_batch_norms_are_folded_exactly(images, baselines):
    network = ready(Folding)
    found = split(network, images)
    assert found.why_not == ""
    assert found.n_folded == 3
    assert_close(found(images), network(images))
    assert_captums(network, images, baselines)


@pytest.mark.parametrize("n", [6, 3])
def test_a_norm_across_another_axis_than_the_linear_layer_before_is_not_folded(
    n, images, baselines
):
    class Across(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(64, n), nn.BatchNorm1d(3)
            self.head = nn.Linear(3 * n, 5)

        def forward(self, x):
            x = self.norm(self.linear(x.flatten(2)))  # (N, 3, n)
            return self.head(x.relu().flatten(1))

    network = ready(Across)
    assert_close(split(network, images)(images), network(images))
    assert_captums(network, images, baselines)


def test_a_convolution_used_twice_is_not_changed_by_the_norm_behind_one_of_its_uses(
    images, baselines
):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.head = nn.Linear(3, 5)

        def forward(self, x):
            x = self.norm(self.conv(x)).relu()
            return self.head(self.conv(x).relu().mean((2, 3)))

    network = ready(Twice)
    assert_close(split(network, images)(images), network(images))
    assert_captums(network, images, baselines)


@pytest.mark.parametrize("make", [SPLITS["normalised"][0], Folding, Patches, ConstantInside])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_model_is_left_as_it_was(make, dtype, images):
    network = ready(make).to(dtype)
    next(network.parameters()).requires_grad_(False)
    state = copy.deepcopy(network.state_dict())
    tensors = [*network.parameters(), *network.buffers()]
    before = [(id(t), t.data_ptr(), t.stride(), t._version, t.requires_grad) for t in tensors]
    names = {name: sorted(vars(module)) for name, module in network.named_modules()}
    integrated_gradients(network, images.to(dtype), n_steps=2)
    tensors = [*network.parameters(), *network.buffers()]
    assert before == [
        (id(t), t.data_ptr(), t.stride(), t._version, t.requires_grad) for t in tensors
    ]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(value.equal(state[name]) for name, value in network.state_dict().items())
    assert names == {name: sorted(vars(module)) for name, module in network.named_modules()}
    assert not any(module.training for module in network.modules())


def test_single_precision_is_as_close_as_the_unsplit_network(images):
    exact = ready(Folding)
    network = copy.deepcopy(exact).float()
    expected = exact(images)
    error = (split(network, images.float())(images.float()) - expected).norm()
    assert error < 1e-5 * expected.norm()


def test_an_untraceable_model_is_logged_once(images, caplog):
    network = ready(Branching)
    with caplog.at_level(logging.DEBUG, logger="igmask.engine.stem"):
        for _ in range(3):
            integrated_gradients(network, images, n_steps=2)
    (record,) = [one for one in caplog.records if one.name == "igmask.engine.stem"]
    assert record.levelno == logging.DEBUG
    assert "Branching has no affine stem" in record.getMessage()


@pytest.mark.parametrize(
    ("make", "end", "by"),
    [
        (WritesIntoParts, "conv (Conv2d)", "torch.export, functional"),
        (Turning, "add", "torch.export"),
    ],
)
def test_tensors_filled_in_parts_and_constants_under_no_grad_are_no_obstacle(
    make, end, by, images, baselines
):
    network = ready(make)
    found = split(network, images)
    assert found.ends == (end,)
    assert found.by == by
    assert_captums(network, images, baselines)


class Squeezing(nn.Module):
    """Drops the axis of its one channel, and for a single image that of the images."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 5)

    def forward(self, x):
        return self.linear(x[:, :1].squeeze()).relu().sum(1)


def test_what_a_single_image_changes_is_no_stem(images, baselines):
    network = ready(Squeezing)
    assert split(network, images).ends == ("getitem",)
    assert_captums(network, images, baselines)


def test_foreign_threads_run_their_modules_while_a_network_is_traced():
    stop, failures = threading.Event(), []

    def run():
        other, x = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), torch.rand(1, 3, 5, 5)
        while not stop.is_set():
            try:
                other(x)
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    network = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(40)))
    for _ in range(5):
        assert split(network.eval(), torch.rand(2, 3, 5, 5)).why_not == ""
    stop.set()
    thread.join()
    assert failures == []


HEADS = {
    "relu": (nn.ReLU(inplace=True),),
    "relu6": (nn.ReLU6(),),
    "silu": (nn.SiLU(inplace=True),),
    "hardswish": (nn.Hardswish(),),
    "gelu": (nn.GELU(),),
    "relu and pooling": (nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)),
    "relu and pooling, ceil": (nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
}


@pytest.mark.parametrize("name", HEADS)
def test_what_follows_the_stem_is_taken_along(name, images, baselines):
    rest = (nn.Conv2d(4, 3, 2), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(nn.Conv2d(3, 4, 3), *HEADS[name], *rest).double().eval()
    parts = split(network, images, with_head=True)
    assert parts.head.activation == name.split()[0]
    assert (parts.head.pool is not None) == ("pooling" in name)
    torch.testing.assert_close(parts(images), network(images))
    assert len(list(parts.trunk.children())) == len(rest)
    whole = split(network, images)
    assert whole.head == Head()

    ready = Network(network, images, split=parts)
    found = list(
        path_gradients(
            ready,
            images,
            baselines,
            lambda outputs, *_: outputs[:, 0],
            [([0.25, 0.5, 1], [0.25, 0.25, 0.5])] * len(images),
            batch_size=4,
        )
    )
    expected = path_gradients(
        Network(network, images, split=whole),
        images,
        baselines,
        lambda outputs, *_: outputs[:, 0],
        [([0.25, 0.5, 1], [0.25, 0.25, 0.5])] * len(images),
    )
    torch.testing.assert_close(found, list(expected))


class Branch(nn.Module):
    """Something else also reads the stem, or the activation."""

    def __init__(self, of_stem):
        super().__init__()
        self.of_stem = of_stem
        self.first, self.pool = nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2)

    def forward(self, x):
        u = self.first(x)
        active = F.relu(u)
        return self.pool(active).sum((2, 3)) + (u if self.of_stem else active).sin().sum((2, 3))


@pytest.mark.parametrize(("of_stem", "activation"), [(True, "none"), (False, "relu")])
def test_what_others_also_read_stays_behind(of_stem, activation, images):
    network = Branch(of_stem).double().eval()
    parts = split(network, images, with_head=True)
    assert parts.head == Head(activation)
    torch.testing.assert_close(parts(images), network(images))


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(3, 1), nn.MaxPool2d(5, 2), nn.MaxPool2d((2, 3), 2), nn.MaxPool2d(2, 2, 0, 2)],
)
def test_other_poolings_stay_behind(pool, images):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Flatten()).double().eval()
    parts = split(network, images, with_head=True)
    assert parts.head == Head("relu")
    torch.testing.assert_close(parts(images), network(images))


@pytest.mark.parametrize("layer", [nn.GELU(approximate="tanh"), nn.LeakyReLU(), nn.Softplus()])
def test_other_activations_stay_behind(layer, images):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Flatten()).double().eval()
    assert split(network, images, with_head=True).head == Head()


class PooledAsChannels(nn.Module):
    """Max pooling takes (N, H, W) too, as one image of N channels."""

    def __init__(self):
        super().__init__()
        self.first, self.pool = nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, padding=[1, 1])

    def forward(self, x):
        return self.pool(F.relu(self.first(x)[:, 0])).flatten(1)


def test_pooling_of_anything_but_images_stays_behind(images):
    network = PooledAsChannels().double().eval()
    parts = split(network, images, with_head=True)
    assert parts.head == Head()
    torch.testing.assert_close(parts(images), network(images))


# -- ReLUs that take along what comes before them ----------------------------------------------


class Block(nn.Module):
    """A residual block: the sum as `add` writes it, a projection or not, norms behind or before."""

    def __init__(self, add, *, project=False, before=False):
        super().__init__()
        self.add, self.before = add, before
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1, bias=before) for _ in "ab")
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in "ab")
        self.skip = nn.Conv2d(4, 4, 1) if project else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        if self.before:
            y = self.first(self.relu(self.norms[0](x)))
            return self.add(self.second(F.relu(self.norms[1](y))), self.skip(x))
        y = self.relu(self.norms[0](self.first(x)))
        return self.relu(self.add(self.norms[1](self.second(y)), self.skip(x)))


def in_place(y, x):
    y += x
    return y


def kept(y, x):
    """The sum, whose first operand is changed and used again."""
    z = y.add_(x)
    return z + y


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("block", "n_fused"),
    [
        (lambda: Block(torch.add), 2),
        (lambda: Block(in_place, project=True), 2),
        (lambda: Block(lambda y, x: y.add_(x)), 2),
        (lambda: Block(lambda y, x: torch.add(y, x, alpha=2)), 1),
        (lambda: Block(kept), 1),
        (lambda: Block(lambda y, x: y + x.mean((2, 3), keepdim=True)), 2),  # broadcast
        (lambda: Block(lambda y, x: y + x[:, :1]), 2),
        (lambda: Block(operator.add, before=True), 2),
    ],
)
def test_relus_take_along_what_comes_before_them(block, n_fused, precision):
    dtype = torch.float32 if precision == "bf16" else torch.float64
    network = ready(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), block(), Classes(4)))
    draw = torch.Generator().manual_seed(2)
    network, images = network.to(dtype), torch.rand(3, 3, 9, 9, dtype=dtype, generator=draw)
    found = split(network, images, fused=True)
    assert not found.why_not
    fused = [m for m in found.trunk.modules() if type(m).__name__ == "_FusedRelu"]
    assert len(fused) == n_fused
    assert split(network, images).n_folded == found.n_folded
    plain, ours = (
        Network(network, images, precision=precision, split=s)
        for s in (split(network, images), found)
    )
    slopes = [
        torch.cat(
            list(
                path_gradients(
                    n,
                    images,
                    torch.zeros_like(images),
                    lambda o, *_: o[:, 0].float(),
                    [([0.5, 1], [0.5, 0.5])] * len(images),
                )
            )
        )
        for n in (plain, ours)
    ]
    tolerance = 0.2 if precision == "bf16" else 1e-12
    assert (slopes[1] - slopes[0]).norm() < tolerance * slopes[0].norm()


class Keyword(nn.Module):
    """A norm that is given its input by name, behind a convolution with a bias."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return F.relu(self.norm(input=self.conv(x)))


class Single(nn.Module):
    """Convolutions of one image at a time, without an axis for the images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return torch.stack([F.relu(self.conv(x[0])), F.relu(self.conv(x[1]))])


class Named(nn.Module):
    """Layers whose names those of new ones must not take."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.fused_relu = nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Tanh()
        self.unbiased_conv = nn.Sigmoid()

    def forward(self, x):
        return self.unbiased_conv(self.fused_relu(self.relu(self.conv(x))))


@pytest.mark.parametrize("rest", [Keyword, Single, Named])
def test_what_cannot_be_fused_keeps_its_stem_and_its_numbers(rest):
    network = ready(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), rest(), Classes(4)))
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    found = split(network, images, fused=True)
    assert not found.why_not
    torch.testing.assert_close(found(images), network(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_of_networks_in_16_bits_are_taken_along_in_32(dtype):
    norm = nn.BatchNorm2d(4).eval()
    norm.running_mean.fill_(6.1)
    shift, scale = fusion._shift_and_scale(norm.to(dtype))
    assert shift.dtype == scale.dtype == torch.float32
    assert float(shift[0] / scale[0] + norm.running_mean[0]) == pytest.approx(0, abs=1e-5)


class Classes(nn.Module):
    """Features → class scores."""

    def __init__(self, n_channels):
        super().__init__()
        self.classes = nn.Linear(n_channels, 5)

    def forward(self, x):
        return self.classes(x.mean((2, 3)))


class PaddedWithInfinity(nn.Module):
    """A maximum whose padding is -inf, as timm's "same" pooling has it."""

    def __init__(self, pad):
        super().__init__()
        self.conv, self.rest = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.pad = pad

    def forward(self, x):
        padded = self.pad(self.conv(x))
        return self.rest(nn.functional.max_pool2d(padded, 3, 2).tanh().mean(dim=(2, 3)))


@pytest.mark.parametrize(
    "pad",
    [
        lambda u: nn.functional.pad(u, (0, 1, 0, 1), value=-float("inf")),
        nn.ConstantPad2d((0, 1, 0, 1), -float("inf")),
        lambda u: u + torch.where(torch.arange(10) > 8, -float("inf"), 0.0),
    ],
)
def test_infinities_are_behind_the_stem(pad):
    torch.manual_seed(0)
    network = PaddedWithInfinity(pad).double().eval()
    images = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    assert "conv" in split(network, images).ends[0]
    found = integrated_gradients(network, images, of="logit", target=1, n_steps=3)
    expected = captum.attr.IntegratedGradients(network).attribute(
        images, target=1, method="riemann_right", n_steps=3
    )
    torch.testing.assert_close(found.values, expected)
