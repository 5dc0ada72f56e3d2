"""timm's networks by name: as timm itself makes and describes them. Nothing is fetched."""

import re
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import igmask
from igmask import cli
from igmask.asked import config
from igmask.errors import InputError
from igmask.inputs import models
from igmask.inputs.decode import fit
from igmask.inputs.networks import timm_

timm = pytest.importorskip("timm")

NAME = "mobilenetv3_small_050.lamb_in1k"


@pytest.fixture
def photograph():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "name",
    [
        NAME,
        "efficientvit_b0.r224_in1k",
        "vit_tiny_patch16_224",
        "vit_base_patch16_siglip_224.webli",
        "convnext_tiny.in12k_ft_in1k_384",
    ],
)
def test_images_come_as_timm_itself_transforms_them(name, photograph):
    model = models.complete(config.model({"source": f"timm/{name}", "weights": "none"}))
    wanted = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    expected = timm.data.create_transform(**wanted)(photograph)
    pixels = torch.from_numpy(fit(photograph, model.geometry).copy()).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (model.mean, model.std))
    torch.testing.assert_close((pixels - mean) / std, expected, rtol=0, atol=1e-5)


def test_the_network_is_timms_with_weights_of_a_file(tmp_path, photograph):
    theirs = timm.create_model("mobilenetv3_small_050").eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    network = igmask.load_model(f"timm/{NAME}", weights=str(tmp_path / "w.pth"))
    x = torch.rand(2, 3, 224, 224)
    torch.testing.assert_close(network(x), theirs((x - network[0].mean) / network[0].std))
    photograph.save(tmp_path / "i.png")
    settings = f'{{"source": "timm/{NAME}", "weights": "{tmp_path}/w.pth"}}'
    words = ["explain", str(tmp_path / "i.png"), "--model", settings, "-p", "50", "--n-steps", "2"]
    done = CliRunner().invoke(cli.app, [*words, "-o", str(tmp_path / "o.png")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "o.png").is_file()


def test_size_and_arguments_may_be_others():
    model = config.model({"source": f"timm/{NAME}", "weights": "none", "size": 128,
                          "arguments": {"num_classes": 7}})  # fmt: skip
    whole = models.complete(model)
    assert (whole.size, whole.resize) == (128, 146)  # timm's crop, 0.875
    assert models.n_classes(models.load(model), model) == 7
    assert timm_.class_names(model) == []


def test_classes_have_names():
    names = timm_.class_names(config.model({"source": f"timm/{NAME}"}))
    assert len(names) == 1000
    assert names[0].startswith("tench")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", "timm has no network 'resnet5O'; did you mean 'resnet50"),
        ("resnet50.a1_in2k", r"did you mean 'resnet50\.a1_in1k"),
        ("efficientnet_b0.", "timm has no network 'efficientnet_b0.'; did you mean 'effic"),
    ],
)
def test_a_name_that_timm_does_not_have_is_named(name, message):
    with pytest.raises(InputError, match=message):
        models.complete(config.model({"source": f"timm/{name}"}))


def test_names_of_before_are_refused_with_those_of_now():
    for name in ("tf_efficientnet_b0_ns", "vit_base_patch16_224_in21k", "adv_inception_v3"):
        with pytest.warns(UserWarning, match="Mapping deprecated model name"):
            of_timm = timm.create_model(name).pretrained_cfg
        now = f"{of_timm['architecture']}.{of_timm['tag']}"
        with pytest.raises(
            InputError, match=rf"timm calls {name} .*; write timm/{re.escape(now)}$"
        ):
            models.complete(config.model({"source": f"timm/{name}"}))
        assert (
            models.complete(config.model({"source": f"timm/{now}"})).size
            == of_timm["input_size"][1]
        )


@pytest.mark.parametrize("key", ["pretrained_cfg", "pretrained_cfg_overlay"])
def test_arguments_that_choose_another_description_are_refused(key):
    value = {"mean": [0, 0, 0]} if "overlay" in key else "ap_in1k"
    model = config.model({"source": "timm/tf_efficientnet_b0", "arguments": {key: value}})
    with pytest.raises(
        InputError, match=rf"the argument '{key}' .*name the weights' tag in the so"
    ):
        models.complete(model)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install 'igmask\[timm\]'"):
        models.complete(config.model({"source": f"timm/{NAME}"}))


def test_weights_that_cannot_be_fetched_are_named(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(InputError, match=r"fetched once; `weights` takes a file .*no route"):
        models.load(config.model({"source": f"timm/{NAME}"}))
