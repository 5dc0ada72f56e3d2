#!/usr/bin/env bash
# transformers' image processors, told the same: shortest edge 224, centre crop 224.
#
# Expected: the same settings are the same pixels, whichever class a network's files name.
# Seen:     CLIP's and BiT's show the whole side of a square image. LeViT's, whose code multiplies the
#           shortest edge by 256 / 224, shows the middle 87.5 % of it, of which its settings say
#           nothing. PP-LCNet's, and MobileViT's, hand on the colours in the order blue, green, red.
# So:       igmask finds out how a network of the hub wants its images by trying its processor
#           (igmask/inputs/networks/hf.py; tests/inputs/test_hf.py, "come as the processor makes them").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet \
  numpy==2.4.6 pillow==13.0.0 torch==2.14.1 torchvision transformers==5.24.0 2> /dev/null
"$folder/environment/bin/python" - <<'PYTHON'
import sys
import warnings

warnings.simplefilter("ignore")
import numpy as np
import transformers
from PIL import Image

transformers.logging.set_verbosity_error()
print("transformers", transformers.__version__)
ramp = np.tile(np.linspace(0, 255, 448), (448, 1)).astype(np.uint8)
red = np.zeros((300, 300, 3), np.uint8)
red[..., 0] = 255


def seen(name, pixels):
    size, crop = {"shortest_edge": 224}, {"height": 224, "width": 224}
    if name == "PPLCNet":
        size = crop
    processor = getattr(transformers, f"{name}ImageProcessor")(
        size=size, crop_size=crop, do_center_crop=True, do_normalize=False
    )
    (image,) = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    return image


shown = {}
for name in ("CLIP", "Bit", "Levit"):
    image = seen(name, np.stack([ramp] * 3, axis=2))
    shown[name] = float(image.max() - image.min())
    print(f"{name}: {100 * shown[name]:.1f} % of the side is shown")
channel = {}
for name in ("CLIP", "PPLCNet", "MobileViT"):
    channel[name] = int(seen(name, red).mean(axis=(1, 2)).argmax())
    print(f"{name}: red is channel {channel[name]}")
whole = min(shown["CLIP"], shown["Bit"]) > 0.98 and 0.86 < shown["Levit"] < 0.89
sys.exit(not (whole and channel == {"CLIP": 0, "PPLCNet": 2, "MobileViT": 2}))
PYTHON
