"""igmask against Captum, side by side in one run: time, error and memory of the same attributions.

On a CPU contestants take turns, so that what the machine does meanwhile falls on all of them; on a
GPU each in its turn has the whole memory. Times are of one (image, step) pair. Errors are against
the paper's formula in float64 (definition.py). A contestant that fails is a row that says why,
without a time.
"""

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from igmask.bench import machine
from igmask.bench.contestants import CONTESTANTS, MODELS, ON_A_GPU, Contestant, Setting
from igmask.bench.worker import Failed, worker
from igmask.devices import n_cores, take_device
from igmask.engine.ig import overlap
from igmask.errors import InputError, matching
from igmask.progress import Meter, say

_P = (50, 90)
_PACKAGES = ("igmask", "torch", "torchvision", "captum", "numpy")
_MEMORY_STEPS = (10, 1000)  # of one image


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
    try:
        version("captum")
    except ImportError:
        raise InputError("Captum is not installed: pip install -e '.[bench]'") from None
    threads = threads or n_cores()
    packages = (*_PACKAGES, "triton") if on_gpu else _PACKAGES
    rows = []
    for name in models:
        setting = Setting(name, n_images, n_steps, where, threads)
        for few in _measure_model(setting, repeats, budget_s, contestants, steps):
            rows += few
            yield {"machine": machine.describe(where, threads, packages), "rows": rows}


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
            row = _row(setting, entrant, reference)
            if entrant.contestant.name in ("igmask", "captum right") and not entrant.failed:
                for n_steps in memory_steps:
                    peak = _alone(setting, entrant.contestant, "memory", n_steps)
                    row[f"peak_bytes_{n_steps}_steps"] = peak
            rows.append(row)
        yield rows


class _Entrant:
    """A contestant at work on one network, until it fails."""

    def __init__(self, setting: Setting, contestant: Contestant, ask: Callable[..., Any]) -> None:
        self._model, self._ask = setting.model, ask
        self.contestant = contestant
        self.batch_size: int | None = None
        self.runs: list[dict[str, Any]] = []
        self.failed = ""

    def ask(self, *question: Any) -> Any:
        """Return the answer; None if the contestant fails, or has failed before."""
        if self.failed:
            return None
        try:
            return self._ask(*question)
        except Failed as error:
            self.failed = str(error)
            say(f"{self._model}: {self.contestant.name} failed: {self.failed}")
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


def _row(setting: Setting, entrant: _Entrant, reference: dict[str, Any] | None) -> dict[str, Any]:
    contestant, runs = entrant.contestant, entrant.runs
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
