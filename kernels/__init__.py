"""The tensor operations of igmask: plain functions on batches, on any device.

dispatch.py  an operation: its definition, its Triton kernel, and which of them runs
path.py      points on the path from baseline to image, and the weighted sum of their gradients
pool.py      the same through ReLU and max pooling
relu.py      ReLU with the bias, the frozen norm or the skip connection before it
squares.py   attribution → scores of s×s squares
bits.py      masks ↔ one bit a square
select.py    scores, p → the smallest set of squares that holds p % of the mass
occlude.py   images + mask → images with everything outside the mask filled

What squares, scores, selection and masks mean, `igmask.plain` says, in NumPy. This package knows
tensors only: nothing of models, files or configuration.
"""

from igmask.kernels.bits import pack, unpack
from igmask.kernels.dispatch import empty_as, has_kernel, memory_format_of, on_device, wide
from igmask.kernels.occlude import fill_values, occlude, occluded_input, to_pixels
from igmask.kernels.path import ACTIVATIONS, accumulate_, activate, path_points, spans_of
from igmask.kernels.pool import Pool, accumulate_pooled_, pooled_points
from igmask.kernels.relu import shifted_relu
from igmask.kernels.select import select, select_bits
from igmask.kernels.squares import (
    attribution_and_parts,
    attribution_parts,
    square_parts,
    square_scores,
)
from igmask.plain import grid, score_parts
