"""Masks ↔ one bit a square, eight squares a byte, the first in the lowest bit."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pack(mask: Tensor) -> Tensor:
    """Return a mask's bits: (N, P, Q) or (N, K) bool → (N, ⌈K/8⌉) uint8; unused bits are zero."""
    if mask.dtype != torch.bool or mask.ndim < 2:
        raise ValueError(
            f"pack: expected a bool mask (N, ...), got {mask.dtype} {tuple(mask.shape)}"
        )
    flat = mask.flatten(1)
    eights = F.pad(flat, (0, -flat.shape[1] % 8)).unflatten(1, (-1, 8))
    place = 2 ** torch.arange(8, device=mask.device)
    return (eights * place).sum(dim=2).to(torch.uint8)


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
    place = torch.arange(8, device=bits.device, dtype=torch.uint8)
    flat = (bits.unsqueeze(2) >> place & 1).flatten(1)[:, :n_squares]
    return flat.bool().view(-1, *shape)
