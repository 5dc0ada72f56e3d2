"""A network → its affine stem and the rest, so that the stem runs once an image, not once a step.

With f = g ∘ A and A affine, A(b + α (x − b)) = A(b) + α (A(x) − A(b)): the path runs behind the
stem, and the gradient goes back through the stem once, Aᵀ Σ_h w_h ∇g. Exact.

The stem is found in the graph of the network (torch.fx), never by its name. What cannot be traced
is left whole, with the identity as stem.
"""

import copy
import logging
import operator
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from igmask.kernels import Pool, activate, shifted_relu
from igmask.tracing import running, tracing

log = logging.getLogger(__name__)

# The end points may be several tensors, where several branches leave the affine part.
Stem = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Head:
    """What follows a stem and is taken along by the kernels of the path: see `kernels/path.py`."""

    activation: str = "none"
    pool: Pool | None = None

    def __call__(self, u: Tensor) -> Tensor:
        """What it does to a batch, (N, ...) → (N, ...)."""
        u, pool = activate(u, self.activation), self.pool
        return u if pool is None else F.max_pool2d(u, pool.size, 2, pool.padding, 1, pool.ceil)


@dataclass(frozen=True)
class Split:
    """A network in parts: network(x) = trunk(*head(stem(x))), with `stem` affine in x.

    head:     the activation and pooling behind the stem, if they are to be taken along
    layout:   how its weights lie in memory; None: as they were
    ends:     name of the last layer of the stem, a branch; empty for the identity
    begins:   names of what follows them
    n_folded: batch norms folded into the layer before
    why_not:  why there is no stem, empty if there is one
    """

    stem: Stem
    trunk: Callable[..., Tensor]
    ends: tuple[str, ...] = ()
    begins: tuple[str, ...] = ()
    n_folded: int = 0
    why_not: str = ""
    head: Head = Head()
    layout: torch.memory_format | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The whole network."""
        return self.trunk(*self.entries(self.stem(x)))

    def entries(self, ends: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what the trunk takes, of the stem's ends."""
        return tuple(self.head(u) for u in ends)


def split(
    network: Callable[..., Tensor],
    example: Tensor,
    *,
    with_head: bool = False,
    layout: torch.memory_format | None = None,
    fused: bool = False,
) -> Split:
    """Return the network's longest affine stem and the trunk behind it.

    Both share the network's weights, or copies of them in another memory format; its flags, hooks
    and gradients are not touched. They are used only if, on the example, they say what the network
    says, output and input gradient; a network with hooks, and what is no module, stays whole.

    network: (N, ...) → outputs;  example: (n, ...) images, one or two are enough
    with_head: whether an activation, and ReLU and max pooling, behind the stem get a part of their
               own
    layout:    how the parts' weights are to lie in memory, and with them what they return
    fused:     whether each ReLU behind the stem takes along the bias, norm or sum before it
    """
    if not isinstance(network, nn.Module):
        return whole(network, "it is a function, not a torch.nn.Module")
    found = _split(network, example[:2], with_head, layout, fused)
    if layout == torch.channels_last and found.why_not.startswith(_DIFFERS):
        # Some kernels are right in one layout only: see `contract.averages_rightly`.
        log.debug("%s, channels last: %s", type(network).__name__, found.why_not)
        found = _split(network, example[:2], with_head, torch.contiguous_format, fused)
    if fused and found.why_not.startswith((_DIFFERS, _UNCUT)):
        log.debug("%s, fused: %s", type(network).__name__, found.why_not)
        return split(network, example, with_head=with_head, layout=layout)
    if found.why_not:
        log.debug("%s has no affine stem: %s", type(network).__name__, found.why_not)
    return found


def whole(network: Callable[..., Tensor], why: str) -> Split:
    """Return the network as its own trunk, with the identity as stem."""
    return Split(lambda x: (x,), network, begins=("the network",), why_not=why)


def laid_out(x: Tensor, layout: torch.memory_format | None) -> Tensor:
    """Return images as they should lie in memory on a GPU, where convolutions return the same.

    layout: None for channels first, which every kernel is right in
    """
    if not x.is_cuda or x.ndim != 4:
        return x
    return x.contiguous(memory_format=layout or torch.contiguous_format)


def is_hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward says."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks) or hasattr(module, "parametrizations")


def _split(
    network: nn.Module,
    example: Tensor,
    with_head: bool,
    layout: torch.memory_format | None,
    fused: bool,
) -> Split:
    everywhere = torch.nn.modules.module
    if any(map(is_hooked, network.modules())) or everywhere._global_forward_hooks:
        return whole(network, "it has hooks or parametrizations")
    try:
        with tracing():
            graph, constants = _trace(network)
    except Exception as error:  # whatever a model's own code may raise at a symbolic input
        return whole(network, f"torch.fx cannot trace it ({type(error).__name__}: {error})")
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if any(node.users for node in inputs[1:]):
        return whole(network, "it has several inputs")
    try:
        found = _cut(network, graph, constants, inputs[0], example, with_head, layout, fused)
    # A layer that is called, and whose weights are read beside it; what a kernel does not take.
    except (KeyError, ValueError) as error:
        return whole(network, f"{_UNCUT} ({error})")
    difference = _difference(network, found, example)
    if difference:
        return whole(network, f"{_DIFFERS}: {difference}")
    return found


_DIFFERS, _UNCUT = "its trace computes something else", "its trace cannot be cut"


class _Tracer(fx.Tracer):
    """Refuses what a graph would lose, and leaves the modules of other threads alone."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def create_proxy(self, *arguments: Any, **options: Any) -> fx.Proxy:
        if not torch.is_grad_enabled():
            raise ValueError("part of it runs under no_grad()")
        return super().create_proxy(*arguments, **options)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _trace(network: nn.Module) -> tuple[fx.Graph, dict[str, Any]]:
    """The graph, and the tensors made in the forward pass, which torch.fx leaves on the network."""
    before = set(vars(network))
    try:
        with torch.enable_grad():
            graph = _Tracer().trace(network)
    finally:
        constants = {name: vars(network).pop(name) for name in set(vars(network)) - before}
    return graph, constants


_LIMITS = {
    "outputs": {torch.float64: 1e-6, torch.float32: 1e-2},
    "gradients": {torch.float64: 1e-2, torch.float32: 0.2},
}


def _difference(network: nn.Module, found: Split, example: Tensor) -> str:
    """What of the outputs and input gradients differs by more than rounding, or nothing."""
    results = []
    for f in (network, found):
        x = laid_out(example.detach(), f.layout if isinstance(f, Split) else None)
        x = x.clone().requires_grad_()
        with torch.enable_grad(), running():
            try:
                outputs = f(x * 1)
            except Exception as error:  # of the parts; what the network raises is for its user
                if f is network:
                    raise
                return f"{type(error).__name__}: {error}"
            real = isinstance(outputs, Tensor) and not outputs.is_complex()
            if not real or not outputs.requires_grad:
                return "no gradient"  # if it is the network's own output, it will be refused
            weights = torch.linspace(1, 2, outputs.numel(), device=x.device).view(outputs.shape)
            (slope,) = torch.autograd.grad(
                (outputs * weights).sum(), x, allow_unused=True, materialize_grads=True
            )
        results.append((outputs.detach(), slope))
    for kind, ours, theirs in zip(("outputs", "gradients"), *results[::-1], strict=True):
        if not bool(theirs.isfinite().all()):
            continue  # which will be refused with the place
        n = len(theirs) if theirs.ndim else 1
        sizes = theirs.double().reshape(n, -1).norm(dim=1).clamp(min=1e-300)
        errors = (ours.double() - theirs.double()).reshape(n, -1).norm(dim=1) / sizes
        # Outputs are continuous. A gradient jumps where rounding takes a ReLU over its kink: by
        # hundredths in float32, in deep networks for every image.
        limit = _LIMITS[kind].get(theirs.dtype, 0.5)
        if float(errors.min()) > limit:
            return f"{kind} differ by {float(errors.min()):.1g}"
    return ""


# -- what is affine ----------------------------------------------------------------------------

# Layers that are affine in their only input; of the others only some settings are.
_AFFINE_LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear, nn.Identity, nn.Flatten, nn.Unflatten, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.ZeroPad2d,
    nn.ConstantPad1d, nn.ConstantPad2d, nn.ReflectionPad1d, nn.ReflectionPad2d,
    nn.ReplicationPad1d, nn.ReplicationPad2d, nn.PixelShuffle, nn.PixelUnshuffle,
    nn.ChannelShuffle, nn.Unfold, nn.Upsample,
)  # fmt: skip
_AFFINE_IN_EVALUATION = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
    nn.Dropout3d, nn.AlphaDropout,
)  # fmt: skip

# Linear in all of their tensors together: affine if each is affine or constant.
_LINEAR = {
    "reshape", "view", "permute", "transpose", "flatten", "unflatten", "unsqueeze", "squeeze",
    "contiguous", "clone", "to", "expand", "repeat", "movedim", "moveaxis", "swapaxes", "flip",
    "roll", "add", "sub", "subtract", "neg", "negative", "pos", "sum", "mean", "cat", "concat",
    "concatenate", "stack", "chunk", "split", "tensor_split", "unbind", "narrow", "select",
    "float", "double", "avg_pool2d", "adaptive_avg_pool2d", "pixel_shuffle",
    "pixel_unshuffle", "unfold", "t",
}  # fmt: skip
# Linear in the first if the others are constant; `mul` and `matmul` in either.
_LINEAR_IN_FIRST = {
    "div", "truediv", "true_divide", "conv1d", "conv2d", "conv3d", "linear", "getitem",
    "index_select", "interpolate",
}  # fmt: skip
_LINEAR_IN_ONE = {"mul", "multiply", "matmul", "bmm"}
_TUPLES = {"chunk", "split", "tensor_split", "unbind"}
_SHAPES = {"size", "dim", "numel", "shape", "ndim", "dtype", "device", "ndimension"}


def _is_affine(node: fx.Node, network: nn.Module, affine: set[fx.Node]) -> bool:
    """Whether a node that depends on the input is affine in it, given the nodes that are."""
    operands = [n for n in node.all_input_nodes if n in affine]
    if node.op == "call_module":
        layer = network.get_submodule(str(node.target))
        if isinstance(layer, _AFFINE_IN_EVALUATION):
            running = getattr(layer, "running_mean", layer) is not None
            return not layer.training and running
        return type(layer) in _AFFINE_LAYERS
    name = str(node.target)
    if node.op == "call_function":
        # In-place operators have names of their own (iadd) and are not affine here: they would
        # change what others read.
        name = getattr(node.target, "__name__", "")
        if getattr(node.target, "__module__", "") not in _HOMES or node.kwargs.get("out"):
            return False
    if name == "pad":
        return _argument(node, 2, "mode", "constant") == "constant"
    if name == "dropout":
        return _argument(node, 2, "training", True) is False
    given = [*node.args, *node.kwargs.values()]
    if any(isinstance(v, torch.dtype) and not v.is_floating_point for v in given):
        return False
    if name == "squeeze" and len(given) == 1:
        return False  # for a single image it drops the axis of the images
    if name in _LINEAR:
        return True
    if name in _LINEAR_IN_FIRST:
        whole = node.kwargs.get("rounding_mode") is None
        return whole and operands == [_argument(node, 0, "input", None)]
    return name in _LINEAR_IN_ONE and len([v for v in given if v in operands]) == 1


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


_HOMES = {
    module.__name__ for module in (operator, torch, F)
} | {"_operator", "torch._C._nn", "torch._tensor", "builtins", "torch.functional"}  # fmt: skip


def _is_shape(node: fx.Node) -> bool:
    """Whether a node asks for a property of a tensor rather than for its numbers."""
    if node.op == "call_method":
        return node.target in _SHAPES
    return node.target is getattr and node.args[1] in _SHAPES


def _affine_in(network: nn.Module, graph: fx.Graph, image: fx.Node) -> set[fx.Node]:
    """The nodes that are affine in the image."""
    depends, affine = {image}, {image}
    for node in graph.nodes:
        of_input = [n for n in node.all_input_nodes if n in depends]
        if node is image or not of_input or _is_shape(node):
            continue
        depends.add(node)
        of_affine = node.op != "output" and all(n in affine for n in of_input)
        if of_affine and _is_affine(node, network, affine):
            affine.add(node)
    return affine


def _needed(ends: list[fx.Node], stop: set[fx.Node]) -> set[fx.Node]:
    """The nodes that compute `ends`, back to the nodes in `stop`."""
    found, todo = set(), list(ends)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += [] if node in stop else node.all_input_nodes
    return found


def _parts(network: nn.Module, graph: fx.Graph, constants: dict[str, Any]) -> dict[str, Any]:
    """What the nodes call and read, by its name in the graph, frozen."""
    parts: dict[str, Any] = {}
    for node in graph.nodes:
        name = str(node.target)
        if node.op == "call_module":
            parts.setdefault(name, frozen(network.get_submodule(name)))
        elif node.op == "get_attr":
            value = constants[name] if name in constants else operator.attrgetter(name)(network)
            parts[name] = value.detach() if isinstance(value, Tensor) else value
    return parts


def _cut(
    network: nn.Module,
    graph: fx.Graph,
    constants: dict[str, Any],
    image: fx.Node,
    example: Tensor,
    with_head: bool,
    layout: torch.memory_format | None,
    fused: bool,
) -> Split:
    affine = _affine_in(network, graph, image)
    (output,) = [node for node in graph.nodes if node.op == "output"]
    behind = _needed([output], affine)
    frontier = [node for node in graph.nodes if node in behind and node in affine]
    if any(str(node.target).rpartition(".")[2] in _TUPLES for node in frontier):
        return whole(network, "its affine part ends in several values of one operation")
    if frontier == [image]:
        return whole(network, "its first operation is not affine")
    head, entries = _head(network, frontier, behind) if with_head else (Head(), frontier)
    first = [user for node in frontier for user in node.users if user in behind]

    stem, trunk = fx.Graph(), fx.Graph()
    in_stem: dict[fx.Node, fx.Node] = {}
    in_trunk = {node: trunk.placeholder(f"u{i}") for i, node in enumerate(entries)}
    before, after = _needed(frontier, {image}), _needed([output], set(entries))
    for node in graph.nodes:
        if node in before:
            in_stem[node] = stem.node_copy(node, in_stem.__getitem__)
        if node in after and node not in in_trunk:
            in_trunk[node] = trunk.node_copy(node, in_trunk.__getitem__)
    stem.output(tuple(in_stem[node] for node in frontier))
    parts = _parts(network, graph, constants)
    n_folded = sum(_fold_batch_norms(part, parts) for part in (stem, trunk))
    if fused:
        _fuse_relus(trunk, parts)
    if layout is not None:
        for part in parts.values():
            if isinstance(part, nn.Module):
                _lay_out(part, layout)
    found = Split(
        fx.GraphModule(_used(parts, stem), stem),
        fx.GraphModule(_used(parts, trunk), trunk),
        tuple(_label(node, network) for node in frontier),
        tuple(dict.fromkeys(_label(node, network) for node in first)),
        n_folded,
        head=head,
        layout=layout,
    )
    with running(), torch.no_grad():
        ends, alone = found.stem(example), found.stem(example[:1])
    if head.pool is not None and ends[0].ndim != 4:  # pooled as if the images were channels
        return _cut(network, graph, constants, image, example, False, layout, fused)
    shapes = [(len(example), *u.shape[1:]) for u in alone]  # the engine's stem takes single images
    if shapes != [tuple(u.shape) for u in ends]:
        return whole(network, "its first axis is not that of the images")
    return found


def _head(
    network: nn.Module, frontier: list[fx.Node], behind: set[fx.Node]
) -> tuple[Head, list[fx.Node]]:
    """What alone follows the stem and the kernels know, and the nodes behind which the rest is."""

    def only_user(node: fx.Node) -> fx.Node | None:
        users = [user for user in node.users if user in behind]
        return users[0] if len(users) == 1 and users[0].all_input_nodes == [node] else None

    user = only_user(frontier[0]) if len(frontier) == 1 else None
    activation = "none" if user is None else _activation(user, _layer(user, network))
    if user is None or activation == "none":
        return Head(), frontier
    after = only_user(user) if activation == "relu" else None
    pool = None if after is None else _pool(after, network)
    if after is None or pool is None:
        return Head(activation), [user]
    return Head(activation, pool), [after]


def _layer(node: fx.Node, network: nn.Module) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _activation(node: fx.Node, layer: nn.Module | None) -> str:
    """The name that the kernels have for the activation of a node, or of its layer; or `none`."""
    if layer is not None:
        if isinstance(layer, nn.GELU) and layer.approximate != "none":
            return "none"
        return _ACTIVATION_LAYERS.get(type(layer), "none")
    name = str(node.target)
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        if getattr(node.target, "__module__", "") not in _HOMES:
            return "none"
    plain = len(node.args) == 1 and not set(node.kwargs) - {"inplace"}
    return name.rstrip("_") if plain and name.rstrip("_") in _ACTIVATION_LAYERS.values() else "none"


_ACTIVATION_LAYERS: dict[type, str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.GELU: "gelu",
}


def _pool(node: fx.Node, network: nn.Module) -> Pool | None:
    """The node's max pooling, if it is one that the kernels know."""
    layer = _layer(node, network)
    if type(layer) is not nn.MaxPool2d or layer.return_indices:
        return None
    given = (layer.kernel_size, layer.padding, layer.stride, layer.dilation)
    pairs = [tuple(v) if isinstance(v, tuple | list) else (v, v) for v in given]
    if any(a != b for a, b in pairs) or (pairs[2][0], pairs[3][0]) != (2, 1):
        return None
    try:
        return Pool(pairs[0][0], pairs[1][0], bool(layer.ceil_mode))
    except ValueError:
        return None


def _label(node: fx.Node, network: nn.Module) -> str:
    """What a person calls a node: the layer's name and kind, or the operation's."""
    if node.op == "call_module":
        kind = type(network.get_submodule(str(node.target))).__name__
        return f"{node.target} ({kind})"
    return "the output" if node.op == "output" else node.name


def _used(parts: dict[str, Any], graph: fx.Graph) -> dict[str, Any]:
    names = {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}
    return {name: parts[name] for name in names}


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


def _lay_out(module: nn.Module, layout: torch.memory_format) -> None:
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None and value.ndim == 4:
                laid = value.detach().contiguous(memory_format=layout)
                part._parameters[name] = laid  # type: ignore[assignment]


def _fold_batch_norms(graph: fx.Graph, parts: dict[str, Any]) -> int:
    """Fold each batch norm into the convolution before it; return how many."""
    n_folded = 0
    for node in list(graph.nodes):
        before = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(before, fx.Node):
            continue
        norm = parts[str(node.target)]
        if before.op != "call_module" or len(before.users) > 1 or norm.training:
            continue
        layer = parts[str(before.target)]
        if _FOLDS.get(type(layer)) is type(norm) and norm.running_mean is not None:
            name = _free_name(f"folded_{node.name}", parts)
            parts[name] = frozen(fuse_conv_bn_eval(layer, norm))
            before.target = name
            node.replace_all_uses_with(before)
            graph.erase_node(node)
            n_folded += 1
    return n_folded


_FOLDS = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}


class _FusedRelu(nn.Module):
    """`shifted_relu` with a network's constants, which stay in their precision."""

    def __init__(self, shift: Tensor, scale: Tensor | None = None) -> None:
        super().__init__()
        self._shift, self._scale = shift, scale

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return shifted_relu(x, self._shift, scale=self._scale, other=other)


def _fuse_relus(graph: fx.Graph, parts: dict[str, Any]) -> None:
    """Let each ReLU take along what it alone follows: a bias, a frozen norm, a sum with a bias."""
    for node in list(graph.nodes):
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or len(before.users) > 1:
            continue
        if node.op == "output" or _activation(node, _part(node, parts)) != "relu":
            continue
        layer = _part(before, parts)
        operands, relu = [before], None
        if type(layer) is nn.BatchNorm2d and not layer.training and layer.running_var is not None:
            operands, relu = before.all_input_nodes, _FusedRelu(*_shift_and_scale(layer))
        elif _is_sum(before):
            operands = sorted(before.all_input_nodes, key=lambda n: _bias(n, parts) is None)
            biases = [b for b in (_bias(n, parts) for n in operands) if b is not None]
            if len({len(bias) for bias in biases}) == 1:
                relu = _FusedRelu(torch.stack([_wide(bias) for bias in biases]).sum(dim=0))
        elif (bias := _bias(before, parts)) is not None:
            relu = _FusedRelu(bias)
        if relu is None:
            continue
        if type(layer) is not nn.BatchNorm2d:  # whose shift knows of no bias before it
            for operand in operands:
                _leave_bias_out(operand, parts)
        name = _free_name(f"fused_{node.name}", parts)
        parts[name] = relu
        with graph.inserting_before(node):
            fused = graph.call_module(name, tuple(operands))
        node.replace_all_uses_with(fused)
        graph.erase_node(node)
        if before not in operands:
            graph.erase_node(before)


def _free_name(name: str, parts: dict[str, Any]) -> str:
    """The name, or one like it that no layer of the network has."""
    while name in parts:
        name += "_"
    return name


def _part(node: fx.Node, parts: dict[str, Any]) -> nn.Module | None:
    return parts[str(node.target)] if node.op == "call_module" else None


def _shift_and_scale(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a frozen batch norm adds to each channel, and multiplies it by before."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = (_wide(variance) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -_wide(mean) * scale
    return (shift if norm.bias is None else shift + norm.bias.detach()), scale


def _wide(x: Tensor) -> Tensor:
    """In single precision at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _is_sum(node: fx.Node) -> bool:
    """Whether a node adds two others, and changes none of them that is used elsewhere."""
    name = str(node.target)
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        if getattr(node.target, "__module__", "") not in _HOMES:
            return False
    two = node.all_input_nodes == list(node.args) and len(node.args) == 2 and not node.kwargs
    in_place = name in ("iadd", "add_")
    return two and (name == "add" or (in_place and len(node.all_input_nodes[0].users) == 1))


def _bias(node: fx.Node, parts: dict[str, Any]) -> Tensor | None:
    """The bias of a convolution that one node alone uses, (C,); None of anything else."""
    layer = _part(node, parts)
    if type(layer) is not nn.Conv2d or layer.bias is None or len(node.users) > 1:
        return None
    return layer.bias.detach()


def _leave_bias_out(node: fx.Node, parts: dict[str, Any]) -> None:
    """Let a convolution that has such a bias do without it."""
    if _bias(node, parts) is not None:
        without = frozen(parts[str(node.target)])
        without._parameters["bias"] = None
        node.target = _free_name(f"unbiased_{node.name}", parts)
        parts[node.target] = without
