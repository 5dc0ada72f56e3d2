"""igmask against Captum, side by side in one run: time, error and memory of the same attributions.

On a CPU contestants take turns, so that what the machine does meanwhile falls on all of them; on a
GPU each in its turn has the whole memory. Times are of one (image, step) pair. Errors are against
the paper's formula in float64 (definition.py). A contestant that fails is a row that says why,
without a time.
"""

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from igmask.bench.contestants import (
    CONTESTANTS,
    FOUR,
    MODELS,
    ON_A_GPU,
    Contestant,
    Setting,
    require_captum,
)
from igmask.bench.pages import (
    Cell,
    Row,
    describe,
    kept,
    mib_of,
    ms,
    of,
    page,
    span_of,
    table,
    time_of,
    write_beside,
)
from igmask.bench.run import Failed, worker
from igmask.devices import n_cores, take_device
from igmask.engine.ig import overlap
from igmask.errors import InputError, matching
from igmask.progress import Meter, say

_P = (50, 90)
_PACKAGES = ("igmask", "torch", "torchvision", "captum", "numpy")
_MEMORY_STEPS = (10, 1000)  # of one image
_CAPTUM = ("captum", "captum lean", "captum kept", "captum tuned")


def measure(
    models: tuple[str, ...],
    *,
    n_images: int,
    n_steps: int,
    repeats: int,
    budget_s: float,
    device: str,
    threads: int | None,
    skip: tuple[str, ...] = (),
) -> Iterator[dict[str, Any]]:
    """Yield what was measured so far, again and again: the machine, and a row a contestant.

    On a CPU after each model, on a GPU after each contestant.

    repeats:  turns of each contestant, fewer if they take longer than budget_s, but two at least
    skip:     names of contestants to leave out, or patterns such as `*tuned`; `memory` for its
              peaks, in processes of their own
    raises    InputError for an unknown model or contestant, or if Captum is not installed
    """
    where = str(take_device(device))
    on_gpu = where.startswith("cuda")
    if unknown := sorted(set(models) - set(MODELS)):
        raise InputError(f"unknown models {unknown}; choose from {', '.join(MODELS)}")
    contestants: tuple[Contestant, ...] = CONTESTANTS
    if on_gpu:  # whose memory malloc does not give
        contestants = tuple(c for c in CONTESTANTS + ON_A_GPU if c.like != "captum kept")
    names = [contestant.name for contestant in contestants[1:]] + ["memory"]
    left_out = matching("contestants", skip, names)
    contestants = tuple(c for c in contestants if c.name not in left_out)
    steps = () if "memory" in left_out else _MEMORY_STEPS
    require_captum()
    threads = threads or n_cores()
    packages = (*_PACKAGES, "triton") if on_gpu else _PACKAGES
    rows = []
    for name in models:
        setting = Setting(name, n_images, n_steps, where, threads)
        for few in _measure_model(setting, repeats, budget_s, contestants, steps):
            rows += few
            yield {"machine": describe(where, threads, packages), "rows": rows}


def _measure_model(
    setting: Setting,
    repeats: int,
    budget_s: float,
    contestants: tuple[Contestant, ...],
    memory_steps: tuple[int, ...],
) -> Iterator[list[dict[str, Any]]]:
    say(f"{setting.model}: reference in float64")
    reference = _alone(setting, Contestant("float64", "reference"), "run", 1)
    groups = [(c,) for c in contestants] if setting.on_gpu else [contestants]
    batches: dict[tuple[str, str], int] = {}
    for group in groups:
        rows = []
        for entrant in _take_turns(setting, group, repeats, budget_s, batches):
            row = _row(entrant, reference)
            if entrant.contestant.name in ("igmask", "captum right") and not entrant.failed:
                for n_steps in memory_steps:
                    peak = _alone(setting, entrant.contestant, "memory", n_steps)
                    row[f"peak_bytes_{n_steps}_steps"] = peak
            rows.append(row)
        yield rows


@dataclass
class _Entrant:
    """A contestant at work on one network, until it fails."""

    setting: Setting
    contestant: Contestant
    work: Callable[..., Any]
    batch_size: int | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    failed: str = ""

    def ask(self, *question: Any) -> Any:
        """Return the answer; None if the contestant fails, or has failed before."""
        try:
            return None if self.failed else self.work(*question)
        except Failed as error:
            self.failed = str(error)
            say(f"{self.setting.model}: {self.contestant.name} failed: {self.failed}")
            return None


def _alone(setting: Setting, contestant: Contestant, *question: Any) -> Any:
    with worker(setting, contestant) as ask:
        return _Entrant(setting, contestant, ask).ask(*question)


def _take_turns(
    setting: Setting,
    contestants: tuple[Contestant, ...],
    repeats: int,
    budget_s: float,
    batches: dict[tuple[str, str], int],
) -> list[_Entrant]:
    """Let the contestants run; `batches` remembers the batch sizes that were found."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(worker(setting, c)) for c in contestants]
        entrants = [_Entrant(setting, c, ask) for c, ask in zip(contestants, workers, strict=True)]
        for entrant in entrants:
            entrant.ask("ready")  # nobody is timed while others still start
        for entrant in entrants:
            like, precision = entrant.contestant.like, entrant.contestant.precision
            # Rules differ in nothing that a batch size would notice.
            known = batches.get((like, precision)) if like.startswith("captum") else None
            ours = batches.get(("igmask", precision))
            entrant.batch_size = entrant.ask("tune", known, ours)
            if entrant.batch_size:
                batches[like, precision] = entrant.batch_size
        label = setting.model
        if setting.on_gpu:
            label += f" {contestants[0].name}"
        meter = Meter(total=repeats, unit="turns", label=label)
        for turn in range(repeats):
            for entrant in entrants:
                spent = sum(run["seconds"] for run in entrant.runs)
                most = repeats if setting.on_gpu else entrant.contestant.turns
                if turn < most and (turn < 2 or spent < budget_s):
                    run = entrant.ask("run", setting.n_images)
                    entrant.runs += [run] if run else []
            meter.advance()
    return entrants


def _row(entrant: _Entrant, reference: dict[str, Any] | None) -> dict[str, Any]:
    setting, contestant, runs = entrant.setting, entrant.contestant, entrant.runs
    row = asdict(setting) | {
        "contestant": contestant.name,
        "like": contestant.like,
        "precision": contestant.precision,
        "engine": contestant.engine,
        "batch_size": entrant.batch_size,
    }
    if entrant.failed:
        return row | {"failed": entrant.failed}
    times = sorted(1000 * run["seconds"] / run["n_pairs"] for run in runs)
    row |= {
        "ms_per_step": statistics.median(times),
        "ms_fastest": times[0],
        "ms_slowest": times[-1],
        "n_runs": len(times),
        "images_per_s": 1000 / (statistics.median(times) * setting.n_steps),
    }
    if setting.on_gpu:
        row["peak_bytes"] = max(run["peak_bytes"] for run in runs)
    values = runs[-1].get("values")
    if values is None:
        return row
    row["relative_completeness"] = runs[-1].get("relative_completeness")
    # Another rule has another integral.
    if reference is not None and contestant.method != "gausslegendre":
        exact = torch.from_numpy(reference["values"])
        found = torch.from_numpy(values[:1])
        row["error"] = float((found - exact).norm() / exact.norm())
        for p in _P:
            row[f"iou_{p}"] = float(overlap(exact, found, p=p))
    return row


# -- the page -----------------------------------------------------------------------------------


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
    before = kept(stem.with_suffix(".json"), result, "n_images", "n_steps")
    result = result | {"rows": before + rows}
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
