"""Steps where f changes, steps between, and steps left out, against closed forms."""

import numpy as np
import pytest
import torch
from torch import nn

import igmask
from igmask import quadrature
from igmask.engine.ig import Auto, NotFinite, integrated_gradients
from igmask.errors import InputError


class OfSum(nn.Module):
    """Two logits that depend on the sum of an image alone, so that φ is known.

    Without layers that mix rows its bytes do not depend on the batch.
    """

    def __init__(self, slope=1.0, where=0.0):
        super().__init__()
        self.slope, self.where = slope, where

    def forward(self, x):
        total = x.flatten(1).double().sum(dim=1)
        return torch.stack([self.slope * (total - self.where), torch.zeros_like(total)], dim=1)


def images_of_sum_1(n):
    images = torch.rand(n, 3, 4, 4, dtype=torch.float64)
    return images / images.sum(dim=(1, 2, 3), keepdim=True)


def by_hand(f, image, baseline, rule):
    total = torch.zeros_like(image)
    for alpha, weight in zip(*rule, strict=True):
        point = (baseline + alpha * (image - baseline)).requires_grad_()
        (slope,) = torch.autograd.grad(f(point[None])[0], point)
        total += weight * slope
    return (image - baseline) * total


def probed(f, image, baseline):
    points = (baseline + alpha * (image - baseline) for alpha in quadrature.PROBES)
    with torch.no_grad():
        return [float(f(point[None])) for point in points]


@pytest.mark.parametrize("n_steps", [1, 2, 5, 20])
def test_a_quadratic_is_exact(n_steps):
    images = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    found = integrated_gradients(
        lambda x: (x**2).flatten(1).sum(1, keepdim=True),
        images,
        of="logit",
        rule="adaptive",
        n_steps=n_steps,
    )
    torch.testing.assert_close(found.values, images**2, rtol=1e-12, atol=0)
    assert found.n_steps.tolist() == [n_steps] * 3


def test_a_steep_softmax_that_right_50_misses():
    images = images_of_sum_1(3)
    model = OfSum(1000, 0.51).eval()  # on the path from black f jumps at α = 0.51
    right, adaptive = (
        integrated_gradients(model, images, target=0, rule=rule) for rule in ("right", "adaptive")
    )
    assert right.completeness.abs().min() > 0.9
    assert adaptive.relative_completeness.max() < 0.02
    torch.testing.assert_close(adaptive.values, images, rtol=0.02, atol=0)  # φ = x Δf / Σx


def test_a_path_without_change_has_uniform_steps():
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    seen = []

    def f(x):
        if x.requires_grad:
            seen.append(x.detach())
        return torch.stack([0 * x.flatten(1).sum(1), x.flatten(1).sum(1) * 0], dim=1)

    found = integrated_gradients(f, images, of="logit", rule="adaptive", n_steps=4, batch_size=4)
    assert found.values.abs().max() == 0
    asked = seen[-1][:4] / images[-1] if len(seen[-1]) >= 4 else None
    np.testing.assert_allclose(asked[:, 0, 0, 0], [0.125, 0.375, 0.625, 0.875], atol=1e-12)


@pytest.mark.parametrize("of", ["probability", "logit"])
def test_steps_are_those_of_the_cells_of_each_path_and_baseline(network, of):
    images = torch.rand(3, 3, 9, 9, generator=torch.Generator().manual_seed(3)).double()
    baselines = torch.stack([torch.zeros_like(images), 0.4 * images.flip(0), images + 1])
    target = torch.tensor([1, 0, 1])
    found = integrated_gradients(
        network, images, baselines=baselines, target=target, of=of, rule="adaptive", n_steps=6
    )
    for i, image in enumerate(images):

        def f(x, i=i):
            logits = network(x)
            return (logits.softmax(1) if of == "probability" else logits)[:, target[i]]

        of_each = [
            by_hand(f, image, b, quadrature.middles(quadrature.cells(probed(f, image, b), 6)))
            for b in baselines[:, i]
        ]
        expected = torch.stack(of_each).mean(dim=0)
        torch.testing.assert_close(found.values[i], expected, rtol=1e-9, atol=1e-12)
    assert (found.output - found.baseline_output).abs().max() > 1e-5
    assert found.predicted.equal(network(images).argmax(1))


def test_the_bytes_do_not_depend_on_the_batch_size():
    images = images_of_sum_1(5).float()
    model = OfSum(30, 0.4).eval()
    first, *others = (
        integrated_gradients(
            model, images, target=0, rule="adaptive", n_steps=9, batch_size=size
        ).values
        for size in (1, 7, 64)
    )
    assert first.abs().max() > 0.01
    assert all(torch.equal(first, other) for other in others)


def test_captums_class_and_the_call_agree(network):
    images, target = torch.rand(4, 3, 9, 9, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    expected = integrated_gradients(
        network, images, target=target, of="logit", rule="adaptive", n_steps=7
    ).values
    options = {"target": target, "method": "adaptive", "n_steps": 7}
    of_module = igmask.IntegratedGradients(network).attribute(images, **options)
    torch.testing.assert_close(of_module, expected, rtol=1e-10, atol=1e-14)
    of_function = igmask.IntegratedGradients(lambda x: network(x)).attribute(
        images, **options, internal_batch_size=5
    )
    torch.testing.assert_close(of_function, expected, rtol=1e-10, atol=1e-14)


def test_captums_class_of_two_inputs():
    x, y = torch.rand(2, 3, 4, dtype=torch.float64)
    found = igmask.IntegratedGradients(lambda x, y: (x**2).sum(1) + 3 * y.sum(1)).attribute(
        (x, y), method="adaptive", n_steps=3
    )
    torch.testing.assert_close(found, (x**2, 3 * y), rtol=1e-12, atol=1e-14)


def test_gradients_of_another_function_do_not_say_where_f_changes(network):
    of_other = igmask.IntegratedGradients(network)
    of_other.gradient_func = lambda f, inputs, *_: tuple(map(torch.ones_like, inputs))
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(of_other.attribute(images, target=0, method="middle"), images)
    with pytest.raises(InputError, match="a gradient_func of another"):
        of_other.attribute(images, target=0, method="adaptive")


def test_automatic_steps_halve_the_cells(network):
    images = torch.rand(3, 3, 9, 9, dtype=torch.float64)
    baselines = torch.stack([torch.zeros_like(images), 0.4 * images.flip(0)])
    auto = Auto(completeness=1e-12, first=4, most=14)
    found = integrated_gradients(
        network, images, baselines=baselines, target=1, of="logit", rule="adaptive", n_steps=auto
    )
    assert found.n_steps.tolist() == [13] * 3  # edges of 3, 6, 12 cells

    def f(x):
        return network(x)[:, 1]

    for i, image in enumerate(images):
        of_each = []
        for baseline in baselines[:, i]:
            edges = quadrature.cells(probed(f, image, baseline), 3)
            rule = quadrature.trapezoids(quadrature.halved(quadrature.halved(edges)))
            of_each.append(by_hand(f, image, baseline, rule))
        expected = torch.stack(of_each).mean(dim=0)
        torch.testing.assert_close(found.values[i], expected, rtol=1e-9, atol=1e-12)


def test_automatic_steps_begin_with_17_and_settle_where_they_agree():
    images = images_of_sum_1(2)
    found = integrated_gradients(
        OfSum(8, 0.4).eval(), images, target=0, rule="adaptive", n_steps=Auto()
    )
    assert found.n_steps.tolist() == [33, 33]
    assert found.relative_completeness.max() < 0.01


def test_skip_leaves_out_what_does_not_count():
    images = images_of_sum_1(3)
    model = OfSum(60, 0.42).eval()
    full, skipped = (
        integrated_gradients(model, images, target=0, skip=skip) for skip in (None, 1e-4)
    )
    assert full.n_steps.tolist() == [50] * 3
    assert 5 < skipped.n_steps.max() < 30
    torch.testing.assert_close(skipped.values, full.values, rtol=2e-3, atol=0)
    for name in ("predicted", "target", "output", "baseline_output"):
        torch.testing.assert_close(getattr(skipped, name), getattr(full, name))


def test_what_lacks_completeness_has_all_steps_after_all(monkeypatch):
    images = images_of_sum_1(3)
    model = OfSum(8, 0.4).eval()
    full = integrated_gradients(model, images, target=0, n_steps=20)
    none = np.arange(20) == 19  # but the last
    monkeypatch.setattr(quadrature, "steep", lambda *_, least: none)
    found = integrated_gradients(model, images, target=0, n_steps=20, skip=1e-4)
    assert found.n_steps.tolist() == [20] * 3
    torch.testing.assert_close(found.values, full.values, rtol=1e-12, atol=0)


def test_a_path_on_which_f_is_flat_keeps_one_step():
    images = images_of_sum_1(2)
    found = integrated_gradients(OfSum(1e-6, -9e7).eval(), images, target=0, skip=1e-4)
    assert found.n_steps.tolist() == [1, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"of": "logit"},
        {"rule": "adaptive"},
        {"n_steps": Auto()},
        {"skip": 0.0},
        {"skip": 0.3},
        {"skip": float("nan")},
        {"skip": "1e-4"},
        {"skip": True},
    ],
)
def test_what_skip_is_not_for(options):
    with pytest.raises(InputError, match="skip"):
        integrated_gradients(OfSum().eval(), images_of_sum_1(1), **{"skip": 1e-4} | options)


@pytest.mark.parametrize(
    ("rule", "auto", "says"),
    [
        ("adaptive", Auto(first=1), "must be at least 2, got 1"),
        ("adaptive", Auto(first=0), "must be at least 2, got 0"),
        ("adaptive", Auto(first=-3), "must be at least 2"),
        ("adaptive", Auto(first=3.0), "first number of steps of Auto must be an integer"),
        ("adaptive", Auto(first=True), "first number of steps of Auto must be an integer"),
        ("adaptive", Auto(most=32), "no room for one doubling"),
        ("trapezoid", Auto(first=1), "must be at least 2, got 1"),
        ("right", Auto(first=0), "must be at least 1, got 0"),
        ("adaptive", 0, "n_steps of rule .* must be at least 1, got 0"),
    ],
)
def test_too_few_steps(rule, auto, says):
    with pytest.raises(InputError, match=says):
        integrated_gradients(OfSum().eval(), images_of_sum_1(1), rule=rule, n_steps=auto)


def test_room_for_one_doubling_is_enough():
    auto = Auto(completeness=0, most=33)
    found = integrated_gradients(
        OfSum().eval(), images_of_sum_1(1), target=0, rule="adaptive", n_steps=auto
    )
    assert found.n_steps.tolist() == [33]


class Gradients(nn.Module):
    """A network that differentiates by itself."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 4).double()

    def forward(self, x):
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        total = (self.linear(x.flatten(1)) ** 3).sum()
        return torch.autograd.grad(total, x, create_graph=True)[0].flatten(1)[:, :3]


def test_a_network_that_differentiates_by_itself():
    model, images = Gradients().eval(), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    fine = integrated_gradients(model, images, target=1, of="logit", rule="middle", n_steps=400)
    found = integrated_gradients(model, images, target=1, of="logit", rule="adaptive")
    torch.testing.assert_close(found.values, fine.values, rtol=1e-2, atol=1e-4)
    of_class = igmask.IntegratedGradients(model).attribute(images, target=1, method="adaptive")
    torch.testing.assert_close(of_class, found.values, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # that answers differ for an image alone
def test_one_number_a_batch_does_not_say_how_each_example_changes():
    of_batch = igmask.IntegratedGradients(lambda x: (x**4).sum().reshape(1))
    with pytest.raises(InputError, match="output of each example changes"):
        of_batch.attribute(torch.rand(9, 3, 4, 4), method="adaptive", internal_batch_size=16)


class RootAt(nn.Module):
    """Two logits of the sum s, with a slope that is infinite where s is `where`, alone."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def forward(self, x):
        total = x.flatten(1).double().sum(dim=1)
        far = (total - self.where).abs()
        return torch.stack([8 * (total - 0.5) + 0 * far.sqrt(), torch.zeros_like(total)], dim=1)


@pytest.mark.parametrize("skip", [None, 0.05])
def test_a_gradient_that_is_not_finite_has_its_number_in_the_rule(skip):
    images = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    images[:, 0, 0, 0] = 1
    images[0] *= 0.99  # whose steps miss it
    with pytest.raises(NotFinite) as error:
        integrated_gradients(RootAt(0.625).eval(), images, target=0, n_steps=16, skip=skip)
    assert (error.value.image, error.value.alpha, error.value.step) == (1, 0.625, 10)
