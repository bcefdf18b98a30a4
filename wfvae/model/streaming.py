"""Streams in PyTorch: iterators of chunks of any sizes through the model's steps. The production
loop is `wfvae.runtime`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wfvae.errors import InputError
from wfvae.model.arguments import check_latents, check_same_stream, check_video
from wfvae.spec.frames import (
    SPATIAL_RATIO,
    OutputWindow,
    latent_frames,
    lead_frames,
    tail_frames,
    video_frames,
)
from wfvae.spec.stream import Direction

if TYPE_CHECKING:
    from wfvae.model.vae import WFVAE

State = dict[str, Tensor]


def stream_encode(model: WFVAE, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """See `WFVAE.stream_encode`."""
    ratio = model.config.temporal_compression
    state: State | None = None
    waiting: Tensor | None = None  # frames short of a whole step
    last: Tensor | None = None
    seen = 0
    for chunk in chunks:
        check_video("chunk", chunk, model.dtype, empty=True)
        if not chunk.shape[2]:
            continue
        if last is None or waiting is None:
            waiting = chunk[:, :, :1].expand(-1, -1, lead_frames(ratio), -1, -1)
        else:
            check_same_stream(last, chunk)
        seen += chunk.shape[2]
        last = chunk[:, :, -1:]
        frames = torch.cat([waiting, chunk], dim=2)
        ready = frames.shape[2] // ratio * ratio
        waiting = frames[:, :, ready:].clone()
        if ready:
            moments, state = _step(model, "encoder", frames[:, :, :ready], state)
            yield moments
    if last is None or waiting is None:
        raise InputError("the stream has no frames; expected at least 1")
    if waiting.shape[2]:
        tail = last.expand(-1, -1, tail_frames(seen, ratio), -1, -1)
        yield _step(model, "encoder", torch.cat([waiting, tail], dim=2), state)[0]


def stream_decode(model: WFVAE, chunks: Iterable[Tensor], frames: int | None) -> Iterator[Tensor]:
    """See `WFVAE.stream_decode`."""
    spec = model.stream_spec("decoder")
    window = OutputWindow(spec.drop)
    state: State | None = None
    last: Tensor | None = None
    latents = 0
    for chunk in chunks:
        check_latents("chunk", chunk, model.config.latent_dim, model.dtype, empty=True)
        if not chunk.shape[2]:
            continue
        if last is not None:
            check_same_stream(last, chunk)
        last = chunk[:, :, -1:]
        latents += chunk.shape[2]
        video, state = _step(model, "decoder", chunk, state)
        part, window = window.take(video.shape[2], frames)
        if part.stop > part.start:
            yield video[:, :, part]
    if last is None:
        raise InputError("the stream has no latents; expected at least 1")
    total = video_frames(latents, spec.ratio) if frames is None else frames
    if latent_frames(total, spec.ratio) != latents:
        raise InputError(
            f"{latents} latents were given for T = {total} frames, which have"
            f" {latent_frames(total, spec.ratio)}"
        )
    if window.given < total:
        video, _ = _step(model, "decoder", last, state, end=True)
        part, _ = window.take(video.shape[2], total)
        yield video[:, :, part]


def _step(
    model: WFVAE, direction: Direction, chunk: Tensor, state: State | None, end: bool = False
) -> tuple[Tensor, State]:
    batch, device = chunk.shape[0], chunk.device
    start = torch.full((batch,), state is None, device=device)
    if state is None:
        factor = 1 if direction == "encoder" else SPATIAL_RATIO
        state = model.initial_state(direction, batch, chunk.shape[3] * factor, chunk.shape[4] * factor)
    step = model.encoder_step if direction == "encoder" else model.decoder_step
    return step(chunk, state, start, torch.full((batch,), end, device=device))
