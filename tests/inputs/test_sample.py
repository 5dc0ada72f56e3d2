"""Some images of a dataset, and whether a network is right about them more often than by luck."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from steps import run_index, run_preflight
from torch import nn

from igmask import arrays, cli
from igmask.asked import config
from igmask.asked.settings import Geometry
from igmask.errors import InputError
from igmask.inputs import models, sample
from igmask.inputs.data import opener
from igmask.tools import check

SIZE, N_IMAGES = 8, 90
COLOURS = ("red", "green", "blue")
GEOMETRY = Geometry(SIZE, None, "bilinear")

NETWORK = """
import torch
from torch import nn

class Colours(nn.Module):
    def forward(self, x):
        return 9 * x.mean((2, 3))

def drawn():
    return nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 3))

def with_new_head():
    network = drawn()
    nn.init.ones_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    return network

def given():
    network = with_new_head()
    nn.init.zeros_(network[2].weight)
    nn.init.zeros_(network[2].bias)
    return network
"""


@pytest.fixture
def study(tmp_path, short_trial):
    """Settings of a study of images of one colour each, in its directory; labels are right."""
    Path("sample_net.py").write_text(NETWORK)
    rng = np.random.default_rng(0)
    for i in range(N_IMAGES):
        pixels = rng.integers(0, 100, (SIZE, SIZE, 3), dtype=np.uint8)
        pixels[..., i % 3] += 100
        Path("images", COLOURS[i % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(Path("images", COLOURS[i % 3], f"{i}.png"))
    Path("classes.txt").write_text("\n".join(COLOURS))
    return {
        "dataset": {"source": "folder", "root": "images", "classes": "classes.txt"},
        "models": {"a": {"source": "sample_net:Colours", "size": SIZE}},
        "attribution": {"n_steps": 2},
    }


def indexed(study):
    """The index of a study's dataset, written, and its records."""
    run_index(study["dataset"], Path("index.parquet"), seed=0)
    return arrays.read_records(Path("index.parquet"))[0]


def found_by_check(study):
    """The findings about the network, but for those that are ok: [(level, what)]."""
    return [(f.level, f.says) for f in check.check(study) if f.about == "a" and f.level != "ok"]


def found_by_preflight(study, capsys):
    """What preflight writes, and the warnings that it says."""
    indexed(study)
    capsys.readouterr()
    run_preflight(Path("index.parquet"), Path("x.json"), model=config.model(study["models"]["a"]))
    warnings = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning: ")]
    return json.loads(Path("x.json").read_text()), "\n".join(warnings)


def test_images_are_those_of_their_records_and_drawn_from_all(study):
    records = indexed(study)
    open_image = opener(config.dataset(study["dataset"]), seed=0)
    found = sample.images(records, open_image, GEOMETRY)
    assert len(found) == sample.N_IMAGES < N_IMAGES
    for row, image in found.items():
        np.testing.assert_array_equal(image, np.asarray(Image.open(records["path"][row])))
    assert [*found] == [*sample.images(records, open_image, GEOMETRY)]
    counts = records["label"].iloc[[*found]].value_counts()
    assert counts.min() > sample.N_IMAGES / 5
    few = records.iloc[:5]
    assert sorted(sample.images(few, open_image, GEOMETRY)) == [0, 1, 2, 3, 4]


def test_bad_images_say_why(study):
    records = indexed(study)
    for path in records["path"]:
        Path(path).write_text("no image")
    found = sample.images(records, opener(config.dataset(study["dataset"]), seed=0), GEOMETRY)
    assert all(isinstance(image, InputError) for image in found.values())
    assert len(found) == sample.N_IMAGES


def test_predictions_are_those_of_the_network(study):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 7))
    images = np.random.default_rng(0).integers(0, 256, (13, SIZE, SIZE, 3), dtype=np.uint8)
    scores = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    np.testing.assert_array_equal(sample.predicted(network, images), scores.argmax(1).numpy())


def test_slow_disks_and_networks_are_asked_for_fewer(study, monkeypatch):
    monkeypatch.setattr(sample, "_DECODE_S", 0)
    monkeypatch.setattr(sample, "_PREDICT_S", 0)
    open_image = opener(config.dataset(study["dataset"]), seed=0)
    found = sample.images(indexed(study), open_image, GEOMETRY)
    assert len(found) == 8
    assert len(sample.predicted(nn.Flatten(), np.stack([*found.values()]))) == 4


def test_labels_in_order_are_right_and_nothing_is_said(study, capsys):
    written, warnings = found_by_preflight(study, capsys)
    assert written["first_images"] == {"n": 64, "top1": 100}
    assert warnings == ""
    assert found_by_check(study) == []


def test_labels_in_another_order_are_an_error_of_check_and_said_by_preflight(study, capsys):
    Path("classes.txt").write_text("\n".join(COLOURS[1:] + COLOURS[:1]))
    written, warnings = found_by_preflight(study, capsys)
    assert written["first_images"] == {"n": 64, "top1": 0}
    assert "the network is right about 0.0 % of 64 original images, no better" in warnings
    ((level, says),) = found_by_check(study)
    assert level == "error"
    assert says.startswith("is right about 0.0 % of 64 original images, no better than chance")
    Path("config.yaml").write_text(yaml.safe_dump(study))
    assert CliRunner().invoke(cli.app, ["check"]).exit_code == 1


def test_images_that_cannot_be_read_are_left_to_prepare(study, capsys):
    for path in Path("images").rglob("*.png"):
        path.write_text("no image")
    written, _ = found_by_preflight(study, capsys)
    assert written["first_images"] == {"n": 0, "top1": None}


@pytest.mark.parametrize(
    ("source", "weights", "named"),
    [
        ("drawn", None, r"0.weight, 0.bias, 2.weight, 2.bias"),
        ("with_new_head", None, r"gives: 2.weight, 2.bias"),
        ("given", None, None),
        ("drawn", "none", None),
    ],
)
def test_random_weights_are_a_warning_unless_they_are_meant(study, capsys, source, weights, named):
    study["models"]["a"] |= {"source": f"sample_net:{source}", "weights": weights}
    _, warnings = found_by_preflight(study, capsys)
    findings = found_by_check(study)
    if named:
        ((level, says),) = findings
        assert level == "warning"
        assert f"the network {says}" in warnings
        assert named in says
        assert "weights: none says that it is meant" in says
    else:
        # That of one class only is no better than chance is said where weights are not random.
        assert ("no better than chance" in warnings) == (weights is None)
        assert [level for level, _ in findings] == (["error"] if weights is None else [])


def test_weights_that_are_yet_to_come_are_not_judged(study, tmp_path):
    torch.save(models.build(config.model({"source": "sample_net:drawn"})).state_dict(), "far.pth")
    far = {"source": "sample_net:drawn", "weights": (tmp_path / "far.pth").as_uri()}
    study["models"]["a"] |= far
    assert found_by_check(study) == []
    study["models"]["a"]["weights"] = "far.pth"
    ((level, says),) = found_by_check(study)
    assert (level, "better than chance" in says) in (("error", True), ("warning", True))
