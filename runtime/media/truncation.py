"""Whether a file is shorter than its own container states.

Demuxers mostly report a file that was cut off as a normal end of stream. MP4, Matroska and AVI
state the length of their outer parts, so the cut is found without decoding anything.
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO

EBML_HEADER, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
RIFF_UNKNOWN = 0xFFFFFF00
"""AVI lengths from here on were written before the true one was known, as into a pipe."""
MP4_UNKNOWN = 1 << 63
MP4_BOXES = frozenset(b"ftyp moov mdat free skip wide pnot moof styp sidx mfra uuid udta meta".split())


def missing_bytes(path: Path) -> int:
    """Bytes that the container states beyond the end of the file.

    0 if the file is whole, or states no length (live recordings).
    """
    size = os.path.getsize(path)
    with path.open("rb") as file:
        head = file.read(12)
        end = 0
        if head[:4] == b"RIFF" and head[8:12] == b"AVI " and size < 2**31:
            length = int(struct.unpack("<I", head[4:8])[0])
            end = 0 if length >= RIFF_UNKNOWN else length + 8
        elif head[:4] == EBML_HEADER:
            end = _matroska_end(file)
        elif head[4:8] in MP4_BOXES:
            end = _mp4_end(file, size)
    return max(0, end - size)


def _mp4_end(file: BinaryIO, size: int) -> int:
    """Where the last top-level box ends.

    A box of size 0 reaches to the end of the file; after a size of 1 the size follows as 64 bits,
    all ones if it was unknown.
    """
    position = 0
    while position + 8 <= size:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind not in MP4_BOXES or length == 0:
            return 0
        if length == 1:
            extended = file.read(8)
            if len(extended) < 8:
                return position + 16
            (length,) = struct.unpack(">Q", extended)
            if length >= MP4_UNKNOWN:
                return 0
        if length < 8:
            return 0
        position += length
    return position


def _matroska_end(file: BinaryIO) -> int:
    """Where the segment ends; 0 if its size is unknown, as in a recording that was streamed."""
    file.seek(4)
    header_size = _ebml_number(file)
    if header_size is None:
        return 0
    file.seek(header_size, os.SEEK_CUR)
    if file.read(4) != SEGMENT:
        return 0
    segment_size = _ebml_number(file)
    return 0 if segment_size is None else file.tell() + segment_size


def _ebml_number(file: BinaryIO) -> int | None:
    """Reads a variable-length size; None if it is incomplete, or all ones, which means unknown.

    The count of leading zero bits gives its length.
    """
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    value = int.from_bytes(bytes([first[0] & (0xFF >> length)]) + rest, "big")
    unknown = (1 << (7 * length)) - 1
    return None if len(rest) < length - 1 or value == unknown else value
