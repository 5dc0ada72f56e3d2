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
OFFSETS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))  # of a pixel and its neighbours

_TOLERANCE = 1e-5  # of the error, relative to the first guess's, in the norm of the system
_MOST = 60  # iterations
_CHUNK_BYTES = 2**25  # of the working memory
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
    bytes_an_image = (40 + 12 * n_channels) * height * width * dtype.itemsize
    at_once = max(1, _CHUNK_BYTES // bytes_an_image)
    pairs = zip(images.split(at_once), kept.split(at_once), strict=True)
    found = [_solved(some.to(dtype), mask).to(images.dtype) for some, mask in pairs]
    return torch.cat(found) if found else images.clone()


def inpainted_arrays(images: Array, kept: Tensor | Array) -> Array:
    """Return `inpainted` of arrays (N, H, W, C), computed where the mask (N, H, W) is."""
    mask = torch.as_tensor(kept)
    first = torch.from_numpy(images).movedim(3, 1).to(mask.device)
    return inpainted(first, mask).movedim(1, 3).numpy(force=True)


def _solved(images: Tensor, kept: Tensor) -> Tensor:
    mean = images.mean(dim=(2, 3), keepdim=True)
    known = kept.unsqueeze(1)
    # Of what is left to find beyond the mean colour: known pixels give the right-hand side.
    given = torch.where(known, images - mean, 0)
    finest = _System.of_pixels((~known).to(images))
    right = torch.where(known, 0, -_times(_weights(images), given))
    right = torch.where(known.flatten(1).any(dim=1).view(-1, 1, 1, 1), right, 0)
    found = _conjugate_gradients(finest, right)
    return torch.where(known, images, mean + found)


class _System:
    """Linear equations of unknowns on a grid, each coupled with its eight neighbours.

    stencil: (N, 9, h, w), the coefficients by OFFSETS; 1 of itself and 0 of others where nothing is
             unknown
    unknown: (N, 1, h, w), 1 or 0
    coarser: the same of every other unknown, if there are more than a few
    """

    def __init__(self, stencil: Tensor, unknown: Tensor) -> None:
        self.stencil, self.unknown = stencil, unknown
        self.inverse = unknown * _SMOOTHING / stencil[:, 4:5]
        self.coarser: _System | None = None
        if max(stencil.shape[2:]) > 1:
            self.coarser = self._coarse()

    @classmethod
    def of_pixels(cls, unknown: Tensor) -> "_System":
        """Return the system of the unknown ones (N, 1, H, W) among the pixels."""
        neighbours = functional.pad(unknown, (1, 1, 1, 1))
        parts = [_shifted(neighbours, *by) for by in OFFSETS]
        stencil = _weights(unknown) * unknown * torch.cat(parts, dim=1)
        stencil[:, 4:5] += 1 - unknown
        return cls(stencil, unknown)

    def times(self, values: Tensor) -> Tensor:
        return _times(self.stencil, values)

    def cycle(self, right: Tensor) -> Tensor:
        """Return about the solution: a linear and symmetric map, the same each time."""
        found = self.inverse * right
        if self.coarser is None:
            return found / _SMOOTHING
        found += self.inverse * (right - self.times(found))
        left = self.unknown * (right - self.times(found))
        found += self.unknown * _finer(self.coarser.cycle(_coarser(left)), right.shape[2:])
        for _ in range(2):
            found += self.inverse * (right - self.times(found))
        return found

    def _coarse(self) -> "_System":
        """The same equations for the coefficients of bilinear functions (Galerkin)."""
        size = self.unknown.shape[2:]
        rows, columns = (torch.arange(-(-n // 2), device=self.unknown.device) for n in size)
        # Nine sets of points of which no two are neighbours: what the system makes of each set's
        # functions tells the coefficients of all.
        kinds = torch.arange(9, device=rows.device).view(9, 1, 1)
        of_point = 3 * (rows % 3).view(-1, 1) + columns % 3
        sets = (of_point == kinds).to(self.stencil).expand(len(self.unknown), -1, -1, -1)
        made = self.unknown * _finer(sets, size)
        made = _coarser(self.unknown * self.times(made))
        wanted = [3 * ((rows + dy) % 3).view(-1, 1) + (columns + dx) % 3 for dy, dx in OFFSETS]
        stencil = made.gather(1, torch.stack(wanted).expand(len(made), -1, -1, -1))
        inside = functional.pad(torch.ones_like(self.unknown[:1, :, ::2, ::2]), (1, 1, 1, 1))
        stencil = stencil * torch.cat([_shifted(inside, *by) for by in OFFSETS], dim=1)
        unknown = (stencil[:, 4:5] > 0).to(stencil)
        stencil[:, 4:5] += 1 - unknown
        return _System(stencil, unknown)


def _conjugate_gradients(system: _System, right: Tensor) -> Tensor:
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
        found = found + step * direction
        left = left - step * along
        towards = system.cycle(left)
        before, power = power, _dot(left, towards)
        direction = towards + torch.where(active, power / before, 0) * direction
    return found


def _weights(like: Tensor) -> Tensor:
    """The equations of all pixels, (1, 9, H, W): −w of neighbours in the image, Σ w of itself."""
    ones = functional.pad(torch.ones_like(like[:1, :1]), (1, 1, 1, 1))
    weight = {0: 0.0, 1: BESIDE, 2: DIAGONAL}
    parts = [-weight[abs(dy) + abs(dx)] * _shifted(ones, dy, dx) for dy, dx in OFFSETS]
    parts[4] = -torch.stack(parts).sum(dim=0)
    return torch.cat(parts, dim=1)


def _times(stencil: Tensor, values: Tensor) -> Tensor:
    """A system's left side: (N, 9, h, w) coefficients, (N, C, h, w) values."""
    around = functional.pad(values, (1, 1, 1, 1))
    found = stencil[:, 4:5] * values
    for k, (dy, dx) in enumerate(OFFSETS):
        if k != 4:
            found.addcmul_(stencil[:, k : k + 1], _shifted(around, dy, dx))
    return found


def _shifted(padded: Tensor, dy: int, dx: int) -> Tensor:
    height, width = padded.shape[2] - 2, padded.shape[3] - 2
    return padded[:, :, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]


def _finer(values: Tensor, size: tuple[int, ...]) -> Tensor:
    """Bilinear interpolation from every other point to all; beyond the last it is constant."""
    for axis, length in ((2, size[0]), (3, size[1])):
        following = torch.cat(
            [
                values.narrow(axis, 1, values.shape[axis] - 1),
                values.narrow(axis, values.shape[axis] - 1, 1),
            ],
            dim=axis,
        )
        both = torch.stack([values, (values + following) / 2], dim=axis + 1)
        values = both.flatten(axis, axis + 1).narrow(axis, 0, length)
    return values


def _coarser(values: Tensor) -> Tensor:
    """The transpose of `_finer`."""
    for axis in (3, 2):
        length = values.shape[axis]
        n_coarse = -(-length // 2)
        pad = [0, 0, 0, 0]
        pad[2 * (3 - axis) + 1] = 2 * n_coarse - length
        whole = functional.pad(values, pad) if any(pad) else values
        even, odd = whole.unflatten(axis, (n_coarse, 2)).unbind(axis + 1)
        half = odd / 2
        found = even + half
        found.narrow(axis, 1, n_coarse - 1).add_(half.narrow(axis, 0, n_coarse - 1))
        found.narrow(axis, n_coarse - 1, 1).add_(half.narrow(axis, n_coarse - 1, 1))
        values = found
    return values


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum(dim=(2, 3), keepdim=True)
