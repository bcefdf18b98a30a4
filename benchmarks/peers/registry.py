"""The peers of diffusers, as `peers.toml` describes them."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peers.adapters import ADAPTERS, DiffusersModel
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


def _read_peers() -> dict[str, Peer]:
    found = tomllib.loads(Path(__file__).with_name("peers.toml").read_text(encoding="utf-8"))
    for name, entry in found.items():
        entry["modes"] = tuple(Mode(**mode) for mode in entry["modes"])
        entry["compression"] = tuple(entry["compression"])
        found[name] = Peer(name=name, adapter=ADAPTERS[name], **entry)
    return found


PEERS = _read_peers()
