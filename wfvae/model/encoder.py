"""The encoder: video to moments, with the wavelet energy flowing in at two levels.

See the paper, section 3.2 and the table in Fig. 2.
"""

import torch
from torch import Tensor, nn

from wfvae.model.blocks import (
    Downsample2D,
    Downsample3D,
    FrameAttention,
    Norm,
    Res2D,
    Res3D,
    Stage,
    norm_silu,
    per_frame,
)
from wfvae.model.causal import CausalConv3d, Clip
from wfvae.model.config import WFVAEConfig
from wfvae.model.haar import HaarAnalysis
from wfvae.spec.frames import SPATIAL_RATIO

RGB = 3
BANDS_3D = 8 * RGB


class Encoder(nn.Module):
    """Network of `wfvae.model.vae.WFVAE.encode`."""

    def __init__(self, config: WFVAEConfig) -> None:
        super().__init__()
        c, norm, drop = config.base_channels, config.norm_type, config.dropout
        flow = config.encoder_energy_flow_hidden_size
        flow2, flow3 = flow * config.energy_flow_l2, flow * config.energy_flow_l3
        blocks = range(config.encoder_num_resblocks)
        self.time8 = config.temporal_compression == 8
        self.down1 = Stage(
            nn.Conv2d(BANDS_3D, c, 3, padding=1),
            *[Res2D(c, drop, norm) for _ in blocks],
            Downsample3D(c, spatial=2) if self.time8 else Downsample2D(c),
        )
        self.down2 = Stage(
            nn.Conv2d(c + flow2, 2 * c, 3, padding=1),
            *[Res3D(2 * c, 2 * c, 4, drop, norm) for _ in blocks],
            Downsample3D(2 * c, spatial=4),
        )
        self.connect_l1 = nn.Conv2d(config.w2_channels, flow, 3, padding=1) if flow2 else None
        self.connect_l2 = nn.Conv2d(BANDS_3D, flow, 3, padding=1) if flow3 else None
        attention = [FrameAttention(4 * c, SPATIAL_RATIO, norm)] if config.use_attention else []
        self.mid = Stage(
            Res3D(2 * c + flow3, 4 * c, SPATIAL_RATIO, drop, norm),
            *attention,
            Res3D(4 * c, 4 * c, SPATIAL_RATIO, drop, norm),
        )
        self.norm_out = Norm(4 * c, norm)
        self.conv_out = CausalConv3d(4 * c, 2 * config.latent_dim, SPATIAL_RATIO)
        self.wavelet_transform_in = HaarAnalysis(3, RGB)
        self.wavelet_transform_l1 = HaarAnalysis(3 if self.time8 else 2, RGB)
        self.wavelet_transform_l2 = HaarAnalysis(3, RGB)

    def forward(self, video: Tensor, clip: Clip) -> tuple[Tensor, Tensor, Tensor]:
        """Encodes (B, T, 3, H, W) in [-1, 1], T as the clip wants it, H and W multiples of 8.

        Returns:
            moments, and the video's own W(2) and W(3), at H/4 and H/8, all frames first.
        """
        w1 = self.wavelet_transform_in(clip.pair_up(video))
        low1 = w1[:, :, :RGB]
        w2 = self.wavelet_transform_l1(clip.pair_up(low1) if self.time8 else low1)
        w3 = self.wavelet_transform_l2(clip.pair_up(w2[:, :, :RGB]))
        hidden = self.down1(w1, clip)
        if self.connect_l1 is not None:
            hidden = torch.cat([hidden, per_frame(self.connect_l1, w2)], dim=2)
        hidden = self.down2(hidden, clip)
        if self.connect_l2 is not None:
            hidden = torch.cat([hidden, per_frame(self.connect_l2, w3)], dim=2)
        hidden = self.mid(hidden, clip)
        moments = self.conv_out(norm_silu(self.norm_out, hidden), clip)
        return moments, w2, w3
