"""The published study at its full size, projected from what one batch of each step takes here.

    python benchmarks/projection.py benchmarks/results/projection-gpu.md

Fifty thousand files, links to a few drawn JPEGs of 500×375, stand for ImageNet's validation images;
networks whose weights are not at hand have random ones, which take as long. Everything else is
config/imagenet.yaml's, and the figures are those of `igmask check`. Precisions may be named.
"""

import shlex
import sys
import tempfile
from pathlib import Path

import yaml
from prepare import draw

from igmask.arrays import write_text
from igmask.bench.pages import describe, page
from igmask.devices import n_cores, pick_device
from igmask.tools.check import check

N_IMAGES, N_CLASSES, N_DRAWN = 50_000, 1000, 40
PACKAGES = ("igmask", "torch", "torchvision", "triton", "numpy", "pillow")


def link(root: Path) -> None:
    """Make a tree of N_IMAGES links to a few drawn photographs, a folder a class."""
    draw(root / "drawn", N_DRAWN)
    drawn = sorted((root / "drawn").rglob("*.jpg"))
    for i in range(N_IMAGES):
        path = root / "val" / f"{i % N_CLASSES:04d}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(drawn[i % len(drawn)])


def main(output: Path, precisions: tuple[str, ...]) -> None:
    """Project for each precision, and write the page."""
    published = Path(__file__).parents[1] / "config" / "imagenet.yaml"
    study = yaml.safe_load(published.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        link(Path(folder))
        study["dataset"] = {"source": "folder", "root": f"{folder}/val"}
        found = {}
        for precision in precisions:
            study["attribution"]["precision"] = precision
            findings = [f for f in check(study) if not f.says.startswith("weights:")]
            found[precision] = list(map(str, findings))
    machine = describe(str(pick_device("auto")), n_cores(), PACKAGES)
    command = shlex.join(["python", *sys.argv])
    blocks = [[f"## {precision}", "", "```", *said, "```"] for precision, said in found.items()]
    write_text(output, page("The published study, projected", machine, command, *blocks))


if __name__ == "__main__":
    main(Path(sys.argv[1]), tuple(sys.argv[2:]) or ("fp32",))
