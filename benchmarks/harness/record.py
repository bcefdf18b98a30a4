"""Result files: the machine, the versions and the numbers. Nothing that identifies the owner."""

import argparse
import json
import os
import platform
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, get_args

from harness.tables import TABLES
from wfvae.files import write_whole
from wfvae.machine import processor_count, processor_name
from wfvae.model.config import Preset
from wfvae.spec.frames import SPATIAL_RATIO

RESULTS = Path(__file__).parents[1] / "results"
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
"""Those that decide how fast engines compute, and in which precision."""
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "numpy", "av", "zarr", "diffusers", "transformers")
_CPUINFO = Path("/proc/cpuinfo")


class CommandLine(argparse.ArgumentParser):
    """A parser with the options that commands share.

    Parsed options also have the `machine`, and as `job` what `defaults` names.

    Args:
        description: the module's docstring.
        result: the name of the committed result file, for the help text.
        defaults: of those of `SHARED` that the command has.
    """

    def __init__(self, description: str | None, result: str, **defaults: Any) -> None:
        super().__init__(description=description, formatter_class=_Formatter)
        self._defaults = defaults
        text = f"write the result to this file; the committed one is benchmarks/results/{result}"
        self.add_argument("--json", type=Path, metavar="FILE", help=text)
        self.add_argument("--threads", type=int, default=2, help="of the CPU")
        for name, default in defaults.items():
            self.add_argument(f"--{name}", default=default, **SHARED[name])

    def parse_args(self, *arguments: Any) -> Any:
        options = super().parse_args(*arguments)
        options.machine = machine(options.threads)
        options.job = {name: getattr(options, name) for name in self._defaults}
        return options


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description, and adds defaults to help texts."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


def positive(text: str) -> int:
    """Parses a whole number from 1 on."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
    return int(text)


def side(text: str) -> int:
    """Parses a height and width, a multiple of the spatial ratio."""
    if not text.isdigit() or int(text) < SPATIAL_RATIO or int(text) % SPATIAL_RATIO:
        raise argparse.ArgumentTypeError(f"{text!r} is no multiple of {SPATIAL_RATIO}")
    return int(text)


def whole_clip(text: str) -> int:
    """Parses a number of frames, 1 + 4 n."""
    if not text.isdigit() or int(text) % 4 != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 + 4 n frames")
    return int(text)


def lengths(text: str) -> tuple[str, list[int]]:
    """Parses "tiny=100,2000": a preset, and numbers of frames, which are sorted."""
    preset, _, numbers = text.partition("=")
    if preset not in get_args(Preset) or not all(map(str.isdigit, numbers.split(","))):
        raise argparse.ArgumentTypeError(f"{text!r} is not PRESET=N,N")
    return preset, sorted(map(int, numbers.split(",")))


SHARED: dict[str, Any] = {
    "preset": {"choices": get_args(Preset), "help": "of WF-VAE, with random weights"},
    "frames": {"type": positive, "help": "of a clip"},
    "size": {"type": side, "help": "height and width"},
    "runs": {"type": positive, "help": "of each job"},
    "turns": {"type": positive, "help": "in which each job runs once"},
    "seconds": {"type": float, "help": "least time of a job in a turn"},
}


def machine(threads: int) -> dict[str, Any]:
    """Returns the processor, its memory, its load, and versions of installed packages."""
    installed = {found.name: found.version for found in distributions()}
    return {
        "cpu": processor_name(),
        "cpu_features": cpu_features(),
        "cores": processor_count(),
        "memory_gb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9,
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: installed[name] for name in PACKAGES if name in installed},
    }


def cpu_features() -> list[str]:
    """Returns those of `CPU_FEATURES` that the processor has; none where this is not Linux."""
    text = _CPUINFO.read_text(encoding="utf-8", errors="replace") if _CPUINFO.is_file() else ""
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    flags = line.partition(":")[2].split()
    return [feature for feature in CPU_FEATURES if feature in flags]


def save(options: Any, **result: Any) -> Any:
    """Writes a result to `options.json`, if given, and returns it."""
    # Four digits of every number: more would be noise.
    text = json.dumps({"machine": options.machine, **result})
    kept = json.loads(text, parse_float=lambda number: float(f"{float(number):.4g}"))
    if options.json is not None:
        write_whole(options.json, json.dumps(kept, indent=2) + "\n")
    return kept


def finish(options: Any, *tables: str, **result: Any) -> Any:
    """Writes a result as `save` does, prints its tables, and returns it."""
    kept = save(options, **result)
    for name in tables:
        function, _ = TABLES[name]
        print(function(kept))
    return kept
