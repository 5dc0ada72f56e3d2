"""A network's graph in one form, in which it is analysed, whoever took it.

What does not depend on the image is computed once, what does nothing goes, sizes are numbers, and
convolutions and frozen norms that are called as functions become layers: what the graph computes
decides, not the class of a layer.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from igmask.engine.affine import is_in_place, layer_of, named_arguments, operation_of
from igmask.engine.fusion import Parts, free_name, frozen


@dataclass
class Traced:
    """What a network computes of a batch of images.

    graph:  of one input, the images, and one output
    image:  its node
    parts:  what the nodes call and read, by name; frozen once it is simplified
    labels: what a person calls a node, where the network has a name for it
    loose:  parts that are no parameters or buffers, whose changes nobody would notice
    by:     the library that took it;  seconds: how long that took
    """

    graph: fx.Graph
    image: fx.Node
    parts: Parts
    labels: dict[str, str]
    by: str
    seconds: float = 0.0
    loose: frozenset[str] = frozenset()


def label_of(node: fx.Node) -> str:
    """Return what a person calls a node: the layer that it is in, or else its own name."""
    path, kind = list(node.meta.get("nn_module_stack", {"": ("", "")}).values())[-1]
    kind = kind if isinstance(kind, str) else kind.__qualname__
    path = path.removeprefix("network").removeprefix(".")
    return f"{path} ({kind.rpartition('.')[2]})" if path else node.name


def simplify(found: Traced, example: Tensor) -> None:
    """Bring a graph into the form in which it is analysed: see the top of this file."""
    graph, parts = found.graph, found.parts
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            _refuse_patches(name, part)
            parts[name] = frozen(part)
        elif isinstance(part, Tensor):
            parts[name] = part.detach()
    _refuse_hidden_changes(graph, parts)
    _drop_idle(found)
    shapes = _shapes(found, example)
    _write_sizes(found, shapes)
    _compute_constants(found)
    _sweep(graph)
    _make_layers(found, shapes)
    _sweep(graph)


def _sweep(graph: fx.Graph) -> None:
    """Leave out what nothing reads; changes in place that are read are seen to before."""
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


def _refuse_patches(name: str, layer: nn.Module) -> None:
    """Raise ValueError if a layer, or one within, has a method of its own in its class's place."""
    for module in layer.modules():
        if patched := [key for key in vars(module) if callable(getattr(type(module), key, None))]:
            raise ValueError(f"{name} has another {patched[0]} than its class")


def _refuse_hidden_changes(graph: fx.Graph, parts: Parts) -> None:
    """Raise ValueError if what is changed in place is read again by another name than the result.

    Nothing in a graph says that such a reader depends on the change.
    """
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        layer = layer_of(node, parts)
        if not is_in_place(node) and not getattr(layer, "inplace", False):
            continue
        changed = node.args[0] if node.args else None
        while isinstance(changed, fx.Node):
            if any(place[user] > place[node] for user in changed.users):
                raise ValueError(f"{node.name} changes in place what is read again")
            viewed = operation_of(changed) in _VIEWS and changed.args
            changed = changed.args[0] if viewed else None


# What may give a view of its first argument.
_VIEWS = {
    "view", "view_as", "reshape", "reshape_as", "getitem", "slice", "select", "narrow", "transpose",
    "permute", "movedim", "swapaxes", "flatten", "unflatten", "unsqueeze", "squeeze", "chunk",
    "split", "tensor_split", "unbind", "expand", "expand_as", "t", "alias", "detach", "contiguous",
    "to", "diagonal", "unfold", "as_strided",
}  # fmt: skip


def _drop_idle(found: Traced) -> None:
    """Leave out what gives back its input: identities, dropout that is off."""
    graph, parts = found.graph, found.parts
    for node in list(graph.nodes):
        layer = layer_of(node, parts)
        idle = type(layer) is nn.Identity or (isinstance(layer, _DROPOUT) and not layer.training)
        if layer is None and operation_of(node) in ("dropout", "feature_dropout", "alpha_dropout"):
            given = named_arguments(node)
            idle = given.get("training", given.get("train", True)) is False
        inputs = node.all_input_nodes
        if idle and len(inputs) == 1:
            # A person finds it by the name of the last layer that gives this value.
            found.labels[inputs[0].name] = found.labels.get(node.name, node.name)
            node.replace_all_uses_with(inputs[0])
            graph.erase_node(node)


_DROPOUT = nn.modules.dropout._DropoutNd


def _shapes(found: Traced, example: Tensor) -> dict[str, list[torch.Size]]:
    """{node: shapes of its value}, of tensors, for 2 and 3 images; nothing if nobody will ask."""
    shapes: dict[str, list[torch.Size]] = {}
    asked = {"batch_norm", "size", "sym_size"}
    if not any(operation_of(n) in asked or _is_shape(n) for n in found.graph.nodes):
        return shapes

    class Noting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                shapes.setdefault(n.name, []).append(value.shape)
            return value

    with torch.no_grad():
        for n_images in _COUNTS:
            images = torch.cat([example[:1]] * n_images)
            Noting(_holding(found.parts), graph=found.graph).run(images)
    return shapes


_COUNTS = 2, 3


def _holding(parts: Parts) -> nn.Module:
    """A module that has the parts, as an interpreter asks for them."""
    holder = nn.Module()
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            holder.add_module(name, part)
        else:
            vars(holder)[name] = part
    return holder


def _is_shape(node: fx.Node) -> bool:
    return node.target is getattr and str(node.args[1]) == "shape"


def _write_sizes(found: Traced, shapes: Mapping[str, list[torch.Size]]) -> None:
    """Write sizes as numbers, and the number of images in one way: x.size(0).

    So nothing hangs on values whose sizes alone are asked for.
    """
    graph = found.graph
    for node in list(graph.nodes):
        whole = node.args[0] if node.args else None
        place = node.args[1] if len(node.args) > 1 else None
        x = whole
        if node.target is operator.getitem and isinstance(whole, fx.Node):
            all_sizes = _is_shape(whole) or (operation_of(whole) == "size" and len(whole.args) == 1)
            x = whole.args[0] if all_sizes else None
        elif operation_of(node) not in ("size", "sym_size"):
            continue
        if not isinstance(x, fx.Node) or not isinstance(place, int) or x.name not in shapes:
            continue
        place %= len(shapes[x.name][0])
        sizes = tuple(shape[place] for shape in shapes[x.name])
        if len(set(sizes)) == 1:
            _replace(node, sizes[0])
        elif place == 0 and sizes == _COUNTS:
            with graph.inserting_before(node):
                count = graph.call_method("size", (x, 0))
            count.meta["counts_images"] = True
            node.replace_all_uses_with(count)
        else:
            continue
        graph.erase_node(node)


def _replace(node: fx.Node, value: int) -> None:
    """Let the users of a node have a number in its place."""
    for user in list(node.users):
        changed = fx.map_arg((user.args, user.kwargs), lambda n: value if n is node else n)
        user.args, user.kwargs = changed


def _compute_constants(found: Traced) -> None:
    """Compute once what does not depend on the images, as far as nothing changes it in place."""
    graph, parts = found.graph, found.parts
    depends = {found.image}
    for node in graph.nodes:
        if depends.intersection(node.all_input_nodes):
            depends.add(node)
    changed = _changed_in_place(graph)
    values: dict[fx.Node, Any] = {}
    interpreter = fx.Interpreter(_holding(parts), graph=graph)
    for node in list(graph.nodes):
        known = all(before in values for before in node.all_input_nodes)
        if node.op == "get_attr":
            if str(node.target) not in found.loose:
                values[node] = parts[str(node.target)]
        elif node.op.startswith("call") and known and node not in depends | changed:
            if _is_random(node):
                continue
            with torch.no_grad():
                values[node] = _value(node, values, parts, interpreter)
    for node, value in values.items():
        used = [user for user in node.users if user not in values]
        if node.op == "get_attr" or not used or not isinstance(value, Tensor):
            continue
        name = free_name(f"constant_{node.name}", parts)
        parts[name] = value.detach()
        with graph.inserting_before(node):
            read = graph.get_attr(name)
        node.replace_all_uses_with(read)


def _value(
    node: fx.Node, values: Mapping[fx.Node, Any], parts: Parts, interpreter: fx.Interpreter
) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    if node.op == "call_module":
        return parts[str(node.target)](*args, **kwargs)
    return getattr(interpreter, node.op)(node.target, args, kwargs)


def _changed_in_place(graph: fx.Graph) -> set[fx.Node]:
    """What an operation changes in place, and all that it may be a view of."""
    todo = [node.args[0] for node in graph.nodes if is_in_place(node) and node.args]
    found: set[fx.Node] = set()
    while todo:
        node = todo.pop()
        if isinstance(node, fx.Node) and node not in found:
            found.add(node)
            todo += node.all_input_nodes
    return found


def _is_random(node: fx.Node) -> bool:
    name = operation_of(node)
    return any(word in name for word in ("rand", "normal", "bernoulli", "dropout", "multinomial"))


_CONVOLUTIONS: dict[str, Callable[..., nn.Module]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _make_layers(found: Traced, shapes: Mapping[str, list[torch.Size]]) -> None:
    """Make layers of convolutions and frozen norms that are functions of constant weights."""
    graph, parts = found.graph, found.parts
    axes = {name: len(shape) for name, (shape, *_) in shapes.items()}
    for node in list(graph.nodes):
        name = operation_of(node)
        if name not in _CONVOLUTIONS and name != "batch_norm":
            continue
        given = {
            key: parts[str(value.target)]
            if isinstance(value, fx.Node) and value.op == "get_attr"
            else value
            for key, value in named_arguments(node).items()
        }
        x = given.pop("input", None)
        if not isinstance(x, fx.Node) or any(isinstance(v, fx.Node) for v in given.values()):
            continue
        if name in _CONVOLUTIONS:
            layer = _convolution(_CONVOLUTIONS[name], **given)
        elif given.get("training") or given.get("running_mean") is None:
            continue
        else:
            layer = _norm(_NORMS[axes[x.name]], **given)
        part = free_name(f"layer_{node.name}", parts)
        parts[part] = layer
        with graph.inserting_before(node):
            call = graph.call_module(part, (x,))
        found.labels[call.name] = found.labels.get(node.name) or label_of(node)
        axes[call.name] = axes.get(node.name, 0)
        node.replace_all_uses_with(call)
        graph.erase_node(node)


def _convolution(
    kind: Any,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> nn.Module:
    n_axes = weight.ndim - 2
    stride, padding, dilation = (_each(v, n_axes) for v in (stride, padding, dilation))
    n_in, n_out = weight.shape[1] * groups, weight.shape[0]
    layer = kind(
        n_in, n_out, tuple(weight.shape[2:]), stride, padding, dilation, groups,
        bias=False, device="meta",
    )  # fmt: skip
    layer._parameters["weight"], layer._parameters["bias"] = weight, bias
    return layer.eval()


def _each(value: Any, n_axes: int) -> Any:
    """A value for each axis, of one for all or a list of them."""
    if isinstance(value, str | int):
        return value if isinstance(value, str) else (value,) * n_axes
    return tuple(value) * (n_axes if len(value) == 1 else 1)


def _norm(
    kind: Any,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    **_: Any,
) -> nn.Module:
    layer = kind(len(running_mean), eps=eps, affine=False, device="meta")
    layer._parameters["weight"], layer._parameters["bias"] = weight, bias
    layer._buffers["running_mean"], layer._buffers["running_var"] = running_mean, running_var
    layer._buffers["num_batches_tracked"] = None
    return layer.eval()
