"""Runs of one video: by plans (ways to cut a stream into steps), directly, and by the model."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wfvae.errors import CheckpointError, StateError
from wfvae.export.parity.difference import Array
from wfvae.runtime.bundle import Bundle
from wfvae.runtime.pixels import to_float_frames, to_network
from wfvae.runtime.stream import DecoderStream, EncoderStream
from wfvae.spec.frames import DEFAULT_CHUNK, even_chunks, latent_frames, lead_frames, tail_frames
from wfvae.spec.stream import Direction

if TYPE_CHECKING:
    import torch

    from wfvae.model.vae import WFVAE

_SEED = 24111745
_LONGEST_STEP = 5


@dataclass(frozen=True)
class Job:
    """One video to encode, or its latents to decode."""

    bundle: Bundle
    direction: Direction
    data: Array
    """Encoder: frames (T, H, W, 3) uint8. Decoder: unscaled latents (t, D, h, w) float32."""
    frames: int
    """The video's true T."""
    height: int
    width: int

    @property
    def verb(self) -> str:
        return "encode" if self.direction == "encoder" else "decode"

    @property
    def latents(self) -> int:
        return latent_frames(self.frames, self.bundle.ratio)

    def open(self, chunk: int) -> EncoderStream | DecoderStream:
        """Opens a stream. A decoder returns float32 frames: rounding would hide errors."""
        if self.direction == "encoder":
            return self.bundle.encoder(height=self.height, width=self.width, chunk=chunk)
        return self.bundle.decoder(
            height=self.height, width=self.width, frames=self.frames, chunk=chunk, pixels="float32"
        )

    def split(self, steps: Sequence[int]) -> list[Array]:
        """Cuts the data into pieces that complete `steps` latents each."""
        ratio = self.bundle.ratio if self.direction == "encoder" else 1
        ends = np.cumsum(steps) * ratio - lead_frames(ratio)
        return np.split(self.data, np.minimum(ends[:-1], len(self.data)))


def run_chunks(job: Job, chunk: int) -> Array:
    """Runs steps of `chunk` latents and a smaller last one."""
    return run_steps(job, tuple(even_chunks(job.latents, chunk)))


def run_steps(job: Job, steps: Sequence[int]) -> Array:
    """Runs steps of exactly these numbers of latents (and the drain, if the decoder needs one)."""
    pieces = job.split(steps)
    with job.open(max(steps)) as stream:
        parts = [stream.push(piece) for piece in pieces[:-1]]
        # Without a step in between: an incomplete last group of frames would otherwise run in a
        # step of its own.
        stream.queue(pieces[-1])
        return np.concatenate([*parts, stream.finish()])


def ragged_steps(latents: int) -> tuple[int, ...]:
    """Returns pseudo-random steps of 1 to 5 latents, always the same for a length."""
    dice, steps = random.Random(_SEED), list[int]()
    while (left := latents - sum(steps)) > 0:
        steps.append(min(left, dice.randint(1, _LONGEST_STEP)))
    return tuple(steps)


def run_odd_pushes(job: Job) -> Array:
    """Pushes odd sizes, which never stay aligned with groups of r frames."""
    dice = random.Random(_SEED + 1)
    with job.open(2) as stream:
        parts, position = [], 0
        while position < len(job.data):
            size = dice.choice((1, 3, 5, 7))
            parts.append(stream.push(job.data[position : position + size]))
            position += size
        return np.concatenate([*parts, stream.finish()])


def run_snapshots(job: Job) -> Array:
    """Takes a snapshot after each third of the input, and restores it to a new stream.

    Where a state that holds NaN cannot be restored, the rest of the result is NaN.
    """
    cuts = [len(job.data) // 3, 2 * len(job.data) // 3]
    parts = []
    stream = job.open(DEFAULT_CHUNK)
    for piece in np.split(job.data, cuts):
        parts.append(stream.push(piece))
        saved = stream.snapshot()
        stream.close()
        try:
            stream = job.bundle.restore(saved, chunk=DEFAULT_CHUNK)
        except StateError:
            total = job.latents if job.direction == "encoder" else job.frames
            left = total - sum(map(len, parts))
            return np.concatenate([*parts, np.full((left, *parts[0].shape[1:]), np.nan, np.float32)])
    with stream:
        return np.concatenate([*parts, stream.finish()])


def run_interleaved(job: Job, other: Job) -> tuple[Array, Array]:
    """Runs both jobs as rows of one batch.

    `other` joins after the first step and, being shorter, leaves before the last.
    """
    chunk = max(1, job.latents // 4)
    open_pool: Any = job.bundle.encoder_pool if job.direction == "encoder" else job.bundle.decoder_pool
    first_piece, *pieces = job.split(tuple(even_chunks(job.latents, chunk)))
    results: dict[int, list[Array]] = {}
    with open_pool(height=job.height, width=job.width, rows=2, chunk=chunk) as pool:

        def open_row(row: Job) -> Any:
            return pool.open(
                **({} if row.direction == "encoder" else {"frames": row.frames, "pixels": "float32"})
            )

        def run_step() -> None:
            for row, result in pool.step().items():
                results.setdefault(id(row), []).append(result)

        first = open_row(job)
        first.push(first_piece)
        if pieces:
            run_step()
        second = open_row(other)
        second.push(other.data)
        second.finish()
        for piece in pieces[:-1]:
            first.push(piece)
            run_step()
        if pieces:
            first.push(pieces[-1])
        first.finish()
        while not (first.finished and second.finished):
            run_step()
        return np.concatenate(results[id(first)]), np.concatenate(results[id(second)])


def make_companion(job: Job) -> Job:
    """Returns another video of the same size and about half the length, to share a batch."""
    latents = max(1, job.latents // 2)
    frames = min(job.frames, 1 + job.bundle.ratio * (latents - 1))
    backwards: Array = 255 - job.data[::-1] if job.direction == "encoder" else -job.data[::-1]
    data = backwards[: frames if job.direction == "encoder" else latents]
    return Job(job.bundle, job.direction, np.ascontiguousarray(data), frames, job.height, job.width)


def describe_steps(steps: Iterable[int]) -> str:
    """Formats steps for people, a long row shortened."""
    texts = [str(step) for step in steps]
    return "+".join(texts if len(texts) <= 6 else [*texts[:5], "..."])


def clip_input(job: Job) -> Array:
    """Returns a direct graph's input, without batch: frames (1 + r n, 3, H', W'), or latents."""
    if job.direction == "decoder":
        return job.data
    tail = tail_frames(job.frames, job.bundle.ratio)
    return to_network(np.concatenate([job.data, np.repeat(job.data[-1:], tail, axis=0)]))


def run_direct(job: Job) -> Array:
    """Runs the direct graph. Returns latents (t, D, h, w), or frames (T, H, W, 3) float32."""
    latents = latent_frames(job.frames, job.bundle.ratio)
    job.bundle.admit_direct(job.direction, height=job.height, width=job.width, latents=latents)
    output: Array = job.bundle.direct_session(job.direction).run(clip_input(job)[None])[0]
    if job.direction == "encoder":
        return output
    return to_float_frames(output[: job.frames], job.height, job.width)


def run_model(model: WFVAE, dtype: torch.dtype, job: Job) -> Array:
    """Runs the job offline by a copy of the PyTorch model on the CPU, in this precision."""
    import torch

    model = copy.deepcopy(model).to(device="cpu", dtype=dtype).eval()
    x = torch.from_numpy(np.ascontiguousarray(clip_input(job))).to(dtype).movedim(0, 1)[None]
    with torch.no_grad():
        if job.direction == "decoder":
            frames = model.decode(x).sample[0].permute(1, 2, 3, 0).numpy()
            return np.ascontiguousarray(frames[: job.frames, : job.height, : job.width])
        posterior = model.encode(x).latent_dist
        output = posterior.mode() if job.bundle.manifest.latents == "mean" else posterior.moments
        result: Array = output[0].movedim(1, 0).numpy()
        return result


def require_checkpoint(model: WFVAE, expected: str) -> None:
    """Raises `CheckpointError` unless `model` has the weights whose hash is `expected`."""
    from wfvae.export.weights import state_dict_sha256

    found = state_dict_sha256(model.state_dict())
    if found != expected:
        raise CheckpointError(
            f"the checkpoint's tensors have SHA-256 {found[:12]}, but the bundle was exported from"
            f" {expected[:12]}; give the checkpoint that the bundle was made from, in its own precision"
        )
