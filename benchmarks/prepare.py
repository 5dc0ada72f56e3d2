"""The preparation of images beside PyTorch's DataLoader, and how fast what is prepared is read.

    python benchmarks/prepare.py benchmarks/results/prepare-cpu.md

Draws its own photographs, JPEGs of 500×375, in a temporary folder. All ways take turns, so that
what disturbs the machine disturbs each of them.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

from igmask import arrays, devices
from igmask.asked.recipes import Index, Prepare
from igmask.asked.settings import Geometry
from igmask.bench.pages import describe, page, table
from igmask.inputs.sources import demo
from igmask.steps.index import index as write_index
from igmask.steps.prepare import prepare

N_IMAGES, N_ROUNDS, BATCH = 400, 3, 64
GEOMETRY = Geometry(224, 256, "bilinear")
PACKAGES = ("igmask", "pillow", "numpy", "torch", "torchvision")


def draw(root: Path, n_images: int) -> None:
    """Draw the demo's images at 500×375, with grain: about 50 kB each, a folder a class."""
    for i in range(n_images):
        path = root / demo.CLASSES[demo.label_of(i)] / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(demo.draw(i, split="test", seed=0)).resize((500, 375))
        grain = np.random.default_rng(i).normal(0, 6, (375, 500, 3))
        pixels = (np.asarray(image) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=90)


def load(root: Path, workers: int) -> None:
    """Go once through the images with a DataLoader, to the same pixels."""
    transform = Compose([Resize(GEOMETRY.resize), CenterCrop(GEOMETRY.size), PILToTensor()])
    for _ in DataLoader(ImageFolder(root, transform), BATCH, num_workers=workers):
        pass


def read_batches(path: Path) -> None:
    """Read every batch of an array as the steps after preparation do."""
    for _, _, rows in arrays.Shards([path]).batches(BATCH):
        rows.max()


def read_map(path: Path) -> None:
    """Read every batch of one memory map."""
    array = np.load(path, mmap_mode="r")
    for first in range(0, len(array), BATCH):
        array[first : first + BATCH].max()


def busy(work: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds that work takes, and how many cores it had meanwhile."""
    before, start = sum(os.times()[:4]), time.perf_counter()
    work()
    took = time.perf_counter() - start
    return took, (sum(os.times()[:4]) - before) / took


def main(place: Path) -> None:
    """Measure in rounds, and write the page."""
    with tempfile.TemporaryDirectory() as name:
        root, index, output = (Path(name) / part for part in ("photos", "index.parquet", "x.npy"))
        draw(root, N_IMAGES)
        write_index(index, Index({"source": "folder", "root": str(root)}))
        ways: dict[str, Callable[[], None]] = {
            f"prepare, {n} worker{'s' * (n > 1)}": (
                lambda n=n: prepare(index, output, Prepare(GEOMETRY), workers=n)
            )
            for n in (1, 2)
        }
        ways |= {f"DataLoader, num_workers={n}": lambda n=n: load(root, n) for n in (0, 1, 2)}
        ways |= {
            "arrays.Shards": lambda: read_batches(output),
            "np.load, mapped": lambda: read_map(output),
        }
        times = {way: [] for way in ways}
        for _ in range(N_ROUNDS):
            for way, work in ways.items():
                times[way].append(busy(work))
        gigabytes = arrays.read_array(output).nbytes / 1e9
    rows = [
        {
            "way": way,
            "rates": sorted((gigabytes if "." in way else N_IMAGES) / took for took, _ in found),
            "unit": "GB/s" if "." in way else "images/s",
            "cores": median(cores for _, cores in found),
        }
        for way, found in times.items()
    ]
    columns = {
        "way": lambda row: row["way"],
        "median": lambda row: f"{median(row['rates']):.3g} {row['unit']}",
        "slow – fast": lambda row: f"{row['rates'][0]:.3g} – {row['rates'][-1]:.3g}",
        "cores busy": lambda row: f"{row['cores']:.2f}",
    }
    text = (
        f"{N_IMAGES} drawn JPEGs of 500×375, to 224×224 by a resize of the shorter side to 256 and "
        f"a crop: written to an array, and gone through once in batches of {BATCH}. Both have the "
        "same pixels. The array is read from the page cache, and the largest value of each batch "
        f"found. {N_ROUNDS} rounds, in each all ways in this order. *Cores busy*: those that the "
        "way had; where one worker has less than one, others used the machine, and two "
        "show little."
    )
    title, command = "Preparation, and PyTorch's DataLoader", "python benchmarks/prepare.py"
    machine, results = describe("cpu", devices.n_cores(), PACKAGES), table(rows, columns)
    arrays.write_text(place, page(title, machine, f"{command} {place}", [text], results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
