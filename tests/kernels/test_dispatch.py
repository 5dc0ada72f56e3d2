"""Which implementation of an operation runs."""

import os

import pytest
import torch
from running import python

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
def test_the_environment_says_what_runs(environment, expected, tmp_path):
    pytest.importorskip("triton")
    plain = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = python(ASK, folder=tmp_path, imports="torch", env=plain | environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected.split()


def test_without_triton_the_definitions_run_everywhere(tmp_path):
    hidden = "import sys; sys.modules['triton'] = None\n" + ASK
    done = python(hidden, folder=tmp_path, imports="torch")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False"]


def test_on_a_cpu_the_definition_runs():
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("here kernels are interpreted")
    assert not has_kernel(torch.device("cpu"))
