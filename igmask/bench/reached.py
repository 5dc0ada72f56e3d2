"""What the benchmark of quality over time found, for people: speed-ups, a page, a picture."""

import statistics
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from igmask.bench.pages import Cell, Row, kept, of, page, table, write_result
from igmask.bench.quality import CAPTUM_BATCHES, CONVERGED
from igmask.report.drawing import drawing

NEAR = 0.98  # of the mean IoU: what one may call converged


def summary(rows: list[Row]) -> list[Row]:
    """Return of each network how many times longer Captum takes to be as good.

    As good as Captum's best rule with 50 steps: IoU at p = 50 not below the best of its rules
    there, L2 not above. And to an IoU of NEAR. Of a curve counts the setting from which on all with
    more steps are so good, so that none is there by luck.
    """
    found = []
    for name in dict.fromkeys(row["model"] for row in rows):
        here = [row for row in rows if row["model"] == name]
        captum, igmask = (
            [row for row in here if row["who"] == who and isinstance(row["steps"], int)]
            for who in ("captum", "igmask")
        )
        at_50 = [row for row in captum if row["steps"] == 50]
        iou, l2 = max(row["iou_50"] for row in at_50), min(row["l2"] for row in at_50)
        theirs = min(row["seconds"] for row in at_50)

        def as_good(row: Row, iou: float = iou, l2: float = l2) -> bool:
            return row["iou_50"] >= iou and row["l2"] <= l2

        ours = _first(igmask, as_good)
        near = [_first(of, lambda row: row["iou_50"] >= NEAR) for of in (captum, igmask)]
        found.append(
            {
                "model": name,
                "iou_50": iou,
                "l2": l2,
                "captum": theirs,
                "as_good": ours and f"{ours['rule']} {ours['steps']}",
                "igmask": ours and ours["seconds"],
                "speedup": ours and theirs / ours["seconds"],
                "captum_near": near[0] and near[0]["seconds"],
                "igmask_near": near[1] and near[1]["seconds"],
                "speedup_near": near[0] and near[1] and near[0]["seconds"] / near[1]["seconds"],
            }
        )
    return found


def _first(rows: list[Row], is_good: Callable[[Row], bool]) -> Row | None:
    """The fastest setting from which on its curve is good."""
    good = []
    for curve in dict.fromkeys(row["curve"] for row in rows):
        along = sorted((r for r in rows if r["curve"] == curve), key=lambda row: -row["steps"])
        best = None
        for row in along:
            if not is_good(row):
                break
            best = row
        good += [best] if best else []
    return min(good, key=lambda row: row["seconds"], default=None)


def to_markdown(result: dict[str, Any]) -> str:
    """Return the result as a page: the speed-ups, then every setting."""
    rows = result["rows"]
    compared = summary(rows)
    ratios = [row["speedup"] for row in compared if row["speedup"]]
    mean = [f"Geometric mean: {statistics.geometric_mean(ratios):.2f} times."] if ratios else []
    return page(
        "Time to a given quality: igmask and Captum",
        result["machine"],
        "\n".join(dict.fromkeys(row["command"] for row in rows)),
        table(compared, _SUMMARY),
        mean,
        [_ABOUT],
        table(rows, _ROWS),
        ran="Trained networks, probability of the predicted class, black baseline; each setting "
        f"{rows[0]['n_turns']} times in turns with the others, of which the median counts, in ms "
        "an image.",
    )


_ABOUT = (
    f"*Converged*: {CONVERGED:,} steps, sums in float64, without igmask's engine. *IoU*: mean "
    "intersection over union with the converged masks of the 3×3 squares that hold the top 50 (90) "
    "% of the positive attribution, with its standard error. *L2*: ‖φ − φ*‖ / ‖φ*‖, mean and "
    "largest. *Same*: share of images of which the keep-50 (drop-50) prediction is that with the "
    "converged mask. *As good*: as the best of Captum's rules with 50 steps, by IoU and by L2; of "
    "a curve counts the setting from which on all with more steps are. Captum has frozen weights, "
    "channels-last on a CPU, malloc that keeps freed memory, and the best of the batch sizes "
    f"{', '.join(map(str, CAPTUM_BATCHES))}; igmask its own."
)


def write(result: dict[str, Any], folder: Path, command: str) -> list[Path]:
    """Write quality-cpu (or -cuda) as .json, .md and .png; return their paths.

    Networks measured there before, on the same machine and in as many turns, stay.
    """
    stem = folder / f"quality-{result['machine']['kind']}"
    rows = [row | {"command": command} for row in result["rows"]]
    before = kept(stem.with_suffix(".json"), result, "n_turns")
    result = result | {"rows": before + rows}
    paths = write_result(stem, result | {"summary": summary(result["rows"])}, to_markdown(result))
    picture = stem.with_suffix(".png")
    _draw(picture, result)
    return [*paths, picture]


_LOOKS = {  # curve → name, colour, marker
    "captum riemann_right": ("Captum, right", "#999999", "s"),
    "captum gausslegendre": ("Captum, Gauss–Legendre", "#56B4E9", "s"),
    "igmask right": ("igmask, right", "#009E73", "o"),
    "igmask adaptive": ("igmask, adaptive", "#D55E00", "o"),
}


def _draw(path: Path, result: dict[str, Any]) -> None:
    """A column a network: IoU and L2 over time, a point a setting."""
    rows = result["rows"]
    names = list(dict.fromkeys(row["model"] for row in rows))
    measures = {"iou_50": "IoU with the converged masks, p = 50", "l2": "relative L2 error of φ"}
    with drawing(path, width=2.6 * len(names) + 0.6, height=5.2) as figure:
        panels = figure.subplots(len(measures), len(names), squeeze=False, sharex="col")
        for (i, key), (j, name) in product(enumerate(measures), enumerate(names)):
            axes = panels[i, j]
            for curve, (label, colour, marker) in _LOOKS.items():
                along = [r for r in rows if r["model"] == name and r["curve"] == curve]
                fixed = [row for row in along if isinstance(row["steps"], int)]
                at = [1000 * row["seconds"] for row in fixed]
                values = [row[key] for row in fixed]
                axes.plot(at, values, color=colour, marker=marker, markersize=3, label=label)
                fifty = [k for k, row in enumerate(fixed) if row["steps"] == 50]
                axes.plot(
                    [at[k] for k in fifty], [values[k] for k in fifty], marker, color=colour,
                    markersize=7, markerfacecolor="none",
                )  # fmt: skip
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
            if key == "l2":
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter("")
                axes.set_xlabel("ms an image")
            else:
                axes.set_title(name)
            axes.grid(color="0.92")
            axes.spines[["top", "right"]].set_visible(False)
            if not j:
                axes.set_ylabel(measures[key])
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(names), 2))
        figure.suptitle("quality over time; circled: 50 steps", fontsize="medium")


def _ms(key: str) -> Cell:
    return lambda row: "" if row[key] is None else f"{1000 * row[key]:.1f}"


_SUMMARY: dict[str, Cell] = {
    "network": of("model"),
    "IoU 50 of Captum, m = 50": of("iou_50", ".3f"),
    "L2": of("l2", ".3f"),
    "Captum": _ms("captum"),
    "igmask, as good": _ms("igmask"),
    "by": of("as_good"),
    "Captum takes": of("speedup", ".2f", " ×"),
    f"to IoU {NEAR}: Captum": _ms("captum_near"),
    "igmask": _ms("igmask_near"),
    "Captum takes ": of("speedup_near", ".2f", " ×"),
}
_ROWS: dict[str, Cell] = {
    "network": of("model"),
    "": of("curve"),
    "m": of("steps"),
    "taken": of("steps_taken", ".0f"),
    "ms": _ms("seconds"),
    "fastest – slowest": lambda row: f"{1000 * row['fastest']:.1f} – {1000 * row['slowest']:.1f}",
    "IoU 50": lambda row: (
        f"{row['iou_50']:.3f}" + ("" if row["se_50"] is None else f" ± {row['se_50']:.3f}")
    ),
    "IoU 90": of("iou_90", ".3f"),
    "L2": of("l2", ".3f"),
    "worst": of("l2_worst", ".3f"),
    "same keep": of("same_keep", ".0%"),
    "same drop": of("same_drop", ".0%"),
    "images": of("n_images"),
}
