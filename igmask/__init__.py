"""What happens to an image classifier when the unimportant parts of an image are masked out?

For use from Python:

    model = igmask.load_model("resnet50", weights="IMAGENET1K_V1")
    masked = igmask.mask_image(image, model, p=50)

or step by step: `integrated_gradients`, `square_scores`, `select`, `occlude`; masks go to bits and
back by `pack` and `unpack`. `IntegratedGradients` takes the place of Captum's.

The modules, lower ones first; each imports from those above it only:

    kernels/      tensors: path, squares, selection, masks, filling
    errors, config, progress     the user's side: bad input, settings, bars
    chance        is a network right more often than by luck
    tracing       threads that run networks wait for one that traces
    quadrature, definition, stem, contract, network, ig    the formula, and the engine
    devices       a GPU of its own for each job
    files, classes    a dataset's files, and what its classes are to a network
    arrays, decode, demo, zoo
    captum, masking, data, models, baselines, masks, published
    sample        some images, and what a network says of them, before all are prepared
    train, prepare, preflight, attribute, evaluate    the steps of the study
    drawing, tables, examples, curves, explain        what people look at
    export    the evaluated images as files, for other tools
    loader, inspect    a DataLoader to disk; the engine seen from outside
    machine, bench_cases, bench, bench_kernels, pages, …_page    against Captum, against PyTorch
    trial, workflow, check, verify, cli               what Snakemake and people call
"""

import importlib
from typing import Any

# Imported on first use: most of them import torch, and many a command does without it.
_HOMES = {
    "Auto": "ig",
    "InputError": "errors",
    "IntegratedGradients": "captum",
    "attribute_loader": "loader",
    "integrated_gradients": "ig",
    "load_model": "explain",
    "mask_image": "masking",
    "occlude": "masking",
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
