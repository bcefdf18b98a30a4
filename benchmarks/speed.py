"""How fast is each engine, for whole clips and for streams, against the published form?

    python benchmarks/speed.py --json benchmarks/results/speed-cpu.json
    python benchmarks/speed.py --clips 17x128 --json benchmarks/results/speed-cpu-avx2.json
    python benchmarks/speed.py --target openvino --engines openvino-bf16 \\
        --json benchmarks/results/speed-cpu-amx.json
    python benchmarks/speed.py --preset tiny --clips 17x64 --turns 1

The published form is `harness/reference_form.py`: the same weights in PyTorch, computed as the
published code computes them. All forms of a clip take turns in one process; ratios are medians of
the ratios within a turn. Weights are random: speed does not depend on them.
"""

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from harness.engines import DIRECTIONS, ENGINES, exported, noise, open_all, pushes
from harness.record import CommandLine, finish, side, whole_clip
from harness.reference_form import reference_form
from harness.turns import ratio, take_turns, timed

from wfvae import WFVAE, WFVAEConfig
from wfvae.export.forms import TARGETS
from wfvae.runtime import Bundle
from wfvae.spec.stream import Direction

REFERENCE, TORCH = "reference", "torch"
CHUNKS = {"onnxruntime": (1, 2, 4)}
"""Latents per push of the streams that are measured; other engines have one, of 4. A row of as many
frames per push as the clip has is one call of `Bundle.encode` or `decode`.
"""
LONG = 65
"""Frames from which on PyTorch takes no part: such clips show what a long stream costs."""

Row = dict[str, Any]


def measure(
    model: WFVAE, bundles: Mapping[str, Bundle], direction: Direction, frames: int, size: int, turns: int
) -> Iterator[Row]:
    """Yields a row per engine, direct and streamed."""
    clip = noise(next(iter(bundles.values())), direction, frames, size)
    jobs: dict[tuple[str, int | None], Callable[[], Any]] = {}
    if frames < LONG:
        tensor = torch.from_numpy(clip).movedim(1, 2).contiguous()
        run = torch.inference_mode()(model.encode if direction == "encoder" else model.decode)
        jobs[REFERENCE, None] = partial(_published, model, partial(run, tensor))
        jobs[TORCH, None] = partial(timed, partial(run, tensor))
    for engine, bundle in bundles.items():
        jobs[engine, None] = partial(timed, partial(bundle.direct_session(direction).run, clip))
        for chunk in CHUNKS.get(engine, (4,)):
            parts = pushes(bundle, direction, clip, chunk)
            stream = partial(_stream, bundle, direction, parts, size, chunk)
            jobs[engine, chunk * bundle.ratio] = partial(timed, stream)
        jobs[engine, frames] = partial(timed, partial(_call, bundle, direction, np.concatenate(parts)))
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


def _published(model: WFVAE, run: Callable[[], Any]) -> float:
    with reference_form(model):
        return timed(run)


def _call(bundle: Bundle, direction: Direction, data: Any) -> None:
    """Computes a clip in one call, as a user's arrays."""
    if direction == "encoder":
        bundle.encode(data)
    else:
        bundle.decode(data, pixels="float32")


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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandLine(__doc__, "speed-cpu.json", preset="S", turns=5)
    clips = [(17, 128), (65, 128), (17, 256)]
    text = "T frames of SxS pixels each"
    parser.add_argument("--clips", type=parse_clip, nargs="+", default=clips, metavar="TxS", help=text)
    parser.add_argument("--target", choices=TARGETS, default="auto", help="of the bundle")
    parser.add_argument("--engines", choices=ENGINES, nargs="+", default=[*ENGINES], help="to measure")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model = WFVAE.random(WFVAEConfig.preset(options.preset), 0).eval().requires_grad_(False)
    rows: list[Row] = []
    with (
        exported(model, direct=True, target=options.target) as (path, _),
        open_all(path, options.threads) as (bundles, missing),
    ):
        bundles = {engine: bundle for engine, bundle in bundles.items() if engine in options.engines}
        for (frames, size), direction in product(options.clips, DIRECTIONS.values()):
            rows += measure(model, bundles, direction, frames, size, options.turns)
            print(f"{frames} frames of {size}x{size}, {direction}: done", file=sys.stderr)
    about = {"preset": options.preset, "target": options.target}
    finish(options, "seconds", "streams", **about, rows=rows, not_measured=missing)
    return 0


if __name__ == "__main__":
    sys.exit(main())
