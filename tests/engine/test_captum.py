"""The class with Captum's signature, against Captum's own in float64."""

import copy
import inspect
from concurrent.futures import ThreadPoolExecutor

import captum.attr
import numpy as np
import pytest
import torch
from captum._utils.gradient import compute_gradients
from torch import nn

import igmask
from igmask.engine.targets import TargetError
from igmask.errors import InputError
from igmask.inputs import contract
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


@pytest.mark.parametrize(
    "baselines", [None, 0.3, torch.full((1, 3, 9, 9), 0.2, dtype=torch.float64)]
)
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


# -- in the place of Captum's class ------------------------------------------------------------

# Captum's weights are float32: exact for a power of two.
EXACT = {"n_steps": 8, "method": "riemann_right"}


def assert_same(ours, theirs, rtol=1e-11):
    assert type(ours) is type(theirs)
    if isinstance(theirs, (tuple, list)):
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their, rtol)
    else:
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-15)


def test_signatures_are_captums():
    for name in ("__init__", "attribute", "compute_convergence_delta", "has_convergence_delta"):
        ours, theirs = (
            [
                (p.name, p.default)
                for p in inspect.signature(getattr(owner, name)).parameters.values()
            ]
            for owner in (igmask.IntegratedGradients, captum.attr.IntegratedGradients)
        )
        assert ours == theirs
    assert igmask.IntegratedGradients(torch.sum).multiplies_by_inputs
    assert not igmask.IntegratedGradients(torch.sum, False).multiplies_by_inputs


def test_public_members_are_captums():
    owners = igmask.IntegratedGradients, captum.attr.IntegratedGradients
    ours, theirs = (
        {name for name in dir(owner(torch.sum)) if not name.startswith("_")} for owner in owners
    )
    assert ours == theirs
    # A method that Captum logs by `log_usage` can be called past its log.
    logged, logged_theirs = (
        {name for name in theirs if hasattr(getattr(owner, name, None), "__wrapped__")}
        for owner in owners
    )
    assert logged == logged_theirs == {"attribute", "compute_convergence_delta"}


@pytest.mark.parametrize("name", ["IntegratedGradients", "Own", "own_IG", "V2Gradients"])
def test_names_are_captums(name):
    ours, theirs = (
        type(name, (owner,), {}).get_name()
        for owner in (igmask.IntegratedGradients, captum.attr.IntegratedGradients)
    )
    assert ours == theirs


def test_futures_are_not_implemented_as_in_captum():
    for owner in (igmask.IntegratedGradients, captum.attr.IntegratedGradients):
        with pytest.raises(NotImplementedError, match="attribute_future is not implemented"):
            owner(torch.sum).attribute_future()


@pytest.mark.parametrize("kind", ["Layer", "Neuron"])
@pytest.mark.parametrize("multiply", [True, False])
@pytest.mark.parametrize("of_input", [True, False])
def test_captums_layer_and_neuron_attributions_take_our_class(
    double, network, monkeypatch, kind, multiply, of_input
):
    inputs, baselines = torch.rand(2, 3, 3, 9, 9)
    method = getattr(captum.attr, f"{kind}IntegratedGradients")

    def attributed():
        if kind == "Layer":
            return method(network, network[1], multiply_by_inputs=multiply).attribute(
                inputs, baselines, target=[0, 4, 1], attribute_to_layer_input=of_input, **EXACT
            )
        return method(network, network[2], multiply).attribute(
            inputs, (1, 0, 1), baselines, attribute_to_neuron_input=of_input, **EXACT
        )

    theirs, used = attributed(), []

    class Ours(igmask.IntegratedGradients):
        def __init__(self, *arguments):
            used.append(arguments)
            super().__init__(*arguments)

    folder = f"captum.attr._core.{kind.lower()}.{kind.lower()}_integrated_gradients"
    monkeypatch.setattr(f"{folder}.IntegratedGradients", Ours)
    assert_same(attributed(), theirs)
    assert used


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.left(x).tanh() * self.right(x).sigmoid())


@pytest.mark.filterwarnings("ignore:Multiple layers provided:UserWarning")
def test_captums_attribution_of_several_layers_takes_our_class(double, monkeypatch):
    network, inputs = Parallel().eval(), torch.rand(3, 4)

    def attributed():
        method = captum.attr.LayerIntegratedGradients(network, [network.left, network.right])
        return method.attribute(
            inputs, target=2, return_convergence_delta=True, internal_batch_size=5, **EXACT
        )

    theirs = attributed()
    monkeypatch.setattr(
        "captum.attr._core.layer.layer_integrated_gradients.IntegratedGradients",
        igmask.IntegratedGradients,
    )
    assert_same(attributed(), theirs)


@pytest.mark.parametrize("nt_type", ["smoothgrad", "vargrad"])
def test_captums_noise_tunnel_takes_our_class(double, network, nt_type):
    inputs = torch.rand(3, 3, 9, 9)

    def attributed(method):
        torch.manual_seed(5)
        return captum.attr.NoiseTunnel(method).attribute(
            inputs, nt_type, nt_samples=4, stdevs=0.1, target=[0, 1, 2], **EXACT
        )

    ours = attributed(igmask.IntegratedGradients(network))
    assert_same(ours, attributed(captum.attr.IntegratedGradients(network)), 1e-9)


def test_attribute_can_be_called_past_captums_log(double, network):
    method, inputs = igmask.IntegratedGradients(network), torch.rand(2, 3, 9, 9)
    past = method.attribute.__wrapped__(method, inputs, target=1)
    assert past.equal(method.attribute(inputs, target=1))


def weighted(a, b, scale):
    return (a.square().unsqueeze(2) * b.unsqueeze(1)).sum(2) * scale


def test_a_gradient_function_of_ones_own_is_called(double):
    calls = []

    def gradient_func(forward_fn, inputs, target_ind=None, additional_forward_args=None):
        calls.append((forward_fn, [len(x) for x in inputs], target_ind, additional_forward_args))
        return tuple(
            3 * g
            for g in compute_gradients(forward_fn, inputs, target_ind, additional_forward_args)
        )

    inputs, scale = (torch.rand(3, 4), torch.rand(3, 2)), torch.rand(3, 1)
    arguments = {"target": [0, 3, 1], "additional_forward_args": scale, **EXACT}
    method = igmask.IntegratedGradients(weighted)
    plain = method.attribute(inputs, **arguments)
    method.gradient_func = gradient_func
    tripled = method.attribute(inputs, internal_batch_size=10, **arguments)
    assert_same(tripled, tuple(3 * values for values in plain))
    assert [sizes for _, sizes, _, _ in calls] == [[10, 10], [10, 10], [4, 4]]
    assert all(f is weighted for f, _, _, _ in calls)
    # The pairs go image by image.
    assert [t for _, _, targets, _ in calls for t in targets] == [0] * 8 + [3] * 8 + [1] * 8
    assert torch.cat([a for _, _, _, (a,) in calls]).equal(scale.repeat_interleave(8, 0))


@pytest.mark.parametrize("internal_batch_size", [None, 7])
def test_attributions_can_be_differentiated_like_captums(double, network, internal_batch_size):
    def gradient_func(forward_fn, inputs, target_ind=None, additional_forward_args=None):
        outputs = forward_fn(*inputs)
        rows = torch.arange(len(outputs))
        target = torch.as_tensor(target_ind).expand(len(outputs))
        return torch.autograd.grad(outputs[rows, target].sum(), inputs, create_graph=True)

    x = torch.rand(3, 3, 9, 9)
    found = []
    for kind in (igmask.IntegratedGradients, captum.attr.IntegratedGradients):
        inputs = x.clone().requires_grad_()
        method = kind(network)
        method.gradient_func = gradient_func
        batch = internal_batch_size if kind is igmask.IntegratedGradients else None
        values = method.attribute(
            inputs, 0.2, target=torch.tensor([0, 2, 1]), internal_batch_size=batch, **EXACT
        )
        (slope,) = torch.autograd.grad(values.square().sum(), inputs)
        found.append((values.detach(), slope))
    assert_same(*found)
    assert found[0][1].abs().max() > 0


# -- shapes ------------------------------------------------------------------------------------


class Vectors(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.first, self.second, self.shape = nn.Linear(7, 9), nn.Linear(9, 6), shape

    def forward(self, x):
        return self.second(self.first(x).tanh()).view(len(x), *self.shape)


@pytest.mark.parametrize(
    ("shape", "target"),
    [((6,), [5, 0, 2]), ((2, 3), (1, 2)), ((2, 3), [(0, 1), (1, 0), (1, 1)]), ((6,), -1)],
)
def test_modules_of_vectors_and_outputs_of_any_shape_are_captums(double, shape, target):
    model, inputs = Vectors(*shape).eval(), torch.rand(3, 7)
    theirs = captum.attr.IntegratedGradients(model).attribute(inputs, target=target, **EXACT)
    ours = igmask.IntegratedGradients(model).attribute(inputs, target=target, **EXACT)
    assert_same(ours, theirs)
    (alone,) = igmask.IntegratedGradients(model).attribute((inputs,), target=target, **EXACT)
    assert_same(alone, theirs)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_module_with_one_number_an_example_needs_no_target(double, shape):
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0, -1))
    model.append(nn.Unflatten(0, (-1, *shape)) if shape else nn.Identity())
    inputs = torch.rand(3, 7)
    theirs = captum.attr.IntegratedGradients(model.eval()).attribute(inputs, **EXACT)
    assert_same(igmask.IntegratedGradients(model).attribute(inputs, **EXACT), theirs)


@pytest.mark.parametrize("internal_batch_size", [1, 5, 24, 1000])
@pytest.mark.parametrize("as_function", [False, True])
def test_the_batch_size_does_not_matter(double, network, internal_batch_size, as_function):
    method = igmask.IntegratedGradients((lambda x: network(x)) if as_function else network)
    inputs, arguments = torch.rand(3, 3, 9, 9), {"target": [0, 1, 2], **EXACT}
    one = method.attribute(inputs, internal_batch_size=internal_batch_size, **arguments)
    assert_same(one, method.attribute(inputs, **arguments))


@pytest.mark.parametrize("as_function", [False, True])
def test_no_examples_have_no_attributions(double, network, as_function):
    method = igmask.IntegratedGradients((lambda x: network(x)) if as_function else network)
    values, delta = method.attribute(
        torch.zeros(0, 3, 9, 9), target=0, return_convergence_delta=True
    )
    assert values.shape == (0, 3, 9, 9)
    assert delta.shape == (0,)
    assert values.dtype == delta.dtype == torch.float64


def test_convergence_deltas_are_captums(double, network):
    attributions, start, end = torch.rand(3, 4, 3, 9, 9)
    for arguments in ((start, end, [0, 1, 2, 3]), (start[:1], end, 2), (0.5, end, 1)):
        ours, theirs = (
            kind(network).compute_convergence_delta(attributions, *arguments)
            for kind in (igmask.IntegratedGradients, captum.attr.IntegratedGradients)
        )
        assert_same(ours, theirs)


def test_convergence_deltas_of_several_inputs_are_captums(double):
    inputs, scale = (torch.rand(3, 4), torch.rand(3, 2)), torch.rand(3, 1)
    ours, theirs = (
        kind(weighted).compute_convergence_delta(
            inputs, (0.1, 0), inputs, target=[0, 3, 1], additional_forward_args=scale
        )
        for kind in (igmask.IntegratedGradients, captum.attr.IntegratedGradients)
    )
    assert_same(ours, theirs)


# -- dtypes, layouts, modes --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_attributions_keep_dtype_and_layout(network, dtype, as_function, memory_format):
    model, exact = network.to(dtype), copy.deepcopy(network).to(dtype).double()
    inputs = torch.rand(3, 3, 9, 9).to(dtype).contiguous(memory_format=memory_format)
    found, delta = igmask.IntegratedGradients(
        (lambda x: model(x)) if as_function else model
    ).attribute(inputs, target=[0, 1, 2], return_convergence_delta=True)
    assert found.dtype == delta.dtype == dtype
    assert found.stride() == inputs.stride()
    expected = igmask.IntegratedGradients(exact).attribute(inputs.double(), target=[0, 1, 2])
    # The network's own rounding, a few layers of it.
    assert (found.double() - expected).norm() < 3 * torch.finfo(dtype).eps * expected.norm()


@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("method", ["riemann_right", "gausslegendre"])
def test_weights_in_bfloat16_are_exact(as_function, method):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).bfloat16().eval()
    with torch.no_grad():
        model[1].weight.copy_(2.0 ** torch.randint(-3, 4, (4, 12)))
    inputs = torch.rand(2, 3, 2, 2).bfloat16()
    found = igmask.IntegratedGradients((lambda x: model(x)) if as_function else model).attribute(
        inputs, target=[1, 2], n_steps=300, method=method
    )
    assert found.equal(inputs * model[1].weight[[1, 2]].view_as(inputs))


@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_inference_mode_changes_nothing(double, network, as_function, inside):
    method = igmask.IntegratedGradients((lambda x: network(x)) if as_function else network)
    x, b = torch.rand(2, 3, 3, 9, 9)
    arguments = {"target": torch.tensor([0, 1, 2]), "return_convergence_delta": True}
    expected = method.attribute(x, b, **arguments)
    with torch.inference_mode():
        inputs = x * 1 if inside else x
        baselines = b * 1 if inside else b
        assert inputs.is_inference() == inside
        assert_same(method.attribute(inputs, baselines, **arguments), expected)
    with torch.no_grad():
        assert_same(method.attribute(inputs, baselines, **arguments), expected)


def test_inference_mode_changes_nothing_for_additional_arguments(double):
    inputs, scale = (torch.rand(3, 4), torch.rand(3, 2)), torch.rand(3, 1)
    method = igmask.IntegratedGradients(weighted)
    expected = method.attribute(inputs, target=1, additional_forward_args=scale)
    with torch.inference_mode():
        again = tuple(x * 1 for x in inputs)
        found = method.attribute(again, target=1, additional_forward_args=scale * 1)
    assert_same(found, expected)


@pytest.mark.parametrize("as_function", [False, True])
def test_autocast_is_the_networks_own_affair(network, as_function):
    model = network.float()
    method = igmask.IntegratedGradients((lambda x: model(x)) if as_function else model)
    inputs = torch.rand(3, 3, 9, 9)
    exact = method.attribute(inputs, target=[0, 1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        found = method.attribute(inputs, target=[0, 1, 2])
    assert found.dtype == torch.float32
    assert 0 < (found - exact).norm() < 0.02 * exact.norm()
    assert method.attribute(inputs, target=[0, 1, 2]).equal(exact)


def test_flags_gradients_and_hooks_are_left_alone(network):
    model = network.float()
    model[0].weight.requires_grad_(False)
    model[4].bias.grad = torch.ones(5)
    inputs = torch.rand(2, 3, 9, 9, requires_grad=True)
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    values = igmask.IntegratedGradients(model).attribute(inputs, target=0, n_steps=2)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert [name for name, flag in flags.items() if not flag] == ["0.weight"]
    assert model[4].bias.grad.equal(torch.ones(5))
    assert model[4].weight.grad is None
    assert inputs.requires_grad
    assert inputs.grad is None
    assert not values.requires_grad
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("n_baselines", [4, 1])
def test_a_model_that_begins_in_place_leaves_its_inputs_alone(
    double, as_function, delta, n_baselines
):
    rest = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh()).eval()
    model = nn.Sequential(nn.ReLU(inplace=True), rest).eval()
    inputs, baselines = torch.randn(2, 4, 3, 2, 2)
    baselines = baselines[:n_baselines]
    before = inputs.clone(), baselines.clone()
    arguments = {"target": 1, "return_convergence_delta": delta, **EXACT}
    found = igmask.IntegratedGradients((lambda x: model(x)) if as_function else model).attribute(
        inputs, baselines, **arguments
    )
    assert inputs.equal(before[0])
    assert baselines.equal(before[1])
    expected = captum.attr.IntegratedGradients(nn.Sequential(nn.ReLU(), rest)).attribute(
        inputs, baselines, **arguments
    )
    assert_same(found, expected)


def test_runs_are_the_same_to_the_bit(network):
    inputs, arguments = torch.rand(3, 3, 9, 9), {"target": [0, 1, 2], "internal_batch_size": 11}
    first, second, fresh = (
        igmask.IntegratedGradients(model).attribute(inputs, **arguments)
        for model in (network.float(), network, copy.deepcopy(network))
    )
    assert first.equal(second)
    assert first.equal(fresh)


@pytest.mark.parametrize("as_function", [False, True])
def test_threads_may_share_an_instance(double, network, as_function):
    method = igmask.IntegratedGradients((lambda x: network(x)) if as_function else network)
    inputs = torch.rand(6, 3, 3, 9, 9)

    def work(k):
        return method.attribute(inputs[k], target=k % 5, return_convergence_delta=True, n_steps=9)

    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(work, range(6)))
    for k, found in enumerate(together):
        for one, other in zip(found, work(k), strict=True):
            assert one.equal(other)


# -- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        None,
        (0, 1),
        (),
        [0, 1],
        [0, 1, 2, 3, 4],
        torch.tensor([0, 1]),
        torch.tensor([0, 1, 2, 3, 4]),
        torch.tensor([[0], [1], [2], [3]]),
    ],
    ids=lambda target: f"{type(target).__name__} {getattr(target, 'shape', target)}",
)
@pytest.mark.parametrize("as_function", [False, True])
def test_targets_that_captum_refuses_are_refused_by_the_same_error(
    double, network, target, as_function
):
    f = (lambda x: network(x)) if as_function else network
    inputs = torch.rand(4, 3, 9, 9)
    with pytest.raises(AssertionError):
        captum.attr.IntegratedGradients(f).attribute(inputs, target=target, n_steps=3)
    with pytest.raises(TargetError) as error:
        igmask.IntegratedGradients(f).attribute(inputs, target=target, n_steps=3)
    assert isinstance(error.value, AssertionError)
    assert isinstance(error.value, InputError)


@pytest.mark.parametrize("target", [[(0, 1)] * 4, [0, (1, 2), 0, 0], 5, [0, 1, 2, 5], -6])
def test_targets_that_do_not_fit_the_output_are_refused(double, network, target):
    for f in (network, lambda x: network(x)):
        with pytest.raises(TargetError):
            igmask.IntegratedGradients(f).attribute(
                torch.rand(4, 3, 9, 9), target=target, n_steps=3
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_baseline_of_another_dtype_is_refused(network, dtype):
    inputs = torch.rand(4, 3, 9, 9, dtype=torch.float64)
    baselines = torch.zeros(4, 3, 9, 9, dtype=dtype)
    for f in (network, lambda x: network(x)):
        with pytest.raises(InputError, match=str(dtype)):
            igmask.IntegratedGradients(f).attribute(inputs, baselines, target=0)


@pytest.mark.parametrize("inputs", [torch.ones(2, 3, dtype=torch.int64), [0.5, 1.0]])
def test_inputs_that_are_not_floating_point_tensors_are_refused(inputs):
    with pytest.raises(InputError, match="floating-point tensors"):
        igmask.IntegratedGradients(lambda x: x.sum(1)).attribute(inputs)


@pytest.mark.parametrize("as_function", [False, True])
def test_an_internal_batch_size_of_zero_is_refused(double, network, as_function):
    f = (lambda x: network(x)) if as_function else network
    with pytest.raises(InputError, match="batch size must be at least 1"):
        igmask.IntegratedGradients(f).attribute(
            torch.rand(2, 3, 9, 9), target=0, internal_batch_size=0
        )


def test_gradients_that_are_not_finite_name_example_and_step_on_the_general_way():
    inputs = torch.rand(3, 4, dtype=torch.float64) + 1
    inputs[1] = 0
    method = igmask.IntegratedGradients(lambda x: (x.sqrt() + x).sum(1))
    with pytest.raises(InputError, match=r"image 1: NaN or infinite gradient at step 1, α = 0.2"):
        method.attribute(inputs, n_steps=5, method="riemann_right")


@pytest.mark.parametrize("target", [torch.tensor([-1, 0]), [0, -1], -6, 5])
def test_targets_out_of_range_are_refused_before_a_gpu_sees_them(network, target):
    inputs = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    with pytest.raises(TargetError, match="out of range"):
        igmask.IntegratedGradients(network).attribute(inputs, target=target, n_steps=2)


def test_the_last_class_may_be_counted_from_the_end(double, network):
    inputs = torch.rand(2, 3, 9, 9)
    found = igmask.IntegratedGradients(network).attribute(inputs, target=-1, n_steps=4)
    expected = igmask.IntegratedGradients(network).attribute(inputs, target=4, n_steps=4)
    assert found.equal(expected)


@pytest.mark.parametrize(
    ("target", "plain"),
    [
        (np.int64(3), 3),
        (np.array(3), 3),
        (np.array([3]), 3),
        (np.array([0, 3, 1, 4]), [0, 3, 1, 4]),
        (np.array([0, 3, 1, 4], dtype=np.uint8), [0, 3, 1, 4]),
        (torch.tensor([0, 3, 1, 4], dtype=torch.uint8), [0, 3, 1, 4]),
        ([np.int64(0), 3, torch.tensor(1), 4], [0, 3, 1, 4]),
        ((np.int64(3),), 3),
        ([(np.int64(3),)] * 4, 3),
    ],
)
@pytest.mark.parametrize("as_function", [False, True])
def test_numpys_numbers_are_targets(double, network, target, plain, as_function):
    f = (lambda x: network(x)) if as_function else network
    inputs = torch.rand(4, 3, 9, 9)
    theirs = captum.attr.IntegratedGradients(f)
    expected = theirs.attribute(inputs, target=plain, return_convergence_delta=True, **EXACT)
    ours = igmask.IntegratedGradients(f)
    assert_same(
        ours.attribute(inputs, target=target, return_convergence_delta=True, **EXACT), expected
    )
    delta = ours.compute_convergence_delta(
        expected[0], torch.zeros_like(inputs), inputs, target=target
    )
    torch.testing.assert_close(delta, expected[1], rtol=1e-11, atol=1e-12)


NO_TARGETS = [
    (torch.tensor([1.0, 2.0]), r"got torch.float32 of shape \(2,\); .long\(\) makes"),
    (torch.tensor(1.0), r"got torch.float32 of shape \(\); .long\(\) makes"),
    (torch.eye(5)[:2], r"of shape \(2, 5\); of several labels a row, or one-hot ones, take one"),
    (torch.eye(5, dtype=torch.int64)[:2], r"take one: .argmax\(1\)"),
    (torch.tensor([True, False]), r"got torch.bool of shape \(2,\)"),
    (torch.tensor(True), "got torch.bool"),
    (np.array([1.0, 2.0]), r"got float64 of shape \(2,\); .astype\(int\) makes"),
    (np.array([True, False]), "got bool of shape"),
    (np.array(["cat", "dog"]), r"got <U3 of shape \(2,\)"),
    (np.array([0, 1, 2]), r"got int64 of shape \(3,\)"),
    ("cat", "got str 'cat'; the number of a name is its place in the list of classes"),
    (["cat", "dog"], "got a list of 2; the number of a name"),
    ([1.0, 2.0], "got a list of 2"),
    ([[0, 1], [1, 2]], "got a list of 2"),
    (1.0, "got float 1.0"),
    (True, "got bool True"),
    (np.True_, "got bool"),
    ({"label": 1}, "got dict {'label': 1}"),
    (range(2), r"got range range\(0, 2\)"),
]


@pytest.mark.parametrize(("target", "message"), NO_TARGETS)
def test_what_is_no_target_is_refused_before_the_network_runs(target, message):
    def network(_):
        raise AssertionError("the network has run")

    inputs = torch.rand(2, 3, 9, 9)
    method = igmask.IntegratedGradients(network)
    with pytest.raises(TargetError, match=message):
        method.attribute(inputs, target=target)
    with pytest.raises(TargetError, match=message):
        method.compute_convergence_delta(inputs, inputs, inputs, target=target)


SHAPES = [(), (1,), (3,), (3, 1), (2, 3), (1, 1), (3, 1, 1), (3, 1, 2)]
TARGETS = [
    *(None, 0, 2, -1, (), (1,), (-1,), (1, 0), (0, -1), (1, 0, 0), (0, 1, 2, 3)),
    *([0, 1, 1, 0], [0, -1, 0, 0], [(1,)] * 4, [(-1,)] * 4, [(1, 0), (0, 0)] * 2, [(0, 0, 1)] * 4),
    *(torch.tensor(1), torch.tensor([1]), torch.tensor([[-1]]), torch.tensor([0, 2, 1, 0])),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_what_captum_accepts_is_accepted(double, shape, target):
    weight = torch.rand(5, *shape, generator=torch.manual_seed(0))

    def f(x):
        return torch.tensordot(x.tanh(), weight, dims=1)

    inputs = torch.rand(4, 5)
    try:
        expected = captum.attr.IntegratedGradients(f).attribute(inputs, target=target, **EXACT)
    except (AssertionError, IndexError, RuntimeError):
        return
    found = igmask.IntegratedGradients(f).attribute(inputs, target=target, **EXACT)
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baselines": "black"}, "a baseline must be a number or a tensor, got str"),
        ({"baselines": np.zeros((2, 3, 9, 9))}, "a baseline must be a number or a tensor"),
        ({"n_steps": "5"}, "n_steps must be an integer, got '5'"),
        ({"internal_batch_size": 2.5}, "the batch size must be an integer, got 2.5"),
    ],
)
@pytest.mark.parametrize("as_function", [False, True])
def test_arguments_of_another_kind_are_named(network, as_function, arguments, message):
    x = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    ig = igmask.IntegratedGradients((lambda x: network(x)) if as_function else network)
    with pytest.raises(InputError, match=message):
        ig.attribute(x, target=0, **arguments)


def test_inputs_have_as_many_examples_each():
    x = torch.rand(3, 4)
    with pytest.raises(InputError, match="as many examples each, got 3, 2"):
        igmask.IntegratedGradients(lambda a, b: a.sum(1)).attribute((x, x[:2]))


@pytest.mark.parametrize("of", ["function", "inputs", "module"])
def test_gradients_that_pytorch_has_wrong_are_refused_on_the_general_way(monkeypatch, of):
    """Of padded averages in channels-last on a GPU: see `contract.averages_rightly`."""
    monkeypatch.setattr(contract, "averages_rightly", lambda _: False)

    class Averaging(nn.Module):
        def __init__(self, padding):
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 8, 3), nn.AvgPool2d(3, 1, padding)

        def forward(self, x, *more):
            means = self.pool(self.conv(x).relu()).mean((2, 3))
            return means + sum(y.sum((1, 2, 3)).unsqueeze(1) for y in more)

    x = torch.rand(2, 3, 9, 9)
    inputs, more = ((x, x), None) if of == "inputs" else (x, x if of == "module" else None)
    options = {"target": 0, "n_steps": 2, "additional_forward_args": more}
    for padding, layout in ((1, torch.contiguous_format), (0, torch.channels_last)):
        network = Averaging(padding).eval().to(memory_format=layout)
        f = network if of == "module" else lambda *given, network=network: network(*given)
        igmask.IntegratedGradients(f).attribute(inputs, **options)
    network = Averaging(1).eval().to(memory_format=torch.channels_last)
    f = network if of == "module" else lambda *given: network(*given)
    with pytest.raises(InputError, match=r"wrong gradients of padded average pooling"):
        igmask.IntegratedGradients(f).attribute(inputs, **options)


class Tokens(nn.Module):
    """A frozen norm whose gradient comes back with its channels last, as in many transformers."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.norm.running_var.uniform_(0.5, 2)
        self.weights = nn.Parameter(torch.rand(36, 4))

    def forward(self, x):
        tokens = self.norm(self.conv(x).relu()).flatten(2).transpose(1, 2)
        return self.head((tokens * self.weights).sum(dim=1))


@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("n_steps", [1, 4])
def test_gradients_of_one_image_alone_are_those_among_others(as_function, n_steps):
    """Which PyTorch 2.14 has wrong: findings/pytorch-batch-norm-of-one-image.sh."""
    torch.manual_seed(0)
    network, x = Tokens().eval().requires_grad_(False), torch.rand(3, 3, 8, 8)
    f = (lambda x: network(x)) if as_function else network
    ig = igmask.IntegratedGradients(f)
    how = {"target": 1, "n_steps": n_steps, "method": "riemann_middle"}
    expected = ig.attribute(x, **how, internal_batch_size=6)
    alone = [ig.attribute(one[None], **how, internal_batch_size=1) for one in x]
    torch.testing.assert_close(torch.cat(alone), expected, rtol=1e-4, atol=1e-7)
    exact = igmask.integrated_gradients(
        network.double(), x.double(), target=1, of="logit", rule="middle", n_steps=n_steps
    )
    torch.testing.assert_close(expected.double(), exact.values, rtol=1e-3, atol=1e-6)
