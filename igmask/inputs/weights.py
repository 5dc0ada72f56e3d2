"""The weights of a network: where they are, fetched first if they are elsewhere, and loaded."""

import hashlib
import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import safetensors
import torch
from safetensors.numpy import save
from safetensors.torch import load_file
from torch import Tensor, nn

from igmask import arrays
from igmask.asked.settings import Model
from igmask.errors import InputError, suggestion


def weights_place(model: Model) -> tuple[Path, str | None]:
    """Return the file of a model's weights, there or not yet, and the URL it is fetched from."""
    url = model.weights or ""
    if model.weights_kind == "file":
        return Path(url), None
    if model.weights_kind == "torchvision":
        url = torchvision_weights(model).url
    name = Path(urlparse(url).path).name
    if model.weights_kind == "url":  # model.pth is a common name
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    return Path(torch.hub.get_dir()) / "checkpoints" / name, url


def weights_file(model: Model) -> Path:
    """Return the file of a model's weights, fetched first if they are given by URL.

    raises InputError if it cannot be had or its hash is not the model's `sha256`
    """
    path, url = weights_place(model)
    if url is not None and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with downloading(url, path):
            torch.hub.download_url_to_file(url, str(path))
    if not path.is_file():
        raise InputError(f"{path}: there is no such weights file")
    if model.sha256 and (digest := arrays.sha256(path).hexdigest()) != model.sha256:
        raise InputError(f"{path}: its sha256 is {digest}, not {model.sha256}")
    return path


def load_weights(network: nn.Module, path: Path, *, key: str | None, prefix: str) -> None:
    """Load a state dict, .safetensors or .pth, into the network; every parameter must fit.

    key:    entry of the checkpoint that holds the state dict
    prefix: start of the parameter names to strip
    raises  InputError listing missing, unexpected and misshapen parameters
    """
    checkpoint = _read_checkpoint(path)
    if key is not None:
        if not isinstance(checkpoint, dict) or key not in checkpoint:
            keys = list(checkpoint)[:8] if isinstance(checkpoint, dict) else []
            raise InputError(f"{path}: no entry {key!r}; it has {keys}")
        checkpoint = checkpoint[key]
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path}: holds {type(checkpoint).__name__}, not a state dict")
    weights = {str(name).removeprefix(prefix): value for name, value in checkpoint.items()}
    if not all(isinstance(value, Tensor) for value in weights.values()):
        dicts = [name for name, value in weights.items() if isinstance(value, dict)]
        advice = f"set `key` to one of {dicts}" if dicts else "is `key` right?"
        raise InputError(f"{path}: not a state dict; {advice}")
    expected = network.state_dict()
    wrong = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected.keys() & weights.keys()
        if weights[name].shape != expected[name].shape
    ]
    missing = [
        name for name in expected if name not in weights and "num_batches_tracked" not in name
    ]
    unexpected = [name for name in weights if name not in expected]
    if missing or unexpected or wrong:
        advice = ""
        starts = {name.removesuffix(missing[0]) for name in unexpected if missing}
        if common := next((start for start in starts if f"{start}{missing[-1]}" in unexpected), ""):
            advice = f"\n  set `prefix` to {common!r}"
        elif wrong and not missing and not unexpected:
            advice = "\n  do the `arguments` say the right number of classes?"
        raise InputError(
            f"{path}: the weights do not fit the network\n"
            f"  missing: {first_few(missing)}\n  unexpected: {first_few(unexpected)}\n"
            f"  of another shape: {first_few(sorted(wrong))}{advice}"
        )
    network.load_state_dict(weights, strict=False)


def write_weights(path: Path, network: nn.Module, made_by: dict[str, Any]) -> None:
    """Write the state dict of a network as safetensors, with its checksum and what made it."""
    weights = {name: value.contiguous().numpy() for name, value in network.state_dict().items()}
    said = made_by | {arrays.CHECKSUM: arrays.checksum_of_weights(weights)}
    with arrays.replacing(path) as temporary:
        temporary.write_bytes(save(weights, {"igmask": json.dumps(said)}))


def first_few(names: list[str]) -> str:
    """Return some of the names of weights, in words."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more if names else "none"


def torchvision_models() -> Any:
    """Return torchvision.models."""
    import torchvision.models  # takes half as long as torch itself, and most jobs do without it

    return torchvision.models


def torchvision_weights(model: Model) -> Any:
    """Return the weights that a model names; raise InputError if torchvision has none of them."""
    check_torchvision_name(model.source)
    known = torchvision_models().get_model_weights(model.source)
    if model.weights not in known.__members__:
        raise InputError(
            f"{model.source} has no weights {model.weights!r}; torchvision has "
            f"{', '.join(known.__members__)}"
        )
    return known[model.weights]


def check_torchvision_name(name: str) -> None:
    """Raise InputError if torchvision has no classifier of that name."""
    known = torchvision_models().list_models(module=torchvision_models())
    if name not in known:
        near = suggestion(name, known, n=3) or "."
        raise InputError(
            f"torchvision has no classifier {name!r}{near} Networks of timm are timm/NAME, your "
            "own module:callable"
        )


@contextmanager
def downloading(url: str, path: Path) -> Iterator[None]:
    """Let downloads load tensors only, and turn a failed one into advice."""
    only = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
    before = {name: value for name, value in os.environ.items() if name in only}
    os.environ |= only
    try:
        yield
    except (URLError, TimeoutError, ConnectionError) as error:
        raise InputError(
            f"{url} could not be fetched ({error}); fetch it elsewhere and save it as {path}"
        ) from error
    finally:
        os.environ.pop(*only)
        os.environ |= before


def _of_safetensors(path: Path) -> dict[str, Tensor]:
    weights = load_file(path)
    with safetensors.safe_open(path, framework="pt") as file:
        made_by = json.loads((file.metadata() or {}).get("igmask", "{}"))
    if made_by:  # by a step of ours
        plain = {name: value.numpy() for name, value in weights.items()}
        arrays.check_weights(path, plain, made_by)
    return weights


def _read_checkpoint(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return _of_safetensors(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused, since it holds more than tensors or is no checkpoint; "
            "save its state_dict alone"
        ) from error
    except (OSError, RuntimeError, EOFError, KeyError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as weights ({error})") from error
