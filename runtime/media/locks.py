"""Closing what another thread may be using."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

CLOSE_SECONDS = 5.0
"""How long closing waits for the frame that another thread reads or writes."""


@contextmanager
def acquired(lock: threading.Lock, seconds: float = CLOSE_SECONDS) -> Iterator[bool]:
    """Acquires `lock`, and yields whether that succeeded within `seconds`.

    A reader or writer holds its lock while it works on a frame, because FFmpeg crashes the process
    if it is closed meanwhile. If the lock stays taken, a thread waits for a silent or full pipe;
    what it uses is then left open until the process ends.
    """
    taken = lock.acquire(timeout=seconds)
    try:
        yield taken
    finally:
        if taken:
            lock.release()
