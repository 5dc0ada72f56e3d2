#!/usr/bin/env bash
# safetensors and a file that cannot grow: a full disk, a quota, or, as here, the process's limit.
#
# Expected: save_file, like open(), raises an OSError with an errno, which programs catch to say that
#           there is no space.
# Seen:     SafetensorError, no OSError: it has no errno and no file name, and passes by `except
#           OSError`. The words are the system's, in the message only.
# So:       igmask writes the bytes of safetensors.torch.save itself (tests/test_faults.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet numpy==2.4.6 safetensors==0.8.0 2> /dev/null
"$folder/environment/bin/python" - "$folder" <<'PYTHON'
import resource
import sys
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save_file

print("safetensors", safetensors.__version__)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # bytes a file may have
path = Path(sys.argv[1], "weights.safetensors")
try:
    path.write_bytes(bytes(10_000))
except OSError as error:
    print(f"write_bytes: {type(error).__name__}, errno {error.errno}: {error.strerror}")
path.unlink(missing_ok=True)
try:
    save_file({"weight": np.zeros(10_000)}, path)
except Exception as error:
    kinds = " < ".join(kind.__name__ for kind in type(error).__mro__)
    print(f"save_file: {kinds}, errno {getattr(error, 'errno', 'none')}: {error}")
    said = type(error) is safetensors.SafetensorError and "File too large" in str(error)
    sys.exit(not said or isinstance(error, OSError))
sys.exit("save_file: no error")
PYTHON
