"""The experiment on photographs and a trained network: the figures that are known of it."""

import numpy as np
import pytest
from PIL import Image
from steps import run_attribute, run_evaluate, run_index, run_mask, run_prepare

from igmask import arrays
from igmask.asked import config, fields
from igmask.asked.settings import Geometry
from igmask.engine.ig import Auto, integrated_gradients, overlap
from igmask.inputs import models
from igmask.report.tables import collect

# By images a class: accuracies, areas, and the mean and median relative completeness. Of all 1,000
# images as they are known; of 60 by Captum's riemann_right and a sort in NumPy.
KNOWN = {
    6: (
        {"original": [80], "keep": [53.3, 30, 15, 10], "drop": [20, 30, 45, 55]},
        [63.18, 36.67, 20.81, 10.06],
        (0.0532, 0.0275),
    ),
    100: (
        {"original": [80.4], "keep": [56.7, 31.5, 18.8, 13.1], "drop": [18.7, 22.2, 34, 51.7]},
        [63.8, 37.3, 21.5, 10.5],
        (0.055, 0.03),
    ),
}


def resnet20(cifar):
    return config.model(
        {
            "source": "igmask.zoo:cifar_resnet",
            "arguments": {"depth": 20},
            "weights": str(cifar / "weights" / "resnet20-12fca82f.th"),
            "key": "state_dict",
            "prefix": "module.",
            "size": 32,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        }
    )


@pytest.fixture(scope="module", params=[6, pytest.param(100, marks=pytest.mark.slow)])
def done(request, cifar, tmp_path_factory):
    """Every step for ResNet-20 and so many images a class, with defaults everywhere.

    (images a class, table of accuracies, records of the attributions)
    """
    model = resnet20(cifar)
    study = config.parse({"dataset": {"source": "demo"}, "models": {"a": fields.plain(model)}})
    folder = tmp_path_factory.mktemp("cifar")
    images, scores = [folder / "images.npy"], [folder / "scores.npy"]
    settings = {"source": "folder", "root": str(cifar / "test"), "limit": request.param}
    run_index(settings, folder / "index.parquet", seed=0)
    geometry = Geometry(32, None, "bilinear")
    run_prepare(folder / "index.parquet", images[0], geometry=geometry)
    run_attribute(
        images[0],
        scores[0],
        model=model,
        attribution=study.attribution,
        side=study.squares.side,
        seed=study.seed,
        batch_size=study.compute.batch_size,
    )
    percents, how = study.selection.p, {"by": "mass", "score": "positive"}
    run_mask(scores, folder / "masks", p=percents, **how)
    masks = tuple(folder / "masks" / f"{p}.npy" for p in percents)
    run_evaluate(images, folder / "records", model=model, masks=masks, controls=())
    table = collect((folder / "records").glob("*.parquet")).accuracy
    return request.param, table, arrays.read_records(folder / "scores.parquet")[0]


def test_accuracies_of_resnet20_are_those_known(done):
    n_per_class, table, _ = done
    for mode, known in KNOWN[n_per_class][0].items():
        found = table.loc[table["mode"] == mode, "top1"]
        one_image = 10 / n_per_class
        np.testing.assert_allclose(found, known, atol=max(0.3, one_image) + 1e-9)  # may flip


def test_areas_are_those_known(done):
    n_per_class, table, _ = done
    keep, drop = (table.loc[table["mode"] == mode, "area_kept"] for mode in ("keep", "drop"))
    np.testing.assert_allclose(keep, KNOWN[n_per_class][1], atol=0.1)
    np.testing.assert_allclose(keep.to_numpy() + drop.to_numpy(), 100, atol=1e-9)


def test_completeness_is_what_50_steps_give(done):
    n_per_class, _, records = done
    mean, median = KNOWN[n_per_class][2]
    assert records["relative_completeness"].mean() == pytest.approx(mean, abs=0.01)
    assert records["relative_completeness"].median() == pytest.approx(median, abs=0.005)


@pytest.fixture(scope="module")
def trained(cifar):
    """ResNet-20, four photographs, and the converged attributions of their probabilities."""
    network = models.load(resnet20(cifar))
    paths = sorted((cifar / "test").glob("*/*.jpg"))[::250]
    images = models.pixels(np.stack([np.asarray(Image.open(path)) for path in paths]))
    fine = integrated_gradients(network, images, rule="trapezoid", n_steps=301)
    return network, images, fine.values


def error(found, exact):
    return float(((found - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).mean())


def test_few_steps_where_f_changes_are_worth_many_uniform_ones(trained):
    network, images, exact = trained
    right, adaptive = (
        integrated_gradients(network, images, rule=rule, n_steps=m).values
        for rule, m in (("right", 50), ("adaptive", 25))
    )
    assert error(adaptive, exact) < error(right, exact)
    agreed = [float(overlap(found, exact, p=50).mean()) for found in (right, adaptive)]
    assert agreed[1] > agreed[0] - 0.01


def test_automatic_steps_where_f_changes_are_fewer_and_nearer(trained):
    network, images, exact = trained
    right, adaptive = (
        integrated_gradients(network, images, rule=rule, n_steps=Auto())
        for rule in ("right", "adaptive")
    )
    assert adaptive.n_steps.sum() < 0.7 * right.n_steps.sum()
    assert overlap(adaptive.values, exact, p=50).mean() > 0.97
    assert error(adaptive.values, exact) < 0.03


def test_masks_without_the_steps_of_a_flat_softmax_are_the_same(trained):
    network, images, _ = trained
    full, skipped = (integrated_gradients(network, images, skip=skip) for skip in (None, 1e-4))
    assert skipped.n_steps.sum() < 0.95 * full.n_steps.sum()
    assert error(skipped.values, full.values) < 1e-3
    for p in (50, 90):
        assert overlap(skipped.values, full.values, p=p).min() > 0.98
