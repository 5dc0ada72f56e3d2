"""Both ends of the path integral."""

import pytest
import torch

from igmask.kernels import (
    ACTIVATIONS,
    accumulate_,
    activate,
    memory_format_of,
    path_points,
    spans_of,
)
from igmask.kernels.path import derivative


def test_points_lie_between_baseline_and_image():
    baseline, image = torch.rand(2, 3, 2, 4, 4, dtype=torch.float64)
    positions = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    points = path_points(baseline, image, spans_of([0, 2, 2], 3), positions)
    assert points[0].equal(baseline[0])
    torch.testing.assert_close(points[1], 0.75 * baseline[2] + 0.25 * image[2])
    torch.testing.assert_close(points[2], image[2])


def test_accumulation_is_the_same_however_the_queue_is_cut():
    torch.manual_seed(0)
    gradient, weights = torch.randn(20, 2, 3, 3), torch.rand(20)
    owners = [i // 5 for i in range(20)]
    whole = accumulate_(torch.zeros(4, 2, 3, 3), gradient, spans_of(owners, 4), weights)
    cut = torch.zeros(4, 2, 3, 3)
    for part in torch.arange(20).split(7):
        spans = spans_of([owners[i] for i in part], 4)
        accumulate_(cut, gradient[part], spans, weights[part])
    assert whole.equal(cut)  # to the bit
    expected = torch.einsum("nhcyx,nh->ncyx", gradient.unflatten(0, (4, 5)), weights.view(4, 5))
    torch.testing.assert_close(whole, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_both_ends_are_exact_to_the_bit(dtype):
    baseline, image = (torch.randn(2, 3, 2, 4, 4) * 100).to(dtype)
    spans, positions = spans_of([0, 1, 2, 2], 3), torch.tensor([0.0, 1.0, 0.0, 1.0])
    points = path_points(baseline, image, spans, positions)
    assert points.dtype == dtype
    assert points.equal(torch.stack((baseline[0], image[1], baseline[2], image[2])))


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_points_are_laid_out_like_the_images(dtype):
    image = torch.rand(3, 5, 4, 4).contiguous(memory_format=torch.channels_last)
    spans, positions = spans_of([2, 0], 3), torch.tensor([0.3, 0.6])
    points = path_points(torch.zeros(3, 5, 4, 4), image, spans, positions, dtype=dtype)
    assert memory_format_of(points) == torch.channels_last
    torch.testing.assert_close(
        points.float(), image[[2, 0]] * positions.view(2, 1, 1, 1), rtol=1e-2, atol=0
    )
    assert memory_format_of(path_points(image, torch.zeros(3, 5, 4, 4), spans, positions)) == (
        torch.contiguous_format
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_points_in_half_precision_are_rounded_once(dtype):
    torch.manual_seed(0)
    baseline, image = torch.rand(2, 4, 3, 8, 8)
    spans = spans_of([i // 13 for i in range(50)], 4)
    positions = torch.rand(50, dtype=torch.float64)
    points = path_points(baseline, image, spans, positions, dtype=dtype)
    single = path_points(baseline, image, spans, positions)
    assert points.equal(single.to(dtype))
    exact = path_points(baseline.double(), image.double(), spans, positions)
    assert (points.double() - exact).abs().max() < 0.501 * torch.finfo(dtype).eps
    assert (single.double() - exact).abs().max() < 2 * torch.finfo(torch.float32).eps


def test_inputs_in_half_precision_have_points_in_it_by_float32_positions():
    torch.manual_seed(0)
    baseline, image = torch.rand(2, 1, 3, 8, 8).bfloat16()
    positions = torch.linspace(0, 1, 50, dtype=torch.float64)
    points = path_points(baseline, image, torch.tensor([[0, 50]]), positions)
    exact = baseline.double() + positions.view(50, 1, 1, 1) * (image.double() - baseline.double())
    assert (points.double() - exact).abs().max() < 0.51 * torch.finfo(torch.bfloat16).eps


def test_weight_zero_leaves_out_gradients_that_are_not_finite():
    gradient = torch.ones(4, 2, 3)
    gradient[1], gradient[3] = torch.nan, torch.inf
    total = torch.full((2, 2, 3), 5.0)
    found = accumulate_(total, gradient, spans_of([0, 0, 1, 1], 2), torch.tensor([2.0, 0, 3, 0]))
    assert found is total
    assert total[0].eq(7).all()
    assert total[1].eq(8).all()


def test_gradients_in_half_precision_are_summed_in_the_totals_own():
    gradient = torch.full((300, 1, 2), 1.0, dtype=torch.bfloat16)  # bfloat16 stops counting at 256
    total = torch.zeros(1, 1, 2)
    accumulate_(total, gradient, torch.tensor([[0, 300]]), torch.full((300,), 1.0))
    assert total.tolist() == [[[300, 300]]]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_are_those_of_autograd(activation):
    kinks = torch.tensor([-3.0, 0, 3, 6], dtype=torch.float64)
    x = torch.cat((torch.linspace(-8, 8, 1001, dtype=torch.float64), kinks)).requires_grad_()
    (expected,) = torch.autograd.grad((activate(x, activation) * 1).sum(), x)
    torch.testing.assert_close(derivative(x.detach(), activation), expected)


def test_the_sum_is_of_the_gradients_before_the_activation():
    start, end = torch.randn(2, 2, 3, dtype=torch.float64)
    positions, weights = torch.rand(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    owners, gradient = [0, 0, 0, 1, 1], torch.randn(5, 3, dtype=torch.float64)
    at = start[owners] + positions.view(5, 1) * (end - start)[owners]
    expected = torch.zeros(2, 3, dtype=torch.float64).index_add_(
        0, torch.tensor(owners), (at > 0) * gradient * weights.view(5, 1)
    )
    total, spans = torch.zeros(2, 3, dtype=torch.float64), spans_of(owners, 2)
    path = (start, end, positions)
    accumulate_(total, gradient, spans, weights, path=path, activation="relu")
    torch.testing.assert_close(total, expected)
    points = path_points(start, end, spans, positions, activation="relu")
    torch.testing.assert_close(points, at.relu())


def test_spans_of_images_without_pairs_are_empty():
    assert spans_of([3, 3, 0], 4).tolist() == [[2, 3], [0, 0], [0, 0], [0, 2]]
    assert spans_of([], 0).shape == (0, 2)


def test_what_does_not_fit_is_named():
    x, spans, positions = torch.rand(2, 3), spans_of([0, 1], 2), torch.rand(2)
    with pytest.raises(ValueError, match=r"path_points: .*\(3, 3\)"):
        path_points(torch.rand(3, 3), x, spans, positions)
    with pytest.raises(ValueError, match="'tanh'"):
        path_points(x, x, spans, positions, activation="tanh")
    with pytest.raises(ValueError, match=r"accumulate_: .*\(3, 3\)"):
        accumulate_(x, torch.rand(3, 3), spans, positions)
    with pytest.raises(ValueError, match="without gaps"):
        accumulate_(torch.rand(2, 6)[:, ::2], x, spans, positions)
    with pytest.raises(ValueError, match="int64 span"):
        accumulate_(x, x.clone(), spans.int(), positions)
    with pytest.raises(ValueError, match="'tanh'"):
        accumulate_(x, x.clone(), spans, positions, activation="tanh")
    with pytest.raises(ValueError, match="needs the path"):
        accumulate_(x, x.clone(), spans, positions, activation="silu")
