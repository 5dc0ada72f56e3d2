"""Both ends of the path integral."""

import pytest
import torch

from igmask.kernels import accumulate_, memory_format_of, path_points


def test_points_lie_between_baseline_and_image():
    baseline, image = torch.rand(2, 3, 2, 4, 4, dtype=torch.float64)
    rows, positions = torch.tensor([0, 2, 2]), torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    points = path_points(baseline, image, rows, positions)
    assert points[0].equal(baseline[0])
    torch.testing.assert_close(points[1], 0.75 * baseline[2] + 0.25 * image[2])
    torch.testing.assert_close(points[2], image[2])


def test_accumulation_is_the_same_however_the_queue_is_cut():
    torch.manual_seed(0)
    gradient, weights = torch.randn(20, 2, 3, 3), torch.rand(20)
    rows = torch.arange(20) // 5
    whole = accumulate_(torch.zeros(4, 2, 3, 3), gradient, rows, weights)
    cut = torch.zeros(4, 2, 3, 3)
    for part in torch.arange(20).split(7):
        accumulate_(cut, gradient[part], rows[part], weights[part])
    assert whole.equal(cut)  # to the bit
    expected = torch.einsum("nhcyx,nh->ncyx", gradient.unflatten(0, (4, 5)), weights.view(4, 5))
    torch.testing.assert_close(whole, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_both_ends_are_exact_to_the_bit(dtype):
    baseline, image = (torch.randn(2, 3, 2, 4, 4) * 100).to(dtype)
    rows, positions = torch.tensor([0, 1, 2, 2]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    points = path_points(baseline, image, rows, positions)
    assert points.dtype == dtype
    assert points.equal(torch.stack((baseline[0], image[1], baseline[2], image[2])))


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_points_are_laid_out_like_the_images(dtype):
    image = torch.rand(3, 5, 4, 4).contiguous(memory_format=torch.channels_last)
    rows, positions = torch.tensor([2, 0]), torch.tensor([0.3, 0.6])
    points = path_points(torch.zeros(3, 5, 4, 4), image, rows, positions, dtype=dtype)
    assert memory_format_of(points) == torch.channels_last
    torch.testing.assert_close(
        points.float(), image[rows] * positions.view(2, 1, 1, 1), rtol=1e-2, atol=0
    )
    assert memory_format_of(path_points(image, torch.zeros(3, 5, 4, 4), rows, positions)) == (
        torch.contiguous_format
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_points_in_half_precision_are_rounded_once(dtype):
    torch.manual_seed(0)
    baseline, image = torch.rand(2, 4, 3, 8, 8)
    rows, positions = torch.arange(50) % 4, torch.rand(50, dtype=torch.float64)
    points = path_points(baseline, image, rows, positions, dtype=dtype)
    single = path_points(baseline, image, rows, positions)
    assert points.equal(single.to(dtype))
    exact = path_points(baseline.double(), image.double(), rows, positions)
    assert (points.double() - exact).abs().max() < 0.501 * torch.finfo(dtype).eps
    assert (single.double() - exact).abs().max() < 2 * torch.finfo(torch.float32).eps


def test_inputs_in_half_precision_have_points_in_it_by_float32_positions():
    torch.manual_seed(0)
    baseline, image = torch.rand(2, 1, 3, 8, 8).bfloat16()
    positions = torch.linspace(0, 1, 50, dtype=torch.float64)
    points = path_points(baseline, image, torch.zeros(50, dtype=torch.int64), positions)
    exact = baseline.double() + positions.view(50, 1, 1, 1) * (image.double() - baseline.double())
    assert (points.double() - exact).abs().max() < 0.51 * torch.finfo(torch.bfloat16).eps


def test_weight_zero_leaves_out_gradients_that_are_not_finite():
    gradient = torch.ones(4, 2, 3)
    gradient[1], gradient[3] = torch.nan, torch.inf
    total = torch.full((2, 2, 3), 5.0)
    found = accumulate_(total, gradient, torch.tensor([0, 0, 1, 1]), torch.tensor([2.0, 0, 3, 0]))
    assert found is total
    assert total[0].eq(7).all()
    assert total[1].eq(8).all()


def test_gradients_in_half_precision_are_summed_in_the_totals_own():
    gradient = torch.full((300, 1, 2), 1.0, dtype=torch.bfloat16)  # bfloat16 stops counting at 256
    total = torch.zeros(1, 1, 2)
    accumulate_(total, gradient, torch.zeros(300, dtype=torch.int64), torch.full((300,), 1.0))
    assert total.tolist() == [[[300, 300]]]
