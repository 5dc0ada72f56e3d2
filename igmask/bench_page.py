"""What people look at of a benchmark: JSON, a Markdown page, a plot."""

import json
import statistics
from pathlib import Path
from typing import Any

from igmask.arrays import write_text
from igmask.bench import FOUR
from igmask.drawing import draw_bars

Row = dict[str, Any]


def summary(rows: list[Row]) -> list[Row]:
    """Return for each model: igmask's time, and how many times longer the others take."""
    table = []
    for model in dict.fromkeys(row["model"] for row in rows):
        of = {row["contestant"]: row for row in rows if row["model"] == model}
        ours = of["igmask"]["ms_per_step"]
        captum = [of[c]["ms_per_step"] for c in of if of[c]["like"] == "captum"]
        tuned = [of[c]["ms_per_step"] for c in of if of[c]["like"] == "captum tuned"]
        bare = [of[c]["ms_per_step"] for c in of if of[c]["like"] == "bare"]
        table.append(
            {
                "model": model,
                "ms_per_step": ours,
                "speedup": min(captum) / ours if captum else None,
                "speedup_over_tuned": min(captum + tuned) / ours if tuned else None,
                "of_the_limit": ours / min(bare) if bare else None,
            }
        )
    return table


def _kept(path: Path, result: dict[str, Any]) -> list[Row]:
    """The rows at `path` of other networks, if they are of the same machine and setting."""
    if not path.is_file():
        return []
    before = json.loads(path.read_text("utf-8"))
    setting = [_setting(found) for found in (before, result)]
    measured = {row["model"] for row in result["rows"]}
    rows = [row for row in before["rows"] if row["model"] not in measured]
    return rows if setting[0] == setting[1] else []


def _setting(result: dict[str, Any]) -> Row:
    machine = {key: value for key, value in result["machine"].items() if key != "date"}
    return machine | {key: result["rows"][0][key] for key in ("n_images", "n_steps")}


def to_markdown(result: dict[str, Any]) -> str:
    """Return the result as a page: the speed-ups, then every row."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    setting = result["rows"][0]
    lines = [
        "# Attribution: igmask and Captum",
        "",
        f"{machine['device']}, {machine['threads']} threads, {machine['date']}; {versions}.",
        f"{setting['n_images']} images, m = {setting['n_steps']}, random weights; "
        "medians of runs that took turns, in ms an (image, step) pair.",
        "",
        *(f"    {command}" for command in dict.fromkeys(row["command"] for row in result["rows"])),
        "",
        "| network | igmask | Captum takes | Captum tuned takes | igmask / bare passes |",
        "|---|---|---|---|---|",
    ]
    table = summary(result["rows"])
    for row in table:
        lines.append(
            f"| {row['model']} | {row['ms_per_step']:.2f} ms | {_times(row['speedup'])} | "
            f"{_times(row['speedup_over_tuned'])} | {_number(row['of_the_limit'], '.2f')} |"
        )
    four = [row["speedup"] for row in table if row["model"] in FOUR and row["speedup"]]
    if len(four) == len(FOUR):
        lines += ["", f"Geometric mean of the four: {statistics.geometric_mean(four):.2f} times."]
    lines += [
        "",
        "*Captum*: the network as it is, the best `internal_batch_size` of 4, 8, 16 (GPU: 16, "
        "64, 200), the faster of its rules, with its convergence delta; igmask returns that too. "
        "*Tuned*: the network also in channels-last, its weights frozen, and malloc told to keep "
        "freed memory, as igmask does itself. First calls, igmask's trace among them, are not "
        "timed. *Bare passes*: as many forward passes and input gradients of the "
        "whole network in its best form, and no attribution. Error and IoU: against float64, "
        "first image; completeness: mean of |Σφ − Δf| / |Δf|. Peak: memory of one image beyond the "
        "network's, both in batches of 8.",
        "",
        "| network | | ms | fastest – slowest | runs | batch | error | IoU 50 | IoU 90 | "
        "completeness | peak, m = 10 | m = 1,000 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['model']} | {row['contestant']} | {row['ms_per_step']:.2f} | "
            f"{row['ms_fastest']:.2f} – {row['ms_slowest']:.2f} | {row['n_runs']} | "
            f"{row['batch_size']} | "
            f"{_number(row.get('error'), '.1e')} | {_number(row.get('iou_50'), '.4f')} | "
            f"{_number(row.get('iou_90'), '.4f')} | "
            f"{_number(row.get('relative_completeness'), '.1e')} | "
            f"{_mib(row.get('peak_bytes_10_steps'))} | {_mib(row.get('peak_bytes_1000_steps'))} |"
        )
    return "\n".join(lines) + "\n"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} ×"


def _mib(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:.0f} MiB"


def write(result: dict[str, Any], folder: Path, command: str) -> list[Path]:
    """Write attribution-cpu (or -cuda) as .json, .md and .png; return their paths.

    Networks that were measured there before, on the same machine in the same setting, stay.
    """
    stem = folder / f"attribution-{result['machine']['kind']}"
    paths = [stem.with_suffix(suffix) for suffix in (".json", ".md", ".png")]
    rows = [row | {"command": command} for row in result["rows"]]
    result = result | {"rows": _kept(paths[0], result) + rows}
    full = result | {"summary": summary(result["rows"])}
    write_text(paths[0], json.dumps(full, indent=1) + "\n")
    write_text(paths[1], to_markdown(result))
    bars = {
        "Captum": [row["speedup"] for row in full["summary"]],
        "Captum tuned": [row["speedup_over_tuned"] for row in full["summary"]],
    }
    draw_bars(
        paths[2],
        {name: values for name, values in bars.items() if None not in values},
        labels=[row["model"] for row in full["summary"]],
        title=f"Time of Captum / time of igmask, {result['machine']['device']}",
    )
    return paths
