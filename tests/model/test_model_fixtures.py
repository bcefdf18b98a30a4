"""Agreement with the published model: outputs on three small checkpoints, names and shapes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from wfvae.model.config import WFVAEConfig
from wfvae.model.distribution import DiagonalGaussian
from wfvae.model.vae import WFVAE

NAMES = ["4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear"]
AGREEMENT = {"rtol": 0, "atol": 1e-4}

ModelFactory = Callable[..., WFVAE]


@pytest.fixture(params=NAMES)
def case(
    request: pytest.FixtureRequest, reference_dir: Path, reference_model: ModelFactory
) -> tuple[WFVAE, dict[str, Tensor]]:
    expected = load_file(reference_dir / request.param / "expected.safetensors")
    return reference_model(request.param), expected


Case = tuple[WFVAE, dict[str, Tensor]]


def test_encoder_agrees_with_the_published_outputs(case: Case) -> None:
    model, expected = case
    output = model.encode(expected["video"])
    found = {name: getattr(output.latent_dist, name) for name in ("moments", "mean", "logvar")}
    for name, tensor in (found | {"encoder_w2": output.w2, "encoder_w3": output.w3}).items():
        torch.testing.assert_close(tensor, expected[name], **AGREEMENT)


def test_decoder_agrees_with_the_published_outputs(case: Case) -> None:
    model, expected = case
    output = model.decode(expected["mean"])
    torch.testing.assert_close(output.sample, expected["reconstruction"], **AGREEMENT)
    torch.testing.assert_close(output.w2, expected["decoder_w2"], **AGREEMENT)
    torch.testing.assert_close(output.w3, expected["decoder_w3"], **AGREEMENT)


def test_streams_agree_with_the_published_outputs(case: Case) -> None:
    model, expected = case
    posteriors = model.stream_encode(expected["video"].split(7, dim=2))
    moments = torch.cat([posterior.moments for posterior in posteriors], dim=2)
    torch.testing.assert_close(moments, expected["moments"], **AGREEMENT)
    video = torch.cat(list(model.stream_decode(expected["mean"].split(2, dim=2))), dim=2)
    torch.testing.assert_close(video, expected["reconstruction"], **AGREEMENT)


def test_forward_is_encode_then_decode(case: Case) -> None:
    model, expected = case
    encoded, decoded = model(expected["video"], sample_posterior=False)
    assert torch.equal(encoded.latent_dist.moments, model.encode(expected["video"]).latent_dist.moments)
    torch.testing.assert_close(decoded.sample, expected["reconstruction"], **AGREEMENT)
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    samples = [model(expected["video"], generator=seed)[1].sample for seed in seeds]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_names_and_shapes_are_those_of_the_released_model(reference_dir: Path) -> None:
    folder = reference_dir / "released-L-16ch"
    released = json.loads((folder / "state_dict_shapes.json").read_text())
    with torch.device("meta"):
        model = WFVAE(WFVAEConfig.from_json(folder / "config.json"))
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == released


def test_posterior_is_a_normal_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    moments = torch.randn(2, 6, 2, 3, 4, generator=generator, dtype=torch.float64)
    posterior = DiagonalGaussian(moments)
    reference = torch.distributions.Normal(moments[:, :3], torch.exp(moments[:, 3:] / 2))
    torch.testing.assert_close(posterior.std, reference.stddev)
    torch.testing.assert_close(posterior.var, reference.variance)
    assert torch.equal(posterior.mode(), moments[:, :3])
    standard = torch.distributions.Normal(moments.new_zeros(()), moments.new_ones(()))
    kl = torch.distributions.kl_divergence(reference, standard).sum(dim=(1, 2, 3, 4))
    torch.testing.assert_close(posterior.kl(), kl)
    draws = torch.stack([posterior.sample(generator) for _ in range(4000)])
    normal = (draws - posterior.mean) / posterior.std
    torch.testing.assert_close(normal.mean(0), torch.zeros_like(posterior.std), rtol=0, atol=0.1)
    torch.testing.assert_close(normal.std(0), torch.ones_like(posterior.std), rtol=0, atol=0.1)


def test_logvar_is_clamped_and_kl_is_not_computed_in_half_precision() -> None:
    moments = torch.zeros(1, 4, 1, 32, 32, dtype=torch.bfloat16)
    moments[:, 2], moments[:, 3] = -50.0, 50.0
    posterior = DiagonalGaussian(moments)
    assert (posterior.logvar.min().item(), posterior.logvar.max().item()) == (-30.0, 20.0)
    assert posterior.kl().dtype == torch.float32
    kl = DiagonalGaussian(torch.full((1, 4, 9, 33, 31), 0.01, dtype=torch.bfloat16)).kl().item()
    value = torch.tensor(0.01, dtype=torch.bfloat16).double().item()
    exact = 0.5 * 2 * 9 * 33 * 31 * (value**2 + torch.tensor(value).exp().item() - 1 - value)
    assert kl == pytest.approx(exact, rel=1e-2)  # computed in bfloat16, exp(0.01) - 1 - 0.01 would be 0


def test_latents_are_scaled_per_channel(small_model: ModelFactory) -> None:
    scale, shift = (0.5, 2.0, -4.0, 0.18215), (0.0, 1.0, -2.0, 0.5)
    model = small_model(scale=scale, shift=shift)
    z = torch.randn(2, 4, 3, 2, 2)
    scaled = model.scale_latents(z)
    for channel in range(4):
        torch.testing.assert_close(scaled[:, channel], (z[:, channel] - shift[channel]) * scale[channel])
    torch.testing.assert_close(model.unscale_latents(scaled), z)
    # Latents may have another precision than the model.
    assert model.scale_latents(z.bfloat16()).dtype == torch.bfloat16
