"""Other video autoencoders behind one interface: published or reduced width, whole clips or block
by block as their code offers it.

    peer = PEERS["cogvideox"]
    model = peer.build(full=True)           # random weights from a seed; or peer.build(weights="folder/")
    model.use(DIRECT)                       # or one of peer.modes
    latents = model.encode(video)           # (1, 3, T, H, W) in [-1, 1] -> (1, C, t, h, w), the posterior's mean, unscaled
    video = model.decode(latents, frames)   # -> (1, 3, T, H, W)

The models are those of diffusers. CV-VAE, OD-VAE and Open-Sora VAE are not in it: `CheckoutPeer`
takes a local checkout of their code.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from wfvae.errors import CheckpointError, InputError, MissingExtraError
from wfvae.metrics.torchvision_operators import make_torchvision_importable

DIRECT = "direct"
"""The mode without blocks: the whole clip in one pass (SD-VAE: every frame by itself, which for it
is the same).
"""

Tensor = torch.Tensor


@dataclass(frozen=True)
class Mode:
    """A way to run a model block by block."""

    name: str
    what: str
    """The blocks, in the published setting."""
    on_by_default: bool = False
    """Whether the library runs the model so without being asked."""


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
        """The model on the CPU, fp32, in eval mode, in direct mode.

        Args:
            full: the published width; else the reduced one. Without meaning where weights are
                given.
            seed: of the random weights.
            weights: a local folder in diffusers' format (config.json and safetensors). Nothing is
                downloaded.
            tile_scale: tiles and their overlap in space are the published ones divided by this, for
                videos that are as much smaller.
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
        """The largest part of a video (1, 3, T, H, W), from its start and top left corner, that the
        model takes without padding.
        """
        ratio, rows, columns = self.compression
        frames = (
            1 + (video.shape[2] - 1) // ratio * ratio
            if self.frames_after_first
            else video.shape[2] // ratio * ratio
        )
        fitted = video[:, :, :frames, : video.shape[3] // rows * rows, : video.shape[4] // columns * columns]
        if 0 in fitted.shape:
            raise InputError(
                f"a video of {tuple(video.shape[2:])} is too small for {self.title}; expected at least"
                f" {self.compression}"
            )
        return self.adapter.covered(fitted, self, tile_scale)


class DiffusersModel:
    """One of diffusers' autoencoders. Subclasses say how it is switched between whole clips and
    blocks.
    """

    class_name = ""

    def __init__(self, vae: Any, peer: Peer, tile_scale: int) -> None:
        self.vae, self.peer, self.tile_scale = vae, peer, tile_scale
        self.mode = DIRECT
        self.use(DIRECT)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.vae.parameters())

    def use(self, mode: str) -> None:
        """Switches to a mode of `peer.modes`, or DIRECT."""
        names = [DIRECT, *(one.name for one in self.peer.modes)]
        if mode not in names:
            raise InputError(f"{self.peer.title} has no mode '{mode}'; expected one of {', '.join(names)}")
        self.mode = mode
        self._switch(mode)

    def encode(self, video: Tensor) -> Tensor:
        """(1, 3, T, H, W) in [-1, 1] to the mean (1, C, t, h, w)."""
        with torch.inference_mode():
            return self._encode(video)

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """(1, C, t, h, w) to (1, 3, T, H, W), T = `frames`."""
        with torch.inference_mode():
            return self._decode(latents, frames)

    @classmethod
    def covered(cls, video: Tensor, peer: Peer, tile_scale: int) -> Tensor:
        """The part of a video that the model's tiles cover."""
        return video

    def _switch(self, mode: str) -> None:
        raise NotImplementedError

    def _encode(self, video: Tensor) -> Tensor:
        result: Tensor = self.vae.encode(video).latent_dist.mode()
        return result

    def _decode(self, latents: Tensor, frames: int) -> Tensor:
        result: Tensor = self.vae.decode(latents).sample
        return result

    def _side(self, published: int, multiple: int) -> int:
        """A tile's side or stride at this scale, a multiple of the model's compression."""
        return max(multiple, int(published / self.tile_scale / multiple + 0.5) * multiple)


def _frames_as_batch(video: Tensor) -> Tensor:
    return video[0].transpose(0, 1)


def _batch_as_frames(frames: Tensor) -> Tensor:
    return frames.transpose(0, 1)[None]


class SDModel(DiffusersModel):
    """Frame by frame. Each frame in tiles, blended where they overlap, or in one piece."""

    class_name = "AutoencoderKL"

    def _switch(self, mode: str) -> None:
        self.vae.use_tiling = mode == "tiling"
        self.vae.tile_sample_min_size = self._side(self.vae.config.sample_size, 8)
        self.vae.tile_latent_min_size = self.vae.tile_sample_min_size // 8

    def _encode(self, video: Tensor) -> Tensor:
        frames = _frames_as_batch(video).split(1)
        return _batch_as_frames(torch.cat([self.vae.encode(frame).latent_dist.mode() for frame in frames]))

    def _decode(self, latents: Tensor, frames: int) -> Tensor:
        return _batch_as_frames(
            torch.cat([self.vae.decode(frame).sample for frame in _frames_as_batch(latents).split(1)])
        )


class SVDModel(DiffusersModel):
    """An image encoder; the decoder looks across frames, all of the clip or as many as are decoded
    together.
    """

    class_name = "AutoencoderKLTemporalDecoder"
    frames_together = 8

    def _switch(self, mode: str) -> None:
        pass

    def _encode(self, video: Tensor) -> Tensor:
        return _batch_as_frames(
            torch.cat(
                [self.vae.encode(frame).latent_dist.mode() for frame in _frames_as_batch(video).split(1)]
            )
        )

    def _decode(self, latents: Tensor, frames: int) -> Tensor:
        groups = _frames_as_batch(latents).split(frames if self.mode == DIRECT else self.frames_together)
        return _batch_as_frames(
            torch.cat([self.vae.decode(group, num_frames=len(group)).sample for group in groups])
        )


class CogVideoXModel(DiffusersModel):
    """Batches of frames with a cache of convolutions between them; group norms see one batch at a
    time.
    """

    class_name = "AutoencoderKLCogVideoX"
    whole_clip = 1 << 30

    def _switch(self, mode: str) -> None:
        self.vae.use_tiling = False
        batched = mode != DIRECT
        self.vae.num_sample_frames_batch_size = 8 if batched else self.whole_clip
        self.vae.num_latent_frames_batch_size = 2 if batched else self.whole_clip
        if mode == "tiling":
            # A sixth of the height and a fifth of the width overlap: whole latents only for
            # multiples of 48 and 40, as 240 and 360 are.
            config = self.vae.config
            self.vae.enable_tiling(
                self._side(config.sample_height // 2, 48), self._side(config.sample_width // 2, 40)
            )


class AllegroModel(DiffusersModel):
    """diffusers has only the tiled form; direct inference runs the same networks on the whole clip."""

    class_name = "AutoencoderKLAllegro"

    def _switch(self, mode: str) -> None:
        self.vae.use_tiling = mode == "tiling"
        self.vae.kernel, self.vae.stride = _allegro_tiles(self.vae.config.sample_size, self.tile_scale)

    @classmethod
    def covered(cls, video: Tensor, peer: Peer, tile_scale: int) -> Tensor:
        # What no tile covers would stay black.
        kernel, stride = _allegro_tiles(peer.published["sample_size"], tile_scale)
        sides = [k + (size - k) // s * s for size, k, s in zip(video.shape[2:], kernel, stride, strict=True)]
        if any(side < k for side, k in zip(sides, kernel, strict=True)):
            raise InputError(
                f"a video of {tuple(video.shape[2:])} is smaller than one tile of Allegro, {kernel}; use a"
                " larger --tile-scale"
            )
        return video[:, :, : sides[0], : sides[1], : sides[2]]

    def _encode(self, video: Tensor) -> Tensor:
        if self.mode != DIRECT:
            return super()._encode(video)
        moments = self._per_frame(self.vae.quant_conv, self.vae.encoder(video))
        return moments.chunk(2, dim=1)[0]

    def _decode(self, latents: Tensor, frames: int) -> Tensor:
        if self.mode != DIRECT:
            return super()._decode(latents, frames).transpose(1, 2)  # diffusers gives the time first here
        result: Tensor = self.vae.decoder(self._per_frame(self.vae.post_quant_conv, latents))
        return result

    @staticmethod
    def _per_frame(convolution: Any, x: Tensor) -> Tensor:
        return _batch_as_frames(convolution(_frames_as_batch(x)))


def _allegro_tiles(sample_size: int, tile_scale: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Tile and stride of Allegro in frames, rows and columns: overlaps of 8, 120 and 80 at the
    published size of 320.
    """

    def multiple(value: float) -> int:
        return max(8, int(value / 8 + 0.5) * 8)

    side, rows, columns = (multiple(value / tile_scale) for value in (sample_size, 120, 80))
    return (24, side, side), (16, max(8, side - rows), max(8, side - columns))


class WanModel(DiffusersModel):
    """One latent at a time with a cache of features, or the first latent and then all others in one
    pass.
    """

    class_name = "AutoencoderKLWan"

    def _switch(self, mode: str) -> None:
        self.vae.use_tiling = False
        if mode == "tiling":
            self.vae.enable_tiling(*(self._side(side, 8) for side in (256, 256, 192, 192)))

    def _encode(self, video: Tensor) -> Tensor:
        if self.mode != DIRECT:
            return super()._encode(video)
        self.vae.clear_cache()
        parts = []
        for piece in self._first_and_rest(video):
            self.vae._enc_conv_idx = [0]
            parts.append(
                self.vae.encoder(piece, feat_cache=self.vae._enc_feat_map, feat_idx=self.vae._enc_conv_idx)
            )
        self.vae.clear_cache()
        moments: Tensor = self.vae.quant_conv(torch.cat(parts, 2))
        return moments.chunk(2, dim=1)[0]

    def _decode(self, latents: Tensor, frames: int) -> Tensor:
        if self.mode != DIRECT:
            return super()._decode(latents, frames)
        self.vae.clear_cache()
        parts = []
        for index, piece in enumerate(self._first_and_rest(self.vae.post_quant_conv(latents))):
            self.vae._conv_idx = [0]
            options = {"first_chunk": True} if index == 0 else {}
            parts.append(
                self.vae.decoder(piece, feat_cache=self.vae._feat_map, feat_idx=self.vae._conv_idx, **options)
            )
        self.vae.clear_cache()
        return torch.cat(parts, 2).clamp(-1.0, 1.0)

    @staticmethod
    def _first_and_rest(x: Tensor) -> list[Tensor]:
        # Strides in time are only taken where there is a cache, so the first latent cannot share a
        # pass with the others.
        return [x[:, :, :1], x[:, :, 1:]] if x.shape[2] > 1 else [x]


class HunyuanModel(DiffusersModel):
    """Overlapping tiles in time (on by default) and space, blended."""

    class_name = "AutoencoderKLHunyuanVideo"
    tile, overlap, multiple = 256, 64, 8

    def _switch(self, mode: str) -> None:
        self.vae.use_tiling = False
        self.vae.use_framewise_encoding = self.vae.use_framewise_decoding = mode != DIRECT
        if mode == "tiling":
            tile = self._side(self.tile, self.multiple)
            stride = max(self.multiple, tile - self._side(self.overlap, self.multiple))
            self.vae.enable_tiling(tile, tile, None, stride, stride, None)


class LTXModel(HunyuanModel):
    """Tiles as Hunyuan's, larger, and off by default."""

    class_name = "AutoencoderKLLTXVideo"
    tile, overlap, multiple = 512, 64, 32


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


# Models whose code is not in a library ------------------------------------------------------------


@dataclass(frozen=True)
class CheckoutPeer:
    """A model that needs a local checkout of its authors' code.

    The entry is called with the folder of the weights and gives an object with `encode(video)` and
    `decode(latents)`. What these give may be a tensor, or hold one as `latent_dist` or `sample`, as
    is the custom. The entry points named here are from the projects' documentation and have not
    been run: where one does not fit, give another.
    """

    name: str
    title: str
    channels: int
    compression: tuple[int, int, int]
    entry: str
    """`module:attribute` in the checkout."""
    modes: tuple[Mode, ...] = field(default=(Mode("tiling", "as the model's own enable_tiling does"),))

    def build(self, checkout: Path, weights: Path, entry: str | None = None) -> CheckoutModel:
        """The model, on the CPU, in fp32.

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
        except Exception as error:  # code of others: whatever it raises, the entry does not fit
            raise CheckpointError(
                f"{self.title} cannot be built by {module_name}:{attribute} in {checkout}:"
                f" {type(error).__name__}: {' '.join(str(error).split())[:200]}; give another entry as"
                " NAME=CHECKOUT,WEIGHTS,module:attribute"
            ) from error
        return CheckoutModel(self, model.float().eval().requires_grad_(False))


class CheckoutModel:
    """A model out of a checkout, with the interface of `DiffusersModel`."""

    def __init__(self, peer: CheckoutPeer, vae: Any) -> None:
        self.peer, self.vae = peer, vae
        self.mode = DIRECT

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.vae.parameters())

    def use(self, mode: str) -> None:
        """Switches tiling on or off. Raises `InputError` if the model has no such switch."""
        switch = getattr(self.vae, "disable_tiling" if mode == DIRECT else "enable_tiling", None)
        if switch is None and mode != DIRECT:
            raise InputError(f"{self.peer.title} has no enable_tiling")
        if switch is not None:
            switch()
        self.mode = mode

    def encode(self, video: Tensor) -> Tensor:
        with torch.inference_mode():
            return _tensor(self.vae.encode(video))

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        with torch.inference_mode():
            return _tensor(self.vae.decode(latents))[:, :, :frames]


def _tensor(value: Any) -> Tensor:
    """The tensor in what a model gives: itself, the mean of a distribution, or a sample."""
    value = getattr(value, "latent_dist", value)
    if isinstance(value, (tuple, list)):
        value = value[0]
    if callable(getattr(value, "mode", None)) and not isinstance(value, Tensor):
        value = value.mode()
    value = getattr(value, "sample", value) if not isinstance(value, Tensor) else value
    if not isinstance(value, Tensor):
        raise InputError(
            f"the model gives {type(value).__name__}; expected a tensor, a distribution or a sample"
        )
    return value


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules of a folder can be imported inside the block. They stay loaded after it: what they
    import later must be loaded then.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no directory; expected a checkout of the model's code")
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


CHECKOUTS: dict[str, CheckoutPeer] = {
    peer.name: peer
    for peer in (
        CheckoutPeer("cv-vae", "CV-VAE", 4, (4, 8, 8), "models.modeling_vae:CVVAEModel.from_pretrained"),
        CheckoutPeer(
            "od-vae",
            "OD-VAE",
            4,
            (4, 8, 8),
            "opensora.models.causalvideovae.model:CausalVAEModel.from_pretrained",
        ),
        CheckoutPeer("open-sora", "Open-Sora VAE", 4, (4, 8, 8), "opensora.models.vae:OpenSoraVAE_V1_2"),
    )
}
