"""Both ends of the path integral."""

import torch

from igmask.kernels import accumulate_, path_points


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
