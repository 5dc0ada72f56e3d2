"""Classifiers of the Hugging Face hub, `hf/google/vit-base-patch16-224`, through transformers.

How they want their images is found by trial: the image processors that come with them are of some
forty classes, whose settings mean different things by the same names (`size` is a square that
images are squashed to, or the shorter side before a crop, or that after a crop of `crop_pct`).
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from igmask.asked.settings import Geometry, Model
from igmask.errors import InputError, refusing, with_kind
from igmask.inputs.decode import INTERPOLATIONS, fit

NEEDED = "pip install 'igmask[transformers]'"
_CAUTION = {"trust_remote_code": False}  # of the hub; else it asks at a terminal, and a job hangs
_ADVICE = "set the model's size, resize, interpolation, mean and std"
_CLOSE = 2.5  # in 0..255, on average: they interpolate and round in other places


def described(model: Model) -> Model:
    """Return the model with what is not said of its input filled in, as its processor acts.

    Where all is said, no processor is needed.

    raises InputError if the hub has no such network, its processor does to images what settings
           here cannot say, or transformers is not installed
    """
    model = replace(model, output="logits" if model.output is None else model.output)
    if model.size and model.resize and model.interpolation and model.mean and model.std:
        return model
    process = _processor(model)
    size, mean, std = _affine(model, process)
    found = _geometry(model, process, size, mean, std)
    if model.size in (None, size):
        resize = model.resize or found.resize
    else:
        resize = model.resize or (found.resize or size) * model.size // size
    return replace(
        model,
        size=model.size or size,
        resize=resize,
        squash=model.squash or found.squash,
        interpolation=model.interpolation or found.interpolation,
        mean=model.mean or mean,
        std=model.std or std,
    )


def build(model: Model) -> nn.Module:
    """Return the network, with its own weights if the model says none; raise InputError."""
    make = _transformers().AutoModelForImageClassification
    if model.weights_kind != "library":
        with _refusing(model):
            return make.from_config(_config(model), dtype="float32", **_CAUTION)
    # Without dtype it would be that of the file, and half precision is not for gradients.
    loading = {"dtype": "float32", "output_loading_info": True, **_CAUTION, **model.arguments}
    with _refusing(model):
        network, said = make.from_pretrained(_name(model), **loading)
    if absent := sorted({*said["missing_keys"], *(key for key, *_ in said["mismatched_keys"])}):
        raise InputError(
            f"{model.source}: its weights lack {', '.join(absent[:4])}, which would be random; is "
            "it trained to classify?"
        )
    return network


def class_names(model: Model) -> list[str]:
    """Return the names that the network's configuration gives its classes, if it gives any."""
    names = _config(model).id2label
    found = [str(names[i]) for i in sorted(names)]
    return [] if all(name == f"LABEL_{i}" for i, name in enumerate(found)) else found


def usual_size(model: Model) -> int:
    """Return the side of the input that its processor makes, in pixels."""
    return described(model).geometry.size


def _affine(
    model: Model, process: Any
) -> tuple[int, tuple[float, float, float], tuple[float, float, float]]:
    """The side of what the processor makes, and its mean and std, from a black and a white image.

    A third in colours, red the least, tells of channels in another order.
    """
    shades = [np.full((320, 480, 3), shade, np.uint8) for shade in (0, 255, (40, 80, 160))]
    black, white, coloured = (process(shade) for shade in shades)
    if black.ndim != 3 or len(black) != 3 or black.shape[1] != black.shape[2]:
        raise InputError(
            f"{model.source}: of a wide image its processor makes {black.shape}, no square of "
            f"three colours; {_ADVICE}"
        )
    lows, highs, between = (
        image.reshape(3, -1).mean(1).astype(np.float64) for image in (black, white, coloured)
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # of white that is as black is
        std = 1 / (highs - lows)
        mean = -lows * std
        errors = np.abs(between * std + mean - np.array([40, 80, 160]) / 255)
    if not (std > 0).all() or not (errors <= 0.01).all():
        raise InputError(
            f"{model.source}: its processor changes colours by more than mean and std; wrap the "
            "network in a module:callable that does"
        )
    # + 0.0, lest a mean be −0
    return black.shape[1], *(tuple(float(f"{x:.6g}") + 0.0 for x in of) for of in (mean, std))


def _geometry(
    model: Model, process: Any, size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Geometry:
    """The geometry whose images are as the processor's, of a wide one and a tall one."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (45, 60, 3), dtype=np.uint8))
    images = [coarse.resize(shape, Image.Resampling.BICUBIC) for shape in ((640, 480), (400, 600))]
    made = [process(np.asarray(image)) for image in images]
    errors = {}
    if {image.shape for image in made} == {(3, size, size)}:
        wanted = [255 * (image.transpose(1, 2, 0) * std + mean) for image in made]
        for geometry in _candidates(process.settings, size):
            pairs = zip(images, wanted, strict=True)
            errors[geometry] = max(_difference(fit(image, geometry), want) for image, want in pairs)
    best = min(errors, key=errors.__getitem__, default=None)
    if best is None or errors[best] > _CLOSE:
        raise InputError(
            f"{model.source}: its processor cuts images in a way that resize, squash and a crop of "
            f"the centre do not give; {_ADVICE}"
        )
    return best


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The mean difference of two images; where a margin is odd, theirs begins a pixel before."""
    height, width = ours.shape[:2]
    moved = [
        np.abs(ours[: height - y, : width - x] - theirs[y:, x:]) for y in (0, 1) for x in (0, 1)
    ]
    return min(one.mean() for one in moved)


def _candidates(settings: dict[str, Any], size: int) -> Iterator[Geometry]:
    """What a processor's settings may mean."""
    given, of_timm = settings.get("size"), settings.get("data_config") or {}
    sides = {*(given.values() if isinstance(given, dict) else [given]), size}
    sides = {side for side in sides if isinstance(side, int) and side >= size}
    shares = settings.get("crop_pct"), of_timm.get("crop_pct")
    crops = [224 / 256, *(share or 1 for share in shares)]  # the first is in LeViT's code
    sides |= {math.floor(side / crop) for side in sides for crop in crops}
    known = {int(number): name for name, number in INTERPOLATIONS.items()}
    resample = settings.get("resample")
    names = [known[int(resample)]] if resample in known else [*INTERPOLATIONS]
    for name in names:
        for side in sorted(sides):
            for squash in (False, True):
                yield Geometry(size, side, name, squash)


class _Process:
    """A processor as a function of one image: (H, W, 3) uint8 → (3, h, w) float32.

    Whatever it raises becomes InputError that names the network.
    """

    def __init__(self, processor: Any, model: Model) -> None:
        self._processor, self._model = processor, model
        self.settings = processor.to_dict()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        with _refusing(self._model, advice=f"; {_ADVICE}"):
            made = self._processor(Image.fromarray(image), return_tensors="pt")
            return np.asarray(made["pixel_values"][0])


def _name(model: Model) -> str:
    return model.source.partition("/")[2]


def _refusing(model: Model, *, advice: str = "") -> Any:
    """Name the network in whatever error: of a hub that cannot be reached come those of many."""
    return refusing(Exception, says=lambda error: f"{model.source}: {with_kind(error)}{advice}")


def _config(model: Model) -> Any:
    make = _transformers().AutoConfig
    with _refusing(model):
        return make.from_pretrained(_name(model), **_CAUTION | model.arguments)


def _processor(model: Model) -> _Process:
    make = _transformers().AutoImageProcessor
    state = {key: value for key, value in model.arguments.items() if key == "revision"}
    _config(model)  # a hub that is not reached is asked in vain for one file, not for three
    with _refusing(model, advice=f"; or {_ADVICE}, which needs no image processor"):
        return _Process(make.from_pretrained(_name(model), **_CAUTION | state), model)


def _transformers() -> Any:
    with refusing(ImportError, says=lambda _: f"networks hf/… need transformers; {NEEDED}"):
        import transformers

    return transformers
