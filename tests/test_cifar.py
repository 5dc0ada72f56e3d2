"""The experiment on photographs and a trained network: the figures that are known of it."""

import numpy as np
import pytest
from steps import run_attribute, run_evaluate, run_index, run_mask, run_prepare

from igmask import arrays
from igmask.report.tables import collect
from igmask.study import config, fields
from igmask.study.settings import Geometry

TOP1 = {
    "original": [80.4],
    "keep": [56.7, 31.5, 18.8, 13.1],
    "drop": [18.7, 22.2, 34.0, 51.7],
}
AREA = [63.8, 37.3, 21.5, 10.5]


@pytest.fixture(scope="module")
def accuracy(cifar, tmp_path_factory):
    """Every step for ResNet-20 and the 1,000 images, with defaults everywhere."""
    model = config.model(
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
    study = config.parse({"dataset": {"source": "demo"}, "models": {"a": fields.plain(model)}})
    folder = tmp_path_factory.mktemp("cifar")
    images, scores = [folder / "images.npy"], [folder / "scores.npy"]
    settings = {"source": "folder", "root": str(cifar / "test")}
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
    conditions = ["original"] + [f"{m}-{p}-black" for p in percents for m in study.masking.modes]
    records = [folder / "records" / f"{name}.parquet" for name in conditions]
    return collect(records).accuracy, arrays.read_records(folder / "scores.parquet")[0]


@pytest.mark.parametrize("mode", TOP1)
def test_accuracies_of_resnet20_are_those_known(accuracy, mode):
    table, _ = accuracy
    found = table.loc[table["mode"] == mode, "top1"]
    np.testing.assert_allclose(found, TOP1[mode], atol=0.3001)  # single images may flip


def test_areas_are_those_known(accuracy):
    table, _ = accuracy
    keep, drop = (table.loc[table["mode"] == mode, "area_kept"] for mode in ("keep", "drop"))
    np.testing.assert_allclose(keep, AREA, atol=0.1)
    np.testing.assert_allclose(keep.to_numpy() + drop.to_numpy(), 100, atol=1e-9)


def test_completeness_is_what_50_steps_give(accuracy):
    _, records = accuracy
    assert records["relative_completeness"].mean() == pytest.approx(0.055, abs=0.01)
    assert records["relative_completeness"].median() == pytest.approx(0.03, abs=0.005)
