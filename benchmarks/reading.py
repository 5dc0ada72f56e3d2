"""The same images from a folder, parquet files and tars: images a second, and memory.

    python benchmarks/reading.py benchmarks/results/reading-cpu.md

Draws its own photographs, JPEGs of 320×240, in a temporary folder: 1,000, each under many names.
Each measurement is a process of its own, and the ways take turns.
"""

import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from igmask import arrays
from igmask.asked import config
from igmask.asked.settings import Geometry
from igmask.errors import InputError
from igmask.inputs.data import index
from igmask.inputs.sources import demo
from igmask.steps.prepare import decoded

N_IMAGES, N_FEW, N_DRAWN, N_ROUNDS = 20_000, 2_000, 1_000, 2
A_SHARD, A_ROW_GROUP = 2_500, 100  # images; as Hugging Face ships ImageNet
GEOMETRY = Geometry(64, 64, "bilinear")
PACKAGES = ("igmask", "pillow", "numpy", "pandas", "pyarrow")
WAYS = {
    "folder": "folder, a file an image",
    "parquet": "parquet, row groups of 100",
    "webdataset": "tar, .jpg and .cls",
}


def drawn() -> Iterator[tuple[str, int, bytes]]:
    """Yield name, label and bytes of every image; bytes differ, by a comment, as pixels repeat."""
    files = []
    for i in range(N_DRAWN):
        image = Image.fromarray(demo.draw(i, split="test", seed=0)).resize((320, 240))
        grain = np.random.default_rng(i).normal(0, 6, (240, 320, 1))
        pixels = (np.asarray(image) + grain).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "jpeg", quality=90)
        files.append(file.getvalue())
    for i in range(N_IMAGES):
        said = f"{i:06d}".encode()
        comment = b"\xff\xfe" + (len(said) + 2).to_bytes(2, "big") + said
        content = files[i % N_DRAWN]
        yield f"{i:06d}", demo.label_of(i), content[:2] + comment + content[2:]


def write(root: Path) -> int:
    """Write all images in the three ways below a folder; return their bytes."""
    images, n_bytes = drawn(), 0
    for name in ("parquet", "webdataset"):
        (root / name).mkdir(parents=True)
    for number in range(N_IMAGES // A_SHARD):
        part = list(islice(images, A_SHARD))
        n_bytes += sum(len(content) for *_, content in part)
        with tarfile.open(root / "webdataset" / f"{number:03d}.tar", "w") as tar:
            for name, label, content in part:
                path = root / "folder" / demo.CLASSES[label] / f"{name}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                for ending, data in (("jpg", content), ("cls", str(label).encode())):
                    info = tarfile.TarInfo(f"{name}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        rows = [{"bytes": content, "path": f"{name}.jpg"} for name, _, content in part]
        table = pa.table({"image": rows, "label": [label for _, label, _ in part]})
        place = root / "parquet" / f"{number:03d}.parquet"
        pq.write_table(table, place, row_group_size=A_ROW_GROUP)
    return n_bytes


def read(way: str, root: str, n_images: int) -> dict[str, float]:
    """List the images, and read and decode the first of them; return what it took."""
    settings = {"source": way, "root": root}
    start = time.perf_counter()
    records, _ = index(config.dataset(settings))
    listed, cpu_before = time.perf_counter(), time.process_time()
    images = decoded(records[:n_images], {"dataset": settings, "seed": 0}, GEOMETRY, workers=1)
    if any(isinstance(image, InputError) for image in images):
        sys.exit(f"{way}: an image cannot be read")
    took, cpu_s = time.perf_counter() - listed, time.process_time() - cpu_before
    # Linux hands on a parent's ru_maxrss, but not this.
    [most] = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    found = {"listing": listed - start, "rate": n_images / took, "cpu_ms": 1e3 * cpu_s / n_images}
    return found | {f"MB of {n_images}": int(most) / 1e3}


def main(place: Path) -> None:
    """Measure in rounds, and write the page."""
    from igmask.bench.pages import describe, page, table  # which import torch

    found: dict[str, dict[str, list[float]]] = {way: defaultdict(list) for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        n_bytes = write(Path(name))
        for n_images in [N_FEW] + N_ROUNDS * [N_IMAGES]:
            for way in WAYS:
                words = [sys.executable, __file__, way, f"{name}/{way}", str(n_images)]
                said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
                for what, value in json.loads(said).items():
                    if n_images == N_IMAGES or "MB" in what:
                        found[way][what].append(value)
                print(way, n_images, said, file=sys.stderr)
    columns = {
        "from": lambda row: WAYS[row[0]],
        "images/s": lambda row: f"{median(row[1]['rate']):.0f}",
        "slow – fast": lambda row: f"{min(row[1]['rate']):.0f} – {max(row[1]['rate']):.0f}",
        "CPU, an image": lambda row: f"{median(row[1]['cpu_ms']):.2f} ms",
        "listing": lambda row: f"{median(row[1]['listing']):.2f} s",
    }
    columns |= {
        f"memory, {n:,} images": lambda row, n=n: f"{max(row[1][f'MB of {n}']):.0f} MB"
        for n in (N_FEW, N_IMAGES)
    }
    text = (
        f"{N_IMAGES:,} JPEGs of 320×240, {n_bytes / 1e9:.2f} GB, of {N_DRAWN:,} drawings, in the "
        f"page cache: listed, read and decoded to {GEOMETRY.size}×{GEOMETRY.size} as by step "
        f"`prepare`, by one thread, a process each, {N_ROUNDS} rounds in this order. Shards have "
        f"{A_SHARD:,} images. *CPU* is what reading and decoding took of it; where it is much less "
        "than images a second say, others used the machine, and the rates tell little. *Memory* "
        f"is the most that the process had, Python and its libraries included; where it read "
        f"the first {N_FEW:,} images, it had listed all."
    )
    title, command = "Reading images from folder, parquet and tar", "python benchmarks/reading.py"
    machine, results = describe("cpu", 1, PACKAGES), table([*found.items()], columns)
    arrays.write_text(place, page(title, machine, f"{command} {place}", [text], results))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        print(json.dumps(read(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
