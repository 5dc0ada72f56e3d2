"""Images + mask → what masked pixels become if each is the mean of its neighbours: ROAD's fill.

Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods", as its
code has it: every masked pixel v solves Σ_n w_n (v_n − v) = 0 over its neighbours n in the image,
with weights 1/6 beside and 1/12 diagonally; kept pixels are what they are. One sparse symmetric
system an image, the same for its channels. Solved by conjugate gradients, for a batch at once,
preconditioned by a cycle of multigrid, so that large holes take hardly more of them than small.
"""

import torch
from torch import Tensor
from torch.nn import functional

from igmask.plain import Array

BESIDE, DIAGONAL = 1 / 6, 1 / 12

_OFFSETS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))  # of a pixel's neighbours
_TOLERANCE = 2e-5  # of the error, relative to the first guess's, in the norm of the system
_MOST = 60  # iterations
_CHUNK_BYTES = 48 * 2**20  # of the working memory
_COARSEST = 16  # points a side, that are solved for directly
_SMOOTHING = 0.8  # of Jacobi's method


def inpainted(images: Tensor, kept: Tensor) -> Tensor:
    """Return the images with every pixel that is not kept replaced by its neighbours' mean.

    An image's result depends on no other's.

    images:  (N, C, H, W) floating point
    kept:    (N, H, W) bool; of an image of which nothing is kept every pixel is its mean colour
    returns  (N, C, H, W) of the images' dtype, computed in float32, or float64 if they are
    """
    dtype = torch.promote_types(images.dtype, torch.float32)
    n_channels, height, width = images.shape[1:]
    values_a_pixel = 30 + 10 * n_channels  # measured
    at_once = max(1, _CHUNK_BYTES // (values_a_pixel * height * width * dtype.itemsize))
    pairs = zip(images.split(at_once), kept.split(at_once), strict=True)
    found = [_solved(some.to(dtype), mask).to(images.dtype) for some, mask in pairs]
    return torch.cat(found) if found else images.clone()


def inpainted_arrays(images: Array, kept: Tensor | Array) -> Array:
    """Return `inpainted` of arrays (N, H, W, C), computed where the mask (N, H, W) is."""
    mask = torch.as_tensor(kept)
    first = torch.from_numpy(images).movedim(3, 1).to(mask.device)
    return inpainted(first, mask).movedim(1, 3).numpy(force=True)


def _solved(images: Tensor, kept: Tensor) -> Tensor:
    size = images.shape[2:]
    known, mean = kept.unsqueeze(1), images.mean(dim=(2, 3), keepdim=True)
    is_solvable = known.flatten(1).any(dim=1).view(-1, 1, 1, 1)
    unknown = (~known & is_solvable).to(images)
    # Of what is left to find beyond the mean colour, kept pixels give the right-hand side.
    right = unknown * _of_neighbours(torch.where(known, images - mean, 0))
    n_levels = max(1, *((-(-(n - 1) // (_COARSEST - 1)) - 1).bit_length() for n in size))
    points = [-(-(n - 1) // 2**n_levels) * 2**n_levels + 1 for n in size]
    padding = (0, points[1] - size[1], 0, points[0] - size[0])
    total = _of_neighbours(torch.ones_like(images[:1, :1]))
    diagonal, unknown, right = (
        functional.pad(one, padding) for one in (unknown * total, unknown, right)
    )
    found = _conjugate_gradients(_Pixels(diagonal, unknown, images.shape[1], n_levels), right)
    return torch.where(known, images, mean + found[:, :, : size[0], : size[1]])


def _of_neighbours(values: Tensor) -> Tensor:
    """Σ w v over the neighbours of each pixel of (N, C, H, W): 1/12 (1 2 1)ᵀ (1 2 1) but itself."""
    padded = functional.pad(values, (1, 1, 1, 1))
    rows = padded[:, :, :-2] + padded[:, :, 2:]
    rows.add_(padded[:, :, 1:-1], alpha=2)
    found = rows[..., :-2] + rows[..., 2:]
    found.add_(rows[..., 1:-1], alpha=2)
    return found.sub_(values, alpha=4).mul_(DIAGONAL)


class _Pixels:
    """The equations of the unknown pixels: d v − Σ w v of the unknown neighbours."""

    def __init__(self, diagonal: Tensor, unknown: Tensor, n_channels: int, n_levels: int) -> None:
        around = functional.pad(unknown, (1, 1, 1, 1))
        weights = {0: 0.0, 1: -BESIDE, 2: -DIAGONAL}
        stencil = torch.cat(
            [weights[abs(dy) + abs(dx)] * _shifted(around, dy, dx) for dy, dx in _OFFSETS], dim=1
        )
        stencil.mul_(unknown)
        stencil[:, 4:5] = diagonal
        self.coarser = _coarse(stencil, n_levels)
        shape = (-1, n_channels, -1, -1)
        self.unknown = unknown.expand(shape).contiguous()
        self.diagonal = diagonal.expand(shape).contiguous()
        self.inverse = torch.where(self.diagonal > 0, _SMOOTHING / self.diagonal, 0)

    def times(self, values: Tensor) -> Tensor:
        found = self.diagonal * values
        return found.addcmul_(self.unknown, _of_neighbours(values), value=-1)

    def cycle(self, right: Tensor) -> Tensor:
        return _cycle(self, right)


class _Points:
    """Equations of bilinear functions, a point each, coupled with its eight neighbours.

    stencil: (N, 9, h, w), the coefficients by _OFFSETS, zero of what is not there
    """

    def __init__(self, stencil: Tensor, n_levels: int) -> None:
        self.stencil = stencil
        diagonal = stencil[:, 4:5]
        self.unknown = (diagonal > 0).to(stencil)
        self.inverse = torch.where(diagonal > 0, _SMOOTHING / diagonal, 0)
        self.coarser = _coarse(stencil, n_levels)

    def times(self, values: Tensor) -> Tensor:
        around = functional.pad(values, (1, 1, 1, 1))
        found = self.stencil[:, 4:5] * values
        for k, (dy, dx) in enumerate(_OFFSETS):
            if k != 4:
                found.addcmul_(self.stencil[:, k : k + 1], _shifted(around, dy, dx))
        return found

    def cycle(self, right: Tensor) -> Tensor:
        return _cycle(self, right)


def _cycle(system: _Pixels | _Points, right: Tensor) -> Tensor:
    """Return about the solution: a linear and symmetric map, the same each time."""
    found = system.inverse * right
    correction = system.coarser.cycle(_coarser(right - system.times(found)))
    found.addcmul_(system.unknown, _finer(correction))
    return found.addcmul_(system.inverse, right - system.times(found))


class _Solved:
    """The coarsest equations, as a matrix, solved directly."""

    def __init__(self, stencil: Tensor) -> None:
        n, _, height, width = stencil.shape
        matrix = stencil.new_zeros(n, height + 2, width + 2, height + 2, width + 2)
        y, x = torch.meshgrid(
            *(torch.arange(1, 1 + k, device=stencil.device) for k in (height, width)), indexing="ij"
        )
        for k, (dy, dx) in enumerate(_OFFSETS):
            matrix[:, y, x, y + dy, x + dx] = stencil[:, k]
        inside = matrix[:, 1:-1, 1:-1, 1:-1, 1:-1]
        inside = inside.reshape(n, height * width, height * width)
        diagonal = inside.diagonal(dim1=1, dim2=2)
        # Functions that hardly reach an unknown pixel are nearly dependent in float32.
        shift = (diagonal <= 0).to(stencil) + 1e-6 * diagonal.amax(dim=1, keepdim=True)
        self.factor = torch.linalg.cholesky(inside + torch.diag_embed(shift))

    def cycle(self, right: Tensor) -> Tensor:
        flat = right.flatten(2).transpose(1, 2)
        return torch.cholesky_solve(flat, self.factor).transpose(1, 2).view_as(right)


def _coarse(stencil: Tensor, n_levels: int) -> "_Points | _Solved":
    """The equations of every other point: Pᵀ A P of bilinear functions (Galerkin).

    A coefficient is a sum over the points o around one of the coarse, and over their neighbours
    o + e, of P_o A_{o, o+e} P_{o+e−2d}: a convolution of the stencil with constant weights.
    """
    hat = {-1: 0.5, 0: 1.0, 1: 0.5}

    def value(y: int, x: int) -> float:
        return hat.get(y, 0.0) * hat.get(x, 0.0)

    weights = [
        [
            [
                [value(y, x) * value(y + ey - 2 * dy, x + ex - 2 * dx) for x in (-1, 0, 1)]
                for y in (-1, 0, 1)
            ]
            for ey, ex in _OFFSETS
        ]
        for dy, dx in _OFFSETS
    ]
    coarse = functional.conv2d(stencil, stencil.new_tensor(weights), stride=2, padding=1)
    return _Points(coarse, n_levels - 1) if n_levels > 1 else _Solved(coarse)


def _conjugate_gradients(system: _Pixels, right: Tensor) -> Tensor:
    """Solve for each image and channel by itself: those that are done stay as they are."""
    found, left = torch.zeros_like(right), right.clone()
    towards = system.cycle(left)
    direction, power = towards, _dot(left, towards)
    enough = _TOLERANCE**2 * power
    for _ in range(_MOST):
        active = power > enough
        if not bool(active.any()):
            break
        along = system.times(direction)
        step = torch.where(active, power / _dot(direction, along), 0)
        found.addcmul_(step, direction)
        left.addcmul_(step, along, value=-1)
        towards = system.cycle(left)
        before, power = power, _dot(left, towards)
        direction = torch.addcmul(towards, torch.where(active, power / before, 0), direction)
    return found


def _shifted(padded: Tensor, dy: int, dx: int) -> Tensor:
    height, width = padded.shape[2] - 2, padded.shape[3] - 2
    return padded[:, :, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]


def _finer(values: Tensor) -> Tensor:
    """Bilinear interpolation: (N, C, h, w) → (N, C, 2h − 1, 2w − 1)."""
    n, n_channels, height, width = values.shape
    rows = values.new_empty(n, n_channels, height, 2 * width - 1)
    rows[..., ::2] = values
    rows[..., 1::2] = (values[..., :-1] + values[..., 1:]).mul_(0.5)
    found = values.new_empty(n, n_channels, 2 * height - 1, 2 * width - 1)
    found[:, :, ::2] = rows
    found[:, :, 1::2] = (rows[:, :, :-1] + rows[:, :, 1:]).mul_(0.5)
    return found


def _coarser(values: Tensor) -> Tensor:
    """The transpose of `_finer`."""
    rows, between = values[:, :, ::2].clone(), values[:, :, 1::2]
    rows[:, :, :-1].add_(between, alpha=0.5)
    rows[:, :, 1:].add_(between, alpha=0.5)
    found, between = rows[..., ::2].clone(), rows[..., 1::2]
    found[..., :-1].add_(between, alpha=0.5)
    found[..., 1:].add_(between, alpha=0.5)
    return found


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum(dim=(2, 3), keepdim=True)
