"""By torch.export, in seconds: what a network's own code decides by sizes is decided there."""

import io
import logging
import operator
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn

from igmask.engine.simplify import Traced, label_of, without_changes
from igmask.engine.traces.common import Alone, Opaque, applied_by, flat


def by_export(
    network: nn.Module, example: Tensor, *, strict: bool = False, functional: bool = False
) -> Traced:
    """Return the graph of a network; raise what torch.export raises, or Opaque.

    strict:     whether the network's bytecode is read
    functional: whether it is written anew without operations in place
    """
    pair = torch.cat([example[:1]] * 2).detach()  # an axis of one would be taken for constant
    shapes, root = ({0: torch.export.Dim.DYNAMIC},), Alone(network)
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
            name = flat(path, found.parts, values[path])
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

    silent, apply = torch.inference_mode, refusing(lambda: None, "torch.autograd.Function")
    hook = refusing(Tensor.register_hook, "Tensor.register_hook")
    enter, free = refusing(silent.__enter__, "none, in inference_mode()"), silent.__enter__
    with (
        mock.patch.object(silent, "__enter__", lambda it: enter(it) if it.mode else free(it)),
        applied_by(apply),
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
