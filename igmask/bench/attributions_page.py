"""What people look at of the benchmark against Captum: JSON, a Markdown page, a plot."""

import json
import statistics
from pathlib import Path
from typing import Any

from igmask.bench.contestants import FOUR
from igmask.bench.pages import (
    Cell,
    Row,
    mib_of,
    ms,
    of,
    page,
    span_of,
    table,
    time_of,
    write_beside,
)

_CAPTUM = ("captum", "captum lean", "captum kept", "captum tuned")


def summary(rows: list[Row]) -> list[Row]:
    """Return for each model: igmask's time, and how many times longer the others take.

    A precision or engine of igmask other than its default has a row of its own where Captum was
    measured at that precision.
    """
    rows = [row for row in rows if "failed" not in row]
    found = []
    for ours in (row for row in rows if row["like"] == "igmask"):
        time = ours["ms_per_step"]
        captum, lean, kept, tuned, bare = (
            [row["ms_per_step"] for row in rows if row["like"] == like and _alike(row, ours)]
            for like in (*_CAPTUM, "bare")
        )
        everything = captum + lean + kept + tuned
        if ours["contestant"] != "igmask" and not everything:
            continue
        found.append(
            {
                "model": ours["model"],
                "contestant": ours["contestant"],
                "ms_per_step": time,
                "speedup": min(captum) / time if captum else None,
                "speedup_over_lean": min(lean) / time if lean else None,
                "speedup_over_kept": min(kept) / time if kept else None,
                "speedup_over_best": min(everything) / time if tuned else None,
                "of_the_limit": time / min(bare) if bare else None,
            }
        )
    return found


def _alike(row: Row, ours: Row) -> bool:
    """Whether two rows are of the same network at the same precision."""
    return all(row.get(key) == ours.get(key) for key in ("model", "precision"))


def _label(row: Row) -> str:
    """The network; and how igmask ran it, if not by default: `resnet50 bf16 cudagraph`."""
    return row["model"] + row["contestant"].removeprefix("igmask")


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
    machine, rows = result["machine"], result["rows"]
    on_gpu = machine["kind"] == "cuda"
    compared = summary(rows)
    return page(
        "Attribution: igmask and Captum",
        machine,
        "\n".join(dict.fromkeys(row["command"] for row in rows)),
        table(compared, _SUMMARY),
        _mean_of_four(compared),
        [_CAPTUM_IS],
        [_ON_A_GPU] if on_gpu else [],
        table(rows, _ROWS | (_GPU_ROWS if on_gpu else {})),
        ran=f"{rows[0]['n_images']} images, m = {rows[0]['n_steps']}, random weights; "
        f"medians of runs{'' if on_gpu else ' that took turns'}, in ms an (image, step) pair.",
    )


def _mean_of_four(compared: list[Row]) -> list[str]:
    """A line on the study's four networks, where all of them were measured."""
    four = [row for row in compared if _label(row) in FOUR and row["speedup_over_best"]]
    if len(four) < len(FOUR):
        return []
    mean, least = (
        statistics.geometric_mean(row[key] for row in four)
        for key in ("speedup", "speedup_over_best")
    )
    return [f"Geometric mean of the four: {mean:.2f} times, {least:.2f} at its best."]


_CAPTUM_IS = (
    "*Captum*: the network as it is, the best `internal_batch_size` of 2, 4, 8, 16, 32 (GPU: "
    "16, 64, 200) and igmask's own, the faster of its rules, with its convergence delta; "
    "igmask returns that too. *No delta*: without it. *Memory kept*: and malloc told to keep "
    "freed memory, as in any process that has used igmask. *At its best*: the fastest of these "
    "and of *tuned*, the network also in channels-last and its weights frozen, as igmask has "
    "it itself (but not in fp32 on a GPU). What a row lacks was not run. igmask gets a network "
    "made ready, as a study hands it over, and each the batch size that is best for it. First "
    "calls, igmask's trace among them, are not timed. *Bare passes*: as many forward passes "
    "and input gradients of the whole network in its best form, and no attribution. Error and "
    "IoU: against float64, first image; completeness: mean of |Σφ − Δf| / |Δf|. Peak: memory of "
    "one image beyond the network's, both in batches of 8."
)
_ON_A_GPU = (
    "On a GPU contestants do not take turns: one at a time has the memory. Captum is compared at "
    "igmask's precision: fp32 is IEEE single precision, tf32 allows TF32 in its products, bf16 and "
    "fp16 are a network and images of that type. *Held*: the most memory that PyTorch had taken "
    "from the device in a timed run, the network's included."
)


def write(result: dict[str, Any], folder: Path, command: str) -> list[Path]:
    """Write attribution-cpu (or -cuda) as .json, .md and .png; return their paths.

    Networks that were measured there before, on the same machine in the same setting, stay.
    """
    stem = folder / f"attribution-{result['machine']['kind']}"
    rows = [row | {"command": command} for row in result["rows"]]
    result = result | {"rows": _kept(stem.with_suffix(".json"), result) + rows}
    compared = summary(result["rows"])
    return write_beside(
        stem,
        result | {"summary": compared},
        to_markdown(result),
        {
            "Captum": [row["speedup"] for row in compared],
            "Captum at its best": [row["speedup_over_best"] for row in compared],
        },
        labels=[_label(row) for row in compared],
        title="Time of Captum / time of igmask",
    )


_SUMMARY: dict[str, Cell] = {
    "network": _label,
    "igmask": lambda row: f"{ms(row['ms_per_step'])} ms",
    "Captum takes": of("speedup", ".2f", " ×"),
    "no delta": of("speedup_over_lean", ".2f", " ×"),
    "memory kept": of("speedup_over_kept", ".2f", " ×"),
    "at its best": of("speedup_over_best", ".2f", " ×"),
    "igmask / bare passes": of("of_the_limit", ".2f"),
}
_ROWS: dict[str, Cell] = {
    "network": of("model"),
    "": of("contestant"),
    "ms": time_of("ms_per_step"),
    "fastest – slowest": span_of("ms_fastest", "ms_slowest"),
    "images / s": of("images_per_s", ".2f"),
    "runs": of("n_runs"),
    "batch": of("batch_size"),
    "error": of("error", ".1e"),
    "IoU 50": of("iou_50", ".4f"),
    "IoU 90": of("iou_90", ".4f"),
    "completeness": of("relative_completeness", ".1e"),
    "peak, m = 10": mib_of("peak_bytes_10_steps"),
    "m = 1,000": mib_of("peak_bytes_1000_steps"),
}
_GPU_ROWS: dict[str, Cell] = {"held": mib_of("peak_bytes")}
