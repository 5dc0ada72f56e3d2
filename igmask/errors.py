"""The one error that a user can mend: bad input, named, with what to do about it."""

from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: a file, key or value that has to change. Its message says which and how."""


def refuse(what: str, names: Iterable[str], bad: Iterable[bool]) -> None:
    """Raise InputError with the names of the images marked as bad, if there are any."""
    named = [str(name) for name, is_bad in zip(names, bad, strict=True) if is_bad]
    if named:
        raise InputError(f"NaN or infinite {what} the images {named}")
