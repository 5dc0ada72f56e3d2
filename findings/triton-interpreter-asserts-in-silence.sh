#!/usr/bin/env bash
# Triton's interpreter, in which kernels are debugged without a GPU, and their assertions.
#
# Expected: with TRITON_DEBUG=1, as its documentation says, or with debug=True, tl.device_assert
#           stops a kernel that is interpreted as one that is compiled; so does a sum that overflows,
#           for which every sum of integers is computed a second time, in 64 bits.
# Seen:     neither does, whatever is set: the options of its builder say debug=False, and nothing
#           but a line of Python changes them. The second sums, which are a third of the work of
#           interpreting a kernel that is mostly indices, are thrown away.
# So:       igmask's tests interpret its kernels without them, a third faster, and under
#           IGMASK_OVERFLOW=1 with what overflows said (tests/interpreter.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet numpy==2.4.6 torch==2.14.1 triton==3.8.0 2> /dev/null
cat > "$folder/asserts.py" <<'PYTHON'
import dataclasses
import sys

import torch
import triton
import triton.language as tl
from triton.runtime import interpreter


def assertive(x, out):
    tl.device_assert(tl.load(x) < 0, "not negative")
    tl.store(out, 1)


def double(x, out):
    tl.store(out, tl.load(x) + tl.load(x))


def run(kernel, **options):
    """What is raised, or else what is computed, and how many calls of Python that took."""
    x, out, n = torch.full((1,), 2**31 - 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), 0

    def count(frame, event, argument):
        nonlocal n
        n += event == "call"

    sys.setprofile(count)
    try:
        kernel[(1,)](x, out, **options)
    except triton.runtime.errors.InterpreterError as error:
        return str(error), n
    finally:
        sys.setprofile(None)
    return out.item(), n


def set_options(**changed):
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, **changed)


print("triton", triton.__version__)
run(triton.jit(double))  # what is imported at the first call
silent = [
    run(triton.jit(debug=True)(function), **options)[0]
    for function in (assertive, double)
    for options in ({}, {"debug": True})
]
_, with_sums = run(triton.jit(double))
set_options(sanitize_overflow=False)
_, without = run(triton.jit(double))
set_options(sanitize_overflow=True, debug=True)
told = [run(triton.jit(function))[0] for function in (assertive, double)]
print("TRITON_DEBUG=1 and debug=True: no error;", silent)
print(f"calls for one sum: {with_sums}, and {without} where it is not told to watch for overflow")
print("its builder's own options changed:", told)
expected = [1, 1, -2, -2]
said = all(word in text for word, text in zip(("negative", "overflow"), map(str, told)))
sys.exit(not (silent == expected and with_sums > 1.2 * without and said))
PYTHON
TRITON_INTERPRET=1 TRITON_DEBUG=1 "$folder/environment/bin/python" "$folder/asserts.py"
