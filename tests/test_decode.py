"""Decoded pixels equal those of torchvision's evaluation, to the bit, in every colour mode."""

import warnings

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from igmask.config import Geometry
from igmask.decode import fit, read_rgb
from igmask.errors import InputError


def noise(mode, size=(53, 41)):
    rng = np.random.default_rng(0)
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = rng.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode=None) if mode != "CMYK" else cmyk(pixels)


def cmyk(pixels):
    return Image.frombytes("CMYK", (pixels.shape[1], pixels.shape[0]), pixels.tobytes())


def sixteen_bit():
    values = np.random.default_rng(1).integers(0, 65536, (41, 53), dtype=np.uint16)
    return Image.fromarray(values)


def with_transparency():
    image = noise("RGB").quantize(16)
    image.info["transparency"] = 3
    return image


def rotated_by_exif(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    noise("RGB").save(path, exif=exif, quality=95)


def save(path, image, **options):
    image.save(path, **options)


MODES = {
    "rgb.png": lambda p: save(p, noise("RGB")),
    "rgb.jpg": lambda p: save(p, noise("RGB")),
    "gray.jpg": lambda p: save(p, noise("L")),
    "gray.png": lambda p: save(p, noise("L")),
    "bilevel.png": lambda p: save(p, noise("L").convert("1")),
    "rgba.png": lambda p: save(p, noise("RGBA")),
    "gray-alpha.png": lambda p: save(p, noise("RGBA").convert("LA")),
    "cmyk.jpg": lambda p: save(p, noise("CMYK")),
    "palette.png": lambda p: save(p, noise("RGB").quantize(32)),
    "palette-transparent.png": lambda p: save(p, with_transparency(), transparency=3),
    "16bit.png": lambda p: save(p, sixteen_bit()),
    "16bit.tif": lambda p: save(p, sixteen_bit()),
    "exif.jpg": rotated_by_exif,
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("name", MODES)
def test_colour_modes_become_rgb_as_in_torchvision(tmp_path, name):
    path = tmp_path / name
    MODES[name](path)
    expected = np.asarray(pil_loader(path))
    found = np.asarray(read_rgb(path))
    assert found.shape[2] == 3
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [(256, 256), (500, 375), (333, 500), (257, 256), (224, 999)])
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(224, 256, "bilinear"),
        Geometry(299, 342, "bilinear"),
        Geometry(224, 232, "bicubic"),
        Geometry(100, 100, "nearest"),
        Geometry(33, 64, "lanczos"),
        Geometry(50, None, "bilinear"),
    ],
    ids=lambda g: g.name,
)
def test_pixels_equal_torchvisions_evaluation(size, geometry):
    image = Image.fromarray(
        np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    )
    expected = image
    if geometry.resize:
        mode = InterpolationMode(geometry.interpolation)
        expected = tv.resize(image, [geometry.resize], interpolation=mode)
    expected = np.asarray(tv.center_crop(expected, [geometry.size]))
    np.testing.assert_array_equal(fit(image, geometry), expected)


def test_images_smaller_than_the_crop_are_an_error():
    with pytest.raises(InputError, match=r"20×40 pixels are fewer than the 32×32"):
        fit(Image.new("RGB", (20, 40)), Geometry(32, None, "bilinear"))


def test_a_resize_makes_small_images_fit():
    assert fit(Image.new("RGB", (20, 40)), Geometry(32, 32, "bilinear")).shape == (32, 32, 3)


@pytest.mark.parametrize("name", ["plain.jpg", "ein Bild; 'ü\".jpg"])
def test_bad_files_are_named(tmp_path, name):
    path = tmp_path / name
    path.write_text("this is no photograph")
    with pytest.raises(InputError, match="not an image") as caught:
        read_rgb(path)
    assert name in str(caught.value)

    noise("RGB", (200, 200)).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be decoded"):
        read_rgb(path)

    path.write_bytes(b"")
    with pytest.raises(InputError, match="not an image"):
        read_rgb(path)

    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        read_rgb(path)


# Pillow raises beyond twice its limit of 89 million pixels, and warns between.
@pytest.mark.parametrize("side", [60_000, 12_000])
@pytest.mark.parametrize("action", ["ignore", "error"])
def test_decompression_bombs_are_named_whatever_becomes_of_warnings(tmp_path, bomb, side, action):
    path = tmp_path / "bomb.jpg"  # a name is no promise
    bomb(path, side, side)
    assert path.stat().st_size < 100
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(InputError, match=r"bomb\.jpg: too large to be decoded safely"):
            read_rgb(path)


def test_images_within_pillows_limit_are_read(tmp_path, monkeypatch):
    noise("RGB", (40, 25)).save(tmp_path / "a.png")
    for limit in (1000, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert read_rgb(tmp_path / "a.png").size == (40, 25)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 999)
    with pytest.raises(InputError, match="too large"), warnings.catch_warnings(action="ignore"):
        read_rgb(tmp_path / "a.png")
