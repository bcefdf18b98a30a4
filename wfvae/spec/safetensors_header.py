"""The header of a safetensors file: names, types, shapes and places of its tensors, all checked.

The library `safetensors` maps files into memory, and a mapped file that shrinks ends the process;
its header alone also says what a file needs before anything is allocated.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO

import msgspec
from msgspec import Meta

from wfvae.spec.bounded import JSON_BYTES, LARGEST_INTEGER, Fail, parse_object, read_exactly
from wfvae.spec.records import read_as

DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
Count = Annotated[int, Meta(ge=0, le=LARGEST_INTEGER)]


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of the file."""

    dtype: Annotated[str, Meta(max_length=16)]
    shape: Annotated[tuple[Count, ...], Meta(max_length=16)]
    data_offsets: tuple[Count, Count]
    """First byte and the byte after the last one, counted from the end of the header."""


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a file holds."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]
    data_start: int
    """Byte of the file at which the data begin."""


def read_header(file: BinaryIO, fail: Fail) -> SafetensorsHeader:
    """Reads the header of an open file, whose size must be what the header describes."""
    size = os.fstat(file.fileno()).st_size
    length = bytearray(_LENGTH_BYTES)
    if not read_exactly(file, memoryview(length), 0):
        raise fail(f"it has {size} bytes, and a safetensors file at least {_LENGTH_BYTES}")
    count = int.from_bytes(length, "little")
    if count > min(size - _LENGTH_BYTES, JSON_BYTES):
        raise fail(f"its header has {count} bytes, more than the file or than {JSON_BYTES}")
    text = bytearray(count)
    if not read_exactly(file, memoryview(text), _LENGTH_BYTES):
        raise fail("it is cut short inside its header")
    return _parse(bytes(text), size, fail)


def parse_header(data: bytes, fail: Fail) -> SafetensorsHeader:
    """Parses the header of a whole file's content."""
    count = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or count > min(len(data) - _LENGTH_BYTES, JSON_BYTES):
        raise fail("its header is longer than the file")
    return _parse(data[_LENGTH_BYTES : _LENGTH_BYTES + count], len(data), fail)


def _parse(text: bytes, size: int, fail: Fail) -> SafetensorsHeader:
    content: dict[str, Any] = parse_object(text, fail)
    metadata = read_as(dict[str, str], content.pop(_METADATA, {}), fail, name=_METADATA)
    tensors = read_as(dict[str, TensorEntry], content, fail)
    start, end = _LENGTH_BYTES + len(text), 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        if entry.dtype not in DTYPE_BYTES:
            raise fail(f"the tensor {name[:100]} has the type {entry.dtype!r}, which is not known")
        needed = math.prod(entry.shape) * DTYPE_BYTES[entry.dtype]
        first, last = entry.data_offsets
        if (first, last) != (end, end + needed):
            described = f"{entry.dtype} of shape {list(entry.shape)}, {needed} bytes"
            raise fail(f"the tensor {name[:100]} is {described}, but lies at {first} to {last}")
        end = last
    if start + end != size:
        raise fail(f"its header describes {start + end} bytes, and the file has {size}")
    return SafetensorsHeader(metadata, tensors, start)
