"""What every library's way to a graph has in common."""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch.autograd import Function, forward_ad

from igmask.engine.fusion import Parts


class Untraceable(Exception):
    """A library cannot take the graph; the message says why."""


class Opaque(Untraceable):
    """No graph says what the network does."""


class Alone(nn.Module):
    """A network of one input: what else its forward may take has its defaults."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        """Return what the network says of images alone."""
        return self.network(x)


def flat(path: str, parts: Parts, value: Any) -> str:
    """The name, without dots, of what a graph calls or reads, which is put among the parts.

    A layer that is called and whose weight is read as well are two of them.
    """
    name = path.replace(".", "_")
    while parts.setdefault(name, value) is not value:
        name += "_"
    return name


@contextmanager
def applied_by(call: Callable[..., Any]) -> Iterator[None]:
    """In this thread, let functions with a backward pass of their own be applied by another.

    call: given the class, what would apply it, and what that would be given
    """
    me, plain = threading.get_ident(), inspect.getattr_static(Function, "apply")

    def apply(kind: type, *given: Any, **options: Any) -> Any:
        function = plain.__get__(None, kind)  # a class method, in Python or not
        if threading.get_ident() != me:
            return function(*given, **options)
        return call(kind, function, *given, **options)

    with mock.patch.object(Function, "apply", classmethod(apply)):
        yield


@contextmanager
def unwound() -> Iterator[None]:
    """Leave the levels of torch.func and of forward derivatives that a failed trace has entered.

    Else no tensor of the process could be asked for a gradient any more.
    """
    depth, level = functorch.get_dynamic_layer_stack_depth(), forward_ad._current_level
    try:
        yield
    finally:
        functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
        if level < 0:  # there is one at most
            with suppress(RuntimeError):  # it is none
                torch._C._exit_dual_level(level=0)
