"""A job reads what its rule declares and writes what its rule declares, as nodes need that share
no files."""

import re

import pytest
from running import ROOT, snakemake

# A reader of everything: two models, two shards, a baseline that is a file.
STUDY = {
    "dataset": {"source": "demo", "n_images": 20, "n_train": 40},
    "models": {
        "trained": {
            "source": "igmask.zoo:small_resnet",
            "size": 64,
            "train": {"epochs": 1, "batch_size": 20},
        },
        "drawn": {"source": "igmask.zoo:small_vgg", "size": 64, "weights": "none"},
    },
    "attribution": {"n_steps": 2, "baseline": "grey.png"},
    "selection": {"p": [50]},
    "figures": {"n_images": 2},
    "compute": {"shards": 2, "device": "cpu"},
}


@pytest.fixture
def study(tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64), "grey").save(tmp_path / "grey.png")
    return tmp_path


def results(folder):
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name for name in found if "/logs/" not in name and "/.kept/" not in name}


def test_each_job_needs_and_makes_only_the_files_that_its_rule_declares(study, tmp_path):
    """Snakemake's shadow is an empty folder with a job's inputs, of which the outputs are kept."""
    text = (ROOT / "Snakefile").read_text("utf-8")
    shadowed, n = re.subn(r"\n    log:\n", '\n    shadow: "minimal"\n    log:\n', text)
    assert n == text.count("\nrule ") - 1  # all but `all`
    snakefile = study / "Snakefile"
    snakefile.write_text(shadowed.replace("docs/captions/", f"{ROOT}/docs/captions/"))
    done = snakemake(study, "--quiet", study=STUDY, snakefile=snakefile)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "results/tables/table3.html" in {f"results/{x}" for x in results(study / "results")}
