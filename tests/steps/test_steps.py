"""The steps on files: prepare → attribute → mask → evaluate, on a small tree of images."""

import json
import os
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from steps import run_attribute, run_evaluate, run_index, run_mask, run_preflight, run_prepare

from igmask import arrays, plain
from igmask.asked import config, fields
from igmask.asked.recipes import STAGES
from igmask.asked.settings import Attribution, Geometry
from igmask.engine.ig import integrated_gradients
from igmask.errors import InputError
from igmask.inputs import models
from igmask.kernels import inpainted, occlude, select, square_scores, to_pixels, unpack
from igmask.report import areas
from igmask.report.tables import texts as tables
from igmask.steps.evaluate import even_size
from igmask.steps.prepare import WINDOW, in_order

SIZE, N_IMAGES = 16, 21
ATTRIBUTION = fields.plain(Attribution(n_steps=6))

NETWORK = """
import torch
from torch import nn

def conv(classes=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(72, classes))

class NanOnHalfBlack(nn.Module):
    def forward(self, x):
        black = (x == 0).double().mean((1, 2, 3))
        return x.mean((2, 3)) / ((black < 0.05) | (black == 1))[:, None]

class NanOnZeros(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) / x.abs().mean((1, 2, 3))[:, None]


class Told(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = conv()

    def forward(self, x):
        return {"features": x, "logits": self.network(x)}


class Broken(nn.Module):
    def forward(self, x):
        return torch.sqrt(x.mean((2, 3)) - x.mean((2, 3)))  # the gradient at zero is not finite
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A working directory with images and a network."""
    rng = np.random.default_rng(0)
    for i in range(N_IMAGES):
        folder = tmp_path / "images" / ("cat", "dog", "emu")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20, 18, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    (tmp_path / "steps_net.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def network(**settings):
    return config.model({"source": "steps_net:conv", "size": SIZE, **settings})


def run(folder, *, shards=1, on_bad_image="error", attribution=ATTRIBUTION, model=None):
    """Run all steps below a folder; return its paths of images, scores and masks."""
    model = model or network()
    folder.mkdir()
    run_index({"source": "folder", "root": "images"}, folder / "index.parquet", seed=0)
    images = [folder / f"images-{i + 1}-of-{shards}.npy" for i in range(shards)]
    scores = [folder / f"scores-{i + 1}-of-{shards}.npy" for i in range(shards)]
    for i, (image_path, score_path) in enumerate(zip(images, scores, strict=True)):
        run_prepare(
            folder / "index.parquet",
            image_path,
            geometry=Geometry(SIZE, None, "bilinear"),
            shard=f"{i + 1}-of-{shards}",
            on_bad_image=on_bad_image,
        )
        run_attribute(
            image_path,
            score_path,
            model=model,
            attribution=attribution,
            side=3,
            seed=0,
            batch_size=32,
            device="cpu",
        )
    run_mask(scores, folder, p=[50], by="mass", score="positive")
    masks = folder / "50.npy"
    run_evaluate(images, folder / "records", model=model, masks=(masks,), scores=scores, points=3)
    return images, scores, masks


def records_in(folder, condition="keep-50-black"):
    """What `run` has found below a folder."""
    return arrays.read_records(folder / "records" / f"{condition}.parquet")


def pixels_of(paths):
    return models.pixels(np.concatenate([arrays.read_array(path) for path in paths]))


def test_how_the_network_s_graph_was_had_is_said_once_a_shard(study, capsys):
    run(study / "out")
    said = re.findall(r"the network's graph: torch\.fx, \d\S* s", capsys.readouterr().err)
    assert len(said) == 1


def test_prepared_images_are_the_files_pixels(study):
    images, _, _ = run(study / "out")
    found = arrays.read_array(images[0])
    records, made_by = arrays.read_records(arrays.records_of(images[0]))
    assert found.shape == (N_IMAGES, SIZE, SIZE, 3)
    for row, name in enumerate(records["name"]):
        whole = np.asarray(Image.open(study / "images" / name))
        np.testing.assert_array_equal(found[row], whole[2:18, 1:17])
    assert made_by["classes"] == ["cat", "dog", "emu"]
    assert made_by["geometry"] == {"size": SIZE, "resize": None, "interpolation": "bilinear"}


def test_scores_and_masks_are_those_of_the_functions(study):
    images, scores, masks = run(study / "out")
    net = models.load(network())
    found = integrated_gradients(net, pixels_of(images), n_steps=6)
    expected = square_scores(found.values)
    parts = torch.from_numpy(np.array(arrays.read_array(scores[0])))
    torch.testing.assert_close(parts[:, 0], expected, rtol=1e-4, atol=1e-7)
    bits = torch.from_numpy(np.array(arrays.read_array(masks)))
    assert unpack(bits, (6, 6)).equal(select(parts[:, 0], 50))
    records, made_by = arrays.read_records(arrays.records_of(scores[0]))
    assert records["predicted"].tolist() == found.predicted.tolist()
    np.testing.assert_allclose(
        records["completeness"], found.completeness.numpy(), rtol=1e-3, atol=1e-6
    )
    assert made_by["attribution"]["n_steps"] == 6
    assert made_by["model"]["source"] == "steps_net:conv"


@pytest.mark.parametrize("mode", ["keep", "drop"])
def test_records_are_the_networks_predictions_of_masked_images(study, mode):
    images, _, masks = run(study / "out")
    net = models.load(network())
    mask = unpack(torch.from_numpy(np.array(arrays.read_array(masks))), (6, 6))
    originals = pixels_of(images)
    masked = occlude(originals, mask if mode == "keep" else ~mask)
    probabilities = net(masked).softmax(1)
    first = net(originals).argmax(1)

    records, made_by = records_in(study / "out", f"{mode}-50-black")
    chosen = records
    assert len(records) == N_IMAGES
    assert chosen["predicted"].tolist() == probabilities.argmax(1).tolist()
    label = torch.tensor(chosen["label"].tolist())
    assert chosen["correct"].tolist() == (probabilities.argmax(1) == label).tolist()
    rows = torch.arange(N_IMAGES)
    columns = {
        "probability_predicted": probabilities.argmax(1),
        "probability_label": label,
        "probability_original": first,
    }
    for column, classes in columns.items():
        expected = probabilities[rows, classes].numpy()
        np.testing.assert_allclose(chosen[column], expected, rtol=1e-4)
    area = (masked != 0).any(1).double().mean((1, 2))  # no black pixels in these images
    np.testing.assert_allclose(chosen["area_kept"], area, atol=0.02)
    assert (made_by["mode"], made_by["p"], made_by["fill"]) == (mode, 50, "black")


def test_the_random_control_has_the_selections_area(study):
    run(study / "out")
    selection, _ = records_in(study / "out")
    random, made_by = records_in(study / "out", "keep-50-black-random")
    assert made_by["draws"] == 5
    assert random["draw"].tolist() == [*range(5)] * N_IMAGES
    assert (selection["name"].repeat(5).to_numpy() == random["name"]).all()
    np.testing.assert_array_equal(selection["area_kept"].repeat(5), random["area_kept"])
    of_images = random.groupby("name")["probability_label"]
    assert (of_images.nunique() > 1).all()


@pytest.mark.parametrize("mode", ["keep", "drop"])
@pytest.mark.parametrize("fill", ["black", "noisy-linear"])
def test_curves_are_the_networks_predictions_as_area_goes(study, mode, fill):
    images, scores, masks = run(study / "out")
    how = {"masks": (masks,), "scores": scores, "points": 4, "fills": (fill,)}
    run_evaluate(images, study / "out" / "records", model=network(), **how)
    path = study / "out" / "curves" / f"{mode}-{fill}.npy"
    curve, (records, made_by) = (
        arrays.read_array(path),
        arrays.read_records(arrays.records_of(path)),
    )
    assert (made_by["mode"], made_by["fill"], made_by["mask"]) == (mode, fill, "selection")
    assert records["name"].tolist() == records_in(study / "out", "original")[0]["name"].tolist()

    net, pixels = models.load(network()), pixels_of(images)
    first = net(pixels).argmax(1)
    parts = torch.from_numpy(np.array(arrays.read_array(scores[0])))[:, 0].flatten(1)
    ranked = parts.argsort(dim=1, descending=True, stable=True)
    sizes = torch.tensor([[9, 9, 9, 9, 9, 3]]).T @ torch.ones(1, 6, dtype=torch.int64)
    sizes[:, 5] = torch.tensor([3, 3, 3, 3, 3, 1])
    held = sizes.flatten()[ranked].cumsum(dim=1)
    for j in range(4):
        shown = pixels.clone()
        for i in range(N_IMAGES):
            n = int((3 * held[i] < j * SIZE**2).sum()) + (j > 0)
            kept = torch.zeros(36, dtype=torch.bool)
            kept[ranked[i, :n]] = True
            kept = (kept if mode == "keep" else ~kept).view(1, 6, 6)
            if fill == "black":
                shown[i] = occlude(pixels[i : i + 1], kept)[0]
                assert curve[i, j, 0] == pytest.approx(
                    float((shown[i] != 0).any(0).double().mean())
                )
            else:
                position = int(records["position"][i])
                whole = to_pixels(kept, SIZE, SIZE)
                drawn = plain.noise((1, SIZE, SIZE, 3), np.array([position]), 0)
                filled = inpainted(pixels[i : i + 1], whole) + torch.from_numpy(drawn).movedim(3, 1)
                shown[i] = torch.where(whole, pixels[i], filled[0])
        said = net(shown).softmax(1)
        expected = said.gather(1, first[:, None])[:, 0]
        np.testing.assert_allclose(curve[:, j, 1], expected, rtol=2e-4)
        label = torch.tensor(records["label"].to_numpy())
        assert curve[:, j, 2].tolist() == (said.argmax(1) == label).float().tolist()
        assert curve[:, j, 3].tolist() == (said.argmax(1) == first).float().tolist()


def test_tables_of_curves_are_means_of_what_they_say(study):
    images, scores, masks = run(study / "out")
    how = {"masks": (masks,), "scores": scores, "points": 5, "controls": ("random", "shifted")}
    run_evaluate(images, study / "out" / "records", model=network(), name="net", **how)
    paths = sorted((study / "out" / "curves").glob("*.npy"))
    names = [path.stem.removeprefix("keep-black").removeprefix("drop-black") for path in paths]
    assert sorted(names) == ["", "", "-random", "-shifted", "-shifted"]
    found = areas.collect(paths)
    keep, drop, random = (
        arrays.read_array(study / "out" / "curves" / f"{name}.npy").astype(float)
        for name in ("keep-black", "drop-black", "keep-black-random")
    )
    row = found.under[found.under["mask"] == "selection"].iloc[0]
    insertion, deletion, by_chance = (
        abs(np.trapezoid(one[:, :, 1], one[:, :, 0], axis=1)).mean() for one in (keep, drop, random)
    )
    assert row["insertion"] == pytest.approx(insertion)
    assert row["deletion"] == pytest.approx(deletion)
    assert row["srg"] == pytest.approx(insertion - deletion)
    assert row["keep_minus_random"] == pytest.approx(insertion - by_chance)
    assert row["random_minus_drop"] == pytest.approx(by_chance - deletion)
    half = found.points[(found.points["share"] == 50) & (found.points["mask"] == "selection")]
    assert half["mode"].tolist() == ["keep", "drop"]
    np.testing.assert_allclose(half["top1"], 100 * np.array([keep, drop])[:, :, 2, 2].mean(axis=1))
    np.testing.assert_allclose(
        half["area_kept"], 100 * np.array([keep, drop])[:, :, 2, 0].mean(axis=1)
    )
    texts = tables([study / "out" / "records", study / "out" / "curves"])
    [line] = [line for line in texts["table4.csv"].splitlines() if line.startswith("net,top-1")]
    original = 100 * keep[:, -1, 2].mean()
    expected = [original, *half["top1"]]
    assert line.split(",")[2:] == [f"{one:.1f}" for one in expected]
    assert "SRG" in texts["table5.md"]


def test_images_without_a_ranking_are_said_of_one_mode_alone(study):
    images, scores, masks = run(study / "out")
    how = {"masks": (masks,), "scores": scores, "points": 3, "controls": (), "modes": ("drop",)}
    run_evaluate(images, study / "out" / "records", model=network(), name="net", **how)
    [path] = (study / "out" / "curves").glob("*.npy")
    curve = np.array(arrays.read_array(path))
    curve[0, :, 0] = np.nan  # as of an image whose squares are all alike
    records, made_by = arrays.read_records(arrays.records_of(path))
    records[arrays.CHECKSUM] = arrays.checksums(curve)
    np.save(path, curve)
    arrays.write_records(arrays.records_of(path), records, made_by)
    assert any("images have no ranking" in note for note in areas.collect([path]).notes)


def test_a_curve_is_kept_until_what_it_is_of_changes(study, capsys):
    images, scores, masks = run(study / "out")

    def made(**changes):
        capsys.readouterr()
        how = {"model": network(), "masks": (masks,), "scores": scores, "points": 3} | changes
        run_evaluate(images, study / "out" / "records", **how)
        said = capsys.readouterr().err
        kept = set(re.findall(r"curve (\S+): kept", said))
        there = {path.stem for path in (study / "out" / "curves").glob("*.npy")}
        assert there == {path.stem for path in (study / "out" / "curves").glob("*.parquet")}
        return there - kept

    assert made() == set()
    assert made(controls=("random", "edges")) == {"keep-black-edges", "drop-black-edges"}
    assert made(fills=("white",)) == {"keep-white", "drop-white", "keep-white-random"}
    assert made(seed=3) == {"keep-black-random"}
    everything = {"keep-black", "drop-black", "keep-black-random"}
    assert made(points=4) == everything
    assert made(points=4, model=network(arguments={"seed": 1})) == everything
    strangers = [study / "out" / place for place in ("records/mine.parquet", "curves/mine.txt")]
    for path in strangers:
        path.write_text("of the user's own")
    assert made(points=0) == set()
    assert all(path.is_file() for path in strangers)
    assert not list((study / "out" / "curves").glob("*.npy"))


@pytest.mark.parametrize("fill", ["black", "mean", "image-mean"])
def test_records_say_what_is_predicted_of_an_image_all_masked(study, fill):
    model = network(mean=[0.2, 0.9, 0.4], std=[0.1, 0.2, 0.3])
    images, _, masks = run(study / "out")
    run_evaluate(images, study / "out" / "records", model=model, masks=(masks,), fills=(fill,))
    _, made_by = records_in(study / "out", f"keep-50-{fill}")
    if fill == "image-mean":
        assert made_by["blank"] is None
        return
    colour = torch.tensor(model.mean if fill == "mean" else (0.0, 0.0, 0.0))
    blank = colour.view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)
    expected = models.load(model)(blank).softmax(1)[0]
    assert made_by["blank"]["class"] == int(expected.argmax())
    assert made_by["blank"]["probability"] == pytest.approx(float(expected.max()), rel=1e-5)


def test_no_answer_to_an_image_all_masked_is_no_error(study):
    model = network(source="steps_net:NanOnZeros", mean=[0.5, 0.5, 0.5])
    images, _, masks = run(study / "out")
    run_evaluate(images, study / "out" / "records", model=model, masks=(masks,), fills=("mean",))
    assert records_in(study / "out", "keep-50-mean")[1]["blank"] is None


def test_what_was_evaluated_before_is_kept(study, monkeypatch):
    images, scores, masks = run(study / "out")
    folder, more = study / "out" / "records", study / "20.npy"
    run_mask(scores, study, p=[20], by="mass", score="positive")
    evaluated = []
    steps = sys.modules["igmask.steps.evaluate"]
    compute = steps._evaluated

    def counted(asked, *rest):
        evaluated.append(asked.condition.name)
        return compute(asked, *rest)

    monkeypatch.setattr(steps, "_evaluated", counted)

    def again(**changes):
        """The conditions that another evaluation computes."""
        evaluated.clear()
        options = {"model": network(), "masks": (masks, more), "scores": scores} | changes
        run_evaluate(images, folder, **options)
        return evaluated

    def records():
        return {path: path.read_bytes() for path in folder.glob("*.parquet")}

    before = records()
    for path in before:
        os.utime(path, (1e9, 1e9))
        path.unlink()  # as Snakemake does
    new = [f"{mode}-20-black{mask}" for mask in ("", "-random") for mode in ("keep", "drop")]
    assert again() == new
    assert records().items() > before.items()
    assert all(path.stat().st_mtime > masks.stat().st_mtime for path in before)  # for Snakemake
    assert again() == []
    damaged = folder / "original.parquet"
    with damaged.open("r+b") as file:
        file.truncate(1000)
    assert again() == ["original"]
    assert records().items() > before.items()
    masked = [f"{m}-{p}-black" for m in ("keep", "drop") for p in (50, 20)]
    drawn = [f"{name}-random" for name in masked]
    assert again(seed=1) == drawn
    assert again(seed=1, controls=("random", "edges")) == [f"{name}-edges" for name in masked]
    assert again(seed=1, draws=2, controls=("random", "edges")) == drawn
    found = again(seed=1, modes=("drop",), fills=("mean",), controls=())
    assert found == ["drop-50-mean", "drop-20-mean"]
    run_mask(scores, study, p=[20], by="count", score="positive")
    assert again(seed=1, draws=2) == new
    everything = ["original", *masked, *drawn]
    assert again(seed=1, draws=2, name="other") == everything
    (study / "steps_net.py").write_text(NETWORK + "# another network, for all that is known")
    assert again(seed=1, draws=2, name="other") == everything
    monkeypatch.setitem(STAGES, "evaluate", 0)
    assert again(seed=1, draws=2, name="other") == everything
    prepared, made_by = arrays.read_records(arrays.records_of(images[0]))
    prepared["label"] = 2 - prepared["label"]
    arrays.write_records(arrays.records_of(images[0]), prepared, made_by)
    assert again(seed=1, draws=2, name="other") == everything
    load = models.load

    def changed(*arguments, **options):
        """Return a network of which no file tells: as if code that its module imports changed."""
        found = load(*arguments, **options)
        with torch.no_grad():
            next(found.parameters()).mul_(1.01)
        return found

    monkeypatch.setattr(models, "load", changed)
    assert again(seed=1, draws=2, name="other") == everything


@pytest.mark.parametrize("n", [1, 5, 64, 65, 150, 200, 1000, 50_000])
def test_batches_are_of_one_size_with_few_rows_to_fill_up(n):
    size = even_size(n)
    n_batches = -(-n // size)
    assert size <= min(n, 64)
    assert n_batches == -(-n // 64)  # as many as batches of 64 were
    assert n_batches * size - n < n_batches


def test_records_are_kept_where_files_have_one_name_only(study, monkeypatch):
    run(study / "out")

    def refuse(*_):
        raise OSError("no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    images, scores, masks = run(study / "copied")
    for path in (study / "copied" / "records").glob("*.parquet"):
        path.unlink()
    monkeypatch.setattr(sys.modules["igmask.steps.evaluate"], "_evaluated", None)
    how = {"model": network(), "masks": (masks,), "scores": scores, "points": 3}
    run_evaluate(images, study / "copied" / "records", **how)
    for name in CONDITIONS:
        found, expected = (records_in(study / x, name)[0] for x in ("copied", "out"))
        pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        pytest.param({"baseline": "uniform", "n_baselines": 2}, marks=pytest.mark.slow),
        pytest.param({"rule": "adaptive"}, marks=pytest.mark.slow),
        {"rule": "adaptive", "n_steps": "auto"},
        pytest.param({"skip": 1e-3}, marks=pytest.mark.slow),
    ],
    ids=lambda asked: " ".join(map(str, asked.values())) or "black",
)
def test_masks_and_predictions_do_not_depend_on_shards(study, asked):
    attribution = ATTRIBUTION | asked
    whole = run(study / "one", attribution=attribution)
    expected = {name: records_in(study / "one", name)[0] for name in CONDITIONS}
    for shards in (4, 17):
        folder = study / f"{shards}"
        images, scores, masks = run(folder, shards=shards, attribution=attribution)
        for one, many in ((whole[0], images), (whole[1], scores), (whole[2:], [masks])):
            joined = np.concatenate([arrays.read_array(path) for path in many])
            assert joined.tobytes() == arrays.read_array(one[0]).tobytes()
        for name in CONDITIONS:
            found, _ = records_in(folder, name)
            order = ["name", "draw"]
            pd.testing.assert_frame_equal(
                found.sort_values(order, ignore_index=True),
                expected[name].sort_values(order, ignore_index=True),
                check_exact=True,
            )
        for curve in ("keep-black", "drop-black", "keep-black-random"):
            ours, theirs = (
                arrays.read_array(where / "curves" / f"{curve}.npy")
                for where in (folder, study / "one")
            )
            assert ours.tobytes() == theirs.tobytes()


CONDITIONS = ("original", "keep-50-black", "drop-50-black", "drop-50-black-random")


def test_bad_images_are_all_named_and_nothing_is_written(study):
    (study / "images" / "cat" / "a text;.jpg").write_text("no image")
    truncated = study / "images" / "dog" / "01.png"
    truncated.write_bytes(truncated.read_bytes()[:200])
    Image.new("RGB", (10, 10)).save(study / "images" / "emu" / "small.png")
    with pytest.raises(InputError) as caught:
        run(study / "out")
    message = str(caught.value)
    assert message.startswith("3 of 23 images cannot be used")
    for name in ("a text;.jpg", "01.png", "small.png", "on_bad_image"):
        assert name in message
    assert [path.name for path in (study / "out").iterdir()] == ["index.parquet"]


def test_skipped_images_are_left_out_and_listed(study):
    bad = study / "images" / "cat" / "00.png"
    bad.write_text("no image")
    images, _, masks = run(study / "out", shards=3, on_bad_image="skip")
    assert len(pixels_of(images)) == len(arrays.read_array(masks)) == N_IMAGES - 1
    records, made_by = records_in(study / "out")
    assert "cat/00.png" not in set(records["name"])
    assert [name for name, _ in made_by["skipped"]] == ["cat/00.png"]


@pytest.mark.parametrize("on_bad_image", ["skip", "error"])
def test_files_and_errors_do_not_depend_on_workers(study, bomb, on_bad_image):
    (study / "images" / "cat" / "00.png").write_text("no image")
    bomb(study / "images" / "dog" / "13.png", 60_000, 60_000)
    Image.new("RGB", (10, 10)).save(study / "images" / "emu" / "20.png")
    run_index({"source": "folder", "root": "images"}, study / "index.parquet", seed=0)
    found = []
    for workers in (1, 2, 5):
        images = study / f"{workers}.npy"
        geometry = Geometry(SIZE, None, "bilinear")
        options = {"on_bad_image": on_bad_image, "workers": workers}
        try:
            run_prepare(study / "index.parquet", images, geometry=geometry, **options)
        except InputError as error:
            found.append(str(error))
        else:
            found.append((images.read_bytes(), arrays.records_of(images).read_bytes()))
    assert found[0] == found[1] == found[2]
    if on_bad_image == "error":
        places = [found[0].index(name) for name in ("cat/00", "dog/13", "emu/20")]
        assert places == sorted(places)
    else:
        skipped = arrays.read_settings(study / "5.parquet")["skipped"]
        assert [name for name, _ in skipped] == ["cat/00.png", "dog/13.png", "emu/20.png"]
    assert len(list(study.glob("*.npy"))) == (3 if on_bad_image == "skip" else 0)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_work_side_by_side_and_a_few_images_ahead(workers):
    ready = threading.Barrier(workers, timeout=60)
    taken = []

    def work(item):
        ready.wait()  # for ever, if there were fewer workers
        return -item

    done = in_order(work, (taken.append(i) or i for i in range(20 * workers)), workers=workers)
    for i, result in enumerate(done):
        assert result == -i
        assert len(taken) - i <= WINDOW * workers + 1  # the last of them waits for its turn
    assert i + 1 == 20 * workers


def test_few_images_are_open_at_once(study, monkeypatch):
    index, n_open, most = study / "index.parquet", [], []
    run_index({"source": "demo", "n_images": 60}, index, seed=0)

    def opener(dataset, *, seed):
        def open_image(record):
            n_open.append(record.name)
            most.append(len(n_open))
            return Image.new("RGB", (SIZE, SIZE))

        return open_image

    def append(images, rows):
        n_open.pop()
        images._checksums.append(0)

    monkeypatch.setattr("igmask.steps.prepare.opener", opener)
    monkeypatch.setattr(arrays.ArrayWriter, "append", append)
    geometry = Geometry(SIZE, None, "bilinear")
    run_prepare(index, study / "x.npy", geometry=geometry, workers=2)
    assert len(most) == 60
    assert max(most) <= 2 * WINDOW


def test_a_dataset_of_bad_images_only_is_an_error(study):
    for path in (study / "images").glob("*/*.png"):
        path.write_text("no image")
    with pytest.raises(InputError, match="no image of the dataset is usable"):
        run(study / "out", on_bad_image="skip")


@pytest.mark.parametrize("shards", [3, 25])
def test_shards_may_be_empty(study, shards):
    for path in (study / "images" / "dog").glob("*.png"):
        path.write_text("no image")
    expected = run(study / "one", on_bad_image="skip")
    found = run(study / "out", shards=shards, on_bad_image="skip")
    assert 0 in [len(arrays.read_array(path)) for path in found[0]]
    assert arrays.read_array(found[2]).tobytes() == arrays.read_array(expected[2]).tobytes()
    records, _ = records_in(study / "out")
    assert records["predicted"].dtype == "int64"
    assert len(records) == 14


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"modes": ("keep", "kep")}, "unknown mode 'kep'; choose from keep, drop"),
        ({"fills": ("blac",)}, "unknown fill 'blac'"),
        ({"controls": ("shufled",)}, "unknown control 'shufled'; choose from random"),
    ],
)
def test_unknown_modes_fills_and_controls_are_named_before_any_work(wrong, message):
    with pytest.raises(InputError, match=message):
        run_evaluate([], Path(), model=network(), **wrong)


def test_an_entry_of_the_output_goes_through_all_steps(study):
    told = config.model({"source": "steps_net:Told", "size": SIZE, "output": "logits"})
    _, *arrays_of_told = run(study / "told", model=told)
    _, *arrays_of_plain = run(study / "plain")
    for ours, theirs in zip(arrays_of_told, arrays_of_plain, strict=True):
        paths = zip(np.atleast_1d(ours), np.atleast_1d(theirs), strict=True)
        assert all(one.read_bytes() == other.read_bytes() for one, other in paths)
    for condition in ("original", "keep-50-black"):
        ours, theirs = (records_in(study / name, condition)[0] for name in ("told", "plain"))
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_two_masks_of_one_p_are_refused(study):
    images, _, masks = run(study / "out")
    with pytest.raises(InputError, match="masks of p = 50 are there twice"):
        run_evaluate(images, study / "x", model=network(), masks=(masks, masks))


def test_outputs_that_are_not_finite_name_the_images(study):
    images, _, masks = run(study / "out")
    broken = config.model({"source": "steps_net:NanOnHalfBlack", "size": SIZE})
    with pytest.raises(InputError, match=r"NaN or infinite outputs for the images \['cat/00"):
        run_evaluate(images, study / "x", model=broken, masks=(masks,))
    assert [path.name for path in (study / "x").glob("*.parquet")] == ["original.parquet"]


def test_a_baseline_file_is_checked_before_any_work(study):
    index = study / "index.parquet"
    run_index({"source": "folder", "root": "images"}, index, seed=0)
    Image.new("RGB", (8, 8)).save("small.png")
    (study / "text.png").write_text("no image")
    for name, message in (("small.png", "8×8 pixels are fewer"), ("text.png", "not an image")):
        with pytest.raises(InputError, match=f"the baseline {name}: .*{message}"):
            run_preflight(index, study / "x.json", model=network(), baseline=name)


def test_labels_outside_the_model_are_named_before_any_work(study):
    index = study / "index.parquet"
    run_index({"source": "folder", "root": "images"}, index, seed=0)
    with pytest.raises(InputError, match=r"7 labels are outside.*0 … 1.*'emu/02.png': 2"):
        run_preflight(index, study / "x.json", model=network(arguments={"classes": 2}))
    assert not (study / "x.json").exists()
    run_preflight(index, study / "x.json", model=network())
    found = json.loads((study / "x.json").read_text())
    assert found["n_classes"] == 3
    assert found["class_names"] == ["cat", "dog", "emu"]


def test_fewer_folders_than_classes_are_an_error_before_any_work(study):
    index = study / "index.parquet"
    run_index({"source": "folder", "root": "images"}, index, seed=0)
    large = network(arguments={"classes": 5})
    with pytest.raises(InputError, match="the network has 5 classes, and the dataset 3 class f"):
        run_preflight(index, study / "x.json", model=large)
    assert not (study / "x.json").exists()
    (study / "names.txt").write_text("ant\nbee\ncat\ndog\nemu\n")
    settings = {"source": "folder", "root": "images", "classes": "names.txt"}
    run_index(settings, index, seed=0)
    run_preflight(index, study / "x.json", model=large)
    found = json.loads((study / "x.json").read_text())
    assert found["class_names"] == ["ant", "bee", "cat", "dog", "emu"]


def test_the_index_says_that_numbers_are_labels(study, capsys):
    settings = {"source": "folder", "root": "images"}
    run_index(settings, study / "index.parquet", seed=0)
    assert "numbers" not in capsys.readouterr().err
    for name, number in (("cat", "10"), ("dog", "2"), ("emu", "0")):
        (study / "images" / name).rename(study / "images" / number)
    run_index(settings, study / "index.parquet", seed=0)
    assert "each counts as the class of its number" in capsys.readouterr().err
    records, _ = arrays.read_records(study / "index.parquet")
    assert {Path(name).parts[0] for name in records["name"]} == {"0", "2", "10"}
    assert all(int(Path(r.name).parts[0]) == r.label for r in records.itertuples(index=False))


def test_the_index_keeps_what_tells_a_changed_file_and_prepare_does_not(study):
    settings = {"source": "folder", "root": "images", "scale": 255}
    run_index(settings, study / "index.parquet", seed=0)
    records, made_by = arrays.read_records(study / "index.parquet")
    files = [Path(path).stat() for path in records["path"]]
    assert records["size"].tolist() == [file.st_size for file in files]
    assert records["mtime_ns"].tolist() == [file.st_mtime_ns for file in files]
    assert made_by["dataset"]["scale"] == 255
    geometry = Geometry(SIZE, None, "bilinear")
    run_prepare(study / "index.parquet", study / "images.npy", geometry=geometry)
    records, made_by = arrays.read_records(study / "images.parquet")
    assert list(records) == ["name", "label", "position", arrays.CHECKSUM]
    assert made_by["dataset"]["scale"] == 255


def test_grey_of_more_than_8_bits_needs_a_scale(study):
    grey = np.linspace(0, 4095, 20 * 18).reshape(20, 18).astype(np.uint16)
    Image.fromarray(grey).save(study / "images" / "cat" / "00.png")
    settings = {"source": "folder", "root": "images"}
    geometry = Geometry(SIZE, None, "bilinear")
    run_index(settings, study / "index.parquet", seed=0)
    with pytest.raises(InputError, match=r"1 of 21 .*\n.*cat/00\.png: its mode is I;16"):
        run_prepare(study / "index.parquet", study / "images.npy", geometry=geometry)
    run_index(settings | {"scale": 4095}, study / "index.parquet", seed=0)
    run_prepare(study / "index.parquet", study / "images.npy", geometry=geometry)
    found = arrays.read_array(study / "images.npy")[0]
    exact = 255 / 4095 * grey[2:18, 1:17].astype(float)[:, :, None]
    assert abs(found - exact).max() <= 0.5 + 1e-9
    with pytest.raises(InputError, match=r"the baseline images/cat/00\.png: .*mode is I;16"):
        run_preflight(
            study / "index.parquet",
            study / "x.json",
            model=network(),
            baseline="images/cat/00.png",
        )


@pytest.mark.parametrize(
    ("names", "outputs", "message"),
    [
        ("background cat dog emu", 3, "lists 4 classes, and the model has 3 outputs.*a background"),
        ("cat dog emu", 4, "lists 3 classes, and the model has 4 outputs.*a background"),
        ("cat dog emu", 1000, "lists 3 classes, and the model has 1,000 outputs.*another network"),
        ("cat dog emu", 3, None),
        ({"cat": 0, "dog": 3, "emu": 7}, 10, None),  # which is which is said
        ({"cat": 0, "dog": 3, "emu": 4}, 10, None),
        ({"cat": 0, "dog": 1, "emu": 2}, 10, "lists 3 classes"),
        ({"cat": 0, "dog": 3, "emu": 2, "fox": 10}, 10, "lists 11 classes"),
    ],
)
def test_a_class_list_has_as_many_classes_as_the_model_has_outputs(study, names, outputs, message):
    path = study / ("classes.txt" if isinstance(names, str) else "classes.json")
    path.write_text("\n".join(names.split()) if isinstance(names, str) else json.dumps(names))
    index, images = study / "index.parquet", study / "images.npy"
    dataset = {"source": "folder", "root": "images", "classes": path.name}
    run_index(dataset, index, seed=0)
    run_prepare(index, images, geometry=Geometry(SIZE, None, "bilinear"))
    model = network(arguments={"classes": outputs})
    for work in (
        lambda: run_preflight(index, study / "x.json", model=model),
        lambda: run_evaluate([images], study / "records", model=model),
    ):
        if message is None:
            work()
        else:
            with pytest.raises(InputError, match=f"{path.name} {message}"):
                work()


def test_the_demos_classes_are_ten(study):
    run_index({"source": "demo", "n_images": 20}, study / "index.parquet", seed=0)
    with pytest.raises(InputError, match="the demo lists 10 classes, and the model has 12 outputs"):
        run_preflight(
            study / "index.parquet", study / "x.json", model=network(arguments={"classes": 12})
        )


def test_attributions_that_are_not_finite_name_the_images(study):
    model = config.model({"source": "steps_net:Broken", "size": SIZE})
    with pytest.raises(InputError, match=r"cat/00\.png: NaN or infinite gradient at step 1, α"):
        run(study / "out", model=model)
    assert not list((study / "out").glob("scores*"))


def test_masks_of_other_images_are_refused(study):
    _, _, masks = run(study / "out")
    (study / "images" / "cat" / "00.png").unlink()
    fewer, _, _ = run(study / "fewer")
    with pytest.raises(InputError, match="belong to other images"):
        run_evaluate(fewer, study / "x", model=network(), masks=(masks,))
    assert not (study / "x").exists()


@pytest.mark.parametrize("baseline", ["white", "mean", "blur", "file.png"])
def test_every_baseline_runs_and_differs_from_black(study, baseline):
    Image.new("RGB", (30, 30), (200, 30, 90)).save("file.png")
    run(study / "black")
    attribution = ATTRIBUTION | {"baseline": baseline}
    run(study / "other", attribution=attribution, model=network(mean=[0.4, 0.5, 0.6]))
    black, other = (
        arrays.read_array(study / folder / "scores-1-of-1.npy") for folder in ("black", "other")
    )
    assert black.shape == other.shape
    assert not np.allclose(black, other)


def test_the_label_can_be_the_target(study):
    run(study / "out", attribution=ATTRIBUTION | {"target": "label"})
    records, _ = arrays.read_records(study / "out" / "scores-1-of-1.parquet")
    assert records["target"].tolist() == records["label"].tolist()
    assert records["target"].tolist() != records["predicted"].tolist()


def test_automatic_steps_are_recorded_for_each_image(study):
    auto = ATTRIBUTION | {"n_steps": "auto", "tolerance": 0.02, "most_steps": 200}
    _, scores, _ = run(study / "auto", attribution=auto)
    records, made_by = arrays.read_records(arrays.records_of(scores[0]))
    assert made_by["attribution"]["n_steps"] == "auto"
    assert set(records["n_steps"]) <= {50, 100, 200}
    fewer = records[records["n_steps"] < 200]
    assert len(fewer)
    assert (fewer["relative_completeness"] <= 0.02).all()


def test_half_precision_is_close_to_single(study):
    found = []
    for precision in ("fp32", "bf16"):
        attribution = ATTRIBUTION | {"precision": precision}
        _, scores, _ = run(study / precision, attribution=attribution)
        found.append(arrays.read_array(scores[0])[:, 0])
    assert not np.array_equal(*found)
    assert np.linalg.norm(found[1] - found[0]) < 0.1 * np.linalg.norm(found[0])


def test_a_device_is_taken_before_a_network_comes_to_it(study, monkeypatch):
    images, _, masks = run(study / "out")

    def taken(name):
        raise InputError(f"{name} is taken")

    monkeypatch.setattr("igmask.steps.attribute.take_device", taken)
    monkeypatch.setattr("igmask.steps.evaluate.take_device", taken)
    monkeypatch.setattr(models, "load", None)
    options = {"model": network(), "device": "cuda:1"}
    with pytest.raises(InputError, match="cuda:1 is taken"):
        run_attribute(
            images[0], study / "x.npy", **options, attribution=ATTRIBUTION, side=3, seed=0
        )
    with pytest.raises(InputError, match="cuda:1 is taken"):
        run_evaluate(images, study / "x", masks=(masks,), **options)
