"""Each kernel beside PyTorch, eager and compiled, and beside a copy of as many bytes as it needs.

Correctness first: what is not what the definition says in float64 gets no time. On a CPU the
definitions run, at small size: that the command works is all that it shows.
"""

import math
import timeit
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from igmask.bench.cases import KERNELS, ONE_DTYPE, ONE_LAYOUT, Case, Kind, Tensors
from igmask.bench.pages import (
    Cell,
    Row,
    describe,
    of,
    page,
    span_of,
    table,
    time_of,
    why_no_time,
    write_beside,
)
from igmask.devices import take_device
from igmask.errors import matching, with_kind
from igmask.kernels import has_kernel
from igmask.progress import Meter

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}

_SHRINK = {"cpu": 8, "cuda": 1}  # what the sides of images are divided by
_N_MASKED = {"cpu": 8, "cuda": 256}
_COPY_BYTES = {"cpu": 2**25, "cuda": 2**30}
_WAYS = ("igmask", "eager", "compiled")


def measure(
    *,
    n_images: int,
    n_steps: int,
    device: str,
    compiled: bool | None = None,
    skip: tuple[str, ...] = (),
) -> Iterator[dict[str, Any]]:
    """Yield what was measured so far, after each kernel: the machine, its copy, a row a case.

    n_images, n_steps: of a batch of the queue
    compiled: whether beside `torch.compile` too, which takes minutes; None: on a GPU only
    skip:     names of kernels to leave out, or patterns such as `path_*`
    raises    InputError for an unknown kernel
    """
    where = take_device(device)
    left_out = matching("kernels", skip, list(KERNELS))
    names = [name for name in KERNELS if name not in left_out]
    compiled = where.type == "cuda" if compiled is None else compiled
    packages = ("igmask", "torch", "triton", "numpy")
    copy_gb_per_s = _copy_gb_per_s(where)
    result = {
        "machine": describe(str(where), torch.get_num_threads(), packages),
        "has_kernel": has_kernel(where),
        "n_images": n_images,
        "n_steps": n_steps,
        "n_masked": _N_MASKED[where.type],
        "copy_gb_per_s": copy_gb_per_s,
    }
    rows: list[dict[str, Any]] = []
    meter = Meter(total=len(names), unit="kernels", label="bench")
    for name in names:
        build, kinds = KERNELS[name][0], _kinds(name, where, n_images, n_steps)
        for labels, kind in kinds:
            row = {"kernel": name, "shape": list(kind.shape)} | labels
            rows.append(row | _attempt(partial(_measure, build, kind, copy_gb_per_s, compiled)))
        meter.advance()
        yield result | {"rows": rows}


def _kinds(
    name: str, device: torch.device, n_images: int, n_steps: int
) -> Iterator[tuple[dict[str, str], Kind]]:
    """Every shape, dtype and layout of a kernel's cases, and the latter two's names."""
    shrink, n_masked = _SHRINK[device.type], _N_MASKED[device.type]
    for shape in KERNELS[name][1]:
        sides = tuple(side // shrink for side in shape[1:])
        for dtype in list(DTYPES)[: 1 if name in ONE_DTYPE else None]:
            for layout in list(LAYOUTS)[: 1 if name in ONE_LAYOUT else None]:
                how = DTYPES[dtype], LAYOUTS[layout], device, n_images, n_steps, n_masked
                yield {"dtype": dtype, "layout": layout}, Kind((shape[0], *sides), *how)


def _measure(
    build: Callable[[Kind], Case], kind: Kind, copy_gb_per_s: float, compiled: bool
) -> dict[str, Any]:
    torch.manual_seed(0)
    case = build(kind)
    judge = partial(_judge, exact=case.exact(), roundings=case.roundings, device=kind.device)
    found = {"n_bytes": case.n_bytes} | judge(case.run)
    if not found["correct"]:
        return found
    found["gb_per_s"] = case.n_bytes / found["ms"] / 1e6
    found["of_copy"] = found["gb_per_s"] / copy_gb_per_s
    found["eager"] = _attempt(lambda: judge(partial(case.expression, *case.arguments)))
    if compiled:
        torch._dynamo.reset()  # which else gives up after a few shapes
        fast = torch.compile(case.expression, fullgraph=True, dynamic=False)
        found["compiled"] = _attempt(lambda: judge(partial(fast, *case.arguments)))
    return found


def _attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the work finds, or why there is nothing: too little memory, what does not compile."""
    try:
        return work()
    except Exception as error:
        return {"correct": False, "failed": with_kind(error)}


def _judge(
    work: Callable[[], Any], *, exact: Tensors, roundings: float, device: torch.device
) -> dict[str, Any]:
    """Whether what the work finds at first is right and by how much not, and if so, its times."""
    found = work()
    found = found if isinstance(found, tuple) else (found,)
    off = [_off(*pair) for pair in zip(found, exact, strict=False)]
    correct = all(number <= roundings for number in off)  # NaN is not
    worst = max(off) if all(map(math.isfinite, off)) else None
    del found
    times = _times(work, device) if correct else {}
    return {"correct": correct, "roundings": worst} | times


def _off(found: Tensor, exact: Tensor) -> float:
    """The largest difference in roundings of the largest number; ∞ if there is one of integers."""
    if found.shape != exact.shape:
        return math.inf
    if not found.is_floating_point():
        return 0.0 if found.equal(exact.to(found)) else math.inf
    rounded = (e.to(found.dtype).double() for e in exact)
    differences = [(f.double() - e).abs().max() for f, e in zip(found, rounded, strict=True)]
    relative = float(torch.stack(differences).max() / exact.abs().max())
    return relative / torch.finfo(found.dtype).eps


def _times(work: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Median, and what a tenth is faster and slower than, in ms; on a GPU its cache is flushed."""
    if device.type == "cuda":
        from triton.testing import do_bench

        with torch.cuda.device(device):
            ms = do_bench(work, quantiles=(0.5, 0.1, 0.9))
        return dict(zip(("ms", "ms_fast", "ms_slow"), ms, strict=True))
    ms = sorted(1000 * seconds for seconds in timeit.repeat(work, repeat=5, number=1))
    return {"ms": ms[2], "ms_fast": ms[0], "ms_slow": ms[-1]}


def _copy_gb_per_s(device: torch.device) -> float:
    """How fast the device's memory is read and written at once, by a copy too large for caches."""
    here, there = torch.zeros(2, _COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    return 2 * here.nbytes / _times(lambda: there.copy_(here), device)["ms"] / 1e6


# -- the page -----------------------------------------------------------------------------------


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
    numbers = table(result["rows"], _COLUMNS)
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


_COLUMNS: dict[str, Cell] = {
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
