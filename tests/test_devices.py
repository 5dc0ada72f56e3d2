"""Jobs side by side take different GPUs; here GPUs are names, and processes are real."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yte
from running import ROOT

from igmask import devices
from igmask.devices import count_gpus, lock_first, pick_device, release, take_device
from igmask.errors import InputError

# All of PyTorch that is asked, on a machine with two GPUs.
TORCH = """
import os
from types import SimpleNamespace

visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1")
seen = ["GPU-one GPU-two".split()[int(i)] for i in visible.split(",")]

def device(name, index=None):
    kind, _, number = name.partition(":")
    return SimpleNamespace(type=kind, index=int(number) if number else index)

cuda = SimpleNamespace(
    is_available=lambda: True,
    device_count=lambda: len(seen),
    get_device_properties=lambda i: SimpleNamespace(uuid=seen[i]),
    set_device=lambda i: None,
)
"""

# Takes a GPU, says which, and holds it until its input ends, with whatever it has started by then.
JOB = """
import os, subprocess, sys, torch
from igmask import devices

devices._SECONDS_BETWEEN_TRIES = 0.01
print(torch.seen[devices.take_device(sys.argv[1]).index], flush=True)
if "children" in sys.argv:
    subprocess.Popen(["cat"], close_fds=False)
    if os.fork() == 0:
        print("child", len(devices._held), flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts a job; `line()` of it is the next that it says."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "torch.py").write_text(TORCH)
    jobs = []

    def job(device="auto", *arguments, **environment):
        paths = os.pathsep.join([str(tmp_path / "fake"), str(ROOT)])
        jobs.append(
            subprocess.Popen(
                [sys.executable, "-c", JOB, device, *arguments],
                env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": paths} | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        jobs[-1].line = lambda of=jobs[-1]: of.stdout.readline().strip()
        return jobs[-1]

    yield job
    for started in jobs:
        started.stdin.close()
        started.wait()
        started.stdout.close()


def test_jobs_take_different_gpus_and_a_third_waits_for_the_death_of_one(start):
    first, second = start(), start("cuda")
    taken = {first.line(): first, second.line(): second}
    assert set(taken) == {"GPU-one", "GPU-two"}
    third = start()
    assert third.line().startswith("waiting: other igmask jobs have cuda:0, cuda:1; ")
    taken["GPU-two"].send_signal(signal.SIGKILL)
    assert third.line() == "GPU-two"  # and has not said again that it waits


def test_a_gpu_is_the_same_one_under_another_index(start):
    assert start(CUDA_VISIBLE_DEVICES="1").line() == "GPU-two"
    assert start(CUDA_VISIBLE_DEVICES="1,0").line() == "GPU-one"


def test_a_gpu_that_is_named_is_waited_for(start):
    holder = start(CUDA_VISIBLE_DEVICES="1")
    assert holder.line() == "GPU-two"
    waiting = start("cuda:1")
    assert waiting.line().startswith("waiting: other igmask jobs have cuda:1; ")
    assert start().line() == "GPU-one"
    holder.send_signal(signal.SIGKILL)
    assert waiting.line() == "GPU-two"


def test_what_a_job_has_started_does_not_hold_its_gpu(start):
    job = start("cuda:0", "children")
    assert [job.line(), job.line()] == ["GPU-one", "child 0"]
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert start("cuda:0").line() == "GPU-one"
    os.set_blocking(job.stdout.fileno(), False)
    with pytest.raises(BlockingIOError):  # what it has started still has the other end open
        os.read(job.stdout.fileno(), 1)


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """Two GPUs as PyTorch shows them, none of them taken; where their locks will be."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    properties = [SimpleNamespace(uuid="GPU-one"), SimpleNamespace(uuid="GPU-two")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(properties))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    return tmp_path / f"igmask-gpus-{os.geteuid()}"


def test_a_process_keeps_the_gpu_that_it_has(gpus):
    assert [take_device(name) for name in ("cuda:1", "auto", "cuda", "cuda:1")] == [
        torch.device("cuda", 1)
    ] * 4
    assert [path.name for path in gpus.iterdir()] == ["GPU-two"]
    assert gpus.stat().st_mode & 0o777 == 0o700


def test_a_gpu_that_is_taken_is_the_current_one(gpus, monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    take_device("cuda:1")
    assert current == [1]


def test_what_is_let_go_of_can_be_taken(gpus, start):
    take_device("cuda:0")
    waiting = start("cuda:0")
    assert waiting.line().startswith("waiting: ")
    release()
    assert waiting.line() == "GPU-one"


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["0", "1"]),
        ("3, 1", ["3", "1"]),
        ("MIG-GPU-5a/7/0", ["MIG-GPU-5a-7-0", "1"]),
    ],
)
def test_gpus_without_uuid_go_by_what_is_visible(gpus, monkeypatch, visible, names):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace())
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    take_device("cuda:0")
    take_device("cuda:1")
    assert sorted(path.name for path in gpus.iterdir()) == sorted(names)


def test_slices_of_a_gpu_are_not_one(gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-5a")
    take_device("auto")
    assert [path.name for path in gpus.iterdir()] == ["MIG-5a"]


def test_no_lock_without_need(gpus, monkeypatch):
    take_device("cpu")
    pick_device("auto")
    pick_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert take_device("auto") == torch.device("cpu")
    assert not gpus.exists()


def test_no_lock_where_there_are_none(gpus, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert lock_first({1: "GPU-two", 0: "GPU-one"}) == 1
    assert not gpus.exists()


def _link(folder):
    (folder.parent / "mine").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "mine")


def _foreign(folder):
    if os.geteuid() != 0:
        pytest.skip("giving a folder away needs root")
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)


def _open_to_all(folder):
    folder.mkdir()
    folder.chmod(0o777)


@pytest.mark.parametrize("hostile", [_link, _foreign, _open_to_all, Path.touch])
def test_a_folder_that_is_not_the_users_own_is_refused(gpus, hostile):
    hostile(gpus)
    with pytest.raises(InputError, match=f"{gpus}: .* not a folder of yours alone"):
        take_device("auto")


def test_devices_that_are_not_there_are_named(gpus, monkeypatch):
    with pytest.raises(InputError, match="device cuda:7: there is cuda:0 to cuda:1"):
        pick_device("cuda:7")
    with pytest.raises(InputError, match="'gpu': choose from auto, cpu, cuda, cuda:1"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="device cuda:1: there is cuda:0 only"):
        take_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:0"):
        with pytest.raises(InputError, match="no usable GPU"):
            pick_device(name)
    assert pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    ("visible", "n"),
    [(None, 3), ("0,2", 2), ("", 0), ("-1", 0), ("1, -1, 2", 1), ("GPU-5a", 1), ("NoDevFiles", 0)],
)
def test_gpus_are_counted_without_torch_and_limit_snakemake(tmp_path, monkeypatch, visible, n):
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(devices, "_DRIVER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == n
    text = (ROOT / "profiles/default/profile.yaml").read_text()
    profile = yte.process_yaml(text, require_use_yte=True)
    assert profile.get("resources") == ({"gpu": n} if n else None)
    assert profile["rerun-incomplete"] is True
