"""The evaluated images as PNGs: what ImageFolder reads, names, and going on."""

import json
import os
import tracemalloc
import unicodedata

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from steps import run_attribute, run_evaluate, run_index, run_mask, run_prepare
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from igmask import arrays
from igmask.asked import config, fields
from igmask.asked.settings import Attribution, Geometry
from igmask.errors import InputError
from igmask.inputs import models
from igmask.kernels import occlude, unpack
from igmask.tools.export import export

SIZE, N_IMAGES, MEAN = 16, 21, (0.41, 0.52, 0.63)
GEOMETRY = Geometry(SIZE, None, "bilinear")
NETWORK = """
import torch
from torch import nn

def export_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(36, 3))
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with the images of two shards, their masks, and the network."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    for i in range(N_IMAGES):
        place = folder / "photos" / ("cat", "dog", "emu")[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{i:02d}.png")
    (folder / "export_net.py").write_text(NETWORK)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        run_index({"source": "folder", "root": "photos"}, folder / "index.parquet", seed=0)
        for shard in ("1-of-2", "2-of-2"):
            images = folder / f"{shard}.npy"
            run_prepare(folder / "index.parquet", images, geometry=GEOMETRY, shard=shard)
            run_attribute(
                images,
                folder / f"scores-{shard}.npy",
                model=model(),
                attribution=ATTRIBUTION,
                side=3,
                seed=0,
                batch_size=32,
                device="cpu",
            )
        scores = [folder / f"scores-{i}-of-2.npy" for i in (1, 2)]
        run_mask(scores, folder, p=(50, 70), by="mass", score="positive")
        yield folder


ATTRIBUTION = fields.plain(Attribution(n_steps=3))


def model():
    return config.model({"source": "export_net:export_net", "size": SIZE, "mean": list(MEAN)})


def shards(study):
    return [study / "1-of-2.npy", study / "2-of-2.npy"]


def read(folder, **options):
    """The pixels (N, 3, H, W) uint8 and labels that ImageFolder finds, in its order."""
    found = ImageFolder(folder, **options)
    return torch.stack([pil_to_tensor(image) for image, _ in found]), found.targets


def images_of(study):
    return models.pixels(np.concatenate([arrays.read_array(path) for path in shards(study)]))


def occluded(study, mode, fill):
    mask = unpack(torch.from_numpy(np.array(arrays.read_array(study / "50.npy"))), (6, 6))
    kept = mask if mode == "keep" else ~mask
    return occlude(images_of(study), kept, fill=fill, mean=torch.tensor(MEAN))


def written(shape, names, labels, folder, classes):
    """An array of random images with such records, as `prepare` writes them."""
    pixels = np.random.default_rng(1).integers(0, 256, (len(names), *shape, 3), dtype=np.uint8)
    path = folder / "images.npy"
    with arrays.writing(path, np.uint8, pixels.shape[1:]) as array:
        array.append(pixels)
    positions = np.arange(len(names))
    records = pd.DataFrame({"name": names, "label": labels, "position": positions})
    records["crc32"] = array.checksums
    settings = {"classes": classes, "skipped": [], "dataset": {"source": "folder"}}
    arrays.write_records(arrays.records_of(path), records, settings)
    return path, pixels


@pytest.mark.parametrize("fill", ["black", "mean", "image-mean"])
@pytest.mark.parametrize("mode", ["keep", "drop"])
def test_an_image_folder_has_the_pixels_and_labels_that_were_evaluated(study, tmp_path, mode, fill):
    export(shards(study), tmp_path, masks=study / "50.npy", mode=mode, fill=fill)
    pixels, labels = read(tmp_path)
    expected = occluded(study, mode, fill) * 255
    assert pixels.equal(expected.round().byte())  # the folder's order is that of the dataset
    if fill == "black":
        torch.testing.assert_close(pixels.float(), expected, rtol=0, atol=1e-4)
    assert labels == [0] * 7 + [1] * 7 + [2] * 7


@pytest.mark.parametrize("mode", ["keep", "drop"])
def test_a_fill_that_is_a_picture_is_exported_as_it_is_evaluated(
    study, tmp_path, mode, turned, capfd
):
    masks, folder = study / "50.npy", tmp_path / "records"
    export(shards(study), tmp_path / "out", masks=masks, mode=mode, fill=turned)
    assert "rounded" not in capfd.readouterr().err
    pixels, _ = read(tmp_path / "out")
    images = images_of(study)
    ones = torch.ones_like(images)
    mask = unpack(torch.from_numpy(np.array(arrays.read_array(masks))), (6, 6))
    shown = occlude(ones, mask if mode == "keep" else ~mask) > 0
    assert pixels.equal((255 * torch.where(shown, images, images.flip(2))).round().byte())

    how = {"model": model(), "masks": (masks,), "modes": (mode,), "controls": ()}
    run_evaluate(shards(study), folder, fills=(turned,), **how)
    records, made_by = arrays.read_records(folder / f"{mode}-50-{turned}.parquet")
    probability, predicted = models.load(model())(pixels / 255).softmax(1).max(1)
    assert records["predicted"].tolist() == predicted.tolist()
    np.testing.assert_allclose(records["probability_predicted"], probability, rtol=1e-5)
    assert made_by["blank"] is None


@pytest.mark.parametrize(("fill", "is_rounded"), [("black", False), ("mean", True)])
def test_a_colour_that_is_rounded_is_told(study, tmp_path, capfd, fill, is_rounded):
    export(shards(study), tmp_path, masks=study / "50.npy", fill=fill)
    assert ("is rounded to the nearest" in capfd.readouterr().err) == is_rounded


def test_evaluating_the_export_gives_the_records_of_the_masks(study, tmp_path):
    masks = study / "50.npy"
    run_evaluate(shards(study), tmp_path / "masked", model=model(), masks=(masks,), controls=())
    export(shards(study), tmp_path / "out", masks=masks)
    root, table = str(tmp_path / "out"), str(tmp_path / "out" / "labels.csv")
    settings = {"source": "csv", "root": root, "labels": table}
    run_index(settings, tmp_path / "index.parquet", seed=0)
    run_prepare(tmp_path / "index.parquet", tmp_path / "again.npy", geometry=GEOMETRY)
    run_evaluate([tmp_path / "again.npy"], tmp_path / "again", model=model())
    masked, again = (
        arrays.read_records(tmp_path / name)[0]
        for name in ("masked/keep-50-black.parquet", "again/original.parquet")
    )
    for column in ("label", "predicted"):
        assert again[column].tolist() == masked[column].tolist()
    np.testing.assert_allclose(again["probability_label"], masked["probability_label"], rtol=1e-5)


def test_without_masks_the_images_are_the_prepared_ones(study, tmp_path):
    export(shards(study), tmp_path)
    pixels, _ = read(tmp_path)
    assert pixels.equal((images_of(study) * 255).round().byte())
    table = pd.read_csv(tmp_path / "labels.csv")
    assert table.columns.tolist() == ["file", "label", "name"]
    assert table["file"].tolist() == table["name"].tolist()  # cat/00.png, and so on
    for row in table.itertuples():
        np.testing.assert_array_equal(
            Image.open(tmp_path / row.file), Image.open(study / "photos" / row.name)
        )
    assert json.loads((tmp_path / "export.json").read_text())["mode"] == "original"


def test_an_export_that_was_cut_short_goes_on(study, tmp_path, monkeypatch):
    save, calls = Image.Image.save, []

    def cut(image, *arguments, **options):
        calls.append(arguments[0])
        if len(calls) > 5:
            arguments[0].write_bytes(b"half an im")
            raise KeyboardInterrupt
        save(image, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        export(shards(study), tmp_path, masks=study / "50.npy")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert len(before) == 5
    assert not (tmp_path / "labels.csv").exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["export.json"]

    monkeypatch.setattr(Image.Image, "save", save)
    (tmp_path / "cat" / ".00.png.1.tmp").write_bytes(b"left by a kill")
    export(shards(study), tmp_path, masks=study / "50.npy")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    pixels, _ = read(tmp_path)
    assert pixels.equal((occluded(study, "keep", "black") * 255).round().byte())


def test_an_export_with_other_settings_is_not_mixed(study, tmp_path):
    output = tmp_path / "out"
    export(shards(study), output, masks=study / "50.npy")
    files = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    for other, message in (
        ({"masks": study / "70.npy"}, "other p;"),
        ({"masks": study / "50.npy", "mode": "drop"}, "other mode;"),
        ({"masks": study / "50.npy", "fill": "mean"}, "other fill;"),
        ({}, "other .*fill.* and mode and model and p"),
    ):
        with pytest.raises(InputError, match=f"out: holds an export of {message}"):
            export(shards(study), output, **other)
    export(shards(study), tmp_path / "original")
    with pytest.raises(InputError, match="of other n_images;"):
        export(shards(study)[:1], tmp_path / "original")
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == files


def test_what_is_there_is_compared(study, tmp_path):
    output = tmp_path / "out"
    export(shards(study), output)
    Image.new("RGB", (SIZE, SIZE)).save(output / "dog" / "04.png")
    with pytest.raises(InputError, match=r"dog/04\.png: holds another image"):
        export(shards(study), output)
    (output / "export.json").write_text("[1]")
    with pytest.raises(InputError, match=r"export\.json: not settings of an export"):
        export(shards(study), output)
    (output / "export.json").unlink()
    with pytest.raises(InputError, match="out: holds files of other origin"):
        export(shards(study), output)


def test_masks_of_other_images_are_refused(study, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(InputError, match="belong to other images"):
        export(shards(study)[::-1], output, masks=study / "50.npy")
    other = tmp_path / "resized.npy"
    geometry = Geometry(SIZE, SIZE + 2, "bilinear")  # as many squares, of another crop
    run_prepare(study / "index.parquet", other, geometry=geometry)
    with pytest.raises(InputError, match="belong to other images"):
        export([other], output, masks=study / "50.npy")
    with pytest.raises(InputError, match="unknown mode 'kep'"):
        export(shards(study), output, mode="kep")
    with pytest.raises(InputError, match="unknown fill 'blak'; choose from black, white"):
        export(shards(study), output, mode="keep", fill="blak")
    assert not output.exists()


HOSTILE = [
    "../../outside.png",
    "/etc/passwd",
    "..",
    "",
    "a/b.png",
    "a b.png",
    "A B.PNG",
    "a?b",
    "a*b",
    "a_b~3",
    "nul\0byte.jpg",
    "line\nbreak\u2028.png",
    "\u202egnp.exe",
    "x" * 400 + ".png",
    "x" * 401,
    "é" * 200,
    "e\u0301",
    "é",
    ".hidden.png",
    "c:\\windows\\name.png",
    "no. 1 (of 2)",
]


def test_hostile_names_stay_inside_and_apart(tmp_path):
    path, pixels = written((9, 7), HOSTILE, [0] * len(HOSTILE), tmp_path, ["../.\ud800/cl\0ss"])
    output = tmp_path / "deep" / "er" / "out"
    export([path], output)
    assert sorted(os.listdir(tmp_path)) == ["deep", "images.npy", "images.parquet"]
    assert os.listdir(tmp_path / "deep") == ["er"]
    assert sorted(os.listdir(output)) == ["_.__cl_ss", "export.json", "labels.csv"]
    table = pd.read_csv(output / "labels.csv", keep_default_na=False)
    for file, expected in zip(table["file"], pixels, strict=True):
        np.testing.assert_array_equal(Image.open(output / file), expected)
    names = [name.partition("/")[2] for name in table["file"]]
    same = {unicodedata.normalize("NFC", name.casefold()) for name in names}
    assert len(same) == len(HOSTILE)  # on a file system that ignores case, too
    for name in ("outside.png", "passwd.png", "b.png", "a b.png", "hidden.png", "no. 1 (of 2).png"):
        assert name in names
    assert all(len(name.encode()) < 200 and name.isprintable() for name in names)
    assert not any(name.startswith(".") for name in names)
    assert table["name"].tolist() == HOSTILE


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (["ant", "bee", "cow"], ["ant", "bee", "cow"]),
        (["cow", "ant", "bee"], ["0000-cow", "0001-ant", "0002-bee"]),
        (["a/", "a?", "b"], ["0000-a_", "0001-a_", "0002-b"]),
        (["Ä", "ä", "ö"], ["0000-Ä", "0001-ä", "0002-ö"]),
        (["ant", "bee", "labels.csv"], ["0000-ant", "0001-bee", "0002-labels.csv"]),
        (["ant", "..", "cow"], ["0000-ant", "0001", "0002-cow"]),
        (["ant"], ["0000-ant", "0001", "0002"]),
        ([], ["0000", "0001", "0002"]),
    ],
)
def test_folders_in_alphabetical_order_are_the_labels(tmp_path, classes, folders):
    labels = [2, 0, 1, 1]
    path, pixels = written((5, 5), ["p", "q", "r", "s"], labels, tmp_path, classes)
    export([path], tmp_path / "out")
    found = ImageFolder(tmp_path / "out")
    assert found.classes == folders
    assert found.targets == [0, 1, 1, 2]
    for (image, _), row in zip(found, (1, 2, 3, 0), strict=True):
        np.testing.assert_array_equal(image, pixels[row])


def test_labels_keep_their_numbers_where_a_class_has_no_image(tmp_path, capfd):
    path, _ = written((5, 5), ["p", "q"], [3, 1], tmp_path, ["ant", "bee", "cow", "dog", "emu"])
    export([path], tmp_path / "out")
    found = ImageFolder(tmp_path / "out", allow_empty=True)
    assert found.classes == ["0000-ant", "0001-bee", "0002-cow", "0003-dog"]
    assert found.targets == [1, 3]
    assert "2 of the folders are empty" in capfd.readouterr().err
    with pytest.raises(FileNotFoundError, match="no valid file for the classes 0000-ant, 0002-cow"):
        ImageFolder(tmp_path / "out")


@pytest.mark.parametrize("label", [-1, 10**9])
def test_labels_that_cannot_be_folders_are_named(tmp_path, label):
    path, _ = written((5, 5), ["p", "q"], [0, label], tmp_path, [])
    with pytest.raises(InputError, match=f"labels from .*{label}.* cannot be folders"):
        export([path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_a_batch_of_images_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("igmask.tools.export._BATCH", 4)
    names = [f"{i:03}" for i in range(101)]
    path, pixels = written((64, 64), names, [0] * 101, tmp_path, ["ant"])
    tracemalloc.start()
    export([path], tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < pixels.nbytes / 3
    found, _ = read(tmp_path / "out")
    assert found.equal(torch.from_numpy(pixels).permute(0, 3, 1, 2))
