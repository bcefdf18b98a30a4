"""The machine: what a measurement was made on, without anything that identifies its owner, and the
memory that this process may still take.
"""

import os
import platform
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_MEMINFO, _STATM, _CGROUP = Path("/proc/meminfo"), Path("/proc/self/statm"), Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_STATM_DATA = 5
"""Position of a process's private writable pages."""
_STACK_BYTES = 16 << 20
_limiting = threading.Lock()
_allowance: ContextVar[int | None] = ContextVar("memory_allowance", default=None)


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


@contextmanager
def memory_allowance(limit: int | None) -> Iterator[None]:
    """Makes `available_memory` return `limit` on this thread in the block; None changes nothing."""
    token = _allowance.set(_allowance.get() if limit is None else limit)
    try:
        yield
    finally:
        _allowance.reset(token)


def available_memory() -> int | None:
    """Returns the bytes that this process can still allocate, None if nothing states them.

    That is the least of what the system has without swapping, of what the limits of its control
    groups (containers) leave, and of what the limits of the process leave. Inside a
    `memory_allowance` it is that.
    """
    if (allowed := _allowance.get()) is not None:
        return allowed
    found = [_number(line) for line in _lines(_MEMINFO) if line.startswith("MemAvailable:")]
    left = [kibibytes * 1024 for kibibytes in found if kibibytes is not None]
    for group in _control_groups():
        limit, used = (_number(text) for text in _group_files(group))
        if limit is not None and used is not None:
            inactive = [_number(line) for line in _lines(group / "memory.stat") if "inactive_file " in line]
            left.append(limit - used + (inactive[0] or 0 if inactive else 0))
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        pages = _number(next(iter(_lines(_STATM)), "")) or 0
        left.append(limit - pages * resource.getpagesize())
    return max(0, min(left)) if left else None


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Makes allocations fail in this process beyond `more` bytes on top of what it has now.

    Room for the stacks of one thread per core is added. Blocks of several threads wait for each
    other, since the limit is the process's. Acts on Linux only.
    """
    fields = next(iter(_lines(_STATM)), "").split()
    if len(fields) < _STATM_DATA + 1:
        yield
        return
    with _limiting:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        used = int(fields[_STATM_DATA]) * resource.getpagesize()
        wanted = used + more + _STACK_BYTES * processor_count()
        if soft != resource.RLIM_INFINITY:
            wanted = min(wanted, soft)
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _control_groups() -> list[Path]:
    """Returns the folders of this process's control group and of those above it."""
    for line in _lines(_CGROUP):
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = _GROUPS / controllers
            own = root / path.lstrip("/")
            return [own, *(parent for parent in own.parents if parent.is_relative_to(root))]
    return []


def _group_files(group: Path) -> tuple[str, str]:
    """Returns the limit and the use of a control group, of version 2 or 1; empty where unstated."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        if texts := _lines(group / limit):
            return texts[0], next(iter(_lines(group / used)), "")
    return "", ""


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _number(text: str) -> int | None:
    """Returns the first number of a line, None if it has none (such as "max")."""
    return next((int(word) for word in text.split() if word.isdecimal()), None)
