"""Integrated Gradients (Sundararajan, Taly & Yan 2017): φ = (x − b) · Σ_h w_h ∇f(b + α_h (x − b)).

`integrated_gradients` is the experiment's call: an image classifier, its predicted class,
completeness. queue.py has the sums along the paths, captum.py the class with Captum's signature.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from igmask import quadrature
from igmask.engine.network import Network, ordinary
from igmask.engine.queue import NotFinite, at_least_1, path_gradients, path_outputs
from igmask.engine.ready import is_training, prepare
from igmask.engine.targets import classes_of
from igmask.errors import InputError, integer
from igmask.inputs.contract import check_classifier, check_scores
from igmask.kernels import attribution_parts, grid, on_device, select, square_parts, square_scores
from igmask.quadrature import Following, Refinement, Rule, Uniform, checked_rule, some, with_ends

# name → of the logits of a batch, (B, classes), the f of each class.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "probability": lambda logits: logits.softmax(dim=1),
    "logit": lambda logits: logits,
}


# Of f(x) − f(b): what `skip` may lack of completeness before it takes all steps after all. More
# than a rule itself mostly lacks, less than an image does that is lost.
_SHORT = 0.2


@dataclass(frozen=True)
class Auto:
    """As many steps as an image needs: doubled from `first` until two tests pass, or to `most`.

    completeness: largest |Σφ − (f(x) − f(b))| relative to |f(x) − f(b)|
    agreement:    least intersection over union of the masks before and after the last doubling,
                  of the squares with `side` that hold the top p % of the positive attribution
    first:        None: 25, of the rule `adaptive` 17, the edges of 16 cells
    """

    completeness: float = 0.05
    agreement: float = 0.95
    first: int | None = None
    most: int = 800
    p: float = 50
    side: int = 3

    def first_of(self, rule: str) -> int:
        """Return how many steps of a rule come first."""
        default = 17 if rule == quadrature.ADAPTIVE else 25
        return default if self.first is None else self.first


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
    side: int | None = None,
    skip: float | None = None,
) -> Attribution:
    """Return the attribution of a classifier's output to the pixels of its images.

    model:     (N, C, H, W) → logits (N, n_classes); in evaluation mode, on the images' device. Or
               what `prepare` made of one for such images, precision and engine, which spares a look
               at all of its weights in each of many calls
    images:    (N, C, H, W) floating point
    baselines: (n_baselines, N, C, H, W), averaged over the first axis; black if None
    target:    (N,) integer classes, a tensor, array or list, or one for all; the predicted if None
    of:        f, `probability` (softmax of the target class) or `logit`
    rule, n_steps: n_steps = m positions h/m (`right`), (h − 1)/m (`left`), (h − ½)/m (`middle`),
               `trapezoid`, `gauss-legendre`; `adaptive` takes them on each path where f changes,
               which 16 forward passes tell; Captum's names mean Captum's weights. With `Auto`, as
               many as each image needs
    skip:      leave out steps where the softmax's slope p (1 − p) is less than this, 1e-4 say, as
               16 forward passes tell; an image that then lacks more than 20 % of completeness has
               them after all. For a probability, by a fixed rule and number of steps
    batch_size: (image, step) pairs of a forward pass; None: from the free memory
    precision: `fp32`, the images' own, float64 say; `bf16`, `fp16`, and on a GPU `tf32`
    engine:    `eager`, `compile`, and on a GPU `cudagraph`: how the network runs
    side:      of squares: the result has (N, 2, P, Q) instead of pixels, the sums of positive and
               of negative attributions
    raises     InputError if the model is in training mode or elsewhere than the images, if it
               answers the first of them as no classifier does, if its output is
               not differentiable, if a target is out of range, if baselines do not fit, and
               NotFinite for a NaN or infinite gradient
    """
    if of not in FUNCTIONS:
        raise InputError(f"unknown function {of!r}; choose from {', '.join(FUNCTIONS)}")
    side = at_least_1("the side of squares", side)
    steps = _checked_steps(n_steps, rule, side)
    asked = "auto" if isinstance(steps, Auto) else steps
    quadrature.check_asked(rule, asked, of=of, skip=skip)
    images, baselines = _checked_images(images, baselines)
    _check_network(model, images, precision, engine)
    classes = None if target is None else classes_of(target, len(images))
    with torch.inference_mode(False):
        if not isinstance(model, Network):
            model = prepare(model, images, precision=precision, engine=engine)
        if model.answer is not None:
            check_classifier(model.answer, of=of)
            if classes is not None and len(images):
                _check_classes(classes, n_classes=model.answer.outputs.shape[1])
        study = _Study(model, images, baselines, classes, of, batch_size, skip)
        return study.attribution(rule, steps, side)


def attribute_squares(
    model: Callable[[Tensor], Tensor] | Network, images: Tensor, *, side: int = 3, **options: Any
) -> Attribution:
    """Return what `square_parts` makes of the `integrated_gradients` of the same options.

    From one baseline and in so many steps φ is never written: each image's gradient goes to its
    squares at once. Images in 16 bits have their parts from φ in single precision. Steps by `Auto`
    are judged by squares of this side.
    """
    return integrated_gradients(model, images, side=side, **options)


def _checked_steps(n_steps: Any, rule: str, side: int | None) -> int | Auto:
    if not isinstance(n_steps, Auto):
        return integer("n_steps", n_steps, "an integer or igmask.Auto()")
    first = integer("the first number of steps of Auto", n_steps.first_of(rule))
    auto = replace(n_steps, first=first, side=n_steps.side if side is None else side)
    if _refinement(rule, first).finer() > auto.most:
        raise InputError(f"{auto} leaves no room for one doubling")
    return auto


def _refinement(rule: str, first: int, n_images: int = 0, probed: Any = ()) -> Refinement:
    """What doubles the steps of a rule; `probed` as `Following` takes it."""
    adaptive = rule == quadrature.ADAPTIVE
    return Following(probed, first) if adaptive else Uniform(rule, first, n_images)


def _checked_images(images: Any, baselines: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a tensor (N, C, H, W), got {type(images).__name__}")
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"images must be (N, C, H, W) floating point, got {tuple(images.shape)} of "
            f"{images.dtype}"
        )
    if baselines is None:
        baselines = torch.zeros_like(images).unsqueeze(0)
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
    return ordinary(images), ordinary(baselines)


def _check_network(model: Any, images: Tensor, precision: str, engine: str) -> None:
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


def _check_classes(classes: Tensor, n_classes: int) -> None:
    least, most = int(classes.min()), int(classes.max())
    if least < 0 or most >= n_classes:
        bad = most if most >= n_classes else least
        raise InputError(f"target {bad}: the classes of the model are 0 … {n_classes - 1}")


@dataclass
class _Study:
    """One call of `integrated_gradients`: its images, and what is known of them so far."""

    network: Network
    images: Tensor
    baselines: Tensor
    target: Tensor | None
    of: str
    batch_size: int | None
    skip: float | None = None

    def __post_init__(self) -> None:
        shape, device = (len(self.images),), self.images.device
        # −1 until the network has seen the image itself, which comes first on its path.
        self._classes = self._predicted = torch.full(shape, -1, device=device)
        if self.target is not None:
            self._classes = self.target.to(device, torch.int64).expand(shape)
        single = torch.promote_types(self.images.dtype, torch.float32)
        self._output = torch.zeros(shape, dtype=single, device=device)
        self._at_baseline = torch.zeros_like(self._output)  # of the baseline under way
        self._left_out = torch.zeros(shape, dtype=torch.int64)  # steps, of all baselines

    def attribution(self, rule: str, n_steps: int | Auto, side: int | None) -> Attribution:
        """Return the attribution by so many steps of a rule, or by as many as are needed.

        side: of squares whose parts take the place of φ; None: φ as it is
        """
        if isinstance(n_steps, Auto):
            found = self._until_settled(rule, n_steps)
        else:
            fixed = checked_rule(rule, n_steps)
            fixed = with_ends(fixed) if self.skip is None else fixed

            def rules(number: int) -> Sequence[Rule]:
                if rule == quadrature.ADAPTIVE:
                    return quadrature.following(self._probed(number), n_steps)
                return [fixed] * len(self.images)

            if side is not None and len(self.baselines) == 1:
                parts = self._of_squares(rules, side)
                return self._answer(parts, self._at_baseline, n_steps, of_squares=True)
            found = self._answer(*self._of_pixels(rules), n_steps)
        if side is None:
            return found
        return replace(found, values=square_parts(found.values, side=side), of_squares=True)

    def _answer(
        self, values: Tensor, baseline_output: Tensor, n_steps: int, of_squares: bool = False
    ) -> Attribution:
        unknown = (self._output.isnan() | baseline_output.isnan()).tolist()
        if any(unknown):
            raise InputError(
                f"image {unknown.index(True)}: the network's output at the image or the baseline "
                "is NaN; look for infinities that meet in the network, or, in half precision, for "
                "overflow"
            )
        steps = n_steps - self._left_out.to(values.device) // len(self.baselines)
        known = self._predicted, self._classes.clone(), self._output
        return Attribution(values, *known, baseline_output, steps, of_squares)

    def _of_pixels(self, rules: Callable[[int], Sequence[Rule]]) -> tuple[Tensor, Tensor]:
        """(φ, f at the baseline), averaged over the baselines; `rules` of each baseline."""
        values, baseline_output = torch.zeros_like(self.images), torch.zeros_like(self._output)
        for number, baseline in enumerate(self.baselines):
            of_one = torch.empty_like(self.images)
            for i, slope in enumerate(self._slopes(number, rules(number))):
                of_one[i] = (self.images[i] - baseline[i]) * slope[0]
            values += of_one / len(self.baselines)
            baseline_output += self._at_baseline / len(self.baselines)
        return values, baseline_output

    def _of_squares(self, rules: Callable[[int], Sequence[Rule]], side: int) -> Tensor:
        """The parts of the squares from the one baseline."""
        images, (baseline,) = self.images, self.baselines
        height, width = images.shape[2:]
        parts = self._output.new_empty((len(images), 2, *grid(height, width, side)))
        for i, slope in enumerate(self._slopes(0, rules(0))):
            x, b = (t[i : i + 1].to(slope) for t in (images, baseline))
            parts[i] = attribution_parts(x, b, slope, side=side)[0]
        return parts

    def _slopes(self, number: int, rules: Sequence[Rule]) -> Iterator[Tensor]:
        """The sums of gradients on the paths from a baseline, one of an image."""
        if self.skip is None:
            return self._sums(number, rules)
        return self._skipping(number, rules, self.skip)

    def _sums(self, number: int, rules: Sequence[Rule]) -> Iterator[Tensor]:
        on_path = self.network, self.images, self.baselines[number], self._pick, rules
        return path_gradients(*on_path, batch_size=self.batch_size)

    def _skipping(self, number: int, rules: Sequence[Rule], least: float) -> Iterator[Tensor]:
        """The sums of the steps that count; of all where those fall short of completeness."""
        taken = list(map(partial(quadrature.steep, least=least), rules, self._probed(number)))
        baseline, change = self.baselines[number], self._output - self._at_baseline
        try:
            for i, slope in enumerate(self._sums(number, list(map(some, rules, taken)))):
                total = ((self.images[i] - baseline[i]) * slope[0]).double().sum()
                is_short = (total - change[i]).abs() > _SHORT * change[i].abs()
                if is_short and not taken[i].all():
                    with _naming([i]):
                        alone = self._of_images(torch.tensor([i]))
                        [rest] = alone._sums(number, [some(rules[i], ~taken[i])])
                    slope = slope + rest
                else:
                    self._left_out[i] += int((~taken[i]).sum())
                yield slope
        except NotFinite as error:  # whose step is counted among those that were taken
            step = sorted(rules[error.image][0]).index(error.alpha) + 1
            raise NotFinite(error.image, error.alpha, step) from None

    def _of_images(self, images: Tensor) -> "_Study":
        """The same of some images, whose classes are known by now."""
        return replace(
            self,
            images=self.images[images],
            baselines=self.baselines[:, images],
            target=self._classes[images],
        )

    def _probed(self, number: int) -> list[list[float]]:
        """f at the probes of each image's path from a baseline, by forward passes alone."""
        at = quadrature.PROBES[::-1]  # the image first, whose predicted class is asked for
        on_path = self.network, self.images, self.baselines[number], self._pick, at
        return path_outputs(*on_path, batch_size=self.batch_size).flip(1).tolist()

    def _until_settled(self, rule: str, auto: Auto) -> Attribution:
        """As many steps as `auto` asks for, image by image."""
        probed: list[Any] = []
        if rule == quadrature.ADAPTIVE:
            probed = [self._probed(number) for number in range(len(self.baselines))]
        steps = _refinement(rule, auto.first_of(rule), len(self.images), probed)
        found = self._answer(*self._of_pixels(steps.rules), steps.n_steps)
        open_images = torch.arange(len(self.images))
        while len(open_images) and steps.finer() <= auto.most:
            before = found.values[open_images]
            part, at = self._of_images(open_images), open_images.tolist()
            with _naming(at):
                between, _ = part._of_pixels(partial(steps.between, images=at))
            steps.refine()
            found.values[open_images] = (before + between) / 2
            found.n_steps[open_images] = steps.n_steps
            agreement = overlap(before, found.values[open_images], p=auto.p, side=auto.side)
            inexact = found.relative_completeness[open_images].nan_to_num(0)
            settled = (agreement >= auto.agreement) & (inexact <= auto.completeness)
            open_images = open_images[~settled.cpu()]
        return found

    def _pick(self, logits: Tensor, owners: list[int], alphas: list[float]) -> Tensor:
        check_scores(logits, len(owners))
        rows = on_device(owners, logits.device)
        ends = [[i for i, alpha in enumerate(alphas) if alpha == end] for end in (1, 0)]
        image, baseline = (on_device(at, rows.device, rows.dtype) for at in ends)
        self._predicted[rows[image]] = logits[image].detach().argmax(dim=1)
        scores = FUNCTIONS[self.of](logits)
        picked = scores.gather(1, self._classes[rows].unsqueeze(1)).squeeze(1)
        value = picked.detach().to(self._output.dtype)
        self._output[rows[image]] = value[image]
        self._at_baseline[rows[baseline]] = value[baseline]
        return picked


@contextmanager
def _naming(images: Sequence[int]) -> Iterator[None]:
    """Let NotFinite name an image by its place among all, of a part that has but these."""
    try:
        yield
    except NotFinite as error:
        raise NotFinite(images[error.image], error.alpha, error.step) from None


def overlap(before: Tensor, after: Tensor, *, p: float, side: int = 3) -> Tensor:
    """Intersection over union of the masks of two attributions, (N,); 1 where both are empty."""
    old, new = (select(square_scores(v, side=side), p) for v in (before, after))
    union = (old | new).sum(dim=(1, 2))
    return torch.where(union > 0, (old & new).sum(dim=(1, 2)) / union.clamp(min=1), 1.0)
