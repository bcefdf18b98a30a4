"""What a result file says besides its numbers, and how it is written. Nothing that identifies the machine's owner."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from wfvae.machine import processor_count, processor_name


def machine(threads: int, *packages: str) -> dict[str, Any]:
    """The processor, and versions of what ran on it."""
    return {
        "cpu": processor_name(),
        "cores": processor_count(),
        "threads": threads,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


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
    path.write_text(json.dumps(rounded(result), indent=2) + "\n", encoding="utf-8")
