"""WF-VAE in the computational form of the published code, for comparisons of speed in one process.

The numbers are those of `wfvae`; how they are computed is the published code's way: activations are
contiguous (B, C, T, H, W), a causal convolution is one 3-D convolution over a concatenation with
the repeated first frame, 2-D operators work on rearranged copies, norms on transposed views, SiLU
is x * sigmoid(x), attention is written out, Haar transforms loop over colours and bands.

The network is not copied: while `reference_form` is active, its functions and methods are replaced,
for all models of the process. Only whole clips: streams are not the published code's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wfvae.model.blocks
import wfvae.model.causal
import wfvae.model.decoder
import wfvae.model.encoder
import wfvae.model.vae
from wfvae.model.blocks import Downsample2D, FrameAttention, Norm, Upsample2D, Upsample3D
from wfvae.model.causal import CausalConv3d, Clip
from wfvae.model.haar import HaarAnalysis, HaarSynthesis
from wfvae.model.vae import WFVAE

# The network hands on (B, T, C, H, W). In this form such a tensor is always a view of a contiguous
# (B, C, T, H, W).


def _published(frames: Tensor) -> Tensor:
    """(B, T, C, H, W) as the published code's (B, C, T, H, W); copies only where a norm left the
    channels last.
    """
    return frames.movedim(2, 1).contiguous()


def _ours(x: Tensor) -> Tensor:
    return x.movedim(1, 2)


def _frames_first(x: Tensor) -> Tensor:
    return _ours(x.contiguous())


def _cat_frames(*parts: Tensor) -> Tensor:
    return _ours(torch.cat([part.movedim(2, 1) for part in parts], dim=2))


def _cat_channels(parts: Sequence[Tensor], dim: int) -> Tensor:
    assert dim == 2
    return _ours(torch.cat([part.movedim(2, 1) for part in parts], dim=1))


def _to_images(x: Tensor) -> Tensor:
    """b c t h w -> (b t) c h w, a copy."""
    return x.transpose(1, 2).flatten(0, 1).contiguous()


def _to_video(images: Tensor, batch: int) -> Tensor:
    """(b t) c h w -> b c t h w, a copy."""
    return images.reshape(batch, -1, *images.shape[1:]).transpose(1, 2).contiguous()


def _per_frame(operator: nn.Module, frames: Tensor) -> Tensor:
    return _ours(_to_video(operator(_to_images(_published(frames))), frames.shape[0]))


def _add(first: Tensor, second: Tensor) -> Tensor:
    return first + second


def _norm_silu(norm: Norm, frames: Tensor) -> Tensor:
    x: Tensor = norm(frames)
    return x * torch.sigmoid(x)


def _norm(self: Norm, frames: Tensor) -> Tensor:
    if isinstance(self.norm, nn.LayerNorm):
        normed: Tensor = self.norm(frames.movedim(2, 1).permute(0, 2, 3, 4, 1))
        return _ours(normed.permute(0, 4, 1, 2, 3))
    grouped: Tensor = self.norm(_published(frames))
    return _ours(grouped)


def _causal_conv(self: CausalConv3d, frames: Tensor | Callable[[], Tensor], clip: Clip) -> Tensor:
    x = _published(frames() if callable(frames) else frames)
    if self.kernel > 1:
        x = torch.cat([x[:, :, :1].repeat(1, 1, self.kernel - 1, 1, 1), x], dim=2)
    margin = self.kernel_spatial // 2
    if self.stride_spatial > 1:
        x, margin = F.pad(x, (0, 1, 0, 1)), 0
    stride = (self.stride, self.stride_spatial, self.stride_spatial)
    return _ours(F.conv3d(x, self.conv.weight, self.conv.bias, stride=stride, padding=(0, margin, margin)))


def _attention(self: FrameAttention, frames: Tensor, clip: Clip) -> Tensor:
    batch, _, channels, height, width = frames.shape
    normed = self.norm(frames)
    query, key, value = (
        _to_images(_published(project(normed, clip))).flatten(2) for project in (self.q, self.k, self.v)
    )
    scores = torch.bmm(query.transpose(1, 2), key) * channels**-0.5
    attended = torch.bmm(value, torch.softmax(scores, dim=2).transpose(1, 2))
    projected: Tensor = self.proj_out(
        _ours(_to_video(attended.reshape(-1, channels, height, width), batch)), clip
    )
    return frames + projected


def _downsample_2d(self: Downsample2D, frames: Tensor, clip: Clip) -> Tensor:
    return _ours(_to_video(self.conv(F.pad(_to_images(_published(frames)), (0, 1, 0, 1))), frames.shape[0]))


def _upsample_2d(self: Upsample2D, frames: Tensor, clip: Clip) -> Tensor:
    large = F.interpolate(_to_images(_published(frames)), scale_factor=2, mode="nearest")
    return _ours(_to_video(self.conv(large), frames.shape[0]))


def _upsample_3d(self: Upsample3D, frames: Tensor, clip: Clip) -> Tensor:
    x = _published(frames)
    mode = "trilinear" if self.time.linear else "nearest"
    parts = [F.interpolate(x[:, :, :1], scale_factor=(1, 2, 2), mode="trilinear")]
    if x.shape[2] > 1:
        later = F.interpolate(x[:, :, 1:], scale_factor=(2, 1, 1), mode=mode)
        parts.append(F.interpolate(later, scale_factor=(1, 2, 2), mode="trilinear"))
    result: Tensor = self.conv(_ours(torch.cat(parts, dim=2)), clip)
    return result


def _haar_analysis(self: HaarAnalysis, frames: Tensor) -> Tensor:
    x, taps = _published(frames), list(self.taps().values())
    if self.dims == 2:
        x = _to_images(x)
    convolve: Any = F.conv2d if self.dims == 2 else F.conv3d
    bands = [convolve(x[:, c : c + 1], tap, stride=2) for tap in taps for c in range(self.channels)]
    joined = torch.cat(bands, dim=1)
    return _ours(_to_video(joined, frames.shape[0]) if self.dims == 2 else joined)


def _haar_synthesis(self: HaarSynthesis, bands: Tensor) -> Tensor:
    x, taps = _published(bands), list(self.taps().values())
    if self.dims == 2:
        x = _to_images(x)
    transpose: Any = F.conv_transpose2d if self.dims == 2 else F.conv_transpose3d
    colors = []
    for c in range(self.channels):
        parts = [
            transpose(x[:, band * self.channels + c, None], tap, stride=2) for band, tap in enumerate(taps)
        ]
        colors.append(torch.stack(parts).sum(dim=0))
    video = torch.cat(colors, dim=1)
    return _ours(_to_video(video, bands.shape[0]) if self.dims == 2 else video)


_TORCH = SimpleNamespace(cat=_cat_channels)
_REPLACED: tuple[tuple[object, str, object], ...] = (
    (wfvae.model.vae, "frames_first", _frames_first),
    (wfvae.model.causal, "cat_frames", _cat_frames),
    (wfvae.model.blocks, "per_frame", _per_frame),
    (wfvae.model.encoder, "per_frame", _per_frame),
    (wfvae.model.decoder, "per_frame", _per_frame),
    (wfvae.model.blocks, "accumulate", _add),
    (wfvae.model.blocks, "norm_silu", _norm_silu),
    (wfvae.model.encoder, "norm_silu", _norm_silu),
    (wfvae.model.decoder, "norm_silu", _norm_silu),
    (wfvae.model.encoder, "torch", _TORCH),
    (wfvae.model.decoder, "torch", _TORCH),
    (Norm, "forward", _norm),
    (CausalConv3d, "forward", _causal_conv),
    (FrameAttention, "forward", _attention),
    (Downsample2D, "forward", _downsample_2d),
    (Upsample2D, "forward", _upsample_2d),
    (Upsample3D, "forward", _upsample_3d),
    (HaarAnalysis, "forward", _haar_analysis),
    (HaarSynthesis, "forward", _haar_synthesis),
)


@contextmanager
def reference_form(model: WFVAE) -> Iterator[WFVAE]:
    """Within the block `model.encode` and `model.decode` compute as the published code does; its
    weights lie in plain layout.
    """
    with ExitStack() as stack:
        for owner, name, replacement in _REPLACED:
            stack.enter_context(patch.object(owner, name, replacement))
        for parameter in model.parameters():
            stack.callback(setattr, parameter, "data", parameter.data)
            parameter.data = parameter.data.contiguous()
        yield model
