"""The whole workflow on a tiny demo, and what re-runs when the configuration changes."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

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
    "figures": {"n_images": 2},
    "compute": {"shards": 2},
}


def snakemake(folder, *arguments, study=None):
    """Run Snakemake in a folder, with this configuration written there first."""
    if study is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--directory", folder, "--cores", "2", "--nocolor", *arguments]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, cwd=folder
    )


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
    assert accuracy["model"].tolist() == ["one"] * 3 + ["two"] * 3
    assert accuracy["n"].unique().tolist() == [20]
    assert accuracy["top1"].between(0, 100).all()
    assert accuracy.loc[accuracy["mode"] == "keep", "area_kept"].between(1, 99).all()
    for number in (1, 2, 3):
        for kind in ("csv", "md", "html", "tex"):
            assert (results / f"results/tables/table{number}.{kind}").stat().st_size > 50
    figures = {path.name for path in (results / "results/figures").iterdir()}
    expected = {
        f"{kind}-{name}.png" for kind in ("attributions", "keep") for name in STUDY["models"]
    }
    assert figures == expected | {"accuracy-p.png", "accuracy-area.png"}
    found = json.loads((results / "results/demo/models/one/preflight.json").read_text())
    assert found["n_classes"] == 10


def test_logs_have_plain_lines(results):
    text = (results / "results/demo/logs/attribute/one-1-of-2.log").read_text()
    assert "100%" in text
    assert "\r" not in text


def test_nothing_is_left_to_do(results):
    assert jobs(results, STUDY) == {}


def test_a_new_p_runs_only_what_is_new(results):
    found = jobs(results, changed(selection={"p": [50, 20, 80]}))
    assert found == {"mask": 2, "evaluate": 2, "tables": 1, "examples": 2, "curves": 1}


def test_a_new_mode_runs_only_what_is_new(results):
    found = jobs(results, changed(masking={"modes": ["keep", "drop"]}))
    assert found == {"evaluate": 4, "tables": 1, "examples": 2, "curves": 1}


def test_a_new_fill_runs_only_what_is_new(results):
    found = jobs(results, changed(masking={"modes": ["keep"], "fills": ["black", "mean"]}))
    assert found == {"evaluate": 4, "tables": 1, "examples": 2, "curves": 1}


def test_a_new_model_runs_only_what_is_new(results):
    found = jobs(results, changed(models={"three": STUDY["models"]["one"]}))
    assert found == {
        "train": 1,
        "preflight": 1,
        "attribute": 2,
        "mask": 2,
        "evaluate": 2,
        "evaluate_original": 1,
        "tables": 1,
        "examples": 1,
        "curves": 1,
    }


def test_a_limit_trains_nothing_and_leaves_the_full_results(results):
    found = jobs(results, changed(dataset={"limit": 1}))
    assert "train" not in found
    assert found["attribute"] == 4
    assert jobs(results, STUDY) == {}


def test_more_demo_images_train_nothing(results):
    assert "train" not in jobs(results, changed(dataset={"n_images": 30}))


def test_a_models_setting_runs_that_models_jobs_only(results):
    study = copy.deepcopy(STUDY)
    study["models"]["two"]["mean"] = [0.5, 0.5, 0.5]
    assert jobs(results, study) == {
        "train": 1,
        "preflight": 1,
        "attribute": 2,
        "mask": 2,
        "evaluate": 2,
        "evaluate_original": 1,
        "tables": 1,
        "examples": 1,
        "curves": 1,
    }


def test_a_score_needs_no_new_attribution(results):
    found = jobs(results, changed(squares={"score": "absolute"}))
    assert found == {"mask": 4, "evaluate": 4, "tables": 1, "examples": 2, "curves": 1}


def test_two_settings_that_swap_their_values_are_seen(results):
    study = changed(attribution={"n_steps": 2, "n_baselines": 3})
    before = jobs(results, study)
    assert before["attribute"] == 4
    swapped = changed(attribution={"n_steps": 3, "n_baselines": 2})
    assert jobs(results, swapped)["attribute"] == 4


def test_device_and_batch_size_run_nothing_and_shards_run_theirs(results):
    assert jobs(results, changed(compute={"batch_size": 7, "device": "cpu"})) == {}
    found = jobs(results, changed(compute={"shards": 3}))
    assert found["prepare"] == 3
    assert "train" not in found


def test_pictures_of_more_images_compute_nothing(results):
    assert jobs(results, changed(figures={"n_images": 3})) == {"examples": 2}


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
