"""The parts of a network over again, exactly, with less work: frozen, laid out, folded, fused."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from igmask.engine.affine import layer_of, operation_of
from igmask.kernels import shifted_relu, wide

# What the graphs call and read, by its name in them.
Parts = dict[str, Any]


def frozen(module: nn.Module) -> nn.Module:
    """Return the module over again, with the same weights, that asks for none of their gradients.

    So no activations are kept for the weights' sake, but where that is faster, and the module's own
    flags stay as they are.
    """
    twin = copy.copy(module)
    twin.__dict__ = dict(module.__dict__)
    twin._parameters = {  # plain tensors: they ask for no gradient
        name: value if value is None else value.detach()  # type: ignore[misc]
        for name, value in module._parameters.items()
    }
    twin._modules = {
        name: child if child is None else frozen(child) for name, child in module._modules.items()
    }
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        # PyTorch multiplies its input, transposed, as one matrix only where the weight asks for a
        # gradient, else as one for each token: a quarter of the time of ViT-B/16 on a CPU.
        weight = twin._parameters["in_proj_weight"]
        weight.requires_grad_(weight.device.type == "cpu")  # type: ignore[union-attr]
    return twin


def lay_out(parts: Parts, layout: torch.memory_format) -> None:
    """Let the weights of the parts lie in memory as said, where they have four axes."""
    layers = (part for part in parts.values() if isinstance(part, nn.Module))
    for module in (module for layer in layers for module in layer.modules()):
        for name, value in module._parameters.items():
            if value is not None and value.ndim == 4:
                laid = value.detach().contiguous(memory_format=layout)
                module._parameters[name] = laid  # type: ignore[assignment]


def _alone(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Each node that alone follows another, with that one; the graph may change meanwhile."""
    for node in list(graph.nodes):
        before = node.args[0] if node.args else None
        if isinstance(before, fx.Node) and len(before.users) == 1:
            yield node, before


def fold_batch_norms(graph: fx.Graph, parts: Parts) -> int:
    """Fold each batch norm into the convolution before it; return how many."""
    n_folded = 0
    for node, before in _alone(graph):
        layer, norm = layer_of(before, parts), layer_of(node, parts)
        if _FOLDS.get(type(layer)) is not type(norm) or norm.training or norm.running_mean is None:
            continue
        is_transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        if is_transposed and layer.groups > 1:  # whose weight has no axis of all outputs
            continue
        before.target = free_name(f"folded_{node.name}", parts)
        parts[before.target] = frozen(_folded(layer, norm, is_transposed))
        node.replace_all_uses_with(before)
        graph.erase_node(node)
        n_folded += 1
    return n_folded


def _folded(layer: Any, norm: Any, is_transposed: bool) -> nn.Module:
    """The layer with the norm in its weight and bias, computed in float64 and rounded once."""
    first, second = copy.deepcopy(layer).double(), copy.deepcopy(norm).double()
    return fuse_conv_bn_eval(first, second, is_transposed).to(layer.weight.dtype)


class _Scaled(nn.Module):
    """A frozen norm as what it computes, x · scale + shift."""

    def __init__(self, norm: nn.BatchNorm2d, dtype: torch.dtype) -> None:
        super().__init__()
        self._shift, self._scale = (value.to(dtype) for value in _shift_and_scale(norm))

    def forward(self, x: Tensor) -> Tensor:
        axes = [1] * (x.ndim - 2)
        return x * self._scale.view(-1, *axes) + self._shift.view(-1, *axes)


def write_out_norms(graph: fx.Graph, parts: Parts) -> None:
    """Let frozen norms be sums and products, whose gradients are right for one image, too.

    See `contract.least_batch`.
    """
    for node in graph.nodes:
        norm = layer_of(node, parts)
        if type(norm) in _FOLDS.values() and not norm.training and norm.running_mean is not None:
            node.target = free_name(f"scaled_{node.name}", parts)
            parts[node.target] = _Scaled(norm, norm.running_mean.dtype)


_FOLDS: dict[type[nn.Module], type[nn.modules.batchnorm._BatchNorm]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.ConvTranspose1d: nn.BatchNorm1d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
    nn.ConvTranspose3d: nn.BatchNorm3d,
}


def activation_of(node: fx.Node, parts: Mapping[str, Any]) -> str:
    """Return the name that the kernels have for a node's activation; `none` for anything else."""
    layer = layer_of(node, parts)
    if layer is not None:
        other = isinstance(layer, nn.GELU) and layer.approximate != "none"
        return "none" if other else _ACTIVATION_LAYERS.get(type(layer), "none")
    name = operation_of(node).rstrip("_")
    if name == "hardtanh" and node.args[1:] == (0, 6):
        return "relu6"  # as torch.export has it
    plain = len(node.args) == 1 and not set(node.kwargs) - {"inplace"}
    return name if plain and name in _ACTIVATION_LAYERS.values() else "none"


_ACTIVATION_LAYERS: dict[type, str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.GELU: "gelu",
}


class _FusedRelu(nn.Module):
    """`shifted_relu` with a network's constants, which stay in their precision."""

    def __init__(self, shift: Tensor, scale: Tensor | None = None) -> None:
        super().__init__()
        self._shift, self._scale = shift, scale

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return shifted_relu(x, self._shift, scale=self._scale, other=other)


def fuse_relus(graph: fx.Graph, parts: Parts) -> None:
    """Let each ReLU take along what it alone follows: a bias, a frozen norm, a sum with a bias."""
    for node, before in _alone(graph):
        if activation_of(node, parts) != "relu":
            continue
        layer = layer_of(before, parts)
        operands, relu = [before], None
        if type(layer) is nn.BatchNorm2d and not layer.training and layer.running_var is not None:
            operands, relu = before.all_input_nodes, _FusedRelu(*_shift_and_scale(layer))
        elif _is_sum(before):
            operands = sorted(before.all_input_nodes, key=lambda n: _bias(n, parts) is None)
            biases = [b for b in (_bias(n, parts) for n in operands) if b is not None]
            if len({len(bias) for bias in biases}) == 1:
                relu = _FusedRelu(torch.stack([b.to(wide(b)) for b in biases]).sum(dim=0))
        elif (bias := _bias(before, parts)) is not None:
            relu = _FusedRelu(bias)
        if relu is None:
            continue
        if type(layer) is not nn.BatchNorm2d:  # whose shift knows of no bias before it
            for operand in operands:
                _leave_bias_out(operand, parts)
        name = free_name(f"fused_{node.name}", parts)
        parts[name] = relu
        with graph.inserting_before(node):
            fused = graph.call_module(name, tuple(operands))
        node.replace_all_uses_with(fused)
        graph.erase_node(node)
        if before not in operands:
            graph.erase_node(before)


def free_name(name: str, parts: Parts) -> str:
    """Return the name, or one like it that no part of the network has."""
    while name in parts:
        name += "_"
    return name


def _shift_and_scale(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a frozen batch norm adds to each channel, and multiplies it by before."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = (variance.to(wide(variance)) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -mean.to(wide(mean)) * scale
    return (shift if norm.bias is None else shift + norm.bias.detach()), scale


def _is_sum(node: fx.Node) -> bool:
    """Whether a node adds two others, and changes none of them that is used elsewhere."""
    name = operation_of(node)
    two = node.all_input_nodes == list(node.args) and len(node.args) == 2 and not node.kwargs
    in_place = name in ("iadd", "add_")
    return two and (name == "add" or (in_place and len(node.all_input_nodes[0].users) == 1))


def _bias(node: fx.Node, parts: Parts) -> Tensor | None:
    """The bias of a convolution that one node alone uses, (C,); None of anything else."""
    layer = layer_of(node, parts)
    if type(layer) is not nn.Conv2d or layer.bias is None or len(node.users) > 1:
        return None
    return layer.bias.detach()


def _leave_bias_out(node: fx.Node, parts: Parts) -> None:
    """Let a convolution that has such a bias do without it."""
    if _bias(node, parts) is not None:
        without = frozen(parts[str(node.target)])
        without._parameters["bias"] = None
        node.target = free_name(f"unbiased_{node.name}", parts)
        parts[node.target] = without


def laid_out(x: Tensor, layout: torch.memory_format | None) -> Tensor:
    """Return images as they should lie in memory on a GPU, where convolutions return the same.

    layout: None for channels first, which every kernel is right in
    """
    if not x.is_cuda or x.ndim != 4:
        return x
    return x.contiguous(memory_format=layout or torch.contiguous_format)
