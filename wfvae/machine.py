"""The machine that a measurement was made on, without anything that identifies its owner."""

import os
import platform
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, Any]:
    """Returns processor, cores and operating system; nothing that identifies a single machine."""
    return {
        "cpu": processor_name(),
        "cores": processor_count(),
        "os": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
    }


def processor_name() -> str:
    """Returns the CPU's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def processor_count() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
