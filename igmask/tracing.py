"""Networks are run in many threads, or traced in one.

While torch.fx traces, it changes what calling any module means, in every thread.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

_gate = threading.Condition()
_runs: Counter[int] = Counter()


@contextmanager
def running() -> Iterator[None]:
    """Run networks here; waits while another thread traces one."""
    me = threading.get_ident()
    with _gate:
        _runs[me] += 1
    try:
        yield
    finally:
        with _gate:
            _runs[me] -= 1
            _gate.notify_all()


@contextmanager
def tracing() -> Iterator[None]:
    """Trace here; waits until no other thread runs a network of ours, and holds them off."""
    me = threading.get_ident()
    with _gate:
        _gate.wait_for(lambda: not any(n for thread, n in _runs.items() if thread != me))
        yield
