"""A selection in exact arithmetic, which those of the project are compared with."""

from fractions import Fraction
from math import ceil, frexp

import numpy as np


def masses(row):
    """What is positive, as design and selection sum it: the maximum in [2²⁹, 2³⁰), truncated."""
    scale = Fraction(2) ** (30 - frexp(max(row))[1])
    return [int(max(Fraction(value), 0) * scale) for value in row]


def by_sort(row, p, by):
    """The selection of one row, with Python's integers and fractions."""
    if max(row) <= 0:
        return set()
    numbers = masses(row) if by == "mass" else [Fraction(value) for value in row]
    order = sorted(range(len(row)), key=lambda i: (-numbers[i], i))
    share = Fraction(round(p * 100), 10_000)
    if by == "count":
        return set(order[: ceil(share * len(row))])
    needed = share * sum(max(number, 0) for number in numbers)
    chosen, mass = set(), 0
    for i in order:
        if mass >= needed:
            break
        chosen.add(i)
        mass += numbers[i]
    return chosen


def masks_by_sort(scores, p, by):
    """The same of every row of scores (N, ...), as a mask of their shape."""
    mask = np.zeros((len(scores), scores[0].size), dtype=bool)
    for chosen, row in zip(mask, scores.reshape(mask.shape).tolist(), strict=True):
        chosen[list(by_sort(row, p, by))] = True
    return mask.reshape(scores.shape)
