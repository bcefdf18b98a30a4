"""What a result file says besides its numbers, and how it is written. Nothing that identifies the
machine's owner.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from wfvae.machine import processor_count, processor_name

CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
"""Those that decide how fast engines compute, and in which precision."""
CPUINFO = Path("/proc/cpuinfo")


def machine(threads: int, *packages: str) -> dict[str, Any]:
    """The processor and its memory, and versions of what ran on it."""
    return {
        "cpu": processor_name(),
        "cpu_features": cpu_features(),
        "cores": processor_count(),
        "memory_gb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9,
        "threads": threads,
        "python": platform.python_version(),
        **{package: found for package in packages if (found := _version(package))},
    }


def cpu_features() -> list[str]:
    """Those of `CPU_FEATURES` that the processor has; none where there is no Linux to tell."""
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    flags = line.partition(":")[2].split()
    return [feature for feature in CPU_FEATURES if feature in flags]


def _version(package: str) -> str | None:
    """None where a package that need not be there is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def load_average() -> float:
    """Processes that wanted a processor in the last minute, this one included."""
    return os.getloadavg()[0]


def rounded(value: Any) -> Any:
    """Four digits of every number: more would be noise."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write_json(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(rounded(result), indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Under another name first, so that an earlier result stays if this one is cut short."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_report(path: Path, result: dict[str, Any], text: str, figure: str | None) -> None:
    """The result as JSON, and beside it, under the same name, as Markdown (.md) and as a drawing
    (.svg).
    """
    write_json(path, result)
    picture = path.with_suffix(".svg")
    if figure is not None:
        write_text(picture, figure)
        text += f"\n![{path.stem}]({picture.name})\n"
    write_text(path.with_suffix(".md"), text)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def machine_line(facts: dict[str, Any]) -> str:
    """The machine in one line of text."""
    told = ("cpu", "cpu_features", "cores", "memory_gb", "threads")
    versions = ", ".join(f"{name} {value}" for name, value in facts.items() if name not in told)
    cpu = facts["cpu"] + (f" ({' '.join(facts['cpu_features'])})" if facts["cpu_features"] else "")
    return (
        f"{cpu}, {facts['cores']} cores, {facts['memory_gb']:.3g} GB, {facts['threads']} threads; {versions}."
    )
