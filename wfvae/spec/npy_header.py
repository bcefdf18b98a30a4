"""The header of an `.npy` file, version 1.0.

numpy evaluates a header as a Python literal; this reads the form that everyone writes.
"""

import math
import re
from typing import Any

import numpy as np

from wfvae.spec.bounded import Fail

HEADER_BYTES = 10 + (1 << 16)
"""No header is longer."""
_MAGIC, _START = b"\x93NUMPY\x01\x00", 10
_KEYS = {
    "descr": re.compile(r"'descr': ?'([<>|=][biufc]\d{1,2})'"),
    "order": re.compile(r"'fortran_order': ?(True|False)"),
    "shape": re.compile(r"'shape': ?\((\d{1,18}(?:, ?\d{1,18}){0,15},?|)\)"),
}
_HEADER = re.compile(rf"\{{(?:(?:{'|'.join(key.pattern for key in _KEYS.values())}),? ?){{3}}\}}\s*")


def parse_header(data: bytes, size: int, fail: Fail) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Returns shape, type, and the byte at which the data begin, which are all there, in C order.

    Args:
        data: the file's first bytes, `HEADER_BYTES` or all that it has.
        size: the file's length in bytes.
    """
    if data[: len(_MAGIC)] != _MAGIC or len(data) < _START:
        raise fail("it does not begin as an .npy file of version 1.0")
    start = _START + int.from_bytes(data[len(_MAGIC) : _START], "little")
    if len(data) < start:
        raise fail("it is cut short inside its header")
    text = data[_START:start].decode("latin-1")
    found = {name: pattern.findall(text) for name, pattern in _KEYS.items()}
    if not _HEADER.fullmatch(text) or any(len(part) != 1 for part in found.values()):
        raise fail("its header is not that of a plain array")
    shape = tuple(int(side) for side in found["shape"][0].replace(" ", "").split(",") if side)
    try:
        dtype = np.dtype(found["descr"][0])
    except TypeError as error:
        raise fail(f"its values have the type {found['descr'][0]}, which is not known") from error
    needed = start + math.prod(shape) * dtype.itemsize
    if size < needed:
        raise fail(f"it has {size} bytes, and its header describes {needed}")
    if found["order"] == ["True"] and len(shape) > 1:
        raise fail("it is in Fortran order")
    return shape, dtype, start
