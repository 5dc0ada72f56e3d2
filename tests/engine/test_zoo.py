"""Every classification network of torchvision against Captum, with weights drawn at random.

Minutes of work, so not run unless asked for: `pytest -m zoo`. With IGMASK_ZOO_TABLE=docs/zoo.md a
run of all of them also writes what it found.
"""

import datetime
import gc
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import captum
import captum.attr
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import igmask
from igmask.engine.ready import prepare
from igmask.engine.stem import Split

NAMES = torchvision.models.list_models(module=torchvision.models)
N_STEPS = 4  # a power of two: Captum rounds its weights to float32
N_IMAGES, N_MORE = 8, 17

# The side of the images where 64 pixels are too few or no multiple of the patch.
SIDES = {"inception_v3": 75, "maxvit_t": 224, "vit_h_14": 56}

# Two inputs a rounding apart may lie on two sides of a ReLU's kink; the gradient then jumps by a
# thousandth, in ours or Captum's. So float32 is judged by gradients on which nothing
# flips: the best of several, at the middle of the path, one for each image.
FLIP = 1e-5  # what one makes at least of a gradient's error
MIDDLE = {"rule": "gausslegendre", "n_steps": 1}
RIGHT = {"rule": "riemann_right", "n_steps": N_STEPS}


@dataclass(frozen=True)
class Row:
    """A line of the table; errors are relative to Captum in float64."""

    name: str
    side: int
    split: Split
    stem_flops: float  # share of the forward pass
    double: float
    single: tuple[float, float]  # ours, Captum's
    rounding: tuple[float, float, float]  # of the best image: ours, Captum's, in channels_last
    medians: tuple[float, float, float]  # of all images: ours, Captum's, in channels_last
    n_images: int


@pytest.fixture(scope="session")
def rows() -> Iterator[list[Row]]:
    """What the tests found; written at the end if it is wanted and whole."""
    found: list[Row] = []
    yield found
    path = os.environ.get("IGMASK_ZOO_TABLE")
    if path and len(found) == len(NAMES):
        Path(path).write_text(table(found))


@pytest.fixture
def room(monkeypatch):
    """Memory for the next network: the largest takes 12 GB, and eighty run in one process."""
    # What one has freed, the next cannot use piece by piece.
    monkeypatch.setattr("igmask.engine.ready.keep_freed_memory", lambda: None)
    yield
    gc.collect()  # the networks, which torch.fx leaves in cycles
    gc.collect()  # what was made ready of them


@pytest.mark.zoo
@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("name", NAMES)
def test_attributions_are_captums(rows, name):
    side = SIDES.get(name, 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = drawn(name, side)
        images, target = torch.rand(N_IMAGES, 3, side, side), torch.randint(1000, (N_IMAGES,))
        others = torch.rand(N_MORE, 3, side, side), torch.randint(1000, (N_MORE,))
    first = slice(0, 1)

    model.double()
    expected = captums(model, images[first].double(), target[first], **RIGHT)
    double = errors(igmasks(model, images[first].double(), target[first], **RIGHT), expected)[0]

    model.float()
    split = prepare(model, images[first], precision="fp32").split
    single = tuple(
        errors(f(model, images[first], target[first], **RIGHT), expected)[0]
        for f in (igmasks, captums)
    )
    found = in_single(model, images, target)
    if median(found[0]) > 2.5 * median(found[1]):  # by luck with so few images?
        more = in_single(model, *others)
        found = [one + another for one, another in zip(found, more, strict=True)]
    rounding, medians = tuple(map(min, found)), tuple(map(median, found))
    n_images = len(found[0])
    if medians[0] > 2.5 * max(medians[1:]) and medians[0] > FLIP:  # more than half meet a kink
        found = [[error for error in one if error < FLIP] for one in found]
        medians, n_images = tuple(map(median, found)), min(map(len, found))
    flops = stem_flops(split, images[first])
    split = replace(split, stem=None, trunk=None)
    rows.append(Row(name, side, split, flops, double, single, rounding, medians, n_images))
    assert (expected != 0).float().mean() > 0.5
    assert split.why_not == ""
    assert double <= 1e-10
    assert rounding[0] <= 2 * max(rounding[1:])
    assert medians[0] <= 2.5 * max(medians[1:])


def in_single(model: nn.Module, images: Tensor, target: Tensor) -> list[list[float]]:
    """Return the images' errors in float32: ours, Captum's, and Captum's in channels_last.

    That is the engine's layout on a CPU, in which oneDNN's convolutions round more.
    """
    expected = captums(model.double(), images.double(), target, **MIDDLE)
    model.float().to(memory_format=torch.contiguous_format)
    found = [igmasks(model, images, target, **MIDDLE), captums(model, images, target, **MIDDLE)]
    model.to(memory_format=torch.channels_last)
    found.append(captums(model, images, target, **MIDDLE))
    return [errors(one, expected) for one in found]


def median(errors: list[float]) -> float:
    """Return the median, without images whose attribution is 0."""
    return statistics.median(error for error in errors if error == error)


def drawn(name: str, side: int) -> nn.Module:
    """Return the network for images of a side, without one parameter or statistic left constant.

    Zeros (of heads, class tokens, biases) and ones (of norms and layer scales) would make
    gradients zero or hide mistakes.
    """
    options: dict[str, object] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False}  # theirs takes a minute
    elif name.startswith("vit"):
        options = {"image_size": side}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    for parameter in model.requires_grad_(False).parameters():
        if parameter.min() == parameter.max():
            scales = parameter.flatten()[0] > 0
            parameter.uniform_(0.5, 1.5) if scales else parameter.normal_(std=0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def igmasks(model: nn.Module, images: Tensor, target: Tensor, rule: str, n_steps: int) -> Tensor:
    return igmask.integrated_gradients(
        model, images, of="logit", target=target, rule=rule, n_steps=n_steps
    ).values


def captums(model: nn.Module, images: Tensor, target: Tensor, rule: str, n_steps: int) -> Tensor:
    """Two points a batch, to spare memory; one alone would not run on oneDNN."""
    attribute = captum.attr.IntegratedGradients(model).attribute
    found = [
        attribute(x, target=t, method=rule, n_steps=n_steps, internal_batch_size=2)
        for x, t in zip(images.split(2), target.split(2), strict=True)
    ]
    return torch.cat(found)


def errors(found: Tensor, expected: Tensor) -> list[float]:
    """Return the norm of the difference relative to what was expected, image by image."""
    differences = (found.double() - expected).flatten(1).norm(dim=1)
    return (differences / expected.flatten(1).norm(dim=1)).tolist()


def stem_flops(split: Split, images: Tensor) -> float:
    """Return the share of the forward pass that is the stem's."""
    with torch.no_grad():
        with FlopCounterMode(display=False) as stem:
            ends = split.stem(images)
        with FlopCounterMode(display=False) as trunk:
            split.trunk(*ends)
    return stem.get_total_flops() / (stem.get_total_flops() + trunk.get_total_flops())


def table(rows: list[Row]) -> str:
    """Return the page docs/zoo.md."""
    lines = [
        f"""\
# Every classification network of torchvision, against Captum

torch {torch.__version__}, torchvision {torchvision.__version__}, captum {captum.__version__}; one
CPU thread, {torch.backends.cpu.get_cpu_capability()}; {datetime.date.today()}.

    OMP_NUM_THREADS=1 IGMASK_ZOO_TABLE=docs/zoo.md pytest -m zoo

Weights, batch-norm statistics and images are random, and no parameter is left constant. Attribution
of a logit, black baseline, rule right, m = {N_STEPS}. Errors are norms of the difference to Captum
in float64, relative to its norm; in float32 ours / Captum's.

Where a unit lies within a rounding of a ReLU's or a max pooling's kink, the gradient jumps by about
a thousandth, and errors near it in float32 are such flips. Ours has more of them: on a CPU it runs
in channels_last, where oneDNN's convolutions round more. *Without flips* is the least error of
{N_IMAGES} images with one step at α = ½: ours / Captum's / Captum's on the model in channels_last.
The test asks that the first be at most twice the larger of the others. *Median*: the same of all
these images, and of {N_IMAGES + N_MORE} where ours would be more than 2.5 times Captum's; at most
2.5 times the larger of the others. One of 1e-4 and more says that half of the images meet a flip;
of regnet_y_128gf, of whose 25 images 14 do by ours, 14 by Captum's and 12 by Captum's in
channels_last, it is the median of those that do not.

*Stem* says where it ends, *then* what follows (the first two), *folded* how many batch norms went
into the layers before them, *FLOPs* the stem's share of a forward pass.

| model | pixels | stem | then | folded | FLOPs | float64 | float32 | without flips | median |
|---|---|---|---|---|---|---|---|---|---|
"""
    ]
    for row in sorted(rows, key=lambda row: NAMES.index(row.name)):
        ends = ", ".join(row.split.ends) or f"none: {row.split.why_not}"
        begins = ", ".join(row.split.begins[:2]) + (", …" if len(row.split.begins) > 2 else "")
        single, rounding, medians = (
            " / ".join(f"{e:.1e}" for e in pair) for pair in (row.single, row.rounding, row.medians)
        )
        of = f" of {row.n_images}" if row.n_images != N_IMAGES else ""
        lines.append(
            f"| {row.name} | {row.side}² | {ends} | {begins} | {row.split.n_folded} "
            f"| {row.stem_flops:.2%} | {row.double:.1e} | {single} | {rounding} | {medians}{of} |\n"
        )
    return "".join(lines)
