"""What a user has written: `module:callable`, beside the configuration or installed."""

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from igmask.errors import InputError
from igmask.study.settings import is_own

# What a mistake in a user's function most often raises. Others come with their traceback.
_MISTAKES = (ImportError, AttributeError, TypeError, ValueError, LookupError, OSError)


def imported(name: str) -> Any:
    """Return what `module:callable` names; raise InputError if it cannot be imported."""
    module, _, path = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a module beside the configuration
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{name}: {type(error).__name__}: {error}") from error
    return found


def called(name: str, *arguments: Any, **keywords: Any) -> Any:
    """Return what the `module:callable` answers; raise InputError, naming it, if it fails."""
    function = imported(name)
    try:
        return function(*arguments, **keywords)
    except _MISTAKES as error:
        raise InputError(f"{name}: {type(error).__name__}: {error}") from error


def named(name: str) -> str | Callable[..., Any]:
    """Return a name as it is, but of a user's own the function, called by `called`."""
    return partial(called, name) if is_own(name) else name
