"""Scores, p → the squares that hold the top p %: of the mass, of their number, or of the area.

The definition is `plain.select`, which sorts. The kernel does not: it bisects on an integer
threshold, and counts the ties. Masses are sums of integers, so that both select the same to the
bit; the kernel's are made of float32, and float64 scores go to the CPU, to be sorted.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from igmask import plain
from igmask.kernels.bits import unpack
from igmask.kernels.dispatch import check, jit, operation, tl, wide
from igmask.plain import SELECTIONS, basis_points


def select(scores: Tensor, p: float, *, by: str = "mass", sizes: Tensor | None = None) -> Tensor:
    """Return the mask of the squares that hold the top p %.

    They are the fewest squares, in descending score, that together reach p % of

    mass:  the sum of all positive scores
    count: the number of squares
    area:  the number of pixels, of which squares at the border may have fewer

    A row without a positive score selects nothing.

    scores:  (N, P, Q) or (N, K), floating point
    p:       percent in (0, 100], at most two decimals
    sizes:   (K,) of `plain.pixels_of_squares`, which area needs
    returns  bool, in the shape of `scores`
    raises   ValueError for p out of range or NaN or infinity among the scores, naming the rows
    """
    return unpack(select_bits(scores, (p,), by=by, sizes=sizes)[0], tuple(scores.shape[1:]))


def select_bits(
    scores: Tensor, ps: Sequence[float], *, by: str = "mass", sizes: Tensor | None = None
) -> Tensor:
    """Return `select` for several p at once, a bit a square as `pack` has them.

    scores:  (N, P, Q) or (N, K), floating point
    returns  (len(ps), N, ⌈K/8⌉) uint8
    raises   ValueError as `select` does
    """
    if by not in SELECTIONS:
        raise ValueError(f"unknown selection {by!r}; choose from {', '.join(SELECTIONS)}")
    fits = scores.ndim >= 2 and scores.is_floating_point()
    check("select", fits, "floating-point scores (N, P, Q) or (N, K)", scores)
    if len(scores) and not scores[0].numel():
        raise ValueError(f"select: there are no squares in scores {tuple(scores.shape)}")
    points = torch.tensor([basis_points(p) for p in ps], dtype=torch.int64, device=scores.device)
    flat = scores.flatten(1).contiguous()
    if by == "area":  # for which there is no kernel
        bits, finite = _sorted(flat, points, by, sizes)
    else:
        bits, finite = _select_bits(flat, points, by == "mass")
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten().tolist()
        raise ValueError(f"select: NaN or infinite scores in rows {bad[:10]} of {len(flat)}")
    return bits


# -- what it means -----------------------------------------------------------------------------


def _empty_bits(flat, points, by_mass):
    shape = (points.shape[0], flat.shape[0], -(-flat.shape[1] // 8))
    bits = flat.new_empty(shape, dtype=torch.uint8)
    return bits, flat.new_empty(flat.shape[0], dtype=torch.bool)


def _launch_select(flat, points, by_mass):
    if flat.dtype == torch.float64 or not len(flat) or not len(points):
        return _select_bits.definition(flat, points, by_mass)
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
    return _sorted(flat, points, "mass" if by_mass else "count")


def _sorted(
    flat: Tensor, points: Tensor, by: str, sizes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    finite = flat.isfinite().all(dim=1)
    scores = torch.where(finite.unsqueeze(1), flat, 0).to(wide(flat))  # NumPy has no bfloat16
    percents = [n / 100 for n in points.tolist()]
    bits, _ = _empty_bits(flat, points, False)
    held = None if sizes is None else sizes.numpy(force=True)
    masks = plain.select(scores.numpy(force=True), percents, by=by, sizes=held)
    for packed, mask in zip(bits, masks, strict=True):
        packed.copy_(torch.from_numpy(plain.pack(mask)))
    return bits, finite


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
