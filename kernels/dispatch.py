"""One door to each operation: its PyTorch definition, or its Triton kernel where there is a GPU.

An operation is a `torch.library` custom op named `igmask::…`. On a CPU it runs its definition, on
CUDA and ROCm its kernel. Two environment variables, read when the package is imported:

    TRITON_INTERPRET=1        the kernels, interpreted by Triton on CPU tensors; for tests
    IGMASK_KERNELS=reference  the definitions everywhere
"""

import os
from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton for this system: the definitions run everywhere
    triton, tl = None, SimpleNamespace(constexpr=None, float32=None, float64=None)

INTERPRETED = triton is not None and triton.knobs.runtime.interpret
REFERENCE = triton is None or os.environ.get("IGMASK_KERNELS") == "reference"


def jit(kernel: Callable[..., None]) -> Any:
    """`triton.jit`, or the function as it is where Triton cannot be had."""
    return kernel if triton is None else triton.jit(kernel)


def operation(
    *, launch: Callable[..., Any], fake: Callable[..., Any] | None = None, mutates: str = ""
) -> Callable[[Callable[..., Any]], Any]:
    """Make a custom op of a PyTorch definition; the decorated name calls whichever should run.

    The op is its attribute `op`, the definition `definition`.

    launch:  what runs the kernel, with the arguments of the definition, which says their types
    fake:    what comes back, as empty tensors, for `torch.compile`; None if nothing does
    mutates: name of the argument that is changed in place
    """

    def wrap(definition: Callable[..., Any]) -> Any:
        names = (mutates,) if mutates else ()
        name = f"igmask::{definition.__name__.strip('_')}"
        op = torch.library.custom_op(name, definition, mutates_args=names)
        op.register_fake(fake or (lambda *_: None))
        if not REFERENCE:
            op.register_kernel("cpu" if INTERPRETED else "cuda")(_on_its_device(launch))

        @wraps(definition)
        def call(first: Tensor, *arguments: Any) -> Any:
            # Straight to the definition where nobody asks what is called: the first call of any
            # op imports torch.compile's machinery, most of a second in every job on a CPU.
            plain = type(first) is Tensor and not torch.compiler.is_compiling()
            # Kernels have no derivative; what is asked to be differentiable again has one.
            traced = torch.is_grad_enabled() and first.requires_grad
            if plain and (traced or not has_kernel(first.device)):
                return definition(first, *arguments)
            return op(first, *arguments)

        call.op, call.definition = op, definition  # type: ignore[attr-defined]
        return call

    return wrap


def has_kernel(device: torch.device) -> bool:
    """Whether operations on tensors of this device run their kernels."""
    return not REFERENCE and device.type == ("cpu" if INTERPRETED else "cuda")


def _on_its_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device, which need not be that of the tensors."""

    def call(first: Tensor, *arguments: Any) -> Any:
        with torch.cuda.device_of(first):  # of a tensor on the CPU none
            return launch(first, *arguments)

    return call


def on_device(
    values: list[Any], device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """Return a tensor of the numbers, without waiting for what a GPU is at.

    PyTorch waits for it before a tensor made there, or copied from memory that may be paged, is
    given back: some milliseconds of each batch, in which the next kernels are not launched.
    """
    made = torch.tensor(values, dtype=dtype)
    if torch.device(device).type != "cuda":
        return made.to(device)
    return made.pin_memory().to(device, non_blocking=True)


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Return channels_last for a batch of images whose channels lie next to each other."""
    last = x.ndim == 4 and not x.is_contiguous()
    if last and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def wide(x: Tensor) -> torch.dtype:
    """Return the dtype of sums of such numbers: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def empty_as(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor of any numbers, where x is and in its memory format."""
    form = memory_format_of(x)
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=form)


def check(who: str, holds: bool, expected: str, *tensors: Tensor) -> None:
    """Raise ValueError with the shapes and dtypes of the tensors unless the condition holds."""
    if not holds:
        came = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in tensors)
        raise ValueError(f"{who}: expected {expected}, got {came}")
