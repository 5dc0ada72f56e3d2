#!/usr/bin/env bash
# PyTorch's batch norm in evaluation mode, its input's gradient for a single image, on a CPU.
#
# Expected: the gradient of a frozen norm is what comes back times weight / sqrt(variance + eps), for
#           any number of images and however tensors lie in memory.
# Seen:     for one image it is wrong, by more than its size and without a word, where what comes
#           back has its channels last in memory and the input has not: behind
#           flatten(2).transpose(1, 2), as in many vision transformers with convolutions. Of two
#           images it is right. So it is with Captum, too, for a batch of one point.
# So:       igmask never asks for one image alone there (tests/engine/test_captum.py, "alone").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet numpy==2.4.6 torch==2.14.1 captum==0.9.0 2> /dev/null
"$folder/environment/bin/python" - <<'PYTHON'
import sys
import warnings

import torch
from torch import nn

warnings.simplefilter("ignore")
from captum.attr import IntegratedGradients

print("torch", torch.__version__)
torch.manual_seed(0)
norm = nn.BatchNorm2d(4).eval()
norm.running_var.uniform_(0.5, 2)
scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().view(-1, 1, 1)
off = {}
for n_images in (1, 2):
    x, back = torch.rand(n_images, 4, 7, 7, requires_grad=True), torch.randn(n_images, 49, 4)
    (slope,) = torch.autograd.grad(norm(x).flatten(2).transpose(1, 2), x, back)
    exact = back.transpose(1, 2).reshape(x.shape) * scale
    off[n_images] = float((slope - exact).norm() / exact.norm())
    print(f"{n_images} image(s): the gradient is off by {off[n_images]:.1e} of its size")


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.weights, self.head = norm, torch.rand(49, 4), nn.Linear(4, 5)

    def forward(self, x):
        return self.head((self.norm(x.relu()).flatten(2).transpose(1, 2) * self.weights).sum(dim=1))


ig, x = IntegratedGradients(Tokens().eval()), torch.rand(1, 4, 7, 7)
one, many = (ig.attribute(x, target=1, n_steps=8, internal_batch_size=n) for n in (1, 8))
off["captum"] = float((one - many).norm() / many.norm())
print(f"Captum, internal_batch_size 1 against 8: {off['captum']:.1e}")
sys.exit(not (off[1] > 0.1 and off[2] < 1e-5 and off["captum"] > 0.1))
PYTHON
