"""The 3-D PatchGAN: its shape, its size, its first weights, and what it does with small clips."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wfvae.errors import InputError
from wfvae.train.discriminator import PatchDiscriminator3D
from wfvae.train.losses import generator_loss, hinge_discriminator_loss


@pytest.fixture(scope="module")
def published() -> PatchDiscriminator3D:
    """With all defaults; tests that share it do not change it."""
    return PatchDiscriminator3D()


def small(base: int = 4, **options: int) -> PatchDiscriminator3D:
    return PatchDiscriminator3D(base, **options)


def clip(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_default_layers_are_the_published_ones(published: PatchDiscriminator3D) -> None:
    convolutions = [m for m in published.modules() if isinstance(m, nn.Conv3d)]
    assert [(m.in_channels, m.out_channels, m.stride, m.bias is not None) for m in convolutions] == [
        (3, 64, (2, 2, 2), True),
        (64, 128, (2, 2, 2), False),
        (128, 256, (1, 2, 2), False),
        (256, 512, (1, 2, 2), False),
        (512, 512, (1, 1, 1), False),
        (512, 1, (1, 1, 1), True),
    ]
    assert {(m.kernel_size, m.padding) for m in convolutions} == {((3, 3, 3), (1, 1, 1))}
    kinds = [type(m).__name__ for m in published.modules() if not list(m.children())]
    block = ["Conv3d", "BatchNorm3d", "LeakyReLU", "Dropout"]
    assert kinds == ["Conv3d", "LeakyReLU", *block * 4, "Conv3d"]
    assert {m.negative_slope for m in published.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}
    assert {m.p for m in published.modules() if isinstance(m, nn.Dropout)} == {0.3}


def test_channels_stop_at_eight_times_the_first() -> None:
    convolutions = [m for m in small(layers=6).blocks.modules() if isinstance(m, nn.Conv3d)]
    assert [m.out_channels for m in convolutions] == [8, 16, 32, 32, 32, 32]


@settings(max_examples=15)
@given(st.integers(1, 9), st.integers(1, 70), st.integers(1, 70), st.integers(1, 5))
def test_every_patch_has_one_logit(frames: int, height: int, width: int, layers: int) -> None:
    """Any size in eval mode. Time is halved by the first two layers, space by all, and what is left
    over makes a patch.
    """
    discriminator = small(layers=layers, base=1).eval()
    time, space = 2 ** min(layers, 2), 2**layers
    expected = (math.ceil(frames / time), math.ceil(height / space), math.ceil(width / space))
    assert discriminator.patches(frames, height, width) == expected
    assert discriminator(clip(2, 3, frames, height, width)).shape == (2, 1, *expected)


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_short_clip_gives_gradients_for_every_weight_and_frame(frames: int) -> None:
    """A step on one clip of 32x32: finite, with a gradient for every weight and for the clip."""
    discriminator = small()
    real, fake = clip(1, 3, frames, 32, 32), clip(1, 3, frames, 32, 32, seed=1).requires_grad_()
    hinge_discriminator_loss(discriminator(real), discriminator(fake)).backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        # Inside the margin, real and reconstructed clips pull the last bias equally, in opposite
        # directions.
        assert parameter.grad.any() or name == "head.bias"
    generator_loss(discriminator(fake)).backward()
    assert fake.grad is not None
    assert all(fake.grad[:, :, t].any() for t in range(frames)), "every frame is judged"


def test_logits_agree_with_the_layers_written_out() -> None:
    """Eval mode, in float64, by unfolding each convolution into products."""
    discriminator = small(layers=2, base=2).double().eval()
    for norm in discriminator.modules():
        if isinstance(norm, nn.BatchNorm3d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(clip(norm.num_features))
            norm.running_var.copy_(clip(norm.num_features, seed=1).abs() + 0.5)
    weights = discriminator.state_dict()

    def convolve(x: Tensor, name: str, stride: tuple[int, int, int]) -> Tensor:
        padded = nn.functional.pad(x, (1,) * 6)
        patches = padded.unfold(2, 3, stride[0]).unfold(3, 3, stride[1]).unfold(4, 3, stride[2])
        return torch.einsum("bcthwijk,ocijk->bothw", patches, weights[f"{name}.weight"])

    def channels(values: Tensor) -> Tensor:
        return values.view(1, -1, 1, 1, 1)

    video = clip(2, 3, 5, 9, 8).double()
    x = convolve(video, "stem.0", (2, 2, 2)) + channels(weights["stem.0.bias"])
    x = torch.where(x > 0, x, 0.2 * x)
    for index, stride in enumerate([(2, 2, 2), (1, 1, 1)]):
        x = convolve(x, f"blocks.{index}.0", stride)
        norm = {
            k: channels(weights[f"blocks.{index}.1.{k}"])
            for k in ("running_mean", "running_var", "weight", "bias")
        }
        x = (x - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt() * norm["weight"] + norm["bias"]
        x = torch.where(x > 0, x, 0.2 * x)
    x = convolve(x, "head", (1, 1, 1)) + channels(weights["head.bias"])
    torch.testing.assert_close(discriminator(video), x, rtol=1e-10, atol=1e-12)


def test_first_weights_are_normal_around_their_means(published: PatchDiscriminator3D) -> None:
    drawn = []
    for module in published.modules():
        if isinstance(module, nn.Conv3d | nn.BatchNorm3d):
            mean = 1.0 if isinstance(module, nn.BatchNorm3d) else 0.0
            drawn.append((module.weight.detach() - mean).flatten())
            assert module.bias is None or not module.bias.any()
            count = module.weight.numel()
            assert abs(drawn[-1].mean().item()) < 5 * 0.02 / count**0.5
            assert drawn[-1].std().item() == pytest.approx(0.02, rel=5 / (2 * count) ** 0.5)
    values = torch.cat(drawn)[:1_000_000] / 0.02
    # A normal distribution's shares within 1, 2 and 3 standard deviations.
    for width, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert (values.abs() < width).double().mean().item() == pytest.approx(share, abs=0.002)


def test_weights_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, same, other = (small(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    drawn = [name for name, tensor in first.items() if not torch.equal(tensor, other[name])]
    assert drawn == [name for name in first if name.endswith("weight")]


def test_one_patch_in_training_is_refused() -> None:
    discriminator, tiny = small(), clip(1, 3, 4, 16, 16)
    expected = "a batch of 1 clip of 4 frames of 16x16 leaves the discriminator one patch"
    with pytest.raises(InputError, match=expected):
        discriminator(tiny)
    for enough in (clip(2, 3, 4, 16, 16), clip(1, 3, 5, 16, 16), clip(1, 3, 4, 16, 17)):
        assert discriminator(enough).isfinite().all()
    assert discriminator.eval()(tiny).shape == (1, 1, 1, 1, 1)
