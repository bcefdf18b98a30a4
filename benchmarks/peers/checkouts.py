"""Peers whose code is in no library: they need a local checkout, whose code is executed."""

from __future__ import annotations

import importlib
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from peers.model import DIRECT, Description, Mode, PeerModel
from wfvae.errors import CheckpointError, InputError


@dataclass(frozen=True, kw_only=True)
class CheckoutPeer(Description):
    """A model that needs a local checkout of its authors' code.

    The entry is called with the folder of the weights and returns an object with `encode(video)`
    and `decode(latents)`. The entries are from the projects' documentation and have not been run.
    """

    entry: str
    """`module:attribute` in the checkout."""

    def build(self, checkout: Path, weights: Path, entry: str | None = None) -> CheckoutModel:
        """Builds the model on the CPU in fp32.

        Raises:
            CheckpointError: the checkout has no such entry, or it fails.
        """
        module_name, _, attribute = (entry or self.entry).partition(":")
        try:
            with _importable(checkout):
                found: Any = importlib.import_module(module_name)
                for part in attribute.split("."):
                    found = getattr(found, part)
                model = found(str(weights))
        except Exception as error:  # foreign code may raise anything
            raise CheckpointError(
                f"{self.title} cannot be built by {module_name}:{attribute} in {checkout}:"
                f" {type(error).__name__}: {' '.join(str(error).split())[:200]}; give another entry as"
                " NAME=CHECKOUT,WEIGHTS,module:attribute"
            ) from error
        return CheckoutModel(model.float().eval().requires_grad_(False), self)


class CheckoutModel(PeerModel):
    """A model from a checkout."""

    def _switch(self, mode: str) -> None:
        switch = getattr(self.vae, "disable_tiling" if mode == DIRECT else "enable_tiling", None)
        if switch is not None:
            switch()
        elif mode != DIRECT:
            raise InputError(f"{self.peer.title} has no enable_tiling")

    def _encode(self, video: Tensor) -> Tensor:
        return _tensor(self.vae.encode(video))

    def _decode(self, latents: Tensor, frames: int) -> Tensor:
        return _tensor(self.vae.decode(latents))[:, :, :frames]


def _tensor(value: Any) -> Tensor:
    """Returns the tensor in a model's output: itself, the mean of a distribution, or a sample."""
    value = getattr(value, "latent_dist", value)
    if isinstance(value, (tuple, list)):
        value = value[0]
    if callable(getattr(value, "mode", None)) and not isinstance(value, Tensor):
        value = value.mode()
    value = getattr(value, "sample", value) if not isinstance(value, Tensor) else value
    if not isinstance(value, Tensor):
        raise InputError(
            f"the model returns {type(value).__name__}; expected a tensor, a distribution or a sample"
        )
    return value


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Makes the modules of a folder importable inside the block. They stay loaded after it."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no directory; expected a checkout of the model's code")
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


_ENTRIES = {
    "cv-vae": ("CV-VAE", "models.modeling_vae:CVVAEModel.from_pretrained"),
    "od-vae": ("OD-VAE", "opensora.models.causalvideovae.model:CausalVAEModel.from_pretrained"),
    "open-sora": ("Open-Sora VAE", "opensora.models.vae:OpenSoraVAE_V1_2"),
}
_TILING = Mode("tiling", "as the model's own enable_tiling does")
CHECKOUTS = {
    name: CheckoutPeer(title=title, channels=4, compression=(4, 8, 8), modes=(_TILING,), entry=entry)
    for name, (title, entry) in _ENTRIES.items()
}


def parse_checkout(text: str) -> tuple[str, tuple[str, str, str | None]]:
    """Parses NAME=CODE,WEIGHTS[,MODULE:ATTRIBUTE] from a command line."""
    name, _, rest = text.partition("=")
    parts = rest.split(",")
    if name not in CHECKOUTS or len(parts) not in (2, 3):
        names = ", ".join(CHECKOUTS)
        raise ArgumentTypeError(
            f"{text!r}; expected NAME=CODE,WEIGHTS[,MODULE:ATTRIBUTE] with a NAME of {names}"
        )
    return name, (parts[0], parts[1], parts[2] if len(parts) == 3 else None)
