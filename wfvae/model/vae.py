"""WF-VAE: a video VAE with wavelet energy flow (arXiv 2411.17459), for whole clips and streams."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, overload

import torch
from torch import Tensor

from wfvae.errors import CheckpointError, InputError
from wfvae.model.arguments import check_latents, check_video
from wfvae.model.causal import OfflineClip
from wfvae.model.checkpoint import load_weights, read_checkpoint, write_checkpoint
from wfvae.model.config import WFVAEConfig
from wfvae.model.distribution import DiagonalGaussian
from wfvae.model.ops import channels_first, frames_first
from wfvae.model.streaming import StreamingVAE


@dataclass(frozen=True)
class EncoderOutput:
    """A posterior, and the video's wavelet coefficients for the WL loss."""

    latent_dist: DiagonalGaussian
    """Over latents (B, D, 1 + n, H/8, W/8)."""
    w2: Tensor
    """W(2): (B, 12 or 24, ., H/4, W/4)."""
    w3: Tensor
    """W(3): (B, 24, 1 + n, H/8, W/8)."""


@dataclass(frozen=True)
class DecoderOutput:
    """A video, and the decoder's estimates of W(2) and W(3), None where a path is removed."""

    sample: Tensor
    """(B, 3, T, H, W), about [-1, 1]."""
    w2: Tensor | None
    w3: Tensor | None


# So that `torch.export` takes the whole model.
for _output in (EncoderOutput, DecoderOutput):
    torch.export.register_dataclass(_output, serialized_type_name=f"wfvae.{_output.__name__}")


class WFVAE(StreamingVAE):
    """The video VAE.

    Videos are (B, 3, T, H, W) in [-1, 1] with T = 1 + r n (r = 4 or 8) and H, W multiples of 8;
    latents are (B, D, 1 + n, H/8, W/8). The model holds no state: one object serves any number of
    clips and streams.

    Example:
        >>> model = WFVAE.random(WFVAEConfig.preset("tiny"))
        >>> video = torch.rand(1, 3, 5, 16, 24) * 2 - 1
        >>> latents = model.encode(video).latent_dist.mode()
        >>> latents.shape
        torch.Size([1, 16, 2, 2, 3])
        >>> model.decode(latents).sample.shape
        torch.Size([1, 3, 5, 16, 24])
    """

    @classmethod
    def random(cls, config: WFVAEConfig, seed: int = 0) -> Self:
        """Returns a model in eval mode with random weights, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config).eval()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
    ) -> Self:
        """Loads a model for inference, in eval mode.

        Weights in the wanted precision stay mapped from their file on the CPU, and take memory as
        they are used: replace the file by renaming another one over it, never in place.

        Args:
            source: one of these, a directory first:
                `tiny`, the small trained model that comes with the package;
                a directory with `config.json` and `diffusion_pytorch_model.safetensors`;
                the directory of a training run, whose newest averaged weights are taken;
                a training checkpoint `*.ckpt` with a `config.json` beside it;
                a Hugging Face repository `owner/name` (needs the extra `hub`).
            device, dtype: where and in what precision the weights are, by default on the CPU in
                fp32. `torch_dtype` is another name for `dtype`, the one that diffusers uses.
            subfolder: of the directory or repository, where the model is a part of a pipeline.
            revision: branch, tag or commit of a Hugging Face repository.

        Raises:
            CheckpointError: names every missing, unexpected and misshaped tensor, or what could not
                be read.
            ConfigError: `config.json` is not a WF-VAE's.

        Example:
            >>> model = WFVAE.from_pretrained("tiny")
            >>> model.config.latent_dim
            16
        """
        if None not in (dtype, torch_dtype) and dtype != torch_dtype:
            raise CheckpointError(f"dtype is {dtype}, but torch_dtype is {torch_dtype}; give one of them")
        wanted = dtype or torch_dtype or torch.float32
        if not isinstance(wanted, torch.dtype) or not wanted.is_floating_point:
            raise CheckpointError(
                f"dtype is {wanted!r}; expected torch.float32, float16, bfloat16 or float64"
            )
        config, weights, path = read_checkpoint(source, revision, subfolder)
        with torch.device("meta"):  # no memory and no time for values that are replaced
            model = cls(config)
        load_weights(model, weights, path)
        return model.to(device, wanted).eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `config.json` and `diffusion_pytorch_model.safetensors` as published checkpoints.

        Raises:
            CheckpointError: the disk refuses.
        """
        write_checkpoint(Path(directory), self.config, self.state_dict())

    @overload
    def encode(self, x: Tensor, return_dict: Literal[True] = True) -> EncoderOutput: ...

    @overload
    def encode(self, x: Tensor, return_dict: Literal[False]) -> tuple[DiagonalGaussian]: ...

    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput | tuple[DiagonalGaussian]:
        """Encodes whole clips (B, 3, T, H, W) in [-1, 1], each with its own causal past only.

        Without `return_dict` it returns `(latent_dist,)`, as diffusers' autoencoders do.

        Raises:
            InputError: names what is wrong with `x`.
        """
        check_video("x", x, self.dtype)
        ratio, frames = self.config.temporal_compression, x.shape[2]
        if (frames - 1) % ratio:
            below = 1 + (frames - 1) // ratio * ratio
            raise InputError(
                f"x has T = {frames} frames; a whole clip needs T = 1 + {ratio} n, for example {below} or"
                f" {below + ratio}; stream_encode takes any T"
            )
        moments, w2, w3 = map(channels_first, self.encoder(frames_first(x), OfflineClip()))
        posterior = DiagonalGaussian(moments)
        return EncoderOutput(posterior, w2, w3) if return_dict else (posterior,)

    @overload
    def decode(self, z: Tensor, return_dict: Literal[True] = True) -> DecoderOutput: ...

    @overload
    def decode(self, z: Tensor, return_dict: Literal[False]) -> tuple[Tensor]: ...

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Decodes unscaled latents (B, D, 1 + n, h, w) of whole clips.

        Without `return_dict` it returns `(sample,)`, as diffusers' autoencoders do.

        Raises:
            InputError: names what is wrong with `z`.
        """
        check_latents("z", z, self.config.latent_dim, self.dtype)
        video, w2, w3 = self.decoder(frames_first(z), OfflineClip())
        sample = channels_first(video)
        if not return_dict:
            return (sample,)
        w2, w3 = (None if bands is None else channels_first(bands) for bands in (w2, w3))
        return DecoderOutput(sample, w2, w3)

    def forward(
        self, x: Tensor, sample_posterior: bool = True, generator: torch.Generator | None = None
    ) -> tuple[EncoderOutput, DecoderOutput]:
        """Encodes and decodes, as training does, with all that the losses need."""
        encoded = self.encode(x)
        latents = encoded.latent_dist.sample(generator) if sample_posterior else encoded.latent_dist.mode()
        return encoded, self.decode(latents)

    def scale_latents(self, z: Tensor) -> Tensor:
        """Returns latents as a diffusion model takes them: (z - shift) * scale, per channel."""
        scale, shift = self._scaling(z)
        return (z - shift) * scale

    def unscale_latents(self, z: Tensor) -> Tensor:
        """Inverts `scale_latents`."""
        scale, shift = self._scaling(z)
        return z / scale + shift

    def _scaling(self, z: Tensor) -> list[Tensor]:
        check_latents("z", z, self.config.latent_dim, getattr(z, "dtype", self.dtype))
        factors = (self.config.latent_scale, self.config.latent_shift)
        return [torch.tensor(f, dtype=z.dtype, device=z.device).view(1, -1, 1, 1, 1) for f in factors]
