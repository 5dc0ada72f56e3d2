"""A network → its affine stem and the rest, so that the stem runs once an image, not once a step.

With f = g ∘ A and A affine, A(b + α (x − b)) = A(b) + α (A(x) − A(b)): the path runs behind the
stem, and the gradient goes back through the stem once, Aᵀ Σ_h w_h ∇g. Exact.

The stem is found in the graph of the network, never by its name. What cannot be traced is left
whole, with the identity as stem.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from igmask.engine.affine import TUPLES, affine_in, counts_images, layer_of, operation_of
from igmask.engine.fusion import (
    activation_of,
    fold_batch_norms,
    frozen,
    fuse_relus,
    lay_out,
    write_out_norms,
)
from igmask.engine.graph import (
    LIBRARIES,
    Opaque,
    Untraceable,
    hooked_everywhere,
    is_hooked,
    traced,
    unwrapped,
)
from igmask.engine.simplify import Traced
from igmask.engine.traces.compared import difference
from igmask.errors import with_kind
from igmask.kernels import Pool, activate
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
    by:       the library that took its graph, empty if none could
    seconds:  how long it took to have the network in parts, or to find that it stays whole
    """

    stem: Stem
    trunk: Callable[..., Tensor]
    ends: tuple[str, ...] = ()
    begins: tuple[str, ...] = ()
    n_folded: int = 0
    why_not: str = ""
    head: Head = Head()
    layout: torch.memory_format | None = None
    by: str = ""
    seconds: float = 0.0

    @property
    def account(self) -> str:
        """How its graph was had, and how long that took."""
        return f"{self.by or 'none'}, {self.seconds:.2g} s"

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
    and gradients are not touched. They are used only if they say what the network says of the
    example: see `compared.difference`. A network with hooks, and what is no module, stays whole.

    network: (N, ...) → outputs;  example: (n, ...) images, one is enough
    with_head: whether an activation, and ReLU and max pooling, behind the stem get a part of their
               own
    layout:    how the parts' weights are to lie in memory, and with them what they return
    fused:     whether each ReLU behind the stem takes along the bias, norm or sum before it
    """
    if not isinstance(network, nn.Module):
        return whole(network, "it is a function, not a torch.nn.Module")
    network = unwrapped(network)
    if len(example) == 1:  # in two colours: of a batch of one PyTorch may have the gradients wrong
        example = torch.cat([example, example / 2 + 0.25])
    if any(map(is_hooked, network.modules())) or hooked_everywhere():
        return _logged(whole(network, "it has hooks or parametrizations"))
    begin = time.perf_counter()
    how, by, reasons = _How(with_head, layout, fused), "", []
    found = None
    for library in LIBRARIES:
        try:
            with tracing():
                graph = traced(network, example, library)
        except Untraceable as error:
            reasons.append(str(error))
            if isinstance(error, Opaque):
                break
            continue
        tried = _split_as(how, network, graph, example)
        if not tried.why_not.startswith((_DIFFERS, _UNCUT)):
            found, by = tried, library
            break
        reasons.append(tried.why_not)
    found = found or whole(network, "; ".join(reasons))
    return _logged(replace(found, by=by, seconds=time.perf_counter() - begin))


def _split_as(how: "_How", network: nn.Module, graph: Traced, example: Tensor) -> Split:
    """The network in two as asked, or else as it can be."""
    found = _split(network, graph, example, how)
    if how.layout == torch.channels_last and found.why_not.startswith(_DIFFERS):
        # Some kernels are right in one layout only: see `contract.averages_rightly`.
        log.debug("%s, channels last: %s", type(network).__name__, found.why_not)
        found = _split(network, graph, example, replace(how, layout=torch.contiguous_format))
    if how.fused and found.why_not.startswith((_DIFFERS, _UNCUT)):
        log.debug("%s, fused: %s", type(network).__name__, found.why_not)
        return _split_as(replace(how, fused=False), network, graph, example)
    return found


def _logged(found: Split) -> Split:
    if found.why_not:
        log.debug("%s has no affine stem: %s", type(found.trunk).__name__, found.why_not)
    return found


@dataclass(frozen=True)
class _How:
    """What is asked of `split`."""

    with_head: bool
    layout: torch.memory_format | None
    fused: bool


def whole(network: Callable[..., Tensor], why: str) -> Split:
    """Return the network as its own trunk, with the identity as stem."""
    return Split(lambda x: (x,), network, begins=("the network",), why_not=why)


def _split(network: nn.Module, graph: Traced, example: Tensor, how: _How) -> Split:
    try:
        found = _cut(network, graph, example, how)
    except Exception as error:  # what the parts raise, and the network does not
        return whole(network, f"{_UNCUT} ({with_kind(error)})")
    if found.why_not:
        return found
    differing = difference(network, found, example)
    return whole(network, f"{_DIFFERS}: {differing}") if differing else found


_DIFFERS, _UNCUT = "its trace computes something else", "its trace cannot be cut"


def _cut(
    network: nn.Module,
    found: Traced,
    example: Tensor,
    how: _How,
    without: frozenset[fx.Node] = frozenset(),
) -> Split:
    """The network in two, cut where its affine part ends.

    without: nodes at which it is not to be cut, nor behind them
    """
    graph, image = found.graph, found.image
    parts = {k: frozen(v) if isinstance(v, nn.Module) else v for k, v in found.parts.items()}
    affine = affine_in(image, graph, parts, without)
    (output,) = [node for node in graph.nodes if node.op == "output"]
    behind = _needed([output], affine)
    frontier = [node for node in graph.nodes if node in behind and node in affine]
    again = partial(_cut, network, found, example)
    if several := [node for node in frontier if operation_of(node) in TUPLES]:
        return again(how, without.union(several))
    if frontier == [image]:
        # Of operations that had to be left out it is known what they are.
        why = "its first axis is not that of the images" if without else _NOT_AFFINE
        return whole(network, why)
    head, entries = _head(frontier, behind, parts) if how.with_head else (Head(), frontier)
    stem, in_stem = _between(graph, [image], frontier)
    stem.output(tuple(in_stem[node] for node in frontier))
    trunk, _ = _between(graph, entries, [output])

    n_folded = sum(fold_batch_norms(part, parts) for part in (stem, trunk))
    write_out_norms(stem, parts)
    if how.fused:
        fuse_relus(trunk, parts)
    if how.layout is not None:
        lay_out(parts, how.layout)
    first = [user for node in frontier for user in node.users if user in behind]
    made = Split(
        _module(stem, parts),
        _module(trunk, parts),
        tuple(_label(node, found) for node in frontier),
        tuple(dict.fromkeys(_label(node, found) for node in first)),
        n_folded,
        head=head,
        layout=how.layout,
    )
    # The engine's stem takes single images. Being affine, it can be tried at any that differ.
    rows = torch.arange(3.0 * example[0].numel()).cos().view(3, *example.shape[1:]).to(example)
    with running(), torch.no_grad():
        ends, singles = made.stem(rows), [made.stem(row) for row in rows.split(1)]
    if head.pool is not None and ends[0].ndim != 4:  # pooled as if the images were channels
        return again(replace(how, with_head=False), without)
    wrong = [
        node
        for node, u, *alone in zip(frontier, ends, *singles, strict=True)
        if not u.is_floating_point() or not _are_rows(u, alone)
    ]
    return again(how, without.union(wrong)) if wrong else made


_NOT_AFFINE = "its first operation is not affine"


def _are_rows(together: Tensor, alone: list[Tensor]) -> bool:
    """Whether what comes of images together is, row by row, what comes of each alone."""
    if together.shape != (len(alone), *alone[0].shape[1:]):
        return False
    apart = torch.cat(alone)
    error, size = (together - apart).norm(), (apart - apart.roll(1, 0)).norm()
    limit = {torch.float64: 1e-6, torch.float32: 1e-3}.get(apart.dtype, 0.1)
    return not bool(error > limit * size)


def _needed(ends: list[fx.Node], stop: set[fx.Node]) -> set[fx.Node]:
    """The nodes that compute `ends`, back to the nodes in `stop`."""
    found, todo = set(), list(ends)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += [] if node in stop or counts_images(node) else node.all_input_nodes
    return found


def _between(
    graph: fx.Graph, starts: list[fx.Node], ends: list[fx.Node]
) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A graph of what computes `ends` of `starts`, its inputs; and each node's copy in it."""
    part, needed = fx.Graph(), _needed(ends, set(starts))
    copies = {node: part.placeholder(f"u{i}") for i, node in enumerate(starts)}
    for node in graph.nodes:
        if node not in needed or node in copies:
            continue
        if counts_images(node) and node.args[0] not in copies:
            # Of any value: all that is cut at has a row an image.
            copies[node] = part.call_method("size", (copies[starts[0]], 0))
        else:
            copies[node] = part.node_copy(node, copies.__getitem__)
    return part, copies


def _module(graph: fx.Graph, parts: Mapping[str, Any]) -> fx.GraphModule:
    names = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
    return fx.GraphModule({name: parts[name] for name in names}, graph)


def _label(node: fx.Node, found: Traced) -> str:
    """What a person calls a node: the layer's name and kind, or the operation's."""
    return "the output" if node.op == "output" else found.labels.get(node.name, node.name)


def _head(
    frontier: list[fx.Node], behind: set[fx.Node], layers: Mapping[str, Any]
) -> tuple[Head, list[fx.Node]]:
    """What alone follows the stem and the kernels know, and the nodes behind which the rest is."""

    def only_user(node: fx.Node) -> fx.Node | None:
        users = [user for user in node.users if user in behind]
        return users[0] if len(users) == 1 and users[0].all_input_nodes == [node] else None

    user = only_user(frontier[0]) if len(frontier) == 1 else None
    activation = "none" if user is None else activation_of(user, layers)
    if user is None or activation == "none":
        return Head(), frontier
    after = only_user(user) if activation == "relu" else None
    pool = None if after is None else _pool(layer_of(after, layers))
    if after is None or pool is None:
        return Head(activation), [user]
    return Head(activation, pool), [after]


def _pool(layer: nn.Module | None) -> Pool | None:
    """The layer's max pooling, if it is one that the kernels know."""
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
