"""One autoencoder in a process of its own, for `peers_speed.py`.

Imports no PyTorch by itself, so that the memory of ONNX Runtime and OpenVINO is theirs alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from harness.engines import DIRECTIONS, noise, open_on, pushes
from harness.memory import peak_mb, resident_mb, restart_peak
from harness.processes import NotMeasured
from harness.turns import timed

from wfvae.spec.frames import SPATIAL_RATIO

DIRECT, BLOCKS = "direct", "blocks"
CHUNK = 4
"""Latents per step of our streams; what the runtime does by default."""
SEED = 0


class Codec(Protocol):
    """What is measured, in the array layout of its library."""

    parameters: int
    channels: int
    """Of the latents."""
    compression: tuple[int, int, int]
    """Video samples per latent in time, height and width."""

    def frames(self, wanted: int) -> int:
        """Returns the longest clip of at most `wanted` frames that the model takes without padding."""

    def encode(self, frames: int, size: int) -> Callable[[], Any]:
        """Returns a job that encodes the clip."""

    def decode(self, frames: int, size: int) -> Callable[[], Any]:
        """Returns a job that decodes latents of a clip of that many frames."""


class BundleCodec:
    """WF-VAE through the runtime."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._bundle = open_on(job["engine"], job["bundle"], job["threads"])
        self._direct = job["mode"] == DIRECT
        for direction in DIRECTIONS.values():  # load both, as a model in PyTorch does
            self._session(direction)
        self.channels = int(self._bundle.manifest.model["latent_dim"])
        self.compression = (self._bundle.ratio, SPATIAL_RATIO, SPATIAL_RATIO)
        self.parameters = self._bundle.manifest.parameters

    def _session(self, direction: Any) -> Any:
        return (self._bundle.direct_session if self._direct else self._bundle.step_session)(direction)

    def frames(self, wanted: int) -> int:
        return 1 + (wanted - 1) // self._bundle.ratio * self._bundle.ratio

    def encode(self, frames: int, size: int) -> Callable[[], Any]:
        video = noise(self._bundle, "encoder", frames, size)
        if self._direct:
            return partial(self._session("encoder").run, video)
        [pixels] = pushes(self._bundle, "encoder", video, frames)
        return partial(self._bundle.encode, pixels, chunk=CHUNK)

    def decode(self, frames: int, size: int) -> Callable[[], Any]:
        latents = noise(self._bundle, "decoder", frames, size)
        if self._direct:
            return partial(self._session("decoder").run, latents)
        return partial(self._bundle.decode, latents[0], chunk=CHUNK, pixels="float32")


class TorchCodec:
    """WF-VAE in PyTorch."""

    def __init__(self, job: dict[str, Any]) -> None:
        from wfvae import WFVAE, WFVAEConfig

        config = WFVAEConfig.preset(job["preset"], latent_dim=job["latent_channels"])
        self.network: Any = WFVAE.random(config, SEED).eval().requires_grad_(False)
        self._ratio, self._direct = config.temporal_compression, job["mode"] == DIRECT
        self.channels = config.latent_dim
        self.compression = (self._ratio, SPATIAL_RATIO, SPATIAL_RATIO)
        self.parameters = sum(parameter.numel() for parameter in self.network.parameters())

    def frames(self, wanted: int) -> int:
        return 1 + (wanted - 1) // self._ratio * self._ratio

    def encode(self, frames: int, size: int) -> Callable[[], Any]:
        video = torch_noise(self.network, (1, 3, frames, size, size))
        if self._direct:
            return without_gradients(lambda: self.network.encode(video).latent_dist.mean)
        chunks = video.split(self._ratio * CHUNK, dim=2)
        return without_gradients(lambda: list(self.network.stream_encode(chunks)))

    def decode(self, frames: int, size: int) -> Callable[[], Any]:
        place = size // SPATIAL_RATIO
        shape = (1, self.channels, 1 + (frames - 1) // self._ratio, place, place)
        latents = torch_noise(self.network, shape)
        if self._direct:
            return without_gradients(lambda: self.network.decode(latents).sample)
        return without_gradients(lambda: list(self.network.stream_decode(latents.split(CHUNK, dim=2))))


class PeerCodec:
    """A model of another project."""

    def __init__(self, job: dict[str, Any]) -> None:
        from peers import CHECKOUTS, PEERS

        if "checkout" in job:
            code, weights, entry = job["checkout"]
            peer: Any = CHECKOUTS[job["peer"]]
            self._model: Any = peer.build(Path(code), Path(weights), entry)
        else:
            peer = PEERS[job["peer"]]
            self._model = peer.build(full=not job["reduced"])
        if job["mode"] == BLOCKS:
            self._model.use(next((one.name for one in peer.modes if one.on_by_default), peer.modes[0].name))
        self.network = self._model.vae
        self.channels, self.compression = peer.channels, peer.compression
        self.parameters = self._model.parameters
        self._first = int(peer.frames_after_first)

    def frames(self, wanted: int) -> int:
        ratio = self.compression[0]
        count = self._first + (wanted - self._first) // ratio * ratio
        if count < 1:
            raise NotMeasured(f"a clip of {wanted} frames is too short; it takes at least {ratio}")
        return count

    def encode(self, frames: int, size: int) -> Callable[[], Any]:
        return partial(self._model.encode, torch_noise(self.network, (1, 3, frames, size, size)))

    def decode(self, frames: int, size: int) -> Callable[[], Any]:
        ratio, rows, columns = self.compression
        if size % rows or size % columns:
            raise NotMeasured(f"{size}x{size} is no multiple of its {rows}x{columns}")
        shape = (1, self.channels, -(-frames // ratio), size // rows, size // columns)
        return partial(self._model.decode, torch_noise(self.network, shape), frames)


def torch_noise(network: Any, shape: tuple[int, ...]) -> Any:
    """Returns uniform noise in [-1, 1] on the network's device."""
    import torch

    found = torch.rand(shape, generator=torch.Generator().manual_seed(SEED)) * 2 - 1
    return found.to(next(network.parameters()).device)


def without_gradients(job: Callable[[], Any]) -> Callable[[], Any]:
    """Wraps a job in inference mode."""
    import torch

    return torch.inference_mode()(job)


def make(job: dict[str, Any]) -> Any:
    """Builds the codec that a job asks for."""
    if job["engine"] in ("peer", "torch"):
        import torch

        torch.set_num_threads(job["threads"])
        return (PeerCodec if job["engine"] == "peer" else TorchCodec)(job)
    return BundleCodec(job)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Measures seconds and peaks at every size; at a size that the model cannot do, the reason.

    Sizes rise, and each clip runs once before it is timed: engines prepare for a shape when they
    first see it.
    """
    codec = make(job)
    loaded = resident_mb()
    cases = []
    for size in sorted(job["sizes"]):
        case: dict[str, Any] = {"size": size}
        try:
            frames = case["frames"] = codec.frames(job["frames"])
            for name, prepare in (("encode", codec.encode), ("decode", codec.decode)):
                work = prepare(frames, size)
                work()
                restart_peak()
                case[name] = {"seconds": timed(work), "peak_mb": peak_mb()}
        except NotMeasured as reason:
            case["not_measured"] = str(reason)
        cases.append(case)
    return {
        "parameters": codec.parameters,
        "latent_channels": codec.channels,
        "compression": codec.compression,
        "loaded_mb": loaded,
        "cases": cases,
    }


def count(job: dict[str, Any]) -> dict[str, Any]:
    """Counts the GFLOP of whole clips with PyTorch's counter, on shapes alone."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    codec = make({**job, "mode": DIRECT})
    codec.network.to("meta")
    found: dict[str, dict[str, float]] = {}
    for size in job["sizes"]:
        found[str(size)] = {}
        for name, prepare in (("encode", codec.encode), ("decode", codec.decode)):
            work = prepare(codec.frames(job["frames"]), size)
            # Written out, attention is two products, which are counted; as one operator it may not be.
            written_out, counting = sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False)
            with torch.inference_mode(), written_out, counting:
                work()
            found[str(size)][name] = counting.get_total_flops() / 1e9
    return found
