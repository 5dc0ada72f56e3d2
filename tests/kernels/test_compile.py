"""Every kernel compiled for GPUs that need not be there, as the project launches it.

Nothing runs. The launches take tensors without memory, in the shapes of real networks, so that
Triton specialises on the alignment and divisibility that it will meet; what came of it is read from
the machine code. With IGMASK_KERNEL_TABLE=docs/kernel-resources.md a run of all, the slow ones too,
also writes that page.
"""

import datetime
import math
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from igmask.kernels import ACTIVATIONS, Pool, grid
from igmask.kernels.occlude import _launch_occluded
from igmask.kernels.path import _launch_accumulate, _launch_points
from igmask.kernels.pool import _launch_accumulate_pooled, _launch_pooled
from igmask.kernels.relu import _launch_relu, _relu_back_kernel, _relu_kernel
from igmask.kernels.select import _launch_select
from igmask.kernels.squares import _launch_parts

triton = pytest.importorskip("triton", reason="there is no Triton for this system")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="a process that interprets cannot compile"
)

TARGETS = {
    "sm_80": triton.backends.compiler.GPUTarget("cuda", 80, 32),  # A100
    "sm_90": triton.backends.compiler.GPUTarget("cuda", 90, 32),  # H100
    "sm_100": triton.backends.compiler.GPUTarget("cuda", 100, 32),  # B200
    "gfx942": triton.backends.compiler.GPUTarget("hip", "gfx942", 64),  # MI300
}
USUAL = ("sm_90", "gfx942")  # one of each vendor; those for others are slow

# -- what is launched --------------------------------------------------------------------------

F64, F32, BF16, F16, U8 = torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8
N_IMAGES, N_PAIRS = 5, 256
RESNET, INCEPTION = (64, 112, 112), (32, 149, 149)
VGG = (64, 224, 224)  # a batch of it is beyond 2 GB, which AMD's compiler minds
ALEXNET, SQUEEZENET = (64, 55, 55), (64, 111, 111)
IMAGE, IMAGE_299 = (3, 224, 224), (3, 299, 299)  # as it is, where a network has no stem


@dataclass(frozen=True, eq=False)
class Case:
    """A launch; `wide` has the dtypes that it must load and store as wide as a thread can."""

    what: str
    launch: Callable[..., Any]
    arguments: tuple[Any, ...]
    wide: dict[str, tuple[torch.dtype, ...]]


def empty(n: int, shape: tuple[int, ...], dtype: torch.dtype = F32, last: bool = False) -> Tensor:
    form = torch.channels_last if last else torch.contiguous_format
    return torch.empty((n, *shape), dtype=dtype, device="meta", memory_format=form)


def name(dtype: torch.dtype, to: torch.dtype | None = None) -> str:
    return str(dtype).removeprefix("torch.") + (f" → {name(to)}" if to else "")


SPANS, PAIRS = empty(N_IMAGES, (2,), torch.int64), empty(N_PAIRS, (), F64)
FORM = {False: "channels first", True: "channels last"}


def points(shape, activation, dtype=F32, to=F32) -> Case:
    u = empty(N_IMAGES, shape, dtype)
    what, arguments = f"{shape}, {activation}, {name(dtype, to)}", (u, u, SPANS, PAIRS)
    wide = {"loads": (dtype,), "stores": (to,)} if math.prod(shape) % 16 == 0 else {}
    return Case(what, _launch_points, (*arguments, activation, to), wide)


def accumulate(shape, activation, dtype=F32, to=F32) -> Case:
    total, gradient = empty(N_IMAGES, shape, to), empty(N_PAIRS, shape, dtype)
    path = (gradient.new_empty(0),) * 3 if activation == "none" else (total, total, PAIRS)
    what, arguments = f"{shape}, {activation}, {name(dtype, to)}", (total, gradient, SPANS, PAIRS)
    wide = {"loads": (dtype, to), "stores": (to,)} if math.prod(shape) % 16 == 0 else {}
    return Case(what, _launch_accumulate, (*arguments, *path, activation), wide)


def pooled(shape, pool, dtype=F32, to=F32, *, last=False) -> Iterator[Case]:
    """There and back."""
    u, sides = empty(N_IMAGES, shape, dtype, last), (pool.side(shape[1]), pool.side(shape[2]))
    slope, taken = (empty(N_PAIRS, (shape[0], *sides), d, last) for d in (to, U8))
    what, how = f"{shape}, {FORM[last]}, {pool.size}²", (pool.size, pool.padding)
    what += f" padded by {pool.padding}" * pool.padding + ", ceil" * pool.ceil
    wide = {"loads": (dtype,), "stores": (to, U8)} if last else {}
    arguments = (u, u, SPANS, PAIRS, *how, *sides, to)
    yield Case(f"{what}, {name(dtype, to)}", _launch_pooled, arguments, wide)
    wide = {"loads": (dtype, to, U8), "stores": (dtype,)} if last else {}
    arguments = (u, slope, taken, SPANS, PAIRS, *how)
    yield Case(f"{what}, {name(to, dtype)}", _launch_accumulate_pooled, arguments, wide)


def relu(shape, how, dtype=F32, *, last=False) -> Iterator[Case]:
    """There and back, behind a bias, a norm or a sum."""
    x, of_channels = empty(N_PAIRS, shape, dtype, last), empty(shape[0], ())
    what = f"{shape}, {FORM[last]}, {how}, {name(dtype)}"
    scale = of_channels if how == "norm" else None
    there, back = (F32, dtype), (F32, dtype) if how == "norm" else (dtype,)
    arguments = (_relu_kernel, x, x, x if how == "sum" else None, of_channels, scale)
    wide = {"loads": there, "stores": (dtype,)} if last else {"stores": (dtype,)}
    yield Case(what, _launch_relu, arguments, wide)
    wide = {"loads": back, "stores": (dtype,)} if last else {"stores": (dtype,)}
    yield Case(f"{what}, back", _launch_relu, (_relu_back_kernel, x, x, x, None, scale), wide)


def parts(shape, dtype=F32, *, last=False, multiply=True, keep=False) -> Case:
    x = empty(N_IMAGES, shape, dtype, last)
    what = f"{shape}, {FORM[last]}, {name(dtype)}"
    what += ", (x − b) ⊙ s" * multiply + ", kept" * keep
    return Case(what, _launch_parts, (x, x, x, 3, multiply, keep), {})


def select(n_squares, by) -> Case:
    scores, percentages = empty(N_IMAGES, (n_squares,)), empty(2, (), torch.int64)
    return Case(f"{n_squares:,}, by {by}", _launch_select, (scores, percentages, by == "mass"), {})


def occluded(shape, dtype=F32, *, last=True, drop=False, n_fills=1, picture=False) -> Case:
    images, colour = empty(N_IMAGES, (*shape[1:], shape[0]), U8), empty(shape[0], ())
    n_bytes = -(-math.prod(grid(*shape[1:], 3)) // 8)
    bits = empty(N_IMAGES, (n_bytes,), U8)
    fills = empty(n_fills, (*(shape[1:] if picture else (1, 1)), shape[0]))
    what = f"{shape}, {FORM[last]}, {name(dtype)}, {'drop' if drop else 'keep'}"
    what += f", a {'picture' if picture else 'colour'} each" * (n_fills > 1)
    arguments = (images, bits, fills, colour, colour, 3, drop, dtype, last)
    return Case(what, _launch_occluded, arguments, {} if last else {"stores": (dtype,)})


CASES = [
    *(points(RESNET, a) for a in ACTIVATIONS),
    *(points(RESNET, a, F32, BF16) for a in ACTIVATIONS),
    *(points(RESNET, a, F64, F64) for a in ("none", "gelu")),
    points(RESNET, "relu", BF16, BF16),
    points(RESNET, "relu", F32, F16),
    points(VGG, "relu"),
    points(INCEPTION, "relu"),
    points(IMAGE, "none"),
    points(IMAGE_299, "none"),
    *(accumulate(RESNET, a) for a in ACTIVATIONS),
    *(accumulate(RESNET, a, BF16) for a in ACTIVATIONS),
    *(accumulate(RESNET, a, F64, F64) for a in ("none", "gelu")),
    accumulate(RESNET, "relu", F16),
    accumulate(VGG, "relu"),
    accumulate(INCEPTION, "relu"),
    accumulate(IMAGE, "none"),
    accumulate(IMAGE_299, "none"),
    *pooled(RESNET, Pool(3, 1)),
    *pooled(RESNET, Pool(3, 1), F64, F64),
    *pooled(RESNET, Pool(3, 1), last=True),
    *pooled(RESNET, Pool(3, 1), F32, BF16, last=True),
    *pooled(ALEXNET, Pool(3, 0), F32, F16),
    *pooled(SQUEEZENET, Pool(3, 0, ceil=True), last=True),
    *pooled(VGG, Pool(2, 0), F32, BF16),
    *pooled(VGG, Pool(2, 0), last=True),
    *(c for how in ("bias", "norm", "sum") for c in relu(RESNET, how, BF16, last=True)),
    *(c for how in ("bias", "norm", "sum") for c in relu(RESNET, how)),
    *relu(INCEPTION, "bias", F16, last=True),
    parts(IMAGE, multiply=False),
    parts(IMAGE, F64, multiply=False),
    parts(IMAGE, last=True),
    parts(IMAGE, keep=True),
    parts(IMAGE_299, last=True, keep=True),
    *(select(n, by) for n in (5625, 10_000) for by in ("mass", "count")),
    occluded(IMAGE),
    occluded(IMAGE, BF16, drop=True),
    occluded(IMAGE, last=False, drop=True),
    occluded(IMAGE, F16, last=False),
    occluded(IMAGE_299, n_fills=N_IMAGES),
    occluded(IMAGE, n_fills=N_IMAGES, picture=True),
]


# -- what became of it -------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """What a kernel needs: registers a thread, bytes of shared memory, widths of its accesses.

    spilled: zero if nothing is; bytes a thread, with AMD registers besides
    """

    n_threads: int
    registers: int
    shared: int
    spilled: int
    loads: set[int]
    stores: set[int]


# Bytes, of what an instruction of PTX or of AMD calls the size of its access.
WIDTHS = {f"b{8 * n}": n for n in (1, 2, 4, 8)}
WIDTHS |= {f"v{n}.b{8 * size}": n * size for n in (2, 4) for size in (1, 2, 4, 8)}
WIDTHS |= {"byte": 1, "ubyte": 1, "short": 2, "ushort": 2, "dword": 4}
WIDTHS |= {f"dwordx{n}": 4 * n for n in (2, 3, 4)}


class Driver:
    """As much of a GPU as compiling for it takes."""

    target: Any = None
    kernel: Any = None  # the last one that was compiled

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> Any:
        return self.target  # what compiled kernels are filed under

    def get_current_stream(self, device: Any) -> int:
        return 0


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Iterator[Callable[[Case, str], Any]]:
    """A function of a case and a target: the kernel, compiled where it would run."""
    driver, jit = Driver(), triton.runtime.JITFunction
    run = jit.run

    def compile_only(self, *arguments, warmup, **options):
        driver.kernel = run(self, *arguments, warmup=True, **options)

    def kernel_of(case: Case, target: str) -> Any:
        driver.target = TARGETS[target]
        case.launch(*case.arguments)
        return driver.kernel

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setattr(triton.runtime.driver, "_active", driver)
        patch.setattr(jit, "run", compile_only)
        yield kernel_of


@pytest.fixture(scope="module")
def found() -> Iterator[dict[tuple[Case, str], Code]]:
    """What the tests found, by case and target; written at the end if it is wanted and whole."""
    codes: dict[tuple[Case, str], Code] = {}
    yield codes
    path = os.environ.get("IGMASK_KERNEL_TABLE")
    if path and len(codes) == len(CASES) * len(TARGETS):
        Path(path).write_text(table(codes))


@pytest.mark.parametrize(
    "target", [pytest.param(t, marks=[pytest.mark.slow] * (t not in USUAL)) for t in TARGETS]
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.launch.__name__[8:]} {case.what}")
def test_nothing_spills_and_accesses_are_wide(case, target, compiled, found, tmp_path):
    code = code_of(compiled(case, target), tmp_path)
    assert code.spilled == 0
    for access, dtypes in case.wide.items():
        n_values = case.launch.__globals__["_BLOCK"] // code.n_threads
        widths = {min(16, n_values * dtype.itemsize) for dtype in dtypes}
        # Eight bytes may also be a span, a position or a weight.
        assert widths <= getattr(code, access) <= widths | {8}, access
    found[case, target] = code


def code_of(kernel: Any, folder: Path) -> Code:
    about, asm = kernel.metadata, kernel.asm
    if "amdgcn" in asm:  # scalar registers that spill go to vector registers, and count as those
        text = usage = asm["amdgcn"]
        counts = r"\.vgpr_count: ", r"\.vgpr_spill_count: ", r"\.private_segment_fixed_size: "
        access = r"\b(?:global|buffer)_{}_([a-z]+\d?)"
    else:
        text, cubin = asm["ptx"], folder / "kernel.cubin"
        cubin.write_bytes(asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        counts = r"\bREG:", r"\bSTACK:", r"\bLOCAL:"
        access = r"\b{}\.global\S*?\.((?:v\d\.)?b\d+) "
    registers, *spilled = (int(re.search(rf"{count}\s*(\d+)", usage)[1]) for count in counts)
    loads, stores = (
        {WIDTHS[width] for width in re.findall(access.format(verb), text)}
        for verb in (("load", "store") if "amdgcn" in asm else ("ld", "st"))
    )
    n_threads = about.num_warps * about.target.warp_size
    return Code(n_threads, registers, about.shared, sum(spilled), loads, stores)


def table(found: dict[tuple[Case, str], Code]) -> str:
    """Return the page docs/kernel-resources.md."""
    lines = [
        f"""\
# What the kernels need

Compiled by Triton {triton.__version__} for GPUs that were not there; {datetime.date.today()}.

    IGMASK_KERNEL_TABLE=docs/kernel-resources.md pytest -m "" tests/kernels/test_compile.py

Registers a thread / bytes of shared memory / widest load / widest store, in bytes. No register
spills to memory, or the test fails; CI asks the same of Triton 3.6.0. Loads of 8 bytes may be of
spans, positions and weights. Nothing is wider where a thread has one value or two, as in pooling
and squares, nor where rows begin anywhere: 3 × 299² values are no multiple of 16 bytes, nor
are 5,625 scores.

| kernel | launched for | {" | ".join(TARGETS)} |
|---|---|{"---|" * len(TARGETS)}
"""
    ]
    for case in CASES:
        cells = (
            f"{code.registers} / {code.shared} / {max(code.loads)} / {max(code.stores)}"
            for code in (found[case, target] for target in TARGETS)
        )
        kernel = case.launch.__name__.removeprefix("_launch_")
        lines.append(f"| {kernel} | {case.what} | {' | '.join(cells)} |\n")
    return "".join(lines)
