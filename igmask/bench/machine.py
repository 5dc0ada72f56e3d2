"""The machine that a benchmark ran on, as its pages name it."""

import contextlib
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def describe(device: str, threads: int, packages: tuple[str, ...]) -> dict[str, Any]:
    """Return what was computed on, and with which versions of the packages, as far as installed."""
    on_gpu = device.startswith("cuda")
    versions = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    if on_gpu:
        versions |= {"CUDA": torch.version.cuda or f"ROCm {torch.version.hip}"}
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else _cpu_name(),
        "kind": "cuda" if on_gpu else "cpu",
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                # The name alone says little on a rented machine.
                return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
    return platform.processor() or "unknown CPU"
