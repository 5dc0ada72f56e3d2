"""Who takes part in the benchmark against Captum, and of which networks and images."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from igmask import zoo
from igmask.errors import refusing

FOUR = ("vgg16", "inception_v3", "resnet50", "densenet121")
MODELS = ("resnet20", "resnet56", "mobilenet_v3_large", *FOUR, "vit_b_16")
_CIFAR = {"resnet20": 20, "resnet56": 56}


@dataclass(frozen=True)
class Contestant:
    """A way to compute the same attributions.

    like:      what it is compared as: `igmask`, `bare`, or `reference`; or Captum, given more and
               more: `captum` as it is called, `captum lean` without its convergence delta, `captum
               kept` with malloc that keeps freed memory, `captum tuned` with layout and frozen
               weights
    precision: igmask's and that of bare passes; or that of the network and images that Captum gets,
               tf32 being allowed in float32's products or not
    engine:    of `ENGINES`; Captum has none, and may be given a network that is compiled
    method:    Captum's rule
    delta:     whether Captum returns its convergence delta, by two more passes
    turns:     most turns it takes on a CPU
    """

    name: str
    like: str
    precision: str = "fp32"
    engine: str = "eager"
    method: str = "riemann_right"
    delta: bool = True
    turns: int = 100


CONTESTANTS = (
    Contestant("igmask", "igmask"),
    Contestant("captum right", "captum"),
    Contestant("captum gauss-legendre", "captum", method="gausslegendre", turns=1),
    Contestant("captum right, no delta", "captum lean", delta=False),
    # As in a process that has used igmask, whose choice of malloc is for all of it.
    Contestant("captum right, memory kept", "captum kept", delta=False),
    # And all else that igmask does for itself: frozen weights, channels-last.
    Contestant("captum right, tuned", "captum tuned", delta=False),
    # m forward passes and input gradients of the whole network in its best form, nothing else.
    Contestant("bare passes", "bare"),
    Contestant("igmask bf16", "igmask", "bf16", turns=1),
)

# On a GPU there are more: each precision of igmask with each engine, bare passes and Captum in the
# same ones.
_HALVES = ("bf16", "fp16")
_OTHERS, _ENGINED = ("tf32", *_HALVES), ("fp32", *_HALVES)
ON_A_GPU = (
    *(Contestant(f"igmask {p}", "igmask", p) for p in ("tf32", "fp16")),
    *(Contestant(f"igmask {p} compile", "igmask", p, "compile") for p in _ENGINED),
    *(Contestant(f"igmask {p} cudagraph", "igmask", p, "cudagraph") for p in _ENGINED),
    *(Contestant(f"bare passes {p}", "bare", p) for p in _OTHERS),
    *(Contestant(f"bare passes {p} cudagraph", "bare", p, "cudagraph") for p in _ENGINED),
    *(Contestant(f"bare passes {p} compile", "bare", p, "compile") for p in _HALVES),
    *(Contestant(f"captum {p}", "captum", p) for p in _OTHERS),
    *(Contestant(f"captum {p}, tuned", "captum tuned", p, delta=False) for p in _OTHERS),
    *(
        Contestant(f"captum {p}, compiled", "captum tuned", p, "compile", delta=False)
        for p in _HALVES
    ),
)


@dataclass(frozen=True)
class Setting:
    """One network and the images, steps and device of its attributions."""

    model: str
    n_images: int
    n_steps: int
    device: str
    threads: int

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one."""
        return self.device.startswith("cuda")


def require_captum() -> None:
    """Raise InputError if Captum is not installed."""
    with refusing(ImportError, says=lambda _: "Captum is not installed: pip install -e '.[bench]'"):
        version("captum")


def timed(work: Callable[[], Any], *, on_gpu: bool) -> tuple[float, Any]:
    """Return (seconds, what the work returns), the GPU's own part of it included."""
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    found = work()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def build(setting: Setting) -> tuple[nn.Module, Tensor, Tensor]:
    """Return (network, images, targets), the same for everyone: random weights, calibrated norms.

    Batch norms take their statistics from a batch of noise, so that activations have the size
    that they have in a trained network; a head of zeros is drawn at random.
    """
    torch.manual_seed(0)
    device = torch.device(setting.device)
    if setting.model in _CIFAR:
        network: nn.Module = zoo.cifar_resnet(_CIFAR[setting.model])
        size = 32
    else:
        import torchvision.models

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of Inception's initialisation
            network = torchvision.models.get_model(setting.model, weights=None)
        size = 299 if setting.model == "inception_v3" else 224
    for parameter in network.parameters():
        if not bool(parameter.any()) and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    images = torch.rand(setting.n_images, 3, size, size)
    network.eval().to(device)
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        network(torch.rand(8, 3, size, size, device=device))
        network.eval()
        images = images.to(device)
        targets = network(images).argmax(dim=1)
    return network, images, targets
