"""Datasets of every source → the same kind of index."""

import csv
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision.datasets
from PIL import Image

from igmask.asked import config, fields
from igmask.errors import InputError
from igmask.inputs.classes import class_name, class_numbers
from igmask.inputs.data import index, numbered_classes, opener, unnamed_classes
from igmask.inputs.sources import demo
from igmask.plan import Workflow

MODEL = {"source": "nets:build", "size": 8}

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
        "txt": "\n".join(f"class{i} {n}" for i, n in enumerate(names)),
        "list": json.dumps(names),
        "keras": json.dumps({str(i): [n, "words"] for i, n in enumerate(names)}),
        "id2label": json.dumps({str(i): n for i, n in enumerate(names)}),
        "mapping": json.dumps({n: i for i, n in enumerate(names)}),
    }[kind]
    path.write_text(content)
    if kind == "txt":  # there, folders may go by an identifier
        for i in (1, 3, 4):
            (tree / names[i]).rename(tree / f"class{i}")
    dataset = {"source": "folder", "root": str(tree), "classes": str(path)}
    records, classes = index(config.dataset(dataset))
    assert sorted(set(records["label"])) == [1, 3, 4]
    assert classes[1].endswith("a'class")
    folders = [name.split(os.sep)[0] for name in records["name"]]
    expected = {f"class{i}" if kind == "txt" else names[i]: i for i in (1, 3, 4)}
    assert records["label"].tolist() == [expected[folder] for folder in folders]


def test_unlisted_and_empty_class_folders_are_named(tree, tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("a'class\nc;class\n")
    dataset = {"source": "folder", "root": str(tree)}
    with pytest.raises(InputError, match=r"'b class'.*not in"):
        index(config.dataset(dataset | {"classes": str(path)}))
    (tree / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no images in this class folder"):
        index(config.dataset(dataset))


def folders(root, names):
    """Class folders of these names, an image in each, which tells its place among them."""
    for i, name in enumerate(names):
        paint(root / name / "x.png", value=i)
    return root


SOURCES = [{"source": "folder"}, {"source": "torchvision", "class": "ImageFolder"}]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s["source"])
@pytest.mark.parametrize(
    "names",
    [
        [str(i) for i in range(12)],
        [f"{i:03}" for i in range(12)],
        ["3", "20", "7"],
        ["0", "1", "3"],
        ["1", "2", "10"],
        ["05", "1"],
    ],
    ids=" ".join,
)
def test_folders_that_are_numbers_are_the_classes_of_these_numbers(tmp_path, source, names):
    dataset = config.dataset(source | {"root": str(folders(tmp_path, names))})
    records, classes = index(dataset)
    assert sorted(records["label"]) == sorted(map(int, names))
    open_image = opener(dataset, seed=0)
    for record in records.itertuples():
        name = names[open_image(record).getpixel((0, 0))[0]]
        assert record.name.endswith(os.path.join(name, "x.png"))
        assert record.label == int(name)
        assert classes[record.label] == name
    assert len(classes) == max(map(int, names)) + 1
    made_by = {"dataset": fields.plain(dataset), "classes": classes}
    said = numbered_classes(made_by, records["label"])
    as_torchvision = [int(name) for name in sorted(names)] == list(range(len(names)))
    assert said is None if as_torchvision else "the class of its number" in said
    assert unnamed_classes(made_by, 1000) is None


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s["source"])
@pytest.mark.parametrize("names", [["1", "2", "3"], ["01", "02"], ["1", "2", "c"]], ids=" ".join)
def test_other_folders_keep_their_places_in_the_alphabet(tmp_path, source, names):
    dataset = config.dataset(source | {"root": str(folders(tmp_path, names))})
    records, classes = index(dataset)
    expected = torchvision.datasets.ImageFolder(tmp_path)
    assert (records["label"].tolist(), classes) == (expected.targets, expected.classes)
    made_by = {"dataset": fields.plain(dataset), "classes": classes}
    assert numbered_classes(made_by, records["label"]) is None


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s["source"])
def test_a_class_list_goes_before_numbers(tmp_path, source):
    root = folders(tmp_path / "val", ["0", "2", "10"])
    (tmp_path / "classes.txt").write_text("10\n5\n2\n0\n")
    dataset = source | {"root": str(root), "classes": str(tmp_path / "classes.txt")}
    records, classes = index(config.dataset(dataset))
    assert records["label"].tolist() == [3, 0, 2]  # of 0, 10, 2
    assert classes == ["10", "5", "2", "0"]
    made_by = {"dataset": dataset, "classes": classes}
    assert numbered_classes(made_by, records["label"]) is None
    (tmp_path / "classes.txt").write_text("10\n5\n2\n")
    with pytest.raises(InputError, match=r"the classes \['0'\] are not in .*classes\.txt"):
        index(config.dataset(dataset))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["7", "07", "1"], "the folders 07 and 7 are one class"),
        (["20240131", "3"], "20240131 is no"),
    ],
)
def test_numbers_that_are_no_classes_are_named(tmp_path, names, message):
    folders(tmp_path, names)
    with pytest.raises(InputError, match=message):
        index(config.dataset({"source": "folder", "root": str(tmp_path)}))


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s["source"])
def test_fewer_folders_than_classes_need_a_class_list(tmp_path, source):
    root = folders(tmp_path / "val", ["n01443537", "n01882714"])  # goldfish 1, koala 105
    dataset = source | {"root": str(root)}
    _, classes = index(config.dataset(dataset))
    said = unnamed_classes({"dataset": dataset, "classes": classes}, 1000)
    assert said.startswith("has 1000 classes, and the dataset 2 class")
    assert "set dataset.classes to imagenet" in said
    said = unnamed_classes({"dataset": dataset, "classes": classes}, 5)
    assert "Write the names of all 5 to a file" in said
    assert unnamed_classes({"dataset": dataset, "classes": classes}, 2) is None
    wnids = [f"n{i:08}" for i in range(1000)]
    wnids[1], wnids[105] = "n01443537", "n01882714"
    (tmp_path / "wnids.txt").write_text("\n".join(f"{wnid} of, words" for wnid in wnids))
    dataset["classes"] = str(tmp_path / "wnids.txt")
    records, classes = index(config.dataset(dataset))
    assert records["label"].tolist() == [1, 105]
    assert classes[105] == "n01882714 of, words"
    assert unnamed_classes({"dataset": dataset, "classes": classes}, 1000) is None


HIDDEN = [".ipynb_checkpoints", "__MACOSX", "._b"]


def test_the_classes_of_imagenet_come_with_igmask(tmp_path):
    torchvision = pytest.importorskip("torchvision.models")
    numbers = class_numbers("imagenet")
    assert list(numbers.values()) == [*range(1000)]
    wnids, names = zip(*(name.split(" ", 1) for name in numbers), strict=True)
    assert list(wnids) == sorted({*wnids})
    assert list(names) == torchvision.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    for wnid in ("n02123045", "n01443537"):  # tabby, goldfish
        paint(tmp_path / wnid / "x.png")
    settings = {"source": "folder", "root": str(tmp_path), "classes": "imagenet"}
    records, classes = index(config.dataset(settings))
    assert records["label"].tolist() == [1, 281]
    assert class_name(classes, 281) == "tabby"
    assert config.dataset(settings).tables == {}


def test_the_wnids_of_imagenet_are_timms():
    info = pytest.importorskip("timm.data").ImageNetInfo()
    assert [name.split()[0] for name in class_numbers("imagenet")] == [
        info.index_to_label_name(i) for i in range(1000)
    ]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s["source"])
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_names_are_no_folders_and_no_images(tmp_path, source, name):
    root = folders(tmp_path / ".cache" / "val", ["a", "b"])  # what lies above does not count
    dataset = config.dataset(source | {"root": str(root)})
    flow = Workflow(
        {"dataset": {"source": "folder", "root": str(root)}, "models": {"m": MODEL}},
        with_files=False,
    )
    expected, contents = index(dataset), flow.dataset_contents(None)
    paint(root / name / "x.png")
    paint(root / "a" / name / "deeper" / "x.png")
    paint(root / "b" / "._x.png")
    (root / ".empty").mkdir()
    found = index(dataset)
    assert found[0]["path"].tolist() == [str(root / "a" / "x.png"), str(root / "b" / "x.png")]
    pd.testing.assert_frame_equal(found[0], expected[0])
    assert found[1] == expected[1] == ["a", "b"]
    assert flow.dataset_contents(None) == contents
    (root / ".hidden").write_text("")
    folders(root, ["c"])
    assert flow.dataset_contents(None) != contents


WALKERS = {
    "Caltech101": ("caltech101/101_ObjectCategories", "image_0001.jpg", ["accordion", "anchor"]),
    "GTSRB": ("gtsrb/GTSRB/Training", "a.ppm", ["00000", "00001"]),
    "RenderedSST2": ("rendered-sst2/train", "a.png", ["negative", "positive"]),
    "Imagenette": ("imagenette2/train", "x.JPEG", ["n01440764", "n02102040"]),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # open files
@pytest.mark.parametrize("name", WALKERS)
def test_hidden_names_are_none_where_torchvision_walks_in_its_own_way(tmp_path, name):
    where, file, classes = WALKERS[name]
    (tmp_path / "imagenette2/val").mkdir(parents=True)
    (tmp_path / "caltech101/101_ObjectCategories/BACKGROUND_Google").mkdir(parents=True)
    for folder in classes:
        (tmp_path / "caltech101/Annotations" / folder).mkdir(parents=True)
        paint(tmp_path / where / folder / file)
    dataset = config.dataset({"source": "torchvision", "class": name, "root": str(tmp_path)})
    expected, names = index(dataset)
    for hidden in HIDDEN:
        paint(tmp_path / where / hidden / file)
        paint(tmp_path / where / classes[0] / f"._{file}")
    found, names_then = index(dataset)
    assert expected["label"].tolist() == [0, 1]
    pd.testing.assert_frame_equal(found, expected)
    assert names_then == names
    read = opener(dataset, seed=0)
    assert [read(row).size for row in found.itertuples()] == [(8, 8)] * 2


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
    ("names", "label"),
    [
        (["tiger shark", "tabby cat"], "tiger cat"),
        (["polar bear", "brown fox"], "polar fox"),
        (["red apple", "green apple"], "red pear"),
        ([f"class{i}" for i in range(10)], "7 segment display"),
        (["7 up", "8 ball"], "7 wonders"),
        (["mp3 player", "ps2 console"], "mp3 file"),
        (["cat", "dog"], "cat and mouse"),
        (["n01440764 tench", "goldfish"], "n01440764"),
        (["n1 tench", "n1 goldfish"], "n1"),
    ],
)
def test_a_first_word_that_is_no_identifier_of_all_classes_names_none(flat, names, label):
    (flat / "names.txt").write_text("\n".join(names))
    text = f"file,label\nILSVRC_0,{label}\n"
    with pytest.raises(
        InputError, match=rf"line 2: the label '{label}' is not in dataset\.classes"
    ):
        index(csv_dataset(flat, text, classes=str(flat / "names.txt")))
    folders(flat / "tree", [label])
    tree = {"source": "folder", "root": str(flat / "tree"), "classes": str(flat / "names.txt")}
    with pytest.raises(InputError, match=rf"\['{label}'\] are not in .*names\.txt"):
        index(config.dataset(tree))


@pytest.mark.parametrize("ending", ["txt", "json"])
def test_an_identifier_that_all_classes_begin_with_names_them(flat, ending):
    names = ["n01440764 tench", "n01443537 goldfish", "n01484850 great white shark"]
    path = flat / f"names.{ending}"
    path.write_text("\n".join(names) if ending == "txt" else json.dumps(names))
    text = "file,label\nILSVRC_0,n01443537\nILSVRC_1,n01484850 great white\nILSVRC_2,0\n"
    records, classes = index(csv_dataset(flat, text, classes=str(path)))
    assert records["label"].tolist() == [1, 2, 0]
    assert classes == names
    folders(flat / "tree", ["n01484850", "n01440764 tench"])
    tree = {"source": "folder", "root": str(flat / "tree"), "classes": str(path)}
    assert index(config.dataset(tree))[0]["label"].tolist() == [0, 2]


def test_a_number_with_words_is_no_number(flat):
    with pytest.raises(InputError, match="line 2: the label '7 10 20' is no number"):
        index(csv_dataset(flat, "file,label\nILSVRC_0,7 10 20\n"))


def test_a_name_that_fits_two_images_is_refused(flat):
    paint(flat / "val" / "ILSVRC_1.png")
    text = "file,label\nILSVRC_0,1\nILSVRC_1{},1\n"
    with pytest.raises(InputError, match=r"line 3: ILSVRC_1.JPEG and ILSVRC_1.png are both 'ILSVR"):
        index(csv_dataset(flat, text.format("")))
    records, _ = index(csv_dataset(flat, text.format(".png")))
    assert records["name"].tolist() == ["ILSVRC_0.JPEG", "ILSVRC_1.png"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("file;label", "its columns are separated by semicolons; separate them by commas"),
        ("file\tlabel", "its columns are separated by tabs"),
        ("ILSVRC_1,1", "no header, but 'ILSVRC_1,1'; put a line 'file,label' above it"),
        ("ILSVRC_1.JPEG,1", "no header, but 'ILSVRC_1.JPEG,1'"),
        ("file, label", "no column 'label', but ' label', which differs by a space"),
        ("File,label", "no column 'file', but 'File', which differs by upper and lower case"),
        ("file,label,label", "the column 'label' is there twice"),
        ("", "it is empty; it begins with a line 'file,label'"),
    ],
)
def test_what_is_wrong_with_a_header_is_said(flat, header, message):
    text = f"{header}\nILSVRC_0,1,2\n" if header else ""
    with pytest.raises(InputError, match=rf"labels\.csv: {message}"):
        index(csv_dataset(flat, text))


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


def test_lines_of_a_class_list_end_where_editors_end_them(tmp_path):
    """Not at the form feed, U+2028 and their like, which str.splitlines takes for ends, too."""
    names = ["cat\x0cdog", "a\u2028b", "c\x85d", "e\x1cf", "egg"]
    for end in ("\n", "\r\n"):
        (tmp_path / "names.txt").write_bytes((end.join(names) + end).encode())
        assert class_numbers(tmp_path / "names.txt") == {name: i for i, name in enumerate(names)}
        with (tmp_path / "names.txt").open(encoding="utf-8", newline="") as file:
            assert [*csv.reader(file)] == [[name] for name in names]


@pytest.mark.parametrize("name", ["ImageNet", "IMAGENET", "imagnet"])
def test_a_class_list_that_is_not_there_is_named(flat, monkeypatch, name):
    monkeypatch.chdir(flat)
    said = rf"dataset\.classes: there is no file '{name}'; did you mean 'imagenet'\?"
    with pytest.raises(InputError, match=said):
        index(csv_dataset(flat, "file,label\nILSVRC_0,1\n", classes=name))
    models = {"a": {"source": "m:f", "size": 8}}
    dataset = {"source": "photos", "root": str(flat), "classes": name}
    with pytest.raises(InputError, match=said):
        config.parse({"dataset": dataset, "models": models})
    with pytest.raises(InputError, match=r"classes: there is no file 'names\.txt'$"):
        index(csv_dataset(flat, "file,label\nILSVRC_0,1\n", classes="names.txt"))


def test_a_table_that_is_not_there_is_named(flat):
    dataset = csv_dataset(flat, "")
    (flat / "labels.csv").unlink()
    with pytest.raises(InputError, match=r"labels\.csv: there is no such file"):
        index(dataset)


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
    for source in ({"source": "folder"}, {"source": "torchvision", "class": "ImageFolder"}):
        with pytest.raises(InputError, match=r"caf\\xe9.jpg' is not UTF-8; rename it"):
            index(config.dataset({"root": str(tree)} | source))


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
        (f"file,label\nILSVRC_1,{2**63}\n", f"line 2: the label {2**63} is too large for a class"),
        (f"file,label\nILSVRC_1,{'9' * 5000}\n", "line 2: the label 9{30} is too large"),
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


def drawn(pixels, *, classes):
    """A class of torchvision.datasets that draws its images, of the labels 0, 1, 0."""

    class Drawn:
        def __init__(self, root):
            self.targets, self.classes = [0, 1, 0], classes

        def __len__(self):
            return 3

        def __getitem__(self, i):
            return Image.fromarray(pixels), self.targets[i]

    return Drawn


def test_a_class_list_orders_the_classes_of_torchvisions_datasets(tmp_path, monkeypatch):
    found = drawn(np.zeros((9, 9), np.uint8), classes=["cat", "dog"])
    monkeypatch.setattr(torchvision.datasets, "Drawn", found, raising=False)
    dataset = {"source": "torchvision", "class": "Drawn", "root": "there"}
    _, classes = index(config.dataset(dataset))
    said = unnamed_classes({"dataset": dataset, "classes": classes}, 1000)
    assert said.startswith("has 1000 classes, and the dataset 2 classes of its own")
    (tmp_path / "names.txt").write_text("emu\ndog\ncat\n")
    dataset["classes"] = str(tmp_path / "names.txt")
    records, classes = index(config.dataset(dataset))
    assert records["label"].tolist() == [2, 1, 2]
    assert classes == ["emu", "dog", "cat"]


def test_torchvisions_imagenet_gives_the_first_of_its_synonyms(tmp_path):
    names = {"n01440764": ("tench", "Tinca tinca"), "n02012849": ("crane",)}
    for wnid in names:
        paint(tmp_path / "val" / wnid / "x.png")
    torch.save((names, list(names)), tmp_path / "meta.bin")
    dataset = {"source": "torchvision", "class": "ImageNet", "root": str(tmp_path)}
    records, classes = index(config.dataset(dataset | {"arguments": {"split": "val"}}))
    assert classes == ["tench", "crane"]
    assert records["label"].tolist() == [0, 1]


def test_every_source_reads_grey_of_more_than_8_bits_by_its_scale(tmp_path, monkeypatch):
    pixels = np.array([[0, 257, 65535]], np.uint16)
    found = drawn(pixels, classes=["a", "b"])
    monkeypatch.setattr(torchvision.datasets, "Drawn", found, raising=False)
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "x.png")
    (tmp_path / "labels.csv").write_text("file,label\na/x,0\n")
    table = {"source": "csv", "labels": str(tmp_path / "labels.csv")}
    for source in (*SOURCES, table, {"source": "torchvision", "class": "Drawn"}):
        settings = source | {"root": str(tmp_path)}
        records, _ = index(config.dataset(settings))
        record = next(records.itertuples())
        name = record.name.split("/")[-1]
        with pytest.raises(InputError, match=f"{name}: its mode is I;16"):
            opener(config.dataset(settings), seed=0)(record)
        image = opener(config.dataset(settings | {"scale": 65535}), seed=0)(record)
        assert np.asarray(image).tolist() == [[[0] * 3, [1] * 3, [255] * 3]]


def test_the_size_and_time_of_every_image_file_are_kept(tmp_path, monkeypatch):
    for i in range(3):
        paint(tmp_path / "a" / f"{i}.png", size=(8, 8 + 40 * i))
        os.utime(tmp_path / "a" / f"{i}.png", ns=(0, 10**18 + i))
    (tmp_path / "a" / "3.png").symlink_to("nowhere")
    (tmp_path / "labels.csv").write_text("file,label\na/2.png,0\na/0,1\na/3,1\n")
    sizes = [(tmp_path / "a" / f"{i}.png").stat().st_size for i in range(3)] + [-1]
    assert len({*sizes}) == 4
    times = [10**18, 10**18 + 1, 10**18 + 2, -1]
    table = {"source": "csv", "labels": str(tmp_path / "labels.csv")}
    for source, order in (
        (SOURCES[0], [0, 1, 2, 3]),
        (SOURCES[1], [0, 1, 2, 3]),
        (table, [2, 0, 3]),
    ):
        records, _ = index(config.dataset(source | {"root": str(tmp_path)}))
        assert records["size"].tolist() == [sizes[i] for i in order]
        assert records["mtime_ns"].tolist() == [times[i] for i in order]
        assert records["size"].dtype == records["mtime_ns"].dtype == np.int64
        assert [os.path.basename(path) for path in records["path"]] == [f"{i}.png" for i in order]
    records, _ = index(config.dataset({"source": "folder", "root": str(tmp_path), "limit": 2}))
    assert records["size"].tolist() == sizes[:2]
    found = drawn(np.zeros((9, 9), np.uint8), classes=["a", "b"])
    monkeypatch.setattr(torchvision.datasets, "Drawn", found, raising=False)
    for others in ({"source": "demo"}, {"source": "torchvision", "class": "Drawn", "root": "."}):
        assert not {"size", "mtime_ns"} & {*index(config.dataset(others))[0].columns}


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


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('0.png,0,"ok\n1.png,1,b\n2.png,2,c\n', "after line 1: a double quote is not closed"),
        ("0.png,0,a\n1.png,1,b,c\n", "line 3: more fields than columns"),
        ('0.png,0,"a" b\n', "a double quote is not closed, or not at the end of its field"),
    ],
)
def test_a_table_that_is_no_csv_loses_no_line(tmp_path, rows, message):
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("file,label,comment\n" + rows)
    settings = {"source": "csv", "root": str(tmp_path), "labels": str(tmp_path / "labels.csv")}
    with pytest.raises(InputError, match=message):
        index(config.dataset(settings))


def test_a_number_that_is_no_name_is_no_place_where_names_are_numbers(tmp_path):
    for i in range(6):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    lines = "".join(f"{i}.png,{i}\n" for i in range(6))
    (tmp_path / "labels.csv").write_text("file,label\n" + lines)
    (tmp_path / "classes.txt").write_text("1\n2\n3\n4\n5\n6\n")
    settings = {"source": "csv", "root": str(tmp_path), "labels": str(tmp_path / "labels.csv")}
    with pytest.raises(InputError, match=r"'0' is not in dataset\.classes"):
        index(config.dataset(settings | {"classes": str(tmp_path / "classes.txt")}))


@pytest.mark.parametrize(
    "text",
    [
        '{"0": []}',
        '{"0": null}',
        '{"0": 5.0}',
        '{"crane": 0, "dog": 1, "crane": 2}',
        '{"0": "crane", "0": "dog"}',
        '{"crane": -1}',
        '{"dog": 20260101}',
    ],
)
def test_a_class_list_in_json_that_is_none_is_refused(tmp_path, text):
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"classes\.json: "):
        class_numbers(path)
