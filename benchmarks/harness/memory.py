"""Memory of this process, in units of 1,000,000 bytes."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_mb() -> float:
    """Returns the peak of resident memory."""
    if _STATUS.exists():
        # Not getrusage: its peak is inherited from the parent process, which is larger.
        return _status_mb("VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def resident_mb() -> float | None:
    """Returns resident memory, or None where the system does not report it."""
    return _status_mb("VmRSS") if _STATUS.exists() else None


def trim_heap() -> None:
    """Returns unused memory to the system where the C library can do that."""
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # glibc only; Windows opens no library without a name
        return
    trim(0)


def restart_peak() -> bool:
    """Resets the peak to what is resident. Returns False where the system does not support that."""
    try:
        _RESET.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _status_mb(name: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024 / 1e6
