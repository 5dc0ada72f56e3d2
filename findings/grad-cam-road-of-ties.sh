#!/usr/bin/env bash
# pytorch-grad-cam's ROAD on a map of which many values are equal, as of all that ends in a ReLU.
#
# Expected: ROADLeastRelevantFirst(percentile=80) removes the least relevant fifth of the pixels, and
#           ROADMostRelevantFirst(percentile=80) the most relevant fifth.
# Seen:     what is kept is strictly below the percentile's value, so all pixels that are equal to it go
#           together: where 70 % of a map are zero, the least relevant first remove 70 %, at percentile
#           80 as at 30; and of a map of two values each removes all or half, whatever was asked.
# So:       curves of two maps are of other areas. igmask cuts a ranking, in which equal squares have an
#           order, at a number of pixels (igmask/steps/masked/sweep.py, tests/steps/test_sweep.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet grad-cam==1.5.7 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 2> /dev/null
"$folder/environment/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import torch
from pytorch_grad_cam.metrics.road import ROADLeastRelevantFirst, ROADMostRelevantFirst

print("grad-cam", version("grad-cam"))
rng = np.random.default_rng(0)
image = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
values = rng.permutation(1600).reshape(40, 40) / 1600
maps = {"no ties": values, "70 % zeros": np.clip(values - 0.7, 0, None), "two values": np.round(values)}


def removed(metric, cam, percentile):
    """The share of pixels that are not as they were."""
    _, shown = metric(percentile=percentile)(
        image, cam[None].astype(np.float32), [lambda output: output.sum()],
        torch.nn.Flatten(), return_visualization=True,
    )
    return float((shown != image).any(dim=1).double().mean())


found = {}
for name, cam in maps.items():
    for metric in (ROADMostRelevantFirst, ROADLeastRelevantFirst):
        for percentile in (30, 80):
            share = found[name, metric.__name__, percentile] = removed(metric, cam, percentile)
            print(f"{name}: {metric.__name__}, percentile {percentile}: {share:.2f} removed")
least, most = "ROADLeastRelevantFirst", "ROADMostRelevantFirst"
as_asked = all(
    abs(found["no ties", name, p] - (100 - p) / 100) < 0.01 for name in (least, most) for p in (30, 80)
)
seen = (
    abs(found["70 % zeros", least, 80] - 0.7) < 0.01
    and abs(found["70 % zeros", least, 30] - 0.7) < 0.01
    and abs(found["two values", most, 80] - 0.5) < 0.01
)
sys.exit(0 if as_asked and seen else 1)
PYTHON
