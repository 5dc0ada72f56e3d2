"""The one error that a user can mend: bad input, named, with what to do about it."""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import filter as matches
from typing import Any


class InputError(ValueError):
    """Bad input: a file, key or value that has to change. Its message says which and how."""


@contextmanager
def refusing(*kinds: type[Exception], says: Callable[[Exception], str] = str) -> Iterator[None]:
    """Turn errors of some kinds within the block into InputError, in the words of `says`."""
    try:
        yield
    except kinds as error:
        raise InputError(says(error)) from error


def with_kind(error: Exception) -> str:
    """Return an error's message behind its kind: `KeyError: 'weight'`."""
    return f"{type(error).__name__}: {error}"


def in_words(error: Exception) -> str:
    """Return what an error says; of one that is not meant for users with its kind."""
    return str(error) if isinstance(error, InputError) else with_kind(error)


def suggestion(name: object, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> str:
    """Return which of the known names may be meant, in whatever case, as a question, or nothing.

    n:      at most so many
    cutoff: how alike they must be, of 1; as of difflib
    """
    by_case = {one.casefold(): one for one in known}
    close = get_close_matches(str(name).casefold(), by_case, n=n, cutoff=cutoff)
    return f"; did you mean {' or '.join(repr(by_case[one]) for one in close)}?" if close else ""


def and_more(names: Sequence[str]) -> str:
    """Return the first of some names, and how many others there are: `a.png and 9 more`."""
    return names[0] + f" and {len(names) - 1} more" * (len(names) > 1)


def no_file(path: str, known: Iterable[str] = ()) -> str:
    """Return that there is no file, and which of the names may be meant that stand for one."""
    return f"there is no file {path!r}{suggestion(path, known)}"


def integer(what: str, value: Any, kind: str = "an integer") -> int:
    """Return a whole number, NumPy's too, as Python's; raise InputError if it is none."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise InputError(f"{what} must be {kind}, got {value!r}")


def refuse(what: str, names: Iterable[str], bad: Iterable[bool]) -> None:
    """Raise InputError with the names of the images marked as bad, if there are any."""
    named = [str(name) for name, is_bad in zip(names, bad, strict=True) if is_bad]
    if named:
        raise InputError(f"NaN or infinite {what} the images {named}")


def matching(what: str, patterns: Iterable[str], names: Sequence[str]) -> set[str]:
    """Return the names that a pattern such as `*tuned` matches; raise InputError if it has none."""
    found = {pattern: matches(names, pattern) for pattern in patterns}
    if unknown := sorted(pattern for pattern in found if not found[pattern]):
        raise InputError(f"unknown {what} {unknown}; choose from {', '.join(names)}")
    return {name for few in found.values() for name in few}
