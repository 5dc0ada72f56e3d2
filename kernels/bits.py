"""Masks ↔ one bit a square, eight squares a byte, the first in the lowest bit."""

from functools import partial

import torch
from torch import Tensor

from igmask import plain
from igmask.kernels.dispatch import check


def pack(mask: Tensor) -> Tensor:
    """Return a mask's bits: (N, P, Q) or (N, K) bool → (N, ⌈K/8⌉) uint8; unused bits are zero."""
    check("pack", mask.dtype == torch.bool and mask.ndim >= 2, "a bool mask (N, ...)", mask)
    return torch.from_numpy(plain.pack(mask.numpy(force=True))).to(mask.device)


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the mask (N, *shape) bool whose bits (N, ⌈K/8⌉) uint8 are given; K = Π shape."""
    n_bytes = -(-torch.Size(shape).numel() // 8)
    fits = bits.dtype == torch.uint8 and bits.ndim == 2 and bits.shape[1] == n_bytes
    check("unpack", fits, f"uint8 (N, {n_bytes}) for squares {shape}", bits)
    return plain.unpack(bits, shape, arange=partial(torch.arange, device=bits.device)).contiguous()
