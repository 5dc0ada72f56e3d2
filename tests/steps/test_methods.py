"""Methods of attribution against Captum with the same draws, and maps that lie ready."""

from pathlib import Path

import captum.attr
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from steps import run_attribute, run_index, run_mask, run_preflight, run_prepare
from torch import nn

from igmask import arrays, plain
from igmask.asked import config, fields
from igmask.asked.settings import Attribution, Geometry
from igmask.errors import InputError
from igmask.inputs import models
from igmask.kernels import square_parts
from igmask.steps.maps import read_map
from igmask.steps.methods import METHODS, About

SIZE = 12
NETWORK = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(24, 2))
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder with prepared images, in three shards and in one; a network in a module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"methods_{tmp_path.name}"
    Path(f"{name}.py").write_text(NETWORK)
    rng = np.random.default_rng(0)
    for i in range(7):
        path = Path("images", "ab"[i % 2], f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(path)
    run_index({"source": "folder", "root": "images"}, Path("index.parquet"))
    geometry = Geometry(SIZE, None, "bilinear")
    for shard in ("1-of-1", "1-of-3", "2-of-3", "3-of-3"):
        run_prepare(Path("index.parquet"), Path(f"{shard}.npy"), geometry=geometry, shard=shard)
    return config.model({"source": f"{name}:network", "size": SIZE})


def attributed(model, shard="1-of-1", **asked):
    output = Path(f"scores-{shard}.npy")
    asked = fields.plain(Attribution(**asked))
    references = [Path("1-of-1.npy")] if asked["method"] == "expected-gradients" else []
    how = {"model": model, "attribution": asked, "references": references}
    run_attribute(Path(f"{shard}.npy"), output, **how)
    return arrays.read_array(output)


def of_captum(model, of):
    """The network as Captum sees it, the images, and the classes that are predicted."""
    network = models.load(model)
    images = torch.tensor(arrays.read_array(Path("1-of-1.npy"))).movedim(3, 1) / 255

    class Scored(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            logits = self.network(x)
            return logits.softmax(dim=1) if of == "probability" else logits

    return Scored(), images.requires_grad_(), network(images).argmax(dim=1)


@pytest.mark.parametrize("of", ["probability", "logit"])
@pytest.mark.parametrize("method", ["gradient", "gradient-x-input", "smoothgrad"])
def test_a_method_is_captums(study, method, of, monkeypatch):
    found = attributed(study, method=method, of=of, n_samples=4, noise=0.2)
    scored, images, classes = of_captum(study, of)
    if method == "smoothgrad":
        about = About(Attribution(), [""] * 7, range(7), 0)
        rngs = about.rngs()
        draws = [
            np.stack([rng.standard_normal((3, SIZE, SIZE), np.float32) for rng in rngs])
            for _ in range(4)
        ]
        drawn = torch.from_numpy(np.stack(draws, axis=1)).flatten(0, 1)  # image by image
        monkeypatch.setattr(torch, "normal", lambda mean, std: mean + std * drawn)
        tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(scored))
        how = {"nt_type": "smoothgrad", "nt_samples": 4, "stdevs": 0.2, "abs": False}
        expected = tunnel.attribute(images, target=classes, **how)
    elif method == "gradient":
        expected = captum.attr.Saliency(scored).attribute(images, target=classes, abs=False)
    else:
        expected = captum.attr.InputXGradient(scored).attribute(images, target=classes)
    parts = square_parts(expected.detach(), side=3).numpy()
    np.testing.assert_allclose(found, parts, rtol=1e-5, atol=1e-6 * parts.max())


def test_expected_gradients_are_a_mean_over_other_images(study):
    found = attributed(study, method="expected-gradients", n_samples=5)
    scored, images, classes = of_captum(study, "probability")
    scored, images = scored.double(), images.detach().double()
    total = torch.zeros_like(images)
    for i, rng in enumerate(About(Attribution(), [""] * 7, range(7), 0).rngs()):
        for _ in range(5):
            other = int(rng.integers(6))
            other += other >= i
            b, alpha = images[other], rng.random()
            x = (b + alpha * (images[i] - b)).unsqueeze(0).requires_grad_()
            [slope] = torch.autograd.grad(scored(x)[0, classes[i]], x)
            total[i] += (images[i] - b) * slope[0] / 5
    expected = square_parts(total, side=3).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * expected.max())


@pytest.mark.parametrize("method", ["smoothgrad", "expected-gradients", "random"])
def test_what_is_drawn_does_not_depend_on_shards(study, method):
    whole = attributed(study, method=method, n_samples=3)
    parts = [attributed(study, f"{i}-of-3", method=method, n_samples=3) for i in (1, 2, 3)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-9)


def test_random_attributions_are_of_the_image_alone(study):
    found = attributed(study, method="random")
    assert (found[:, 1] == 0).all()
    assert len({one.tobytes() for one in found}) == 7
    assert 0.4 < found[:, 0].mean() / (9 * 3) < 0.6
    assert (attributed(study, method="random") == found).all()


def test_nothing_is_said_of_completeness_and_masks_are_made(study):
    attributed(study, method="gradient")
    records, made_by = arrays.read_records(Path("scores-1-of-1.parquet"))
    assert records["completeness"].isna().all()
    assert made_by["attribution"]["method"] == "gradient"
    assert "n_samples" not in made_by["attribution"]
    run_mask([Path("scores-1-of-1.npy")], Path("masks"), p=(50,))
    assert arrays.read_settings(Path("masks/50.parquet"))["completeness"] is None


def test_every_method_of_the_settings_is_there():
    [kind] = [one for one in fields.fields(Attribution) if one.name == "method"]
    assert tuple(METHODS) == kind.metadata["choices"]


def write_maps(values):
    for name, value in zip(
        arrays.read_records(Path("1-of-1.parquet"))[0]["name"], values, strict=True
    ):
        path = Path("maps", f"{name}.npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, value)


@pytest.mark.parametrize("layout", ["CHW", "HWC", "HW", "squares"])
def test_maps_are_taken_in_any_layout(study, layout):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(7, 3, SIZE, SIZE))
    if layout == "HW":
        maps = maps[:, :1]
    expected = square_parts(torch.from_numpy(maps), side=3).numpy()
    written = {"CHW": maps, "HWC": np.moveaxis(maps, 1, 3), "HW": maps[:, 0]}
    if layout == "squares":
        scores = rng.normal(size=(7, 4, 4))
        written["squares"] = scores
        expected = np.stack([np.maximum(scores, 0), np.maximum(-scores, 0)], axis=1)
    write_maps(written[layout])
    found = attributed(study, method="maps", maps="maps")
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_partial_squares_have_their_pixels(tmp_path_factory, height, width, side):
    folder = tmp_path_factory.mktemp("maps")
    values = np.random.default_rng(0).normal(size=(height, width))
    np.save(folder / "a.npy", values)
    found = read_map(folder, "a.png", (height, width), side)
    expected = square_parts(torch.from_numpy(values)[None, None], side=side)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.shape[1:] == plain.grid(height, width, side)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.unlink(), r"1 of 7 images lack a map:\n  a/0.png has no map"),
        (
            lambda path: np.save(path, np.zeros((5, 5))),
            r"a/0.png.npy: of shape \(5, 5\); images of",
        ),
        (lambda path: np.save(path, np.full((SIZE, SIZE), np.nan)), "has NaN or infinite values"),
        (lambda path: np.save(path, np.array([["a"]])), "no whole array of numbers"),
        (lambda path: np.save(path, np.array([{}]), allow_pickle=True), "no whole array"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "no whole array of numbers"),
        (lambda path: np.save(path.with_name("0.npy"), np.ones((4, 4))), "a/0.png has two maps"),
    ],
)
def test_maps_that_cannot_be_used_are_named_before_any_work(study, spoil, says):
    write_maps(np.ones((7, SIZE, SIZE)))
    spoil(Path("maps/a/0.png.npy"))
    with pytest.raises(InputError, match=says):
        run_preflight(Path("index.parquet"), Path("found.json"), model=study, maps="maps")


@pytest.mark.parametrize("shape", [(SIZE, SIZE + 1), (4, 5), (2, SIZE, SIZE)])
def test_a_later_map_of_another_shape_is_named_before_any_work(study, shape):
    write_maps(np.ones((7, SIZE, SIZE)))
    np.save("maps/b/5.png.npy", np.ones(shape))
    with pytest.raises(InputError, match=r"maps/b/5.png.npy: of shape"):
        run_preflight(Path("index.parquet"), Path("found.json"), model=study, maps="maps")
    whole = Path("maps/b/5.png.npy")
    whole.write_bytes(whole.read_bytes()[:150])
    with pytest.raises(InputError, match=r"maps/b/5.png.npy: no whole array of numbers"):
        run_preflight(Path("index.parquet"), Path("found.json"), model=study, maps="maps")


def test_numbers_of_squares_keep_their_order_or_are_refused(study):
    numbers = np.random.default_rng(0).normal(size=(7, 4, 4))
    write_maps(abs(numbers))
    np.save("maps/b/5.png.npy", numbers[6])
    how = {"model": study, "maps": "maps"}
    with pytest.raises(InputError, match=r"maps/b/5.png.npy: has negative numbers .* say squ"):
        run_preflight(Path("index.parquet"), Path("found.json"), **how)
    for score in ("absolute", "absolute-sum"):
        with pytest.raises(InputError, match=f"squares.score: {score} would lose the order"):
            run_preflight(Path("index.parquet"), Path("found.json"), **how, score=score)
    run_preflight(Path("index.parquet"), Path("found.json"), **how, score="signed")
    found = attributed(study, method="maps", maps="maps")
    ranked = plain.ranking(plain.score_parts(found, "signed"))
    np.testing.assert_array_equal(ranked[6], np.argsort(-numbers[6].ravel()))
    np.save("maps/b/5.png.npy", abs(numbers[6]))
    run_preflight(Path("index.parquet"), Path("found.json"), **how)
    found = attributed(study, method="maps", maps="maps")
    for score in plain.SCORES:
        ranked = plain.ranking(plain.score_parts(found, score))
        np.testing.assert_array_equal(ranked, np.argsort(-abs(numbers).reshape(7, -1)))


def test_a_bad_map_of_a_later_image_is_named(study):
    write_maps(np.ones((7, SIZE, SIZE)))
    np.save("maps/b/5.png.npy", np.full((SIZE, SIZE), np.inf))
    with pytest.raises(InputError, match=r"maps/b/5.png.npy: has NaN or infinite values"):
        attributed(study, method="maps", maps="maps")


def test_one_image_alone_has_no_expected_gradients(study):
    with pytest.raises(InputError, match="are of the images of a dataset"):
        METHODS["expected-gradients"].squares(
            None,
            models.load(study),
            torch.rand(1, 3, SIZE, SIZE),
            about=About(Attribution(method="expected-gradients"), ["a"], [0], 0),
            side=3,
            target=None,
            of="logit",
            baselines=torch.zeros(1, 1, 3, SIZE, SIZE),
        )
