"""Speed of ONNX Runtime and OpenVINO, direct and streamed, against the reference form and our model
in PyTorch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from reference_form import reference_form
from turns import ratio, take_turns

from wfvae import WFVAE
from wfvae.runtime import Bundle
from wfvae.runtime.backends.base import FloatArray
from wfvae.runtime.pixels import to_network
from wfvae.spec.stream import Direction

DIRECTIONS: tuple[Direction, ...] = ("encoder", "decoder")
REFERENCE, WFVAE_TORCH, DIRECT = "reference", "wfvae", "onnxruntime"
CHUNKS = (1, 2, 4)
LONG_CHUNKS = (2, 4)
OTHER_CHUNK = 4
"""Of the streams of backends other than ONNX Runtime."""
LONG = 65
"""Clips from this length on are only there to see what a stream's start and end cost: no PyTorch,
and of ONNX Runtime fewer streams.
"""


@dataclass(frozen=True)
class FormSpeed:
    """Medians of one way to compute one clip."""

    seconds: float
    fastest_seconds: float
    """The least disturbed run: to judge by, where the machine was busy."""
    speed_by_reference: float | None
    """Above 1: faster than the reference form."""
    time_by_direct: float | None
    """Against direct inference on the same backend."""
    drain_share: float | None
    """Part of a decoding stream's time that its draining step takes."""


@dataclass(frozen=True)
class ClipSpeed:
    direction: Direction
    frames: int
    runs: int
    forms: dict[str, FormSpeed]
    stream_work: float
    """Frames that a stream computes at half the video's rate, where most of the work is, by those
    of direct inference, as the network has them: the count for PyTorch, and for exports with plain
    convolutions."""
    stream_work_in_pairs: float
    """The same where direct inference, too, computes frames in pairs, one of them a copy
    (`wfvae.export.forms.minimal_filtering`): the count for graphs exported in fp32, as these are."""


def measure_speed(
    model: WFVAE, bundle: Bundle, others: Mapping[str, Bundle], size: int, lengths: list[int], runs: int
) -> Iterator[ClipSpeed]:
    """For each length and direction. `others`: the same bundle on other backends, by the names of
    their rows.
    """
    for frames in lengths:
        for direction in DIRECTIONS:
            yield _measure(model, bundle, others, direction, frames, size, runs)


def steady_ratios(clips: list[ClipSpeed]) -> dict[str, dict[str, float]]:
    """Time of streaming by that of direct inference on the same backend, for what the longest clip
    has more than the shortest: start and end cancel out.

    From the fastest runs, since differences of medians would add up the noise of both.
    """
    found: dict[str, dict[str, float]] = {}
    for direction in DIRECTIONS:
        mine = sorted((clip for clip in clips if clip.direction == direction), key=lambda clip: clip.frames)
        if len(mine) > 1:
            first, last = mine[0].forms, mine[-1].forms
            more = {
                name: last[name].fastest_seconds - first[name].fastest_seconds
                for name in last
                if name in first
            }
            streams = [name for name in more if last[name].time_by_direct is not None]
            found[direction] = {name: more[name] / more[direct_of(name)] for name in streams}
    return found


def stream_name(chunk: int, backend: str = DIRECT) -> str:
    """The row of a stream, in steps of `chunk` latents; `direct_of` is its inverse."""
    return ("" if backend == DIRECT else f"{backend}, ") + f"stream of {4 * chunk} frames"


def direct_of(stream: str) -> str:
    """The row of direct inference on a stream's backend."""
    return stream.rpartition(", ")[0] or DIRECT


def _measure(
    model: WFVAE,
    bundle: Bundle,
    others: Mapping[str, Bundle],
    direction: Direction,
    frames: int,
    size: int,
    runs: int,
) -> ClipSpeed:
    rng = np.random.default_rng(0)
    latents = 1 + (frames - 1) // bundle.ratio
    if direction == "encoder":
        data: Any = rng.random((frames, size, size, 3), dtype=np.float32) * 2 - 1
        x = to_network(data)[None]
    else:
        data = rng.standard_normal((latents, model.config.latent_dim, size // 8, size // 8), dtype=np.float32)
        x = data[None]
    drains: dict[str, list[float]] = {}
    compared = frames < LONG
    jobs: dict[str, Callable[[], float]] = {}
    if compared:
        tensor = torch.from_numpy(x).movedim(1, 2).contiguous()
        jobs[REFERENCE] = partial(_torch_reference, model, direction, tensor)
        jobs[WFVAE_TORCH] = partial(_torch, model, direction, tensor)
    jobs[DIRECT] = partial(_direct, bundle, direction, x)

    def add_stream(name: str, opened: Bundle, chunk: int) -> None:
        drains[name] = []
        jobs[name] = partial(_stream, opened, direction, data, size, chunk, drains[name])

    for chunk in CHUNKS if compared else LONG_CHUNKS:
        add_stream(stream_name(chunk), bundle, chunk)
    for name, other in others.items():
        jobs[name] = partial(_direct, other, direction, x)
        add_stream(stream_name(OTHER_CHUNK, name), other, OTHER_CHUNK)
    seconds = take_turns(jobs, runs)
    forms = {}
    for name, values in seconds.items():
        streamed = name in drains
        drained = (
            statistics.median(d / s for d, s in zip(drains[name][1:], values, strict=True))
            if streamed
            else None
        )
        forms[name] = FormSpeed(
            seconds=statistics.median(values),
            fastest_seconds=min(values),
            speed_by_reference=ratio(seconds[REFERENCE], values) if compared else None,
            time_by_direct=ratio(values, seconds[direct_of(name)]) if streamed else None,
            drain_share=drained if direction == "decoder" else None,
        )
    steps = latents + bundle.manifest.graphs[direction].has_end
    return ClipSpeed(direction, frames, runs, forms, 2 * steps / (2 * latents - 1), 2 * steps / (2 * latents))


def _torch(model: WFVAE, direction: Direction, x: torch.Tensor) -> float:
    with torch.inference_mode():
        begin = time.perf_counter()
        if direction == "encoder":
            model.encode(x)
        else:
            model.decode(x)
        return time.perf_counter() - begin


def _torch_reference(model: WFVAE, direction: Direction, x: torch.Tensor) -> float:
    with reference_form(model):
        return _torch(model, direction, x)


def _direct(bundle: Bundle, direction: Direction, x: FloatArray) -> float:
    session = bundle.direct_session(direction)
    begin = time.perf_counter()
    session.run(x)
    return time.perf_counter() - begin


def _stream(
    bundle: Bundle, direction: Direction, data: Any, size: int, chunk: int, drains: list[float]
) -> float:
    """A stream from opening to its last frame, fed chunk by chunk."""
    begin = time.perf_counter()
    opened: Any
    if direction == "encoder":
        opened, step = bundle.encoder(height=size, width=size, chunk=chunk), bundle.ratio * chunk
    else:
        opened, step = bundle.decoder(height=size, width=size, chunk=chunk, pixels="float32"), chunk
    with opened as stream:
        for start in range(0, len(data), step):
            stream.push(data[start : start + step])
        before = stream.engine_seconds
        stream.finish()
    elapsed = time.perf_counter() - begin
    drains.append(stream.engine_seconds - before)
    return elapsed


def print_clip(clip: ClipSpeed) -> None:
    print(f"{clip.direction}, {clip.frames} frames, {clip.runs} runs")
    print(f"{'':38}{'median s':>12}{'fastest s':>12}{'speed/reference':>17}{'time/direct':>13}{'drain':>8}")
    for name, form in clip.forms.items():
        reference = "" if form.speed_by_reference is None else f"{form.speed_by_reference:.2f}"
        direct = "" if form.time_by_direct is None else f"{form.time_by_direct:.3f}"
        drain = "" if form.drain_share is None else f"{form.drain_share:.0%}"
        print(
            f"  {name:36}{form.seconds:>12.3f}{form.fastest_seconds:>12.3f}{reference:>17}{direct:>13}{drain:>8}"
        )
    counts = (
        f"{clip.stream_work_in_pairs:.3f} in pairs, as these graphs compute them; {clip.stream_work:.3f} as"
        " the network has them"
    )
    print(f"  work of a stream by that of direct inference, in frames at half the video's rate: {counts}")


def print_steady(steady: dict[str, dict[str, float]]) -> None:
    for direction, ratios in steady.items():
        text = "; ".join(f"{name} {value:.3f}" for name, value in ratios.items())
        print(f"{direction}, time/direct without start and end: {text}")
