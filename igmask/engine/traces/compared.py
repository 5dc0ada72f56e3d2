"""Do a network and the parts that were made of its graph say the same?"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from igmask.engine.fusion import laid_out
from igmask.engine.graph import twin_of, unwrapped
from igmask.errors import with_kind
from igmask.tracing import running

_DOUBTFUL = 1e-3  # an error of gradients in float32 that a kink may make, and what is no kink, too
_LIMITS = {
    "outputs": {torch.float64: 1e-6, torch.float32: 1e-2},
    "gradients": {torch.float64: 1e-2, torch.float32: 0.2},
}


def difference(network: nn.Module, found: Any, images: Tensor) -> str:
    """What the two say differently, by more than rounding, or nothing.

    Of two images it is outputs and input gradients. Since a trace takes one of the branches that
    hang on the images, or on how many they are, it is also outputs of one alone, of three as no
    camera takes them, and of some of the others.

    images: (n, ...), two or more
    """
    first, others = images[:1], images[2:]
    strange = torch.cat([torch.zeros_like(first), -first, 32 * first])
    batches = images[:2], first, strange, others[:: max(1, -(-len(others) // 4))]
    for i, batch in enumerate(batch for batch in batches if len(batch)):
        answer = _slopes if i == 0 else _outputs
        try:
            theirs = answer(network, batch)
        except Exception:
            if i == 0:
                raise  # for its user
            continue  # it need not take them
        try:
            ours = answer(found, laid_out(batch, found.layout))
        except Exception as error:
            return with_kind(error)
        if not (ours and theirs):
            return "no gradient"  # if it is the network's own output, it will be refused
        for kind in ours:
            if difference := _beyond_rounding(kind, ours[kind], theirs[kind]):
                return difference
        if i == 0 and (difference := _in_double(network, found, batch, ours, theirs)):
            return difference
    return ""


def _in_double(network: nn.Module, found: Any, images: Tensor, *single: dict[str, Tensor]) -> str:
    """How gradients of float32 differ in float64, where no rounding takes a ReLU over its kink.

    Asked if it may be more than that; nothing, too, of what cannot be had in float64.

    single: ours and theirs in float32
    """
    ours, theirs = (of["gradients"] for of in single)
    errors = _errors(ours, theirs) if theirs.dtype == torch.float32 else ours.new_empty(0)
    if not len(errors) or float(errors.min()) <= _DOUBTFUL:
        return ""

    def doubled(module: Any) -> Callable[..., Any]:
        values = (*module.named_parameters(), *module.named_buffers())
        wide = {name: v.double() if v.is_floating_point() else v for name, v in values}
        return lambda *given: torch.func.functional_call(module, wide, given)

    try:
        images = images.double()
        split = replace(found, stem=doubled(found.stem), trunk=doubled(found.trunk))
        ours, theirs = (
            _slopes(f, x)["gradients"]
            for f, x in (
                (split, laid_out(images, found.layout)),
                (doubled(twin_of(network)), images),
            )
        )
    except Exception:
        return ""
    return _beyond_rounding("gradients", ours, theirs)


def agrees(network: nn.Module, found: Any, images: Tensor) -> bool:
    """Return whether a network says of an image what its parts say, to rounding."""
    network = unwrapped(network)
    for n in (1, 2):  # there are networks that take no single one
        batch = torch.cat([images[:1]] * n)
        with suppress(Exception):
            theirs = _outputs(network, batch)["outputs"]
            ours = _outputs(found, laid_out(batch, found.layout))["outputs"]
            errors = _errors(ours, theirs)
            limit = {torch.float64: 1e-9, torch.float32: 1e-3}.get(theirs.dtype, 0.5)
            return not len(errors) or float(errors.max()) <= limit
    return False


def _outputs(f: Callable[[Tensor], Tensor], images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad(), running():
        return {"outputs": f(images.clone())}


def _slopes(f: Callable[[Tensor], Tensor], images: Tensor) -> dict[str, Tensor]:
    """Outputs and the gradients of a sum of them, or nothing if there are none."""
    x = images.detach().clone().requires_grad_()
    with torch.enable_grad(), running():
        outputs = f(x * 1)
        real = isinstance(outputs, Tensor) and not outputs.is_complex()
        if not real or not outputs.requires_grad:
            return {}
        weights = torch.linspace(1, 2, outputs.numel(), device=x.device).view(outputs.shape)
        (slope,) = torch.autograd.grad(
            (outputs * weights).sum(), x, allow_unused=True, materialize_grads=True
        )
    return {"outputs": outputs.detach(), "gradients": slope}


def _beyond_rounding(kind: str, ours: Tensor, theirs: Tensor) -> str:
    """What to say of outputs or gradients that differ by more than rounding, or nothing."""
    if ours.shape != theirs.shape:
        return f"{kind} are {tuple(ours.shape)}, not {tuple(theirs.shape)}"
    errors, dtype = _errors(ours, theirs), theirs.dtype
    if not len(errors):
        return ""
    # Outputs are continuous. A gradient jumps where rounding takes a ReLU over its kink: by
    # hundredths in float32, in deep networks for every image.
    steady = kind == "outputs" or dtype == torch.float64
    worst = float(errors.max() if steady else errors.min())
    return "" if worst <= _LIMITS[kind].get(dtype, 0.5) else f"{kind} differ by {worst:.1g}"


def _errors(ours: Tensor, theirs: Tensor) -> Tensor:
    """The relative differences of those images whose values are finite; others will be refused."""
    n = len(theirs) if theirs.ndim else 1
    ours, theirs = (v.double().reshape(n, -1) for v in (ours, theirs))
    sizes = theirs.norm(dim=1)
    # An image's outputs may cancel to nothing, black's of a network without biases, say.
    sizes = sizes.clamp(min=max(1e-3 * float(sizes.nan_to_num(0, 0, 0).max()), 1e-300))
    return ((ours - theirs).norm(dim=1) / sizes)[theirs.isfinite().all(dim=1)]
