"""A function of one's own as the source of images, through all that asks for them."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from igmask import arrays
from igmask.asked import config
from igmask.asked.fields import given
from igmask.asked.recipes import Index, Preflight, Prepare
from igmask.errors import InputError
from igmask.inputs import contents
from igmask.inputs.data import index, opener
from igmask.inputs.decode import by_place
from igmask.plan import Workflow
from igmask.steps.index import index as write_index
from igmask.steps.preflight import preflight
from igmask.steps.prepare import prepare
from igmask.tools import check
from igmask.tools.verify import verify

MODULE = """
from io import BytesIO

import numpy as np
import pandas
from PIL import Image
from torch import nn

def photos(dataset):
    table = pandas.read_parquet(dataset.root)

    def open_image(i):
        return Image.open(BytesIO(table.png[i]))

    return table.file, table.label, ["cat", "dog"], open_image

def unnamed(dataset):
    names, labels, _, open_image = photos(dataset)
    return names, labels, None, open_image

def arrays(dataset):
    return [*photos(dataset)[:3], lambda i: np.zeros((8, 8, 3), np.uint8)]

def misspelt(dataset):
    return [*photos(dataset)[:3], lambda i: {}["image"]]

def no_argument():
    return photos(None)

def number(dataset):
    return 3

def three(dataset):
    return photos(dataset)[:3]

def all_at_hand(dataset):
    return ["a"], [0], ["cat"], [Image.new("RGB", (8, 8))]

def fewer_labels(dataset):
    return ["a", "b"], [0], [], Image.open

def no_integers(dataset):
    return ["a", "b"], [0, "dog"], [], Image.open

def halves(dataset):
    return ["a", "b"], [0.0, 1.0], [], Image.open

def astronomical(dataset):
    return ["a", "b"], [0, 2**63], [], Image.open

def too_large(dataset):
    return ["a", "b"], [0, 2], ["cat", "dog"], Image.open

def twice(dataset):
    return ["a", "b", "a"], [0, 0, 0], [], Image.open

def empty(dataset):
    return [], [], [], Image.open

def no_key(dataset):
    return dataset.arguments["split"]

def net(classes=2):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))
"""

N_IMAGES = 6
STUDY = {
    "dataset": {"source": "own_images:photos", "root": "photos.parquet"},
    "models": {"a": {"source": "own_images:net", "size": 8, "weights": "none"}},
}


def png(value, *, mode="RGB"):
    file = BytesIO()
    Image.new(mode, (8, 8), (value,) * 3 if mode == "RGB" else value).save(file, "png")
    return file.getvalue()


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A working directory with functions and a table of images, of which image i is all i grey."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_images.py").write_text(MODULE)
    table = pd.DataFrame({"file": [f"{i}.png" for i in range(N_IMAGES)]})
    table["label"], table["png"] = np.arange(N_IMAGES) % 2, [png(i) for i in range(N_IMAGES)]
    table.to_parquet("photos.parquet")
    return table


def own(name, **settings):
    return config.dataset({"source": f"own_images:{name}", "root": "photos.parquet"} | settings)


def test_a_function_lists_and_opens_images(table):
    records, classes = index(own("photos"))
    assert own("photos").name == "own_images-photos"
    assert classes == ["cat", "dog"]
    assert records["name"].tolist() == table["file"].tolist()
    assert records["label"].tolist() == table["label"].tolist()
    open_image = opener(own("photos"), seed=0)
    for record in records.itertuples():
        image = open_image(record)
        assert (image.mode, image.getpixel((0, 0))) == ("RGB", (record.position,) * 3)


def test_a_class_list_orders_the_classes_of_a_function(table):
    Path("names.txt").write_text("emu\ndog\ncat\n")
    records, classes = index(own("photos", classes="names.txt", limit=1))
    assert (records["label"].tolist(), classes) == ([2, 1], ["emu", "dog", "cat"])
    records, classes = index(own("unnamed", classes="names.txt", limit=1))
    assert (records["label"].tolist(), classes) == ([0, 1], ["emu", "dog", "cat"])
    assert index(own("unnamed"))[1] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "own_images:nothing: AttributeError: .* no attribute 'nothing'"),
        ("no_argument", "own_images:no_argument: TypeError: .* takes 0 positional arguments"),
        ("number", r"returned int, not \(names, labels, classes, function that opens the image"),
        ("three", r"own_images:three returned tuple of 3, not \(names, labels, classes, function"),
        ("all_at_hand", r"returned tuple of 4, not \(names, labels, classes, function"),
        ("fewer_labels", "own_images:fewer_labels: 2 names and 1 labels"),
        ("no_integers", "the label of 'b' must be an integer, got 'dog'"),
        ("halves", r"the label of 'a' must be an integer, got 0\.0"),
        ("too_large", "the label of 'b' is 2, and the classes are 0 … 1"),
        ("astronomical", "own_images:astronomical: a label of 2⁶³ or more is too large"),
        ("twice", "own_images:twice: 'a' is there twice"),
        ("empty", "dataset 'own_images-empty' has no images"),
        ("no_key", "own_images:no_key: KeyError: 'split'"),
    ],
)
def test_a_function_that_is_wrong_is_named(table, name, message):
    with pytest.raises(InputError, match=message):
        index(own(name))


def test_what_cannot_be_imported_is_named(table):
    with pytest.raises(InputError, match="no_images:photos: ModuleNotFoundError"):
        index(config.dataset({"source": "no_images:photos"}))
    with pytest.raises(InputError, match=r"own_images:photos: FileNotFoundError: .*elsewhere"):
        index(own("photos", root="elsewhere.parquet"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("arrays", "0.png: the dataset gives ndarray, not an image; PIL.Image.fromarray makes one"),
        ("misspelt", "0.png: own_images:misspelt: KeyError: 'image'"),
    ],
)
def test_an_image_that_is_none_is_named(table, name, message):
    record = next(index(own(name))[0].itertuples())
    with pytest.raises(InputError, match=message):
        opener(own(name), seed=0)(record)


def test_bad_images_of_a_function_are_named(table):
    table.at[0, "png"], table.at[1, "png"] = b"no image", png(65535, mode="I;16")
    table.to_parquet("photos.parquet")
    first, second, *_ = index(own("photos"))[0].itertuples()
    with pytest.raises(InputError, match=r"^0\.png: not an image$"):
        opener(own("photos"), seed=0)(first)
    with pytest.raises(InputError, match=r"^1\.png: its mode is I;16"):
        opener(own("photos"), seed=0)(second)
    assert opener(own("photos", scale=65535), seed=0)(second).getpixel((0, 0)) == (255,) * 3


class Archive:
    """A file that several images are read from, and which sees whether two are at once."""

    def __init__(self, content):
        self.file, self.inside, self.met = BytesIO(content), 0, False

    def read(self, *arguments):
        self.inside += 1
        time.sleep(0.001)  # others come in, if anything lets them
        self.met |= self.inside > 1
        self.inside -= 1
        return self.file.read(*arguments)

    def seek(self, *arguments):
        return self.file.seek(*arguments)

    def tell(self):
        return self.file.tell()


def test_images_in_one_file_are_read_one_after_another():
    archive = Archive(png(7))
    records = pd.DataFrame({"name": "x", "position": range(20)})
    open_image = by_place(lambda _: Image.open(archive))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(open_image, records.itertuples()))
    assert {image.getpixel((0, 0)) for image in found} == {(7, 7, 7)}
    assert not archive.met


def stale(flow, **options):
    """What is wrong with the files that are there, by their names in the dataset's folder."""
    found = {made.path: says for made, says in verify(flow, **options) if says != "missing"}
    return {str(path.relative_to(flow.folder)): says for path, says in found.items()}


def test_a_study_of_a_function_is_prepared_verified_and_made_again(table):
    flow = Workflow(STUDY)
    folder, model = Path(flow.folder), flow.models["a"]
    assert folder == Path("results/own_images-photos")
    write_index(folder / "index.parquet", flow.index(None))
    images = folder / "images" / "8" / "1-of-1.npy"
    prepare(folder / "index.parquet", images, Prepare(model.geometry))
    assert np.load(images)[:, 0, 0, 0].tolist() == [*range(N_IMAGES)]
    preflight(folder / "index.parquet", folder / "models/a/preflight.json", Preflight(model))
    found = json.loads((folder / "models/a/preflight.json").read_text())
    assert found["class_names"] == ["cat", "dog"]
    assert stale(flow) == stale(flow, deep=True) == {}

    before = table.copy()
    table["label"] = 1 - table["label"]
    table.to_parquet("photos.parquet")
    assert stale(flow)["index.parquet"] == "stale: there are other labels now"
    table = before.copy()
    table.at[3, "png"] = png(77)
    table.to_parquet("photos.parquet")
    assert stale(flow) == {}  # nothing says so but the image itself
    assert stale(flow, deep=True) == {
        "images/8/1-of-1.npy": "stale: the image 3.png has changed since"
    }
    before.to_parquet("photos.parquet")
    before = flow.dataset_contents(None)
    with Path("own_images.py").open("a") as file:
        file.write("# another\n")
    assert stale(flow)["index.parquet"] == "stale: made of other code"
    contents._digest.cache_clear()
    assert flow.dataset_contents(None) != before
    records = arrays.read_records(folder / "index.parquet")[0]
    assert not {"size", "mtime_ns"} & {*records}


def test_a_function_lists_all_classes_of_a_network(table):
    write_index(Path("index.parquet"), Index(given(own("photos"))))
    model = config.model(STUDY["models"]["a"] | {"arguments": {"classes": 3}})
    with pytest.raises(InputError, match=r"the dataset's function lists 2 classes, .* 3 outputs"):
        preflight(Path("index.parquet"), Path("p.json"), Preflight(model))


def test_check_finds_what_is_wrong_with_a_function(table):
    def found(study):
        return {f.about: (f.level, f.says) for f in check.check(study, trial=False)}

    good = found(STUDY)
    assert {level for level, _ in good.values()} == {"ok"}
    assert good["dataset"] == ("ok", "6 images of 2 classes")
    assert "6 tried as 8" in good["images"][1]
    dataset = {"source": "own_images:three", "root": "photos.parquet", "obtain": "ask me"}
    level, says = found(STUDY | {"dataset": dataset})["dataset"]
    assert level == "error"
    assert says.startswith("own_images:three returned tuple of 3")
    assert says.endswith("ask me")
    level, says = found(STUDY | {"dataset": dataset | {"source": "own_images:misspelt"}})["images"]
    assert level == "error"
    assert "0.png: own_images:misspelt: KeyError: 'image'" in says
