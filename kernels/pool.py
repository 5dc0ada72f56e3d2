"""The same two ends where ReLU and max pooling follow the stem, as in ResNet and DenseNet.

The points are pooled at once, and of each window is kept which place was its largest. On the way
back every input looks up the windows that it is in: nothing is scattered, so sums have one order.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from igmask.kernels.dispatch import check, empty_as, jit, memory_format_of, operation, tl
from igmask.kernels.path import between, check_sum, computed_in, path_without_gaps, piece, pieces

_DEAD = 255  # of a window without a positive value: no gradient passes
_BLOCK = 256


@dataclass(frozen=True)
class Pool:
    """A max pooling of stride 2 behind a ReLU; `size` 2 or 3, `ceil` as PyTorch's ceil_mode."""

    size: int = 3
    padding: int = 1
    ceil: bool = False

    def __post_init__(self) -> None:
        if self.size not in (2, 3) or not 0 <= self.padding <= self.size // 2:
            raise ValueError(f"{self}: windows are of size 2 or 3, padded by at most half of it")

    def side(self, n: int) -> int:
        """Return how many windows lie along a side of n values."""
        room = n + 2 * self.padding - self.size
        n_windows = -(-room // 2) + 1 if self.ceil else room // 2 + 1
        # PyTorch leaves out a last window that would begin in the padding.
        return n_windows - (self.ceil and 2 * (n_windows - 1) >= n + self.padding)


def pooled_points(
    start: Tensor,
    end: Tensor,
    spans: Tensor,
    positions: Tensor,
    pool: Pool,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the max pooling of ReLU of the points b + α (x − b), and which place each came from.

    start, end:       (N, C, H, W), spans and positions as for `path_points`
    returns points:   (B, C, H', W') in the memory format of `end`
            taken:    alike, uint8: the place in the window, row by row; 255 if none is positive
    """
    check("pooled_points", end.ndim == 4, "end points (N, C, H, W)", start, end)
    path = path_without_gaps("pooled_points", start, end, spans, positions, like=end)
    how = (pool.size, pool.padding, pool.side(end.shape[2]), pool.side(end.shape[3]))
    return _pooled_points(*path, *how, dtype or end.dtype)


def accumulate_pooled_(
    total: Tensor, gradient: Tensor, taken: Tensor, spans: Tensor, weights: Tensor, pool: Pool
) -> Tensor:
    """Add w·∂f of each pair, sent back through pooling and ReLU, to its image in `total`.

    total:    (N, C, H, W) running sum, dense, changed in place and returned
    gradient: (B, C, H', W') by the pooled points;  taken: as `pooled_points` returned it
    spans, weights: as for `accumulate_`, whose promises hold here too
    """
    shape = (total.shape[1], *map(pool.side, total.shape[2:]))
    form = check_sum("accumulate_pooled_", total, gradient, shape, spans, weights)
    fits = taken.shape == gradient.shape and taken.dtype == torch.uint8
    check("accumulate_pooled_", fits, "a uint8 place a gradient", gradient, taken)
    gradient, taken = (t.contiguous(memory_format=form) for t in (gradient, taken))
    spans, weights = spans.contiguous(), weights.contiguous()
    _accumulate_pooled(total, gradient, taken, spans, weights, pool.size, pool.padding)
    return total


# -- what they mean ----------------------------------------------------------------------------


def _empty_pooled(start, end, spans, positions, size, padding, height, width, dtype):
    shape = (positions.shape[0], end.shape[1], height, width)
    return empty_as(end, shape, dtype), empty_as(end, shape, torch.uint8)


def _launch_pooled(start, end, spans, positions, size, padding, height, width, dtype):
    points, taken = _empty_pooled(start, end, spans, positions, size, padding, height, width, dtype)
    n_values = end.shape[1] * height * width
    _pooled_kernel[pieces(n_values, len(end), _BLOCK)](
        points, taken, start, end, spans, positions, *end.shape[1:], height, width,
        computed_in(end), size, padding, memory_format_of(end) == torch.channels_last, _BLOCK,
    )  # fmt: skip
    return points, taken


@operation(launch=_launch_pooled, fake=_empty_pooled)
def _pooled_points(
    start: Tensor,
    end: Tensor,
    spans: Tensor,
    positions: Tensor,
    size: int,
    padding: int,
    height: int,
    width: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    points, taken = _empty_pooled(start, end, spans, positions, size, padding, height, width, dtype)
    alphas = positions.tolist()
    for b, x, (first, last) in zip(start, end, spans.tolist(), strict=True):
        for pair in range(first, last):
            windows = _windows(torch.lerp(b, x, alphas[pair]).relu(), size, padding, height, width)
            best, place = windows.max(dim=-1)
            points[pair] = best
            taken[pair] = place.masked_fill_(best <= 0, _DEAD).to(torch.uint8)
    return points, taken


def _windows(x: Tensor, size: int, padding: int, height: int, width: int) -> Tensor:
    """(C, H, W) ≥ 0 → (C, H', W', size²), zero outside."""
    right, bottom = (2 * (n - 1) + size - padding for n in (width, height))
    x = F.pad(x, (padding, right - x.shape[2], padding, bottom - x.shape[1]))
    return x.unfold(1, size, 2).unfold(2, size, 2).flatten(3)


def _launch_accumulate_pooled(total, gradient, taken, spans, weights, size, padding):
    cells = [(n + padding + 1) // 2 for n in total.shape[2:]]
    n_cells = total.shape[1] * cells[0] * cells[1]
    _accumulate_pooled_kernel[pieces(n_cells, len(total), _BLOCK)](
        total, gradient, taken, spans, weights, *total.shape[1:], *gradient.shape[2:], *cells,
        computed_in(total), size, padding, memory_format_of(total) == torch.channels_last, _BLOCK,
    )  # fmt: skip


@operation(launch=_launch_accumulate_pooled, mutates="total")
def _accumulate_pooled(
    total: Tensor,
    gradient: Tensor,
    taken: Tensor,
    spans: Tensor,
    weights: Tensor,
    size: int,
    padding: int,
) -> None:
    n_channels, height, width = total.shape[1:]
    rows, columns = (torch.arange(n, device=total.device) * 2 for n in gradient.shape[2:])
    channel = torch.arange(n_channels, device=total.device).view(-1, 1, 1)
    per_pair = weights.tolist()
    for image, (first, last) in enumerate(spans.tolist()):
        for pair in range(first, last):
            if not per_pair[pair]:
                continue
            place, live = taken[pair].long(), taken[pair] != _DEAD
            row = rows.view(1, -1, 1) + place // size - padding
            column = columns.view(1, 1, -1) + place % size - padding
            flat = ((channel * height + row) * width + column)[live]
            slope = torch.zeros(total[0].numel(), dtype=total.dtype, device=total.device)
            slope.index_add_(0, flat, gradient[pair][live].to(total.dtype))
            total[image].add_(slope.view(n_channels, height, width), alpha=per_pair[pair])


# -- the kernels -------------------------------------------------------------------------------


@jit
def _place(flat, n_channels, height, width, LAST: tl.constexpr):
    """(channel, row, column) of a value of an image laid out channels last or first."""
    if LAST:
        return flat % n_channels, flat // n_channels // width, flat // n_channels % width
    return flat // width // height, flat // width % height, flat % width


@jit
def _flat(channel, row, column, n_channels, height, width, LAST: tl.constexpr):
    if LAST:
        return (row * width + column) * n_channels + channel
    return (channel * height + row) * width + column


@jit
def _pooled_kernel(
    points, taken, start, end, spans, positions,
    n_channels, height, width, n_rows, n_columns,
    WIDE: tl.constexpr, SIZE: tl.constexpr, PADDING: tl.constexpr, LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    n_values, n_inputs = n_channels * n_rows * n_columns, n_channels * height * width
    image, offsets = piece(n_values, BLOCK)
    live = offsets < n_values
    channel, row, column = _place(offsets, n_channels, n_rows, n_columns, LAST)
    first, last = tl.load(spans + 2 * image), tl.load(spans + 2 * image + 1)
    # A window's values at both ends stay in registers for all steps.
    bs, xs = (), ()
    for k in tl.static_range(SIZE * SIZE):
        y, x = 2 * row - PADDING + k // SIZE, 2 * column - PADDING + k % SIZE
        inside = live & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        there = image * n_inputs + _flat(channel, y, x, n_channels, height, width, LAST)
        bs = bs + (tl.load(start + there, mask=inside, other=0).to(WIDE),)  # type: ignore[assignment]
        xs = xs + (tl.load(end + there, mask=inside, other=0).to(WIDE),)  # type: ignore[assignment]
    for pair in range(first, last):
        alpha = tl.load(positions + pair).to(WIDE)
        best = tl.zeros((BLOCK,), WIDE)  # ReLU
        place = tl.full((BLOCK,), 255, tl.int32)
        for k in tl.static_range(SIZE * SIZE):
            value = between(bs[k], xs[k], alpha)
            better = (value > best) | (value != value)
            best, place = tl.where(better, value, best), tl.where(better, k, place)
        here = pair * n_values + offsets
        tl.store(points + here, best.to(points.dtype.element_ty), mask=live)
        tl.store(taken + here, place.to(tl.uint8), mask=live)


@jit
def _accumulate_pooled_kernel(
    total, gradient, taken, spans, weights,
    n_channels, height, width, n_rows, n_columns, cell_rows, cell_columns,
    WIDE: tl.constexpr, SIZE: tl.constexpr, PADDING: tl.constexpr, LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # A cell is the 2 × 2 inputs that share the windows which begin at it or one before.
    n_values, n_inputs = n_channels * n_rows * n_columns, n_channels * height * width
    n_cells = n_channels * cell_rows * cell_columns
    image, offsets = piece(n_cells, BLOCK)
    live = offsets < n_cells
    channel, row, column = _place(offsets, n_channels, cell_rows, cell_columns, LAST)
    first, last = tl.load(spans + 2 * image), tl.load(spans + 2 * image + 1)
    y, x = 2 * row - PADDING, 2 * column - PADDING
    top, bottom = live & (y >= 0) & (y < height), live & (y + 1 < height)
    left, right = (x >= 0) & (x < width), x + 1 < width
    base = total + image * n_inputs
    at_00 = base + _flat(channel, y, x, n_channels, height, width, LAST)
    at_01 = base + _flat(channel, y, x + 1, n_channels, height, width, LAST)
    at_10 = base + _flat(channel, y + 1, x, n_channels, height, width, LAST)
    at_11 = base + _flat(channel, y + 1, x + 1, n_channels, height, width, LAST)
    sum_00 = tl.load(at_00, mask=top & left, other=0).to(WIDE)
    sum_01 = tl.load(at_01, mask=top & right, other=0).to(WIDE)
    sum_10 = tl.load(at_10, mask=bottom & left, other=0).to(WIDE)
    sum_11 = tl.load(at_11, mask=bottom & right, other=0).to(WIDE)
    for pair in range(first, last):
        weight = tl.load(weights + pair).to(WIDE) + tl.zeros((BLOCK,), WIDE)
        slope_00 = tl.zeros((BLOCK,), WIDE)
        slope_01, slope_10, slope_11 = slope_00, slope_00, slope_00
        for q in tl.static_range(4):
            up, across = q // 2, q % 2  # the window begins so many cells before
            if 2 * up < SIZE and 2 * across < SIZE:
                window = live & (row >= up) & (row - up < n_rows)
                window = window & (column >= across) & (column - across < n_columns)
                window = window & (weight != 0)
                there = pair * n_values + _flat(
                    channel, row - up, column - across, n_channels, n_rows, n_columns, LAST
                )
                place = tl.load(taken + there, mask=window, other=255).to(tl.int32)
                slope = tl.load(gradient + there, mask=window, other=0).to(WIDE)
                at = 2 * up * SIZE + 2 * across  # of the cell's first input in the window
                slope_00 += tl.where(place == at, slope, 0.0)
                if 2 * across + 1 < SIZE:
                    slope_01 += tl.where(place == at + 1, slope, 0.0)
                if 2 * up + 1 < SIZE:
                    slope_10 += tl.where(place == at + SIZE, slope, 0.0)
                    if 2 * across + 1 < SIZE:
                        slope_11 += tl.where(place == at + SIZE + 1, slope, 0.0)
        sum_00 = tl.fma(slope_00, weight, sum_00)
        sum_01 = tl.fma(slope_01, weight, sum_01)
        sum_10 = tl.fma(slope_10, weight, sum_10)
        sum_11 = tl.fma(slope_11, weight, sum_11)
    dtype = total.dtype.element_ty
    tl.store(at_00, sum_00.to(dtype), mask=top & left)
    tl.store(at_01, sum_01.to(dtype), mask=top & right)
    tl.store(at_10, sum_10.to(dtype), mask=bottom & left)
    tl.store(at_11, sum_11.to(dtype), mask=bottom & right)
