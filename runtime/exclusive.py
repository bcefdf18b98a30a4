"""Objects that one thread at a time may use: a second one is refused before it changes anything."""

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from wfvae.errors import StreamingError

Method = TypeVar("Method", bound=Callable[..., Any])


class Exclusive:
    """Base of such objects. Those that are used together share one `user`."""

    user: Any
    """The lock (`new_user`) that a call holds; the thread that holds it may call other methods."""


def new_user() -> Any:
    """Returns a lock for `Exclusive.user`."""
    return threading.RLock()


def exclusive(method: Method) -> Method:
    """Makes a method raise `StreamingError` while another thread is in one of the same object."""

    @wraps(method)
    def call(self: Exclusive, *args: Any, **options: Any) -> Any:
        if not self.user.acquire(blocking=False):
            raise StreamingError(
                f"{method.__name__} was called while another thread uses the stream or pool, which is"
                " unchanged; use each from one thread at a time"
            )
        try:
            return method(self, *args, **options)
        finally:
            self.user.release()

    return cast(Method, call)
