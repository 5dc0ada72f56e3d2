"""What the engine makes of a network: its stem, what follows, shares of the work, memory."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from igmask.asked.settings import Model
from igmask.devices import pick_device
from igmask.engine.ready import prepare
from igmask.inputs import models
from igmask.inputs.networks import library_of


@dataclass(frozen=True)
class Inspection:
    """What `inspect` finds; counts are of one image, or one (image, step) pair.

    stem:          where the affine stem ends, a branch; empty if there is none, and `why_not` says
                   why
    trunk:         what follows it
    graph:         the library that took the network's graph, and how long that and the cut took
    stem_share:    of the floating-point operations of a forward pass
    n_folded:      batch norms folded into the layer before
    image_bytes:   kept for an image while it is in the queue: two end points and a sum
    point_bytes:   of a pair: its point and what the backward pass needs
    batch_size:    pairs of a batch, on this machine
    """

    stem: tuple[str, ...]
    why_not: str
    trunk: tuple[str, ...]
    graph: str
    stem_flops: int
    trunk_flops: int
    n_folded: int
    image_bytes: int
    point_bytes: int
    batch_size: int

    @property
    def stem_share(self) -> float:
        """Of the floating-point operations of a forward pass, in [0, 1]."""
        return self.stem_flops / max(self.stem_flops + self.trunk_flops, 1)


def of_model(asked: Model, *, size: int | None, device: str) -> str:
    """Return the lines of `igmask inspect` on a model, its weights drawn unless they are a file.

    size: side of the input, where it is not known
    """
    if asked.weights_kind == "library":
        asked = replace(asked, weights="none")
    library, where = library_of(asked), pick_device(device)
    described = library.described(replace(asked, size=size or asked.size))
    side = described.size or library.usual_size(asked)
    network = models.with_output(models.evaluating(models.build(described)), described).to(where)
    images = torch.rand(2, 3, side, side, device=where)
    return report(described.source, inspect(network, images), (3, side, side))


def inspect(model: nn.Module, images: Tensor) -> Inspection:
    """Return what the engine makes of a model in evaluation mode, given images (N, C, H, W)."""
    network = prepare(model, images)
    image = images[:1]
    counts = []
    ends = network.stem(image)
    entries = network.split.entries(ends)
    for part, arguments in ((network.split.stem, (image,)), (network.split.trunk, entries)):
        with FlopCounterMode(display=False) as counter:
            # As attribution runs it: without gradients PyTorch fuses what is not counted then.
            part(*(a.clone().requires_grad_() * 1 for a in arguments))
        counts.append(counter.get_total_flops())
    return Inspection(
        stem=network.split.ends,
        why_not=network.split.why_not,
        trunk=network.split.begins,
        graph=network.split.account,
        stem_flops=counts[0],
        trunk_flops=counts[1],
        n_folded=network.split.n_folded,
        image_bytes=3 * sum(u.nbytes for u in ends),
        point_bytes=network.bytes_per_point(image),
        batch_size=network.batch_size(images),
    )


def report(name: str, found: Inspection, shape: tuple[int, ...]) -> str:
    """Return the findings as the lines that `igmask inspect` prints."""
    stem = ", ".join(found.stem) or f"none: {found.why_not}"
    total = found.stem_flops + found.trunk_flops
    lines = {
        "network": f"{name}, input {' × '.join(map(str, shape))}",
        "graph": found.graph,
        "stem ends at": stem,
        "then comes": ", ".join(found.trunk),
        "work": f"{total / 1e9:.3g} GFLOP a forward pass, {found.stem_share:.1%} of it in the stem",
        "batch norms": f"{found.n_folded} folded into the layer before",
        "an image": f"{found.image_bytes / 2**20:.3g} MiB while in the queue",
        "a step": f"{found.point_bytes / 2**20:.3g} MiB for each (image, step) pair in a batch",
        "batch": f"{found.batch_size} pairs on this machine",
    }
    return "\n".join(f"{key:<13} {value}" for key, value in lines.items())
