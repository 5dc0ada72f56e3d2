"""The whole workflow on a tiny demo, and what re-runs when the configuration changes."""

import copy
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from running import ROOT, snakemake

from igmask.made import made as made_of
from igmask.plan import Workflow
from igmask.tools.verify import verify
from igmask.zoo import cifar_resnet

STUDY = {
    "dataset": {"source": "demo", "n_images": 20, "n_train": 64},
    "models": {
        "one": {
            "source": "igmask.zoo:small_resnet",
            "size": 64,
            "train": {"epochs": 1, "batch_size": 32},
        },
        "two": {
            "source": "igmask.zoo:small_densenet",
            "size": 64,
            "train": {"epochs": 1, "batch_size": 32},
        },
    },
    "attribution": {"n_steps": 2},
    "selection": {"p": [50, 20]},
    "masking": {"modes": ["keep"]},
    "curves": {"points": 3},
    "statistics": {"replicates": 100},
    "figures": {"n_images": 2},
    "compute": {"shards": 2},
}

ONE = STUDY["models"]["one"]

# What a model of its own takes, tables and figures included.
ONE_MODEL = {
    "train": 1,
    "preflight": 1,
    "attribute": 2,
    "mask": 1,
    "evaluate": 1,
    "probe": 1,
    "tables": 1,
    "examples": 1,
    "curves": 1,
    "gallery": 1,
    "page": 1,
}
# What follows where records of both models are new.
PAGE = {"tables": 1, "examples": 2, "curves": 1, "gallery": 2, "page": 1}


def jobs(folder, study):
    """Return {rule: number of jobs} of a dry run with another configuration."""
    done = snakemake(folder, "--dry-run", study=study)
    assert done.returncode == 0, done.stdout + done.stderr
    output = done.stdout + done.stderr
    table = re.search(r"^job +count\n-[- ]+\n(.*?)^total", output, re.MULTILINE | re.DOTALL)
    if table is None:
        assert "Nothing to be done" in output
        return {}
    counts = dict(line.split() for line in table[1].splitlines())
    return {rule: int(count) for rule, count in counts.items() if rule != "all"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder, with a space and a quote in its name, in which the study has run."""
    folder = tmp_path_factory.mktemp("a 'study")
    done = snakemake(folder, study=STUDY)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def changed(**groups):
    study = copy.deepcopy(STUDY)
    for name, settings in groups.items():
        study.setdefault(name, {}).update(settings)
    return study


def test_tables_and_figures_are_there(results):
    accuracy = pd.read_csv(results / "results/tables/accuracy.csv")
    assert accuracy["model"].tolist() == ["one"] * 5 + ["two"] * 5
    assert accuracy["mask"].tolist() == ["none", *["selection", "random"] * 2] * 2
    assert accuracy["n"].unique().tolist() == [20]
    assert accuracy["top1"].between(0, 100).all()
    assert accuracy.loc[accuracy["mode"] == "keep", "area_kept"].between(1, 99).all()
    for number in (1, 2, 3, 4, 5):
        for kind in ("csv", "md", "html", "tex"):
            assert (results / f"results/tables/table{number}.{kind}").stat().st_size > 50
    figures = {path.name for path in (results / "results/figures").iterdir()}
    expected = {
        f"{kind}-{name}.png" for kind in ("attributions", "keep") for name in STUDY["models"]
    }
    assert figures == expected | {"accuracy-p.png", "accuracy-area.png"}
    found = json.loads((results / "results/demo/models/one/preflight.json").read_text())
    assert found["n_classes"] == 10


def test_jobs_make_the_files_that_their_rules_declare_and_no_others(results):
    there = {path.relative_to(results) for path in (results / "results").rglob("*.*")}
    extra = {path for path in there if {"logs", ".kept"} & set(path.parts) or path.name == ".kept"}
    declared = {path for made in made_of(Workflow(STUDY)) for path in made.outputs}
    assert there - extra == declared


def test_logs_have_plain_lines(results):
    text = (results / "results/demo/logs/attribute/one-1-of-2.log").read_text()
    assert "100%" in text
    assert "\r" not in text


def test_nothing_is_left_to_do(results):
    assert jobs(results, STUDY) == {}


def test_a_new_p_runs_only_what_is_new(results):
    found = jobs(results, changed(selection={"p": [50, 20, 80]}))
    assert found == {"mask": 2, "evaluate": 2, "probe": 2} | PAGE


def test_a_new_p_evaluates_only_what_is_new(results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "more")
    before = {path: path.read_bytes() for path in folder.rglob("records/.kept/*.parquet")}
    study = changed(selection={"p": [50, 80]})
    done = snakemake(folder, study=study)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (folder / "results/demo/logs/evaluate/one.log").read_text()
    assert "evaluate keep-80-black: 100%" in log
    assert "evaluate keep-80-black-random: 100%" in log
    assert log.count("100%") == 2
    assert all(path.read_bytes() == content for path, content in before.items())
    assert jobs(folder, study) == {}


def test_a_new_mode_runs_only_what_is_new(results):
    found = jobs(results, changed(masking={"modes": ["keep", "drop"]}))
    assert found == {"evaluate": 2} | PAGE


def test_a_new_fill_runs_only_what_is_new(results):
    found = jobs(results, changed(masking={"modes": ["keep"], "fills": ["black", "mean"]}))
    assert found == {"evaluate": 2} | PAGE


@pytest.mark.slow  # as a new fill does
def test_a_new_control_evaluates_itself_only(results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "more")
    before = {path: path.read_bytes() for path in folder.rglob("records/*.parquet")}
    before |= {path: path.read_bytes() for path in folder.rglob("curves/*") if path.is_file()}
    study = changed(masking={"controls": ["random", "edges", "randomised"]})
    done = snakemake(folder, study=study)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (folder / "results/demo/logs/evaluate/one.log").read_text()
    new = [f"evaluate keep-{p}-black-{c}" for c in ("edges", "randomised") for p in (50, 20)]
    new += [f"curve keep-black-{c}" for c in ("edges", "randomised")]
    assert log.count("100%") == len(new)
    assert all(f"{name}: 100%" in log for name in new)
    assert all(path.read_bytes() == content for path, content in before.items())
    accuracy = pd.read_csv(folder / "results/tables/accuracy.csv")
    selection, other = (
        accuracy[accuracy["mask"] == mask].reset_index() for mask in ("selection", "randomised")
    )
    np.testing.assert_array_equal(selection["area_kept"], other["area_kept"])
    assert jobs(folder, study) == {}
    assert not list(verify(Workflow(study), folder / "results"))
    made = {path for one in made_of(Workflow(study)) for path in one.outputs}
    there = {path.relative_to(folder) for path in (folder / "results").rglob("*.*")}
    assert not {
        p for p in there - made if not {"logs", ".kept"} & set(p.parts) and p.name != ".kept"
    }


def test_a_new_model_runs_only_what_is_new(results):
    found = jobs(results, changed(models={"three": STUDY["models"]["one"]}))
    assert found == ONE_MODEL


def test_a_limit_trains_nothing_and_leaves_the_full_results(results):
    found = jobs(results, changed(dataset={"limit": 1}))
    assert "train" not in found
    assert found["attribute"] == 4
    assert jobs(results, STUDY) == {}


def test_more_demo_images_train_nothing(results):
    assert "train" not in jobs(results, changed(dataset={"n_images": 30}))


def test_masks_of_other_networks_and_converged_ones_are_jobs_of_their_own(results):
    found = jobs(results, changed(masking={"transfer": True}))
    assert found == {"transfer": 2, "tables": 1, "curves": 1, "page": 1}
    found = jobs(results, changed(masking={"transfer": True}, models={"three": ONE}))
    assert found == ONE_MODEL | {"transfer": 6}
    found = jobs(results, changed(statistics={"converged": 4}))
    assert found == {"converge": 2, "tables": 1, "curves": 1, "page": 1}
    found = jobs(results, changed(statistics={"replicates": 500}))
    assert found == {"tables": 1, "curves": 1, "page": 1}
    family = ["keep-50-black against keep-50-black-random"]
    found = jobs(results, changed(statistics={"family": family}))
    assert found == {"tables": 1, "curves": 1, "page": 1}


def test_readings_attribute_once_what_they_share(results):
    done = snakemake(results, "--dry-run", "readings", study=STUDY)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE))
    # Two networks and shards; the logit, since the probability is the study's own.
    assert counts["attribute_reading"] == "4"
    assert counts["read"] == "24"
    assert "attribute" not in counts


def test_a_models_setting_runs_that_models_jobs_only(results):
    study = copy.deepcopy(STUDY)
    study["models"]["two"]["mean"] = [0.5, 0.5, 0.5]
    assert jobs(results, study) == ONE_MODEL


def test_what_is_missing_is_made_again_though_what_was_made_of_it_is_there(results, tmp_path):
    """As of a job that failed once its settings had changed: its outputs are gone."""
    for place, expected in [
        ("images", {"prepare": 2, "attribute": 4, "mask": 2, "evaluate": 2, "probe": 2} | PAGE),
        ("models/one/scores", {"attribute": 2, "mask": 1, "evaluate": 1, "probe": 1}),
        ("models/one/records", {"evaluate": 1}),
    ]:
        [folder] = (results / "results").glob(f"*/{place}")
        folder.rename(tmp_path / "away")
        try:
            found = jobs(results, STUDY)
        finally:
            (tmp_path / "away").rename(folder)
        assert found.items() >= expected.items()
        assert found["tables"] == found["page"] == 1
    assert jobs(results, STUDY) == {}


def test_a_score_needs_no_new_attribution(results):
    found = jobs(results, changed(squares={"score": "absolute"}))
    assert found == {"mask": 2, "evaluate": 2, "probe": 2} | PAGE


def test_device_and_batch_size_run_nothing_and_shards_run_theirs(results):
    assert jobs(results, changed(compute={"batch_size": 7, "device": "cpu"})) == {}
    found = jobs(results, changed(compute={"shards": 3}))
    assert found["prepare"] == 3
    assert "train" not in found


def test_what_a_baseline_does_not_need_runs_nothing(results):
    assert jobs(results, changed(attribution={"n_steps": 2, "blur_sigma": 3})) == {}


def test_the_seed_redraws_the_demo(results):
    assert jobs(results, changed() | {"seed": 1})["train"] == 2


def test_pictures_of_more_images_compute_nothing(results):
    assert jobs(results, changed(figures={"n_images": 3})) == {"examples": 2}


def test_a_caption_computes_nothing(results, tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    snakefile = shutil.copy(ROOT / "Snakefile", tmp_path)
    for path in (tmp_path / "docs" / "captions").iterdir():
        path.write_text("Another caption.\n")
    done = snakemake(results, "--dry-run", study=STUDY, snakefile=snakefile)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing to be done" in done.stdout + done.stderr


def test_the_report_has_tables_and_figures(results):
    done = snakemake(results, "--report", "report.html", study=STUDY)
    assert done.returncode == 0, done.stdout + done.stderr
    report = (results / "report.html").read_text()
    assert "table3.html" in report
    assert "accuracy-area.png" in report
    labels = [json.loads(found) for found in re.findall(r'"labels": ?(\{[^}]*\})', report)]
    for shown in (
        {"table": "table3"},
        {"curve": "accuracy-area"},
        {"example": "keep", "model": "two"},
        {"page": "index"},
    ):
        assert shown in labels


def test_the_published_experiment_is_planned_over_its_50000_images(tmp_path):
    wnids = [f"n{i:08d}" for i in range(1000)]
    rows = ["ImageId,PredictionString"]
    (tmp_path / "imagenet/val").mkdir(parents=True)
    for i in range(1, 50_001):
        (tmp_path / f"imagenet/val/ILSVRC2012_val_{i:08d}.JPEG").touch()
        rows.append(f"ILSVRC2012_val_{i:08d},{wnids[i % 1000]} 10 20 30 40 ")
    (tmp_path / "imagenet/LOC_val_solution.csv").write_text("\n".join(rows))
    (tmp_path / "imagenet/LOC_synset_mapping.txt").write_text("\n".join(wnids))
    assert jobs(tmp_path, yaml.safe_load((ROOT / "config/imagenet.yaml").read_text())) == {
        "index": 1,
        "preflight": 4,
        "prepare": 2 * 50,  # 224 pixels for three models, 299 for one
        "attribute": 4 * 50,
        "mask": 4,
        "evaluate": 4,
        "probe": 4,
        "tables": 1,
        "examples": 4,
        "curves": 1,
        "gallery": 4,
        "page": 1,
    }


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A study of a folder of hostile names, bad files among them, by --configfile alone."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "config.yaml").write_text("no: study\n")
    rng = np.random.default_rng(0)
    for i, name in enumerate(("a b.png", "semi;colon.png", "quo'te\".png", "$(touch owned).png")):
        place = folder / "my 'photos'; $HOME ü" / ("one class", "andere;Klasse")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / name)
    (place / "text.jpg").write_text("no image")
    Image.new("RGB", (500, 500)).save(place / "cut.jpg")
    (place / "cut.jpg").write_bytes((place / "cut.jpg").read_bytes()[:700])
    (folder / "my classes.txt").write_text("andere;Klasse\none class\nc\nd\ne\n")
    network = cifar_resnet(8, 5)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, folder / "my weights.th")
    study = {
        "dataset": {
            "source": "folder",
            "root": str(place.parent),
            "classes": str(folder / "my classes.txt"),
            "on_bad_image": "skip",
        },
        "models": {
            "drop-8": {
                "source": "igmask.zoo:cifar_resnet",
                "arguments": {"depth": 8, "num_classes": 5},
                "weights": "my weights.th",
                "key": "state_dict",
                "prefix": "module.",
                "size": 33,
                "resize": 35,
            }
        },
        "attribution": {"n_steps": 2, "baseline": "half 'grey'.png"},
        "selection": {"p": [12.5], "by": "count"},
        "masking": {"controls": [], "fills": ["image-mean", "mean"]},
        "squares": {"side": 4, "score": "signed"},
        "curves": {"points": 3},
        "statistics": {"replicates": 100},
        "compute": {"shards": 2},
    }
    Image.new("RGB", (40, 40), "grey").save(folder / study["attribution"]["baseline"])
    (folder / "mine.yaml").write_text(yaml.safe_dump(study))
    done = snakemake(folder, "--configfile", "mine.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def shadowed(folder):
    """Write a Snakefile whose jobs have the files that their rules declare and no others.

    Snakemake's shadow is a folder with the input of a job alone, of which its output is kept.
    """
    text = (ROOT / "Snakefile").read_text("utf-8").replace("docs/captions", f"{ROOT}/docs/captions")
    found, n_rules = re.subn(r"\n    log:\n", '\n    shadow: "minimal"\n    log:\n', text)
    assert n_rules == text.count("\nrule ") - 1  # all but `all`
    (folder / "Snakefile").write_text(found)
    return folder / "Snakefile"


@pytest.mark.slow  # every job of a shadow is started by a Snakemake of its own
def test_jobs_need_the_files_that_their_rules_declare_and_no_others(photographs, tmp_path):
    folder = shutil.copytree(photographs, tmp_path / "shadowed", symlinks=True)
    shutil.rmtree(folder / "results")
    shutil.rmtree(folder / ".snakemake")
    done = snakemake(folder, "--configfile", "mine.yaml", snakefile=shadowed(folder))
    assert done.returncode == 0, done.stdout + done.stderr


def test_hostile_names_and_bad_files_reach_the_tables_and_no_shell(photographs):
    accuracy = pd.read_csv(photographs / "results/tables/accuracy.csv")
    assert accuracy["mode"].tolist() == ["original", "keep", "keep", "drop", "drop"]
    assert accuracy["n"].unique().tolist() == [4]
    assert accuracy["mask"].tolist() == ["none"] + ["selection"] * 4
    table = (photographs / "results/tables/table1.md").read_text()
    assert "2 images were skipped: " in table
    assert "text.jpg: not an image" in table
    assert "cut.jpg: cannot be decoded" in table
    assert (photographs / "results/figures/keep_drop-drop-8.png").is_file()
    assert not list(photographs.rglob("owned"))


def test_a_changed_baseline_is_seen(photographs, monkeypatch):
    monkeypatch.chdir(photographs)
    study = yaml.safe_load(Path("mine.yaml").read_text())
    assert list(verify(Workflow(study))) == []
    baseline = Path(study["attribution"]["baseline"])
    before = baseline.read_bytes()
    Image.new("RGB", (40, 40)).save(baseline)
    found = {made.path.parent.name: problem for made, problem in verify(Workflow(study))}
    assert found["scores"] == "stale: made of other baseline"
    baseline.write_bytes(before)


def test_changed_files_are_seen_whatever_their_time(photographs):
    def runs():
        done = snakemake(photographs, "--configfile", "mine.yaml", "--dry-run", "--quiet", "rules")
        return done.stdout + done.stderr

    assert "Nothing to be done" in runs()
    weights = photographs / "my weights.th"
    before = weights.read_bytes()
    network = cifar_resnet(8, 5)
    state = {f"module.{name}": value + 1 for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, weights)
    os.utime(weights, (1.6e9, 1.6e9))
    assert "attribute" in runs()
    weights.write_bytes(before)
    os.utime(weights, (1.6e9, 1.6e9))
    assert "Nothing to be done" in runs()
    folder = next(photographs.glob("my*ü/one class"))
    Image.new("RGB", (40, 40)).save(folder / "new.png")
    assert "index" in runs()


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"dataset": {"source": "demo"}, "models": {}, "sed": 1}, "sed: unknown key"),
        ({**STUDY, "selection": {"p": [50, 50]}}, "50 is there twice"),
        ({**STUDY, "dataset": {"source": "folder", "root": "no where"}}, "no folder 'no where'"),
    ],
)
def test_a_wrong_configuration_is_one_clear_message(tmp_path, study, message):
    done = snakemake(tmp_path, "--dry-run", study=study)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_what_is_hardly_meant_is_said_once_at_the_start(tmp_path):
    study = changed(selection={"p": [50, 0.5]})
    done = snakemake(tmp_path, "results/demo/index.parquet", study=study)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("selection.p: 0.5 means 0.5 %; write 50 if 50 % is meant") == 1
