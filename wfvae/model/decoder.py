"""The decoder: latents to video, with the wavelet energy flowing out at two levels.

See the paper, section 3.2, eqs. 2 and 3.
"""

import torch
from torch import Tensor, nn

from wfvae.model.blocks import (
    FrameAttention,
    Norm,
    Res3D,
    Stage,
    Upsample2D,
    Upsample3D,
    norm_silu,
    per_frame,
)
from wfvae.model.causal import CausalConv3d, Clip, DelayLine
from wfvae.model.config import WFVAEConfig
from wfvae.model.encoder import BANDS_3D, RGB
from wfvae.model.haar import HaarSynthesis
from wfvae.spec.frames import SPATIAL_RATIO


class Decoder(nn.Module):
    """Network of `wfvae.model.vae.WFVAE.decode`."""

    def __init__(self, config: WFVAEConfig) -> None:
        super().__init__()
        c, norm, drop = config.base_channels, config.norm_type, config.dropout
        flow = config.decoder_energy_flow_hidden_size
        flow2, flow3 = flow * config.energy_flow_l2, flow * config.energy_flow_l3
        blocks = range(config.decoder_num_resblocks)
        self.time8 = config.temporal_compression == 8
        self.linear = config.t_interpolation == "trilinear"
        # Behind the first upsampling: a stream's delay, and how many of its frames are the head.
        lag1, head1 = (1, 3) if self.linear else (0, 2)

        def outflow(spatial: int, bands: int) -> Stage:
            residuals = [Res3D(flow, flow, spatial, drop, norm) for _ in range(config.connect_res_layer_num)]
            return Stage(*residuals, nn.Conv2d(flow, bands, 3, padding=1))

        self.conv_in = CausalConv3d(config.latent_dim, 4 * c, SPATIAL_RATIO)
        attention = [FrameAttention(4 * c, SPATIAL_RATIO, norm)] if config.use_attention else []
        self.mid = Stage(
            Res3D(4 * c, 4 * c, SPATIAL_RATIO, drop, norm),
            *attention,
            Res3D(4 * c, 4 * c + flow3, SPATIAL_RATIO, drop, norm),
        )
        self.up2 = Stage(
            *[Res3D(4 * c, 4 * c, SPATIAL_RATIO, drop, norm) for _ in blocks],
            Upsample3D(4 * c, SPATIAL_RATIO, self.linear, head=1, lag=0),
            Res3D(4 * c, 4 * c + flow2, 4, drop, norm),
        )
        widths = [4 * c, *([2 * c] * config.decoder_num_resblocks)]
        last = widths[-1]
        self.up1 = Stage(
            *[Res3D(widths[i], widths[i + 1], 4, drop, norm) for i in blocks],
            Upsample3D(last, 4, self.linear, head1, lag1) if self.time8 else Upsample2D(last),
            Res3D(last, 2 * c, 2, drop, norm),
        )
        self.layer = Stage(Res3D(2 * c, c, 2, drop, norm), Res3D(c, c, 2, drop, norm))
        self.connect_l1 = outflow(4, config.w2_channels) if flow2 else None
        self.connect_l2 = outflow(SPATIAL_RATIO, BANDS_3D) if flow3 else None
        self.norm_out = Norm(c, norm)
        self.conv_out = nn.Conv2d(c, BANDS_3D, 3, padding=1)
        self.inverse_wavelet_transform_out = HaarSynthesis(3, RGB)
        self.inverse_wavelet_transform_l1 = HaarSynthesis(3 if self.time8 else 2, RGB)
        self.inverse_wavelet_transform_l2 = HaarSynthesis(3, RGB)
        self.delay_l2 = DelayLine(RGB, 4) if self.linear and flow3 else None
        self.delay_l1 = DelayLine(RGB, 2) if self.linear and self.time8 and (flow2 or flow3) else None
        self.main_channels = 4 * c
        self.w2_channels = config.w2_channels

    @property
    def delay(self) -> int:
        """Video frames by which a stream's output lags."""
        if not self.linear:
            return 0
        return 6 if self.time8 else 2

    def forward(self, latents: Tensor, clip: Clip) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Decodes (B, t, D, h, w).

        Returns:
            video, and estimates of W(2) and W(3), None without a path, all frames first.
        """
        hidden = self.mid(self.conv_in(latents, clip), clip)
        hidden, low2, w3 = self._outflow_l2(hidden, clip)
        hidden = self.up2(hidden, clip)
        hidden, low1, w2 = self._outflow_l1(hidden, low2, clip)
        hidden = self.up1(hidden, clip)
        hidden = self.layer(hidden, clip)
        bands = per_frame(self.conv_out, norm_silu(self.norm_out, hidden))
        video = self.inverse_wavelet_transform_out(_add_low(bands, low1))
        return clip.trim_pairs(video), w2, w3

    def _outflow_l2(self, hidden: Tensor, clip: Clip) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Estimates W(3) from the last C_flow channels, and synthesises it: 3 channels at H/4."""
        if self.connect_l2 is None:
            return hidden, None, None
        w3 = self.connect_l2(hidden[:, :, self.main_channels :], clip)
        low2 = clip.trim_pairs(self.inverse_wavelet_transform_l2(w3))
        if self.delay_l2 is not None:
            low2 = self.delay_l2(low2, clip)
        return hidden[:, :, : self.main_channels], low2, w3

    def _outflow_l1(
        self, hidden: Tensor, low2: Tensor | None, clip: Clip
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Estimates W(2), adds `low2` to its low band (eq. 2), synthesises 3 channels at H/2."""
        estimate: Tensor | None = None
        if self.connect_l1 is not None:
            estimate = _add_low(self.connect_l1(hidden[:, :, self.main_channels :], clip), low2)
            hidden = hidden[:, :, : self.main_channels]
            w2 = estimate
        elif low2 is not None:
            # Without the path's own estimate its high bands are zero.
            silent = low2.new_zeros(()).expand(*low2.shape[:2], self.w2_channels - RGB, *low2.shape[3:])
            w2 = torch.cat([low2, silent], dim=2)
        else:
            return hidden, None, None
        low1 = self.inverse_wavelet_transform_l1(w2)
        if self.time8:
            low1 = clip.trim_pairs(low1)
        if self.delay_l1 is not None:
            low1 = self.delay_l1(low1, clip)
        return hidden, low1, estimate


def _add_low(bands: Tensor, low: Tensor | None) -> Tensor:
    """Adds `low` to the first three channels (the LL or LLL band)."""
    if low is None:
        return bands
    return torch.cat([bands[:, :, :RGB] + low, bands[:, :, RGB:]], dim=2)
