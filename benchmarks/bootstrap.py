"""What the statistics of a study of 50,000 images take: the bootstrap, and the mask-only probe.

python benchmarks/bootstrap.py benchmarks/results/bootstrap-cpu.md
"""

import resource
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from igmask.arrays import write_text
from igmask.bench.pages import describe, of, page, table
from igmask.statistics.bootstrap import interval, replicates
from igmask.statistics.probe import probe

N_IMAGES, N_CLASSES, N_SQUARES = 50_000, 1000, 5625
N_COLUMNS = 24  # keep against drop at four p, and either against two controls, with their means


def most_mib() -> float:
    """Return the most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(name: str, before: float, work) -> dict[str, object]:
    """Return a row: how long a piece of work took, and what it added to the memory."""
    begun = time.perf_counter()
    said = work()
    taken = time.perf_counter() - begun
    return {"what": name, "s": taken, "mib": most_mib() - before, "found": said}


def main(output: Path) -> None:
    """Write the page."""
    rng = np.random.default_rng(0)
    labels = np.arange(N_IMAGES) % N_CLASSES
    names = np.array([f"{i:08}.JPEG" for i in range(N_IMAGES)])
    before = most_mib()

    def bootstrap() -> str:
        outcomes = rng.random((N_IMAGES, N_COLUMNS)) < np.linspace(0.1, 0.9, N_COLUMNS)
        values = pd.DataFrame(outcomes.astype(float), index=names)
        low, high = interval(replicates(values, labels, seed=0, n=2000)[0])
        return f"an interval {low:.4f} to {high:.4f} wide {high - low:.4f}"

    def read() -> str:
        likely = rng.random((64, N_SQUARES), dtype=np.float32)
        packed = np.concatenate(
            [
                np.packbits(
                    rng.random((len(some), N_SQUARES), np.float32) < likely[some % 64], axis=1
                )
                for some in np.array_split(labels, 50)
            ]
        )
        said = probe(
            lambda rows: np.unpackbits(packed[rows], axis=1, count=N_SQUARES), labels, names, seed=0
        )
        return f"right of {100 * (said == labels).mean():.1f} %, of 64 patterns for 1,000 classes"

    rows = [
        timed(f"bootstrap, {N_COLUMNS} columns, 2,000 times", before, bootstrap),
        timed(f"probe of masks of {N_SQUARES:,} squares, one p", before, read),
    ]
    cells = {"": of("what"), "s": of("s", ".1f"), "MiB more": of("mib", ".0f")}
    cells["found"] = of("found")
    title = f"The statistics of {N_IMAGES:,} images of {N_CLASSES:,} classes"
    command = shlex.join(["python", *sys.argv])
    described = describe("cpu", 2, ("numpy", "scipy", "pandas"))
    write_text(output, page(title, described, command, table(rows, cells)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
