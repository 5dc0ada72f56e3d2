#!/usr/bin/env bash
# Hypothesis and gc.freeze(), which takes what a long test run has imported from garbage collection.
#
# Expected: freezing changes when memory is looked at, and nothing else that a program can see.
# Seen:     gc.get_referrers() does not find what frozen objects refer to, and Hypothesis asks it
#           whether a random generator that it is to seed is held by anything. So it warns of one that
#           a module holds, and where warnings are errors it cannot be imported any more. trio, which
#           Selenium brings along, has its own registered whenever Hypothesis is imported.
# So:       igmask's tests, which would take 5 % less time so, leave objects as they are.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet hypothesis==6.170.17 trio==0.35.0 2> /dev/null
cat > "$folder/run.py" <<'PYTHON'
import gc
import sys
import warnings

import trio  # noqa: F401

if "frozen" in sys.argv:
    gc.freeze()
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import hypothesis  # noqa: F401
print(*sys.argv[1:], [f"{one.category.__name__}: {str(one.message)[:87]} …" for one in said])
sys.exit(bool(said) != ("frozen" in sys.argv))
PYTHON
cd "$folder"
environment/bin/python -c 'import hypothesis, trio; print("hypothesis", hypothesis.__version__, "trio", trio.__version__)'
environment/bin/python run.py "as it is"
environment/bin/python run.py frozen
