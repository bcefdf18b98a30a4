"""Causal convolutions by minimal filtering: equal to the sum of taps for any size, and with bits
that no chunk or clip changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wfvae import WFVAE, WFVAEConfig
from wfvae.errors import BundleError
from wfvae.export.bundle import ExportOptions, export_bundle, graph_spec
from wfvae.export.forms.form import Convolution
from wfvae.export.forms.minimal_filtering import (
    ROWS_ALONE_FROM_CHANNELS,
    ROWS_FROM_CHANNELS,
    MinimalFiltering,
    Variant,
    choose,
    parity,
)
from wfvae.export.parity.verifier import verify
from wfvae.export.recorder.graph import trace
from wfvae.export.symbolic import Size
from wfvae.model.causal import CausalConv3d
from wfvae.video.synthetic.clips import ProceduralClip

SmallModel = Callable[..., Any]
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="needs the extra openvino")


def convolution(
    seed: int, channels: int, outputs: int, dtype: torch.dtype = torch.float64, **options: Any
) -> CausalConv3d:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CausalConv3d(channels, outputs, 1, **options).to(dtype).requires_grad_(False)


def filtered(conv: CausalConv3d, frames: torch.Tensor, rows: bool) -> torch.Tensor:
    return convolve(MinimalFiltering(way_of(rows)), conv, frames)


def convolve(form: MinimalFiltering, conv: CausalConv3d, frames: torch.Tensor) -> torch.Tensor:
    return form.compute(frames, list(form.filters(conv.conv.weight).values()), conv.conv.bias)


def filters_of(weight: torch.Tensor, variant: Variant) -> dict[str, torch.Tensor]:
    return MinimalFiltering(variant).filters(weight)


def way_of(rows: bool) -> Variant:
    return "pairs and rows" if rows else "pairs"


@st.composite
def cases(draw: st.DrawFn) -> tuple[CausalConv3d, torch.Tensor, bool]:
    """A convolution, frames with two of history (an even number in all), and whether rows are
    transformed (H is even then).
    """
    batch, pairs, channels, outputs, height, width = (draw(st.integers(1, top)) for top in (3, 4, 5, 5, 6, 5))
    rows = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (batch, 2 * pairs + 2, channels, 2 * height if rows else height, width)
    conv = convolution(draw(st.integers(0, 2**31)), channels, outputs)
    return conv, torch.randn(shape, generator=generator, dtype=torch.float64), rows


@given(cases())
def test_pairs_equal_the_sum_of_taps(case: tuple[CausalConv3d, torch.Tensor, bool]) -> None:
    """Borders too: all of every frame is compared."""
    conv, frames, rows = case
    torch.testing.assert_close(filtered(conv, frames, rows), conv.convolve(frames), rtol=0, atol=1e-12)


@given(cases(), st.sampled_from(["first", "last"]))
def test_a_whole_clip_equals_the_sum_of_taps(
    case: tuple[CausalConv3d, torch.Tensor, bool], lone: Any
) -> None:
    conv, frames, rows = case
    # An odd clip, and as history copies of its first frame, as an offline clip has them.
    clip = torch.cat([frames[:, :1], frames[:, :1], frames[:, :-1]], dim=1)
    result = convolve(MinimalFiltering(way_of(rows), lone), conv, clip)
    torch.testing.assert_close(result, conv.convolve(clip), rtol=0, atol=1e-12)


@given(cases())
def test_equal_frames_give_equal_bits(case: tuple[CausalConv3d, torch.Tensor, bool]) -> None:
    """So a head has the same bits in a stream, which has copies of it, and in a clip."""
    conv, frames, rows = case
    conv, head = conv.float(), frames[:, :1].float()
    result = filtered(conv, head.expand_as(frames).contiguous(), rows)
    assert torch.equal(result, result[:, :1].expand_as(result))
    later = filtered(conv, torch.cat([head, head, head, frames[:, 3:].float()], dim=1), rows)
    assert torch.equal(later[:, 0], result[:, 0])


@given(st.tuples(*(st.integers(1, top) for top in (3, 5, 5, 5, 7, 5))), st.integers(0, 2**31))
def test_rows_alone_equal_the_sum_of_taps(sizes: tuple[int, ...], seed: int) -> None:
    """Of any number of frames and rows, odd ones too."""
    batch, count, channels, outputs, height, width = sizes
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(batch, count + 2, channels, height, width, generator=generator, dtype=torch.float64)
    conv = convolution(seed, channels, outputs)
    result = convolve(MinimalFiltering("rows"), conv, frames)
    torch.testing.assert_close(result, conv.convolve(frames), rtol=0, atol=1e-12)


@given(cases())
def test_repeated_frames_need_three_products(case: tuple[CausalConv3d, torch.Tensor, bool]) -> None:
    """In a step, and in a whole clip, whose first frame was not repeated."""
    conv, frames, rows = case
    form = MinimalFiltering("repeats and rows" if rows else "repeats")
    step = frames[:, ::2].repeat_interleave(2, dim=1)
    clip = torch.cat([step[:, :1], step], dim=1)  # the first frame, and two copies of it as history
    for given_frames in (step, clip):
        result = convolve(form, conv, given_frames)
        torch.testing.assert_close(result, conv.convolve(given_frames), rtol=0, atol=1e-12)
    head = convolve(form, conv.float(), step[:, :1].expand_as(step).float())
    assert torch.equal(head, head[:, :1].expand_as(head))


@pytest.mark.parametrize("outputs", [64, 65, 150])
def test_wide_convolutions_are_transformed_in_blocks(outputs: int) -> None:
    """Blocks of output channels, the last one shorter."""
    conv = convolution(0, 2, outputs)
    frames = torch.randn(1, 4, 2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(filtered(conv, frames, rows=True), conv.convolve(frames), rtol=0, atol=1e-12)


def test_filters_are_those_of_the_paper() -> None:
    """Worked by hand for the taps 1, 10, 100 in time and 2, 4, 8 in height."""
    weight = (
        torch.tensor([1.0, 10.0, 100.0])[:, None, None]
        * torch.tensor([2.0, 4.0, 8.0])[None, :, None]
        * torch.ones(3)
    )
    pairs = filters_of(weight[None, None], "pairs")
    assert [float(part[0, 0, 0, 0]) for part in pairs.values()] == [2.0, 111.0, 91.0, 200.0]
    rows = filters_of(weight[None, None], "pairs and rows")
    assert [float(rows[f"pair1.rows{index}"][0, 0, 0, 2]) for index in range(4)] == [
        55.5 * 2,
        55.5 * 7,
        55.5 * 3,
        55.5 * 8,
    ]
    assert {tuple(part.shape) for part in rows.values()} == {(1, 1, 1, 3)} and len(rows) == 16
    alone = filters_of(weight[None, None], "rows")
    assert list(alone) == [f"tap{tap}.rows{index}" for tap in range(3) for index in range(4)]
    assert [float(part[0, 0, 0, 1]) for part in alone.values()] == [
        t * r for t in (1, 10, 100) for r in (2, 7, 3, 8)
    ]
    assert {
        name: part.tolist() for name, part in filters_of(weight[None, None], "repeats and rows").items()
    } == {name: part.tolist() for name, part in alone.items()}
    repeats = filters_of(weight[None, None], "repeats")
    assert {name: float(part[0, 0, 1, 1]) for name, part in repeats.items()} == {
        "tap0": 4.0,
        "tap1": 40.0,
        "tap2": 400.0,
    }


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (4, 0),
        (5, 1),
        (2 * Size.symbol("n"), 0),
        (4 * Size.symbol("n") + 3, 1),
        (Size.symbol("n"), None),
        (3 * Size.symbol("n") + 1, None),
    ],
)
def test_parity_is_known_or_not(length: Any, expected: int | None) -> None:
    assert parity(length) == expected


@pytest.mark.parametrize(
    "options", [{"stride": (2, 2)}, {"kernel": 1}, {"kernel_spatial": 1}, {"stride": (2, 1)}]
)
def test_other_convolutions_do_not_fit(options: dict[str, Any]) -> None:
    assert choose(described(convolution(0, 2, 2), 4)) == MinimalFiltering("pairs")
    assert choose(described(convolution(0, 2, 2, **options), 4)) is None


def described(conv: CausalConv3d, length: Any, unpaired: Any = "first") -> Convolution:
    stride = (conv.stride, conv.stride_spatial)
    return Convolution(conv.conv.weight, conv.conv.bias, length, stride, conv.repeated, unpaired)


# Graphs -------------------------------------------------------------------------------------------


def kernels(bundle: Path, file: str) -> set[tuple[int, ...]]:
    graph = onnx.load(str(bundle / file), load_external_data=False).graph
    attributes = [attribute for node in graph.node if node.op_type == "Conv" for attribute in node.attribute]
    return {tuple(attribute.ints) for attribute in attributes if attribute.name == "kernel_shape"}


def constants(bundle: Path, file: str) -> set[str]:
    return {
        tensor.name for tensor in onnx.load(str(bundle / file), load_external_data=False).graph.initializer
    }


@pytest.mark.parametrize("interpolation", ["trilinear", "nearest"])
@pytest.mark.parametrize("ratio", [4, 8])
def test_streams_have_the_bits_of_direct_inference(
    interpolation: str, ratio: int, small_model: SmallModel, tmp_path: Path
) -> None:
    """With channels from which on rows are transformed: 4 C, and both flows. Frames repeated in
    time have a form of their own.
    """
    from wfvae.runtime import open_bundle

    wide = {"encoder_energy_flow_hidden_size": 8, "decoder_energy_flow_hidden_size": 8}
    blocks = {"encoder_num_resblocks": 1, "decoder_num_resblocks": 1}
    model = small_model(
        base_channels=24, temporal_compression=ratio, t_interpolation=interpolation, **wide, **blocks
    )
    export_bundle(model, tmp_path / "bundle", ExportOptions(direct=True))
    assert (1, 3) in kernels(tmp_path / "bundle", "decoder.onnx") & kernels(
        tmp_path / "bundle", "decoder.direct.onnx"
    )
    for file in ("decoder.onnx", "decoder.direct.onnx"):
        weight, found = "decoder.up2.1.conv.conv.weight.", constants(tmp_path / "bundle", file)
        parts = [
            f"{part}{i}.rows{j}"
            for part, count in (("tap", 3), ("pair", 4))
            for i in range(count)
            for j in range(4)
        ]
        assert [part for part in parts if weight + part in found] == (
            parts[:12] if interpolation == "nearest" else parts[12:]
        )
    frames = ProceduralClip(5, 20, 28).frames(0, 2 * ratio + 3)
    verification = verify(open_bundle(tmp_path / "bundle", provider="cpu", threads=1), frames, against=model)
    assert verification.passed, [check for check in verification.checks if not check.passed]
    assert all(check.equal_bits for check in verification.checks if check.rule == "equal bits")
    assert max(check.max_abs for check in verification.checks) < 2e-5


@pytest.mark.parametrize(
    ("backend", "hint", "size", "heights"),
    [
        pytest.param("onnxruntime", None, None, (24, 16), marks=pytest.mark.slow),
        ("onnxruntime", None, (24, 8), (24,)),
        pytest.param("openvino", "fp32", None, (24,), marks=[needs_openvino, pytest.mark.slow]),
        pytest.param("openvino", "bf16", None, (24,), marks=[needs_openvino, pytest.mark.slow]),
    ],
)
def test_one_frame_per_latent_is_computed_by_rows(
    backend: Any,
    hint: str | None,
    size: tuple[int, int] | None,
    heights: tuple[int, ...],
    small_model: SmallModel,
    tmp_path: Path,
) -> None:
    """In the middle of a wide network, for sizes with an even and an odd number of latent rows. Its
    upsampling repeats frames in time.
    """
    from wfvae.runtime import open_bundle

    blocks = {"encoder_num_resblocks": 1, "decoder_num_resblocks": 1}
    model = small_model(base_channels=ROWS_ALONE_FROM_CHANNELS // 4, t_interpolation="nearest", **blocks)
    export_bundle(model, tmp_path / "bundle", ExportOptions(direct=True, size=size))
    filters = {
        name for graph in ("encoder", "decoder") for name in constants(tmp_path / "bundle", f"{graph}.onnx")
    }
    assert {
        "encoder.mid.0.conv2.conv.weight.tap2.rows3",
        "decoder.mid.2.conv2.conv.weight.tap0.rows0",
    } <= filters
    assert not any(
        name.startswith(("encoder.conv_out", "decoder.conv_in")) and ".rows" in name for name in filters
    )
    try:
        bundle = open_bundle(tmp_path / "bundle", backend=backend, threads=1, precision_hint=hint)
    except BundleError as error:
        assert hint == "bf16" and "does not compute in bf16" in str(error)
        pytest.skip(str(error))
    width = (
        16 if hint == "bf16" else 8
    )  # OpenVINO with AMX misses equal bits of frames 8 pixels wide (docs/openvino.md)
    for height in heights:
        verification = verify(bundle, ProceduralClip(5, height, width).frames(0, 10), against=model)
        assert verification.passed, [check for check in verification.checks if not check.passed]
        exact = [check for check in verification.checks if check.rule == "equal bits"]
        assert len(exact) >= 20 and all(check.equal_bits for check in exact)
        assert hint == "bf16" or max(check.max_abs for check in verification.checks) < 2e-5


@pytest.mark.parametrize(
    ("direction", "interpolation"),
    [("encoder", "trilinear"), ("decoder", "trilinear"), ("decoder", "nearest")],
)
def test_planned_memory_covers_an_odd_number_of_rows(direction: Any, interpolation: Any) -> None:
    """The formula for any size, whose halves are bounds, against the sums for one size."""
    with torch.device("meta"):
        model = WFVAE(WFVAEConfig.preset("S", t_interpolation=interpolation)).eval()
    spec = graph_spec(model, direction, "step", "mean")
    values = {"batch": 2, "latents": 3, "height/8": 3, "width/8": 2}

    def most(size: tuple[int, int] | None) -> int:
        peaks = trace(model, spec, size=size, opset=20, convolutions="minimal").scratch
        return max(
            sum(math.prod(values.get(str(part), part) for part in term) for term in peak) for peak in peaks
        )  # type: ignore[misc]

    assert most((24, 16)) <= most(None) <= 1.2 * most((24, 16))


def test_plain_and_minimal_bundles_differ_in_rounding_alone(small_model: SmallModel, tmp_path: Path) -> None:
    from wfvae.runtime import open_bundle

    frames = ProceduralClip(7, 16, 24).frames(0, 9)
    results, weights = [], []
    for form in ("plain", "minimal"):
        manifest = export_bundle(small_model(), tmp_path / form, ExportOptions(convolutions=form))  # type: ignore[arg-type]
        bundle = open_bundle(tmp_path / form, provider="cpu", threads=1)
        latents = bundle.encode(frames)
        results.append(torch.from_numpy(latents))
        weights.append(manifest.graphs["decoder"].weights_bytes)
    assert 0 < float((results[0] - results[1]).abs().max()) < 1e-5
    assert weights[0] < weights[1] < 4 / 3 * weights[0]


def test_half_precision_is_plain() -> None:
    assert ExportOptions().forms == "minimal" and ExportOptions(convolutions="plain").forms == "plain"
    assert ExportOptions(precision="fp16").forms == ExportOptions(precision="bf16").forms == "plain"


@pytest.mark.parametrize(
    ("channels", "length", "way"),
    [
        (ROWS_FROM_CHANNELS - 1, 4, "pairs"),
        (ROWS_FROM_CHANNELS, 4, "pairs and rows"),
        (ROWS_FROM_CHANNELS, 2 * Size.symbol("latents") + 3, "pairs and rows"),
        (ROWS_ALONE_FROM_CHANNELS - 1, Size.symbol("latents") + 2, None),
        (ROWS_ALONE_FROM_CHANNELS, Size.symbol("latents") + 2, "rows"),
    ],
)
def test_the_way_depends_on_channels_and_on_whether_frames_come_in_pairs(
    channels: int, length: Any, way: Variant | None
) -> None:
    with torch.device("meta"):
        narrower, same = CausalConv3d(channels, channels + 1, 1), CausalConv3d(channels + 1, channels, 1)
        repeated = CausalConv3d(channels, channels, 1, repeated=True)

    def chosen(conv: CausalConv3d, unpaired: Any = "first") -> Variant | None:
        form = choose(described(conv, length, unpaired))
        return None if form is None else form.name

    assert [chosen(conv) for conv in (narrower, same)] == [way, way]
    repeats: dict[Variant | None, Variant | None] = {"pairs": "repeats", "pairs and rows": "repeats and rows"}
    assert chosen(repeated) == repeats.get(way, way) and chosen(repeated, "last") == way
