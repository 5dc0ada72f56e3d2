"""Integrated Gradients (Sundararajan, Taly & Yan 2017): φ = (x − b) · Σ_h w_h ∇f(b + α_h (x − b)).

`path_gradients` runs the queue of (image, step) pairs in batches behind the network's affine stem.
`integrated_gradients` is the experiment's call: an image classifier, its predicted class,
completeness. captum.py has the class with Captum's signature.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from igmask import quadrature
from igmask.engine.network import Network, all_finite, is_training, prepare
from igmask.errors import InputError, integer
from igmask.inputs.contract import check_classifier, check_scores
from igmask.kernels import (
    accumulate_,
    accumulate_pooled_,
    attribution_parts,
    grid,
    memory_format_of,
    on_device,
    path_points,
    pooled_points,
    select,
    spans_of,
    square_parts,
    square_scores,
)

FUNCTIONS = ("probability", "logit")

# Of the outputs of a batch, with the image and the α of each of its rows, what is attributed: (B,).
Pick = Callable[[Tensor, list[int], list[float]], Tensor]


class NotFinite(InputError):
    """A gradient that is NaN or infinite: of `image`, counted from 0, at `alpha` on its path."""

    def __init__(self, image: int, alpha: float, step: int, name: str | None = None) -> None:
        name = f"image {image}" if name is None else name
        super().__init__(
            f"{name}: NaN or infinite gradient at step {step}, α = {alpha:.4g}; look for a "
            "logarithm, square root or division at zero in the network, or, in half precision, "
            "for overflow"
        )
        self.image, self.alpha, self.step = image, alpha, step


class TargetError(InputError, AssertionError):
    """A target that is missing or does not fit, which Captum reports as an AssertionError."""


def path_gradients(
    network: Network,
    images: Tensor,
    baselines: Tensor,
    pick: Pick,
    *,
    positions: Sequence[float],
    weights: Sequence[float],
    batch_size: int | None = None,
) -> Iterator[Tensor]:
    """Yield Σ_h w_h ∇f(b + α_h (x − b)) of each image, (1, C, H, W) in float32 at least, in order.

    The queue holds the pairs (image, position) with the positions of an image next to each other,
    in batches of one size, the last one padded. Memory depends neither on the number of positions
    nor of images. A batch that does not fit into memory is halved and tried again.

    images, baselines: (N, C, H, W)
    pick:              which number of the outputs to attribute; called batch by batch
    batch_size:        None: from the free memory
    raises             NotFinite; on a GPU, behind the last image
    """
    n_rows = len(positions)
    n_pairs = len(images) * n_rows
    batch_size = None if batch_size is None else integer("the batch size", batch_size)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"the batch size must be at least 1, got {batch_size}")
    if not n_pairs:
        return
    size = batch_size or network.batch_size(images)
    if network.engine == "eager":  # for the others each shape costs
        size = -(-n_pairs // -(-n_pairs // size))  # the same number of batches, evenly filled
    paths = _Paths(network, images, baselines, n_slots=-(-size // n_rows) + 1)
    start, finite, on_gpu = 0, [], images.is_cuda
    while start < n_pairs:
        pairs = [min(pair, n_pairs - 1) for pair in range(start, start + size)]
        owners = [pair // n_rows for pair in pairs]
        steps = [pair % n_rows for pair in pairs]
        live = min(size, n_pairs - start)
        alphas = [positions[step] for step in steps]
        weight = [weights[step] if i < live else 0.0 for i, step in enumerate(steps)]
        try:
            paths.open(owners)
            slopes = paths.slopes(owners, alphas, pick)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or size == 1:
                raise
            slopes = ()
        if not slopes:  # out of the block, whose traceback holds on to the batch
            size = halved(size)
            continue
        paths.add(slopes, weight)
        start += live
        for image in range(paths.n_done, start // n_rows):
            total = paths.close(image)
            finite.append(torch.stack([t.isfinite().all() for t in total]).all())
            # To look at it is to wait for a GPU, and to let it wait for the next batch.
            if not on_gpu and not finite[-1]:
                raise _not_finite(network, images, baselines, pick, image, positions, weights)
            yield paths.to_pixels(image, total)
    if on_gpu and not all(known := torch.stack(finite).tolist()):
        bad = known.index(False)
        raise _not_finite(network, images, baselines, pick, bad, positions, weights)


class _Paths:
    """The paths of the images that the queue is at: end points and sums behind the stem."""

    def __init__(self, network: Network, images: Tensor, baselines: Tensor, n_slots: int) -> None:
        self._network, self._images, self._baselines = network, images, baselines
        self._n_slots = n_slots
        self._n_open, self.n_done = 0, 0
        self._starts: tuple[Tensor, ...] = ()
        self._ends: tuple[Tensor, ...] = ()
        self._totals: tuple[Tensor, ...] = ()
        self._batch: tuple[Tensor, Tensor, Any] = (torch.empty(0),) * 3

    def open(self, owners: list[int]) -> None:
        """Send the images that a batch begins, and their baselines, through the stem."""
        for image in range(self._n_open, owners[-1] + 1):
            starts = self._network.stem(self._baselines[image : image + 1])
            ends = self._network.stem(self._images[image : image + 1])
            if not self._ends:
                wide = [torch.promote_types(u.dtype, torch.float32) for u in ends]
                # Together: memory may run out between them.
                self._starts, self._ends, self._totals = (
                    tuple(map(self._slots, starts)),
                    tuple(map(self._slots, ends)),
                    tuple(map(self._slots, ends, wide)),
                )
            slot = image % self._n_slots
            for kept, u in zip(self._starts + self._ends, starts + ends, strict=True):
                kept[slot] = u[0]
            for total in self._totals:
                total[slot] = 0
            self._n_open = image + 1

    def _slots(self, u: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(
            (self._n_slots, *u.shape[1:]),
            dtype=dtype or u.dtype,
            device=u.device,
            memory_format=memory_format_of(u),
        )

    def slopes(self, owners: list[int], alphas: list[float], pick: Pick) -> tuple[Tensor, ...]:
        """Return the gradient at each point of a batch, which `add` then takes."""
        head, dtype = self._network.split.head, self._network.dtype
        device = self._ends[0].device
        spans = spans_of([owner % self._n_slots for owner in owners], self._n_slots, device)
        positions = on_device(alphas, device, torch.float64)
        ends = zip(self._starts, self._ends, strict=True)
        taken = None
        if head.pool is None:
            points = tuple(
                path_points(start, end, spans, positions, activation=head.activation, dtype=dtype)
                for start, end in ends
            )
        else:
            pooled, taken = pooled_points(*next(ends), spans, positions, head.pool, dtype=dtype)
            points = (pooled,)
        slopes = self._network.gradients(points, lambda outputs: pick(outputs, owners, alphas))
        # Here, where memory may run out: `add` takes none.
        forms = [memory_format_of(total) for total in self._totals]
        slopes = tuple(
            s.contiguous(memory_format=form) for s, form in zip(slopes, forms, strict=True)
        )
        self._batch = spans, positions, taken
        return slopes

    def add(self, slopes: tuple[Tensor, ...], weights: list[float]) -> None:
        """Add the gradients of the last batch to their images' sums."""
        head, (spans, positions, taken) = self._network.split.head, self._batch
        weight = on_device(weights, spans.device, torch.float64)
        if head.pool is not None:
            accumulate_pooled_(self._totals[0], slopes[0], taken, spans, weight, head.pool)
            return
        ends = zip(self._totals, slopes, self._starts, self._ends, strict=True)
        for total, slope, start, end in ends:
            path = (start, end, positions)
            accumulate_(total, slope, spans, weight, path=path, activation=head.activation)

    def close(self, image: int) -> tuple[Tensor, ...]:
        """Return the sums of an image whose pairs are all done, and free its place."""
        slot = image % self._n_slots
        self.n_done = image + 1
        return tuple(total[slot : slot + 1] for total in self._totals)

    def to_pixels(self, image: int, total: tuple[Tensor, ...]) -> Tensor:
        """Return the sum sent back through the stem, (1, C, H, W)."""
        return self._network.stem_transposed(self._images[image : image + 1], total)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on a GPU or here."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def halved(size: int) -> int:
    """Return half the size, memory that PyTorch keeps for itself given back."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return size // 2


def _not_finite(
    network: Network,
    images: Tensor,
    baselines: Tensor,
    pick: Pick,
    image: int,
    positions: Sequence[float],
    weights: Sequence[float],
) -> NotFinite:
    """Find the first step of an image whose gradient is not finite."""
    paths = _Paths(network, images, baselines, n_slots=1)
    paths._n_open = image
    paths.open([image])
    pairs = sorted(pair for pair in zip(positions, weights, strict=True) if pair[1])
    for step, (alpha, weight) in enumerate(pairs, start=1):
        paths.add(paths.slopes([image], [alpha], pick), [weight])
        if not all_finite(paths.close(image)):
            return NotFinite(image, alpha, step)
    return NotFinite(image, pairs[-1][0], len(pairs))  # in another order, their sum overflows


@dataclass(frozen=True)
class Auto:
    """As many steps as an image needs: doubled from `first` until two tests pass, or to `most`.

    completeness: largest |Σφ − (f(x) − f(b))| relative to |f(x) − f(b)|
    agreement:    least intersection over union of the masks before and after the last doubling,
                  of the squares with `side` that hold the top p % of the positive attribution
    """

    completeness: float = 0.05
    agreement: float = 0.95
    first: int = 25
    most: int = 800
    p: float = 50
    side: int = 3


@dataclass(frozen=True)
class Attribution:
    """What Integrated Gradients says about N images.

    values:      (N, C, H, W) φ, summing to output − baseline_output but for the quadrature's error;
                 of `attribute_squares` (N, 2, P, Q), the positive and the negative part of each
                 square
    predicted:   (N,) int64, the class of the largest logit at the image
    target:      (N,) int64, the class whose output was attributed
    output:      (N,) f at the image
    baseline_output: (N,) f at the baseline, averaged over several baselines
    n_steps:     (N,) int64, the steps taken on each path
    of_squares:  whether values are of squares
    """

    values: Tensor
    predicted: Tensor
    target: Tensor
    output: Tensor
    baseline_output: Tensor
    n_steps: Tensor
    of_squares: bool = False

    @property
    def completeness(self) -> Tensor:
        """(N,) float64: Σφ − (f(x) − f(b)), zero for an exact integral."""
        sums = self.values.double().sum(dim=(2, 3))
        total = sums[:, 0] - sums[:, 1] if self.of_squares else sums.sum(dim=1)
        return total - self._change

    @property
    def relative_completeness(self) -> Tensor:
        """(N,) float64: its size relative to f(x) − f(b); NaN where f does not change."""
        error, change = self.completeness.abs(), self._change.abs()
        return torch.where(change > 0, error / change, torch.nan)

    @property
    def _change(self) -> Tensor:
        return self.output.double() - self.baseline_output.double()


def integrated_gradients(
    model: Callable[[Tensor], Tensor] | Network,
    images: Tensor,
    *,
    baselines: Tensor | None = None,
    target: Any = None,
    of: str = "probability",
    rule: str = "right",
    n_steps: int | Auto = 50,
    batch_size: int | None = None,
    precision: str = "fp32",
    engine: str = "eager",
) -> Attribution:
    """Return the attribution of a classifier's output to the pixels of its images.

    model:     (N, C, H, W) → logits (N, n_classes); in evaluation mode, on the images' device. Or
               what `prepare` made of one for such images, precision and engine, which spares a look
               at all of its weights in each of many calls
    images:    (N, C, H, W) floating point
    baselines: (n_baselines, N, C, H, W), averaged over the first axis; black if None
    target:    (N,) integer classes, a tensor, array or list, or one for all; the predicted if None
    of:        f, `probability` (softmax of the target class) or `logit`
    rule, n_steps: see `quadrature.rule`; with `Auto`, as many as each image needs
    batch_size: (image, step) pairs of a forward pass; None: from the free memory
    precision, engine: see `network.prepare`; `fp32` is the images' own, float64 say
    raises     InputError if the model is in training mode or elsewhere than the images, if it
               answers the first of them as no classifier does (see `contract`), if its output is
               not differentiable, if a target is out of range, if baselines do not fit, and
               NotFinite for a NaN or infinite gradient
    """
    study = _study(model, images, baselines, target, of, n_steps, batch_size, precision, engine)
    with torch.inference_mode(False):
        return study.follow(rule, n_steps)


def attribute_squares(
    model: Callable[[Tensor], Tensor] | Network,
    images: Tensor,
    *,
    side: int = 3,
    baselines: Tensor | None = None,
    target: Any = None,
    of: str = "probability",
    rule: str = "right",
    n_steps: int | Auto = 50,
    batch_size: int | None = None,
    precision: str = "fp32",
    engine: str = "eager",
) -> Attribution:
    """Return what `square_parts` makes of the `integrated_gradients` of the same arguments.

    From one baseline and in so many steps φ is never written: each image's gradient goes to its
    squares at once. Images in 16 bits have their parts from φ in single precision. Steps by `Auto`
    are judged by squares of this side.
    """
    side = integer("the side of squares", side)
    if side < 1:
        raise InputError(f"the side of squares must be at least 1, got {side}")
    if isinstance(n_steps, Auto):
        n_steps = replace(n_steps, side=side)
    study = _study(model, images, baselines, target, of, n_steps, batch_size, precision, engine)
    with torch.inference_mode(False):
        if not isinstance(n_steps, Auto) and study.has_one_baseline:
            return study.attribute_squares(*checked_rule(rule, n_steps), side)
        found = study.follow(rule, n_steps)
    return replace(found, values=square_parts(found.values, side=side), of_squares=True)


def _study(
    model: Callable[[Tensor], Tensor] | Network,
    images: Tensor,
    baselines: Tensor | None,
    target: Any,
    of: str,
    n_steps: int | Auto,
    batch_size: int | None,
    precision: str,
    engine: str,
) -> "_Study":
    """What is asked of `integrated_gradients`, checked and made ready."""
    if of not in FUNCTIONS:
        raise InputError(f"unknown function {of!r}; choose from {', '.join(FUNCTIONS)}")
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a tensor (N, C, H, W), got {type(images).__name__}")
    if baselines is None:
        baselines = torch.zeros_like(images).unsqueeze(0)
    if not isinstance(n_steps, Auto):
        integer("n_steps", n_steps, "an integer or igmask.Auto()")
    if isinstance(n_steps, Auto) and n_steps.most < 2 * n_steps.first:
        raise InputError(f"{n_steps} leaves no room for one doubling")
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"images must be (N, C, H, W) floating point, got {tuple(images.shape)} of "
            f"{images.dtype}"
        )
    if not isinstance(baselines, Tensor):
        raise InputError(
            "baselines must be a tensor (n_baselines, N, C, H, W), got "
            f"{type(baselines).__name__}; value * torch.ones_like(images)[None] is of one value"
        )
    if not len(baselines):
        raise InputError("there is no baseline")
    if baselines.shape[1:] != images.shape or baselines.dtype != images.dtype:
        raise InputError(
            f"baselines {tuple(baselines.shape)} of {baselines.dtype} do not fit images "
            f"{tuple(images.shape)} of {images.dtype}; they need one more axis in front"
        )
    if isinstance(model, Network):
        asked = (*images.shape[1:],), images.dtype, images.device, precision, engine
        ready = *model.takes, model.precision, model.engine
        if asked != ready or model.answer is None:
            raise InputError(
                "the network was made ready for other images, precision or engine: for "
                f"{', '.join(map(str, ready))}, not for {', '.join(map(str, asked))}"
            )
    elif is_training(model):
        raise InputError("the model is in training mode; call model.eval() first")
    classes = None if target is None else classes_of(target, len(images))
    images, baselines = ordinary(images), ordinary(baselines)
    with torch.inference_mode(False):
        network = (
            model
            if isinstance(model, Network)
            else prepare(model, images, precision=precision, engine=engine)
        )
        if network.answer is not None:
            check_classifier(network.answer, of=of)
        return _Study(network, images, baselines, classes, of, batch_size)


def ordinary(x: Tensor) -> Tensor:
    """Return the tensor, detached; a copy if it is one of torch.inference_mode."""
    with torch.inference_mode(False):
        return x.clone() if x.is_inference() else x.detach()


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


def checked_rule(rule: str, n_steps: int) -> tuple[list[float], list[float]]:
    """Return (positions, weights) of a rule, or raise InputError."""
    return _checked(quadrature.rule, rule, integer("n_steps", n_steps))


T = TypeVar("T")


def _checked(ask: Callable[[str, int], T], rule: str, n_steps: int) -> T:
    try:
        return ask(rule, n_steps)
    except ValueError as error:
        raise InputError(str(error)) from None


class _Study:
    """One call of `integrated_gradients`: its images, and what is known of them so far."""

    def __init__(
        self,
        network: Network,
        images: Tensor,
        baselines: Tensor,
        target: Tensor | None,
        of: str,
        batch_size: int | None,
    ) -> None:
        self._network, self._images, self._baselines = network, images, baselines
        self._of, self._batch_size = of, batch_size
        shape, device = (len(images),), images.device
        self._given, self._checked = target is not None, False
        # −1 until the network has seen the image itself, which comes first on its path.
        self._classes = (
            torch.full(shape, -1, device=device)
            if target is None
            else target.to(device, torch.int64).expand(shape).clone()
        )
        self._predicted = torch.full(shape, -1, device=device)
        single = torch.promote_types(images.dtype, torch.float32)
        self._output = torch.zeros(shape, dtype=single, device=device)
        self._at_baseline = torch.zeros_like(self._output)  # of the baseline under way

    def follow(self, rule: str, n_steps: int | Auto) -> Attribution:
        """Return the attribution by a rule and so many steps, or as many as are needed."""
        if isinstance(n_steps, Auto):
            return self.until_settled(rule, n_steps)
        return self.attribute(*checked_rule(rule, n_steps))

    def attribute(self, positions: Sequence[float], weights: Sequence[float]) -> Attribution:
        """Return the attribution by a quadrature rule; f(x) and f(b) ride in the same batches."""
        with_ends = _with_ends(positions, weights)
        values = torch.zeros_like(self._images)
        baseline_output = torch.zeros_like(self._output)
        for baseline in self._baselines:
            values += self._along(baseline, *with_ends) / len(self._baselines)
            baseline_output += self._at_baseline / len(self._baselines)
        n_steps = torch.full_like(self._predicted, len(positions))
        return Attribution(
            values, self._predicted, self._classes, self._output, baseline_output, n_steps
        )

    @property
    def has_one_baseline(self) -> bool:
        """Whether the φ of an image is that of one path."""
        return len(self._baselines) == 1

    def attribute_squares(
        self, positions: Sequence[float], weights: Sequence[float], side: int
    ) -> Attribution:
        """Return the attribution of squares from one baseline, as `attribute` returns φ."""
        images, (baseline,) = self._images, self._baselines
        height, width = images.shape[2:]
        parts = self._output.new_empty((len(images), 2, *grid(height, width, side)))
        for i, slope in enumerate(self._slopes(baseline, *_with_ends(positions, weights))):
            x, b = (t[i : i + 1].to(slope) for t in (images, baseline))
            parts[i] = attribution_parts(x, b, slope, side=side)[0]
        n_steps = torch.full_like(self._predicted, len(positions))
        answers = self._predicted, self._classes, self._output, self._at_baseline, n_steps
        return Attribution(parts, *answers, of_squares=True)

    def until_settled(self, rule: str, auto: Auto) -> Attribution:
        """Return the attribution by as many steps as `auto` asks for, image by image."""
        _checked(quadrature.between, rule, auto.first)  # before any work
        found = self.attribute(*checked_rule(rule, auto.first))
        open_images = torch.arange(len(self._images))
        while len(open_images):
            n_steps = int(found.n_steps[open_images[0]])
            positions, weights, doubled = quadrature.between(rule, n_steps)
            if doubled > auto.most:
                break
            before = found.values[open_images]
            part = _Study(
                self._network,
                self._images[open_images],
                self._baselines[:, open_images],
                self._classes[open_images],
                self._of,
                self._batch_size,
            )
            between = torch.zeros_like(before)
            try:
                for baseline in part._baselines:
                    between += part._along(baseline, positions, weights) / len(part._baselines)
            except NotFinite as error:
                image = int(open_images[error.image])
                raise NotFinite(image, error.alpha, error.step) from None
            found.values[open_images] = (before + between) / 2
            found.n_steps[open_images] = doubled
            agreement = overlap(before, found.values[open_images], p=auto.p, side=auto.side)
            inexact = found.relative_completeness[open_images].nan_to_num(0)
            settled = (agreement >= auto.agreement) & (inexact <= auto.completeness)
            open_images = open_images[~settled.cpu()]
        return found

    def _along(
        self, baseline: Tensor, positions: Sequence[float], weights: Sequence[float]
    ) -> Tensor:
        values = torch.empty_like(self._images)
        for i, slope in enumerate(self._slopes(baseline, positions, weights)):
            values[i] = (self._images[i] - baseline[i]) * slope[0]
        return values

    def _slopes(
        self, baseline: Tensor, positions: Sequence[float], weights: Sequence[float]
    ) -> Iterator[Tensor]:
        return path_gradients(
            self._network,
            self._images,
            baseline,
            self._pick,
            positions=positions,
            weights=weights,
            batch_size=self._batch_size,
        )

    def _pick(self, logits: Tensor, owners: list[int], alphas: list[float]) -> Tensor:
        check_scores(logits, len(owners))
        device = logits.device
        rows = on_device(owners, device)
        at_image = [row for row, alpha in enumerate(alphas) if alpha == 1]
        if at_image:
            of_image = on_device(at_image, device)
            self._predicted[rows[of_image]] = logits[of_image].detach().argmax(dim=1)
            if not self._given:
                self._classes = self._predicted.clone()
            elif not self._checked and (
                int(self._classes.min()) < 0 or int(self._classes.max()) >= logits.shape[1]
            ):
                raise InputError(
                    f"targets {int(self._classes.min())} … {int(self._classes.max())} do not fit "
                    f"a model of {logits.shape[1]} classes"
                )
            self._checked = True
        scores = logits.softmax(dim=1) if self._of == "probability" else logits
        picked = scores.gather(1, self._classes[rows].unsqueeze(1)).squeeze(1)
        value = picked.detach().to(self._output.dtype)
        if at_image:
            self._output[rows[of_image]] = value[of_image]
        at_baseline = [row for row, alpha in enumerate(alphas) if alpha == 0]
        if at_baseline:
            of_baseline = on_device(at_baseline, device)
            self._at_baseline[rows[of_baseline]] = value[of_baseline]
        return picked


def _with_ends(
    positions: Sequence[float], weights: Sequence[float]
) -> tuple[list[float], list[float]]:
    """The positions with 1 and 0 first, of weight zero where the rule does without them."""
    rule = dict(zip(positions, weights, strict=True))
    ordered = {1.0: rule.pop(1.0, 0.0), 0.0: rule.pop(0.0, 0.0)} | rule
    return list(ordered), list(ordered.values())


def overlap(before: Tensor, after: Tensor, *, p: float, side: int = 3) -> Tensor:
    """Intersection over union of the masks of two attributions, (N,); 1 where both are empty."""
    old, new = (select(square_scores(v, side=side), p) for v in (before, after))
    union = (old | new).sum(dim=(1, 2))
    return torch.where(union > 0, (old & new).sum(dim=(1, 2)) / union.clamp(min=1), 1.0)
