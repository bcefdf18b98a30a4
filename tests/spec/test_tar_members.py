"""Members of tar files, whole and forged."""

import io
import tarfile
from pathlib import Path

import pytest

from wfvae.errors import DataError
from wfvae.spec.tar_members import Member, read_member, read_members

LONG = "folder/" + "n" * 300 + "é.mp4"


def packed(form: int = tarfile.PAX_FORMAT, *names: str, sizes: int = 700) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = sizes
            archive.addfile(entry, io.BytesIO(name.encode().ljust(sizes, b"_")))
    return file.getvalue()


def members(data: bytes) -> list[Member]:
    return list(read_members(io.BytesIO(data), DataError))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_every_format_are_those_of_tarfile(form: int) -> None:
    names = ["a.mp4", "b/c.json", "é.txt"] + ([] if form == tarfile.USTAR_FORMAT else [LONG])
    data = packed(form, *names)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(entry.name, entry.offset, entry.offset_data, entry.size) for entry in archive]
    found = members(data)
    assert [tuple(member) for member in found] == expected
    content = read_member(io.BytesIO(data), found[1], 1000, DataError)
    assert content.rstrip(b"_") == b"b/c.json"


def test_links_pipes_and_folders_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for kind in kinds:
            entry = tarfile.TarInfo(f"{kind.decode()}.mp4")
            entry.type, entry.linkname, entry.size = kind, "/etc/passwd", 1 << 20
            archive.addfile(entry)
        archive.add(tmp_path / "a.mp4", "a.mp4")
    assert [member.name for member in members(file.getvalue())] == ["a.mp4"]


def header(kind: bytes, size: int, name: str = "a.mp4") -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.GNU_FORMAT)


def extended(text: bytes) -> bytes:
    return header(tarfile.XHDTYPE, len(text)) + text.ljust(512, b"\0") + header(tarfile.REGTYPE, 0)


FORGED = {
    "nothing": (b"", "it is empty"),
    "no archive": (b"no archive" * 100, "damaged at byte 0"),
    "a damaged second header": (packed(0, "a")[:1536] + b"x" * 512, "damaged at byte 1536"),
    "less data than stated": (header(tarfile.REGTYPE, 1 << 40), "cut short"),
    "half a header": (packed(0, "a", "b")[:1600], "damaged at byte 1536"),
    "a negative size": (header(tarfile.REGTYPE, -512), "-512 bytes"),
    "a long name of a terabyte": (header(tarfile.GNUTYPE_LONGNAME, 1 << 40), "about one member"),
    "an extended header of a terabyte": (header(tarfile.XHDTYPE, 1 << 40), "about one member"),
    "extended headers without end": (header(tarfile.XHDTYPE, 0) * 9, "about one member"),
    "a sparse member": (header(tarfile.GNUTYPE_SPARSE, 0), "sparse"),
    "a sparse member of PAX": (extended(b"22 GNU.sparse.major=1\n"), "sparse"),
    "a record without a length": (extended(b"path=a\n"), "damaged extended header"),
    "a record of length 0": (extended(b"0 path=a\n"), "damaged extended header"),
    "a size that is no number": (extended(b"11 size=-1\n"), "as a member's size"),
    "a name with a zero byte": (extended(b"12 path=a\0b\n"), "name of 3 characters"),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_archive_is_refused_in_one_line(case: str) -> None:
    data, problem = FORGED[case]
    with pytest.raises(DataError, match=problem) as caught:
        members(data)
    assert "\n" not in str(caught.value)


def test_member_larger_than_expected_is_not_read() -> None:
    data = packed(tarfile.PAX_FORMAT, "a.json")
    with pytest.raises(DataError, match="700 bytes where at most 100 are expected"):
        read_member(io.BytesIO(data), members(data)[0], 100, DataError)
