#!/usr/bin/env bash
# Everything that wants a GPU, in one go: the kernels' tests, compute-sanitizer where it is installed,
# and both benchmarks, into benchmarks/results/. Networks may be named; all by default.
#
#   bash benchmarks/on-a-gpu.sh resnet50 densenet121
#
# Needs what pyproject.toml names but for Snakemake, and Captum and pytest. Without a GPU the tests
# skip, and the benchmarks say that they measured a CPU.
set -euo pipefail
cd "$(dirname "$0")/.."

python -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__,
    torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
python -m pytest -q -m gpu tests/test_triton.py
if command -v compute-sanitizer >/dev/null; then
    # The caching allocator hides what lies beyond a tensor.
    for tool in memcheck racecheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
            python -m pytest -q -m gpu tests/test_triton.py -k 'points or accumul or pool or squares'
    done
fi
igmask bench kernels
igmask bench "$@"
