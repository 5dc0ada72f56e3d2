"""Captum's own tests with our class in the place of theirs, where a checkout of them is at hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Run before the tests are imported: whatever of Captum has the class by then gets ours.
SWAP = """
import sys
import captum.attr
import pytest
from captum.attr._core import integrated_gradients
from igmask import IntegratedGradients

theirs = integrated_gradients.IntegratedGradients
for name, module in list(sys.modules.items()):
    if name.startswith("captum") and getattr(module, "IntegratedGradients", None) is theirs:
        module.IntegratedGradients = IntegratedGradients

from captum.testing.attr.helpers.test_config import config

assert any(IntegratedGradients in entry["algorithms"] for entry in config)
assert not any(theirs in entry["algorithms"] for entry in config)
sys.exit(pytest.main(sys.argv[1:]))
"""
FILES = (
    "attr/test_integrated_gradients_basic.py",
    "attr/test_integrated_gradients_classification.py",
    "attr/layer/test_layer_integrated_gradients.py",
    "attr/neuron/test_neuron_integrated_gradients.py",
    "attr/test_input_layer_wrapper.py",
    "attr/test_targets.py",
    "attr/test_hook_removal.py",
)


@pytest.mark.parametrize("name", FILES)
def test_captums_own_tests_pass(name):
    folder = os.environ.get("CAPTUM_TESTS")
    if not folder:
        pytest.skip("CAPTUM_TESTS names no checkout of Captum's folder tests/")
    path = Path(folder).resolve() / name
    assert path.is_file(), f"{path} is missing"
    command = [
        sys.executable,
        "-c",
        SWAP,
        str(path),
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore",
    ]
    done = subprocess.run(
        command, cwd=path.parents[name.count("/") + 1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
