"""One autoencoder in a process of its own: time and peak memory of encoding and decoding clips.
Started by `peers_speed.py`.

Whatever the model, the clip is the same: uniform noise in [-1, 1] of a fixed seed, latents are
standard normal. Each size is encoded and decoded twice, in rising order, and the second time
counts: engines prepare for a shape when they first see it, and take memory for it.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from isolated import NotMeasured, answer
from onnx_work import count_file, direct_sizes
from process_memory import peak_mb, resident_mb, restart_peak

from wfvae.spec.frames import SPATIAL_RATIO

if TYPE_CHECKING:
    from wfvae import WFVAE

DIRECT, BLOCKS = "direct", "blocks"
CHUNK = 4
"""Latents per step of our streams; what the runtime does by default."""
SEED = 0


class Codec(Protocol):
    """What is measured: arrays in, arrays out, in the layout of its library."""

    parameters: int
    channels: int
    """Of the latents."""
    compression: tuple[int, int, int]
    """Video samples per latent in time, height and width."""

    def frames(self, wanted: int) -> int:
        """The longest clip of at most `wanted` frames that the model takes without padding."""

    def encode(self, frames: int, size: int) -> Callable[[], Any]:
        """A job that encodes the clip."""

    def decode(self, frames: int, size: int) -> Callable[[], Any]:
        """A job that decodes latents of a clip of that many frames."""


class TorchCodec:
    """WF-VAE in PyTorch."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._model = ours(job).requires_grad_(False)
        self._ratio = self._model.config.temporal_compression
        self._mode = job["mode"]
        self.channels, self.compression = (
            self._model.config.latent_dim,
            (self._ratio, SPATIAL_RATIO, SPATIAL_RATIO),
        )
        self.parameters = sum(parameter.numel() for parameter in self._model.parameters())

    def frames(self, wanted: int) -> int:
        return 1 + (wanted - 1) // self._ratio * self._ratio

    def encode(self, frames: int, size: int) -> Callable[[], Any]:
        video = _tensor((1, 3, frames, size, size), noise=False)
        if self._mode == DIRECT:
            return _inference(lambda: self._model.encode(video).latent_dist.mean)
        return _inference(lambda: list(self._model.stream_encode(video.split(self._ratio * CHUNK, dim=2))))

    def decode(self, frames: int, size: int) -> Callable[[], Any]:
        latents = _tensor(
            (1, self.channels, 1 + (frames - 1) // self._ratio, size // SPATIAL_RATIO, size // SPATIAL_RATIO)
        )
        if self._mode == DIRECT:
            return _inference(lambda: self._model.decode(latents).sample)
        return _inference(lambda: list(self._model.stream_decode(latents.split(CHUNK, dim=2))))


class BundleCodec:
    """WF-VAE through the runtime."""

    def __init__(self, bundle: str, engine: str, threads: int, mode: str) -> None:
        from bundle_engines import open_on

        self._bundle = open_on(engine, bundle, threads)
        self._mode = mode
        for direction in ("encoder", "decoder"):  # both from the beginning, as a model of PyTorch has them
            if mode == DIRECT:
                self._bundle.direct_session(direction)
            else:
                self._bundle.step_session(direction)
        self.channels, self.compression = (
            self._bundle.manifest.model["latent_dim"],
            (self._bundle.ratio, SPATIAL_RATIO, SPATIAL_RATIO),
        )
        self.parameters = self._bundle.manifest.parameters

    def frames(self, wanted: int) -> int:
        return 1 + (wanted - 1) // self._bundle.ratio * self._bundle.ratio

    def encode(self, frames: int, size: int) -> Callable[[], Any]:
        video = np.random.default_rng(SEED).uniform(-1, 1, (1, frames, 3, size, size)).astype(np.float32)
        if self._mode == DIRECT:
            session = self._bundle.direct_session("encoder")
            return lambda: session.run(video)
        pixels = np.ascontiguousarray(video[0].transpose(0, 2, 3, 1))
        return lambda: self._bundle.encode(pixels, chunk=CHUNK)

    def decode(self, frames: int, size: int) -> Callable[[], Any]:
        shape = (
            1,
            1 + (frames - 1) // self._bundle.ratio,
            self.channels,
            size // SPATIAL_RATIO,
            size // SPATIAL_RATIO,
        )
        latents = np.random.default_rng(SEED).standard_normal(shape, np.float32)
        if self._mode == DIRECT:
            session = self._bundle.direct_session("decoder")
            return lambda: session.run(latents)
        return lambda: self._bundle.decode(latents[0], chunk=CHUNK, pixels="float32")


class PeerCodec:
    """A model of another project."""

    def __init__(self, job: dict[str, Any]) -> None:
        from peers import CHECKOUTS, PEERS

        mode = job["mode"]
        if "checkout" in job:
            self._peer: Any = CHECKOUTS[job["contender"]]
            self._model: Any = self._peer.build(Path(job["checkout"]), Path(job["weights"]), job["entry"])
        else:
            self._peer = PEERS[job["contender"]]
            self._model = self._peer.build(full=not job["reduced"])
        if mode == BLOCKS:
            modes = self._peer.modes
            self._model.use(next((one.name for one in modes if one.on_by_default), modes[0].name))
        self.channels, self.compression = self._peer.channels, self._peer.compression
        self.parameters = self._model.parameters

    def frames(self, wanted: int) -> int:
        ratio = self.compression[0]
        after_first = getattr(self._peer, "frames_after_first", True)
        count = 1 + (wanted - 1) // ratio * ratio if after_first else wanted // ratio * ratio
        if count < 1:
            raise NotMeasured(f"a clip of {wanted} frames is too short; it takes at least {ratio}")
        return int(count)

    def encode(self, frames: int, size: int) -> Callable[[], Any]:
        video = _tensor((1, 3, frames, size, size), noise=False, device=self._device)
        return lambda: self._model.encode(video)

    def decode(self, frames: int, size: int) -> Callable[[], Any]:
        ratio, rows, columns = self.compression
        if size % rows or size % columns:
            raise NotMeasured(f"{size}x{size} is no multiple of its {rows}x{columns}")
        latents = _tensor(
            (1, self.channels, -(-frames // ratio), size // rows, size // columns), device=self._device
        )
        return lambda: self._model.decode(latents, frames)

    @property
    def _device(self) -> Any:
        return next(self._model.vae.parameters()).device

    def without_numbers(self) -> None:
        """From here on only shapes are computed, of whole clips."""
        self._model.use(DIRECT)
        self._model.vae.to("meta")


def _tensor(shape: tuple[int, ...], noise: bool = True, device: Any = "cpu") -> Any:
    import torch

    generator = torch.Generator().manual_seed(SEED)
    found = (
        torch.randn(shape, generator=generator) if noise else torch.rand(shape, generator=generator) * 2 - 1
    )
    return found.to(device)


def _inference(job: Callable[[], Any]) -> Callable[[], Any]:
    import torch

    def run() -> Any:
        with torch.inference_mode():
            return job()

    return run


def ours(job: dict[str, Any]) -> WFVAE:
    """The preset with random weights; with other latent channels than its own where the job names
    them.
    """
    from wfvae import WFVAE, WFVAEConfig

    changes = {"latent_dim": job["latent_channels"]} if "latent_channels" in job else {}
    return WFVAE.random(WFVAEConfig.preset(job["preset"], **changes), SEED).eval()


def make(job: dict[str, Any]) -> Codec:
    """The codec that a job asks for."""
    if job["engine"] in ("peer", "torch"):
        import torch

        torch.set_num_threads(job["threads"])
    if job["engine"] == "peer":
        return PeerCodec(job)
    if job["engine"] == "torch":
        return TorchCodec(job)
    return BundleCodec(job["bundle"], job["engine"], job["threads"], job["mode"])


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds and peaks of every size; a size that the model cannot do says why."""
    codec = make(job)
    loaded, separate = resident_mb(), restart_peak()
    cases = []
    for size in sorted(job["sizes"]):
        case: dict[str, Any] = {"size": size}
        try:
            frames = case["frames"] = codec.frames(job["frames"])
            for name, prepare in (("encode", codec.encode), ("decode", codec.decode)):
                work = prepare(frames, size)
                work()  # not counted
                restart_peak()
                begin = time.perf_counter()
                result = work()
                case[name] = {"seconds": time.perf_counter() - begin, "peak_mb": peak_mb()}
                del result
        except NotMeasured as reason:
            case["not_measured"] = str(reason)
        cases.append(case)
    latents = {"latent_channels": codec.channels, "compression": codec.compression}
    found = {
        "parameters": codec.parameters,
        **latents,
        "loaded_mb": loaded,
        "peaks_apart": separate,
        "cases": cases,
    }
    if job["count"] and isinstance(codec, PeerCodec):
        with contextlib.suppress(
            Exception
        ):  # code of others that does not run on shapes; the times stand all the same
            found["gflop"] = count_peer(codec, job)
    return found


def count(job: dict[str, Any]) -> dict[str, Any]:
    """GFLOP of every size by direction, counted from exported graphs with plain convolutions: what
    the network asks for, as for peers.

    The form that is run has fewer multiplications, so that its rate may exceed what the processor
    does.
    """
    with tempfile.TemporaryDirectory() as folder:
        export({**job, "bundle": str(Path(folder) / "plain"), "convolutions": "plain"})
        return count_in(Path(folder) / "plain", job)


def count_in(bundle: Path, job: dict[str, Any]) -> dict[str, Any]:
    """The same, of a bundle's direct graphs as they are."""
    from wfvae.spec.manifest import Manifest

    ratio = Manifest.read(bundle).graphs["encoder"].stream.ratio
    files = {"encode": "encoder.direct.onnx", "decode": "decoder.direct.onnx"}
    found = {}
    for size in job["sizes"]:
        sizes = direct_sizes(ratio, 1 + (job["frames"] - 1) // ratio * ratio, size, size)
        found[str(size)] = {name: count_file(bundle / file, sizes).flop / 1e9 for name, file in files.items()}
    return {"gflop": found}


def count_peer(codec: PeerCodec, job: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The same with PyTorch's counter, of direct inference, on shapes alone. The model has no
    numbers after this.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    codec.without_numbers()
    frames = codec.frames(job["frames"])
    found: dict[str, dict[str, float]] = {}
    for size in job["sizes"]:
        found[str(size)] = {}
        for name, prepare in (("encode", codec.encode), ("decode", codec.decode)):
            # Written out, attention is two products, which are counted; in one piece it may be an
            # operator that is not.
            written_out, counting = sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False)
            with contextlib.suppress(NotMeasured), torch.inference_mode(), written_out, counting as counter:
                prepare(frames, size)()
                found[str(size)][name] = counter.get_total_flops() / 1e9
    return found


def export(job: dict[str, Any]) -> dict[str, Any]:
    """Writes a bundle."""
    from wfvae.export.bundle import ExportOptions, export_bundle

    options = ExportOptions(direct=True, convolutions=job.get("convolutions", "minimal"))
    export_bundle(ours(job), job["bundle"], options, overwrite=True)
    return {}


if __name__ == "__main__":
    answer(lambda job: {"measure": measure, "count": count, "export": export}[job["do"]](job))
