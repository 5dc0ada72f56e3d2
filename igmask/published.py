"""What was published of the experiment, to stand beside what is measured here.

Source: S. Saito, "What happens when we mask out the 'unimportant' parts of an image?", 2019,
https://seansaito.github.io/2019/12/03/masked-accuracy/, on the 50,000 validation images of
ImageNet. Its original accuracies are those that torchvision documents for its weights
IMAGENET1K_V1, which are given here; of the masked images, the ranges over the four networks.
"""

from igmask.config import Model

CITATION = (
    "published: the accuracies that torchvision documents for these weights, and for p = 50 the "
    "ranges over four networks in S. Saito, What happens when we mask out the “unimportant” parts "
    "of an image?, 2019"
)

N_IMAGES = 50_000

_ORIGINAL = {"vgg16": 71.592, "inception_v3": 77.294, "resnet50": 76.130, "densenet121": 74.434}
_MASKED = {("keep", 50.0): "0.2–4", ("drop", 50.0): "16–32"}


def published_top1(model: Model, *, n_images: int, mode: str, p: float | None) -> str | None:
    """Return the published top-1 accuracy in percent, or None where nothing comparable was.

    n_images: of the dataset, skipped ones included: only the whole validation set compares
    """
    if model.source not in _ORIGINAL or model.weights != "IMAGENET1K_V1" or n_images != N_IMAGES:
        return None
    if mode == "original":
        return f"{_ORIGINAL[model.source]:.1f}"
    return _MASKED.get((mode, p)) if p is not None else None
