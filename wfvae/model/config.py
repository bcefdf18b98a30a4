"""Model configuration: a checkpoint's `config.json` as a validated, immutable object. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, structs

from wfvae.errors import ConfigError
from wfvae.spec.bounded import read_json
from wfvae.spec.records import check_fields

Interpolation = Literal["nearest", "trilinear"]
NormType = Literal["layernorm", "groupnorm"]
Preset = Literal["S", "M", "L", "tiny"]
Positive = Annotated[int, Meta(ge=1, le=4096)]
Count = Annotated[int, Meta(ge=0, le=64)]
Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]
Finites = Annotated[tuple[Finite, ...], Meta(min_length=1)]

LATENT_SCALE = 0.18215
"""Factor by which published latents are scaled before diffusion."""

GROUPNORM_GROUPS = 32


# The published `config.json` names eight building blocks; only two combinations exist, one per
# temporal compression. ("dowmsample" is the published spelling.)
_BLOCK_KEYS = ("dowmsample_block", "downsample_wavelet", "upsample_block", "upsample_wavelet")
_SPATIAL_BLOCKS = ("Downsample", "HaarWaveletTransform2D", "Upsample", "InverseHaarWaveletTransform2D")
_TEMPORAL_BLOCKS = (
    "Spatial2xTime2x3DDownsample",
    "HaarWaveletTransform3D",
    "Spatial2xTime2x3DUpsample",
    "InverseHaarWaveletTransform3D",
)
_L2_BLOCKS = {f"l2_{key}": name for key, name in zip(_BLOCK_KEYS, _TEMPORAL_BLOCKS, strict=True)}
_BLOCKS = {
    ratio: {f"l1_{key}": name for key, name in zip(_BLOCK_KEYS, names, strict=True)} | _L2_BLOCKS
    for ratio, names in ((4, _SPATIAL_BLOCKS), (8, _TEMPORAL_BLOCKS))
}
# Keys whose only published value is this one.
_FIXED_KEYS = {"_class_name": "WFVAEModel", "attention_type": "AttnBlock3DFix"}
_IGNORED_KEYS = frozenset({"_diffusers_version", "_name_or_path"})
# Not published: written only where they differ from the default.
_EXTENSION_KEYS = ("energy_flow_l2", "energy_flow_l3")


class WFVAEConfig(Struct, frozen=True):
    """Architecture of a WF-VAE.

    Field names are the keys of the published `config.json`, except `temporal_compression`. Raises
    `ConfigError` on construction if a value is out of range or two values contradict each other.
    """

    base_channels: Positive = 128
    """C of the paper: channels at H/2 in the decoder. S 128, M 160, L 192."""
    latent_dim: Positive = 4
    """Latent channels D."""
    temporal_compression: Literal[4, 8] = 4
    """Video frames per latent, r. Space is always compressed 8x8."""
    encoder_num_resblocks: Count = 2
    """Residual blocks per encoder level."""
    decoder_num_resblocks: Count = 2
    """Residual blocks per decoder level, before upsampling."""
    encoder_energy_flow_hidden_size: Positive = 128
    """Channels of the encoder's inflow paths (C_flow of the paper)."""
    decoder_energy_flow_hidden_size: Positive = 128
    """Channels of the decoder's outflow paths (C_flow of the paper)."""
    connect_res_layer_num: Count = 1
    """Residual blocks in each outflow path."""
    use_attention: bool = True
    """Per-frame attention between the two middle residual blocks."""
    norm_type: NormType = "layernorm"
    """`layernorm` over channels at each position; `groupnorm` (ablation) cannot be streamed."""
    t_interpolation: Interpolation = "trilinear"
    """Time upsampling in the decoder. `trilinear` looks one frame ahead, so streams lag behind."""
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Dropout in the residual blocks, active in training mode only."""
    scale: Finites = (LATENT_SCALE,)
    """For diffusion: scaled = (latent - shift) * scale, one value per channel or one for all."""
    shift: Finites = (0.0,)
    """Per-channel offset, see `scale`."""
    energy_flow_l2: bool = True
    """The W(2) energy path, inflow and outflow (ablation, Table 4 of the paper)."""
    energy_flow_l3: bool = True
    """The W(3) energy path, inflow and outflow (ablation, Table 4 of the paper)."""

    def __post_init__(self) -> None:
        for name in ("scale", "shift"):
            value = getattr(self, name)
            if isinstance(value, int | float):
                structs.force_setattr(self, name, (value,))
        check_fields(self, ConfigError)
        for name in ("scale", "shift"):
            self._per_channel(name)
        if 0.0 in self.scale:
            raise ConfigError(f"scale is {self.scale}; expected no zero: latents could not be scaled back")
        if self.norm_type == "groupnorm":
            self._check_groupnorm_widths()

    @classmethod
    def preset(cls, name: Preset, **overrides: Any) -> WFVAEConfig:
        """Returns the paper's S, M or L (Table 3), or `tiny`; `overrides` replace single fields.

        Example:
            >>> config = WFVAEConfig.preset("L", latent_dim=16)
            >>> config.base_channels, config.latent_dim
            (192, 16)
        """
        if name not in _PRESETS:
            raise ConfigError(f"preset {name!r} does not exist; choose one of {', '.join(_PRESETS)}")
        unknown = set(overrides) - set(cls.__struct_fields__)
        if unknown:
            raise ConfigError(f"preset override {', '.join(sorted(unknown))} is not a configuration field")
        return cls(**{**_PRESETS[name], **overrides})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WFVAEConfig:
        """Reads the published keys. Raises `ConfigError` with all unknown or unsupported ones."""
        values = {key: value for key, value in data.items() if key not in _IGNORED_KEYS}
        problems: list[str] = []
        for key, value in _FIXED_KEYS.items():
            if values.pop(key, value) != value:
                problems.append(f"{key} must be {value!r}")
        blocks = {key: values.pop(key, default) for key, default in _BLOCKS[4].items()}
        compression = next((ratio for ratio, wanted in _BLOCKS.items() if blocks == wanted), None)
        if compression is None:
            problems.append(f"the block keys {blocks} are neither the 4x8x8 nor the 8x8x8 combination")
        unknown = sorted(values.keys() - (set(cls.__struct_fields__) - {"temporal_compression"}))
        if unknown:
            problems.append(f"unknown keys: {', '.join(unknown)}")
        if problems:
            raise ConfigError("this is not a WF-VAE configuration: " + "; ".join(problems))
        return cls(**values, temporal_compression=compression)  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, path: str | Path) -> WFVAEConfig:
        """Reads a `config.json`. Raises `ConfigError` that names the file."""
        try:
            return cls.from_dict(read_json(Path(path), ConfigError))
        except ConfigError as error:
            raise ConfigError(f"cannot read the model configuration {path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Returns the published keys and values, JSON-ready. `from_dict` reads them back."""
        values = structs.asdict(self) | {"scale": list(self.scale), "shift": list(self.shift)}
        blocks = _BLOCKS[values.pop("temporal_compression")]
        for key in _EXTENSION_KEYS:
            if values[key]:
                del values[key]
        return dict(sorted({**_FIXED_KEYS, **blocks, **values}.items()))

    @property
    def latent_scale(self) -> tuple[float, ...]:
        """`scale`, one value per latent channel."""
        return self._per_channel("scale")

    @property
    def latent_shift(self) -> tuple[float, ...]:
        """`shift`, one value per latent channel."""
        return self._per_channel("shift")

    @property
    def scaling_factor(self) -> float:
        """`scale` as one number, as in diffusers' configurations.

        Raises:
            ConfigError: channels have different ones.
        """
        return self._for_all_channels("scale")

    @property
    def shift_factor(self) -> float:
        """`shift` as one number, as in diffusers' configurations: (latent - shift) * scale.

        Raises:
            ConfigError: channels have different ones.
        """
        return self._for_all_channels("shift")

    @property
    def w2_channels(self) -> int:
        """Channels of the coefficients W(2): 4 sub-bands (2-D) or 8 (3-D) of three colours."""
        return 12 if self.temporal_compression == 4 else 24

    def _per_channel(self, name: str) -> tuple[float, ...]:
        values: tuple[float, ...] = getattr(self, name)
        if len(values) == self.latent_dim:
            return values
        if len(set(values)) == 1:  # the published 16-channel checkpoint lists four equal ones
            return values[:1] * self.latent_dim
        problem = f"{name} has {len(values)} values for {self.latent_dim} latent channels"
        raise ConfigError(f"{problem}; give one per channel, or one for all")

    def _for_all_channels(self, name: str) -> float:
        values: tuple[float, ...] = getattr(self, name)
        if len(set(values)) > 1:
            several = f"{name} differs between the latent channels: {values}"
            raise ConfigError(f"{several}; use WFVAE.scale_latents and unscale_latents")
        return values[0]

    def _check_groupnorm_widths(self) -> None:
        widths = ["base_channels"]  # all others are sums of multiples of these
        if self.energy_flow_l3:
            widths.append("encoder_energy_flow_hidden_size")
        if self.energy_flow_l2 or self.energy_flow_l3:
            widths.append("decoder_energy_flow_hidden_size")
        for name in widths:
            if getattr(self, name) % GROUPNORM_GROUPS:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; norm_type 'groupnorm' needs numbers of channels"
                    f" divisible by {GROUPNORM_GROUPS}"
                )


_PRESETS: dict[str, dict[str, Any]] = {
    "S": {"base_channels": 128},
    "M": {"base_channels": 160},
    "L": {"base_channels": 192},
    # Sized for fp32 near real time on two CPU cores; channels stay multiples of 8.
    "tiny": {
        "base_channels": 16,
        "latent_dim": 16,
        "encoder_energy_flow_hidden_size": 16,
        "decoder_energy_flow_hidden_size": 16,
    },
}
