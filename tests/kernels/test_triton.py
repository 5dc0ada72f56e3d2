"""The Triton kernels against their definitions, in float64 where it matters.

On a GPU (`pytest -m gpu`), or interpreted, which `test_interpreted.py` runs:
`TRITON_INTERPRET=1 pytest tests/kernels/test_triton.py`. Shapes are multiples of nothing, and
unwritten memory is NaN.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from selection import masks_by_sort
from steps import run_attribute, run_evaluate, run_index, run_mask, run_prepare
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from igmask import arrays, plain
from igmask.asked import config, fields
from igmask.asked.settings import Geometry
from igmask.engine import definition, fusion, stem
from igmask.engine.ig import integrated_gradients
from igmask.engine.ready import prepare as made_ready
from igmask.inputs import models
from igmask.kernels import (
    ACTIVATIONS,
    Pool,
    accumulate_,
    accumulate_pooled_,
    attribution_and_parts,
    attribution_parts,
    grid,
    inpainted_arrays,
    occluded_input,
    pack,
    path_points,
    pooled_points,
    select_bits,
    shifted_relu,
    spans_of,
    square_parts,
)
from igmask.kernels.dispatch import has_kernel
from igmask.kernels.occlude import _occluded_input
from igmask.kernels.path import _accumulate, _path_points
from igmask.kernels.pool import _accumulate_pooled, _pooled_points
from igmask.kernels.select import _select_bits
from igmask.kernels.squares import _square_parts
from igmask.steps import attribute

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALVES = (torch.bfloat16, torch.float16)
FORMATS = {"first": torch.contiguous_format, "last": torch.channels_last}
POOLS = (Pool(3, 1), Pool(3, 0), Pool(3, 0, ceil=True), Pool(2, 0), Pool(2, 1))


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Kernels run, and what they leave unwritten is NaN."""
    if not has_kernel(DEVICE):
        pytest.skip("no GPU, and TRITON_INTERPRET is not 1")
    if os.environ.get("TRITON_INTERPRET") == "1":
        import interpreter

        interpreter.strict(monkeypatch)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


def ends(*shape, form="first", dtype=torch.float32):
    """Two ends of paths, on both sides of zero and of six."""
    form = FORMATS[form] if len(shape) == 4 else torch.contiguous_format
    both = (4 * torch.randn(shape).clamp(-2, 2) for _ in range(2))
    return tuple(x.to(DEVICE, dtype).contiguous(memory_format=form) for x in both)


def batch(owners, n_images):
    """(spans, positions, weights) of a batch; the ends of the path are among the positions."""
    positions = torch.rand(len(owners), dtype=torch.float64)
    positions[0], positions[-1] = 0, 1
    weights = torch.rand(len(owners), dtype=torch.float64)
    return spans_of(owners, n_images, DEVICE), positions.to(DEVICE), weights.to(DEVICE)


def exact(start, end, owners, positions):
    """The points in float64, by the formula."""
    at = positions.view(-1, *[1] * (end.ndim - 1))
    b, x = start.double()[owners], end.double()[owners]
    return b + at * (x - b)


def same(found, expected, dtype=torch.float32):
    """Twice the error of one rounding in the dtype, of the largest number."""
    scale = expected.double().abs().max().clamp(min=1e-30)
    error = (found.double() - expected.double()).abs().max() / scale
    assert error < 2 * torch.finfo(dtype).eps, float(error)


OWNERS = {"one pair": ([0], 1), "one image": ([0] * 5, 1), "several": ([2, 2, 0, 3, 3, 3], 4)}


@pytest.mark.parametrize("owners", OWNERS.values(), ids=OWNERS.keys())
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_points(owners, form, activation):
    owners, n = owners
    start, end = ends(n, 5, 9, 7, form=form)
    spans, positions, _ = batch(owners, n)
    points = path_points(start, end, spans, positions, activation=activation)
    assert points.is_contiguous(memory_format=FORMATS[form])
    plain = exact(start, end, owners, positions)
    same(points, plain if activation == "none" else getattr(F, activation)(plain))
    if activation == "none":  # to the bit
        assert len(owners) == 1 or points[0].equal(start[owners[0]])
        assert points[-1].equal(end[owners[-1]])


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
def test_points_in_other_precisions_are_rounded_once(dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    start, end = ends(2, 1030, dtype=wide)  # more than one program
    owners = [0, 0, 0, 1, 1]
    spans, positions, _ = batch(owners, 2)
    points = path_points(start, end, spans, positions, dtype=dtype)
    assert points.dtype == dtype
    plain = exact(start, end, owners, positions)
    if dtype == torch.float64:
        same(points, plain, dtype)
        return
    nearest = _path_points.definition(start, end, spans, positions, "none", torch.float32).to(dtype)
    # float32 may round to the other side of a tie
    assert (points != nearest).float().mean() < 0.01
    same(points, plain, dtype)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_accumulation_is_the_gradient_behind_the_activation(form, activation):
    owners, n = OWNERS["several"]
    start, end = ends(n, 5, 9, 7, form=form)
    spans, positions, weights = batch(owners, n)
    gradient = torch.randn(len(owners), 5, 9, 7, device=DEVICE).to(memory_format=FORMATS[form])
    total = torch.randn_like(start)
    before = total.double()
    at = exact(start, end, owners, positions).requires_grad_()
    values = at if activation == "none" else getattr(F, activation)(at)
    (slopes,) = torch.autograd.grad(values, at, gradient.double())
    before.index_add_(0, torch.tensor(owners, device=DEVICE), slopes * weights.view(-1, 1, 1, 1))
    path = (start, end, positions)
    found = accumulate_(total, gradient, spans, weights, path=path, activation=activation)
    assert found is total
    same(total, before)


def test_accumulation_is_the_same_however_the_queue_is_cut():
    gradient, weights = torch.randn(20, 3, 7, device=DEVICE), torch.rand(20, device=DEVICE)
    owners = [i // 5 for i in range(20)]
    whole, cut = torch.zeros(2, 4, 3, 7, device=DEVICE)
    accumulate_(whole, gradient, spans_of(owners, 4, DEVICE), weights)
    for part in torch.arange(20).split(7):
        spans = spans_of([owners[i] for i in part], 4, DEVICE)
        accumulate_(cut, gradient[part], spans, weights[part])
    assert whole.equal(cut)  # to the bit


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_weight_zero_leaves_out_gradients_that_are_not_finite(activation):
    gradient = torch.ones(4, 2, 3, device=DEVICE)
    gradient[1], gradient[3] = torch.nan, torch.inf
    total, ones = torch.full((2, 2, 3), 5.0, device=DEVICE), torch.ones(2, 2, 3, device=DEVICE)
    weights = torch.tensor([2.0, 0, 3, 0], device=DEVICE)
    spans, path = spans_of([0, 0, 1, 1], 2, DEVICE), (ones, ones, torch.ones(4, device=DEVICE))
    accumulate_(total, gradient, spans, weights, path=path, activation=activation)
    assert total[0].eq(7).all()
    assert total[1].eq(8).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_in_half_precision_are_summed_in_single(dtype):
    gradient = torch.full((300, 1, 2), 1.0, dtype=dtype, device=DEVICE)  # bfloat16 stops at 256
    total = torch.zeros(1, 1, 2, device=DEVICE)
    spans = torch.tensor([[0, 300]], device=DEVICE)
    accumulate_(total, gradient, spans, torch.ones(300, device=DEVICE))
    assert total.tolist() == [[[300, 300]]]


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size", [(8, 10), (9, 7), (3, 4)])
def test_pooling_there_and_back(pool, form, size):
    owners, n = OWNERS["several"]
    start, end = ends(n, 5, *size, form=form)
    spans, positions, weights = batch(owners, n)
    points, taken = pooled_points(start, end, spans, positions, pool)
    at = exact(start, end, owners, positions).requires_grad_()
    pooled = F.max_pool2d(at.relu(), pool.size, 2, pool.padding, 1, pool.ceil)
    assert points.shape == taken.shape == pooled.shape
    assert points.is_contiguous(memory_format=FORMATS[form])
    same(points, pooled.detach())
    assert (taken == 255).equal(pooled <= 0)

    gradient = torch.randn_like(points)
    (slopes,) = torch.autograd.grad(pooled, at, gradient.double())
    total = torch.randn_like(start)
    expected = total.double().index_add_(
        0, torch.tensor(owners, device=DEVICE), slopes * weights.view(-1, 1, 1, 1)
    )
    assert accumulate_pooled_(total, gradient, taken, spans, weights, pool) is total
    same(total, expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_pooling_in_half_precision(dtype):
    start, end = ends(1, 3, 9, 9)
    spans, positions, _ = batch([0, 0, 0], 1)
    points, taken = pooled_points(start, end, spans, positions, Pool(), dtype=dtype)
    single, places = pooled_points(start, end, spans, positions, Pool())
    assert points.equal(single.to(dtype))
    assert taken.equal(places)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES, torch.float64])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "shape",
    [(2, 5, 7, 3), (1, 64, 5, 9), (3, 1, 1, 1), (2, 3, 40, 8), (2, 96, 3, 2), (1, 520, 2, 1)],
)
@pytest.mark.parametrize("how", ["bias", "norm", "sum"])
def test_relu_with_what_comes_before_it(how, shape, form, dtype):
    x, other = (t.requires_grad_() for t in ends(*shape, form=form, dtype=dtype))
    wide = torch.promote_types(dtype, torch.float32)
    shift, scale = (torch.randn(shape[1], dtype=wide, device=DEVICE) for _ in range(2))
    options = {"norm": {"scale": scale}, "sum": {"other": other}}.get(how, {})
    found = shifted_relu(x, shift, **options)
    gradient = torch.randn_like(found)
    by = (x, other) if how == "sum" else (x,)
    slopes = torch.autograd.grad(found, by, gradient)

    exact = [t.detach().double().requires_grad_() for t in by]
    value = exact[0] * (scale.double() if how == "norm" else torch.ones_like(shift).double())[
        :, None, None
    ] + shift.double().view(-1, 1, 1)
    expected = (value + exact[1] if how == "sum" else value).relu()
    assert found.is_contiguous(memory_format=FORMATS[form])
    same(found.detach(), expected.detach(), dtype)
    # A sum near zero may be on its other side in single precision.
    sure = expected.detach().abs() + (expected == 0) > 1e-6
    for slope, wanted in zip(
        slopes, torch.autograd.grad(expected, exact, gradient.double()), strict=True
    ):
        assert slope.is_contiguous(memory_format=FORMATS[form])
        same(slope * sure, wanted * sure, dtype)


def test_relu_passes_nan_on_and_refuses_what_does_not_fit():
    x, shift = torch.full((1, 2, 1, 1), torch.nan, device=DEVICE), torch.zeros(2, device=DEVICE)
    assert shifted_relu(x, shift).isnan().all()
    x.requires_grad_()
    (slope,) = torch.autograd.grad(shifted_relu(x, shift).sum(), x)
    assert slope.eq(1).all()  # as PyTorch has it
    weight = torch.ones_like(x, requires_grad=True)
    found = (shifted_relu(x, shift) * weight).sum()
    (again,) = torch.autograd.grad(found, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        again.sum().backward()
    x = x.detach()
    with pytest.raises(ValueError, match="a shift a channel"):
        shifted_relu(x, shift[:1])
    with pytest.raises(ValueError, match="shifted_relu"):
        shifted_relu(x, shift, scale=shift, other=x)
    broadcast = shifted_relu(shift.view(1, 2, 1, 1), shift, other=torch.ones(3, 2, 4, 4).to(DEVICE))
    assert broadcast.shape == (3, 2, 4, 4)


@pytest.mark.parametrize("side", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(2, 3, 10, 7), (1, 1, 3, 400), (1, 3, 1, 1)])
def test_squares(side, shape):
    shape = shape if DEVICE.type == "cuda" else (1, 2, *shape[2:])  # a program takes 0.2 s there
    slope, image, baseline = (torch.randn(shape, device=DEVICE) for _ in range(3))
    expected = _square_parts.definition(
        slope.double(), image.double(), baseline.double(), side, True, False
    )[0]
    parts = attribution_parts(image, baseline, slope, side=side)
    assert parts.shape == (shape[0], 2, *grid(*shape[2:], side))
    same(parts, expected, torch.float32)
    phi, again = attribution_and_parts(image, baseline, slope, side=side)
    assert again.equal(parts)
    assert phi.equal((image - baseline) * slope)
    assert square_parts(phi, side=side).equal(parts)


def test_squares_of_any_layout():
    whole = torch.randn(4, 3, 8, 11, device=DEVICE).to(memory_format=torch.channels_last)
    other = torch.randn(4, 3, 16, 22, device=DEVICE)[::2, :, ::2, ::2]
    expected = _square_parts.definition(whole[:2], other, other, 3, True, False)[0]
    same(attribution_parts(other, other.clone(), whole[:2], side=3), expected)
    phi, _ = attribution_and_parts(other, torch.zeros_like(other), whole[:2])
    assert phi.equal(other * whole[:2])
    same(square_parts(whole.permute(0, 1, 3, 2)), square_parts(whole).mT)


def test_squares_show_what_is_not_finite():
    x = torch.zeros(1, 1, 6, 6, device=DEVICE)
    x[0, 0, 1, 4] = torch.nan
    assert square_parts(x).isnan().sum(dim=(0, 1)).tolist() == [[0, 2], [0, 0]]


def rows(n_squares):
    """Rows that are hard to select from: ties, zeros, negative, tiny, huge, subnormal scores."""
    plain = torch.randn(n_squares)
    return torch.stack(
        [
            plain,
            plain.abs(),
            plain.mul(2).round(),
            torch.ones(n_squares),
            -plain.abs(),
            torch.zeros(n_squares),
            plain * 2.0**-140,
            plain.mul(1e38).nan_to_num(0, 3e38, -3e38),
            torch.where(plain > 0, plain * 2.0**-148, -(2.0**100)),
            plain.exp().pow(9),
            torch.where(plain > 1, plain, -plain.exp().pow(9)),
            torch.where(plain > 1, plain, plain.sign() * 0.0),  # −0 is 0
        ]
    )


def selected(scores, ps, by):
    """The bits of the selections that NumPy sorts out."""
    bits = [plain.pack(mask) for mask in plain.select(scores.numpy(), ps, by=by)]
    return torch.from_numpy(np.stack(bits))


@pytest.mark.parametrize("n_squares", [1, 8, 9, 121, 1000])
@pytest.mark.parametrize("by", ["mass", "count"])
def test_selection_is_that_of_the_sort_to_the_bit(n_squares, by):
    scores, ps = rows(n_squares), (0.01, 100, 50, 30, 99.99)
    ps = ps if DEVICE.type == "cuda" else ps[n_squares % 2 :: 2]  # a program takes 0.2 s there
    assert select_bits(scores.to(DEVICE), ps, by=by).cpu().equal(selected(scores, ps, by))


@pytest.mark.parametrize("n_squares", [5625, 10_000, 40_000])
@pytest.mark.parametrize("by", ["mass", "count"])
def test_selection_from_many_squares(n_squares, by):
    torch.manual_seed(n_squares)
    scores = torch.stack([torch.randn(n_squares), torch.ones(n_squares)])
    scores[0] = scores[0].mul(4).round() if n_squares > 8192 else scores[0]  # ties across chunks
    scores = scores[:1] if n_squares > 8192 and DEVICE.type == "cpu" else scores
    assert select_bits(scores.to(DEVICE), [50], by=by).cpu().equal(selected(scores, [50], by))


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
def test_selection_from_other_types(dtype):
    scores = torch.randn(3, 50).to(dtype)
    expected = plain.pack(masks_by_sort(scores.double().numpy(), 50, "mass"))
    assert select_bits(scores.to(DEVICE), [50])[0].tolist() == expected.tolist()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_selection_names_rows_that_are_not_finite(value):
    scores = torch.ones(4, 9, device=DEVICE)
    scores[2, 5] = value
    with pytest.raises(ValueError, match=r"rows \[2\] of 4"):
        select_bits(scores, [50, 90])


def filled(images, how, mean):
    """A fill by its name, or random values of a shape; every other one of them, so with gaps."""
    if not isinstance(how, str):
        return torch.rand(*how, 2)[..., 0]
    kept = np.random.default_rng(0).random(images.shape[:3]) < 0.5
    about = {"kept": kept, "solve": inpainted_arrays}
    return torch.from_numpy(plain.fill_values(images.numpy(force=True), how, mean.numpy(), **about))


SHAPES = [(1, 1, 1, 3), (3, 1, 1, 1), (1, 10, 31, 3), (3, 10, 31, 3), (3, 10, 1, 3)]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("fill", [*plain.FILLS, *SHAPES], ids=str)
def test_occlusion_to_the_bit(form, dtype, drop, fill):
    images = torch.randint(256, (3, 10, 31, 3), dtype=torch.uint8, device=DEVICE)
    bits = pack(torch.rand(3, *grid(10, 31, 3)) < 0.5).to(DEVICE)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    values = filled(images, fill, mean)
    how = {"side": 3, "drop": drop, "fill": values, "mean": mean, "std": std}
    found = occluded_input(images, bits, dtype=dtype, memory_format=FORMATS[form], **how)
    expected = _occluded_input.definition(
        images.cpu(), bits.cpu(), values, mean, std, 3, drop, dtype, form == "last"
    )
    assert found.cpu().equal(expected)
    assert found.is_contiguous(memory_format=FORMATS[form])


@pytest.mark.parametrize("fill", SHAPES, ids=str)
def test_occlusion_pixel_by_pixel(fill):
    images = torch.randint(256, (3, 10, 31, 3), dtype=torch.uint8)
    mask, values = np.random.default_rng(0).random((3, 4, 11)) < 0.5, filled(images, fill, None)
    bits, quarter = pack(torch.from_numpy(mask)).to(DEVICE), torch.full((3,), 0.25)
    found = occluded_input(images.to(DEVICE), bits, fill=values, mean=quarter, std=quarter)
    expected = np.zeros((3, 3, 10, 31))
    for n, c, y, x in np.ndindex(expected.shape):
        there = tuple(i % size for i, size in zip((n, y, x, c), values.shape, strict=True))
        value = images[n, y, x, c] / 255 if mask[n, y // 3, x // 3] else values[there]
        expected[n, c, y, x] = (value - 0.25) / 0.25
    np.testing.assert_allclose(found.cpu(), expected, atol=1e-6)


# -- the door ----------------------------------------------------------------------------------


def calls():
    """Every operation with small arguments."""
    start, end = ends(2, 3, 6, 6)
    spans, positions, weights = batch([0, 0, 1], 2)
    gradient = torch.randn(3, 3, 6, 6, device=DEVICE)
    points, taken = pooled_points(start, end, spans, positions, Pool())
    images = torch.randint(256, (2, 6, 6, 3), dtype=torch.uint8, device=DEVICE)
    bits, three = pack(torch.ones(2, 2, 2, dtype=torch.bool)).to(DEVICE), torch.rand(3).to(DEVICE)
    fill = torch.rand(2, 6, 6, 3, device=DEVICE)
    total, dtype = torch.zeros_like(start), torch.float32
    return {
        _path_points: (start, end, spans, positions, "relu", dtype),
        _accumulate: (total, gradient, spans, weights, start, end, positions, "relu"),
        _pooled_points: (start, end, spans, positions, 3, 1, 3, 3, dtype),
        _accumulate_pooled: (total, points, taken, spans, weights, 3, 1),
        _square_parts: (start, end, total, 3, True, True),
        _select_bits: (start.flatten(1), torch.tensor([5000, 9000], device=DEVICE), True),
        _occluded_input: (images, bits, fill, three, three, 3, False, dtype, False),
    }


def test_tensors_may_have_gaps():
    start, end = ends(2, 3, 5, 8)
    spans, positions, weights = batch([0, 0, 1], 2)
    gaps = positions.repeat_interleave(2)[::2]
    expected = path_points(start[..., ::2].clone(), end[..., ::2].clone(), spans, positions)
    assert path_points(start[..., ::2], end[..., ::2], spans, gaps).equal(expected)
    total, gradient = torch.zeros(2, 3, 5, 4, device=DEVICE), torch.randn_like(expected)
    accumulate_(total, gradient, spans, weights)
    wide = gradient.repeat_interleave(2, dim=3)[..., ::2]
    again = torch.zeros_like(total)
    accumulate_(again, wide, spans, weights.repeat_interleave(2)[::2])
    assert again.equal(total)
    with pytest.raises(ValueError, match="without gaps"):
        accumulate_(torch.zeros_like(end)[..., ::2], gradient, spans, weights)


def test_no_p_at_all():
    assert select_bits(torch.rand(2, 9, device=DEVICE), ()).shape == (0, 2, 2)


@pytest.mark.parametrize("dtype", HALVES)
def test_squares_of_half_precision_are_summed_in_single(dtype):
    image, baseline, slope = (torch.randn(1, 3, 7, 8, device=DEVICE).to(dtype) for _ in range(3))
    expected = _square_parts.definition(slope, image, baseline, 3, True, False)[0]
    same(attribution_parts(image, baseline, slope), expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of 0 · ∞ and e²⁰⁰
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
def test_dead_units_pass_nothing(activation):
    x = torch.full((1, 4), -200.0, device=DEVICE)
    one, gradient = torch.ones(1, device=DEVICE), torch.full((1, 4), torch.inf, device=DEVICE)
    total, spans = torch.zeros(1, 4, device=DEVICE), torch.tensor([[0, 1]], device=DEVICE)
    accumulate_(total, gradient, spans, one, path=(x, x, one), activation=activation)
    assert not total.any()


@pytest.mark.parametrize("place", range(7))
def test_operations_keep_the_promises_of_custom_ops(place):
    op, arguments = list(calls().items())[place]
    torch.library.opcheck(op.op, arguments)


@pytest.mark.parametrize("place", range(7))
def test_operations_compile(place):
    op, arguments = list(calls().items())[place]
    torch._dynamo.reset()
    backend = "inductor" if DEVICE.type == "cuda" else "aot_eager"
    compiled = torch.compile(lambda *a: op(*a), fullgraph=True, backend=backend)
    fresh = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    found = as_tuple(compiled(*fresh), fresh)
    expected = as_tuple(op(*arguments), arguments)
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("place", range(7))
def test_operations_are_captured_in_a_graph(place):
    op, arguments = list(calls().items())[place]
    op(*arguments)  # compiled before capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = op(*arguments)
    changed = [a for a in arguments if isinstance(a, torch.Tensor) and a.is_floating_point()]
    for tensor in changed:
        tensor.copy_(torch.rand_like(tensor))
    fresh = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    expected = op(*fresh)
    graph.replay()
    torch.cuda.synchronize()
    for found, wanted in zip(as_tuple(captured, arguments), as_tuple(expected, fresh), strict=True):
        assert found.equal(wanted)


def as_tuple(returned, arguments):
    """What an operation returned, or changed."""
    if returned is None:
        return arguments[:1]
    return returned if isinstance(returned, tuple) else (returned,)


class Small(nn.Module):
    """A network as ResNet begins, or as Inception does, or VGG."""

    def __init__(self, *head):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.head = nn.Sequential(*head)
        self.rest = nn.Sequential(nn.Conv2d(4, 5, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(1))
        self.last = nn.Linear(5, 6)

    def forward(self, x):
        return self.last(self.rest(self.head(self.stem(x))).flatten(1))


HEADS = {
    "pool": (nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)),
    "relu": (nn.ReLU(inplace=True),),
    "silu": (nn.SiLU(),),
    "none": (nn.Softplus(),),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("batch_size", [3, 50])
def test_the_engine_takes_its_path_through_the_kernels(head, batch_size, monkeypatch):
    model = Small(*HEADS[head]).eval().to(DEVICE)
    images = torch.rand(3, 3, 11, 9, device=DEVICE)
    found = integrated_gradients(model, images, n_steps=6, batch_size=batch_size)
    split = made_ready(model, images, precision="fp32").split
    expected = {"pool": stem.Head("relu", Pool()), "none": stem.Head()}
    assert split.head == expected.get(head, stem.Head(head))
    points = torch.stack([images.double() * (step / 6) for step in range(1, 7)]).requires_grad_()
    model.double()
    outputs = torch.stack([model(at).softmax(dim=1) for at in points])
    picked = outputs.gather(2, found.target.expand(6, -1).unsqueeze(2))
    (slopes,) = torch.autograd.grad(picked.sum(), points)
    expected = images * slopes.mean(dim=0)
    torch.testing.assert_close(found.values.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="of the interpreter")
def test_the_guard_sees_a_kernel_that_leaves_its_tensors():
    import triton
    import triton.language as tl

    from igmask.kernels.squares import _parts_kernel

    x = torch.rand(64)[:36].view(1, 1, 6, 6)
    parts = torch.empty(1, 2, 2, 2)
    strides = x.stride() * 4
    with pytest.raises(triton.runtime.errors.InterpreterError, match="out of bounds"):
        _parts_kernel[2, 1, 1](
            parts, x, x, x, x, *strides, 8, 6, 2, 2, tl.float32, 1, 4, False, False, 8
        )


@pytest.mark.skipif(os.environ.get("IGMASK_OVERFLOW") != "1", reason="nobody asked for it")
def test_the_guard_sees_an_integer_that_overflows():
    import triton
    import triton.language as tl

    @triton.jit
    def double(x):
        tl.store(x, tl.load(x) + tl.load(x))

    double[(1,)](x := torch.tensor([2**30 - 1], dtype=torch.int32))
    assert x.item() == 2**31 - 2
    with pytest.raises(triton.runtime.errors.InterpreterError, match="overflow"):
        double[(1,)](x)


STUDY_NETWORK = """
import torch
from torch import nn

def small():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        begin = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
        return nn.Sequential(*begin, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
"""


@pytest.mark.parametrize("n_steps", [4, "auto"])
def test_the_study_goes_through_the_kernels(tmp_path, monkeypatch, n_steps):
    """Its numbers are those of the definitions; φ is written only where steps are doubled."""
    (tmp_path / "kernel_net.py").write_text(STUDY_NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for label in ("a", "b"):
        Path("images", label).mkdir(parents=True)
        pixels = np.random.default_rng(ord(label)).integers(0, 256, (10, 10, 3), np.uint8)
        Image.fromarray(pixels).save(Path("images", label, "one.png"))
    small = {"source": "kernel_net:small", "size": 10}
    study = config.parse({"dataset": {"source": "demo"}, "models": {"small": small}})
    model, geometry = study.models["small"], Geometry(10, None, "bilinear")
    run_index({"source": "folder", "root": "images"}, Path("index.parquet"), seed=0)
    run_prepare(Path("index.parquet"), Path("images.npy"), geometry=geometry)
    how = fields.plain(study.attribution) | {"n_steps": n_steps, "most_steps": 50}
    # Full groups and batches would be repeats of the last image.
    monkeypatch.setattr(attribute, "GROUP", 2)
    asked = []
    with Watch(asked):
        run_attribute(
            Path("images.npy"), Path("scores.npy"),
            model=model, attribution=how, side=3, seed=0, device=DEVICE.type,
        )  # fmt: skip
        run_mask([Path("scores.npy")], Path("masks"), p=[50], by="mass", score="positive")
        masks = (Path("masks/50.npy"),)
        run_evaluate(
            [Path("images.npy")], Path("records"),
            model=model, masks=masks, device=DEVICE.type, batch_size=2,
        )  # fmt: skip
    kinds = {"path_points", "accumulate", "square_parts", "occluded_input"}
    assert kinds | ({"select_bits"} if n_steps == "auto" else set()) <= set(asked)

    found = arrays.read_array(Path("scores.npy"))
    network = models.load(model, device=DEVICE)
    pixels = models.pixels(arrays.read_array(Path("images.npy")).copy(), DEVICE).double()
    classes = network.double()(pixels).argmax(dim=1, keepdim=True)
    steps = arrays.read_records(Path("scores.parquet"))[0]["n_steps"]
    for i in range(len(pixels)):
        phi = definition.integrated_gradients(
            lambda x, i=i: network(x).softmax(dim=1).gather(1, classes[i : i + 1]).squeeze(1),
            pixels[i : i + 1], torch.zeros_like(pixels[i : i + 1]), n_steps=int(steps[i]),
        )  # fmt: skip
        expected = _square_parts.definition(phi, phi, phi, 3, False, False)[0]
        assert (torch.tensor(found[i]) - expected[0].cpu()).norm() < 1e-4 * expected.norm()


class Watch(TorchDispatchMode):
    """Names the operations of igmask that are asked for."""

    def __init__(self, asked):
        super().__init__()
        self.asked = asked

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "igmask":
            self.asked.append(function.name().partition("::")[2])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("engine", "n_fused"), [("eager", 1), ("compile", 0)])
def test_networks_have_fused_relus_but_for_compile(engine, n_fused):
    layers = nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(36, 2)).eval().to(DEVICE)
    images = torch.rand(2, 3, 7, 7, device=DEVICE)
    ready = made_ready(model, images, precision="fp32", engine=engine)
    found = [part for part in ready.split.trunk.modules() if isinstance(part, fusion._FusedRelu)]
    assert len(found) == n_fused
