"""Time and peak memory of every step on 10, 5,000 and 50,000 drawn images, with a small network.

    python benchmarks/full_size.py benchmarks/results/full-size-cpu.md

Jobs run one after the other, as Snakemake would call them; the network is ResNet-8 on 32×32 pixels
with random weights, m = 2. What is shown is what starting a step costs, whether its memory grows
with the dataset, and its time more than linearly. Linux only: peaks are the kernel's, files that
are mapped included.
"""

import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from tqdm import tqdm

from igmask.arrays import write_text
from igmask.bench.pages import describe, figures_of, of, page, table
from igmask.plan import Workflow

SIZES = (10, 5_000, 50_000)


def study(n_images: int) -> Workflow:
    """Return the jobs of a study of so many images."""
    network = {"source": "igmask.zoo:cifar_resnet", "arguments": {"depth": 8}}
    return Workflow(
        {
            "dataset": {"source": "demo", "n_images": n_images},
            "models": {"resnet8": network | {"size": 32, "resize": 32}},
            "attribution": {"n_steps": 2},
            "selection": {"p": [50]},
            "masking": {"modes": ["keep"]},
            "compute": {"device": "cpu"},
        }
    )


def jobs(flow: Workflow) -> list[tuple[str, list[str]]]:
    """Return (step, command line) of each job, in order."""
    geometry = flow.models["resnet8"].geometry.name
    one = SimpleNamespace(model="resnet8", geometry=geometry)
    index = f"{flow.folder}/index.parquet"
    (images,), (scores,) = flow.images(one), flow.scores(one)
    shard = SimpleNamespace(**vars(one), shard=flow.shards[0])
    attribute_options = f"{flow.words('attribute')(one)} {flow.compute_options()}"
    evaluate_options = f"{flow.words('evaluate')(one)} {flow.compute_options()}"
    return [
        ("index", ["index", flow.words("index")(one), "-o", index]),
        ("prepare", ["prepare", index, flow.words("prepare")(shard), "-o", images]),
        ("attribute", ["attribute", images, attribute_options, "-o", scores]),
        (
            "mask",
            ["mask", scores, flow.words("mask")(one), "-o", str(Path(flow.masks(one)[0]).parent)],
        ),
        ("evaluate", ["evaluate", images, evaluate_options, "-o", flow.records_folder(one)]),
        ("tables", ["tables", *flow.records(one), "-o", "results/tables"]),
    ]


def run(arguments: list[str], log: Path) -> tuple[float, float]:
    """Return (seconds, peak memory in MiB) of a command."""
    words = [word for argument in arguments for word in shlex.split(argument)]
    with log.open("ab") as file:
        start = time.perf_counter()
        actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), fd) for fd in (1, 2)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[1:])}
        command = [sys.executable, "-c", "from igmask.cli import main; main()", *words]
        process = os.posix_spawn(sys.executable, command, environment, file_actions=actions)
        _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit(f"{shlex.join(words)} failed:\n{log.read_text()[-2000:]}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def measure(n_images: int) -> dict[str, tuple[float, float]]:
    """Return step → (seconds, peak in MiB)."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        steps = tqdm(jobs(study(n_images)), str(n_images))
        found = {step: run(arguments, Path(folder, "log")) for step, arguments in steps}
        os.chdir("/")
    return found


def main(output: Path) -> None:
    """Measure, and write a page."""
    place = output.absolute()  # the working directory changes
    start, small, large = map(measure, SIZES)
    rows = [
        {
            "step": step,
            "10: s": start[step][0],
            "5,000: s": seconds,
            "5,000: MiB": peak,
            "50,000: s": large[step][0],
            "50,000: MiB": large[step][1],
            "time ×": (large[step][0] - start[step][0]) / (seconds - start[step][0]),
            "MiB more": large[step][1] - peak,
        }
        for step, (seconds, peak) in small.items()
    ]
    numbers = {key: figures_of(key) for key in list(rows[0])[1:]}
    # Not before: it imports PyTorch, and a job's peak counts from that of what started it.
    machine = describe("cpu", 1, ("igmask", "torch", "numpy", "pandas", "pyarrow"))
    text = [
        "ResNet-8 on 32×32 pixels, m = 2, one shard, a job a step, one after the other. Peaks are",
        "with all files that were mapped, the libraries among them. On 10 images a step does",
        "little but start; *time ×* is 50,000 against 5,000 images, each less the start, and says",
        "nothing where that is less than a second.",
    ]
    title, command = "Every step on 10, 5,000 and 50,000 images", "benchmarks/full_size.py"
    results = table(rows, {"step": of("step"), **numbers})
    write_text(place, page(title, machine, f"python {command} {output}", text, results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
