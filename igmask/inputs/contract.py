"""What igmask takes for granted of a network, tried once on the first images, said in our words.

It takes floating-point images in batches of any size, answers with a tensor, gives the same answer
twice, and of an image alone as of the same image among others. A classifier's answer is a row of
two logits or more an image, no probabilities. What a network does counts here; layers in
training mode are refused before, in engine/ready.py.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from igmask.errors import InputError
from igmask.tracing import running

# The most that two answers may differ, relative to the largest output. The same batch twice is the
# same work. Batches of other sizes have other orders of summation: a network that computes in 16
# bits and answers in 32, by autocast, is half a hundredth off, and statistics of a batch several
# tenths.
_AGAIN = {torch.float64: 1e-3, torch.float32: 1e-3}
_ALONE = {torch.float64: 3e-2, torch.float32: 3e-2}


@dataclass(frozen=True)
class Answer:
    """What a network says of an image in two colours, and what is wrong with how it says it.

    outputs: (2, ...)
    fault:   why attributions would be of chance, empty if they would not
    """

    outputs: Tensor
    fault: str = ""


def ask(network: Callable[[Tensor], Any], images: Tensor) -> Answer:
    """Return the network's answer to the first image, beside the same one in other colours.

    images: (N, ...) floating point, one or more
    raises  InputError, if the network fails at such images or answers with anything but a tensor
    """
    with torch.enable_grad(), running():  # with gradients some layers take another way
        first = images[:1].detach()
        # In other colours: the statistics of two images alike are those of one.
        pair = torch.cat([first, first / 2 + 0.25])
        outputs = _outputs(network, pair, images)
        again, alone = _outputs(network, pair, images), _outputs(network, pair[:1], images)
    if outputs.shape != again.shape or not outputs.is_floating_point():
        return Answer(outputs)
    if _far(again, outputs, _AGAIN):
        return Answer(
            outputs,
            "the network answers differently when it is asked the same twice: is dropout or noise "
            "left on, in its forward or because it is in training mode? call model.eval(), and "
            "give F.dropout training=self.training",
        )
    if alone.shape == outputs[:1].shape and _far(alone, outputs[:1], _ALONE):
        return Answer(
            outputs,
            "the network answers differently for an image alone and in a batch: does it normalise "
            "by the statistics of the batch? call model.eval(), and keep running statistics",
        )
    return Answer(outputs)


@cache
def averages_rightly(device: torch.device) -> bool:
    """Whether PyTorch's gradients of padded average pooling are right if channels lie last.

    By PyTorch 2.11 they are not on an NVIDIA GPU, without a word (pytorch/pytorch#188344): of a
    channels-last Inception V3 the attributions are noise. Outputs are right.
    """
    slopes: list[Tensor] = []
    with torch.inference_mode(False), torch.enable_grad():
        square = torch.arange(32.0, device=device).square().view(1, 2, 4, 4)
        for form in (torch.contiguous_format, torch.channels_last):
            x = square.contiguous(memory_format=form).requires_grad_()
            slopes += torch.autograd.grad(F.avg_pool2d(x, 3, 1, 1), x, square)
    first, last = slopes
    return bool(torch.allclose(first, last))


@cache
def least_batch(device: torch.device) -> int:
    """Return how many images PyTorch must be given at once for gradients of frozen norms: 1 or 2.

    On a CPU, by PyTorch 2.14 at least, the gradient of a batch norm in evaluation mode is wrong for
    one image where what comes back to it has its channels last in memory, and the image not: behind
    `flatten(2).transpose(1, 2)`, say, as in many transformers. Of two images it is right.
    """
    norm = nn.BatchNorm2d(2, device=device).eval()
    norm.running_var = torch.tensor([1.0, 4.0], device=device)
    back = torch.arange(8.0, device=device).view(1, 4, 2)
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.ones(1, 2, 2, 2, device=device, requires_grad=True)
        (slope,) = torch.autograd.grad(norm(x).flatten(2).transpose(1, 2), x, back)
    right = back.transpose(1, 2).reshape(1, 2, 2, 2) / torch.tensor([1.0, 2.0]).view(2, 1, 1).to(x)
    return 1 if torch.allclose(slope, right, rtol=1e-3) else 2


def check_averages(network: Callable[[Tensor], Any], images: Tensor) -> None:
    """Raise InputError if the network's gradients would be wrong by `averages_rightly`."""
    if averages_rightly(images.device) or not len(images):
        return
    with torch.no_grad(), running(), right_averages(images.device):
        _outputs(network, images[:1].contiguous(), images)


@contextmanager
def right_averages(device: torch.device) -> Iterator[None]:
    """Raise InputError behind a block in which gradients would be wrong by `averages_rightly`."""
    if averages_rightly(device):
        yield
        return
    found = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function is torch.ops.aten.avg_pool2d.default and any(args[3] if args[3:] else ()):
                last = args[0].is_contiguous(memory_format=torch.channels_last)
                found.append(last and not args[0].is_contiguous())
            return function(*args, **(kwargs or {}))

    with Watch():
        yield
    if any(found):
        raise InputError(
            f"PyTorch {torch.__version__} has wrong gradients of padded average pooling on this "
            "device if channels lie last in memory, as in this network or its input; call "
            ".to(memory_format=torch.contiguous_format) of both, or update PyTorch"
        )


def tensor(output: Any) -> Tensor:
    """Return a network's output if it is a tensor, else raise InputError that names its entries."""
    if isinstance(output, Tensor):
        return output
    found = entries(output)
    if not found:
        raise InputError(
            f"the model's output must be a tensor [N, classes], got {type(output).__name__}"
        )
    kinds = {key: kind(value).removeprefix("Tensor ") for key, value in found.items()}
    listed = ", ".join(f"{key}: {of}" for key, of in kinds.items())
    first = next((key for key, value in found.items() if isinstance(value, Tensor)), 0)
    raise InputError(
        f"the model's output must be a tensor [N, classes], got {type(output).__name__} with "
        f"{listed}; say which entry is that, such as `output: {first}` of a model in config.yaml "
        f"or igmask.load_model(…, output={first!r}), or wrap the model in one that returns it"
    )


def kind(value: Any) -> str:
    """Return the type of a value and, of a tensor, its shape: Tensor (2, 5)."""
    shape = f" {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return f"{type(value).__name__}{shape}"


def entries(output: Any) -> dict[str | int, Any]:
    """Return the entries of an output by name, or by index where they have none; of others none."""
    if isinstance(output, Mapping):  # transformers' dataclasses are one, without what is None
        return dict(output)
    if dataclasses.is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(output, tuple | list):
        return dict(zip(getattr(output, "_fields", range(len(output))), output, strict=True))
    return {}


def check_scores(outputs: Any, n_images: int) -> None:
    """Raise InputError if outputs are not class scores, a tensor (N, n_classes)."""
    scores = tensor(outputs)
    if scores.ndim != 2 or len(scores) != n_images:
        raise InputError(
            f"the model's output must be a tensor [N, classes] = [{n_images}, …], got "
            f"{tuple(scores.shape)}"
        )
    if not scores.is_floating_point() or not scores.shape[1]:
        raise InputError(
            "the model's output must be logits, floating point, of a class or more, got "
            f"{scores.dtype} {tuple(scores.shape)}"
        )


def check_classifier(answer: Answer, *, of: str) -> None:
    """Raise InputError if the network is no classifier whose outputs can be attributed.

    of: `probability`, for which outputs must be two logits or more, no probabilities; or `logit`
    """
    if answer.fault:
        raise InputError(answer.fault)
    check_scores(answer.outputs, 2)
    if of == "probability" and answer.outputs.shape[1] == 1:
        raise InputError(
            "the model has one output, whose softmax is 1 whatever it sees; make it two logits: "
            "torch.cat([torch.zeros_like(z), z], dim=1), class 1 being what z speaks for"
        )
    if of == "probability" and _are_probabilities(answer.outputs):
        raise InputError(
            "the model's outputs are probabilities already, in [0, 1] with a sum of 1, and would "
            "go through softmax once more; leave out its last softmax (integrated_gradients with "
            "of='logit' attributes outputs as they are)"
        )


def _are_probabilities(outputs: Tensor) -> bool:
    values = outputs.detach().double()
    # Some logits are in [0, 1] by chance; their sums are not 1, for all images, by chance.
    tolerance = 1e-3 if outputs.dtype in _AGAIN else 2e-2
    within = bool((values >= 0).all()) and bool((values <= 1 + tolerance).all())
    return within and bool(((values.sum(dim=1) - 1).abs() < tolerance).all())


def _outputs(network: Callable[[Tensor], Any], batch: Tensor, images: Tensor) -> Tensor:
    """The network's outputs for a batch of the images, detached, or why there are none."""
    try:
        return tensor(network(batch.clone())).detach()  # it may work in place
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a network's own code raises
        if "can't allocate memory" in str(error):
            raise
        said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise InputError(_why(network, batch, images) + f"\n  {said}") from error


def _why(network: Callable[[Tensor], Any], batch: Tensor, images: Tensor) -> str:
    """What to say of a network that fails at a batch."""
    kind = f"images of shape {('N', *batch.shape[1:])} and {batch.dtype}".replace("'", "")
    failed = f"the network does not take {kind}"
    parts = list(network.modules()) if isinstance(network, nn.Module) else []
    weights = {p.dtype for part in parts for p in part.parameters(recurse=False)}
    others = sorted(str(dtype) for dtype in weights if dtype.is_floating_point)
    if others and batch.dtype not in weights:
        return f"{failed}: its weights are {', '.join(others)}; call model.to({batch.dtype})"
    if batch.ndim == 4:
        channels = (getattr(part, "in_channels", None) for part in parts)
        first = next((n for n in channels if n is not None), batch.shape[1])
        if first != batch.shape[1]:
            return (
                f"{failed}: its first convolution has {first} input channel"
                f"{'s' if first > 1 else ''}; put a layer before it that makes them of "
                f"{batch.shape[1]}, such as the mean of the colours"
            )
    for other in (images, batch[:1], batch.repeat(2, *[1] * (batch.ndim - 1))):
        if len(other) != len(batch) and _takes(network, other):
            return (
                f"the network takes batches of {len(other)} and not of {len(batch)}; igmask fills "
                "batches of any size, so export it with a dynamic first axis"
            )
    behind = network
    if isinstance(network, nn.Sequential) and not [*network[0].parameters()]:
        behind = network[1:]  # a normalisation makes floats of bytes
    if _takes(behind, (batch * 255).byte()):
        return (
            f"{failed}, and takes integers of 0 … 255, by which nothing can be differentiated; put "
            "the conversion outside of it"
        )
    return f"{failed}; it says"


def _takes(network: Callable[[Tensor], Any], batch: Tensor) -> bool:
    try:
        network(batch)
    except Exception:  # as above
        return False
    return True


def _far(ours: Tensor, theirs: Tensor, limits: dict[torch.dtype, float]) -> bool:
    """Whether two answers differ by more than rounding; what is not finite is refused elsewhere."""
    known = ours.isfinite() & theirs.isfinite()
    if not bool(known.any()):
        return False
    ours, theirs = ours[known], theirs[known]
    most = limits.get(theirs.dtype, 0.1) * float(theirs.abs().max())
    return float((ours - theirs).abs().max()) > most
