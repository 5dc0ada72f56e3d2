"""Settings against the rules of their keys; what is wrong, said in words."""

import contextlib
import difflib
import json
from collections.abc import Mapping
from functools import cache
from math import isfinite
from textwrap import shorten
from typing import Any

from igmask.errors import InputError


def valid(given: Mapping[str, Any], rules: dict[str, Any], what: str) -> dict[str, Any]:
    """Return the settings as JSON has them.

    rules:  JSON schema, as `settings.rules` gives it
    what:   names the settings in the message
    raises  InputError with a line for each wrong key
    """
    plain = json.loads(json.dumps(given, default=str))  # as JSON: text keys, lists for tuples
    errors = _validator()(rules).iter_errors(plain)
    lines = [line for error in errors for line in _explain(error)]
    if lines:
        raise InputError(f"{what} not valid:\n" + "\n".join(sorted(f"  {x}" for x in lines)))
    return plain


def _is_integer(_checker: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(_checker: Any, value: Any) -> bool:
    return isfinite(value) if isinstance(value, float) else _is_integer(_checker, value)


@cache
def _validator() -> Any:
    """The class that checks settings against rules."""
    import jsonschema  # takes as long as NumPy, and a third of the jobs read no settings

    draft = jsonschema.Draft202012Validator
    # JSON schema takes 50.0 for an integer, and .nan and .inf for numbers.
    strict = {"integer": _is_integer, "number": _is_number}
    checker = draft.TYPE_CHECKER.redefine_many(strict)
    return jsonschema.validators.extend(draft, type_checker=checker)


def _explain(error: Any) -> list[str]:
    """What is wrong, what came and what is allowed, a line a key; of jsonschema's errors."""
    where = ".".join(str(key) for key in error.absolute_path)
    value, rules = error.instance, error.schema
    if error.validator == "additionalProperties":
        known = list(rules["properties"])
        return [
            f"{where + '.' if where else ''}{key}: unknown key"
            + (_suggestion(key, known) or f"; known are {', '.join(known)}")
            for key in sorted(set(value) - set(known), key=str)
        ]
    if error.validator == "required":
        missing = error.message.split("'")[1]
        return [f"{where + '.' if where else ''}{missing}: missing"]
    if "propertyNames" in error.absolute_schema_path:
        return [f"{where}: the name {value!r} may only have {rules['allowed']}"]
    hint = _suggestion(value, rules.get("examples", []))
    where = where or "configuration"
    if error.validator == "enum":
        hint = _suggestion(value, [str(choice) for choice in rules["enum"]])
        return [f"{where}: {_shown(value)} is not {_allowed(rules)}{hint}"]
    return [
        f"{where}: {_problem(error)}; it must be {_allowed(rules)}{_remedy(value, rules)}{hint}"
    ]


def _problem(error: Any) -> str:
    value, shown = error.instance, _shown(error.instance)
    match error.validator:
        case "type":
            return "nothing is given" if value is None else f"{shown} is {_kind(value)}"
        case "minimum" | "exclusiveMinimum":
            return f"{shown} is too small"
        case "maximum":
            return f"{shown} is too large"
        case "uniqueItems":
            return f"{_shown(next(x for x in value if value.count(x) > 1))} is there twice"
        case "minItems" | "maxItems" | "minProperties":
            return f"{shown} has {len(value)}" if value else "it is empty"
    return f"{shown} does not fit"


def _kind(value: Any) -> str:
    if isinstance(value, float) and not isfinite(value):
        return "not finite"
    if isinstance(value, float):
        return "a number with decimals"
    kinds = {bool: "a truth value", str: "text", list: "a list", dict: "keys and values"}
    return kinds.get(type(value), "a number")


def _shown(value: Any) -> str:
    """A value as in the file, cut short."""
    words = {True: "true", False: "false", None: "nothing"}
    is_word = value is None or isinstance(value, bool)
    return words[value] if is_word else shorten(repr(value), 60, placeholder=" …")


def _allowed(rules: dict[str, Any]) -> str:
    """What a schema takes, in words: a whole number of at least 1 or auto."""
    if "enum" in rules:
        return f"one of {', '.join(_shown(c) if c is None else c for c in rules['enum'])}"
    kinds = rules["type"] if isinstance(rules["type"], list) else [rules["type"]]
    return ", or ".join(_allowed_of(kind, rules) for kind in kinds)


def _allowed_of(kind: str, rules: dict[str, Any]) -> str:
    if kind in ("number", "integer"):
        limits = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "at most"}
        within = " and ".join(f"{limits[key]} {rules[key]}" for key in limits if key in rules)
        return f"{'a number' if kind == 'number' else 'a whole number'} {within}".strip()
    if kind == "array":
        least, most = rules.get("minItems"), rules.get("maxItems")
        number = f" of {most}" if most else f" of at least {least}" if least else ""
        once = ", none twice" if rules.get("uniqueItems") else ""
        return f"a list{number} (each {_allowed(rules['items'])}{once})"
    if kind == "object":
        return "keys and values" + (", at least one" if rules.get("minProperties") else "")
    words = {"string": rules.get("allowed", "text"), "boolean": "true or false", "null": "nothing"}
    return words[kind]


def _remedy(value: Any, rules: dict[str, Any]) -> str:
    """What to write for a value that is what it must be but for its form: '50%', 50 for [50]."""
    if value is None and "default" in rules:
        return "; or leave it out"
    forms = [value]
    if isinstance(value, str) and rules.get("items", rules).get("maximum") == 100:
        value = value.rstrip(" %")
    if isinstance(value, str | float):  # YAML takes 1e-3 for text
        with contextlib.suppress(ValueError):
            number = float(value)
            forms.append(int(number) if number.is_integer() else number)
    for form in [*forms, *([form] for form in forms)]:
        if _validator()(rules).is_valid(form):
            return f"; write {form}"
    return ""


def _suggestion(key: Any, known: list[str]) -> str:
    close = difflib.get_close_matches(str(key), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
