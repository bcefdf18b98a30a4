"""The benchmarks' published form computes the same numbers in the published way, and leaves nothing
behind.
"""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
import torch
from torch import nn

from wfvae.model.vae import WFVAE

ModelFactory = Callable[..., WFVAE]
Form = Callable[[WFVAE], AbstractContextManager[WFVAE]]
NAMES = ["4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear"]


@pytest.fixture
def reference_form(monkeypatch: pytest.MonkeyPatch) -> Form:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    form: Form = importlib.import_module("harness.reference_form").reference_form
    return form


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("latents", [1, 3])
def test_published_form_gives_the_same_numbers_by_other_operations(
    name: str, latents: int, reference_form: Form, reference_model: ModelFactory
) -> None:
    model = reference_model(name)
    video = torch.rand(2, 3, 1 + (latents - 1) * model.config.temporal_compression, 16, 24) * 2 - 1
    kinds: set[tuple[str, bool]] = set()

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        # Activations within the network: (B, T, C, H, W), in memory (B, C, T, H, W).
        x = inputs[0].movedim(2, 1) if inputs[0].ndim == 5 else inputs[0]
        kinds.add((type(module).__name__, x.is_contiguous()))

    ours = model(video, sample_posterior=False)
    layers = (*model.encoder.down2, *model.decoder.layer, model.encoder.down1[1])
    with reference_form(model), ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(note))
        theirs = model(video, sample_posterior=False)
    torch.testing.assert_close(theirs[0].latent_dist.moments, ours[0].latent_dist.moments, rtol=0, atol=1e-4)
    for field in ("w2", "w3"):
        torch.testing.assert_close(getattr(theirs[0], field), getattr(ours[0], field), rtol=0, atol=1e-4)
    for field in ("sample", "w2", "w3"):
        torch.testing.assert_close(getattr(theirs[1], field), getattr(ours[1], field), rtol=0, atol=1e-4)
    assert not torch.equal(theirs[1].sample, ours[1].sample)  # it did something else
    assert kinds >= {("Res2D", True), ("Res3D", True), ("Downsample3D", True)}
    assert all(contiguous for _, contiguous in kinds)


def test_model_after_an_error_in_published_form_is_restored(
    reference_form: Form, small_model: ModelFactory
) -> None:
    model, video = small_model(), torch.rand(1, 3, 5, 16, 16)
    strides = {name: parameter.stride() for name, parameter in model.named_parameters()}
    before = model(video, sample_posterior=False)[1].sample
    with pytest.raises(RuntimeError, match="stop"), reference_form(model):
        assert all(parameter.is_contiguous() for parameter in model.parameters())
        raise RuntimeError("stop")
    assert {name: parameter.stride() for name, parameter in model.named_parameters()} == strides
    assert torch.equal(model(video, sample_posterior=False)[1].sample, before)
