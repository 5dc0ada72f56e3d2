"""A name or module:callable, and weights → an evaluation-mode network on pixels in [0, 1]."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from igmask import arrays
from igmask.asked.config import of_bytes, with_plain_input
from igmask.asked.settings import WITHOUT_FILE, Model
from igmask.errors import InputError, refusing
from igmask.inputs import contract
from igmask.inputs.networks import library_of
from igmask.inputs.weights import first_few, load_weights, weights_file


class Normalize(nn.Module):
    """The first layer of every network: (x − mean) / std, a colour at a time."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] → the same shape, normalised."""
        return (x - self.mean) / self.std


class Entry(nn.Module):
    """A network that answers with one entry of its output, the logits of a dataclass, say."""

    def __init__(self, network: nn.Module, key: str | int) -> None:
        super().__init__()
        self.network = network
        self.key = key

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the entry; raises InputError if there is none, or if it is no tensor."""
        output = self.network(x)
        found = contract.entries(output)
        by_place: dict[str | int, Any] = dict(enumerate(found.values()))
        entry = found.get(self.key, by_place.get(self.key))
        if isinstance(entry, Tensor | fx.Proxy):  # the latter where the stem's trace goes through
            return entry  # type: ignore[return-value]
        listed = ", ".join(f"{name} ({contract.kind(value)})" for name, value in found.items())
        has = f"no such tensor, but {listed}" if found else "no entries; leave `output` out"
        given = (
            f"the model's `output` is {self.key!r}, and the network gives {contract.kind(output)}"
        )
        raise InputError(f"{given}, which has {has}")


def complete(model: Model) -> Model:
    """Return the model with its input described: as given, else by its library.

    raises InputError for a name that its library does not have, or an input that cannot be meant
    """
    model = library_of(model).described(model)
    whole = with_plain_input(model)
    if whole.size and whole.resize and whole.resize < whole.size:
        raise InputError(f"{model.source}: resize {whole.resize} is less than size {whole.size}")
    if problems := of_bytes(whole):
        raise InputError("\n".join(f"{model.source}: {problem}" for problem in problems))
    return whole


def load(model: Model, *, device: torch.device | str = "cpu") -> nn.Sequential:
    """Return normalisation and network, in evaluation mode, frozen, channels last if that is right.

    raises InputError if the network or its weights cannot be had, do not fit, or are not finite
    """
    model = complete(model)
    network = build(model)
    if model.library == "torchvision" and model.weights_kind == "unsaid":
        raise InputError(
            f"{model.source}: no `weights`, and without them it would be random (weights: none "
            "says that it is meant)"
        )
    if model.weights_kind in ("file", "url"):
        load_weights(network, weights_file(model), key=model.key, prefix=model.prefix)
    broken = [name for name, value in network.state_dict().items() if not value.isfinite().all()]
    if broken:
        of = model.source if model.weights_kind in WITHOUT_FILE else model.weights
        raise InputError(f"{of}: NaN or infinite weights in {broken[:5]}")
    return frozen(network, model, device=device)


def frozen(network: nn.Module, model: Model, *, device: torch.device | str) -> nn.Sequential:
    """Return the network behind the normalisation of a complete model, as `load` does."""
    whole = with_input(evaluating(network), model).requires_grad_(False)
    for part in (whole, *whole):
        if part is not network:
            part.training = False
    whole.to(device)
    if contract.averages_rightly(torch.device(device)):
        whole.to(memory_format=torch.channels_last)
    return whole


def evaluating(network: nn.Module) -> nn.Module:
    """Return the network in evaluation mode; a graph of torch.export stays as it was exported."""
    with suppress(NotImplementedError):
        network.eval()
    return network


def with_input(network: nn.Module, model: Model) -> nn.Sequential:
    """Return the network, as `with_output` has it, behind a complete model's normalisation."""
    assert model.mean is not None
    assert model.std is not None
    return nn.Sequential(Normalize(model.mean, model.std), with_output(network, model))


def with_output(network: nn.Module, model: Model) -> nn.Module:
    """Return the network, or what answers with the entry of its output that the model names."""
    return network if model.output is None else Entry(network, model.output)


def build(model: Model, *, seed: int = 0) -> nn.Module:
    """Return the network itself, weights of its library loaded if the model names them.

    seed: of weights that are not loaded; it leaves the global random numbers alone, and makes a
          network without weights the same one in every job
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return library_of(model).build(model)


def digests(files: dict[str, list[Path]]) -> dict[str, str]:
    """Return what stands for the content of each kind of files, such as those of `Model.files`."""
    return {kind: arrays.digest_of_files(paths) for kind, paths in files.items()}


def n_classes(network: nn.Module, model: Model, images: np.ndarray | None = None) -> int:
    """Return the classes of a loaded model, by what it says of an image and of a black one.

    images: (N, H, W, 3) uint8, of which `contract.ask` shows the first; noise if None
    raises  InputError if it is no classifier with logits as `contract` has it, or says NaN of black
    """
    size = complete(model).geometry.size
    device = device_of(network) or "cpu"
    if images is None:
        images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    with refusing(InputError, says=lambda error: f"{model.source}: {error}"):
        answer = contract.ask(network, pixels(images[:2], device))
        contract.check_classifier(answer, of="probability")
    with torch.no_grad():
        of_black = network(torch.zeros(1, 3, size, size, device=device))
    if of_black.softmax(dim=1).isnan().any():
        raise InputError(f"{model.source}: NaN or infinite outputs for a black image")
    return answer.outputs.shape[1]


def random_weights(network: nn.Module, model: Model) -> str | None:
    """Return what to say of a loaded network's weights that are random, where nobody said so.

    They are those that another seed draws anew: a callable may load weights itself, all or some.
    """
    if model.weights_kind != "unsaid":
        return None
    pairs = zip(build(model, seed=1).named_parameters(), network.parameters(), strict=False)
    drawn = [name for (name, other), own in pairs if not own.equal(other.to(own.device))]
    if not drawn:
        return None
    return (
        f"has random weights, which neither `weights` nor its callable gives: {first_few(drawn)} "
        "(weights: none says that it is meant)"
    )


def device_of(network: nn.Module) -> torch.device | None:
    """Return where a network's weights are, or its buffers, as TorchScript may have no weights."""
    return next((tensor.device for tensor in (*network.parameters(), *network.buffers())), None)


def pixels(images: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Return images (N, H, W, 3) uint8 as (N, 3, H, W) float32 in [0, 1], channels last."""
    if not isinstance(images, Tensor):
        images = torch.from_numpy(np.ascontiguousarray(images))
    return images.to(device).permute(0, 3, 1, 2) / 255
