#!/usr/bin/env bash
# torch.export: the gradient of a program that was decomposed, where the network writes into a slice.
#
# Expected: run_decompositions() writes a program in other operators that compute the same, and what
#           could be differentiated before can be after.
# Seen:     y[:, :1] = x becomes aten.copy and aten.slice_scatter, and aten.copy has no derivative:
#           the forward pass is right, the backward pass raises. So it is with an empty table, too,
#           which decomposes nothing and only takes changes in place out.
# So:       igmask, which takes a network's graph in that form if it can be had in no other, writes
#           aten.copy as what it does (tests/engine/test_stem.py, "filled_in_parts").
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


class Shifting(nn.Module):
    def forward(self, x):
        y = torch.zeros_like(x)
        y[:, :1] = x[:, 1:]
        return y + x


print("torch", torch.__version__)
x = torch.rand(2, 2)
program = torch.export.export(Shifting(), (x,))
forms = {
    "as exported": program,
    "nothing decomposed": program.run_decompositions({}),
    "core operators": program.run_decompositions(),
}
expected = Shifting()(x)
seen = {}
for name, form in forms.items():
    given = x.clone().requires_grad_()
    found = form.module()(given)
    assert torch.equal(found, expected)
    try:
        (slope,) = torch.autograd.grad(found.sum(), given)
        seen[name] = slope.tolist()
    except RuntimeError as error:
        seen[name] = str(error)
    print(f"{name}: {seen[name]}")
missing = "derivative for aten::copy is not implemented"
right = [[1.0, 2.0], [1.0, 2.0]]
sys.exit(list(seen.values()) != [right, missing, missing])
PYTHON
