"""Networks of our own: the CIFAR-10 ResNets, and a small network of each family of the experiment.

The small ones are torchvision's own architectures with fewer channels, for 64×64 images: one
processor trains all four within a minute. Every network starts from PyTorch's global generator
(seed it to repeat one), takes normalised images (N, 3, H, W) and returns logits (N, num_classes),
in training and evaluation alike. Weights come from training or a state dict, never a download.

torchvision is imported by those who need it: that takes as long again as torch itself.
"""

import torch
from torch import nn


def cifar_resnet(depth: int = 20, num_classes: int = 10) -> nn.Module:
    """Return the residual network for 32×32 images of He et al. 2016, section 4.2.

    depth: 6n + 2 for three stages of n blocks; 20, 32, 44, 56 and 110 in the paper
    """
    n, rest = divmod(depth - 2, 6)
    if n < 1 or rest:
        raise ValueError(f"cifar_resnet: depth must be 6n + 2 (8, 14, 20, …, 56, …), not {depth}")
    return _CifarResNet(n, num_classes)


class _CifarResNet(nn.Module):
    def __init__(self, n: int, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(n, 16, 16, stride=1)
        self.layer2 = _stage(n, 16, 32, stride=2)
        self.layer3 = _stage(n, 32, 64, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


def _stage(n: int, n_in: int, n_out: int, *, stride: int) -> nn.Sequential:
    """n blocks, the first of which changes resolution and width."""
    rest = (_Block(n_out, n_out, stride=1) for _ in range(n - 1))
    return nn.Sequential(_Block(n_in, n_out, stride=stride), *rest)


class _Block(nn.Module):
    """Two 3×3 convolutions beside the identity; where the width changes, beside "option A"."""

    def __init__(self, n_in: int, n_out: int, *, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.relu2 = nn.ReLU()
        self.shortcut = nn.Identity() if n_in == n_out else _Shortcut(n_out - n_in, stride=stride)

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
    """Return VGG with batch norm: five convolutions, two hidden layers of 64 units, no dropout."""
    from torchvision.models.vgg import VGG, make_layers

    # On the meta device the stock classifier, 120 million weights, costs nothing until replaced.
    with torch.device("meta"):
        vgg = VGG(nn.Identity(), init_weights=False)
    vgg.features = make_layers([8, "M", 16, "M", 32, "M", 64, 64, "M"], batch_norm=True)
    vgg.avgpool = nn.AdaptiveAvgPool2d(4)
    hidden = [nn.Linear(64 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    vgg.classifier = nn.Sequential(*hidden, nn.Linear(64, num_classes))
    return vgg


def small_googlenet(num_classes: int = 10) -> nn.Module:
    """Return GoogLeNet with an eighth of the channels and no auxiliary classifiers."""
    from torchvision.models.googlenet import GoogLeNet

    with torch.device("meta"):
        large = GoogLeNet(num_classes, aux_logits=False, init_weights=False)
    return _narrowed(large, divisor=8)


def small_resnet(num_classes: int = 10) -> nn.Module:
    """Return ResNet with one basic block a stage (ResNet-10) and a quarter of the channels."""
    from torchvision.models.resnet import BasicBlock, ResNet

    with torch.device("meta"):
        large = ResNet(BasicBlock, [1, 1, 1, 1], num_classes)
    return _narrowed(large, divisor=4)


def small_densenet(num_classes: int = 10) -> nn.Module:
    """Return DenseNet with eleven dense layers that add 8 channels each."""
    from torchvision.models.densenet import DenseNet

    return DenseNet(
        growth_rate=8,
        block_config=(2, 3, 3, 3),
        num_init_features=12,
        bn_size=2,
        num_classes=num_classes,
    )


def _narrowed(large: nn.Module, *, divisor: int) -> nn.Module:
    """A network from the meta device made real, its inner channels divided.

    torchvision fixes the widths of these families in code, so each layer with weights is replaced
    by a narrow one. Convolutions start as in He et al. 2015 (normal, fan-out), the rest as PyTorch
    has it.
    """
    for parent in list(large.modules()):
        for name, layer in parent.named_children():
            setattr(parent, name, _narrow(layer, divisor))
    return large


def _narrow(layer: nn.Module, divisor: int) -> nn.Module:
    """The layer with its channels divided, save colours and classes; one without weights as is."""
    match layer:
        case nn.Conv2d(
            in_channels=n_in, out_channels=n_out, kernel_size=(size, _), stride=(stride, _)
        ):
            n_in = n_in if n_in == 3 else n_in // divisor
            convolution = nn.Conv2d(n_in, n_out // divisor, size, stride, size // 2, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            return convolution
        case nn.BatchNorm2d(num_features=n, eps=eps):
            return nn.BatchNorm2d(n // divisor, eps=eps)
        case nn.Linear(in_features=n_in, out_features=n_classes):
            return nn.Linear(n_in // divisor, n_classes)
    return layer
