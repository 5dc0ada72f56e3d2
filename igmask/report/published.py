"""What was published of the experiment, to stand beside what is measured here.

Source: S. Saito, "What happens when we mask out the 'unimportant' parts of an image?", 2019,
https://seansaito.github.io/2019/12/03/masked-accuracy/, on the 50,000 validation images of
ImageNet. Of the original images it has what torchvision documented for its weights then, and
measured nothing; nor does it say which score of a square it took.
"""

from typing import Any

from igmask.inputs.chance import wilson

CITATION = (
    "published: S. Saito, What happens when we mask out the “unimportant” parts of an image?, "
    "2019, of the original images what torchvision documented then; its interval: Wilson's, of "
    "50,000"
)

N_IMAGES, N_CLASSES = 50_000, 1000

# In percent.
_ORIGINAL = {"vgg16": 71.59, "inception_v3": 77.45, "resnet50": 76.15, "densenet121": 74.65}
_MASKED = {  # at p = 90, 70, 50, 30
    "vgg16": {"keep": (31.79, 8.38, 0.91, 0.17), "drop": (0.16, 2.53, 16.06, 30.30)},
    "inception_v3": {"keep": (50.13, 18.89, 1.71, 0.17), "drop": (0.15, 3.47, 23.31, 43.97)},
    "resnet50": {"keep": (46.97, 16.66, 1.73, 0.19), "drop": (0.14, 3.35, 22.50, 41.83)},
    "densenet121": {"keep": (59.21, 25.82, 2.98, 0.26), "drop": (0.26, 5.68, 31.55, 52.79)},
}
_PS = (90, 70, 50, 30)

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


def published_top1(made_by: dict[str, Any], *, n_images: int) -> tuple[float, float, float] | None:
    """Return the published top-1 accuracy and Wilson's 95 % interval of it, all in percent.

    None where nothing comparable was published.

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
        return _with_interval(_ORIGINAL[model["source"]])
    same = all(made_by[key] == value for key, value in _SETTINGS.items()) and all(
        made_by["attribution"].get(key) == value for key, value in _ATTRIBUTION.items()
    )
    if not same or made_by["p"] not in _PS:
        return None
    return _with_interval(_MASKED[model["source"]][made_by["mode"]][_PS.index(made_by["p"])])


def _with_interval(top1: float) -> tuple[float, float, float]:
    return top1, *wilson(round(top1 / 100 * N_IMAGES), N_IMAGES)
