"""The thread's signal stack around a block that replaces it, as OpenVINO's plugin does."""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from wfvae.runtime.backends.signal_stack import preserved_signal_stack

if sys.platform != "linux":
    pytest.skip("the runtime preserves signal stacks on Linux only", allow_module_level=True)

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
    """What is installed after the block, in a new thread: in the main one, faulthandler has one."""

    def work() -> tuple[int, ...]:
        assert installed() == DISABLED, "a new thread has none"
        install(before)
        with preserved_signal_stack():
            body()
        return installed()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


BEFORE = {"one": stack_in(OURS), "none": DISABLED}
REPLACEMENT = {"another": stack_in(OTHERS), "none": DISABLED}


@pytest.mark.parametrize("after", REPLACEMENT)
@pytest.mark.parametrize("before", BEFORE)
def test_replaced_stack_is_restored(before: str, after: str) -> None:
    def body() -> None:
        install(REPLACEMENT[after])
        assert installed() == REPLACEMENT[after]

    assert around(BEFORE[before], body) == BEFORE[before]


def test_stack_is_restored_after_an_error() -> None:
    def body() -> None:
        with pytest.raises(KeyError), preserved_signal_stack():
            install(stack_in(OTHERS))
            raise KeyError
        assert installed() == stack_in(OURS)

    assert around(stack_in(OURS), body) == stack_in(OURS)


class Refusing:
    """The C library with a sigaltstack that refuses to answer, or to set an enabled stack."""

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
def test_refused_call_leaves_no_unsafe_stack(
    monkeypatch: pytest.MonkeyPatch, refused: str, calls: list[str], left: tuple[int, int, int]
) -> None:
    """A stack that cannot be restored leaves none, and one that is unknown is left alone."""
    library = Refusing(refused)
    monkeypatch.setattr(ctypes, "CDLL", lambda *arguments, **options: library)
    assert around(stack_in(OURS), lambda: install(stack_in(OTHERS))) == left
    assert library.calls == calls
