"""A network → the graph of what it computes.

torch.fx takes it in some milliseconds; of what it cannot take (control flow on shapes, say)
torch.export takes the ATen graph, in seconds; simplify.py brings both into one form. The network
itself is not touched: a copy that shares its weights is traced.
"""

import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from functools import partial
from types import CellType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from igmask.engine.simplify import Traced, simplify
from igmask.engine.traces.common import Opaque, Untraceable, unwound
from igmask.engine.traces.export import by_export
from igmask.engine.traces.fx import by_fx
from igmask.errors import with_kind


def traced(network: nn.Module, example: Tensor, by: str) -> Traced:
    """Return the graph of a network in evaluation mode, simplified; raise Untraceable, or Opaque.

    example: (n, ...) images; their shape but for n is that of all others
    by:      a name of LIBRARIES
    """
    try:
        with unwound():
            found = LIBRARIES[by](twin_of(network), example)
            simplify(found, example)
    except Opaque:
        raise
    except Exception as error:  # whatever a model's own code may raise at a symbolic input
        raise Untraceable(f"{by} cannot trace it ({_line(with_kind(error))})") from error
    return found


def _line(text: str) -> str:
    """The beginning of a message that may be long."""
    return text.strip().partition("\n")[0][:300]


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network within `torch.compile`, DataParallel and the like, which compute no other.

    A wrapper with hooks of its own stays.
    """
    while not is_hooked(network):
        inner, kind = None, type(network)  # a class of the user's own may do more
        if kind in (nn.DataParallel, nn.parallel.DistributedDataParallel):
            inner = network.module
        elif kind.__module__.startswith("torch._dynamo"):
            inner = getattr(network, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return network
        network = inner
    return network


def is_hooked(module: nn.Module) -> bool:
    """Return whether calling the module does more than its forward says.

    What torch.export hangs on its modules looks at their inputs, and changes nothing.
    """
    hooks = (
        *module._forward_hooks.values(),
        *module._forward_pre_hooks.values(),
        *module._backward_hooks.values(),
        *module._backward_pre_hooks.values(),
    )
    others = [one for one in hooks if getattr(one, "__module__", "") != "torch.export._unlift"]
    return bool(others) or hasattr(module, "parametrizations")


def hooked_everywhere() -> tuple[int, ...]:
    """Return which hooks PyTorch calls at every module, by the ids under which it has them."""
    of = torch.nn.modules.module
    hooks = (
        of._global_forward_hooks,
        of._global_forward_pre_hooks,
        of._global_backward_hooks,
        of._global_backward_pre_hooks,
    )
    return tuple(number for some in hooks for number in some)


def twin_of(network: nn.Module) -> nn.Module:
    """Return a copy of a network that shares its tensors, and nothing else that it may write to.

    Its attributes are copied as deep as Python reaches: containers, objects of plain classes, what
    methods and functions are bound to. What may be more than its attributes is shared, such as a
    file or a pool of threads, and so is what is not the network's own: globals, and its classes.
    """
    network = unwrapped(network)
    if any(isinstance(part, torch.jit.ScriptModule) for part in network.modules()):
        raise Untraceable("it is TorchScript")
    return _Copying().copied(network)


class _Copying:
    """Copies values; one that is found in several places, once."""

    def __init__(self) -> None:
        self._twins: dict[int, tuple[Any, Any]] = {}  # beside the value, which keeps its number

    def copied(self, value: Any) -> Any:
        value = unwrapped(value) if isinstance(value, nn.Module) else value
        if id(value) not in self._twins:
            twin = _emptied(value)
            self._twins[id(value)] = value, twin  # before its contents, which may hold it
            if twin is not value:
                self._fill(twin, value)
            else:
                self._twins[id(value)] = value, self._bound(value)
        return self._twins[id(value)][1]

    def _fill(self, twin: Any, value: Any) -> None:
        """Give an empty copy of a value its contents."""
        state: Any = object.__getstate__(value)
        state, slots = state if isinstance(state, tuple) else (state, None)
        for key, item in (state or {}).items():
            vars(twin)[key] = self.copied(item)
        for key, item in (slots or {}).items():
            object.__setattr__(twin, key, self.copied(item))
        if isinstance(value, dict):
            for key, item in dict.items(value):
                _base(value).__setitem__(twin, key, self.copied(item))
        elif isinstance(value, list | deque):
            _base(value).extend(twin, map(self.copied, value))
        elif isinstance(value, set):
            set.update(twin, map(self.copied, value))

    def _bound(self, value: Any) -> Any:
        """What cannot change but holds what can, over again; anything else as it is."""
        if type(value) is tuple or (isinstance(value, tuple) and hasattr(value, "_fields")):
            return tuple.__new__(type(value), map(self.copied, value))
        if isinstance(value, MethodType):
            return MethodType(value.__func__, self.copied(value.__self__))
        if type(value) is partial:
            named = {key: self.copied(item) for key, item in value.keywords.items()}
            return partial(self.copied(value.func), *map(self.copied, value.args), **named)
        if isinstance(value, FunctionType) and value.__closure__:
            if _is_librarys(value.__globals__["__name__"]):
                return value
            cells = tuple(CellType(self.copied(cell.cell_contents)) for cell in value.__closure__)
            known = value.__globals__, value.__name__, value.__defaults__
            twin = FunctionType(value.__code__, *known, cells)
            twin.__kwdefaults__ = value.__kwdefaults__
            return twin
        return value


# What is copied by its contents, of the classes that are not Python's own.
_BASES = OrderedDict, defaultdict, dict, list, set, deque, SimpleNamespace, object


def _base(value: Any) -> Any:
    return next(kind for kind in _BASES if isinstance(value, kind))


def _emptied(value: Any) -> Any:
    """Return an object of a value's class without contents; the value if it may be more than them.

    What has no attributes, or a way of its own to be copied, may be more.
    """
    kind, base = type(value), _base(value)
    plain = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    plain = plain and not hasattr(kind, "__del__") and not _is_librarys(kind.__module__)
    plain = plain and object.__getstate__(value) is not None
    if base is object and not plain and not isinstance(value, nn.Module):
        return value
    try:
        twin = base.__new__(kind)
    except TypeError:  # it has a base that is not Python's own
        return value
    if base is defaultdict:
        twin.default_factory = value.default_factory
    elif base is deque:
        deque.__init__(twin, maxlen=value.maxlen)
    return twin


def _is_librarys(module: str) -> bool:
    """Whether a module is PyTorch's or Python's, whose objects may have threads behind them."""
    return module.partition(".")[0] in {"torch", *sys.stdlib_module_names}


LIBRARIES: dict[str, Callable[[nn.Module, Tensor], Traced]] = {
    "torch.fx": by_fx,
    "torch.export": by_export,
    # Reads the network's bytecode, and so knows the number of images as len(x) and int(…), too.
    "torch.export, strict": partial(by_export, strict=True),
    "torch.export, functional": partial(by_export, functional=True),  # nothing in place
}
