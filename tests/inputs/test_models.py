"""Networks by name or callable, weights of every kind, and what is wrong with them."""

import hashlib
import pickle
import subprocess
import warnings

import numpy as np
import pytest
import torch
import torchvision.models
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import functional as tv

from igmask.asked import config
from igmask.engine.ig import integrated_gradients
from igmask.engine.stem import split
from igmask.errors import InputError
from igmask.inputs import models, weights

MODULE = """
from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import nn

def tiny(classes=4, channels=3):
    return nn.Sequential(nn.Conv2d(channels, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, classes))

def wrong_shape():
    return nn.Conv2d(3, 4, 3)

@dataclass
class Said:
    logits: torch.Tensor
    aux: object

Named = namedtuple("Named", "logits aux")

class Several(nn.Module):
    # an auxiliary head, and its answer in the output beside the logits
    def __init__(self, pack):
        super().__init__()
        self.stem, self.aux = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 6)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(144, 5)
        self.pack = pack

    def forward(self, x):
        u = self.norm(self.stem(x)).relu()
        return self.pack(self.head(u.flatten(1)), self.aux(u).flatten(1))

def several(kind):
    packs = {
        "plain": lambda y, aux: y,
        "tuple": lambda y, aux: (aux, y),
        "list": lambda y, aux: [y, {"of": aux}],
        "dict": lambda y, aux: {"aux": aux, "logits": y},
        "dataclass": Said,
        "named": Named,
    }
    return Several(packs[kind])

def no_module():
    return 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a module of networks beside the configuration."""
    (tmp_path / "my_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def tiny(**settings):
    return config.model({"source": "my_nets:tiny", "size": 8, **settings})


def test_normalisation_equals_torchvisions():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = torch.rand(2, 3, 5, 5)
    expected = tv.normalize(images, list(mean), list(std))
    torch.testing.assert_close(models.Normalize(mean, std)(images), expected)


@pytest.mark.parametrize(
    ("name", "size", "resize"),
    [("vgg16", 224, 256), ("inception_v3", 299, 342), ("resnet50", 224, 256)],
)
def test_torchvisions_weights_describe_the_input(name, size, resize):
    model = models.complete(config.model({"source": name, "weights": "IMAGENET1K_V1"}))
    assert (model.size, model.resize, model.interpolation) == (size, resize, "bilinear")
    assert model.mean == (0.485, 0.456, 0.406)
    assert model.std == (0.229, 0.224, 0.225)


def test_a_given_input_takes_precedence():
    settings = {"source": "resnet18", "weights": "IMAGENET1K_V1", "size": 64, "mean": [0, 0, 0]}
    model = models.complete(config.model(settings))
    assert (model.size, model.resize, model.mean) == (64, 256 * 64 // 224, (0, 0, 0))
    assert model.std == (0.229, 0.224, 0.225)


def test_a_torchvision_network_without_weights_is_refused():
    with pytest.raises(InputError, match=r"resnet18: no `weights`.*weights: none says"):
        models.load(config.model({"source": "resnet18", "size": 64}))


def test_random_weights_that_are_meant_are_the_same_in_every_job():
    model = config.model({"source": "googlenet", "weights": "none", "size": 32})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torchvision warns of how it draws them
        one, two = (models.load(model).state_dict() for _ in range(2))
    assert all(one[name].equal(two[name]) for name in one)


@pytest.mark.parametrize("key", ["mean", "std"])
def test_a_normalisation_of_bytes_is_refused(here, key):
    with pytest.raises(InputError, match=rf"my_nets:tiny: {key}: \[58, 57, 57\] is of images in"):
        models.load(tiny(**{key: [58, 57, 57]}))
    models.load(tiny(mean=[1, 1, 1], std=[1, 1, 1]))


def test_a_callable_without_weights_is_the_same_in_every_job(here):
    before = torch.random.get_rng_state()
    one, two = (models.load(tiny()).state_dict() for _ in range(2))
    assert all(one[name].equal(two[name]) for name in one)
    other = models.build(tiny(), seed=1).state_dict()
    assert not one["1.0.weight"].equal(other["0.weight"])
    assert torch.random.get_rng_state().equal(before)


def test_torchvisions_weights_are_loaded_with_tensors_only(monkeypatch):
    seen = {}

    def get_model(name, weights, **arguments):
        import os

        seen.update(name=name, weights=weights, safe=os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"])
        return torchvision.models.resnet18(weights=None)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    models.build(config.model({"source": "resnet18", "weights": "IMAGENET1K_V1"}))
    import os

    assert seen["safe"] == "1"
    assert seen["weights"] is torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_failed_download_says_where_to_put_the_file(monkeypatch, tmp_path):
    from urllib.error import URLError

    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torchvision.models, "get_model", refuse)
    with pytest.raises(InputError, match=r"resnet18-f37072fd\.pth could not be fetched.*save it"):
        models.build(config.model({"source": "resnet18", "weights": "IMAGENET1K_V1"}))
    with pytest.raises(InputError, match=r"example\.org/w\.pth could not be fetched.*save it"):
        weights.weights_file(tiny(weights="https://example.org/w.pth"))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(("key", "prefix"), [(None, ""), ("state_dict", "module.")])
def test_weights_of_ones_own_callable(here, suffix, key, prefix):
    network = models.build(tiny(), seed=5)
    weights = {prefix + name: value for name, value in network.state_dict().items()}
    path = here / f"weights 'ü'.{suffix}"
    if suffix == "pth":
        torch.save({key: weights} if key else weights, path)
    else:
        key = None
        save_file(weights, path)
    loaded = models.load(tiny(weights=str(path), key=key, prefix=prefix))
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(loaded(images), network(images))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_weights_by_url_are_fetched_once(here, monkeypatch):
    content = models.build(tiny()).state_dict()
    fetched = []

    def download(url, path, *args, **kwargs):
        fetched.append(url)
        torch.save(content, path)

    monkeypatch.setenv("TORCH_HOME", str(here / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        models.load(tiny(weights="https://example.org/some/w.pth"))
    assert fetched == ["https://example.org/some/w.pth"]
    models.load(tiny(weights="https://example.org/another/w.pth"))
    assert len(fetched) == 2


def test_a_hash_is_checked(here):
    torch.save(models.build(tiny()).state_dict(), here / "w.pth")
    digest = hashlib.sha256((here / "w.pth").read_bytes()).hexdigest()
    models.load(tiny(weights="w.pth", sha256=digest))
    with pytest.raises(InputError, match="its sha256 is"):
        models.load(tiny(weights="w.pth", sha256="0" * 64))


def test_arguments_reach_the_callable(here):
    assert models.n_classes(models.load(tiny(arguments={"classes": 7})), tiny()) == 7


def test_weights_that_do_not_fit_are_listed(here):
    weights = models.build(tiny()).state_dict()
    weights["4.extra"] = torch.zeros(1)
    weights["3.weight"] = torch.zeros(9, 72)
    del weights["0.bias"]
    torch.save(weights, here / "w.pth")
    with pytest.raises(InputError) as caught:
        models.load(tiny(weights="w.pth"))
    message = str(caught.value)
    assert "missing: 0.bias" in message
    assert "unexpected: 4.extra" in message
    assert "3.weight (9, 72) instead of (4, 72)" in message


def test_a_forgotten_prefix_or_class_count_is_suggested(here):
    weights = models.build(tiny()).state_dict()
    torch.save({f"module.{name}": value for name, value in weights.items()}, here / "w.pth")
    with pytest.raises(InputError, match=r"set `prefix` to 'module\.'"):
        models.load(tiny(weights="w.pth"))
    torch.save(weights, here / "w.pth")
    with pytest.raises(InputError, match="the right number of classes"):
        models.load(tiny(weights="w.pth", arguments={"classes": 7}))


def test_a_forgotten_key_or_a_wrong_one_is_named(here):
    torch.save({"state_dict": models.build(tiny()).state_dict(), "epoch": 3}, here / "w.pth")
    with pytest.raises(InputError, match=r"set `key` to one of \['state_dict'\]"):
        models.load(tiny(weights="w.pth"))
    with pytest.raises(InputError, match=r"no entry 'model'; it has \['state_dict', 'epoch'\]"):
        models.load(tiny(weights="w.pth", key="model"))


class Payload:
    """What a hostile checkpoint would run."""

    def __reduce__(self):
        return subprocess.check_call, (["touch", "owned"],)


def test_pickles_of_more_than_tensors_are_refused(here):
    torch.save({"w": Payload()}, here / "w.pth")
    with pytest.raises(InputError, match="refused"):
        models.load(tiny(weights="w.pth"))
    (here / "w.pth").write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(InputError, match="refused"):
        models.load(tiny(weights="w.pth"))
    assert not (here / "owned").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_files_that_are_no_checkpoint_are_named(here, name):
    (here / name).write_text("hello")
    with pytest.raises(InputError, match=name):
        models.load(tiny(weights=name))
    (here / name).write_bytes(b"")
    with pytest.raises(InputError, match=name):
        models.load(tiny(weights=name))


def test_nan_in_weights_is_named(here):
    weights = models.build(tiny()).state_dict()
    weights["3.bias"][1] = float("nan")
    torch.save(weights, here / "w.pth")
    with pytest.raises(InputError, match=r"NaN or infinite weights in \['3.bias'\]"):
        models.load(tiny(weights="w.pth"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "my_nets:nothing"}, "my_nets:nothing"),
        ({"source": "no_such_module:f"}, "no_such_module"),
        ({"source": "my_nets:tiny", "arguments": {"colour": 1}}, "colour"),
        ({"source": "my_nets:no_module"}, "returned int"),
        ({"source": "resnet5O"}, r"no classifier 'resnet5O'; did you mean 'resnet50'"),
        ({"source": "fcn_resnet50"}, "no classifier"),
        (
            {"source": "resnet50", "weights": "IMAGENET1K_V1", "size": 300, "resize": 100},
            "less than",
        ),
        ({"source": "resnet50", "weights": "IMAGENET1K_V9"}, "has no weights 'IMAGENET1K_V9'"),
        ({"source": "resnet18", "arguments": {"colour": 1}}, "colour"),
    ],
)
def test_models_that_cannot_be_built_are_named(here, settings, message):
    with pytest.raises(InputError, match=message):
        models.load(config.model({"size": 8, **settings}))


def test_an_output_that_is_not_classes_is_an_error(here):
    model = config.model({"source": "my_nets:wrong_shape", "size": 8})
    with pytest.raises(InputError, match=r"\[N, classes\] = \[2, …\], got \(2, 4, 6, 6\)"):
        models.n_classes(models.load(model), model)


def several(kind, output=None):
    settings = {"source": "my_nets:several", "arguments": {"kind": kind}, "size": 8}
    return models.load(config.model(settings | {"output": output}))


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("tuple", 1), ("list", 0), ("dict", "logits"), ("dict", 1), ("dataclass", "logits"),
        ("dataclass", 0), ("named", "logits"), ("named", 0),
    ],
)  # fmt: skip
def test_an_entry_of_the_output_is_attributed_as_if_it_were_all(here, kind, output):
    plain, found = several("plain"), several(kind, output)
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert found(images).equal(plain(images))
    ours, theirs = (split(network, images) for network in (found, plain))
    assert theirs.ends == ("1.norm (BatchNorm2d)",)
    assert tuple(end.replace("1.network.", "1.") for end in ours.ends) == theirs.ends
    assert (ours.begins, ours.n_folded, ours.why_not) == (theirs.begins, theirs.n_folded, "")
    assert [node.op for node in ours.trunk.graph.nodes] == [
        node.op for node in theirs.trunk.graph.nodes
    ]
    for one, other in zip(ours.stem(images), theirs.stem(images), strict=True):
        assert one.equal(other)
    for of in ("probability", "logit"):
        values = [integrated_gradients(x, images, n_steps=9, of=of).values for x in (found, plain)]
        assert values[0].equal(values[1])


@pytest.mark.parametrize(
    ("kind", "output", "message"),
    [
        (
            "dict",
            "logit",
            r"'logit', .*dict, which has no .* aux \(Tensor \(\d, 5\)\), logits \(Tensor",
        ),
        (
            "dataclass",
            "y",
            r"'y', .*Said, .* logits \(Tensor \(\d, 5\)\), aux \(Tensor \(\d, 5\)\)",
        ),
        (
            "tuple",
            "logits",
            r"'logits', .*tuple, which has no .* 0 \(Tensor \(\d, 5\)\), 1 \(Tensor",
        ),
        ("tuple", 2, r"`output` is 2, .* 0 \(Tensor"),
        ("list", 1, r"`output` is 1, .*list, which has no such tensor, but .*, 1 \(dict\)"),
        ("plain", 0, r"Tensor \(\d, 5\), which has no entries; leave `output` out"),
    ],
)
def test_an_entry_that_is_not_there_names_those_that_are(here, kind, output, message):
    model = config.model({"source": "my_nets:several", "size": 8})
    with pytest.raises(InputError, match=message):
        models.n_classes(several(kind, output), model)
    with pytest.raises(InputError, match=message):
        integrated_gradients(several(kind, output), torch.rand(2, 3, 8, 8))


def test_pixels_are_scaled_and_channels_last():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    found = models.pixels(images)
    np.testing.assert_array_equal(found.numpy(), images.transpose(0, 3, 1, 2) / np.float32(255))
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("depth", "file", "top1"), [(20, "resnet20-12fca82f.th", 80.4)])
def test_trained_cifar_networks(cifar, depth, file, top1):
    settings = {
        "source": "igmask.zoo:cifar_resnet",
        "arguments": {"depth": depth},
        "weights": str(cifar / "weights" / file),
        "key": "state_dict",
        "prefix": "module.",
        "size": 32,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    network = models.load(config.model(settings))
    from PIL import Image

    files = sorted((cifar / "test").glob("*/*.jpg"))
    classes = sorted({file.parent.name for file in files})
    images = np.stack([np.asarray(Image.open(file)) for file in files])
    labels = torch.tensor([classes.index(file.parent.name) for file in files])
    with torch.no_grad():
        predicted = network(models.pixels(images)).argmax(1)
    assert 100 * (predicted == labels).double().mean() == pytest.approx(top1, abs=0.3)


def test_inputs_are_normalised_before_the_network(here):
    model = tiny(mean=[0.1, 0.2, 0.3], std=[1, 2, 4])
    network = models.with_input(nn.Identity(), model)
    expected = (torch.ones(3) - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(network(torch.ones(1, 3, 2, 2))[0, :, 0, 0], expected)
