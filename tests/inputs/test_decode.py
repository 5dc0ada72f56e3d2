"""Decoded pixels equal those of torchvision's evaluation, to the bit, in every colour mode."""

import struct
import warnings

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from igmask.errors import InputError
from igmask.inputs.decode import fit, read_rgb
from igmask.study.settings import Geometry


def noise(mode, size=(53, 41)):
    rng = np.random.default_rng(0)
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = rng.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode=None) if mode != "CMYK" else cmyk(pixels)


def cmyk(pixels):
    return Image.frombytes("CMYK", (pixels.shape[1], pixels.shape[0]), pixels.tobytes())


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


RAMP = np.linspace(0, 1, 41 * 53).reshape(41, 53)
WIDE = {  # name: (pixels, the value of white, mode)
    "16bit.png": ((65535 * RAMP).astype(np.uint16), 65535, "I;16"),
    "16bit.tif": ((65535 * RAMP).astype(np.uint16), 65535, "I;16"),
    "12bit-bigendian.tif": ((4095 * RAMP).astype(">u2"), 4095, "I;16B"),
    "32bit.tif": ((100_000 * RAMP).astype(np.int32), 100_000, "I"),
    "16bit.pgm": ((65535 * RAMP).astype(np.int32), 65535, "I"),
    "float.tif": (RAMP.astype(np.float32), 1, "F"),
}


@pytest.mark.parametrize("name", WIDE)
def test_grey_of_more_than_8_bits_is_refused_unless_white_is_known(tmp_path, name):
    pixels, white, mode = WIDE[name]
    path = tmp_path / name
    Image.fromarray(pixels).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
    with pytest.raises(InputError, match=rf"{name}: its mode is {mode}, .*set dataset\.scale"):
        read_rgb(path)
    found = np.asarray(read_rgb(path, scale=white))
    assert found.shape == (41, 53, 3)
    exact = 255 * (pixels.astype(float) / white)[:, :, None]
    assert abs(found - exact).max() <= 0.5 + 1e-9
    assert found.min() == 0
    assert found.max() == 255
    with pytest.raises(InputError, match=rf"{name}: .* not within 0 and dataset\.scale"):
        read_rgb(path, scale=white / 2)


@pytest.mark.parametrize("wrong", [-0.5, np.nan, np.inf])
def test_values_that_are_no_brightness_are_refused(tmp_path, wrong):
    pixels = RAMP.astype(np.float32)
    pixels[3, 4] = wrong
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif: .* not within 0 and dataset\.scale, 1"):
        read_rgb(tmp_path / "a.tif", scale=1)


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_tiff_files_in_which_white_is_zero_are_seen_as_they_are_meant(tmp_path, dtype, white):
    path = tmp_path / "negative.tif"
    Image.fromarray((white * RAMP).astype(dtype)).save(path)
    black_is_zero, white_is_zero = (struct.pack("<HHIH", 262, 3, 1, value) for value in (1, 0))
    positive = path.read_bytes()
    assert positive.count(black_is_zero) == 1
    path.write_bytes(positive.replace(black_is_zero, white_is_zero))
    found = np.asarray(read_rgb(path, scale=white))
    assert abs(found - 255 * (1 - RAMP)[:, :, None]).max() <= 1
    assert found[0, 0].tolist() == [255, 255, 255]


def test_a_scale_leaves_images_of_8_bits_as_they_are(tmp_path):
    for name in ("gray.png", "rgb.jpg", "palette.png"):
        MODES[name](tmp_path / name)
        with_scale = np.asarray(read_rgb(tmp_path / name, scale=65535))
        np.testing.assert_array_equal(with_scale, np.asarray(pil_loader(tmp_path / name)))


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
