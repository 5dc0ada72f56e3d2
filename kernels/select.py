"""Scores, p → the squares that hold the top p %: of the mass, or of their number.

The result is the same on every device, whatever the order of summation: for `mass` a row's scores
become integers (the row's maximum in [2²⁹, 2³⁰), rounded towards zero), and masses are int64 sums;
`count` compares the scores as they are. p is a whole number of basis points, and ties go to the
lower index.

The definition sorts. The kernel does not: it bisects on an integer threshold, and counts the ties.
Its integers are made of float32; float64 scores are sorted on a GPU too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from igmask.kernels.bits import pack, unpack
from igmask.kernels.dispatch import jit, operation, tl

SELECTIONS = ("mass", "count")


def select(scores: Tensor, p: float, *, by: str = "mass") -> Tensor:
    """Return the mask of the squares that hold the top p %.

    mass:  squares in descending score, until their sum reaches p % of the sum of all positive
           scores: the fewest squares that do
    count: the best ⌈p·K/100⌉ of a row's K squares

    A row without a positive score selects nothing.

    scores:  (N, P, Q) or (N, K), floating point
    p:       percent in (0, 100], at most two decimals
    returns  bool, in the shape of `scores`
    raises   ValueError for p out of range or NaN or infinity among the scores, naming the rows
    """
    return unpack(select_bits(scores, (p,), by=by)[0], tuple(scores.shape[1:]))


def select_bits(scores: Tensor, ps: Sequence[float], *, by: str = "mass") -> Tensor:
    """Return `select` for several p at once, a bit a square as `pack` has them.

    scores:  (N, P, Q) or (N, K), floating point
    returns  (len(ps), N, ⌈K/8⌉) uint8
    raises   ValueError as `select` does
    """
    if by not in SELECTIONS:
        raise ValueError(f"unknown selection {by!r}; choose from {', '.join(SELECTIONS)}")
    if scores.ndim < 2 or not scores.is_floating_point():
        raise ValueError(
            "select: expected floating-point scores (N, P, Q) or (N, K), "
            f"got {scores.dtype} {tuple(scores.shape)}"
        )
    if len(scores) and not scores[0].numel():
        raise ValueError(f"select: there are no squares in scores {tuple(scores.shape)}")
    points = torch.tensor([basis_points(p) for p in ps], dtype=torch.int64, device=scores.device)
    flat = scores.flatten(1).contiguous()
    bits, finite = _select_bits(flat, points, by == "mass")
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten().tolist()
        raise ValueError(f"select: NaN or infinite scores in rows {bad[:10]} of {len(flat)}")
    return bits


def basis_points(p: float) -> int:
    """Return p percent as a whole number of hundredths of a percent, or raise ValueError."""
    points = round(p * 100)
    if not 0 < points <= 10_000 or abs(points - p * 100) > 1e-6:
        raise ValueError(f"p must be in (0, 100], with at most two decimals; got {p}")
    return points


def _masses(flat: Tensor) -> Tensor:
    """Return (N, K) int64: what is positive, scaled by the power of two that a row's top asks for.

    float64 holds the scaled values exactly, subnormal scores included.
    """
    exact = flat.double().clamp(min=0)
    top = exact.amax(dim=1, keepdim=True)
    _, exponent = torch.frexp(top.clamp(min=torch.finfo(torch.float64).tiny))
    return torch.ldexp(exact, 30 - exponent).trunc().long()


# -- what it means -----------------------------------------------------------------------------


def _empty_bits(flat: Tensor, points: Tensor, by_mass: bool) -> tuple[Tensor, Tensor]:
    shape = (points.shape[0], flat.shape[0], -(-flat.shape[1] // 8))
    bits = flat.new_empty(shape, dtype=torch.uint8)
    return bits, flat.new_empty(flat.shape[0], dtype=torch.bool)


def _by_sort(flat: Tensor, points: list[int], by_mass: bool) -> tuple[Tensor, Tensor]:
    finite = flat.isfinite().all(dim=1)
    flat = torch.where(finite.unsqueeze(1), flat, 0)
    values = _masses(flat) if by_mass else flat + 0  # −0 is 0
    ordered, order = values.sort(dim=1, descending=True, stable=True)
    masks = []
    for p_points in points:
        if by_mass:
            mass = ordered.cumsum(dim=1)
            before = mass - ordered  # needed while the mass before it is short
            chosen = before * 10_000 < p_points * mass[:, -1:]
        else:
            n_best = -(-p_points * flat.shape[1] // 10_000)
            chosen = torch.arange(flat.shape[1], device=flat.device) < n_best
            chosen = chosen & (ordered[:, :1] > 0)
        masks.append(torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, chosen))
    n_bytes = -(-flat.shape[1] // 8)
    bits = [pack(mask) for mask in masks]
    return torch.stack(bits) if bits else flat.new_empty((0, len(flat), n_bytes)).byte(), finite


def _launch_select(flat: Tensor, points: Tensor, by_mass: bool) -> tuple[Tensor, Tensor]:
    if flat.dtype == torch.float64 or not len(flat) or not len(points):
        return _by_sort(flat, points.tolist(), by_mass)
    bits, finite = _empty_bits(flat, points, by_mass)
    n_squares = flat.shape[1]
    block = min(_MOST, max(8, 1 << (n_squares - 1).bit_length()))
    _select_kernel[len(flat), len(points)](
        bits, finite, flat, points, len(flat), n_squares, -(-n_squares // 8),
        by_mass, block, -(-n_squares // block), num_warps=max(1, min(8, block // 256)),
    )  # fmt: skip
    return bits, finite


@operation(launch=_launch_select, fake=_empty_bits)
def _select_bits(flat: Tensor, points: Tensor, by_mass: bool) -> tuple[Tensor, Tensor]:
    return _by_sort(flat, points.tolist(), by_mass)


# -- the kernel: a program selects one image's squares for one p -------------------------------

_MOST = 8192  # squares held in registers; more are read again in every round


@jit
def _integers(score, top_length, BY_MASS: tl.constexpr):
    """Integers in the order of the scores; by mass what is positive, in units of the row's.

    The bits of floats, read as sign and magnitude, are in the order of the floats; −0 is 0.
    """
    bits = score.to(tl.int32, bitcast=True)
    if not BY_MASS:
        size = (bits & 0x7FFFFFFF).to(tl.int64)
        return tl.where(bits < 0, -size, size)
    # A float is mantissa · 2^(exponent − 150); shifts do what multiplication by a power of two
    # would, without its overflow and its subnormal numbers.
    exponent = (bits >> 23) & 255
    mantissa = (bits & 0x7FFFFF) | tl.where(exponent > 0, 1 << 23, 0)
    shift = tl.where(exponent > 0, exponent, 1) - top_length
    up = tl.minimum(tl.maximum(shift, 0), 29).to(tl.int64)
    down = tl.minimum(tl.maximum(-shift, 0), 31).to(tl.int64)
    return tl.where(bits < 0, 0, (mantissa.to(tl.int64) << up) >> down)


@jit
def _read(row, place, n_squares):
    return tl.load(row + place, mask=place < n_squares, other=0).to(tl.float32)


@jit
def _of_chunk(
    held, row, place, n_squares, top_length, BY_MASS: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """The scores at a place as integers: those held, if they are all."""
    if CHUNKS == 1:
        return held
    return _integers(_read(row, place, n_squares), top_length, BY_MASS)


@jit
def _at_least(
    threshold, held, row, n_squares, top_length,
    BY_MASS: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Mass, or number, of the squares from the threshold on."""
    found = tl.sum(tl.zeros((BLOCK,), tl.int64))
    for chunk in range(CHUNKS):
        place = chunk * BLOCK + tl.arange(0, BLOCK)
        values = _of_chunk(held, row, place, n_squares, top_length, BY_MASS, CHUNKS)
        counted = (place < n_squares) & (values >= threshold)
        if BY_MASS:
            found += tl.sum(tl.where(counted, values, 0))
        else:
            found += tl.sum(counted.to(tl.int64))
    return found


@jit
def _select_kernel(
    bits, finite, scores, p_points, n_images, n_squares, n_bytes,
    BY_MASS: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    image, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = scores + image * n_squares
    lane = tl.arange(0, BLOCK)

    top = tl.max(tl.full((BLOCK,), 0.0, tl.float32))
    good = tl.min(tl.full((BLOCK,), 1, tl.int32))
    for chunk in range(CHUNKS):
        score = _read(row, chunk * BLOCK + lane, n_squares)
        here = (score.to(tl.int32, bitcast=True) & 0x7FFFFFFF) < 0x7F800000
        good = tl.minimum(good, tl.min(here.to(tl.int32)))
        top = tl.maximum(top, tl.max(tl.where(here, score, 0.0)))
    # The exponent that brings the top into [2²⁹, 2³⁰): by its own, or, of a subnormal number,
    # by its mantissa's length, which a float has as its exponent.
    top_bits = top.to(tl.int32, bitcast=True)
    length = ((top_bits & 0x7FFFFF).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 126
    top_length = tl.where(top_bits >> 23 > 0, (top_bits >> 23) - 6, length - 29)

    held = _integers(_read(row, lane, n_squares), top_length, BY_MASS)
    low, high = tl.full((), -2147483647, tl.int64), tl.full((), 1 << 31, tl.int64)
    total = _at_least(low, held, row, n_squares, top_length, BY_MASS, BLOCK, CHUNKS)
    # Masses are at most 40,000 · 2³⁰ · 10⁴ < 2⁶³.
    need = (tl.load(p_points + which) * total + 9999) // 10000

    if BY_MASS:
        low += 2147483648  # one
    for _ in range(32):
        threshold = (low + high) >> 1
        found = _at_least(threshold, held, row, n_squares, top_length, BY_MASS, BLOCK, CHUNKS)
        enough = found >= need
        low, high = tl.where(enough, threshold, low), tl.where(enough, high, threshold)

    short = need - _at_least(low + 1, held, row, n_squares, top_length, BY_MASS, BLOCK, CHUNKS)
    if BY_MASS:
        short = (short + low - 1) // low
    n_ties = tl.where(top > 0, short, 0)

    n_before = tl.sum(tl.zeros((BLOCK,), tl.int32))
    weight = 1 << tl.arange(0, 8)
    for chunk in range(CHUNKS):
        place = chunk * BLOCK + lane
        values = _of_chunk(held, row, place, n_squares, top_length, BY_MASS, CHUNKS)
        tie = ((values == low) & (place < n_squares)).to(tl.int32)
        rank = n_before + tl.cumsum(tie, 0)
        chosen = (values > low) | ((tie > 0) & (rank <= n_ties))
        chosen = chosen & (place < tl.where(top > 0, n_squares, 0))
        n_before += tl.sum(tie)
        eights = tl.reshape(chosen.to(tl.int32), (BLOCK // 8, 8))
        byte = tl.sum(eights * weight[None, :], axis=1)
        at = chunk * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
        out = bits + (which.to(tl.int64) * n_images + image) * n_bytes
        tl.store(out + at, byte.to(tl.uint8), mask=at < n_bytes)
    if which == 0:
        tl.store(finite + image, good > 0)
