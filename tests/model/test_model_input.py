"""Bad input is refused by name; precisions; gradients."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from wfvae.errors import InputError, StateError, StreamingError
from wfvae.model.blocks import Norm
from wfvae.model.vae import WFVAE

ModelFactory = Callable[..., WFVAE]


@pytest.fixture(scope="module")
def model(small_model: ModelFactory) -> WFVAE:
    return small_model()


def video(*shape: int, value: float = 0.0) -> Tensor:
    return torch.full(shape or (1, 3, 5, 16, 16), value)


def latents(*shape: int) -> Tensor:
    return torch.zeros(shape or (1, 4, 2, 2, 2))


def with_nan(tensor: Tensor) -> Tensor:
    tensor[0, 1, 0, 1, 1] = torch.nan
    return tensor


NOT_FINITE = "values that are NaN or infinite"
BAD_VIDEOS: dict[str, tuple[Any, str]] = {
    "no tensor": ([1, 2], r"x is a list; expected a torch.Tensor of shape \(B, 3, T, H, W\)"),
    "rank": (video(3, 5, 16, 16), r"x has shape \(3, 5, 16, 16\); expected \(B, 3, T, H, W\)"),
    "integers": (video().byte(), r"x is torch.uint8; .* convert uint8 frames by x.float\(\) / 127.5 - 1"),
    "dtype": (video().double(), "x is torch.float64, but the model's weights are torch.float32"),
    "channels last": (video(1, 5, 16, 16, 3), r"x has 5 channels; expected 3, in \(B, 3, T"),
    "no clip": (video(0, 3, 5, 16, 16), "at least one clip and one frame"),
    "H": (video(1, 3, 5, 20, 16), "x has H = 20; expected a positive multiple of 8"),
    "W": (video(1, 3, 5, 16, 0), "x has W = 0; expected a positive multiple of 8"),
    "NaN": (with_nan(video()), rf"x has 1 {NOT_FINITE}, the first at index \(0, 1, 0, 1, 1\)"),
    "infinite": (video(value=-torch.inf), f"x has 3840 {NOT_FINITE}"),
    "8 bits": (video(value=255.0), r"x has values from 255 to 255; expected \[-1, 1\]; .*x / 127.5 - 1"),
    "overshoot": (video(value=-1.01), r"x has values from -1.01 to -1.01; .*clamped by x.clamp\(-1, 1\)"),
}
BAD_LATENTS: dict[str, tuple[Any, str]] = {
    "no tensor": (None, "z is a NoneType"),
    "integers": (latents().long(), r"z is torch.int64; .* convert by z.float\(\)"),
    "channels": (latents(1, 16, 2, 2, 2), "z has 16 channels; expected 4"),
    "moments": (latents(1, 8, 2, 2, 2), r"z has 8 channels; .*DiagonalGaussian\(moments\).mode\(\)"),
    "no frame": (latents(1, 4, 0, 2, 2), "at least one"),
    "H": (latents(1, 4, 2, 0, 2), r"z has spatial size \(0, 2\)"),
    "NaN": (with_nan(latents()), rf"z has 1 {NOT_FINITE}, the first at index \(0, 1, 0, 1, 1\)"),
}


@pytest.mark.parametrize("case", BAD_VIDEOS)
def test_bad_video_or_chunk_is_named(model: WFVAE, case: str) -> None:
    value, message = BAD_VIDEOS[case]
    with pytest.raises(InputError, match=message):
        model.encode(value)
    with pytest.raises(InputError, match=re.sub(r"\bx(?= |\.|\/)", "chunk", message)):
        list(model.stream_encode([video(), value]))


@pytest.mark.parametrize("case", BAD_LATENTS)
def test_bad_latents_are_named(model: WFVAE, case: str) -> None:
    value, message = BAD_LATENTS[case]
    with pytest.raises(InputError, match=message):
        model.decode(value)


def test_clip_of_a_length_that_only_streams_take_is_refused(model: WFVAE) -> None:
    message = r"x has T = 7 frames; .* T = 1 \+ 4 n, .* 5 or 9; stream_encode takes any T"
    with pytest.raises(InputError, match=message):
        model.encode(video(1, 3, 7, 16, 16))


def test_large_finite_latents_whose_sum_overflows_are_accepted(model: WFVAE) -> None:
    assert model.decode(torch.full((1, 4, 2, 2, 2), 3e38)).w2 is not None


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1.0078), (torch.bfloat16, 1.0078125), (torch.float64, 1.0078)]
)
def test_values_outside_the_range_by_rounding_are_accepted(
    small_model: ModelFactory, dtype: torch.dtype, most: float
) -> None:
    for value in (most, -most):
        assert small_model(dtype).encode(video(value=value).to(dtype)).latent_dist.mean.dtype == dtype


def test_stream_that_is_empty_or_changes_shape_is_refused(model: WFVAE) -> None:
    for other in (video(2, 3, 4, 16, 16), video(1, 3, 4, 24, 16), video(1, 3, 4, 16, 24)):
        with pytest.raises(InputError, match="batch, H and W must stay the same in a stream"):
            list(model.stream_encode([video(), other]))
    for chunks in ([], [video(1, 3, 0, 16, 16)]):
        with pytest.raises(InputError, match="the stream has no frames"):
            list(model.stream_encode(chunks))
    with pytest.raises(InputError, match="the stream has no latents"):
        list(model.stream_decode([latents(1, 4, 0, 2, 2)]))


@pytest.mark.parametrize(("count", "frames"), [(2, 1), (2, 6), (2, 100), (3, 5), (1, 2), (2, 0)])
def test_length_that_the_latents_do_not_have_is_refused(model: WFVAE, count: int, frames: int) -> None:
    message = f"{count} latents were given for T = {frames} frames" if frames else "the video has 0 frames"
    with pytest.raises(InputError, match=message):
        list(model.stream_decode([latents(1, 4, count, 2, 2)], frames))


START = torch.tensor([True])


def test_steps_name_what_is_wrong(model: WFVAE) -> None:
    state = model.initial_state("encoder", 1, 16, 16)
    with pytest.raises(InputError, match="the chunk has 5 frames; an encoder step takes multiples of 4"):
        model.encoder_step(video(), state, START)
    bad_flags: list[Any] = [True, torch.tensor([1]), torch.tensor([True, False]), torch.tensor(True)]
    for flag in bad_flags:
        for name, flags in (("start", (flag, START)), ("end", (START, flag))):
            message = rf"{name} is .*; expected torch.bool of shape \(1,\), one value per stream"
            with pytest.raises(InputError, match=message):
                model.encoder_step(video(1, 3, 4, 16, 16), state, *flags)
    with pytest.raises(InputError, match="chunk has 3 channels; expected 4"):
        model.decoder_step(latents(1, 3, 1, 2, 2), model.initial_state("decoder", 1, 16, 16), START)


def test_wrong_state_is_named(model: WFVAE) -> None:
    state, z = model.initial_state("decoder", 1, 16, 16), latents(1, 4, 1, 2, 2)
    age, conv = "decoder.up2.2.time.age", "decoder.conv_in"
    without = {name: tensor for name, tensor in state.items() if name != conv}
    shape = rf"{conv} has shape \(1, 1, 4, 2, 2\), expected \(1, 2, 4, 2, 2\)"
    wrong: list[tuple[Any, str]] = [
        (state | {conv: state[conv][:, :1]}, shape),
        (state | {conv: state[conv].half()}, f"{conv} has dtype float16, expected float32"),
        (model.initial_state("decoder", 2, 16, 16), "for 1 streams of 16x16"),
        (model.initial_state("encoder", 1, 16, 16), "unexpected encoder."),
        (without | {"extra": z, age: state[age][:0]}, rf"missing {conv}.*unexpected extra.*{age} has shape"),
        *[(nothing, "expected a mapping of names to tensors") for nothing in (None, [], {conv: 3})],
    ]
    for given, message in wrong:
        with pytest.raises(StateError, match=message):
            model.decoder_step(z, given, START)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("encode", 1, 16, 16), "direction is 'encode'; expected one of encoder, decoder"),
        (("encoder", 1, 20, 16), "video height is 20; expected a multiple of 8"),
        (("encoder", 0, 16, 16), "batch is 0; expected an integer >= 1"),
        (("encoder", 1, 16, 16.0), "width is 16.0; expected an integer >= 1"),
    ],
)
def test_impossible_initial_state_is_refused(model: WFVAE, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.initial_state(*arguments)


def test_stream_under_autocast_is_refused_and_clip_is_not(model: WFVAE) -> None:
    state = model.initial_state("decoder", 1, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.decode(latents()).sample.dtype == torch.bfloat16
        with pytest.raises(StreamingError, match=r"cannot run under autocast.*\.to\(dtype\)"):
            model.decoder_step(latents(1, 4, 1, 2, 2), state, START)


def test_groupnorm_runs_offline_and_is_refused_for_streams(small_model: ModelFactory) -> None:
    flow = {"encoder_energy_flow_hidden_size": 32, "decoder_energy_flow_hidden_size": 32}
    model = small_model(norm_type="groupnorm", base_channels=32, **flow)
    assert model(video())[1].sample.shape == (1, 3, 5, 16, 16)
    with pytest.raises(StreamingError, match="'groupnorm' cannot be streamed: its statistics mix all frames"):
        list(model.stream_decode([latents()]))


@pytest.mark.parametrize("kind", ["layernorm", "groupnorm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norm_statistics_are_fp32_at_half_precision(kind: str, dtype: torch.dtype) -> None:
    # A mean far above the spread, and squares beyond fp16's range: statistics in half precision
    # would be wrong or infinite.
    generator = torch.Generator().manual_seed(0)
    x = (600 + 64 * torch.randn(1, 2, 64, 4, 4, generator=generator)).to(dtype)
    norm = Norm(64, kind)  # type: ignore[arg-type]
    exact = norm.double()(x.double())
    torch.testing.assert_close(norm.to(dtype)(x).double(), exact, rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_fp32(reference_model: ModelFactory, dtype: torch.dtype) -> None:
    name = "4x8x8-trilinear"
    x = torch.rand(1, 3, 9, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    full, half = reference_model(name), reference_model(name, dtype)
    assert {p.dtype for p in half.state_dict().values()} == {dtype}
    exact = full.encode(x).latent_dist.mode()
    rough = half.encode(x.to(dtype)).latent_dist.mode()
    pairs = [(exact, rough), (full.decode(exact).sample, half.decode(exact.to(dtype)).sample)]
    for wanted, given in pairs:
        assert given.dtype == dtype
        error = (given.float() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
        assert 0 < error < {torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]


@pytest.mark.parametrize("compression", [4, 8])
def test_gradients_flow_to_every_weight_and_to_the_input(small_model: ModelFactory, compression: int) -> None:
    model = small_model(temporal_compression=compression).train()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, 3, 1 + 2 * compression, 16, 16, generator=generator).requires_grad_()
    encoded, decoded = model(x, generator=generator)
    loss = (decoded.sample - x).abs().sum() + encoded.latent_dist.kl().sum()
    loss += (encoded.w2 - decoded.w2).abs().sum() + (encoded.w3 - decoded.w3).abs().sum()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    zero = {name for name, gradient in gradients.items() if gradient is None or not gradient.any()}
    # A key's bias shifts all scores of a softmax row alike: its gradient is zero, exactly computed.
    assert not {name for name in zero if not name.endswith("k.conv.bias")}
    assert x.grad is not None and (x.grad.abs().amax(dim=(0, 1, 3, 4)) > 0).all()


def test_gradients_equal_finite_differences(small_model: ModelFactory) -> None:
    """Against a finite difference: what inference may do in place must not spoil them."""
    model = small_model(torch.float64, latent_dim=2)
    generator = torch.Generator().manual_seed(3)
    x, direction = (torch.rand(1, 3, 5, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))

    def loss(video: Tensor) -> Tensor:
        encoded, decoded = model(video, sample_posterior=False)
        return decoded.sample.square().mean() + encoded.latent_dist.logvar.mean()

    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point), point)
    step = 1e-5
    with torch.no_grad():
        slope = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("compression", [4, 8])
@pytest.mark.parametrize(("l2", "l3"), [(False, True), (True, False), (False, False)])
def test_removed_energy_paths_have_no_weights_and_no_estimates(
    small_model: ModelFactory, compression: int, l2: bool, l3: bool
) -> None:
    model = small_model(temporal_compression=compression, energy_flow_l2=l2, energy_flow_l3=l3)
    names = {name.split(".")[1] for name in model.state_dict()}
    assert ("connect_l1" in names, "connect_l2" in names) == (l2, l3)
    x = video(1, 3, 1 + compression, 16, 16)
    encoded, decoded = model(x, sample_posterior=False)
    assert decoded.sample.shape == x.shape and encoded.w2.shape[1] == model.config.w2_channels
    for given, estimate, kept in ((encoded.w2, decoded.w2, l2), (encoded.w3, decoded.w3, l3)):
        assert (estimate.shape == given.shape) if kept else (estimate is None)
