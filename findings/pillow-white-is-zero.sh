#!/usr/bin/env bash
# Pillow and TIFFs whose zero is white (PhotometricInterpretation 0, common in X-rays and scans).
#
# Expected: whatever the number of bits, the same picture comes out, bright where the file says bright.
# Seen:     8-bit files are inverted when they are read; 16-bit and float files are not, and come as
#           negatives, with mode I;16 or F and no warning. Nothing but the tag in `image.tag_v2` tells.
# So:       igmask inverts them itself where dataset.scale is given (tests/inputs/test_decode.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet numpy==2.4.6 pillow==13.0.0 2> /dev/null
"$folder/environment/bin/python" - "$folder" <<'PYTHON'
import struct
import sys
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

print("Pillow", PIL.__version__)
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
seen = {}
for name, stored in {
    "8 bits": np.array([[0, 255]], np.uint8),
    "16 bits": np.array([[0, 65535]], np.uint16),
    "float": np.array([[0, 1]], np.float32),
}.items():
    path = Path(sys.argv[1], f"{name}.tif")
    # Written by hand: the same file as black-is-zero, with one tag changed in its bytes.
    Image.fromarray(stored).save(path)
    content = path.read_bytes()
    entry = struct.pack("<HHI", PHOTOMETRIC, 3, 1)  # one short
    at = content.index(entry) + len(entry)
    path.write_bytes(content[:at] + struct.pack("<H", WHITE_IS_ZERO) + content[at + 2 :])
    with Image.open(path) as image:
        assert image.tag_v2[PHOTOMETRIC] == WHITE_IS_ZERO
        read = np.asarray(image)
        seen[name] = bool((read == stored).all())
        print(f"{name}: mode {image.mode}, stored {stored.tolist()[0]}, read {read.tolist()[0]}")
sys.exit(seen != {"8 bits": False, "16 bits": True, "float": True})
PYTHON
