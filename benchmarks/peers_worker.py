"""One autoencoder in a process of its own, for `peers_speed.py`.

Imports no PyTorch by itself, so that the memory of ONNX Runtime and OpenVINO is theirs alone.
"""

from collections.abc import Callable
from functools import partial
from time import process_time
from typing import Any

from harness.engines import DIRECTIONS, noise, open_on, pushes
from harness.memory import peak_mb, resident_mb, restart_peak
from harness.processes import NotMeasured
from harness.turns import timed

from wfvae.spec.frames import SPATIAL_RATIO

Job = dict[str, Any]
DIRECT = "direct"


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
    elif job["checkout"] is None:
        raise NotMeasured("its code is in no library; give a local checkout with --checkout")
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
    """Measures seconds and peaks at every size; at a size that the model cannot do, the reason.

    Sizes rise, and each clip runs once before it is timed: engines prepare for a shape when they
    first see it.
    """
    codec = (TorchCodec if job["engine"] in ("peer", "torch") else BundleCodec)(job)
    loaded = resident_mb()
    cases = []
    for size in sorted(job["sizes"]):
        case: dict[str, Any] = {"size": size}
        try:
            frames = case["frames"] = clip_length(codec, job["frames"])
            for name in DIRECTIONS:
                work = getattr(codec, name)(frames, size)
                work()
                restart_peak()
                begin = process_time()
                seconds = timed(work)
                cpu_seconds = process_time() - begin
                case[name] = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb()}
        except NotMeasured as reason:
            case["not_measured"] = str(reason)
        cases.append(case)
    about = {"parameters": codec.parameters, "latent_channels": codec.channels}
    return {**about, "compression": codec.compression, "loaded_mb": loaded, "cases": cases}
