"""Versions of driver, CUDA and cuDNN for certificates, read from the libraries themselves.

Imports no package, and works without a GPU.
"""

from __future__ import annotations

import ctypes
import os
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


def cuda_version() -> str | None:
    """Returns the version of the CUDA runtime library in this process, such as 13.0, or None."""
    for major in (13, 12):
        runtime, number = _library(f"libcudart.so.{major}", loaded=True), ctypes.c_int()
        if runtime is not None and runtime.cudaRuntimeGetVersion(ctypes.byref(number)) == 0:
            return f"{number.value // 1000}.{number.value % 1000 // 10}"
    return None


def cudnn_version() -> str | None:
    """Returns the version of cuDNN 9 in this process, such as 9.13.0, or None."""
    cudnn = _library("libcudnn.so.9", loaded=True)
    if cudnn is None:
        return None
    cudnn.cudnnGetVersion.restype = ctypes.c_size_t
    number = int(cudnn.cudnnGetVersion())
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _library(name: str, loaded: bool = False) -> Any:
    """Returns a shared library or None. `loaded`: only if the process has it already."""
    mode = os.RTLD_NOW | (getattr(os, "RTLD_NOLOAD", 0) if loaded else 0)
    try:
        return ctypes.CDLL(name, mode=mode)
    except OSError:
        return None
