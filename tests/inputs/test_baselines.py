"""Baselines by name, from a file, and a function of one's own."""

import shlex
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import gaussian_blur

from igmask.asked.settings import Geometry
from igmask.errors import InputError
from igmask.inputs import baselines, contents
from igmask.plan import Workflow

MODULE = """
import torch

def grey(images, **_):
    return torch.full_like(images, 0.5)

def noise(images, *, attribution, positions, seed, **_):
    shape = (attribution.n_baselines, *images.shape)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed + int(positions[0])))

def picky(images):
    return images

def one(images, **_):
    return images[0]

def number(images, **_):
    return 0
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with functions and a picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_baselines.py").write_text(MODULE)
    Image.new("RGB", (9, 9), (0, 51, 255)).save(tmp_path / "blue.png")
    return tmp_path


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def made(name, images, positions=(4, 7), seed=3):
    return baselines.make(
        SimpleNamespace(baseline=name, blur_sigma=2, n_baselines=3),
        images,
        mean=(0.1, 0.2, 0.3),
        geometry=Geometry(8, None, "bilinear"),
        positions=np.array(positions),
        seed=seed,
    )


@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("black", (0, 0, 0)),
        ("white", (1, 1, 1)),
        ("mean", (0.1, 0.2, 0.3)),
        ("blue.png", (0, 0.2, 1)),
        ("own_baselines:grey", (0.5, 0.5, 0.5)),
    ],
)
def test_a_baseline_of_one_colour(here, images, name, colour):
    expected = (
        torch.tensor(colour, dtype=torch.float32).view(3, 1, 1).expand_as(images).unsqueeze(0)
    )
    torch.testing.assert_close(made(name, images), expected)


def test_blur_is_of_the_image_itself(images):
    assert made("blur", images).equal(gaussian_blur(images, [13, 13], [2, 2]).unsqueeze(0))


@pytest.mark.parametrize("name", ["uniform", "own_baselines:noise"])
def test_noise_is_of_the_seed_and_the_place(here, images, name):
    first, again = made(name, images), made(name, images)
    assert first.shape == (3, *images.shape)
    assert first.equal(again)
    assert not first.equal(made(name, images, seed=4))
    assert not first.equal(made(name, images, positions=(5, 7)))


def test_noise_of_an_image_does_not_depend_on_its_batch(images):
    alone = made("uniform", images[1:], positions=(7,))
    assert alone.equal(made("uniform", images)[:, 1:])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_baselines:picky", "own_baselines:picky: TypeError: .* unexpected keyword argument"),
        (
            "own_baselines:one",
            r"own_baselines:one returned Tensor \(3, 8, 8\), not a tensor \(2, 3, 8, 8\) like the",
        ),
        ("own_baselines:number", "own_baselines:number returned int, not a tensor"),
        ("own_baselines:nothing", "own_baselines:nothing: AttributeError"),
        ("no_baselines:grey", "no_baselines:grey: ModuleNotFoundError"),
        ("no.png", "the baseline no.png: no.png: there is no such file"),
    ],
)
def test_a_baseline_that_is_wrong_is_named(here, images, name, message):
    with pytest.raises(InputError, match=message):
        made(name, images)


@pytest.mark.parametrize("name", ["no_baselines:grey", "own_baselines:nothing", "no.png"])
def test_a_baseline_that_cannot_be_had_is_seen_before(here, name):
    geometry = Geometry(8, None, "bilinear")
    for good in ("black", "uniform", "blue.png", "own_baselines:grey"):
        baselines.check(good, geometry)
    with pytest.raises(InputError):
        baselines.check(name, geometry)


def test_jobs_of_a_baseline_of_ones_own_are_told_all_that_it_may_need(here):
    study = {
        "dataset": {"source": "demo"},
        "models": {"a": {"source": "m:f", "size": 8, "weights": "none"}},
        "attribution": {"baseline": "own_baselines:noise"},
        "seed": 5,
    }
    flow, of = Workflow(study), SimpleNamespace(model="a")
    words = shlex.split(flow.words("attribute")(of))
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given["--baseline"] == "own_baselines:noise"
    assert (given["--seed"], given["--n-baselines"], given["--blur-sigma"]) == ("5", "10", "10")
    before = flow.baseline_contents(of)
    assert before.startswith("own_baselines.py: ")
    (here / "own_baselines.py").write_text(f"{MODULE}\n# another\n")
    contents._digest.cache_clear()
    assert flow.baseline_contents(of) != before
