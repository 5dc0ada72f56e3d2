"""Integrated Gradients of a whole DataLoader, batch by batch to disk, and on from where it was."""

import dataclasses
import dis
import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import partial
from numbers import Number
from operator import length_hint
from pathlib import Path
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from igmask import arrays
from igmask.asked.recipes import stamp
from igmask.engine.graph import unwrapped
from igmask.engine.ig import Attribution, Auto, NotFinite, classes_of, integrated_gradients
from igmask.errors import InputError, refusing
from igmask.inputs.models import device_of
from igmask.progress import progress

# Under which a batch that is a dictionary has them; the first are those of transformers.
_IMAGES = ("pixel_values", "images", "image")
_LABELS = ("labels", "label")


def attribute_loader(
    model: nn.Module,
    loader: Iterable[Any],
    folder: Path | str,
    *,
    target: str = "predicted",
    n_steps: int | Auto = 50,
    **options: Any,
) -> list[Path]:
    """Write the attributions of every batch of a DataLoader; return their files, in order.

    A batch becomes `00000.npy`, (n, C, H, W) float32, and beside it `00000.parquet`: a record an
    image with predicted, target, output, baseline_output, completeness and n_steps, and the label
    if the loader gives one. Batches that are there already, with the bytes that were written, are
    not computed again, so that a run that was cut short goes on; the loader must give the same
    batches every time.

    model:   logits (N, n_classes) from images, in evaluation mode; images are moved to its device
    loader:  of images (N, C, H, W), of (images, labels, …), or of dictionaries with `pixel_values`,
             `images` or `image`, and `labels` or `label` if there are any; labels are (N,) integers
    target:  `predicted`, or `label`: the class whose output is attributed
    options: others of `integrated_gradients`
    raises   InputError if a batch is not of that kind, or if the folder holds results of another
             model, other options or other images; of a model weights, plain attributes, hooks and
             the code of its classes are compared, and not what it keeps in other tensors
    """
    folder = Path(folder)
    if not isinstance(target, str) or target not in ("predicted", "label"):
        raise InputError(f"unknown target {target!r}; choose from predicted, label")
    made_by = _made_by(model, target, n_steps, options)
    device = device_of(model)
    paths = []
    total = length_hint(loader) or None  # a DataLoader of a stream has `len`, and does not know it
    for i, batch in enumerate(progress(loader, total=total, unit="batches", label="attribute")):
        images, labels = _images_and_labels(batch, f"batch {i}", target)
        if target == "label" and labels is None:
            raise InputError("target label: the loader gives images without labels")
        paths.append(folder / f"{i:05}.npy")
        of_batch = made_by | {"images": _digest(images, *([] if labels is None else [labels]))}
        if _is_done(paths[-1], of_batch):
            continue
        of = labels if target == "label" else None
        try:
            result = integrated_gradients(
                model, images.to(device), target=of, n_steps=n_steps, **options
            )
        except NotFinite as error:
            name = f"batch {i}, image {error.image}"
            raise NotFinite(error.image, error.alpha, error.step, name) from None
        _write(paths[-1], result, labels, of_batch)
    return paths


def _made_by(
    model: nn.Module, target: str, n_steps: int | Auto, options: dict[str, Any]
) -> dict[str, Any]:
    steps: Any = n_steps
    if isinstance(n_steps, Auto):
        first = n_steps.first_of(options.get("rule", "right"))
        steps = dataclasses.asdict(n_steps) | {"first": first}
    plain = unwrapped(model)
    # What changes no result may differ from run to run.
    kept = {
        key: _digest(value) if isinstance(value, Tensor) else value
        for key, value in options.items()
        if key not in ("batch_size", "engine") and (key, value) != ("skip", None)
    }
    own = {"target": target, "n_steps": steps, "model": _digest(_said(plain), *_values(plain))}
    return stamp("attribute") | own | kept


def _write(path: Path, result: Attribution, labels: Tensor | None, made_by: dict[str, Any]) -> None:
    columns = ("predicted", "target", "output", "baseline_output", "completeness", "n_steps")
    records = pd.DataFrame({name: _numbers(getattr(result, name)) for name in columns})
    if labels is not None:
        records["label"] = _numbers(labels)
    with arrays.writing(path, np.float32, tuple(result.values.shape[1:])) as array:
        array.append(_numbers(result.values))
        records[arrays.CHECKSUM] = array.checksums
    arrays.write_records(arrays.records_of(path), records, made_by)  # last: now it is whole


def _images_and_labels(batch: Any, name: str, target: str) -> tuple[Tensor, Tensor | None]:
    """The images of a batch, and its labels, if it has any."""
    if isinstance(batch, Mapping):
        images, given = (_entry(batch, keys, name) for keys in (_IMAGES, _LABELS))
    else:
        parts = list(batch) if isinstance(batch, list | tuple) else [batch]
        images, given, *_ = [*parts, None, None]
    if not isinstance(images, Tensor) or images.ndim != 4:
        of = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"{name}: images must be a tensor (N, C, H, W), got {of}")
    are_names = target == "predicted" and not isinstance(given, Tensor | np.ndarray)
    if given is None or are_names:  # or anything else that is no label
        return images, None
    with refusing(InputError, says=lambda error: f"{name}, labels: {error}"):
        labels = classes_of(given, len(images))
    if labels.shape != (len(images),):
        raise InputError(f"{name}: there is one label for {len(images)} images")
    return images, labels


def _entry(batch: Mapping[str, Any], keys: tuple[str, ...], name: str) -> Any:
    """The one entry of a batch that has one of the keys; None if it has no labels."""
    found = [key for key in keys if key in batch]
    if len(found) > 1 or (not found and keys is _IMAGES):
        raise InputError(
            f"{name} has the keys {', '.join(map(str, batch))}; exactly one of {', '.join(keys)} "
            "is looked for"
        )
    return batch[found[0]] if found else None


def _is_done(path: Path, made_by: dict[str, Any]) -> bool:
    records = arrays.records_of(path)
    if not records.is_file() or not path.is_file():
        return False
    says = f"{records}: damaged, or none of igmask's; remove it, and the batch is computed again"
    with refusing(InputError, says=lambda _: says):
        written, found = arrays.read_records(records)
    if others := arrays.changed(found, made_by):
        advice = " (is the loader shuffled?)" if others == ["images"] else ""
        raise InputError(
            f"{path} is of other {' and '.join(others)}{advice}; choose another folder, or remove "
            "this one"
        )
    try:
        there = arrays.checksums(arrays.read_array(path))
    except InputError:  # cut short
        return False
    return list(written.get(arrays.CHECKSUM, ())) == there


def _said(model: nn.Module) -> str:
    """What a model is besides its weights: its layers, what they hold, and its user's own code."""
    held = [
        f"{name}.{key} = {_content([*value.values()] if key in _HOOKS else value)}"
        for name, module in model.named_modules()
        for key, value in sorted(vars(module).items())
        if key not in ("training", *_set_by_forward(type(module)))
        and not isinstance(module, torch.jit.ScriptModule)  # its graph says it
    ]
    kinds = {type(module): None for module in model.modules()}
    code = [
        f"{key} = {_content(of)}"
        for kind in kinds
        if _is_own(kind)
        for key, of in vars(kind).items()
        if isinstance(of, FunctionType) or key[:2] != "__"  # Python's notes
    ]
    scripted = [str(model.inlined_graph)] if isinstance(model, torch.jit.ScriptModule) else []
    # Functions and objects may be shown with where they lie.
    return re.sub(r" at 0x[0-9a-f]+", "", "\n".join([repr(model), *held, *code, *scripted]))


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _set_by_forward(kind: type) -> set[str]:
    """The attributes that a class's forward, and what it is made of, set at each call."""
    passes = [
        of
        for one in kind.__mro__
        for name, of in vars(one).items()
        if "forward" in name and isinstance(of, FunctionType)
    ]
    steps = (step for of in passes for step in dis.get_instructions(of))
    return {str(step.argval) for step in steps if step.opname == "STORE_ATTR"}


def _is_own(kind: type) -> bool:
    """Whether a class is none of PyTorch's, whose code the recorded versions stand for."""
    return kind.__module__.partition(".")[0] not in ("torch", "torchvision")


def _content(value: Any, depth: int = 4) -> str:
    """What a value holds, the same in every process; of tensors and the like only what they are.

    In these, and in what holds them, a network keeps what it has seen last.
    """
    deeper = partial(_content, depth=depth - 1)
    if isinstance(value, str | bytes | Number | np.generic | None):
        return repr(value)
    if isinstance(value, Tensor):
        return repr(None)  # as it was before
    if isinstance(value, list | tuple) and depth:
        known = not any(isinstance(one, Tensor | np.ndarray | Mapping) for one in value)
        return f"{type(value).__name__}({', '.join(map(deeper, value)) if known else ''})"
    if isinstance(value, set | frozenset) and depth:
        return f"{{{', '.join(sorted(map(deeper, value)))}}}"
    if isinstance(value, FunctionType) and depth:
        code, cells = value.__code__, value.__closure__ or ()
        within = [cell.cell_contents for cell in cells if cell != CellType()]
        named = f"{value.__module__}.{value.__qualname__}"
        return f"{named} {code.co_code.hex()} {deeper([*code.co_consts, *within])}"
    if isinstance(value, property | staticmethod | classmethod) and depth:
        return deeper(value.fget if isinstance(value, property) else value.__func__)
    if isinstance(value, MethodType) and depth:
        return f"{deeper(value.__func__)} of {deeper(value.__self__)}"
    if isinstance(value, partial) and depth:
        keywords = [item for pair in sorted(value.keywords.items()) for item in pair]
        return f"partial({deeper([value.func, *value.args, *keywords])})"
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _values(model: nn.Module) -> list[Tensor]:
    """The weights of a model; where TorchScript has frozen them, the constants of its graph."""
    values = [*model.parameters(), *model.buffers()]
    if isinstance(model, torch.jit.ScriptModule):
        graph: Any = model.graph
        known = [
            node for node in graph.findAllNodes("prim::Constant") if node.hasAttribute("value")
        ]
        values += [node.t("value") for node in known if node.kindOf("value") == "t"]
    return values


def _digest(*values: Tensor | str) -> str:
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, str):
            found.update(value.encode())
            continue
        value = value.detach().cpu()
        value = value.dequantize() if value.is_quantized else value
        value = value if value.layout is torch.strided else value.to_dense()
        whole = value.contiguous().reshape(-1)
        found.update(f"{tuple(value.shape)} {value.dtype}".encode())
        found.update(whole.view(torch.uint8).numpy().tobytes() if whole.numel() else b"")
    return found.hexdigest()


def _numbers(values: Tensor) -> np.ndarray:
    """The values as NumPy has them; it knows no bfloat16."""
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()
