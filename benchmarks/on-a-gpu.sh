#!/usr/bin/env bash
# Everything that wants a GPU: the kernels' tests, compute-sanitizer where it is installed, both
# benchmarks, where the time goes, and what the published study would take, into benchmarks/results/.
# Networks may be named, and parts, where a GPU is lent for minutes; all of them by default. A part
# that fails does not keep the next ones from running, and is named at the end.
#
#   bash benchmarks/on-a-gpu.sh resnet50 densenet121
#   PARTS="tests sanitizer kernels" bash benchmarks/on-a-gpu.sh
#
# Needs what pyproject.toml names but for Snakemake, and Captum and pytest with its xdist. Without a
# GPU the tests skip, and the benchmarks say that they measured a CPU.
set -uo pipefail
cd "$(dirname "$0")/.."

pytest="python3 -m pytest -q -m gpu -p no:benchmark" # whose plugin warns of xdist, where it is there
has_gpu() { python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }

tests() { # one fills the memory, and has the GPU to itself
    local rc=0
    $pytest -n 8 tests/kernels/test_triton.py || rc=1
    $pytest tests/engine/test_gpu.py || rc=1
    return $rc
}

sanitizer() {
    command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not installed"; return; }
    # The caching allocator hides what lies beyond a tensor.
    for tool in memcheck racecheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
            $pytest tests/kernels/test_triton.py -k 'points or accumul or pool or squares' || return
    done
}

kernels() { igmask bench kernels; }

bench() { igmask bench "$@"; }

profile() {
    local ways=("fp32 eager" "bf16 eager") # some CPUs take minutes for a batch in fp16
    has_gpu && ways+=("tf32 eager" "fp16 eager" "bf16 cudagraph" "fp16 cudagraph")
    for how in "${ways[@]}"; do
        read -r precision engine <<< "$how"
        python3 benchmarks/stages.py --precision "$precision" --engine "$engine" "$@" || return
    done
}

projection() {
    local precisions=(fp32 bf16)
    has_gpu && precisions+=(fp16)
    python3 benchmarks/projection.py benchmarks/results/projection.md "${precisions[@]}"
}

python3 -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__,
    torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
failed=()
for part in ${PARTS:-tests sanitizer kernels bench profile projection}; do
    SECONDS=0
    "$part" "$@" || failed+=("$part")
    echo "== $part: $SECONDS s"
done
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
