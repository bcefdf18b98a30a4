"""Memory of this process, in units of 1,000,000 bytes, and its limit."""

import ctypes
import gc
import re
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|MemoryError|(not enough|out of) memory|allocate memory|unable to allocate"
    r"|create a (memory|primitive)|allocation failed",
    re.IGNORECASE,
)
"""What PyTorch, numpy, ONNX Runtime, OpenVINO and oneDNN say."""


def peak_mb() -> float:
    """Returns the peak of resident memory."""
    if not _STATUS.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS
    # Not getrusage: its peak is inherited from the parent process, which is larger.
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def resident_mb() -> float:
    """Returns resident memory."""
    return float(psutil.Process().memory_info().rss / 1e6)


def trim_heap() -> None:
    """Returns unused memory to the system where the C library can do that."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # glibc only; Windows opens no library without a name
        return


def restart_peak() -> None:
    """Resets the peak to what is resident, where the system supports that."""
    if _RESET.exists():
        _RESET.write_text(_RESET_PEAK)


def limit_memory(gigabytes: int) -> None:
    """Makes allocations of this process fail that would need more than this, where Linux runs."""
    if _RESET.exists():
        import resource

        # Not the address space: weights are mapped from files, and engines reserve much.
        resource.setrlimit(resource.RLIMIT_DATA, (gigabytes * 10**9,) * 2)


def is_out_of_memory(message: str) -> bool:
    """Returns whether an error's type and message say that memory could not be allocated."""
    return _OUT_OF_MEMORY.search(message) is not None


def more_than(gigabytes: int) -> str:
    """Returns the reason why there is no number for what is out of this memory."""
    return f"more than {gigabytes} GB"
