"""Streams in PyTorch: single steps, and iterators over chunks of any sizes (`docs/streaming.md`).

The production loop is `wfvae.runtime`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from wfvae.errors import InputError, StateError, StreamingError
from wfvae.machine import available_memory
from wfvae.model.arguments import check_flag, check_latents, check_video
from wfvae.model.causal import StreamChunk, bind_paths, collect_state_specs
from wfvae.model.config import WFVAEConfig
from wfvae.model.decoder import Decoder
from wfvae.model.distribution import DiagonalGaussian
from wfvae.model.encoder import Encoder
from wfvae.model.ops import channels_first, frames_first
from wfvae.spec.frames import (
    SPATIAL_RATIO,
    OutputWindow,
    latent_frames,
    lead_frames,
    tail_frames,
    video_frames,
)
from wfvae.spec.memory import require_memory
from wfvae.spec.stream import Direction, StreamSpec

_FLOAT_BYTES = 4

State = Mapping[str, Tensor]


def require_memory_of(kind: "type[StreamingVAE]", config: WFVAEConfig, copies: int = 1) -> None:
    """Raises `ResourceError` if `copies` of a model's float32 weights exceed the memory."""
    if torch.get_default_device().type == "meta":
        return
    widest = max(
        config.base_channels, config.encoder_energy_flow_hidden_size, config.decoder_energy_flow_hidden_size
    )
    blocks = config.encoder_num_resblocks + config.decoder_num_resblocks + config.connect_res_layer_num
    # No layer is wider than this, nor are there more: usual models need no exact count.
    most = (8 * blocks + 32) * 27 * (5 * widest + 2 * config.latent_dim) ** 2
    available = available_memory()
    if available is None or copies * most * _FLOAT_BYTES <= available:
        return
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in kind(config).parameters())
    require_memory(copies * count * _FLOAT_BYTES, f"{copies} x {count} weights", "use a smaller model")


class StreamingVAE(nn.Module):
    """Encoder and decoder, with the steps that stream videos through them, and no state."""

    def __init__(self, config: WFVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config or WFVAEConfig()
        require_memory_of(type(self), self.config)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        bind_paths(self)
        _lay_out_weights(self)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights, which inputs and states must have (except under autocast)."""
        return self.encoder.conv_out.conv.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are, and inputs and states must be."""
        return self.encoder.conv_out.conv.weight.device

    def stream_spec(self, direction: Direction) -> StreamSpec:
        """Returns what a stream of this direction carries and how it is driven.

        Raises:
            StreamingError: the model cannot be streamed.
        """
        if direction not in get_args(Direction):
            raise InputError(f"direction is {direction!r}; expected one of {', '.join(get_args(Direction))}")
        if self.config.norm_type == "groupnorm":
            raise StreamingError(
                "a model with norm_type 'groupnorm' cannot be streamed: its statistics mix all frames of a"
                " clip; use norm_type 'layernorm', or whole clips with encode and decode"
            )
        delay = self.decoder.delay if direction == "decoder" else 0
        states = collect_state_specs(self, f"{direction}.", str(self.dtype).removeprefix("torch."))
        return StreamSpec(direction, self.config.temporal_compression, delay, states)

    def initial_state(self, direction: Direction, batch: int, height: int, width: int) -> dict[str, Tensor]:
        """Returns the state before the first step of `batch` streams of height x width pixels."""
        for name, value in (("batch", batch), ("height", height), ("width", width)):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}; expected an integer >= 1")
        state = {}
        for spec in self.stream_spec(direction).states:
            shape, dtype = spec.resolve(batch, height, width), getattr(torch, spec.dtype)
            state[spec.name] = torch.full(shape, spec.initial_value, dtype=dtype, device=self.device)
        return state

    def encoder_step(
        self, chunk: Tensor, state: State, start: Tensor, end: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Runs one step of the uniform encode stream: a pure function, rows independent.

        Args:
            chunk: (B, 3, r m, H, W), the next frames of each row's stream. r-1 copies of a video's
                first frame lead its stream.
            state: what the previous step returned, or `initial_state("encoder", B, H, W)`.
            start: bool (B,), this row's stream begins here; its state is ignored.
            end: accepted for symmetry; an encoder has nothing to drain.

        Returns:
            moments (B, 2 D, m, H/8, W/8) and the next state.

        Raises:
            InputError, StateError: name what is wrong.

        Example:
            >>> from wfvae import WFVAE, WFVAEConfig
            >>> model = WFVAE.random(WFVAEConfig.preset("tiny"))
            >>> state = model.initial_state("encoder", 1, 16, 16)
            >>> frames = torch.zeros(1, 3, 4, 16, 16)  # an image, four times
            >>> moments, state = model.encoder_step(frames, state, start=torch.tensor([True]))
            >>> moments.shape
            torch.Size([1, 32, 1, 2, 2])
        """
        check_video("chunk", chunk, self.dtype)
        spec = self.stream_spec("encoder")
        if chunk.shape[2] % spec.chunk_multiple:
            expected = f"multiples of {spec.chunk_multiple}; stream_encode takes chunks of any size"
            raise InputError(f"the chunk has {chunk.shape[2]} frames; an encoder step takes {expected}")
        clip = self._stream_chunk(spec, state, start, end, _size(chunk))
        moments, _, _ = self.encoder(frames_first(chunk), clip)
        return channels_first(moments), clip.next_state

    def decoder_step(
        self, chunk: Tensor, state: State, start: Tensor, end: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Runs one step of the uniform decode stream, as `encoder_step`.

        Args:
            chunk: unscaled latents (B, D, m, h, w), m >= 1.
            state, start: as of `encoder_step`.
            end: bool (B,), this row's stream ended before this chunk, which only drains it (its
                content does not matter).

        Returns:
            frames (B, 3, r m, H, W) and the next state. The first `stream_spec("decoder").drop`
            frames of a stream are to be dropped.
        """
        check_latents("chunk", chunk, self.config.latent_dim, self.dtype)
        size = _size(chunk, SPATIAL_RATIO)
        clip = self._stream_chunk(self.stream_spec("decoder"), state, start, end, size)
        video, _, _ = self.decoder(frames_first(chunk), clip)
        return channels_first(video), clip.next_state

    def stream_encode(self, chunks: Iterable[Tensor]) -> Iterator[DiagonalGaussian]:
        """Streams one batch of videos of any length T through `encoder_step`.

        Args:
            chunks: tensors (B, 3, t, H, W), t >= 0 of any sizes.

        Yields:
            posteriors over latents (B, D, m, h, w) as they become ready, 1 + ceil((T - 1) / r)
            latents in all. The last frame is repeated if T is not 1 + r n.

        Example:
            >>> from wfvae import WFVAE, WFVAEConfig
            >>> model = WFVAE.random(WFVAEConfig.preset("tiny"))
            >>> chunks = [torch.zeros(1, 3, 5, 16, 16), torch.zeros(1, 3, 2, 16, 16)]
            >>> latents = [posterior.mode() for posterior in model.stream_encode(chunks)]
            >>> [part.shape[2] for part in latents]
            [2, 1]
            >>> sum(part.shape[2] for part in model.stream_decode(latents, frames=7))
            7
        """
        ratio = self.config.temporal_compression
        state: State | None = None
        waiting: Tensor | None = None  # frames short of a whole step
        seen = 0
        for chunk in _one_stream(chunks, lambda x: check_video("chunk", x, self.dtype, empty=True)):
            if waiting is None:
                waiting = chunk[:, :, :1].expand(-1, -1, lead_frames(ratio), -1, -1)
            seen += chunk.shape[2]
            last = chunk[:, :, -1:]
            frames = torch.cat([waiting, chunk], dim=2)
            ready = frames.shape[2] // ratio * ratio
            waiting = frames[:, :, ready:].clone()
            if ready:
                moments, state = self._next_step("encoder", frames[:, :, :ready], state)
                yield DiagonalGaussian(moments)
        if waiting is None:
            raise InputError("the stream has no frames; expected at least 1")
        if waiting.shape[2]:
            tail = last.expand(-1, -1, tail_frames(seen, ratio), -1, -1)
            moments, _ = self._next_step("encoder", torch.cat([waiting, tail], dim=2), state)
            yield DiagonalGaussian(moments)

    def stream_decode(self, chunks: Iterable[Tensor], frames: int | None = None) -> Iterator[Tensor]:
        """Streams one batch of latents of any length through `decoder_step`.

        Args:
            chunks: unscaled latents (B, D, m, h, w), m >= 0 of any sizes.
            frames: the video's true T, if it is not 1 + r n for n + 1 latents.

        Yields:
            frames (B, 3, t, H, W) as they become ready, exactly T in all.
        """
        spec, channels = self.stream_spec("decoder"), self.config.latent_dim
        window = OutputWindow(spec.drop)
        state: State | None = None
        latents = 0
        for chunk in _one_stream(
            chunks, lambda z: check_latents("chunk", z, channels, self.dtype, empty=True)
        ):
            last = chunk[:, :, -1:]
            latents += chunk.shape[2]
            video, state = self._next_step("decoder", chunk, state)
            part, window = window.take(video.shape[2], frames)
            if part.stop > part.start:
                yield video[:, :, part]
        if state is None:
            raise InputError("the stream has no latents; expected at least 1")
        total = video_frames(latents, spec.ratio) if frames is None else frames
        expected = latent_frames(total, spec.ratio)
        if expected != latents:
            raise InputError(f"{latents} latents were given for T = {total} frames, which have {expected}")
        if window.given < total:
            video, _ = self._next_step("decoder", last, state, end=True)
            part, _ = window.take(video.shape[2], total)
            yield video[:, :, part]

    def _next_step(
        self, direction: Direction, chunk: Tensor, state: State | None, end: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Runs a step of all rows; without a state, their first one."""
        batch, device = chunk.shape[0], chunk.device
        start = torch.full((batch,), state is None, device=device)
        step, factor = (
            (self.encoder_step, 1) if direction == "encoder" else (self.decoder_step, SPATIAL_RATIO)
        )
        if state is None:
            state = self.initial_state(direction, *_size(chunk, factor))
        return step(chunk, state, start, torch.full((batch,), end, device=device))

    def _stream_chunk(
        self, spec: StreamSpec, state: State, start: Tensor, end: Tensor | None, size: tuple[int, int, int]
    ) -> StreamChunk:
        """Checks what a step was given; `size` is (batch, height, width) of the video."""
        if not isinstance(state, Mapping) or not all(map(torch.is_tensor, state.values())):
            expected = "a mapping of names to tensors, as initial_state returns"
            raise StateError(f"the state is a {type(state).__name__}; expected {expected}")
        check_flag("start", start, size[0])
        if torch.is_autocast_enabled(start.device.type):
            problem = "a stream cannot run under autocast, which mixes precisions in its state"
            raise StreamingError(f"{problem}; convert the model by .to(dtype)")
        given = {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in state.items()}
        spec.check(given, *size)
        end = torch.zeros_like(start) if end is None else end
        check_flag("end", end, size[0])
        return StreamChunk(state, start, end)


def _one_stream(chunks: Iterable[Tensor], check: Callable[[Tensor], None]) -> Iterator[Tensor]:
    """Yields the chunks that are not empty.

    Raises:
        InputError: `check` refuses one, or batch, height or width change.
    """
    shape: torch.Size | None = None
    for chunk in chunks:
        check(chunk)
        if not chunk.shape[2]:
            continue
        if shape is not None and (shape[0], *shape[3:]) != (chunk.shape[0], *chunk.shape[3:]):
            order = f"a chunk of shape {tuple(chunk.shape)} follows one of {tuple(shape)}"
            raise InputError(f"{order}; batch, H and W must stay the same in a stream")
        shape = chunk.shape
        yield chunk


def _size(chunk: Tensor, factor: int = 1) -> tuple[int, int, int]:
    """Returns batch, and height and width in video pixels."""
    batch, _, _, height, width = chunk.shape
    return batch, height * factor, width * factor


def _lay_out_weights(model: nn.Module) -> None:
    """Orders convolution weights in memory as channels-last convolutions read them."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        elif parameter.ndim == 5:
            # (out, in, time, h, w): each time tap is then one contiguous channels-last weight.
            parameter.data = parameter.data.permute(2, 0, 3, 4, 1).contiguous().permute(1, 4, 0, 2, 3)
