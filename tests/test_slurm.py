"""The workflow through a real Slurm: of one node, this machine, where Slurm is installed."""

import getpass
import os
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
from running import ROOT, snakemake

pytestmark = pytest.mark.external

STUDY = {
    "dataset": {"source": "demo", "n_images": 10},
    "models": {
        "one": {
            "source": "igmask.zoo:cifar_resnet",
            "arguments": {"depth": 8},
            "size": 32,
            "resize": 32,
        },
    },
    "attribution": {"n_steps": 2},
    "selection": {"p": [50]},
    "masking": {"modes": ["keep"]},
    "curves": {"points": 3},
    "statistics": {"replicates": 100},
    "figures": {"n_images": 1},
}

# Takes more memory than it asks for at first, and less than twice as much.
GREEDY = """
localrules: all
rule all:
    input: "done"
rule greedy:
    output: "done"
    resources:
        mem_mb=lambda wildcards, attempt: 1500 * attempt,
    shell:
        "python -c 'import time; taken = bytes([1]) * 2 * 10**9; time.sleep(3)' && touch {output}"
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A running Slurm, in reach of what the tests start."""
    places = f"{os.environ['PATH']}:/usr/sbin"
    daemons = ("munged", "slurmctld", "slurmd")
    missing = [name for name in daemons if shutil.which(name, path=places) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    if find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("no Slurm plugin of Snakemake: pip install snakemake-executor-plugin-slurm")
    folder, script = tmp_path_factory.mktemp("slurm"), ROOT / "tests/slurm/cluster.sh"
    started = subprocess.run([script, "start", folder], capture_output=True, text=True, check=False)
    if started.returncode:
        pytest.skip(f"Slurm does not start here: {started.stderr}")
    sourced = subprocess.run(
        ["bash", "-c", 'source "$1" && echo "$SLURM_CONF" && echo "$PATH"', "-", folder / "env"],
        check=True,
        capture_output=True,
        text=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("SLURM_CONF", "PATH"), sourced.stdout.splitlines(), strict=True):
            patch.setenv(name, value)
        yield
    subprocess.run([script, "stop", folder], check=True)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A folder in which the study has run without Slurm."""
    folder = tmp_path_factory.mktemp("local")
    done = snakemake(folder, study=STUDY)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def run(folder, *arguments, **options):
    """Run Snakemake through Slurm by the project's profile, on two cores, soon polled."""
    profile = ["--workflow-profile", ROOT / "profiles/slurm"]
    haste = ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5"]
    done = snakemake(folder, *profile, *haste, *arguments, forked=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr


def slurm_jobs(folder):
    """What Slurm knows of the jobs of a folder, in their order: {field: value} each."""
    command = ["scontrol", "show", "job", "--oneliner"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    fields = re.compile(r"(\S+?)=(.*?) *(?= \S+?=|$)")
    found = [dict(fields.findall(line)) for line in shown.splitlines()]
    return [job for job in found if job.get("WorkDir") == str(folder)]


def tables(folder):
    found = {path.name: path.read_bytes() for path in (folder / "results/tables").iterdir()}
    assert "accuracy.csv" in found
    return found


@pytest.mark.slow  # CI runs it
def test_a_study_with_a_cancelled_job_has_the_tables_of_a_local_one(slurm, local, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a study")
    log = folder / "results/demo/logs/attribute/one-1-of-1.log"
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run, folder, study=STUDY)
        while not log.exists() and not running.done():  # igmask has begun, and imports PyTorch
            time.sleep(0.05)
        [job] = [job for job in slurm_jobs(folder) if "rule_attribute" in job["Comment"]]
        subprocess.run(["scancel", job["JobId"]], check=True)
        running.result()
    assert tables(folder) == tables(local)
    attempts = [job for job in slurm_jobs(folder) if "rule_attribute" in job["Comment"]]
    assert [job["JobState"] for job in attempts] == ["CANCELLED", "COMPLETED"]
    found = [job for job in slurm_jobs(folder) if job["JobState"] != "CANCELLED"]
    asked_gpus = {job["Comment"]: job.get("TresPerJob") for job in found}
    assert asked_gpus == {
        "rule_index_wildcards_demo": None,
        "rule_preflight_wildcards_demo_one": None,
        "rule_prepare_wildcards_demo_32-resize32-bilinear_1-of-1": None,
        "rule_attribute_wildcards_demo_one_1-of-1": "gres:gpu:1",
        "rule_mask_wildcards_demo_one": None,
        "rule_evaluate_wildcards_demo_one": "gres:gpu:1",
        "rule_pages_curves_examples_gallery_page_probe_...": None,  # cut by the plugin
    }
    assert len(found) == len(asked_gpus)
    assert all(job["JobName"].startswith("igmask_") for job in found)
    assert all(job["UserId"].startswith(f"{getpass.getuser()}(") for job in found)
    assert {job["JobState"] for job in found} == {"COMPLETED"}
    asked = {job["Comment"]: (job["MinMemoryNode"], job["TimeLimit"]) for job in found}
    assert asked["rule_evaluate_wildcards_demo_one"] == ("4000M", "01:00:00")
    assert asked["rule_attribute_wildcards_demo_one_1-of-1"] == ("8000M", "02:00:00")  # again
    assert asked["rule_mask_wildcards_demo_one"] == ("1500M", "00:30:00")


def test_a_job_killed_for_memory_is_run_again_with_twice_as_much(slurm, tmp_path):
    (tmp_path / "Snakefile").write_text(GREEDY)
    run(tmp_path, snakefile=tmp_path / "Snakefile")
    attempts = [(job["JobState"], job["MinMemoryNode"]) for job in slurm_jobs(tmp_path)]
    assert attempts == [("FAILED", "1500M"), ("COMPLETED", "3000M")]
