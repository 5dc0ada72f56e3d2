"""Masks ↔ one bit a square, eight squares a byte, the first in the lowest bit."""

from functools import partial

import torch
from torch import Tensor

from igmask import plain


def pack(mask: Tensor) -> Tensor:
    """Return a mask's bits: (N, P, Q) or (N, K) bool → (N, ⌈K/8⌉) uint8; unused bits are zero."""
    if mask.dtype != torch.bool or mask.ndim < 2:
        raise ValueError(
            f"pack: expected a bool mask (N, ...), got {mask.dtype} {tuple(mask.shape)}"
        )
    return torch.from_numpy(plain.pack(mask.numpy(force=True))).to(mask.device)


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the mask (N, *shape) bool whose bits (N, ⌈K/8⌉) uint8 are given; K = Π shape."""
    n_squares = 1
    for size in shape:
        n_squares *= size
    if bits.dtype != torch.uint8 or bits.ndim != 2 or bits.shape[1] != -(-n_squares // 8):
        raise ValueError(
            f"unpack: expected uint8 (N, {-(-n_squares // 8)}) for squares {shape}, "
            f"got {bits.dtype} {tuple(bits.shape)}"
        )
    return plain.unpack(bits, shape, arange=partial(torch.arange, device=bits.device))
