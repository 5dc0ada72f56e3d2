"""igmask against Captum, side by side in one run: time, error and memory of the same attributions.

Every contestant has a process of its own, with its own peak of memory and its own allocator, and
they take turns, so that what the machine does meanwhile falls on all of them. Times are of one
(image, step) pair. Errors are against igmask's own engine in float64, which the tests hold equal to
Captum's to 1e-10.
"""

import contextlib
import ctypes
import gc
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from igmask import zoo
from igmask.errors import InputError
from igmask.ig import integrated_gradients, overlap
from igmask.models import pick_device
from igmask.network import input_gradients, prepare
from igmask.progress import Meter, say

FOUR = ("vgg16", "inception_v3", "resnet50", "densenet121")
MODELS = ("resnet20", "resnet56", "mobilenet_v3_large", *FOUR, "vit_b_16")
_CIFAR = {"resnet20": 20, "resnet56": 56}
_GRID = {"cpu": (4, 8, 16), "cuda": (16, 64, 200)}  # Captum's internal_batch_size
_P = (50, 90)
_MEMORY_STEPS, _MEMORY_BATCH = (10, 1000), 8  # of one image


@dataclass(frozen=True)
class Contestant:
    """A way to compute the same attributions.

    like:  what it is compared as: `igmask`, `igmask bf16`, `captum`, `captum tuned`, `bare`, or
           the `reference`
    turns: most turns it takes
    """

    name: str
    like: str
    options: dict[str, Any] = field(default_factory=dict)
    turns: int = 100


CONTESTANTS = (
    Contestant("igmask", "igmask"),
    Contestant("captum right", "captum", {"method": "riemann_right"}),
    Contestant("captum gauss-legendre", "captum", {"method": "gausslegendre"}, turns=1),
    # Captum given what igmask does for itself: frozen weights, channels-last, malloc that keeps
    # freed memory.
    Contestant("captum right, tuned", "captum tuned", {"method": "riemann_right"}),
    # m forward passes and input gradients of the whole network in its best form, nothing else.
    Contestant("bare passes", "bare"),
    Contestant("igmask bf16", "igmask bf16", {"precision": "bf16"}, turns=1),
)


@dataclass(frozen=True)
class Setting:
    """One network and the images, steps and device of its attributions."""

    model: str
    n_images: int
    n_steps: int
    device: str
    threads: int


def build(setting: Setting) -> tuple[nn.Module, Tensor, Tensor]:
    """Return (network, images, targets), the same for everyone: random weights, calibrated norms.

    Batch norms take their statistics from a batch of noise, so that activations have the size
    that they have in a trained network; a head of zeros is drawn at random.
    """
    torch.manual_seed(0)
    device = torch.device(setting.device)
    if setting.model in _CIFAR:
        network: nn.Module = zoo.cifar_resnet(_CIFAR[setting.model])
        size = 32
    else:
        import torchvision.models

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of Inception's initialisation
            network = torchvision.models.get_model(setting.model, weights=None)
        size = 299 if setting.model == "inception_v3" else 224
    for parameter in network.parameters():
        if not bool(parameter.any()) and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    images = torch.rand(setting.n_images, 3, size, size)
    network.eval().to(device)
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        network(torch.rand(8, 3, size, size, device=device))
        network.eval()
        images = images.to(device)
        targets = network(images).argmax(dim=1)
    return network, images, targets


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
    """Yield what was measured so far, after each model: the machine, and a row a contestant.

    repeats:  turns of each contestant, fewer if they take longer than budget_s, but two at least
    skip:     names of contestants to leave out; `memory` for its peaks, in processes of their own
    raises    InputError for an unknown model or contestant, or if Captum is not installed
    """
    names = [contestant.name for contestant in CONTESTANTS[1:]] + ["memory"]
    for kind, given, known in (("models", models, MODELS), ("contestants", skip, names)):
        if unknown := sorted(set(given) - set(known)):
            raise InputError(f"unknown {kind} {unknown}; choose from {', '.join(known)}")
    contestants = tuple(c for c in CONTESTANTS if c.name not in skip)
    try:
        version("captum")
    except ImportError:
        raise InputError("Captum is not installed: pip install -e '.[bench]'") from None
    where = str(pick_device(device))
    # Not PyTorch's number: Snakemake limits that to the threads of a rule.
    mine = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    threads = threads or len(mine)
    rows = []
    for name in models:
        setting = Setting(name, n_images, n_steps, where, threads)
        steps = () if "memory" in skip else _MEMORY_STEPS
        rows += _measure_model(setting, repeats, budget_s, contestants, steps)
        yield {"machine": _machine(where, threads), "rows": rows}


def _measure_model(
    setting: Setting,
    repeats: int,
    budget_s: float,
    contestants: tuple[Contestant, ...],
    memory_steps: tuple[int, ...],
) -> list[dict[str, Any]]:
    say(f"{setting.model}: reference in float64")
    with _worker(setting, Contestant("float64", "reference")) as ask:
        reference = ask("run", 1)
    with contextlib.ExitStack() as stack:
        asks = {c.name: stack.enter_context(_worker(setting, c)) for c in contestants}
        for ask in asks.values():
            ask("ready")  # nobody is timed while others still start
        batches: dict[str, int] = {}
        for contestant in contestants:  # rules differ in nothing that a batch size would notice
            known = batches.get("captum right") if contestant.like == "captum" else None
            batches[contestant.name] = asks[contestant.name]("tune", known)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in asks}
        meter = Meter(total=repeats, unit="turns", label=setting.model)
        for turn in range(repeats):
            for contestant in contestants:
                done = runs[contestant.name]
                spent = sum(run["seconds"] for run in done)
                if turn < contestant.turns and (turn < 2 or spent < budget_s):
                    done.append(asks[contestant.name]("run", setting.n_images))
            meter.advance()
    rows = []
    for contestant in contestants:
        row = _row(setting, contestant, runs[contestant.name], reference)
        row["batch_size"] = batches[contestant.name]
        if contestant.name in ("igmask", "captum right"):
            for n_steps in memory_steps:
                with _worker(setting, contestant) as ask:
                    row[f"peak_bytes_{n_steps}_steps"] = ask("memory", n_steps)
        rows.append(row)
    return rows


def _row(
    setting: Setting,
    contestant: Contestant,
    runs: list[dict[str, Any]],
    reference: dict[str, Any],
) -> dict[str, Any]:
    times = sorted(1000 * run["seconds"] / run["n_pairs"] for run in runs)
    row = asdict(setting) | {
        "contestant": contestant.name,
        "like": contestant.like,
        "ms_per_step": statistics.median(times),
        "ms_fastest": times[0],
        "ms_slowest": times[-1],
        "n_runs": len(times),
    }
    values = runs[-1].get("values")
    if values is None:
        return row
    row["relative_completeness"] = runs[-1]["relative_completeness"]
    exact = torch.from_numpy(reference["values"])
    found = torch.from_numpy(values[:1]).double()
    if contestant.options.get("method") != "gausslegendre":  # another rule has another integral
        row["error"] = float((found - exact).norm() / exact.norm())
        for p in _P:
            row[f"iou_{p}"] = float(overlap(exact, found, p=p))
    return row


# -- a contestant, in its own process ----------------------------------------------------------


@contextlib.contextmanager
def _worker(setting: Setting, contestant: Contestant) -> Iterator[Callable[..., Any]]:
    spawn = get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there, setting, contestant), daemon=True)
    process.start()
    there.close()

    def ask(*question: Any) -> Any:
        try:
            here.send(question)
            answer = here.recv()
        except (EOFError, BrokenPipeError):
            died = f"{contestant.name} on {setting.model}: its process died"
            raise RuntimeError(died) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    try:
        yield ask
    finally:
        here.close()
        process.join(timeout=10)
        process.kill()


def _serve(pipe: Any, setting: Setting, contestant: Contestant) -> None:
    warnings.simplefilter("ignore")  # Captum's, on batch sizes
    torch.set_num_threads(setting.threads)
    run = _Run(setting, contestant)
    with contextlib.suppress(EOFError):
        while True:
            question, *arguments = pipe.recv()
            try:
                pipe.send(getattr(run, question)(*arguments))
            except Exception as error:
                pipe.send(RuntimeError(f"{contestant.name}: {type(error).__name__}: {error}"))


class _Run:
    """What a contestant's process does when asked."""

    def __init__(self, setting: Setting, contestant: Contestant) -> None:
        self._setting, self._contestant = setting, contestant
        self._network, self._images, self._targets = build(setting)
        self._cuda = setting.device.startswith("cuda")
        if contestant.like == "captum tuned":
            self._network = self._network.requires_grad_(False)
            self._network = self._network.to(memory_format=torch.channels_last)
            self._images = self._images.contiguous(memory_format=torch.channels_last)
            prepare(self._network, self._images)  # for its malloc
        if contestant.like == "reference":
            self._network, self._images = self._network.double(), self._images.double()
        self._batch_size: int | None = None

    def ready(self) -> None:
        """Take the first call, with all that it imports, traces and allocates, out of the times."""
        self._batch_size = self._setting.n_images
        self._attribute(self._setting.n_images, min(2, self._setting.n_steps))
        self._batch_size = None

    def tune(self, known: int | None) -> int | None:
        """Find the best batch size of Captum, unless it is known; igmask finds its own."""
        if known is not None:
            self._batch_size = known
            self._attribute(self._setting.n_images, min(2, self._setting.n_steps))
            return known
        if not self._contestant.like.startswith("captum"):
            network = prepare(self._network, self._images, precision=self._precision)
            self._batch_size = network.batch_size(self._images)
            return self._batch_size
        most = self._setting.n_images * self._setting.n_steps
        grid = [b for b in _GRID["cuda" if self._cuda else "cpu"] if b <= most]
        few = min(self._setting.n_steps, max(4, max(grid or [0]) // self._setting.n_images))
        times = {}
        for batch_size in grid or [most]:
            self._batch_size = batch_size
            times[batch_size] = self._timed(lambda: self._attribute(self._setting.n_images, few))[0]
        self._batch_size = min(times, key=lambda size: times[size])
        return self._batch_size

    def run(self, n_images: int) -> dict[str, Any]:
        """Attribute the first n images; return seconds and what was found."""
        n_steps = self._setting.n_steps
        if self._contestant.like == "bare":
            n_steps = min(n_steps, 10)  # they are all alike
        seconds, found = self._timed(lambda: self._attribute(n_images, n_steps))
        return {"seconds": seconds, "n_pairs": n_images * n_steps} | found  # a pass may count more

    def memory(self, n_steps: int) -> int | None:
        """Return the bytes that one image needs beyond network and image, at the peak.

        igmask and Captum in batches of the same size. None where the system does not count them.
        """
        n_images, self._batch_size = 1, _MEMORY_BATCH
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self._attribute(n_images, n_steps)
            return torch.cuda.max_memory_allocated() - before
        if platform.system() != "Linux":
            return None
        before = _restart_peak()
        self._attribute(n_images, n_steps)
        return _status_bytes("VmHWM") - before

    @property
    def _precision(self) -> str:
        return self._contestant.options.get("precision", "fp32")

    def _timed(self, work: Callable[[], dict[str, Any]]) -> tuple[float, dict[str, Any]]:
        if self._cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        found = work()
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start, found

    def _attribute(self, n_images: int, n_steps: int) -> dict[str, Any]:
        images, targets = self._images[:n_images], self._targets[:n_images]
        like = self._contestant.like
        if like == "bare":
            return self._pass(images, targets, n_steps)
        if like in ("igmask", "igmask bf16", "reference"):
            found = integrated_gradients(
                self._network,
                images,
                of="logit",
                target=targets,
                n_steps=n_steps,
                batch_size=self._batch_size,
                precision=self._precision,
            )
            return _found(found.values, found.relative_completeness)
        from captum.attr import IntegratedGradients

        values, delta = IntegratedGradients(self._network).attribute(
            images,
            target=targets,
            n_steps=n_steps,
            method=self._contestant.options["method"],
            internal_batch_size=self._batch_size,
            return_convergence_delta=True,
        )
        change = values.flatten(1).sum(dim=1) - delta
        return _found(values, (delta / change).abs())

    def _pass(self, images: Tensor, targets: Tensor, n_steps: int) -> dict[str, Any]:
        """As many passes, in the engine's batches, of the network with norms folded."""
        split = prepare(self._network, images, precision="fp32").split
        size = self._batch_size or 8
        n_pairs = len(images) * n_steps
        size = -(-n_pairs // -(-n_pairs // size))
        rows = torch.arange(size, device=images.device) % len(images)
        picked = targets[rows].unsqueeze(1)
        n_batches = -(-n_pairs // size)
        for _ in range(n_batches):
            input_gradients(lambda x: split(x).gather(1, picked).squeeze(1), (images[rows],))
        return {"n_pairs": n_batches * size}


def _found(values: Tensor, relative: Tensor) -> dict[str, Any]:
    return {
        "values": values.detach().cpu().numpy().astype(np.float64),
        "relative_completeness": float(relative.double().mean()),
    }


def _restart_peak() -> int:
    """Return the memory in use, and let Linux count its peak from here."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")


def _machine(device: str, threads: int) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name()
    packages = ("igmask", "torch", "torchvision", "captum", "numpy")
    return {
        "device": name,
        "kind": "cuda" if device.startswith("cuda") else "cpu",
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "date": datetime.now(UTC).date().isoformat(),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                # The name alone says little on a rented machine.
                return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
    return platform.processor() or "unknown CPU"
