#!/usr/bin/env bash
# torch.export: the gradient of a program, as exported and after run_decompositions().
#
# Expected: both compute what the network does, and have its gradient with respect to the input.
# Seen:     the outputs are equal to the bit. But what ran under inference_mode() has a gradient in
#           every form, without a word. After run_decompositions() what ran under no_grad() has a gradient now, and
#           with the core operators what was detached has one, too, without a word; a write into a
#           slice has none any more (aten.copy) and raises. An empty table, which decomposes nothing
#           and only takes changes in place out, loses no_grad() and has aten.copy as well.
# So:       igmask, which takes a network's graph so if torch.fx cannot, leaves a network whole where
#           one of these would be lost, and writes aten.copy as what it does
#           (tests/engine/test_stem.py, "would_lose", "filled_in_parts").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet numpy==2.4.6 torch==2.14.1 2> /dev/null
"$folder/environment/bin/python" - <<'PYTHON'
import sys
import warnings

import torch
from torch import nn

warnings.simplefilter("ignore")


class NoGrad(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            factor = x.tanh()
        return x * factor


class Inference(nn.Module):
    def forward(self, x):
        with torch.inference_mode():
            factor = x.tanh()
        return x * factor.clone()


class Detached(nn.Module):
    def forward(self, x):
        return x * x.tanh().detach()


class Shifting(nn.Module):
    def forward(self, x):
        y = torch.zeros_like(x)
        y[:, :1] = x[:, 1:]
        return y + x


def gradient(f, x):
    given = x.clone().requires_grad_()
    found = f(given)
    try:
        return found.detach(), torch.autograd.grad(found.sum(), given)[0]
    except RuntimeError as error:
        return found.detach(), str(error)


print("torch", torch.__version__)
torch.manual_seed(0)
x, seen = torch.rand(2, 2), []
for network in (Inference(), NoGrad(), Detached(), Shifting()):
    program = torch.export.export(network, (x,))
    forms = program, program.run_decompositions({}), program.run_decompositions()
    output, slope = gradient(network, x)
    says = []
    for form in forms:
        found, its = gradient(form.module(), x)
        assert found.equal(output)
        says.append(its if isinstance(its, str) else "same" if its.equal(slope) else "another")
    print(f"{type(network).__name__}: exported {says[0]}, {{}} {says[1]}, core {says[2]}")
    seen.append(says)
missing = "derivative for aten::copy is not implemented"
expected = [
    ["another", "another", "another"],
    ["same", "another", "another"],
    ["same", "same", "another"],
    ["same", missing, missing],
]
sys.exit(seen != expected)
PYTHON
