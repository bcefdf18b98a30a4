"""Preserves the memory that a thread's signal handlers run on, while a library replaces it."""

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
def preserved_signal_stack() -> Iterator[None]:
    """Restores the calling thread's signal stack at the end of the block. Acts on Linux only.

    OpenVINO's CPU plugin registers a signal stack for the thread that loads it, and unmaps its
    memory when it is unloaded. Unless plugins are unloaded in the reverse order of their loading,
    and on the same threads, a thread is left with a stack that no longer exists, and the next
    signal ends the process.
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
        # The kernel refuses a stack that the processor's state has outgrown, as after a program
        # enabled AMX. Then no other one is safe either.
        if known and libc.sigaltstack(ctypes.byref(before), None) != 0:
            libc.sigaltstack(ctypes.byref(_SignalStack(None, _DISABLED, 0)), None)
