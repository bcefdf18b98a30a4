"""The 3-D PatchGAN discriminator of the adversarial loss."""

from math import prod

import torch
from torch import Tensor, nn

from wfvae.errors import InputError

WIDEST = 8
"""Channels double from layer to layer up to this many times `base`."""
WEIGHT_STD = 0.02


class PatchDiscriminator3D(nn.Module):
    """Judges each patch of a clip: logits above 0 mean real.

    One strided convolution without a norm, `layers - 1` strided blocks, one block of stride 1, and
    a convolution to one channel; a block is convolution, BatchNorm3d, LeakyReLU(0.2), dropout. All
    convolutions are 3x3x3 with zero padding 1. With the defaults:

        stride (2,2,2)   3 -> 64, LeakyReLU
        stride (2,2,2)   64 -> 128, block
        stride (1,2,2)   128 -> 256, block
        stride (1,2,2)   256 -> 512, block
        stride 1         512 -> 512, block
        stride 1         512 -> 1

    so time is divided by 4 and space by 16, rounded up. The paper leaves some things open: here
    dropout is element by element, convolutions before a norm have no bias, and weights are drawn
    with standard deviation 0.02 around 0, those of norms around 1; all biases are 0.

    BatchNorm makes the logits of a clip depend, in training mode, on its batch: real and
    reconstructed clips belong into separate calls. `train.wrapping.distributed` synchronises the
    statistics across GPUs.

    Args:
        base: channels after the first convolution.
        layers: strided convolutions.
        seed: of the weights, the same on every device; torch's global random state is not used.
    """

    def __init__(self, base: int = 64, layers: int = 4, *, seed: int = 0) -> None:
        super().__init__()
        widths = [base * min(2**depth, WIDEST) for depth in range(layers + 1)]
        self._strides = [(2 if depth < 2 else 1, 2, 2) for depth in range(layers)]
        stem = _convolution(3, widths[0], self._strides[0], bias=True)
        self.stem = nn.Sequential(stem, nn.LeakyReLU(0.2))
        strides = [*self._strides[1:], (1, 1, 1)]
        blocks = []
        for given, width, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            convolution = _convolution(given, width, stride, bias=False)
            layers_of_block = (nn.BatchNorm3d(width), nn.LeakyReLU(0.2), nn.Dropout(0.3))
            blocks.append(nn.Sequential(convolution, *layers_of_block))
        self.blocks = nn.Sequential(*blocks)
        self.head = _convolution(widths[-1], 1, (1, 1, 1), bias=True)
        self._draw_weights(seed)

    def forward(self, video: Tensor) -> Tensor:
        """Returns the logits of the patches of each clip.

        Args:
            video: (B, 3, T, H, W), about [-1, 1], of any size.

        Returns:
            (B, 1, ceil(T / 4), ceil(H / 16), ceil(W / 16)) with the default layers.

        Raises:
            InputError: less than two patches in training mode, too few for batch statistics.
        """
        batch, _, frames, height, width = video.shape
        if self.training and batch * prod(self.patches(frames, height, width)) < 2:
            raise InputError(
                f"a batch of {batch} clip of {frames} frames of {height}x{width} leaves the discriminator one"
                " patch, too few for batch statistics; give larger or longer clips, or more of them"
            )
        logits: Tensor = self.head(self.blocks(self.stem(video)))
        return logits

    def patches(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns the patches of a clip of this size along time, height and width.

        >>> PatchDiscriminator3D(base=1).patches(25, 256, 256)
        (7, 16, 16)
        """
        size = (frames, height, width)
        for stride in self._strides:
            size = (-(-size[0] // stride[0]), -(-size[1] // stride[1]), -(-size[2] // stride[2]))
        return size

    @torch.no_grad()
    def _draw_weights(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.BatchNorm3d):
                mean = 1.0 if isinstance(module, nn.BatchNorm3d) else 0.0
                module.weight.normal_(mean, WEIGHT_STD, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()


def _convolution(given: int, width: int, stride: tuple[int, int, int], *, bias: bool) -> nn.Conv3d:
    # Without torch's own initialisation, which would use the global random state.
    convolution: nn.Conv3d = nn.utils.skip_init(
        nn.Conv3d, given, width, kernel_size=3, stride=stride, padding=1, bias=bias
    )  # type: ignore[no-untyped-call]
    return convolution
