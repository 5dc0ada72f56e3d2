"""The benchmark of quality over time at its smallest, and its figures on rows by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from igmask.asked import config
from igmask.bench import quality
from igmask.bench.quality import Way, converged
from igmask.bench.reached import summary, write
from igmask.engine import definition
from igmask.errors import InputError


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return config.parse(
        {
            "dataset": {"source": "photos", "root": str(folder)},
            "models": {"a": {"source": "igmask.zoo:small_vgg", "weights": "none", "size": 32}},
        }
    )


@pytest.fixture(scope="module")
def result(study):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "CONVERGED", 60)
        patch.setattr(quality, "_CAPTUM_RULES", ("riemann_right", "riemann_middle"))
        patch.setattr(quality, "_CAPTUM_STEPS", (3, 50))
        patch.setattr(quality, "CAPTUM_BATCHES", (8,))
        patch.setattr(quality, "_STEPS", {"right": (3, 50), "adaptive": (3, 20)})
        (found,) = quality.measure(study, (), n_images=2, repeats=2, device="cpu", threads=1)
    return found


def test_igmask_and_captum_are_as_near_by_the_same_rule(result):
    rows = {(row["curve"], row["steps"]): row for row in result["rows"]}
    for steps in (3, 50):
        theirs, ours = rows["captum riemann_right", steps], rows["igmask right", steps]
        assert ours["l2"] == pytest.approx(theirs["l2"], rel=0.02)
        for key in ("iou_50", "iou_90", "same_keep", "same_drop"):
            assert ours[key] == pytest.approx(theirs[key], abs=0.02)
    assert rows["igmask right", 50]["l2"] < rows["igmask right", 3]["l2"]
    assert rows["igmask adaptive", 20]["l2"] < 0.05
    for row in result["rows"]:
        assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"]
        assert (row["model"], row["n_images"]) == ("a", 2)


def test_steps_taken_are_those_of_the_setting(result):
    rows = {(row["curve"], row["steps"]): row["steps_taken"] for row in result["rows"]}
    assert rows["igmask adaptive", 3] == 3
    assert rows["igmask adaptive", "auto 0.9"] >= 33
    assert rows["igmask right", "auto 0.9"] >= 50
    assert rows["igmask right, skip 1e-4", 50] <= 50


def test_the_page_and_the_picture_are_written(result, tmp_path):
    paths = write(result, tmp_path, "igmask bench quality")
    assert [path.name for path in paths] == [f"quality-cpu.{x}" for x in ("json", "md", "png")]
    text = paths[1].read_text("utf-8")
    assert "| a | igmask adaptive | 20 | 20 |" in text
    assert "    igmask bench quality\n" in text
    assert json.loads(paths[0].read_text("utf-8"))["summary"][0]["model"] == "a"
    with Image.open(paths[2]) as picture:
        assert picture.size[0] > 300
    other = {**result, "rows": [row | {"model": "b"} for row in result["rows"]]}
    write(other, tmp_path, "again")
    names = {row["model"] for row in json.loads(paths[0].read_text("utf-8"))["rows"]}
    assert names == {"a", "b"}  # the one that was measured before stays


def test_the_reference_is_the_definition():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3)).double()
    images, targets = torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.tensor([2, 0])
    found = converged(network, images, targets, label="")
    expected = definition.integrated_gradients(
        lambda x: network(x).softmax(1).gather(1, targets[:, None])[:, 0],
        images,
        torch.zeros_like(images),
        rule="middle",
        n_steps=quality.CONVERGED,
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_an_image_that_is_the_baseline_is_left_out(study, tmp_path, monkeypatch):
    for name, size in (("CONVERGED", 4), ("_CAPTUM_STEPS", (2,)), ("CAPTUM_BATCHES", (8,))):
        monkeypatch.setattr(quality, name, size)
    monkeypatch.setattr(quality, "_STEPS", {"right": (2,)})
    photo = Path(study.dataset.root) / "0.png"
    (tmp_path / "a.png").write_bytes(photo.read_bytes())
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    dataset = replace(study.dataset, root=str(tmp_path))
    options = {"n_images": 5, "repeats": 1, "device": "cpu", "threads": 1}
    (found,) = quality.measure(replace(study, dataset=dataset), (), **options)
    for row in found["rows"]:
        assert (row["n_images"], row["se_50"]) == (1, None)
        assert np.isfinite([row["l2"], row["iou_50"]]).all()
    json.dumps(found["rows"], allow_nan=False)
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match="no image has any attribution"):
        next(quality.measure(replace(study, dataset=dataset), (), **options))


def row(who, rule, steps, seconds, iou, l2):
    curve = Way(who, rule, steps).curve
    of = {"who": who, "rule": rule, "steps": steps, "curve": curve, "seconds": seconds}
    return of | {"iou_50": iou, "l2": l2, "model": "a"}


def test_as_good_is_where_all_with_more_steps_are_and_both_measures_say_so():
    captum = [
        row("captum", "right", 50, 10.0, 0.95, 0.06),
        row("captum", "gauss", 50, 11.0, 0.94, 0.05),
        row("captum", "right", 100, 20.0, 0.981, 0.03),
        row("captum", "right", 200, 40.0, 0.99, 0.01),
    ]
    igmask = [
        row("igmask", "adaptive", 10, 1.0, 0.96, 0.04),  # by luck: the next is worse
        row("igmask", "adaptive", 12, 2.0, 0.94, 0.04),
        row("igmask", "adaptive", 14, 3.0, 0.96, 0.055),  # L2 is above the best of Captum's
        row("igmask", "adaptive", 16, 4.0, 0.95, 0.05),
        row("igmask", "adaptive", 30, 5.0, 0.98, 0.02),
        row("igmask", "right", 50, 6.0, 0.99, 0.001),
        row("igmask", "adaptive", "auto 0.9", 0.5, 0.99, 0.001),  # of no curve
    ]
    (found,) = summary(captum + igmask)
    assert (found["iou_50"], found["l2"], found["captum"]) == (0.95, 0.05, 10.0)
    assert (found["as_good"], found["speedup"]) == ("adaptive 16", 2.5)
    assert (found["captum_near"], found["igmask_near"], found["speedup_near"]) == (20.0, 5.0, 4.0)


def test_what_is_not_reached_has_no_time():
    rows = [row("captum", "right", 50, 10.0, 0.95, 0.06), row("igmask", "right", 9, 1.0, 0.5, 0.5)]
    (found,) = summary(rows)
    assert found["speedup"] is found["speedup_near"] is found["as_good"] is None


def test_models_that_are_not_there_or_not_trained(study):
    options = {"n_images": 1, "repeats": 1, "device": "cpu", "threads": 1}
    with pytest.raises(InputError, match="unknown models \\['b'\\]; the study has a"):
        next(quality.measure(study, ("b",), **options))
    demo = config.parse(
        {
            "dataset": {"source": "demo"},
            "models": {"a": {"source": "igmask.zoo:small_vgg", "size": 32, "train": {}}},
        }
    )
    with pytest.raises(InputError, match="a: not trained yet"):
        next(quality.measure(demo, (), **options))
