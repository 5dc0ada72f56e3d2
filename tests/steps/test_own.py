"""Functions of a user's own where a name may stand: controls, fills, methods."""

from pathlib import Path
from types import SimpleNamespace

import captum
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from steps import run_attribute, run_evaluate, run_index, run_mask, run_prepare

from igmask import arrays, plain
from igmask.asked import config, fields
from igmask.asked.settings import Attribution, Geometry
from igmask.cli import app
from igmask.errors import InputError
from igmask.inputs import models
from igmask.plan import Workflow
from igmask.report.examples import examples
from igmask.report.tables import collect
from igmask.steps.preflight import preflight
from igmask.tools.check import check
from igmask.tools.export import export

MODULE = """
import numpy as np
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, 2))

def reversed(images, scores, seed):
    assert images.dtype == np.float32 and images.max() <= 1
    return -scores

def too_few(images, scores, seed):
    return scores[:, :1]

def not_a_number(images, scores, seed):
    scores[images.mean(axis=(1, 2, 3)) == images.mean(axis=(1, 2, 3)).max()] = np.nan
    return scores

def words(images, scores, seed):
    return "edges"

def drawn(images, scores, seed):
    return np.random.default_rng().random(scores.shape)

def flickering(images, mean):
    return np.random.default_rng().random(images.shape)

def mirrored(images, mean):
    return images[:, :, ::-1]

def too_bright(images, mean):
    return 2 * images + 0.1

def of_another_shape(images, mean):
    return np.zeros((1, 2, 2, 3))

def gradient_by_input(model, images, classes):
    x = images.detach().requires_grad_()
    with torch.enable_grad():
        picked = model(x).softmax(dim=1).gather(1, classes[:, None]).sum()
        return x * torch.autograd.grad(picked, x)[0]

def a_number(model, images, classes):
    return 1.0
"""

SIZE = 12


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder with images, a network and functions of one's own; the name of their module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"own_{tmp_path.name}"
    Path(f"{name}.py").write_text(MODULE)
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        Path("images", label).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
            Image.fromarray(pixels).save(Path("images", label, f"{i}.png"))
    run_index({"source": "folder", "root": "images"}, Path("index.parquet"))
    run_prepare(
        Path("index.parquet"), Path("images.npy"), geometry=Geometry(SIZE, None, "bilinear")
    )
    return name


def attributed(name, method):
    model = config.model({"source": f"{name}:network", "size": SIZE})
    asked = fields.plain(Attribution(method=method, n_steps=3))
    run_attribute(Path("images.npy"), Path("scores.npy"), model=model, attribution=asked)
    run_mask([Path("scores.npy")], Path("masks"), p=(50,))
    return model


def test_a_control_and_a_fill_of_ones_own_go_through_all_that_follows(study):
    model = attributed(study, "integrated-gradients")
    how = {"fills": (f"{study}:mirrored",), "controls": (f"{study}:reversed",)}
    masks, scores = (Path("masks/50.npy"),), (Path("scores.npy"),)
    how |= {"model": model, "masks": masks, "scores": scores, "points": 3}
    run_evaluate([Path("images.npy")], Path("records"), **how)
    name = f"keep-50-{study}-mirrored"
    files = {
        "selection": f"{name}.parquet",
        f"{study}:reversed": f"{name}-{study}-reversed.parquet",
    }
    read = {mask: arrays.read_records(Path("records", file)) for mask, file in files.items()}
    assert [made_by["mask"] for _, made_by in read.values()] == list(files)
    assert all(made_by["blank"] is None for _, made_by in read.values())

    # by hand, in float64
    images = arrays.read_array(Path("images.npy")) / 255.0
    mask = plain.unpack(arrays.read_array(Path("masks/50.npy")), (4, 4))
    positive = arrays.read_array(Path("scores.npy"))[:, 0].reshape(len(mask), -1)
    last = np.argsort(positive, axis=1, kind="stable")
    other = np.zeros_like(mask).reshape(len(mask), -1)
    for row, n in enumerate(mask.sum(axis=(1, 2))):
        other[row, last[row, :n]] = True
    network = models.load(model).double()
    for kind, chosen in (("selection", mask), (f"{study}:reversed", other.reshape(mask.shape))):
        kept = chosen.repeat(3, axis=1).repeat(3, axis=2)[..., None]
        shown = np.where(kept, images, images[:, :, ::-1])
        q = network(torch.from_numpy(shown).permute(0, 3, 1, 2)).softmax(dim=1).amax(dim=1)
        found = read[kind][0]["probability_predicted"]
        np.testing.assert_allclose(found, q.detach(), rtol=1e-5)

    results = collect(sorted(Path("records").glob("*.parquet")))
    assert f"{study}:reversed" in results.accuracy["mask"].to_numpy()
    said = f"top-1 with the highest squares of {study}:reversed"
    assert any(said in note for note in results.notes)
    files = [Path("images.npy"), *scores, *masks, *Path("records").glob("*.parquet")]
    examples(files, output=Path("figures"), model_name="mine", n_images=2)
    assert Path("figures/keep-mine.png").is_file()
    export([Path("images.npy")], Path("out"), masks=masks[0], fill=f"{study}:mirrored")
    shown = np.asarray(Image.open("out/a/0.png"))
    np.testing.assert_array_equal(shown, np.where(
        mask[0].repeat(3, axis=0).repeat(3, axis=1)[..., None],
        arrays.read_array(Path("images.npy"))[0],
        arrays.read_array(Path("images.npy"))[0, :, ::-1],
    ))  # fmt: skip


def test_a_method_of_ones_own_is_summed_over_squares(study):
    model = attributed(study, f"{study}:gradient_by_input")
    images = models.pixels(arrays.read_array(Path("images.npy")).copy())
    network = models.load(model)
    peer = captum.attr.InputXGradient(lambda x: network(x).softmax(dim=1))
    classes = network(images).argmax(dim=1)
    phi = peer.attribute(images.requires_grad_(), target=classes).detach().numpy()
    squares = phi.reshape(len(phi), 3, 4, 3, 4, 3)
    positive = squares.clip(min=0).sum(axis=(1, 3, 5))
    parts = arrays.read_array(Path("scores.npy"))
    np.testing.assert_allclose(parts[:, 0], positive, rtol=1e-4, atol=1e-7)
    records, made_by = arrays.read_records(Path("scores.parquet"))
    assert records["predicted"].tolist() == classes.tolist()
    assert records["relative_completeness"].isna().all()
    assert made_by["attribution"]["method"] == f"{study}:gradient_by_input"
    run_evaluate([Path("images.npy")], Path("records"), model=model, masks=(Path("masks/50.npy"),))
    notes = collect(sorted(Path("records").glob("*.parquet"))).notes
    assert any(f"{study}:gradient_by_input of the predicted class;" in note for note in notes)
    assert not any("completeness" in note for note in notes)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("a_number", "returned float, not attributions"),
        ("nothing", "has no attribute 'nothing'"),
    ],
)
def test_a_wrong_method_is_named(study, function, message):
    with pytest.raises(InputError, match=message):
        attributed(study, f"{study}:{function}")


@pytest.mark.parametrize(
    ("kind", "function", "message"),
    [
        (
            "controls",
            "too_few",
            r"returned float32 \(6, 1, 4\), not scores of squares \(6, 4, 4\)",
        ),
        (
            "controls",
            "not_a_number",
            "not_a_number gives scores that are not finite for [ab]/.*png",
        ),
        ("controls", "words", "words returned <class 'str'>, not scores"),
        ("controls", "nothing", "has no attribute 'nothing'"),
        ("fills", "too_bright", r"too_bright gives values outside \[0, 1\]"),
        ("fills", "of_another_shape", "of_another_shape gives .* does not fit images"),
        ("fills", "nothing", "has no attribute 'nothing'"),
    ],
)
def test_a_wrong_control_or_fill_is_named(study, kind, function, message):
    model = attributed(study, "integrated-gradients")
    how = {"fills": ("black",), "controls": ()} | {kind: (f"{study}:{function}",)}
    how |= {"masks": (Path("masks/50.npy"),), "scores": (Path("scores.npy"),)}
    with pytest.raises(InputError, match=message):
        run_evaluate([Path("images.npy")], Path("records"), model=model, **how)


def test_names_of_ones_own_are_valid_where_a_name_may_stand():
    study = config.parse(
        {
            "dataset": {"source": "demo"},
            "models": {"a": {"source": "igmask.zoo:small_vgg", "size": 64, "train": {}}},
            "attribution": {"method": "my:method"},
            "masking": {"fills": ["black", "my.fills:blur"], "controls": ["my:shifted", "random"]},
        }
    )
    assert study.masking.fills == ("black", "my.fills:blur")
    with pytest.raises(InputError, match=r"'blakc' is not one of .* did you mean 'black'"):
        config.parse(
            {
                "dataset": {"source": "demo"},
                "models": {"a": {"source": "igmask.zoo:small_vgg", "size": 64, "train": {}}},
                "masking": {"fills": ["blakc"]},
            }
        )


def test_an_evaluation_is_kept_until_code_of_ones_own_changes(study, capsys):
    model = attributed(study, "integrated-gradients")
    how = {"fills": (f"{study}:mirrored",), "controls": (), "masks": (Path("masks/50.npy"),)}

    def kept():
        capsys.readouterr()
        run_evaluate([Path("images.npy")], Path("records"), model=model, **how)
        return capsys.readouterr().err.count("kept from before")

    assert kept() == 0
    assert kept() == 3
    module = Path(f"{study}.py")
    module.write_text(module.read_text() + "# changed\n")
    assert kept() == 0  # the network is of the same module


def test_explain_goes_by_the_method_that_is_asked_for(study):
    image, model = "images/a/0.png", f'{{"source": "{study}:network", "size": {SIZE}}}'
    drawn = []
    for method in ("integrated-gradients", f"{study}:gradient_by_input"):
        words = ["explain", image, "--model", model, "--method", method, "-o", "out.png"]
        assert CliRunner().invoke(app, words).exit_code == 0
        drawn.append(Path("out.png").read_bytes())
    assert drawn[0] != drawn[1]
    words = ["explain", image, "--model", model, "--method", f"{study}:nothing", "-o", "out.png"]
    assert isinstance(CliRunner().invoke(app, words).exception, InputError)


def test_functions_of_ones_own_are_looked_for_before_work_begins(study):
    settings = {
        "dataset": {"source": "folder", "root": "images"},
        "models": {"a": {"source": f"{study}:network", "size": SIZE, "weights": "none"}},
        "masking": {"controls": [f"{study}:nothing"], "fills": [f"{study}:mirrored"]},
    }
    [found] = [f for f in check(settings, trial=False) if f.level == "error"]
    assert "has no attribute 'nothing'" in found.says
    recipe = Workflow(settings).preflight(SimpleNamespace(model="a"))
    assert recipe.own == (f"{study}:mirrored", f"{study}:nothing")
    with pytest.raises(InputError, match="has no attribute 'nothing'"):
        preflight(Path("index.parquet"), Path("x.json"), recipe)


@pytest.mark.parametrize(
    ("kind", "function", "message"),
    [
        ("fills", "flickering", "flickering gives other values each time it is called"),
        ("controls", "drawn", "drawn gives other values each time it is called"),
        ("controls", "too_few", "too_few returned float32"),
        ("fills", "too_bright", "too_bright gives values outside"),
        ("fills", "mirrored", None),
        ("controls", "reversed", None),
    ],
)
def test_functions_of_ones_own_are_tried_before_work_begins(study, kind, function, message):
    settings = {
        "dataset": {"source": "folder", "root": "images"},
        "models": {"a": {"source": f"{study}:network", "size": SIZE, "weights": "none"}},
        "masking": {kind: [f"{study}:{function}"]},
    }
    recipe = Workflow(settings).preflight(SimpleNamespace(model="a"))
    if message is None:
        preflight(Path("index.parquet"), Path("x.json"), recipe)
        assert Path("x.json").is_file()
    else:
        with pytest.raises(InputError, match=message):
            preflight(Path("index.parquet"), Path("x.json"), recipe)


def test_what_a_method_of_ones_own_does_not_ask_for_is_no_word_of_its_job():
    asked = Attribution(method="my:method", rule="left", n_steps="auto", precision="bf16")
    assert set(fields.counting(asked)) == {"method", "of", "target", "baseline"}


def test_fills_whose_files_would_have_one_name_are_refused():
    settings = {
        "dataset": {"source": "demo"},
        "models": {"a": {"source": "igmask.zoo:small_vgg", "size": 64, "train": {}}},
        "masking": {"fills": ["image-mean", "image:mean"]},
    }
    with pytest.raises(
        InputError, match="two of image-mean, image:mean, random name the same files"
    ):
        config.parse(settings)
