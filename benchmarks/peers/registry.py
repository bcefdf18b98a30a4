"""The peers of diffusers, as `peers.toml` describes them."""

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
from peers.model import Description, Mode
from wfvae.errors import CheckpointError, InputError, MissingExtraError
from wfvae.metrics.torchvision_operators import make_torchvision_importable


@dataclass(frozen=True, kw_only=True)
class Peer(Description):
    """An autoencoder of diffusers."""

    published: Mapping[str, Any]
    """Arguments of the released model."""
    reduced: Mapping[str, Any]
    """What is changed to make a small one of the same structure."""
    adapter: type[DiffusersModel]

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

    def covered(self, video: Tensor, tile_scale: int) -> Tensor:
        """Returns the part of a video that the model takes, and that its tiles cover."""
        return self.adapter.covered(self.fit(video), self, tile_scale)


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
        found[name] = Peer(adapter=ADAPTERS[name], **entry)
    return found


PEERS = _read_peers()
