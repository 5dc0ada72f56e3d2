"""What is installed is all there is: a room that a wheel leaves out is missed by users alone."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from running import ROOT


@pytest.mark.external
def test_a_wheel_holds_every_file_of_the_package(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "igmask", source / "igmask", symlinks=True)
    shutil.copytree(ROOT / "kernels", source / "kernels")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, source]
    built = subprocess.run(command, capture_output=True, text=True)
    if "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("pip reaches no registry to build with")
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("igmask/")}
    rooms = [ROOT / "igmask", ROOT / "igmask" / "kernels"]  # rglob follows no link
    there = {
        path.relative_to(ROOT).as_posix()
        for room in rooms
        for path in room.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == there
