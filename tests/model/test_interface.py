"""What code for diffusers and for torch's own transformations of modules expects of the model."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad

from wfvae.errors import InputError
from wfvae.model.vae import WFVAE

ModelFactory = Callable[..., WFVAE]


@pytest.fixture(scope="module")
def model(small_model: ModelFactory) -> WFVAE:
    return small_model()


def video(frames: int = 5, seed: int = 0, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, 16, 24, generator=generator) * 2 - 1


# diffusers


def test_results_without_return_dict_are_tuples(model: WFVAE) -> None:
    x = video()
    encoded = model.encode(x)
    (posterior,) = model.encode(x, return_dict=False)
    assert torch.equal(posterior.moments, encoded.latent_dist.moments)
    z = posterior.mode()
    (sample,) = model.decode(z, return_dict=False)
    assert torch.equal(sample, model.decode(z, return_dict=True).sample)


def test_device_and_dtype_are_those_of_the_weights(model: WFVAE) -> None:
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    moved = copy.deepcopy(model).to("meta", torch.bfloat16)
    assert (moved.device, moved.dtype) == (torch.device("meta"), torch.bfloat16)


def test_latents_scaled_by_the_factors_of_diffusers_are_those_of_the_model(small_model: ModelFactory) -> None:
    model = small_model(scale=(0.5,), shift=(0.25,))
    z = torch.randn(1, 4, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    scaled = (z - model.config.shift_factor) * model.config.scaling_factor
    torch.testing.assert_close(scaled, model.scale_latents(z))


def test_streamed_posteriors_are_latents_for_decode(model: WFVAE) -> None:
    x = video(9)
    latents = torch.cat([posterior.mode() for posterior in model.stream_encode(x.split(4, dim=2))], dim=2)
    torch.testing.assert_close(latents, model.encode(x).latent_dist.mode())
    assert model.decode(latents).sample.shape == x.shape


# torch.func and torch.export


def test_functional_call_uses_the_given_weights(model: WFVAE, small_model: ModelFactory) -> None:
    other = small_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    weights = dict(other.named_parameters()) | dict(other.named_buffers())
    _, decoded = functional_call(model, weights, (video(),), {"sample_posterior": False})
    assert torch.equal(decoded.sample, other(video(), sample_posterior=False)[1].sample)
    with pytest.raises(InputError, match=r"Haar filter h_conv is a constant .*give named_parameters\(\)"):
        functional_call(model, model.state_dict(), (video(),))


def test_functional_gradients_are_those_of_autograd(small_model: ModelFactory) -> None:
    model = small_model(torch.float64)
    x = video().double()

    def loss(weights: dict[str, Tensor]) -> Tensor:
        _, decoded = functional_call(model, weights, (x,), {"sample_posterior": False})
        result: Tensor = (decoded.sample - x).square().mean()
        return result

    weights = dict(model.named_parameters())
    expected = torch.autograd.grad(loss(weights), list(weights.values()))
    gradients = grad(loss)({name: weight.detach() for name, weight in weights.items()})
    torch.testing.assert_close(tuple(gradients.values()), expected)


@pytest.mark.slow
def test_exported_program_equals_the_model_at_other_lengths(small_model: ModelFactory) -> None:
    model = small_model(encoder_num_resblocks=0, decoder_num_resblocks=1)
    count = torch.export.Dim("count", min=3, max=64)
    shapes = {"x": {2: 4 * count + 1}, "sample_posterior": None}
    with torch.no_grad():
        exported = torch.export.export(
            model, (video(17),), {"sample_posterior": False}, dynamic_shapes=shapes
        )
        program = exported.module()
        for frames in (13, 21):
            x = video(frames, seed=frames)
            encoded, decoded = program(x, sample_posterior=False)
            expected_encoded, expected = model(x, sample_posterior=False)
            torch.testing.assert_close(encoded.latent_dist.mode(), expected_encoded.latent_dist.mode())
            torch.testing.assert_close(decoded.sample, expected.sample)


@pytest.mark.slow
def test_step_is_exported_with_its_state(model: WFVAE) -> None:
    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, chunk: Tensor, state: dict[str, Tensor], start: Tensor
        ) -> tuple[Tensor, dict[str, Tensor]]:
            return self.model.encoder_step(chunk, state, start)

    first, second = video(8, batch=2).split(4, dim=2)
    state = model.initial_state("encoder", 2, 16, 24)
    with torch.no_grad():
        program = torch.export.export(Step(), (first, state, torch.tensor([True, True]))).module()
        _, state = program(first, state, torch.tensor([True, True]))
        continued = torch.tensor([False, True])  # the second row begins another stream
        moments, _ = program(second, state, continued)
        torch.testing.assert_close(moments, model.encoder_step(second, state, continued)[0])
