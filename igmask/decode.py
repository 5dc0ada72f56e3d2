"""An image file → the square of RGB pixels a network sees, as torchvision's evaluation has it.

The pixels equal those of torchvision.datasets.ImageFolder with
torchvision.transforms._presets.ImageClassification on PIL images: `convert("RGB")` whatever the
colour mode, EXIF orientation ignored, resize of the shorter side, centre crop.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from igmask.config import Geometry
from igmask.errors import InputError

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def read_rgb(path: Path) -> Image.Image:
    """Return an image file as RGB; raise InputError, naming it, if it cannot be read whole."""
    with naming(path), Image.open(path) as image:
        # Pillow only warns up to twice its limit, and what becomes of a warning is the process's
        # choice, which no thread can make for itself.
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            size = f"{image.width}×{image.height} pixels are"
            raise Image.DecompressionBombError(f"{size} more than {limit}")
        return image.convert("RGB")


@contextmanager
def naming(image: object) -> Iterator[None]:
    """Turn what Pillow raises within the block into InputError that names the image."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{image}: there is no such file") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{image}: not an image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{image}: too large to be decoded safely ({error})") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise InputError(f"{image}: cannot be decoded ({error})") from None


def fit(image: Image.Image, geometry: Geometry) -> np.ndarray:
    """Return (size, size, 3) uint8: the shorter side resized, the centre cropped.

    raises InputError if the image is smaller than the crop
    """
    if geometry.resize is not None:
        image = _resize(image, geometry.resize, geometry.interpolation)
    width, height = image.size
    if width < geometry.size or height < geometry.size:
        raise InputError(
            f"{width}×{height} pixels are fewer than the {geometry.size}×{geometry.size} of the "
            "crop; set the model's `resize`"
        )
    left, top = round((width - geometry.size) / 2), round((height - geometry.size) / 2)
    return np.asarray(image.crop((left, top, left + geometry.size, top + geometry.size)))


def _resize(image: Image.Image, shorter: int, interpolation: str) -> Image.Image:
    width, height = image.size
    if min(width, height) == shorter:
        return image
    if width <= height:
        size = shorter, int(shorter * height / width)
    else:
        size = int(shorter * width / height), shorter
    return image.resize(size, _FILTERS[interpolation])
