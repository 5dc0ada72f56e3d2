"""A network made ready for many gradients: split at its stem, in a precision, run by an engine.

Everything Integrated Gradients ask of a network: the stem and its transpose, the gradient at a
batch of points behind it, how many points a batch may have.
"""

import copy
import ctypes
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, lru_cache
from itertools import count
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, fx, nn
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks
from torch.overrides import TorchFunctionMode, resolve_name

from igmask.engine import stem
from igmask.errors import InputError
from igmask.inputs import contract
from igmask.kernels import has_kernel
from igmask.tracing import running

# fp32: IEEE single precision; tf32: the same with 10 bits of mantissa in products, on a GPU; bf16,
# fp16: what is behind the stem in 16 bits, its sums in 32.
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
ENGINES = ("eager", "compile", "cudagraph")

_numbers = count()
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CPU_BYTES = 2**30  # for a batch: larger ones gain nothing
_MOST = {"cpu": 64, "cuda": 256}  # points in a batch; more gain nothing
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
        self.dtype = _DTYPES.get(precision or "")
        trunk: Any = self.split.trunk
        if self.dtype is not None:
            trunk = copy.deepcopy(trunk).to(self.dtype)
        self._trunk: Any = trunk
        self._run = self._with_engine(engine)
        self._bytes: int | None = None

    def _with_engine(self, engine: str) -> Callable[..., Any]:
        if engine == "eager":
            return self._trunk

        def trunk(*points: Tensor) -> Tensor:
            return self._trunk(*(point.clone() for point in points))  # it may work in place

        if engine == "cudagraph":
            return _Graphed(trunk)
        # torch.compile gives up on code that it has compiled eight times: each network has its own.
        code = trunk.__code__.replace(co_name=f"trunk_{next(_numbers)}")
        own = FunctionType(code, trunk.__globals__, closure=trunk.__closure__)
        return torch.compile(own, dynamic=False)

    def stem(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return where images (N, C, H, W) are behind the stem, detached: (N, ...) each."""
        x = stem.laid_out(x, self.split.layout)
        with torch.no_grad(), self._running(), _no_autocast(x):
            return tuple(u.detach() for u in self.split.stem(x))

    def stem_transposed(self, x: Tensor, slopes: tuple[Tensor, ...]) -> Tensor:
        """Return Aᵀ applied to gradients behind the stem: shaped as the images x."""
        if self.split.why_not:
            return slopes[0].clone()
        x = stem.laid_out(x, self.split.layout)
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
            outputs = self._run(*at)
            if self.dtype is not None and isinstance(outputs, Tensor):
                outputs = outputs.float()
            return pick(outputs)

        if self.engine == "cudagraph":  # its recording has one place for results
            with self._alone, self._running():
                return tuple(slope.clone() for slope in self._scaled(f, points))
        with self._running():
            return self._scaled(f, points)

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
            own = {weight.untyped_storage().data_ptr() for weight in weights}

            def keep(saved: Tensor) -> Tensor:
                storage = saved.untyped_storage()
                if storage.data_ptr() not in own:
                    kept[storage.data_ptr()] = storage.nbytes()
                return saved.detach()  # itself would be a cycle with its node, never freed

            with torch.enable_grad(), self._running(), saved_tensors_hooks(keep, lambda t: t):
                alive = self._trunk(*map(_node, points))  # so that no storage is given out twice
            self._bytes = sum(kept.values()) * 3 // 2  # and what backward holds for a while
            del alive
        return self._bytes

    def batch_size(self, images: Tensor) -> int:
        """Return how many points of images (N, C, H, W) a batch should have, from free memory."""
        device = images.device
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            budget = free * 6 // 10
        else:
            budget = min(_CPU_BYTES, psutil.virtual_memory().available // 4)
        fitting = budget // self.bytes_per_point(images)
        return max(1, min(fitting, _MOST.get(device.type, 64)))

    @contextmanager
    def _running(self) -> Iterator[None]:
        # In this order, as in `prepare`: who waits for the setting keeps nobody from tracing.
        with _products(self.precision), running():
            yield


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


class _Graphed:
    """A function of tensors of which CUDA replays a recording, one for each shape."""

    def __init__(self, f: Callable[..., Tensor]) -> None:
        self._f = f
        self._recordings: dict[Any, Any] = {}

    def __call__(self, *points: Tensor) -> Tensor:
        key = tuple((point.shape, point.dtype) for point in points)
        if key not in self._recordings:
            sample = tuple(point.detach().clone().requires_grad_() for point in points)
            with warnings.catch_warnings():  # PyTorch's, of streams that it itself chooses here
                warnings.filterwarnings("ignore", "The AccumulateGrad node's stream")
                self._recordings[key] = torch.cuda.make_graphed_callables(self._f, sample)
        return self._recordings[key](*points)


def prepare(
    model: Callable[..., Tensor],
    example: Tensor,
    *,
    precision: str | None = None,
    engine: str = "eager",
) -> Network:
    """Return the model made ready; made once for each model, and anew when the model has changed.

    model:     (N, ...) → outputs; as a module, in evaluation mode and on the example's device
    example:   (n, ...) images
    precision: of `PRECISIONS`; None leaves the model and PyTorch's settings as they are
    engine:    of `ENGINES`: how what is behind the stem runs
    returns    what does not notice a later change of the model
    raises     InputError for a precision or engine unknown or not to be had on the device, for a
               model on another device, one with layers in training mode, or one that does not
               answer the first images as `contract.ask` says
    """
    for kind, name, known in (("precision", precision, PRECISIONS), ("engine", engine, ENGINES)):
        if name is not None and name not in known:
            raise InputError(f"unknown {kind} {name!r}; choose from {', '.join(known)}")
        if name in ("tf32", "cudagraph") and example.device.type != "cuda":
            raise InputError(f"{kind} {name} needs a GPU, and the images are on the CPU")
    if example.device.type == "cpu":
        keep_freed_memory()
    if not isinstance(model, nn.Module) and precision in _DTYPES:
        raise InputError(f"precision {precision} needs a torch.nn.Module, not a function")
    # What answers are compared here, and what is found to be one, is not a matter of precision:
    # by TF32, PyTorch's default for convolutions, the gradients of deep networks differ by tenths.
    with torch.inference_mode(False), _products("fp32"):
        return _prepare(model, example, precision, engine)


def _prepare(
    model: Callable[..., Tensor], example: Tensor, precision: str | None, engine: str
) -> Network:
    if not isinstance(model, nn.Module):
        # Anew each time: what it calls may have changed since.
        contract.check_averages(model, example)
        said = contract.ask(model, example) if len(example) else None
        return Network(model, example, precision=precision, engine=engine, answer=said)
    check_model(model, example)
    if not len(example):  # nothing to compare a split on
        alone = stem.whole(model, "there is no image")
        return Network(model, example, precision=precision, engine=engine, split=alone)
    key = (_fingerprint(model), example.shape[1:], example.dtype, example.device, precision, engine)
    with _lock:
        ready = _ready.setdefault(model, {})
        made = ready.get(key)
    if isinstance(made, Network):
        return made
    if made is None:
        contract.check_averages(model, example)
    why_not, answer = made or ("", contract.ask(model, example))
    split = stem.whole(model, why_not) if why_not else None
    how: dict[str, Any] = {"precision": precision, "engine": engine}
    network = Network(model, example, **how, split=split, answer=answer)
    if answer.fault:  # and anew where it may have been mended, out of sight
        return network
    with _lock:
        if len(ready) > 3:
            ready.clear()  # a model that changes all the time
        why_not = network.split.why_not
        ready[key] = (why_not, answer) if why_not else network
    return network


@cache
def keep_freed_memory() -> None:
    """Let malloc use freed memory again instead of giving it back to the system.

    Fresh pages for the activations of every batch cost a fifth of the time of VGG-16.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # not the GNU C library: another allocator, with habits of its own
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


_lock = threading.Lock()
# Of a model without a stem only why, and its answer: its Network would keep it alive.
_Made = Network | tuple[str, contract.Answer]
_ready: WeakKeyDictionary[nn.Module, dict[Any, _Made]] = WeakKeyDictionary()


def _fingerprint(model: nn.Module) -> str:
    """What the model is: a changed one is made ready anew."""
    values: list[Any] = [torch.is_autocast_enabled(), torch.get_default_dtype()]
    for module in model.modules():
        values += [type(module), stem.is_hooked(module)]
        for name, value in vars(module).items():
            if not (isinstance(value, dict) and name.startswith("_")):  # torch's own: see below
                values.append((name, _sign(value)))
    tensors = [*model.parameters(), *model.buffers()]
    values += [(_sign(tensor), tensor.dtype, tensor.device) for tensor in tensors]
    with ExitStack() as stack:
        for kind in {tensor.device.type for tensor in tensors} - {"meta"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        sums = [_sum(t.detach()) for t in tensors if t.device.type != "meta" and t.numel()]
    if sums:  # `.data` changes without a new version
        values += torch.stack([s.to(sums[0].device) for s in sums]).tolist()
    return repr(values)


def _sum(tensor: Tensor) -> Tensor:
    """A sum in which every place has a weight of its own, without a copy of the tensor."""
    if tensor.layout is not torch.strided:
        return torch.zeros((), dtype=torch.float64, device=tensor.device)
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    table = tensor.reshape(len(tensor) if tensor.ndim else 1, -1)
    table = table if table.is_floating_point() else table.float()
    rows, columns = (
        _weights_of_places(n, step, table.dtype, table.device)
        for n, step in zip(table.shape, (1.0, 2**0.5), strict=True)
    )
    return torch.dot(table @ columns, rows).double()


@lru_cache(maxsize=512)  # a network's layers have a few sizes, and are summed at every call
def _weights_of_places(n: int, step: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.arange(1, n + 1, device=device).mul(step).cos().to(dtype)


def _sign(value: Any, depth: int = 4) -> Any:
    """A plain value itself, a container's contents; of anything else, which one it is."""
    if isinstance(value, int | float | bool | str | None):
        return value
    if isinstance(value, Tensor):
        return id(value), None if value.is_inference() else value._version
    if isinstance(value, list | tuple | set | frozenset) and depth:
        return type(value), *(_sign(item, depth - 1) for item in value)
    if isinstance(value, dict) and depth:
        return tuple((str(key), _sign(item, depth - 1)) for key, item in value.items())
    if hasattr(value, "__dict__") and depth and not isinstance(value, nn.Module | type):
        return id(value), _sign(vars(value), depth - 1)
    return id(value)


# What a network's own forward may ask `training` for is not known; these layers surely do.
_TRAINED_DIFFERENTLY = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, nn.RReLU)
_DROPPING = ("StochasticDepth", "DropPath", "DropBlock2d", "DropBlock3d")  # of torchvision, timm


def check_model(model: nn.Module, example: Tensor) -> None:
    """Raise InputError if layers are in training mode, or the model is not where its input is."""
    training = [
        f"{name or 'the network'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if getattr(module, "training", False)  # frozen TorchScript has none
        and (isinstance(module, _TRAINED_DIFFERENTLY) or type(module).__name__ in _DROPPING)
    ]
    if training:
        raise InputError(
            f"the model is in training mode: {', '.join(training[:3])}"
            f"{' and others' if len(training) > 3 else ''}; call model.eval() first"
        )
    places = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if places and example.device not in places:
        raise InputError(
            f"the model is on {', '.join(map(str, places))} and its input on {example.device}; "
            "move one of them with .to(device)"
        )


def is_training(model: Any) -> bool:
    """Whether a module was left in training mode: all of it says so.

    A container, such as DataParallel, says what it was made with, whatever is in it, and a graph of
    torch.export has no other mode and refuses eval(), for itself and for what it is in: what these
    do is seen by what they answer.
    """
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    flags = [getattr(part, "training", False) for part in parts]
    return bool(flags) and all(flags) and not any(isinstance(p, fx.GraphModule) for p in parts)


def all_finite(tensors: tuple[Tensor, ...]) -> bool:
    """Whether no number of the tensors is NaN or infinite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def input_gradients(f: Callable[..., Tensor], points: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the gradient of the sum of f(*points) by each of them; zero where f leaves one out.

    f may change its arguments in place.

    raises InputError if f does not depend on the points differentiably, saying what cuts it
    """
    with torch.enable_grad():
        nodes = tuple(map(_node, points))
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


def _node(point: Tensor) -> Tensor:
    """The point as a node of the graph that is no leaf, so that it may be changed in place."""
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
        nodes = tuple(_node(point.detach().clone()) for point in points)
        with Watch():
            f(*nodes)
    names = ", ".join(dict.fromkeys(cuts))
    return f"it is cut by {names}" if names else "the output does not depend on it"


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


_products_set = threading.Condition()
_products_users = {"fp32": 0, "tf32": 0}
_products_before: list[str] = []


@contextmanager
def _products(precision: str | None) -> Iterator[None]:
    """Let a GPU multiply float32 as the precision says, not as PyTorch is set.

    The setting is the process's: threads of one precision share it, those of the other wait.
    """
    if precision not in _products_users or not torch.cuda.is_available():
        yield
        return
    other = "tf32" if precision == "fp32" else "fp32"
    with _products_set:
        _products_set.wait_for(lambda: not _products_users[other])
        if not _products_users[precision]:
            _products_before[:] = [backend.fp32_precision for backend in _multipliers()]
            multiply_in(precision)
        _products_users[precision] += 1
    try:
        yield
    finally:
        with _products_set:
            _products_users[precision] -= 1
            if not _products_users[precision]:
                for backend, value in zip(_multipliers(), _products_before, strict=True):
                    backend.fp32_precision = value
            _products_set.notify_all()
