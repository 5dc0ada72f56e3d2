"""What breaks in the middle of a study, and how it goes on: to the same tables, byte for byte.

A network that does as files in the working directory tell it breaks the jobs from within.
"""

import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
import running
import yaml
from click.testing import CliRunner
from PIL import Image
from running import command, environment

from igmask import arrays, cli
from igmask.errors import InputError
from igmask.verify import differences

TABLES = "results/tables"
IMAGES = "results/folder/images/16/1-of-1.npy"
NET = "results/folder/models/net"
SCORES, MASKS = f"{NET}/scores/1-of-1.npy", f"{NET}/masks/50.npy"

NETWORK = """
import os, signal, time
from pathlib import Path
import torch
from torch import nn

def told(what):
    file = Path(what)
    found = file.exists()
    file.unlink(missing_ok=True)
    return found

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

class Fragile(nn.Sequential):
    def forward(self, x):
        if len(x) == 2:  # of the trial of a network that every job begins with
            return super().forward(x)
        original = Path("results/folder/models/net/records/.kept/original.parquet")
        if told("die") or (original.exists() and told("die-at-second-condition")):
            die()
        if torch.is_grad_enabled() and told("die-at-second-rename"):  # array, then records
            rename = Path.replace
            def once(path, target):
                Path.replace = die
                return rename(path, target)
            Path.replace = once
        if told("work-slowly"):
            Path("working").touch()
            time.sleep(4)
        return super().forward(x)

def fragile():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Fragile(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 3)
        )
"""

STUDY = {
    "dataset": {"source": "folder", "root": "images"},
    "models": {"net": {"source": "fragile_net:fragile", "size": 16}},
    "attribution": {"n_steps": 4},
    "selection": {"p": [50]},
    "masking": {"modes": ["keep"], "controls": []},
}


def tables_command(folder):
    return command(folder, f"{TABLES}/accuracy.csv")


def snakemake(folder, *arguments):
    """Run what makes the tables in a folder; return (whether it succeeded, what it said)."""
    done = running.snakemake(folder, *(arguments or [f"{TABLES}/accuracy.csv"]))
    return done.returncode == 0, done.stdout + done.stderr


def igmask(folder, monkeypatch, *arguments):
    monkeypatch.chdir(folder)
    return CliRunner().invoke(cli.app, arguments)


def tables(folder):
    return {path.name: path.read_bytes() for path in (folder / TABLES).iterdir()}


def ends_undisturbed(folder, undisturbed):
    """The next run succeeds, with the tables of a run without faults."""
    succeeded, said = snakemake(folder)
    assert succeeded, said
    assert tables(folder) == tables(undisturbed)


@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    """A folder with images, a network and a configuration, in which nothing has run."""
    folder = tmp_path_factory.mktemp("faults")
    rng = np.random.default_rng(0)
    for i in range(12):
        place = folder / "images" / ("cat", "dog", "emu")[i % 3] / f"{i:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 18, 3), dtype=np.uint8)).save(place)
    (folder / "fragile_net.py").write_text(NETWORK)
    (folder / "config.yaml").write_text(yaml.safe_dump(STUDY))
    return folder


@pytest.fixture(scope="module")
def undisturbed(blank, tmp_path_factory):
    """The same after a run without faults."""
    folder = tmp_path_factory.mktemp("undisturbed") / "study"
    shutil.copytree(blank, folder)
    succeeded, said = snakemake(folder)
    assert succeeded, said
    return folder


@pytest.fixture
def study(blank, tmp_path):
    return shutil.copytree(blank, tmp_path / "study")


@pytest.fixture
def finished(undisturbed, tmp_path):
    return shutil.copytree(undisturbed, tmp_path / "finished")


# -- killed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["die", "die-at-second-rename"])
def test_a_job_that_is_killed_is_run_again(study, undisturbed, fault):
    (study / fault).touch()
    succeeded, said = snakemake(study)
    assert not succeeded, said
    assert not (study / TABLES).exists()
    ends_undisturbed(study, undisturbed)
    assert not list(study.rglob(".*.tmp"))


def test_what_a_killed_evaluation_had_finished_is_kept(study, undisturbed):
    (study / "die-at-second-condition").touch()
    succeeded, said = snakemake(study)
    assert not succeeded, said
    original = study / "results/folder/models/net/records/original.parquet"
    assert not original.exists()
    ends_undisturbed(study, undisturbed)
    log = (study / "results/folder/logs/evaluate/net.log").read_text()
    assert "original: kept from before" in log
    assert "keep-50-black: 100%" in log


def test_a_killed_snakemake_goes_on_once_unlocked(study, undisturbed):
    (study / "work-slowly").touch()
    with subprocess.Popen(
        tables_command(study),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    ) as run:
        wait_for(study / "working", run)
        run.send_signal(signal.SIGKILL)
    succeeded, said = snakemake(study)
    assert not succeeded
    assert "--unlock" in said
    snakemake(study, "--unlock")
    ends_undisturbed(study, undisturbed)


def test_a_second_run_in_the_same_folder_is_turned_away(study, undisturbed):
    (study / "work-slowly").touch()
    with subprocess.Popen(
        tables_command(study), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment()
    ) as first:
        wait_for(study / "working", first)
        succeeded, said = snakemake(study)
        output, _ = first.communicate()
    assert not succeeded
    assert "cannot be locked" in said
    assert first.returncode == 0, output.decode()
    assert tables(study) == tables(undisturbed)


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, "it ended before"
        time.sleep(0.05)


# -- disks and files ---------------------------------------------------------------------------


def test_a_full_disk_is_named_and_more_room_is_enough(study, undisturbed, full_disk):
    (study / "results").symlink_to(full_disk)
    with (full_disk / "ballast").open("wb") as file:
        file.write(bytes(40 * 1024))
    succeeded, said = snakemake(study)
    assert not succeeded
    assert "No space left on device: 'results/folder/" in said
    subprocess.run(["mount", "-o", "remount,size=16m", full_disk], check=True)
    ends_undisturbed(study, undisturbed)


def test_a_truncated_array_is_named_and_made_again(finished, undisturbed, monkeypatch):
    os.truncate(finished / IMAGES, (finished / IMAGES).stat().st_size - 100)
    succeeded, said = snakemake(finished)
    assert not succeeded
    assert f"{IMAGES}: not a whole" in said
    assert "igmask verify --remove" in said
    done = igmask(finished, monkeypatch, "verify", "--remove")
    assert done.exit_code == 0, done.output
    ends_undisturbed(finished, undisturbed)


def flip(path):
    """Change one bit of the last row of an array, and leave the time of change."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


MODEL = '{"source": "fragile_net:fragile", "size": 16}'
RECORDS = ["records/original.parquet", "records/keep-50-black.parquet"]
COMMANDS = {
    "attribute": ["attribute", IMAGES, "--model", MODEL, "--n-steps", "4", "-o", "x.npy"],
    "mask": ["mask", SCORES, "-p", "50", "-o", "x"],
    "evaluate": ["evaluate", IMAGES, "--model", MODEL, "--masks", MASKS, "-o", "x"],
    "export": ["export", IMAGES, "--masks", MASKS, "-o", "x"],
    "examples": ["examples", IMAGES, SCORES, MASKS, *(f"{NET}/{x}" for x in RECORDS), "-o", "x"],
}


@pytest.mark.parametrize(
    ("step", "damaged"),
    [
        (step, path)
        for step in COMMANDS
        for path in (IMAGES, SCORES, MASKS)
        if path in COMMANDS[step]
    ],
)
def test_no_step_takes_bytes_that_were_not_written(finished, monkeypatch, step, damaged):
    flip(finished / damaged)
    done = igmask(finished, monkeypatch, *COMMANDS[step])
    last = arrays.read_records(arrays.records_of(finished / damaged))[0]["name"].iloc[-1]
    assert isinstance(done.exception, InputError)
    assert f"{damaged}: other bytes than written for {last}; `igmask verify" in str(done.exception)


def test_results_of_another_configuration_are_not_taken_for_ones_own(
    study, finished, undisturbed, monkeypatch
):
    shutil.copytree(finished / "results", study / "results")
    changed = STUDY | {"attribution": {"n_steps": 5}}
    (study / "config.yaml").write_text(yaml.safe_dump(changed))
    succeeded, said = snakemake(study)
    assert not succeeded
    assert "attribution.n_steps is 4, not 5" in said
    assert "Traceback" not in said
    (study / "config.yaml").write_text(yaml.safe_dump(STUDY))
    shutil.rmtree(study / ".snakemake")
    succeeded, said = snakemake(study, "--dry-run", f"{TABLES}/accuracy.csv")
    assert succeeded, said  # of this configuration, they are

    for path in (study / "results").rglob("*.parquet"):  # as if the copies had been of 5 steps
        records, settings = arrays.read_records(path)
        if "attribution" in settings:
            settings["attribution"]["n_steps"] = 5
            arrays.write_records(path, records.iloc[::-1], settings)
    succeeded, said = snakemake(study)
    assert not succeeded
    assert "igmask verify --remove" in said
    assert igmask(study, monkeypatch, "verify", "--remove").exit_code == 0
    ends_undisturbed(study, undisturbed)


def test_one_bad_image_among_a_thousand(study):
    rng = np.random.default_rng(1)
    for i in range(12, 1000):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(study / "images" / "emu" / f"{i:03d}.png")
    bad = study / "images" / "emu" / "500.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:300])
    succeeded, said = snakemake(study)
    assert not succeeded
    assert "emu/500.png: cannot be decoded" in said
    assert "on_bad_image" in said
    skipping = STUDY | {"dataset": STUDY["dataset"] | {"on_bad_image": "skip"}}
    (study / "config.yaml").write_text(yaml.safe_dump(skipping))
    succeeded, said = snakemake(study)
    assert succeeded, said
    assert pd.read_csv(study / TABLES / "accuracy.csv")["n"].unique().tolist() == [999]
    assert "emu/500.png (" in (study / TABLES / "table1.md").read_text()


# -- verify ------------------------------------------------------------------------------------


def verified(folder, monkeypatch, *arguments):
    """{file: problem} of what `igmask verify` finds, but for what was never made."""
    done = igmask(folder, monkeypatch, "verify", *arguments)
    lines = [line for line in done.output.splitlines() if line.startswith("results/")]
    found = dict(line.split(": ", 1) for line in lines)
    return {name: problem for name, problem in found.items() if "figures" not in name}


def test_an_undisturbed_study_has_nothing_wrong(finished, monkeypatch):
    assert verified(finished, monkeypatch) == {}
    elsewhere = finished / "moved"
    (finished / "results").rename(elsewhere)
    assert verified(finished, monkeypatch, "moved") == {}
    network = finished / "fragile_net.py"
    network.write_text(f"{NETWORK}# changed")
    found = verified(finished, monkeypatch, "moved")
    assert found["results/folder/models/net/scores/1-of-1.npy"] == "stale: made of other code"
    network.write_text(NETWORK)
    done = igmask(finished, monkeypatch, "verify")
    assert done.exit_code == 1
    assert f"{IMAGES}: missing" in done.output


def test_a_changed_byte_is_found_with_all_that_was_made_of_it(finished, monkeypatch):
    flip(finished / IMAGES)
    found = verified(finished, monkeypatch)
    name = arrays.read_records(arrays.records_of(finished / IMAGES))[0]["name"].iloc[-1]
    assert found.pop(IMAGES) == f"damaged: other bytes than written for {name}"
    scores = "results/folder/models/net/scores/1-of-1.npy"
    assert found.pop(scores) == "stale: its images are"
    assert {problem.split(":")[0] for problem in found.values()} == {"stale"}
    assert "results/folder/models/net/masks/50.npy" in found
    assert "results/tables/accuracy.csv" in found


def test_a_file_exchanged_for_one_of_other_content_is_found(finished, monkeypatch):
    masks = finished / "results/folder/models/net/masks/50.npy"
    records, settings = arrays.read_records(arrays.records_of(masks))
    with arrays.writing(masks, np.uint8, (5,)) as writer:
        writer.append(np.zeros((12, 5)))
    records["crc32"] = writer.checksums
    arrays.write_records(arrays.records_of(masks), records, settings)
    found = verified(finished, monkeypatch)
    evaluated = "results/folder/models/net/records/keep-50-black.parquet"
    assert found.pop(evaluated) == "stale: made of other masks"
    assert found == {"results/tables/accuracy.csv": "stale: its records are"}


def test_damaged_records_and_what_a_killed_job_left_are_found(finished, monkeypatch):
    records = finished / "results/folder/models/net/records/original.parquet"
    content = bytearray(records.read_bytes())
    content[40] ^= 255
    records.write_bytes(content)
    left = finished / "results/folder/models/net/masks/.30.npy.17.tmp"
    left.touch()
    found = verified(finished, monkeypatch, "--remove")
    assert found["results/folder/models/net/records/original.parquet"].startswith("damaged: ")
    assert found[str(left.relative_to(finished))] == "left over by a job that was killed"
    assert not records.exists()
    assert not left.exists()


def test_other_settings_are_stale_and_named(finished, monkeypatch):
    changed = STUDY | {"squares": {"score": "absolute"}}
    (finished / "config.yaml").write_text(yaml.safe_dump(changed))
    found = verified(finished, monkeypatch)
    problem = "stale: score is 'positive', not 'absolute'"
    assert found["results/folder/models/net/masks/50.npy"] == problem
    assert "results/folder/models/net/scores/1-of-1.npy" not in found


def test_differences_name_the_keys():
    found = {"a": 1, "attribution": {"rule": "right", "blur_sigma": 3}, "model": {"size": 8}}
    assert differences({"a": 1.0, "attribution": {"rule": "right"}}, found) == []
    assert differences({"attribution": {"rule": "left"}, "b": 2, "model": {}}, found) == [
        "attribution.rule is 'right', not 'left'",
        "b is None, not 2",
        "model.size is 8, not None",
    ]
