"""The peers of diffusers: their published configurations and modes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peers.adapters import (
    AllegroModel,
    CogVideoXModel,
    DiffusersModel,
    HunyuanModel,
    LTXModel,
    SDModel,
    SVDModel,
    WanModel,
)
from peers.model import Mode
from wfvae.errors import CheckpointError, InputError, MissingExtraError
from wfvae.metrics.torchvision_operators import make_torchvision_importable


@dataclass(frozen=True)
class Peer:
    """An autoencoder that can be built."""

    name: str
    title: str
    channels: int
    """Of the latents."""
    compression: tuple[int, int, int]
    """Video samples per latent in time, height and width."""
    published: Mapping[str, Any]
    """Arguments of the released model."""
    reduced: Mapping[str, Any]
    """What is changed to make a small one of the same structure."""
    modes: tuple[Mode, ...]
    adapter: type[DiffusersModel]
    frames_after_first: bool = True
    """Whether clips have 1 + n r frames; else n r."""

    def build(
        self, *, full: bool = False, seed: int = 0, weights: str | Path | None = None, tile_scale: int = 1
    ) -> DiffusersModel:
        """Builds the model on the CPU in fp32, in direct mode.

        Args:
            full: the published width; else the reduced one. Ignored where weights are given.
            seed: of the random weights.
            weights: a local folder in diffusers' format. Nothing is downloaded.
            tile_scale: divides the published tiles and their overlap in space, for smaller videos.
        """
        cls = _diffusers_class(self.adapter.class_name)
        if weights is not None:
            vae = _load(cls, Path(weights))
        else:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                vae = cls(**{**self.published, **({} if full else self.reduced)})
        return self.adapter(vae.float().eval().requires_grad_(False), self, tile_scale)

    def fit(self, video: Tensor, tile_scale: int = 1) -> Tensor:
        """Returns the largest part of a video (1, 3, T, H, W), from its start and top left corner,
        that the model takes without padding.
        """
        ratio, rows, columns = self.compression
        first = int(self.frames_after_first)
        frames = first + (video.shape[2] - first) // ratio * ratio
        fitted = video[:, :, :frames, : video.shape[3] // rows * rows, : video.shape[4] // columns * columns]
        if 0 in fitted.shape:
            raise InputError(
                f"a video of {tuple(video.shape[2:])} is too small for {self.title}; expected at least"
                f" {self.compression}"
            )
        return self.adapter.covered(fitted, self, tile_scale)


def _diffusers_class(name: str) -> Any:
    with suppress(MissingExtraError):
        make_torchvision_importable("diffusers", "eval")  # diffusers imports it where it is installed
    try:
        return getattr(importlib.import_module("diffusers"), name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"the peers need the package '{error.name}', which is not installed; run: pip install diffusers"
            " -c constraints.txt"
        ) from error


def _load(cls: Any, folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} holds no config.json; expected a local folder of a VAE in diffusers' format"
        )
    try:
        return cls.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} cannot be loaded as {cls.__name__}: {' '.join(str(error).split())[:300]}"
        ) from error


_NARROW = (16, 16, 32, 32)
_IMAGE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
_TIME_TILES = Mode("frame tiles", "16 frames, 12 apart, blended", on_by_default=True)

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "sd-vae",
            "SD-VAE",
            4,
            (1, 8, 8),
            {
                **_IMAGE,
                "up_block_types": ("UpDecoderBlock2D",) * 4,
                "sample_size": 256,
                "scaling_factor": 0.18215,
            },
            {"block_out_channels": _NARROW, "layers_per_block": 1, "norm_num_groups": 8},
            (Mode("tiling", "tiles of 256x256, a quarter overlapping, blended"),),
            SDModel,
        ),
        Peer(
            "svd",
            "SVD",
            4,
            (1, 8, 8),
            {**_IMAGE, "sample_size": 768, "scaling_factor": 0.18215},
            {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
            (Mode("frame groups", f"{SVDModel.frames_together} frames decoded together"),),
            SVDModel,
        ),
        Peer(
            "cogvideox",
            "CogVideoX",
            16,
            (4, 8, 8),
            {
                "block_out_channels": (128, 256, 256, 512),
                "layers_per_block": 3,
                "latent_channels": 16,
                "sample_height": 480,
                "sample_width": 720,
            },
            {"block_out_channels": _NARROW, "layers_per_block": 1, "norm_num_groups": 8},
            (
                Mode(
                    "frame batches", "8 frames, 2 latents, with a cache of convolutions", on_by_default=True
                ),
                Mode("tiling", "tiles of 240x360 in frame batches, a sixth and a fifth overlapping, blended"),
            ),
            CogVideoXModel,
        ),
        Peer(
            "allegro",
            "Allegro",
            4,
            (4, 8, 8),
            {
                "block_out_channels": (128, 256, 512, 512),
                "layers_per_block": 2,
                "latent_channels": 4,
                "sample_size": 320,
                "scaling_factor": 0.13,
            },
            {"block_out_channels": _NARROW, "layers_per_block": 1, "norm_num_groups": 8},
            (
                Mode(
                    "tiling",
                    "tiles of 24 frames of 320x320, 8 frames, 120 rows and 80 columns overlapping, blended",
                    on_by_default=True,
                ),
            ),
            AllegroModel,
            frames_after_first=False,
        ),
        Peer(
            "wan",
            "Wan 2.1",
            16,
            (4, 8, 8),
            {
                "base_dim": 96,
                "z_dim": 16,
                "dim_mult": [1, 2, 4, 4],
                "num_res_blocks": 2,
                "temperal_downsample": [False, True, True],
            },
            {"base_dim": 16, "num_res_blocks": 1},
            (
                Mode("feature cache", "4 frames, 1 latent, with a cache of features", on_by_default=True),
                Mode("tiling", "tiles of 256x256, 192 apart, blended, each with a feature cache"),
            ),
            WanModel,
        ),
        Peer(
            "hunyuan",
            "HunyuanVideo",
            16,
            (4, 8, 8),
            {
                "block_out_channels": (128, 256, 512, 512),
                "layers_per_block": 2,
                "latent_channels": 16,
                "scaling_factor": 0.476986,
            },
            {"block_out_channels": _NARROW, "layers_per_block": 1, "norm_num_groups": 8},
            (_TIME_TILES, Mode("tiling", "tiles of 256x256, 192 apart, within the frame tiles, blended")),
            HunyuanModel,
        ),
        Peer(
            "ltx",
            "LTX-Video",
            128,
            (8, 32, 32),
            {
                "block_out_channels": (128, 256, 512, 512),
                "decoder_block_out_channels": (128, 256, 512, 512),
                "layers_per_block": (4, 3, 3, 3, 4),
                "decoder_layers_per_block": (4, 3, 3, 3, 4),
                "latent_channels": 128,
            },
            {
                "block_out_channels": (16, 32, 32, 32),
                "decoder_block_out_channels": (16, 32, 32, 32),
                "layers_per_block": (1, 1, 1, 1, 1),
                "decoder_layers_per_block": (1, 1, 1, 1, 1),
            },
            (
                Mode("frame tiles", "16 frames, 8 apart, blended"),
                Mode("tiling", "tiles of 512x512, 448 apart, within the frame tiles, blended"),
            ),
            LTXModel,
        ),
    )
}
