"""Whole-clip inference: through the bundle's direct graphs, and by the PyTorch model offline."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from wfvae.errors import CheckpointError
from wfvae.export.parity.difference import Array
from wfvae.export.parity.plans import Job
from wfvae.runtime.pixels import to_float_frames, to_network
from wfvae.spec.frames import tail_frames

if TYPE_CHECKING:
    import torch

    from wfvae.model.vae import WFVAE


def clip_input(job: Job) -> Array:
    """Returns the clip as a direct graph takes it, without batch.

    Returns:
        Frames (T', 3, H', W') in [-1, 1], T' = 1 + r n; or latents.
    """
    if job.direction == "decoder":
        return job.data
    tail = tail_frames(job.frames, job.bundle.ratio)
    return to_network(np.concatenate([job.data, np.repeat(job.data[-1:], tail, axis=0)]))


def run_direct(job: Job) -> Array:
    """Runs the job through the bundle's direct graph.

    Returns:
        Latents (t, D, h, w), or frames (T, H, W, 3) float32.
    """
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
