"""One queue of (image, step) pairs, in batches, from which sums along paths come back.

`batches` is the queue itself: pairs of an image next to each other, batches of one size whatever
the number of steps or images, halved where memory runs out. `path_gradients` and `path_outputs`
send it behind the affine stem of a network; captum.py sends it through functions that have none.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from igmask.engine.network import Network, all_finite
from igmask.errors import InputError, integer
from igmask.inputs.contract import least_batch
from igmask.kernels import (
    accumulate_,
    accumulate_pooled_,
    empty_as,
    memory_format_of,
    on_device,
    path_points,
    pooled_points,
    spans_of,
    wide,
)
from igmask.quadrature import Rule

# Of the outputs of a batch, with the image and the α of each of its rows, what is attributed: (B,).
Pick = Callable[[Tensor, list[int], list[float]], Tensor]

Tensors = tuple[Tensor, ...]


class NotFinite(InputError):
    """A gradient that is NaN or infinite: of `image`, counted from 0, at `alpha` on its path."""

    def __init__(self, image: int, alpha: float, step: int, name: str | None = None) -> None:
        name = f"image {image}" if name is None else name
        super().__init__(
            f"{name}: NaN or infinite gradient at step {step}, α = {alpha:.4g}; look for a "
            "logarithm, square root or division at zero in the network, or, in half precision, "
            "for overflow"
        )
        self.image, self.alpha, self.step = image, alpha, step


@dataclass(frozen=True)
class Pairs:
    """A batch of the queue: of each row the image, and step, position and weight on its path.

    Images and steps count from 0.

    start:  where in the queue the first row is
    n_done: images whose last pair is in this batch or before it
    """

    start: int
    owners: list[int]
    steps: list[int]
    alphas: list[float]
    weights: list[float]
    n_done: int

    def check(self, slopes: Tensors) -> None:
        """Raise NotFinite of the first row whose gradient, of (B, ...), is not finite."""
        for slope in slopes:
            if not all_finite((slope,)):
                row = int((~slope.flatten(1).isfinite()).any(dim=1).nonzero()[0])
                raise NotFinite(self.owners[row], self.alphas[row], self.steps[row] + 1)


def batches(
    rules: Sequence[Rule],
    *,
    size: int,
    compute: Callable[[Pairs], Tensors],
    least: int = 1,
    padded: bool = False,
) -> Iterator[tuple[Pairs, Tensors]]:
    """Yield the queue's batches, each with what is computed of it.

    rules:   of each image, one step at least
    size:    of a batch; the last is what is left, or `padded` by its last pair at weight zero
    least:   rows of a batch; see `contract.least_batch`
    compute: gradients, say, of a batch, which is halved and tried again where memory runs out
    """
    ends = list(accumulate(len(positions) for positions, _ in rules))
    start, n_pairs = 0, ends[-1] if ends else 0
    while start < n_pairs:
        n_live = min(size, n_pairs - start)
        n_rows = max(least, size if padded else n_live)
        rows = [min(start + row, n_pairs - 1) for row in range(n_rows)]
        owners = [bisect_right(ends, row) for row in rows]
        steps = [row - ends[i] + len(rules[i][0]) for row, i in zip(rows, owners, strict=True)]
        pairs_of = list(zip(owners, steps, strict=True))
        pairs = Pairs(
            start,
            owners=owners,
            steps=steps,
            alphas=[rules[i][0][step] for i, step in pairs_of],
            weights=[
                rules[i][1][step] if row < n_live else 0.0 for row, (i, step) in enumerate(pairs_of)
            ],
            n_done=bisect_right(ends, start + n_live),
        )
        found: Tensors | None = None
        try:
            found = compute(pairs)
        except RuntimeError as error:  # on a CPU of no kind of its own
            out = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
            if not out or size == 1:
                raise
        if found is None:  # out of the block, whose traceback holds on to the batch
            size = halved(size)
        else:
            yield pairs, found
            start += n_live


def halved(size: int) -> int:
    """Return half the size, memory that PyTorch keeps for itself given back."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return size // 2


def at_least_1(what: str, value: Any) -> int | None:
    """Return a size, or None as it is; raise InputError if it is no integer of at least 1."""
    size = None if value is None else integer(what, value)
    if size is not None and size < 1:
        raise InputError(f"{what} must be at least 1, got {size}")
    return size


def path_gradients(
    network: Network,
    images: Tensor,
    baselines: Tensor,
    pick: Pick,
    rules: Sequence[Rule],
    *,
    batch_size: int | None = None,
) -> Iterator[Tensor]:
    """Yield Σ_h w_h ∇f(b + α_h (x − b)) of each image, (1, C, H, W) in float32 at least, in order.

    Memory depends neither on the number of steps nor of images.

    images, baselines: (N, C, H, W)
    pick:              which number of the outputs to attribute; called batch by batch
    rules:             of each image, one step at least
    batch_size:        None: from the free memory
    raises             NotFinite; on a GPU, behind the last image
    """
    lengths = [len(positions) for positions, _ in rules]
    if not (size := _size(network, images, sum(lengths), batch_size)):
        return
    n_slots = _n_slots(size, min(lengths), len(images))
    paths = _Paths(network, images, baselines, pick, n_slots=n_slots)
    finite: list[Tensor] = []
    least = least_batch(images.device)
    for pairs, slopes in batches(
        rules, size=size, compute=paths.gradients, least=least, padded=True
    ):
        paths.add(slopes, pairs.weights)
        for image in range(len(finite), pairs.n_done):
            total = paths.total(image)
            finite.append(torch.stack([t.isfinite().all() for t in total]).all())
            # To look at it is to wait for a GPU, and to let it wait for the next batch.
            if not images.is_cuda and not finite[-1]:
                raise paths.not_finite(image, rules[image])
            yield paths.to_pixels(image, total)
    if images.is_cuda and not all(known := torch.stack(finite).tolist()):
        raise paths.not_finite(image := known.index(False), rules[image])


def path_outputs(
    network: Network,
    images: Tensor,
    baselines: Tensor,
    pick: Pick,
    positions: Sequence[float],
    *,
    batch_size: int | None = None,
) -> Tensor:
    """Return f(b + α (x − b)) at each position α, (N, len(positions)) float64; forward passes only.

    The arguments are those of `path_gradients`.
    """
    n_images, n_steps, device = len(images), len(positions), images.device
    size = _size(network, images, n_images * n_steps, batch_size) or 1
    n_slots = _n_slots(size, n_steps, n_images)
    paths = _Paths(network, images, baselines, pick, n_slots=n_slots)
    options: dict[str, Any] = {"least": least_batch(device), "padded": True, "size": size}
    return outputs_at(positions, n_images, paths.outputs, device=device, **options)


def outputs_at(
    positions: Sequence[float],
    n_images: int,
    compute: Callable[[Pairs], Tensors],
    *,
    device: torch.device,
    **options: Any,
) -> Tensor:
    """Return what is computed of each image's path at the positions, (N, len(positions)) float64.

    compute: (values,), (B,) of a batch;  options: of `batches`
    """
    rules = [(positions, [0.0] * len(positions))] * n_images
    found = torch.zeros(n_images * len(positions), dtype=torch.float64, device=device)
    for pairs, (values,) in batches(rules, compute=compute, **options):
        if values.shape != (len(pairs.owners),):
            raise InputError(
                "rule adaptive asks how the output of each example changes on its path, and the "
                f"function gives {tuple(values.shape)} for {len(pairs.owners)} examples"
            )
        rest = found[pairs.start : pairs.start + len(values)]  # after which are rows that only fill
        rest[:] = values[: len(rest)]
    return found.reshape(n_images, len(positions))


def _size(network: Network, images: Tensor, n_pairs: int, batch_size: int | None) -> int | None:
    """How many pairs a batch takes; None where there are no pairs."""
    size = at_least_1("the batch size", batch_size)
    if not n_pairs:
        return None
    size = size or network.batch_size(images)
    if network.engine == "eager":  # for the others each shape costs
        size = -(-n_pairs // -(-n_pairs // size))  # the same number of batches, evenly filled
    return size


def _n_slots(size: int, least_steps: int, n_images: int) -> int:
    """How many images a batch meets at most, and one more, if there are."""
    return min(-(-size // least_steps) + 1, n_images)


class _Paths:
    """The paths of the images that the queue is at: end points and sums behind the stem."""

    def __init__(
        self, network: Network, images: Tensor, baselines: Tensor, pick: Pick, n_slots: int
    ) -> None:
        self._network, self._images, self._baselines = network, images, baselines
        self._pick, self._n_slots, self._n_open = pick, n_slots, 0
        self._starts: Tensors = ()
        self._ends: Tensors = ()
        self._totals: Tensors = ()
        self._batch: tuple[Tensor, Tensor, Any] = (torch.empty(0),) * 3

    def gradients(self, pairs: Pairs) -> Tensors:
        """Return the gradient at each point of a batch, which `add` then takes."""
        points = self._points(pairs)
        slopes = self._network.gradients(
            points, lambda outputs: self._pick(outputs, pairs.owners, pairs.alphas)
        )
        # Here, where memory may run out: `add` takes none.
        forms = [memory_format_of(total) for total in self._totals]
        laid_out = zip(slopes, forms, strict=True)
        return tuple(slope.contiguous(memory_format=form) for slope, form in laid_out)

    def outputs(self, pairs: Pairs) -> Tensors:
        """Return (f,) at each point of a batch, (B,)."""
        outputs = self._network.outputs(self._points(pairs))
        return (self._pick(outputs, pairs.owners, pairs.alphas).detach(),)

    def _points(self, pairs: Pairs) -> Tensors:
        """The points of a batch behind stem and head."""
        self._open(pairs.owners[-1])
        head, dtype = self._network.split.head, self._network.dtype
        device = self._ends[0].device
        spans = spans_of([owner % self._n_slots for owner in pairs.owners], self._n_slots, device)
        positions = on_device(pairs.alphas, device, torch.float64)
        ends, taken = zip(self._starts, self._ends, strict=True), None
        if head.pool is None:
            points = tuple(
                path_points(start, end, spans, positions, activation=head.activation, dtype=dtype)
                for start, end in ends
            )
        else:
            pooled, taken = pooled_points(*next(ends), spans, positions, head.pool, dtype=dtype)
            points = (pooled,)
        self._batch = spans, positions, taken
        return points

    def _open(self, last: int) -> None:
        """Send the images up to `last` that are new, and their baselines, through the stem."""
        for image in range(self._n_open, last + 1):
            starts = self._network.stem(self._baselines[image : image + 1])
            ends = self._network.stem(self._images[image : image + 1])
            if not self._ends:
                # Together: memory may run out between them.
                self._starts, self._ends, self._totals = (
                    tuple(map(self._slots, starts)),
                    tuple(map(self._slots, ends)),
                    tuple(map(self._slots, ends, map(wide, ends))),
                )
            slot = image % self._n_slots
            for kept, u in zip(self._starts + self._ends, starts + ends, strict=True):
                kept[slot] = u[0]
            for total in self._totals:
                total[slot] = 0
            self._n_open = image + 1

    def _slots(self, u: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return empty_as(u, (self._n_slots, *u.shape[1:]), dtype or u.dtype)

    def add(self, slopes: Tensors, weights: list[float]) -> None:
        """Add the gradients of the last batch to their images' sums."""
        head, (spans, positions, taken) = self._network.split.head, self._batch
        weight = on_device(weights, spans.device, torch.float64)
        if head.pool is not None:
            accumulate_pooled_(self._totals[0], slopes[0], taken, spans, weight, head.pool)
            return
        ends = zip(self._totals, slopes, self._starts, self._ends, strict=True)
        for total, slope, start, end in ends:
            path = (start, end, positions)
            accumulate_(total, slope, spans, weight, path=path, activation=head.activation)

    def total(self, image: int) -> Tensors:
        """Return the sums of an image, which its slot holds until another image needs it."""
        slot = image % self._n_slots
        return tuple(total[slot : slot + 1] for total in self._totals)

    def to_pixels(self, image: int, total: Tensors) -> Tensor:
        """Return the sum sent back through the stem, (1, C, H, W)."""
        return self._network.stem_transposed(self._images[image : image + 1], total)

    def not_finite(self, image: int, rule: Rule) -> NotFinite:
        """Return the first step of an image that is not finite: its queue again, pair by pair."""
        own = slice(image, image + 1)
        paths = _Paths(
            self._network,
            self._images[own],
            self._baselines[own],
            lambda outputs, _, alphas: self._pick(outputs, [image], alphas),
            n_slots=1,
        )
        steps = sorted(step for step in zip(*rule, strict=True) if step[1])
        alphas, weights = zip(*steps, strict=True)
        for pairs, slopes in batches([(alphas, weights)], size=1, compute=paths.gradients):
            paths.add(slopes, pairs.weights)
            if not all_finite(paths.total(0)):
                return NotFinite(image, pairs.alphas[0], pairs.steps[0] + 1)
        return NotFinite(image, steps[-1][0], len(steps))  # in another order, their sum overflows
