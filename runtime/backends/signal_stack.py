"""The stack that a thread's signal handlers run on, kept where a library would leave it in pieces."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_DISABLED = 2
"""SS_DISABLE: handlers run on the thread's own stack."""


class _SignalStack(ctypes.Structure):
    """Linux's stack_t."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Gives the calling thread the signal stack back that it had before.

    OpenVINO's CPU plugin registers one for the thread that loads it, and unmaps its memory when it
    is unloaded. The stack before is put back only if plugins go in the reverse of the order in
    which they came, and on the same threads; otherwise the thread is left with one that no longer
    exists, and the next signal, handled or not, ends the process. Does nothing but on Linux, where
    that is so; and nothing where the stack before is not told.
    """
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    before = _SignalStack()
    known = libc.sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        # Refused if the processor's state has outgrown it meanwhile (a program that may use AMX):
        # then none is safe, too.
        if known and libc.sigaltstack(ctypes.byref(before), None) != 0:
            libc.sigaltstack(ctypes.byref(_SignalStack(None, _DISABLED, 0)), None)
