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
from torch.multiprocessing.reductions import StorageWeakRef

from igmask.engine.affine import layer_of, named_arguments, operation_of
from igmask.engine.fusion import Parts, free_name, frozen


@dataclass
class Traced:
    """What a network computes of a batch of images.

    graph:  of one input, the images, and one output
    image:  its node
    parts:  what the nodes call and read, by name; frozen once it is simplified
    labels: what a person calls a node, where the network has a name for it
    loose:  parts that are no parameters or buffers, whose changes nobody would notice
    """

    graph: fx.Graph
    image: fx.Node
    parts: Parts
    labels: dict[str, str]
    loose: frozenset[str] = frozenset()


def without_changes(program: Any) -> Any:
    """Return an exported program with values made anew in place of changes of tensors.

    raises ValueError if that would lose something: of a part under no_grad() there is no trace then
    """
    if any(isinstance(n.target, torch._ops.HigherOrderOperator) for n in program.graph.nodes):
        raise ValueError("part of it runs under a setting of its own, which this form would lose")
    found = program.run_decompositions({})
    if found.graph_signature.buffers_to_mutate or found.graph_signature.user_inputs_to_mutate:
        raise ValueError("it changes in place what it keeps, or what it is given")
    return found


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
    _drop_idle(found)
    _write_decomposed(found)
    changes = _observe(found, example)
    _write_sizes(found)
    varying = _varying(found)
    anew = _changed_anew(found, changes, varying)
    _compute_constants(found, varying | anew)
    _sweep(graph)
    _make_layers(found)
    _sweep(graph)


def _sweep(graph: fx.Graph) -> None:
    """Leave out what nothing reads; changes in place that are read are seen to before."""
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


def _refuse_patches(name: str, layer: nn.Module) -> None:
    """Raise ValueError if a layer, or one within, has a method of its own in its class's place."""
    for module in layer.modules():
        if patched := [key for key in vars(module) if callable(getattr(type(module), key, None))]:
            raise ValueError(f"{name} has another {patched[0]} than its class")


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


def _write_decomposed(found: Traced) -> None:
    """Write what torch.export decomposes to as what it was: of aten.copy there is no gradient."""
    graph, aten = found.graph, torch.ops.aten
    for node in graph.find_nodes(op="call_function", target=aten.copy.default):
        into, value = node.args[:2]
        with graph.inserting_before(node):
            spread = graph.call_function(aten.expand_as.default, (value, into))
            node.replace_all_uses_with(graph.call_function(aten.type_as.default, (spread, into)))
    target = aten._native_batch_norm_legit_no_training.default
    for node in graph.find_nodes(op="call_function", target=target):
        *norm, momentum, epsilon = node.args
        with graph.inserting_before(node):
            given = (*norm, False, momentum, epsilon, False)
            same = graph.call_function(aten.batch_norm.default, given)
        found.labels[same.name] = found.labels.get(node.name, node.name)
        for user in list(node.users):
            if user.target is operator.getitem and user.args[1] == 0:
                user.replace_all_uses_with(same)
                graph.erase_node(user)
    for node in graph.find_nodes(op="call_function", target=aten.convolution.default):
        x, weight, bias, stride, padding, dilation, is_transposed, added, groups = node.args
        if weight.op != "get_attr":
            continue
        kind = f"conv{'_transpose' * is_transposed}{found.parts[str(weight.target)].ndim - 2}d"
        rest = (added, groups, dilation) if is_transposed else (dilation, groups)
        function = getattr(aten, kind)
        function = getattr(function, "input", function.default)  # of transposed ones but in 1d
        with graph.inserting_before(node):
            same = graph.call_function(function, (x, weight, bias, stride, padding, *rest))
        found.labels[same.name] = found.labels.get(node.name, node.name)
        node.replace_all_uses_with(same)
        graph.erase_node(node)


_DROPOUT = nn.modules.dropout._DropoutNd


_COUNTS = 2, 3


@dataclass(frozen=True)
class _Change:
    """A node that changes memory in place, and the nodes before it whose values lie there."""

    node: fx.Node
    owners: tuple[fx.Node, ...]


class _Observing(fx.Interpreter):
    """Runs a graph and notes of each node's value shape, type, finiteness, and changes in place."""

    def __init__(self, found: Traced) -> None:
        super().__init__(_holding(found.parts), graph=found.graph)
        self.changes: list[_Change] = []
        # By storage; a weak reference lets go of its values, and of its place only with itself.
        self._owners: dict[int, tuple[StorageWeakRef, list[fx.Node]]] = {}

    def run_node(self, n: fx.Node) -> Any:
        read = [x for before in n.all_input_nodes for x in _tensors(self.env[before])]
        versions = [x._version for x in read]
        value = super().run_node(n)
        changed = {_memory(x) for x, v in zip(read, versions, strict=True) if x._version != v}
        owners = [owner for memory in changed for owner in self._owners[memory][1]]
        if owners:
            self.changes.append(_Change(n, tuple(owners)))
        for x in _tensors(value):
            self._owners.setdefault(_memory(x), (StorageWeakRef(x.untyped_storage()), []))[
                1
            ].append(n)
        if isinstance(value, Tensor):
            n.meta["dtype"] = value.dtype
            if value.is_floating_point() and not value.isfinite().all():
                n.meta["finite"] = False
            n.meta.setdefault("shapes", []).append(value.shape)
        return value


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of a value, or of a list, whose memory and changes can be told."""
    if isinstance(value, list | tuple):
        return [x for item in value for x in _tensors(item)]
    plain = isinstance(value, Tensor) and value.layout is torch.strided
    return [value] if plain and not value.is_inference() else []


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _observe(found: Traced, example: Tensor) -> list[_Change]:
    """Note at each node its value's type and shape; return what is changed in place.

    Where sizes are asked for there are two shapes, for 2 and for 3 images.
    """
    asked = any(_is_shape(n) or operation_of(n) in _SIZES for n in found.graph.nodes)
    first = _Observing(found)
    with torch.no_grad():
        first.run(torch.cat([example[:1]] * _COUNTS[0]))
        if asked:
            _Observing(found).run(torch.cat([example[:1]] * _COUNTS[1]))
    return first.changes


def _holding(parts: Parts) -> nn.Module:
    """A module that has the parts, as an interpreter asks for them."""
    holder = nn.Module()
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            holder.add_module(name, part)
        else:
            vars(holder)[name] = part
    return holder


_SIZES = "size", "sym_size"


def _is_shape(node: fx.Node) -> bool:
    return node.target is getattr and str(node.args[1]) == "shape"


def _write_sizes(found: Traced) -> None:
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
        elif operation_of(node) not in _SIZES:
            continue
        if not isinstance(x, fx.Node) or not isinstance(place, int) or "shapes" not in x.meta:
            continue
        place %= len(x.meta["shapes"][0])
        sizes = tuple(shape[place] for shape in x.meta["shapes"])
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


def _varying(found: Traced) -> set[fx.Node]:
    """What depends on the images, on chance, or on tensors that may change unnoticed."""
    varying = {found.image}
    for node in found.graph.nodes:
        loose = node.op == "get_attr" and str(node.target) in found.loose
        if loose or _is_random(node) or varying.intersection(node.all_input_nodes):
            varying.add(node)
    return varying


def _changed_anew(found: Traced, changes: list[_Change], varying: set[fx.Node]) -> set[fx.Node]:
    """Return what is changed in place at each call, which therefore is made at each call.

    Nothing in a graph says that what reads the changed memory by another name than the change's
    result depends on the change. Among constants, which are computed once and in order, that does
    no harm. Else, and of what the network keeps, it raises ValueError.
    """
    anew: set[fx.Node] = set()
    for change in reversed(changes):  # a later one has the owners of those before
        if change.node in varying or anew.intersection(change.owners):
            anew.update((change.node, *change.owners))
    place = {node: i for i, node in enumerate(found.graph.nodes)}
    for change in changes:
        if any(owner.op == "get_attr" for owner in change.owners):
            raise ValueError(f"{change.node.name} changes in place what the network keeps")
        at, by_call = place[change.node], change.node in anew
        for user in (user for owner in change.owners for user in owner.users):
            if place[user] > at if by_call else place[user] < at and user in varying:
                raise ValueError(f"{change.node.name} changes in place what is read again")
    return anew


def _compute_constants(found: Traced, without: set[fx.Node]) -> None:
    """Compute once, in order, what neither varies nor is changed at each call."""
    graph, parts = found.graph, found.parts
    values: dict[fx.Node, Any] = {}
    interpreter = fx.Interpreter(_holding(parts), graph=graph)
    for node in list(graph.nodes):
        known = all(before in values for before in node.all_input_nodes)
        if node in without:
            continue
        if node.op == "get_attr":
            values[node] = parts[str(node.target)]
        elif node.op.startswith("call") and known:
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


def _is_random(node: fx.Node) -> bool:
    name = operation_of(node)
    return any(word in name for word in ("rand", "normal", "bernoulli", "dropout", "multinomial"))


_CONVOLUTIONS: dict[str, Callable[..., nn.Module]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _make_layers(found: Traced) -> None:
    """Make layers of convolutions and frozen norms that are functions of constant weights."""
    graph, parts = found.graph, found.parts
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
        kind = _NORMS.get(len(x.meta["shapes"][0])) if "shapes" in x.meta else None
        if name in _CONVOLUTIONS:
            layer = _convolution(_CONVOLUTIONS[name], **given)
        elif given.get("training") or given.get("running_mean") is None or kind is None:
            continue
        else:
            layer = _norm(kind, **given)
        part = free_name(f"layer_{node.name}", parts)
        parts[part] = layer
        with graph.inserting_before(node):
            call = graph.call_module(part, (x,))
        found.labels[call.name] = found.labels.get(node.name) or label_of(node)
        call.meta = dict(node.meta)
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
