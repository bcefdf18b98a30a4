"""One autoencoder in a process of its own, for `peers_speed.py`.

Imports no PyTorch by itself, so that the memory of ONNX Runtime and OpenVINO is theirs alone.
"""

import os
from collections.abc import Callable
from functools import partial
from time import process_time
from typing import Any

from harness.engines import DIRECTIONS, noise, open_on, pushes
from harness.memory import is_out_of_memory, limit_memory, more_than, peak_mb, resident_mb, restart_peak
from harness.processes import NotMeasured, reason_of
from harness.turns import timed

from wfvae.spec.frames import SPATIAL_RATIO

Job = dict[str, Any]
DIRECT = "direct"
SMALL_CLIP = (9, 32)
"""Frames, and height and width, that a model in PyTorch warms up with."""


class BundleCodec:
    """WF-VAE through the runtime."""

    def __init__(self, job: Job) -> None:
        self._bundle = open_on(job["engine"], job["bundle"], job["threads"])
        self._direct = job["mode"] == DIRECT
        self._session = self._bundle.direct_session if self._direct else self._bundle.step_session
        for direction in DIRECTIONS.values():  # load both, as a model in PyTorch does
            self._session(direction)
        self.channels = int(self._bundle.manifest.model["latent_dim"])
        self.compression = (self._bundle.ratio, SPATIAL_RATIO, SPATIAL_RATIO)
        self.parameters = self._bundle.manifest.parameters
        self.first = 1

    def encode(self, frames: int, size: int) -> Callable[[], Any]:
        video = noise(self._bundle, "encoder", frames, size)
        if self._direct:
            return partial(self._session("encoder").run, video)
        [pixels] = pushes(self._bundle, "encoder", video, frames)
        return partial(self._bundle.encode, pixels)

    def decode(self, frames: int, size: int) -> Callable[[], Any]:
        latents = noise(self._bundle, "decoder", frames, size)
        if self._direct:
            return partial(self._session("decoder").run, latents)
        return partial(self._bundle.decode, latents[0], pixels="float32")


class TorchCodec:
    """A model in PyTorch: ours, or that of another project."""

    def __init__(self, job: Job) -> None:
        import torch

        torch.set_num_threads(job["threads"])
        self._model = build_model(job)
        peer = self._model.peer
        self.channels, self.compression = peer.channels, peer.compression
        self.parameters = sum(parameter.numel() for parameter in self._model.vae.parameters())
        self.first = int(peer.frames_after_first)

    def encode(self, frames: int, size: int) -> Callable[[], Any]:
        return partial(self._model.encode, self._noise(3, frames, size, size))

    def decode(self, frames: int, size: int) -> Callable[[], Any]:
        _, rows, columns = self.compression
        if size % rows or size % columns:
            raise NotMeasured(f"{size}x{size} is no multiple of its {rows}x{columns}")
        count = self._model.latent_frames(frames)
        latents = self._noise(self.channels, count, size // rows, size // columns)
        return partial(self._model.decode, latents, frames)

    def _noise(self, *shape: int) -> Any:
        import torch

        return torch.rand((1, *shape), generator=torch.Generator().manual_seed(0)) * 2 - 1


def build_model(job: Job) -> Any:
    """Builds a model in the job's mode: in blocks, as its library does by default."""
    from peers import CHECKOUTS, PEERS, Checkout
    from peers.ours import build_ours

    if "preset" in job:
        model: Any = build_ours(job["preset"], job["latent_channels"])
    elif job["peer"] in PEERS:
        model = PEERS[job["peer"]].build(full=not job["reduced"])
    else:
        model = CHECKOUTS[job["peer"]].build(Checkout(*job["checkout"]))
    if job["mode"] != DIRECT:
        modes = model.peer.modes
        model.use(next((one.name for one in modes if one.default), modes[0].name))
    return model


def clip_length(codec: Any, wanted: int) -> int:
    """Returns the longest clip of at most `wanted` frames that the model takes without padding."""
    ratio = codec.compression[0]
    count = codec.first + (wanted - codec.first) // ratio * ratio
    if count < 1:
        raise NotMeasured(f"a clip of {wanted} frames is too short; it takes at least {ratio}")
    return int(count)


def measure(job: Job) -> dict[str, Any]:
    """Measures seconds and peaks of one clip.

    Each direction runs once before it is timed. In PyTorch a small clip will do, after which a run
    is as fast as later ones; engines, and caches of blocks, prepare for each shape.

    Returns:
        `about` the model, `frames_taken` of the clip, and the `run`: by direction its seconds and
        peak, or the reason why it has none.
    """
    in_torch = job["engine"] in ("peer", "torch")
    limit_memory(job["memory_gb"])
    codec = (TorchCodec if in_torch else BundleCodec)(job)
    frames, size = clip_length(codec, job["frames"]), job["size"]
    small = in_torch and job["mode"] == DIRECT
    warm_up = (clip_length(codec, SMALL_CLIP[0]), SMALL_CLIP[1]) if small else (frames, size)
    run: dict[str, Any] = {"loaded_mb": resident_mb(), "load_average": os.getloadavg()[0]}
    for name in DIRECTIONS:
        run[name] = _measure_direction(getattr(codec, name), warm_up, (frames, size), job["memory_gb"])
    about = {"parameters": codec.parameters, "latent_channels": codec.channels}
    return {"about": about | {"compression": codec.compression}, "frames_taken": frames, "run": run}


def _measure_direction(
    prepare: Callable[[int, int], Callable[[], Any]],
    warm_up: tuple[int, int],
    clip: tuple[int, int],
    memory_gb: int,
) -> dict[str, Any]:
    try:
        prepare(*warm_up)()
        work = prepare(*clip)
        restart_peak()
        begin = process_time()
        seconds = timed(work)
        return {"seconds": seconds, "cpu_seconds": process_time() - begin, "peak_mb": peak_mb()}
    except NotMeasured as reason:
        return {"not_measured": str(reason)}
    except Exception as error:  # of any library; the other direction may work
        text = f"{type(error).__name__}: {reason_of(error)}"
        return {"not_measured": more_than(memory_gb) if is_out_of_memory(text) else text}
