"""The tensor operations of igmask: plain functions on batches, on any device.

What squares, scores, selection and masks mean, `igmask.plain` says, in NumPy. This package knows
tensors only: nothing of models, files or configuration.
"""

from igmask.kernels.bits import pack, unpack
from igmask.kernels.dispatch import empty_as, has_kernel, memory_format_of, on_device, wide
from igmask.kernels.inpaint import inpainted, inpainted_arrays
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
