"""igmask from Python: networks and images, pictures, a study started and read."""

import copy
import io
import pickle
import shutil
import warnings
from importlib import metadata

import captum.attr
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from running import environment
from torchvision.models import ResNet18_Weights
from torchvision.transforms import functional

import igmask
from igmask import arrays
from igmask.errors import InputError
from igmask.inputs import models
from igmask.plain import unpack

NETWORK = """
import torch
from torch import nn

def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 2)
        )
"""
STUDY = {
    "dataset": {"source": "folder", "root": "images"},
    "models": {"net": {"source": "python_net:net", "size": 16}},
    "attribution": {"n_steps": 4},
    "selection": {"p": [80, 50]},
    "masking": {"fills": ["black", "mean"]},
    "curves": {"points": 3},
    "statistics": {"replicates": 100, "probe": False},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that `run` has run, of a configuration in Python."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    for i in range(6):
        place = folder / "images" / "ab"[i % 2] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place)
    (folder / "python_net.py").write_text(NETWORK)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():  # in which jobs start sooner
            patch.setenv(name, value)
        return folder, igmask.run(STUDY, cores=2, folder=folder)


def test_a_study_is_run_and_read(finished):
    folder, study = finished
    assert study.models == ["net"]
    assert len(study.accuracy) == 1 + 2 * 2 * 2 * 2  # modes, p, fills, and random squares
    keep = study.records("net", "keep", 50, fill="mean")
    path = folder / "results/folder/models/net/records/keep-50-mean.parquet"
    pd.testing.assert_frame_equal(keep, arrays.read_records(path)[0])
    assert study.records("net", "drop", 80, mask="random")["draw"].max() == 4
    assert len(study.records("net")) == 6
    packed = arrays.read_array(folder / "results/folder/models/net/masks/80.npy")
    np.testing.assert_array_equal(study.masks("net", 80), unpack(packed, (6, 6)))
    shown = np.asarray(Image.open(folder / "images/b/3.png"))
    np.testing.assert_array_equal(study.image("b/3.png"), shown)
    np.testing.assert_array_equal(study.image("3.png", "net"), shown)
    assert study.images("net")["name"].tolist()[0] == "a/0.png"
    assert study.attribution("3.png").shape == (6, 6)
    assert set(study.curves["mode"]) == {"keep", "drop"}
    assert study.classes() == ["a", "b"]
    assert {*study.comparisons["first"]} >= {"keep-50-black"}
    assert "net" in repr(study)


def test_a_study_that_is_done_is_not_done_again(finished, tmp_path):
    folder, _ = finished
    path = folder / "results/folder/models/net/scores/1-of-1.npy"
    before = path.stat().st_mtime_ns
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(STUDY))
    igmask.run(file, cores=1, folder=folder)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.records("nett"), "no network 'nett', but net; did you mean 'net'"),
        (lambda s: s.records("net", "Keep", 50), "no mode 'Keep'; it has original, keep, drop"),
        (lambda s: s.records("net", "keep", 50, mask="randm"), "the masks selection, random"),
        (lambda s: s.records("net", "keep"), "need p"),
        (
            lambda s: s.records("net", "keep", 30),
            "no such records; of keep it has p = 80, 50, the fills bl",
        ),
        (lambda s: s.records("net", "keep", 50, fill="blur"), "no fill 'blur' for keep; black"),
        (lambda s: s.masks("net", 30), "no such masks; there are those of p = 50, 80"),
        (lambda s: s.plot_image("3.png", p=30), "no such masks; there are those of p = 50, 80"),
        (lambda s: s.image("7.png"), "no image named '7.png'; did you mean"),
        (lambda s: s.plot_accuracy(fill="blur"), "no fill 'blur'; it has black, mean"),
        (lambda s: igmask.study(s.folder.parent), "in .*; did you mean '.*results'"),
        (lambda s: igmask.plot(s.folder / "tables"), "there is no finished study"),
        (lambda s: igmask.plot(torch.zeros(3, 8, 8)), "plot needs a model, too, or a study"),
        (lambda s: s.plot_image("3.png", axes=[1, 2]), "6 axes are needed, got 2"),
    ],
)
def test_what_a_study_does_not_have_is_named(finished, ask, message):
    with pytest.raises(InputError, match=message):
        ask(finished[1])


def test_masks_of_a_p_that_a_study_had_before_are_none_of_its_own(finished, tmp_path):
    folder = shutil.copytree(finished[0] / "results", tmp_path / "results")
    masks = folder / "folder/models/net/masks"
    for kind in ("npy", "parquet"):
        shutil.copy(masks / f"80.{kind}", masks / f"30.{kind}")
    study = igmask.study(folder)
    for ask in (lambda: study.masks("net", 30), lambda: study.plot_image("3.png", p=30)):
        with pytest.raises(InputError, match="no such masks; there are those of p = 50, 80"):
            ask()
    shutil.rmtree(folder / "folder/models/net/scores")
    for ask in (lambda: study.attribution("3.png"), lambda: study.image("3.png")):
        with pytest.raises(InputError, match="scores: the attributions are not there; run the"):
            ask()


def test_no_study_and_one_that_fails_are_named(tmp_path):
    with pytest.raises(InputError, match="there is no finished study"):
        igmask.study(tmp_path)
    with pytest.raises(InputError, match="sed: unknown key"):
        igmask.run(STUDY | {"sed": 1}, folder=tmp_path)
    with pytest.raises(InputError, match=r"was not finished:(.|\n)*no folder 'images'"):
        igmask.run(STUDY, folder=tmp_path)


def test_figures_of_a_study_are_shown_and_take_axes(finished):
    _, study = finished
    for figure in (study.plot_accuracy(), study.plot_accuracy(fill="mean")):
        assert isinstance(figure, Figure)
        with Image.open(io.BytesIO(figure._repr_png_())) as shown:
            assert shown.size[0] > 300
    for shown in (study, study.folder, str(study.folder)):
        assert len(igmask.plot(shown, fill="mean").axes) == 1
    [axes] = study.plot_accuracy().axes
    assert len(axes.lines) >= 3  # keep, drop, and random squares
    own, places = plt.subplots(1, 6)
    assert study.plot_image("3.png", p=80, axes=places) is own
    titles = [place.get_title().split("\n") for place in places]
    assert [title[0] for title in titles] == [
        "original", "attribution",
        "keep 80 %", "keep random squares", "drop 80 %", "drop random squares",
    ]  # fmt: skip
    shown = [np.asarray(place.images[0].get_array()) for place in places]
    for keep, drop in (shown[2::2], shown[3::2]):
        np.testing.assert_allclose(keep + drop, study.image("3.png") / 255, atol=1e-6)
    kept = [(one > 0).any(axis=2).mean() for one in shown[2:4]]
    assert kept[0] == pytest.approx(kept[1], abs=0.02)  # but for black pixels of the image
    [record] = study.records("net", "keep", 80).query("name.str.endswith('3.png')").itertuples()
    assert titles[2][1] == titles[3][1] == f"{100 * record.area_kept:.0f} % left"
    assert places[2].get_xlabel().startswith("✓" if record.correct else "✗")
    plt.close(own)


@pytest.fixture(scope="module")
def model():
    return igmask.load_model(
        "shufflenet_v2_x0_5", weights="none", size=224, arguments={"num_classes": 3}
    )


def test_an_image_is_plotted_with_what_the_model_says(model):
    image = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0))
    model.classes = ["cat", "dog", "emu"]
    figure = igmask.plot(image, model, p=[50, 90], n_steps=2)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["original", "attribution"]
    assert [title.split("\n")[0] for title in titles[2:]] == [
        *("keep 50 %", "keep random squares", "drop 50 %", "drop random squares"),
        *("keep 90 %", "keep random squares", "drop 90 %", "drop random squares"),
    ]
    assert [title.split("\n")[1] for title in titles[2::2]] == [
        title.split("\n")[1] for title in titles[3::2]
    ]
    squares = [
        np.asarray(axes.images[0].get_array()).reshape(-1, 3).any(axis=1)
        for axes in figure.axes[2:]
    ]
    assert squares[0].sum() == squares[1].sum() != squares[2].sum() == squares[3].sum()
    assert (squares[0] != squares[1]).any()
    assert len(igmask.plot(image, model, random=None, n_steps=2).axes) == 4
    kept = igmask.mask_image(image, model, p=50, n_steps=2)
    drawn = np.asarray(figure.axes[2].images[0].get_array())
    np.testing.assert_allclose(drawn, kept.permute(1, 2, 0).numpy(), atol=1e-6)
    assert figure.axes[0].get_xlabel().split("\n")[0] in model.classes
    assert igmask.plot(image.requires_grad_(), model, n_steps=2)
    with pytest.raises(InputError, match="one colour or three, got 2"):
        igmask.plot(image[:2], model)
    with pytest.raises(InputError, match="plot draws one image"):
        igmask.plot(image[None], model)
    with pytest.raises(InputError, match="p must be a number"):
        igmask.plot(image, model, p=[])
    with pytest.raises(InputError, match="random must be an integer"):
        igmask.plot(image, model, random=1.5)


def test_a_model_has_its_networks_layers(model):
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert model.fc is model[1].fc
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other(x).equal(model(x))
        assert other.geometry == model.geometry
        assert other.fc.weight.equal(model.fc.weight)
    within = captum.attr.LayerGradCam(model, model.conv5).attribute(x, target=1)
    assert within.shape == (2, 1, 7, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
        assert torch.jit.script(model)(x).equal(model(x))
    with_softmax = copy.deepcopy(model).append(torch.nn.Softmax(dim=1))
    assert with_softmax.fc.weight.equal(model.fc.weight)
    with pytest.raises(InputError, match=r"model\.fc is the network's own"):
        model.fc = None
    model.note = "mine"
    with pytest.raises(AttributeError, match="no attribute 'head'"):
        model.head  # noqa: B018
    with pytest.raises(InputError, match=r"model\.fc is the network's own: set model\[1\]"):
        model.fc = torch.nn.Linear(1024, 5)


def test_a_model_says_what_it_takes_and_weights_may_be_an_enums(monkeypatch):
    loaded = []

    def load(model, **_):
        loaded.append(model)
        return torch.nn.Sequential(torch.nn.Identity())

    monkeypatch.setattr(models, "load", load)
    model = igmask.load_model("resnet18", weights=ResNet18_Weights.IMAGENET1K_V1)
    assert loaded[0].weights == "IMAGENET1K_V1"
    assert model.classes == ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert (model.geometry.size, model.geometry.resize) == (224, 256)
    igmask.load_model(ResNet18_Weights.IMAGENET1K_V1)
    assert loaded[1] == loaded[0]
    wnids = igmask.load_model("resnet18", weights="none", size=224, classes="imagenet").classes
    assert (len(wnids), wnids[207]) == (1000, "n02099601 golden retriever")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: igmask.load_model(torch.nn.Identity()), "a module needs no loading"),
        (lambda: igmask.load_model("resnet18", pretrained=True), 'say weights="DEFAULT"'),
        (lambda: igmask.load_model("igmask.zo:small_vgg"), "did you mean 'zoo'"),
        (lambda: igmask.load_model("torchvison.models:vgg11"), "did you mean 'torchvision'"),
        (lambda: igmask.load_model("igmask.zoo:small_vg"), "did you mean 'small_vgg'"),
        (lambda: igmask.load_image(torch.zeros(3, 8, 8), igmask.Geometry(8)), "not Tensor; PIL.I"),
        (lambda: igmask.load_image("no.png", igmask.Geometry(8)), r"^no.png: there is no such fi"),
        (lambda: igmask.run("no.yaml"), r"^no.yaml: there is no such file$"),
    ],
)
def test_what_people_try_first_is_answered(ask, message):
    with pytest.raises(InputError, match=message):
        ask()


def test_images_come_as_torchvisions_presets_make_them(model, tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (300, 260, 3), dtype=np.uint8))
    geometry = igmask.Geometry(224, 256, "bilinear")
    found = igmask.load_image(picture, geometry)
    preset = ResNet18_Weights.IMAGENET1K_V1.transforms()
    expected = preset(picture)
    normalised = functional.normalize(found, preset.mean, preset.std)
    torch.testing.assert_close(normalised, expected, atol=1e-5, rtol=0)
    picture.save(tmp_path / "picture.png")
    torch.testing.assert_close(igmask.load_image(tmp_path / "picture.png", geometry), found)
    torch.testing.assert_close(model.transforms(picture), igmask.load_image(picture, model))
    assert model.transforms(picture).shape == (3, model.geometry.size, model.geometry.size)


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(InputError, match="not of the network resnet50"):
        igmask.load_model("resnet50", weights=ResNet18_Weights.IMAGENET1K_V1)
    with pytest.raises(InputError, match=r"needs a model of igmask\.load_model"):
        igmask.load_image("a.png", torch.nn.Identity())
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(InputError, match=r"a\.png"):
        igmask.load_image(tmp_path / "a.png", igmask.Geometry(8, None, "bilinear"))


def test_the_package_says_what_it_has():
    assert igmask.__version__ == metadata.version("igmask")
    for name in igmask.__all__:
        assert getattr(igmask, name) is not None
    with pytest.raises(AttributeError, match="did you mean 'load_model'"):
        igmask.load_modle  # noqa: B018
