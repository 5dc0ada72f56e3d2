"""ReLU with what comes right before it in one pass: a channel's scale and shift, a skip connection.

PyTorch goes over the numbers once for the bias of a convolution, once for the sum and once for the
ReLU, which on a GPU together take longer than the convolutions do in half precision.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from igmask.kernels.dispatch import check, has_kernel, jit, memory_format_of, tl, wide
from igmask.kernels.path import computed_in

_BLOCK = 2048  # values of a program: 8 a thread


def shifted_relu(
    x: Tensor, shift: Tensor, *, scale: Tensor | None = None, other: Tensor | None = None
) -> Tensor:
    """Return max(0, scale · x + shift + other), differentiable once by `x` and `other`.

    x:       (N, C, H, W) floating point
    shift:   (C,) of each channel, in float32 at least, and so is what is computed
    scale:   (C,) likewise; None for 1
    other:   shaped as x, or broadcast against it; not together with a scale
    returns  as x, in its dtype and memory format
    raises   ValueError for shapes that do not fit
    """
    fits = x.ndim == 4 and shift.shape == x.shape[1:2] and (scale is None or other is None)
    check("shifted_relu", fits, "a tensor (N, C, H, W) and a shift a channel", x, shift)
    if has_kernel(x.device) and (other is None or other.shape == x.shape):
        return _ShiftedRelu.apply(x, other, shift, scale)
    wider = x.to(wide(x))
    if scale is not None:
        wider = wider * scale.view(-1, 1, 1)
    wider = wider + shift.view(-1, 1, 1)
    return F.relu(wider if other is None else wider + other).to(x.dtype)


class _ShiftedRelu(torch.autograd.Function):
    """The kernels, and what they leave for the way back: the result, whose zeros say all."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, other: Tensor | None, shift: Tensor, scale: Tensor | None
    ) -> Tensor:
        form = memory_format_of(x)
        x = x.contiguous(memory_format=form)
        result = torch.empty_like(x)
        if other is not None:
            other = other.contiguous(memory_format=form)
        _launch_relu(_relu_kernel, result, x, other, shift, scale)
        ctx.save_for_backward(result)
        ctx.scale, ctx.has_other = scale, other is not None
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (result,) = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=memory_format_of(result))
        slope = torch.empty_like(result)
        _launch_relu(_relu_back_kernel, slope, gradient, result, None, ctx.scale)
        return slope, slope if ctx.has_other else None, None, None


def _launch_relu(kernel, out, x, second, shift, scale):
    """Run a kernel on tensors of one format, as matrices whose rows or columns are channels."""
    last, n_channels = memory_format_of(x) == torch.channels_last, x.shape[1]
    n_columns = n_channels if last else x.shape[2:].numel()
    n_rows = x.numel() // n_columns
    columns = n_columns & -n_columns  # the largest power of two that divides them
    if columns < 32:
        columns = 1 << (n_columns - 1).bit_length()
    columns = max(16, min(columns, 256))
    rows = _BLOCK // columns
    with torch.cuda.device_of(x):
        kernel[(-(-n_rows // rows) * -(-n_columns // columns),)](
            out, x, second, shift, scale, n_rows, n_columns, n_channels,
            computed_in(x), last, rows, columns, num_warps=8,
        )  # fmt: skip


# -- the kernels: a program has a tile of rows and columns, of which one is the channels -----------


@jit
def _tile(n_rows, n_columns, n_channels, LAST: tl.constexpr, ROWS: tl.constexpr,
          COLUMNS: tl.constexpr):  # fmt: skip
    """Where a program's values are, which of them exist, and their channels."""
    n_pieces = tl.cdiv(n_columns, COLUMNS)
    row = (tl.program_id(0) // n_pieces * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(0) % n_pieces * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    live = (row < n_rows) & (column < n_columns)
    channel = column if LAST else row % n_channels
    return row.to(tl.int64) * n_columns + column, live, channel


@jit
def _relu_kernel(
    out, x, other, shift, scale, n_rows, n_columns, n_channels,
    WIDE: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    at, live, channel = _tile(n_rows, n_columns, n_channels, LAST, ROWS, COLUMNS)
    known = channel < n_channels
    value = tl.load(x + at, mask=live, other=0).to(WIDE)
    if scale is not None:
        value *= tl.load(scale + channel, mask=known, other=0).to(WIDE)
    value += tl.load(shift + channel, mask=known, other=0).to(WIDE)
    if other is not None:
        value += tl.load(other + at, mask=live, other=0).to(WIDE)
    value = tl.where(value < 0, 0.0, value)  # NaN stays, as in PyTorch
    tl.store(out + at, value.to(out.dtype.element_ty), mask=live)


@jit
def _relu_back_kernel(
    out, gradient, result, shift, scale, n_rows, n_columns, n_channels,
    WIDE: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    at, live, channel = _tile(n_rows, n_columns, n_channels, LAST, ROWS, COLUMNS)
    slope = tl.load(gradient + at, mask=live, other=0).to(WIDE)
    if scale is not None:
        slope *= tl.load(scale + channel, mask=channel < n_channels, other=0).to(WIDE)
    stopped = tl.load(result + at, mask=live, other=0).to(WIDE) <= 0  # NaN is not, as in PyTorch
    slope = tl.where(stopped, 0.0, slope)
    tl.store(out + at, slope.to(out.dtype.element_ty), mask=live)
