"""Networks of timm by name, `timm/resnet50.a1_in1k`, with the input that timm describes."""

import math
from dataclasses import replace
from typing import Any

from torch import nn

from igmask.asked.settings import Model
from igmask.errors import InputError, refusing, suggestion, with_kind

NEEDED = "pip install 'igmask[timm]'"
_OTHER_DESCRIPTIONS = ("pretrained_cfg", "pretrained_cfg_overlay")  # arguments of timm's


def described(model: Model) -> Model:
    """Return the model with what is not said of its input filled in, as timm has it.

    raises InputError if timm has no such network, or another name for it, its input is no square of
           three colours, the arguments choose another description, or timm is not installed
    """
    for key in _OTHER_DESCRIPTIONS:
        if key in model.arguments:
            raise InputError(
                f"{model.source}: the argument {key!r} says what the input is in igmask's stead; "
                "name the weights' tag in the source, such as timm/resnet50.a1_in1k, and set size, "
                "resize, mean, std and weights where they are to be others"
            )
    description = _description(model)
    input_ = _timm().data.resolve_data_config(pretrained_cfg=description.to_dict())
    shape, crop = input_["input_size"], input_["crop_mode"]
    if shape[0] != 3 or shape[1] != shape[2]:
        raise InputError(f"{model.source}: its input is {shape}, no square of three colours")
    if crop not in ("center", "squash"):
        raise InputError(f"{model.source}: timm cuts its images in mode {crop}, igmask cannot")
    size = model.size or shape[-1]
    known = description.interpolation
    return replace(
        model,
        size=size,
        resize=model.resize or math.floor(size / input_["crop_pct"]),
        squash=model.squash or crop == "squash",
        interpolation=model.interpolation or ("bicubic" if known == "random" else known),
        mean=model.mean or tuple(input_["mean"]),
        std=model.std or tuple(input_["std"]),
    )


def build(model: Model) -> nn.Module:
    """Return the network, with timm's weights if the model says none; raise InputError."""
    name = _name(model)
    pretrained = model.weights_kind == "library"
    fetched = " (its weights are fetched once; `weights` takes a file instead)" * pretrained
    says = f"{model.source} with {model.arguments}{fetched}"
    # Of a hub that cannot be reached come errors of many libraries.
    with refusing(Exception, says=lambda error: f"{says}: {with_kind(error)}"):
        return _timm().create_model(name, pretrained=pretrained, **model.arguments)


def class_names(model: Model) -> list[str]:
    """Return the names of the classes that timm's weights were trained on, if it is ImageNet."""
    if _description(model).num_classes != 1000 or "num_classes" in model.arguments:
        return []
    known = _timm().data.ImageNetInfo()
    return [known.index_to_description(i) for i in range(known.num_classes())]


def usual_size(model: Model) -> int:
    """Return the side of the input that timm describes, in pixels."""
    return described(model).geometry.size


def _name(model: Model) -> str:
    return model.source.partition("/")[2]


def _description(model: Model) -> Any:
    timm, name = _timm(), _name(model)
    plain, _, tag = name.partition(".")
    tags = {known.partition(".")[2] for known in timm.list_pretrained(f"{plain}.*")}
    if current := timm.models.get_deprecated_models().get(plain):
        raise InputError(f"timm calls {plain} by another name now; write timm/{current}")
    if timm.is_model(plain) and (tag in tags or name == plain):
        return timm.get_pretrained_cfg(name)
    known = [plain, *(f"{plain}.{one}" for one in sorted(tags))] if tags else timm.list_models()
    near = suggestion(name, known, n=3, cutoff=0.3 if tags else 0.6)
    raise InputError(f"timm has no network {name!r}{near}")


def _timm() -> Any:
    with refusing(ImportError, says=lambda _: f"networks timm/… need timm; {NEEDED}"):
        import timm.data

    return timm
