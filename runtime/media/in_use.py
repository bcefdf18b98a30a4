"""What one thread reads or writes with, and another closes: never at the same time, since FFmpeg
crashes the process then.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 5.0
"""Seconds that closing waits for the frame in the making."""


@contextmanager
def turn_to_close(lock: threading.Lock, seconds: float = PATIENCE) -> Iterator[bool]:
    """Whether it is safe to close: `lock`, which is held while a frame is read or written, is free
    within `seconds`.

    If not, a thread waits inside for a pipe that is silent or full. What it uses is then left open:
    it ends with the process.
    """
    taken = lock.acquire(timeout=seconds)
    try:
        yield taken
    finally:
        if taken:
            lock.release()
