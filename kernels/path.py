"""Both ends of the path integral: the points, and the weighted sum of their gradients.

A batch holds (image, step) *pairs*, those of an image next to each other: `spans` says from which
to which. So a batch can be any run of the queue of pairs, across images and steps alike.

The activation that follows a network's stem can be taken along: its values are what is stored, and
its derivative is found again from the end points, so nothing else is kept for the way back.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from igmask.kernels.dispatch import check, empty_as, jit, memory_format_of, on_device, operation, tl

ACTIVATIONS = ("none", "relu", "relu6", "silu", "hardswish", "gelu")

_BLOCK = 1024  # values of a program: 8 a thread, two loads of 16 bytes in float32


def path_points(
    start: Tensor,
    end: Tensor,
    spans: Tensor,
    positions: Tensor,
    *,
    activation: str = "none",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the points b + α (x − b), one a pair; exactly b and x at α = 0 and 1.

    start, end: (N, ...) of each image's path
    spans:      (N, 2) int64, the first of an image's pairs and the one after its last
    positions:  (B,) α of each pair, in [0, 1]; rounded to no less than float32
    activation: of `ACTIVATIONS`, applied to the points; `gelu` is the exact one
    dtype:      of the points; that of `end` if None
    returns     (B, ...) in the memory format of `end`
    raises      ValueError for shapes that do not fit, or an unknown activation
    """
    _check_activation(activation)
    path = path_without_gaps("path_points", start, end, spans, positions, like=end)
    return _path_points(*path, activation, dtype or end.dtype)


def accumulate_(
    total: Tensor,
    gradient: Tensor,
    spans: Tensor,
    weights: Tensor,
    *,
    path: tuple[Tensor, Tensor, Tensor] | None = None,
    activation: str = "none",
) -> Tensor:
    """Add w·∂f of each pair to its image in `total`, in the order of the pairs, and return it.

    The sum is the same to the bit however the queue is cut into batches. Pairs of weight zero
    are left out, whatever their gradient is.

    total:      (N, ...) running sum, contiguous or channels last, changed in place
    gradient:   (B, ...) by the points that `path_points` returned
    spans:      (N, 2) int64, as there
    weights:    (B,) quadrature weight of each pair
    path:       (start, end, positions), as there; needed behind an activation
    activation: of `ACTIVATIONS`: the sum is of the gradients before it
    raises      ValueError for shapes that do not fit
    """
    _check_activation(activation)
    form = check_sum("accumulate_", total, gradient, total.shape[1:], spans, weights)
    start = end = positions = gradient.new_empty(0)  # of which nothing is read
    if path is not None:
        given = *path[:2], spans, path[2]
        start, end, _, positions = path_without_gaps("accumulate_", *given, like=total)
        fits = start.shape == total.shape and positions.shape == weights.shape
        check("accumulate_", fits, "a path shaped as the sum", total, start, positions)
    elif activation != "none":
        raise ValueError(f"accumulate_: the derivative of {activation} needs the path")
    gradient = gradient.contiguous(memory_format=form)
    spans, weights = spans.contiguous(), weights.contiguous()
    _accumulate(total, gradient, spans, weights, start, end, positions, activation)
    return total


def spans_of(owners: list[int], n_images: int, device: torch.device | str = "cpu") -> Tensor:
    """Return (N, 2) int64: from which to which pair of a batch each image owns; (0, 0) if none.

    owners: the image of each pair, those of an image next to each other
    """
    spans = [[0, 0]] * n_images
    for owner in set(owners):
        first = owners.index(owner)
        spans[owner] = [first, first + owners.count(owner)]
    return on_device(spans, device, torch.int64).reshape(n_images, 2)


def check_sum(
    who: str,
    total: Tensor,
    gradient: Tensor,
    shape: tuple[int, ...],
    spans: Tensor,
    weights: Tensor,
) -> torch.memory_format:
    """Raise ValueError unless gradients (B, *shape) can be added up; return the sum's format."""
    fits = weights.ndim == 1 and gradient.shape == (len(weights), *shape)
    fits = fits and spans.shape == (len(total), 2) and spans.dtype == torch.int64
    expected = f"a gradient {tuple(shape)} a weight, and an int64 span an image"
    check(who, fits, expected, total, gradient, weights, spans)
    form = memory_format_of(total)
    check(who, total.is_contiguous(memory_format=form), "a sum without gaps in memory", total)
    return form


def path_without_gaps(
    who: str, start: Tensor, end: Tensor, spans: Tensor, positions: Tensor, like: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a path in memory as the kernels take it, like another tensor, or raise ValueError."""
    fits = start.shape == end.shape and start.dtype == end.dtype
    fits = fits and spans.shape == (len(end), 2) and spans.dtype == torch.int64
    check(who, fits, "alike end points, and an int64 span an image", start, end, spans)
    check(who, positions.ndim == 1, "positions (B,)", positions)
    start, end = (t.contiguous(memory_format=memory_format_of(like)) for t in (start, end))
    return start, end, spans.contiguous(), positions.contiguous()


def _check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; choose from {', '.join(ACTIVATIONS)}")


# -- what they mean ----------------------------------------------------------------------------


def activate(x: Tensor, activation: str) -> Tensor:
    """Return the activation's values."""
    return x if activation == "none" else getattr(F, activation)(x)


def derivative(x: Tensor, activation: str) -> Tensor:
    """Return the activation's derivative; at a kink that of PyTorch."""
    if activation == "relu":
        return (x > 0).to(x.dtype)
    if activation == "relu6":
        return ((x > 0) & (x < 6)).to(x.dtype)
    if activation == "silu":
        return x.sigmoid() * (1 + x * (1 - x.sigmoid()))
    if activation == "hardswish":
        return torch.where(x.abs() < 3, x / 3 + 0.5, (x >= 3).to(x.dtype))
    if activation == "gelu":
        return torch.special.ndtr(x) + x * torch.exp(-x * x / 2) * _ROOT
    return torch.ones_like(x)


_ROOT = 0.3989422804014327  # 1/√(2π)


def _empty_points(start, end, spans, positions, activation, dtype):
    return empty_as(end, (positions.shape[0], *end.shape[1:]), dtype)


def _launch_points(start, end, spans, positions, activation, dtype):
    points = _empty_points(start, end, spans, positions, activation, dtype)
    n_values = end.shape[1:].numel()
    _points_kernel[pieces(n_values, len(end), _BLOCK)](
        points, start, end, spans, positions, n_values, computed_in(end), activation, _BLOCK
    )
    return points


@operation(launch=_launch_points, fake=_empty_points)
def _path_points(
    start: Tensor,
    end: Tensor,
    spans: Tensor,
    positions: Tensor,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    points = _empty_points(start, end, spans, positions, activation, dtype)
    plain = activation == "none" and dtype == end.dtype
    alphas = positions.tolist()
    # One image after the other: its two ends stay in the cache for all of its steps.
    for b, x, (first, last) in zip(start, end, spans.tolist(), strict=True):
        for pair in range(first, last):
            if plain:
                torch.lerp(b, x, alphas[pair], out=points[pair])
            else:
                points[pair] = activate(torch.lerp(b, x, alphas[pair]), activation)
    return points


def _launch_accumulate(total, gradient, spans, weights, start, end, positions, activation):
    n_values = total.shape[1:].numel()
    _accumulate_kernel[pieces(n_values, len(total), _BLOCK)](
        total, gradient, spans, weights, start, end, positions, n_values,
        computed_in(total), activation, _BLOCK,
    )  # fmt: skip


@operation(launch=_launch_accumulate, mutates="total")
def _accumulate(
    total: Tensor,
    gradient: Tensor,
    spans: Tensor,
    weights: Tensor,
    start: Tensor,
    end: Tensor,
    positions: Tensor,
    activation: str,
) -> None:
    alphas, per_pair = positions.tolist(), weights.tolist()
    for image, (first, last) in enumerate(spans.tolist()):
        for pair in range(first, last):
            slope = gradient[pair]
            if not per_pair[pair]:
                continue
            if activation != "none":
                point = torch.lerp(start[image], end[image], alphas[pair])
                change = derivative(point, activation)
                slope = torch.where(change != 0, slope * change, 0)
            total[image].add_(slope, alpha=per_pair[pair])


# -- the kernels: a program holds a piece of an image's two ends and goes through all of its pairs


def computed_in(x: Tensor):
    """What a kernel computes in: `wide`, for Triton."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def pieces(n_values: int, n_images: int, block: int) -> tuple[int]:
    """The grid of a kernel whose programs have a `piece` of an image each."""
    return (-(-n_values // block) * n_images,)


@jit
def piece(n_values, BLOCK: tl.constexpr):
    """The image, and the values of it, that a program has; images follow each other."""
    n_pieces = tl.cdiv(n_values, BLOCK)
    image = (tl.program_id(0) // n_pieces).to(tl.int64)
    return image, tl.program_id(0) % n_pieces * BLOCK + tl.arange(0, BLOCK)


@jit
def between(b, x, alpha):
    """b + α (x − b), to the bit b and x at 0 and 1; the same here and on the way back."""
    early = alpha < 0.5
    step = tl.where(early, alpha, alpha - 1)
    change = x - b
    return tl.fma(change, step + tl.zeros_like(change), tl.where(early, b, x))


@jit
def _activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)  # NaN stays, as in PyTorch
    elif ACTIVATION == "relu6":
        x = tl.where(x < 0, 0.0, tl.where(x > 6, 6.0, x))
    elif ACTIVATION == "silu":
        x = x / (1 + tl.exp(-x))
    elif ACTIVATION == "hardswish":
        x = x * tl.where(x < -3, 0.0, tl.where(x > 3, 6.0, x + 3)) / 6
    elif ACTIVATION == "gelu":
        x = x * 0.5 * (1 + tl.erf(x * 0.7071067811865476))
    return x


@jit
def _through(slope, x, ACTIVATION: tl.constexpr):
    """The gradient before the activation at x, given that behind it."""
    if ACTIVATION == "relu":
        slope = tl.where(x > 0, slope, 0.0)
    elif ACTIVATION == "relu6":
        slope = tl.where((x > 0) & (x < 6), slope, 0.0)
    elif ACTIVATION == "silu":
        sigmoid = 1 / (1 + tl.exp(-x))
        change = sigmoid * (1 + x * (1 - sigmoid))
        slope = tl.where(change != 0, slope * change, 0.0)  # dead units pass nothing, not NaN
    elif ACTIVATION == "hardswish":
        inside = slope * (x / 3 + 0.5)
        slope = tl.where(x >= 3, slope, tl.where(x > -3, inside, 0.0))
    elif ACTIVATION == "gelu":
        below = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
        change = below + x * tl.exp(-x * x / 2) * 0.3989422804014327
        slope = tl.where(change != 0, slope * change, 0.0)
    return slope


@jit
def _points_kernel(
    points, start, end, spans, positions, n_values,
    WIDE: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, offsets = piece(n_values, BLOCK)
    live = offsets < n_values
    first, last = tl.load(spans + 2 * image), tl.load(spans + 2 * image + 1)
    b = tl.load(start + image * n_values + offsets, mask=live, other=0).to(WIDE)
    x = tl.load(end + image * n_values + offsets, mask=live, other=0).to(WIDE)
    for pair in range(first, last):
        alpha = tl.load(positions + pair).to(WIDE)
        point = _activate(between(b, x, alpha), ACTIVATION)
        here = points + pair * n_values + offsets
        tl.store(here, point.to(points.dtype.element_ty), mask=live)


@jit
def _accumulate_kernel(
    total, gradient, spans, weights, start, end, positions, n_values,
    WIDE: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, offsets = piece(n_values, BLOCK)
    live = offsets < n_values
    first, last = tl.load(spans + 2 * image), tl.load(spans + 2 * image + 1)
    here = total + image * n_values + offsets
    running = tl.load(here, mask=live, other=0).to(WIDE)
    if ACTIVATION != "none":
        b = tl.load(start + image * n_values + offsets, mask=live, other=0).to(WIDE)
        x = tl.load(end + image * n_values + offsets, mask=live, other=0).to(WIDE)
    for pair in range(first, last):
        weight = tl.load(weights + pair).to(WIDE) + tl.zeros((BLOCK,), WIDE)
        read = live & (weight != 0)
        there = gradient + pair * n_values + offsets
        slope = tl.load(there, mask=read, other=0).to(WIDE)
        if ACTIVATION != "none":
            alpha = tl.load(positions + pair).to(WIDE)
            slope = _through(slope, between(b, x, alpha), ACTIVATION)
        running = tl.fma(slope, weight, running)
    tl.store(here, running.to(total.dtype.element_ty), mask=live)
