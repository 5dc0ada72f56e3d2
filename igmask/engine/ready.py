"""A model → the network made ready of it: once, and anew when the model has changed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import lru_cache, partial
from numbers import Number
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor, fx, nn

from igmask.devices import keep_freed_memory
from igmask.engine import stem
from igmask.engine.graph import hooked_everywhere, is_hooked
from igmask.engine.network import ENGINES, PRECISIONS, Network, multiplying_in
from igmask.engine.traces.compared import agrees
from igmask.errors import InputError
from igmask.inputs import contract


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
    if not isinstance(model, nn.Module) and PRECISIONS.get(precision or "") is not None:
        raise InputError(f"precision {precision} needs a torch.nn.Module, not a function")
    # What answers are compared here, and what is found to be one, is not a matter of precision:
    # by TF32, PyTorch's default for convolutions, the gradients of deep networks differ by tenths.
    with torch.inference_mode(False), multiplying_in("fp32"):
        return _prepare(model, example, precision, engine)


def _prepare(
    model: Callable[..., Tensor], example: Tensor, precision: str | None, engine: str
) -> Network:
    made = partial(Network, model, example, precision=precision, engine=engine)
    if not isinstance(model, nn.Module):
        # Anew each time: what it calls may have changed since.
        contract.check_averages(model, example)
        return made(answer=contract.ask(model, example) if len(example) else None)
    check_model(model, example)
    if not len(example):  # nothing to compare a split on
        return made(split=stem.whole(model, "there is no image"))
    signs, signed = _fingerprint(model)
    key = (signs, example.shape[1:], example.dtype, example.device, precision, engine)
    with _lock:
        ready = _ready.setdefault(model, {})
        known, held = ready.get(key, (None, []))
    if any(one() is None for one in held):  # another object may be where it was
        known = None
    # What a network reads is not all seen from without: functions, classes, other objects.
    if isinstance(known, Network) and not agrees(model, known.split, example):
        known = None
    if isinstance(known, Network):
        return known
    if known is None:
        contract.check_averages(model, example)
    why_not, answer = known or ("", contract.ask(model, example))
    network = made(split=stem.whole(model, why_not) if why_not else None, answer=answer)
    if answer.fault:  # and anew where it may have been mended, out of sight
        return network
    with _lock:
        if len(ready) > 3:
            ready.clear()  # a model that changes all the time
        why_not = network.split.why_not
        ready[key] = (why_not, answer) if why_not else network, signed
    return network


_lock = threading.Lock()
# Of a model without a stem only why, and its answer: its Network would keep it alive.
_Made = Network | tuple[str, contract.Answer]
_ready: WeakKeyDictionary[nn.Module, dict[Any, tuple[_Made, list[ref[Any]]]]]
_ready = WeakKeyDictionary()


def _fingerprint(model: nn.Module) -> tuple[str, list[ref[Any]]]:
    """What the model is, a changed one being made ready anew; and what it knows by its id alone.

    Weakly, since the model itself may be held by what it holds.
    """
    signed: list[ref[Any]] = []
    sign = partial(_sign, signed)
    values: list[Any] = [torch.is_autocast_enabled(), torch.get_default_dtype()]
    values.append(hooked_everywhere())
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        values += [sign(type(module)), is_hooked(module), *map(sign, _read_by(type(module)))]
        for name, value in vars(module).items():
            if not (isinstance(value, dict) and name.startswith("_")):  # torch's own: see below
                values.append((name, sign(value)))
            if not name.startswith("_"):
                tensors += _tensors(value)
    values += [(sign(tensor), tensor.dtype, tensor.device) for tensor in tensors]
    with ExitStack() as stack:
        for kind in {tensor.device.type for tensor in tensors} - {"meta"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        sums = [_sum(t.detach()) for t in tensors if t.device.type != "meta" and t.numel()]
    if sums:  # `.data` changes without a new version
        values += torch.stack([s.to(sums[0].device) for s in sums]).tolist()
    return repr(values), signed


def _tensors(value: Any, depth: int = 3) -> list[Tensor]:
    """The tensors of an attribute, contents of containers and layers in them included."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return [*value.parameters(), *value.buffers()]
    if not depth or not isinstance(value, list | tuple | set | dict):
        return []
    items = value.values() if isinstance(value, dict) else value
    return [tensor for item in items for tensor in _tensors(item, depth - 1)]


def _sum(tensor: Tensor) -> Tensor:
    """A sum in which every place has a weight of its own, without a copy of the tensor."""
    if tensor.layout is not torch.strided:
        return torch.zeros((), dtype=torch.float64, device=tensor.device)
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    table = tensor.reshape(len(tensor) if tensor.ndim else 1, -1)
    table = table if table.dtype in _SUMMED else table.float()
    rows, columns = (
        _weights_of_places(n, step, table.dtype, table.device)
        for n, step in zip(table.shape, (1.0, 2**0.5), strict=True)
    )
    return torch.dot(table @ columns, rows).double()


_SUMMED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@lru_cache(maxsize=512)  # a network's layers have a few sizes, and are summed at every call
def _weights_of_places(n: int, step: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.arange(1, n + 1, device=device).mul(step).cos().to(dtype)


def _read_by(kind: type[nn.Module]) -> Iterator[Any]:
    """The plain values that a user's forward reads beside its module: globals, and of a closure."""
    forward = getattr(kind, "forward", None)  # TorchScript's has none
    of_torch = str(getattr(forward, "__module__", "")).partition(".")[0] == "torch"
    if of_torch or not isinstance(forward, FunctionType):
        return
    known = forward.__globals__
    read = [known[name] for name in forward.__code__.co_names if name in known]
    read += map(_content, forward.__closure__ or ())
    for value in read:
        if isinstance(value, int | float | str | list | tuple | dict | np.ndarray | Tensor):
            yield value


def _sign(signed: list[ref[Any]], value: Any, depth: int = 4) -> Any:
    """A plain value itself, what a container or an object holds; of the rest, which one it is.

    signed: takes what is known by its id, as far as it can be held weakly
    """
    if isinstance(value, str | bytes | Number | np.generic | None):
        return type(value).__name__, repr(value)
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, hash(value.tobytes())
    deeper = partial(_sign, signed, depth=depth - 1)
    if isinstance(value, list | tuple | set | frozenset | dict) and not depth:
        return type(value).__name__, len(value)
    if isinstance(value, list | tuple | set | frozenset):
        return type(value).__name__, *map(deeper, value)
    if isinstance(value, dict):
        return tuple((str(key), deeper(item)) for key, item in value.items())
    if isinstance(value, MethodType) and depth:  # made anew each time that it is asked for
        return deeper(value.__func__), deeper(value.__self__)
    with suppress(TypeError):
        signed.append(ref(value))
    if isinstance(value, Tensor):
        return id(value), None if value.is_inference() else value._version
    if not depth or isinstance(value, nn.Module | type | ModuleType):
        return id(value)
    if isinstance(value, FunctionType):
        cells = map(_content, value.__closure__ or ())
        return id(value), id(value.__code__), deeper(value.__defaults__), *map(deeper, cells)
    held = [deeper(getattr(value, "__dict__", None))]
    if isinstance(value, partial):
        held += map(deeper, (value.func, value.args, value.keywords))
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        named = (slots,) if isinstance(slots, str) else slots
        held += [deeper(getattr(value, name, None)) for name in named if name[:2] != "__"]
    return id(value), *held


def _content(cell: CellType) -> Any:
    with suppress(ValueError):  # one that holds nothing yet
        return cell.cell_contents


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
