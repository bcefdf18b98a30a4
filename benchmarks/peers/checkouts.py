"""Peers whose code is in no library: they need a local checkout, whose code is executed.

Each is in a process of its own: two of them call their package `opensora`.
"""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from peers.checkout_models import CVVAE, CVVAE16, CausalVAE, CheckoutModel, OpenSora
from peers.model import Description, Mode
from wfvae.errors import CheckpointError
from wfvae.metrics.torchvision_operators import make_torchvision_importable

RANDOM = "random"


class Checkout(NamedTuple):
    """Where a peer's code and weights are."""

    code: str
    weights: str = RANDOM
    """A folder; or `random`, for random weights, with a folder or file of a configuration after a
    colon if it is another than that of the code.
    """

    @property
    def folder(self) -> Path | None:
        """Of the given weights."""
        return None if self._random else Path(self.weights)

    @property
    def config(self) -> Path | None:
        """Of random weights."""
        path = self.weights.partition(":")[2] if self._random else ""
        return Path(path) if path else None

    @property
    def label(self) -> str:
        """What the weights are, in words."""
        if not self._random:
            return f"given, {'/'.join(Path(self.weights).parts[-2:])}"
        return "random, " + ("given configuration" if self.config else "configuration of the code")

    @property
    def _random(self) -> bool:
        return self.weights.partition(":")[0] == RANDOM


@dataclass(frozen=True, kw_only=True)
class CheckoutPeer(Description):
    """A model that needs a local checkout of its authors' code."""

    adapter: type[CheckoutModel]
    version: str
    """Of the code, for which the adapter is written."""
    default_title: str | None = None
    """Of the model with the configuration in its code, if it is not the released one."""

    def title_of(self, checkout: Checkout | None) -> str:
        """Returns the title, which is that of the paper for the released configuration only."""
        released = checkout is None or checkout.folder is not None or checkout.config is not None
        return self.title if released or self.default_title is None else self.default_title

    def build(self, checkout: Checkout, *, seed: int = 0, tile_scale: int = 1) -> CheckoutModel:
        """Builds the model on the CPU in fp32, in direct mode.

        Args:
            checkout: local code and weights.
            seed: of random weights.
            tile_scale: divides the published tiles in space, for smaller videos.

        Raises:
            CheckpointError: the code or the weights are not there, or fail.
        """
        code = Path(checkout.code)
        for path in (code, checkout.folder):
            if path is not None and not path.is_dir():
                raise CheckpointError(f"{path} is no directory; expected the code or weights of {self.title}")
        make_torchvision_importable(self.title, "eval")
        try:
            with _importable(code, self.adapter.package), torch.random.fork_rng():
                torch.manual_seed(seed)
                vae = self.adapter.construct(code, checkout.folder, checkout.config)
        except CheckpointError:
            raise
        except Exception as error:  # foreign code may raise anything
            raise CheckpointError(
                f"{self.title} cannot be built from {code}: {type(error).__name__}:"
                f" {' '.join(str(error).split())[:200]}; the adapter is for version {self.version}"
            ) from error
        return self.adapter(vae.float().eval().requires_grad_(False), self, tile_scale)


@contextmanager
def _importable(folder: Path, package: str) -> Iterator[None]:
    """Makes the modules of a folder importable inside the block. They stay loaded after it.

    Raises:
        CheckpointError: a package of that name is loaded already, from another folder.
    """
    loaded = sys.modules.get(package)
    paths = [Path(path).resolve() for path in getattr(loaded, "__path__", ())]
    if loaded is not None and (folder / package).resolve() not in paths:
        others = f"the package {package} of {', '.join(map(str, paths))} is loaded already"
        raise CheckpointError(f"{others}; run the peer of {folder} in a process of its own")
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


_CV_BLOCKS = "16 frames, 4 latents, each with the frame before; tiles of 576x576, 128 overlapping, blended"
_CV = {"version": "375f18a", "compression": (4, 8, 8)}
CHECKOUTS = {
    "cv-vae": CheckoutPeer(
        title="CV-VAE",
        adapter=CVVAE,
        channels=4,
        modes=(Mode("tiling", _CV_BLOCKS, default=True),),
        **_CV,  # type: ignore[arg-type]
    ),
    "cv-vae-sd3": CheckoutPeer(
        title="CV-VAE SD3",
        adapter=CVVAE16,
        channels=16,
        modes=(Mode("tiling", _CV_BLOCKS, default=True),),
        **_CV,  # type: ignore[arg-type]
    ),
    "od-vae": CheckoutPeer(
        title="OD-VAE",
        default_title="Open-Sora-Plan CausalVAE, defaults",
        adapter=CausalVAE,
        version="v1.2.0",
        channels=4,
        compression=(4, 8, 8),
        modes=(Mode("tiling", "33 frames, 16 latents; tiles of 256x256, an eighth overlapping, blended"),),
    ),
    "open-sora": CheckoutPeer(
        title="Open-Sora VAE",
        adapter=OpenSora,
        version="v1.2.0",
        channels=4,
        compression=(4, 8, 8),
        modes=(Mode("frame groups", "17 frames, 5 latents", default=True),),
    ),
}


def parse_checkout(text: str) -> tuple[str, Checkout]:
    """Parses NAME=CODE[,WEIGHTS] from a command line."""
    name, _, rest = text.partition("=")
    parts = rest.split(",")
    if name not in CHECKOUTS or len(parts) > 2 or not all(parts):
        raise ArgumentTypeError(
            f"{text!r}; expected NAME=CODE[,WEIGHTS] with a NAME of {', '.join(CHECKOUTS)}, and WEIGHTS a"
            " folder, random or random:CONFIG"
        )
    return name, Checkout(*parts)
