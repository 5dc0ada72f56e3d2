#!/usr/bin/env bash
# Everything that wants a GPU, in one go: the kernels' tests, compute-sanitizer where it is installed,
# both benchmarks, where the time goes, and what the published study would take, into
# benchmarks/results/. Networks may be named; all by default.
#
#   bash benchmarks/on-a-gpu.sh resnet50 densenet121
#
# Needs what pyproject.toml names but for Snakemake, and Captum and pytest. Without a GPU the tests
# skip, and the benchmarks say that they measured a CPU.
set -euo pipefail
cd "$(dirname "$0")/.."

has_gpu() { python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }

python -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__,
    torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
python -m pytest -q -m gpu tests/test_triton.py tests/test_gpu.py
if command -v compute-sanitizer >/dev/null; then
    # The caching allocator hides what lies beyond a tensor.
    for tool in memcheck racecheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
            python -m pytest -q -m gpu tests/test_triton.py -k 'points or accumul or pool or squares'
    done
fi
igmask bench kernels
igmask bench "$@"
ways=("fp32 eager" "bf16 eager") precisions=(fp32 bf16) # some CPUs take minutes for a batch in fp16
if has_gpu; then
    ways+=("tf32 eager" "fp16 eager" "bf16 cudagraph" "fp16 cudagraph") precisions+=(fp16)
fi
for how in "${ways[@]}"; do
    read -r precision engine <<< "$how"
    python benchmarks/stages.py --precision "$precision" --engine "$engine" "$@"
done
python benchmarks/projection.py benchmarks/results/projection.md "${precisions[@]}"
