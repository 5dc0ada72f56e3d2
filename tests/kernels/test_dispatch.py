"""Which implementation of an operation runs."""

import os
import subprocess
import sys

import pytest
import torch

from igmask.kernels import has_kernel

ASK = """
import torch
from igmask.kernels import has_kernel, path_points
cpu, cuda = torch.device("cpu"), torch.device("cuda")
x, spans = torch.rand(1, 3), torch.tensor([[0, 1]])
assert path_points(x, x, spans, torch.ones(1)).equal(x)
print(has_kernel(cpu), has_kernel(cuda))
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "False True"),
        ({"TRITON_INTERPRET": "1"}, "True False"),
        ({"IGMASK_KERNELS": "reference"}, "False False"),
        ({"IGMASK_KERNELS": "reference", "TRITON_INTERPRET": "1"}, "False False"),
    ],
    ids=["plain", "interpreted", "reference", "reference wins"],
)
def test_the_environment_says_what_runs(environment, expected):
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == expected.split()


def test_without_triton_the_definitions_run_everywhere():
    hidden = "import sys; sys.modules['triton'] = None\n" + ASK
    command = [sys.executable, "-c", hidden]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_on_a_cpu_the_definition_runs():
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("here kernels are interpreted")
    assert not has_kernel(torch.device("cpu"))
