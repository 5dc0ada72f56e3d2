"""ROAD's fill beside pytorch-grad-cam's and SciPy's; a curve beside bare forward passes; memory.

    pip install grad-cam==1.5.7
    python benchmarks/curves.py benchmarks/results/curves-cpu.md

Random photographs of 224², 90 % of the squares masked; ResNet-20 with random weights on random
images of 32². Each way takes turns with the others; memory is of processes of their own.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import psutil
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch.nn import functional

from igmask import arrays, plain
from igmask.asked import config
from igmask.bench.pages import describe, page
from igmask.devices import keep_freed_memory
from igmask.inputs import models
from igmask.kernels import inpainted, to_pixels
from igmask.steps.masked.controls import Dataset
from igmask.steps.masked.shown import Network
from igmask.steps.masked.sweep import sweep

SIZE, N_FILLED, N_PEER, MASKED, TURNS = 224, 32, 2, 0.9, 3
POINTS, N_SHOWN, BATCH = 21, 1000, 64
PACKAGES = ("igmask", "torch", "numpy", "scipy", "grad-cam")


def filled(kind: str = "scattered") -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random images with grain; masks of squares here and there, or of what is highest."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((N_FILLED, 3, 14, 14), dtype=np.float32))
    images = functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")
    images += torch.from_numpy(rng.normal(0, 0.03, images.shape).astype(np.float32))
    scores = torch.from_numpy(rng.random((N_FILLED, 1, *plain.grid(SIZE, SIZE, 3))))
    if kind == "in one piece":
        scores = functional.interpolate(scores[:, :, :7, :7], scores.shape[2:], mode="bicubic")
    kept = scores[:, 0] > scores.flatten(1).quantile(MASKED, dim=1).view(-1, 1, 1)
    return images.clamp(0, 1), to_pixels(kept, SIZE, SIZE)


def by_scipy(images: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Fill by one sparse factorisation an image, of a matrix that is put together as a whole."""
    found = images.clone()
    number = torch.arange(SIZE * SIZE).view(SIZE, SIZE).numpy()
    pairs, weights = [], []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = number[: SIZE - dy, max(0, -dx) : SIZE - max(0, dx)]
        there = number[dy:, max(0, dx) : SIZE - max(0, -dx)]
        pairs.append(np.stack([here.ravel(), there.ravel()]))
        weights.append(np.full(here.size, 1 / 12 if dy and dx else 1 / 6))
    (i, j), w = np.concatenate(pairs, axis=1), np.concatenate(weights)
    both = scipy.sparse.coo_matrix((w, (i, j)), (SIZE * SIZE,) * 2)
    both = (both + both.T).tocsr()
    system = (scipy.sparse.diags(np.asarray(both.sum(axis=1)).ravel()) - both).tocsr()
    for one, image, mask in zip(found, images, kept, strict=True):
        known = mask.flatten().numpy()
        pixels = image.flatten(1).numpy().T.astype(np.float64)
        right = -system[~known][:, known] @ pixels[known]
        solve = scipy.sparse.linalg.splu(system[~known][:, ~known].tocsc())
        pixels[~known] = solve.solve(right)
        one.copy_(torch.from_numpy(pixels.T).view_as(one))
    return found


def by_peer(images: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Fill by pytorch-grad-cam, without its noise."""
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    fill = NoisyLinearImputer(noise=0)
    pairs = zip(images, kept, strict=True)
    return torch.stack([fill(image, mask.float()) for image, mask in pairs])


def rate(work: Callable[[], torch.Tensor], n: int) -> tuple[float, torch.Tensor]:
    """Return images a second."""
    start = time.perf_counter()
    found = work()
    return n / (time.perf_counter() - start), found


def fills(kind: str) -> list[str]:
    """Return lines of images a second, and of the largest differences."""
    images, kept = filled(kind)
    ways = {
        "igmask": (inpainted, N_FILLED),
        "SciPy, a factorisation an image": (by_scipy, N_PEER),
        "pytorch-grad-cam 1.5.7": (by_peer, N_PEER),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for way, _ in ways.values():
        way(images[:1], kept[:1])  # which imports what it needs
    for _ in range(TURNS):
        for name, (way, n) in ways.items():
            speed, results[name] = rate(lambda way=way, n=n: way(images[:n], kept[:n]), n)
            rates[name].append(speed)
    exact, rows = results["SciPy, a factorisation an image"], []
    for name, speeds in rates.items():
        off = float((results[name][:N_PEER] - exact).abs().max())
        ratio = median(rates["igmask"]) / median(speeds)
        told = f"{median(speeds):.2f} | {min(speeds):.2f} – {max(speeds):.2f}"
        rows.append(f"| {kind} | {name} | {told} | {ratio:.1f} | {off:.1e} |")
    return rows


def dataset(folder: Path, n: int) -> tuple[arrays.Shards, Dataset]:
    """Random images, and random scores of their squares."""
    rng = np.random.default_rng(0)
    paths = {}
    kinds = (("images", (32, 32, 3), np.uint8), ("scores", (2, 11, 11), np.float32))
    for name, shape, dtype in kinds:
        paths[name] = folder / f"{name}.npy"
        with arrays.writing(paths[name], dtype, shape) as writer:
            for start in range(0, n, 250):
                writer.append(rng.integers(0, 256, (min(250, n - start), *shape)).astype(dtype))
        records = pd.DataFrame({"name": [str(i) for i in range(n)], "label": 0, "predicted": 0})
        records = records.assign(position=range(n), crc32=writer.checksums)
        arrays.write_records(arrays.records_of(paths[name]), records, {"side": 3, "skipped": []})
    return arrays.Shards([paths["images"]]), Dataset(
        arrays.Shards([paths["scores"]]), "positive", 0
    )


def network() -> Network:
    """ResNet-20, whose time does not depend on its weights."""
    settings = {"source": "igmask.zoo:cifar_resnet", "arguments": {"depth": 20}, "size": 32}
    return Network(models.load(config.model(settings | {"weights": "none"})))


def curve(images: arrays.Shards, of: Dataset, net: Network) -> int:
    """Trace both directions; return how many images were shown."""
    n = 0
    for mode in ("keep", "drop"):
        made_by = {"mode": mode, "fill": "black", "mask": "selection", "side": 3, "points": POINTS}
        n += sum(rows.size // 4 for rows in sweep(mode, net, images, of, made_by, BATCH))
    return n


def bare(images: arrays.Shards, net: Network) -> int:
    """Show the images as often, as they are."""
    n = 0
    for batch in images.batches(BATCH, full=True):
        shown = models.pixels(batch.values)
        for _ in range(2 * POINTS):
            with torch.no_grad():
                net.whole(shown)
            n += batch.n_live
    return n


def curves() -> list[str]:
    """Return a line of seconds."""
    with tempfile.TemporaryDirectory() as name:
        images, of = dataset(Path(name), N_SHOWN)
        net = network()
        bare(images, net)
        times: dict[str, list[float]] = {"curve": [], "bare": []}
        for _ in range(TURNS):
            for way, work in (
                ("bare", lambda: bare(images, net)),
                ("curve", lambda: curve(images, of, net)),
            ):
                start = time.perf_counter()
                assert work() == 2 * POINTS * N_SHOWN
                times[way].append(time.perf_counter() - start)
        with_curve, without = median(times["curve"]), median(times["bare"])
        all_of = ", ".join(f"{a:.1f} / {b:.1f}" for a, b in zip(*times.values(), strict=True))
    return [f"| {with_curve:.1f} | {without:.1f} | {with_curve / without:.3f} | {all_of} |"]


def memory(of: str, n: int) -> float:
    """Return the MiB that a process of its own takes more at its most than before the work."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory", of, str(n)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def measure_memory(of: str, n: int) -> None:
    """Print it, of this process."""
    if of == "fill":
        images, kept = (one[:n] for one in filled())
        inpainted(images[:1], kept[:1])
        before = psutil.Process().memory_info().rss
        inpainted(images, kept)
    else:
        with tempfile.TemporaryDirectory() as name:
            images, of_scores = dataset(Path(name), n)
            net = network()
            before = psutil.Process().memory_info().rss
            curve(images, of_scores, net)
    print(int(peak()) / 2**10 - before / 2**20)


def peak() -> str:
    """Return the KiB that this process had at its most (Linux)."""
    said = Path("/proc/self/status").read_text("utf-8")
    return next(line.split()[1] for line in said.splitlines() if line.startswith("VmHWM"))


def mib(n: int) -> str:
    """Return the size of n images."""
    return f"{3 * n * SIZE**2 * 4 / 2**20:.0f}"


def parts() -> Iterator[list[str]]:
    """Yield the page's tables."""
    yield [
        f"ROAD's fill: {SIZE}×{SIZE}, {100 * MASKED:.0f} % of the squares masked, images a "
        f"second, median of {TURNS} turns; {N_FILLED} images, or {N_PEER} of the slower ways. "
        "Without noise; *off*: largest difference from SciPy's.\n",
        "| masks | | images a second | turns | igmask is faster | off |",
        "|---|---|---|---|---|---|",
        *fills("scattered"),
        *fills("in one piece"),
    ]
    yield [
        f"A curve of {POINTS} shares in two directions of ResNet-20 on {N_SHOWN:,} images, in "
        f"seconds, beside {2 * POINTS * N_SHOWN:,} bare forward passes of as large batches; "
        f"median of {TURNS} turns.\n",
        "| curve | bare | ratio | turns |",
        "|---|---|---|---|",
        *curves(),
    ]
    yield [
        "MiB beyond what the process had, at its most:\n",
        "| | |",
        "|---|---|",
        *(f"| fill of {n} images, {mib(n)} MiB | {memory('fill', n):.0f} |" for n in (8, N_FILLED)),
        *(f"| curve of {n:,} images | {memory('curve', n):.0f} |" for n in (1000, 5000)),
    ]


def main(path: Path) -> None:
    """Write the page."""
    keep_freed_memory()  # as in a study
    machine = describe("cpu", torch.get_num_threads(), PACKAGES)
    path.write_text(
        page("Curves and fills", machine, f"python benchmarks/curves.py {path}", *parts())
    )


if __name__ == "__main__":
    if sys.argv[1] == "--memory":
        measure_memory(sys.argv[2], int(sys.argv[3]))
    else:
        main(Path(sys.argv[1]))
