"""Integrated Gradients with the signature and semantics of captum.attr.IntegratedGradients."""

import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from igmask import quadrature
from igmask.engine.network import Network, input_gradients, ordinary
from igmask.engine.queue import (
    Pairs,
    Tensors,
    at_least_1,
    batches,
    outputs_at,
    path_gradients,
    path_outputs,
)
from igmask.engine.ready import check_model, prepare
from igmask.engine.targets import checked_target, pick_target
from igmask.errors import InputError
from igmask.inputs import contract
from igmask.kernels import on_device, wide
from igmask.quadrature import Rule
from igmask.tracing import running

_BATCH_SIZE = 64  # of functions and of several inputs, whose memory is not known

F = TypeVar("F", bound=Callable[..., Any])


def _wrapped(method: F) -> F:
    """The method with a `__wrapped__`, by which Captum's own classes call past its log of calls."""

    return wraps(method)(lambda *args, **kwargs: method(*args, **kwargs))  # type: ignore[return-value]


class IntegratedGradients:
    """Integrated Gradients with Captum's signature; see `captum.attr.IntegratedGradients`.

    A module of one input takes the engine of ig.py. Functions, several inputs, additional arguments
    and a `gradient_func` of one's own, Captum's layer and neuron attributions among them, go the
    general way: the same numbers, with nothing hoisted.

    forward_func: a module or function; its first arguments are the inputs, the rest additional
                  arguments; returns one number an example, or a tensor from which `target` picks
    multiply_by_inputs: False leaves out the factor (x − b): the average gradient on the path
    """

    def __init__(
        self, forward_func: Callable[..., Tensor], multiply_by_inputs: bool = True
    ) -> None:
        self.forward_func = forward_func
        self.gradient_func: Callable[..., tuple[Tensor, ...]] = gradients
        self._multiply_by_inputs = multiply_by_inputs

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether attributions have the factor (x − b)."""
        return self._multiply_by_inputs

    def has_convergence_delta(self) -> bool:
        """Integrated Gradients tell how far they are from completeness."""
        return True

    @classmethod
    def get_name(cls) -> str:
        """Return the class's name in words: Integrated Gradients."""
        return re.sub(r"(?<!^)(?![a-z])(?=.)", " ", cls.__name__)

    def attribute_future(self) -> None:
        """Raise NotImplementedError: there are no futures of Integrated Gradients, as in Captum."""
        raise NotImplementedError("attribute_future is not implemented for IntegratedGradients")

    @_wrapped
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Return the attributions of the inputs, a tensor or a tuple as the inputs are.

        They keep the inputs' dtype and memory format, and sums are taken in float32 at least.

        inputs:    (N, ...) tensor, or a tuple of them
        baselines: a number or tensor (N or 1, ...) an input; zero if None
        target:    for outputs (N, classes) an int, or a tensor, array or list of N; for outputs
                   with more axes a tuple, or a list of N tuples, in which axes of length 1 at the
                   end may be left out; None for one output an example
        additional_forward_args: passed after the inputs, tensors by their rows
        method:    a name of `quadrature.RULES` or of Captum's, or `adaptive`: steps of each path
                   where the output changes, see `quadrature.cells`
        internal_batch_size: most rows of one forward pass; None lets igmask choose
        return_convergence_delta: also return (N,) Σφ − (f(x) − f(b))
        raises     InputError for shapes that do not fit, an unknown method, or a bad target
        """
        xs = _checked_inputs(inputs)
        bs = _expand_baselines(xs, baselines)
        rule = quadrature.checked_rule(method, n_steps)
        extra = _as_tuple(additional_forward_args)
        target = checked_target(target, len(xs[0]))
        with torch.inference_mode(False):
            bs = tuple(map(ordinary, bs))
            if self.gradient_func is gradients:
                xs = tuple(map(ordinary, xs))
            paths = _Paths(xs, bs, target, extra, method, rule, internal_batch_size)
            slopes, fault = self._slopes(paths)
            if fault:  # Captum would attribute it
                warnings.warn(fault, stacklevel=3)
            values = slopes
            if self._multiply_by_inputs:
                values = tuple((x - b) * s for x, b, s in zip(xs, bs, slopes, strict=True))
        values = tuple(v.to(x.dtype) for v, x in zip(values, xs, strict=True))
        result = values if isinstance(inputs, tuple) else values[0]
        if not return_convergence_delta:
            return result
        return result, self.compute_convergence_delta(values, bs, xs, target, extra or None)

    def _slopes(self, paths: "_Paths") -> tuple[Tensors, str]:
        """(the sums of gradients, by the engine if it can; why they would be of chance)."""
        f, x, fault = self.forward_func, paths.ends[0], ""
        plain = self.gradient_func is gradients
        if isinstance(f, nn.Module):
            check_model(f, x)
            if plain and len(paths.ends) == 1 and not paths.extra:
                network = prepare(f, x)
                fault = network.answer.fault if network.answer else ""
                return paths.behind_the_stem(network), fault
        refused = None
        if plain and len(x):
            try:
                fault = contract.ask(paths.of_first(f), x).fault
            except InputError as error:  # as it will be called, it may be right
                refused = error
        try:
            return paths.sums(f, self.gradient_func), fault
        except (RuntimeError, TypeError) as error:
            raise refused or error from None

    @_wrapped
    def compute_convergence_delta(
        self,
        attributions: Any,
        start_point: Any,
        end_point: Any,
        target: Any = None,
        additional_forward_args: Any = None,
    ) -> Tensor:
        """Return (N,): Σφ − (f(x) − f(b)), of attributions from `start_point` to `end_point`."""
        xs, values = _as_tuple(end_point), _as_tuple(attributions)
        bs = _expand_baselines(xs, start_point)
        extra, n_examples = _as_tuple(additional_forward_args), len(xs[0])
        target = checked_target(target, n_examples)
        delta = torch.empty(n_examples, dtype=values[0].dtype, device=values[0].device)
        queue = torch.arange(n_examples, device=xs[0].device).split(_BATCH_SIZE)
        with torch.no_grad(), running():
            for rows in queue[:n_examples]:  # of no example PyTorch makes a batch, too
                arguments = _of_rows(extra, rows, n_examples)
                asked = _targets(target, rows, n_examples), range(len(rows))
                at_end, at_start = (
                    pick_target(self.forward_func(*(x[rows] for x in at), *arguments), *asked)
                    for at in (xs, bs)
                )
                total = sum(v[rows].reshape(len(rows), -1).sum(dim=1) for v in values)
                delta[rows] = (total - (at_end - at_start)).to(delta.dtype)
        return delta


@dataclass(frozen=True)
class _Paths:
    """What `attribute` was asked, checked: inputs as `ends`, baselines as `starts`, alike."""

    ends: Tensors
    starts: Tensors
    target: Any
    extra: tuple[Any, ...]
    method: str
    rule: Rule
    batch_size: int | None

    def _rules(self, outputs: Callable[[], Tensor]) -> Sequence[Rule]:
        """The steps of each example's path, by the outputs at the probes if they are asked for."""
        if self.method != quadrature.ADAPTIVE:
            return [self.rule] * len(self.ends[0])
        return quadrature.following(outputs().tolist(), len(self.rule[0]))

    def behind_the_stem(self, network: Network) -> Tensors:
        """Return the sums of gradients of a module with one input, by the engine."""
        (x,), (baseline,) = self.ends, self.starts
        slopes = torch.empty_like(x, dtype=wide(x))

        def pick(outputs: Tensor, owners: list[int], _: list[float]) -> Tensor:
            return pick_target(outputs, self.target, owners)

        on_path, size = (network, x, baseline, pick), self.batch_size
        rules = self._rules(lambda: path_outputs(*on_path, quadrature.PROBES, batch_size=size))
        for i, slope in enumerate(path_gradients(*on_path, rules, batch_size=size)):
            slopes[i] = slope[0]
        return (slopes,)

    def of_first(self, f: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        """Return the function of its first input, the others and the rest being those of row 0."""
        n_examples = len(self.ends[0])

        def asked(x: Tensor) -> Tensor:
            rows = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            others = [end[rows] for end in self.ends[1:]]
            return f(x, *others, *_of_rows(self.extra, rows, n_examples))

        return asked

    def sums(self, f: Callable[..., Tensor], gradient_func: Callable[..., Tensors]) -> Tensors:
        """Return the sums of `gradient_func`, differentiable again if its gradients are."""
        n_examples, device = len(self.ends[0]), self.ends[0].device
        size = at_least_1("the batch size", self.batch_size) or _BATCH_SIZE
        totals = [torch.zeros_like(x, dtype=wide(x)).detach() for x in self.ends]

        def gradients_of(pairs: Pairs) -> Tensors:
            first = contract.right_averages(device) if not pairs.start else nullcontext()
            with running(), first:
                return gradient_func(f, *self._at(pairs))

        def outputs_of(pairs: Pairs) -> Tensors:
            with running(), torch.enable_grad():
                points, targets, extra = self._at(pairs)
                outputs = f(*(point.detach() for point in points), *(extra or ()))
            return (pick_target(outputs, targets, range(len(pairs.owners))).detach(),)

        options: dict[str, Any] = {"size": size, "least": contract.least_batch(device)}
        if self.method == quadrature.ADAPTIVE and gradient_func is not gradients:
            raise InputError(
                "method adaptive asks the function itself where it changes, and a gradient_func of "
                "another, such as a layer's, does not say; choose a method with fixed steps"
            )
        rules = self._rules(
            lambda: outputs_at(quadrature.PROBES, n_examples, outputs_of, device=device, **options)
        )
        for pairs, slopes in batches(rules, compute=gradients_of, **options):
            pairs.check(slopes)
            rows = on_device(pairs.owners, device)
            weights = on_device(pairs.weights, device, torch.float64)
            for i, (slope, total) in enumerate(zip(slopes, totals, strict=True)):
                part = slope.to(total.dtype) * _along_rows(weights.to(total.dtype), slope)
                add = total.index_add if part.requires_grad else total.index_add_
                totals[i] = add(0, rows, part)
        return tuple(totals)

    def _at(self, pairs: Pairs) -> tuple[Tensors, Any, Any]:
        """What a `gradient_func` is given: points, targets and additional arguments of the rows."""
        n_examples, device = len(self.ends[0]), self.ends[0].device
        rows = on_device(pairs.owners, device)
        alpha = on_device(pairs.alphas, device, torch.float64)
        points = []
        for x, b in zip(self.ends, self.starts, strict=True):
            start, end = b[rows], x[rows]
            point = (start + _along_rows(alpha.to(wide(x)), x) * (end - start)).to(x.dtype)
            points.append(point if point.requires_grad else point.requires_grad_())
        extra = _of_rows(self.extra, rows, n_examples)
        return tuple(points), _targets(self.target, rows, n_examples), extra or None


def _checked_inputs(inputs: Any) -> Tensors:
    xs = inputs if isinstance(inputs, tuple) else (inputs,)
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in xs):
        raise InputError("the inputs must be floating-point tensors")
    if len({len(x) for x in xs}) > 1:
        sizes = ", ".join(str(len(x)) for x in xs)
        raise InputError(f"the inputs must have as many examples each, got {sizes}")
    return xs


def gradients(
    forward_fn: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    target_ind: Any = None,
    additional_forward_args: Any = None,
) -> tuple[Tensor, ...]:
    """Return the gradients of the target outputs by the inputs; Captum's `compute_gradients`.

    target_ind: None, or a target as in `pick_target`, for every row of the inputs
    """
    rows, extra = range(len(inputs[0])), _as_tuple(additional_forward_args)
    points = tuple(x.detach().clone() for x in inputs)
    return input_gradients(
        lambda *at: pick_target(forward_fn(*at, *extra), target_ind, rows), points
    )


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return () if value is None else value if isinstance(value, tuple) else (value,)


def _along_rows(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.ndim - 1))


def _of_rows(extra: tuple[Any, ...], rows: Tensor, n_examples: int) -> tuple[Any, ...]:
    return tuple(
        a[rows.to(a.device)] if isinstance(a, Tensor) and a.ndim and len(a) == n_examples else a
        for a in extra
    )


def _targets(target: Any, rows: Tensor, n_examples: int) -> Any:
    """The target of each row, where there is one for each example."""
    if isinstance(target, Tensor) and target.numel() == n_examples > 1:
        return target.reshape(-1)[rows.to(target.device)]
    if isinstance(target, list) and len(target) == n_examples:
        return [target[row] for row in rows.tolist()]
    return target


def _expand_baselines(inputs: tuple[Tensor, ...], baselines: Any) -> tuple[Tensor, ...]:
    given = baselines if isinstance(baselines, tuple) else (baselines,) * len(inputs)
    if len(given) != len(inputs):
        raise InputError(f"got {len(given)} baselines for {len(inputs)} inputs")
    return tuple(_expand_baseline(x, b) for x, b in zip(inputs, given, strict=True))


def _expand_baseline(x: Tensor, baseline: Any) -> Tensor:
    if baseline is None or isinstance(baseline, Real):
        return torch.full_like(x, float(baseline or 0)).detach()
    if not isinstance(baseline, Tensor):
        raise InputError(f"a baseline must be a number or a tensor, got {type(baseline).__name__}")
    if baseline.shape[1:] != x.shape[1:] or len(baseline) not in (1, len(x)):
        raise InputError(
            f"a baseline of shape {tuple(baseline.shape)} does not fit an input of shape "
            f"{tuple(x.shape)}; it must be the same, or 1 along the first axis"
        )
    if baseline.dtype != x.dtype or baseline.device != x.device:
        raise InputError(
            f"the baseline is {baseline.dtype} on {baseline.device} and the input {x.dtype} on "
            f"{x.device}; they must be alike"
        )
    return baseline.expand_as(x)
