"""The tensor operations of igmask: plain functions on batches, on any device.

path.py      points on the path from baseline to image, and the weighted sum of their gradients
squares.py   attribution → scores of s×s squares
select.py    scores, p → the smallest set of squares that holds p % of the mass
bits.py      masks ↔ one bit a square
occlude.py   images + mask → images with everything outside the mask filled

This package knows tensors only: nothing of models, files or configuration.
"""

from igmask.kernels.bits import pack, unpack
from igmask.kernels.occlude import FILLS, fill_values, occlude, to_pixels
from igmask.kernels.path import accumulate_, memory_format_of, path_points
from igmask.kernels.select import SELECTIONS, select
from igmask.kernels.squares import SCORES, grid, score_parts, square_parts, square_scores

__all__ = [
    "FILLS",
    "SCORES",
    "SELECTIONS",
    "accumulate_",
    "fill_values",
    "grid",
    "memory_format_of",
    "occlude",
    "pack",
    "path_points",
    "score_parts",
    "select",
    "square_parts",
    "square_scores",
    "to_pixels",
    "unpack",
]
