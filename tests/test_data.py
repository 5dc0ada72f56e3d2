"""Datasets of every source → the same kind of index."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from igmask import config, demo
from igmask.data import index, opener
from igmask.errors import InputError

HOSTILE = [
    "plain.jpg",
    "with space.jpg",
    "semi;colon.jpg",
    "quo'te\".JPG",
    "ünï-çø∂é.png",
    "$(x).bmp",
]


def paint(path, value=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "my photos"
    for folder in ("b class", "a'class", "c;class"):
        for i, name in enumerate(HOSTILE):
            paint(root / folder / name, value=i)
    paint(root / "b class" / "deeper" / "x.png")
    (root / "b class" / "notes.txt").write_text("no image")
    return root


def test_folders_are_indexed_as_torchvisions_image_folder(tree):
    records, classes = index(config.dataset({"source": "folder", "root": str(tree)}))
    expected = torchvision.datasets.ImageFolder(tree)
    assert classes == expected.classes
    assert records["path"].tolist() == [path for path, _ in expected.samples]
    assert records["label"].tolist() == expected.targets
    assert records["name"].is_unique
    assert records["position"].tolist() == list(range(len(records)))


def test_limit_takes_the_first_of_each_class_and_keeps_positions(tree):
    dataset = {"source": "folder", "root": str(tree), "limit": 2}
    records, _ = index(config.dataset(dataset))
    assert records["label"].tolist() == [0, 0, 1, 1, 2, 2]
    whole, _ = index(config.dataset(dataset | {"limit": None}))
    assert whole.loc[records["position"], "name"].tolist() == records["name"].tolist()


@pytest.mark.parametrize("kind", ["txt", "list", "keras", "id2label", "mapping"])
def test_a_class_list_maps_folders_to_the_networks_indices(tree, tmp_path, kind):
    names = ["zero", "a'class", "two", "b class", "c;class"]
    path = tmp_path / ("classes.txt" if kind == "txt" else "classes.json")
    content = {
        "txt": "\n".join(f"{n.replace(' ', '_')} some words" for n in names),
        "list": json.dumps(names),
        "keras": json.dumps({str(i): [n, "words"] for i, n in enumerate(names)}),
        "id2label": json.dumps({str(i): n for i, n in enumerate(names)}),
        "mapping": json.dumps({n: i for i, n in enumerate(names)}),
    }[kind]
    path.write_text(content)
    if kind == "txt":  # a name is a word there
        (tree / "b class").rename(tree / "b_class")
    dataset = {"source": "folder", "root": str(tree), "classes": str(path)}
    records, classes = index(config.dataset(dataset))
    assert sorted(set(records["label"])) == [1, 3, 4]
    assert classes[1].startswith("a'class")


def test_unlisted_and_empty_class_folders_are_named(tree, tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("a'class\nc;class\n")
    dataset = {"source": "folder", "root": str(tree)}
    with pytest.raises(InputError, match=r"'b class'.*not in"):
        index(config.dataset(dataset | {"classes": str(path)}))
    (tree / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no images in this class folder"):
        index(config.dataset(dataset))


@pytest.mark.parametrize("root", [".", "./", "../{}"])
def test_names_are_the_same_from_wherever_the_root_is_named(tree, monkeypatch, root):
    expected, _ = index(config.dataset({"source": "folder", "root": str(tree)}))
    monkeypatch.chdir(tree)
    found, _ = index(config.dataset({"source": "folder", "root": root.format(tree.name)}))
    assert found["name"].tolist() == expected["name"].tolist()


def test_missing_root_and_no_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        index(config.dataset({"source": "folder", "root": str(tmp_path / "nowhere")}))
    with pytest.raises(InputError, match="no class folders"):
        index(config.dataset({"source": "folder", "root": str(tmp_path)}))


@pytest.fixture
def flat(tmp_path):
    for i in range(4):
        paint(tmp_path / "val" / f"ILSVRC_{i}.JPEG", value=i)
    return tmp_path


def csv_dataset(flat, text, **more):
    (flat / "labels.csv").write_text(text)
    settings = {"source": "csv", "root": str(flat / "val"), "labels": str(flat / "labels.csv")}
    return config.dataset(settings | more)


def test_a_flat_folder_with_numbers(flat):
    text = "file,label\nILSVRC_2.JPEG,7\nILSVRC_0.JPEG,3\n"
    records, _ = index(csv_dataset(flat, text))
    assert records["name"].tolist() == ["ILSVRC_2.JPEG", "ILSVRC_0.JPEG"]
    assert records["label"].tolist() == [7, 3]


def test_a_flat_folder_with_the_columns_of_imagenets_solution_file(flat):
    (flat / "wnids.txt").write_text("n01440764 tench\nn01443537 goldfish\n")
    text = "ImageId,PredictionString\nILSVRC_1,n01443537 10 20 30 40 n01443537 1 2 3 4\n"
    dataset = csv_dataset(
        flat,
        text,
        columns=["ImageId", "PredictionString"],
        classes=str(flat / "wnids.txt"),
    )
    records, classes = index(dataset)
    assert records["name"].tolist() == ["ILSVRC_1.JPEG"]
    assert records["label"].tolist() == [1]
    assert classes == ["n01440764 tench", "n01443537 goldfish"]


def test_classes_may_begin_with_the_same_word(flat):
    (flat / "names.txt").write_text("tiger cat\ntiger shark\ngreat white\n")
    text = "file,label\nILSVRC_0,tiger shark\nILSVRC_1,great white\nILSVRC_2,tiger cat\n"
    records, _ = index(csv_dataset(flat, text, classes=str(flat / "names.txt")))
    assert records["label"].tolist() == [1, 2, 0]
    with pytest.raises(InputError, match="the label 'tiger'"):
        index(csv_dataset(flat, "file,label\nILSVRC_0,tiger\n", classes=str(flat / "names.txt")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", b"cat\ndog\ncat\n", r"\['cat'\] are there twice"),
        ("c.json", b"{", r"c\.json: not JSON"),
        ("c.txt", b"caf\xe9\n", r"c\.txt: not UTF-8"),
        ("c.json", b"3", r"c\.json: expected names"),
        ("c.json", b'{"a": "b"}', r"c\.json: expected names"),
        ("c.json", b'{"a": 0, "b": 0}', r"c\.json: two classes have the same"),
        ("c.json", b'{"0": "a", "1": "a"}', r"c\.json: two classes have the same"),
    ],
)
def test_bad_class_lists_are_named(flat, name, content, message):
    (flat / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        index(csv_dataset(flat, "file,label\nILSVRC_0,1\n", classes=str(flat / name)))


def test_tables_of_spreadsheets(flat):
    dataset = csv_dataset(flat, "")
    (flat / "labels.csv").write_bytes("\ufefffile,label\nILSVRC_0,1\n".encode())
    assert index(dataset)[0]["label"].tolist() == [1]
    (flat / "labels.csv").write_bytes(b"file,label\ncaf\xe9,1\n")
    with pytest.raises(InputError, match=r"labels\.csv: not UTF-8"):
        index(dataset)


def test_names_that_are_no_text_are_named(tree):
    folder = os.fsencode(tree / "c;class")
    os.rename(folder + b"/plain.jpg", folder + b"/caf\xe9.jpg")
    with pytest.raises(InputError, match=r"caf\\xe9.jpg' is not UTF-8; rename it"):
        index(config.dataset({"source": "folder", "root": str(tree)}))


def test_bad_images_of_torchvision_datasets_are_named(tree):
    (tree / "b class" / "plain.jpg").write_text("no image")
    dataset = config.dataset({"source": "torchvision", "class": "ImageFolder", "root": str(tree)})
    records, _ = index(dataset)
    open_image = opener(dataset, seed=0)
    bad = next(r for r in records.itertuples() if r.name.endswith("b class/plain.jpg"))
    with pytest.raises(InputError, match=r"b class/plain\.jpg: not an image"):
        open_image(bad)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\nx,1\n", r"no column \['file'\]; it has \['image', 'label'\]"),
        ("file,label\nILSVRC_9.JPEG,1\n", r"line 2: no image 'ILSVRC_9.JPEG'"),
        ("file,label\nILSVRC_1,1\nILSVRC_2,cat\n", r"line 3: the label 'cat'"),
        ("file,label\nILSVRC_1,1\nILSVRC_2,\n", r"line 3: the label ''"),
        ("file,label\nILSVRC_1,1\nILSVRC_1.JPEG,1\n", "there twice"),
        ("file,label\n", "no images"),
    ],
)
def test_bad_tables_are_named(flat, text, message):
    with pytest.raises(InputError, match=message):
        index(csv_dataset(flat, text))


def test_torchvision_dataset_images_and_labels(monkeypatch):
    class Drawn:
        classes = ("x", "y")

        def __init__(self, root, train=True, download=False):
            assert (root, train, download) == ("there", False, True)
            self.targets = [1, 0, 1]

        def __len__(self):
            return 3

        def __getitem__(self, i):
            return Image.new("L", (9, 9), i), self.targets[i]

    monkeypatch.setattr(torchvision.datasets, "Drawn", Drawn, raising=False)
    dataset = config.dataset(
        {
            "source": "torchvision",
            "class": "Drawn",
            "root": "there",
            "arguments": {"train": False},
            "download": True,
            "limit": 1,
        }
    )
    records, classes = index(dataset)
    assert records["label"].tolist() == [1, 0]
    assert classes == ["x", "y"]
    open_image = opener(dataset, seed=0)
    pixels = [np.asarray(open_image(r))[0, 0].tolist() for r in records.itertuples()]
    assert pixels == [[0, 0, 0], [1, 1, 1]]


def test_torchvision_datasets_serve_one_thread_at_a_time(monkeypatch):
    class Guarded:
        def __init__(self, root):
            self.targets, self.inside, self.met = [0] * 40, 0, False

        def __len__(self):
            return len(self.targets)

        def __getitem__(self, i):
            self.inside += 1
            time.sleep(0.001)  # others come in, if anything lets them
            self.met |= self.inside > 1
            self.inside -= 1
            return Image.new("L", (9, 9), i), 0

    made = Guarded("there")
    monkeypatch.setattr(torchvision.datasets, "Guarded", lambda root: made, raising=False)
    dataset = config.dataset({"source": "torchvision", "class": "Guarded", "root": "there"})
    records, _ = index(dataset)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(opener(dataset, seed=0), records.itertuples()))
    assert not made.met


def test_bombs_in_torchvision_datasets_are_named(tree, bomb):
    bomb(tree / "b class" / "plain.jpg", 60_000, 60_000)
    dataset = config.dataset({"source": "torchvision", "class": "ImageFolder", "root": str(tree)})
    records, _ = index(dataset)
    bad = next(r for r in records.itertuples() if r.name.endswith("b class/plain.jpg"))
    with pytest.raises(InputError, match=r"b class/plain\.jpg: too large"):
        opener(dataset, seed=0)(bad)


def test_unknown_torchvision_classes_and_missing_data_are_named(tmp_path):
    settings = {"source": "torchvision", "root": str(tmp_path)}
    with pytest.raises(InputError, match="no 'CIFAR1000'"):
        index(config.dataset(settings | {"class": "CIFAR1000"}))
    with pytest.raises(InputError, match=r"CIFAR10.*not found"):
        index(config.dataset(settings | {"class": "CIFAR10"}))


def test_the_demo_is_balanced_and_drawn_alike_in_every_shard():
    dataset = config.dataset({"source": "demo", "n_images": 30})
    records, classes = index(dataset)
    assert classes == list(demo.CLASSES)
    assert records["label"].value_counts().unique().tolist() == [3]
    open_image = opener(dataset, seed=4)
    backwards = [np.asarray(open_image(r)) for r in records[::-1].itertuples()]
    forwards = [np.asarray(open_image(r)) for r in records.itertuples()]
    assert all((a == b).all() for a, b in zip(forwards, backwards[::-1], strict=True))
    assert (forwards[0] != np.asarray(opener(dataset, seed=5)(next(records.itertuples())))).any()
