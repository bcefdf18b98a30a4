"""Mutations of tar files, tables of videos, and files of `torch.save`, by a random generator."""

import csv
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path
from random import Random
from typing import Any

from mutations.changes import VALUES, as_text, change_bytes, change_json

KINDS = [b"0", b"1", b"2", b"3", b"5", b"6", b"L", b"K", b"x", b"g", b"S", b"7", b"Z", b"\0"]
NAMES = [
    "",
    ".",
    "..",
    "../x.mp4",
    "/tmp/x.mp4",
    "a/../../b.npy",
    "x" * 300 + ".mp4",
    "\x1b[31m.mp4",
    "\udcff.mp4",
]
NUMBERS = [
    b"00000000000\0",
    b"77777777777\0",
    b"\xff" * 12,
    b"\x80" + b"\xff" * 11,
    b"-1234567890\0",
    b"z" * 12,
]
RECORDS = [
    b"13 path=../x\n",
    b"0 path=a\n",
    b"20 size=9999999999\n",
    b"12 size=-10\n",
    b"22 GNU.sparse.major=1\n",
    b"99999999999999999999 path=a\n",
    b"path",
    b"9 =\n" * 9,
]
CELLS = [
    "",
    "a.mp4",
    "/dev/zero",
    "../a.mp4",
    "\0",
    "file:///etc/passwd",
    "x" * 200_000,
    "memory://a.mp4",
    "a::b://c.mp4",
]


def change_tar(data: bytes, random: Random) -> bytes:
    """Changes bytes anywhere, or fields of headers whose checksums fit."""
    if random.random() < 0.25:
        return change_bytes(data, random)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        offsets = [entry.offset for entry in archive]
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2))):
        place = random.choice(offsets)
        match random.randrange(6):
            case 0:
                changed[place + 124 : place + 136] = random.choice(NUMBERS)
            case 1:
                changed[place + 156 : place + 157] = random.choice(KINDS)
            case 2:
                name = random.choice(NAMES).encode(errors="surrogateescape")[:100]
                changed[place : place + 100] = name.ljust(100, b"\0")
            case 3:
                changed[place + 257 : place + 265] = random.choice((b"ustar\x0000", b"ustar  \0", b"\0" * 8))
                changed[place + 345 : place + 500] = random.randbytes(155)
            case 4:
                part = random.randrange(0, 500)
                changed[place + part : place + part + 8] = random.randbytes(8)
            case 5:
                text = random.choice(RECORDS)
                entry = tarfile.TarInfo("x")
                entry.type, entry.size = random.choice((b"x", b"g", b"L")), len(text)
                header = entry.tobuf(tarfile.GNU_FORMAT) + text.ljust(512, b"\0")
                changed[place:place] = header * random.choice((1, 1, 3, 60))
        sign(changed, place)
    return bytes(changed)


def sign(data: bytearray, place: int) -> None:
    """Writes the checksum of the header at a byte."""
    data[place + 148 : place + 156] = b" " * 8
    data[place + 148 : place + 156] = b"%06o\0 " % sum(data[place : place + 512])


def change_table(path: Path, random: Random) -> None:
    """Changes bytes or cells of a `.csv`, `.jsonl` or `.parquet` table."""
    if random.random() < (0.7 if path.suffix == ".parquet" else 0.3):
        path.write_bytes(change_bytes(path.read_bytes(), random))
    elif path.suffix == ".csv":
        rows = list(csv.reader(path.read_text().splitlines()))
        row = random.choice(rows)
        change_row(row, random)
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        path.write_bytes(text.getvalue().encode(errors="surrogateescape"))
    elif path.suffix == ".jsonl":
        rows = [change_json(json.loads(line), random) for line in path.read_text().splitlines()]
        path.write_text("\n".join(map(as_text, rows)))
    else:
        change_parquet(path, random)


def change_row(row: list[str], random: Random) -> None:
    """Replaces, adds or removes cells."""
    match random.randrange(4):
        case 0:
            row += [random.choice(CELLS)] * random.choice((1, 2000))
        case 1:
            row.pop()
        case _:
            row[random.randrange(len(row))] = random.choice(CELLS)


def change_parquet(path: Path, random: Random) -> None:
    """Writes a table of other types and sizes."""
    import pyarrow
    from pyarrow import parquet

    count = random.choice((0, 1, 3, 100_000))
    columns: dict[str, Any] = {"path": [random.choice(CELLS[:6])] * count}
    other = random.choice((b"\xff", 1.5, float("nan"), None, {"a": [None]}, [[[1]]], "x" * 10_000, 2**63 - 1))
    columns[random.choice(("caption", "path", "", "a" * 300))] = [other] * min(count, 1000)
    if len({len(values) for values in columns.values()}) > 1:
        columns = {"path": columns["path"]}
    options: dict[str, Any] = {"compression": random.choice(("zstd", "snappy", "gzip", "none"))}
    parquet.write_table(pyarrow.table(columns), path, **options)


def change_ckpt(data: bytes, random: Random) -> bytes:
    """Changes bytes anywhere, or a member of the archive whose checksum fits."""
    if random.random() < 0.3:
        return change_bytes(data, random)
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as archive:
        names = source.namelist()
        pickled = [name for name in names if name.endswith("data.pkl")]
        chosen = random.choice(pickled if random.random() < 0.7 else names)
        for name in names:
            content = source.read(name)
            if name == chosen:
                content = change_pickle(content, random) if name in pickled else change_bytes(content, random)
            archive.writestr(name, content)
    return target.getvalue()


def change_pickle(data: bytes, random: Random) -> bytes:
    """Changes bytes, or replaces a pickle by one of another object."""
    if random.random() < 0.7:
        return change_bytes(data, random)
    other = random.choice(
        [*VALUES[:30], {}, {"state_dict": None}, {"state_dict": {"gen_model": {}}}, print, Path("x")]
    )
    return random.choice(
        (pickle.dumps(other, 2), b"\x80\x02" + b"(" * 100_000, b"\x80\x02" + b"]" * 9000 + b".")
    )
