"""Where a contestant runs: on a CPU in a process of its own, on a GPU in this one.

That a process of its own has its own peak of memory and its own allocator is what a comparison
needs. To start one for a GPU takes longer than to measure, and its memory can be had back without.
"""

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import get_all_start_methods, get_context
from typing import Any

import torch

from igmask.bench.contestants import Contestant, Setting
from igmask.bench.run import Run

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
        process.kill()  # it has nothing to put away, and leaving a GPU in order takes seconds
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
        return Failed(f"{type(error).__name__}: {error}")
