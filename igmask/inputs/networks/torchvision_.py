"""torchvision's classifiers by name, with the input that their weights describe."""

import warnings
from dataclasses import replace

from torch import nn

from igmask.asked.settings import Model
from igmask.errors import refusing
from igmask.inputs.weights import (
    check_torchvision_name,
    downloading,
    torchvision_models,
    torchvision_weights,
    weights_place,
)


def described(model: Model) -> Model:
    """Return the model with what is not said of its input filled in, by the weights it names.

    raises InputError for a name that torchvision does not have
    """
    if model.weights_kind != "torchvision":
        check_torchvision_name(model.source)
        return model
    preset = torchvision_weights(model).transforms()
    size = model.size or preset.crop_size[0]
    return replace(
        model,
        size=size,
        # A smaller or larger input shows as much of the image.
        resize=model.resize or preset.resize_size[0] * size // preset.crop_size[0],
        interpolation=model.interpolation or preset.interpolation.value,
        mean=model.mean or tuple(preset.mean),
        std=model.std or tuple(preset.std),
    )


def build(model: Model) -> nn.Module:
    """Return the network, with the weights that the model names, else random ones."""
    check_torchvision_name(model.source)
    weights = torchvision_weights(model) if model.weights_kind == "torchvision" else None
    path, url = weights_place(model)
    what = f"{model.source} with {model.arguments}"
    wrong = refusing(TypeError, ValueError, says=lambda error: f"{what}: {error}")
    with downloading(str(url), path), warnings.catch_warnings(), wrong:
        warnings.simplefilter("ignore", FutureWarning)  # of how torchvision draws weights
        return torchvision_models().get_model(model.source, weights=weights, **model.arguments)


def class_names(model: Model) -> list[str]:
    """Return the names of the classes that the weights were trained on."""
    if model.weights_kind != "torchvision":
        return []
    return list(torchvision_weights(model).meta.get("categories", []))


def usual_size(model: Model) -> int:
    """Return the side of the input that any weights of the network take, or 224, in pixels."""
    check_torchvision_name(model.source)
    known = list(torchvision_models().get_model_weights(model.source))
    return known[0].transforms().crop_size[0] if known else 224
