"""What the kernels are measured on: tensors, the bytes to be moved, the same work in PyTorch.

Numbers are multiples of powers of two, few enough for products and sums to be exact in float32. So
the result of a kernel is that of its definition in float64, rounded once, whatever the order of its
sums; only an exponential and quotients leave room for more.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from igmask.kernels import (
    Pool,
    accumulate_,
    accumulate_pooled_,
    activate,
    attribution_parts,
    grid,
    occluded_input,
    path_points,
    pooled_points,
    shifted_relu,
    spans_of,
)
from igmask.kernels.occlude import _occluded_input
from igmask.kernels.path import _accumulate, _path_points
from igmask.kernels.pool import _accumulate_pooled, _pooled_points
from igmask.kernels.select import _select_bits
from igmask.kernels.squares import _square_parts
from igmask.plain import basis_points, pack, select

# Behind the stems of the study's four networks, and images, as they are where there is no stem.
RESNET, VGG, INCEPTION = (64, 112, 112), (64, 224, 224), (32, 149, 149)
IMAGE, IMAGE_299 = (3, 224, 224), (3, 299, 299)

_POOL = Pool(size=3, padding=1)
_P = (30, 50, 70, 90)

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """A kernel and its tensors.

    n_bytes:    to be read and written, each number once; without the few of spans, positions,
                weights and colours
    run:        what the project calls → what is checked
    expression: the same as one writes it in PyTorch, of `arguments` → the first of that, or all
    exact:      what the definition says in float64
    roundings:  how many, of the largest number, a right result may be off from `exact` rounded
    """

    n_bytes: int
    run: Callable[[], Tensors]
    expression: Callable[..., Any]
    arguments: tuple[Any, ...]
    exact: Callable[[], Tensors]
    roundings: float = 0


@dataclass(frozen=True)
class Kind:
    """What tensors a case has.

    shape:  of an image's points (C, H, W), or (K,) scores
    dtype:  of points and gradients, or of the network's input
    n_images, n_steps: of a batch of the queue, which holds all steps of its images
    n_masked: images that are scored, selected or masked together
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: torch.memory_format
    device: torch.device
    n_images: int
    n_steps: int
    n_masked: int

    def numbers(
        self,
        n: int,
        shape: tuple[int, ...],
        most: int,
        parts: int,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return (n, *shape) random multiples of 1/parts from −most to most; float32 if None."""
        whole = torch.randint(
            -most * parts, most * parts + 1, (n, *shape), dtype=torch.int16, device=self.device
        )
        return (whole / parts).to(dtype or torch.float32).contiguous(memory_format=self.layout)

    def ends(self) -> Tensors:
        """Return (start, end) of the images' paths."""
        return tuple(self.numbers(self.n_images, self.shape, most=4, parts=64) for _ in range(2))

    def queue(self) -> Tensors:
        """Return (spans, positions, weights) of the batch's pairs."""
        n_pairs = self.n_images * self.n_steps
        owners = [pair // self.n_steps for pair in range(n_pairs)]
        positions, weights = torch.randint(1, 65, (2, n_pairs), device=self.device).double() / 64
        return spans_of(owners, self.n_images, self.device), positions, weights


# -- a case of each kernel, and its bytes one by one -------------------------------------------


def _points(activation: str, kind: Kind) -> Case:
    (start, end), (spans, positions, _) = kind.ends(), kind.queue()
    options: Any = {"activation": activation, "dtype": kind.dtype}
    at = spans, positions, activation, torch.float64
    return Case(
        # both ends once; a point each step
        start.nbytes + end.nbytes + len(positions) * math.prod(kind.shape) * kind.dtype.itemsize,
        lambda: (path_points(start, end, spans, positions, **options),),
        _eager_points,
        (start, end, positions.float(), activation, kind.dtype),
        lambda: (_path_points.definition(start.double(), end.double(), *at),),
        roundings=4 if activation == "silu" else 0,  # of its exponential
    )


def _eager_points(
    start: Tensor, end: Tensor, positions: Tensor, activation: str, dtype: torch.dtype
) -> Tensor:
    at = positions.view(len(start), -1, 1, 1, 1)
    points = activate(torch.lerp(start.unsqueeze(1), end.unsqueeze(1), at), activation)
    return points.to(dtype).flatten(0, 1)


def _pooled(kind: Kind) -> Case:
    (start, end), (spans, positions, _) = kind.ends(), kind.queue()
    sides = tuple(map(_POOL.side, kind.shape[1:]))
    n_windows = len(positions) * kind.shape[0] * math.prod(sides)
    how = _POOL.size, _POOL.padding, *sides, torch.float64
    return Case(
        # both ends once; each step of a window a point, and the byte of its place
        start.nbytes + end.nbytes + n_windows * (kind.dtype.itemsize + 1),
        lambda: pooled_points(start, end, spans, positions, _POOL, dtype=kind.dtype),
        _eager_pooled,
        (start, end, positions.float(), kind.dtype),
        lambda: _pooled_points.definition(start.double(), end.double(), spans, positions, *how),
    )


def _eager_pooled(start: Tensor, end: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    return _max_pool(_eager_points(start, end, positions, "relu", dtype))[0]


def _max_pool(points: Tensor) -> Tensors:
    """(the largest of each window, its place, which autograd would keep)."""
    return F.max_pool2d(points, _POOL.size, 2, _POOL.padding, return_indices=True)


def _sum(activation: str, kind: Kind) -> Case:
    (start, end), (spans, positions, weights) = kind.ends(), kind.queue()
    gradient = kind.numbers(len(weights), kind.shape, most=2, parts=4, dtype=kind.dtype)
    total, nothing = torch.zeros_like(end), torch.zeros_like(end)
    n_bytes, kept = gradient.nbytes + 2 * total.nbytes, None  # a gradient each step; the sum twice
    if activation != "none":
        n_bytes += start.nbytes + end.nbytes  # and both ends once
        kept = _eager_points(start, end, positions.float(), activation, kind.dtype)
    path = start, end, positions
    exact_path = start.double(), end.double(), positions, activation
    return Case(
        n_bytes,
        lambda: (accumulate_(total, gradient, spans, weights, path=path, activation=activation),),
        _eager_sum,
        (nothing, gradient, weights.float(), kept),
        lambda: _added(_accumulate, nothing, gradient, spans, weights, *exact_path),
    )


def _eager_sum(total: Tensor, gradient: Tensor, weights: Tensor, kept: Tensor | None) -> Tensor:
    """kept: what came out of the ReLU, which autograd would keep; None if there was no ReLU."""
    slope = gradient if kept is None else gradient * (kept > 0)
    slope = slope * weights.view(-1, 1, 1, 1)
    return total + slope.unflatten(0, (len(total), -1)).sum(dim=1)


def _added(operation: Any, nothing: Tensor, *arguments: Any) -> Tensors:
    """What an operation's definition adds to nothing, in float64."""
    total = nothing.double()
    operation.definition(total, *arguments)
    return (total,)


def _pooled_sum(kind: Kind) -> Case:
    (start, end), (spans, positions, weights) = kind.ends(), kind.queue()
    _, taken = pooled_points(start, end, spans, positions, _POOL, dtype=kind.dtype)
    gradient = kind.numbers(len(weights), taken.shape[1:], most=2, parts=4, dtype=kind.dtype)
    total, nothing = torch.zeros_like(end), torch.zeros_like(end)
    kept = _eager_points(start, end, positions.float(), "relu", torch.float32)
    places = _max_pool(kept)[1]  # before values are rounded to be equal
    how = _POOL.size, _POOL.padding
    return Case(
        # each step of a window a gradient, and the byte of its place; the sum twice
        gradient.nbytes + taken.nbytes + 2 * total.nbytes,
        lambda: (accumulate_pooled_(total, gradient, taken, spans, weights, _POOL),),
        _eager_pooled_sum,
        (nothing, gradient, weights.float(), kept.to(kind.dtype), places),
        lambda: _added(_accumulate_pooled, nothing, gradient, taken, spans, weights, *how),
    )


def _eager_pooled_sum(
    total: Tensor, gradient: Tensor, weights: Tensor, kept: Tensor, places: Tensor
) -> Tensor:
    how = [_POOL.size] * 2, [2, 2], [_POOL.padding] * 2, [1, 1], False
    slope = torch.ops.aten.max_pool2d_with_indices_backward(gradient, kept, *how, places)
    return _eager_sum(total, slope, weights, kept)


def _relu(kind: Kind) -> Case:
    n_pairs = kind.n_images * kind.n_steps
    x, other = (kind.numbers(n_pairs, kind.shape, 1, 64, kind.dtype) for _ in "xy")
    shift = kind.numbers(1, (*kind.shape[:1], 1, 1), most=1, parts=64).flatten()
    of_channels = shift.view(-1, 1, 1).to(kind.dtype)
    return Case(
        # the sum's two sides and the result; there, since the way back is as much again
        3 * x.nbytes,
        lambda: (shifted_relu(x, shift, other=other),),
        lambda x, other, of_channels: F.relu(x + of_channels + other),
        (x, other, of_channels),
        lambda: ((x.double() + shift.double().view(-1, 1, 1) + other.double()).relu(),),
    )


def _parts(kind: Kind) -> Case:
    image, baseline = (kind.numbers(kind.n_masked, kind.shape, most=1, parts=128) for _ in "xb")
    slope = kind.numbers(kind.n_masked, kind.shape, most=4, parts=64)
    n_squares = math.prod(grid(slope.shape[2], slope.shape[3], 3))
    wide = slope.double(), image.double(), baseline.double()
    return Case(
        # image, baseline and slope once; two float32 a square
        3 * slope.nbytes + kind.n_masked * n_squares * 2 * 4,
        lambda: (attribution_parts(image, baseline, slope),),
        _square_parts.definition,
        (slope, image, baseline, 3, True, False),
        lambda: _square_parts.definition(*wide, 3, True, False)[:1],
    )


def _select(kind: Kind) -> Case:
    scores = torch.rand(kind.n_masked, *kind.shape).to(kind.device)
    exact = scores.numpy(force=True)
    points = [basis_points(p) for p in _P]
    on_device = torch.tensor(points, device=kind.device)
    return Case(
        # the scores once; for each p a bit a square; for each image a byte, whether it is finite
        scores.nbytes + kind.n_masked * (len(_P) * math.ceil(kind.shape[0] / 8) + 1),
        # `select_bits` but for its look at those bytes, which waits for the device
        lambda: _select_bits(scores, on_device, True)[:1],
        _selected,
        (scores, points),
        lambda: (torch.stack([torch.from_numpy(pack(mask)) for mask in select(exact, _P)]),),
    )


def _selected(scores: Tensor, points: list[int]) -> Tensor:
    """The bits of a selection by mass, which is `plain.select`'s."""
    exact = scores.double().clamp(min=0)
    top = exact.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    masses = torch.ldexp(exact, 30 - torch.frexp(top).exponent).trunc().long()
    ordered, order = masses.sort(dim=1, descending=True, stable=True)
    total = ordered.cumsum(dim=1)
    bits = []
    for p in points:
        needed = (total - ordered) * 10_000 < p * total[:, -1:]
        chosen = torch.zeros_like(needed).scatter_(1, order, needed)
        eights = F.pad(chosen, (0, -chosen.shape[1] % 8)).unflatten(1, (-1, 8))
        bits.append((eights * 2 ** torch.arange(8, device=scores.device)).sum(dim=2).byte())
    return torch.stack(bits)


def _occluded(kind: Kind) -> Case:
    n_channels, *sides = kind.shape
    images = torch.randint(256, (kind.n_masked, *sides, n_channels), device=kind.device).byte()
    n_bytes = math.ceil(math.prod(grid(sides[0], sides[1], 3)) / 8)
    bits = torch.randint(256, (kind.n_masked, n_bytes), device=kind.device).byte()
    fill = torch.zeros(1, 1, 1, n_channels, device=kind.device)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], device=kind.device)
    options: Any = {"dtype": kind.dtype, "memory_format": kind.layout}
    last = kind.layout == torch.channels_last
    wide = images.double(), bits, fill.double(), mean.double(), std.double()
    return Case(
        # a byte a value and a bit a square once; a number a value
        images.nbytes + bits.nbytes + images.numel() * kind.dtype.itemsize,
        lambda: (occluded_input(images, bits, fill=fill, mean=mean, std=std, **options),),
        _occluded_input.definition,
        (images, bits, fill, mean, std, 3, False, kind.dtype, last),
        lambda: (_occluded_input.definition(*wide, 3, False, torch.float64, last),),
        roundings=2,  # of two quotients and a difference
    )


# name → how its cases are made, and of which shapes
KERNELS: dict[str, tuple[Callable[[Kind], Case], tuple[tuple[int, ...], ...]]] = {
    "path_points": (partial(_points, "none"), (IMAGE,)),
    "path_points relu": (partial(_points, "relu"), (VGG, INCEPTION)),
    "path_points silu": (partial(_points, "silu"), (INCEPTION,)),
    "pooled_points": (_pooled, (RESNET,)),
    "accumulate_": (partial(_sum, "none"), (IMAGE,)),
    "accumulate_ relu": (partial(_sum, "relu"), (VGG, INCEPTION)),
    "accumulate_pooled_": (_pooled_sum, (RESNET,)),
    "shifted_relu": (_relu, (RESNET,)),
    "attribution_parts": (_parts, (IMAGE, IMAGE_299)),
    "select_bits": (_select, ((5_625,), (10_000,))),
    "occluded_input": (_occluded, (IMAGE,)),
}
# What networks compute in is nothing to the squares; scores have no layout.
ONE_DTYPE = ("attribution_parts", "select_bits")
ONE_LAYOUT = ("select_bits",)
