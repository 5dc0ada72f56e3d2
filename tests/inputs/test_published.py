"""The lines of config/README.md, on trees as the published datasets have them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from running import ROOT

from igmask.asked import config
from igmask.asked.fields import plain
from igmask.errors import InputError
from igmask.inputs.data import check_classes, check_labels, index, opener

PAGE = (ROOT / "config" / "README.md").read_text("utf-8")
LINES = [
    line for block in re.findall(r"(?s)```yaml\n(.*?)```", PAGE) for line in block.splitlines()
]
DATASETS = {one["name"]: one for one in (yaml.safe_load(line)["dataset"] for line in LINES)}
_INFO = pytest.importorskip("timm.data").ImageNetInfo()
WNIDS = [_INFO.index_to_label_name(i) for i in range(1000)]
OUTPUTS = {
    "imagenet-v2": range(1000),
    "imagenet-a": range(3, 1000, 5),
    "imagenet-r": range(1, 1000, 5),
    "sketch": range(1000),
    "imagenette": [0, 217, 482, 491, 497, 566, 569, 571, 574, 701],
}
ENDINGS = {"imagenet-v2": "jpeg", "sketch": "JPEG", "imagenette": "JPEG"}


def paint(path, output):
    """Write an image that says which output it is of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 8), (output // 256, output % 256, 0)).save(path, format="png")


def check_labels_of(dataset, n_images):
    dataset = config.dataset(dataset)
    records, classes = index(dataset)
    assert len(records) == n_images
    made_by = {"dataset": plain(dataset), "classes": classes}
    check_classes(made_by, 1000)
    check_labels(records, made_by, 1000)
    open_image = opener(dataset, seed=0)
    for record in records.itertuples():
        red, green, _ = open_image(record).getpixel((4, 4))
        assert record.label == 256 * red + green, record.name
    return records


@pytest.mark.parametrize("name", OUTPUTS)
def test_folders_are_the_outputs_that_they_should_be(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    dataset = DATASETS[name]
    for output in OUTPUTS[name]:
        folder = str(output) if name == "imagenet-v2" else WNIDS[output]
        paint(Path(dataset["root"], folder, f"0.{ENDINGS.get(name, 'jpg')}"), output)
    Path(dataset["root"], "README.txt").write_text("of ImageNet-A and -R")
    check_labels_of(dataset, len(OUTPUTS[name]))


def test_every_line_is_tried():
    assert {*DATASETS} == {*OUTPUTS, "objectnet"}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_objectnets_folders_and_border(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mappings = Path("objectnet-1.0/mappings")
    kinds = {"alarm_clock": "Alarm clock", "backpack": "Backpack", "chair": "Chair", "air": "Air"}
    write(mappings / "folder_to_objectnet_label.json", kinds)
    means = {"Alarm clock": "analog clock", "Backpack": "back pack", "Chair": "throne; rocker"}
    write(mappings / "objectnet_to_imagenet_1k.json", means)
    write(mappings / "pytorch_to_imagenet_2012_id.json", {"409": 2, "414": 0, "857": 1, "765": 3})
    write(mappings / "imagenet_to_label_2012_v2", "back pack\nthrone\nanalog clock \nrocker\n")
    for i, folder in enumerate(kinds):
        path = Path("objectnet-1.0/images", folder, "0.png")
        path.parent.mkdir(parents=True)
        output = [409, 414, 0, 0][i]
        image = Image.new("RGB", (13, 12), (255, 0, 0))
        image.paste((output // 256, output % 256, 0), (2, 2, 11, 10))
        image.save(path)
    [script] = re.findall(r"(?s)```python\n(.*?)```", PAGE)
    exec(script, {})
    records = check_labels_of(DATASETS["objectnet"], 2)
    assert dict(zip(records["name"], records["label"], strict=True)) == {
        "alarm_clock/0.png": 409,
        "backpack/0.png": 414,
    }
    image = opener(config.dataset(DATASETS["objectnet"]), seed=0)(next(records.itertuples()))
    assert image.size == (9, 8)
    assert {tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3)} == {(1, 153, 0)}


def test_a_border_that_leaves_nothing_is_named(tmp_path):
    paint(tmp_path / "a" / "x.png", 3)
    dataset = config.dataset({"source": "folder", "root": str(tmp_path), "border": 4})
    record = next(index(dataset)[0].itertuples())
    with pytest.raises(InputError, match=r"a/x.png: of 9×8 pixels dataset.border, 4, leaves none"):
        opener(dataset, seed=0)(record)
