"""ReLU and max pooling on the path, by definition, against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from igmask.kernels import Pool, accumulate_pooled_, pooled_points, spans_of

POOLS = [
    Pool(size, padding, ceil) for size in (2, 3) for padding in (0, 1) for ceil in (False, True)
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("size", [(8, 10), (9, 7), (3, 4)])
def test_there_and_back(pool, size):
    torch.manual_seed(0)
    start, end = torch.randn(2, 2, 3, *size, dtype=torch.float64)
    owners, weights = [1, 1, 0], torch.rand(3, dtype=torch.float64)
    positions = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    spans = spans_of(owners, 2)
    points, taken = pooled_points(start, end, spans, positions, pool)

    at = start[owners] + positions.view(3, 1, 1, 1) * (end - start)[owners]
    at.requires_grad_()
    pooled = F.max_pool2d(at.relu(), pool.size, 2, pool.padding, 1, pool.ceil)
    torch.testing.assert_close(points, pooled.detach())
    gradient = torch.randn_like(points)
    (slopes,) = torch.autograd.grad(pooled, at, gradient)
    expected = torch.zeros_like(start).index_add_(
        0, torch.tensor(owners), slopes * weights.view(3, 1, 1, 1)
    )
    total = torch.zeros_like(start)
    assert accumulate_pooled_(total, gradient, taken, spans, weights, pool) is total
    torch.testing.assert_close(total, expected)


def test_a_window_without_a_positive_value_passes_no_gradient():
    start = torch.full((1, 1, 2, 2), -1.0)
    spans, one = torch.tensor([[0, 1]]), torch.ones(1)
    points, taken = pooled_points(start, start, spans, one, Pool(2, 0))
    assert points.item() == 0
    assert taken.item() == 255
    total = torch.zeros(1, 1, 2, 2)
    accumulate_pooled_(total, torch.ones(1, 1, 1, 1), taken, spans, one, Pool(2, 0))
    assert not total.any()


@pytest.mark.parametrize(("size", "padding"), [(4, 1), (1, 0), (3, 2), (3, -1)])
def test_other_windows_are_refused(size, padding):
    with pytest.raises(ValueError, match=f"size={size}"):
        Pool(size, padding)


def test_what_does_not_fit_is_named():
    x, spans, one = torch.rand(1, 3, 6, 6), torch.tensor([[0, 1]]), torch.ones(1)
    with pytest.raises(ValueError, match=r"pooled_points: .*\(3, 6, 6\)"):
        pooled_points(x[0], x[0], spans, one, Pool())
    points, taken = pooled_points(x, x, spans, one, Pool())
    with pytest.raises(ValueError, match=r"accumulate_pooled_: .*\(1, 3, 4, 4\)"):
        accumulate_pooled_(x, torch.rand(1, 3, 4, 4), taken, spans, one, Pool())
    with pytest.raises(ValueError, match="span an image"):
        accumulate_pooled_(torch.rand(2, 3, 6, 6), points, taken, spans, one, Pool())
