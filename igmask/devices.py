"""Which device a network runs on, and a GPU of its own for each of the jobs of a machine.

The steps of the study and the benchmarks take their GPU: none is shared, since what another job
allocates or computes there would be memory or time that this one has counted on. `igmask explain`,
`igmask inspect` and the Python API only pick one: they are short, or of a session that lasts for
days, and would wait behind a study, or keep it waiting, where the memory left is enough for them.

A GPU is taken by a lock on a file, which the kernel lets go of when the process ends, however it
ends. It counts among one user's processes with the same temporary folder. On a cluster the
scheduler shows a job its own GPUs only, and their locks are free.
"""

import contextlib
import ctypes
import itertools
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from igmask.errors import InputError
from igmask.progress import say

if TYPE_CHECKING:  # imported on first use, since Snakemake's profile counts GPUs without it
    import torch

_DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder a GPU
_SECONDS_BETWEEN_TRIES = 1.0
_held: dict[str, int] = {}  # what this process has locked: a GPU's name, and the open file


def n_cores() -> int:
    """Return how many CPU cores this process may use.

    Not PyTorch's number of threads, which Snakemake limits to those of a rule.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pick_device(name: str) -> "torch.device":
    """Return the device of that name; `auto` is a GPU if there is one.

    raises InputError for a name that is none, and for a GPU that is not there
    """
    import torch

    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if n_gpus else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r}: choose from auto, cpu, cuda, cuda:1") from None
    if device.type == "cuda" and not n_gpus:
        raise InputError("device cuda: this machine has no usable GPU; set device to cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        names = "cuda:0 only" if n_gpus == 1 else f"cuda:0 to cuda:{n_gpus - 1}"
        raise InputError(f"device {name}: there is {names} (see CUDA_VISIBLE_DEVICES)")
    return device


def take_device(name: str) -> "torch.device":
    """Return the device of that name, no other job's: a GPU is this process's until it ends.

    `auto` and `cuda` are the first free GPU, or the one that this process has already. Where all
    are taken it says so, and waits. The GPU becomes PyTorch's current one.

    raises InputError as `pick_device`, and if the folder of the locks is not the user's own
    """
    import torch

    device = pick_device(name)
    if device.type != "cuda":
        return device
    indices = range(torch.cuda.device_count()) if device.index is None else [device.index]
    index = lock_first({index: _physical_name(index) for index in indices})
    torch.cuda.set_device(index)  # where, for one, CUDA graphs are recorded
    return torch.device("cuda", index)


def lock_first(gpus: Mapping[int, str]) -> int:
    """Return the index of the first of these GPUs that is free, locked by this process from now on.

    gpus:  index → a name that means the same GPU to every process; of one that this process has
           locked before, the index is returned at once
    raises InputError if the folder of the locks is not the user's own
    """
    for index, gpu in gpus.items():
        if gpu in _held:
            return index
    if sys.platform == "win32":
        return next(iter(gpus))
    folder, waiting = _lock_folder(), False
    while True:
        for index, gpu in gpus.items():
            if _lock(folder, gpu):
                return index
        if not waiting:
            names = ", ".join(f"cuda:{index}" for index in gpus)
            say(f"waiting: other igmask jobs have {names}; their locks are in {folder}")
            waiting = True
        time.sleep(_SECONDS_BETWEEN_TRIES)


def release() -> None:
    """Let go of the GPUs that this process has locked; a job need not, since it ends."""
    while _held:
        os.close(_held.popitem()[1])


# A child's copy of a lock would hold it beyond the death of the job that took it.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=release)


def count_gpus() -> int:
    """Return how many NVIDIA GPUs this process may use, without PyTorch; 0 if that is unknown."""
    n_present = len(list(_DRIVER.glob("*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return n_present
    # As CUDA reads it: up to the first entry that names no GPU.
    names = itertools.takewhile(re.compile(r"\s*(\d|GPU-|MIG-)").match, visible.split(","))
    return min(n_present, len(list(names)))


def _physical_name(index: int) -> str:
    """What to call a GPU that another process may see under another index."""
    import torch

    entries = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    entry = entries[index].strip() if index < len(entries) else ""
    if entry.startswith("MIG-"):  # a slice; the GPU's own UUID may stand for all of them
        return entry
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)  # ROCm may have none
    return str(uuid or entry or index)


@cache
def keep_freed_memory() -> None:
    """Let malloc use freed memory again instead of giving it back to the system.

    Fresh pages for the activations of every batch cost a fifth of the time of VGG-16.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # not the GNU C library: another allocator, with habits of its own
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def _lock_folder() -> Path:
    """Where the locks are: among everybody's files, so it must be a folder and the user's own."""
    folder = Path(tempfile.gettempdir(), f"igmask-gpus-{os.geteuid()}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not own or found.st_mode & 0o077:
        raise InputError(
            f"{folder}: GPUs are locked there, but it is not a folder of yours alone (mode 700); "
            "remove it, or set TMPDIR to another place for all your jobs"
        )
    return folder


def _lock(folder: Path, gpu: str) -> bool:
    """Whether the GPU was free, and is now locked."""
    import fcntl  # which Windows lacks

    file = os.open(folder / gpu.replace("/", "-"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    _held[gpu] = file  # not inherited by programs that are started from here
    return True
