"""diffusers' autoencoders: how each is switched between whole clips and blocks."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from peers.model import DIRECT, PeerModel
from wfvae.errors import InputError


class DiffusersModel(PeerModel):
    """One of diffusers' autoencoders."""

    class_name = ""

    def __init__(self, vae: Any, peer: Any, tile_scale: int) -> None:
        super().__init__(vae, peer)
        self.tile_scale = tile_scale
        self.use(DIRECT)

    @classmethod
    def covered(cls, video: Tensor, peer: Any, tile_scale: int) -> Tensor:
        """Returns the part of a video that the model's tiles cover."""
        return video

    def _encode(self, video: Tensor) -> Tensor:
        result: Tensor = self.vae.encode(video).latent_dist.mode()
        return result

    def _decode(self, latents: Tensor, frames: int) -> Tensor:
        result: Tensor = self.vae.decode(latents).sample
        return result

    def _side(self, published: int, multiple: int) -> int:
        """Returns a tile's side or stride at this scale, a multiple of the model's compression."""
        return max(multiple, int(published / self.tile_scale / multiple + 0.5) * multiple)


def _frames_as_batch(video: Tensor) -> Tensor:
    return video[0].transpose(0, 1)


def _batch_as_frames(frames: Tensor) -> Tensor:
    return frames.transpose(0, 1)[None]


class ImageModel(DiffusersModel):
    """Encodes frame by frame."""

    def _encode(self, video: Tensor) -> Tensor:
        frames = _frames_as_batch(video).split(1)
        return _batch_as_frames(torch.cat([self.vae.encode(frame).latent_dist.mode() for frame in frames]))


class SDModel(ImageModel):
    """Frame by frame. Each frame in tiles, blended where they overlap, or in one piece."""

    class_name = "AutoencoderKL"

    def _switch(self, mode: str) -> None:
        self.vae.use_tiling = mode == "tiling"
        self.vae.tile_sample_min_size = self._side(self.vae.config.sample_size, 8)
        self.vae.tile_latent_min_size = self.vae.tile_sample_min_size // 8

    def _decode(self, latents: Tensor, frames: int) -> Tensor:
        images = _frames_as_batch(latents).split(1)
        return _batch_as_frames(torch.cat([self.vae.decode(image).sample for image in images]))


class SVDModel(ImageModel):
    """An image encoder; the decoder looks across frames, all of the clip or as many as are decoded
    together.
    """

    class_name = "AutoencoderKLTemporalDecoder"
    frames_together = 8

    def _switch(self, mode: str) -> None:
        pass

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
    """diffusers has only the tiled form; direct inference runs its networks on the whole clip."""

    class_name = "AutoencoderKLAllegro"

    def _switch(self, mode: str) -> None:
        self.vae.use_tiling = mode == "tiling"
        self.vae.kernel, self.vae.stride = _allegro_tiles(self.vae.config.sample_size, self.tile_scale)

    @classmethod
    def covered(cls, video: Tensor, peer: Any, tile_scale: int) -> Tensor:
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
        network = partial(self.vae.encoder, feat_cache=self.vae._enc_feat_map)
        parts = [network(piece, feat_idx=[0]) for piece in self._first_and_rest(video)]
        moments: Tensor = self.vae.quant_conv(torch.cat(parts, 2))
        return moments.chunk(2, dim=1)[0]

    def _decode(self, latents: Tensor, frames: int) -> Tensor:
        if self.mode != DIRECT:
            return super()._decode(latents, frames)
        self.vae.clear_cache()
        network = partial(self.vae.decoder, feat_cache=self.vae._feat_map)
        first, *rest = self._first_and_rest(self.vae.post_quant_conv(latents))
        parts = [network(first, feat_idx=[0], first_chunk=True)]
        parts += [network(piece, feat_idx=[0]) for piece in rest]
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


ADAPTERS: dict[str, type[DiffusersModel]] = {
    "sd-vae": SDModel,
    "svd": SVDModel,
    "cogvideox": CogVideoXModel,
    "allegro": AllegroModel,
    "wan": WanModel,
    "hunyuan": HunyuanModel,
    "ltx": LTXModel,
}
