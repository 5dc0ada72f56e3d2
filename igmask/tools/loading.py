"""Networks and images for use from Python, as a study has them."""

import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from igmask.asked import config
from igmask.asked.settings import Geometry, Model
from igmask.devices import pick_device
from igmask.errors import InputError
from igmask.inputs import models
from igmask.inputs.classes import class_names, class_numbers
from igmask.inputs.decode import fit, naming, read_fitted, to_rgb
from igmask.inputs.networks import library_of


def load_model(
    source: str | Enum, *, device: str = "cpu", classes: str | None = None, **settings: Any
) -> torch.nn.Module:
    """Return a network on images in [0, 1], normalisation included, in evaluation mode.

    It says what it takes: `.geometry` (size, resize, interpolation), `.transforms`, an image of PIL
    → (3, H, W) float32 in [0, 1] of that geometry, and `.classes`, their names, [] if unknown. The
    network behind its normalisation is `model[1]`; its layers are found on the model, too.

    source, settings: as a model in config.yaml, such as load_model("resnet50",
                      weights="IMAGENET1K_V1"); weights may be a member of torchvision's enums, too,
                      and stand alone. A network of your own also needs `size`
    classes:          where its library does not say their names: `imagenet`, or a file of them, as
                      dataset.classes
    raises InputError if it cannot be had, or for weights of another network
    """
    if isinstance(source, torch.nn.Module):
        raise InputError(
            "load_model takes a network's name; a module needs no loading: give it to plot, "
            "mask_image or IntegratedGradients as it is"
        )
    if "pretrained" in settings:
        raise InputError('pretrained: say weights="DEFAULT", or weights="none" for random ones')
    if isinstance(source, Enum):
        source, settings["weights"] = _network_of(source), source
    if isinstance(settings.get("weights"), Enum):
        settings["weights"] = _name_of(settings["weights"], source)
    model = models.complete(config.model({"source": source, **settings}))
    network = Loaded(*models.load(model, device=pick_device(device)))
    network.training = False
    network.geometry = model.geometry
    network.transforms = _Transforms(model)
    names = class_names(class_numbers(classes)) if classes else library_of(model).class_names(model)
    network.classes = names
    return network


_OWN = ("training", "geometry", "transforms", "classes")


class Loaded(torch.nn.Sequential):
    """Normalisation and network, which has the network's own attributes, too: model.fc, say.

    geometry, transforms, classes: see `load_model`
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if not name.startswith("__"):
                # Of which a copy has none at first.
                for part in reversed(self.__dict__.get("_modules", {}).values()):
                    if hasattr(part, name):
                        return getattr(part, name)
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        parts = self.__dict__.get("_modules", {})
        own = name in parts or name in vars(self) or name.startswith("_") or name in _OWN
        if not own and any(hasattr(part, name) for part in parts.values()):
            raise InputError(f"model.{name} is the network's own: set model[1].{name} = …")
        super().__setattr__(name, value)


def load_image(
    image: str | os.PathLike[str] | Image.Image, model: Callable[[Tensor], Tensor] | Geometry
) -> Tensor:
    """Return an image as a network takes it: (3, H, W) float32 in [0, 1], resized and cropped.

    image: a file, shown upright as its EXIF orientation says, or an image of PIL, as it is
    model: of `load_model`, or a geometry
    raises InputError if the file cannot be decoded, is smaller than the network's input, or the
           model does not say what it takes
    """
    geometry = model if isinstance(model, Geometry) else getattr(model, "geometry", None)
    if not isinstance(geometry, Geometry):
        raise InputError(
            "load_image needs a model of igmask.load_model, which knows the size of its input; of "
            "others give igmask.Geometry(size, resize, interpolation)"
        )
    if isinstance(image, Image.Image):
        with naming("the image"):
            pixels = fit(to_rgb(image), geometry)
    else:
        if not isinstance(image, str | os.PathLike):
            raise InputError(
                f"load_image takes a file or an image of PIL, not {type(image).__name__}; "
                "PIL.Image.fromarray makes one of an array, and a tensor of the model's size needs "
                "no loading"
            )
        pixels = read_fitted(Path(image), geometry)
    return models.pixels(pixels[None].copy())[0]


class _Transforms:
    """Image of PIL, or a file → the tensor that the network takes."""

    def __init__(self, model: Model) -> None:
        self.geometry = model.geometry

    def __call__(self, image: Any) -> Tensor:
        return load_image(image, self.geometry)

    def __repr__(self) -> str:
        return f"transforms of igmask: {self.geometry.name}, to [0, 1]"


def _network_of(weights: Enum) -> str:
    """The classifier of torchvision that has weights of this enum."""
    from torchvision import models as zoo

    for name in zoo.list_models(zoo):
        if zoo.get_model_weights(name) is type(weights):
            return name
    raise InputError(f"{weights}: no classifier of torchvision has such weights")


def _name_of(weights: Enum, source: str) -> str:
    """The name of a member of torchvision's enum of the network's weights."""
    from torchvision.models import get_model_weights

    try:
        known = get_model_weights(source)
    except ValueError:
        known = None
    if known is not type(weights):
        raise InputError(f"weights {weights}: not of the network {source}")
    return weights.name
