"""What a contestant does when asked, and where: on a CPU in a process of its own, on a GPU in this.

It tunes its batch size, runs, says how much memory it takes. That a process of its own has its own
peak of memory and its own allocator is what a comparison needs. To start one for a GPU takes longer
than to measure, and its memory can be had back without.
"""

import contextlib
import ctypes
import gc
import platform
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from igmask.bench.contestants import Contestant, Setting, build, timed
from igmask.devices import keep_freed_memory
from igmask.engine import definition
from igmask.engine.ig import integrated_gradients
from igmask.engine.network import PRECISIONS, Network, all_finite, multiply_in
from igmask.engine.ready import prepare
from igmask.engine.stem import Split, whole
from igmask.errors import with_kind

# Captum's internal_batch_size, of which the best counts; igmask's own is tried, too.
_GRID = {"cpu": (2, 4, 8, 16, 32), "cuda": (16, 64, 200)}
_MEMORY_BATCH = 8


class Run:
    """What a contestant's process does when asked."""

    def __init__(self, setting: Setting, contestant: Contestant) -> None:
        self._setting, self._contestant = setting, contestant
        self._how: Any = {"precision": contestant.precision, "engine": contestant.engine}
        self._batch_size: int | None = None
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
        dtype = torch.float64 if contestant.like == "reference" else torch.float32
        captum = contestant.like.startswith("captum")  # igmask sees to its precision itself
        if captum:
            dtype = PRECISIONS[contestant.precision] or dtype
        self._network, self._images = self._network.to(dtype), self._images.to(dtype)
        if captum and setting.on_gpu:
            multiply_in(contestant.precision)
        if captum and contestant.engine == "compile":
            self._network = torch.compile(self._network, dynamic=False)

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
            self._batch_size = self._ready.batch_size(self._images)
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
                times[batch_size] = timed(
                    lambda: self._attribute(n_images, few), on_gpu=self._setting.on_gpu
                )[0]
        if not times:
            raise torch.OutOfMemoryError(f"even with batches of {grid[0]}")
        return min(times, key=times.__getitem__)

    def run(self, n_images: int) -> dict[str, Any]:
        """Attribute the first n images; return seconds and what was found."""
        n_steps = self._setting.n_steps
        if self._contestant.like == "bare" and not self._setting.on_gpu:
            n_steps = min(n_steps, 10)  # they are all alike
        if self._setting.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds, answer = timed(
            lambda: self._attribute(n_images, n_steps), on_gpu=self._setting.on_gpu
        )
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

    def _attribute(self, n_images: int, n_steps: int) -> tuple[Any, ...]:
        """Do it; return what `_found` makes a report of, which is not in the times."""
        ways = {"igmask": self._igmask, "bare": self._passes, "reference": self._definition}
        way = ways.get(self._contestant.like, self._captum)
        return way(self._images[:n_images], self._targets[:n_images], n_steps)

    def _igmask(self, images: Tensor, targets: Tensor, n_steps: int) -> tuple[Tensor, Tensor]:
        options = {"of": "logit", "target": targets, "n_steps": n_steps} | self._how
        found = integrated_gradients(self._ready, images, batch_size=self._batch_size, **options)
        return found.values, found.relative_completeness

    def _definition(self, images: Tensor, targets: Tensor, n_steps: int) -> tuple[Tensor]:
        def f(x: Tensor) -> Tensor:
            return self._network(x).gather(1, targets.unsqueeze(1)).squeeze(1)

        black = torch.zeros_like(images)
        return (definition.integrated_gradients(f, images, black, n_steps=n_steps),)

    def _captum(self, images: Tensor, targets: Tensor, n_steps: int) -> tuple[Tensor, ...]:
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

    @cached_property
    def _ready(self) -> Network:
        """The network as the study hands it over for all of its images."""
        return prepare(self._network, self._images, **self._how)

    @cached_property
    def _bare(self) -> Network:
        """The whole network in its best form, without a stem."""
        alone = whole(_Whole(self._ready.split), "bare")
        return Network(alone.trunk, self._images, **self._how, split=alone)

    def _passes(self, images: Tensor, targets: Tensor, n_steps: int) -> tuple[int]:
        """As many passes, in the engine's batches, of the whole network in its best form."""
        n_pairs = len(images) * n_steps
        n_batches = -(-n_pairs // (self._batch_size or 8))
        size = -(-n_pairs // n_batches)
        rows = torch.arange(size, device=images.device) % len(images)
        picked = targets[rows].unsqueeze(1)
        for _ in range(-(-n_pairs // size)):
            points = images[rows].to(self._bare.dtype or images.dtype)
            self._bare.gradients((points,), lambda outputs: outputs.gather(1, picked).squeeze(1))
        return (-(-n_pairs // size) * size,)


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


# -- where it runs ------------------------------------------------------------------------------

# Its own from the first tensor on; that it need not import what all of them do saves seconds each.
_processes: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
if hasattr(_processes, "set_forkserver_preload"):
    _processes.set_forkserver_preload([__name__, "captum.attr", "torchvision.models"])


class Failed(Exception):
    """What went wrong in a contestant's process."""


@contextlib.contextmanager
def worker(setting: Setting, contestant: Contestant) -> Iterator[Callable[..., Any]]:
    """What answers for a contestant: on a CPU a process; a GPU's memory can be had back without."""
    if setting.on_gpu:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Captum's, on batch sizes
            runs = [_attempt(Run, setting, contestant)]
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
            raise Failed("its process died") from None
        return _raised(answer)

    try:
        yield ask
    finally:
        here.close()
        process.kill()  # it has nothing to put away
        process.join()


def _serve(pipe: Any, setting: Setting, contestant: Contestant) -> None:
    warnings.simplefilter("ignore")  # Captum's, on batch sizes
    torch.set_num_threads(setting.threads)
    run = _attempt(Run, setting, contestant)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            pipe.send(_answer(run, *pipe.recv()))


def _answer(run: Any, question: str, *arguments: Any) -> Any:
    """What a contestant's `Run` answers, or why it failed, at this or when it was made."""
    return run if isinstance(run, Failed) else _attempt(getattr(run, question), *arguments)


def _raised(answer: Any) -> Any:
    if isinstance(answer, Failed):
        raise answer
    return answer


def _attempt(work: Callable[..., Any], *arguments: Any) -> Any:
    """What the work returns, or why it failed."""
    try:
        return work(*arguments)
    except Exception as error:
        return Failed(with_kind(error))
