"""Building blocks of encoder and decoder.

Feature maps are (B, T, C, H, W). Child names are those of the published checkpoints.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wfvae.model.causal import CausalConv3d, Clip, TimeUpsample
from wfvae.model.config import GROUPNORM_GROUPS, NormType
from wfvae.model.ops import accumulate, channel_norm, frame_attention, upsample_conv

NORM_EPS = 1e-6


def per_frame(operator: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """Applies an operator on images (N, C, H, W) to every frame separately."""
    images = operator(frames.flatten(0, 1))
    result: Tensor = images.reshape(frames.shape[0], -1, *images.shape[1:])
    return result


class Norm(nn.Module):
    """`layernorm` over the channels of each position, or `groupnorm` over a whole clip.

    Statistics are fp32 at any precision.
    """

    def __init__(self, channels: int, kind: NormType) -> None:
        super().__init__()
        self.recomputed = False
        """Whether a backward pass computes `norm_silu` again instead of keeping it."""
        self.norm: nn.LayerNorm | nn.GroupNorm
        if kind == "layernorm":
            self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        else:
            self.norm = nn.GroupNorm(GROUPNORM_GROUPS, channels, eps=NORM_EPS)

    def forward(self, frames: Tensor) -> Tensor:
        norm = self.norm
        if isinstance(norm, nn.LayerNorm):
            return per_frame(lambda images: channel_norm(images, norm), frames)
        result: Tensor = norm(frames.movedim(2, 1))
        return result.movedim(1, 2)


def norm_silu(norm: Norm, frames: Tensor) -> Tensor:
    """Norm, then SiLU: in place without autograd; `Norm.recomputed` applies with it."""
    if norm.recomputed and torch.is_grad_enabled():
        result: Tensor = checkpoint(_norm_silu, norm, frames, use_reentrant=False, preserve_rng_state=False)
        return result
    return _norm_silu(norm, frames)


def _norm_silu(norm: Norm, frames: Tensor) -> Tensor:
    # Image by image, so that a graph has no change of shape between a convolution, its norm, SiLU
    # and the next convolution.
    return per_frame(lambda images: F.silu(images, inplace=not torch.is_grad_enabled()), norm(frames))


class _ResBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, dropout, conv, plus the input."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float, norm: NormType) -> None:
        super().__init__()
        self.norm1 = Norm(in_channels, norm)
        self.norm2 = Norm(out_channels, norm)
        self.dropout = nn.Dropout(dropout)


class Res2D(_ResBlock):
    """Residual block of 3x3 convolutions within each frame. Channels stay."""

    def __init__(self, channels: int, dropout: float, norm: NormType) -> None:
        super().__init__(channels, channels, dropout, norm)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, frames: Tensor, clip: Clip) -> Tensor:
        # Nested, so that no name keeps an activation alive after its last use.
        inner = norm_silu(self.norm2, per_frame(self.conv1, norm_silu(self.norm1, frames)))
        return accumulate(per_frame(self.conv2, self.dropout(inner)), frames)


class Res3D(_ResBlock):
    """Residual block of causal 3x3x3 convolutions, with one of 1x1x1 where channels change."""

    def __init__(
        self, in_channels: int, out_channels: int, spatial: int, dropout: float, norm: NormType
    ) -> None:
        super().__init__(in_channels, out_channels, dropout, norm)
        self.conv1 = CausalConv3d(in_channels, out_channels, spatial)
        self.conv2 = CausalConv3d(out_channels, out_channels, spatial)
        self.nin_shortcut: CausalConv3d | None = None
        if in_channels != out_channels:
            self.nin_shortcut = CausalConv3d(in_channels, out_channels, spatial, kernel=1)

    def forward(self, frames: Tensor, clip: Clip) -> Tensor:
        def inner() -> Tensor:
            dropped: Tensor = self.dropout(
                norm_silu(self.norm2, self.conv1(lambda: norm_silu(self.norm1, frames), clip))
            )
            return dropped

        residual = self.conv2(inner, clip)
        shortcut = frames if self.nin_shortcut is None else self.nin_shortcut(frames, clip)
        return accumulate(residual, shortcut)


class FrameAttention(nn.Module):
    """One-head self-attention over the positions of each frame, plus the input."""

    def __init__(self, channels: int, spatial: int, norm: NormType) -> None:
        super().__init__()
        self.norm = Norm(channels, norm)
        self.q = CausalConv3d(channels, channels, spatial, kernel=1)
        self.k = CausalConv3d(channels, channels, spatial, kernel=1)
        self.v = CausalConv3d(channels, channels, spatial, kernel=1)
        self.proj_out = CausalConv3d(channels, channels, spatial, kernel=1)

    def forward(self, frames: Tensor, clip: Clip) -> Tensor:
        normed = self.norm(frames)
        attended = frame_attention(self.q(normed, clip), self.k(normed, clip), self.v(normed, clip))
        projected: Tensor = self.proj_out(attended, clip)
        return accumulate(projected, frames)


class Downsample2D(nn.Module):
    """Halves height and width of every frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, frames: Tensor, clip: Clip) -> Tensor:
        # Padded at the right and bottom only, as the published model does.
        return per_frame(lambda images: self.conv(F.pad(images, (0, 1, 0, 1))), frames)


class Downsample3D(nn.Module):
    """Halves time, height and width by one strided causal convolution."""

    def __init__(self, channels: int, spatial: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, spatial, stride=(2, 2))

    def forward(self, frames: Tensor, clip: Clip) -> Tensor:
        result: Tensor = self.conv(frames, clip)
        return result


class Upsample2D(nn.Module):
    """Doubles height and width of every frame by repetition, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, frames: Tensor, clip: Clip) -> Tensor:
        return per_frame(lambda images: upsample_conv(images, self.conv), frames)


class Upsample3D(nn.Module):
    """Doubles time (nearest or linear), height and width (bilinear), then convolves causally."""

    def __init__(self, channels: int, spatial: int, linear: bool, head: int, lag: int) -> None:
        super().__init__()
        self.time = TimeUpsample(channels, spatial, linear, head, lag)
        self.conv = CausalConv3d(channels, channels, spatial // 2, repeated=not linear)

    def forward(self, frames: Tensor, clip: Clip) -> Tensor:
        def doubled() -> Tensor:
            more = self.time(frames, clip)
            large = F.interpolate(more.flatten(0, 1), scale_factor=2, mode="bilinear", align_corners=False)
            return large.reshape(frames.shape[0], -1, *large.shape[1:])

        result: Tensor = self.conv(doubled, clip)
        return result


class Stage(nn.Sequential):
    """A numbered list of blocks, some of which look at time."""

    def forward(self, frames: Tensor, clip: Clip) -> Tensor:  # type: ignore[override]  # also the clip
        for block in self:
            frames = per_frame(block, frames) if isinstance(block, nn.Conv2d) else block(frames, clip)
        return frames
