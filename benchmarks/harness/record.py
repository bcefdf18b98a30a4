"""Result files: the machine, the versions and the numbers. Nothing that identifies the owner."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from wfvae.files import write_whole
from wfvae.machine import processor_count, processor_name

RESULTS = Path(__file__).parents[1] / "results"
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
"""Those that decide how fast engines compute, and in which precision."""
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "numpy", "av", "zarr", "diffusers")
_CPUINFO = Path("/proc/cpuinfo")


def command_line(description: str | None, result: str | None = None) -> argparse.ArgumentParser:
    """Returns a parser with the options that all commands share.

    Args:
        description: the module's docstring.
        result: the name of the committed result file, for the help text.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    where = f"; the committed one is benchmarks/results/{result}" if result else ""
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"write the result to this file{where}")
    return parser


def side(text: str) -> int:
    """Parses a height and width, a multiple of 8."""
    if not text.isdigit() or int(text) < 8 or int(text) % 8:
        raise argparse.ArgumentTypeError(f"{text!r} is no multiple of 8")
    return int(text)


def whole_clip(text: str) -> int:
    """Parses a number of frames, 1 + 4 n."""
    if not text.isdigit() or int(text) % 4 != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 + 4 n frames")
    return int(text)


def machine(threads: int) -> dict[str, Any]:
    """Returns the processor, its memory, its load, and versions of installed packages."""
    return {
        "cpu": processor_name(),
        "cpu_features": cpu_features(),
        "cores": processor_count(),
        "memory_gb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9,
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{package: found for package in PACKAGES if (found := _version(package))},
    }


def cpu_features() -> list[str]:
    """Returns those of `CPU_FEATURES` that the processor has; none where this is not Linux."""
    text = _CPUINFO.read_text(encoding="utf-8", errors="replace") if _CPUINFO.is_file() else ""
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    flags = line.partition(":")[2].split()
    return [feature for feature in CPU_FEATURES if feature in flags]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_text(facts: dict[str, Any]) -> str:
    """Returns the processor and what its features mean, for captions."""
    if "cpu_features" not in facts:
        return f"{facts['cpu']}, {facts['threads']} threads"
    names = {"avx512f": "AVX-512", "avx512_bf16": "bf16", "amx_bf16": "AMX"}
    words = [name for feature, name in names.items() if feature in facts["cpu_features"]]
    return f"{facts['cpu']} ({', '.join(words) or 'no AVX-512'}), {facts['threads']} threads"


def finish(result: dict[str, Any], path: Path | None, *tables: Callable[[Any], str]) -> None:
    """Writes a result file and prints its tables."""
    # Four digits of every number: more would be noise.
    kept = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.4g}"))
    if path is not None:
        write_whole(path, json.dumps(kept, indent=2) + "\n")
    for table in tables:
        print(table(kept))
