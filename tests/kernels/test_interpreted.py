"""The kernels' tests in a process that interprets them: such a process cannot compile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="that is this process")
@pytest.mark.parametrize("overflow", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_kernels_interpreted_are_their_definitions(overflow):
    """As is, and, half as fast, so that an integer that overflows is an error."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider",
         str(Path(__file__).with_name("test_triton.py"))],
        env=os.environ
        | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        | {"IGMASK_OVERFLOW": overflow},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
