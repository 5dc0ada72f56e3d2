"""The one error that a user can mend: bad input, named, with what to do about it."""


class InputError(ValueError):
    """Bad input: a file, key or value that has to change. Its message says which and how."""
