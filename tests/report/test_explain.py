"""The picture of one image: what it says, and what is wrong said before the network is loaded."""

import os
import sys
from pathlib import Path

import captum.attr
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from igmask import cli
from igmask.asked import config
from igmask.cli import options
from igmask.errors import InputError
from igmask.inputs import models
from igmask.inputs.networks import LIBRARIES
from igmask.plain import FILLS
from igmask.report import explain

SIZE = 21
NETWORK = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(1444, 3))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "explain_net.py").write_text(NETWORK)
    (tmp_path / "model.yaml").write_text(f"source: explain_net:net\nsize: {SIZE}\n")
    (tmp_path / "names.txt").write_text("n01 cat\nn02 dog\nn03 emu\n")
    pixels = np.random.default_rng(0).integers(1, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path


@pytest.fixture
def panels(here, monkeypatch):
    """Return a function that runs the command and returns what it draws."""
    drawn = []
    monkeypatch.setattr(explain, "draw_explanation", lambda _, found, **__: drawn.extend(found))

    def run(*words):
        drawn.clear()
        call("--classes", "names.txt", *words)
        return drawn

    return run


def call(*words, image="photo.png", output="out.png", model="model.yaml"):
    words = ["explain", image, "--model", model, "--n-steps", "4", "-o", output, *words]
    done = CliRunner().invoke(cli.app, words)
    if done.exception is not None:
        raise done.exception
    return done


def test_a_study_of_one_model_says_which_it_is(here, monkeypatch):
    (here / "study.yaml").write_text(
        f"dataset: {{source: photos}}\nmodels: {{a: {{source: explain_net:net, size: {SIZE}}}}}"
    )
    titles = []
    monkeypatch.setattr(explain, "draw_explanation", lambda *_, title: titles.append(title))
    call("--rule", "adaptive", model="study.yaml")
    assert titles == ["photo.png, explain_net:net; rule adaptive, m = 4"]


def test_imagenets_names_are_at_hand(here, monkeypatch):
    (here / "explain_wide.py").write_text(NETWORK.replace("1444, 3", "1444, 1000"))
    (here / "wide.yaml").write_text(f"source: explain_wide:net\nsize: {SIZE}\n")
    drawn = []
    monkeypatch.setattr(explain, "draw_explanation", lambda _, found, **__: drawn.extend(found))
    call("--classes", "imagenet", "--target", "n02123045", model="wide.yaml")
    assert drawn[1][0] == "attribution\ntarget: tabby"


@pytest.fixture
def network(here):
    return models.load(config.model(options.read_settings("model.yaml")))


def photo():
    return torch.from_numpy(np.array(Image.open("photo.png"))).permute(2, 0, 1)[None] / 255


def of_squares(values):
    """(1, 3, 21, 21) → (7, 7), a square at a time."""
    return values.sum(1).view(7, 3, 7, 3).sum((1, 3)).numpy()


class Probability(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).softmax(1)


def test_area_class_and_relative_completeness_stand_in_the_picture(panels, network):
    original, attribution, *masked = panels("-p", "60", "-p", "20")
    probability = Probability(network)(photo())[0]
    name = ["n01 cat", "n02 dog", "n03 emu"][int(probability.argmax())]
    assert original[0] == "original\n100 % of the area"
    assert original[2] == f"{name}\n{100 * float(probability.max()):.0f} %"
    values, delta = captum.attr.IntegratedGradients(Probability(network)).attribute(
        photo(),
        target=int(probability.argmax()),
        n_steps=4,
        method="riemann_right",
        return_convergence_delta=True,
    )
    np.testing.assert_allclose(attribution[1], of_squares(values), atol=1e-6)
    error = float(delta.abs() / (values.sum() - delta).abs())
    assert error > 0.001
    title = f"attribution\npredicted: {name}"
    caption = f"relative completeness error\n{100 * error:.1f} %"
    assert attribution[::2] == (title, caption)
    titles = [title.split("\n") for title, _, _ in masked]
    assert [first for first, _ in titles] == ["keep 60 %", "drop 60 %", "keep 20 %", "drop 20 %"]
    for (_, area), (_, picture, _) in zip(titles, masked, strict=True):
        shown = (picture > 0).all(axis=2).mean()
        assert 0 < shown < 1
        assert area == f"{100 * shown:.0f} % of the area"


def test_a_fill_may_be_a_picture(panels, monkeypatch, turned):
    monkeypatch.setitem(FILLS, "image-mean", FILLS[turned])
    (_, whole, _), _, (_, keep, _), (_, drop, _) = panels("-p", "50", "--fill", "image-mean")
    kept = (keep == whole).all(axis=2)
    assert 0 < kept.mean() < 1
    np.testing.assert_array_equal(keep[~kept], whole[::-1][~kept])
    np.testing.assert_array_equal(drop[kept], whole[::-1][kept])


@pytest.mark.parametrize("target", ["1", "n02", "n02 dog"])
def test_target_function_baseline_and_rule_are_the_options(panels, network, target):
    words = ("--of", "logit", "--baseline", "white", "--rule", "left", "--target", target)
    _, (title, found, _), *_ = panels(*words)
    assert title == "attribution\ntarget: n02 dog"
    expected = captum.attr.IntegratedGradients(network).attribute(
        photo(), baselines=1.0, target=1, n_steps=4, method="riemann_left"
    )
    np.testing.assert_allclose(found, of_squares(expected), atol=1e-5)


def test_a_target_may_be_named_as_pictures_name_it():
    names = ["n02123045 tabby", "n02123159 tiger cat", "n03126707 crane", "n02012849 crane"]
    listed = {name: i for i, name in enumerate(names)}
    for given, number in [("tiger cat", 1), ("n02123045", 0), ("n02012849 crane", 3), ("2", 2)]:
        assert explain._class_number(given, names, listed) == number
    with pytest.raises(InputError, match=r"any of \['n03126707 crane', 'n02012849 crane'\]"):
        explain._class_number("crane", names, listed)
    with pytest.raises(InputError, match="no class has that name; did you mean 'tiger cat'"):
        explain._class_number("tigercat", names, listed)


def test_baselines_of_every_kind_and_steps_by_themselves(panels):
    for baseline in ("mean", "blur", "uniform", "photo.png"):
        panels("--baseline", baseline, "--n-baselines", "2", "--blur-sigma", "2")
    # From the image to itself nothing changes.
    assert panels("--baseline", "photo.png")[1][2] == "f does not change"
    panels("--n-steps", "auto")


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"image": "none.png"}, (), "none.png: there is no such file"),
        ({"image": "names.txt"}, (), "names.txt: not an image"),
        ({"image": "small.png"}, (), "small.png: 8×8 pixels are fewer"),
        ({"output": "out.bmp"}, (), r"out.bmp: pictures are written as .png, .*, not as '.bmp'"),
        ({"output": "out"}, (), "not as ''"),
        ({"output": "photo.png/out.png"}, (), r"photo.png/out.png: .*photo.png is a file"),
        ({"output": "folder.png"}, (), "folder.png: is a folder"),
        ({"output": "photo.png"}, (), "photo.png: is the image itself"),
        ({"output": "folder.png/../photo.png"}, (), "is the image itself"),
        ({"output": "closed/new/out.png"}, (), "the folder .*closed cannot be written to"),
        ({}, ("--classes", "none.txt"), "there is no file 'none.txt'"),
        ({}, ("--classes", "ImageNet"), "did you mean 'imagenet'"),
        ({}, ("--skip", "0.01", "--rule", "adaptive"), "skip leaves out steps of a fixed rule"),
        ({}, ("--n-steps", "auto", "--rule", "middle"), "not 'middle'"),
        ({"model": "study.yaml"}, (), "study.yaml is of a study, of the models a, b; put what"),
        ({}, ("--target", "02 dog"), "no class has that name; did you mean"),
        ({}, ("--target", "whale"), "no class has that name; give its number"),
        ({}, ("--target", "3"), "target 3: the classes are 0 … 2"),
        ({}, ("--baseline", "none.png"), "the baseline none.png"),
        ({}, ("--rule", "trapezoid", "--n-steps", "1"), "n_steps of rule 'trapezoid'"),
    ],
)
def test_what_is_cheap_is_seen_first(here, monkeypatch, changes, words, message):
    def load(*_, **__):
        raise AssertionError("the network is loaded")

    monkeypatch.setattr(models, "load", load)
    access = os.access
    monkeypatch.setattr(  # root may write everywhere
        os, "access", lambda path, mode: Path(path).name != "closed" and access(path, mode)
    )
    (here / "study.yaml").write_text("models: {a: {source: resnet18}, b: {source: resnet50}}")
    (here / "folder.png").mkdir()
    (here / "closed").mkdir()
    Image.new("RGB", (8, 8)).save(here / "small.png")
    with pytest.raises(InputError, match=message):
        call("--classes", "names.txt", *words, **changes)


def test_a_name_that_two_classes_have_is_no_target(here, monkeypatch):
    names = ["crane", "emu", "crane"]  # the bird and the machine, as in ImageNet
    library = LIBRARIES["torchvision"]._replace(class_names=lambda _: names)
    monkeypatch.setattr("igmask.report.explain.library_of", lambda _: library)
    with pytest.raises(InputError, match=r"'crane': the classes \[0, 2\] have that name"):
        call("--target", "crane")
    call("--target", "emu")


def test_a_class_of_a_network_without_names_is_a_number(here, monkeypatch):
    with pytest.raises(InputError, match="the classes have no names; give a number"):
        call("--target", "cat")
    with pytest.raises(InputError, match="the classes of the model are 0 … 2"):
        call("--target", "3")
    call("--target", "2")


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("a.png", b"\x89PNG"),
        ("a.PNG", b"\x89PNG"),
        ("a.pdf", b"%PDF"),
        ("a.svg", b"<?xml"),
        ("a.jpg", b"\xff\xd8\xff"),
        ("a.webp", b"RIFF"),
    ],
)
def test_the_name_says_the_format_and_the_same_content_makes_the_same_bytes(
    here, monkeypatch, name, start
):
    call(output=f"new/{name}")
    written = (here / "new" / name).read_bytes()
    assert written.startswith(start)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")  # as if made on another day
    call(output=f"new/{name}")
    assert (here / "new" / name).read_bytes() == written


def test_headings_of_two_lines_stay_below_the_title(here, monkeypatch):
    drawn, save = [], Figure.savefig

    def measured(figure, *arguments, **options):
        def measure(event):
            texts = [text for axes in figure.axes for text in axes.texts]
            of = [text for text in texts if text.get_verticalalignment() == "bottom"]
            tops = [text.get_window_extent(event.renderer).y1 for text in of]
            drawn.append((tops, figure._suptitle.get_window_extent(event.renderer).y0))

        figure.canvas.mpl_connect("draw_event", measure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", measured)
    call("-p", "50", "-p", "20")
    tops, bottom = drawn[-1]
    assert len(tops) == 6
    assert max(tops) < bottom


@pytest.mark.parametrize(
    ("layers", "words", "message"),
    [
        (", nn.Softmax(dim=1)", (), "probabilities already"),
        (", nn.Softmax(dim=1)", ("--of", "logit"), "probabilities already"),
        (", nn.Linear(3, 1)", ("--of", "logit"), "has one output"),
        (", nn.Linear(3, 4)", (), "names.txt lists 3 classes, and the model has 4"),
    ],
)
def test_a_network_whose_probabilities_would_be_wrong_is_not_explained(
    here, layers, words, message
):
    (here / "explain_net.py").write_text(NETWORK.replace("3))", f"3){layers})"))
    sys.modules.pop("explain_net", None)
    with pytest.raises(InputError, match=message):
        call("--classes", "names.txt", *words)
    sys.modules.pop("explain_net", None)


def test_random_weights_are_said(here):
    sys.modules.pop("explain_net", None)
    assert "warning: the network" in call().output
