"""The thread's signal stack around a body that replaces it, as OpenVINO's plugin does; here without
OpenVINO.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from wfvae.runtime.backends.signal_stack import kept_signal_stack

if sys.platform != "linux":
    pytest.skip("the runtime leaves signal stacks alone but on Linux", allow_module_level=True)

STACK = struct.Struct("PiN")
"""stack_t as Linux has it: address, flags, size."""
DISABLED = (0, 2, 0)
LIBC = ctypes.CDLL(None, use_errno=True)
BYTES = 1 << 16
OURS, OTHERS = ctypes.create_string_buffer(BYTES), ctypes.create_string_buffer(BYTES)
"""Memory of two stacks, which outlives the threads that use them."""


def stack_in(memory: Any) -> tuple[int, int, int]:
    return ctypes.addressof(memory), 0, BYTES


def install(stack: tuple[int, int, int]) -> None:
    assert LIBC.sigaltstack(STACK.pack(*stack), None) == 0


def installed() -> tuple[int, ...]:
    found = ctypes.create_string_buffer(STACK.size)
    assert LIBC.sigaltstack(None, found) == 0
    address, flags, size = STACK.unpack(found.raw)
    return DISABLED if flags == DISABLED[1] else (address, flags, size)


def around(before: tuple[int, int, int], body: Callable[[], Any]) -> tuple[int, ...]:
    """What is installed after the block, in a thread of its own: pytest's faulthandler has one in
    the main thread.
    """

    def work() -> tuple[int, ...]:
        assert installed() == DISABLED, "a new thread has none"
        install(before)
        with kept_signal_stack():
            body()
        return installed()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


BEFORE = {"one": stack_in(OURS), "none": DISABLED}
REPLACEMENT = {"another": stack_in(OTHERS), "none": DISABLED}


@pytest.mark.parametrize("after", REPLACEMENT)
@pytest.mark.parametrize("before", BEFORE)
def test_the_stack_before_is_given_back(before: str, after: str) -> None:
    def body() -> None:
        install(REPLACEMENT[after])
        assert installed() == REPLACEMENT[after]

    assert around(BEFORE[before], body) == BEFORE[before]


def test_it_is_given_back_after_an_error() -> None:
    def body() -> None:
        with pytest.raises(KeyError), kept_signal_stack():
            install(stack_in(OTHERS))
            raise KeyError
        assert installed() == stack_in(OURS)

    assert around(stack_in(OURS), body) == stack_in(OURS)


class Refusing:
    """The C library, but for calls of sigaltstack that it refuses: those that ask, or those that
    set an enabled stack.
    """

    def __init__(self, refused: str) -> None:
        self.refused, self.calls = refused, list[str]()

    def sigaltstack(self, new: Any, old: Any) -> int:
        kind = "ask" if new is None else "set" if STACK.unpack(bytes(new._obj))[1] == 0 else "disable"
        self.calls.append(kind)
        return -1 if kind == self.refused else int(LIBC.sigaltstack(new, old))


@pytest.mark.parametrize(
    ("refused", "calls", "left"),
    [
        ("set", ["ask", "set", "disable"], DISABLED),
        ("ask", ["ask"], stack_in(OTHERS)),
        ("nothing", ["ask", "set"], stack_in(OURS)),
    ],
)
def test_what_is_refused(
    monkeypatch: pytest.MonkeyPatch, refused: str, calls: list[str], left: tuple[int, int, int]
) -> None:
    """A stack that is not taken back leaves none, rather than one whose memory may go; if none
    could be asked for, nothing is touched.
    """
    library = Refusing(refused)
    monkeypatch.setattr(ctypes, "CDLL", lambda *arguments, **options: library)
    assert around(stack_in(OURS), lambda: install(stack_in(OTHERS))) == left
    assert library.calls == calls
