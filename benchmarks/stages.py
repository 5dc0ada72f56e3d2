"""Where the time of an attribution goes, stage by stage and operation by operation.

python benchmarks/stages.py                        the study's four networks, on what there is
python benchmarks/stages.py resnet50 --precision fp16 --engine cudagraph

Stages take turns with the device: each is waited for before the next begins, so that they add up to
more than the attribution takes when nobody waits, which is the time shown before them. Rates count
the multiplications and additions of convolutions and matrix products, forward and backward, and are
compared with a large matrix product of the same precision on the same device in the same run.
"""

import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from igmask.arrays import write_text
from igmask.bench.contestants import FOUR, MODELS, Setting, build
from igmask.bench.pages import describe, figures_of, of, page, table
from igmask.devices import n_cores, take_device
from igmask.engine import network, queue
from igmask.engine.ig import integrated_gradients
from igmask.engine.network import ENGINES, PRECISIONS, Network, input_gradients, multiply_in
from igmask.engine.ready import prepare

STAGES = ("stem", "path", "forward", "backward", "accumulate")
_N_IMAGES = {"cpu": 4, "cuda": 64}
_N_STEPS = {"cpu": 10, "cuda": 50}
_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product is the limit
_N_LARGEST = 5


class Clock:
    """Seconds of each stage; one that runs within another is not counted as that one's."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device, self._under_way = device, [""]
        self._since = self.now()

    def now(self) -> float:
        """Return the time at which the device has done all that it was asked."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens in the block as a stage's."""
        self._switch()
        self._under_way.append(name)
        try:
            yield
        finally:
            self._switch()
            self._under_way.pop()

    def _switch(self) -> None:
        now = self.now()
        self.seconds[self._under_way[-1]] += now - self._since
        self._since = now

    def counted(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return the work, counted as a stage's."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self.stage(name):
                return work(*arguments, **options)

        return call

    def gradients(self, f: Callable[..., Any], points: Any) -> Any:
        """Stand in for `input_gradients`: its two stages."""
        with self.stage("backward"):
            return input_gradients(self.counted("forward", f), points)


def by_stage(attribute: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Return the seconds of each stage of an attribution, and what is left as `rest`."""
    clock = Clock(device)
    places = [(queue, name, "path") for name in ("spans_of", "path_points", "pooled_points")]
    places += [(queue, name, "accumulate") for name in ("accumulate_", "accumulate_pooled_")]
    places += [(Network, name, "stem") for name in ("stem", "stem_transposed")]
    with ExitStack() as stack:
        for owner, name, stage in places:
            counted = clock.counted(stage, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, counted))
        stack.enter_context(patch.object(network, "input_gradients", clock.gradients))
        with clock.stage("rest"):
            attribute()
    return {name: clock.seconds[name] for name in (*STAGES, "rest")}


def largest(attribute: Callable[[], Any], device: torch.device) -> tuple[list[str], float]:
    """Return (the operations or kernels that take most, seconds that the device was busy)."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as found:
        attribute()
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [event for event in found.key_averages() if event.device_type == kind]
    name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events.sort(key=lambda event: -getattr(event, name))
    total = sum(getattr(event, name) for event in events)
    lines = [
        f"{100 * getattr(event, name) / total:.0f} % `{event.key[:80]}` × {event.count}"
        for event in events[:_N_LARGEST]
    ]
    return lines, total / 1e6


def operations(model: Any, images: torch.Tensor, precision: str) -> float:
    """Return the floating-point operations behind the stem of one (image, step) pair."""
    split = prepare(model, images, precision=precision).split
    entries = split.entries(split.stem(images[:1]))
    counter = FlopCounterMode(display=False)
    points = tuple(entry.detach().clone() for entry in entries)
    with counter:
        input_gradients(lambda *at: split.trunk(*at).sum(dim=1), points)
    return counter.get_total_flops()


def product_rate(device: torch.device, precision: str) -> float:
    """Return the operations a second of a large matrix product."""
    side = _SIDE[device.type]
    a, b = torch.rand(2, side, side, device=device, dtype=PRECISIONS[precision] or torch.float32)
    if device.type == "cuda":
        multiply_in(precision)
    clock, times = Clock(device), []
    for _ in range(10):
        start = clock.now()
        a @ b
        times.append(clock.now() - start)
    return 2 * side**3 / min(times)


def measure(name: str, where: torch.device, precision: str, engine: str) -> dict[str, Any]:
    """Return what is known of one network: times in ms a step, rates in GFLOP/s."""
    n_images, n_steps = _N_IMAGES[where.type], _N_STEPS[where.type]
    setting = Setting(name, n_images, n_steps, str(where), torch.get_num_threads())
    model, images, targets = build(setting)
    options = {"of": "logit", "target": targets, "n_steps": n_steps}
    options |= {"precision": precision, "engine": engine}

    def attribute() -> None:
        integrated_gradients(model, images, **options)

    for _ in range(2):  # what is traced, chosen, compiled or recorded is so now
        attribute()
    clock, times = Clock(where), []
    for _ in range(3):
        start = clock.now()
        attribute()
        times.append(clock.now() - start)
    seconds, n_pairs = min(times), n_images * n_steps
    stages = by_stage(attribute, where)
    lines, busy = largest(attribute, where)
    flops = operations(model, images, precision)
    return {
        "network": name,
        "ms a step": 1e3 * seconds / n_pairs,
        **{stage: 1e3 * spent / n_pairs for stage, spent in stages.items()},
        "device busy, %": 100 * min(1.0, busy / seconds),
        "GFLOP/s": flops * n_pairs / seconds / 1e9,
        "largest": lines,
    }


@click.command()
@click.argument("networks", nargs=-1, type=click.Choice(MODELS))
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", type=click.Choice(list(PRECISIONS)), default="fp32", show_default=True)
@click.option("--engine", type=click.Choice(list(ENGINES)), default="eager", show_default=True)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmarks/results"),
    show_default=True,
    help="Folder of the page.",
)
def main(networks: tuple[str, ...], device: str, precision: str, engine: str, output: Path) -> None:
    """Profile attributions of NETWORKS, the study's four by default, and write a page."""
    where = take_device(device)
    torch.set_num_threads(n_cores())
    rows = [measure(name, where, precision, engine) for name in networks or FOUR]
    largest_of = {row["network"]: row.pop("largest") for row in rows}
    rate = product_rate(where, precision) / 1e9
    for row in rows:
        row["of a product, %"] = 100 * row["GFLOP/s"] / rate
    n_images, n_steps = _N_IMAGES[where.type], _N_STEPS[where.type]
    packages = ("igmask", "torch", "torchvision")
    columns = {"network": of("network"), **{key: figures_of(key) for key in list(rows[0])[1:]}}
    machine = describe(str(where), torch.get_num_threads(), packages)
    text = [
        f"{n_images} images, {n_steps} steps; stages in ms a step, each waited for, so that they",
        "are more than the whole, whose best of three is *ms a step*. A large matrix product runs",
        f"at {rate:,.0f} GFLOP/s.",
    ]
    found = [f"- {name}: {'; '.join(lines)}" for name, lines in largest_of.items()]
    blocks = text, table(rows, columns), ["What takes most, by the profiler:"], found
    title, command = f"Where the time goes: {precision}, {engine}", ["python", *sys.argv]
    path = output / f"stages-{where.type}-{precision}-{engine}.md"
    write_text(path, page(title, machine, shlex.join(command), *blocks))
    click.echo(path)


if __name__ == "__main__":
    main()
