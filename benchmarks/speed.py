"""How fast is each engine, for whole clips and for streams, against the published form?

    python benchmarks/speed.py --json benchmarks/results/speed-cpu.json
    python benchmarks/speed.py --clips 17x128 --json benchmarks/results/speed-cpu-avx2.json
    python benchmarks/speed.py --preset tiny --clips 17x64 --turns 1

The published form is `harness/reference_form.py`: the same weights in PyTorch, computed as the
published code computes them. All forms of a clip take turns in one process; ratios are medians of
the ratios within a turn. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from harness import tables
from harness.engines import DIRECTIONS, noise, open_all, pushes
from harness.record import command_line, finish, machine, side, whole_clip
from harness.reference_form import reference_form
from harness.turns import ratio, take_turns, timed

from wfvae import WFVAE, WFVAEConfig
from wfvae.export.bundle import ExportOptions, export_bundle
from wfvae.model.config import Preset
from wfvae.runtime import Bundle
from wfvae.spec.stream import Direction

REFERENCE, TORCH = "reference", "torch"
CHUNKS = {"onnxruntime": (1, 2, 4)}
"""Latents per push of the streams that are measured; other engines have one, of 4."""
LONG = 65
"""Frames from which on PyTorch takes no part: such clips show what a long stream costs."""

Row = dict[str, Any]


def measure(
    model: WFVAE, bundles: Mapping[str, Bundle], direction: Direction, frames: int, size: int, turns: int
) -> Iterator[Row]:
    """Yields a row per engine, direct and streamed."""
    any_bundle = next(iter(bundles.values()))
    clip = noise(any_bundle, direction, frames, size)
    jobs: dict[tuple[str, int | None], Callable[[], float]] = {}
    if frames < LONG:
        tensor = torch.from_numpy(clip).movedim(1, 2).contiguous()
        jobs[REFERENCE, None] = partial(_published, model, direction, tensor)
        jobs[TORCH, None] = partial(_torch, model, direction, tensor)
    for engine, bundle in bundles.items():
        jobs[engine, None] = partial(_direct, bundle, direction, clip)
        for chunk in CHUNKS.get(engine, (4,)):
            parts = pushes(bundle, direction, clip, chunk)
            stream = partial(_stream, bundle, direction, parts, size, chunk)
            jobs[engine, chunk * bundle.ratio] = partial(timed, stream)
    seconds = take_turns(jobs, turns)
    published = seconds.get((REFERENCE, None))
    for (engine, push), values in seconds.items():
        yield {
            "frames": frames,
            "size": size,
            "direction": direction,
            "engine": engine,
            "frames_per_push": push,
            "turns": turns,
            "seconds": statistics.median(values),
            "fastest_seconds": min(values),
            "speed_by_reference": published and ratio(published, values),
            "time_by_direct": push and ratio(values, seconds[engine, None]),
        }


def _torch(model: WFVAE, direction: Direction, clip: torch.Tensor) -> float:
    with torch.inference_mode():
        return timed(partial(model.encode if direction == "encoder" else model.decode, clip))


def _published(model: WFVAE, direction: Direction, clip: torch.Tensor) -> float:
    with reference_form(model):
        return _torch(model, direction, clip)


def _direct(bundle: Bundle, direction: Direction, clip: Any) -> float:
    return timed(partial(bundle.direct_session(direction).run, clip))


def _stream(bundle: Bundle, direction: Direction, parts: Sequence[Any], size: int, chunk: int) -> None:
    if direction == "encoder":
        opened: Any = bundle.encoder(height=size, width=size, chunk=chunk)
    else:
        opened = bundle.decoder(height=size, width=size, chunk=chunk, pixels="float32")
    with opened as stream:
        for part in parts:
            stream.push(part)
        stream.finish()


def parse_clip(text: str) -> tuple[int, int]:
    """Parses "17x128": frames, and height and width."""
    frames, _, size = text.partition("x")
    return whole_clip(frames), side(size)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__, "speed-cpu.json")
    parser.add_argument("--preset", default="S", choices=get_args(Preset))
    parser.add_argument(
        "--clips",
        type=parse_clip,
        nargs="+",
        default=[(17, 128), (65, 128), (17, 256)],
        metavar="TxS",
        help="T frames of SxS pixels each (default: 17x128 65x128 17x256)",
    )
    parser.add_argument("--turns", type=int, default=5, help="default: %(default)s")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    facts = machine(options.threads)
    model = WFVAE.random(WFVAEConfig.preset(options.preset), 0).eval().requires_grad_(False)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="wfvae-benchmark-") as folder:
        path = Path(folder) / "bundle"
        export_bundle(model, path, ExportOptions(direct=True))
        with open_all(path, options.threads) as (bundles, missing):
            for frames, size in options.clips:
                for direction in DIRECTIONS.values():
                    rows += measure(model, bundles, direction, frames, size, options.turns)
                    print(f"{frames} frames of {size}x{size}, {direction}: done", file=sys.stderr)
    result = {"machine": facts, "preset": options.preset, "rows": rows, "not_measured": missing}
    finish(result, options.json, tables.seconds, tables.streams)
    return 0


if __name__ == "__main__":
    sys.exit(main())
