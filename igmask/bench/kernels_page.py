"""What people look at of the kernels' benchmark: JSON, a Markdown page, a plot."""

from pathlib import Path
from typing import Any

from igmask.bench.pages import (
    Cell,
    Row,
    of,
    page,
    span_of,
    table,
    time_of,
    why_no_time,
    write_beside,
)

_WAYS = ("igmask", "eager", "compiled")


def to_markdown(result: dict[str, Any]) -> str:
    """Return what was measured of the kernels as a page."""
    what = "the kernels" if result["has_kernel"] else "their definitions in PyTorch"
    ran = f"Measured are {what}."
    if result["machine"]["kind"] == "cpu":
        ran = (
            f"**These are no figures of a GPU.** Measured are {what} on a CPU, at small size: all "
            "that it shows is that the command works."
        )
    n_images, n_steps, n_masked = (result[key] for key in ("n_images", "n_steps", "n_masked"))
    text = (
        f"A batch of the queue has {n_images} images with {n_steps} steps each; {n_masked} images "
        "are scored, selected or masked together. *MB*: what has to be read and written, each "
        "number once. *Of a copy*: the share of the speed at which the device copies, "
        f"{result['copy_gb_per_s']:.0f} GB/s read and written, measured in the same run. *Eager*, "
        "*compiled*: how many times longer PyTorch takes for the same, as it is and by "
        "`torch.compile`. Medians; a GPU's cache is flushed before each run. What differs from the "
        "definition in float64 is *wrong* and has no time; *off*: by how many roundings of the "
        "largest number what is right differs."
    )
    numbers = table(result["rows"], _KERNELS)
    title, command = "The kernels, and PyTorch", result["command"]
    return page(title, result["machine"], command, [text], numbers, ran=ran)


def write(result: dict[str, Any], folder: Path, command: str) -> list[Path]:
    """Write kernels-cpu (or -cuda) as .json, .md and .png; return their paths."""
    result = result | {"command": command}
    # Of each kernel and shape the last but for fp16: in bf16 and channels-last, where there is one.
    shown = {(r["kernel"], _shape(r)): r for r in result["rows"] if r["dtype"] != "fp16"}
    return write_beside(
        folder / f"kernels-{result['machine']['kind']}",
        result,
        to_markdown(result),
        {way: [_share(row, way) for row in shown.values()] for way in _WAYS},
        labels=[" ".join(label) for label in shown],
        title="Share of the speed of a copy",
    )


def _share(row: Row, way: str) -> float | None:
    """The share of a copy's speed at which the work was done; None without a time."""
    ms = (row if way == "igmask" else row.get(way, {})).get("ms")
    return row["of_copy"] * row["ms"] / ms if ms else None


def _shape(row: Row) -> str:
    return "×".join(map(str, row["shape"]))


def _takes(way: str) -> Cell:
    """How many times longer another way takes than the kernel."""

    def cell(row: Row) -> str:
        other = row.get(way)
        if other is None:
            return ""
        return f"{other['ms'] / row['ms']:.2f} ×" if "ms" in other else why_no_time(other)

    return cell


_KERNELS: dict[str, Cell] = {
    "kernel": of("kernel"),
    "shape": _shape,
    "dtype": of("dtype"),
    "layout": of("layout"),
    "MB": lambda row: f"{row['n_bytes'] / 1e6:.2f}" if "n_bytes" in row else "",
    "ms": time_of("ms"),
    "fast – slow": span_of("ms_fast", "ms_slow"),
    "GB/s": of("gb_per_s", ".0f"),
    "of a copy": of("of_copy", ".2f"),
    "eager": _takes("eager"),
    "compiled": _takes("compiled"),
    "off": of("roundings", ".1f"),
}
