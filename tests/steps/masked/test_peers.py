"""Curves beside those of other packages, from the same rankings of the same images.

torch-cam is among the packages for tests; the others come with the extra `peers`, in an environment
of their own.
"""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from igmask import arrays
from igmask.kernels import inpainted
from igmask.report.areas import trapezoids
from igmask.steps.masked.controls import Dataset
from igmask.steps.masked.shown import Network
from igmask.steps.masked.sweep import sweep

N, SIZE, POINTS = 6, 12, 13  # so that all steps are of as many pixels


class Normalize(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("std", torch.ones(3, 1, 1))

    def forward(self, x):
        return x


@pytest.fixture(scope="module")
def setting():
    """A network, images in [0, 1], a map of each with many equal values, and classes."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    network = nn.Sequential(Normalize(), nn.Sequential(*layers, nn.Linear(24, 5))).eval()
    for one in network.parameters():
        one.requires_grad_(False).mul_(3)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)
    maps = rng.integers(0, 9, (N, SIZE, SIZE)).astype(np.float32)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    return SimpleNamespace(
        network=network, pixels=pixels, maps=maps, images=images, classes=network(images).argmax(1)
    )


def curve(setting, tmp_path, mode, fill="black"):
    """Our curve (N, POINTS, 4), of squares of one pixel."""
    records = pd.DataFrame({"name": [str(i) for i in range(N)], "label": 0, "position": range(N)})
    records["predicted"] = setting.classes.numpy()
    shards = {}
    for name, values in (
        ("images", setting.pixels),
        ("scores", np.stack([setting.maps, 0 * setting.maps], axis=1)),
    ):
        path = tmp_path / f"{name}.npy"
        with arrays.writing(path, values.dtype, values.shape[1:]) as writer:
            writer.append(values)
        saved = records.assign(crc32=writer.checksums)
        arrays.write_records(arrays.records_of(path), saved, {"side": 1, "skipped": []})
        shards[name] = arrays.Shards([path])
    made_by = {"mode": mode, "fill": fill, "mask": "selection", "side": 1, "points": POINTS}
    whole = Dataset(shards["scores"], "positive", 0)
    network = Network(setting.network)
    rows = sweep(mode, network, shards["images"], whole, made_by, 4)
    return np.concatenate(list(rows)).astype(np.float64)


def area(found):
    return trapezoids(found[:, :, 1], found[:, :, 0])


def test_insertion_and_deletion_are_torch_cams(setting, tmp_path):
    metrics = pytest.importorskip("torchcam.metrics", reason="torch-cam is not installed")

    class Extractor:
        """Gives the maps, as if they were of a CAM."""

        model = setting.network

        def __call__(self, *_, **__):
            return [torch.from_numpy(setting.maps)]

        def fuse_cams(self, cams):
            return cams[0]

        def _hooks_off(self):
            return torch.no_grad()

    softmax = partial(torch.softmax, dim=-1)
    metric = metrics.DeletionInsertionMetric(Extractor(), softmax, steps=POINTS - 1)
    metric.update(setting.images)
    theirs = metric.summary()
    assert area(curve(setting, tmp_path, "keep")).mean() == pytest.approx(
        theirs["insertion_auc"], abs=1e-6
    )
    assert area(curve(setting, tmp_path, "drop")).mean() == pytest.approx(
        theirs["deletion_auc"], abs=1e-6
    )


@pytest.mark.filterwarnings("ignore")  # of its own, about NumPy
def test_the_fill_is_that_of_pytorch_grad_cam(setting):
    road = pytest.importorskip("pytorch_grad_cam.metrics.road", reason="grad-cam is not installed")
    kept = torch.from_numpy(setting.maps > 5)
    found = inpainted(setting.images, kept)
    for image, mask, filled in zip(setting.images, kept, found, strict=True):
        theirs = road.NoisyLinearImputer(noise=0)(image, mask.float())
        torch.testing.assert_close(filled, theirs, atol=1e-4, rtol=0)


def test_pixel_flipping_is_quantus(setting, tmp_path):
    quantus = pytest.importorskip("quantus", reason="quantus is not installed")
    # A map without ties, three times: Quantus flips values, three a pixel, and sorts them unstably.
    ordered = setting.maps + np.linspace(0.5, 0, SIZE**2).reshape(SIZE, SIZE)
    metric = quantus.PixelFlipping(
        features_in_step=3 * SIZE**2 // (POINTS - 1),
        normalise=False,
        perturb_baseline="black",
        disable_warnings=True,
    )
    theirs = metric(
        model=setting.network,
        x_batch=setting.images.numpy(),
        y_batch=setting.classes.numpy(),
        a_batch=np.repeat(ordered[:, None], 3, axis=1),
        softmax=True,
        device="cpu",
    )
    ours = curve(
        SimpleNamespace(**vars(setting) | {"maps": ordered.astype(np.float32)}), tmp_path, "drop"
    )
    np.testing.assert_allclose(np.array(theirs), ours[:, 1:, 1], atol=1e-6)  # without the original
