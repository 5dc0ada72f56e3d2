"""An image file → the square of RGB pixels a network sees, as torchvision's evaluation has it.

The pixels equal those of torchvision.datasets.ImageFolder with
torchvision.transforms._presets.ImageClassification on PIL images: `convert("RGB")` whatever the
colour mode, resize of the shorter side, centre crop; and EXIF orientation ignored in datasets with
labels, while a photograph without is shown upright.
"""

import io
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from igmask.asked.settings import Geometry
from igmask.errors import InputError, refusing, with_kind

_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a tag of TIFF files, and one of its values

_WAYS = ("nearest", "bilinear", "bicubic", "lanczos")
INTERPOLATIONS = {way: Image.Resampling[way.upper()] for way in _WAYS}


def read_rgb(path: Path, *, scale: float | None = None, upright: bool = False) -> Image.Image:
    """Return an image file as RGB.

    scale:   see `to_rgb`
    upright: turned as its EXIF orientation says
    raises   InputError, naming the file, if it cannot be read whole
    """
    with naming(path):
        return open_rgb(path, scale=scale, upright=upright)


def open_rgb(
    file: Path | BinaryIO, *, scale: float | None = None, upright: bool = False
) -> Image.Image:
    """Return an image file as `read_rgb`, but in `naming`, and an open one or bytes of it, too."""
    with Image.open(file) as image:
        # Pillow only warns up to twice its limit, and what becomes of a warning is the process's
        # choice, which no thread can make for itself.
        _check_area(*image.size)
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image, scale=scale)


def _check_area(width: int, height: int) -> None:
    """Raise DecompressionBombError for more pixels than Pillow's limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise Image.DecompressionBombError(f"{width}×{height} pixels are more than {limit}")


def to_rgb(image: Image.Image, *, scale: float | None = None) -> Image.Image:
    """Return an image as RGB of 8 bits.

    scale: the value of white in modes of one channel and more than 8 bits: I (32 bits), I;16, F
    raises InputError if such an image has no scale, or values outside 0 … scale
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image.convert("RGB")
    # Pillow's `convert` would cut everything above 255 to white.
    what = f"its mode is {image.mode}, grey of more than 8 bits"
    if scale is None:
        white = 1 if image.mode == "F" else 65535
        raise InputError(
            f"{what}; save it with 8, or, in a study, set dataset.scale to the value of white, "
            f"such as {white}"
        )
    values = np.asarray(image, dtype=np.float64)
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= scale:
        raise InputError(
            f"{what}, from {low:g} to {high:g}, and these are not within 0 and dataset.scale, "
            f"{scale:g}"
        )
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = scale - values  # Pillow sees to it in TIFF files of 8 bits alone
    return Image.fromarray(np.rint(255 / scale * values).astype(np.uint8)).convert("RGB")


def without_border(image: Image.Image, border: int) -> Image.Image:
    """Return an image without some pixels on every side; raise InputError if none are left."""
    width, height = image.size
    if min(width, height) <= 2 * border:
        raise InputError(f"of {width}×{height} pixels dataset.border, {border}, leaves none")
    return image.crop((border, border, width - border, height - border))


def by_place(
    open_image: Callable[[int], Any], *, scale: float | None = None
) -> Callable[[Any], Image.Image]:
    """Return the function that opens the image of an index record as RGB, from any thread.

    open_image: place in the dataset → the image; called by one thread at a time, since datasets
                are made for processes: FakeData, say, seeds PyTorch's only generator
    scale:      see `to_rgb`
    raises      InputError (the function), naming the image, if it cannot be read
    """
    alone = threading.Lock()

    def opened(record: Any) -> Image.Image:
        with naming(record.name):
            with alone:
                image = open_image(record.position)
                if not isinstance(image, Image.Image):
                    advice = "; PIL.Image.fromarray makes one" * hasattr(image, "__array__")
                    said = f"the dataset gives {type(image).__name__}, not an image{advice}"
                    raise InputError(said)
                if _shares_a_file(image):
                    image.load()
            return to_rgb(image, scale=scale)

    return opened


def _shares_a_file(image: Image.Image) -> bool:
    """Whether an image is still to be read from a file that others may be read from, an archive."""
    file, has_name = getattr(image, "fp", None), bool(getattr(image, "filename", ""))
    return not (file is None or has_name or isinstance(file, io.BytesIO))


@contextmanager
def naming(image: object) -> Iterator[None]:
    """Turn what decoding raises within the block into InputError that names the image.

    A damaged file makes decoders raise anything. What igmask's own code raises stays as it is.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{image}: {error}") from None
    except FileNotFoundError:
        raise InputError(f"{image}: there is no such file") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{image}: not an image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{image}: too large to be decoded safely ({error})") from None
    except MemoryError:
        said = "there is not the memory for the pixels that it says it has; is it damaged?"
        raise InputError(f"{image}: {said}") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise InputError(f"{image}: cannot be decoded ({error})") from None
    except Exception as error:
        if _is_own(error):
            raise
        raise InputError(f"{image}: cannot be decoded ({with_kind(error)})") from error


def _is_own(error: Exception) -> bool:
    """Whether a line of igmask raised it, and nothing that the line called."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]


def read_fitted(path: Path, geometry: Geometry) -> np.ndarray:
    """Return an image file, upright, as `fit` has it; raise InputError, naming the file."""
    image = read_rgb(path, upright=True)
    with naming(path):
        return fit(image, geometry).copy()


def fit(image: Image.Image, geometry: Geometry) -> np.ndarray:
    """Return (size, size, 3) uint8, resized as the geometry says, the centre cropped.

    raises InputError if the image is smaller than the crop, or so long that its resized form would
           be larger than what Pillow decodes
    """
    shorter = min(image.size)
    if geometry.resize:
        width, height = (shorter, shorter) if geometry.squash else image.size
        size = int(geometry.resize * width / shorter), int(geometry.resize * height / shorter)
    if geometry.resize and size != image.size:
        with refusing(Image.DecompressionBombError, says="too large when resized ({})".format):
            _check_area(*size)
        image = image.resize(size, INTERPOLATIONS[geometry.interpolation])
    width, height = image.size
    if width < geometry.size or height < geometry.size:
        raise InputError(
            f"{width}×{height} pixels are fewer than the {geometry.size}×{geometry.size} of the "
            "crop; set the model's `resize`"
        )
    left, top = round((width - geometry.size) / 2), round((height - geometry.size) / 2)
    return np.asarray(image.crop((left, top, left + geometry.size, top + geometry.size)))
