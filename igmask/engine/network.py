"""A network made ready for many gradients: split at its stem, in a precision, run by an engine.

Everything Integrated Gradients ask of a network: the stem and its transpose, the gradient at a
batch of points behind it, how many points a batch may have.
"""

import copy
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks
from torch.overrides import TorchFunctionMode, resolve_name

from igmask.engine import stem
from igmask.engine.fusion import laid_out
from igmask.errors import InputError
from igmask.inputs import contract
from igmask.kernels import has_kernel
from igmask.tracing import running

# name → what is behind the stem is in, its sums being in 32 bits; None: the model's own. fp32: IEEE
# single precision; tf32: the same with 10 bits of mantissa in products, on a GPU.
PRECISIONS: dict[str, torch.dtype | None] = {
    "fp32": None,
    "tf32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

_CPU_BYTES = 2**30  # for a batch: larger ones gain nothing
_MOST = {"cpu": 64, "cuda": 256}  # points in a batch; more gain nothing
_BYTES_BEHIND = 64  # a byte of points may need so many, where that cannot be measured
_SCALES = (2.0**12, 2.0**8, 2.0**4, 1.0)  # of fp16's gradients, which would else vanish


class Network:
    """A network behind one door; see `prepare`.

    answer: what it said of the first images, None if it was not asked
    takes:  shape without the first axis, dtype and device of the images it was made ready for
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        example: Tensor,
        *,
        precision: str | None = None,
        engine: str = "eager",
        split: stem.Split | None = None,
        answer: contract.Answer | None = None,
    ) -> None:
        self.answer = answer
        self.takes = (*example.shape[1:],), example.dtype, example.device
        self.split = split or stem.split(
            model,
            example,
            with_head=has_kernel(example.device),  # elsewhere it would be the same work
            layout=_layout(example, precision),
            fused=has_kernel(example.device) and engine != "compile",  # which does so itself
        )
        self.precision, self.engine = precision, engine
        self._alone = threading.Lock()
        self.dtype = PRECISIONS.get(precision or "")
        trunk: Any = self.split.trunk
        self._trunk = trunk if self.dtype is None else copy.deepcopy(trunk).to(self.dtype)
        self._run = ENGINES[engine](self._trunk)
        self._bytes: int | None = None

    def stem(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return where images (N, C, H, W) are behind the stem, detached: (N, ...) each."""
        x = laid_out(x, self.split.layout)
        with torch.no_grad(), self._running(), _no_autocast(x):
            return tuple(u.detach() for u in self.split.stem(x))

    def stem_transposed(self, x: Tensor, slopes: tuple[Tensor, ...]) -> Tensor:
        """Return Aᵀ applied to gradients behind the stem: shaped as the images x."""
        if self.split.why_not:
            return slopes[0].clone()
        x = laid_out(x, self.split.layout)
        with torch.enable_grad(), self._running(), _no_autocast(x):
            x = x.detach().requires_grad_()
            ends = [(u, s.to(u.dtype)) for u, s in zip(self.split.stem(x), slopes, strict=True)]
            ends = [(u, s) for u, s in ends if u.requires_grad]
            outputs, gradients = zip(*ends, strict=True)
            return torch.autograd.grad(outputs, x, gradients)[0]

    def gradients(
        self, points: tuple[Tensor, ...], pick: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the gradient of each row's picked output at its point; points may be overwritten.

        Rows do not mix, so one backward pass of the sum gives them all.

        points: (B, ...) each;  pick: outputs of the network → (B,)
        """

        def f(*at: Tensor) -> Tensor:
            return pick(self._in_32_bits(self._run(*at)))

        if self.engine == "cudagraph":  # its recording has one place for results
            with self._alone, self._running():
                return tuple(slope.clone() for slope in self._scaled(f, points))
        with self._running():
            return self._scaled(f, points)

    def outputs(self, points: tuple[Tensor, ...]) -> Tensor:
        """Return what the network says at points, which may be overwritten; forward alone.

        Without no_grad, in which a network that differentiates by itself would fail: of frozen
        weights and points that ask for no gradient PyTorch keeps nothing.
        """
        with torch.enable_grad(), self._running():
            outputs = self._in_32_bits(self._trunk(*points))
        return outputs.detach() if isinstance(outputs, Tensor) else outputs

    def _in_32_bits(self, outputs: Any) -> Any:
        is_narrow = self.dtype is not None and isinstance(outputs, Tensor)
        return outputs.float() if is_narrow else outputs

    def _scaled(self, f: Callable[..., Tensor], points: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The gradients of f, for fp16 by way of the largest power of two that overflows none."""
        if self.dtype is not torch.float16:
            return input_gradients(f, points)
        for scale in _SCALES:
            slopes = input_gradients(
                lambda *at, scale=scale: scale * f(*at), tuple(p.clone() for p in points)
            )
            if all_finite(slopes):
                break
        return tuple(slope.float() / scale for slope in slopes)

    def bytes_per_point(self, image: Tensor) -> int:
        """Return the memory of one (image, step) pair: its points and what backward will need."""
        if self._bytes is None:
            entries = self.split.entries(self.stem(image[:1]))
            points = tuple(u.to(self.dtype or u.dtype, copy=True) for u in entries)
            kept = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in points}
            known = isinstance(self._trunk, nn.Module)
            weights = (*self._trunk.parameters(), *self._trunk.buffers()) if known else ()
            strided = [weight for weight in weights if weight.layout is torch.strided]
            own = {weight.untyped_storage().data_ptr() for weight in strided}

            def keep(saved: Tensor) -> Tensor:
                storage = saved.untyped_storage()
                if storage.data_ptr() not in own:
                    kept[storage.data_ptr()] = storage.nbytes()
                return saved.detach()  # itself would be a cycle with its node, never freed

            hooks, factor = saved_tensors_hooks(keep, lambda t: t), 1.5  # as backward holds more
            try:
                with torch.enable_grad(), self._running(), hooks:
                    alive = self._trunk(*map(node_of, points))  # so no storage is given out twice
                del alive
            except Exception:  # torch.func allows no hooks
                factor = _BYTES_BEHIND
            self._bytes = int(factor * sum(kept.values()))
        return self._bytes

    def batch_size(self, images: Tensor) -> int:
        """Return how many points of images (N, C, H, W) a batch should have, from free memory."""
        device = images.device
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            budget = free * 6 // 10
        else:
            import psutil  # a tenth of a second, which most jobs do without

            budget = min(_CPU_BYTES, psutil.virtual_memory().available // 4)
        fitting = budget // self.bytes_per_point(images)
        return max(1, min(fitting, _MOST.get(device.type, 64)))

    @contextmanager
    def _running(self) -> Iterator[None]:
        # In this order, as in `prepare`: who waits for the setting keeps nobody from tracing.
        with multiplying_in(self.precision), running():
            yield


def input_gradients(f: Callable[..., Tensor], points: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the gradient of the sum of f(*points) by each of them; zero where f leaves one out.

    f may change its arguments in place.

    raises InputError if f does not depend on the points differentiably, saying what cuts it
    """
    with torch.enable_grad():
        nodes = tuple(map(node_of, points))
        edges = [get_gradient_edge(node) for node in nodes]
        outputs = f(*nodes)
        slopes: tuple[Tensor | None, ...] = (None,) * len(points)
        if outputs.requires_grad:
            slopes = torch.autograd.grad(outputs.sum(), edges, allow_unused=True)
    if all(slope is None for slope in slopes):
        raise InputError(
            f"the model's output has no gradient with respect to its input: {_what_cuts(f, points)}"
        )
    return tuple(
        torch.zeros_like(point) if slope is None else slope
        for point, slope in zip(points, slopes, strict=True)
    )


def node_of(point: Tensor) -> Tensor:
    """Return the point as a node of autograd that is no leaf, so that it may change in place."""
    return point.add_(torch.zeros((), dtype=point.dtype, device=point.device, requires_grad=True))


def _what_cuts(f: Callable[..., Tensor], points: tuple[Tensor, ...]) -> str:
    cuts: list[str] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            asked = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
            result = function(*args, **(kwargs or {}))
            if asked and isinstance(result, Tensor) and not result.requires_grad:
                under = "" if torch.is_grad_enabled() else " under no_grad()"
                cuts.append(f"{resolve_name(function) or function}{under}")
            return result

    with torch.enable_grad():
        nodes = tuple(node_of(point.detach().clone()) for point in points)
        with Watch():
            f(*nodes)
    names = ", ".join(dict.fromkeys(cuts))
    return f"it is cut by {names}" if names else "the output does not depend on it"


def ordinary(x: Tensor) -> Tensor:
    """Return the tensor, detached; a copy if it is one of torch.inference_mode."""
    with torch.inference_mode(False):
        return x.clone() if x.is_inference() else x.detach()


def all_finite(tensors: tuple[Tensor, ...]) -> bool:
    """Whether no number of the tensors is NaN or infinite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _layout(example: Tensor, precision: str | None) -> torch.memory_format | None:
    """How convolutions' weights are to lie, by what was measured faster; None: as they are.

    Channels next to each other on a CPU, by oneDNN, for every network of the benchmark; and on a
    GPU where tensor cores multiply. cuDNN's kernels of IEEE single precision are made for the other
    layout.
    """
    on_gpu = example.device.type == "cuda"
    if example.dtype != torch.float32 or (on_gpu and precision is None):
        return None
    first = on_gpu and precision == "fp32"
    return torch.contiguous_format if first else torch.channels_last


def _compiled(trunk: Callable[..., Tensor]) -> Callable[..., Tensor]:
    run = _leaving_points(trunk)
    # torch.compile gives up on code that it has compiled eight times: each network has its own.
    code = run.__code__.replace(co_name=f"trunk_{next(_numbers)}")
    named = FunctionType(code, run.__globals__, closure=run.__closure__)
    return torch.compile(named, dynamic=False)


_numbers = count()


class _Graphed:
    """A function of tensors of which CUDA replays a recording, one for each shape."""

    def __init__(self, trunk: Callable[..., Tensor]) -> None:
        self._f = _leaving_points(trunk)
        self._recordings: dict[Any, Any] = {}

    def __call__(self, *points: Tensor) -> Tensor:
        key = tuple((point.shape, point.dtype) for point in points)
        if key not in self._recordings:
            sample = tuple(point.detach().clone().requires_grad_() for point in points)
            with warnings.catch_warnings():  # PyTorch's, of streams that it itself chooses here
                warnings.filterwarnings("ignore", "The AccumulateGrad node's stream")
                self._recordings[key] = torch.cuda.make_graphed_callables(self._f, sample)
        return self._recordings[key](*points)


def _leaving_points(trunk: Callable[..., Tensor]) -> Any:
    """The trunk, which may work in place, on copies of its points."""
    return lambda *points: trunk(*(point.clone() for point in points))


# name → how what is behind the stem runs
ENGINES: dict[str, Callable[[Callable[..., Tensor]], Callable[..., Tensor]]] = {
    "eager": lambda trunk: trunk,
    "compile": _compiled,
    "cudagraph": _Graphed,
}


def _no_autocast(x: Tensor) -> Any:
    """The stem stays in its own precision: its result is the end point of every step."""
    return torch.autocast(x.device.type, enabled=False)


def _multipliers() -> tuple[Any, ...]:
    """PyTorch's settings of how a GPU multiplies float32."""
    return torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]


def multiply_in(precision: str | None) -> None:
    """Let a GPU multiply float32 in this process by TF32, or as IEEE says for any other precision.

    PyTorch's own default allows TF32 in convolutions only.
    """
    for backend in _multipliers():
        backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"


_setting = threading.Condition()
_users = {"fp32": 0, "tf32": 0}
_before: list[str] = []


@contextmanager
def multiplying_in(precision: str | None) -> Iterator[None]:
    """Let a GPU multiply float32 as the precision says, not as PyTorch is set.

    The setting is the process's: threads of one precision share it, those of the other wait.
    """
    if precision not in _users or not torch.cuda.is_available():
        yield
        return
    other = "tf32" if precision == "fp32" else "fp32"
    with _setting:
        _setting.wait_for(lambda: not _users[other])
        if not _users[precision]:
            _before[:] = [backend.fp32_precision for backend in _multipliers()]
            multiply_in(precision)
        _users[precision] += 1
    try:
        yield
    finally:
        with _setting:
            _users[precision] -= 1
            if not _users[precision]:
                for backend, value in zip(_multipliers(), _before, strict=True):
                    backend.fp32_precision = value
            _setting.notify_all()
