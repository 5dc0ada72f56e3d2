"""Progress of long work: a bar on a terminal, plain lines in a log."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 10.0
_log: Path | None = None


def log_to(path: Path | None) -> None:
    """Send plain lines to this file as well; None: to standard error only."""
    global _log
    _log = path
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")


def say(line: str, *, terminal: bool = True) -> None:
    """Write one line to standard error, above any progress bar, and to the log."""
    if terminal:
        tqdm.write(line, file=sys.stderr)
    if _log is not None:
        # A log that cannot be written, on a full disk say, must not hide what it was to hold.
        with contextlib.suppress(OSError), _log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def progress(items: Iterable[T], *, total: int | None, unit: str, label: str) -> Iterator[T]:
    """Yield the items, showing how many of `total`, if it is known, are done, and the rate."""
    meter = Meter(total=total, unit=unit, label=label)
    for item in items:
        yield item
        meter.advance()


class Meter:
    """Shows how many of `total` are done, the rate and the time left, as `advance` is called."""

    def __init__(self, *, total: int | None, unit: str, label: str) -> None:
        self._on_terminal = sys.stderr.isatty()
        options = {"total": total, "unit": f" {unit}", "desc": label, "leave": False}
        self._bar = tqdm(**options, disable=not self._on_terminal)
        self._total, self._unit, self._label = total, unit, label
        self._start = self._last_line = time.monotonic()
        self._n_done = 0

    def advance(self) -> None:
        """Count one more as done."""
        self._n_done += 1
        self._bar.update()
        now, finished = time.monotonic(), self._n_done == self._total
        if finished or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            shown = tqdm.format_meter(
                self._n_done, self._total, now - self._start, ncols=0, unit=f" {self._unit}"
            )
            say(f"{self._label}: {shown.strip()}", terminal=not self._on_terminal)
        if finished:
            self._bar.close()
