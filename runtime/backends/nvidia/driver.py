"""Versions of what drives an NVIDIA GPU, asked of the libraries themselves, for certificates. Needs
no package and no GPU to import.

Nothing here has ever run on a GPU: the tests call it over stand-in libraries that they compile.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

_TEXT = 256


def driver_version() -> str | None:
    """The driver's version, such as 580.65.06, from NVML. None without a driver."""
    nvml = _library("libnvidia-ml.so.1")
    if nvml is None or nvml.nvmlInit_v2() != 0:
        return None
    try:
        text = ctypes.create_string_buffer(_TEXT)
        return (
            text.value.decode() if nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(_TEXT)) == 0 else None
        )
    finally:
        nvml.nvmlShutdown()


def gpu_name(index: int) -> str | None:
    """The name of the GPU that CUDA programs of this process call `index`. None if there is no such
    GPU.
    """
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
    """The version of the CUDA runtime library that this process has loaded, such as 13.0. None if
    it has loaded none.
    """
    for major in (13, 12):
        runtime, number = _library(f"libcudart.so.{major}", loaded=True), ctypes.c_int()
        if runtime is not None and runtime.cudaRuntimeGetVersion(ctypes.byref(number)) == 0:
            return f"{number.value // 1000}.{number.value % 1000 // 10}"
    return None


def cudnn_version() -> str | None:
    """The version of cuDNN 9 that this process has loaded, such as 9.13.0. None if it has loaded
    none.
    """
    cudnn = _library("libcudnn.so.9", loaded=True)
    if cudnn is None:
        return None
    cudnn.cudnnGetVersion.restype = ctypes.c_size_t
    number = int(cudnn.cudnnGetVersion())
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _library(name: str, loaded: bool = False) -> Any:
    """A shared library by its name, or None. `loaded`: only if the process has it already, by
    whatever path.
    """
    mode = os.RTLD_NOW | (getattr(os, "RTLD_NOLOAD", 0) if loaded else 0)
    try:
        return ctypes.CDLL(name, mode=mode)
    except OSError:
        return None
