"""Decoded pixels equal those of torchvision's evaluation, to the bit, in every colour mode."""

import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features
from PIL.PngImagePlugin import PngImageFile
from steps import run_index, run_prepare
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

import igmask
from igmask.asked import config
from igmask.asked.settings import Geometry
from igmask.errors import InputError
from igmask.inputs import decode, models
from igmask.inputs.data import index, left_out, opener
from igmask.inputs.decode import fit, read_rgb
from igmask.inputs.files import EXTENSIONS, NOT_TAKEN
from igmask.tools import check


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


@pytest.mark.parametrize("resize", [None, 24, 40])
def test_squashed_images_are_pillows(resize):
    image = noise("RGB", (53, 41))
    settings = {"source": "igmask.zoo:small_vgg", "size": 24, "squash": True, "weights": "none"}
    model = models.complete(config.model(settings | ({"resize": resize} if resize else {})))
    side = resize or 24
    assert model.geometry.name == f"24-squash{side}-bilinear"
    assert model.geometry == Geometry(24, resize, "bilinear", squash=True)
    cut = (side - 24) // 2
    expected = image.resize((side, side), Image.Resampling.BILINEAR)
    expected = expected.crop((cut, cut, cut + 24, cut + 24))
    np.testing.assert_array_equal(fit(image, model.geometry), expected)


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


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("part", ["open", "load"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("damaged tile"), r"cannot be decoded \(RuntimeError: damaged tile\)"),
        (OverflowError("too large"), r"cannot be decoded \(OverflowError: too large\)"),
        (AssertionError(), r"cannot be decoded \(AssertionError: "),
        (struct.error("short"), r"cannot be decoded \(error: short\)"),
        (MemoryError(), "there is not the memory for the pixels"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_whatever_a_decoder_raises_is_of_the_image(tmp_path, monkeypatch, part, error, said):
    path = tmp_path / "c" / "a.png"
    path.parent.mkdir()
    noise("RGB").save(path)
    dataset = {"source": "folder", "root": str(tmp_path)}
    run_index(dataset, tmp_path / "index.parquet")
    where = (Image, "open") if part == "open" else (PngImageFile, "load")
    monkeypatch.setattr(*where, raising(error))
    with pytest.raises(InputError, match=rf"a\.png: {said}"):
        read_rgb(path)
    with pytest.raises(InputError, match=rf"a\.png: .*{said}"):
        run_prepare(
            tmp_path / "index.parquet", tmp_path / "1.npy", geometry=Geometry(8, 8, "nearest")
        )


def test_a_mistake_in_our_own_code_is_not_taken_for_a_bad_image(tmp_path, monkeypatch):
    noise("RGB").save(tmp_path / "a.png")
    monkeypatch.setattr(decode, "_check_area", None)  # which is then called
    with pytest.raises(TypeError, match="not callable"):
        read_rgb(tmp_path / "a.png")


def test_images_that_grow_beyond_the_limit_when_resized_are_refused():
    with pytest.raises(InputError, match=r"too large when resized \(64×640000000 pixels"):
        fit(Image.new("RGB", (1, 10_000_000)), Geometry(64, 64, "bilinear"))


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


FORMATS = ".webp .avif .gif .jfif .jp2 .tif .apng .jpe .j2k .tga .qoi .sgi .pnm .dib"


def savable(ending):
    """An image of noise in a format, or a skip with the reason."""
    known = {".avif": "avif", ".jp2": "jpg_2000", ".webp": "webp", ".tif": "libtiff"}
    if ending in known and not features.check(known[ending]):
        pytest.skip(f"this Pillow is built without {known[ending]}")
    return noise("RGB")


@pytest.mark.parametrize("ending", FORMATS.split())
def test_formats_of_photographs_are_read_from_nested_folders(tmp_path, ending):
    image, path = savable(ending), tmp_path / "class" / "deep" / f"Photo{ending.upper()}"
    path.parent.mkdir(parents=True)
    image.save(path, **({"compression": "tiff_lzw"} if ending == ".tif" else {}))
    records, classes = index(config.dataset({"source": "folder", "root": str(tmp_path)}))
    assert (records["path"].tolist(), classes) == ([str(path)], ["class"])
    with Image.open(path) as expected:
        np.testing.assert_array_equal(read_rgb(path), expected.convert("RGB"))
    tree = config.dataset({"source": "torchvision", "class": "ImageFolder", "root": str(tmp_path)})
    assert index(tree)[0]["path"].tolist() == [str(path)]


@pytest.mark.parametrize("ending", [".gif", ".apng", ".webp", ".tif"])
def test_of_several_pictures_in_a_file_the_first_is_taken(tmp_path, ending):
    savable(ending)
    first, second = (Image.new("RGB", (9, 8), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    lossless = {"lossless": True} if ending == ".webp" else {}
    first.save(tmp_path / f"a{ending}", save_all=True, append_images=[second], **lossless)
    assert read_rgb(tmp_path / f"a{ending}").getpixel((4, 4)) == (255, 0, 0)


def test_every_ending_that_pillow_opens_is_taken_or_said_to_be_none():
    Image.init()
    formats = {e: f for e, f in Image.registered_extensions().items() if f in Image.OPEN}
    # Several pictures after each other begin as a JPEG, by which Pillow knows them.
    assert {e for e in EXTENSIONS if e not in formats} == {".mpo"}
    no_images = ".bufr .gbr .grib .h5 .hdf .iim .mpeg .mpg"  # brushes, data, films
    others = {*formats} - {*EXTENSIONS, *NOT_TAKEN}
    assert others <= {*no_images.split()}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright_and_images_with_labels_are_torchvisions(tmp_path, orientation):
    path, exif = tmp_path / "photos" / "x.png", Image.Exif()
    path.parent.mkdir()
    exif[0x0112] = orientation
    noise("RGB").save(path, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(path))
    dataset = config.dataset({"source": "photos", "root": str(path.parent)})
    [record] = index(dataset)[0].itertuples()
    opened = opener(dataset, seed=0)(record)
    assert (opened.size == noise("RGB").size) == (orientation < 5)
    np.testing.assert_array_equal(opened, upright)
    np.testing.assert_array_equal(read_rgb(path), noise("RGB"))
    geometry = igmask.Geometry(8, resize=8)
    assert torch.equal(igmask.load_image(path, geometry), igmask.load_image(upright, geometry))


def test_files_that_are_not_taken_are_counted_and_named(tmp_path, capsys):
    for place in ("a/x.png", "a/deep/y.heic", "b/z.PNG", "b/z.CR2", "b/notes.txt", "b/.z.heic"):
        path = tmp_path / "photos" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        noise("RGB").save(path, format="png")
    noise("RGB").save(tmp_path / "photos" / "beside.jpg")
    dataset = {"source": "folder", "root": str(tmp_path / "photos")}
    run_index(dataset, tmp_path / "index.parquet")
    said = "not taken, though they look like images: 1 .cr2, 1 .heic, 1 .jpg, the first 'a/deep/y.h"
    assert said in capsys.readouterr().err
    (tmp_path / "labels.csv").write_text("file,label\na/x.png,0\n")
    table = dataset | {"source": "csv", "labels": str(tmp_path / "labels.csv")}
    run_index(table, tmp_path / "index.parquet")
    assert "1 .cr2, 1 .heic, the first" in capsys.readouterr().err
    models = {"m": {"source": "nets:build", "size": 8}}
    found = check.check({"dataset": dataset, "models": models}, trial=False)
    assert any(said in f.says for f in found if f.about == "dataset")
    assert left_out(config.dataset({"source": "demo"})) is None
