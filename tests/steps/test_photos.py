"""Photographs without labels, from the listing to the pages: a network agrees with itself."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from steps import run_attribute, run_evaluate, run_index, run_mask, run_preflight, run_prepare
from torchvision.datasets import ImageFolder

from igmask import arrays
from igmask.asked import config
from igmask.asked.settings import Geometry
from igmask.errors import InputError
from igmask.inputs.data import index
from igmask.report import examples
from igmask.report.curves import curves
from igmask.report.tables import tables
from igmask.tools import check
from igmask.tools.export import export

NETWORK = """
import torch
from torch import nn

def conv(classes=5):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(72, classes))
"""
SIZE = 16
N_IMAGES = 14
MODEL = {"source": "photos_net:conv", "size": SIZE}
NAMES = ["ant", "bee", "cat", "dog", "emu"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A working directory with photographs, some of them in folders, and a network."""
    rng = np.random.default_rng(0)
    for i in range(N_IMAGES):
        path = Path(tmp_path, "photos", ("", "a", "b/c")[i % 3], f"IMG_{i:02d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        low = rng.integers(0, 200)
        pixels = rng.integers(low, low + 55, (20, 18, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "photos_net.py").write_text(NETWORK)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return {"source": "photos", "root": "photos", "classes": "names.txt"}


def run(dataset, folder, *, target="predicted"):
    """All steps of a study, with p = 50; its images, scores, masks and records."""
    model, folder = config.model(MODEL), Path(folder)
    run_index(dataset, folder / "index.parquet")
    image, score, mask = (folder / f"{name}.npy" for name in ("images", "scores", "50"))
    geometry, attribution = Geometry(SIZE, None, "bilinear"), {"n_steps": 4, "target": target}
    run_preflight(folder / "index.parquet", folder / "preflight.json", model=model)
    run_prepare(folder / "index.parquet", image, geometry=geometry)
    run_attribute(image, score, model=model, attribution=attribution, device="cpu")
    run_mask([score], folder, p=(50,))
    run_evaluate([image], folder / "records", model=model, name="net", masks=[mask], device="cpu")
    return image, score, mask, sorted(folder.joinpath("records").glob("*.parquet"))


def labelled(photos):
    """The same images with labels, all of class 0, by a table."""
    names = index(config.dataset(photos))[0]["name"]
    pd.DataFrame({"file": names, "label": 0}).to_csv("labels.csv", index=False)
    return photos | {"source": "csv", "labels": "labels.csv"}


def records(path):
    return arrays.read_records(path)[0]


def test_photographs_are_listed_flat_and_nested_without_labels(photos):
    listed, classes = index(config.dataset(photos))
    assert set(listed["label"]) == {-1}
    assert (len(listed), classes) == (N_IMAGES, NAMES)
    assert {str(Path("photos", name)) for name in listed["name"]} == {*listed["path"]}
    assert {str(Path(name).parent) for name in listed["name"]} == {".", "a", "b/c"}
    assert len(index(config.dataset(photos | {"limit": 3}))[0]) == 3
    Path("empty").mkdir()
    with pytest.raises(InputError, match="empty: no images in it"):
        index(config.dataset(photos | {"root": "empty"}))


def test_the_label_is_what_the_network_says_of_the_original(photos):
    image, score, mask, of_photos = run(photos, "a")
    given = run(labelled(photos), "b")
    for mine, its in zip((image, score, mask), given[:3], strict=True):
        np.testing.assert_array_equal(np.load(mine), np.load(its))
    said = records(of_photos[-1])
    assert of_photos[-1].stem == "original"
    assert said["correct"].all()
    assert said["label"].equals(said["predicted"])
    assert said["label"].nunique() > 1
    by_name = said.set_index("name")["predicted"]
    for mine, its in zip(of_photos, given[3], strict=True):
        found, expected = records(mine), records(its)
        assert found["label"].tolist() == by_name[found["name"]].tolist()
        assert found["correct"].equals(found["predicted"] == found["label"])
        assert found["probability_label"].equals(found["probability_original"])
        same = ["name", "predicted", "probability_original", "area_kept"]
        assert found[same].equals(expected[same])
        assert [*found] == [*expected]
    assert not records(of_photos[0])["correct"].all()


def test_attributions_of_the_label_are_those_of_the_predicted_class(photos):
    of_predicted, of_label = run(photos, "a"), run(photos, "b", target="label")
    np.testing.assert_array_equal(np.load(of_label[1]), np.load(of_predicted[1]))
    found = arrays.read_records(arrays.records_of(of_label[1]))
    assert found[0]["target"].equals(found[0]["predicted"])
    assert found[1]["attribution"]["target"] == "label"


def pages(dataset, folder, monkeypatch, *, target="predicted"):
    """Every table, and the words of every picture, of a study."""
    *arrays_of_study, evaluated = run(dataset, folder, target=target)
    tables(evaluated, output=Path(folder))
    found = {path.name: path.read_text() for path in Path(folder).glob("*table*")}
    drawn = []
    monkeypatch.setattr(examples, "write_table", lambda path, shown, **said: drawn.append(said))
    monkeypatch.setattr(examples, "Column", lambda *said: drawn.append(said) or said)
    files = [*arrays_of_study, *evaluated]
    examples.examples(files, output=Path(folder), model_name="net", n_images=3)
    axes = []
    monkeypatch.setattr(Figure, "supylabel", lambda self, text: axes.append(text))
    curves(Path(folder, "accuracy.csv"), output=Path(folder))
    long = pd.read_csv(Path(folder, "accuracy.csv"))
    return found, drawn, axes, long


def test_every_page_says_that_it_is_agreement(photos, monkeypatch):
    found, drawn, axes, long = pages(photos, "a", monkeypatch, target="label")
    kinds = {f"table{number}.{kind}" for number in (1, 2, 3) for kind in ("md", "html", "tex")}
    for name in kinds:
        text = found[name].replace("&#x27;", "'").replace(r"\%", "%")
        assert "Agreement with the network's own answer to the original, in %" in text
        assert "they have no labels, so that this is no accuracy" in text
        assert "accuracy in %" not in text.replace("no accuracy", "")
        assert "top-1" not in text.lower()
        assert "of the predicted class" in text
    assert "agreement" in found["table1.csv"]
    assert "top-1" not in found["table1.csv"]
    assert set(axes) == {"agreement with the answer to the original, %"}
    titles = [said["title"] for said in drawn if isinstance(said, dict)]
    assert {*titles} == {"net; ✓: as of the original"}
    rows = [name for said in drawn if isinstance(said, dict) for name in said["row_names"]]
    assert all(name.startswith("IMG_") for name in rows)
    assert "attribution\nfor predicted class" in [one[0] for one in drawn if isinstance(one, tuple)]
    assert set(long["truth"]) == {"own answer"}
    assert long["published_top1"].isna().all()
    assert long.loc[long["mode"] == "original", "top1"].tolist() == [100]
    assert set(long["most_frequent_prediction"]) <= {*NAMES}
    captions = [caption for one in drawn if isinstance(one, tuple) for caption in one[2]]
    assert any(name in caption for name in NAMES for caption in captions)


def test_pages_of_labels_say_so_as_ever(photos, monkeypatch):
    found, drawn, axes, long = pages(labelled(photos), "a", monkeypatch, target="label")
    assert "Top-1 accuracy in %" in found["table1.md"]
    assert "top-1: accuracy in %; 95 % interval" in found["table1.md"]
    assert "agreement" not in "".join(found.values()).lower()
    assert set(axes) == {"top-1 accuracy, %"}
    assert {said["title"] for said in drawn if isinstance(said, dict)} == {"net"}
    assert "attribution\nfor true class" in [one[0] for one in drawn if isinstance(one, tuple)]
    assert set(long["truth"]) == {"label"}


def test_nothing_is_said_of_luck(photos, capsys):
    with_weights = MODEL | {"source": "photos_net:conv"}
    found = check.check({"dataset": photos, "models": {"m": with_weights}}, trial=True)
    found = {(f.about, f.level): f.says for f in found}
    assert found["dataset", "ok"].startswith("14 images without labels, of which networks agree")
    assert not [about for about, level in found if level == "error"]
    run(photos, "a")
    assert json.loads(Path("a/preflight.json").read_text())["first_images"]["top1"] == 100
    assert "chance" not in capsys.readouterr().err + str(found)


def test_the_masked_photographs_are_exported_to_one_folder(photos):
    image, _, mask, _ = run(photos, "a")
    export([image], Path("out"), masks=mask)
    assert len(ImageFolder("out")) == N_IMAGES
    assert ImageFolder("out").classes == ["photos"]
    assert set(pd.read_csv("out/labels.csv")["label"]) == {-1}
