"""What was published of the experiment, to stand beside what is measured here.

Source: S. Saito, "What happens when we mask out the 'unimportant' parts of an image?", 2019,
https://seansaito.github.io/2019/12/03/masked-accuracy/, on the 50,000 validation images of
ImageNet. Its original accuracies are those that torchvision documents for its weights
IMAGENET1K_V1, which are given here; of the masked images, the ranges over the four networks.
"""

from typing import Any

CITATION = (
    "published: the accuracies that torchvision documents for these weights, and for p = 50 the "
    "ranges over four networks in S. Saito, What happens when we mask out the “unimportant” parts "
    "of an image?, 2019"
)

N_IMAGES, N_CLASSES = 50_000, 1000

_ORIGINAL = {"vgg16": 71.592, "inception_v3": 77.294, "resnet50": 76.130, "densenet121": 74.434}
_MASKED = {("keep", 50.0): "0.2–4", ("drop", 50.0): "16–32"}


_INPUT = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bilinear"}
_SIZES = {"inception_v3": (299, 342)}  # all others (224, 256): crop, shorter side before

# The publication's settings. Which score it took it leaves open, so any will do.
_SETTINGS = {"fill": "black", "by": "mass", "side": 3}
_ATTRIBUTION = {
    "of": "probability",
    "target": "predicted",
    "baseline": "black",
    "rule": "right",
    "n_steps": 50,
    "skip": None,
}


def published_top1(made_by: dict[str, Any], *, n_images: int) -> str | None:
    """Return the published top-1 accuracy in percent, or None where nothing comparable was.

    made_by:  the settings that made the records of a condition
    n_images: of the dataset, skipped ones included: only the whole validation set compares
    """
    model, classes = made_by["model"], made_by["classes"]
    if model["source"] not in _ORIGINAL or model["weights"] != "IMAGENET1K_V1":
        return None
    size, resize = _SIZES.get(model["source"], (224, 256))
    model_input = _INPUT | {"size": size, "resize": resize}
    if any(model[key] != value for key, value in model_input.items()):
        return None
    if n_images != N_IMAGES or len(classes) != N_CLASSES:
        return None
    if made_by["mode"] == "original":
        return f"{_ORIGINAL[model['source']]:.1f}"
    same = all(made_by[key] == value for key, value in _SETTINGS.items()) and all(
        made_by["attribution"].get(key) == value for key, value in _ATTRIBUTION.items()
    )
    return _MASKED.get((made_by["mode"], made_by["p"])) if same else None
