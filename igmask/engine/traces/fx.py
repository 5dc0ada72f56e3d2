"""By torch.fx, which runs a network's own code with symbols for tensors."""

import operator
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from igmask.engine.fusion import Parts
from igmask.engine.simplify import Traced
from igmask.engine.traces.common import Alone, applied_by, flat


def by_fx(network: nn.Module, _: Tensor) -> Traced:
    """Return the graph of a network; raise what its code raises at symbols."""
    root = Alone(network)
    tracer = _Tracer()
    with torch.enable_grad(), applied_by(tracer.apply):
        graph = tracer.trace(root)
    if tracer.refusal is not None:  # which the network has caught, and gone another way
        raise tracer.refusal
    parts: Parts = {}
    labels = {}
    for node in graph.nodes:
        path = str(node.target)
        if node.op in ("call_module", "get_attr"):
            value = operator.attrgetter(path)(root)
            node.target = flat(path, parts, value)
        if node.op == "call_module":
            labels[node.name] = f"{path.removeprefix('network.')} ({type(value).__name__})"
    [image] = [node for node in graph.nodes if node.op == "placeholder"]
    weights = {id(tensor) for tensor in (*root.parameters(), *root.buffers())}
    loose = frozenset(
        name for name, x in parts.items() if isinstance(x, Tensor) and id(x) not in weights
    )
    return Traced(graph, image, parts, labels, loose)


class _Proxy(fx.Proxy):
    """A symbol that says of what it cannot be asked that it was."""

    tracer: "_Tracer"

    def __len__(self) -> int:
        with self.tracer.refusing():
            return super().__len__()

    def _number(self) -> Any:
        with self.tracer.refusing():
            raise TypeError("a symbol is no number")

    __int__ = __float__ = __complex__ = __index__ = _number


def _autocast() -> list[Any]:
    """Whether and to what autocast rounds, on every kind of device that is here."""
    kinds = ("cpu", "cuda")
    return [(torch.is_autocast_enabled(one), torch.get_autocast_dtype(one)) for one in kinds]


class _Tracer(fx.Tracer):
    """Refuses what a graph would lose, and leaves the modules of other threads alone.

    refusal: what it has raised, which a network may catch
    """

    def __init__(self) -> None:
        super().__init__()
        self.refusal: Exception | None = None
        self._thread = threading.get_ident()
        self._autocast = _autocast()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Remember what is raised in this block."""
        try:
            yield
        except Exception as error:
            self.refusal = error
            raise

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_proxy(self, *arguments: Any, **options: Any) -> fx.Proxy:
        with self.refusing():
            if not torch.is_grad_enabled():
                raise ValueError("part of it runs under no_grad()")
            if _autocast() != self._autocast:
                raise ValueError("part of it runs under an autocast of its own")
            return super().create_proxy(*arguments, **options)

    def apply(self, kind: type, function: Any, *given: Any, **options: Any) -> Any:
        """Take a function with a backward pass of its own as one operation."""
        if not any(isinstance(x, fx.Proxy) for x in tree_leaves([given, options])):
            return function(*given, **options)

        def called(*values: Any, **named: Any) -> Any:
            return function(*values, **named)

        called.__name__ = kind.__name__
        return self.create_proxy("call_function", called, given, options)

    def to_bool(self, obj: fx.Proxy) -> bool:
        with self.refusing():
            return super().to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        with self.refusing():
            return super().iter(obj)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
