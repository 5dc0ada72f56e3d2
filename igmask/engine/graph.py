"""A network → the graph of what it computes.

torch.fx takes it in some milliseconds; of what it cannot take (control flow on shapes, say)
torch.export takes the ATen graph, in seconds; simplify.py brings both into one form. The network
itself is not touched: a copy that shares its weights is traced.
"""

import inspect
import io
import logging
import operator
import sys
import threading
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from types import CellType, FunctionType, MethodType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn

from igmask.engine.fusion import Parts
from igmask.engine.simplify import Traced, label_of, simplify, without_changes
from igmask.errors import with_kind


class Untraceable(Exception):
    """A library cannot take the graph; the message says why."""


class Opaque(Untraceable):
    """No graph says what the network does."""


def traced(network: nn.Module, example: Tensor, by: str) -> Traced:
    """Return the graph of a network in evaluation mode, simplified; raise Untraceable, or Opaque.

    example: (n, ...) images; their shape but for n is that of all others
    by:      a name of LIBRARIES
    """
    try:
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


# -- torch.fx ----------------------------------------------------------------------------------


class _Alone(nn.Module):
    """A network of one input: what else its forward may take has its defaults."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return self.network(x)


def _by_fx(network: nn.Module, _: Tensor) -> Traced:
    root = _Alone(network)
    tracer = _Tracer()
    with torch.enable_grad():
        graph = tracer.trace(root)
    if tracer.refusal is not None:  # which the network has caught, and gone another way
        raise tracer.refusal
    parts: Parts = {}
    labels = {}
    for node in graph.nodes:
        path = str(node.target)
        if node.op in ("call_module", "get_attr"):
            value = operator.attrgetter(path)(root)
            node.target = _flat(path, parts, value)
        if node.op == "call_module":
            labels[node.name] = f"{path.removeprefix('network.')} ({type(value).__name__})"
    [image] = [node for node in graph.nodes if node.op == "placeholder"]
    weights = {id(tensor) for tensor in (*root.parameters(), *root.buffers())}
    loose = frozenset(
        name for name, x in parts.items() if isinstance(x, Tensor) and id(x) not in weights
    )
    return Traced(graph, image, parts, labels, loose)


def _flat(path: str, parts: Parts, value: Any) -> str:
    """The name, without dots, of what a graph calls or reads, which is put among the parts.

    A layer that is called and whose weight is read as well are two of them.
    """
    name = path.replace(".", "_")
    while parts.setdefault(name, value) is not value:
        name += "_"
    return name


class _Proxy(fx.Proxy):
    def __len__(self) -> int:
        with self.tracer.refusing():  # type: ignore[attr-defined]
            return super().__len__()


class _Tracer(fx.Tracer):
    """Refuses what a graph would lose, and leaves the modules of other threads alone.

    refusal: what it has raised, which a network may catch
    """

    def __init__(self) -> None:
        super().__init__()
        self.refusal: Exception | None = None
        self._thread = threading.get_ident()

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
            return super().create_proxy(*arguments, **options)

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


# -- torch.export ------------------------------------------------------------------------------


def _by_export(
    network: nn.Module, example: Tensor, *, strict: bool = False, functional: bool = False
) -> Traced:
    pair = torch.cat([example[:1]] * 2).detach()  # an axis of one would be taken for constant
    shapes, root = ({0: torch.export.Dim.DYNAMIC},), _Alone(network)
    with torch.enable_grad(), _quiet(), _no_own_gradients(), _no_marks(root):
        program = torch.export.export(root, (pair,), dynamic_shapes=shapes, strict=strict)
    for sizes in program.range_constraints.values():
        if sizes.lower > 2 or sizes.upper < 2**31:
            raise ValueError(f"it takes another way for batches that are not of {sizes}")
    program = without_changes(program) if functional else program
    signature, graph = program.graph_signature, fx.Graph()
    found = Traced(graph, None, {}, {})  # type: ignore[arg-type]
    by_name = signature.inputs_to_parameters | signature.inputs_to_buffers
    by_name |= signature.inputs_to_lifted_tensor_constants
    values = dict(program.state_dict) | dict(program.constants)
    loose = set(signature.inputs_to_lifted_tensor_constants.values())
    copies: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in by_name:
            path = by_name[node.name]
            name = _flat(path, found.parts, values[path])
            # A number of the network's own code is copied first, and is nobody else's to change.
            literal = all(user.target is _LITERAL for user in node.users)
            found.loose |= {name} if path in loose and not literal else set()
            copies[node] = graph.get_attr(name)
        elif node.op == "placeholder":
            found.image = copies[node] = graph.placeholder(node.name)
            found.image.meta[_CARRIES] = True
        elif node.op == "output":
            names = [spec.arg.name for spec in signature.output_specs]
            [answer] = signature.user_outputs
            graph.output(copies[node.args[0][names.index(answer)]])
        else:
            _copy(node, program.graph_module, copies, found)
    return found


_LITERAL = torch.ops.aten.lift_fresh_copy.default
_CARRIES = "carries"  # whether a gradient with respect to the images goes through a node


@contextmanager
def _no_own_gradients() -> Iterator[None]:
    """Refuse, in this thread, gradients that the network makes itself, or has none of.

    torch.export sees neither: hooks, functions with a backward pass, what runs in inference mode.
    """
    me = threading.get_ident()

    def refusing(plain: Callable[..., Any], what: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if threading.get_ident() == me:
                raise Opaque(f"part of it has a gradient of its own ({what})")
            return plain(*args, **options)

        return call

    function, silent = torch.autograd.Function, torch.inference_mode
    plain = inspect.getattr_static(function, "apply")  # a class method, in Python or not
    apply = classmethod(
        refusing(lambda kind, *given: plain.__get__(None, kind)(*given), "torch.autograd.Function")
    )
    hook = refusing(Tensor.register_hook, "Tensor.register_hook")
    enter, free = refusing(silent.__enter__, "none, in inference_mode()"), silent.__enter__
    with (
        mock.patch.object(silent, "__enter__", lambda it: enter(it) if it.mode else free(it)),
        mock.patch.object(function, "apply", apply),
        mock.patch.object(Tensor, "register_hook", hook),
    ):
        yield


@contextmanager
def _no_marks(network: nn.Module) -> Iterator[None]:
    """Take back what is noted on the network's tensors meanwhile, which are the user's own."""
    before = [(x, dict(vars(x))) for x in (*network.parameters(), *network.buffers())]
    try:
        yield
    finally:
        for x, own in before:
            vars(x).clear()
            vars(x).update(own)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch.export prints of a network that it cannot take, which its error says, too."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        out = redirect_stdout(io.StringIO())
        with redirect_stderr(io.StringIO()), out, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _copy(node: Any, owner: Any, copies: dict[Any, Any], found: Traced) -> None:
    """Copy a node into the graph; of a part whose setting changes nothing here, all of it."""
    target, inner = node.target, _within_setting(node, copies)
    if node.op == "get_attr" and isinstance(getattr(owner, target), fx.GraphModule):
        copies[node] = getattr(owner, target)
    elif inner is not None:
        inner, *given = inner
        starts = [start for start in inner.graph.nodes if start.op == "placeholder"]
        within = dict(zip(starts, given, strict=True))
        for one in inner.graph.nodes:
            if one.op == "output":
                copies[node] = fx.map_arg(one.args[0], within.__getitem__)
            elif one not in within:
                _copy(one, inner, within, found)
    elif target is operator.getitem and isinstance(copies.get(node.args[0]), list | tuple):
        copies[node] = copies[node.args[0]][node.args[1]]
    elif isinstance(target, torch._ops.HigherOrderOperator):
        raise ValueError(f"part of it runs under a setting of its own, such as no_grad(): {target}")
    else:
        copies[node] = copy = found.graph.node_copy(node, copies.__getitem__)
        found.labels[copy.name] = label_of(node)
        among = any(x.meta.get(_CARRIES) for x in copy.all_input_nodes)
        copy.meta[_CARRIES] = among and _is_smooth(node)


def _within_setting(node: fx.Node, copies: dict[Any, Any]) -> list[Any] | None:
    """The graph, and what is given to it, of a part that may be copied without its setting.

    That is one without autocast, and one without gradients that none would go through.
    """
    higher = torch.ops.higher_order
    if node.target is higher.wrap_with_autocast and node.args[2] is False:
        return list(fx.map_arg(node.args[4:], copies.__getitem__))
    if node.target is higher.wrap_with_set_grad_enabled:
        found = list(fx.map_arg(node.args[1:], copies.__getitem__))
        is_cut = any(isinstance(x, fx.Node) and x.meta.get(_CARRIES) for x in found)
        return None if is_cut and not node.args[0] else found
    return None


def _is_smooth(node: fx.Node) -> bool:
    """Whether a node has values with gradients, which sizes and places have not."""
    values = torch.utils._pytree.tree_leaves(node.meta.get("val", torch.empty(0)))
    return any(isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()) for x in values)


LIBRARIES: dict[str, Callable[[nn.Module, Tensor], Traced]] = {
    "torch.fx": _by_fx,
    "torch.export": _by_export,
    # Reads the network's bytecode, and so knows the number of images as len(x) and int(…), too.
    "torch.export, strict": partial(_by_export, strict=True),
    "torch.export, functional": partial(_by_export, functional=True),  # nothing in place
}
