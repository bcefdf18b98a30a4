"""Model configuration: what a checkpoint's `config.json` says, as a validated, immutable object. No
torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from wfvae.errors import ConfigError

Interpolation = Literal["nearest", "trilinear"]
NormType = Literal["layernorm", "groupnorm"]
Preset = Literal["S", "M", "L", "tiny"]

LATENT_SCALE = 0.18215
"""Factor by which published latents are scaled before diffusion."""

GROUPNORM_GROUPS = 32

# The published `config.json` names eight building blocks; only two combinations exist, one per
# temporal compression. ("dowmsample" is the published spelling.)
_L2_BLOCKS = {
    "l2_dowmsample_block": "Spatial2xTime2x3DDownsample",
    "l2_downsample_wavelet": "HaarWaveletTransform3D",
    "l2_upsample_block": "Spatial2xTime2x3DUpsample",
    "l2_upsample_wavelet": "InverseHaarWaveletTransform3D",
}
_BLOCKS: dict[int, dict[str, str]] = {
    4: {
        "l1_dowmsample_block": "Downsample",
        "l1_downsample_wavelet": "HaarWaveletTransform2D",
        "l1_upsample_block": "Upsample",
        "l1_upsample_wavelet": "InverseHaarWaveletTransform2D",
        **_L2_BLOCKS,
    },
    8: {
        "l1_dowmsample_block": "Spatial2xTime2x3DDownsample",
        "l1_downsample_wavelet": "HaarWaveletTransform3D",
        "l1_upsample_block": "Spatial2xTime2x3DUpsample",
        "l1_upsample_wavelet": "InverseHaarWaveletTransform3D",
        **_L2_BLOCKS,
    },
}
# Keys whose only published value is this one.
_FIXED_KEYS: dict[str, Any] = {"_class_name": "WFVAEModel", "attention_type": "AttnBlock3DFix"}
_IGNORED_KEYS = frozenset({"_diffusers_version", "_name_or_path"})
# Ours alone: written only where they differ from the default, so that a standard model's file has
# the published keys and no others.
_EXTENSION_KEYS = ("energy_flow_l2", "energy_flow_l3")


@dataclass(frozen=True)
class WFVAEConfig:
    """Architecture of a WF-VAE. Field names are the keys of the published `config.json`, except
    `temporal_compression`.

    Raises `ConfigError` on construction if a value is out of range or two values contradict each
    other.
    """

    base_channels: int = 128
    """C of the paper: channels at H/2 in the decoder. S 128, M 160, L 192."""
    latent_dim: int = 4
    """Latent channels D."""
    temporal_compression: Literal[4, 8] = 4
    """Video frames per latent, r. Space is always compressed 8x8."""
    encoder_num_resblocks: int = 2
    """Residual blocks per encoder level."""
    decoder_num_resblocks: int = 2
    """Residual blocks per decoder level, before upsampling."""
    encoder_energy_flow_hidden_size: int = 128
    """Channels of the encoder's inflow paths (C_flow of the paper)."""
    decoder_energy_flow_hidden_size: int = 128
    """Channels of the decoder's outflow paths (C_flow of the paper)."""
    connect_res_layer_num: int = 1
    """Residual blocks in each outflow path."""
    use_attention: bool = True
    """Per-frame attention between the two middle residual blocks."""
    norm_type: NormType = "layernorm"
    """`layernorm` over channels at each position; `groupnorm` (ablation) mixes time and cannot be
    streamed.
    """
    t_interpolation: Interpolation = "trilinear"
    """Time upsampling in the decoder. `trilinear` looks one frame ahead, so a stream lags behind
    its input.
    """
    dropout: float = 0.0
    """Dropout in the residual blocks, active in training mode only."""
    scale: tuple[float, ...] = (LATENT_SCALE,)
    """Per-channel factor for diffusion: scaled = (latent - shift) * scale. One value serves all
    channels.
    """
    shift: tuple[float, ...] = (0.0,)
    """Per-channel offset, see `scale`."""
    energy_flow_l2: bool = True
    """The W(2) energy path, inflow and outflow (ablation, Table 4 of the paper)."""
    energy_flow_l3: bool = True
    """The W(3) energy path, inflow and outflow (ablation, Table 4 of the paper)."""

    def __post_init__(self) -> None:
        for name in (
            "base_channels",
            "latent_dim",
            "encoder_energy_flow_hidden_size",
            "decoder_energy_flow_hidden_size",
        ):
            _require_int(name, getattr(self, name), minimum=1)
        for name in ("encoder_num_resblocks", "decoder_num_resblocks", "connect_res_layer_num"):
            _require_int(name, getattr(self, name), minimum=0)
        for name in ("use_attention", "energy_flow_l2", "energy_flow_l3"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected true or false")
        _require_int("temporal_compression", self.temporal_compression, minimum=4)
        _require_choice("temporal_compression", self.temporal_compression, (4, 8))
        _require_choice("norm_type", self.norm_type, get_args(NormType))
        _require_choice("t_interpolation", self.t_interpolation, get_args(Interpolation))
        if (
            isinstance(self.dropout, bool)
            or not isinstance(self.dropout, (int, float))
            or not 0.0 <= self.dropout < 1.0
        ):
            raise ConfigError(f"dropout is {self.dropout!r}; expected a probability, 0 <= dropout < 1")
        for name in ("scale", "shift"):
            object.__setattr__(self, name, _float_tuple(name, getattr(self, name)))
            self._per_channel(name)
        if 0.0 in self.scale:
            raise ConfigError(
                f"scale is {self.scale}; expected no zero, since latents could not be scaled back"
            )
        if self.norm_type == "groupnorm":
            self._check_groupnorm_widths()

    @classmethod
    def preset(cls, name: Preset, **overrides: Any) -> WFVAEConfig:
        """The paper's S, M or L (Table 3; D = 4, C_flow = 128), or `tiny` for demos and tests.

        `overrides` replace single fields, for example `preset("L", latent_dim=16)`.
        """
        try:
            values = dict(_PRESETS[name])
        except KeyError:
            raise ConfigError(
                f"preset {name!r} does not exist; choose one of {', '.join(_PRESETS)}"
            ) from None
        unknown = set(overrides) - {f.name for f in fields(cls)}
        if unknown:
            raise ConfigError(f"preset override {', '.join(sorted(unknown))} is not a configuration field")
        return cls(**{**values, **overrides})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WFVAEConfig:
        """Reads the published keys. Raises `ConfigError` naming every unknown key and every
        unsupported block.
        """
        data = dict(data)
        problems: list[str] = []
        for key, value in _FIXED_KEYS.items():
            if key in data and data.pop(key) != value:
                problems.append(f"{key} must be {value!r}")
        blocks = {key: data.pop(key, _BLOCKS[4][key]) for key in _BLOCKS[4]}
        compression = next((r for r, wanted in _BLOCKS.items() if blocks == wanted), None)
        if compression is None:
            problems.append(f"the block keys {blocks} are neither the 4x8x8 nor the 8x8x8 combination")
        names = {f.name for f in fields(cls)} - {"temporal_compression"}
        unknown = sorted(set(data) - names - _IGNORED_KEYS)
        if unknown:
            problems.append(f"unknown keys: {', '.join(unknown)}")
        if problems:
            raise ConfigError("this is not a WF-VAE configuration: " + "; ".join(problems))
        values = {key: value for key, value in data.items() if key in names}
        return cls(temporal_compression=compression, **values)  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, path: str | Path) -> WFVAEConfig:
        """Reads a `config.json`. Raises `ConfigError` naming the file if it is unreadable or not a
        WF-VAE's.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read the model configuration {path}: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(
                f"cannot read the model configuration {path}: expected a JSON object, found"
                f" {type(data).__name__}"
            )
        try:
            return cls.from_dict(data)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The published keys and values, JSON-ready. `from_dict` reads it back to an equal object."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "temporal_compression"}
        for key in _EXTENSION_KEYS:
            if values[key]:
                del values[key]
        values["scale"], values["shift"] = list(self.scale), list(self.shift)
        return dict(sorted({**_FIXED_KEYS, **_BLOCKS[self.temporal_compression], **values}.items()))

    def with_changes(self, **changes: Any) -> WFVAEConfig:
        """A copy with some fields replaced, validated anew."""
        return replace(self, **changes)

    @property
    def latent_scale(self) -> tuple[float, ...]:
        """`scale`, one value per latent channel."""
        return self._per_channel("scale")

    @property
    def latent_shift(self) -> tuple[float, ...]:
        """`shift`, one value per latent channel."""
        return self._per_channel("shift")

    @property
    def w2_channels(self) -> int:
        """Channels of the coefficients W(2): 4 sub-bands (2-D) or 8 (3-D) of three colours."""
        return 12 if self.temporal_compression == 4 else 24

    def _per_channel(self, name: str) -> tuple[float, ...]:
        values: tuple[float, ...] = getattr(self, name)
        if len(values) == self.latent_dim:
            return values
        # The published 16-channel checkpoint lists four equal values; equal values can mean only
        # one thing.
        if values and len(set(values)) == 1:
            return values[:1] * self.latent_dim
        raise ConfigError(
            f"{name} has {len(values)} values for {self.latent_dim} latent channels; give one per channel, or"
            " one for all"
        )

    def _check_groupnorm_widths(self) -> None:
        c, flow_e, flow_d = (
            self.base_channels,
            self.encoder_energy_flow_hidden_size,
            self.decoder_energy_flow_hidden_size,
        )
        widths = {c, 2 * c, 4 * c}
        if self.energy_flow_l3:
            widths |= {2 * c + flow_e, 4 * c + flow_d}
        if self.energy_flow_l2:
            widths |= {4 * c + flow_d}
        if (self.energy_flow_l2 or self.energy_flow_l3) and self.connect_res_layer_num:
            widths |= {flow_d}
        bad = sorted(w for w in widths if w % GROUPNORM_GROUPS)
        if bad:
            raise ConfigError(
                f"norm_type 'groupnorm' needs channel counts divisible by {GROUPNORM_GROUPS}; this model has"
                f" {bad}"
            )


def _require_int(name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name} is {value!r}; expected an integer >= {minimum}")


def _require_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(map(str, choices))}")


def _float_tuple(name: str, value: object) -> tuple[float, ...]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = [value]
    if (
        isinstance(value, (list, tuple))
        and value
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
    ):
        numbers = tuple(float(v) for v in value)
        if all(math.isfinite(v) for v in numbers):
            return numbers
    raise ConfigError(f"{name} is {value!r}; expected a finite number or a list of them")


_PRESETS: dict[str, dict[str, Any]] = {
    "S": {"base_channels": 128},
    "M": {"base_channels": 160},
    "L": {"base_channels": 192},
    # Sized so that fp32 encode and decode run in real time's vicinity on two CPU cores; channels
    # stay multiples of 8.
    "tiny": {
        "base_channels": 16,
        "latent_dim": 16,
        "encoder_energy_flow_hidden_size": 16,
        "decoder_energy_flow_hidden_size": 16,
        "t_interpolation": "trilinear",
    },
}
