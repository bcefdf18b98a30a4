"""Peak memory of a process, as it sees it itself."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_mb() -> float:
    """Peak resident memory of this process, in units of 1,000,000 bytes."""
    if _STATUS.exists():
        # Not getrusage: its peak is inherited from the parent process, which is larger.
        return _status_mb("VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def resident_mb() -> float | None:
    """Resident memory now; None where the system does not tell."""
    return _status_mb("VmRSS") if _STATUS.exists() else None


def trim_heap() -> bool:
    """Gives memory that is no longer used back to the system, so that what is resident is in use.
    False where the C library cannot.
    """
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # glibc only; Windows opens no library without a name
        return False
    trim(0)
    return True


def restart_peak() -> bool:
    """Lets the peak begin anew at what is resident now. False where the system does not do that: a
    peak then is that since the start.
    """
    try:
        _RESET.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _status_mb(name: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024 / 1e6
