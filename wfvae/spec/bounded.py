"""Reads files that anyone may have written: JSON, TOML and fractions, within bounds.

Whatever is wrong with a file is one error, made by the caller's `fail` from a phrase that says what
was found. Nothing here recurses, waits or computes longer than the file's size allows.
"""

import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from wfvae.errors import WFVAEError

Fail = Callable[[str], WFVAEError]

JSON_BYTES = 1 << 24
TOML_BYTES = 1 << 16
DEPTH = 32
"""Containers inside containers; a manifest has 7."""
LARGEST_INTEGER = 2**63 - 1
LARGEST_TERM = 2**31 - 1
"""Of a fraction, as FFmpeg takes it."""
_KEY_DOTS = 100
"""Dots in a line of TOML: tomllib's time grows with the square of a key's parts."""
_DIGITS = 19
_LONGEST_REASON = 200
_FRACTION = re.compile(r"(\d{1,10})(?:/(\d{1,10})|\.(\d{1,9}))?", re.ASCII)


def open_regular(path: Path, fail: Fail, *, follow: bool = True, buffering: int = 0) -> BinaryIO:
    """Opens a regular file for reading; refuses pipes, devices and folders.

    Args:
        follow: False refuses symbolic links, too.
        buffering: as of `open`; by default there is none.
    """
    # Without O_NONBLOCK, opening a pipe would wait for its writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise fail(getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise fail("it is not a regular file")
    return open(descriptor, "rb", buffering=buffering)


def read_bytes(path: Path, fail: Fail, most: int) -> bytes:
    """Reads a regular file of at most `most` bytes."""
    with open_regular(path, fail) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise fail(f"it has {size} bytes; expected at most {most}")
        try:
            return file.read(size)
        except (OSError, MemoryError) as error:
            raise fail(getattr(error, "strerror", None) or "out of memory") from error


def read_exactly(file: BinaryIO, buffer: memoryview, offset: int) -> bool:
    """Fills `buffer` from an offset of a file; returns whether the file held so much.

    It never maps the file: a mapped file that shrinks ends the process by SIGBUS.
    """
    done = 0
    while done < len(buffer):
        count = os.preadv(file.fileno(), [buffer[done:]], offset + done)
        if not count:
            return False
        done += count
    return True


def parse_json(
    data: bytes | str, fail: Fail, *, any_text: bool = False, finite: bool = True, depth: int = DEPTH
) -> Any:
    """Parses JSON whose depth, integers and floats are bounded.

    Args:
        any_text: allow lone surrogates, which stand for bytes of file names that are not UTF-8.
        finite: refuse NaN and infinity, which are no JSON but which Python writes.
        depth: containers inside of containers at most.
    """

    def integer(digits: str) -> int:
        if len(digits) > _DIGITS + 1 or abs(value := int(digits)) > LARGEST_INTEGER:
            raise fail(f"it holds an integer of {len(digits)} characters; expected 64 bits")
        return value

    def number(text: str) -> float:
        value = float(text)
        if finite and not math.isfinite(value):
            raise fail(f"it holds {text[:_DIGITS]}; expected a finite number")
        return value

    try:
        text = data if isinstance(data, str) else data.decode()
        parsed = json.loads(text, parse_constant=number, parse_int=integer, parse_float=number)
    except WFVAEError:
        raise
    except RecursionError as error:
        raise fail(f"it nests more than {DEPTH} levels") from error
    except (ValueError, MemoryError) as error:
        raise fail(_reason(error)) from error
    check_values(parsed, fail, any_text=any_text, depth=depth)
    return parsed


def parse_object(data: bytes | str, fail: Fail, *, finite: bool = True, depth: int = DEPTH) -> dict[str, Any]:
    """Parses a JSON object as `parse_json` does; refuses other values."""
    parsed = parse_json(data, fail, finite=finite, depth=depth)
    if not isinstance(parsed, dict):
        raise fail(f"expected a JSON object, found {type(parsed).__name__}")
    return parsed


def read_json(path: Path, fail: Fail) -> dict[str, Any]:
    """Reads a JSON object from a file."""
    return parse_object(read_bytes(path, fail, JSON_BYTES), fail)


def parse_toml(data: bytes | str, fail: Fail) -> dict[str, Any]:
    """Parses TOML of at most 64 KiB, bounded as `parse_json` does, but for NaN and infinity."""
    try:
        text = data if isinstance(data, str) else data.decode()
        if len(text) > TOML_BYTES:
            raise fail(f"it has {len(text)} characters; expected at most {TOML_BYTES}")
        if any(line.count(".") > _KEY_DOTS for line in text.splitlines()):
            raise fail(f"a line holds more than {_KEY_DOTS} dots")
        parsed = tomllib.loads(text)
    except WFVAEError:
        raise
    except RecursionError as error:
        raise fail(f"it nests more than {DEPTH} levels") from error
    except (ValueError, MemoryError) as error:  # also an integer of thousands of digits, a wrong date
        raise fail(_reason(error)) from error
    check_values(parsed, fail)
    return parsed


def read_toml(path: Path, fail: Fail) -> dict[str, Any]:
    """Reads a TOML file."""
    return parse_toml(read_bytes(path, fail, TOML_BYTES), fail)


def to_fraction(value: object) -> Fraction:
    """Converts `25`, `"25"`, `"30000/1001"`, `"29.97"` or a float to a fraction of 32-bit terms.

    Raises:
        ValueError: it is no such number; an exponent could ask for a billion digits.

    >>> to_fraction("30000/1001")
    Fraction(30000, 1001)
    """
    found = None
    if isinstance(value, str) and (match := _FRACTION.fullmatch(value)):
        whole, divisor, decimals = match.groups()
        if divisor is None or int(divisor):
            found = Fraction(f"{whole}.{decimals}") if decimals else Fraction(int(whole), int(divisor or 1))
    elif isinstance(value, float) and math.isfinite(value):
        found = Fraction(value).limit_denominator(10**6)
    elif isinstance(value, int | Fraction) and not isinstance(value, bool):
        found = Fraction(value)
    if found is None or max(abs(found.numerator), found.denominator) > LARGEST_TERM:
        expected = f"expected a fraction such as 30000/1001, its terms at most {LARGEST_TERM}"
        raise ValueError(f"{_shorten(repr(value))} is not a rate or a tick; {expected}")
    return found


def check_values(parsed: object, fail: Fail, *, any_text: bool = False, depth: int = DEPTH) -> None:
    """Refuses depth, integers and text that later code does not expect. Does not recurse."""
    level, found = [parsed], 0
    while level:
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.values()
                below += value
            elif isinstance(value, list):
                below += value
            elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
                raise fail("it holds an integer of more than 64 bits")
            elif isinstance(value, str) and not (any_text or value.isascii()):
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    raise fail("it holds text that is not UTF-8") from error
        level, found = below, found + 1
        if found > depth + 1:
            raise fail(f"it nests more than {depth} levels")


def _reason(error: Exception) -> str:
    return _shorten(" ".join(str(error).split()) or type(error).__name__)


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
