"""Names of GPU and driver for certificates, from the driver's libraries. Works without a GPU."""

from __future__ import annotations

import ctypes
from typing import Any

_TEXT = 256


def driver_version() -> str | None:
    """Returns the driver's version, such as 580.65.06, from NVML. None without a driver."""
    nvml = _library("libnvidia-ml.so.1")
    if nvml is None or nvml.nvmlInit_v2() != 0:
        return None
    text = ctypes.create_string_buffer(_TEXT)
    status = nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(_TEXT))
    nvml.nvmlShutdown()
    return None if status else text.value.decode()


def gpu_name(index: int) -> str | None:
    """Returns the name of the GPU with this index in CUDA programs, or None."""
    cuda = _library("libcuda.so.1")
    device, text = ctypes.c_int(), ctypes.create_string_buffer(_TEXT)
    found = (
        cuda is not None
        and cuda.cuInit(0) == 0
        and cuda.cuDeviceGet(ctypes.byref(device), index) == 0
        and cuda.cuDeviceGetName(text, _TEXT, device) == 0
    )
    return text.value.decode() if found else None


def _library(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
