"""A benchmark's JSON, Markdown page and plot, its machine, and the cells of its tables."""

import contextlib
import json
import os
import platform
import re
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from igmask.arrays import write_text
from igmask.report.drawing import draw_bars

Row = dict[str, Any]
Cell = Callable[[Row], str]


def write_beside(
    stem: Path,
    result: dict[str, Any],
    page: str,
    bars: dict[str, list[float | None]],
    *,
    labels: list[str],
    title: str,
) -> list[Path]:
    """Write the result as stem.json, stem.md and stem.png; return their paths.

    bars, labels, title: as `draw_bars` takes them; the device is added to the title
    """
    paths, picture = write_result(stem, result, page), stem.with_suffix(".png")
    draw_bars(picture, bars, labels=labels, title=f"{title}, {result['machine']['device']}")
    return [*paths, picture]


def write_result(stem: Path, result: dict[str, Any], page: str) -> list[Path]:
    """Write the result as stem.json and stem.md; return their paths."""
    paths = [stem.with_suffix(suffix) for suffix in (".json", ".md")]
    write_text(paths[0], json.dumps(result, indent=1) + "\n")
    write_text(paths[1], page)
    return paths


def kept(path: Path, result: dict[str, Any], *keys: str) -> list[Row]:
    """Return the rows at `path` of other networks, if of the same machine and of alike `keys`."""
    if not path.is_file():
        return []
    before = json.loads(path.read_text("utf-8"))
    made = [
        {key: value for key, value in found["machine"].items() if key != "date"}
        | {key: found["rows"][0][key] for key in keys}
        for found in (before, result)
    ]
    measured = {row["model"] for row in result["rows"]}
    rows = [row for row in before["rows"] if row["model"] not in measured]
    return rows if made[0] == made[1] else []


def describe(device: str, threads: int, packages: tuple[str, ...]) -> dict[str, Any]:
    """Return what was computed on, and with which versions of the packages, as far as installed."""
    import torch

    on_gpu = device.startswith("cuda")
    versions = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    if on_gpu:
        versions |= {"CUDA": torch.version.cuda or f"ROCm {torch.version.hip}"}
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else _cpu_name(),
        "kind": "cuda" if on_gpu else "cpu",
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _cpu_name() -> str:
    import torch

    with contextlib.suppress(OSError):
        info = Path("/proc/cpuinfo").read_text("utf-8")
        if name := re.search("^model name.*?: *(.*)$", info, re.MULTILINE):
            # The name alone says little on a rented machine.
            return f"{name[1].strip()}, {torch.backends.cpu.get_cpu_capability()}"
    return platform.processor() or "unknown CPU"


def made_on(machine: Row) -> str:
    """Return a line on the machine, the date and the versions."""
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    n = machine["threads"]
    threads = f"{n} thread{'s' if n > 1 else ''}"
    return f"{machine['device']}, {threads}, {machine['date']}; {versions}."


def page(title: str, machine: Row, command: str, *blocks: list[str], ran: str = "") -> str:
    """Return a page: what it is, made on what and how, and blocks of lines, but for empty ones.

    command: one in each line
    ran:     a line on how, beside the machine
    """
    about = [made_on(machine), ran] if ran else [made_on(machine)]
    commands = [f"    {line}" for line in command.splitlines()]
    every = [f"# {title}"], about, commands, *blocks
    return "\n\n".join("\n".join(block) for block in every if block) + "\n"


def table(rows: list[Row], columns: dict[str, Cell]) -> list[str]:
    """Return the lines of a table, its columns by their headings."""
    cells = [list(columns), *([cell(row) for cell in columns.values()] for row in rows)]
    head, *body = (f"| {' | '.join(line)} |" for line in cells)
    return [head, "|" + len(columns) * "---|", *body]


def of(key: str, form: str = "", unit: str = "") -> Cell:
    """Return a cell of the value that a row has under the key, empty if it has none."""
    return lambda row: "" if row.get(key) is None else f"{row[key]:{form}}{unit}"


def figures_of(key: str) -> Cell:
    """Return a cell of the number that a row has under the key, with three figures or more."""
    return lambda row: f"{row[key]:.3g}" if abs(row[key]) < 100 else f"{row[key]:,.0f}"


def time_of(key: str) -> Cell:
    """Return a cell of the time that a row has under the key, or of why it has none."""
    return lambda row: ms(row[key]) if key in row else why_no_time(row)


def span_of(fast: str, slow: str) -> Cell:
    """Return a cell of the shortest and longest time, empty if there is none."""
    return lambda row: f"{ms(row[fast])} – {ms(row[slow])}" if fast in row else ""


def ms(time: float) -> str:
    """Return milliseconds, also such as a GPU needs."""
    return f"{time:.2f}" if time >= 1 else f"{time:.4f}"


def mib_of(key: str) -> Cell:
    """Return a cell of bytes, in MiB."""
    return lambda row: "" if row.get(key) is None else f"{row[key] / 2**20:.0f} MiB"


def why_no_time(row: Row) -> str:
    """Return the first words of what failed; without them the result was wrong."""
    if "failed" not in row:
        return "wrong"
    first = row["failed"].strip().partition("\n")[0]
    return f"failed: {first[:120].replace('|', '/')}"
