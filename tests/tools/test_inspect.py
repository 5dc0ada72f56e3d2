"""What the engine says of a network."""

import re

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from igmask import cli
from igmask.tools.inspect import inspect, report


def test_shares_and_memory_of_a_network_counted_by_hand():
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 5))
    found = inspect(nn.Sequential(*layers).eval(), torch.rand(2, 3, 9, 9))
    assert found.stem == ("1 (BatchNorm2d)",)
    assert found.trunk == ("2 (ReLU)",)
    assert found.stem_flops == 2 * 4 * 7 * 7 * 27
    assert found.trunk_flops == 2 * 196 * 5
    assert found.n_folded == 1
    assert found.image_bytes == 3 * 4 * 196
    assert found.point_bytes >= 2 * 4 * 196  # the point, and ReLU's result
    assert found.batch_size == 64
    text = report("mine", found, (3, 9, 9))
    assert "84.4% of it in the stem" in text
    assert re.search(r"graph +torch.fx, \d\S* s$", text, re.MULTILINE)


def test_a_network_without_a_stem_says_why():
    found = inspect(
        nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)), torch.rand(1, 3, 3, 3)
    )
    assert found.stem == ()
    assert found.stem_share == 0
    assert "none: its first operation is not affine" in report("mine", found, (3, 3, 3))


def test_the_command_needs_no_weights():
    result = CliRunner().invoke(cli.app, ["inspect", "squeezenet1_1", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "input 3 × 224 × 224" in result.output
    assert "features.0 (Conv2d)" in result.output


def test_the_command_fetches_nothing_of_timm(monkeypatch):
    timm = pytest.importorskip("timm")
    made, create = [], timm.create_model

    def noting(name, **options):
        made.append(options.pop("pretrained"))
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", noting)
    words = ["inspect", "timm/mobilenetv3_small_050", "--size", "64", "--device", "cpu"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    assert "input 3 × 64 × 64" in result.output
    assert made == [False]


def test_the_command_takes_an_entry_of_the_output(tmp_path, monkeypatch):
    (tmp_path / "inspect_net.py").write_text(
        "from torch import nn\n"
        "class Two(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.first, self.head = nn.Conv2d(3, 4, 8), nn.Linear(4, 5)\n"
        "    def forward(self, x):\n"
        "        return None, self.head(self.first(x).flatten(1).relu())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = '{"source": "inspect_net:Two", "size": 8, "output": 1}'
    result = CliRunner().invoke(cli.app, ["inspect", settings, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "stem ends at" in result.output
    assert "flatten" in result.output


def test_the_command_takes_networks_of_ones_own():
    settings = '{"source": "igmask.zoo:cifar_resnet", "arguments": {"depth": 20}, "size": 32}'
    result = CliRunner().invoke(cli.app, ["inspect", settings, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "3 × 32 × 32" in result.output
