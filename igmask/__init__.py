"""What happens to an image classifier when the unimportant parts of an image are masked out?

For use from Python:

    model = igmask.load_model("resnet50", weights="IMAGENET1K_V1")
    image = igmask.load_image("photo.jpg", model)
    masked = igmask.mask_image(image, model, p=50)
    igmask.plot(image, model, p=50)

A study is started by `run` and read by `study`: `igmask.study("results").accuracy`. Step by step go
`integrated_gradients`, `square_scores`, `select`, `occlude`; masks go to bits and back by `pack`
and `unpack`. `IntegratedGradients` takes the place of Captum's and attributes the outputs as they
are, by Gauss–Legendre quadrature; `mask_image`, as the study, the probability of the predicted
class by the right rule. Their masks differ.

Which folder holds what, docs/map.md says; imports run down through them.
"""

import importlib
from importlib import metadata
from typing import Any

# Imported on first use: most of them import torch, and many a command does without it.
_HOMES = {
    "Auto": "engine.ig",
    "Geometry": "asked.settings",
    "InputError": "errors",
    "IntegratedGradients": "engine.captum",
    "attribute_loader": "tools.loader",
    "integrated_gradients": "engine.ig",
    "load_image": "tools.loading",
    "load_model": "tools.loading",
    "mask_image": "tools.masking",
    "occlude": "tools.masking",
    "pack": "kernels",
    "plot": "tools.finished",
    "run": "tools.finished",
    "select": "kernels",
    "square_scores": "kernels",
    "study": "tools.finished:Study",
    "unpack": "kernels",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("igmask")
    if name not in _HOMES:
        from igmask.errors import suggestion

        near = suggestion(name, __all__)
        raise AttributeError(f"module 'igmask' has no attribute {name!r}{near}")
    home, _, other = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"igmask.{home}"), other or name)


def __dir__() -> list[str]:
    return __all__
