"""Parquet files and WebDataset's tars give what a folder of the same images gives."""

import io
import json
import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from steps import run_attribute, run_evaluate, run_index, run_mask, run_prepare
from torchvision.models import ResNet50_Weights

from igmask import arrays
from igmask.asked import config
from igmask.asked.recipes import Index
from igmask.asked.settings import Geometry
from igmask.errors import InputError
from igmask.inputs.classes import class_labels
from igmask.inputs.data import check_order, index, opener
from igmask.inputs.sources import parquet as parquet_source
from igmask.plan import Workflow
from igmask.report.tables import texts
from igmask.tools.verify import verify

CLASSES = ["cat", "dog", "emu"]
N_IMAGES = 24
GEOMETRY = Geometry(16, 20, "bilinear")
ENDINGS = [".jpg", ".png", ".jpeg", ".webp"]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A working directory with a folder of images, three classes of them, each another picture."""
    monkeypatch.chdir(tmp_path)
    for i in range(N_IMAGES):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 24 + i, 3), dtype=np.uint8)
        path = Path("photos", CLASSES[i * 3 // N_IMAGES], f"{i:03d}{ENDINGS[i % 4]}")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return sorted(Path("photos").rglob("*.*"))


def label(path):
    return CLASSES.index(path.parent.name)


def write_parquet(name, files, *, labels=None, paths=True, classes=CLASSES, **options):
    """Write a file as `datasets` does: struct{bytes, path}, and the names of classes beside."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    of_bytes = pa.array([f and f.read_bytes() for f in files], pa.binary())
    of_paths = pa.array([str(Path(*f.parts[1:])) if paths and f else None for f in files])
    table = pa.table(
        {
            "image": pa.StructArray.from_arrays([of_bytes, of_paths], ["bytes", "path"]),
            "label": pa.array(labels or [label(f) for f in files], pa.int64()),
        }
    )
    if classes:
        features = {"label": {"names": classes, "_type": "ClassLabel"}}
        said = json.dumps({"info": {"features": features | {"image": {"_type": "Image"}}}})
        table = table.replace_schema_metadata({"huggingface": said})
    pq.write_table(table, path, **options)
    return path


def write_tar(name, members, *, format=tarfile.PAX_FORMAT, mode="w"):
    """Write a tar of (name, bytes)."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=format) as tar:
        for member, content in members:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(files, *, folder="", kind="cls"):
    """The members of a tar: each image, and its label in a .cls or a .json."""
    for file in files:
        key = folder + str(Path(*file.parts[1:]).with_suffix(""))
        yield f"{key}{file.suffix}", file.read_bytes()
        text = str(label(file)) if kind == "cls" else json.dumps({"label": label(file), "w": 3})
        yield f"{key}.{kind}", text.encode()


def prepared(dataset, where, **settings):
    """What steps `index` and `prepare` make of a dataset: records and pixels."""
    run_index(dataset, Path(where, "index.parquet"))
    run_prepare(Path(where, "index.parquet"), Path(where, "1.npy"), geometry=GEOMETRY, **settings)
    return arrays.read_records(Path(where, "1.parquet")), np.load(Path(where, "1.npy"))


FOLDER = {"source": "folder", "root": "photos"}
PARQUET = {"source": "parquet", "root": "rows"}
TARS = {"source": "webdataset", "root": "tars"}


def check_as_folder(dataset, *, ending=True, prefix=""):
    """Compare names, labels, checksums and pixels with those of the folder."""
    (expected, by_folder), pixels = prepared(FOLDER, "a")
    (found, made_by), others = prepared(dataset, "b")
    np.testing.assert_array_equal(others, pixels)
    names = expected["name"] if ending else expected["name"].str.replace(r"\.\w+$", "", regex=True)
    assert found["name"].tolist() == [prefix + name for name in names]
    columns = ["label", "position", arrays.CHECKSUM]
    assert found[columns].equals(expected[columns])
    assert made_by["classes"] == ([] if dataset["source"] == "webdataset" else CLASSES)
    assert by_folder["classes"] == CLASSES


@pytest.mark.parametrize("options", [{}, {"row_group_size": 5, "compression": "zstd"}], ids=str)
def test_parquet_gives_what_a_folder_gives(tree, options):
    write_parquet("rows/data/train-0.parquet", tree[:10], **options)
    write_parquet("rows/data/train-1.parquet", tree[10:], **options)
    check_as_folder(PARQUET)


@pytest.mark.parametrize("kind", ["cls", "json"])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_give_what_a_folder_gives(tree, kind, format):
    folder = "long/" * 30 if format != tarfile.USTAR_FORMAT else "ä/"
    write_tar("tars/0.tar", samples(tree[:10], folder=folder, kind=kind), format=format)
    write_tar("tars/deeper/1.tar", samples(tree[10:], folder=folder, kind=kind), format=format)
    check_as_folder(TARS, ending=False, prefix=folder)


NETWORK = """
import torch
from torch import nn

def conv():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
"""


def tables_of(dataset, where):
    """The tables of a study of a dataset, p = 50."""
    prepared(dataset, where)
    images, scores, masks = (Path(where, f"{name}.npy") for name in ("1", "scores", "50"))
    model = config.model({"source": "shards_net:conv", "size": 16, "resize": 20})
    run_attribute(images, scores, model=model, attribution={"n_steps": 3}, device="cpu")
    run_mask([scores], Path(where), p=(50,))
    records = Path(where, "records")
    run_evaluate([images], records, model=model, name="net", masks=[masks], device="cpu")
    return texts([records])


def test_a_study_of_shards_has_the_tables_of_a_folder(tree, monkeypatch):
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("shards_net.py").write_text(NETWORK)
    Path("names.txt").write_text("\n".join(CLASSES))
    write_parquet("rows/0.parquet", tree)
    write_tar("tars/0.tar", samples(tree, kind="json"))
    expected = tables_of(FOLDER, "a")
    assert any(name in expected["accuracy.csv"] for name in CLASSES)
    assert tables_of(PARQUET, "b") == expected
    assert tables_of(TARS | {"classes": "names.txt"}, "c") == expected


def test_shards_are_read_from_many_threads_in_any_order(tree):
    write_parquet("rows/0.parquet", tree[:10], row_group_size=4)
    write_parquet("rows/1.parquet", tree[10:], row_group_size=100)
    write_tar("tars/0.tar", samples(tree))
    expected = {str(label(f)) + f.stem: np.asarray(Image.open(f).convert("RGB")) for f in tree}
    for dataset in (config.dataset(PARQUET), config.dataset(TARS)):
        records, _ = index(dataset)
        shuffled = records.iloc[np.random.default_rng(0).permutation([*range(N_IMAGES)] * 5)]
        with ThreadPoolExecutor(8) as pool:
            read = pool.map(opener(dataset, seed=0), shuffled.itertuples())
        for record, image in zip(shuffled.itertuples(), read, strict=True):
            found = expected[str(record.label) + Path(record.name).stem]
            np.testing.assert_array_equal(np.asarray(image), found)


def test_rows_that_are_asked_for_in_order_are_read_once(tree, monkeypatch):
    path = write_parquet("rows/0.parquet", tree, row_group_size=7)
    groups = []
    original = pq.ParquetFile.iter_batches

    def counted(self, *args, **options):
        groups.extend(options["row_groups"])
        return original(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    rows = parquet_source._Rows(str(path), "image")
    for row in [1, 0, 2, 4, 3, 5, 6, 8, 7, *range(9, N_IMAGES)]:  # as threads have it
        assert rows.read(row) == tree[row].read_bytes()
    assert groups == [0, 1, 2, 3]
    assert rows._passed == {}


def test_rows_passed_over_do_not_stay(tree):
    path = write_parquet("rows/0.parquet", tree * 10)
    rows = parquet_source._Rows(str(path), "image")
    assert rows.read(239) == tree[-1].read_bytes()
    assert len(rows._passed) < 2 * os.cpu_count() + 1 < 239
    assert rows.read(0) == tree[0].read_bytes()


def test_rows_without_paths_of_their_own_go_by_file_and_row(tree):
    data = "data/train-0"
    write_parquet(f"rows/{data}.parquet", tree[:20], paths=False)
    write_parquet("rows/train-1.parquet", tree[20:])
    names = index(config.dataset(PARQUET))[0]["name"]
    assert names.iloc[[0, 3, 4]].tolist() == ["train-1/000000", "train-1/000003", f"{data}/000000"]
    assert names.is_unique
    shutil.rmtree("rows")
    write_parquet("rows/a.parquet", tree[:3])
    write_parquet("rows/b.parquet", tree[2:4])
    names = index(config.dataset(PARQUET))[0]["name"]
    assert names.tolist() == ["a/000000", "a/000001", "a/000002", "b/000000", "b/000001"]


def test_other_images_whose_paths_count_alike_go_by_file_and_row(tree):
    """As two splits have them, each of which counts from 0.png."""
    for split, files in (("train", tree[:3]), ("val", tree[3:6])):
        path = write_parquet(f"rows/{split}/a.parquet", files)
        table = pq.read_table(path)
        numbered = pa.array([f"{i}.png" for i in range(3)])
        parts = [table["image"].combine_chunks().field("bytes"), numbered]
        image = pa.StructArray.from_arrays(parts, ["bytes", "path"])
        pq.write_table(table.set_column(0, "image", image), path)
    dataset = config.dataset(PARQUET)
    records, _ = index(dataset)
    names = [f"{split}/a/{i:06d}" for split in ("train", "val") for i in range(3)]
    assert records["name"].tolist() == names
    assert records["label"].tolist() == [label(file) for file in tree[:6]]
    open_image = opener(dataset, seed=0)
    for record, file in zip(records.itertuples(), tree[:6], strict=True):
        expected = np.asarray(Image.open(file).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(open_image(record)), expected)


OF_OTHER_KINDS = [
    None, [], {}, 3, {"info": None}, {"info": []}, {"info": {"features": None}},
    {"info": {"features": {"label": None}}}, {"info": {"features": {"label": {"names": 3}}}},
    {"info": {"features": {"label": {"names": {"0": "cat"}}}}},
]  # fmt: skip


@pytest.mark.parametrize("said", [*map(json.dumps, OF_OTHER_KINDS), "no JSON", b"\xff"], ids=str)
def test_what_else_is_kept_beside_the_columns_names_no_classes(tree, said):
    path = write_parquet("rows/0.parquet", tree, classes=None)
    table = pq.read_table(path).replace_schema_metadata({"huggingface": said})
    pq.write_table(table, path)
    records, classes = index(config.dataset(PARQUET))
    assert (classes, records["label"].tolist()) == ([], [label(file) for file in tree])


def test_files_says_which_count(tree):
    write_parquet("rows/data/train-0.parquet", tree[:10])
    write_parquet("rows/data/validation-0.parquet", tree[10:])
    assert len(index(config.dataset(PARQUET))[0]) == N_IMAGES
    for pattern in ("validation-*", "data/val*", "validation-0.parquet"):
        assert len(index(config.dataset(PARQUET | {"files": pattern}))[0]) == N_IMAGES - 10
    said = r"rows: no .parquet files whose name fits dataset.files, val; there are data/train-0"
    with pytest.raises(InputError, match=said):
        index(config.dataset(PARQUET | {"files": "val"}))
    with pytest.raises(InputError, match=r"photos: no .parquet files$"):
        index(config.dataset(PARQUET | {"root": "photos"}))


def test_columns_of_plain_bytes_and_of_names(tree):
    Path("rows").mkdir()
    table = {"png": [f.read_bytes() for f in tree], "kind": [f.parent.name for f in tree]}
    pq.write_table(pa.table(table), "rows/0.parquet")
    dataset = config.dataset(PARQUET | {"columns": ["png", "kind"]})
    records, classes = index(dataset)
    assert (classes, records["label"].tolist()) == (CLASSES, [label(f) for f in tree])
    Path("names.txt").write_text("emu\ndog\nfox\ncat\n")
    dataset = config.dataset(PARQUET | {"columns": ["png", "kind"], "classes": "names.txt"})
    records, classes = index(dataset)
    assert records["label"].tolist() == [[3, 1, 0][label(f)] for f in tree]
    image = opener(dataset, seed=0)(next(records.itertuples()))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(tree[0]).convert("RGB")))


def test_a_class_list_orders_what_the_files_name(tree):
    write_parquet("rows/0.parquet", tree)
    Path("names.txt").write_text("emu\ndog\nfox\ncat\n")
    records, classes = index(config.dataset(PARQUET | {"classes": "names.txt"}))
    assert classes == ["emu", "dog", "fox", "cat"]
    assert records["label"].tolist() == [[3, 1, 0][label(f)] for f in tree]
    write_tar("tars/0.tar", [("a.jpg", tree[0].read_bytes()), ("a.cls", b"fox\n")])
    records, classes = index(config.dataset(TARS | {"classes": "names.txt"}))
    assert (records["label"].tolist(), classes[2]) == ([2], "fox")


NO_LABEL = [-1] * N_IMAGES
BAD_PARQUET = {
    "columns": (
        lambda tree: pq.write_table(pa.table({"jpg": [b""], "cls": [0]}), "rows/0.parquet"),
        r"rows/0.parquet: no column \['image', 'label'\]; it has \['jpg', 'cls'\].*dataset.columns",
    ),
    "no bytes": (
        lambda tree: pq.write_table(pa.table({"image": ["a.jpg"], "label": [0]}), "rows/0.parquet"),
        "the column 'image' is string, not bytes of image files",
    ),
    "floats": (
        lambda tree: pq.write_table(pa.table({"image": [b""], "label": [0.5]}), "rows/0.parquet"),
        "the column 'label' is double, not the numbers or names",
    ),
    "unlabelled": (
        lambda tree: write_parquet("rows/test-0.parquet", tree, labels=NO_LABEL),
        r"rows: 24 of 24 images have no label, but −1, as in a split .* or.*, source: photos",
    ),
    "null": (
        lambda tree: write_parquet("rows/0.parquet", tree, labels=[None] + [0] * 23),
        "1 of 24 images have no label",
    ),
    "beyond": (
        lambda tree: write_parquet("rows/0.parquet", tree, labels=[3] * N_IMAGES),
        r"the label 3 is none of its classes 0 … 2",
    ),
    "too large": (
        lambda tree: pq.write_table(
            pa.table({"image": [b""], "label": pa.array([2**63 + 1], pa.uint64())}),
            "rows/0.parquet",
        ),
        "rows: a label of 2⁶³ or more is too large for a class",
    ),
    "orders": (
        lambda tree: [
            write_parquet("rows/0.parquet", tree[:9]),
            write_parquet("rows/1.parquet", tree[9:], classes=CLASSES[::-1]),
        ],
        "rows/0.parquet and rows/1.parquet have other names of classes, or other orders",
    ),
    "copied": (
        lambda tree: shutil.copy(write_parquet("rows/0.parquet", tree), "rows/0 (1).parquet"),
        r"rows/0 \(1\).parquet and rows/0.parquet are the same",
    ),
    "linked": (
        lambda tree: Path("rows/1.parquet").symlink_to(
            write_parquet("rows/0.parquet", tree, paths=False).absolute()
        ),
        "rows/0.parquet and rows/1.parquet are the same",
    ),
    "written again": (
        lambda tree: [
            write_parquet("rows/0.parquet", tree),
            write_parquet("rows/1.parquet", tree, compression="zstd"),
        ],
        "rows/0.parquet and rows/1.parquet have the same images",
    ),
    "written again in another order": (
        lambda tree: [
            write_parquet("rows/0.parquet", tree, row_group_size=7),
            write_parquet("rows/1.parquet", tree[::-1], row_group_size=5),
        ],
        "rows/0.parquet and rows/1.parquet have the same images",
    ),
    "written again, without names": (
        lambda tree: [
            write_parquet("rows/0.parquet", tree, paths=False),
            write_parquet("rows/1.parquet", tree, paths=False, compression="zstd"),
        ],
        "rows/0.parquet and rows/1.parquet have the same images",
    ),
    "text without a label": (
        lambda tree: pq.write_table(
            pa.table({"image": [b"."] * 3, "label": ["-1", "0", "1"]}), "rows/0.parquet"
        ),
        "rows: 1 images have no label",
    ),
    "text without any label": (
        lambda tree: pq.write_table(
            pa.table({"image": [b"."] * 3, "label": ["-1"] * 3}), "rows/0.parquet"
        ),
        "rows: 3 of 3 images have no label, but −1",
    ),
    "cut short": (
        lambda tree: os.truncate(write_parquet("rows/0.parquet", tree), 2000),
        "rows/0.parquet: no parquet file, or not a whole one",
    ),
    "another kind": (
        lambda tree: Path("rows/0.parquet").write_text("no"),
        "rows/0.parquet: no parquet file, or not a whole one",
    ),
}


@pytest.mark.parametrize("wrong", BAD_PARQUET)
def test_bad_parquet_is_named(tree, wrong):
    Path("rows").mkdir()
    make, message = BAD_PARQUET[wrong]
    make(tree)
    with pytest.raises(InputError, match=message):
        index(config.dataset(PARQUET))


def test_rows_without_bytes_are_bad_images(tree):
    write_parquet("rows/0.parquet", [None, *tree[1:]], labels=[0] * N_IMAGES)
    with pytest.raises(InputError, match=r"rows/0.parquet: 0/000000: the row has no bytes"):
        prepared(PARQUET, "a")
    (records, made_by), _ = prepared(PARQUET, "a", on_bad_image="skip")
    assert len(records) == N_IMAGES - 1
    assert [name for name, _ in made_by["skipped"]] == ["0/000000"]


JPG = ("a.jpg", b"...")
BAD_TARS = {
    "too large": (
        [JPG, ("a.cls", b"12345678901234567890123")],
        "0.tar: a: the label 12345678901234567890123 is too large for a class",
    ),
    "too large in json": (
        [JPG, ("a.json", b'{"label": 12345678901234567890123}')],
        "0.tar: a: the label 12345678901234567890123 is too large for a class",
    ),
    "no text": (
        [("caf\udce9.jpg", b"..."), ("caf\udce9.cls", b"1")],
        r"0.tar: the file name b'caf\\xe9.jpg' is not UTF-8; rename it",
    ),
    "no number": ([JPG, ("a.cls", b"seven")], r"0.tar: a: the label 'seven' is no number"),
    "empty": ([JPG, ("a.cls", b" ")], r"0.tar: a.cls: there is no label in it"),
    "binary": ([JPG, ("a.cls", b"\xff\xfe")], r"0.tar: a.cls: not UTF-8 text"),
    "no label": ([JPG, ("a.txt", b"7")], r"0.tar: 'a' has no .cls or .json .*, but .txt"),
    "no json": ([JPG, ("a.json", b"{")], r"0.tar: a.json: not JSON"),
    "other keys": (
        [JPG, ("a.json", b'{"cls": 3, "sha": 1}')],
        r"a.json: no whole number or name under 'label'; it has \['cls', 'sha'\].*dataset.columns",
    ),
    "no whole number": ([JPG, ("a.json", b'{"label": 2.5}')], "under 'label'; it is 2.5"),
    "several dots": (
        [("a.1.jpg", b"..."), ("a.1.cls", b"1")],
        "'a' has .1.jpg and .1.cls; a key ends at the first dot",
    ),
    "no object": ([JPG, ("a.json", b"[3]")], r"under 'label'; it is \[3\]"),
    "unlabelled": ([JPG, ("a.cls", b"-1")], "1 of 1 images have no label, but −1"),
    "two images": ([JPG, ("a.png", b"."), ("a.cls", b"1")], "'a' has several images, .jpg and .pn"),
    "twice": ([JPG, JPG, ("a.cls", b"1")], r"'a.jpg' is there twice"),
    "no images": ([("a.cls", b"1")], "dataset 'webdataset' has no images"),
}


@pytest.mark.parametrize("wrong", BAD_TARS)
def test_bad_tars_are_named(tree, wrong):
    members, message = BAD_TARS[wrong]
    write_tar("tars/0.tar", members)
    with pytest.raises(InputError, match=message):
        index(config.dataset(TARS))


def test_shards_whose_names_are_no_text_are_named(tree):
    Path("tars").mkdir()
    write_tar("tars/0.tar", samples(tree)).rename(os.fsdecode(b"tars/caf\xe9.tar"))
    with pytest.raises(InputError, match=r"caf\\xe9.tar' is not UTF-8; rename it"):
        index(config.dataset(TARS))


def test_the_key_of_a_label_in_json_can_be_said(tree):
    write_tar("tars/0.tar", [JPG, ("a.json", b'{"cls": "fox"}')])
    Path("names.txt").write_text("cat\nfox\n")
    said = {"columns": ["jpg", "cls"], "classes": "names.txt"}
    assert index(config.dataset(TARS | said))[0]["label"].tolist() == [1]


def test_labels_may_begin_with_a_mark_of_utf8_and_numbers_be_written_as_floats(tree):
    members = [JPG, ("a.cls", b"\xef\xbb\xbf3"), ("b.jpg", b"."), ("b.json", b'{"label": 2.0}')]
    write_tar("tars/0.tar", members)
    assert index(config.dataset(TARS))[0]["label"].tolist() == [3, 2]


@pytest.mark.parametrize(
    ("kind", "to"), [(tarfile.LNKTYPE, "x/a.jpg"), (tarfile.SYMTYPE, "../x/./a.jpg")]
)
def test_links_to_what_is_before_them_in_a_tar_are_images(tree, kind, to):
    jpg = tree[0].read_bytes()
    link = tarfile.TarInfo("y/b.jpg")
    link.type, link.linkname = kind, to
    path = write_tar("tars/0.tar", [("x/a.jpg", jpg), ("x/a.cls", b"0"), ("y/b.cls", b"1")])
    with tarfile.open(path, "a") as tar:
        tar.addfile(link)
    (records, _), pixels = prepared(TARS, "a")
    assert records[["name", "label"]].values.tolist() == [["x/a", 0], ["y/b", 1]]
    np.testing.assert_array_equal(pixels[0], pixels[1])
    link.linkname = "elsewhere.jpg"
    with tarfile.open(path := write_tar("tars/0.tar", [("y/b.cls", b"1")]), "a") as tar:
        tar.addfile(link)
    with pytest.raises(InputError, match=r"0.tar: 'y/b.jpg' is a link to 'elsewhere.jpg', which"):
        index(config.dataset(TARS))


def test_keys_go_up_to_the_first_dot_and_what_is_hidden_is_none(tree, capsys):
    jpg = tree[0].read_bytes()
    members = [
        ("./x.y/a.jpg", jpg),
        ("./x.y/a.cls", b"0"),
        ("b.seg.png", jpg),
        ("b.JPG", jpg),
        ("b.cls", b"1"),
        ("._b.jpg", jpg),
        ("__MACOSX/c.jpg", jpg),
        ("d.heic", jpg),
        ("d.cls", b"1"),
    ]
    write_tar("tars/0.tar", members)
    records, _ = index(config.dataset(TARS))
    assert records["name"].tolist() == ["x.y/a", "b"]
    assert (
        "0.tar: 1 keys have no image that is taken, the first d (.heic" in capsys.readouterr().err
    )


@pytest.mark.parametrize("above", ["../", "../../", "./../", "a/../", "a/../../"])
def test_members_above_where_they_were_packed_are_taken(tree, above):
    write_tar("tars/0.tar", samples(tree, folder=f"{above}pics/"))
    check_as_folder(TARS, ending=False, prefix="pics/")
    with tarfile.open("tars/0.tar") as tar:
        assert len(tar.getnames()) == 2 * N_IMAGES
    write_tar("tars/0.tar", [*samples(tree, folder="pics/"), *samples(tree[:1], folder="../pics/")])
    with pytest.raises(InputError, match=r"'\.\./pics/cat/000\.jpg' is there twice"):
        index(config.dataset(TARS))


@pytest.mark.parametrize("kind", ["w:gz", "w:xz", "w:bz2"])
def test_compressed_tars_are_refused(tree, kind):
    ending = kind.removeprefix("w:")
    write_tar(f"tars/0.tar.{ending}", samples(tree), mode=kind)
    with pytest.raises(InputError, match=r"0.tar.\w+: images cannot be read in place in a compr"):
        index(config.dataset(TARS))
    Path(f"tars/0.tar.{ending}").rename("tars/0.tar")
    with pytest.raises(InputError, match=r"0.tar: compressed by \w+, and no tar to read in"):
        index(config.dataset(TARS))


def test_a_tar_that_is_cut_short_anywhere_is_named(tree):
    path = write_tar("tars/0.tar", [("a.jpg", b"x" * 1000), ("a.cls", b"0")])
    whole = path.read_bytes()
    end = 512 + 1024 + 512 + 512  # header, a.jpg, header, a.cls
    for length in (0, 100, 512, 700, 1536, 1600, 2048, end - 1, end):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"0.tar, after .*cut short"):
            index(config.dataset(TARS))
    path.write_bytes(whole[:1536] + b"y" * 512 + whole[2048:])  # a header that is none
    with pytest.raises(InputError, match=r"0.tar, after a.jpg: no mark of its end; it is damaged"):
        index(config.dataset(TARS))
    path.write_bytes(whole[: end + 512])
    assert len(index(config.dataset(TARS))[0]) == 1


def test_a_shard_that_is_there_twice_is_named(tree):
    path = write_tar("tars/0.tar", samples(tree))
    shutil.copy(path, "tars/1.tar")
    with pytest.raises(InputError, match=r"tars/0.tar and tars/1.tar are the same"):
        index(config.dataset(TARS))
    write_tar("tars/1.tar", reversed([*samples(tree[5:])]))
    with pytest.raises(InputError, match=r"0.tar and tars/1.tar both have the image '\w+/\d+'"):
        index(config.dataset(TARS))


def test_other_images_of_the_same_key_go_by_their_tar_too(tree):
    for i in range(2):
        members = [("0.jpg", tree[i].read_bytes()), ("0.cls", b"0")]
        write_tar(f"tars/{i}.tar", members)
    assert index(config.dataset(TARS))[0]["name"].tolist() == ["0/0", "1/0"]


def rewrite(path, tree, kind):
    """Write a shard anew: the same images, in another order or with another one."""
    others = [*tree[1:], tree[0]] if kind == "order" else [tree[3], *tree[1:]]
    labels = [label(f) for f in tree]
    if path.suffix == ".parquet":
        return write_parquet(path, others, labels=labels)
    names = [name for name, _ in samples(tree)]
    contents = [content for _, content in samples(others)]
    return write_tar(path, zip(names, contents, strict=True))


@pytest.mark.parametrize("dataset", [PARQUET, TARS], ids=lambda one: one["source"])
def test_a_shard_that_has_changed_is_noticed(tree, dataset):
    is_parquet = dataset["source"] == "parquet"
    path = Path("rows/0.parquet" if is_parquet else "tars/0.tar")
    write_parquet(path, tree) if is_parquet else write_tar(path, samples(tree))
    models = {"m": {"source": "nets:build", "size": 16, "resize": 20}}
    flow = Workflow({"dataset": dataset, "models": models})
    folder = Path(flow.folder)
    run_index(flow.index(None).dataset, folder / "index.parquet")
    images = folder / "images" / GEOMETRY.name / "1-of-1.npy"
    run_prepare(folder / "index.parquet", images, geometry=GEOMETRY)

    def stale(**options):
        return {m.path.name: x for m, x in verify(flow, **options) if x != "missing"}

    contents = flow.dataset_contents(None)
    os.utime(path, ns=(1, 1))
    assert stale() == stale(deep=True) == {}
    assert flow.dataset_contents(None) == contents
    for kind in ("order", "image"):
        rewrite(path, tree, kind)
        assert stale()["index.parquet"].startswith("stale: there are other images")
        said = "the file has changed since it was listed"
        with pytest.raises(InputError, match=said):
            run_prepare(folder / "index.parquet", Path("x.npy"), geometry=GEOMETRY)
    os.truncate(path, 1000)
    assert stale()["index.parquet"].startswith(f"stale: {path}")
    path.unlink()
    with pytest.raises(InputError, match=f"{path}: .*there is no such file"):
        opener(config.dataset(dataset), seed=0)(
            next(arrays.read_records(folder / "index.parquet")[0].itertuples())
        )


def test_recipes_say_nothing_that_is_not_set(tree):
    write_tar("tars/0.tar", samples(tree))
    flow = Workflow({"dataset": TARS, "models": {"m": {"source": "nets:build", "size": 16}}})
    assert flow.index(None) == Index(TARS | {"name": "webdataset"})


def test_classes_in_another_order_than_the_outputs_are_named():
    outputs = ["tench", "goldfish", "crane", "crane", "emu", "koala"]
    as_shipped = ["tench, Tinca tinca", "Goldfish, Carassius auratus", "crane", "crane bird", "emu"]
    check_order([*as_shipped, "koala, koala bear"], outputs)
    check_order(as_shipped[:2], outputs)
    check_order(["n01440764", "n01443537"], outputs)  # of which nobody can tell
    check_order(["koala", "own", "names"], outputs)
    check_order([], outputs)
    check_order(as_shipped, [])
    said = r"'emu' is its class 0, and output 4 of the network; set dataset.classes"
    with pytest.raises(InputError, match=said):
        check_order(["emu", "goldfish", "koala", "tench, Tinca tinca"], outputs)


def test_wnids_before_the_names_hide_no_other_order():
    own = class_labels(["n01440764"], "imagenet", of="photos")[1]
    assert own[0] == "n01440764 tench"
    outputs = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    check_order(own, outputs)
    check_order(outputs, own)
    said = r"'n01440764 tench' is its class 0, and output 999 of the network; set dataset.classes"
    with pytest.raises(InputError, match=said):
        check_order(own, outputs[::-1])
    with pytest.raises(InputError, match="'n01443537 goldfish' is its class 0, and output 1 "):
        check_order(["n01443537 goldfish", "n01440764 tench"], outputs)
