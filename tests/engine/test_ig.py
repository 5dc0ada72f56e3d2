"""Integrated Gradients against closed forms, and against itself in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from igmask.engine import definition
from igmask.engine.ig import Auto, NotFinite, attribute_squares, integrated_gradients
from igmask.errors import InputError
from igmask.kernels import square_parts
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
        images = torch.rand(4, 3, 9, 9)  # of which no ReLU is within rounding of its kink
    single = integrated_gradients(network, images).values
    exact = integrated_gradients(network.double(), images.double()).values
    assert (single - exact).norm() / exact.norm() < 1e-5


def test_in_place_operations_leave_the_images_alone():
    images = torch.rand(2, 3, 9, 9)
    before = images.clone()
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(243, 3))
    integrated_gradients(lambda x: network(x * 1), images, n_steps=3)
    assert images.equal(before)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("as_function", [False, True])
def test_a_network_that_begins_in_place_leaves_the_images_alone(batch_size, as_function):
    images, baselines = torch.randn(2, 2, 3, 9, 9).double()
    before = images.clone(), baselines.clone()
    rest = nn.Sequential(nn.Flatten(), nn.Linear(243, 3)).double().eval()
    network = nn.Sequential(nn.ReLU(inplace=True), rest).eval()
    arguments = {"baselines": baselines[None], "n_steps": 3}
    expected = integrated_gradients(nn.Sequential(nn.ReLU(), rest).eval(), images, **arguments)
    found = integrated_gradients(
        (lambda x: network(x)) if as_function else network,
        images,
        batch_size=batch_size,
        **arguments,
    )
    assert images.equal(before[0])
    assert baselines.equal(before[1])
    torch.testing.assert_close(found.values, expected.values, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("output", [torch.zeros(2, 3, 1), torch.zeros(3), (torch.zeros(2, 3),)])
def test_output_of_another_shape_is_an_error(output):
    with pytest.raises(InputError, match=r"\[N, classes\]"):
        integrated_gradients(lambda x: output, torch.rand(2, 3, 4, 4))


def test_target_out_of_range_is_an_error(network):
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    with pytest.raises(InputError, match="target 5: the classes of the model are 0 … 4"):
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


def roots(x):
    """Two classes; the gradient at zero is NaN."""
    total = x.abs().sqrt().flatten(1).sum(1, keepdim=True)
    return torch.cat((total, -total), dim=1)


def test_a_gradient_that_is_not_finite_names_image_and_alpha():
    images, baselines = torch.ones(3, 1, 2, 2), torch.full((1, 3, 1, 2, 2), 0.5)
    images[2, 0, 1, 1] = -0.5  # zero at α = ½
    with pytest.raises(NotFinite, match=r"image 2.*step 2, α = 0.5; look for a log") as error:
        integrated_gradients(roots, images, baselines=baselines, n_steps=4, batch_size=3)
    assert (error.value.image, error.value.alpha) == (2, 0.5)
    assert isinstance(error.value, InputError)


def test_steps_of_weight_zero_may_have_any_gradient():
    images = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    found = integrated_gradients(roots, images, of="logit", n_steps=4)  # from black
    factor = sum((h / 4) ** -0.5 for h in (1, 2, 3, 4)) / 8
    torch.testing.assert_close(found.values, factor * images.sqrt(), rtol=1e-12, atol=0)
    assert found.baseline_output.equal(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(NotFinite, match=r"image 0.*step 1, α = 0;"):
        integrated_gradients(roots, images, of="logit", rule="left", n_steps=4)


def test_a_model_in_training_mode_is_an_error(network):
    images = torch.rand(1, 3, 9, 9, dtype=torch.float64)
    with pytest.raises(InputError, match=r"training mode; call model.eval\(\) first"):
        integrated_gradients(network.train(), images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"baselines": torch.zeros(1, 2, 3, 9, 9)},
            "float32 do not fit images .* of torch.float64",
        ),
        ({"baselines": torch.zeros(2, 3, 9, 9).double()}, "one more axis in front"),
        ({"baselines": torch.zeros(1, 1, 3, 9, 9).double()}, r"\(1, 1, 3, 9, 9\)"),
        ({"target": torch.tensor([0.0, 1.0])}, "target must be 2 classes, integers"),
        ({"target": torch.tensor([0, 1, 2])}, r"got torch.int64 of shape \(3,\)"),
        ({"target": torch.tensor([[0], [1]])}, r"of shape \(2, 1\); .reshape\(-1\) makes"),
        ({"target": torch.tensor([0, -1])}, "target -1: the classes of the model are 0 … 4"),
    ],
)
def test_arguments_that_do_not_fit_are_named(network, arguments, message):
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    with pytest.raises(InputError, match=message):
        integrated_gradients(network, images, **arguments)


def test_one_target_serves_all_images(network):
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    one = integrated_gradients(network, images, target=torch.tensor(3, dtype=torch.int32))
    assert one.values.equal(
        integrated_gradients(network, images, target=torch.tensor([3, 3])).values
    )
    assert one.predicted.equal(network(images).argmax(1))
    assert one.target.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("target", "classes"),
    [
        (3, [3, 3]),
        (np.int64(3), [3, 3]),
        (np.array([3, 1]), [3, 1]),
        (np.array([3, 1], dtype=np.uint8), [3, 1]),
        ([3, np.int64(1)], [3, 1]),
        (torch.tensor([3]), [3, 3]),
    ],
)
def test_classes_may_be_pythons_and_numpys(network, target, classes):
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    found = integrated_gradients(network, images, target=target, n_steps=3)
    assert found.target.tolist() == classes
    rows = torch.arange(2)
    torch.testing.assert_close(found.output, network(images).softmax(1)[rows, classes])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.eye(5)[:2], r"take one: .argmax\(1\)"),
        (torch.eye(5, dtype=torch.int64)[:2], r"take one: .argmax\(1\)"),
        (torch.tensor([1.0, 2.0]), r"float32 of shape \(2,\); .long\(\) makes them integers"),
        (np.array([1.0, 2.0]), r"float64 of shape \(2,\); .astype\(int\) makes them integers"),
        (torch.tensor([True, False]), "got torch.bool"),
        ("cat", "got str 'cat'; the number of a name is its place"),
        (["cat", "dog"], "got a list of 2; the number of a name is its place"),
        ([0, 1, 2], "got a list of 3"),
        ([(0, 1), (1, 2)], "got a list of 2"),
        ((0, 1, 2), r"got tuple \(0, 1, 2\)"),
        (True, "got bool True"),
        (1.5, "got float 1.5"),
    ],
)
def test_what_is_no_class_is_refused_before_the_network_runs(target, message):
    class Never(nn.Module):
        def forward(self, _):
            raise AssertionError("the network has run")

    with pytest.raises(InputError, match=message):
        integrated_gradients(Never().eval(), torch.rand(2, 3, 9, 9), target=target)


def test_images_that_are_no_tensor_are_refused(network):
    with pytest.raises(InputError, match=r"images must be a tensor \(N, C, H, W\), got ndarray"):
        integrated_gradients(network, np.zeros((2, 3, 9, 9)))


@pytest.mark.parametrize("rule", RULES)
def test_outputs_are_those_at_the_image_and_the_baseline(network, rule):
    images, baseline = torch.rand(2, 4, 3, 9, 9, dtype=torch.float64)
    found = integrated_gradients(
        network, images, baselines=baseline[None], rule=rule, n_steps=3, batch_size=5
    )
    logits, at_baseline = network(images), network(baseline)
    rows = torch.arange(4)
    assert found.predicted.equal(logits.argmax(1))
    for output, expected in (
        (found.output, logits.softmax(1)[rows, found.target]),
        (found.baseline_output, at_baseline.softmax(1)[rows, found.target]),
    ):
        torch.testing.assert_close(output, expected, rtol=1e-13, atol=0)
    assert found.n_steps.tolist() == [3] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_are_exact_where_the_network_does_not_mind_its_batch(dtype):
    def f(x):
        return x.flatten(1)[:, ::3].exp()  # number by number

    images, baseline = torch.rand(2, 3, 2, 5, 5, dtype=dtype)
    found = integrated_gradients(f, images, baselines=baseline[None], of="logit", n_steps=3)
    rows = torch.arange(3)
    assert found.output.equal(f(images)[rows, found.target])
    assert found.baseline_output.equal(f(baseline)[rows, found.target])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("as_function", [False, True])
def test_values_are_laid_out_like_the_images(network, memory_format, as_function):
    images = torch.rand(3, 3, 9, 9, dtype=torch.float64)
    model = (lambda x: network(x)) if as_function else network
    expected = integrated_gradients(network, images, n_steps=3).values
    laid_out = images.contiguous(memory_format=memory_format)
    found = integrated_gradients(model, laid_out, n_steps=3).values
    assert found.is_contiguous(memory_format=memory_format)
    assert found.stride() == laid_out.stride()
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("n_steps", [3, Auto(first=2)])
def test_no_images_have_no_attributions(network, n_steps):
    images = torch.zeros(0, 3, 9, 9, dtype=torch.float64)
    for model in (network, lambda x: network(x)):
        found = integrated_gradients(model, images, n_steps=n_steps)
        assert found.values.shape == images.shape
        assert len(found.predicted) == len(found.n_steps) == len(found.completeness) == 0


# -- as many steps as an image needs -----------------------------------------------------------


def steep(x):
    """Two classes; steep where the mean crosses ½."""
    level = x.flatten(1).mean(1, keepdim=True)
    weights = torch.linspace(1, 2, x[0].numel(), dtype=x.dtype)
    total = (x.flatten(1) * weights).mean(1, keepdim=True) + (60 * (level - 0.5)).sigmoid()
    return torch.cat((total, -total), dim=1)


@pytest.fixture
def easy_and_hard():
    images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(2)).double()
    return torch.stack((images[0] * 0.4, images[1] + 0.3))


def test_a_linear_model_settles_with_one_doubling():
    weight = torch.randn(4, 3 * 6 * 6, dtype=torch.float64)
    images = torch.rand(3, 3, 6, 6, dtype=torch.float64)
    target = torch.tensor([1, 0, 3])
    for rule, n_steps in (("right", 8), ("left", 8), ("trapezoid", 7)):
        found = integrated_gradients(
            lambda x: x.flatten(1) @ weight.T,
            images,
            target=target,
            of="logit",
            rule=rule,
            n_steps=Auto(first=4),
        )
        assert found.n_steps.tolist() == [n_steps] * 3
        expected = weight[target].view(images.shape) * images
        torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=1e-12)


def test_a_hard_image_takes_more_steps(easy_and_hard):
    found = integrated_gradients(steep, easy_and_hard, of="logit", n_steps=Auto(first=3))
    assert found.n_steps[0] == 6
    assert 6 < found.n_steps[1] < 800
    assert found.relative_completeness.max() <= 0.05


@pytest.mark.parametrize(("most", "n_steps"), [(8, 8), (20, 16), (32, 32)])
def test_steps_are_capped(easy_and_hard, most, n_steps):
    auto = Auto(completeness=1e-15, first=4, most=most)
    found = integrated_gradients(steep, easy_and_hard[1:], of="logit", n_steps=auto)
    assert found.n_steps.tolist() == [n_steps]


@pytest.mark.parametrize("rule", ["right", "left", "trapezoid"])
@pytest.mark.parametrize("target", [None, torch.tensor([1, 0, 0])])
def test_the_steps_recorded_are_those_of_the_rule(easy_and_hard, rule, target):
    images = torch.cat((easy_and_hard[1:], easy_and_hard))
    images[0] += 0.1 * torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(7))
    baselines = torch.stack((images * 0, images * 0.3))
    auto = Auto(completeness=0.02, first=4, most=100)
    arguments = {"of": "logit", "rule": rule}
    found = integrated_gradients(
        steep, images, baselines=baselines, target=target, n_steps=auto, batch_size=7, **arguments
    )
    assert len(set(found.n_steps.tolist())) > 1
    for i, n_steps in enumerate(found.n_steps.tolist()):
        own = slice(i, i + 1)
        expected = integrated_gradients(
            steep,
            images[own],
            baselines=baselines[:, own],
            target=None if target is None else target[own],
            n_steps=n_steps,
            **arguments,
        )
        assert (found.values[own] - expected.values).norm() < 1e-12 * expected.values.norm()
        for name in ("predicted", "target", "output", "baseline_output", "n_steps"):
            torch.testing.assert_close(
                getattr(found, name)[own], getattr(expected, name), rtol=1e-13, atol=1e-15
            )


@pytest.mark.parametrize("rule", ["middle", "gauss-legendre"])
def test_rules_that_share_no_points_with_their_refinements_are_refused(network, rule):
    images = torch.rand(1, 3, 9, 9, dtype=torch.float64)
    with pytest.raises(InputError, match=f"right, left, trapezoid and adaptive, not '{rule}'"):
        integrated_gradients(network, images, rule=rule, n_steps=Auto())


def test_a_gradient_that_is_not_finite_late_names_the_image_too():
    images, baselines = torch.ones(3, 1, 3, 3), torch.ones(1, 3, 1, 3, 3)
    images[2], baselines[0, 2] = 7, -1  # zero at α = 1/8, when the others have settled
    with pytest.raises(NotFinite) as error:
        integrated_gradients(
            roots, images, baselines=baselines, of="logit", n_steps=Auto(first=2, completeness=0)
        )
    assert (error.value.image, error.value.alpha) == (2, 0.125)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": "auto"}, "igmask.Auto"),
        ({"n_steps": Auto(most=40)}, "no room for one doubling"),
        ({"baselines": torch.zeros(0, 2, 3, 9, 9, dtype=torch.float64)}, "no baseline"),
        ({"target": torch.tensor([True, False])}, "integers of shape"),
    ],
)
def test_options_that_make_no_sense_are_named(network, options, message):
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    with pytest.raises(InputError, match=message):
        integrated_gradients(network, images, **options)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 9, 9, dtype=torch.uint8), torch.rand(3, 9, 9)]
)
def test_images_of_another_kind_are_refused(network, images):
    with pytest.raises(InputError, match="floating point"):
        integrated_gradients(network, images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baselines": 0}, "baselines must be a tensor"),
        ({"batch_size": 2.5}, "the batch size must be an integer, got 2.5"),
        ({"batch_size": "8"}, "the batch size must be an integer, got '8'"),
        ({"n_steps": True}, "n_steps must be an integer or igmask.Auto"),
        ({"n_steps": "5"}, "n_steps must be an integer or igmask.Auto"),
        ({"target": [(1, 2), (3,)]}, "target"),
        ({"target": 2**70}, "target"),
    ],
)
def test_options_of_another_kind_are_named(network, options, message):
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    with pytest.raises(InputError, match=message):
        integrated_gradients(network, images, **options)


def test_numpys_integers_are_numbers_of_steps_and_pairs(network):
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    found = integrated_gradients(network, images, n_steps=np.int64(4), batch_size=np.int32(3))
    assert found.values.equal(integrated_gradients(network, images, n_steps=4, batch_size=3).values)


# -- the paper's formula, and squares ----------------------------------------------------------


@pytest.mark.parametrize("of", ["probability", "logit"])
@pytest.mark.parametrize("rule", RULES)
def test_the_engine_computes_what_the_paper_defines(network, of, rule):
    images, baseline = torch.rand(2, 3, 3, 9, 9, dtype=torch.float64)
    classes = network(images).argmax(dim=1, keepdim=True)

    def f(x):
        outputs = network(x)
        outputs = outputs.softmax(dim=1) if of == "probability" else outputs
        return outputs.gather(1, classes).squeeze(1)

    expected = definition.integrated_gradients(f, images, baseline, rule=rule, n_steps=7)
    options = {"baselines": baseline.unsqueeze(0), "of": of, "rule": rule, "n_steps": 7}
    found = integrated_gradients(network, images, **options).values
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


def test_the_definition_of_a_cubic_is_the_rules_own_sum():
    """Of f = Σ x³ from b = 0: (x − b) · 3x² Σ w α²."""
    images = torch.rand(2, 3, dtype=torch.float64)
    found = definition.integrated_gradients(
        lambda x: (x**3).sum(dim=1), images, torch.zeros_like(images), rule="right", n_steps=4
    )
    share = sum((h / 4) ** 2 for h in range(1, 5)) / 4
    torch.testing.assert_close(found, 3 * share * images**3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", [1, 3, 4])
@pytest.mark.parametrize("n_steps", [5, Auto(first=4, most=16)])
@pytest.mark.parametrize("n_baselines", [1, 2])
def test_squares_are_those_of_the_values(network, dtype, side, n_steps, n_baselines):
    network, images = network.to(dtype), torch.rand(3, 3, 9, 9, dtype=dtype)
    options = {"baselines": torch.rand(n_baselines, 3, 3, 9, 9, dtype=dtype), "n_steps": n_steps}
    judged = {} if n_steps == 5 else {"n_steps": replace(n_steps, side=side)}
    whole = integrated_gradients(network, images, **options | judged)
    found = attribute_squares(network, images, side=side, **options)
    assert found.values.equal(square_parts(whole.values, side=side))
    torch.testing.assert_close(found.completeness, whole.completeness, rtol=1e-4, atol=1e-7)
    for name in ("predicted", "target", "output", "baseline_output", "n_steps"):
        assert getattr(found, name).equal(getattr(whole, name))


def test_no_images_have_no_squares_and_sides_are_positive(network):
    none = torch.rand(0, 3, 9, 9, dtype=torch.float64)
    assert attribute_squares(network, none).values.shape == (0, 2, 3, 3)
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    for options in ({}, {"n_steps": Auto()}, {"baselines": torch.stack([images, images])}):
        with pytest.raises(InputError, match="side of squares must be at least 1, got 0"):
            attribute_squares(network, images, side=0, **options)
        with pytest.raises(InputError, match=r"the side of squares must be an integer, got 3\.0"):
            attribute_squares(network, images, side=3.0, **options)


def test_an_output_that_is_nan_is_no_attribution():
    def f(x):  # whose gradient is finite all the same
        total = x.flatten(1).sum(dim=1, keepdim=True)
        return torch.where(total > 3, total * 0 + torch.nan, total)

    images = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    with pytest.raises(InputError, match=r"image 1: the network's output .* is NaN"):
        integrated_gradients(f, images, of="logit", target=0, n_steps=2)
