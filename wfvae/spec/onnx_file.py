"""What an ONNX file declares, read before any library allocates it.

A file of a few bytes can declare terabytes: in the dimensions of an initializer, by an operator
that makes a tensor of any shape, or in external data of another file. The bundles' graphs need few
of ONNX's possibilities; all others are refused here. The file is Protocol Buffers; only the fields
that matter are read (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

import math
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from wfvae.errors import BundleError
from wfvae.spec.bounded import read_bytes

# fmt: off
OPERATORS: Final = frozenset({
    "Add", "And", "Cast", "Concat", "Conv", "DepthToSpace", "Div", "Equal", "Expand", "Identity",
    "LayerNormalization", "LessOrEqual", "MatMul", "Max", "Min", "Mul", "Or", "Pad", "Range", "Reshape",
    "Resize", "Shape", "Sigmoid", "Slice", "Softmax", "Squeeze", "Sub", "Transpose", "Unsqueeze",
    "Where",
})
# fmt: on
"""The operators of bundles' graphs. None of them runs another graph or repeats one."""
GRAPH_BYTES = 1 << 28
_ELEMENT_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""By ONNX's numbers of element types: those of a fixed size, without complex numbers and text."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LARGEST_KEY = 1 << 21
_LONGEST_VARINT = 10
_VOLUME_AXES = 3
_OPERATOR_DOMAINS = frozenset({b"", b"ai.onnx"})

Value = int | tuple[int, int]
"""A number, or the begin and the end of bytes."""


class _MalformedError(ValueError):
    """The file is no ONNX model that a bundle can have."""


def check_graph(path: Path, files: Collection[str]) -> int:
    """Returns the bytes that all tensors of an ONNX file declare.

    Args:
        files: names of the files beside it that external data may lie in.

    Raises:
        BundleError: the file declares what no graph of a bundle has: more data than there are, data
            in another file, another operator, a graph inside a node, functions.
    """

    fail = partial(_failure, path)
    data = read_bytes(path, fail, GRAPH_BYTES)
    places = {name: path.with_name(name) for name in files}
    sizes = {name: place.stat().st_size for name, place in places.items() if place.is_file()}
    try:
        return _model(data, sizes)
    except _MalformedError as error:
        raise fail(str(error)) from error


def has_volumes(path: Path) -> bool:
    """Returns whether an ONNX file has 3-D convolutions. Raises `BundleError` if it is damaged."""
    fail = partial(_failure, path)
    data = read_bytes(path, fail, GRAPH_BYTES)
    try:
        return any(len(sides) == _VOLUME_AXES for sides in _kernels(data))
    except _MalformedError as error:
        raise fail(str(error)) from error


def _failure(path: Path, problem: str) -> BundleError:
    return BundleError(f"cannot load {path.name}: {problem}; export the bundle anew")


def _kernels(data: bytes) -> Iterator[list[int]]:
    """Yields the sides of the kernels of convolutions."""

    def parts(begin: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
        return (_span(value) for field, value in _fields(data, begin, end) if field == wanted)

    for graph in parts(0, len(data), 7):
        for node in parts(*graph, 1):
            for attribute in parts(*node, 5):
                fields = list(_fields(data, *attribute))
                if any(key == 1 and _text(data, value) == b"kernel_shape" for key, value in fields):
                    yield [number for key, value in fields if key == 8 for number in _numbers(data, value)]


def _model(data: bytes, files: Mapping[str, int]) -> int:
    total, graphs = 0, 0
    for field, value in _fields(data, 0, len(data)):
        if field == 7:
            graphs += 1
            total += _graph(data, *_span(value), files)
        elif field in (20, 25):
            raise _MalformedError("it has functions or training graphs")
        elif field == 8:
            domains = [_text(data, part) for key, part in _fields(data, *_span(value)) if key == 1]
            if not _OPERATOR_DOMAINS.issuperset(domains):
                raise _MalformedError("it uses operators of another domain than ONNX's own")
    if graphs != 1:
        raise _MalformedError(f"it has {graphs} graphs; expected 1")
    return total


def _graph(data: bytes, begin: int, end: int, files: Mapping[str, int]) -> int:
    total = 0
    for field, value in _fields(data, begin, end):
        if field == 1:
            total += _node(data, *_span(value), files)
        elif field == 5:
            total += _tensor(data, *_span(value), files)
        elif field == 15:
            raise _MalformedError("it has sparse initializers")
    return total


def _node(data: bytes, begin: int, end: int, files: Mapping[str, int]) -> int:
    total, operator = 0, ""
    for field, value in _fields(data, begin, end):
        if field == 4:
            operator = _text(data, value).decode("latin-1")
        elif field == 7 and _text(data, value) not in _OPERATOR_DOMAINS:
            raise _MalformedError("it uses operators of another domain than ONNX's own")
        elif field == 5:
            for key, part in _fields(data, *_span(value)):
                if key in (5, 10):
                    total += _tensor(data, *_span(part), files)
                elif key in (6, 11, 22, 23):
                    raise _MalformedError("it has a graph or a sparse tensor inside a node")
    if operator not in OPERATORS:
        raise _MalformedError(f"it uses the operator {operator[:40]!r}, which no graph of a bundle has")
    return total


def _tensor(data: bytes, begin: int, end: int, files: Mapping[str, int]) -> int:
    """Returns the bytes of a tensor whose data are all there."""
    shape: list[int] = []
    kind = external = held = 0
    place: dict[bytes, bytes] = {}
    for field, value in _fields(data, begin, end):
        if field == 1:
            shape += _numbers(data, value)
        elif field == 2:
            kind = value if isinstance(value, int) else 0
        elif field == 14:
            external = value if isinstance(value, int) else 0
        elif field == 13:
            entry = {key: _text(data, part) for key, part in _fields(data, *_span(value))}
            place[entry.get(1, b"")] = entry.get(2, b"")
        elif field in (4, 5, 7, 9, 10, 11):
            held += 1 if isinstance(value, int) else value[1] - value[0]
    if kind not in _ELEMENT_BYTES or any(size < 0 for size in shape):
        raise _MalformedError(f"it has a tensor of type {kind} and shape {shape[:8]}")
    needed = math.prod(shape) * _ELEMENT_BYTES[kind]
    if external:
        _check_place(place, needed, files)
    elif math.prod(shape) > held:  # each element takes a byte at least
        raise _MalformedError(f"it has a tensor of shape {shape[:8]} with {held} bytes of data")
    return needed


def _check_place(place: Mapping[bytes, bytes], needed: int, files: Mapping[str, int]) -> None:
    name = place.get(b"location", b"").decode("latin-1")
    if name not in files:
        raise _MalformedError(
            f"it has data in {name[:80]!r}, which is missing or which the manifest does not list"
        )
    numbers = [place.get(key, default) for key, default in ((b"offset", b"0"), (b"length", b"%d" % needed))]
    if not all(number.isdigit() and len(number) < 19 for number in numbers):
        raise _MalformedError(f"it has data at {numbers[0][:20].decode('latin-1')!r} of {name}")
    offset, length = map(int, numbers)
    if length != needed or offset + needed > files[name]:
        stated = f"{length} bytes at {offset} of {name} ({files[name]} bytes)"
        raise _MalformedError(f"it has a tensor of {needed} bytes in {stated}")


def _fields(data: bytes, begin: int, end: int) -> Iterator[tuple[int, Value]]:
    """Yields field numbers and values of a message."""
    while begin < end:
        key = data[begin]
        if key < 0x80:
            begin += 1
        else:
            key, begin = _varint(data, begin, end)
            if key > _LARGEST_KEY:
                raise _MalformedError("it is no ONNX file, or damaged")
        wire = key & 7
        if wire == _BYTES:
            if begin < end and data[begin] < 0x80:
                length = data[begin]
                begin += 1
            else:
                length, begin = _varint(data, begin, end)
            if length < 0 or begin + length > end:
                raise _MalformedError("it is no ONNX file, or cut short")
            yield key >> 3, (begin, begin + length)
            begin += length
        elif wire == _VARINT:
            value, begin = _varint(data, begin, end)
            yield key >> 3, value
        elif wire in (_FIXED64, _FIXED32):
            begin += 8 if wire == _FIXED64 else 4
            yield key >> 3, 0
        else:
            raise _MalformedError("it is no ONNX file, or damaged")


def _varint(data: bytes, begin: int, end: int) -> tuple[int, int]:
    """Returns a number, as signed 64 bits, and where it ends."""
    value = 0
    for index in range(_LONGEST_VARINT):
        if begin + index >= end:
            break
        byte = data[begin + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            value &= (1 << 64) - 1
            return value - (1 << 64 if value >> 63 else 0), begin + index + 1
    raise _MalformedError("it is no ONNX file, or damaged")


def _numbers(data: bytes, value: Value) -> list[int]:
    """Returns repeated numbers, which may be packed."""
    if isinstance(value, int):
        return [value]
    begin, end = value
    found = []
    while begin < end:
        number, begin = _varint(data, begin, end)
        found.append(number)
    return found


def _span(value: Value) -> tuple[int, int]:
    if isinstance(value, int):
        raise _MalformedError("it is no ONNX file, or damaged")
    return value


def _text(data: bytes, value: Value) -> bytes:
    begin, end = _span(value)
    return data[begin:end]
