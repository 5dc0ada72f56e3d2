"""What breaks in the middle of a study, and how it goes on: to the same tables, byte for byte.

A network that does as files in the working directory tell it breaks the jobs from within.
"""

import os
import platform
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import running
import yaml
from click.testing import CliRunner
from PIL import Image
from running import command, environment
from steps import run_train

from igmask import arrays, cli
from igmask.asked import config
from igmask.asked.recipes import STAGES
from igmask.errors import InputError
from igmask.inputs import models
from igmask.plan import Workflow
from igmask.tools.verify import differences, foreign

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
        if len(x) <= 2:  # of the trial of a network that every job begins with
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
    "curves": {"points": 3},
    "statistics": {"replicates": 100},
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
    folder = tmp_path / "finished"
    subprocess.run(["cp", "-a", undisturbed, folder], check=True)  # records have a second name
    return folder


@pytest.fixture
def unevaluated(finished):
    """A copy in which all has run but evaluate, of which nothing is kept, and tables."""
    shutil.rmtree(finished / NET / "records")
    shutil.rmtree(finished / TABLES)
    return finished


# -- killed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", ["die", pytest.param("die-at-second-rename", marks=pytest.mark.slow)]
)
def test_a_job_that_is_killed_is_run_again(study, undisturbed, fault):
    (study / fault).touch()
    succeeded, said = snakemake(study)
    assert not succeeded, said
    assert not (study / TABLES).exists()
    ends_undisturbed(study, undisturbed)
    assert not list(study.rglob(".*.tmp"))


def test_what_a_killed_evaluation_had_finished_is_kept(unevaluated, undisturbed):
    (unevaluated / "die-at-second-condition").touch()
    succeeded, said = snakemake(unevaluated)
    assert not succeeded, said
    original = unevaluated / "results/folder/models/net/records/original.parquet"
    assert not original.exists()
    ends_undisturbed(unevaluated, undisturbed)
    log = (unevaluated / "results/folder/logs/evaluate/net.log").read_text()
    assert "original: kept from before" in log
    assert "keep-50-black: 100%" in log


def test_a_killed_snakemake_goes_on_once_unlocked(unevaluated, undisturbed):
    (unevaluated / "work-slowly").touch()
    with subprocess.Popen(
        tables_command(unevaluated),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    ) as run:
        wait_for(unevaluated / "working", run)
        run.send_signal(signal.SIGKILL)
    succeeded, said = snakemake(unevaluated)
    assert not succeeded
    assert "--unlock" in said
    snakemake(unevaluated, "--unlock")
    ends_undisturbed(unevaluated, undisturbed)


def test_a_second_run_in_the_same_folder_is_turned_away(unevaluated, undisturbed):
    (unevaluated / "work-slowly").touch()
    with subprocess.Popen(
        tables_command(unevaluated),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
    ) as first:
        wait_for(unevaluated / "working", first)
        succeeded, said = snakemake(unevaluated)
        output, _ = first.communicate()
    assert not succeeded
    assert "cannot be locked" in said
    assert first.returncode == 0, output.decode()
    assert tables(unevaluated) == tables(undisturbed)


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


def test_damage_does_not_outlive_its_removal(finished, undisturbed, tmp_path, monkeypatch):
    """Neither what is evaluated after it nor what was, when nobody looked at the bytes."""
    fills = STUDY | {"masking": STUDY["masking"] | {"fills": ["black", "mean"]}}
    other = shutil.copytree(undisturbed, tmp_path / "other")
    for folder in (finished, other):
        (folder / "config.yaml").write_text(yaml.safe_dump(fills))
    succeeded, said = snakemake(other)
    assert succeeded, said

    times = (finished / IMAGES).stat()
    with (finished / IMAGES).open("r+b") as file:
        file.seek(-3000, os.SEEK_END)
        file.write(bytes(3000))
    os.utime(finished / IMAGES, ns=(times.st_atime_ns, times.st_mtime_ns))
    evaluated = [finished / NET / name for name in RECORDS]
    kept = [path.parent / ".kept" / path.name for path in evaluated]
    for path, second in zip(evaluated, kept, strict=True):
        records, settings = arrays.read_records(path)
        arrays.write_records(second, records.assign(predicted=0, correct=False), settings)
        times = path.stat()
        path.unlink()
        path.hardlink_to(second)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    kept[1].with_name("drop-50-black.parquet").hardlink_to(kept[1])  # of a mode that was
    succeeded, said = snakemake(finished)
    assert not succeeded
    assert f"{IMAGES}: other bytes than written for emu/" in said
    found = verified(finished, monkeypatch, "--remove")
    assert found[f"{NET}/records/.kept/drop-50-black.parquet"] == "stale: its images are"
    assert not list((finished / NET).glob("records/.kept/*"))
    ends_undisturbed(finished, other)


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


def test_one_bad_image_among_many(study):
    rng = np.random.default_rng(1)
    for i in range(12, 200):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(study / "images" / "emu" / f"{i:03d}.png")
    bad = study / "images" / "emu" / "100.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:300])
    succeeded, said = snakemake(study)
    assert not succeeded
    assert "emu/100.png: cannot be decoded" in said
    assert "on_bad_image" in said
    skipping = STUDY | {"dataset": STUDY["dataset"] | {"on_bad_image": "skip"}}
    (study / "config.yaml").write_text(yaml.safe_dump(skipping))
    succeeded, said = snakemake(study)
    assert succeeded, said
    assert pd.read_csv(study / TABLES / "accuracy.csv")["n"].unique().tolist() == [199]
    assert "emu/100.png (" in (study / TABLES / "table1.md").read_text()


# -- verify ------------------------------------------------------------------------------------


def verified(folder, monkeypatch, *arguments):
    """{file: problem} of what `igmask verify` finds, but for what was never made."""
    done = igmask(folder, monkeypatch, "verify", *arguments)
    lines = [line for line in done.output.splitlines() if line.startswith("results/")]
    found = dict(line.split(": ", 1) for line in lines)
    pictures = "figures", "gallery.json", "index.html"
    return {
        name: problem for name, problem in found.items() if not any(one in name for one in pictures)
    }


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
    probed = "results/folder/models/net/probe.parquet"
    assert found.pop(probed) == "stale: made of other masks"
    assert {Path(path).parent for path in found} == {Path(TABLES)}
    assert set(found.values()) == {"stale: its records are"}


@pytest.mark.slow
def test_other_networks_and_converged_masks_are_looked_at_too(blank, tmp_path, monkeypatch):
    folder = tmp_path / "study"
    shutil.copytree(blank, folder)
    (folder / "other_net.py").write_text(NETWORK.replace("manual_seed(0)", "manual_seed(1)"))
    other = {"source": "other_net:fragile", "size": 16}
    study = STUDY | {"models": {"net": STUDY["models"]["net"], "other": other}}
    study |= {"masking": STUDY["masking"] | {"transfer": True}}
    study |= {"statistics": {"replicates": 100, "converged": 4, "probe": False}}
    (folder / "config.yaml").write_text(yaml.safe_dump(study))
    succeeded, said = snakemake(folder)
    assert succeeded, said
    assert verified(folder, monkeypatch) == {}
    masks = folder / "results/folder/models/other/masks/50.npy"
    masks.unlink()
    arrays.records_of(masks).unlink()
    found = verified(folder, monkeypatch)
    [problem] = [found[path] for path in found if path.startswith(f"{NET}/of/other/")]
    assert problem == "stale: its masks are"
    # Without curves there are no tables of them, nor any of an earlier run.
    assert (folder / TABLES / "table4.md").is_file()
    (folder / "config.yaml").write_text(yaml.safe_dump(study | {"curves": {"points": 0}}))
    succeeded, said = snakemake(folder)
    assert succeeded, said
    assert not [*(folder / TABLES).glob("table4*"), *(folder / TABLES).glob("areas*")]
    assert (folder / TABLES / "table8.md").is_file()


def test_pictures_of_what_is_stale_are_stale(finished, monkeypatch):
    page = finished / "results/index.html"
    page.write_text("<!doctype html>")
    assert "results/index.html" not in igmask(finished, monkeypatch, "verify").output
    flip(finished / IMAGES)
    found = igmask(finished, monkeypatch, "verify").output
    assert "results/index.html: stale: what it shows is" in found.splitlines()


def test_damaged_records_and_what_a_killed_job_left_are_found(finished, monkeypatch):
    records = finished / "results/folder/models/net/records/original.parquet"
    content = bytearray(records.read_bytes())
    content[40] ^= 255
    records.write_bytes(content)
    left = finished / "results/folder/models/net/masks/.30.npy.17.tmp"
    at_work = left.with_name(f".30.npy.{platform.node()}.{os.getpid()}.tmp")
    elsewhere = left.with_name(".30.npy.node7.4242.tmp")
    for path in (left, at_work, elsewhere):
        path.touch()
    os.utime(left, (0, 0))  # a day and more ago
    found = verified(finished, monkeypatch, "--remove")
    assert found["results/folder/models/net/records/original.parquet"].startswith("damaged: ")
    assert found[str(left.relative_to(finished))] == "left over by a job that was killed"
    assert not records.exists()
    assert not (records.parent / ".kept" / records.name).exists()
    assert not left.exists()
    assert at_work.exists()
    assert elsewhere.exists()


def test_what_is_kept_under_no_other_name_is_looked_at(finished, monkeypatch):
    kept = finished / NET / "records/.kept"
    for name in RECORDS:
        (finished / NET / name).unlink()  # as Snakemake does, before a job and when it fails
    former = kept / "drop-20-mean.parquet"
    shutil.copyfile(kept / "keep-50-black.parquet", former)
    found = verified(finished, monkeypatch)
    assert not [path for path in found if ".kept" in path]
    records, settings = arrays.read_records(former)
    arrays.write_records(former, records, settings | {"name": "other"})
    keep = kept / "keep-50-black.parquet"
    arrays.write_records(keep, records, settings | {"side": 5})
    with (kept / "original.parquet").open("r+b") as file:
        file.truncate(1000)
    found = verified(finished, monkeypatch, "--remove")
    found = {Path(path).name: problem for path, problem in found.items() if ".kept" in path}
    assert found.pop("original.parquet").startswith("damaged: ")
    assert found == {
        "keep-50-black.parquet": "stale: side is 5, not 3",
        "drop-20-mean.parquet": "stale: name is 'other', not 'net'",
    }
    assert not list(kept.iterdir())


MADE_BY = {
    "index": "results/folder/index.parquet",
    "prepare": IMAGES,
    "preflight": f"{NET}/preflight.json",
    "attribute": SCORES,
    "mask": MASKS,
    "evaluate": f"{NET}/records/keep-50-black.parquet",
}


@pytest.mark.parametrize("step", MADE_BY)
def test_results_of_another_version_of_a_step_are_stale(finished, monkeypatch, step):
    of = STAGES[step]
    monkeypatch.setitem(STAGES, step, of + 1)
    found = verified(finished, monkeypatch)
    problem = f"versions.{step} is {of}, not {of + 1}"
    assert found[MADE_BY[step]] == f"stale: {problem}"
    earlier = list(MADE_BY)[: list(MADE_BY).index(step)]
    assert not found.keys() & {MADE_BY[other] for other in earlier}
    monkeypatch.chdir(finished)
    first = Path(MADE_BY[step])
    assert f"{first if first.suffix == '.json' else first.with_suffix('.parquet')}: {problem}" in (
        foreign(Workflow(STUDY))
    )


def test_weights_say_the_version_of_their_training(tmp_path, monkeypatch):
    training = {"epochs": 1, "batch_size": 2, "learning_rate": 0.1}
    model = {"source": "igmask.zoo:small_resnet", "size": 64, "train": training}
    study = {"dataset": {"source": "demo", "n_images": 10, "n_train": 10}, "models": {"a": model}}
    path = tmp_path / "results/demo/weights/a.safetensors"
    run_train(path, model=config.model(model), n_train=10, seed=0)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(study))
    name = "results/demo/weights/a.safetensors"
    assert name not in verified(tmp_path, monkeypatch)
    of = STAGES["train"]
    with monkeypatch.context() as later:
        later.setitem(STAGES, "train", of + 1)
        found = verified(tmp_path, later)
    assert found[name] == f"stale: versions.train is {of}, not {of + 1}"
    written = path.read_bytes()
    flip(path)
    assert verified(tmp_path, monkeypatch)[name].startswith("damaged: other weights than written")
    with pytest.raises(InputError, match=r"a\.safetensors: other weights than written"):
        models.load(config.model({"source": model["source"], "size": 64, "weights": str(path)}))
    verified(tmp_path, monkeypatch, "--remove")
    run_train(path, model=config.model(model), n_train=10, seed=0)
    assert path.read_bytes() == written
    path.write_bytes(written[:-10])
    assert verified(tmp_path, monkeypatch)[name].startswith("damaged: ")


# -- images that changed under their names -------------------------------------------------------


def save(path, pixels, *, as_before=False):
    """Write an image, in other bytes than before; `as_before`: of the same size and time."""
    before = path.stat()
    Image.fromarray(pixels).save(path, compress_level=1)
    if as_before:
        with path.open("ab") as file:
            file.write(bytes(before.st_size - path.stat().st_size))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_image_that_changed_under_its_name_is_found_and_a_touched_one_is_none(
    finished, blank, tmp_path, monkeypatch
):
    touched, same, changed = (finished / "images/cat" / f"{i:02d}.png" for i in (0, 3, 6))
    touched.touch()
    save(same, np.asarray(Image.open(same)))
    assert verified(finished, monkeypatch) == {}
    assert verified(finished, monkeypatch, "--deep") == {}
    save(changed, np.full((20, 18, 3), 90, dtype=np.uint8))
    found = verified(finished, monkeypatch, "--remove")
    assert found[IMAGES] == "stale: the image cat/06.png has changed since"
    assert found[SCORES] == "stale: its images are"
    other = shutil.copytree(blank, tmp_path / "other")
    shutil.copyfile(changed, other / "images/cat/06.png")
    succeeded, said = snakemake(other)
    assert succeeded, said
    ends_undisturbed(finished, other)
    assert verified(finished, monkeypatch) == {}


def test_deep_sees_what_size_and_time_do_not_tell(finished, monkeypatch):
    for i in (1, 4):
        save(finished / f"images/dog/{i:02d}.png", np.zeros((20, 18, 3), np.uint8), as_before=True)
    assert verified(finished, monkeypatch) == {}
    problem = "stale: the image dog/01.png has changed since, and 1 more"
    assert verified(finished, monkeypatch, "--deep")[IMAGES] == problem
    index = finished / "results/folder/index.parquet"
    records, settings = arrays.read_records(index)
    arrays.write_records(index, records.drop(columns=["size", "mtime_ns"]), settings)
    assert verified(finished, monkeypatch) == {}
    assert verified(finished, monkeypatch, "--deep")[IMAGES] == problem
    (finished / "images/cat/00.png").write_text("no image")
    problem = "stale: the image cat/00.png has changed since, and 2 more"
    assert verified(finished, monkeypatch, "--deep")[IMAGES] == problem


def test_an_image_that_was_left_out_is_missed_once_it_is_mended(study, monkeypatch):
    bad, whole = study / "images/cat/03.png", (study / "images/cat/03.png").read_bytes()
    bad.write_text("no image")
    skipping = {**STUDY["dataset"], "on_bad_image": "skip"}
    (study / "config.yaml").write_text(yaml.safe_dump(STUDY | {"dataset": skipping}))
    succeeded, said = snakemake(study, IMAGES)
    assert succeeded, said
    bad.write_text("still none")
    assert IMAGES not in verified(study, monkeypatch, "--deep")
    bad.write_bytes(whole)
    problem = "stale: the image cat/03.png has changed since"
    assert verified(study, monkeypatch)[IMAGES] == problem


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


@pytest.mark.parametrize("name", ["table1.csv", "table2.md", "table3.html", "table3.tex"])
def test_a_table_that_says_other_than_its_records_is_found(finished, monkeypatch, name):
    path = finished / TABLES / name
    path.write_text(path.read_text("utf-8").replace("0", "1"), "utf-8")
    assert verified(finished, monkeypatch) == {
        f"{TABLES}/{name}": "stale: its records say otherwise"
    }


def test_images_that_came_since_are_found(finished, monkeypatch):
    shutil.copy(*(next(finished.glob("images/cat/*.png")).with_stem(x) for x in ("00", "99")))
    found = verified(finished, monkeypatch)
    assert found["results/folder/index.parquet"] == "stale: there are other images now"
