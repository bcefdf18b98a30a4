"""The thread's signal stack around a block that replaces it, as OpenVINO's plugin does."""

from __future__ import annotations

import ctypes
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from wfvae.runtime.backends.signal_stack import preserved_signal_stack

if sys.platform != "linux":
    pytest.skip("the runtime preserves signal stacks on Linux only", allow_module_level=True)

STACK = struct.Struct("PiN")
"""stack_t as Linux has it: address, flags, size."""
LIBC = ctypes.CDLL(None, use_errno=True)
MEMORY = [ctypes.create_string_buffer(1 << 16) for _ in range(2)]
"""Of two stacks; it outlives the threads that use them."""
DISABLED = (0, 2, 0)
OURS, OTHERS = ((ctypes.addressof(memory), 0, len(memory)) for memory in MEMORY)


def install(stack: tuple[int, int, int]) -> None:
    assert LIBC.sigaltstack(STACK.pack(*stack), None) == 0


def installed() -> tuple[int, ...]:
    found = ctypes.create_string_buffer(STACK.size)
    assert LIBC.sigaltstack(None, found) == 0
    stack = STACK.unpack(found.raw)
    return DISABLED if stack[1] == DISABLED[1] else stack


def left_after(before: tuple[int, int, int], replacement: tuple[int, int, int]) -> tuple[int, ...]:
    """What is installed after the block, in a new thread: in the main one, faulthandler has one."""

    def work() -> tuple[int, ...]:
        install(before)
        with pytest.raises(KeyError), preserved_signal_stack():
            install(replacement)
            assert installed() == replacement
            raise KeyError
        return installed()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@pytest.mark.parametrize("replacement", [OTHERS, DISABLED])
@pytest.mark.parametrize("before", [OURS, DISABLED])
def test_replaced_stack_is_restored_also_after_an_error(before: Any, replacement: Any) -> None:
    assert left_after(before, replacement) == before


class Refusing:
    """The C library with a sigaltstack that refuses to answer, or to set an enabled stack."""

    def __init__(self, refused: str) -> None:
        self.refused = refused

    def sigaltstack(self, new: Any, old: Any) -> int:
        kind = "ask" if new is None else "set" if STACK.unpack(bytes(new._obj))[1] == 0 else "disable"
        return -1 if kind == self.refused else int(LIBC.sigaltstack(new, old))


@pytest.mark.parametrize(("refused", "left"), [("set", DISABLED), ("ask", OTHERS), ("nothing", OURS)])
def test_refused_call_leaves_no_unsafe_stack(
    monkeypatch: pytest.MonkeyPatch, refused: str, left: tuple[int, int, int]
) -> None:
    """A stack that cannot be restored leaves none, and one that is unknown is left alone."""
    monkeypatch.setattr(ctypes, "CDLL", lambda *arguments, **options: Refusing(refused))
    assert left_after(OURS, OTHERS) == left
