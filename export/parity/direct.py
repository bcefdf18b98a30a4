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


class ModelReference:
    """A copy of the PyTorch model on the CPU, offline, in one precision."""

    def __init__(self, model: WFVAE, dtype: torch.dtype, mean_only: bool) -> None:
        self._model = copy.deepcopy(model).to(device="cpu", dtype=dtype).eval()
        self._dtype = dtype
        self._mean_only = mean_only

    def run(self, job: Job) -> Array:
        """Runs the job in the reference's precision."""
        import torch

        with torch.no_grad():
            x = torch.from_numpy(np.ascontiguousarray(clip_input(job))).to(self._dtype).movedim(0, 1)[None]
            if job.direction == "encoder":
                posterior = self._model.encode(x).latent_dist
                output = posterior.mode() if self._mean_only else posterior.moments
            else:
                output = self._model.decode(x).sample
            result: Array = output[0].movedim(1, 0).numpy()
        if job.direction == "encoder":
            return result
        cropped = result[: job.frames, :, : job.height, : job.width]
        return np.ascontiguousarray(cropped.transpose(0, 2, 3, 1))


def require_checkpoint(model: WFVAE, expected: str) -> None:
    """Raises `CheckpointError` unless `model` has the weights whose hash is `expected`."""
    from wfvae.export.weights import state_dict_sha256

    found = state_dict_sha256(model.state_dict())
    if found != expected:
        raise CheckpointError(
            f"the checkpoint's tensors have SHA-256 {found[:12]}, but the bundle was exported from"
            f" {expected[:12]}; give the checkpoint that the bundle was made from, in its own precision"
        )
