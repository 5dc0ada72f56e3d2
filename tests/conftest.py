"""Small networks and images that many tests use."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from igmask import devices
from igmask.plain import FILLS

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"


# Begun first, so that no core idles at the end; what waits more than it works before the others.
# A worker takes its next file two tests before it needs it: after few and long ones, a short file.
LONGEST = "slurm compile faults cifar dag page interpreted python figures docs cli"


def pytest_collection_modifyitems(items):
    order = [f"test_{name}" for name in LONGEST.split()]
    items.sort(key=lambda item: [*order, item.path.stem].index(item.path.stem))


@pytest.fixture(autouse=True)
def _no_gpu_held():
    """Steps run within a test would hold a GPU that later tests' jobs wait for."""
    yield
    devices.release()


@pytest.fixture
def bomb():
    """Return a function that writes a PNG of some bytes which declares width × height pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    def write(path: Path, width: int, height: int) -> None:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))

    return write


@pytest.fixture(scope="session")
def cifar() -> Path:
    """1,000 CIFAR-10 images and two trained networks, where they are at hand."""
    if not SHARED.is_dir():
        pytest.skip("the CIFAR-10 sample and its trained networks are not beside the project")
    return SHARED


@pytest.fixture
def double():
    """float64 by default, which Captum's rules need to be exact."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def network() -> nn.Module:
    """A smooth classifier of 5 classes on (N, 3, H, W), in float64, with a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (
            nn.Conv2d(3, 4, 3),
            nn.Softplus(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 5),
        )
        return nn.Sequential(*layers).double().eval()


@pytest.fixture
def turned(monkeypatch):
    """A fill that is a picture, each image upside down, and its name."""

    def turn(images, mean):
        return images[:, ::-1] / (255 if images.dtype == np.uint8 else 1)

    monkeypatch.setitem(FILLS, "turned", turn)
    return "turned"


@pytest.fixture
def full_disk():
    """A folder on a disk with 64 KiB, if the machine lets us make one."""
    import subprocess
    import tempfile

    if os.geteuid() != 0:
        pytest.skip("making a tiny disk needs root")
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("this machine mounts no tmpfs")
        yield Path(folder)
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def short_trial(tmp_path, monkeypatch):
    """Work in an empty folder, where modules are found, weights would go, and trials are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("igmask.tools.trial._BUDGET_S", 0.1)
    monkeypatch.setattr("igmask.tools.estimate.start_s", lambda: 3.0)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
