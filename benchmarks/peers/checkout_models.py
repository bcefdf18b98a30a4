"""The peers that run from checkouts: how each is built, switched, and asked for means."""

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from peers.model import DIRECT, PeerModel
from peers.registry import PEERS
from peers.stand_ins import bare_package, importable, memory_efficient_attention
from wfvae.errors import CheckpointError, InputError


class CheckoutModel(PeerModel):
    """A model from a checkout."""

    package = ""
    """Top-level package of the code."""

    def __init__(self, vae: Any, peer: Any, tile_scale: int) -> None:
        super().__init__(vae, peer)
        self.tile_scale = tile_scale
        self.use(DIRECT)

    @classmethod
    def construct(cls, code: Path, weights: Path | None, config: Path | None) -> Any:
        """Builds the network from weights, or from a configuration with random weights.

        Args:
            code: of the checkout, whose modules can be imported.
            weights: folder; None for random weights.
            config: file or folder; None for what the code has.
        """
        raise NotImplementedError


def _new_or_loaded(cls: Any, weights: Path | None, config: Path | None) -> Any:
    """Builds one of diffusers' classes of models."""
    if weights is not None:
        return cls.from_pretrained(str(weights), local_files_only=True)
    if config is None:
        return cls()
    path = config / "config.json" if config.is_dir() else config
    return cls.from_config(json.loads(path.read_text(encoding="utf-8")))


class CVVAE(CheckoutModel):
    """Frames in groups and spatial tiles, or in one piece. It has no causal decoder."""

    package = "models"
    class_name, subfolder = "CVVAEModel", "vae3d"
    _SIZES = ("encode_n_frames_a_time", "decode_n_frames_a_time")
    _TILES = ("pixel_tile_size", "latent_tile_size")

    def __init__(self, vae: Any, peer: Any, tile_scale: int) -> None:
        self._blocks = {name: getattr(vae, name) for name in self._SIZES}
        self._blocks |= {name: getattr(vae, name) // tile_scale for name in self._TILES}
        super().__init__(vae, peer, tile_scale)

    @classmethod
    def construct(cls, code: Path, weights: Path | None, config: Path | None) -> Any:
        found: Any = importlib.import_module("models.modeling_vae")
        networks: Any = importlib.import_module("models.vae_models")
        if not getattr(networks, "XFORMERS_IS_AVAILABLE", False):
            operators = SimpleNamespace(memory_efficient_attention=memory_efficient_attention)
            # The version decides whether large batches are split, which PyTorch does not need.
            networks.xformers = SimpleNamespace(__version__="0.0.21", ops=operators)
        inner = weights / cls.subfolder if weights and (weights / cls.subfolder).is_dir() else weights
        return _new_or_loaded(getattr(found, cls.class_name), inner, config)

    def _switch(self, mode: str) -> None:
        for name, size in self._blocks.items():
            setattr(self.vae, name, None if mode == DIRECT else size)

    def _encode(self, video: Tensor) -> Tensor:
        result: Tensor = self.vae.encode(video).latent_dist.mode()
        return result

    def _decode(self, latents: Tensor, frames: int) -> Tensor:
        result: Tensor = self.vae.decode(latents).sample
        return result[:, :, :frames]


class CVVAE16(CVVAE):
    """The variant of 16 channels."""

    class_name, subfolder = "CVVAESD3Model", "vae3d_sd3"


class CausalVAE(CheckoutModel):
    """Open-Sora-Plan's: tiles in time and space, only for clips that are larger than one tile."""

    package = "opensora"
    _UNUSED = ("pytorch_lightning", "decord", "cv2", "deepspeed", "pytorchvideo")

    def __init__(self, vae: Any, peer: Any, tile_scale: int) -> None:
        vae.tile_sample_min_size //= tile_scale
        vae.tile_latent_min_size //= tile_scale
        super().__init__(vae, peer, tile_scale)

    @classmethod
    def construct(cls, code: Path, weights: Path | None, config: Path | None) -> Any:
        import torchvision.io

        if not hasattr(torchvision.io, "read_video"):  # newer versions have none; only data sets use it
            torchvision.io.read_video = None
        with importable(cls._UNUSED):
            found: Any = importlib.import_module("opensora.models.causalvideovae.model")
        return _new_or_loaded(found.CausalVAEModel, weights, config)

    def _switch(self, mode: str) -> None:
        if mode == DIRECT:
            self.vae.disable_tiling()
        else:
            self.vae.enable_tiling()

    def _encode(self, video: Tensor) -> Tensor:
        self._require_tiles("video", video, self.vae.tile_sample_min_size_t, self.vae.tile_sample_min_size)
        result: Tensor = self.vae.encode(video).mode()
        return result

    def _decode(self, latents: Tensor, frames: int) -> Tensor:
        sizes = (self.vae.tile_latent_min_size_t, self.vae.tile_latent_min_size)
        self._require_tiles("latents", latents, *sizes)
        result: Tensor = self.vae.decode(latents)
        return result[:, :, :frames]

    def _require_tiles(self, what: str, x: Tensor, frames: int, side: int) -> None:
        """Raises `InputError` in tiled mode if the model would take `x` in one piece."""
        if self.mode != DIRECT and x.shape[2] <= frames and max(x.shape[3:]) <= side:
            raise InputError(
                f"{what} of {tuple(x.shape[2:])} are one tile of {self.peer.title}, which tiles more than"
                f" {frames} x {side} x {side}; use a longer or larger clip"
            )


class OpenSora(CheckoutModel):
    """An image autoencoder frame by frame, then one over time for whole clips or 17 frames each."""

    package = "opensora"
    _UNUSED = ("colossalai",)
    spatial_scale = 0.18215
    """Factor of the code between the two, whatever the image autoencoder's configuration has."""

    def __init__(self, vae: Any, peer: Any, tile_scale: int) -> None:
        self._blocks = (vae.micro_frame_size, vae.spatial_vae.micro_batch_size)
        super().__init__(vae, peer, tile_scale)

    @classmethod
    def construct(cls, code: Path, weights: Path | None, config: Path | None) -> Any:
        if config is not None:
            raise CheckpointError("the code of Open-Sora has the one configuration; give 'random' or weights")
        # Its own __init__ imports all diffusion models.
        bare_package("opensora.models", code / "opensora" / "models")
        with importable(cls._UNUSED), _image_autoencoder():
            found: Any = importlib.import_module("opensora.models.vae.vae")
            vae = found.OpenSoraVAE_V1_2(micro_batch_size=4, from_pretrained=None)
        if weights is not None:
            vae.load_state_dict(load_file(weights / "model.safetensors"), strict=True)
        return vae

    def _switch(self, mode: str) -> None:
        frames, images = (None, None) if mode == DIRECT else self._blocks
        self.vae.micro_frame_size, self.vae.spatial_vae.micro_batch_size = frames, images

    def latent_frames(self, frames: int) -> int:
        result: int = self.vae.get_latent_size([frames, None, None])[0]
        return result

    def _encode(self, video: Tensor) -> Tensor:
        # Both `encode` of the code draw samples.
        images = video[0].transpose(0, 1)
        spatial = self.vae.spatial_vae
        groups = images.split(spatial.micro_batch_size or len(images))
        means = [spatial.module.encode(group).latent_dist.mode() for group in groups]
        features = torch.cat(means).mul(self.spatial_scale).transpose(0, 1)[None]
        parts = features.split(self.vae.micro_frame_size or features.shape[2], dim=2)
        return torch.cat([self.vae.temporal_vae.encode(part).mode() for part in parts], dim=2)

    def _decode(self, latents: Tensor, frames: int) -> Tensor:
        scaled = (latents - self.vae.shift) / self.vae.scale  # `decode` takes this back
        result: Tensor = self.vae.decode(scaled, num_frames=frames)
        return result


@contextmanager
def _image_autoencoder() -> Iterator[None]:
    """Gives a random SDXL autoencoder to code that asks diffusers to download one by name."""
    from diffusers import AutoencoderKL

    # SDXL's has the architecture of SD's.
    arguments = dict(PEERS["sd-vae"].published)
    original = AutoencoderKL.__dict__.get("from_pretrained")
    AutoencoderKL.from_pretrained = classmethod(lambda cls, *names, **options: cls(**arguments))
    try:
        yield
    finally:
        if original is None:
            del AutoencoderKL.from_pretrained  # it is a base class's
        else:
            AutoencoderKL.from_pretrained = original
