"""Closing what is used in a `with` block, also where another thread may be using it."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

CLOSE_SECONDS = 5.0
"""How long closing waits for the frame that another thread reads or writes."""


class Closing(ABC):
    """Is closed when its `with` block is left."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None: ...


def close_when_free(lock: threading.Lock, close: Callable[[], None], seconds: float = CLOSE_SECONDS) -> None:
    """Calls `close` with `lock` held, unless the lock stays taken for `seconds`.

    A reader or writer holds its lock while it works on a frame, because FFmpeg crashes the process
    if it is closed meanwhile. If the lock stays taken, a thread waits for a silent or full pipe;
    what it uses is then left open until the process ends.
    """
    if lock.acquire(timeout=seconds):
        try:
            close()
        finally:
            lock.release()
