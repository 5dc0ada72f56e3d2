"""What is left to do of a study, and what of the disk, of memory and of time it takes here."""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from pathlib import Path
from types import SimpleNamespace

import psutil
import torch

from igmask.asked.settings import Study
from igmask.devices import n_cores, pick_device
from igmask.kernels import grid
from igmask.made import made as files_of
from igmask.plan import Workflow
from igmask.steps.attribute import GROUP
from igmask.steps.converge import N_STEPS
from igmask.tools.trial import AUTO_STEPS, Pace, seconds, selection_s
from igmask.tools.verify import standing

_JOB_BYTES = 700 * 10**6  # of a process that has imported torch
_RECORD_BYTES = 50  # measured, of 50,000 images
_POINT_BYTES = 16  # of a curve
_PAGE_BYTES, _PICTURE_BYTES = 2 * 10**6, 2 * 10**6  # with tables; of each network

# Seconds, measured on two cores.
_SNAKEMAKE_S = 5.0  # until the first job begins, and after the last one
_SCHEDULED_S = 0.3  # of a job, beside its process
_PROBE_S = 2e-7  # of an image, a square and a p
_PICTURE_S = 0.03
_REPLICATE_S = 1e-6  # of an image, a column and a thousand replicates


class Left:
    """What of a study is not made yet, or was made with other settings.

    By the settings that files carry; what they hold is compared by `verify`.
    """

    def __init__(self, flow: Workflow) -> None:
        made = [*files_of(flow)]
        self._standing = standing(made)
        self._outputs = [place for one in made if self.stands(one.path) for place in one.outputs]
        steps = {one.path: str((one.settings or {}).get("step", "converge")) for one in made}
        of_study = [one.path for one in made if one.settings is not None]
        self._of_step = Counter(steps[path] for path in of_study)
        self._done = Counter(steps[path] for path in of_study if path in self._standing)
        last = [one.path for one in made if one.settings is None]
        self.is_all_done = len(self._standing) == len(of_study) and all(p.is_file() for p in last)

    def n_bytes_done(self) -> int:
        """Return the size of the files that stand."""
        return sum(path.stat().st_size for path in self._outputs)

    def count(self, paths: Iterable[str]) -> int:
        """Return how many files are left."""
        return sum(not self.stands(path) for path in paths)

    def stands(self, path: str | Path) -> bool:
        """Whether a file is there as this configuration has it."""
        return Path(path) in self._standing

    def in_words(self) -> str:
        """Return what is done by now, or nothing if nothing is."""
        if self.is_all_done:
            return "all files; tables and pictures are remade where their settings changed"
        parts = [f"{step} {n} of {self._of_step[step]}" for step, n in self._done.items()]
        return f"files that stand: {', '.join(parts)}; the rest is to be made" if parts else ""


@dataclass(frozen=True)
class Stage:
    """Jobs of one kind that are left: of which network each is, if of one, and its seconds.

    beside: how many run at once
    """

    jobs: list[tuple[str, float]]
    beside: int

    def seconds(self, name: str | None = None) -> float:
        """Return how long the stage takes, or those of its jobs that a network waits for."""
        works = [seconds for of, seconds in self.jobs if name is None or of in ("", name)]
        return sum(works) / max(1, min(len(works), self.beside))


def n_attributed(flow: Workflow) -> int:
    """Return how many networks attribute each image, a model's own and its randomised one."""
    return 2 if "randomised" in flow.study.masking.controls else 1


def n_passes(flow: Workflow) -> int:
    """Return how many times each image is shown to a network to be evaluated."""
    return sum(_draws(flow, condition.mask) for condition in flow.conditions)


def n_points(flow: Workflow) -> int:
    """Return the same of curves."""
    return len(flow.curves) * flow.study.curves.points


def disk(flow: Workflow, left: Left, n_images: int) -> tuple[str, str]:
    """Return whether what is still to be written fits at results/, and the level of that."""
    study = flow.study
    squares = [_n_squares(flow, name) for name in flow.models]
    sides = {model.geometry: model.geometry.size for model in flow.models.values()}
    n_masks = len(study.selection.p)
    n_records = n_masks + n_passes(flow)
    parts = {
        "images": n_images * sum(3 * side**2 for side in sides.values()),
        "scores": n_images * n_attributed(flow) * sum(8 * k for k in squares),
        "masks": n_images * n_masks * sum(-(-k // 8) for k in squares),
        "records": n_images * len(squares) * n_records * _RECORD_BYTES,
        "curves": n_images * len(squares) * n_points(flow) * _POINT_BYTES,
        "pictures": 0 if left.is_all_done else _PAGE_BYTES + len(squares) * _PICTURE_BYTES,
    }
    place = Path("results") if Path("results").exists() else Path()
    free = shutil.disk_usage(place).free
    missing = max(0, sum(parts.values()) - left.n_bytes_done())
    details = ", ".join(f"{part} {as_size(size)}" for part, size in parts.items())
    says = f"{as_size(missing)} to be written to results/, {as_size(free)} free\n{details}"
    return says, "ok" if missing <= free else "error"


def memory(study: Study, paces: dict[str, Pace]) -> tuple[str, str]:
    """Return whether the jobs' batches fit into the device's memory, and the level of that."""
    device = pick_device(study.compute.device)
    on_gpu = device.type == "cuda"
    takes = {
        name: p.weight_bytes + p.batch_size * p.point_bytes + (0 if on_gpu else _JOB_BYTES)
        for name, p in paces.items()
    }
    name = max(takes, key=lambda name: takes[name])
    most, beside = takes[name], _beside(study)
    beside = min(beside, len(paces) * study.compute.shards)
    free = _free_on(device) if on_gpu else psutil.virtual_memory().available
    where = f"free on {device}" if on_gpu else "free"
    says = (
        f"a job of {name} takes {as_size(most)}, batches of {paces[name].batch_size}; "
        f"{as_size(free)} {where}"
    )
    if most > free:
        return f"{says}; set compute.batch_size lower", "error"
    if beside * most > free:
        says += f", not enough for {beside} jobs side by side; give Snakemake fewer --cores"
        return says, "warning"
    return says, "ok"


def duration(
    flow: Workflow, left: Left, n: int, decode_s: Collection[float], paces: dict[str, Pace]
) -> str:
    """Return how long what is left of the study will take here, by stages.

    n:        images
    decode_s: seconds to decode one, in each geometry
    paces:    of the networks that could be tried
    """
    study, here = flow.study, Here(flow, left, n, decode_s, paces)
    stages = {name: stage(here) for name, stage in STAGES.items()}
    takes = {name: stage.seconds() for name, stage in stages.items() if stage.jobs}
    beside = min(here.beside, len(paces) * study.compute.shards)
    together = f"{beside} networks side by side, none slowing another"
    # Where one network takes much longer than the others, they have all been done before.
    alone = [sum(stage.seconds(name) for stage in stages.values()) for name in paces]
    total = max(sum(takes.values()), *alone) + _SNAKEMAKE_S
    lines = [
        f"about {as_time(total)} on this machine"
        if takes
        else "nothing is left to do, but for such tables and pictures",
        *(f"{stage:<10} {as_time(seconds):>8}" for stage, seconds in takes.items()),
        f"with {here.cores} cores, compute.threads {study.compute.threads}, and "
        f"{together if beside > 1 else 'one network at a time'}",
    ]
    if study.attribution.n_steps == "auto":
        lines.append(f"with {AUTO_STEPS} steps an image; n_steps is auto")
    if len(paces) < len(flow.models):
        lines.append(f"of {', '.join(paces)} only")
    return "\n".join(lines)


@dataclass(frozen=True)
class Here:
    """A study on this machine: what `duration` is given, and the networks as rules know them."""

    flow: Workflow
    left: Left
    n: int
    decode_s: Collection[float]
    paces: dict[str, Pace]

    @cached_property
    def cores(self) -> int:
        """The cores that jobs may take."""
        return n_cores()

    @cached_property
    def beside(self) -> int:
        """How many jobs that run networks there are at once."""
        return _beside(self.flow.study)

    @cached_property
    def networks(self) -> dict[str, SimpleNamespace]:
        """The wildcards of each network's jobs."""
        return {name: SimpleNamespace(model=name) for name in self.paces}


def _index(here: Here) -> Stage:
    is_left = not here.left.stands(f"{here.flow.folder}/index.parquet")
    return Stage([("", start_s() / 2)] * is_left, 1)


def _train(here: Here) -> Stage:
    n_train, left = here.flow.study.dataset.n_train, []
    for name, pace in here.paces.items():
        model = here.flow.models[name]
        if model.train and not here.left.stands(str(model.weights)):
            # A step takes as long as three forward passes.
            work = 3 * model.train.epochs * n_train * pace.evaluate_s
            left.append((name, start_s() + work))
    return Stage(left, here.cores)


def _preflight(here: Here) -> Stage:
    paths = {name: f"{here.flow.folder}/models/{name}/preflight.json" for name in here.networks}
    left = [(name, start_s()) for name, path in paths.items() if not here.left.stands(path)]
    return Stage(left, here.cores)


def _prepare(here: Here) -> Stage:
    flow = here.flow
    paths = sorted({path for one in here.networks.values() for path in flow.images(one)})
    threads = flow.prepare_threads(here.cores)
    each = here.n * sum(here.decode_s) / len(paths) / threads + start_s() / 2
    return Stage([("", each)] * here.left.count(paths), max(1, here.cores // threads))


def _attribute(here: Here) -> Stage:
    flow, left = here.flow, []
    of_shard = -(-here.n // (len(flow.shards) * GROUP)) * GROUP  # the last group is filled up
    for name, one in here.networks.items():
        each = of_shard * here.paces[name].attribute_s + start_s()
        n_left = here.left.count([*flow.scores(one), *flow.randomised_scores(one)])
        left += [(name, each)] * n_left
    return Stage(left, here.beside)


def _mask(here: Here) -> Stage:
    study = here.flow.study
    of = [name for name, one in here.networks.items() if here.left.count(here.flow.masks(one))]
    sizes = {name: here.flow.models[name].geometry.size for name in of}
    each = {
        size: here.n * selection_s(size, study.squares.side, study.selection) + start_s() / 2
        for size in {*sizes.values()}
    }
    return Stage([(name, each[size]) for name, size in sizes.items()], here.cores)


def _evaluate(here: Here) -> Stage:
    flow, left = here.flow, []
    for name, one in here.networks.items():
        records = zip(flow.conditions, flow.records(one), strict=True)
        passes = sum(_draws(flow, of.mask) for of, path in records if not here.left.stands(path))
        passes += here.left.count(flow.curve_files(one)) * flow.study.curves.points
        if passes:
            left.append((name, here.n * passes * here.paces[name].evaluate_s + start_s()))
    return Stage(left, here.beside)


def _transfer(here: Here) -> Stage:
    flow, left = here.flow, []
    for name, other in flow.transfers:
        folder = f"{flow.folder}/models/{name}/of/{other}"
        n_left = here.left.count([f"{folder}/{file}" for file in flow.transfer_files(other)])
        if n_left and name in here.paces:
            left.append((name, here.n * n_left * here.paces[name].evaluate_s + start_s()))
    return Stage(left, here.beside)


def _converge(here: Here) -> Stage:
    flow, steps = here.flow, here.flow.study.attribution.n_steps
    longer = N_STEPS / (AUTO_STEPS if steps == "auto" else int(steps))
    shown = sum(one.mask == "selection" for one in flow.conditions)
    few, left = min(here.n, flow.study.statistics.converged), []
    for name, pace in here.paces.items():
        paths = [path for path in flow.converged(None) if f"/models/{name}/" in path]
        if here.left.count(paths):
            work = few * (longer * pace.attribute_s + shown * pace.evaluate_s)
            left.append((name, work + start_s()))
    return Stage(left, here.beside)


def _probe(here: Here) -> Stage:
    names = [Path(path).parent.name for path in here.flow.probes(None) if here.left.count([path])]
    each = _PROBE_S * here.n * len(here.flow.study.selection.p)
    left = [(name, each * _n_squares(here.flow, name) + start_s() / 2) for name in names]
    return Stage(left, here.cores)


def _tables(here: Here) -> Stage:
    flow = here.flow
    columns = len(here.paces) * (len(flow.conditions) + n_points(flow))
    work = _REPLICATE_S * here.n * columns * flow.study.statistics.replicates / 1000
    return Stage([("", work + start_s() / 2)] * (not here.left.is_all_done), 1)


def _pictures(here: Here) -> Stage:
    if here.left.is_all_done:
        return Stage([], 1)
    asked, start = here.flow.study.figures, start_s() / 2
    drawn, shown = 12 * min(here.n, asked.n_images), min(here.n, asked.n_gallery)
    left = [(name, count * _PICTURE_S + start) for name in here.paces for count in (drawn, shown)]
    return Stage([*left, ("", start), ("", start)], here.cores)


# In the order of the work; each takes `Here` and returns what of it is left.
STAGES: dict[str, Callable[[Here], Stage]] = {
    "index": _index,
    "train": _train,
    "preflight": _preflight,
    "prepare": _prepare,
    "attribute": _attribute,
    "mask": _mask,
    "evaluate": _evaluate,
    "transfer": _transfer,
    "converge": _converge,
    "probe": _probe,
    "tables": _tables,
    "pictures": _pictures,
}


@cache
def start_s() -> float:
    """Return the seconds of a job whatever its images: most go into importing torch."""
    words = [sys.executable, "-c", "import igmask.steps.attribute"]
    return seconds(lambda: subprocess.run(words, check=True)) + _SCHEDULED_S


def _draws(flow: Workflow, mask: str) -> int:
    """How many masks of a kind each image has."""
    return flow.study.masking.draws if mask == "random" else 1


def _n_squares(flow: Workflow, name: str) -> int:
    size = flow.models[name].geometry.size
    return prod(grid(size, size, flow.study.squares.side))


def _beside(study: Study) -> int:
    """Networks that run side by side: all cores' worth of them, or one on a GPU."""
    if pick_device(study.compute.device).type == "cuda":
        return 1
    return max(1, n_cores() // study.compute.threads)


def _free_on(device: torch.device) -> int:
    """Bytes free on a GPU, those that PyTorch keeps for this process included."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def as_size(n_bytes: float) -> str:
    """Return bytes in words."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.3g} {unit}"
    return f"{n_bytes / 1e3:.3g} kB"


def as_time(seconds: float) -> str:
    """Return seconds in words."""
    for unit, scale in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.1 else f"{seconds:.2g} s"
