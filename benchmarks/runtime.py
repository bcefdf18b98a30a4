"""Speed and memory of the runtime on a CPU, with ONNX Runtime and OpenVINO.

    python benchmarks/runtime.py [--only speed memory] [--threads 2] [--runs 5] [--json FILE]
    python benchmarks/runtime.py --only quality --checkpoint DIR [--videos FILE ...] [--json FILE]

    speed      preset S, 128x128: ONNX Runtime direct and streamed, against the published code's form and our model in PyTorch, and
               OpenVINO in fp32 and bf16 where it is installed. --preset, --size and --lengths
               choose others
    memory     peak of the program `wfvae encode` and `decode`, short and long videos
    quality    a trained checkpoint: reconstruction on OpenVINO in fp32 and bf16 against ONNX Runtime in fp32, in dB. Exit code 1 if bf16
               loses more than 0.05 dB

But for quality, weights are random: speed and memory do not depend on them. What is compared runs
turn by turn, and ratios are medians over the turns, so that a busy machine slows all alike.

A result file keeps the sections that are not measured again. What is measured otherwise than by
default (preset, size, lengths, frames, videos) is a section of its own, whose name says so, such as
"speed 256x256 17 frames". How often and with how many threads it is measured is not part of the
name: each section tells them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from record import load_average, machine, write_json
from runtime_memory import measure_memory, print_memory
from runtime_quality import BAR_DB, largest_loss, measure_quality, print_quality
from runtime_speed import measure_speed, print_clip, print_steady, steady_ratios

from wfvae import WFVAE, WFVAEConfig
from wfvae.errors import BundleError, MissingExtraError
from wfvae.export.bundle import ExportOptions, export_bundle
from wfvae.model.config import Preset
from wfvae.runtime import Bundle, open_bundle

T = TypeVar("T")

MINIMUM_RUNS = 5
SPEED_PRESET: Preset = "S"
SPEED_SIZE = 128
SPEED_LENGTHS = [17, 65]
MEMORY_SIZE = 128
MEMORY_PRESET: Preset = "tiny"
MEMORY_FRAMES = [100, 2000]
MEMORY_RUNS = 3
SECTIONS = ("speed", "memory", "quality")
HINTS = ("fp32", "bf16")


class Benchmark:
    """What the sections share: exported bundles in a temporary folder."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.options = options
        self.threads: int = options.threads
        self.failed = False
        """Whether a bar that asks for correctness was missed."""
        self._paths: dict[str, Path] = {}

    def model(self, preset: Preset) -> WFVAE:
        torch.manual_seed(0)
        return WFVAE(WFVAEConfig.preset(preset)).eval().requires_grad_(False)

    def path(self, preset: Preset) -> Path:
        if preset not in self._paths:
            self._paths[preset] = self.folder / preset
            export_bundle(self.model(preset), self._paths[preset], ExportOptions(direct=True))
        return self._paths[preset]

    def open(self, preset: Preset) -> Bundle:
        return open_bundle(self.path(preset), provider="cpu", threads=self.threads, verify=False)

    def openvino(self, path: Path) -> dict[str, Bundle]:
        """The bundle in OpenVINO, by hint; empty where it is not installed, without bf16 where the
        CPU has none.
        """
        found: dict[str, Bundle] = {}
        for hint in HINTS:
            try:
                found[f"openvino {hint}"] = open_bundle(
                    path, "openvino", precision_hint=hint, threads=self.threads, verify=False
                )
            except (MissingExtraError, BundleError) as error:
                print(f"openvino {hint}: not measured, {error}")
        return found

    def speed(self) -> dict[str, Any]:
        preset, size = self.options.preset, self.options.size
        others = self.openvino(self.path(preset))
        with self.open(preset) as bundle:
            measured = measure_speed(
                self.model(preset), bundle, others, size, self.options.lengths, self.options.runs
            )
            clips = printed(print_clip, measured)
        steady = steady_ratios(clips)
        print_steady(steady)
        backends = {name: other.backend.describe() for name, other in others.items()}
        return {
            "preset": preset,
            "size": size,
            "backends": backends,
            "clips": [asdict(clip) for clip in clips],
            "steady": steady,
        }

    def quality(self) -> dict[str, Any]:
        model = WFVAE.from_pretrained(self.options.checkpoint)
        path = self.folder / "trained"
        checkpoint = export_bundle(model, path, ExportOptions()).checkpoint_sha256
        with open_bundle(path, provider="cpu", threads=self.threads, verify=False) as bundle:
            clips = printed(
                print_quality,
                measure_quality(bundle, self.openvino(path), self.options.videos, self.options.size),
            )
        losses = largest_loss(clips)
        self.failed |= any(loss > BAR_DB for loss in losses.values())
        print(
            ", ".join(f"{name} loses at most {loss:.4f} dB" for name, loss in losses.items())
            + f"; the bar is {BAR_DB} dB"
        )
        return {
            "checkpoint_sha256": checkpoint,
            "bar_db": BAR_DB,
            "largest_loss_db": losses,
            "clips": [asdict(clip) for clip in clips],
        }

    def memory(self) -> dict[str, Any]:
        options, runs = self.options, self.options.memory_runs
        bundle = self.path(options.memory_preset)
        measured = measure_memory(
            bundle, options.memory_preset, options.memory_frames, MEMORY_SIZE, self.threads, runs, self.folder
        )
        results = printed(print_memory, measured)
        return {"size": MEMORY_SIZE, "runs": runs, "jobs": [asdict(result) for result in results]}


def printed(show: Callable[[T], None], results: Iterable[T]) -> list[T]:
    """All results, each shown as soon as it is there."""
    found = []
    for result in results:
        show(result)
        sys.stdout.flush()
        found.append(result)
    return found


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {}
    if options.json is not None and options.json.exists():
        result = json.loads(options.json.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="wfvae-benchmark-") as folder:
        benchmark = Benchmark(Path(folder), options)
        for name in options.only:
            section: Callable[[], dict[str, Any]] = getattr(benchmark, name)
            before = load_average()
            title = section_name(name, options)
            print(f"{title} (load average {before:.2f})")
            found = section()
            facts = machine(options.threads, "torch", "onnxruntime", *installed("openvino"), "numpy", "av")
            result[title] = {
                "machine": facts,
                "load_average_before": before,
                "load_average_after": load_average(),
                **found,
            }
            print()
            if options.json is not None:
                write_json(options.json, result)
    return int(benchmark.failed)


def section_name(name: str, options: argparse.Namespace) -> str:
    """What a result file calls a section: what is measured otherwise than by default belongs to its
    name.
    """
    size = [f"{options.size}x{options.size}"] * (options.size != SPEED_SIZE)
    if name == "quality":
        return " ".join([name, *(["of videos"] if options.videos else size)])
    preset, usual, frames, usual_frames = (
        (options.preset, SPEED_PRESET, options.lengths, SPEED_LENGTHS)
        if name == "speed"
        else (options.memory_preset, MEMORY_PRESET, options.memory_frames, MEMORY_FRAMES)
    )
    words = [name, *[preset] * (preset != usual), *(size if name == "speed" else [])]
    return " ".join([*words, *[f"{'+'.join(map(str, frames))} frames"] * (frames != usual_frames)])


def installed(*packages: str) -> list[str]:
    """Those of `packages` that are."""
    return [package for package in packages if find_spec(package) is not None]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SECTIONS,
        metavar="SECTION",
        help=f"of {', '.join(SECTIONS)} (default: all but quality)",
    )
    parser.add_argument(
        "--preset",
        default=SPEED_PRESET,
        choices=get_args(Preset),
        help="preset of the speed section (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=SPEED_SIZE,
        help="height and width of clips, for speed and for quality without --videos (default: %(default)s)",
    )
    parser.add_argument("--checkpoint", type=Path, help="trained model of the quality section")
    parser.add_argument(
        "--videos",
        type=Path,
        nargs="+",
        default=[],
        help="clips of the quality section (default: generated ones)",
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="threads of every engine (default: %(default)s)"
    )
    parser.add_argument(
        "--runs", type=int, default=MINIMUM_RUNS, help=f"turns of the speed section, at least {MINIMUM_RUNS}"
    )
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        default=SPEED_LENGTHS,
        help="lengths of the speed section's clips, in frames (default: %(default)s)",
    )
    parser.add_argument(
        "--memory-preset",
        default=MEMORY_PRESET,
        choices=get_args(Preset),
        help="preset of the memory section (default: %(default)s)",
    )
    parser.add_argument(
        "--memory-frames",
        type=int,
        nargs="+",
        default=MEMORY_FRAMES,
        help=(
            "lengths of the memory section's videos, in frames; the longest is compared with the shortest"
            " (default: %(default)s)"
        ),
    )
    parser.add_argument(
        "--memory-runs",
        type=int,
        default=MEMORY_RUNS,
        help="runs of each job of the memory section (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args(arguments)
    options.lengths, options.memory_frames = sorted(set(options.lengths)), sorted(set(options.memory_frames))
    if options.runs < MINIMUM_RUNS:
        parser.error(f"--runs is {options.runs}; expected at least {MINIMUM_RUNS}")
    if options.size < 8 or options.size % 8:
        parser.error(f"--size is {options.size}; expected a multiple of 8")
    if len(options.memory_frames) < 2:
        parser.error(f"--memory-frames are {options.memory_frames}; expected two lengths or more, to compare")
    options.only = options.only or [name for name in SECTIONS if name != "quality"]
    if "quality" in options.only and options.checkpoint is None:
        parser.error(
            "the quality section needs --checkpoint: with random weights the figure would mean nothing"
        )
    return options


if __name__ == "__main__":
    sys.exit(main())
