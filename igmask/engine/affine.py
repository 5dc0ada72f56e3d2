"""What a node of a network's graph does, by torch.fx or torch.export, and whether it is affine."""

import inspect
import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

# Layers that are affine in their only input; of the others only some settings are.
_AFFINE_LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear, nn.Flatten, nn.Unflatten, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.ZeroPad2d,
    nn.ConstantPad1d, nn.ConstantPad2d, nn.ReflectionPad1d, nn.ReflectionPad2d,
    nn.ReplicationPad1d, nn.ReplicationPad2d, nn.PixelShuffle, nn.PixelUnshuffle,
    nn.ChannelShuffle, nn.Unfold, nn.Upsample,
)  # fmt: skip
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # in evaluation mode

# Linear in all of their tensors together: affine if each is affine or constant.
_LINEAR = {
    "reshape", "view", "permute", "transpose", "flatten", "unflatten", "unsqueeze", "squeeze",
    "contiguous", "clone", "to", "expand", "repeat", "movedim", "moveaxis", "swapaxes", "flip",
    "roll", "add", "sub", "subtract", "neg", "negative", "pos", "sum", "mean", "cat", "concat",
    "concatenate", "stack", "chunk", "split", "tensor_split", "unbind", "narrow", "select",
    "float", "double", "avg_pool2d", "adaptive_avg_pool2d", "pixel_shuffle",
    "pixel_unshuffle", "unfold", "t", "slice", "alias", "lift_fresh_copy", "_to_copy", "pad",
    "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d",
    "replication_pad2d",
}  # fmt: skip
# Linear in the first if the others are constant; `mul`, `matmul` and `einsum` in any one.
_LINEAR_IN_FIRST = {
    "div", "truediv", "true_divide", "conv1d", "conv2d", "conv3d", "linear", "getitem",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "index_select", "interpolate", "index", "reshape_as", "view_as", "expand_as",
    "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
}  # fmt: skip
_LINEAR_IN_ONE = {"mul", "multiply", "matmul", "bmm", "einsum"}
TUPLES = {"chunk", "split", "tensor_split", "unbind"}
_SHAPES = {
    "size", "dim", "numel", "shape", "ndim", "dtype", "device", "ndimension", "sym_size",
    "sym_numel",
}  # fmt: skip

# Whose functions are meant by the names above.
_HOMES = {
    module.__name__ for module in (operator, torch, F)
} | {"_operator", "torch._C._nn", "torch._tensor", "builtins", "torch.functional"}  # fmt: skip


def affine_in(
    image: fx.Node, graph: fx.Graph, layers: Mapping[str, Any], without: frozenset[fx.Node]
) -> set[fx.Node]:
    """Return the nodes of a simplified graph that are affine in the image, itself among them.

    layers:  what the nodes call, by name
    without: nodes that are not to count as affine
    """
    depends, affine = {image}, {image}
    for node in graph.nodes:
        of_input = [n for n in node.all_input_nodes if n in depends]
        if node is image or not of_input or _is_shape(node):
            continue
        depends.add(node)
        of_affine = node.op != "output" and all(n in affine for n in of_input)
        of_affine = of_affine and _is_as_fine(node, image) and _is_finite(node, layers)
        if of_affine and node not in without and _is_affine(node, layers, affine):
            affine.add(node)
    return affine


def layer_of(node: fx.Node, layers: Mapping[str, Any]) -> Any:
    """Return the layer that a node calls, of those by name; None if it calls none."""
    return layers[str(node.target)] if node.op == "call_module" else None


def operation_of(node: fx.Node) -> str:
    """Return the name of the method, or of PyTorch's function, that a node calls, else nothing.

    ATen's operators, of which torch.export makes a graph, have the names of PyTorch's functions.
    """
    if isinstance(node.target, torch._ops.OpOverload):
        home, _, name = node.target._schema.name.partition("::")
        return name if home == "aten" else ""
    if node.op == "call_function":
        known = getattr(node.target, "__module__", "") in _HOMES
        return getattr(node.target, "__name__", "") if known else ""
    return str(node.target) if node.op == "call_method" else ""


def counts_images(node: fx.Node) -> bool:
    """Whether a node is the number of images, as a simplified graph has it: x.size(0)."""
    return bool(node.meta.get("counts_images"))


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of PyTorch's function that a node calls, by ATen's names for them."""
    name, target = operation_of(node), node.target
    if isinstance(target, torch._ops.OpOverload):
        names = [argument.name for argument in target._schema.arguments]
    elif inspect.isfunction(target):
        names = list(inspect.signature(target).parameters)
    else:
        packet = getattr(torch.ops.aten, name, None)
        schema = packet.default._schema if packet and "default" in packet.overloads() else None
        names = [argument.name for argument in schema.arguments] if schema else []
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _is_as_fine(node: fx.Node, image: fx.Node) -> bool:
    """Whether a node's value, as far as it is known, is in no type coarser than the images'."""
    types = [n.meta["dtype"] for n in (node, image) if "dtype" in n.meta]
    if len(types) < 2:
        return True
    return types[0].is_floating_point and torch.promote_types(*types) == types[0]


def _is_finite(node: fx.Node, layers: Mapping[str, Any]) -> bool:
    """Whether there are no infinities, as of a padding before a maximum: ∞ − ∞ lies on no path."""
    layer = layer_of(node, layers)
    given = [*node.args, *node.kwargs.values(), getattr(layer, "value", 0.0)]
    numbers = [value for value in given if isinstance(value, float)]
    return node.meta.get("finite", True) and all(map(math.isfinite, numbers))


def _is_affine(node: fx.Node, layers: Mapping[str, nn.Module], affine: set[fx.Node]) -> bool:
    """Whether a node that depends on the input is affine in it, given the nodes that are."""
    layer = layer_of(node, layers)
    if isinstance(layer, _NORMS):
        return not layer.training and layer.running_mean is not None
    if layer is not None:
        return type(layer) in _AFFINE_LAYERS
    # In-place operators have names of their own (iadd) and are not affine here: they would change
    # what others read.
    name = operation_of(node)
    given = [*node.args, *node.kwargs.values()]
    if node.kwargs.get("out"):
        return False
    if name == "squeeze" and len(given) == 1:
        return False  # for a single image it drops the axis of the images
    if name in _LINEAR:
        return True
    operands = [n for n in node.all_input_nodes if n in affine]
    if name in _LINEAR_IN_FIRST:
        exact = node.kwargs.get("rounding_mode") is None
        return exact and operands == [_argument(node, 0, "input", None)]
    factors = [v for item in given for v in (item if isinstance(item, list | tuple) else [item])]
    return name in _LINEAR_IN_ONE and len([v for v in factors if v in operands]) == 1


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _is_shape(node: fx.Node) -> bool:
    """Whether a node asks for a property of a tensor rather than for its numbers."""
    if operation_of(node) in _SHAPES:
        return True
    return node.target is getattr and node.args[1] in _SHAPES
