"""Rows of `.csv`, `.jsonl` and `.parquet` tables, within bounds."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, BinaryIO

from wfvae.errors import DataError, MissingExtraError
from wfvae.machine import limited_memory
from wfvae.spec.bounded import Fail, check_values, parse_object
from wfvae.spec.locations import open_located
from wfvae.spec.memory import MemoryMeter

TABLES = (".csv", ".jsonl", ".parquet")
_LINE_BYTES = 1 << 20
_COLUMNS_AT_MOST = 1000
_DEPTH = 16
"""Containers inside containers in a column; plans and samples hold columns some levels deeper."""
_VALUE_BYTES = 64
"""What a small value takes, about."""
_ROWS_AT_ONCE = 64
_PARQUET_BYTES = 1 << 30
"""What reading some rows may take: a file of a few kB can decompress to far more."""


def read_rows(filesystem: Any, path: str, suffix: str, meter: MemoryMeter) -> Iterator[dict[str, Any]]:
    """Yields the rows of a table, by column.

    Raises:
        DataError: the table is damaged, or has longer lines or more columns than a list of videos.
        ResourceError: `meter` refuses its size.
        UnicodeDecodeError: a `.csv` file is not UTF-8.
    """

    def fail(problem: str) -> DataError:
        return DataError(f"cannot read the table '{path}': {problem}; save it anew")

    with open_located(filesystem, path, fail) as file:
        if suffix == ".csv":
            yield from _csv_rows(file, fail, meter)
        elif suffix == ".jsonl":
            for number, line in enumerate(_lines(file, fail, meter), start=1):
                if line.strip():
                    yield json_columns(line, f"line {number} of {path}", meter)
        else:
            yield from _parquet_rows(file, fail, meter)


def json_columns(text: bytes, name: str, meter: MemoryMeter) -> dict[str, Any]:
    """Parses the columns of one video. Raises `DataError`, which calls the text `name`."""
    meter.add(_VALUE_BYTES * sum(map(text.count, (b",", b"[", b"{"))))
    content = text.decode("utf-8", "replace")
    return parse_object(content, lambda problem: DataError(f"'{name}' is unusable: {problem}"), depth=_DEPTH)


def _lines(file: BinaryIO, fail: Fail, meter: MemoryMeter) -> Iterator[bytes]:
    while line := file.readline(_LINE_BYTES + 1):
        if len(line) > _LINE_BYTES:
            raise fail(f"a line has more than {_LINE_BYTES} bytes")
        meter.add(len(line))
        yield line


def _csv_rows(file: BinaryIO, fail: Fail, meter: MemoryMeter) -> Iterator[dict[str, Any]]:
    lines = (
        line.decode("utf-8-sig" if number == 0 else "utf-8")
        for number, line in enumerate(_lines(file, fail, meter))
    )
    reader = csv.DictReader(lines)
    try:
        if len(columns := reader.fieldnames or ()) > _COLUMNS_AT_MOST:
            raise fail(f"it has {len(columns)} columns; expected at most {_COLUMNS_AT_MOST}")
        for row in reader:
            if None in row:
                raise fail(f"line {reader.line_num} has more values than there are columns")
            meter.add(_VALUE_BYTES * len(row))
            yield row
    except csv.Error as error:
        raise fail(f"line {reader.line_num}: {error}") from error


def _parquet_rows(file: BinaryIO, fail: Fail, meter: MemoryMeter) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtraError("reading Parquet tables", "pyarrow", "datasets") from error
    try:
        table = parquet.ParquetFile(file)
        if (columns := table.metadata.num_columns) > _COLUMNS_AT_MOST:
            raise fail(f"it has {columns} columns; expected at most {_COLUMNS_AT_MOST}")
        batches = table.iter_batches(_ROWS_AT_ONCE, use_threads=False)
        while True:
            with limited_memory(_PARQUET_BYTES):
                batch = next(batches, None)
                if batch is None:
                    return
                meter.add(batch.nbytes + _VALUE_BYTES * batch.num_rows * columns)
                rows = batch.to_pylist()
            check_values(rows, fail, depth=_DEPTH + 1)
            yield from rows
    except (ArrowException, OSError, MemoryError) as error:
        raise fail(f"as Parquet: {str(error) or 'out of memory'}") from error
