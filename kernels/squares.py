"""Attribution → scores of the squares that tile the image.

Squares of `side` × `side` pixels tile the image from the top left; where the side does not divide
the image, the last row and column of squares are partial, and count as squares of their own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from igmask.kernels.dispatch import check, jit, operation, tl, wide
from igmask.kernels.path import computed_in
from igmask.plain import grid, score_parts

_BLOCK = 128  # squares of a program


def square_parts(attribution: Tensor, *, side: int = 3) -> Tensor:
    """Return the positive and the negative part of the attribution of every square.

    Both are sums over a square's pixels and channels: Σ max(φ, 0) and Σ max(−φ, 0). Every score
    follows from the two (`score_parts`).

    attribution: (N, C, H, W)
    returns      (N, 2, P, Q) ≥ 0, float32, or float64 if the attribution is
    raises       ValueError if it is not of this shape, or not floating point
    """
    _check("square_parts", attribution, side)
    return _square_parts(attribution, attribution, attribution, side, False, False)[0]


def attribution_parts(
    images: Tensor, baselines: Tensor, slopes: Tensor, *, side: int = 3
) -> Tensor:
    """Return `square_parts` of φ = (x − b) ⊙ s without writing φ.

    images, baselines, slopes: (N, C, H, W) x, b and s, of one dtype and memory format
    """
    return _parts("attribution_parts", images, baselines, slopes, side, False)[0]


def attribution_and_parts(
    images: Tensor, baselines: Tensor, slopes: Tensor, *, side: int = 3
) -> tuple[Tensor, Tensor]:
    """Return φ = (x − b) ⊙ s, (N, C, H, W), and its `square_parts`, in one pass."""
    parts, attribution = _parts("attribution_and_parts", images, baselines, slopes, side, True)
    return attribution, parts


def _parts(
    who: str, images: Tensor, baselines: Tensor, slopes: Tensor, side: int, keep: bool
) -> tuple[Tensor, Tensor]:
    _check(who, slopes, side)
    alike = images.shape == baselines.shape == slopes.shape
    alike = alike and images.dtype == baselines.dtype == slopes.dtype
    check(who, alike, "images, baselines and slopes alike", images, baselines, slopes)
    return _square_parts(slopes, images, baselines, side, True, keep)


def _check(who: str, x: Tensor, side: int) -> None:
    check(who, x.ndim == 4 and x.is_floating_point(), "a floating-point tensor (N, C, H, W)", x)
    if side < 1:
        raise ValueError(f"{who}: side must be at least 1, got {side}")


def square_scores(attribution: Tensor, *, side: int = 3, score: str = "positive") -> Tensor:
    """Return the score of every square: (N, C, H, W) → (N, P, Q), float32 or float64.

    score: one of `plain.SCORES`, a sum over a square's pixels and channels (see `score_parts`)
    """
    return score_parts(square_parts(attribution, side=side), score)


# -- what it means -----------------------------------------------------------------------------


def _empty_parts(slope, image, baseline, side, multiply, keep):
    shape = (len(slope), 2, *grid(slope.shape[2], slope.shape[3], side))
    parts = slope.new_empty(shape, dtype=wide(slope))
    return parts, torch.empty_like(slope) if keep else slope.new_empty(0)


def _launch_parts(slope, image, baseline, side, multiply, keep):
    parts, attribution = _empty_parts(slope, image, baseline, side, multiply, keep)
    n, n_channels, height, width = slope.shape
    n_rows, n_columns = parts.shape[2:]
    # Tensors of one image, or cut out of others, may have any strides.
    out = attribution if keep else slope
    strides = [s for t in (slope, image, baseline, out) for s in t.stride()]
    _parts_kernel[n * n_rows, -(-n_columns // _BLOCK)](
        parts, attribution, slope, image, baseline, *strides, height, width, n_rows, n_columns,
        computed_in(slope), n_channels, side, multiply, keep, _BLOCK,
    )  # fmt: skip
    return parts, attribution


# In PyTorch, and not in `plain`, since scores can be differentiated.
@operation(launch=_launch_parts, fake=_empty_parts)
def _square_parts(
    slope: Tensor, image: Tensor, baseline: Tensor, side: int, multiply: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    phi = slope.to(wide(slope))
    if multiply:
        phi = (image.to(phi.dtype) - baseline.to(phi.dtype)) * phi
    parts = torch.stack((phi.clamp(min=0).sum(1), (-phi).clamp(min=0).sum(1)), dim=1)
    height, width = phi.shape[-2:]
    n_rows, n_columns = grid(height, width, side)
    bottom, right = n_rows * side - height, n_columns * side - width
    tiles = F.pad(parts, (0, right, 0, bottom)).unflatten(3, (-1, side)).unflatten(2, (-1, side))
    kept = torch.empty_like(slope).copy_(phi) if keep else slope.new_empty(0)
    return tiles.sum(dim=(3, 5)), kept


# -- the kernel: a program goes through a piece of a row of squares ----------------------------


@jit
def _parts_kernel(
    parts, attribution, slope, image, baseline,
    slope_n, slope_c, slope_y, slope_x, image_n, image_c, image_y, image_x,
    baseline_n, baseline_c, baseline_y, baseline_x, out_n, out_c, out_y, out_x,
    height, width, n_rows, n_columns,
    WIDE: tl.constexpr, CHANNELS: tl.constexpr, SIDE: tl.constexpr, MULTIPLY: tl.constexpr,
    KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, n = tl.program_id(0) % n_rows, (tl.program_id(0) // n_rows).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    positive, negative = tl.zeros((BLOCK,), WIDE), tl.zeros((BLOCK,), WIDE)
    for place in range(SIDE * SIDE):
        y, x = row * SIDE + place // SIDE, column * SIDE + place % SIDE
        live = (x < width) & (y < height)
        for c in tl.static_range(CHANNELS):
            here = n * slope_n + c * slope_c + y * slope_y + x * slope_x
            phi = tl.load(slope + here, mask=live, other=0).to(WIDE)
            if MULTIPLY:
                here = n * image_n + c * image_c + y * image_y + x * image_x
                change = tl.load(image + here, mask=live, other=0).to(WIDE)
                here = n * baseline_n + c * baseline_c + y * baseline_y + x * baseline_x
                change -= tl.load(baseline + here, mask=live, other=0).to(WIDE)
                phi = change * phi
            if KEEP:
                here = n * out_n + c * out_c + y * out_y + x * out_x
                tl.store(attribution + here, phi.to(attribution.dtype.element_ty), mask=live)
            positive += tl.where(phi < 0, 0.0, phi)  # NaN stays
            negative += tl.where(phi > 0, 0.0, -phi)
    there = (2 * n * n_rows + row) * n_columns + column
    tl.store(parts + there, positive, mask=column < n_columns)
    tl.store(parts + there + n_rows * n_columns, negative, mask=column < n_columns)
