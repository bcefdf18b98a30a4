"""Arrays of other libraries, and arrays in a device's memory, through the DLPack protocol.

Nothing here imports those libraries. Source of the structures: the header `dlpack.h` and the
"Python Specification for DLPack".
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from wfvae.errors import InputError

Shape = tuple[int, ...]
Device = tuple[int, int]
"""DLPack's number of a kind of device, and which one of that kind."""

CPU: Device = (1, 0)
CUDA = 2
_HOST_KINDS = (1, 3)  # plain and CUDA's pinned memory: both are host memory
_DEVICES = {1: "cpu", 2: "cuda", 3: "cuda_host", 8: "metal", 10: "rocm", 13: "cuda_managed", 14: "oneapi"}
_BFLOAT16: np.dtype[Any] = np.dtype(bfloat16)
_CODES = {"i": 0, "u": 1, "f": 2}
_BFLOAT_CODE, _BOOL_CODE = 4, 6
_BITS = 8


class _Type(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_kind", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _ManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, _Deleter)
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)
_NAME = b"dltensor"


class _Export:
    """What a capsule refers to. The capsule, and then its consumer, holds one reference."""

    def __init__(self, array: DeviceArray) -> None:
        self.array = array
        self.shape = (ctypes.c_int64 * len(array.shape))(*array.shape)
        self.strides = (ctypes.c_int64 * len(array.strides))(*array.strides)
        bfloat = array.dtype == bfloat16
        code = _BFLOAT_CODE if bfloat else _CODES[array.dtype.kind]
        tensor = _Tensor(
            array.address,
            *array.device,
            len(array.shape),
            _Type(code, array.dtype.itemsize * _BITS, 1),
            self.shape,
            self.strides,
            0,
        )
        self.managed = _ManagedTensor(tensor, id(self), _RELEASE)


def _release_export(address: int) -> None:
    context = _ManagedTensor.from_address(address).context
    ctypes.pythonapi.Py_DecRef(ctypes.cast(context, ctypes.py_object))


def _drop_capsule(capsule: int) -> None:
    if _is_valid(capsule, _NAME):  # else a consumer has taken it
        _release_export(_pointer_of(capsule, _NAME))


_RELEASE, _DROP_CAPSULE = _Deleter(_release_export), _Deleter(_drop_capsule)


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """An array in a device's memory, complete when it is returned.

    Any library with DLPack can use it without a copy, such as `torch.from_dlpack(array)`. It holds
    its memory: this stays valid until the array and all that was made of it are gone, also after
    stream and bundle are closed. No later step writes to it.
    """

    address: int
    shape: Shape
    strides: Shape
    """In elements."""
    dtype: np.dtype[Any]
    device: Device
    owner: Any
    """What holds the memory."""

    @classmethod
    def contiguous(
        cls, address: int, shape: Shape, dtype: np.dtype[Any], device: Device, owner: Any
    ) -> DeviceArray:
        return cls(address, shape, contiguous_strides(shape), dtype, device, owner)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        steps = zip(self.shape, self.strides, contiguous_strides(self.shape), strict=True)
        return 0 in self.shape or all(size == 1 or found == wanted for size, found, wanted in steps)

    @property
    def span(self) -> int:
        """Bytes from the first value to the end of the last one."""
        steps = zip(self.shape, self.strides, strict=True)
        return (1 + sum((size - 1) * step for size, step in steps)) * self.dtype.itemsize

    def bytes(self, count: int) -> DeviceArray:
        """Returns the first `count` bytes of the memory."""
        return DeviceArray(self.address, (count,), (1,), np.dtype(np.uint8), self.device, self.owner)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice | int) -> DeviceArray:
        """Returns a view of a range along the first axis, or of one of its entries."""
        step = self.strides[0] * self.dtype.itemsize
        if isinstance(part, int):
            address = self.address + range(len(self))[part] * step
            return DeviceArray(address, self.shape[1:], self.strides[1:], self.dtype, self.device, self.owner)
        begin, end, _ = part.indices(len(self))
        return self.view(self.address + begin * step, (max(end - begin, 0), *self.shape[1:]), self.strides)

    def view(self, address: int, shape: Shape, strides: Shape) -> DeviceArray:
        """Returns another view of the same memory."""
        return DeviceArray(address, shape, strides, self.dtype, self.device, self.owner)

    def __dlpack_device__(self) -> Device:
        return self.device

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: Any = None,
        dl_device: Device | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Returns a capsule. `stream` need not wait for anything: the array is complete."""
        if copy or dl_device not in (None, self.device):
            raise BufferError(f"this array is on {device_name(self.device)} and is only given as it is there")
        export = _Export(self)
        capsule = _new_capsule(ctypes.addressof(export.managed), _NAME, _DROP_CAPSULE)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(export))
        return capsule


def contiguous_strides(shape: Shape) -> Shape:
    """Returns the strides of a dense array in elements, the last axis fastest."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def device_name(device: Device) -> str:
    """Returns a device in words, such as cpu or cuda:0."""
    kind, index = int(device[0]), int(device[1])
    name = _DEVICES.get(kind, f"DLPack device {kind}")
    return name if kind in _HOST_KINDS else f"{name}:{index}"


def is_on_host(device: Device) -> bool:
    """Whether the CPU can read the memory."""
    return int(device[0]) in _HOST_KINDS


def borrow(producer: Any, **arguments: Any) -> DeviceArray:
    """Returns a producer's array, whose capsule the result holds.

    Raises what the producer's `__dlpack__` raises, and `BufferError` for types without a numpy or
    ml_dtypes equivalent. `arguments` are those of `__dlpack__`.
    """
    capsule = producer.__dlpack__(**arguments)
    tensor = _ManagedTensor.from_address(_pointer_of(id(capsule), _NAME)).tensor
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else contiguous_strides(shape)
    address = (tensor.data or 0) + tensor.byte_offset
    device = (tensor.device_kind, tensor.device_id)
    return DeviceArray(address, shape, strides, _numpy_type(tensor.dtype), device, (capsule, producer))


def as_numpy(array: DeviceArray) -> np.ndarray[Any, Any]:
    """Returns an array in host memory as numpy's, without a copy."""
    assert is_on_host(array.device)
    if not array.nbytes:
        return np.empty(array.shape, array.dtype)
    buffer = (ctypes.c_uint8 * array.span).from_address(array.address)
    buffer._owner = array.owner  # type: ignore[attr-defined]  # ctypes' objects take attributes
    strides = tuple(step * array.dtype.itemsize for step in array.strides)
    return np.ndarray(array.shape, array.dtype, memoryview(buffer), 0, strides)


@contextlib.contextmanager
def reading(data: Any, what: str) -> Iterator[None]:
    """Turns what a library raises about its array into `InputError`."""
    try:
        yield
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{what} cannot be read as an array ({type(data).__name__}): {reason}") from error


def host_array(data: Any, what: str) -> np.ndarray[Any, Any]:
    """Returns numpy's view of an array of any library, or an array of numbers in lists.

    Arrays with `__dlpack__` are not copied. bfloat16 is that of ml_dtypes. Raises `InputError`,
    which calls the array `what`.
    """
    if isinstance(data, np.ndarray):
        return data
    with reading(data, what):
        if not hasattr(data, "__dlpack__"):
            return np.asarray(data)
        device = data.__dlpack_device__()
        if is_on_host(device):
            return _view(data)
    raise InputError(
        f"{what} are on {device_name(device)}, and this bundle was opened on the CPU; copy them to host"
        " memory first, or open the bundle on that device"
    )


def shape_of(data: Any, what: str) -> Shape:
    """Returns an array's shape, wherever it is. Raises `InputError`."""
    shape = getattr(data, "shape", None)
    if hasattr(data, "__dlpack__") and shape is not None and not callable(shape):
        return tuple(map(int, shape))
    return tuple(host_array(data, what).shape)


def _view(data: Any) -> np.ndarray[Any, Any]:
    try:
        return np.from_dlpack(data)
    except RuntimeError:  # numpy reads no bfloat16
        return as_numpy(borrow(data))


def _numpy_type(found: Any) -> np.dtype[Any]:
    if found.lanes == 1 and found.code == _BFLOAT_CODE and found.bits == 16:
        return _BFLOAT16
    letters = {code: letter for letter, code in _CODES.items()} | {_BOOL_CODE: "b"}
    if found.lanes == 1 and found.bits % _BITS == 0 and found.code in letters:
        with contextlib.suppress(TypeError):
            dtype: np.dtype[Any] = np.dtype(f"{letters[found.code]}{found.bits // _BITS}")
            return dtype
    raise BufferError(f"DLPack's type of code {found.code} with {found.bits} bits has no equivalent in numpy")
