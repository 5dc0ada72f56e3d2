"""What happens to an image classifier when the unimportant parts of an image are masked out?

For use from Python:

    model = igmask.load_model("resnet50", weights="IMAGENET1K_V1")
    masked = igmask.mask_image(image, model, p=50)

or step by step: `integrated_gradients`, `square_scores`, `select`, `occlude`; masks go to bits and
back by `pack` and `unpack`. `IntegratedGradients` takes the place of Captum's and attributes the
outputs as they are, by Gauss–Legendre quadrature; `mask_image`, as the study, the probability of
the predicted class by the right rule. Their masks differ.

Which folder holds what, README.md says; imports run down through them.
"""

import importlib
from typing import Any

# Imported on first use: most of them import torch, and many a command does without it.
_HOMES = {
    "Auto": "engine.ig",
    "InputError": "errors",
    "IntegratedGradients": "engine.captum",
    "attribute_loader": "tools.loader",
    "integrated_gradients": "engine.ig",
    "load_model": "report.explain",
    "mask_image": "tools.masking",
    "occlude": "tools.masking",
    "pack": "kernels",
    "select": "kernels",
    "square_scores": "kernels",
    "unpack": "kernels",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'igmask' has no attribute {name!r}")
    return getattr(importlib.import_module(f"igmask.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
