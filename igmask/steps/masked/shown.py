"""How masked images are shown to a network: normalised, what is not kept filled."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from igmask.kernels import occluded_input, to_pixels
from igmask.plain import JUST_SEEN, OF_MASK, pack
from igmask.steps.masked.fills import filled


class Network:
    """A network as `models.load` puts it together: a normalisation, then the classifier."""

    def __init__(self, whole: nn.Sequential) -> None:
        normalize, self.classifier = whole.children()
        self.mean, self.std = (value.flatten() for value in normalize.buffers())
        self.whole, self.device = whole, self.mean.device


class Shown:
    """Some images, one fill, and masks that come one after the other.

    images:    (N, H, W, 3) uint8
    positions: (N,) in the dataset, which with the seed determine what is drawn
    made_by:   what the records say: `fill`, its `blur_sigma`, its `fill_seed`, and `side`
    """

    def __init__(
        self, network: Network, images: np.ndarray, positions: np.ndarray, made_by: dict[str, Any]
    ) -> None:
        self._network, self._pixels, self._side = network, images, made_by["side"]
        self._images = torch.from_numpy(images).to(network.device)
        self._made_by, self._positions = made_by, positions
        self._same = None if made_by["fill"] in OF_MASK else self._filled(None)

    def input(self, kept: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Return what the classifier is given, (N, 3, H, W), and the share of pixels that changed.

        Changed are those of which a channel is other than before by more than half of a step of
        8 bits: a dark pixel does not change if it is filled with black.

        kept: (N, P, Q) bool
        """
        squares = torch.from_numpy(kept).to(self._network.device)
        pixels = to_pixels(squares, *self._images.shape[1:3], side=self._side)
        fill, differs = self._same or self._filled(pixels)
        inputs = occluded_input(
            self._images,
            torch.from_numpy(pack(kept)).to(self._network.device),
            side=self._side,
            fill=fill,
            mean=self._network.mean,
            std=self._network.std,
            memory_format=torch.channels_last,  # that of the bytes
        )
        changed = (differs & ~pixels).flatten(1).double().mean(dim=1)
        return inputs, changed.numpy(force=True)

    def _filled(self, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """What masked pixels become, and where that is something else: (N, H, W) bool."""
        mean, positions = self._network.mean.numpy(force=True), self._positions
        values = filled(self._pixels, self._made_by, mean=mean, positions=positions, kept=kept)
        fill = torch.from_numpy(values).to(self._network.device)
        return fill, ((self._images / 255 - fill).abs() > JUST_SEEN).any(dim=3)
