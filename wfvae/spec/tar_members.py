"""The members of a tar file: names and places of its regular files, within bounds.

Only headers are read. Python's `tarfile` keeps every member, reads names of any length, follows
sparse maps, and takes a damaged header for the end of the archive.
"""

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from wfvae.spec.bounded import Fail

_BLOCK = tarfile.BLOCKSIZE
_EXTENDED_BYTES = 1 << 16
"""Of the headers that give a member a long name."""
_EXTENSIONS_AT_MOST = 4
_LONGEST_NAME = 4096
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_EXTENSIONS = frozenset({tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, _LONG_NAME, _LONG_LINK})
_FILES = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
_WITHOUT_DATA = frozenset(
    {tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE}
)


class Member(NamedTuple):
    """A regular file in an archive."""

    name: str
    """What is not UTF-8 stands as lone surrogates."""
    header: int
    """Byte of the archive at which its headers begin."""
    start: int
    """Byte at which its data begin."""
    size: int

    @property
    def end(self) -> int:
        """The byte behind its last block."""
        return self.start + -(-self.size // _BLOCK) * _BLOCK


def read_members(file: BinaryIO, fail: Fail) -> Iterator[Member]:
    """Yields the regular files of an uncompressed tar file in order, without links and pipes.

    The caller may read elsewhere in the file between two members. What is damaged, sparse or cut
    short raises what `fail` makes.
    """
    length = file.seek(0, os.SEEK_END)
    position = header = 0
    extended: dict[str, str] = {}
    extensions = 0
    while position < length:
        entry = _entry(_read(file, position, _BLOCK), position, fail)
        if entry is None:
            break
        start = position + _BLOCK
        if entry.type in _EXTENSIONS:
            extensions += 1
            if entry.size > _EXTENDED_BYTES or extensions > _EXTENSIONS_AT_MOST:
                raise fail(f"it has more than {_EXTENDED_BYTES} bytes about one member at byte {position}")
            extended |= _extended(entry.type, _read(file, start, entry.size), fail)
            position = start + _padded(entry.size)
            continue
        size = _size(extended.get("size"), entry.size, fail)
        if entry.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in extended):
            raise fail("it has a sparse member; pack it without --sparse")
        taken = 0 if entry.type in _WITHOUT_DATA else size
        if start + taken > length:
            raise fail(f"it is cut short: a member needs {start + taken} bytes, and it has {length}")
        if entry.type in _FILES and not entry.name.endswith("/"):
            name = extended.get("path", entry.name)
            if not name or len(name) > _LONGEST_NAME or "\0" in name:
                raise fail(f"it has a name of {len(name)} characters at byte {position}")
            yield Member(name, header, start, size)
        position = header = start + _padded(taken)
        extended, extensions = {}, 0
    if not length:
        raise fail("it is empty")


def read_member(file: BinaryIO, member: Member, most: int, fail: Fail) -> bytes:
    """Reads a member of at most `most` bytes."""
    if member.size > most:
        raise fail(f"it has a member of {member.size} bytes where at most {most} are expected")
    return _read(file, member.start, member.size)


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _entry(block: bytes, position: int, fail: Fail) -> tarfile.TarInfo | None:
    """Returns a header, or None for the block that ends the archive."""
    if not any(block):
        return None
    try:
        entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise fail(f"it is damaged at byte {position}: {error}") from error
    if entry.size < 0:
        raise fail(f"it has a member of {entry.size} bytes at byte {position}")
    return entry


def _extended(kind: bytes, data: bytes, fail: Fail) -> dict[str, str]:
    """Returns what matters of a header that extends the next one."""
    if kind == _LONG_NAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    while kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE) and data.rstrip(b"\0"):
        digits, _, _ = data[:8].partition(b" ")
        count = int(digits) if digits.isdigit() else 0
        record, data = data[len(digits) + 1 : count], data[max(count, 1) :]
        key, is_there, value = record.partition(b"=")
        if not is_there or not record.endswith(b"\n"):
            raise fail("it has a damaged extended header")
        found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
    return found


def _size(text: str | None, stated: int, fail: Fail) -> int:
    if text is None:
        return stated
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise fail(f"it states {text[:40]!r} as a member's size")
    return int(text)
