"""The 3-D PatchGAN discriminator of the adversarial loss."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from wfvae.errors import ConfigError, InputError

WIDEST = 8
"""Channels double from layer to layer up to this many times `base`."""
WEIGHT_STD = 0.02


class PatchDiscriminator3D(nn.Module):
    """Judges each patch of a clip: logits above 0 say real.

    One strided convolution without a norm, `layers - 1` strided blocks, one block of stride 1, and
    a convolution to one channel; a block is convolution, BatchNorm3d, LeakyReLU(0.2), dropout. All
    convolutions are 3x3x3 with zero padding 1. With the defaults:

        stride (2,2,2)   channels -> 64, LeakyReLU
        stride (2,2,2)   64 -> 128, block
        stride (1,2,2)   128 -> 256, block
        stride (1,2,2)   256 -> 512, block
        stride 1         512 -> 512, block
        stride 1         512 -> 1

    so time is divided by 4 and space by 16, rounded up. The published facts leave some things open;
    here dropout is element by element at the end of every block, convolutions before a norm have no
    bias (the norm has one), and the weights of the norms are drawn around 1 as those of
    convolutions are around 0 (both with standard deviation 0.02), all biases being 0.

    BatchNorm makes the logits of a clip depend, in training mode, on the batch that it is given
    with: real and reconstructed clips should be given in separate calls of the same kind.
    Statistics across processes need SyncBatchNorm, which the training loop decides.

    Args:
        channels: of the clips, >= 1.
        base: channels after the first convolution, >= 1.
        layers: strided convolutions, >= 1.
        dropout: probability in [0, 1).
        seed: of the weights, see `refresh`.

    Raises:
        ConfigError: an argument outside its range.
    """

    def __init__(
        self, channels: int = 3, base: int = 64, layers: int = 4, dropout: float = 0.3, *, seed: int = 0
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("base", base), ("layers", layers)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"the discriminator's {name} is {value!r}; expected an integer >= 1")
        if not 0 <= dropout < 1:
            raise ConfigError(f"the discriminator's dropout is {dropout!r}; expected a probability in [0, 1)")
        self.channels = channels
        # One entry for each strided convolution and one for the block after them.
        widths = [base * min(2**depth, WIDEST) for depth in range(layers + 1)]
        self._strides = [(2 if depth < 2 else 1, 2, 2) for depth in range(layers)]
        self.stem = nn.Sequential(
            _convolution(channels, widths[0], self._strides[0], bias=True), nn.LeakyReLU(0.2)
        )
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    _convolution(given, width, stride, bias=False),
                    nn.BatchNorm3d(width),
                    nn.LeakyReLU(0.2),
                    nn.Dropout(dropout),
                )
                for given, width, stride in zip(
                    widths[:-1], widths[1:], [*self._strides[1:], (1, 1, 1)], strict=True
                )
            )
        )
        self.head = _convolution(widths[-1], 1, (1, 1, 1), bias=True)
        self.refresh(seed)

    def forward(self, video: Tensor) -> Tensor:
        """Logits of the patches of each clip.

        Args:
            video: (B, channels, T, H, W) floating point, about [-1, 1], of any size in eval mode;
                in training mode the batch must leave at least two positions to take statistics
                over, which 1 clip of 1 frame of 32x32 pixels does.

        Returns:
            (B, 1, ceil(T / 4), ceil(H / 16), ceil(W / 16)) with the default layers.

        Raises:
            InputError: a tensor of another shape, or too small a batch in training mode.
        """
        if video.ndim != 5 or video.shape[1] != self.channels or min(video.shape) < 1:
            raise InputError(
                f"video has shape {tuple(video.shape)}; the discriminator expects (B, {self.channels}, T,"
                " H, W)"
            )
        if self.training and video.shape[0] * prod(self.patches(*video.shape[2:])) < 2:
            raise InputError(
                f"a batch of {video.shape[0]} clip of {video.shape[2]} frames of"
                f" {video.shape[3]}x{video.shape[4]} leaves the discriminator one patch, too few for batch"
                " statistics; give larger or longer clips, or more of them"
            )
        logits: Tensor = self.head(self.blocks(self.stem(video)))
        return logits

    def patches(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Patches along time, height and width that a clip of this size is judged in."""
        size = (frames, height, width)
        for stride in self._strides:
            size = (-(-size[0] // stride[0]), -(-size[1] // stride[1]), -(-size[2] // stride[2]))
        return size

    @torch.no_grad()
    def refresh(self, seed: int) -> None:
        """Draws all weights anew, in place, and forgets the norms' running statistics, as at the
        beginning of each training stage.

        The same seed gives the same weights on every device and in every process; torch's global
        random state is left alone. The optimizer's moments belong to the old weights: the caller
        must begin those anew, too.
        """
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.BatchNorm3d):
                mean = 1.0 if isinstance(module, nn.BatchNorm3d) else 0.0
                module.weight.copy_(
                    torch.empty(module.weight.shape).normal_(mean, WEIGHT_STD, generator=generator)
                )
                if module.bias is not None:
                    module.bias.zero_()
            if isinstance(module, nn.BatchNorm3d):
                module.reset_running_stats()


def _convolution(given: int, width: int, stride: tuple[int, int, int], *, bias: bool) -> nn.Conv3d:
    # Without torch's own initialisation, which `refresh` replaces and which would use the global
    # random state.
    convolution: nn.Conv3d = nn.utils.skip_init(
        nn.Conv3d, given, width, kernel_size=3, stride=stride, padding=1, bias=bias
    )  # type: ignore[no-untyped-call]
    return convolution
