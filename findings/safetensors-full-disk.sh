#!/usr/bin/env bash
# safetensors and a disk that is full.
#
# Expected: save_file, like open() and torch.save, raises an OSError with errno ENOSPC, which names
#           the file and which programs catch to say that the disk is full.
# Seen:     SafetensorError, no OSError: it has no errno and no file name, and passes by `except
#           OSError`. The words are the system's, in the message only.
# So:       igmask writes the bytes of safetensors.torch.save itself (tests/test_faults.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet numpy==2.4.6 safetensors==0.8.0 2> /dev/null
"$folder/environment/bin/python" - <<'PYTHON'
import sys

import numpy as np
import safetensors
from safetensors.numpy import save_file

print("safetensors", safetensors.__version__)
try:  # the device that is always full
    open("/dev/full", "wb", buffering=0).write(b"some bytes")
except OSError as error:
    print(f"open().write: {type(error).__name__}, errno {error.errno}: {error}")
try:
    save_file({"weight": np.zeros(10)}, "/dev/full")
except Exception as error:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    print(f"save_file: {' < '.join(kinds)}, errno {getattr(error, 'errno', 'none')}: {error}")
    said = type(error) is safetensors.SafetensorError and "No space left" in str(error)
    sys.exit(not said or isinstance(error, OSError))
sys.exit("save_file: no error")
PYTHON
