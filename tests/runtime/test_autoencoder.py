"""A bundle with the interface of diffusers' video autoencoders."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from wfvae.errors import InputError
from wfvae.metrics.torchvision_operators import make_torchvision_importable
from wfvae.model.vae import WFVAE
from wfvae.runtime import Bundle
from wfvae.runtime.autoencoder import BundleAutoencoder

NAME = "4x8x8-nearest-16ch"
BOUND = 1e-4


@pytest.fixture(scope="module")
def bundle(opened: Callable[..., Bundle]) -> Bundle:
    return opened(NAME)


@pytest.fixture(scope="module")
def vae(bundle: Bundle) -> BundleAutoencoder:
    return BundleAutoencoder(bundle)


def video(batch: int = 1, frames: int = 9) -> torch.Tensor:
    return torch.rand(batch, 3, frames, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_results_are_those_of_the_model_and_of_the_bundle(
    vae: BundleAutoencoder, bundle: Bundle, reference_model: Callable[..., WFVAE]
) -> None:
    model, x = reference_model(NAME), video(batch=2)
    latents = vae.encode(x).latent_dist.mode()
    assert (latents - model.encode(x).latent_dist.mode()).abs().max() < BOUND
    assert np.array_equal(latents[1].transpose(0, 1), bundle.encode(x[1].permute(1, 2, 3, 0)))
    (sample,) = vae.decode(latents, return_dict=False)  # type: ignore[misc]
    assert (sample - model.decode(latents).sample).abs().max() < BOUND
    assert torch.equal(vae(x).sample, sample)


def test_to_sets_type_and_device_of_the_results(bundle: Bundle) -> None:
    vae = BundleAutoencoder(bundle).to(torch.bfloat16)
    assert (vae.dtype, vae.device) == (torch.bfloat16, torch.device("cpu"))
    latents = vae.encode(video().bfloat16()).latent_dist.mode()
    assert latents.dtype == torch.bfloat16
    assert vae.decode(latents).sample.dtype == torch.bfloat16
    assert vae.decode(latents).sample.isfinite().all()


def test_moments_are_sampled_and_a_mean_alone_is_not(
    vae: BundleAutoencoder, exported: Callable[..., Path], reference_model: Callable[..., WFVAE]
) -> None:
    moments = BundleAutoencoder(exported(NAME, latents="moments"), provider="cpu", threads=1)
    posterior = moments.encode(video()).latent_dist
    expected = reference_model(NAME).encode(video()).latent_dist
    sampled = posterior.sample(torch.Generator().manual_seed(1))
    assert (sampled - expected.sample(torch.Generator().manual_seed(1))).abs().max() < BOUND
    with pytest.raises(InputError, match=r"the mean of the latents only; export it with --output moments"):
        vae.encode(video()).latent_dist.sample()


def test_wrong_shapes_are_refused(vae: BundleAutoencoder) -> None:
    with pytest.raises(InputError, match=r"expected \(B, 3, T, H, W\)"):
        vae.encode(torch.zeros(3, 9, 32, 24))
    with pytest.raises(InputError, match=r"expected \(B, 16, t, h, w\)"):
        vae.decode(torch.zeros(1, 4, 3, 4, 3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_pipeline_of_diffusers_decodes_through_a_bundle(
    vae: BundleAutoencoder, reference_model: Callable[..., WFVAE]
) -> None:
    pytest.importorskip("transformers")
    make_torchvision_importable("a pipeline of diffusers", "eval")
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=8,
        freq_dim=32,
        ffn_dim=16,
        num_layers=1,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = WanPipeline(None, None, vae, scheduler, transformer)
    pipe.set_progress_bar_config(disable=True)
    options = {
        "prompt_embeds": torch.randn(1, 4, 8),
        "negative_prompt_embeds": torch.randn(1, 4, 8),
        "height": 32,
        "width": 32,
        "num_frames": 9,
        "num_inference_steps": 2,
    }

    def run(**more: object) -> torch.Tensor:
        result: torch.Tensor = pipe(generator=torch.Generator().manual_seed(2), **options, **more).frames
        return result

    frames = run(output_type="pt")
    latents = run(output_type="latent")
    config = vae.config
    scale, shift = torch.tensor(config.latents_std), torch.tensor(config.latents_mean)
    unscaled = latents * scale.view(1, -1, 1, 1, 1) + shift.view(1, -1, 1, 1, 1)
    expected = (reference_model(NAME).decode(unscaled).sample / 2 + 0.5).clamp(0, 1)
    assert frames.shape == (1, 9, 3, 32, 32)
    assert (frames - expected.transpose(1, 2)).abs().max() < BOUND
