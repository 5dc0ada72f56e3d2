"""igmask against Captum, side by side in one run: time, error and memory of the same attributions.

On a CPU every contestant has a process of its own, with its own peak of memory and its own
allocator, and they take turns, so that what the machine does meanwhile falls on all of them. On a
GPU, where to start a process takes longer than to measure, each in its turn has the whole memory of
this one. Times are of one (image, step) pair. Errors are against the paper's formula in float64
(definition.py). A contestant that fails is a row that says why, without a time.
"""

import contextlib
import ctypes
import gc
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from igmask import zoo
from igmask.bench import machine
from igmask.devices import n_cores, take_device
from igmask.engine import definition
from igmask.engine.ig import integrated_gradients, overlap
from igmask.engine.network import Network, all_finite, keep_freed_memory, multiply_in, prepare
from igmask.engine.stem import Split, whole
from igmask.errors import InputError, matching
from igmask.progress import Meter, say

FOUR = ("vgg16", "inception_v3", "resnet50", "densenet121")
MODELS = ("resnet20", "resnet56", "mobilenet_v3_large", *FOUR, "vit_b_16")
_CIFAR = {"resnet20": 20, "resnet56": 56}
# Captum's internal_batch_size, of which the best counts; igmask's own is tried, too.
_GRID = {"cpu": (2, 4, 8, 16, 32), "cuda": (16, 64, 200)}
_P = (50, 90)
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PACKAGES = ("igmask", "torch", "torchvision", "captum", "numpy")
_MEMORY_STEPS, _MEMORY_BATCH = (10, 1000), 8  # of one image


@dataclass(frozen=True)
class Contestant:
    """A way to compute the same attributions.

    like:      what it is compared as: `igmask`, `bare`, or `reference`; or Captum, given more and
               more: `captum` as it is called, `captum lean` without its convergence delta, `captum
               kept` with malloc that keeps freed memory, `captum tuned` with layout and frozen
               weights
    precision: igmask's and that of bare passes; or that of the network and images that Captum gets,
               tf32 being allowed in float32's products or not
    engine:    of `ENGINES`; Captum has none, and may be given a network that is compiled
    method:    Captum's rule
    delta:     whether Captum returns its convergence delta, by two more passes
    turns:     most turns it takes on a CPU
    """

    name: str
    like: str
    precision: str = "fp32"
    engine: str = "eager"
    method: str = "riemann_right"
    delta: bool = True
    turns: int = 100


CONTESTANTS = (
    Contestant("igmask", "igmask"),
    Contestant("captum right", "captum"),
    Contestant("captum gauss-legendre", "captum", method="gausslegendre", turns=1),
    Contestant("captum right, no delta", "captum lean", delta=False),
    # As in a process that has used igmask, whose choice of malloc is for all of it.
    Contestant("captum right, memory kept", "captum kept", delta=False),
    # And all else that igmask does for itself: frozen weights, channels-last.
    Contestant("captum right, tuned", "captum tuned", delta=False),
    # m forward passes and input gradients of the whole network in its best form, nothing else.
    Contestant("bare passes", "bare"),
    Contestant("igmask bf16", "igmask", "bf16", turns=1),
)

# On a GPU there are more: each precision of igmask with each engine, bare passes and Captum in the
# same ones.
ON_A_GPU = (
    Contestant("igmask tf32", "igmask", "tf32"),
    Contestant("igmask fp16", "igmask", "fp16"),
    Contestant("igmask fp32 compile", "igmask", "fp32", "compile"),
    Contestant("igmask bf16 compile", "igmask", "bf16", "compile"),
    Contestant("igmask fp16 compile", "igmask", "fp16", "compile"),
    Contestant("igmask fp32 cudagraph", "igmask", "fp32", "cudagraph"),
    Contestant("igmask bf16 cudagraph", "igmask", "bf16", "cudagraph"),
    Contestant("igmask fp16 cudagraph", "igmask", "fp16", "cudagraph"),
    Contestant("bare passes tf32", "bare", "tf32"),
    Contestant("bare passes bf16", "bare", "bf16"),
    Contestant("bare passes fp16", "bare", "fp16"),
    Contestant("bare passes fp32 cudagraph", "bare", "fp32", "cudagraph"),
    Contestant("bare passes bf16 cudagraph", "bare", "bf16", "cudagraph"),
    Contestant("bare passes fp16 cudagraph", "bare", "fp16", "cudagraph"),
    Contestant("bare passes bf16 compile", "bare", "bf16", "compile"),
    Contestant("bare passes fp16 compile", "bare", "fp16", "compile"),
    Contestant("captum tf32", "captum", "tf32"),
    Contestant("captum bf16", "captum", "bf16"),
    Contestant("captum fp16", "captum", "fp16"),
    Contestant("captum tf32, tuned", "captum tuned", "tf32", delta=False),
    Contestant("captum bf16, tuned", "captum tuned", "bf16", delta=False),
    Contestant("captum fp16, tuned", "captum tuned", "fp16", delta=False),
    Contestant("captum bf16, compiled", "captum tuned", "bf16", "compile", delta=False),
    Contestant("captum fp16, compiled", "captum tuned", "fp16", "compile", delta=False),
)


@dataclass(frozen=True)
class Setting:
    """One network and the images, steps and device of its attributions."""

    model: str
    n_images: int
    n_steps: int
    device: str
    threads: int

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one."""
        return self.device.startswith("cuda")


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
        except _Failed as error:
            self.failed = str(error)
            say(f"{self._model}: {self.contestant.name} failed: {self.failed}")
            return None


def _alone(setting: Setting, contestant: Contestant, *question: Any) -> Any:
    with _worker(setting, contestant) as ask:
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
        workers = [stack.enter_context(_worker(setting, c)) for c in contestants]
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


# -- a contestant, in its own process ----------------------------------------------------------

# Its own from the first tensor on; that it need not import what all of them do saves seconds each.
_processes: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
if hasattr(_processes, "set_forkserver_preload"):
    _processes.set_forkserver_preload([__name__, "captum.attr", "torchvision.models"])


class _Failed(Exception):
    """What went wrong in a contestant's process."""


@contextlib.contextmanager
def _worker(setting: Setting, contestant: Contestant) -> Iterator[Callable[..., Any]]:
    """What answers for a contestant: on a CPU a process; a GPU's memory can be had back without."""
    if setting.on_gpu:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Captum's, on batch sizes
            runs = [_attempt(_Run, setting, contestant)]
            yield lambda *question: _raised(_answer(runs[0], *question))
            runs.clear()
        gc.collect()
        torch.cuda.empty_cache()
        torch.compiler.reset()  # which counts what it has compiled
        return
    here, there = _processes.Pipe()
    process = _processes.Process(target=_serve, args=(there, setting, contestant), daemon=True)
    process.start()
    there.close()

    def ask(*question: Any) -> Any:
        try:
            here.send(question)
            answer = here.recv()
        except (EOFError, BrokenPipeError):
            raise _Failed("its process died") from None
        return _raised(answer)

    try:
        yield ask
    finally:
        here.close()
        process.kill()  # it has nothing to put away, and leaving a GPU in order takes seconds
        process.join()


def _serve(pipe: Any, setting: Setting, contestant: Contestant) -> None:
    warnings.simplefilter("ignore")  # Captum's, on batch sizes
    torch.set_num_threads(setting.threads)
    run = _attempt(_Run, setting, contestant)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            pipe.send(_answer(run, *pipe.recv()))


def _answer(run: Any, question: str, *arguments: Any) -> Any:
    """What a contestant's `_Run` answers, or why it failed, at this or when it was made."""
    return run if isinstance(run, _Failed) else _attempt(getattr(run, question), *arguments)


def _raised(answer: Any) -> Any:
    if isinstance(answer, _Failed):
        raise answer
    return answer


def _attempt(work: Callable[..., Any], *arguments: Any) -> Any:
    """What the work returns, or why it failed."""
    try:
        return work(*arguments)
    except Exception as error:
        return _Failed(f"{type(error).__name__}: {error}")


class _Run:
    """What a contestant's process does when asked."""

    def __init__(self, setting: Setting, contestant: Contestant) -> None:
        self._setting, self._contestant = setting, contestant
        if setting.on_gpu:
            torch.cuda.set_device(setting.device)  # whose memory is counted
            multiply_in("fp32")
        self._network: Any
        self._network, self._images, self._targets = build(setting)
        if contestant.like == "captum tuned":
            self._network = self._network.requires_grad_(False)
            self._network = self._network.to(memory_format=torch.channels_last)
            self._images = self._images.contiguous(memory_format=torch.channels_last)
        if contestant.like in ("captum kept", "captum tuned"):
            keep_freed_memory()  # which changes nothing on a GPU
        if contestant.like.startswith("captum"):  # igmask sees to its precision itself
            self._convert(_HALVES.get(contestant.precision, torch.float32))
            if setting.on_gpu:
                multiply_in(contestant.precision)
            if contestant.engine == "compile":
                self._network = torch.compile(self._network, dynamic=False)
        if contestant.like == "reference":
            self._convert(torch.float64)
        self._batch_size: int | None = None
        self._bare: Network | None = None
        self._ready: Network | None = None

    def _convert(self, dtype: torch.dtype) -> None:
        self._network, self._images = self._network.to(dtype), self._images.to(dtype)

    def ready(self) -> None:
        """Take the first call, with all that it imports, traces and allocates, out of the times."""
        if self._contestant.engine == "eager":  # for the others each batch size is a first
            self._batch_size = self._setting.n_images
            self._attribute(self._setting.n_images, min(2, self._setting.n_steps))
            self._batch_size = None

    def tune(self, known: int | None, ours: int | None) -> int | None:
        """Find the best batch size of Captum, unless it is known; igmask finds its own, `ours`."""
        n_images, n_steps = self._setting.n_images, self._setting.n_steps
        if known is not None:
            self._batch_size = known
            self._attribute(n_images, min(2, n_steps))
        elif not self._contestant.like.startswith("captum"):
            self._batch_size = self._made_ready().batch_size(self._images)
        else:
            self._batch_size = self._fastest_batch_size(ours)
        if self._setting.on_gpu:  # where code is chosen, compiled or recorded for each size
            torch.cuda.empty_cache()
            self._attribute(n_images, n_steps)
        return self._batch_size

    def _fastest_batch_size(self, ours: int | None) -> int:
        n_images, n_steps = self._setting.n_images, self._setting.n_steps
        most = n_images * n_steps
        sizes = {*_GRID["cuda" if self._setting.on_gpu else "cpu"], ours or most + 1}
        grid = sorted(size for size in sizes if size <= most) or [most]
        few = min(n_steps, max(4, grid[-1] // n_images))
        times = {}
        for batch_size in grid:
            self._batch_size = batch_size
            with contextlib.suppress(torch.OutOfMemoryError):
                if self._setting.on_gpu:
                    self._attribute(n_images, few)
                times[batch_size] = self._timed(lambda: self._attribute(n_images, few))[0]
        if not times:
            raise torch.OutOfMemoryError(f"even with batches of {grid[0]}")
        return min(times, key=lambda size: times[size])

    def run(self, n_images: int) -> dict[str, Any]:
        """Attribute the first n images; return seconds and what was found."""
        n_steps = self._setting.n_steps
        if self._contestant.like == "bare" and not self._setting.on_gpu:
            n_steps = min(n_steps, 10)  # they are all alike
        if self._setting.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds, answer = self._timed(lambda: self._attribute(n_images, n_steps))
        found = _found(*answer)
        if self._setting.on_gpu:  # reserved, since recordings hold memory that no tensor owns
            found["peak_bytes"] = torch.cuda.max_memory_reserved()
        return {"seconds": seconds, "n_pairs": n_images * n_steps} | found  # a pass may count more

    def memory(self, n_steps: int) -> int | None:
        """Return the bytes that one image needs beyond network and image, at the peak.

        igmask and Captum in batches of the same size. None where the system does not count them.
        """
        n_images, self._batch_size = 1, _MEMORY_BATCH
        if self._setting.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self._attribute(n_images, n_steps)
            return torch.cuda.max_memory_allocated() - before
        if platform.system() != "Linux":
            return None
        before = _restart_peak()
        self._attribute(n_images, n_steps)
        return _status_bytes("VmHWM") - before

    def _timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        if self._setting.on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        found = work()
        if self._setting.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start, found

    def _attribute(self, n_images: int, n_steps: int) -> tuple[Any, ...]:
        """Do it; return what `_found` makes a report of, which is not in the times."""
        images, targets = self._images[:n_images], self._targets[:n_images]
        if self._contestant.like == "bare":
            return self._pass(images, targets, n_steps)
        if self._contestant.like == "reference":
            picked = targets.unsqueeze(1)
            values = definition.integrated_gradients(
                lambda x: self._network(x).gather(1, picked).squeeze(1),
                images,
                torch.zeros_like(images),
                n_steps=n_steps,
            )
            return (values,)
        if self._contestant.like == "igmask":
            found = integrated_gradients(
                self._made_ready(),
                images,
                of="logit",
                target=targets,
                n_steps=n_steps,
                batch_size=self._batch_size,
                precision=self._contestant.precision,
                engine=self._contestant.engine,
            )
            return found.values, found.relative_completeness
        from captum.attr import IntegratedGradients

        values = IntegratedGradients(self._network).attribute(
            images,
            target=targets,
            n_steps=n_steps,
            method=self._contestant.method,
            internal_batch_size=self._batch_size,
            return_convergence_delta=self._contestant.delta,
        )
        if not self._contestant.delta:
            return (values,)
        values, delta = values
        change = values.flatten(1).sum(dim=1) - delta
        return values, (delta / change).abs()

    def _made_ready(self) -> Network:
        """The network as the study hands it over for all of its images."""
        if self._ready is None:
            how = {"precision": self._contestant.precision, "engine": self._contestant.engine}
            self._ready = prepare(self._network, self._images, **how)
        return self._ready

    def _pass(self, images: Tensor, targets: Tensor, n_steps: int) -> tuple[int]:
        """As many passes, in the engine's batches, of the whole network in its best form."""
        if self._bare is None:
            ready = self._made_ready()
            how: dict[str, Any] = {"precision": ready.precision, "engine": ready.engine}
            alone = whole(_Whole(ready.split), "bare")
            self._bare = Network(alone.trunk, images, **how, split=alone)
        size = self._batch_size or 8
        n_pairs = len(images) * n_steps
        size = -(-n_pairs // -(-n_pairs // size))
        rows = torch.arange(size, device=images.device) % len(images)
        picked = targets[rows].unsqueeze(1)
        n_batches = -(-n_pairs // size)
        for _ in range(n_batches):
            points = images[rows].to(self._bare.dtype or images.dtype)
            self._bare.gradients((points,), lambda outputs: outputs.gather(1, picked).squeeze(1))
        return (n_batches * size,)


class _Whole(nn.Module):
    """A network in its parts, which are folded and laid out best, as one."""

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.stem, self.head, self.trunk = split.stem, split.head, split.trunk

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(*map(self.head, self.stem(x)))


def _found(values: Tensor | int, relative: Tensor | None = None) -> dict[str, Any]:
    if isinstance(values, int):  # of bare passes
        return {"n_pairs": values}
    if not all_finite((values,)):
        raise FloatingPointError("NaN or infinite attributions")
    found: dict[str, Any] = {"values": values.detach().double().cpu().numpy()}
    if relative is not None:
        found["relative_completeness"] = float(relative.double().mean())
    return found


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
