#!/usr/bin/env bash
# jsonschema and NaN, which YAML writes .nan and Python's json reads and writes as NaN.
#
# Expected: a number that has to be above 0 and at most 100 is refused if it is not a number.
# Seen:     NaN passes: a keyword asks whether the value is too small or too large, and NaN is neither.
#           "type": "number" takes it, too. Infinity passes where there is no bound on that side, and
#           50.0 passes for "integer", as JSON Schema has it, and is a float to Python's range().
# So:       igmask looks for what is not finite and for 50.0 itself (tests/asked/test_config.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet jsonschema==4.26.0 2> /dev/null
"$folder/environment/bin/python" - <<'PYTHON'
import math
import sys
from importlib.metadata import version

from jsonschema import Draft202012Validator

print("jsonschema", version("jsonschema"))
percent = {"type": "number", "exclusiveMinimum": 0, "maximum": 100}
cases = [(percent, math.nan), (percent, math.inf), (percent, 101), ({"type": "integer"}, 50.0)]
valid = [Draft202012Validator(schema).is_valid(value) for schema, value in cases]
for (schema, value), passes in zip(cases, valid, strict=True):
    print(f"{schema}: {value!r} {'passes' if passes else 'is refused'}")
sys.exit(valid != [True, False, False, True])
PYTHON
