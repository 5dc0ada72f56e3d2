"""The page of a study of 50,000 images and four networks, beside the tables of the same.

    python benchmarks/page.py benchmarks/results/page-cpu.md

A study of 64 drawn images of 224×224 pixels is run, and its files are made as long as those of
50,000: rows repeated, under names of their own. Of images, scores and masks only the rows that the
page shows are written; the rest of these files, which it does not read, is a hole. Linux only.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import yaml
from full_size import run
from tqdm import tqdm

from igmask import arrays
from igmask.bench.pages import describe, figures_of, of, page, table
from igmask.plan import Workflow
from igmask.report.examples import spread

N_DRAWN, N_IMAGES = 64, 50_000
NETWORKS = ("small_vgg", "small_googlenet", "small_resnet", "small_densenet")
STUDY = {
    "dataset": {"source": "demo", "n_images": N_DRAWN},
    "models": {
        name: {"source": f"igmask.zoo:{name}", "size": 224, "resize": 224, "weights": "none"}
        for name in NETWORKS
    },
    "attribution": {"n_steps": 2},
    "statistics": {"probe": False},
    "compute": {"device": "cpu"},
}


def lengthened(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records of 50,000 images: those of 64 again and again, draws together."""
    n_draws = len(records) // N_DRAWN
    repeats = np.arange(N_IMAGES) % N_DRAWN
    rows = (repeats[:, None] * n_draws + np.arange(n_draws)).ravel()
    found = records.iloc[rows].reset_index(drop=True)
    of_image = np.arange(N_IMAGES).repeat(n_draws)
    found["name"] = [f"{name}-{i}" for name, i in zip(found["name"], of_image, strict=True)]
    if "position" in found:
        found["position"] = of_image
    return found


def lengthen(path: Path, *, only: np.ndarray | None) -> None:
    """Write an array and its records, or records alone, anew; `only` these rows, if not all."""
    beside = arrays.records_of(path) if path.suffix == ".npy" else path
    records, settings = arrays.read_records(beside)
    arrays.write_records(beside, lengthened(records), settings)
    if path.suffix == ".npy":
        few = np.array(arrays.read_array(path))
        whole = np.lib.format.open_memmap(path, "w+", few.dtype, (N_IMAGES, *few.shape[1:]))
        rows = np.arange(N_IMAGES) if only is None else only
        whole[rows] = few[rows % N_DRAWN]
        whole.flush()


def main(output: Path) -> None:
    """Measure, and write a page."""
    place = output.absolute()  # the working directory changes
    snakefile = Path(__file__).resolve().parents[1] / "Snakefile"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("config.yaml").write_text(yaml.safe_dump(STUDY))
        words = [sys.executable, "-m", "snakemake", "-s", snakefile, "--cores", "2", "--quiet"]
        subprocess.run([*words, "all"], check=True)
        flow, every = Workflow(STUDY), SimpleNamespace()
        records = lengthened(arrays.read_records(Path(flow.folder, "index.parquet"))[0])
        shown = spread(records["label"].to_numpy(), flow.study.figures.n_gallery)
        long = {Path(path) for path in flow.records(every)}
        for path in tqdm(sorted(long), "records"):
            lengthen(path, only=None)
        curves = {Path(path) for path in flow.curve_files(every)}
        for path in tqdm(sorted(curves), "curves"):
            lengthen(path, only=None)
        first = SimpleNamespace(model=NETWORKS[0])
        pictures = {Path(path) for path in flow.images(first)}
        for name in NETWORKS:
            one = SimpleNamespace(model=name)
            pictures |= {Path(path) for path in (*flow.scores(one), *flow.masks(one))}
        for path in tqdm(sorted(pictures), "arrays"):
            lengthen(path, only=shown)
        rows = []

        def job(step: str, *words: str, writes: str) -> None:
            seconds, peak = run([step, *words, "-o", writes], Path(folder, "log"))
            size = Path(writes).stat().st_size / 1e6 if Path(writes).is_file() else 0
            rows.append({"step": step, "s": seconds, "MiB": peak, "MB written": size})

        tables = shlex.join(flow.record_folders(every))
        job("tables", tables, flow.words("tables")(every), writes="results/tables")
        for name, file in zip(NETWORKS, flow.galleries(every), strict=True):
            one = SimpleNamespace(model=name)
            read = shlex.join([*flow.images(one), *flow.scores(one), *flow.masks(one)])
            read += f" {shlex.quote(flow.records_folder(one))}"
            job("gallery", read, flow.words("gallery")(one), writes=file)
        galleries = shlex.join(flow.galleries(every))
        words_of_page = flow.words("page")(every)
        job("page", f"results/tables {galleries}", words_of_page, writes="results/index.html")
        os.chdir("/")
    machine = describe("cpu", 1, ("igmask", "numpy", "pandas", "pyarrow", "pillow"))
    text = [
        f"{N_IMAGES:,} images of 224×224 pixels, four networks, {len(long) // 4} conditions and",
        f"{len(curves) // 4} curves of each, one job after the other; peaks are with all files",
        "that were mapped. The pictures are drawn ones, with 60 of them on the page.",
    ]
    numbers = {key: figures_of(key) for key in ("s", "MiB", "MB written")}
    title, command = "The page of a study of 50,000 images", "benchmarks/page.py"
    results = table(rows, {"step": of("step"), **numbers})
    write = page(title, machine, f"python {command} {output}", text, results)
    arrays.write_text(place, write)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
