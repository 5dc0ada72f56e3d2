"""Networks that change between two calls, and such as no trace sees through, against Captum."""

import functools
import gc
import weakref
from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as everywhere

import igmask
from igmask.engine.ready import prepare
from igmask.engine.stem import split


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.rand(2, 3, 9, 9, dtype=torch.float64)


class Net(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        vars(self).update(attributes)

    def after(self, u):
        return u.tanh()

    def forward(self, x):
        return self.head(self.after(self.conv(x)).mean((2, 3)))


def drawn(network):
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network.double().eval()


def attributions(network, images):
    """Ours and Captum's, of two steps, whose weights Captum rounds to float32 exactly."""
    how = {"target": 1, "n_steps": 2}
    ours = igmask.integrated_gradients(network, images, rule="right", of="logit", **how).values
    plain = captum.attr.IntegratedGradients(network)
    return ours, plain.attribute(images, method="riemann_right", **how)


def assert_captums(network, images):
    ours, theirs = attributions(network, images)
    assert (theirs != 0).any()
    assert (ours - theirs).norm() <= 1e-10 * theirs.norm()


# -- changed between two calls -------------------------------------------------------------------

GLOBAL = SimpleNamespace(gain=1.0, act=torch.tanh)


class OfClass(Net):
    gain = 1.0

    def after(self, u):
        return (u * self.gain).tanh()


class OfGlobal(Net):
    def after(self, u):
        return GLOBAL.act(u * GLOBAL.gain)


class OfAttribute(Net):
    def after(self, u):
        return (u * float(self.gain)).tanh()


class Calling(Net):
    def after(self, u):
        return self.function(u)


class Slotted:
    __slots__ = ("gain",)

    def __init__(self, gain):
        self.gain = gain

    def __call__(self, u):
        return (u * self.gain).sigmoid()


class Plain:
    def __init__(self, gain):
        self.gain = gain

    def scaled(self, u):
        return (u * self.gain).sigmoid()


def times(u, gain):
    return (u * gain).tanh()


def in_a_closure(gain):
    return lambda u: (u * gain).tanh()


def decorated(function):
    @functools.wraps(function)
    def call(*given):
        return function(*given)

    return call


def nested(gain):
    return SimpleNamespace(a=SimpleNamespace(a=SimpleNamespace(a=SimpleNamespace(a=Plain(gain)))))


class Deep(Net):
    def after(self, u):
        return self.held.a.a.a.a.scaled(u)


SLOTTED, PLAIN, NESTED = Slotted(1.0), Plain(1.0), nested(1.0)


def setting(network, **attributes):
    vars(network).update(attributes)


CHANGES = {
    "an attribute of the class": (OfClass, lambda n, k: setattr(OfClass, "gain", k)),
    "an attribute of the instance": (OfClass, lambda n, k: setting(n, gain=k)),
    "an object that is global": (OfGlobal, lambda n, k: setattr(GLOBAL, "gain", k)),
    "a function of such an object": (
        OfGlobal,
        lambda n, k: setattr(GLOBAL, "act", partial(times, gain=k)),
    ),
    "a method of the class": (
        OfGlobal,
        lambda n, k: setattr(OfGlobal, "after", lambda self, u: u * k),
    ),
    "a number of NumPy": (OfAttribute, lambda n, k: setting(n, gain=np.float32(k))),
    "a fraction": (OfAttribute, lambda n, k: setting(n, gain=Fraction(k))),
    "an object with slots": (
        partial(Calling, function=SLOTTED),
        lambda n, k: setattr(SLOTTED, "gain", k),
    ),
    "another object with slots": (Calling, lambda n, k: setting(n, function=Slotted(k))),
    "what a method is bound to": (
        partial(Calling, function=PLAIN.scaled),
        lambda n, k: setattr(PLAIN, "gain", k),
    ),
    "a partial function": (Calling, lambda n, k: setting(n, function=partial(times, gain=k))),
    "a function with a closure": (Calling, lambda n, k: setting(n, function=in_a_closure(k))),
    "what is held deep": (
        partial(Deep, held=NESTED),
        lambda n, k: setattr(NESTED.a.a.a.a, "gain", k),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changes_is_noticed(what, images, monkeypatch):
    for place, name in [(OfClass, "gain"), (OfGlobal, "after"), (GLOBAL, "gain"), (GLOBAL, "act")]:
        if name in vars(place):
            monkeypatch.setattr(place, name, vars(place)[name])  # which takes back what is set
    make, change = CHANGES[what]
    network = drawn(make())
    for k in (1.0, 4.0, 2.0, 8.0, 1.0):  # an object may lie where a former one was
        change(network, k)
        assert_captums(network, images)


def test_a_network_that_did_not_change_is_made_ready_once(images):
    held = {"held": NESTED, "one": Slotted(1.0), "functions": F, "many": [[[[[[1]]]]]]}
    network = drawn(Calling(function=PLAIN.scaled, few=[torch.tanh, in_a_closure(2.0)], **held))
    network.wrapped = decorated(network.after)
    assert prepare(network, images) is prepare(network, images[:1])


@pytest.mark.parametrize("how", ["slots", "iterator", "nested"])
def test_a_network_that_leads_back_to_itself_is_freed(how, images):
    network = drawn(Net())
    back = {"slots": Slotted, "iterator": lambda x: iter([x]), "nested": lambda x: [[[[[x]]]]]}
    network.back = back[how](network)
    prepare(network, images)
    alive = weakref.ref(network)
    del network
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("when", ["before", "between"])
def test_hooks_on_every_module_count(when, backward, images):
    network = drawn(Net())
    if when == "between":
        assert_captums(network, images)
    of_conv = nn.Conv2d

    def forward(module, given, found):
        return 3 * found if isinstance(module, of_conv) else None

    def back(module, given, found):
        return (0.5 * given[0],) if isinstance(module, nn.Linear) else None

    register = everywhere.register_module_full_backward_hook
    hook = register(back) if backward else everywhere.register_module_forward_hook(forward)
    try:
        assert_captums(network, images)
    finally:
        hook.remove()
    assert_captums(network, images)


# -- what a trace does not see ---------------------------------------------------------------------


class Clip(torch.autograd.Function):
    """The identity, with another gradient: a symbol that passes has no operation of its own."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clamp(-0.001, 0.001)


class Clipping(Net):
    def after(self, u):
        return Clip.apply(u).tanh()


class Asking(Net):
    """It does something else where it is not given a tensor, as a symbol is none."""

    def after(self, u):
        return (0.85 * u + 0.15 * u.detach() if isinstance(u, torch.Tensor) else u).tanh()


class Hooking(Net):
    def after(self, u):
        if isinstance(u, torch.Tensor) and u.requires_grad:
            u.register_hook(lambda gradient: 0.85 * gradient)
        return u.tanh()


class Counting(Net):
    """It catches what a symbol says when it is asked for a number."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def after(self, u):
        try:
            k = self.number(u.mean() * 0) + 1.002
        except TypeError:
            k = 1.0
        return (u * k).tanh()


class Forward(Net):
    def after(self, u):
        value, derivative = torch.func.jvp(torch.tanh, (u,), (torch.ones_like(u),))
        return value + derivative


class Differentiating(Net):
    def after(self, u):
        return u + torch.func.grad(lambda v: v.tanh().pow(2).sum())(u)


class Branching(Net):
    def after(self, u):
        return torch.cond(u.mean() > 0.3, torch.tanh, torch.sin, (u,))


class Sparse(Net):
    def __init__(self):
        super().__init__()
        self.sparse = nn.Parameter(torch.eye(4).to_sparse())

    def forward(self, x):
        u = self.conv(x).tanh().mean((2, 3))
        return self.head(torch.sparse.mm(self.sparse, u.T).T)


UNSEEN = {
    "a gradient of its own": Clipping,
    "another way for tensors": Asking,
    "hooks on tensors alone": Hooking,
    "int": partial(Counting, int),
    "float": partial(Counting, float),
    "forward derivatives": Forward,
    "gradients within": Differentiating,
    "a condition": Branching,
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # torch's
@pytest.mark.parametrize("what", UNSEEN)
def test_what_a_trace_does_not_see_is_not_lost(what, images):
    network = drawn(UNSEEN[what]())
    assert_captums(network, images)
    torch.zeros(2).requires_grad_()  # as ever
    torch.func.jvp(torch.tanh, (images,), (images,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_is_compared_beyond_the_kinks_of_float32(dtype, images):
    """Of 15 % too much, or of hundredths, as a network with ReLUs may differ by rounding."""
    network, images = drawn(Asking()).to(dtype), images.to(dtype)
    assert split(network, images).by != "torch.fx"
    assert split(drawn(Net()).to(dtype), images).by == "torch.fx"


def test_a_function_with_a_gradient_of_its_own_is_an_operation_behind_the_stem(images):
    found = split(drawn(Clipping()), images)
    assert (found.why_not, found.ends) == ("", ("conv (Conv2d)",))
    assert found.begins == ("clip",)


class Rounded(Net):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.head(self.conv(self.conv(x)[:, :3].relu()).relu().mean((2, 3))).float()


def test_an_autocast_of_its_own_is_kept(images):
    network, images = drawn(Rounded()).float(), images.float()
    ours, theirs = attributions(network, images)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert split(network, images).why_not


class Narrow(Net):
    """Weights in 8 bits."""

    def __init__(self, kind):
        super().__init__()
        weight = torch.randn(4, 3, 3, 3)
        if kind == "quantised":
            self.register_buffer("weight", torch.quantize_per_tensor(weight, 0.02, 0, torch.qint8))
        else:
            narrow = weight.to(torch.float8_e4m3fn)
            self.weight = nn.Parameter(narrow, requires_grad=False)

    def forward(self, x):
        weight = self.weight.dequantize() if self.weight.is_quantized else self.weight
        return self.head(F.conv2d(x, weight.to(x.dtype)).tanh().mean((2, 3)))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("kind", ["float8", "quantised"])
def test_weights_in_8_bits_are_no_obstacle(kind):
    torch.manual_seed(0)
    network, images = Narrow(kind).eval(), torch.rand(2, 3, 9, 9)
    ours, theirs = attributions(network, images)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_sparse_weights_are_no_obstacle(images):
    network = Sparse().double().eval()
    assert_captums(network, images)
    assert igmask.mask_image(images, network, p=50).shape == images.shape
