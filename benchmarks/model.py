"""Speed, memory and exactness of the PyTorch model on a CPU, against the published code's
computational form.

    python benchmarks/model.py [--preset S] [--size 128] [--frames 17] [--threads 2] [--json FILE]

Both forms run the same weights in one process, turn by turn, so that a busy machine slows both
alike. Peak memory is that of a decode in a process of its own for each form. Weights are random:
speed and memory do not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch
from process_memory import peak_mb
from record import machine, write_json
from reference_form import reference_form
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from wfvae import WFVAE, WFVAEConfig
from wfvae.machine import processor_name
from wfvae.model.config import Preset
from wfvae.spec.frames import SPATIAL_RATIO, latent_frames

OURS, REFERENCE = "wfvae", "reference"
FORMS: dict[str, Callable[[WFVAE], AbstractContextManager[object]]] = {
    OURS: nullcontext,
    REFERENCE: reference_form,
}
MINIMUM_RUNS = 5
GEMM_SIDE = 2048
PUBLISHED_PEAK_MB = 1257
"""Peak of the published code's own decode, preset S, 17 frames of 128x128, measured once on another
machine.
"""


@dataclass(frozen=True)
class Speed:
    """Of one direction: medians in seconds, and what they mean. FLOPs are those of the reference
    form for both forms.
    """

    wfvae_seconds: float
    reference_seconds: float
    ratio: float
    """Reference time by ours: above 1, ours is faster. The median of the ratios of neighbouring
    runs.
    """
    gflop: float
    wfvae_gflop_per_second: float
    reference_gflop_per_second: float
    largest_difference: float
    """Between the two forms' outputs."""


@dataclass(frozen=True)
class Exactness:
    """Of an fp32 stream of small chunks against the whole clip."""

    equal_values: float
    """Share, 0 to 1."""
    largest_difference: float


def main() -> None:
    options = parse_arguments()
    if options.peak:
        print(peak_of_a_decode(options))
        return
    torch.set_num_threads(options.threads)
    print(
        f"WF-VAE-{options.preset}, {options.frames} frames of {options.size}x{options.size}, fp32,"
        f" {options.threads} threads\n"
    )
    model, video, latents = make(options)
    with torch.inference_mode():
        gemm = gemm_rate()
        speeds = {
            "encode": measure(model, lambda: model.encode(video).latent_dist.moments, options.runs),
            "decode": measure(model, lambda: model.decode(latents).sample, options.runs),
        }
        gemm = statistics.median(
            [gemm, gemm_rate()]
        )  # before and after: the machine may have changed its mind
        exactness = stream_exactness(model, video, latents)
    peaks = {form: run_peak(form, options) for form in FORMS}
    print_tables(options, speeds, exactness, peaks, gemm)
    if options.json is not None:
        result = {
            "machine": {
                **machine(options.threads, "torch"),
                "gemm_gflop_per_second": gemm,
            },
            "job": {
                "preset": options.preset,
                "frames": options.frames,
                "height": options.size,
                "width": options.size,
                "dtype": "float32",
            },
            "runs": options.runs,
            "speed": {name: asdict(speed) for name, speed in speeds.items()},
            "decode_peak_mb": {
                **peaks,
                "published_code_elsewhere": PUBLISHED_PEAK_MB if is_published_job(options) else None,
            },
            "fp32_stream_against_clip": {name: asdict(value) for name, value in exactness.items()},
        }
        write_json(options.json, result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="S", choices=get_args(Preset))
    parser.add_argument("--size", type=int, default=128, help="height and width, a multiple of 8")
    parser.add_argument("--frames", type=int, default=17, help="1 + 4 n")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--runs", type=int, default=MINIMUM_RUNS, help=f"of each form, at least {MINIMUM_RUNS}"
    )
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--peak", choices=list(FORMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.size < 1 or options.size % SPATIAL_RATIO:
        parser.error(f"--size is {options.size}; expected a multiple of {SPATIAL_RATIO}")
    if options.frames < 1 or options.frames % 4 != 1:
        parser.error(f"--frames is {options.frames}; expected 1 + 4 n")
    if options.runs < MINIMUM_RUNS:
        parser.error(f"--runs is {options.runs}; expected at least {MINIMUM_RUNS}")
    return options


def make(options: argparse.Namespace) -> tuple[WFVAE, Tensor, Tensor]:
    """The model, a video and latents, always the same."""
    torch.manual_seed(0)
    model = WFVAE(WFVAEConfig.preset(options.preset)).eval().requires_grad_(False)
    side = options.size // SPATIAL_RATIO
    count = latent_frames(options.frames, model.config.temporal_compression)
    video = torch.rand(1, 3, options.frames, options.size, options.size) * 2 - 1
    return model, video, torch.randn(1, model.config.latent_dim, count, side, side)


def measure(model: WFVAE, job: Callable[[], Tensor], runs: int) -> Speed:
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    outputs: dict[str, Tensor] = {}
    for turn in range(runs + 1):
        for form, enter in FORMS.items():
            with enter(model):
                begin = time.perf_counter()
                outputs[form] = job()
                elapsed = time.perf_counter() - begin
            if turn:  # the first turn warms up
                seconds[form].append(elapsed)
    with reference_form(model), FlopCounterMode(display=False) as counter:
        job()
    gflop = counter.get_total_flops() / 1e9
    medians = {form: statistics.median(values) for form, values in seconds.items()}
    return Speed(
        wfvae_seconds=medians[OURS],
        reference_seconds=medians[REFERENCE],
        ratio=statistics.median(r / o for o, r in zip(seconds[OURS], seconds[REFERENCE], strict=True)),
        gflop=gflop,
        wfvae_gflop_per_second=gflop / medians[OURS],
        reference_gflop_per_second=gflop / medians[REFERENCE],
        largest_difference=(outputs[OURS] - outputs[REFERENCE]).abs().max().item(),
    )


def gemm_rate() -> float:
    """GFLOP/s of a large fp32 matrix product by `torch.mm`, for comparison: no convolution is
    involved.

    Not an upper bound: on some processors the library behind it is slower than the one that
    computes convolutions.
    """
    a, b = torch.randn(GEMM_SIDE, GEMM_SIDE), torch.randn(GEMM_SIDE, GEMM_SIDE)
    seconds = []
    for _ in range(12):
        begin = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - begin)
    return 2 * GEMM_SIDE**3 / 1e9 / statistics.median(seconds[2:])


def stream_exactness(model: WFVAE, video: Tensor, latents: Tensor) -> dict[str, Exactness]:
    """Chunks of 8 frames, or 2 latents."""
    clips = {"encode": model.encode(video).latent_dist.moments, "decode": model.decode(latents).sample}
    streams = {
        "encode": model.stream_encode(chunks(video, 8)),
        "decode": model.stream_decode(chunks(latents, 2)),
    }
    result = {}
    for name, clip in clips.items():
        stream = torch.cat(list(streams[name]), dim=2)
        result[name] = Exactness((clip == stream).double().mean().item(), (clip - stream).abs().max().item())
    return result


def chunks(clip: Tensor, size: int) -> list[Tensor]:
    return [clip[:, :, begin : begin + size] for begin in range(0, clip.shape[2], size)]


def run_peak(form: str, options: argparse.Namespace) -> float:
    """Megabytes, measured in a process of its own."""
    command = [sys.executable, __file__, "--peak", form]
    for name in ("preset", "size", "frames", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_of_a_decode(options: argparse.Namespace) -> float:
    torch.set_num_threads(options.threads)
    model, _, latents = make(options)
    with torch.inference_mode(), FORMS[options.peak](model):
        model.decode(latents)
    return peak_mb()


def is_published_job(options: argparse.Namespace) -> bool:
    return (options.preset, options.size, options.frames) == ("S", 128, 17)


def print_tables(
    options: argparse.Namespace,
    speeds: dict[str, Speed],
    exactness: dict[str, Exactness],
    peaks: dict[str, float],
    gemm: float,
) -> None:
    print(
        f"{'':8}{'wfvae s':>10}{'reference s':>14}{'ratio':>8}{'GFLOP':>9}{'wfvae GFLOP/s':>16}{'reference':>12}{'difference':>13}"
    )
    for name, s in speeds.items():
        print(
            f"{name:8}{s.wfvae_seconds:>10.3f}{s.reference_seconds:>14.3f}{s.ratio:>8.2f}{s.gflop:>9.0f}"
            f"{s.wfvae_gflop_per_second:>16.0f}{s.reference_gflop_per_second:>12.0f}{s.largest_difference:>13.1e}"
        )
    print(f"\nfp32 matrix product: {gemm:.0f} GFLOP/s; {processor_name()}, torch {torch.__version__}")
    published = (
        f", published code (measured elsewhere) {PUBLISHED_PEAK_MB} MB" if is_published_job(options) else ""
    )
    print(
        f"peak memory of a decode: wfvae {peaks[OURS]:.0f} MB, reference form {peaks[REFERENCE]:.0f}"
        f" MB{published}"
    )
    for name, e in exactness.items():
        print(
            f"fp32 stream against clip, {name}: {e.equal_values:.2%} of the values equal, largest difference"
            f" {e.largest_difference:.1e}"
        )


if __name__ == "__main__":
    main()
