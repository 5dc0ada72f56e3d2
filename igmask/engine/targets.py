"""What is attributed: which number of each output a target names, in Captum's notation."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from igmask.errors import InputError
from igmask.inputs.contract import tensor


class TargetError(InputError, AssertionError):
    """A target that is missing or does not fit, which Captum reports as an AssertionError."""


def classes_of(target: Any, n_images: int) -> Tensor:
    """Return the classes that a target names, (N,) or one for all, or raise TargetError."""
    found = checked_target(target, n_images)
    try:
        classes = found if isinstance(found, Tensor) else torch.tensor(found, dtype=torch.int64)
    except (ValueError, RuntimeError, OverflowError):  # tuples of several lengths, 2⁷⁰
        raise _misfit(target, n_images) from None
    if classes.shape not in ((), (n_images,)):  # of tuples
        raise _misfit(target, n_images)
    return classes


def checked_target(target: Any, n_examples: int) -> Any:
    """Return a target with its numbers as Python's; a tensor of one an example as it is.

    target: an integer, or a list, array or tensor of one an example; in place of an integer, a
            tuple of them where outputs have more axes; None
    raises  TargetError if it is anything else
    """
    if target is None:
        return None
    given = target
    if isinstance(target, np.ndarray) and target.dtype.kind in "iu":
        target = torch.from_numpy(target.astype(np.int64))
    try:
        if isinstance(target, list) and len(target) == n_examples:
            return [_place(of_example) for of_example in target]
        if isinstance(target, Tensor) and target.shape == (n_examples,) and _is_whole(target):
            return target
        return _place(target)
    except TypeError:
        raise _misfit(given, n_examples) from None


def _is_whole(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def _place(target: Any) -> Any:
    """The integer, or tuple of integers, as Python's; raises TypeError if it is none."""
    parts = target if isinstance(target, tuple) else (target,)
    if any(isinstance(part, bool) or getattr(part, "dtype", None) == torch.bool for part in parts):
        raise TypeError
    whole = tuple(map(operator.index, parts))
    return whole if isinstance(target, tuple) else whole[0]


def _misfit(target: Any, n_examples: int) -> TargetError:
    given, advice = f"{type(target).__name__} {target!r:.40}", ""
    if isinstance(target, list):
        given = f"a list of {len(target)}"
    if isinstance(target, Tensor | np.ndarray):
        given = f"{target.dtype} of shape {tuple(target.shape)}"
        if target.shape == (n_examples, 1):
            advice = "; .reshape(-1) makes them one axis"
        elif target.ndim == 2:
            advice = "; of several labels a row, or one-hot ones, take one: .argmax(1)"
        elif isinstance(target, Tensor) and target.is_floating_point():
            advice = "; .long() makes them integers"
        elif isinstance(target, np.ndarray) and target.dtype.kind == "f":
            advice = "; .astype(int) makes them integers"
    elif isinstance(target, str) or (isinstance(target, list) and str in map(type, target)):
        advice = "; the number of a name is its place in the list of classes"
    return TargetError(
        f"target must be {n_examples} classes, integers of shape ({n_examples},), or one for all; "
        f"got {given}{advice}"
    )


def pick_target(output: Tensor, target: Any, rows: Sequence[int]) -> Tensor:
    """Return (B,): of each row's output the number that `target` names, in Captum's notation.

    output: (B, ...);  rows: B examples, one a row, by which a target per example is found
    raises  TargetError if the target does not name one number an example, InputError if the output
            is no tensor
    """
    output = tensor(output)
    if target is None:
        if output.numel() not in (1, len(rows)):
            raise TargetError(
                f"an output of shape {tuple(output.shape)} has several numbers an example: "
                "target must say which one to attribute"
            )
        return output.reshape(-1)
    if isinstance(target, Tensor):
        target = target.item() if target.numel() == 1 else target.tolist()
    per_row = [target[i] for i in rows] if isinstance(target, list) else [target] * len(rows)
    places = [t if isinstance(t, tuple) else (t,) for t in per_row]
    sizes = output.shape[1:]
    n_named = {len(place) for place in places}
    if len(n_named) > 1 or any(n > len(sizes) or sizes[n:].numel() > 1 for n in n_named):
        raise TargetError(
            f"target {places[0]} does not name one number in an output of shape "
            f"{tuple(output.shape)}"
        )
    # Here, since a GPU would not survive it. Captum takes −1 for the last, but not from many ints.
    for place, of_row in zip(places, per_row, strict=True):
        least = 0 if isinstance(target, list) and not isinstance(of_row, tuple) else -1
        if not all(least * n <= t < n for t, n in zip(place, sizes, strict=False)):
            raise TargetError(
                f"target {place} is out of range for an output of shape {tuple(output.shape)}"
            )
    index = torch.tensor(places, device=output.device).unbind(1)
    return output[(torch.arange(len(rows), device=output.device), *index)].reshape(-1)
