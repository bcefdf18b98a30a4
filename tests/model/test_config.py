"""Configurations: presets, the published keys, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from wfvae.errors import ConfigError, WFVAEError
from wfvae.model.config import LATENT_SCALE, WFVAEConfig
from wfvae.model.vae import WFVAE

# Table 3 of the paper (D = 4, C_flow = 128), in millions: encoder, decoder.
TABLE_3 = {"S": (38.2, 108.3), "M": (58.9, 164.4), "L": (84.1, 232.2)}


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", TABLE_3)
def test_presets_have_the_parameters_of_table_3(name: str) -> None:
    with torch.device("meta"):
        model = WFVAE(WFVAEConfig.preset(name))
    millions = tuple(round(parameters(half) / 1e6, 1) for half in (model.encoder, model.decoder))
    assert millions == TABLE_3[name]


def test_preset_with_overrides_replaces_single_fields() -> None:
    config = WFVAEConfig.preset("L", latent_dim=16, temporal_compression=8)
    assert (config.base_channels, config.latent_dim, config.temporal_compression) == (192, 16, 8)


def test_unknown_preset_or_override_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"preset 'XL' does not exist; choose one of S, M, L, tiny"):
        WFVAEConfig.preset("XL")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="override channels, width is not"):
        WFVAEConfig.preset("S", width=1, channels=2)


@pytest.mark.parametrize(
    "folder", ["4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear", "released-L-16ch"]
)
def test_published_file_round_trips(folder: str, reference_dir: Path) -> None:
    path = reference_dir / folder / "config.json"
    published = json.loads(path.read_text())
    config = WFVAEConfig.from_json(path)
    del published["_diffusers_version"]
    assert config.to_dict() == published
    assert WFVAEConfig.from_dict(config.to_dict()) == config
    assert config.latent_scale == (LATENT_SCALE,) * config.latent_dim


def test_four_equal_scales_serve_sixteen_channels() -> None:
    config = WFVAEConfig(latent_dim=16, scale=[LATENT_SCALE] * 4, shift=(0, 0, 0, 0))  # type: ignore[arg-type]
    assert config.latent_scale == (LATENT_SCALE,) * 16
    assert config.latent_shift == (0.0,) * 16
    with pytest.raises(ConfigError, match="scale has 4 values for 16 latent channels"):
        WFVAEConfig(latent_dim=16, scale=(1.0, 2.0, 3.0, 4.0))


def test_factors_of_diffusers_are_numbers_where_channels_agree() -> None:
    config = WFVAEConfig(scale=(0.5, 0.5, 0.5, 0.5), shift=(0.25,))
    assert (config.scaling_factor, config.shift_factor) == (0.5, 0.25)
    assert WFVAEConfig().scaling_factor == LATENT_SCALE
    several = WFVAEConfig(scale=(1.0, 2.0, 3.0, 4.0), shift=(1.0, 2.0, 3.0, 4.0))
    with pytest.raises(ConfigError, match=r"scale differs .*use WFVAE.scale_latents and unscale_latents"):
        several.scaling_factor  # noqa: B018
    with pytest.raises(ConfigError, match="shift differs"):
        several.shift_factor  # noqa: B018


@given(
    st.builds(
        WFVAEConfig,
        base_channels=st.integers(1, 512),
        latent_dim=st.integers(4, 32),
        temporal_compression=st.sampled_from([4, 8]),
        t_interpolation=st.sampled_from(["nearest", "trilinear"]),
        use_attention=st.booleans(),
        dropout=st.floats(0, 0.99),
        scale=st.floats(1e-3, 1e3).map(lambda v: (v,)),
        energy_flow_l2=st.booleans(),
        energy_flow_l3=st.booleans(),
    )
)
def test_any_configuration_round_trips_through_json(config: WFVAEConfig) -> None:
    assert WFVAEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"base_channels": 0}, "base_channels is 0; expected an integer >= 1"),
    ({"base_channels": True}, "base_channels is True; expected an integer"),
    ({"latent_dim": 4.5}, "latent_dim is 4.5; expected an integer"),
    ({"encoder_num_resblocks": -1}, "encoder_num_resblocks is -1; expected an integer >= 0"),
    ({"temporal_compression": 2}, "temporal_compression is 2; expected one of 4, 8"),
    ({"temporal_compression": 4.5}, "temporal_compression is 4.5; expected one of 4, 8"),
    ({"norm_type": "batchnorm"}, "norm_type is 'batchnorm'; expected one of 'groupnorm', 'layernorm'"),
    ({"t_interpolation": "cubic"}, "t_interpolation is 'cubic'; expected one of 'nearest', 'trilinear'"),
    ({"dropout": 1.0}, "dropout is 1.0; expected a number < 1"),
    ({"dropout": float("nan")}, "dropout is nan; expected a number >= 0"),
    ({"dropout": "0"}, "dropout is '0'; expected a number"),
    ({"energy_flow_l2": 1}, "energy_flow_l2 is 1; expected true or false"),
    ({"scale": "0.18"}, "scale is '0.18'; expected a list"),
    ({"scale": ()}, r"scale is \(\); expected a list of length >= 1"),
    ({"scale": (0.0,)}, r"scale is \(0.0,\); expected no zero"),
    ({"shift": float("nan")}, r"shift\[0\] is nan; expected a number"),
    ({"latent_dim": 8, "shift": (0.0, 1.0)}, "shift has 2 values for 8 latent channels"),
    ({"norm_type": "groupnorm", "base_channels": 12}, "base_channels is 12; .* divisible by 32"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_value_out_of_range_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        WFVAEConfig(**values)


@pytest.mark.parametrize("flow", ["encoder", "decoder"])
def test_groupnorm_needs_divisible_widths_of_energy_flows_that_exist(flow: str) -> None:
    name = f"{flow}_energy_flow_hidden_size"
    with pytest.raises(ConfigError, match=f"{name} is 48; .* divisible by 32"):
        WFVAEConfig(norm_type="groupnorm", **{name: 48})  # type: ignore[arg-type]
    without = {"energy_flow_l2": False, "energy_flow_l3": False, name: 48}
    config = WFVAEConfig(norm_type="groupnorm", **without)  # type: ignore[arg-type]
    with torch.device("meta"):
        WFVAE(config)


def test_from_dict_lists_everything_that_is_wrong() -> None:
    wrong = {"_class_name": "AutoencoderKL", "l1_upsample_block": "Other", "depth": 3, "width": 4}
    with pytest.raises(ConfigError) as raised:
        WFVAEConfig.from_dict(WFVAEConfig().to_dict() | wrong)
    for part in ("_class_name must be 'WFVAEModel'", "'l1_upsample_block': 'Other'", "depth, width"):
        assert part in str(raised.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"depth": 3}', '{"dropout": 2}', "\xff", None])
def test_unreadable_file_is_named(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"cannot read the model configuration .*config\.json: "):
        WFVAEConfig.from_json(path)


def test_changed_copy_is_validated_and_the_original_immutable() -> None:
    config = WFVAEConfig()
    assert replace(config, latent_dim=8).latent_dim == 8
    with pytest.raises(ConfigError):
        replace(config, latent_dim=0)
    with pytest.raises(AttributeError):
        config.latent_dim = 8  # type: ignore[misc]
    assert issubclass(WFVAEError, ValueError)
