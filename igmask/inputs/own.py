"""What a user has written: `module:callable`, beside the configuration or installed."""

import importlib
import pkgutil
import sys
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from igmask.asked.settings import is_own
from igmask.errors import refusing, suggestion, with_kind

# What a mistake in a user's module or function most often raises; others come with a traceback.
MISTAKES = (ImportError, AttributeError, TypeError, ValueError, RuntimeError)


def imported(name: str) -> Any:
    """Return what `module:callable` names; raise InputError if it cannot be imported."""
    module, _, path = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a module beside the configuration
    with refusing(*MISTAKES, says=lambda error: f"{name}: {with_kind(error)}{_near(name, error)}"):
        return attrgetter(path)(importlib.import_module(module))


def _near(name: str, error: Exception) -> str:
    """Which module, or which of its names, may be meant by one that is not there."""
    module, _, path = name.partition(":")
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
        parent, _, last = str(error.name).rpartition(".")
        within = getattr(importlib.import_module(parent), "__path__", []) if parent else None
        return suggestion(last, (found.name for found in pkgutil.iter_modules(within)))
    whole = sys.modules.get(module)
    first = path.partition(".")[0]
    if isinstance(error, AttributeError) and whole is not None and not hasattr(whole, first):
        return suggestion(first, (one for one in dir(whole) if not one.startswith("_")))
    return ""


def called(name: str, *arguments: Any, **keywords: Any) -> Any:
    """Return what the `module:callable` answers; raise InputError, naming it, if it fails."""
    function = imported(name)
    with refusing(*MISTAKES, LookupError, OSError, says=lambda e: f"{name}: {with_kind(e)}"):
        return function(*arguments, **keywords)


def named(name: str) -> str | Callable[..., Any]:
    """Return a name as it is, but of a user's own the function, called by `called`."""
    if not is_own(name):
        return name
    function = partial(called, name)
    function.__name__ = name  # type: ignore[attr-defined]  # for messages
    return function
