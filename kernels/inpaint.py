"""Images + mask → what masked pixels become if each is the mean of its neighbours: ROAD's fill.

Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods", as its
code has it: every masked pixel v solves Σ_n w_n (v_n − v) = 0 over its neighbours n in the image,
with weights 1/6 beside and 1/12 diagonally; kept pixels are what they are. One sparse symmetric
system an image, the same for its channels. Solved by conjugate gradients, for a batch at once,
preconditioned by a cycle of multigrid, so that large holes take hardly more of them than small.

Values are held in a frame of zeros, as rows of pixels one after the other, (N, C, n): a neighbour
is a shift of the whole, and what rounds is not a row but an image.
"""

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from igmask.plain import Array

_OFFSETS = tuple(product((-1, 0, 1), repeat=2))  # of a point and its neighbours
_TOLERANCE = 1e-3  # of the error, relative to the first guess's, in the norm of the system
_MOST = 60  # iterations
_ROUNDS = 5  # of conjugate gradients, each on what is left: more than one where little is kept
_CHUNK_BYTES = 48 * 2**20  # of the working memory
_COARSEST = 16  # points a side, that are solved for directly
_SMOOTHING = 1.0  # of Jacobi's method: waves of two to four pixels become a third


def inpainted(images: Tensor, kept: Tensor) -> Tensor:
    """Return the images with every pixel that is not kept replaced by its neighbours' mean.

    An image's result depends on no other's.

    images:  (N, C, H, W) floating point
    kept:    (N, H, W) bool; of an image of which nothing is kept every pixel is its mean colour
    returns  (N, C, H, W) of the images' dtype, computed in float32, or float64 if they are
    """
    dtype = torch.promote_types(images.dtype, torch.float32)
    n_channels, height, width = images.shape[1:]
    values_a_pixel = 30 + 15 * n_channels  # measured
    at_once = max(1, _CHUNK_BYTES // (values_a_pixel * height * width * dtype.itemsize))
    found = torch.empty_like(images)
    parts = (one.split(at_once) for one in (found, images, kept))
    for result, some, mask in zip(*parts, strict=True):
        result.copy_(_solved(some.to(dtype), mask))
    return found


def inpainted_arrays(images: Array, kept: Tensor | Array) -> Array:
    """Return `inpainted` of arrays (N, H, W, C), computed where the mask (N, H, W) is."""
    mask = torch.as_tensor(kept)
    first = torch.from_numpy(images).movedim(3, 1).to(mask.device)
    return inpainted(first, mask).movedim(1, 3).numpy(force=True)


def _solved(images: Tensor, kept: Tensor) -> Tensor:
    (n_channels, height, width), known = images.shape[1:], kept.unsqueeze(1)
    is_solvable = known.flatten(1).any(dim=1).view(-1, 1, 1, 1)
    counted = (known | ~is_solvable).to(images)
    mean = (images * counted).sum(dim=(2, 3), keepdim=True) / counted.sum(dim=(2, 3), keepdim=True)
    longest = max(height, width) - 1
    n_levels = max(1, (-(-longest // (_COARSEST - 1)) - 1).bit_length())
    rows, columns = (-(-(n - 1) // 2**n_levels) * 2**n_levels + 1 for n in (height, width))
    frame = (1, columns - width + 1, 1, rows - height + 1)
    unknown, of_image, first = (
        functional.pad(one, frame).flatten(2)
        for one in (
            (~known & is_solvable).to(images),
            torch.ones_like(images[:1, :1]),
            torch.where(known, images, mean),
        )
    )
    pixels = _Pixels(unknown, of_image, _Size(rows, columns), n_channels, n_levels)
    found = _framed(_solution(pixels, first), pixels.size)[:, :, 1 : height + 1, 1 : width + 1]
    return torch.where(known, images, found.to(images.dtype))


class _Size(NamedTuple):
    """Rows and columns of the points in a frame."""

    rows: int
    columns: int

    @property
    def coarser(self) -> "_Size":
        """Of every other point."""
        return _Size((self.rows + 1) // 2, (self.columns + 1) // 2)


def _framed(values: Tensor, size: _Size) -> Tensor:
    """View (…, n) as rows and columns, the frame among them."""
    return values.unflatten(-1, (size.rows + 2, size.columns + 2))


def _inner(values: Tensor, size: _Size) -> Tensor:
    """View (…, n) from the first point in the frame to the last."""
    first = size.columns + 3
    return values[..., first : values.shape[-1] - first]


def _neighbours(values: Tensor, size: _Size) -> Tensor:
    """View (N, C, n) as what is around `_inner` points, by _OFFSETS: (N, C, 3, 3, m)."""
    width = size.columns + 2
    n_inner = values.shape[2] - 2 * (width + 1)
    shape, strides = (*values.shape[:2], 3, 3, n_inner), (*values.stride()[:2], width, 1, 1)
    return values.as_strided(shape, strides)


def _around(values: Tensor, size: _Size) -> Tensor:
    """Σ (1 2 1)ᵀ (1 2 1) v around each point, itself included; of `_inner` ones."""
    width = size.columns + 2
    rows = values[..., : -2 * width] + values[..., 2 * width :]
    rows.add_(values[..., width:-width], alpha=2)
    found = rows[..., :-2] + rows[..., 2:]
    return found.add_(rows[..., 1:-1], alpha=2)


class _Pixels:
    """The equations of the unknown pixels, in twelfths: d v − Σ w v of unknown neighbours.

    unknown:  (N, 1, n), 1 where a pixel is to be found
    of_image: (1, 1, n), 1 where there is one
    """

    def __init__(
        self, unknown: Tensor, of_image: Tensor, size: _Size, n_channels: int, n_levels: int
    ) -> None:
        self.size = size
        total = torch.zeros_like(of_image)  # of a pixel's weights, its own, 4, included
        _inner(total, size).add_(_around(of_image, size))
        stencil = unknown.new_zeros(len(unknown), 3, 3, unknown.shape[2])
        weights = unknown.new_tensor([1, 2, 1])
        both = _neighbours(unknown, size)[:, 0] * -torch.outer(weights, weights).unsqueeze(2)
        torch.mul(both, _inner(unknown, size).unsqueeze(2), out=_inner(stencil, size))
        stencil[:, 1, 1:2] += unknown * total
        self.coarser = _coarse(stencil, size, n_levels)
        self.total, shape = total, (-1, n_channels, -1)
        self.unknown = unknown.expand(shape).contiguous()
        self.diagonal = self.unknown * total
        own = self.diagonal - 4 * self.unknown
        self.inverse = torch.where(own > 0, _SMOOTHING / own, 0)

    def times(self, values: Tensor) -> Tensor:
        return self._less(self.diagonal * values, values, -1)

    def left(self, right: Tensor, values: Tensor) -> Tensor:
        """What the equations still lack."""
        return self._less(torch.addcmul(right, self.diagonal, values, value=-1), values, 1)

    def _less(self, found: Tensor, values: Tensor, sign: int) -> Tensor:
        unknown, around = _inner(self.unknown, self.size), _around(values, self.size)
        _inner(found, self.size).addcmul_(unknown, around, value=sign)
        return found

    def lacking(self, values: Tensor) -> Tensor:
        """The same of whole images, (N, C, n), whose known pixels give the right-hand side."""
        found = self.total.to(values) * values
        _inner(found, self.size).sub_(_around(values, self.size))
        return found.mul_(self.unknown).neg_()

    def cycle(self, right: Tensor) -> Tensor:
        return _cycle(self, right)


class _Points:
    """Equations of bilinear functions, a point each, coupled with its eight neighbours.

    stencil: (N, 3, 3, n), the coefficients by _OFFSETS, zero of what is not there
    """

    def __init__(self, stencil: Tensor, size: _Size, n_levels: int) -> None:
        self.size, self.stencil = size, stencil
        diagonal = stencil[:, 1, 1:2]
        self.unknown = (diagonal > 0).to(stencil)
        self.inverse = torch.where(diagonal > 0, _SMOOTHING / diagonal, 0)
        self.coarser = _coarse(stencil, size, n_levels)

    def left(self, right: Tensor, values: Tensor) -> Tensor:
        coefficients = _inner(self.stencil, self.size).unsqueeze(1)
        found = right.clone()
        products = coefficients * _neighbours(values, self.size)
        _inner(found, self.size).sub_(products.sum(dim=(2, 3)))
        return found

    def cycle(self, right: Tensor) -> Tensor:
        return _cycle(self, right)


def _cycle(system: _Pixels | _Points, right: Tensor) -> Tensor:
    """Return about the solution: a linear and symmetric map, the same each time."""
    found = system.inverse * right
    correction = system.coarser.cycle(_coarser(system.left(right, found), system.size))
    found.addcmul_(system.unknown, _finer(correction, system.size))
    return found.addcmul_(system.inverse, system.left(right, found))


class _Solved:
    """The coarsest equations, as a matrix, solved directly."""

    def __init__(self, stencil: Tensor, size: _Size) -> None:
        n, (height, width) = len(stencil), size
        matrix = stencil.new_zeros(n, height + 2, width + 2, height + 2, width + 2)
        y, x = torch.meshgrid(
            *(torch.arange(1, 1 + k, device=stencil.device) for k in size), indexing="ij"
        )
        coefficients = _framed(stencil, size)[..., 1:-1, 1:-1]
        for dy, dx in _OFFSETS:
            matrix[:, y, x, y + dy, x + dx] = coefficients[:, 1 + dy, 1 + dx]
        inside = matrix[:, 1:-1, 1:-1, 1:-1, 1:-1]
        inside = inside.reshape(n, height * width, height * width)
        diagonal = inside.diagonal(dim1=1, dim2=2)
        # Functions that hardly reach an unknown pixel are nearly dependent in float32.
        shift = (diagonal <= 0).to(stencil) + 1e-6 * diagonal.amax(dim=1, keepdim=True)
        self.size, self.factor = size, torch.linalg.cholesky(inside + torch.diag_embed(shift))

    def cycle(self, right: Tensor) -> Tensor:
        inside = _framed(right, self.size)[:, :, 1:-1, 1:-1]
        flat = inside.flatten(2).transpose(1, 2)
        found = torch.cholesky_solve(flat, self.factor).transpose(1, 2).reshape(inside.shape)
        return functional.pad(found, (1, 1, 1, 1)).flatten(2)


def _coarse(stencil: Tensor, size: _Size, n_levels: int) -> "_Points | _Solved":
    """The equations of every other point: Pᵀ A P of bilinear functions (Galerkin).

    P is a product of one along rows and one along columns, so one is taken after the other.
    """
    both = _coarse_rows(_coarse_rows(_framed(stencil, size)).mT.transpose(1, 2)).mT.transpose(1, 2)
    coarse = both.flatten(3)
    if n_levels > 1:
        return _Points(coarse, size.coarser, n_levels - 1)
    return _Solved(coarse, size.coarser)


def _coarse_rows(stencil: Tensor) -> Tensor:
    """The stencil (N, 3, 3, h + 2, …) of every other row.

    Its coefficient to the row d is the sum over the rows o around, and over their neighbours
    o + e, of P_o A_{o, o+e} P_{o+e−2d}.
    """
    hat, n_rows = {-1: 0.5, 0: 1.0, 1: 0.5}, stencil.shape[3] - 2
    coarse = stencil.new_zeros(*stencil.shape[:3], (n_rows + 1) // 2 + 2, stencil.shape[4])
    for d, o, e in product((-1, 0, 1), repeat=3):
        if weight := hat[o] * hat.get(o + e - 2 * d, 0.0):
            rows = stencil[:, e + 1, :, 1 + o : n_rows + 1 + o : 2]
            coarse[:, d + 1, :, 1:-1].add_(rows, alpha=weight)
    return coarse


def _solution(pixels: _Pixels, guess: Tensor) -> Tensor:
    """Return whole images (N, C, n), float64, by rounds of conjugate gradients.

    What a round lacks is computed in float64: where little is kept, float32 cannot tell.
    Each image and channel is solved by itself: those that are done stay as they are.
    """
    found, left = guess.double(), pixels.lacking(guess)
    towards = pixels.cycle(left)
    power = _dot(left, towards)
    enough = _TOLERANCE**2 * power
    for _ in range(_ROUNDS):
        active = power > enough
        if not bool(active.any()):
            break
        found.add_(_conjugate_gradients(pixels, left, towards, power, enough))
        left = pixels.lacking(found).to(left)
        towards = pixels.cycle(left)
        power = _dot(left, towards)
        found.addcmul_((active & (power <= enough)).to(found), towards)
    return found


def _conjugate_gradients(
    system: _Pixels, left: Tensor, towards: Tensor, power: Tensor, enough: Tensor
) -> Tensor:
    """Return what to add, until a step adds less, in the norm of the system, than is `enough`."""
    found, direction, active = torch.zeros_like(left), towards, power > enough
    for _ in range(_MOST):
        along = system.times(direction)
        step = torch.where(active, power / _dot(direction, along), 0)
        found.addcmul_(step, direction)
        active = active & (step * power > enough)
        if not bool(active.any()):
            break
        left = torch.addcmul(left, step, along, value=-1)
        towards = system.cycle(left)
        before, power = power, _dot(left, towards)
        direction = torch.addcmul(towards, torch.where(active, power / before, 0), direction)
    return found


def _finer(values: Tensor, size: _Size) -> Tensor:
    """Bilinear interpolation to the points of that size; in the frame is what there may be."""
    coarse = _framed(values, size.coarser)
    rows = coarse.new_empty(*coarse.shape[:2], size.rows + 2, coarse.shape[3])
    rows[:, :, 1::2] = coarse[:, :, 1:-1]
    rows[:, :, ::2] = (coarse[:, :, :-1] + coarse[:, :, 1:]).mul_(0.5)
    found = rows.new_empty(*rows.shape[:3], size.columns + 2)
    found[..., 1::2] = rows[..., 1:-1]
    found[..., ::2] = (rows[..., :-1] + rows[..., 1:]).mul_(0.5)
    return found.flatten(2)


def _coarser(values: Tensor, size: _Size) -> Tensor:
    """The transpose of `_finer`."""
    fine = _framed(values, size)
    rows = (fine[:, :, :-2:2] + fine[:, :, 2::2]).mul_(0.5).add_(fine[:, :, 1:-1:2])
    found = (rows[..., :-2:2] + rows[..., 2::2]).mul_(0.5).add_(rows[..., 1:-1:2])
    return functional.pad(found, (1, 1, 1, 1)).flatten(2)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum(dim=2, keepdim=True)
