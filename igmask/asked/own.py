"""What `module:callable` names: a function of the user's own, and the files of its code."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from igmask.errors import InputError

OWN = "[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*"  # module:callable


def is_own(name: str) -> bool:
    """Return whether it is `module:callable`, a function of the user's own."""
    return re.fullmatch(OWN, name) is not None


def check_names(
    kind: str, asked: Iterable[str], known: Collection[str], *, own: bool = True
) -> None:
    """Raise InputError for a name not known, nor `module:callable` where it may be `own`."""
    if unknown := sorted(name for name in {*asked} - {*known} if not (own and is_own(name))):
        raise InputError(f"unknown {kind} {unknown[0]!r}; choose from {', '.join(known)}")


def code_of(source: str) -> list[Path]:
    """Return the files of a `module:callable`'s module or package, if in the working directory."""
    if ":" not in source:
        return []
    module = Path(*source.partition(":")[0].split("."))
    alone = module.with_suffix(".py")
    return [alone] if alone.is_file() else sorted(module.rglob("*.py"))


def own_code(*names: str) -> list[Path]:
    """Return the files of those among some names that are `module:callable`, each once."""
    return list(dict.fromkeys(path for name in names if is_own(name) for path in code_of(name)))
