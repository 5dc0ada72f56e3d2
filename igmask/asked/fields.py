"""The fields of settings, and what derives from them; no setting is named here."""

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, field, fields
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from igmask.asked.own import OWN, is_own


def setting(
    default: Any = MISSING,
    *,
    choices: Iterable[str] = (),
    own: bool = False,
    counts: Callable[[Any], bool] | None = None,
    sources: tuple[str, ...] = (),
    **rules: Any,
) -> Any:
    """Return the field of a setting, which the docstring of its group has a line of.

    default: what it is where it is not given; without one it has to be given
    choices: the names that it, or each in a list, may have
    own:     whether a `module:callable` of one's own may stand in place of a name, too
    counts:  the group → whether the setting matters there; it always does if None
    sources: those of the group's sources by name that alone have it; all do if there are none
    rules:   further ones of JSON schema; `allowed` says in words what a pattern takes
    """
    metadata: dict[str, Any] = {"choices": tuple(choices), "own": own, "rules": rules}
    metadata |= {"counts": counts, "sources": sources}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def plain(group: Any) -> dict[str, Any]:
    """Return a group's settings by their keys, from which `of_plain` makes the same group again."""
    values = {one.name.rstrip("_"): getattr(group, one.name) for one in fields(group)}
    return {
        name: plain(value) if dataclasses.is_dataclass(value) else value
        for name, value in values.items()
    }


def given(group: Any, *, counting: bool = False) -> dict[str, Any]:
    """Return those settings of a group that differ from their defaults.

    counting: of those that matter only
    """
    asked = counting_fields(group) if counting else fields(group)
    defaults = {one.name.rstrip("_"): _default(one) for one in asked}
    values = json.loads(json.dumps(plain(group)))
    return {name: values[name] for name in defaults if values[name] != defaults[name]}


def misplaced(group: Any) -> dict[str, tuple[str, ...]]:
    """Return {key: sources that have it} of what is given to a group of another source.

    A source of the user's own may use all keys.
    """
    if is_own(group.source):
        return {}
    limited = {one.name.rstrip("_"): one.metadata.get("sources", ()) for one in fields(group)}
    found = {name: limited[name] for name in given(group) if limited[name]}
    return {name: sources for name, sources in found.items() if group.source not in sources}


def counting_fields(group: Any) -> list[dataclasses.Field]:
    """Return the fields of a group, or of a recipe, that matter: not those of another baseline."""
    asked = [(one, one.metadata.get("counts")) for one in fields(group)]
    return [one for one, counts in asked if counts is None or counts(group)]


def counting(group: Any) -> dict[str, Any]:
    """Return those settings of a group that matter."""
    values = plain(group)
    return {one.name: values[one.name] for one in counting_fields(group)}


def of_plain(kind: Any, values: Any) -> Any:
    """Return the group, list or value of a kind, such as `Model | None`, from valid settings."""
    if values is None:
        return None
    if isinstance(kind, UnionType):
        kind = next(one for one in get_args(kind) if one is not NoneType)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        kinds = {one.name.rstrip("_"): one for one in fields(kind)}
        return kind(**{kinds[k].name: of_plain(kinds[k].type, v) for k, v in values.items()})
    if get_origin(kind) is dict and dataclasses.is_dataclass(get_args(kind)[1]):
        return {name: of_plain(get_args(kind)[1], value) for name, value in values.items()}
    return tuple(values) if get_origin(kind) is tuple else values


def json_schema(group: Any) -> dict[str, Any]:
    """Return the JSON schema of a group: a dataclass whose fields are settings.

    What its `NEEDS` list has to be given with each of its sources; the description of a key that
    few sources have begins with their names.
    """
    listed = {one.name.rstrip("_"): one for one in fields(group)}
    means = meanings(group)
    required = [name for name, one in listed.items() if _default(one) is MISSING]
    found: dict[str, Any] = {"type": "object", "additionalProperties": False}
    found["properties"] = {
        name: _of_field(one, means.get(name, "")) for name, one in listed.items()
    }
    if required:
        found["required"] = required
    if needs := getattr(group, "NEEDS", {}):
        found["allOf"] = [
            {"if": {"properties": {"source": {"const": name}}}, "then": {"required": list(keys)}}
            for name, keys in needs.items()
        ]
    return found


def meanings(group: Any) -> dict[str, str]:
    """Return what a group's docstring says of each setting, in lines that begin with its key.

    Nothing, where Python leaves docstrings out (-OO).
    """
    text = inspect.cleandoc(group.__doc__ or "")
    lines = re.findall(r"^(\w+): +(.+(?:\n +.+)*)", text, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in lines}


def _of_field(one: dataclasses.Field, means: str) -> dict[str, Any]:
    """The JSON schema of a setting; `means` is its description."""
    said, found = one.metadata, _of_kind(one.type)
    if names := said.get("choices"):
        of_one: dict[str, Any] = {"enum": [*names, *[None] * (NoneType in get_args(one.type))]}
        if said["own"]:
            pattern, allowed = f"^({'|'.join(names)}|{OWN})$", f"one of {', '.join(names)}"
            of_one = {"type": "string", "examples": list(names), "pattern": pattern}
            of_one["allowed"] = f"{allowed} or module:callable"
        found = found | {"items": of_one} if "items" in found else of_one
    sources = said.get("sources", ())
    if means and len(sources) in (1, 2):
        means = f"{', '.join(sources)}: {means}"
    found |= said.get("rules", {}) | {"description": means}
    default = _default(one)
    return found if default is MISSING else found | {"default": default}


_KINDS = {int: "integer", float: "number", str: "string", bool: "boolean", NoneType: "null"}


def _of_kind(kind: Any) -> dict[str, Any]:
    """The JSON schema of a type, without bounds."""
    if isinstance(kind, UnionType):
        parts = [_of_kind(one) for one in get_args(kind)]
        merged = {name: value for part in parts for name, value in part.items()}
        return merged | {"type": [part["type"] for part in parts]}
    if dataclasses.is_dataclass(kind):
        return json_schema(kind)
    if get_origin(kind) is tuple:
        of, *rest = get_args(kind)
        n_items = {} if rest == [...] else {"minItems": 1 + len(rest), "maxItems": 1 + len(rest)}
        return {"type": "array", "items": _of_kind(of)} | n_items
    if get_origin(kind) is dict:
        of = get_args(kind)[1]
        known = {"additionalProperties": json_schema(of)} if dataclasses.is_dataclass(of) else {}
        return {"type": "object"} | known
    return {"type": _KINDS[kind]}


def _default(one: dataclasses.Field) -> Any:
    """A setting's default as JSON has it, {} for a group; MISSING if it has to be given."""
    if one.default_factory is not MISSING or dataclasses.is_dataclass(one.default):
        return {}
    return list(one.default) if isinstance(one.default, tuple) else one.default
