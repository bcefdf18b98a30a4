"""Whether a file is shorter than its own container says.

Demuxers report a file that was cut off as a normal end of stream more often than not. MP4, Matroska
and AVI state the length of their outer parts, so the cut can be seen without decoding anything.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

EBML_HEADER, SEGMENT = 0x1A45DFA3, 0x18538067
MP4_BOXES = frozenset(
    {
        b"ftyp",
        b"moov",
        b"mdat",
        b"free",
        b"skip",
        b"wide",
        b"pnot",
        b"moof",
        b"styp",
        b"sidx",
        b"mfra",
        b"uuid",
        b"udta",
        b"meta",
    }
)


def missing_bytes(path: Path) -> int:
    """Bytes that the container at `path` states beyond the end of the file; 0 if it is whole, or
    states no length (live recordings).
    """
    size = os.path.getsize(path)
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF":
            return (
                max(0, struct.unpack("<I", head[4:8])[0] + 8 - size)
                if head[8:12] == b"AVI " and size < 2**31
                else 0
            )
        if head[:4] == EBML_HEADER.to_bytes(4, "big"):
            return max(0, _matroska_end(file) - size)
        if head[4:8] in MP4_BOXES:
            return max(0, _mp4_end(file, size) - size)
    return 0


def _mp4_end(file: BinaryIO, size: int) -> int:
    """Where the last top-level box ends. A box of size 0 reaches to the end of the file, a size of
    1 is followed by 64 bits.
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
    if int.from_bytes(file.read(4), "big") != SEGMENT:
        return 0
    segment_size = _ebml_number(file)
    return 0 if segment_size is None else file.tell() + segment_size


def _ebml_number(file: BinaryIO) -> int | None:
    """An EBML variable-length size: the count of leading zero bits gives its length. All ones means
    unknown.
    """
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    value = int.from_bytes(bytes([first[0] & (0xFF >> length)]) + rest, "big")
    unknown = (1 << (7 * length)) - 1
    return None if len(rest) < length - 1 or value == unknown else value
