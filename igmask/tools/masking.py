"""Images as people have them → images with squares masked, for use from Python.

All that comes is checked here, before the work: the kernels know tensors only, and do not ask what
is in them.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from igmask import kernels
from igmask.asked.config import hardly_meant
from igmask.asked.masking import MODES
from igmask.asked.own import check_names
from igmask.engine.ig import integrated_gradients
from igmask.errors import InputError, integer, refusing
from igmask.inputs.decode import naming, read_rgb, to_rgb
from igmask.kernels import select, square_scores
from igmask.plain import Fill, pixels_of_squares

Picture = Tensor | np.ndarray | Image.Image | str | os.PathLike[str]

_ROUNDING = 1e-3  # how far beyond 0 and 1 a value may be


def mask_image(
    image: Picture,
    model: Callable[[Tensor], Tensor],
    p: float | Sequence[float] | np.ndarray | Tensor = 50,
    *,
    mode: str = "keep",
    side: int = 3,
    score: str = "positive",
    by: str = "mass",
    fill: Fill = "black",
    mean: Tensor | Sequence[float] | None = None,
    **attribution: Any,
) -> Tensor:
    """Return the image with its unimportant squares masked, or with mode `drop` its important ones.

    image: one, (C, H, W), or a batch of them, in [0, 1] or of bytes, of the size that the model
           takes; one may be a PIL image or a file, too, which is not resized: see `load_image`
    model: images (N, C, H, W) in [0, 1] → logits (N, n_classes), in evaluation mode; normalisation
           is part of it; see `load_model`
    p:     percentage of the attribution that the important squares hold
    side:  of a square, in pixels
    score: of a square: `positive` Σ max(φ, 0), `absolute` Σ |φ|, `signed` Σ φ, `absolute-sum` |Σ φ|
    by:    p % of the `mass` of the scores, of the `count` of squares or of the `area`
    fill:  black, white, mean, image-mean, blur, shuffle, noisy-linear, or a function (images, mean)
    mean:  (C,) of the fill `mean`
    attribution: options of `integrated_gradients`, such as n_steps and target
    returns (C, H, W) or (N, C, H, W), whatever the layout of the image; of several p one more axis
           in front, (len(p), …)
    raises InputError if the image or an option is not of these, or out of range
    """
    check_names("mode", [mode], MODES, own=False)
    side = integer("side", side)
    whole = pixels(image, like=_parameter(model))
    images, ps = _batch(whole), percentages(p)
    colour = _colour(mean, images)

    def masked(images: Tensor, values: Tensor) -> Tensor:
        scores = square_scores(values, side=side, score=score)
        squares, (height, width) = tuple(scores.shape[1:]), images.shape[-2:]
        sizes = torch.from_numpy(pixels_of_squares(squares, height, width, side))
        selections = [select(scores, one, by=by, sizes=sizes) for one in ps]
        kept = selections if mode == "keep" else [~selection for selection in selections]
        filled = [kernels.occlude(images, k, side=side, fill=fill, mean=colour) for k in kept]
        return torch.stack(filled)

    with refusing(ValueError):
        masked(images[:1], torch.zeros_like(images[:1]))  # what they refuse, now and not later
    values = integrated_gradients(model, images, **attribution).values
    with refusing(ValueError):
        found = masked(images, values).reshape(len(ps), *whole.shape)
    is_one = isinstance(p, Real) or getattr(p, "ndim", 1) == 0
    return found[0] if is_one else found


def occlude(
    images: Picture,
    kept: Tensor,
    *,
    side: int = 3,
    fill: Fill = "black",
    mean: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """Return the images with every pixel outside the squares of `kept` filled.

    images:  a batch of them, (N, C, H, W), or one, in [0, 1] or of bytes
    kept:    (N, P, Q) bool, the squares that stay (the complement of a selection, for `drop`); of
             one image (P, Q)
    fill, mean: as of `mask_image`
    returns  (N, C, H, W), or of one image (C, H, W)
    raises   InputError if images or mask are not of these, or an option is unknown
    """
    side, whole = integer("side", side), pixels(images)
    batch = _batch(whole)
    if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.ndim not in (2, 3):
        came = f"{kept.dtype} {tuple(kept.shape)}" if isinstance(kept, Tensor) else type(kept)
        raise InputError(f"the mask must be a tensor (N, P, Q) of bool, got {came}; see select")
    masks = kept if kept.ndim == 3 else kept.unsqueeze(0)
    if len(masks) != len(batch):
        raise InputError(f"{len(masks)} masks do not fit {len(batch)} images")
    with refusing(ValueError):
        colour = _colour(mean, batch)
        found = kernels.occlude(batch, masks, side=side, fill=fill, mean=colour)
    return found.reshape(whole.shape)


def pixels(image: Picture, *, like: Tensor | None = None) -> Tensor:
    """Return an image (C, H, W), or a batch (N, C, H, W), floating point in [0, 1].

    image: a tensor or array with channels first, or three of them last, floating point in [0, 1]
           or uint8; or a PIL image or the path of an image file (shown upright), which is made RGB
           and not resized
    like:  gives dtype and device to what is not a floating-point tensor yet; float32
    raises InputError if it is none of these, or values are not in [0, 1]
    """
    like = torch.empty(0) if like is None else like
    if isinstance(image, str | os.PathLike):
        image = read_rgb(Path(image), upright=True)
    if isinstance(image, Image.Image):
        with naming("the image"):
            image = np.asarray(to_rgb(image))
    if isinstance(image, np.ndarray):
        x = _of_array(image).to(like.device)
        x = x.to(like.dtype) if x.is_floating_point() else x
    elif isinstance(image, Tensor):
        x = image
    else:
        raise InputError(
            "an image must be a tensor, an array, a PIL image or a path, and a batch one tensor "
            f"(N, C, H, W) or array, got {type(image).__name__}"
        )
    if x.ndim not in (3, 4):
        raise InputError(
            f"an image must be (C, H, W), and a batch (N, C, H, W), got {tuple(x.shape)}; grey "
            "needs an axis of one channel"
        )
    if x.dtype == torch.uint8:
        x = x.to(like.dtype) / 255
    elif not x.is_floating_point():
        raise InputError(
            f"an image must be floating point in [0, 1] or uint8, got {x.dtype}; divide it by the "
            "value of white"
        )
    if x.shape[-1] == 3 and x.shape[-3] > 4:  # no image has that many colours
        x = x.movedim(-1, -3)
    elif x.shape[-1] in (1, 4) and min(x.shape[-3:-1]) > 4:
        raise InputError(
            f"an image of shape {tuple(x.shape)} seems to have {x.shape[-1]} channels last; give "
            "three of them last (without transparency), or channels first"
        )
    _check_range(x)
    return x


def _check_range(x: Tensor) -> None:
    if not x.numel():
        return
    try:
        low, high = torch.stack(x.detach().aminmax()).tolist()
    except NotImplementedError:  # sparse, floats of 8 bits, or without values
        raise InputError(
            f"an image must be an ordinary tensor, got {x.dtype}, {x.layout}, on {x.device}"
        ) from None
    if low >= -_ROUNDING and high <= 1 + _ROUNDING:
        return
    if not isfinite(low) or not isfinite(high):
        raise InputError("there are NaN or infinite values in the image")
    found = f"images must be in [0, 1], and these values go from {low:.4g} to {high:.4g}"
    white = next((white for white in (255, 65535) if 2 < high <= white), None)
    if low >= 0 and white:
        raise InputError(f"{found}: divide them by {white}")
    raise InputError(
        f"{found}. If they are normalised, leave that to the model: igmask.load_model puts it "
        "there, and nn.Sequential(Normalize(…), model) does so for one of your own. What resizing "
        "takes beyond, .clamp(0, 1) brings back"
    )


def _of_array(image: np.ndarray) -> Tensor:
    says = f"an array of {image.dtype} is no image; make it floats in [0, 1]"
    with refusing(TypeError, says=lambda _: says):
        # A copy: PyTorch takes neither negative strides nor another order of bytes.
        return torch.from_numpy(np.array(image, dtype=image.dtype.newbyteorder("="), order="C"))


def _parameter(model: Callable[[Tensor], Tensor]) -> Tensor | None:
    """The first weight of a network, which says where it is and what it computes with."""
    if not isinstance(model, nn.Module):
        return None
    values = (*model.parameters(), *model.buffers())
    return next((value for value in values if value.is_floating_point()), None)


def _batch(images: Tensor) -> Tensor:
    return images if images.ndim == 4 else images.unsqueeze(0)


def percentages(p: Any) -> list[float]:
    """Return one p or several as numbers; how large they may be, `kernels.select` says.

    raises InputError for what is no number, or none at all
    """
    plain = p.tolist() if isinstance(p, np.ndarray | Tensor) else p
    ps = list(plain) if isinstance(plain, Iterable) and not isinstance(plain, str) else [plain]
    numbers = [one for one in ps if isinstance(one, Real) and not isinstance(one, bool)]
    if not ps or len(numbers) < len(ps) or not all(map(isfinite, numbers)):
        raise InputError(f"p must be a number in (0, 100], or a list of them, got {p!r}")
    percents = [float(one) for one in numbers]
    for doubt in filter(None, map(hardly_meant, percents)):
        warnings.warn(f"p = {doubt}", stacklevel=3)
    return percents


def _colour(mean: Any, images: Tensor) -> Tensor | None:
    """The mean of the normalisation, (C,), or None if it is not given."""
    if mean is None:
        return None
    n_channels = images.shape[1]
    try:
        colour = torch.as_tensor(mean, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        colour = torch.empty(0)
    if colour.shape != (n_channels,) or not bool(((colour >= 0) & (colour <= 1)).all()):
        raise InputError(f"mean must be {n_channels} numbers in [0, 1], a channel, got {mean}")
    return colour
