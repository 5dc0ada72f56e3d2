"""How near attributions come to the converged ones, and in what time: igmask and Captum in turns.

A setting is a rule with its number of steps. Of each, on trained networks and images of a study:
seconds an image beside the intersection over union of its masks with the converged ones, the error
of φ, and how many masked images are predicted as with the converged mask.
"""

import contextlib
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from igmask.asked.settings import Model, Study
from igmask.bench.contestants import require_captum, timed
from igmask.bench.pages import Row, describe
from igmask.devices import keep_freed_memory, n_cores, take_device
from igmask.engine.ig import Auto, integrated_gradients, overlap
from igmask.engine.network import Network
from igmask.engine.ready import prepare
from igmask.errors import InputError
from igmask.inputs import models
from igmask.inputs.data import index, opener
from igmask.inputs.decode import fit
from igmask.kernels import occlude, select, square_scores
from igmask.progress import progress, say

N_IMAGES = 32
CONVERGED = 1200  # steps of the reference, each at the middle of its share of the path
_P = (50, 90)
_PACKAGES = ("igmask", "torch", "captum", "numpy")

_CAPTUM_RULES = ("riemann_right", "riemann_middle", "riemann_trapezoid", "gausslegendre")
_CAPTUM_STEPS = (15, 25, 50, 100, 200)
_CAPTUM_GROUP, CAPTUM_BATCHES = 4, (4, 8, 16, 32, 64)  # images a call; its internal_batch_size
_STEPS = {
    "right": (15, 25, 50, 100, 200),
    "adaptive": (9, 12, 14, 16, 18, 20, 23, 26, 30, 35, 40, 50, 70, 100),
}
_GROUP = 16  # images a call, as in a study


@dataclass(frozen=True)
class Way:
    """A way to attribute: whose, by which rule, in how many steps; `options` of igmask alone."""

    who: str
    rule: str
    steps: int | str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def curve(self) -> str:
        """The name of the ways that differ from this in the number of steps alone."""
        return f"{self.who} {self.rule}"


def _ways() -> list[Way]:
    captum = [Way("captum", rule, m) for rule, m in product(_CAPTUM_RULES, _CAPTUM_STEPS)]
    fixed = [Way("igmask", rule, m) for rule, steps in _STEPS.items() for m in steps]
    auto = [
        Way("igmask", rule, f"auto {agreement}", (("n_steps", Auto(agreement=agreement)),))
        for rule, agreement in product(_STEPS, (0.9, 0.95))
    ]
    return [*captum, *fixed, *auto, Way("igmask", "right, skip 1e-4", 50, (("skip", 1e-4),))]


def measure(
    study: Study,
    names: tuple[str, ...],
    *,
    n_images: int,
    repeats: int,
    device: str,
    threads: int | None,
) -> Iterator[dict[str, Any]]:
    """Yield what was measured so far, after each network: the machine, and a row a way.

    names:    of the study's models; all if there are none
    repeats:  turns of each way, whose median time counts
    raises    InputError for a model that the study has not, or if Captum is not installed
    """
    if unknown := sorted(set(names) - set(study.models)):
        raise InputError(f"unknown models {unknown}; the study has {', '.join(study.models)}")
    require_captum()
    where = take_device(device)
    threads = threads or n_cores()
    torch.set_num_threads(threads)
    if trained := [name for name in names or study.models if study.models[name].train]:
        raise InputError(
            f"{', '.join(trained)}: not trained yet; --configfile says of a study whose networks "
            "have weights, such as config/photos.yaml"
        )
    records, _ = index(study.dataset)
    open_image = opener(study.dataset, seed=study.seed)
    rows: list[Row] = []
    for name in names or tuple(study.models):
        model = models.complete(study.models[name])
        chosen = np.random.default_rng(0).permutation(len(records))[:n_images]
        if len(chosen) < n_images:
            say(f"{name}: there are {len(chosen)} images, not {n_images}")
        shown = records.iloc[chosen].itertuples(index=False)
        read = np.stack([fit(open_image(record), model.geometry) for record in shown])
        pixels = models.pixels(read, where)
        rows += [row | {"model": name} for row in _measure_model(name, model, pixels, repeats)]
        yield {"machine": describe(str(where), threads, _PACKAGES), "rows": rows}


def _measure_model(name: str, model: Model, images: Tensor, repeats: int) -> list[Row]:
    network = models.load(model, device=images.device)
    if note := models.random_weights(network, model):
        say(f"warning: {name} {note}, and what is found holds for trained networks")
    targets = _predicted(network, images)
    exact = converged(network, images, targets, label=f"{name}: converged")
    moves = exact.flatten(1).norm(dim=1) > 0
    if not moves.all():  # an image that is the baseline has no error relative to nothing
        say(f"{name}: left out {int((~moves).sum())} images without any attribution")
        images, targets, exact = images[moves], targets[moves], exact[moves]
    if not len(images):
        raise InputError(f"{name}: no image has any attribution")
    truth = _Truth(network, images, exact)
    captum, ready = _Captum(network, images, targets), _Igmask(network, images, targets)
    ways = _ways()
    times: dict[Way, list[float]] = {way: [] for way in ways}
    found: dict[Way, Row] = {}
    for turn in range(repeats):
        label = f"{name}: turn {turn + 1} of {repeats}"
        for way in progress(ways, total=len(ways), unit="settings", label=label):
            work = partial(captum if way.who == "captum" else ready, way)
            seconds, (values, n_steps) = timed(work, on_gpu=images.is_cuda)
            times[way].append(seconds / len(images))
            found.setdefault(way, truth.quality(values) | {"steps_taken": n_steps})
    common = {"n_images": len(images), "n_turns": repeats, "batch_size": captum.batch_size}
    return [
        asdict(way)
        | {"options": None, "curve": way.curve, "seconds": statistics.median(times[way])}
        | {"fastest": min(times[way]), "slowest": max(times[way])}
        | found[way]
        | common
        for way in ways
    ]


def converged(network: nn.Module, images: Tensor, targets: Tensor, *, label: str) -> Tensor:
    """Return φ (N, C, H, W) float64 of the targets' probabilities from black, in CONVERGED steps.

    Gradients in the network's precision, sums in float64; nothing of igmask's engine.
    """
    alphas = (torch.arange(CONVERGED, dtype=torch.float64, device=images.device) + 0.5) / CONVERGED
    if not images.is_cuda:
        keep_freed_memory()
    values = []
    pairs = zip(images, targets, strict=True)
    for image, target in progress(pairs, total=len(images), unit="images", label=label):
        total = torch.zeros_like(image, dtype=torch.float64)
        for few in alphas.split(_GROUP):
            points = few.to(image)[:, None, None, None] * image
            points.requires_grad_()
            output = network(points).softmax(dim=1)[:, target].sum()
            total += torch.autograd.grad(output, points)[0].double().sum(dim=0)
        values.append(image * total / CONVERGED)
    return torch.stack(values)


class _Truth:
    """The converged attributions, their masks, and what the network says of the masked images."""

    def __init__(self, network: nn.Module, images: Tensor, values: Tensor) -> None:
        self._network, self._images, self._values = network, images, values
        self._predicted = self._of_masked(_masks(values))

    def quality(self, values: Tensor) -> Row:
        """Return how near attributions (N, C, H, W) come: means, and standard errors of IoU."""
        n = len(values)
        error = (values - self._values).flatten(1).norm(dim=1) / self._values.flatten(1).norm(dim=1)
        row: Row = {"l2": float(error.mean()), "l2_worst": float(error.max())}
        for p in _P:
            iou = overlap(values.float(), self._values.float(), p=p).double()
            row[f"iou_{p}"] = float(iou.mean())
            row[f"se_{p}"] = float(iou.std() / n**0.5) if n > 1 else None
        for mode, predicted in self._of_masked(_masks(values)).items():
            row[f"same_{mode}"] = float((predicted == self._predicted[mode]).double().mean())
        return row

    def _of_masked(self, masks: Tensor) -> dict[str, Tensor]:
        return {
            mode: _predicted(self._network, occlude(self._images, shown))
            for mode, shown in (("keep", masks), ("drop", ~masks))
        }


def _predicted(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(few).argmax(dim=1) for few in images.split(_GROUP)])


def _masks(values: Tensor) -> Tensor:
    return select(square_scores(values.float(), side=3), 50)


class _Igmask:
    """igmask with a network made ready, as a study hands it over."""

    def __init__(self, network: nn.Module, images: Tensor, targets: Tensor) -> None:
        self._ready: Network = prepare(network, images, precision="fp32")
        self._images, self._targets = images, targets
        integrated_gradients(self._ready, images[:1], n_steps=2)

    def __call__(self, way: Way) -> tuple[Tensor, float]:
        """Return φ, and the mean number of steps taken."""
        rule = way.rule.partition(",")[0]
        options = {"rule": rule, "n_steps": way.steps} | dict(way.options)
        groups = zip(self._images.split(_GROUP), self._targets.split(_GROUP), strict=True)
        found = [integrated_gradients(self._ready, x, target=t, **options) for x, t in groups]
        taken = torch.cat([one.n_steps for one in found]).double().mean()
        return torch.cat([one.values for one in found]), float(taken)


class _Captum:
    """Captum at its best: frozen weights, the faster layout, kept memory, the best batch size."""

    def __init__(self, network: nn.Module, images: Tensor, targets: Tensor) -> None:
        from captum.attr import IntegratedGradients

        tuned = nn.Sequential(network, nn.Softmax(dim=1)).requires_grad_(False)
        if not images.is_cuda:
            tuned = tuned.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
            keep_freed_memory()
        self._of = IntegratedGradients(tuned)
        self._groups = list(
            zip(images.split(_CAPTUM_GROUP), targets.split(_CAPTUM_GROUP), strict=True)
        )
        self.batch_size = 0
        tried = {}
        for size in CAPTUM_BATCHES:
            with contextlib.suppress(torch.OutOfMemoryError):
                for _ in range(2):  # the first of a size is slower
                    tried[size], _ = timed(partial(self._some, 1, size, 16), on_gpu=images.is_cuda)
        self.batch_size = min(tried, key=tried.__getitem__)
        say(f"captum: internal_batch_size {self.batch_size} of {', '.join(map(str, tried))}")

    def __call__(self, way: Way) -> tuple[Tensor, float]:
        """Return φ, and the number of steps taken."""
        values = self._some(len(self._groups), self.batch_size, int(way.steps), way.rule)
        return values, float(way.steps)

    def _some(
        self, n_groups: int, size: int, n_steps: int, method: str = "riemann_right"
    ) -> Tensor:
        of = {"n_steps": n_steps, "method": method, "internal_batch_size": size}
        return torch.cat(
            [self._of.attribute(x, target=t, **of) for x, t in self._groups[:n_groups]]
        )
