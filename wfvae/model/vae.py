"""WF-VAE: a video VAE with wavelet energy flow, whole clips and streams from one network (arXiv
2411.17459).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from wfvae.errors import InputError, StateError, StreamingError
from wfvae.model.arguments import check_flag, check_latents, check_video
from wfvae.model.causal import OfflineClip, StreamChunk, bind_paths, collect_state_specs
from wfvae.model.config import WFVAEConfig
from wfvae.model.decoder import Decoder
from wfvae.model.distribution import DiagonalGaussian
from wfvae.model.encoder import Encoder
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.spec.stream import Direction, StreamSpec

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class EncoderOutput:
    """`latent_dist` over (B, D, 1+n, H/8, W/8); `w2` (B, 12 or 24, ., H/4, W/4) and `w3` (B, 24,
    1+n, H/8, W/8) for the WL loss.
    """

    latent_dist: DiagonalGaussian
    w2: Tensor
    w3: Tensor


@dataclass(frozen=True)
class DecoderOutput:
    """`sample` is the video (B, 3, T, H, W), about [-1, 1]; `w2`, `w3` are the decoder's estimates,
    None where a path is removed.
    """

    sample: Tensor
    w2: Tensor | None
    w3: Tensor | None


class WFVAE(nn.Module):
    """The video VAE.

    Videos are (B, 3, T, H, W) in [-1, 1] with T = 1 + r n (r = 4 or 8) and H, W multiples of 8;
    latents are (B, D, 1 + n, H/8, W/8). The model holds no state: one object serves any number of
    clips and streams.
    """

    def __init__(self, config: WFVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config or WFVAEConfig()
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        bind_paths(self)
        _lay_out_weights(self)

    @classmethod
    def random(cls, config: WFVAEConfig, seed: int = 0) -> WFVAE:
        """A model with random weights, the same for the same seed, in eval mode: for demos, tests
        and speed measurements.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config).eval()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
    ) -> WFVAE:
        """Loads a checkpoint directory, a training checkpoint (`.ckpt`), or a Hugging Face
        repository name. See `wfvae.model.checkpoint`.
        """
        from wfvae.model.checkpoint import load

        return load(source, device=device, dtype=dtype, revision=revision)

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `config.json` and `diffusion_pytorch_model.safetensors` as the published
        checkpoints have them.
        """
        from wfvae.model.checkpoint import save

        save(self, directory)

    # Whole clips ----------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> EncoderOutput:
        """Encodes whole clips, each with its own causal past only.

        Args:
            x: (B, 3, T, H, W) floating point in [-1, 1]; T = 1 + r n; H, W multiples of 8.

        Raises:
            InputError: naming what is wrong with `x`.
        """
        check_video("x", x, self.dtype)
        ratio, frames = self.config.temporal_compression, x.shape[2]
        if (frames - 1) % ratio:
            below = 1 + (frames - 1) // ratio * ratio
            raise InputError(
                f"x has T = {frames} frames; a whole clip needs T = 1 + {ratio} n, for example {below} or"
                f" {below + ratio}; stream_encode takes any T"
            )
        result = self.encoder(_frames_first(x), OfflineClip())
        distribution = DiagonalGaussian(_channels_first(result.moments))
        return EncoderOutput(distribution, _channels_first(result.w2), _channels_first(result.w3))

    def decode(self, z: Tensor) -> DecoderOutput:
        """Decodes whole clips.

        Args:
            z: unscaled latents (B, D, 1 + n, h, w), floating point and finite.

        Raises:
            InputError: naming what is wrong with `z`.
        """
        check_latents("z", z, self.config.latent_dim, self.dtype)
        result = self.decoder(_frames_first(z), OfflineClip())
        w2, w3 = (None if t is None else _channels_first(t) for t in (result.w2, result.w3))
        return DecoderOutput(_channels_first(result.video), w2, w3)

    def forward(
        self, x: Tensor, sample_posterior: bool = True, generator: torch.Generator | None = None
    ) -> tuple[EncoderOutput, DecoderOutput]:
        """Encodes and decodes, as training does: both outputs with all that the losses need."""
        encoded = self.encode(x)
        latents = encoded.latent_dist.sample(generator) if sample_posterior else encoded.latent_dist.mode()
        return encoded, self.decode(latents)

    def scale_latents(self, z: Tensor) -> Tensor:
        """Latents as a diffusion model takes them: (z - shift) * scale, per channel."""
        scale, shift = self._scaling(z)
        return (z - shift) * scale

    def unscale_latents(self, z: Tensor) -> Tensor:
        """The inverse of `scale_latents`."""
        scale, shift = self._scaling(z)
        return z / scale + shift

    # Streams --------------------------------------------------------------------------------------

    def stream_spec(self, direction: Direction) -> StreamSpec:
        """What a stream of this direction carries and how it is driven. Raises `StreamingError` if
        the model can't be streamed.
        """
        if direction not in get_args(Direction):
            raise InputError(f"direction is {direction!r}; expected one of {', '.join(get_args(Direction))}")
        if self.config.norm_type == "groupnorm":
            raise StreamingError(
                "a model with norm_type 'groupnorm' cannot be streamed: its statistics mix all frames of a"
                " clip; use norm_type 'layernorm', or whole clips with encode and decode"
            )
        dtype = str(self.dtype).removeprefix("torch.")
        delay = self.decoder.delay if direction == "decoder" else 0
        return StreamSpec(
            direction,
            self.config.temporal_compression,
            delay,
            collect_state_specs(self, f"{direction}.", dtype),
        )

    def initial_state(self, direction: Direction, batch: int, height: int, width: int) -> dict[str, Tensor]:
        """The state before the first step of `batch` streams of a (padded) video size height x
        width.
        """
        for name, value in (("batch", batch), ("height", height), ("width", width)):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}; expected an integer >= 1")
        device = next(self.parameters()).device
        return {
            spec.name: torch.full(
                spec.resolve(batch, height, width),
                spec.initial_value,
                dtype=getattr(torch, spec.dtype),
                device=device,
            )
            for spec in self.stream_spec(direction).states
        }

    def encoder_step(
        self, chunk: Tensor, state: State, start: Tensor, end: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of the uniform encode stream; a pure function, rows independent.

        Args:
            chunk: (B, 3, r m, H, W), the next frames of each row's stream. r-1 copies of a video's
                first frame lead its stream.
            state: what the previous step returned, or `initial_state("encoder", B, H, W)`.
            start: bool (B,), this row's stream begins here; its state is ignored.
            end: accepted for symmetry; an encoder has nothing to drain.

        Returns:
            moments (B, 2 D, m, H/8, W/8) and the next state.

        Raises:
            InputError, StateError: naming what is wrong.
        """
        check_video("chunk", chunk, self.dtype)
        spec = self.stream_spec("encoder")
        if chunk.shape[2] % spec.chunk_multiple:
            raise InputError(
                f"the chunk has {chunk.shape[2]} frames; an encoder step takes multiples of"
                f" {spec.chunk_multiple}; stream_encode takes chunks of any size"
            )
        clip = self._stream_chunk(spec, state, start, end, chunk.shape[0], *chunk.shape[3:])
        result = self.encoder(_frames_first(chunk), clip)
        return _channels_first(result.moments), clip.next_state

    def decoder_step(
        self, chunk: Tensor, state: State, start: Tensor, end: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of the uniform decode stream; a pure function, rows independent.

        Args:
            chunk: unscaled latents (B, D, m, h, w), m >= 1.
            state: what the previous step returned, or `initial_state("decoder", B, H, W)`.
            start: bool (B,), this row's stream begins here; its state is ignored.
            end: bool (B,), this row's stream ended before this chunk, which only drains it (its
                content does not matter).

        Returns:
            frames (B, 3, r m, H, W), of which a stream's first `stream_spec("decoder").drop` are to
            be dropped, and the next state.

        Raises:
            InputError, StateError: naming what is wrong.
        """
        check_latents("chunk", chunk, self.config.latent_dim, self.dtype)
        height, width = (side * SPATIAL_RATIO for side in chunk.shape[3:])
        clip = self._stream_chunk(
            self.stream_spec("decoder"), state, start, end, chunk.shape[0], height, width
        )
        result = self.decoder(_frames_first(chunk), clip)
        return _channels_first(result.video), clip.next_state

    def stream_encode(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Streams one batch of videos of any length T through `encoder_step`.

        Args:
            chunks: tensors (B, 3, t, H, W), t >= 0 of any sizes.

        Yields:
            moments (B, 2 D, m, h, w) as they become ready, 1 + ceil((T - 1) / r) latents in all.
            The last frame is repeated if T is not 1 + r n.
        """
        from wfvae.model.streaming import stream_encode

        return stream_encode(self, chunks)

    def stream_decode(self, chunks: Iterable[Tensor], frames: int | None = None) -> Iterator[Tensor]:
        """Streams one batch of latents of any length through `decoder_step`.

        Args:
            chunks: unscaled latents (B, D, m, h, w), m >= 0 of any sizes.
            frames: the video's true T, if it is not 1 + r n for n + 1 latents.

        Yields:
            frames (B, 3, t, H, W) as they become ready, exactly T in all.
        """
        from wfvae.model.streaming import stream_decode

        return stream_decode(self, chunks, frames)

    # Details --------------------------------------------------------------------------------------

    def _stream_chunk(
        self,
        spec: StreamSpec,
        state: State,
        start: Tensor,
        end: Tensor | None,
        batch: int,
        height: int,
        width: int,
    ) -> StreamChunk:
        if not isinstance(state, Mapping) or not all(map(torch.is_tensor, state.values())):
            raise StateError(
                f"the state is a {type(state).__name__}; expected a mapping of names to tensors, as"
                " initial_state returns"
            )
        check_flag("start", start, batch)
        if torch.is_autocast_enabled(start.device.type):
            raise StreamingError(
                "a stream cannot run under autocast, which mixes precisions in its state; convert the model"
                " by .to(dtype)"
            )
        given = {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in state.items()}
        spec.check(given, batch, height, width)
        end = torch.zeros(batch, dtype=torch.bool, device=start.device) if end is None else end
        check_flag("end", end, batch)
        return StreamChunk(state, start, end)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights, which inputs and states must have (except under autocast)."""
        return self.encoder.conv_out.conv.weight.dtype

    def _scaling(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_latents("z", z, self.config.latent_dim, getattr(z, "dtype", self.dtype))
        shape = (1, -1, 1, 1, 1)
        scale = torch.tensor(self.config.latent_scale, dtype=z.dtype, device=z.device).view(shape)
        return scale, torch.tensor(self.config.latent_shift, dtype=z.dtype, device=z.device).view(shape)


def _frames_first(x: Tensor) -> Tensor:
    """(B, C, T, H, W) to the network's (B, T, C, H, W), channels last in memory."""
    return x.permute(0, 2, 3, 4, 1).contiguous().movedim(-1, 2)


def _channels_first(x: Tensor) -> Tensor:
    return x.movedim(2, 1).contiguous()


def _lay_out_weights(model: nn.Module) -> None:
    """Orders convolution weights in memory as channels-last convolutions read them; shapes and
    values stay.
    """
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        elif parameter.ndim == 5:
            # (out, in, time, h, w): each time tap is then one contiguous channels-last weight.
            parameter.data = parameter.data.permute(2, 0, 3, 4, 1).contiguous().permute(1, 4, 0, 2, 3)
