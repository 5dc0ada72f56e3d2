#!/usr/bin/env bash
# statsmodels' correction of a few p-values, its time.
#
# Expected: Holm's steps of three p-values take microseconds, whatever else the process holds, so that
#           a bootstrap or a property test may call multipletests thousands of times.
# Seen:     every call collects the garbage of the whole process, all generations, for "holm" and the
#           others that go step by step (not "bonferroni"): some tens of ms in a bare process, and hundreds
#           beside millions of objects, as of PyTorch and a long test run.
# So:       igmask corrects by its own lines; its test against statsmodels does without the collection
#           (tests/statistics/test_paired.py), which took 18 of its 19 seconds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1 pandas==3.0.3 \
  statsmodels==0.15.0 2> /dev/null
"$folder/environment/bin/python" - <<'PYTHON'
import gc
import sys
import time

import statsmodels
from statsmodels.stats.multitest import multipletests

print("statsmodels", statsmodels.__version__)
whole = []
gc.callbacks.append(
    lambda phase, info: whole.append(1) if (phase, info["generation"]) == ("stop", 2) else None
)
calls, seen = 20, {}
for held in (0, 2_000_000):
    others = [[number] for number in range(held)]
    for method in ("holm", "bonferroni"):
        multipletests([0.01, 0.04, 0.03], method=method)
        gc.collect()
        whole.clear()
        begun = time.perf_counter()
        for _ in range(calls):
            multipletests([0.01, 0.04, 0.03], method=method)
        took = (time.perf_counter() - begun) / calls
        seen[method, held] = len(whole)
        print(f"{method}, beside {held:,} lists: {len(whole)} whole collections in {calls} calls,", end=" ")
        print(f"{1000 * took:.2f} ms a call")
sys.exit(any(n != (calls if method == "holm" else 0) for (method, _), n in seen.items()))
PYTHON
