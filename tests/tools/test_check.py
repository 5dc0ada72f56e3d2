"""What `igmask check` finds, good and bad."""

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from running import ROOT, snakemake
from torch import nn

from igmask import cli
from igmask.inputs import models
from igmask.tools import check, estimate, trial
from igmask.tools.check import Finding

SIZE, N_IMAGES = 16, 9

NETWORK = """
from torch import nn

def conv(classes=3):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, classes))

class Broken(nn.Module):
    def forward(self, x):
        raise KeyError("no such layer")
"""

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def study(tmp_path, short_trial):
    """Settings of a study of a flat folder with labels and one network, in its directory."""
    (tmp_path / "check_net.py").write_text(NETWORK)
    (tmp_path / "classes.txt").write_text("cat\ndog\nemu\n")
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    rows = ["file,label"]
    for i in range(N_IMAGES):
        pixels = rng.integers(0, 256, (20, 18, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
        rows.append(f"{i}.png,{('cat', 'dog', 'emu')[i % 3]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    return {
        "dataset": {
            "name": "pets",
            "source": "csv",
            "root": "photos",
            "labels": "labels.csv",
            "classes": "classes.txt",
        },
        "models": {"a": {"source": "check_net:conv", "size": SIZE, "weights": "none"}},
        "attribution": {"n_steps": 5},
    }


def found(study, about, **options):
    """What is found about something: {level: all that is said}."""
    findings = [f for f in check.check(study, **options) if f.about == about]
    return {f.level: "\n".join(g.says for g in findings if g.level == f.level) for f in findings}


def test_a_good_study_has_nothing_to_mend_and_nothing_is_written(study, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    findings = list(check.check(study))
    assert {f.level for f in findings} == {"ok"}
    about = ["configuration", "dataset", "images", "a", "a", "disk", "memory", "time"]
    assert [f.about for f in findings] == about
    assert found(study, "dataset")["ok"] == "9 images of 3 classes"
    assert "9 tried as 16" in found(study, "images")["ok"]
    assert "3 classes; an attribution takes" in found(study, "a")["ok"]
    assert [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(p)] == before


def test_no_trial_loads_no_network(study, monkeypatch):
    monkeypatch.setattr(models, "build", None)
    about = [f.about for f in check.check(study, trial=False)]
    assert about == ["configuration", "dataset", "images", "a", "disk"]


def test_a_wrong_configuration_names_every_mistake(study):
    study["models"]["b"] = {"source": "resnet5O", "weights": "IMAGENET1K_V1"}
    study["models"]["c"] = {"source": "resnet50", "weights": "IMAGENET1K_V9"}
    (finding,) = check.check(study)
    assert finding.level == "error"
    assert "models.b: torchvision has no classifier 'resnet5O'" in finding.says
    assert "models.c: resnet50 has no weights 'IMAGENET1K_V9'" in finding.says


def test_what_is_hardly_meant_is_a_warning(study):
    study["selection"] = {"p": [50, 0.5]}
    says = found(study, "configuration", trial=False)
    assert says["warning"] == "selection.p: 0.5 means 0.5 %; write 50 if 50 % is meant"
    assert set(says) == {"ok", "warning"}


def test_problems_of_several_kinds_are_all_found(study):
    study["models"]["b"] = {"source": "check_net:Broken", "size": SIZE}
    study["models"]["c"] = {"source": "check_net:conv", "size": SIZE, "weights": "no.pth"}
    study["attribution"]["baseline"] = "no.png"
    Path("labels.csv").unlink()
    Path("photos").rename("other")
    findings = list(check.check(study))
    wrong = {f.about: f.says for f in findings if f.level == "error"}
    assert list(wrong) == ["dataset", "baseline", "b", "c"]
    assert "dataset.labels: there is no file 'labels.csv'" in wrong["dataset"]
    assert "dataset.root: there is no folder 'photos'" in wrong["dataset"]
    assert "no.png: there is no such file" in wrong["baseline"]
    assert "KeyError: 'no such layer'" in wrong["b"]
    assert "no file 'no.pth'" in wrong["c"]
    assert "an attribution takes" in found(study, "a")["ok"]


def test_missing_images_name_how_they_are_had_and_an_archive_at_hand(study):
    study["dataset"] |= {"obtain": "my photos.tar from example.org", "root": "the photos"}
    Path("photos").rename("other")
    Path("my photos.tar").touch()
    Path("unrelated.tar").touch()
    says = found(study, "dataset")["error"]
    assert "my photos.tar from example.org" in says
    assert "mkdir -p 'the photos' && tar -xf 'my photos.tar' -C 'the photos'" in says
    assert "unrelated" not in says
    Path("the photos").mkdir()
    assert "tar -xf" in found(study, "dataset")["error"]
    shutil.copy("other/1.png", "the photos")
    assert "tar -xf" not in found(study, "dataset")["error"]


def test_imagenet_says_which_archive_to_get(study):
    imagenet = yaml.safe_load((ROOT / "config/imagenet.yaml").read_text())["dataset"]
    study["dataset"] = imagenet
    says = found(study, "dataset", trial=False)["error"]
    assert "mkdir -p imagenet/val && tar -xf ILSVRC2012_img_val.tar -C imagenet/val" in says
    assert "LOC_synset_mapping.txt" in says
    # With the images missing, those that are expected are reckoned with.
    assert f"images {50_000 * 3 * SIZE**2 / 1e6:.3g} MB" in found(study, "disk", trial=False)["ok"]


def test_another_number_of_images_is_a_warning(study):
    study["dataset"]["n_expected"] = 10
    assert "9 images of 3 classes; 10 are" in found(study, "dataset", trial=False)["warning"]
    study["dataset"]["n_expected"] = 9
    assert "ok" in found(study, "dataset", trial=False)


def test_unreadable_images_are_named(study):
    Path("photos/0.png").write_text("no image")
    Image.new("RGB", (8, 8)).save("photos/8.png")
    says = found(study, "images", trial=False)["error"]
    assert says.startswith("2 of 9 tried cannot be used")
    assert "photos/0.png: not an image" in says
    assert "8.png: 8×8 pixels are fewer" in says
    study["dataset"]["on_bad_image"] = "skip"
    assert "warning" in found(study, "images", trial=False)


def test_labels_outside_the_network_are_an_error(study):
    study["dataset"]["classes"] = None
    names = Path("labels.csv").read_text()
    for number, name in enumerate(("cat", "dog", "emu")):
        names = names.replace(name, str(number))
    Path("labels.csv").write_text(names)
    study["models"]["a"]["arguments"] = {"classes": 2}
    assert "3 labels are outside the model's classes 0 … 1" in found(study, "a")["error"]


def test_a_class_list_of_another_length_is_an_error(study):
    Path("classes.txt").write_text("cat\ndog\nemu\nfox\n")
    assert "classes.txt lists 4 classes, and the model has 3" in found(study, "a")["error"]


def test_folders_that_do_not_name_all_classes_are_an_error(study):
    for name in ("cat", "dog", "emu"):
        Path("tree", name).mkdir(parents=True)
        shutil.copy("photos/0.png", f"tree/{name}/0.png")
    study["dataset"] = {"source": "folder", "root": "tree"}
    study["models"]["a"]["arguments"] = {"classes": 5}
    for source in ({"source": "folder"}, {"source": "torchvision", "class": "ImageFolder"}):
        study["dataset"] = source | {"root": "tree"}
        says = found(study, "a")["error"]
        assert says.startswith("has 5 classes, and the dataset 3 class")
        assert "set dataset.classes to it" in says


def test_folders_that_are_numbers_say_that_they_count_as_these(study):
    for name in ("2", "10", "7"):
        Path("tree", name).mkdir(parents=True)
        shutil.copy("photos/0.png", f"tree/{name}/0.png")
    study["dataset"] = {"source": "folder", "root": "tree"}
    study["models"]["a"]["arguments"] = {"classes": 11}
    says = found(study, "dataset", trial=False)["ok"]
    assert says.startswith("3 images of 3 classes; the class folders are numbers")
    assert list(found(study, "a")) == ["ok"]


def test_weights_that_fit_and_that_do_not(study):
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3)
    torch.save(nn.Sequential(*layers).state_dict(), "good.pth")
    torch.save(nn.Sequential(*layers[:2]).state_dict(), "bad.pth")
    study["models"]["a"]["weights"] = "good.pth"
    assert "weights: good.pth, 1" in found(study, "a")["ok"]
    study["models"]["a"]["weights"] = "bad.pth"
    assert "bad.pth: the weights do not fit the network" in found(study, "a")["error"]


def test_weights_to_be_fetched_are_sized_and_left_where_they_are(study, tmp_path):
    Path("far.pth").write_bytes(bytes(3_000_000))
    study["models"]["a"]["weights"] = (tmp_path / "far.pth").as_uri()
    findings = found(study, "a")
    assert set(findings) == {"ok"}
    assert "weights: 3 MB will be fetched from file://" in findings["ok"]
    assert not Path("hub").exists()
    Path("far.pth").unlink()
    findings = found(study, "a")
    assert "cannot be fetched here" in findings["error"]
    assert str(tmp_path / "hub") in findings["error"]
    assert "an attribution takes" in findings["ok"]  # with random weights


def test_a_disk_that_is_too_small(study, monkeypatch):
    images = 9 * 3 * SIZE**2
    scores = 9 * 2 * 36 * 4
    masks = 9 * 4 * 5
    records = 9 * (1 + 4 + 8 * (1 + 5)) * estimate._RECORD_BYTES
    curves = 9 * 11 * (2 + 1) * estimate._POINT_BYTES
    pictures = estimate._PAGE_BYTES + estimate._PICTURE_BYTES
    needed = images + scores + masks + records + curves + pictures
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(needed, 1, needed - 1))
    assert f"{needed / 1e6:.3g} MB to be written" in found(study, "disk", trial=False)["error"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(needed, 0, needed))
    assert "ok" in found(study, "disk", trial=False)
    # Files that are none of the study's are nothing that it has written.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(needed, 100, needed - 100))
    Path("results/pets").mkdir(parents=True)
    Path("results/pets/x.npy").write_bytes(bytes(100))
    assert "error" in found(study, "disk", trial=False)


@pytest.mark.parametrize(
    ("free", "level", "message"),
    [
        (10**12, "ok", "a job of a takes"),
        (10**9, "warning", "not enough for 4 jobs side by side"),
        (10**8, "error", "set compute.batch_size lower"),
    ],
)
def test_memory(study, monkeypatch, free, level, message):
    memory = namedtuple("Memory", "available")
    monkeypatch.setattr(estimate, "n_cores", lambda: 4)
    monkeypatch.setattr(estimate.psutil, "virtual_memory", lambda: memory(free))
    study["compute"] = {"shards": 4, "batch_size": 2}
    assert message in found(study, "memory")[level]


@pytest.mark.parametrize(
    "attribution",
    [
        {"n_steps": "auto"},
        {"baseline": "uniform", "n_baselines": 2, "n_steps": 1},
        {"target": "label", "of": "logit", "rule": "trapezoid", "n_steps": 2, "precision": "bf16"},
    ],
)
def test_networks_are_tried_with_the_studys_attribution(study, attribution):
    study["attribution"] = attribution
    findings = list(check.check(study))
    assert {f.level for f in findings} == {"ok"}, findings
    assert ("n_steps is auto" in findings[-1].says) == (attribution["n_steps"] == "auto")


def test_a_device_that_is_not_there(study):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    study["compute"] = {"device": "cuda"}
    assert "no usable GPU" in found(study, "a")["error"]


def test_the_time_is_that_of_the_pace(study, monkeypatch):
    pace = trial.Pace(2.0, 0.5, weight_bytes=1, point_bytes=1, batch_size=1)
    monkeypatch.setattr(check, "pace", lambda *_, **__: pace)
    monkeypatch.setattr(estimate, "start_s", lambda: 0.0)
    monkeypatch.setattr(estimate, "n_cores", lambda: 4)
    study["compute"] = {"threads": 2, "shards": 4}
    lines = [line.split() for line in found(study, "time")["ok"].splitlines()]
    # 4 shards of 16 images of 2 s, since a group is filled up, two side by side
    assert ["attribute", "64", "s"] in lines
    # 9 · (1 + 8 · (1 + 5) + 11 · (2 + 1)) of 0.5 s, in one job
    assert ["evaluate", "6.15", "min"] in lines


def test_what_is_done_is_said_and_the_rest_is_estimated(study, tmp_path, monkeypatch):
    pace = trial.Pace(2.0, 0.5, weight_bytes=1, point_bytes=1, batch_size=1)
    monkeypatch.setattr(check, "pace", lambda *_, **__: pace)
    monkeypatch.setattr(estimate, "start_s", lambda: 0.0)
    study |= {"curves": {"points": 3}, "statistics": {"replicates": 100}}
    assert "done" not in {finding.about for finding in check.check(study)}
    done = snakemake(tmp_path, "results/pets/models/a/masks/50.npy", study=study)
    assert done.returncode == 0, done.stdout + done.stderr
    early = "index 1 of 1, prepare 1 of 1, preflight 1 of 1"
    assert f"{early}, attribute 1 of 1, mask 4 of 4; the rest" in found(study, "done")["ok"]
    lines = found(study, "time")["ok"].splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["evaluate", "probe", "tables", "pictures"]
    # 9 · (1 + 8 · (1 + 5) + 3 · (2 + 1)) of 0.5 s
    assert lines[1].split()[1:] == ["4.35", "min"]
    # Of another baseline nothing stands that comes after the images.
    study["attribution"]["baseline"] = "white"
    assert f"{early}; the rest" in found(study, "done")["ok"]
    study["attribution"]["baseline"] = "black"
    assert snakemake(tmp_path, study=study).returncode == 0
    assert found(study, "done")["ok"].startswith("all files")
    assert found(study, "time")["ok"].startswith("nothing is left to do")
    Path("results/index.html").unlink()
    assert "evaluate 20 of 20" in found(study, "done")["ok"]
    assert "pictures" in found(study, "time")["ok"]


def test_a_network_that_takes_much_longer_than_the_other_is_waited_for(study, monkeypatch):
    paces = iter([trial.Pace(100.0, 0.01, 1, 1, 1), trial.Pace(1.0, 0.01, 1, 1, 1)])
    monkeypatch.setattr(check, "pace", lambda *_, **__: next(paces))
    monkeypatch.setattr(estimate, "start_s", lambda: 0.0)
    monkeypatch.setattr(estimate, "n_cores", lambda: 2)
    study["models"]["b"] = dict(study["models"]["a"])
    says = found(study, "time")["ok"].splitlines()
    attributed = 16 * 100.0  # a group of 16, filled up
    assert ["attribute", f"{(attributed + 16) / 2 / 60:.3g}", "min"] in [s.split() for s in says]
    assert float(says[0].split()[1]) * 60 == pytest.approx(attributed + 10, rel=0.02)


def test_a_slow_network_takes_fewer_steps_for_the_same_pace(monkeypatch):
    asked = []

    def attribute(n_images, n_steps):
        asked.append((n_images, n_steps))
        return n_images * (1 + 2 * n_steps)

    monkeypatch.setattr(trial, "_BUDGET_S", 20)
    assert trial._attribution_s(attribute, 50) == 101
    assert asked == [(1, 2), (1, 2), (1, 8)]
    asked.clear()
    monkeypatch.setattr(trial, "_BUDGET_S", 500)
    assert trial._attribution_s(attribute, 50) == 101
    assert asked[-1] == (4, 50)


def test_the_threads_are_the_studys_and_then_as_before(study, monkeypatch):
    before, seen = torch.get_num_threads(), []

    def pace(*_, **__):
        seen.append(torch.get_num_threads())
        return trial.Pace(2.0, 0.5, weight_bytes=1, point_bytes=1, batch_size=1)

    monkeypatch.setattr(check, "pace", pace)
    study["compute"] = {"threads": before + 1}
    found(study, "a")
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_the_demo_is_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial, "_BUDGET_S", 0.1)
    done = CliRunner().invoke(cli.app, ["check"])
    assert done.exit_code == 0, done.output
    assert done.output.count("weights: trained by the study") == 4
    assert f"all is well: {ROOT / 'config.yaml'}" in done.output
    assert list(tmp_path.iterdir()) == []


def test_warnings_are_not_all_well(study, tmp_path):
    study["selection"] = {"p": [0.5]}
    Path("config.yaml").write_text(yaml.safe_dump(study), "utf-8")
    done = CliRunner().invoke(cli.app, ["check", "--no-trial"])
    assert done.exit_code == 0, done.output
    assert done.output.rstrip().endswith("1 warning to heed: config.yaml")


def test_the_command_exits_with_one_and_takes_the_configuration_at_hand(study, tmp_path):
    study["models"]["a"]["arguments"] = {"classes": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(study))
    done = CliRunner().invoke(cli.app, ["check"])
    assert done.exit_code == 1
    assert "1 to mend: config.yaml" in done.output
    done = CliRunner().invoke(cli.app, ["check", "--configfile", "config.yaml", "--no-trial"])
    assert done.exit_code == 0, done.output


def test_lines_are_aligned():
    lines = str(Finding("disk", "one\ntwo", "warning")).splitlines()
    assert lines == ["warning  disk           one", "                        two"]


def test_a_baseline_of_ones_own_is_tried(study):
    functions = (
        "def same(images, **_): return images / 2",
        "def one(images, **_): return images[0]",
    )
    Path("check_start.py").write_text("\n".join(functions))
    study["attribution"]["baseline"] = "check_start:same"
    assert found(study, "baseline") == {"ok": "check_start:same, as 16"}
    assert set(found(study, "a")) == {"ok"}
    study["attribution"]["baseline"] = "check_start:one"
    assert "the baseline check_start:one returned Tensor (3, 16, 16)" in found(study, "a")["error"]
    study["attribution"]["baseline"] = "check_start:none"
    assert "no attribute 'none'" in found(study, "baseline")["error"]
